"""SGLang's chain sampler: one Triton kernel, and the coins that its caller draws.

Its package imports the whole engine, so the kernels' own files are loaded alone. The buffers and
the coins are made in the call, as SGLang's own caller makes them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rsk.measure.clocks import Thunk
from rsk.measure.peers.peer import Peer, PeerInputs, single_module, with_counts
from rsk.measure.workload import Inputs
from rsk.sampler.api import RejectionSamples
from rsk.sampler.registry import Entry

ENTRY = Entry("SGLang", "one Triton kernel for chains, and coins", "#aa4499", "d", "-.")
KERNEL = "kernels/ops/speculative/reject_sampling.py"
HASH = "kernels/ops/sampling/murmur_hash.py"
LARGEST_COIN = 1 - 2**-24


def make(device: torch.device) -> Peer:
    """The peer; also on a CPU, where Triton's interpreter runs it.

    Raises:
        ModuleNotFoundError: SGLang or Triton is not installed.
    """
    kernel = single_module("sglang", KERNEL).chain_speculative_sampling_triton
    single_module("sglang", HASH)

    def bind(inputs: Inputs, seeds: Tensor | None) -> Thunk:
        layout = _layout(inputs.draft_tokens)
        draft, target = inputs.draft_probs.float(), inputs.target_probs.float()
        return lambda: _sample(kernel, layout, draft, target, seeds)

    def bind_logits(inputs: PeerInputs) -> Thunk:
        from flashinfer import sampling  # what SGLang itself filters with

        layout = _layout(inputs.draft_tokens)
        shape, ways = inputs.target_logits.shape, inputs.ways
        rows = inputs.target_logits.reshape(-1, shape[-1])
        temperatures = torch.full((len(rows), 1), ways.temperature, device=device)

        def call() -> tuple[Tensor, Tensor]:
            probs: Tensor = (rows.float() / temperatures).softmax(-1)  # its own way on Hopper
            if ways.top_k:
                probs = sampling.top_k_renorm_probs(probs, min(ways.top_k, shape[-1]))
            if ways.top_p < 1:
                probs = sampling.top_p_renorm_probs(probs, ways.top_p)
            return _sample(kernel, layout, inputs.draft_probs, probs.view(shape), None)

        return call

    return Peer(entry=ENTRY, bind=bind, bind_logits=bind_logits, result=result)


def _layout(draft_tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Its candidates, a root and then the drafts, and where in the output each belongs."""
    candidates = torch.nn.functional.pad(draft_tokens, (1, 0), value=0)
    places = torch.arange(candidates.numel(), device=candidates.device).view_as(candidates)
    return candidates, places


def _coins(like: Tensor, seeds: Tensor | None) -> tuple[Tensor, Tensor]:
    """A coin for each candidate, and one for the last token: hashed from the seeds if given."""
    rows, columns = like.shape
    if seeds is None:
        coins = torch.rand_like(like, dtype=torch.float32)
        return coins, torch.rand(rows, device=like.device)
    hash32: Any = single_module("sglang", HASH).murmur_hash32
    positions = torch.zeros(rows, dtype=torch.uint64, device=like.device)
    places = torch.arange(columns + 1, device=like.device)
    hashed = hash32(seeds.to(torch.uint64), positions, places)
    uniform = (hashed.double() / (2**32 - 1)).float().clamp(max=LARGEST_COIN)
    return uniform[:, :columns].contiguous(), uniform[:, columns].contiguous()


def _sample(
    kernel: Any,
    layout: tuple[Tensor, Tensor],
    draft: Tensor,
    target: Tensor,
    seeds: Tensor | None,
) -> tuple[Tensor, Tensor]:
    candidates, places = layout
    predicted = torch.zeros(candidates.numel(), dtype=torch.int32, device=candidates.device)
    accepted = torch.full_like(candidates, -1, dtype=torch.int32)
    counts = torch.empty(len(candidates), dtype=torch.int32, device=candidates.device)
    coins, last_coins = _coins(candidates, seeds)
    kernel(
        predicts=predicted,
        accept_index=accepted,
        accept_token_num=counts,
        candidates=candidates,
        retrive_index=places,
        retrive_next_token=None,
        retrive_next_sibling=None,
        uniform_samples=coins,
        uniform_samples_for_final_sampling=last_coins,
        target_probs=target,
        draft_probs=draft,
        threshold_single=1.0,
        threshold_acc=1.0,
        deterministic=True,
    )
    return predicted.view_as(candidates), counts


def result(output: tuple[Tensor, Tensor]) -> RejectionSamples:
    """Tokens and counts."""
    tokens, counts = output
    columns = torch.arange(tokens.shape[1], device=tokens.device)
    shown = tokens.where(columns <= counts[:, None], -1)
    return RejectionSamples(with_counts(shown, tokens.shape[1] - 1).tokens, counts.long())
