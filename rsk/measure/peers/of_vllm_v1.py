"""vLLM's first model runner: its rejection sampler as a module, from the target's logits.

From probabilities it is given their logarithms, made before the clock starts.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rsk.measure.clocks import Thunk
from rsk.measure.logit_inputs import Ways
from rsk.measure.peers.peer import Peer, PeerInputs, with_counts
from rsk.measure.workload import Inputs
from rsk.sampler.api import RejectionSamples
from rsk.sampler.registry import Entry

ENTRY = Entry("vLLM V1", "PyTorch and Triton, from the target's logits", "#88ccee", "H", "-.")
AS_THEY_ARE = Ways(temperature=1.0, top_k=0, top_p=1.0)


def make(device: torch.device) -> Peer:
    """The peer; also on a CPU, where Triton's interpreter runs it.

    Raises:
        ModuleNotFoundError: vLLM, or what it imports, is not installed.
    """
    from vllm.v1.sample.logits_processor import LogitsProcessors
    from vllm.v1.sample.metadata import SamplingMetadata
    from vllm.v1.sample.rejection_sampler import RejectionSampler
    from vllm.v1.sample.sampler import Sampler
    from vllm.v1.spec_decode.metadata import SpecDecodeMetadata

    sampler = RejectionSampler(Sampler())

    def prepare(
        draft_tokens: Tensor, draft: Tensor, logits: Tensor, ways: Ways, seeds: Tensor | None
    ) -> Thunk:
        batch_size, spec_len = draft_tokens.shape
        lengths = (draft_tokens >= 0).sum(1)
        columns = torch.arange(spec_len + 1, device=device)
        is_draft = columns[:spec_len] < lengths[:, None]
        is_row = columns <= lengths[:, None]
        is_bonus = (columns == lengths[:, None])[is_row]
        rows = logits[is_row] if not bool(is_row.all()) else logits.flatten(0, 1)
        chosen = draft[is_draft] if not bool(is_draft.all()) else draft.flatten(0, 1)
        metadata = SpecDecodeMetadata(
            draft_token_ids=draft_tokens[is_draft].int(),
            num_draft_tokens=lengths.tolist(),
            cu_num_draft_tokens=lengths.cumsum(0).int(),
            cu_num_sampled_tokens=(lengths + 1).cumsum(0).int(),
            target_logits_indices=(~is_bonus).nonzero().flatten().int(),
            bonus_logits_indices=is_bonus.nonzero().flatten().int(),
            logits_indices=torch.arange(len(rows), device=device).int(),
        )
        generators = {}
        if seeds is not None:
            for b, seed in enumerate(seeds.tolist()):
                generators[b] = torch.Generator(device).manual_seed(seed)
        nothing = torch.zeros(batch_size, 0, device=device)
        how = SamplingMetadata(
            temperature=torch.full((batch_size,), ways.temperature, device=device),
            all_greedy=False,
            all_random=True,
            top_p=torch.full((batch_size,), ways.top_p, device=device) if ways.top_p < 1 else None,
            top_k=_top_k(ways, batch_size, logits.shape[-1], device),
            generators=generators,
            max_num_logprobs=None,
            no_penalties=True,
            prompt_token_ids=None,
            frequency_penalties=nothing,
            presence_penalties=nothing,
            repetition_penalties=nothing,
            output_token_ids=[[] for _ in range(batch_size)],
            allowed_token_ids_mask=None,
            bad_words_token_ids={},
            logitsprocs=LogitsProcessors(),
        )
        return lambda: (sampler(metadata, chosen, rows, how).sampled_token_ids, spec_len)

    def bind(inputs: Inputs, seeds: Tensor | None) -> Thunk:
        draft = inputs.draft_probs.float().contiguous()
        logits = inputs.target_probs.float().log()
        return prepare(inputs.draft_tokens, draft, logits, AS_THEY_ARE, seeds)

    def bind_logits(inputs: PeerInputs) -> Thunk:
        return prepare(
            inputs.draft_tokens, inputs.draft_probs, inputs.target_logits, inputs.ways, None
        )

    # It copies small tensors from the host, and so cannot be captured.
    return Peer(entry=ENTRY, bind=bind, bind_logits=bind_logits, result=result, capturable=False)


def _top_k(ways: Ways, batch_size: int, vocab_size: int, device: torch.device) -> Tensor | None:
    if not ways.top_k:
        return None
    return torch.full((batch_size,), min(ways.top_k, vocab_size), device=device).int()


def result(output: tuple[Tensor, int]) -> RejectionSamples:
    """Tokens and counts."""
    return with_counts(*output)
