"""The Python kernels of the course return the tokens of CUDA, and load what they log."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

import rsk
from rsk.check.synthetic import make_batch
from rsk.course import python_kernels
from rsk.course.python_kernels import PythonKernel
from rsk.course.python_kernels.cluster import open_mailbox
from rsk.course.python_kernels.gpu import BLOCK, CHUNK, CHUNKS, LANES, LETTERS, TILE, WARP, WARPS


def batches():
    """Small batches that take every way through a kernel."""
    yield make_batch(5, 3, 33, acceptance=0.6)
    yield make_batch(4, 6, 50, acceptance=0.9, seed=1)
    yield make_batch(3, 2, 7, dtype=torch.float16, acceptance=0.3, seed=2)
    yield make_batch(2, 0, 16)
    ragged = make_batch(4, 3, 20, acceptance=0.9, seed=3)
    ragged.draft_tokens[1, 1] = -1
    ragged.draft_tokens[2, 0] = 20  # invalid
    yield ragged
    target = torch.rand(4, 2, 24) / 24
    yield torch.zeros(4, 1, dtype=torch.int64), target[:, :1] * 2, target  # no residual


@pytest.mark.parametrize("name", rsk.KERNELS)
def test_the_tokens_are_those_of_cuda_in_any_order(name):
    for batch in batches():
        expected = rsk.rejection_sample(*batch, seed=7, position=3, backend="baseline")
        compiled = rsk.KERNELS[name](*batch, seed=7, position=3)
        for order in range(4):
            got, _ = python_kernels.launch(name, *batch, seed=7, position=3, order=order)
            for one, other, third in zip(got, expected, compiled, strict=True):
                assert torch.equal(one, other) and torch.equal(one, third)


def test_the_order_is_that_of_the_ladder():
    assert list(python_kernels.KERNELS) == list(rsk.KERNELS)


@pytest.mark.parametrize("name", rsk.KERNELS)
def test_each_probability_of_a_row_is_summed_once(name):
    batch = make_batch(3, 1, 45, acceptance=0.0)
    _, loads = python_kernels.launch(name, *batch, seed=0)
    for request in range(3):
        times = Counter(load.v for load in loads if load.request == request)
        assert set(times) == set(range(45))
        again = Counter(times.values())
        if name == "thread_per_sequence":
            assert set(again) <= {1, 2}, "once to sum, and perhaps once to find the token"
            continue
        if name == "block_per_sequence":  # the piece with the token, then a piece of that
            assert sum(again[n] for n in again if n > 1) <= -(-45 // WARPS)
            continue
        # To find the token: a tile that the warp no longer holds, then a pack a lane.
        assert again[2] + again[3] <= TILE + CHUNK
        assert again[3] <= CHUNK
        assert set(again) <= {1, 2, 3}


@pytest.mark.parametrize("name", ["loads_in_flight", "cluster"])
def test_a_tile_that_a_warp_still_holds_is_not_summed_again(name):
    whole = TILE * WARPS  # a tile for each warp of a block
    _, loads = python_kernels.launch(name, *make_batch(3, 1, whole, acceptance=0.0), seed=0)
    for request in range(3):
        again = Counter(Counter(load.v for load in loads if load.request == request).values())
        assert again == {1: whole - CHUNK, 2: CHUNK}


def test_each_step_asks_for_more_at_once_and_wastes_nothing():
    loaded, sectors = {}, {}
    for name in ("thread_per_sequence", "block_per_sequence", "loads_in_flight"):
        reading = python_kernels.reading(name, requests=4, vocab_size=64)
        loaded[name], sectors[name] = len(reading.together), reading.sectors
    assert list(sectors.values()) == [LANES, 1, CHUNKS * 2]
    assert list(loaded.values()) == [LANES, LANES, TILE]


def test_a_thread_that_waits_for_nobody_is_an_error(monkeypatch):
    def lonely(block, thread, call, memory):
        if thread == 0:
            yield BLOCK
        else:
            yield *WARP, 0

    monkeypatch.setattr(python_kernels, "KERNELS", {"cluster": PythonKernel(lonely)})
    with pytest.raises(RuntimeError, match="not reached by all"):
        python_kernels.launch("cluster", *make_batch(1, 1, 8), seed=0)


def test_a_letter_that_is_never_sent_is_an_error(monkeypatch):
    def unanswered(block, thread, call, memory):
        yield *LETTERS, open_mailbox(senders=1)

    monkeypatch.setattr(python_kernels, "KERNELS", {"cluster": PythonKernel(unanswered)})
    with pytest.raises(RuntimeError, match="not reached by all"):
        python_kernels.launch("cluster", *make_batch(1, 1, 8), seed=0)


def test_an_unknown_kernel_is_refused():
    with pytest.raises(ValueError, match="expected one of thread_per_sequence"):
        python_kernels.launch("nonsense", *make_batch(1, 1, 8), seed=0)
