"""The GPU's clocks, run with a stand-in for CUDA where there is no GPU.

The stand-in shows that each clock takes the right differences and shares, not that a GPU is
measured well: tests marked ``gpu`` in test_measure.py do that on one.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch

from rsk.base import machine
from rsk.measure import clocks, provenance, timing

pytestmark = pytest.mark.alone
CALL_S = 0.001


class Event:
    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.at = time.perf_counter()

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, other: Event) -> float:
        return (other.at - self.at) * 1e3  # CUDA's unit is the millisecond


class Work:
    """Calls that put work in a queue; it is done at the next synchronisation or replay."""

    def __init__(self) -> None:
        self.queue: list[torch.Tensor] = []
        self.captured: list[torch.Tensor] = []
        self.capturing = False

    def call(self) -> torch.Tensor:
        result = torch.full((2,), 5)
        (self.captured if self.capturing else self.queue).append(result)
        return result

    def synchronize(self) -> None:
        time.sleep(CALL_S * len(self.queue))
        self.queue.clear()

    @contextlib.contextmanager
    def graph(self, graph: object, *, capture_error_mode: str) -> Iterator[None]:
        assert capture_error_mode == "thread_local", "NCCL's thread is not to end a capture"
        self.capturing = True
        yield
        self.capturing = False

    def replay(self) -> None:
        time.sleep(CALL_S * len(self.captured))
        for tensor in self.captured:
            tensor.fill_(5)


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Work:
    found = Work()
    stream = SimpleNamespace(wait_stream=lambda other: None)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "Stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "synchronize", found.synchronize)
    monkeypatch.setattr(torch.cuda, "graph", found.graph)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=found.replay))
    return found


def test_a_graph_gives_the_share_of_one_call(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clocks, "GRAPH_S", 60.0)
    found, outputs = clocks.time_graph([work.call] * 3, budget_s=0.01)
    assert len(work.captured) == len(outputs) == 21  # whole rotations of 3, at least 20 calls
    assert found.clock == "graph replay"
    assert CALL_S <= found.median_us / 1e6 < 5 * CALL_S
    assert all(output.tolist() == [5, 5] for output in outputs), "poisoned, then replayed"


def test_a_graph_of_slow_calls_is_short(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clocks, "GRAPH_S", 4 * CALL_S)
    found, outputs = clocks.time_graph([work.call], budget_s=0.01)
    assert 1 <= len(outputs) <= 4
    assert CALL_S <= found.median_us / 1e6 < 5 * CALL_S


def test_a_graph_that_writes_nothing_leaves_the_poison(work: Work) -> None:
    work.replay = lambda: time.sleep(CALL_S)  # type: ignore[method-assign]
    torch.cuda.CUDAGraph = lambda: SimpleNamespace(replay=work.replay)  # type: ignore[misc,assignment]
    _, outputs = clocks.time_graph([work.call], budget_s=0.01)
    assert all(output.tolist() == [-7, -7] for output in outputs)


def test_host_time_and_call_time_are_told_apart(work: Work) -> None:
    host, call, outputs = clocks.time_eager([work.call, work.call], budget_s=0.01)
    assert host.clock == call.clock == "wall"
    assert call.median_us / 1e6 >= CALL_S > host.median_us / 1e6
    assert [output.tolist() for output in outputs] == [[5, 5], [5, 5]]


def test_counts_on_a_gpu_name_launches(work: Work) -> None:
    x = torch.ones(8)
    counts = timing.count_operations(lambda: (x + 1).sum(), "cuda")
    assert counts["operators"] == 2
    assert isinstance(counts["launches"], int)


def test_provenance_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    properties = SimpleNamespace(L2_cache_size=60 << 20)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1 << 30, 2 << 30))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    found = provenance.provenance("cuda")
    assert (found.gpu, found.compute_capability, found.cuda) == ("a GPU", "9.0", "13.0")
    assert found.cache_bytes == 60 << 20
    assert found.driver
    assert found.machine == "a GPU"
    assert f"driver {found.driver}" in found.label
    assert machine.available_memory("cuda") == 1 << 30
