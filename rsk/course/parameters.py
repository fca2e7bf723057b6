"""The notebooks' parameters: what is given, what a notebook declares, and whether the two fit.

Everything is checked before anything runs: here by ``rsk report``, and by the notebook itself
(:func:`rsk.course.beginning.begin`) when papermill or a reader has changed it.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from rsk.base import templates
from rsk.sampler.arguments import MAX_SPEC_LEN, MAX_VOCAB_SIZE

if TYPE_CHECKING:
    from nbformat import NotebookNode


def parse_parameters(assignments: Iterable[str]) -> dict[str, Any]:
    """Read ``name=value`` pairs; a value is a Python literal, else YAML (which includes JSON).

    Raises:
        ValueError: no ``=``, no name, a name given twice, or a value that is neither.
    """
    parameters: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        name = name.strip()
        if not equals or not name.isidentifier():
            raise ValueError(f"a parameter is written name=value, not {assignment!r}")
        if name in parameters:
            raise ValueError(f"parameter {name} is given twice")
        parameters[name] = _parse_value(name, text)
    return parameters


def _parse_value(name: str, text: str) -> Any:
    import yaml

    try:
        value = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError):  # such as true, null or a bare word
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise ValueError(f"the value of parameter {name} cannot be read: {text!r}") from None
    return list(value) if isinstance(value, tuple) else value  # 1,4 as well as [1, 4]


def declared_parameters(notebook: NotebookNode, name: str) -> dict[str, Any]:
    """Parameters of a notebook and their defaults: the literals in its cell tagged ``parameters``.

    Raises:
        ValueError: there is no such cell, or it holds something other than literals.
    """
    for cell in notebook.cells:
        if cell.cell_type == "code" and "parameters" in cell.metadata.get("tags", []):
            try:
                return literals(cell.source)
            except (ValueError, SyntaxError) as error:
                raise ValueError(
                    f"{name}: the cell tagged 'parameters' may only assign literals: {error}"
                ) from None
    raise ValueError(f"{name}: no code cell is tagged 'parameters'")


def literals(source: str) -> dict[str, Any]:
    """Names and values that a piece of code assigns.

    Raises:
        ValueError: it does something other than assigning literals.
    """
    found: dict[str, Any] = {}
    for statement in ast.parse(source).body:
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.expr() as value):
                found[name] = _literal(name, value)
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
                found[name] = _literal(name, value)
            case _:
                raise ValueError(f"line {statement.lineno}: {ast.unparse(statement)}")
    return found


def _literal(name: str, value: ast.expr) -> Any:
    text = ast.unparse(value)
    if text in ("float('nan')", "float('inf')", "float('-inf')"):  # as papermill writes them
        return float(text[7:-2])
    try:
        return ast.literal_eval(value)
    except ValueError:
        raise ValueError(f"line {value.lineno}: {name} = {text}") from None


def match_parameters(
    given: Mapping[str, Any], declared: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Sort given parameters by the notebooks that know them.

    Args:
        given: parameter name to value.
        declared: notebook name to its parameters and their defaults.

    Returns:
        For each notebook, those of the given parameters that it declares.

    Raises:
        ValueError: a name that no notebook declares, a value of another type than the default, or
            one out of range.
    """
    for name in given:
        if not any(name in parameters for parameters in declared.values()):
            known = "\n".join(
                f"  {notebook}: {', '.join(parameters) or '(none)'}"
                for notebook, parameters in declared.items()
            )
            raise ValueError(f"no notebook has a parameter {name!r}. Known parameters:\n{known}")
    matched: dict[str, dict[str, Any]] = {}
    for notebook, parameters in declared.items():
        matched[notebook] = {name: given[name] for name in given if name in parameters}
        for name, value in matched[notebook].items():
            default = parameters[name]
            if not _same_type(value, default):
                raise ValueError(
                    f"parameter {name} of {notebook} must be {_type_name(default)} "
                    f"such as {default!r}, not {_type_name(value)}: {value!r}"
                )
    check_ranges(given)
    return matched


def _same_type(value: Any, default: Any) -> bool:
    if default is None:
        return True  # no type to hold it to
    if isinstance(default, float) and not isinstance(value, bool):
        return isinstance(value, int | float)
    if isinstance(default, list):
        return isinstance(value, list) and (  # papermill would hand a tuple on as a text
            not default or all(_same_type(entry, default[0]) for entry in value)
        )
    return type(value) is type(default)


def _type_name(value: Any) -> str:
    if isinstance(value, list):
        kinds = {_type_name(entry).split(" ", 1)[-1] for entry in value}
        return f"a list of {kinds.pop()}s" if len(kinds) == 1 else "a list"
    names = {bool: "a truth value", int: "an integer", float: "a number", str: "a text"}
    return names.get(type(value), "null" if value is None else f"a {type(value).__name__}")


# --- ranges -----------------------------------------------------------------------------------


def _from(least: int, most: int) -> tuple[Callable[[Any], bool], str]:
    return (
        lambda value: type(value) is int and least <= value <= most,
        f"an integer from {least} to {most}",
    )


def _each(least: int, most: int) -> tuple[Callable[[Any], bool], str]:
    fits, expected = _from(least, most)
    return (
        lambda values: isinstance(values, list) and len(values) > 0 and all(map(fits, values)),
        f"a list of at least one value, each {expected}",
    )


_RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "quick": (lambda value: isinstance(value, bool), "True or False"),
    "device": (
        lambda value: bool(re.fullmatch(r"auto|cpu|cuda(:\d+)?", str(value))),
        "auto, cpu or cuda",
    ),
    "seed": _from(-(2**62), 2**62),  # something is added to it
    "batch_sizes": _each(1, 2**20),
    "spec_lens": _each(0, MAX_SPEC_LEN),
    "vocab_size": _from(1, MAX_VOCAB_SIZE),
    "language": (lambda value: value in templates.languages(), "a language with words in report/"),
}
"""What the course's parameters may be."""


def check_ranges(values: Mapping[str, Any]) -> None:
    """Check what the course's parameters may be; other names are passed over.

    Raises:
        ValueError: one is of another type or out of range; says which, and the range.
    """
    for name, (fits, expected) in _RANGES.items():
        if name in values and not fits(values[name]):
            raise ValueError(f"parameter {name}: expected {expected}, got {values[name]!r}")
