"""Random words: SplitMix64 used as a counter, in Python integers and in PyTorch.

A word is a pure function of a request's seed, a position in its sequence and a purpose (the
stream), so a decision never depends on the batch around it, on its order or on how a kernel was
launched. Source: Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014.
The same arithmetic in C++ is in ``cuda/random_words.h``.
"""

from __future__ import annotations

import torch
from torch import Tensor

COIN, SAMPLE, DRAFT = 0, 1, 2
"""Streams: accepting a draft token, sampling the last token, drawing the drafts themselves."""

STREAMS = 4
"""Words of a position; the last is spare."""

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


def _mix_tensor(x: Tensor, upper: int = 64) -> Tensor:
    """The ``upper`` bits of :func:`_mix` of each element."""
    for shift, factor in _MIX:
        x = _shift_right(x, shift).bitwise_xor_(x).mul_(_signed(factor))
    if upper == 64:
        return _shift_right(x, _LAST_SHIFT).bitwise_xor_(x)
    x = _shift_right(x, 64 - upper)  # the lowest bits reach no other; the rest has no sign
    return (x >> _LAST_SHIFT).bitwise_xor_(x)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical shift: PyTorch's ``>>`` copies the sign bit, which the mask clears again."""
    return (x >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def words(seed: Tensor, t: Tensor, stream: int) -> Tensor:
    """The words of many decisions: the same 64 bits as :func:`word`, held in int64.

    Args:
        seed: int64, any shape that broadcasts with ``t``.
        t: int64, indices in the requests' sequences.
        stream: ``COIN``, ``SAMPLE`` or ``DRAFT``.
    """
    return _compute(seed + _signed(GAMMA), 4 * t + (stream + 1))


def numbers(seed: int | Tensor, position: int | Tensor, requests: Tensor, steps: Tensor) -> Tensor:
    """The upper 62 bits of every word of many steps, int64 [B, 4 N] in [0, 2^62).

    One batch of operations for all: the word of step k and a stream is in column 4 k + stream.

    Args:
        seed: int64 [B]; or an int s, and request b uses s + b, wrapping.
        position: where step 0 is in each request's sequence, int64 [B], or one int for all.
        requests: int64 [B, 1], counting from 0.
        steps: int64 [4 N], counting from 1.
    """
    if torch.compiler.is_compiling():  # which may know an int by its name only: no wrapping of it
        seed = per_request(seed, len(requests), requests.device, step=1)
        position = per_request(position, len(requests), requests.device, step=0)
    if isinstance(seed, Tensor):
        state = seed[:, None] + _signed(GAMMA)
    else:
        state = requests + _signed(seed + GAMMA)
    if isinstance(position, Tensor):
        steps = torch.add(steps, position[:, None], alpha=4)
    elif position != 0:
        steps = steps + _signed(4 * position)
    return _compute(state, steps, upper=62)


def per_request(value: int | Tensor, batch_size: int, device: torch.device, step: int) -> Tensor:
    """One int64 per request: the tensor itself, or ``value + b * step``, wrapping at 2^64."""
    if isinstance(value, Tensor):
        return value
    # Sums of numbers that it knows, torch.compile forms without wrapping, and then cannot write
    # them; behind an operation on bits it knows none.
    return (torch.arange(batch_size, device=device) * step).bitwise_xor_(0) + value


def _compute(state: Tensor, counter: Tensor, upper: int = 64) -> Tensor:
    """Words ``counter`` of the sequences whose keys come from ``state``, the seed plus gamma.

    Of each, the ``upper`` bits.
    """
    # Products that wrap are the point here, and eager PyTorch wraps them, as Triton does. On a CPU,
    # torch.compile makes C++ of them where overflow is undefined, and gets wrong bits; so there it
    # is kept out.
    if torch.compiler.is_compiling() and state.device.type == "cpu":
        return _opaque_words(state, counter, upper)
    return _eager_words(state, counter, upper)


def _eager_words(state: Tensor, counter: Tensor, upper: int) -> Tensor:
    key = _mix_tensor(state)
    return _mix_tensor(torch.add(key, counter, alpha=_signed(GAMMA)), upper)


@torch.library.custom_op("rsk::words", mutates_args=())
def _opaque_words(state: Tensor, counter: Tensor, upper: int) -> Tensor:
    return _eager_words(state, counter, upper)


@_opaque_words.register_fake
def _(state: Tensor, counter: Tensor, upper: int) -> Tensor:
    return counter.new_empty(torch.broadcast_shapes(state.shape, counter.shape))


def coins(seed: Tensor, t: Tensor) -> Tensor:
    """Uniform float64 multiples of 2^-29 in [0, 1).

    29 bits, so that the product with a float32 probability (24 bits) is exact in a double (53).
    """
    return _shift_right(words(seed, t, COIN), 35).to(torch.float64) * 2.0**-29


def coin(seed: int, t: int) -> float:
    """One coin of :func:`coins`."""
    return (word(seed, t, COIN) >> 35) * 2.0**-29
