"""What the options of the command line stand for, and which go together."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import typer

T = TypeVar("T")


def entries(text: str | None, kind: type[T], option: str) -> tuple[T, ...] | None:
    """Read a comma-separated list; ``None`` if the option was not given.

    Raises:
        ValueError: an entry is not of that kind.
    """
    if text is None:
        return None
    try:
        return tuple(kind(entry.strip()) for entry in text.split(","))  # type: ignore[call-arg]
    except ValueError:
        wanted = "integers" if kind is int else "numbers"
        raise ValueError(
            f"{option}: expected {wanted} with commas between them, got {text!r}"
        ) from None


def spec_len(value: str) -> int | str:
    """K as a number, or a word that stands for one."""
    try:
        return int(value)
    except ValueError:
        return value  # "auto", or what the loop refuses


def refuse_others(ctx: typer.Context, mode: str, *allowed: str) -> None:
    """Refuse options that were given and that one way of using a command has no use for.

    Args:
        ctx: of the command.
        mode: the option that chooses this way.
        allowed: the options that go with it.

    Raises:
        ValueError: another was given; names it.
    """
    for parameter in ctx.command.params:
        source = ctx.get_parameter_source(parameter.name or "")
        option = parameter.opts[0]
        if source is None or source.name != "COMMANDLINE" or option in (mode, *allowed):
            continue
        if parameter.param_type_name == "option":
            than = f" than {' and '.join(allowed)}" if allowed else ""
            raise ValueError(f"{mode} goes with no other option{than}, got {option}")
