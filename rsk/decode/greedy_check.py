"""Greedy decoding: the check of a pair of models that needs no statistics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from rsk.decode.loading import LoadedPair, fitting_threads
from rsk.decode.study import USUAL_SPEC_LEN
from rsk.decode.trials import continued

ROUNDING_GAP = 1e-3
"""Logits of a float32 model that are closer may come out in either order."""


class GreedyCheck(NamedTuple):
    """How many greedy texts were the target's own."""

    prompts: int
    tokens: int
    """Tokens compared."""
    near_ties: list[float]
    """Where a text parts from the target's own: the gap between the two best logits there."""


@torch.inference_mode()
def check_greedy(
    pair: LoadedPair,
    prompts: Sequence[str],
    *,
    spec_len: int = USUAL_SPEC_LEN,
    new_tokens: int = 32,
) -> GreedyCheck:
    """Compare greedy speculative decoding with the target's own greedy decoding.

    A target that reads several tokens at once adds numbers up in another order than one that reads
    a single token. Where its two best logits are closer than the rounding of that, either choice
    is right: such a near tie is counted, and the rest of that text is not compared.

    Args:
        pair: from :func:`rsk.decode.loading.load_pair`.
        prompts: texts.
        spec_len: K.
        new_tokens: per prompt.

    Raises:
        AssertionError: they part where there is no near tie.
    """
    with fitting_threads(pair):
        ours = continued(pair, pair.draft, prompts, new_tokens, spec_len, 0.0, 0).tokens
        theirs = continued(pair, None, prompts, new_tokens, 0, 0.0, 0).tokens
    compared, near_ties = 0, []
    for prompt, tokens, own in zip(prompts, ours, theirs, strict=True):
        same = next((i for i, (a, b) in enumerate(zip(tokens, own, strict=True)) if a != b), None)
        compared += new_tokens if same is None else same
        if same is not None:
            ids = torch.tensor([[*pair.tokenizer(prompt).input_ids, *own[:same]]])
            best = pair.target(ids.to(pair.target.device)).logits[0, -1].float().topk(2).values
            gap = float(best[0] - best[1])
            if gap >= ROUNDING_GAP:
                raise AssertionError(
                    f"greedy speculative decoding chose token {tokens[same]} where the target "
                    f"chooses {own[same]}, {gap:.3g} ahead, after {same} tokens of {prompt[:40]!r}"
                )
            near_ties.append(gap)
    return GreedyCheck(len(prompts), compared, near_ties)
