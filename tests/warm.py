"""Python code in a new process that has PyTorch and rsk imported already, and has done no more.

It is forked from one that only imports: a fresh Python would need 1.5 s for that.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from process_group import CONTEXT


class Done(NamedTuple):
    """What came of a process."""

    returncode: int
    stdout: str
    stderr: str


class Process:
    """Code that runs, in a session of its own."""

    def __init__(self, code: str, environment: Mapping[str, str]) -> None:
        self._folder = tempfile.TemporaryDirectory()
        folder = Path(self._folder.name)
        self._files = [folder / "stdout", folder / "stderr"]
        for file in self._files:
            file.touch()
        self._process = CONTEXT.Process(target=_run, args=(code, dict(environment), self._files))
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def stderr(self) -> str:
        """All that it has said by now."""
        return self._files[1].read_text(encoding="utf-8")

    def wait_for(self, words: str, timeout: float = 60) -> None:
        """Until it has said so on standard error."""
        self.wait_until(lambda: words in self.stderr, timeout)

    def wait_until(self, holds: Callable[[], bool], timeout: float = 60) -> None:
        """Until something holds, before it has ended."""
        deadline = time.monotonic() + timeout
        while not holds():
            assert self._process.is_alive() and time.monotonic() < deadline, self.stderr
            time.sleep(0.01)

    def kill(self, signal_: int = signal.SIGKILL) -> None:
        """Send a signal to it and to all that it started."""
        os.killpg(self.pid, signal_)

    def wait(self, timeout: float = 120) -> Done:
        """Until it has ended."""
        self._process.join(timeout)
        assert self._process.exitcode is not None, f"still running: {self.stderr}"
        return Done(self._process.exitcode, *(file.read_text("utf-8") for file in self._files))


def run(code: str, environment: Mapping[str, str], timeout: float = 120) -> Done:
    """Run code to its end.

    Args:
        code: what to run, as with ``python -c``.
        environment: all variables that it is to see.
        timeout: in seconds.
    """
    return Process(code, environment).wait(timeout)


def _run(code: str, environment: dict[str, str], files: list[Path]) -> None:
    os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    for number, file in enumerate(files, start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_APPEND), number)
    try:
        exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
    except Exception:
        traceback.print_exc()
        sys.exit(1)
