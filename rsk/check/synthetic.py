"""Synthetic batches that look like a language model's: peaked targets, drafts drawn from q."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rsk.sampler import vectorized


class Batch(NamedTuple):
    """The tensors of one call of :func:`rsk.rejection_sample`."""

    draft_tokens: Tensor
    draft_probs: Tensor
    target_probs: Tensor


def make_batch(
    batch_size: int,
    spec_len: int,
    vocab_size: int,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    acceptance: float = 0.7,
    seed: int = 0,
) -> Batch:
    """Make a batch whose draft tokens are each accepted with probability ``acceptance``.

    The target p is Zipf-like (probability falls with rank^-1.5, ranks in a random order, with
    noise). The draft is q = (1 - a) p + a r with another such distribution r; its total variation
    distance from p is then a * TV(p, r), and 1 minus that is the acceptance rate, so a is solved
    for in each row. Draft tokens are drawn from q as it is after rounding to ``dtype``.

    Args:
        batch_size: B. spec_len: K. vocab_size: V.
        dtype: of the probabilities.
        device: where to make them.
        acceptance: probability in [0, 1] that a draft token is accepted, given that the ones
            before it were. Values too low for the rows at hand (1 - TV(p, r), about 0.1 for a
            large V) become that.
        seed: same seed, same batch (on one kind of device).

    Raises:
        ValueError: ``acceptance`` outside [0, 1], or a size below its minimum.
    """
    if not 0 <= acceptance <= 1:
        raise ValueError(f"acceptance: expected a number in [0, 1], got {acceptance}")
    for name, size, least in (
        ("batch_size", batch_size, 0),
        ("spec_len", spec_len, 0),
        ("vocab_size", vocab_size, 1),
    ):
        if size < least:
            raise ValueError(f"{name}: expected at least {least}, got {size}")
    generator = torch.Generator(device).manual_seed(seed)
    target_probs = torch.empty(batch_size, spec_len + 1, vocab_size, dtype=dtype, device=device)
    draft_probs = torch.empty(batch_size, spec_len, vocab_size, dtype=dtype, device=device)
    draft_tokens = torch.empty(batch_size, spec_len, dtype=torch.int64, device=device)
    for k in range(spec_len + 1):  # one position at a time: the float32 copies stay small
        p = zipf_rows(batch_size, vocab_size, generator)
        target_probs[:, k] = p
        if k == spec_len:
            break
        r = zipf_rows(batch_size, vocab_size, generator)
        distance = (p - r).abs_().sum(1, keepdim=True) / 2
        mixing = ((1 - acceptance) / distance.clamp(min=1e-6)).clamp_(max=1)
        draft_probs[:, k] = p.lerp_(r, mixing)
        draft_tokens[:, k] = vectorized.sample(draft_probs[:, k], seed=seed, position=k)
    return Batch(draft_tokens, draft_probs, target_probs)


def zipf_rows(batch_size: int, vocab_size: int, generator: torch.Generator) -> Tensor:
    """Rows, float32 [B, V], that sum to 1 and fall with rank^-1.5 in a random order of tokens.

    A row's order is a random affine map of one shared random permutation, which is much cheaper
    than a permutation for each row and as unpredictable to a sampler.
    """
    device = generator.device
    order = torch.randperm(vocab_size, generator=generator, device=device)
    shift = torch.randint(vocab_size, (batch_size,), generator=generator, device=device)
    table = (order + 1).float() ** -1.5
    # Row b is the table, rotated by shift[b]: a window of the table written twice.
    weights = torch.cat([table, table]).unfold(0, vocab_size, 1)[shift]
    weights *= torch.rand(batch_size, vocab_size, generator=generator, device=device).add_(0.5)
    return weights.div_(weights.sum(1, keepdim=True))
