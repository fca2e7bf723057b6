"""The sampling step of transformers' assisted generation, for one request.

From probabilities it is given their logarithms, made before the clock starts.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rsk.measure.clocks import Thunk
from rsk.measure.peers.peer import NotOffered, Peer, PeerError, PeerInputs
from rsk.measure.workload import Inputs
from rsk.sampler.api import RejectionSamples
from rsk.sampler.registry import Entry

ENTRY = Entry(
    "transformers", "the sampling step of assisted generation, one request", "#999999", "X", "-."
)
KNOWN = {"candidate_input_ids", "candidate_logits", "candidate_length", "new_logits"}


def make(device: torch.device) -> Peer:
    """The peer.

    Raises:
        PeerError: this version's function takes other arguments.
        ModuleNotFoundError: transformers is not installed.
    """
    from transformers.generation import logits_process, utils

    sampling: Callable[..., tuple[Tensor, Any]] = utils._speculative_sampling
    known = KNOWN | {"is_done_candidate"}  # older versions ask if the draft met a stop token
    parameters = inspect.signature(sampling).parameters.values()
    required = [p.name for p in parameters if p.default is p.empty]
    if not set(required) <= known:
        unknown = ", ".join(sorted(set(required) - known))
        raise PeerError(f"_speculative_sampling takes {unknown}, which is not known here")

    def sample(draft_tokens: Tensor, draft: Tensor, target: Tensor) -> tuple[int, Tensor, int]:
        spec_len = draft_tokens.shape[1]
        values = {
            "candidate_input_ids": draft_tokens,
            "candidate_logits": draft,
            "candidate_length": spec_len,
            "new_logits": target,
            "is_done_candidate": False,
        }
        tokens, n_matches = sampling(**{name: values[name] for name in required})
        # n_matches is a tensor on the device; generate() too needs it on the host.
        return spec_len, tokens, int(n_matches)

    def bind(inputs: Inputs, seeds: Tensor | None) -> Thunk:
        if seeds is not None:
            raise NotOffered("it draws from PyTorch's global generator")
        draft, target = inputs.draft_probs.log(), inputs.target_probs.log()
        return lambda: sample(inputs.draft_tokens, draft, target)

    def bind_logits(inputs: PeerInputs) -> Thunk:
        ways = inputs.ways
        processors: list[Any] = [logits_process.TemperatureLogitsWarper(ways.temperature)]
        if ways.top_k:
            top_k = min(ways.top_k, inputs.target_logits.shape[-1])
            processors.append(logits_process.TopKLogitsWarper(top_k))
        if ways.top_p < 1:
            processors.append(logits_process.TopPLogitsWarper(ways.top_p))
        draft = inputs.draft_probs.log()  # generate() keeps what its processors made of them

        def call() -> tuple[int, Tensor, int]:
            target = inputs.target_logits.to(torch.float32, copy=True)
            for k in range(target.shape[1]):  # position by position, as generate() does
                for process in processors:
                    target[:, k] = process(inputs.draft_tokens, target[:, k])
            return sample(inputs.draft_tokens, draft, target)

        return call

    return Peer(
        entry=ENTRY,
        bind=bind,
        bind_logits=bind_logits,
        result=result,
        capturable=False,
        max_batch_size=1,
    )


def result(output: tuple[int, Tensor, int]) -> RejectionSamples:
    """Tokens and counts."""
    spec_len, tokens, n_matches = output
    padded = torch.nn.functional.pad(tokens, (0, spec_len + 1 - tokens.shape[1]), value=-1)
    return RejectionSamples(padded, torch.tensor([n_matches], device=tokens.device))
