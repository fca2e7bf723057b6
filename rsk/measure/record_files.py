"""Records as JSON files: dataclasses written, read and checked field by field.

A file with a missing, unknown or impossible field is refused with the file's and the field's name,
what was expected and what came. The reading is written out here because what was tried does less:
msgspec refuses an unknown field only in structures of its own, which ``dataclasses.replace`` and
``asdict`` do not take, names the type of what came and not the value, and the checks of a class
(a median between its quartiles, a time not below its floor) stay as long as they are.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import re
import types
from collections.abc import Callable, Sequence
from dataclasses import MISSING
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar, Union, get_args, get_origin, get_type_hints

from rsk.base import folders

T = TypeVar("T")


class RecordError(ValueError):
    """A recorded field is missing, unknown or impossible; the message begins with its name."""


class RecordFile:
    """A dataclass that is what a file holds."""

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read and check a file.

        Raises:
            RecordError: the file does not hold such a record; names the file and the field.
        """
        try:
            return _parsed(cls, Path(path).read_text(encoding="utf-8"))  # type: ignore[arg-type]
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise RecordError(f"{path}: expected a JSON file: {error}") from error
        except RecordError as error:
            raise RecordError(f"{path}: {error}") from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file, as :func:`write_json` does."""
        write_json(path, dataclasses.asdict(self))  # type: ignore[call-overload]


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write a file, its folder too; one that was there before stays whole until it is complete.

    Raises:
        ValueError: JSON cannot hold the value.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(value, indent=1, allow_nan=False)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text + "\n", encoding="utf-8")
    partial.replace(path)


class Made(Protocol):
    """What a file holds of a measurement: with where and when it was made."""

    @property
    def provenance(self) -> Any:
        """Its ``date`` is in UTC, in ISO 8601."""


M = TypeVar("M", bound=Made)


def by_date(load: Callable[[Path], M], folder: str, pattern: str = "*.json") -> list[M]:
    """What the files of a folder hold, the newest last: by their dates, as any name may be theirs.

    Args:
        load: reads one; what it raises for a damaged file is passed on.
        folder: in ``data/``.
        pattern: of the files' names.
    """
    found = [load(path) for path in sorted((folders.data_dir() / folder).glob(pattern))]
    return sorted(found, key=lambda one: one.provenance.date)


@functools.lru_cache(maxsize=32)  # a report asks for the same thousands of records again and again
def _parsed(cls: type, text: str) -> Any:
    return parse(cls, json.loads(text))


def parse(cls: type[T], value: Any, where: str = "") -> T:
    """Turn JSON values into a dataclass, refusing what does not fit.

    A field with a default may be missing: older files do not have it.

    Raises:
        RecordError: begins with the field's name, for instance ``records[3].device.samples``.
    """
    if not isinstance(value, dict):
        raise RecordError(f"{where or cls.__name__}: expected an object, got {_shown(value)}")
    prefix = f"{where}." if where else ""
    schema: str | None = getattr(cls, "SCHEMA", None)
    if schema is not None and "schema" in value:  # first: another version has other fields
        check_schema(value["schema"], schema, f"{prefix}schema")
    hints, needed = _fields(cls)  # type: ignore[arg-type]
    for name in needed:
        if name not in value:
            raise RecordError(f"{prefix}{name}: missing")
    for name in value:
        if name not in hints:
            raise RecordError(f"{prefix}{name}: unknown; expected {', '.join(hints)}")
    arguments = {
        name: _convert(hint, value[name], prefix + name)
        for name, hint in hints.items()
        if name in value
    }
    try:
        return cls(**arguments)
    except RecordError as error:
        raise RecordError(f"{prefix}{error}") from None


@functools.cache  # Python reads a class's hints anew each time, and a run has thousands of records
def _fields(cls: type) -> tuple[dict[str, Any], list[str]]:
    """The fields of a dataclass with their types; and those that have no default."""
    hints = get_type_hints(cls)
    optional = {one.name for one in dataclasses.fields(cls) if one.default is not MISSING}
    return hints, [name for name in hints if name not in optional]


def _convert(hint: Any, value: Any, where: str) -> Any:
    if hint is Any:
        return value
    if dataclasses.is_dataclass(hint):
        return parse(hint, value, where)  # type: ignore[arg-type]
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        if value is None:
            return None
        (inner,) = (kind for kind in get_args(hint) if kind is not type(None))
        return _convert(inner, value, where)
    if origin is tuple:
        if not isinstance(value, list):
            raise RecordError(f"{where}: expected a list, got {_shown(value)}")
        kind = get_args(hint)[0]
        return tuple(_convert(kind, item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise RecordError(f"{where}: expected an object, got {_shown(value)}")
        kind = get_args(hint)[1]
        return {key: _convert(kind, item, f"{where}.{key}") for key, item in value.items()}
    accepted = (int, float) if hint is float else (hint,)
    # bool is a subclass of int, and never what a number's field means
    if not isinstance(value, accepted) or (isinstance(value, bool) and hint is not bool):
        raise RecordError(f"{where}: expected {hint.__name__}, got {_shown(value)}")
    return value


def check_schema(found: Any, expected: str, name: str = "schema") -> None:
    """Raise :class:`RecordError` unless a file is of the version that is read here."""
    if found == expected:
        return
    kind, version = expected.split("/")
    newer = re.fullmatch(rf"{kind}/(\d+)", str(found))
    advice = "; it was written by a newer rsk" if newer and int(newer[1]) > int(version) else ""
    raise RecordError(f"{name}: expected {expected!r}, got {found!r}{advice}")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def positive(name: str, value: float) -> None:
    """Raise :class:`RecordError` unless a field is a positive, finite number."""
    if not (math.isfinite(value) and value > 0):
        raise RecordError(f"{name}: expected a positive, finite number, got {value}")


def at_least(name: str, value: int, least: int) -> None:
    """Raise :class:`RecordError` unless a field is at least so much."""
    if value < least:
        raise RecordError(f"{name}: expected at least {least}, got {value}")


def not_empty(name: str, value: str | None) -> None:
    """Raise :class:`RecordError` unless a field is a name."""
    if not value:
        raise RecordError(f"{name}: expected a name, got {value!r}")


def one_of(name: str, value: str, expected: Sequence[str]) -> None:
    """Raise :class:`RecordError` unless a field is one of several names."""
    if value not in expected:
        raise RecordError(f"{name}: expected one of {', '.join(expected)}, got {value!r}")
