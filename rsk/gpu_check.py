"""``make gpu-check``: all that a machine with a GPU can check, in stages, into one JSON file.

Nothing is installed and no network is needed. A stage that fails does not stop the next; the file
is written after each, and stages that are run again later (``--only``) replace their older results
in it. ``data/gpu-check/README.md`` says what the machine needs and what the file holds.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import os
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib import metadata
from pathlib import Path
from xml.etree import ElementTree

from rsk.base import machine, terminal
from rsk.base.programs import (
    FAILED,
    LINE,
    OUT_OF_TIME,
    PASSED,
    Found,
    Program,
    ProgramResult,
    interruptible,
)

SCHEMA = "rsk-gpu-check/1"
COLD_DEMO_S = 30.0
"""What the quick demo may take on a GPU machine that has compiled nothing yet."""
APART = ["tests/project/test_packaging.py", "tests/export/test_accessibility.py"]
"""Tests that install packages or open a browser."""

VERDICTS = {"PASSED": PASSED, "FAILED": FAILED, "ERROR": FAILED, "SKIPPED": "skipped"}
"""What ``pytest -v`` prints for what became of a test."""
TEST_LINE = re.compile(
    r"^(?:(?P<first>\S+::.+?) |\[gw\d+\] \[ *\d+%\] )"
    rf"(?P<verdict>{'|'.join(VERDICTS)})(?(first)\b| (?P<second>.+?) *$)",
    re.MULTILINE,
)
"""A test and its verdict, from one process or from those of pytest-xdist."""
XDIST_GROUP = r"@[\w.]+$"

# --- the stages: their programs, on a device, with a folder to write to ---------------------------


def tests(device: str, folder: Path) -> list[Program]:
    """The test suite: side by side, then by themselves those that time something."""
    parts = {"tests": [], "tests alone": ["--alone"]}
    workers = min(8, (os.cpu_count() or 2) // 2)
    if workers > 1 and importlib.util.find_spec("xdist") is not None:
        parts["tests"] = ["-n", str(workers), "--dist", "loadgroup", "--no-loadscope-reorder"]
    else:
        del parts["tests alone"]
    programs = []
    for name, chosen in parts.items():
        result = folder / f"{name}.xml"
        arguments = ["pytest", "-v", f"--junitxml={result}", *chosen]
        arguments += [f"--ignore={path}" for path in APART]
        programs.append(_python(name, *arguments, read=partial(_tests_in, result)))
    return programs


def _tests_in(result: Path, printed: str) -> Found:
    """What pytest's report says; of a run that wrote none, what it had printed until then."""
    counts, failures = Counter[str](), []
    if not result.is_file():
        for found in TEST_LINE.finditer(printed):
            name, verdict = found["first"] or found["second"], VERDICTS[found["verdict"]]
            counts[verdict] += 1
            if verdict == FAILED:
                failures.append(
                    f"{re.sub(XDIST_GROUP, '', name)}: the run was ended before it said why"
                )
        return dict(counts), failures
    for case in ElementTree.parse(result).iter("testcase"):
        wrong = next((one for one in case if one.tag in ("failure", "error")), None)
        if wrong is not None:
            reason = (wrong.get("message") or wrong.tag).strip().splitlines()[0][:LINE]
            name = re.sub(XDIST_GROUP, "", case.get("name", ""))
            failures.append(f"{case.get('classname')}::{name}: {reason}")
        skipped = wrong is None and case.find("skipped") is not None
        counts[FAILED if wrong is not None else "skipped" if skipped else PASSED] += 1
    return dict(counts), failures


def bad_calls(device: str, folder: Path) -> list[Program]:
    """Every bad call, where a crash has a name: on the CPU, in the emulator, on the GPU."""
    places = [["cpu", "--emulator"]] + ([["cuda"]] if device == "cuda" else [])
    module = "rsk.check.bad_calls"
    return [_python(f"bad calls, {x[0]}", module, *x, read=_refusals_in) for x in places]


def _refusals_in(printed: str) -> Found:
    found = re.search(r"^(\d+) bad calls, (\d+) not refused$", printed, re.MULTILINE)
    if found is None:
        return {}, []
    wrong = int(found[2])
    before = printed[: found.start()].splitlines()
    return {"refused": int(found[1]) - wrong, FAILED: wrong}, before[len(before) - wrong :]


def notebooks(device: str, folder: Path, **environment: str) -> list[Program]:
    """Every notebook by itself, through papermill."""
    from rsk.course import running

    def complaints(executed: Path, printed: str) -> Found:
        return {}, running.strange_lines(executed) if executed.is_file() else []

    programs = []
    for path in running.notebooks():
        output = folder / path.stem
        arguments = ["rsk", "report", "--only", path.stem, "--no-export", "--output", str(output)]
        read = partial(complaints, output / "notebooks" / path.name)
        name = f"{path.stem}{' without a GPU' if environment else ''}"
        programs.append(_python(name, *arguments, environment=environment, read=read))
    return programs


def demo(device: str, folder: Path) -> list[Program]:
    """The quick demo of somebody who has just arrived: nothing is compiled yet."""
    limit = COLD_DEMO_S if device == "cuda" else None
    cache = {"RSK_CACHE_DIR": str(folder / "empty")}
    return [_python("demo, cold", "rsk", "demo", environment=cache, at_most_s=limit)]


def report(device: str, folder: Path) -> list[Program]:
    """``rsk report`` from one end to the other, with the export and the talk."""
    return [_python("report", "rsk", "report", "--output", str(folder))]


