"""The CPU kernel built for other processors, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

flags = pytest.mark.parametrize("flags", ["", "-march=x86-64-v3", "-DRSK_SCALAR"])
"""As plain as the compiler has it, with 8 floats in a vector, and without vector types."""


def check(code: str, flags: str, folder: Path) -> None:
    """Run Python code, which prints "same", beside the modules of ``tests/sampler``.

    Args:
        code: what to run.
        flags: for the compiler, in place of those for this processor.
        folder: for the cache.
    """
    if "x86" in flags and os.uname().machine != "x86_64":
        pytest.skip("needs an x86-64 processor")
    environment = os.environ | {
        "RSK_CPU_FLAGS": flags,
        "RSK_CACHE_DIR": str(folder),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parent / "sampler",
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.stdout.strip() == "same", done.stderr
