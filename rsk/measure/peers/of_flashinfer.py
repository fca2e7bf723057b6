"""FlashInfer's sampler for chains of draft tokens; nvcc compiles it when it is first called."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from rsk.measure.clocks import Thunk
from rsk.measure.peers.peer import Peer, PeerError, PeerInputs, with_counts
from rsk.measure.workload import Inputs
from rsk.sampler.api import RejectionSamples
from rsk.sampler.registry import Entry

ENTRY = Entry("FlashInfer", "one kernel for chains of draft tokens", "#777777", "P", "-.")


def make(device: torch.device) -> Peer:
    """The peer.

    Raises:
        PeerError: not on a GPU.
        ModuleNotFoundError: FlashInfer is not installed.
    """
    from flashinfer import sampling

    if device.type != "cuda":
        raise PeerError("needs a GPU")

    # Tensors for seed and offset: with numbers, a captured graph would not be allowed.
    def arguments(seed: int, seeds: Tensor | None) -> dict[str, Tensor]:
        chosen = torch.tensor([seed], device=device) if seeds is None else seeds
        return {"seed": chosen, "offset": torch.zeros_like(chosen)}

    def bind(inputs: Inputs, seeds: Tensor | None) -> Thunk:
        return functools.partial(
            sampling.chain_speculative_sampling,
            inputs.draft_probs.float().contiguous(),
            inputs.draft_tokens.int().contiguous(),
            inputs.target_probs.float().contiguous(),
            **arguments(inputs.seed, seeds),
        )

    def bind_logits(inputs: PeerInputs) -> Thunk:
        shape, ways = inputs.target_logits.shape, inputs.ways
        rows = inputs.target_logits.reshape(-1, shape[-1])
        tokens = inputs.draft_tokens.int().contiguous()
        random = arguments(inputs.seed, None)

        def call() -> tuple[Tensor, Tensor, Tensor]:
            probs: Tensor = sampling.softmax(rows.float(), ways.temperature)
            if ways.top_k:
                probs = sampling.top_k_renorm_probs(probs, min(ways.top_k, shape[-1]))
            if ways.top_p < 1:
                probs = sampling.top_p_renorm_probs(probs, ways.top_p)
            return sampling.chain_speculative_sampling(
                inputs.draft_probs, tokens, probs.view(shape), **random
            )

        return call

    return Peer(entry=ENTRY, bind=bind, bind_logits=bind_logits, result=result)


def result(output: tuple[Tensor, Tensor, Tensor]) -> RejectionSamples:
    """Tokens and counts. The counts that it returns go on past the first rejection."""
    return with_counts(output[0], output[0].shape[1] - 1)
