"""The rule in exact arithmetic, slowly: Python integers and fractions, no tensor operation.

Every backend is compared with this, so it shares no code with any of them.
"""

from __future__ import annotations

import math
from fractions import Fraction

import torch
from torch import Tensor

MASK = 2**64 - 1


def mix(x: int) -> int:
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & MASK
    return x ^ (x >> 31)


def word(seed: int, t: int, stream: int) -> int:
    gamma = 0x9E3779B97F4A7C15
    return mix((mix((seed + gamma) & MASK) + gamma * (4 * t + stream + 1)) & MASK)


def draw(weights: list[float], random_word: int) -> int | None:
    fixed = [math.floor(Fraction(min(max(w, 0.0), 1.0)) * 2**42) for w in weights]
    threshold = (random_word >> 2) * sum(fixed) // 2**62
    running = 0
    for v, weight in enumerate(fixed):
        running += weight
        if running > threshold:
            return v
    return None


def float32_difference(p: list[float], q: list[float]) -> list[float]:
    """Correctly rounded: the doubles' difference of two float32 is rounded once more, harmlessly
    (53 >= 2 * 24 + 2 bits)."""
    return torch.tensor([a - b for a, b in zip(p, q, strict=True)]).float().tolist()


def rejection_sample(
    draft_tokens: Tensor, draft_probs: Tensor | None, target_probs: Tensor, seeds, positions
) -> tuple[list[list[int]], list[int]]:
    batch_size, spec_len = draft_tokens.shape
    vocab_size = target_probs.shape[2]
    tokens, num_accepted = [], []
    for b in range(batch_size):
        request = decide(
            draft_tokens[b].tolist(),
            None if draft_probs is None else draft_probs[b],
            target_probs[b],
            seeds[b],
            positions[b],
            vocab_size,
        )
        if request is None:
            tokens.append([-1] * (spec_len + 1))
            num_accepted.append(-1)
        else:
            tokens.append(request + [-1] * (spec_len + 1 - len(request)))
            num_accepted.append(len(request) - 1)
    return tokens, num_accepted


def decide(drafts, draft_probs, target_probs, seed, position, vocab_size) -> list[int] | None:
    n, rejected = 0, False
    for k, d in enumerate(drafts):
        if d == -1:
            break
        if not 0 <= d < vocab_size:
            return None
        p = target_probs[k, d].item()
        q = 1.0 if draft_probs is None else draft_probs[k, d].item()
        if not math.isfinite(p) or not math.isfinite(q):
            return None
        coin = Fraction(word(seed, position + k, 0) >> 35, 2**29)
        if not coin * Fraction(q) < Fraction(p):
            rejected = True
            break
        n += 1
    p_row = target_probs[n].float().tolist()
    if not all(map(math.isfinite, p_row)):
        return None
    random_word = word(seed, position + n, 1)
    token = None
    if rejected:
        if draft_probs is None:
            q_row = [float(v == drafts[n]) for v in range(vocab_size)]
        else:
            q_row = draft_probs[n].float().tolist()
        if not all(map(math.isfinite, q_row)):
            return None
        token = draw(float32_difference(p_row, q_row), random_word)
    if token is None:
        token = draw(p_row, random_word)
    return None if token is None else [*drafts[:n], token]


def sample(probs: Tensor, seeds, positions) -> list[int]:
    tokens = []
    for b, row in enumerate(probs.float().tolist()):
        finite = all(map(math.isfinite, row))
        token = draw(row, word(seeds[b], positions[b], 2)) if finite else None
        tokens.append(-1 if token is None else token)
    return tokens
