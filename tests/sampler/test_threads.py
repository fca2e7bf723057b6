"""What is worth a second thread."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import warm

WORKERS = """
import os
import numpy, torch, rsk
torch.set_num_threads(2)
rows = torch.from_numpy(numpy.full((64, 32000), 1 / 32000, numpy.float32))
rsk.sample(rows[:1], seed=0, backend="fused")
for size in (4, 64):
    before = len(os.listdir("/proc/self/task"))
    rsk.sample(rows[:size], seed=0, backend="fused")
    print(len(os.listdir("/proc/self/task")) - before)
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs Linux")
def test_little_work_stays_on_the_calling_thread():
    """On a busy machine, a second thread for 20 us of work may be waited for 10 ms."""
    done = warm.run(WORKERS, os.environ)
    assert done.stdout.split() == ["0", "1"], done.stderr
