"""The rule in exact arithmetic, slowly: Python integers and fractions, no tensor operation.

Every backend is compared with this, so it shares no code with any of them.
"""

from __future__ import annotations

import ctypes
import itertools
import math
from fractions import Fraction

import torch
import torch.nn.functional as F
from torch import Tensor

MASK = 2**64 - 1


def mix(x: int) -> int:
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & MASK
    return x ^ (x >> 31)


def word(seed: int, t: int, stream: int) -> int:
    gamma = 0x9E3779B97F4A7C15
    return mix((mix((seed + gamma) & MASK) + gamma * (4 * t + stream + 1)) & MASK)


def fixed_point(weight: float) -> int:
    """Times 2**42, which is exact: a float's exponent grows."""
    return math.floor(math.ldexp(weight, 42))


def draw(weights: list[float], random_word: int) -> int | None:
    fixed = [fixed_point(min(max(w, 0.0), 1.0)) for w in weights]
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
    if draft_probs is not None:  # tokens that a model lacks have probability 0
        vocab_size = max(vocab_size, draft_probs.shape[2])
        draft_probs = F.pad(draft_probs, (0, vocab_size - draft_probs.shape[2]))
        target_probs = F.pad(target_probs, (0, vocab_size - target_probs.shape[2]))
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


# --- from logits: Python's doubles, each result rounded to float32. That is correct rounding: a
# product of two float32 is exact in a double, and a sum has bits enough for rounding it twice.

COEFFICIENTS = (
    *("0x1.5bba14p-10", "0x1.3cea88p-7", "0x1.c6b752p-5", "0x1.ebf9bcp-3", "0x1.62e42ap-1"),
    "0x1p0",
)


def float32(x: float) -> float:
    return ctypes.c_float(x).value


def relative_weight(x: float, maximum: float, scale: float) -> float:
    y = float32(float32(x - maximum) * scale)
    if y < -42:
        return 0.0
    i = round(y)  # ties to even
    f = float32(y - i)
    r, *others = map(float.fromhex, COEFFICIENTS)
    for coefficient in others:
        r = float32(float32(r * f) + coefficient)
    return math.ldexp(r, i)


def row_probabilities(
    x: list[float], temperature: float, top_k: int, top_p: float, min_p: float
) -> list[float]:
    """The parameters are float32, but for top_k."""
    in_range = temperature == 0 or 2.0**-20 <= temperature <= 2.0**20
    in_range = in_range and 0 <= top_p <= 1 and 0 <= min_p <= 1 and top_k >= 0
    if not in_range or any(v != v or v == math.inf for v in x) or max(x) == -math.inf:
        return [math.nan] * len(x)
    maximum = max(x)
    if temperature == 0:
        return [float(v == x.index(maximum)) for v in range(len(x))]
    scale = float32(1.4426950408889634 / temperature)
    e = [relative_weight(value, maximum, scale) for value in x]
    weights = [fixed_point(value) for value in e]
    kept = range(len(x))
    if 0 < top_k < len(x):
        least = sorted(x)[-top_k]
        kept = [v for v in kept if x[v] >= least]
    if top_p < 1:
        mass = max(1, math.ceil(top_p * float(sum(weights[v] for v in kept))))
        ordered = sorted(kept, key=lambda v: -x[v])
        sums = itertools.accumulate(weights[v] for v in ordered)
        last = next(v for v, total in zip(ordered, sums, strict=True) if total >= mass)
        kept = [v for v in kept if x[v] >= x[last]]
    if min_p > 0:
        kept = [v for v in kept if e[v] >= min_p]
    normalizer = float32(2.0**42 / float(sum(weights[v] for v in kept)))
    stays = set(kept)
    return [float32(e[v] * normalizer) if v in stays else 0.0 for v in range(len(x))]


def probabilities(logits: Tensor, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0) -> Tensor:
    """The parameters are numbers, or tensors with one value a request."""
    probs = torch.empty(logits.shape, dtype=torch.float32)
    for b in range(len(logits)):
        own = [p[b].item() if isinstance(p, Tensor) else p for p in (temperature, top_p, min_p)]
        t, p, m = map(float32, own)
        k = int(top_k[b]) if isinstance(top_k, Tensor) else top_k
        rows = logits[b].float().reshape(-1, logits.shape[-1]).tolist()
        results = [row_probabilities(row, t, k, p, m) for row in rows]
        probs[b] = torch.tensor(results, dtype=torch.float32).reshape(probs[b].shape)
    return probs
