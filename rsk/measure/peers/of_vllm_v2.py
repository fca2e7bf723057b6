"""vLLM's second model runner: four Triton launches, from both models' logits.

From probabilities it is given their logarithms, made before the clock starts.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from rsk.measure.clocks import Thunk
from rsk.measure.peers.peer import Peer, PeerInputs, own_seeds
from rsk.measure.workload import Inputs
from rsk.sampler.api import RejectionSamples
from rsk.sampler.registry import Entry

ENTRY = Entry("vLLM V2", "four Triton launches, from both models' logits", "#332288", "x", "-.")


def make(device: torch.device) -> Peer:
    """The peer; also on a CPU, where Triton's interpreter runs it.

    Raises:
        ModuleNotFoundError: vLLM, or what it imports, is not installed.
    """
    from vllm.v1.worker.gpu.sample.gumbel import apply_temperature
    from vllm.v1.worker.gpu.spec_decode.rejection_sampler_utils import rejection_sample

    def bind(inputs: Inputs, seeds: Tensor | None) -> Thunk:
        layout = _Layout(inputs.draft_tokens, 1.0, own_seeds(inputs, seeds))
        target = layout.rows(inputs.target_probs.float().log())
        return functools.partial(
            _call, rejection_sample, layout, target, inputs.draft_probs.float().log()
        )

    def bind_logits(inputs: PeerInputs) -> Thunk:
        # Much more of vLLM is imported with it than the rest needs.
        from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p

        ways, shape = inputs.ways, inputs.target_logits.shape
        seeds = torch.arange(shape[0], device=device) + inputs.seed
        layout = _Layout(inputs.draft_tokens, ways.temperature, seeds)
        rows = layout.rows(inputs.target_logits)
        top_k = torch.full((len(rows),), min(ways.top_k, shape[-1]), device=device).int()
        top_p = torch.full((len(rows),), ways.top_p, device=device)

        def call() -> tuple[Tensor, Tensor]:
            # As its caller does: a float32 copy, scaled and filtered in place.
            logits = torch.empty_like(rows, dtype=torch.float32).copy_(rows)
            apply_temperature(logits, layout.request_of_row, layout.temperature)
            logits = apply_top_k_top_p(
                logits, top_k if ways.top_k else None, top_p if ways.top_p < 1 else None
            )
            return _call(rejection_sample, layout, logits, inputs.draft_logits)

        return call

    return Peer(entry=ENTRY, bind=bind, bind_logits=bind_logits, result=result)


class _Layout:
    """The engine's own metadata for a batch: rows of all requests in one list.

    A request that has fewer drafts, which are marked by -1, has fewer rows.
    """

    def __init__(self, draft_tokens: Tensor, temperature: float, seeds: Tensor) -> None:
        batch_size, self.spec_len = draft_tokens.shape
        device = draft_tokens.device
        lengths = (draft_tokens >= 0).sum(1) + 1
        places = torch.arange(self.spec_len + 1, device=device).expand(batch_size, -1)
        self.kept = places < lengths[:, None]
        self.are_all = bool(self.kept.all())
        # The first token of a request is the one before its drafts.
        tokens = torch.nn.functional.pad(draft_tokens, (1, 0), value=0)
        self.tokens = tokens[self.kept]
        self.starts = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).int()
        self.position = places[self.kept].contiguous()
        self.requests = torch.arange(batch_size, device=device).int()
        self.request_of_row = self.requests.repeat_interleave(lengths)
        self.temperature = torch.full((batch_size,), temperature, device=device)
        self.seeds = seeds

    def rows(self, of_requests: Tensor) -> Tensor:
        """Rows [B, K+1, V] in one list; a view if no request has fewer drafts."""
        return of_requests.flatten(0, 1) if self.are_all else of_requests[self.kept]


def _call(sample: Any, layout: _Layout, target: Tensor, draft: Tensor) -> tuple[Tensor, Tensor]:
    return sample(
        target,
        draft,
        layout.tokens,
        layout.starts,
        layout.position,
        layout.requests,
        layout.request_of_row,
        layout.position.int(),
        layout.temperature,
        layout.seeds,
        layout.spec_len,
    )


def result(output: tuple[Tensor, Tensor]) -> RejectionSamples:
    """Tokens and counts; behind the last token its memory is not initialised."""
    tokens, counts = output
    columns = torch.arange(tokens.shape[1], device=tokens.device)
    return RejectionSamples(tokens.where(columns < counts[:, None], -1), counts.long() - 1)
