"""Random words: SplitMix64 used as a counter, in Python integers and in PyTorch.

A word is a pure function of a request's seed, a position in its sequence and a purpose (the
stream), so a decision never depends on the batch around it, on its order or on how a kernel was
launched. Source: Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014.
The same arithmetic in C++ is in ``cuda/specification.h``.
"""

from __future__ import annotations

import torch
from torch import Tensor

COIN, SAMPLE, DRAFT = 0, 1, 2
"""Streams: accepting a draft token, sampling the last token, drawing the drafts themselves."""

GAMMA = 0x9E3779B97F4A7C15
_MIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
_LAST_SHIFT = 31
_MASK = (1 << 64) - 1


def _signed(x: int) -> int:
    """The int64 with the same 64 bits as ``x``: PyTorch has no arithmetic on uint64."""
    return (x & _MASK) - ((x & (1 << 63)) << 1)


def _mix(x: int) -> int:
    for shift, factor in _MIX:
        x = ((x ^ (x >> shift)) * factor) & _MASK
    return x ^ (x >> _LAST_SHIFT)


def word(seed: int, t: int, stream: int) -> int:
    """The 64-bit word of one decision, as an int in [0, 2^64).

    Args:
        seed: the request's seed; taken modulo 2^64.
        t: index in the request's sequence; taken modulo 2^64.
        stream: ``COIN``, ``SAMPLE`` or ``DRAFT``.
    """
    key = _mix((seed + GAMMA) & _MASK)
    return _mix((key + GAMMA * (4 * t + stream + 1)) & _MASK)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical shift: PyTorch's ``>>`` copies the sign bit, which the mask clears again."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix_tensor(x: Tensor) -> Tensor:
    for shift, factor in _MIX:
        x = (x ^ _shift_right(x, shift)) * _signed(factor)
    return x ^ _shift_right(x, _LAST_SHIFT)


def words(seed: Tensor, t: Tensor, stream: int) -> Tensor:
    """The words of many decisions: the same 64 bits as :func:`word`, held in int64.

    Args:
        seed: int64, any shape that broadcasts with ``t``.
        t: int64, indices in the requests' sequences.
        stream: ``COIN``, ``SAMPLE`` or ``DRAFT``.
    """
    # Products that wrap are the point here, and eager PyTorch wraps them. torch.compile turns them
    # into C++ where overflow is undefined, and gets wrong bits; so it is kept out of this function.
    compute = _opaque_words if torch.compiler.is_compiling() else _eager_words
    return compute(seed, t, stream)


def _eager_words(seed: Tensor, t: Tensor, stream: int) -> Tensor:
    key = _mix_tensor(seed + _signed(GAMMA))
    return _mix_tensor(key + (4 * t + (stream + 1)) * _signed(GAMMA))


@torch.library.custom_op("rsk::words", mutates_args=())
def _opaque_words(seed: Tensor, t: Tensor, stream: int) -> Tensor:
    return _eager_words(seed, t, stream)


@_opaque_words.register_fake
def _(seed: Tensor, t: Tensor, stream: int) -> Tensor:
    return t.new_empty(torch.broadcast_shapes(seed.shape, t.shape))


def coins(seed: Tensor, t: Tensor) -> Tensor:
    """Uniform float64 multiples of 2^-29 in [0, 1).

    29 bits, so that the product with a float32 probability (24 bits) is exact in a double (53).
    """
    return _shift_right(words(seed, t, COIN), 35).to(torch.float64) * 2.0**-29


def coin(seed: int, t: int) -> float:
    """One coin of :func:`coins`."""
    return (word(seed, t, COIN) >> 35) * 2.0**-29
