"""Cut a sweep that ran out of time to its whole runs: ``python -m rsk.measure.whole_runs FILE``.

What a record says of a run is only worth something if the run is whole: one that was cut off has
the points that come first, and not the others. A sweep that cannot be gone on with, since the
machine is gone, is still a sweep of fewer runs.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from rsk.base import terminal
from rsk.measure.record_files import RecordError
from rsk.measure.records import Benchmark
from rsk.measure.sweep import OUT_OF_TIME


def whole_runs(benchmark: Benchmark) -> Benchmark:
    """The same without the last run, if that was cut off; complete if it was only a matter of time.

    Raises:
        RecordError: there is no whole run.
    """
    if benchmark.complete:
        return benchmark
    counts = collections.Counter(record.run for record in benchmark.records)
    most = max(counts.values(), default=0)
    whole = [run for run, count in counts.items() if count == most]
    if len(whole) < 2:
        raise RecordError("runs: expected two whole runs at least, which have as many times each")
    left_out = sorted(counts.keys() - set(whole))
    skipped = [line for line in benchmark.skipped if line != OUT_OF_TIME]
    skipped += [f"run {run + 1}: it was cut off, and is left out" for run in left_out]
    return dataclasses.replace(
        benchmark,
        settings={**benchmark.settings, "runs": len(whole)},
        complete=True,
        records=tuple(record for record in benchmark.records if record.run in whole),
        skipped=tuple(skipped),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run as a program; the exit status is 2 if the file holds no whole run."""
    terminal.accept_any_text()
    parser = argparse.ArgumentParser(prog="python -m rsk.measure.whole_runs")
    parser.add_argument("file", type=Path, help="a record of rsk benchmark; it is written again")
    path = parser.parse_args(arguments).file
    try:
        whole_runs(Benchmark.load(path)).save(path)
    except (OSError, RecordError) as error:
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
