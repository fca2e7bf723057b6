"""A rejection sampler as most PyTorch code writes it: floats, and random numbers of the device.

A yardstick, not a backend: what do exact and reproducible tokens cost? It promises that its output
follows the target's distribution, as closely as rounded numbers do, which is what
:func:`rsk.check.assert_lossless` tests. It promises nothing else that :func:`rsk.rejection_sample`
does: no seed of a request's own (one generator serves the whole batch, so a request's tokens depend
on the batch around it and on the device), no position, no invalid requests (NaN gives any token),
no vocabularies of different size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


@torch.no_grad()
def rejection_sample(
    draft_tokens: Tensor,
    draft_probs: Tensor | None,
    target_probs: Tensor,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Decide all positions at once.

    Args:
        draft_tokens: int64 or int32 [B, K]; -1 ends a request's draft.
        draft_probs: [B, K, V], or ``None`` for a draft that is certain of its tokens.
        target_probs: [B, K+1, V], of the same dtype.
        generator: on the device of the tensors; ``None``: its default one.

    Returns:
        ``tokens`` int64 [B, K+1] and ``num_accepted`` int64 [B], as :func:`rsk.rejection_sample`.
    """
    spec_len, drafts = draft_tokens.shape[1], draft_tokens.long()
    tokens = F.pad(drafts, (0, 1), value=-1)
    drafted = drafts.clamp(min=0)[:, :, None]
    p = target_probs[:, :spec_len].gather(2, drafted).squeeze(2)
    q = 1.0 if draft_probs is None else draft_probs.gather(2, drafted).squeeze(2)
    coins = torch.rand(p.shape, generator=generator, dtype=torch.float32, device=p.device)
    accepted = (coins * q < p) & (drafts >= 0)
    n = accepted.cumprod(1).sum(1, keepdim=True)

    # After a rejection from the residual; at the end of a draft, where the -1 is, from p.
    requests = torch.arange(len(n), device=n.device)[:, None]
    weights = target_probs[requests, n].squeeze(1).float()
    rejected = tokens.gather(1, n)
    if draft_probs is None:
        weights.scatter_add_(1, rejected.clamp(min=0), -(rejected >= 0).float())
    elif spec_len > 0:
        q_row = draft_probs[requests, n.clamp(max=spec_len - 1)].squeeze(1)
        weights -= q_row * (rejected >= 0)
    tokens.scatter_(1, n, draw(weights.clamp_(min=0), generator))
    column = torch.arange(spec_len + 1, device=n.device)
    return tokens.masked_fill_(column > n, -1), n.squeeze(1)


def draw(weights: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw one index, int64 [B, 1], per row of weights [B, V], in proportion to them."""
    if weights.is_cuda:
        # The smallest of exponential times with these rates is that of each with its probability.
        times = torch.empty_like(weights).exponential_(generator=generator)
        return weights.div_(times).argmax(1, keepdim=True)
    # On a CPU, PyTorch makes one random number after the other: so one a row.
    sums = weights.cumsum(1, dtype=torch.float64)
    u = torch.rand(len(sums), 1, generator=generator, dtype=sums.dtype)
    return torch.searchsorted(sums, u * sums[:, -1:], right=True).clamp_(max=weights.shape[1] - 1)
