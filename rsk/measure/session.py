"""All that one GPU machine is to measure, in parts: ``python -m rsk.measure.session``.

Each part is a program of its own, with its output in a log. A part that fails does not stop the
next; results are written as they come, into the folders of ``data/``. A call ends after so many
minutes; the next one goes on behind it: parts that passed are not run again, and the long ones go
on by themselves. The exit status is 0 when all parts have passed, 1 if one failed, 3 if some are
left.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rsk.base import terminal
from rsk.base.programs import (
    FAILED,
    OUT_OF_TIME,
    PASSED,
    UNFINISHED,
    Program,
    interruptible,
)

MINUTES = 9.0
MARGIN_S = 30.0
"""A part is told to end so long before the time is up, to write what it has."""
LEAST_S = 45.0
"""With less time left than this, no part is begun."""


@dataclasses.dataclass(frozen=True)
class Part:
    """One program."""

    name: str
    module: str
    arguments: tuple[str, ...]
    saves: str
    """Its file or folder, inside the folder of the session."""
    has_limit: bool = True
    """Whether it takes ``--time-limit``, and goes on when it is started again."""

    def command(self, folder: Path, left_s: float) -> list[str]:
        """The command, for so many seconds."""
        command = [sys.executable, "-m", self.module, *self.arguments]
        command += ["--save", str(folder / self.saves)]
        if self.has_limit:
            command += ["--time-limit", f"{max(1.0, left_s - MARGIN_S):.0f}"]
        return command


def parts(slug: str, dry: bool) -> list[Part]:
    """The parts, in the order of what is wanted most; on a machine of this name."""
    trial = ("--dry", "--runs", "1") if dry else ()
    small = ("--batch-sizes", "1", "--vocab-sizes", "97", "--spec-lens", "2", "--budget", "0.002")
    return [
        Part("roof", "rsk.measure.roof", (*trial, *(("--device", "cpu") if dry else ())),
             f"roof/{slug}.json", has_limit=False),
        Part("model step", "rsk.measure.model_step", trial, f"model-step/{slug}.json"),
        Part("peers", "rsk.measure.peers", trial, f"peers/{slug}.json"),
        Part("from logits", "rsk.measure.logits_benchmark", trial, f"logits/{slug}.json",
             has_limit=False),
        Part("benchmark", "rsk", ("benchmark", *(small if dry else ("--full",))), "benchmarks"),
    ]  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run as a program."""
    from rsk.base.folders import checkout
    from rsk.measure.provenance import provenance

    terminal.accept_any_text()
    interruptible()
    parser = argparse.ArgumentParser(prog="python -m rsk.measure.session", description=__doc__)
    parser.add_argument("--folder", type=Path, help="of the results; data/ of the checkout if none")
    parser.add_argument("--logs", type=Path, help="folder; report/build/session if none")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="of this call (default: 9)")
    parser.add_argument("--only", help="parts, with commas between them")
    parser.add_argument("--dry", action="store_true", help="tiny sizes on the CPU: a trial")
    chosen = parser.parse_args(arguments)
    begin = time.monotonic()
    top = checkout()
    if top is None and (chosen.folder is None or chosen.logs is None):
        parser.error("outside a checkout, --folder and --logs say where to write")
    folder = (chosen.folder or top / "data").resolve()  # type: ignore[operator]
    logs = (chosen.logs or top / "report" / "build" / "session").resolve()  # type: ignore[operator]
    place = provenance("cpu" if chosen.dry else "cuda")
    known = parts(place.slug, chosen.dry)
    names = chosen.only.split(",") if chosen.only else [part.name for part in known]
    if unknown := set(names) - {part.name for part in known}:
        parser.error(f"--only: expected {', '.join(p.name for p in known)}, got "
                     f"{', '.join(sorted(unknown))}")  # fmt: skip
    logs.mkdir(parents=True, exist_ok=True)
    states = logs / f"{place.slug}.json"
    done = _passed(states, place.sources)
    failed = left = False
    for part in known:
        if part.name not in names or part.name in done:
            continue
        left_s = 60 * chosen.minutes - (time.monotonic() - begin)
        if left_s < LEAST_S:
            left = True
            print(f"{part.name}: not begun", flush=True)
            continue
        (folder / part.saves).parent.mkdir(parents=True, exist_ok=True)
        program = Program(part.name, part.command(folder, left_s))
        outcome = program.run(logs, time.monotonic() + left_s)
        unfinished = outcome.status == OUT_OF_TIME or not _is_complete(folder / part.saves)
        if outcome.status == FAILED:  # or only the time was up
            unfinished = program.process is not None and program.process.returncode == UNFINISHED
        print(f"{part.name}: {'unfinished' if unfinished else outcome.status}, "
              f"{outcome.seconds:.0f} s", *outcome.failures, sep="\n  ", flush=True)  # fmt: skip
        if outcome.status == PASSED and not unfinished:
            done.append(part.name)
            states.write_text(json.dumps({"sources": place.sources, "passed": done}) + "\n")
        elif unfinished:
            left = True
        else:
            failed = True
    return 1 if failed else UNFINISHED if left else 0


def _is_complete(saved: Path) -> bool:
    """Whether the record, or the newest in a folder, does not say that it is unfinished."""
    files = [saved] if saved.is_file() else list(saved.glob("*.json"))
    newest = max(files, key=lambda file: file.stat().st_mtime, default=None)
    if newest is None:
        return True  # nothing says otherwise
    return bool(json.loads(newest.read_text(encoding="utf-8")).get("complete", True))


def _passed(states: Path, sources: str) -> list[str]:
    """The parts that have passed with these sources."""
    if not states.is_file():
        return []
    state = json.loads(states.read_text(encoding="utf-8"))
    return list(state["passed"]) if state["sources"] == sources else []


if __name__ == "__main__":
    raise SystemExit(main())
