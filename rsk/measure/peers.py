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

from rsk.check import Case, Verdict, examine
from rsk.measure.clocks import Thunk
from rsk.measure.implementations import Implementation
from rsk.measure.workload import Inputs
from rsk.sampler.api import RejectionSamples
from rsk.sampler.registry import Entry, by_name

LEVEL = 1e-4
"""Chance that a correct peer fails :func:`check_distribution`."""
BIAS = 0.07
"""Distance in total variation at which a wrong one passes it with a chance of 1 % at most."""

TRANSFORMERS = Entry(
    "transformers", "the sampling step of assisted generation, one request", "#999999", "X", "-."
)
FLASHINFER = Entry(
    "flashinfer (untested)", "a kernel for chains of draft tokens", "#777777", "P", "-."
)
ENTRIES = by_name(TRANSFORMERS, FLASHINFER)
"""The peers by name, in the form of :mod:`rsk.sampler.registry`."""


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

    def bind(inputs: Inputs) -> Thunk:
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
        TRANSFORMERS.name, bind, _pad_one, exact=False, capturable=False, max_batch_size=1
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

    def bind(inputs: Inputs) -> Thunk:
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

    return Implementation(FLASHINFER.name, bind, result, exact=False, capturable=False)


_PEERS: dict[str, Callable[[torch.device], Implementation]] = {
    "transformers": transformers_peer,
    "flashinfer-python": flashinfer_peer,
}


def check_distribution(
    peer: Implementation, device: torch.device, *, bias: float = BIAS, seed: int = 0
) -> Verdict:
    """Test that a peer's output follows the target, with the check that any sampler can be given.

    The requests have two draft positions, three tokens and no row of zeros: what every peer takes.
    A peer that takes one request at a time is called once for each.

    Args:
        peer: what to test.
        device: where to run it.
        bias: the smallest distance from the target, in total variation, that must not pass.
        seed: of the drafts and of the global generators, which the peer draws from; their state is
            restored after.

    Returns:
        The verdict, with its error rates.

    Raises:
        PeerError: the output does not follow the target, or is malformed.
    """

    def sampler(
        draft_tokens: Tensor,
        draft_probs: Tensor,
        target_probs: Tensor,
        *,
        seed: Tensor,
        position: Tensor,
    ) -> RejectionSamples:
        inputs = Inputs(draft_tokens, draft_probs, target_probs, int(seed[0]))
        return peer.result(peer.bind(inputs)())

    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        verdict = examine(
            sampler,
            cases=[_small_case()],
            level=LEVEL,
            bias=bias,
            seed=seed,
            batch_size=1 if peer.max_batch_size == 1 else 4096,
            device=device,
        )
    if not verdict.lossless:
        found = verdict.culprit.part if verdict.culprit else "output"
        why = verdict.impossible or f"the {found} is wrong"
        raise PeerError(
            f"its output does not follow the target: {why} ({verdict.requests:,} requests)"
        )
    return verdict


def _small_case() -> Case:
    """A request that is rejected as often as not, with each of p < q and p > q somewhere."""
    draft = [[3, 8, 5], [7, 3, 6]]
    target = [[8, 5, 3], [3, 6, 7], [4, 4, 8]]
    return Case.make("a peer", {"overlapping rows": (draft, target)}, denominator=16)
