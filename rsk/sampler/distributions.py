"""What ``validate=True`` looks for beyond invalid requests: rows that are no distributions.

The rule takes any finite weights, so such a row is sampled without complaint, but from a law that
its caller hardly meant: an entry above 1 counts as 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

SUM_TOLERANCE = 0.01
"""How far the sum of a row may be from 1: rows of 16 bits are about 0.001 off."""


def check_rows(name: str, probs: Tensor, read: Tensor) -> None:
    """Raise ``ValueError`` unless the rows that were read are distributions; waits for the device.

    Args:
        name: the argument's name, for the message.
        probs: [B, V] or [B, K, V].
        read: bool, [B] or [B, K]: the rows to look at.
    """
    low, high = probs.aminmax(dim=-1)
    total = probs.sum(-1, dtype=torch.float32)
    _raise_if(read & ((low < 0) | (high > 1)), f"{name}: expected entries from 0 to 1")
    is_off = (total - 1).abs() > SUM_TOLERANCE
    _raise_if(read & is_off, f"{name}: expected rows that sum to 1 within 1 %", total)


def check_samples(
    draft_tokens: Tensor, draft_probs: Tensor | None, target_probs: Tensor, num_accepted: Tensor
) -> None:
    """Raise ``ValueError`` unless the rows that the rule has read are distributions.

    And unless each draft token that it came to is one that ``draft_probs`` can have drawn. The
    requests are valid. Arguments as in :func:`rsk.rejection_sample`.
    """
    spec_len = draft_tokens.shape[1]
    column = torch.arange(spec_len + 1, device=draft_tokens.device)
    check_rows("target_probs", target_probs, column <= num_accepted[:, None])
    if draft_probs is not None and draft_probs.numel() > 0:
        check_rows("draft_probs", draft_probs, _judged(draft_tokens, num_accepted))
        check_drawn("draft_probs", draft_tokens, draft_probs, num_accepted)


def check_drawn(name: str, draft_tokens: Tensor, draft_probs: Tensor, num_accepted: Tensor) -> None:
    """Raise ``ValueError`` unless ``draft_probs`` can have drawn each token that the rule came to.

    Args:
        name: of the argument to blame, for the message.
        draft_tokens: [B, K]. draft_probs: [B, K, V]. num_accepted: [B], of valid requests.
    """
    vocab_size = draft_probs.shape[2]
    index = draft_tokens.long().clamp(0, vocab_size - 1).unsqueeze(2)
    drawn = draft_probs.gather(2, index).squeeze(2) > 0
    drawn &= draft_tokens < vocab_size
    wrong = _judged(draft_tokens, num_accepted) & ~drawn
    _raise_if(wrong, f"{name}: expected each draft token to have a probability above 0")


def _judged(draft_tokens: Tensor, num_accepted: Tensor) -> Tensor:
    """Which draft tokens [B, K] the rule came to."""
    column = torch.arange(draft_tokens.shape[1], device=draft_tokens.device)
    return (column <= num_accepted[:, None]) & (draft_tokens != -1)


def _raise_if(wrong: Tensor, expected: str, values: Tensor | None = None) -> None:
    places = wrong.nonzero().tolist()
    if not places:
        return
    shown = ", ".join(str(place[0] if len(place) == 1 else place) for place in places[:20])
    got = "" if values is None else f", the first to {values[wrong][0].item():.4g}"
    more = ", ..." if len(places) > 20 else ""
    raise ValueError(f"{expected}; not so in {len(places)} rows ({shown}{more}){got}")
