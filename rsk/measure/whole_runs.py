"""Cut a record that ran out of time to its whole runs: ``python -m rsk.measure.whole_runs FILE``.

What a record says of a run is only worth something if the run is whole: one that was cut off has
the points that come first, and not the others. A record that cannot be gone on with, since the
machine is gone, is still a record of fewer runs.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from rsk.base import terminal
from rsk.measure.model_step import ModelStepRecord
from rsk.measure.peer_records import FromProbs, PeersRecord
from rsk.measure.record_files import RecordError, one_of
from rsk.measure.records import Benchmark
from rsk.measure.sweep import OUT_OF_TIME

R = TypeVar("R", Benchmark, PeersRecord, ModelStepRecord)
Kind = type[Benchmark] | type[PeersRecord] | type[ModelStepRecord]

TIMES: dict[Kind, tuple[str, ...]] = {
    Benchmark: ("records",),
    PeersRecord: ("from_probs", "from_logits"),
    ModelStepRecord: ("passes", "steps"),
}
"""By record, the fields whose entries belong to runs."""
NOTES: dict[Kind, str] = {Benchmark: "skipped", PeersRecord: "failed", ModelStepRecord: "failed"}
"""By record, the field of what is not in it, and why."""


def whole_runs(found: R) -> R:
    """The same without the last run, if that was cut off; complete if it was only a matter of time.

    Raises:
        RecordError: there is no whole run.
    """
    if found.complete:
        return found
    times: dict[str, Any] = {name: getattr(found, name) for name in TIMES[type(found)]}
    counts = collections.Counter(_run(one) for entries in times.values() for one in entries)
    most = max(counts.values(), default=0)
    whole = [run for run, count in counts.items() if count == most]
    if len(whole) < 2:
        raise RecordError("runs: expected two whole runs at least, which have as many times each")
    left_out = sorted(counts.keys() - set(whole))
    notes = [line for line in getattr(found, NOTES[type(found)]) if line != OUT_OF_TIME]
    notes += [f"run {run + 1}: it was cut off, and is left out" for run in left_out]
    changed: dict[str, Any] = {
        name: tuple(one for one in entries if _run(one) in whole) for name, entries in times.items()
    }
    changed[NOTES[type(found)]] = tuple(notes)
    settings = {**found.settings, "runs": len(whole)}
    return dataclasses.replace(found, settings=settings, complete=True, **changed)


def _run(one: Any) -> int:
    return int(one.record.run if isinstance(one, FromProbs) else one.run)


def _cut(path: Path) -> None:
    content = json.loads(path.read_text("utf-8"))
    schema: Any = content.get("schema") if isinstance(content, dict) else None
    by_schema = {kind.SCHEMA: kind for kind in TIMES}
    one_of("schema", schema, tuple(by_schema))
    found: Any = by_schema[schema].load(path)
    whole_runs(found).save(path)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run as a program; the exit status is 2 if the file holds no whole run."""
    terminal.accept_any_text()
    parser = argparse.ArgumentParser(prog="python -m rsk.measure.whole_runs")
    parser.add_argument(
        "file", type=Path, help="of rsk benchmark, peers or model steps; it is written again"
    )
    path = parser.parse_args(arguments).file
    try:
        _cut(path)
    except (OSError, ValueError) as error:  # RecordError is a ValueError
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