def sanitize(device: str, folder: Path) -> list[Program]:
    """NVIDIA's compute-sanitizer on every kernel, from probabilities and from logits."""
    if device != "cuda":
        return []
    python = f"PYTHON={sys.executable}"
    return [
        Program(f"{tool}, {grid}", ["make", "sanitize", f"TOOLS={tool}", f"GRIDS={grid}", python])
        for tool in ("memcheck", "racecheck")
        for grid in ("grid", "logits_grid")
    ]


def _python(name: str, *arguments: str, **options: object) -> Program:
    return Program(name, [sys.executable, "-m", *arguments], **options)  # type: ignore[arg-type]


STAGES: dict[str, tuple[Callable[[str, Path], list[Program]], int]] = {
    "demo": (demo, 1),
    "tests": (tests, 1),
    "bad-calls": (bad_calls, 1),
    "notebooks": (notebooks, 1),
    "notebooks-without-gpu": (partial(notebooks, CUDA_VISIBLE_DEVICES=""), 4),
    "report": (report, 1),
    "sanitize": (sanitize, 4),
}
"""By name, what makes a stage's programs, and how many of them run side by side."""


def run_stage(name: str, device: str, logs: Path, budget_s: float) -> ProgramResult:
    """Run a stage's programs for at most so many seconds, and add up what came of them."""
    make, workers = STAGES[name]
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="rsk-gpu-check-") as folder:
        programs = make(device, Path(folder))
        if device == "cpu":
            for one in programs:
                one.environment = {"CUDA_VISIBLE_DEVICES": "", **one.environment}
        with ThreadPoolExecutor(workers) as pool:
            try:
                done = list(pool.map(lambda one: one.run(logs, begin + budget_s), programs))
            except KeyboardInterrupt:
                pool.shutdown(wait=False, cancel_futures=True)
                for one in programs:
                    one.stop()
                raise
    found = [one.status for one in done] or ["not run"]
    status = max(found, key=[PASSED, "not run", FAILED, OUT_OF_TIME].index)
    counts: Counter[str] = sum((Counter(one.counts) for one in done), Counter())
    failures = [_without_folders(line) for one in done for line in one.failures]
    return ProgramResult(status, round(time.monotonic() - begin, 1), dict(counts), failures)


def _without_folders(line: str) -> str:
    """A line without the folders of absolute paths: they say nothing beyond this machine."""
    return re.sub(r"(?<![\w.~:/-])/(?:[^\s/'\":,]+/)+", "", line)


# --- the file, the table, the command -------------------------------------------------------------


def versions() -> dict[str, str]:
    """Installed versions of what the project uses; what is not installed is not in it."""
    from rsk import doctor

    names = {"torch", "triton", "pytest-xdist", *doctor.requirements("course")}
    installed = {one.metadata["Name"]: one.version for one in metadata.distributions()}
    return {name: installed[name] for name in sorted(names) if name in installed}


def main(arguments: list[str] | None = None) -> int:
    """Run the stages; the exit status is 1 if one of them did not pass."""
    from rich.console import Console
    from rich.table import Table

    from rsk.base.folders import checkout
    from rsk.measure.provenance import provenance

    terminal.accept_any_text()
    interruptible()
    parser = argparse.ArgumentParser(prog="python -m rsk.gpu_check", description=__doc__)
    parser.add_argument("--only", help="stages with commas between them: " + ", ".join(STAGES))
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="cpu: a dry run")
    parser.add_argument("--budget", type=float, default=1800, help="seconds for each stage")
    parser.add_argument("--save", type=Path, help="file; data/gpu-check/GPU.json by default")
    parser.add_argument("--logs", type=Path, help="folder of the programs' output")
    options = parser.parse_args(arguments)
    chosen = options.only.split(",") if options.only else list(STAGES)
    if unknown := [name for name in chosen if name not in STAGES]:
        parser.error(f"--only: expected {', '.join(STAGES)}, got {', '.join(unknown)}")
    top = checkout()
    if top is None:
        parser.error("it runs in a checkout of the project, which has its tests")
    os.chdir(top)
    place = provenance(machine.device(options.device), versions())
    file = options.save or top / "data" / "gpu-check" / f"{place.slug}.json"
    logs = (options.logs or top / "report" / "build" / "gpu-check").resolve()
    for folder in (file.parent, logs):
        folder.mkdir(parents=True, exist_ok=True)
    console = Console(width=160, highlight=False, soft_wrap=True)
    for name in chosen:
        console.print(f"{name} ...")
        try:
            result = run_stage(name, options.device, logs, options.budget)
        except KeyboardInterrupt:
            console.print(f"interrupted; {file} has the stages before")
            return 130
        made = {"commit": place.commit, "date": place.date}
        # Read now: other stages may have been run side by side with this one, into the same file.
        stages = json.loads(file.read_text("utf-8"))["stages"] if file.is_file() else {}
        stages[name] = dataclasses.asdict(result) | made
        content = {"schema": SCHEMA, "provenance": dataclasses.asdict(place), "stages": stages}
        file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        for line in result.failures:
            console.print(f"  {line}", markup=False)
    table = Table("stage", "status", "seconds", "counts", "commit", box=None)
    for name, stage in stages.items():
        counts = ", ".join(f"{count} {kind}" for kind, count in stage["counts"].items())
        table.add_row(name, stage["status"], f"{stage['seconds']:.0f}", counts, stage["commit"])
    console.print(table)
    console.print(f"{file}; the programs' output: {logs}")
    return int(any(stages[name]["status"] in (FAILED, OUT_OF_TIME) for name in chosen))


if __name__ == "__main__":
    sys.exit(main())
