"""What is refused of CUDA tensors, without a GPU: they have no values here."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import rsk
from rsk.check.synthetic import make_batch
from rsk.sampler import build, emulator
from rsk.sampler.arguments import check_seed_and_position, draw_seed
from rsk.sampler.channel import Channel


@pytest.fixture(params=["vectorized", "auto"])
def backend(request, monkeypatch):
    """One that goes the long way, and one whose kernel is loaded."""
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    monkeypatch.setattr(build, "_loaded", {*build._loaded, "cuda"})
    with FakeTensorMode():
        yield request.param


def test_a_seed_that_every_replay_would_repeat_is_refused(backend):
    tokens = torch.zeros(3, 2, dtype=torch.int64, device="cuda")
    rows, row = torch.rand(3, 3, 10, device="cuda"), torch.rand(3, 10, device="cuda")
    calls = (
        lambda **options: rsk.rejection_sample(tokens, None, rows, **options),
        lambda **options: rsk.rejection_sample_from_logits(tokens, None, rows, **options),
        lambda **options: rsk.sample(row, **options),
        lambda **options: rsk.sample_from_logits(row, **options),
    )
    for call in calls:
        with pytest.raises(ValueError, match=r"seed: expected .* captured, got None"):
            call(backend=backend)
    seeds = torch.zeros(3, dtype=torch.int64, device="cuda")
    assert check_seed_and_position(seeds, 5, row) == (seeds, 5)


def test_torch_compile_does_not_ask_whether_a_graph_is_captured():
    """It cannot; what it makes draws a seed at every call."""

    @torch.compile(fullgraph=True, backend="eager")
    def drawn(x):
        return x + draw_seed(is_cuda=True)

    assert drawn(torch.zeros(2, dtype=torch.int64)).shape == (2,)


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize("seed", [None, -5 * 10**18])
@pytest.mark.parametrize("backend", ["vectorized", "fused"])
def test_compiled_on_a_gpu(backend, seed):
    """With the default compiler, and with numbers whose sums wrap."""
    torch._dynamo.reset()
    batch = [one.cuda() for one in make_batch(4, 3, 60)]
    logits = batch[0], batch[1].log(), batch[2].log()
    for function, arguments in (
        (rsk.rejection_sample, batch),
        (rsk.rejection_sample_from_logits, logits),
    ):
        compiled = torch.compile(function, fullgraph=True)
        got = compiled(*arguments, seed=seed, position=3, backend=backend)
        if seed is not None:
            expected = function(*arguments, seed=seed, position=3, backend=backend)
            assert torch.equal(got.tokens, expected.tokens)
        assert got.num_accepted.min() >= 0


def test_a_kernel_given_as_text_is_for_the_cpu(monkeypatch):
    """The host would read memory of the device."""
    library = SimpleNamespace(rsk_launch=SimpleNamespace())
    monkeypatch.setattr(emulator, "_compile", lambda source: source)
    monkeypatch.setattr(emulator.ctypes, "CDLL", lambda path: library)
    kernel = emulator.compile_kernel("", "launch")
    with FakeTensorMode():
        tokens = torch.zeros(3, 2, dtype=torch.int64, device="cuda")
        with pytest.raises(ValueError, match=r"expected tensors on cpu .*, got cuda:0"):
            kernel(tokens, None, torch.rand(3, 3, 10, device="cuda"), seed=1)


def test_a_fault_is_raised_at_once():
    """There is nobody to tell: the others capture, too, and wait for nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        with pytest.raises(ValueError, match="rank 1: wrong"):
            Channel.fail(SimpleNamespace(rank=1), ValueError("wrong"), torch.device("cuda"))
