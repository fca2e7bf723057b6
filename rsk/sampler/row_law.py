"""The law of a row of logits: the four numbers that turn a logit into a probability.

A row x of logits with temperature T stands for the probabilities p[v] = e[v] * s of the tokens that
the filters keep, and 0 elsewhere, where e[v] = 2^((x[v] - m) * c) is the probability relative to
that of the maximum m. So four numbers a row are enough to compute p[v] from x[v] anywhere:

- the maximum m;
- the scale c = log2(e) / T; infinity marks a greedy row (T = 0);
- the threshold: top-k and top-p keep the x[v] that are at least this (-infinity: all). Of a greedy
  row it is the index of its one token;
- the normaliser s; NaN marks an invalid row, and then nothing else counts.

Each floating-point operation is rounded by itself, in every backend, so that all return the same
bits: 2^y is a polynomial of plain products and sums. The same arithmetic in C++ is in
``cuda/row_law.h``.
"""

from __future__ import annotations

import math
import struct
from typing import NamedTuple

import torch
from torch import Tensor

UNIT = 2.0**42
"""Fixed point: the weight of the maximum."""
LOG2_E = 1.4426950408889634
LOWEST_EXPONENT = -42
"""Below it a relative weight is 0, in fixed point as in floating point."""
HOTTEST = 2.0**20
"""The highest temperature; the lowest above 0 is 1 / HOTTEST."""

_HORNER = tuple(
    map(
        float.fromhex,
        ("0x1.5bba14p-10", "0x1.3cea88p-7", "0x1.c6b752p-5", "0x1.ebf9bcp-3", "0x1.62e42ap-1"),
    )
)
_MAGIC = 12582912.0  # 1.5 * 2^23: adding it rounds a small float32 to an integer, ties to even


class Filters(NamedTuple):
    """What turns logits into probabilities: a number for all requests, or a tensor [B] of each."""

    temperature: float | Tensor
    top_k: int | Tensor
    top_p: float | Tensor
    min_p: float | Tensor


def relative_weight(x: Tensor, maximum: Tensor | float, scale: Tensor | float) -> Tensor:
    """Weights e = 2^((x - m) c), float32 in [0, 1], and 1 at the maximum.

    Args:
        x: logits, float32 (16-bit values are widened).
        maximum: m, float32. scale: c, float32; both broadcast with ``x``.
    """
    y = (x.float() - maximum).mul_(scale)
    shifted = y.clamp(min=LOWEST_EXPONENT - 1).add_(_MAGIC)
    f = y - (shifted - _MAGIC)  # in [-1/2, 1/2], exact
    r = torch.full_like(f, _HORNER[0])
    for coefficient in (*_HORNER[1:], 1.0):
        r.mul_(f).add_(coefficient)
    # The integer stands in the lowest bits of `shifted`; it is added to the exponent of r.
    r.view(torch.int32).add_(shifted.view(torch.int32).bitwise_left_shift_(23))
    return r.masked_fill_(y < LOWEST_EXPONENT, 0.0)


def scale_of(temperature: Tensor) -> Tensor:
    """The scale c = log2(e) / T, rounded once in double and once to float32."""
    t = temperature.double()
    return torch.full_like(t, LOG2_E).div_(t).float()  # a number / t would be 1 / t times it


def fixed_point(e: Tensor) -> Tensor:
    """Relative weights as int64 multiples of 2^-42: their sums are exact in any order."""
    return (e * UNIT).long()


def probability(x: Tensor, laws: Tensor, min_p: Tensor | float, token: Tensor) -> Tensor:
    """p[v] of tokens v with logits x[v], float32; NaN in an invalid row.

    Args:
        x: logits [..., n].
        laws: float32 [..., 4], the laws of their rows.
        min_p: float32, one number or [..., 1].
        token: int64 [n] or [..., n]: the v of each logit.
    """
    maximum, scale, threshold, normalizer = laws.split(1, -1)
    p = relative_weight(x, maximum, scale)
    p.masked_fill_((x < threshold) | (p < min_p), 0.0).mul_(normalizer)
    p = torch.where(scale == math.inf, (token == threshold).float(), p)
    return p.masked_fill_(normalizer.isnan(), math.nan)


def to_float32(value: float) -> float:
    """The float32 nearest to a number (ties to even)."""
    rounded: float = struct.unpack("f", struct.pack("f", value))[0]
    return rounded
