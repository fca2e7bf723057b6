"""Where measurements are saved as they grow, and the unfinished file there to go on with."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

import torch

from rsk.base import terminal
from rsk.measure.record_files import RecordFile, check_schema, parse
from rsk.measure.records import Benchmark, Provenance, RecordError

_OF_THE_MOMENT = ("date", "commit")
"""What may differ between a record and the run that goes on with it: the sources may not."""


def place(save: str | os.PathLike[str], fresh: Benchmark) -> Path:
    """The file to write: ``save``, or one inside it.

    In a folder it is the unfinished run that ``fresh`` would repeat, if there is one; else a new
    file that is named for machine and date.
    """
    path = Path(save)
    if path.suffix == ".json":
        return path
    begun = [file for file in sorted(path.glob("*.json")) if unfinished(file, fresh)]
    return begun[-1] if begun else save_path(path, fresh.provenance)


def unfinished(path: Path, fresh: Benchmark) -> Benchmark | None:
    """The unfinished run in a file, if ``fresh`` is the same sweep by the same code here.

    What could not be measured there, or was refused, is tried again.
    """
    try:
        found = Benchmark.load(path)
    except (OSError, RecordError):
        return None
    if found.complete or found.settings != fresh.settings:
        return None
    if lasting(found.provenance) != lasting(fresh.provenance):
        return None
    return dataclasses.replace(found, skipped=fresh.skipped, refused=())


def lasting(made: Provenance) -> dict[str, Any]:
    """What has to be the same where a run is gone on with."""
    facts = dataclasses.asdict(made)
    return {name: value for name, value in facts.items() if name not in _OF_THE_MOMENT}


def made_here(path: Path, now: Provenance) -> dict[str, Any] | None:
    """What a JSON file holds, if it was made by the same code on this machine; else ``None``.

    Args:
        path: of a file with a ``provenance``.
        now: that of what would be measured now.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        made = parse(Provenance, content["provenance"])
    except (OSError, ValueError, KeyError, TypeError):  # RecordError is a ValueError
        return None
    return content if lasting(made) == lasting(now) else None


def save_path(save: str | os.PathLike[str], provenance: Provenance) -> Path:
    """The file to write: ``save``, or one inside it that is named for machine and date.

    In a folder no file is overwritten: the second of a day ends in ``-2``, and so on.
    """
    path = Path(save)
    if path.suffix == ".json":
        return path
    stem = f"{provenance.slug}-{provenance.date[:10]}"
    names = itertools.chain([stem], (f"{stem}-{n}" for n in itertools.count(2)))
    return next(file for file in (path / f"{name}.json" for name in names) if not file.exists())


@dataclass(frozen=True, kw_only=True)
class PartsRecord(RecordFile):
    """A file that is measured part by part, in several calls if need be."""

    SCHEMA = ""
    schema: str
    provenance: Provenance
    settings: dict[str, Any]
    complete: bool
    failed: tuple[str, ...]
    """What was not measured, and why."""

    def __post_init__(self) -> None:
        check_schema(self.schema, self.SCHEMA)

    def going_on(self, path: Path) -> Self:
        """What a file holds of the same, of which what failed is tried again; without one, this.

        Raises:
            RecordError: the file is of something else, or damaged.
        """
        if not path.is_file():
            return self
        before = type(self).load(path)
        if (lasting(before.provenance), before.settings) != (
            lasting(self.provenance),
            self.settings,
        ):
            raise RecordError(
                f"{path} is of another machine, version, source or setting: choose another"
            )
        return dataclasses.replace(before, failed=(), complete=False)


R = TypeVar("R", bound=PartsRecord)


class Recorder(Generic[R]):
    """Gathers such a record, and writes it as it grows."""

    def __init__(self, record: R, path: Path, budget_s: float) -> None:
        self.record, self.path, self.budget_s = record, path, budget_s
        self.device = torch.device(record.provenance.device)

    def add(self, **more: Any) -> None:
        """Append to fields of the record, and write it."""
        grown: Any = {name: (*getattr(self.record, name), value) for name, value in more.items()}
        self.record = dataclasses.replace(self.record, **grown)
        self.record.save(self.path)

    def fail(self, what: str, error: Exception) -> None:
        """Write down what was not measured, once."""
        line = f"{what}: {terminal.error_line(error)}"
        print(line, flush=True)
        if line not in self.record.failed:
            self.add(failed=line)

    def end(self, complete: bool) -> None:
        """Write whether everything was tried."""
        self.record = dataclasses.replace(self.record, complete=complete)
        self.record.save(self.path)
