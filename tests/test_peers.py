"""The peers: measured like the others, and only after their distribution was checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest
import torch

import rsk
from rsk import cases, machine, measure, peers
from rsk.cases import Implementation, Inputs
from rsk.peers import PeerError

CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that wait for each other make tests slow on a machine that does other things too."""
    with machine.pinned_threads(1):
        yield


def test_transformers_is_measured_on_one_request() -> None:
    peer = peers.transformers_peer(CPU)
    assert peer.max_batch_size == 1
    assert peers.check_distribution(peer, CPU, trials=1500) >= peers.LEVEL
    case = cases.Pool([(1, "warm")], 3, 300).case(1, 3, budget_s=0.02)
    found = measure.measure(peer, case, budget_s=0.02)
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
    assert peers.check_distribution(cases.backend(name), CPU, trials=2000) >= peers.LEVEL


def test_a_biased_sampler_is_refused() -> None:
    """The last token is drawn from the target instead of the residual: a classic."""

    def bind(inputs: Inputs):
        right = cases.backend("vectorized").bind(inputs)

        def call() -> rsk.RejectionSamples:
            tokens, n = right()
            rows = inputs.target_probs[torch.arange(len(n)), n]
            tokens[torch.arange(len(n)), n] = torch.multinomial(rows, 1).squeeze(1)
            return rsk.RejectionSamples(tokens, n)

        return call

    with pytest.raises(PeerError, match="does not follow the target"):
        peers.check_distribution(Implementation("biased", bind), CPU, trials=2000)


def test_a_sampler_that_accepts_too_often_is_refused() -> None:
    def bind(inputs: Inputs):
        flattered = inputs._replace(draft_probs=inputs.draft_probs * 0.9)
        return cases.backend("vectorized").bind(flattered)

    with pytest.raises(PeerError, match="does not follow the target"):
        peers.check_distribution(Implementation("lenient", bind), CPU, trials=4000)


def test_a_token_outside_the_vocabulary_is_refused() -> None:
    def result(output: rsk.RejectionSamples) -> rsk.RejectionSamples:
        return output._replace(tokens=output.tokens.where(output.tokens != 2, 1 << 20))

    peer = dataclasses.replace(cases.backend("vectorized"), result=result)
    with pytest.raises(PeerError, match="outside the vocabulary"):
        peers.check_distribution(peer, CPU, trials=200)


def test_the_chi_squared_test_is_scipys() -> None:
    stats = pytest.importorskip("scipy.stats")
    counts = torch.tensor([18.0, 32.0, 25.0, 25.0], dtype=torch.float64)
    law = torch.tensor([1.0, 1.5, 1.2, 1.3], dtype=torch.float64)
    expected = stats.chisquare(counts.numpy(), (law / law.sum() * 100).numpy())
    assert peers._chi_squared(counts, law) == pytest.approx(expected.pvalue)
    impossible = torch.tensor([1.0, 0.0, 1.0, 1.0], dtype=torch.float64)
    assert peers._chi_squared(counts, impossible) == 0
