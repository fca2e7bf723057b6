"""Samplers of other projects, measured on the same inputs, in the same run, on the same clock.

A peer draws its own random numbers, so its tokens differ from ours; what is checked before its
time is shown is the distribution of its output (:func:`check_distribution`).

- transformers' ``_speculative_sampling`` is measured wherever the package is installed. It takes
  logits, of one request: it is given log p and log q, made before the clock starts, and B = 1.
- FlashInfer's ``chain_speculative_sampling`` follows its documentation. It has never been run
  here, and says so in its name.

vLLM's and SGLang's samplers are left out: they work on the engine's own metadata, and an adapter
that nobody has run would say more about itself than about them.
"""

from __future__ import annotations

import functools
import importlib.metadata
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rsk.cases import Implementation, Inputs
from rsk.clocks import Call
from rsk.machine import pinned_threads
from rsk.sampler import RejectionSamples

LEVEL = 1e-4
"""Chance that a correct peer fails :func:`check_distribution`."""


class PeerError(RuntimeError):
    """A peer that cannot be measured here; the message says why."""


def find(
    device: torch.device | str,
) -> tuple[list[Implementation], dict[str, str], list[str]]:
    """The peers that can be measured on a device.

    Returns:
        Those whose output distribution was checked just now, the versions of their packages,
        and a line for each that is not measured.
    """
    device = torch.device(device)
    found, versions, missing = [], {}, []
    for package, make in _PEERS.items():
        try:
            peer = make(device)
            check_distribution(peer, device)
        except ModuleNotFoundError:
            missing.append(f"{package}: not installed")
        except PeerError as error:
            missing.append(f"{package}: {error}")
        else:
            found.append(peer)
            versions[package] = importlib.metadata.version(package)
    return found, versions, missing


def transformers_peer(device: torch.device) -> Implementation:
    """The sampling step of transformers' assisted generation, for one request.

    Raises:
        PeerError: this version's function takes other arguments.
    """
    from transformers.generation import utils

    sampling: Callable[..., tuple[Tensor, Any]] = utils._speculative_sampling
    known = {"candidate_input_ids", "candidate_logits", "candidate_length", "new_logits"}
    known.add("is_done_candidate")  # older versions ask whether the draft met a stop token
    parameters = inspect.signature(sampling).parameters.values()
    required = [p.name for p in parameters if p.default is p.empty]
    if not set(required) <= known:
        unknown = ", ".join(sorted(set(required) - known))
        raise PeerError(f"_speculative_sampling takes {unknown}, which is not known here")

    def bind(inputs: Inputs) -> Call:
        spec_len = inputs.draft_tokens.shape[1]
        values = {
            "candidate_input_ids": inputs.draft_tokens,
            "candidate_logits": inputs.draft_probs.log(),
            "candidate_length": spec_len,
            "new_logits": inputs.target_probs.log(),
            "is_done_candidate": False,
        }
        arguments = {name: values[name] for name in required}

        # n_matches is a tensor on the device; the caller needs it on the host, as generate() does.
        def call() -> tuple[int, Tensor, int]:
            tokens, n_matches = sampling(**arguments)
            return spec_len, tokens, int(n_matches)

        return call

    return Implementation(
        "transformers", bind, _pad_one, exact=False, capturable=False, max_batch_size=1
    )


def _pad_one(output: tuple[int, Tensor, int]) -> RejectionSamples:
    spec_len, tokens, n_matches = output
    padded = torch.nn.functional.pad(tokens, (0, spec_len + 1 - tokens.shape[1]), value=-1)
    return RejectionSamples(padded, torch.tensor([n_matches], device=tokens.device))


def flashinfer_peer(device: torch.device) -> Implementation:
    """FlashInfer's sampler for chains of draft tokens, as documented; never run here.

    Raises:
        PeerError: not on a GPU.
    """
    if device.type != "cuda":
        raise PeerError("needs a GPU")
    from flashinfer.sampling import chain_speculative_sampling

    def bind(inputs: Inputs) -> Call:
        return functools.partial(
            chain_speculative_sampling,
            inputs.draft_probs.float(),
            inputs.draft_tokens.int(),
            inputs.target_probs.float(),
        )

    def result(output: tuple[Tensor, Tensor, Tensor]) -> RejectionSamples:
        # The counts that it returns go on past the first rejection; the tokens end after it.
        tokens = output[0].long()
        return RejectionSamples(tokens, (tokens >= 0).sum(1) - 1)

    return Implementation("flashinfer (untested)", bind, result, exact=False, capturable=False)


