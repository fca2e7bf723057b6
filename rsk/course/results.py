"""Results that a notebook hands on to later ones, as files in the run's folder."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any, TypeVar

from rsk.course.running import run_dir
from rsk.measure.records import RecordError, parse

T = TypeVar("T")


def results_dir() -> Path:
    """The folder of the results of this run."""
    return run_dir() / "results"


def save_result(name: str, value: Any) -> Path:
    """Write what later notebooks use to ``<run folder>/results/<name>.json``.

    Args:
        name: such as ``"06_benchmarks"``.
        value: a :class:`rsk.measure.records.Benchmark` or another dataclass, or what JSON holds.

    Raises:
        ValueError: JSON cannot hold the value.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    try:
        text = json.dumps(value, indent=1, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"result {name!r} cannot be written as JSON: {error}") from error
    path = results_dir() / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_text(text + "\n", encoding="utf-8")
    partial.replace(path)  # a reader sees the old file or the new one, never a part
    return path


def load_result(name: str, kind: type[T]) -> T:
    """Read what a notebook of this run wrote.

    Args:
        name: as given to :func:`save_result`.
        kind: a dataclass to check the content against.

    Raises:
        RecordError: there is none, or the content is not of that kind; names the file and field.
    """
    path = results_dir() / f"{name}.json"
    try:
        return parse(kind, json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise RecordError(f"{path}: {error}") from error
