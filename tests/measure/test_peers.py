"""The peers: measured like the others, and only after their distribution was checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest
import torch

import rsk
from rsk.base import machine
from rsk.measure import implementations, peers, timing, workload
from rsk.measure.implementations import Implementation
from rsk.measure.peers import PeerError
from rsk.measure.workload import Inputs

CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that wait for each other make tests slow on a machine that does other things too."""
    with machine.pinned_threads(1):
        yield


def test_transformers_is_measured_on_one_request() -> None:
    peer = peers.transformers_peer(CPU)
    assert peer.max_batch_size == 1
    assert peers.check_distribution(peer, CPU, bias=0.1).lossless
    case = workload.Pool([(1, "warm")], 3, 300).workload(1, 3, budget_s=0.02)
    found = timing.measure(peer, case, budget_s=0.02)
    assert found.implementation == "transformers"
    assert found.device.median_us > 0


def test_find_says_what_is_there_and_what_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(device: torch.device) -> Implementation:
        raise ModuleNotFoundError("No module named 'absent'")

    monkeypatch.setattr(
        peers, "_PEERS", {"absent": absent, "flashinfer-python": peers.flashinfer_peer}
    )
    found, versions, missing = peers.find(CPU)
    assert (found, versions) == ([], {})
    assert missing == ["absent: not installed", "flashinfer-python: needs a GPU"]


def test_another_signature_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.generation import utils

    monkeypatch.setattr(utils, "_speculative_sampling", lambda logits, temperature: None)
    with pytest.raises(PeerError, match="takes logits, temperature"):
        peers.transformers_peer(CPU)


@pytest.mark.parametrize("name", rsk.BACKENDS)
def test_our_own_samplers_pass(name: str) -> None:
    before = torch.get_rng_state()
    verdict = peers.check_distribution(implementations.backend(name), CPU)
    assert (verdict.level, verdict.bias) == (peers.LEVEL, peers.BIAS)
    assert verdict.requests > 1000
    assert torch.equal(torch.get_rng_state(), before), "the caller's random numbers go on"


def test_a_biased_sampler_is_refused() -> None:
    """The last token is drawn from the target instead of the residual: a classic."""

    def bind(inputs: Inputs):
        right = implementations.backend("vectorized").bind(inputs)

        def call() -> rsk.RejectionSamples:
            tokens, n = right()
            rows = inputs.target_probs[torch.arange(len(n)), n]
            tokens[torch.arange(len(n)), n] = torch.multinomial(rows, 1).squeeze(1)
            return rsk.RejectionSamples(tokens, n)

        return call

    with pytest.raises(PeerError, match="does not follow the target: the recovered token"):
        peers.check_distribution(Implementation("biased", bind), CPU)


def test_a_sampler_that_accepts_too_often_is_refused() -> None:
    def bind(inputs: Inputs):
        flattered = inputs._replace(draft_probs=inputs.draft_probs * 0.9)
        return implementations.backend("vectorized").bind(flattered)

    with pytest.raises(PeerError, match="does not follow the target"):
        peers.check_distribution(Implementation("lenient", bind), CPU)


def test_a_token_outside_the_vocabulary_is_refused() -> None:
    def result(output: rsk.RejectionSamples) -> rsk.RejectionSamples:
        return output._replace(tokens=output.tokens.where(output.tokens != 2, 1 << 20))

    peer = dataclasses.replace(implementations.backend("vectorized"), result=result)
    with pytest.raises(PeerError, match="is 1048576, not"):
        peers.check_distribution(peer, CPU)