_PEERS: dict[str, Callable[[torch.device], Implementation]] = {
    "transformers": transformers_peer,
    "flashinfer-python": flashinfer_peer,
}


def check_distribution(
    peer: Implementation, device: torch.device, *, trials: int = 4000, seed: int = 0
) -> float:
    """Test that a peer's output follows the target, on two positions and five tokens.

    The drafts are drawn from q anew for each trial. The number of accepted tokens n and the last
    token v have a joint law in closed form: P(n, v) = P(first n accepted) * max(p_n[v] - q_n[v], 0)
    for n < K, and P(all accepted) * p_K[v] for n = K. A chi-squared test compares it with what
    comes out. The accepted tokens before the last are compared in the same way with min(p, q).

    Args:
        peer: what to test.
        device: where to run it.
        trials: how many calls, of one request each if the peer takes no more.
        seed: of the global generator that the peer draws from; its state is restored after.

    Returns:
        The smaller of the two p-values, doubled (Bonferroni).

    Raises:
        PeerError: it is below ``LEVEL``, or the output is malformed.
    """
    target = torch.tensor(
        [[0.40, 0.30, 0.15, 0.10, 0.05], [0.10, 0.20, 0.30, 0.25, 0.15], [0.2, 0.2, 0.1, 0.1, 0.4]]
    )
    draft = torch.tensor([[0.20, 0.35, 0.05, 0.25, 0.15], [0.30, 0.10, 0.20, 0.10, 0.30]])
    spec_len, vocab_size = draft.shape
    generators = torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])
    with pinned_threads(1), generators:  # threads only get in each other's way on rows so short
        torch.manual_seed(seed)
        drafts = torch.multinomial(draft, trials, replacement=True).T.contiguous()
        per_call = 1 if peer.max_batch_size == 1 else trials
        counts = torch.zeros(spec_len + 1, vocab_size, dtype=torch.float64)
        firsts = torch.zeros(vocab_size, dtype=torch.float64)
        for tokens in drafts.to(device).split(per_call):
            size = len(tokens)
            inputs = Inputs(
                tokens,
                draft.to(device).expand(size, -1, -1).contiguous(),
                target.to(device).expand(size, -1, -1).contiguous(),
                seed,
            )
            result = peer.result(peer.bind(inputs)())
            n = result.num_accepted.cpu()
            last = result.tokens.cpu().gather(1, n[:, None]).squeeze(1)
            if not bool(((last >= 0) & (last < vocab_size)).all()):
                raise PeerError("a sampled token lies outside the vocabulary")
            counts += _tally(n * vocab_size + last, counts.numel()).view_as(counts)
            firsts += _tally(tokens.cpu()[n > 0, 0], vocab_size)

    kept = torch.minimum(target[:spec_len], draft).double()
    reached = torch.cat([torch.ones(1), kept.sum(1).cumprod(0)]).double()
    residual = (target[:spec_len] - draft).clamp(min=0).double()
    law = reached[:, None] * torch.cat([residual, target[spec_len:].double()])
    p_value = min(1.0, 2 * min(_chi_squared(counts, law), _chi_squared(firsts, kept[0])))
    if p_value < LEVEL:
        raise PeerError(
            f"its output does not follow the target: p-value {p_value:.1e} in {trials} trials"
        )
    return p_value


def _tally(values: Tensor, size: int) -> Tensor:
    return torch.bincount(values, minlength=size).double()


def _chi_squared(counts: Tensor, law: Tensor) -> float:
    """Probability of counts at least this far from a law, both flattened; law is normalised."""
    counts, law = counts.flatten(), law.flatten() / law.sum()
    possible = law > 0
    if bool((counts[~possible] > 0).any()):
        return 0.0
    expected = law[possible] * counts.sum()
    statistic = ((counts[possible] - expected) ** 2 / expected).sum()
    freedom = torch.tensor((int(possible.sum()) - 1) / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(freedom, statistic / 2))
