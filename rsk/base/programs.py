"""Programs that are run for a while, and what came of them: a status, counts, reasons."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

PASSED, FAILED, OUT_OF_TIME = "passed", "failed", "out of time"
UNFINISHED = 3
"""Exit status of a program whose time was up, and which is gone on with when it is started again.
It is not 2, with which argparse refuses arguments."""
GRACE_S = 20.0
"""After an interruption, for pytest to write what it has."""
LINE = 600
"""Longest reason, in characters; the logs have the rest."""

Found = tuple[dict[str, int], list[str]]
"""How many things ended how; and those that failed, each with its reason."""


def interruptible() -> None:
    """Let SIGINT end this program and those that it starts, wherever it was started.

    A shell that puts a command into the background has the signal ignored, and programs inherit it.
    """
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@dataclass
class ProgramResult:
    """What came of a program, or of several."""

    status: str
    seconds: float
    counts: dict[str, int]
    failures: list[str]


@dataclass
class Program:
    """A program that is run in a process group of its own, with its output in a file."""

    name: str
    arguments: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    read: Callable[[str], Found] = lambda printed: ({}, [])
    """Finds what it checked in what it printed, or wrote; else the program counts as one thing."""
    at_most_s: float | None = None
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    def run(self, logs: Path, until: float) -> ProgramResult:
        """Run it until a point in time, of :func:`time.monotonic`, at the latest.

        The folder of the checkout is where it runs and first on its path. The log is in ``logs``.
        """
        begin = time.monotonic()
        log = logs / f"{re.sub(r'[^a-z0-9]+', '-', self.name.lower())}.log"
        path = os.pathsep.join(filter(None, [str(Path.cwd()), os.environ.get("PYTHONPATH")]))
        environment = os.environ | {"PYTHONPATH": path, "COLUMNS": "160"} | self.environment
        with log.open("w", encoding="utf-8") as out:
            self.process = subprocess.Popen(
                self.arguments, env=environment, stdout=out, stderr=out, start_new_session=True
            )
            try:
                status = PASSED if self.process.wait(max(0, until - begin)) == 0 else FAILED
            except subprocess.TimeoutExpired:
                status = OUT_OF_TIME
                self.stop()
        seconds = time.monotonic() - begin
        printed = log.read_text(encoding="utf-8", errors="replace")
        counts, failures = self.read(printed)
        if status == PASSED and self.at_most_s is not None and seconds > self.at_most_s:
            failures.append(f"took {seconds:.0f} s, at most {self.at_most_s:.0f}")
        if status == OUT_OF_TIME or (status == FAILED and not failures):
            failures.append(f"{status}: {_last_words(printed)}")
        status = FAILED if status == PASSED and failures else status
        return ProgramResult(
            status, seconds, counts or {status: 1}, [f"{self.name}: {x}" for x in failures]
        )

    def stop(self) -> None:
        """Interrupt it, and kill it if it does not end."""
        if self.process is None:
            return
        for kind in (signal.SIGINT, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
                os.killpg(self.process.pid, kind)
                self.process.wait(GRACE_S)
                return


def _last_words(printed: str) -> str:
    """The end of what was printed: from our own message on, if there is one."""
    lines = [line.strip() for line in printed.splitlines() if line.strip()]
    ours = [i for i, line in enumerate(lines) if line.startswith("rsk: ")]
    return " ".join(lines[ours[-1] if ours else -1 :])[-LINE:] or "it printed nothing"
