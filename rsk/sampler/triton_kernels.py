"""The specification in Triton, bit for bit: what a GPU's Python users would write first.

Two launches a call, because programs of one launch cannot wait for each other: the first adds up
the weights of each slice of each request's row, the second finds the slice and then the token in
it. Both walk over the draft by themselves, which is cheaper than to hand the result over. Nothing
in it can be fused into another rounding: p - q is one subtraction, u q and min(w, 1) 2^42 are
exact, and all sums are of integers.

With the environment variable TRITON_INTERPRET=1, set before this module is imported, the same
kernels run on a CPU, in Triton's interpreter.
"""

# ruff: noqa: ANN001, ANN202, SIM108 - a kernel's arguments are pointers, integers and constants
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

SLICE = 4096
"""Entries of a row that one program adds up."""

OPTIONS = {"num_warps": 8, "enable_fp_fusion": False}
"""Of the compiler."""

INTERPRETED = triton.knobs.runtime.interpret
"""Whether the kernels below run in the interpreter."""


@triton.jit
def _mix(x):
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    return x ^ (x >> 31)


@triton.jit
def _word(key, t, stream):
    """The word of counter 4 t + stream + 1, as in ``rsk.sampler.random_words``."""
    return _mix(key + (t * 4 + (stream + 1)).to(tl.uint64) * 0x9E3779B97F4A7C15)


@triton.jit
def _widen(x):
    if x.dtype == tl.bfloat16:  # by its bits: the interpreter's conversion loses the subnormal ones
        return (x.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    return x.to(tl.float32)


@triton.jit
def _is_finite(x):
    return tl.abs(x) < float("inf")  # NaN is not


@triton.jit
def _fixed_point(w):
    return (tl.where(w > 0, tl.minimum(w, 1.0), 0.0) * 4398046511104.0).to(tl.int64)  # 2^42


@triton.jit
def _key_and_position(b, seeds, seed, positions, position, seeds_stride, positions_stride):
    """The request's key, and the position of its first draft token."""
    if seeds is None:
        s = seed.to(tl.int64) + b
    else:
        s = tl.load(seeds + b * seeds_stride)
    if positions is None:
        t = position.to(tl.int64)
    else:
        t = tl.load(positions + b * positions_stride)
    return _mix(s.to(tl.uint64) + 0x9E3779B97F4A7C15), t


@triton.jit
def _walk(
    b, key, t, drafts, q_rows, p_rows, drafts_stride, q_stride, q_step, p_stride, p_step,
    K, V, V_Q, V_P, WIDTH: tl.constexpr,
):  # fmt: skip
    """How many draft tokens are accepted; the token at which the walk ends, or -1; and whether that
    is a rejection, and whether the request is still valid.
    """
    k = tl.arange(0, WIDTH)
    d = tl.load(drafts + b * drafts_stride + k, mask=k < K, other=-1).to(tl.int64)
    known = (d >= 0) & (d < V)
    at = p_rows + b * p_stride + k.to(tl.int64) * p_step + d
    p = _widen(tl.load(at, mask=known & (d < V_P), other=0.0))
    if q_rows is None:
        q = tl.full([WIDTH], 1.0, tl.float32)
    else:
        at = q_rows + b * q_stride + k.to(tl.int64) * q_step + d
        q = _widen(tl.load(at, mask=known & (d < V_Q), other=0.0))
    u = (_word(key, t + k, 0) >> 35).to(tl.int64).to(tl.float64) * 1.862645149230957e-09  # 2^-29
    readable = known & _is_finite(p) & _is_finite(q)
    accepted = readable & (u * q.to(tl.float64) < p.to(tl.float64))
    n = tl.min(tl.where(accepted, K, k))
    last = tl.where(n < K, tl.sum(tl.where(k == n, d, 0)), -1)
    rejected = tl.sum(tl.where((k == n) & readable, 1, 0)) > 0
    return n, last, rejected, rejected | (last == -1)


@triton.jit
def _slice(
    b, n, last, v, of_residual, q_rows, p_rows, q_stride, q_step, p_stride, p_step, V_Q, V_P
):
    """Entries v of p's row n, and of the weights after a rejection; and whether q's are finite."""
    at = p_rows + b * p_stride + n.to(tl.int64) * p_step + v
    p = _widen(tl.load(at, mask=v < V_P, other=0.0))
    if q_rows is None:
        q = tl.where((v == last) & of_residual, 1.0, 0.0)
    else:
        at = q_rows + b * q_stride + n.to(tl.int64) * q_step + v
        q = _widen(tl.load(at, mask=(v < V_Q) & of_residual, other=0.0))
    return p, p - q, tl.min(_is_finite(q).to(tl.int32)) > 0


@triton.jit(do_not_specialize=["seed", "position"])
def _add_up(
    totals, drafts, q_rows, p_rows, seeds, positions, seed, position,
    seeds_stride, positions_stride, drafts_stride, q_stride, q_step, p_stride, p_step,
    K, V, V_Q, V_P, WIDTH: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """Totals [B, 2, slices] of the weights p, and p - q, in each slice; -1 if one is not finite."""
    b, s, count = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.num_programs(1)
    key, t = _key_and_position(b, seeds, seed, positions, position, seeds_stride, positions_stride)
    n, last, rejected, _ = _walk(
        b, key, t, drafts, q_rows, p_rows, drafts_stride, q_stride, q_step, p_stride, p_step,
        K, V, V_Q, V_P, WIDTH,
    )  # fmt: skip
    v = s * SIZE + tl.arange(0, SIZE)
    p, residual, q_is_finite = _slice(
        b, n, last, v, rejected, q_rows, p_rows, q_stride, q_step, p_stride, p_step, V_Q, V_P
    )
    finite = tl.min(_is_finite(p).to(tl.int32)) > 0
    of_p, of_residual = tl.sum(_fixed_point(p)), tl.sum(_fixed_point(residual))
    tl.store(totals + b * 2 * count + s, tl.where(finite, of_p, -1))
    tl.store(totals + (b * 2 + 1) * count + s, tl.where(finite & q_is_finite, of_residual, -1))


@triton.jit(do_not_specialize=["seed", "position"])
def _pick(
    tokens, num_accepted, totals, drafts, q_rows, p_rows, seeds, positions, seed, position,
    seeds_stride, positions_stride, drafts_stride, q_stride, q_step, p_stride, p_step,
    K, V, V_Q, V_P, SLICES,
    WIDTH: tl.constexpr, OUTPUT: tl.constexpr, ALL_SLICES: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """The token of each request, and its whole output."""
    b = tl.program_id(0).to(tl.int64)
    key, t = _key_and_position(b, seeds, seed, positions, position, seeds_stride, positions_stride)
    n, last, rejected, valid = _walk(
        b, key, t, drafts, q_rows, p_rows, drafts_stride, q_stride, q_step, p_stride, p_step,
        K, V, V_Q, V_P, WIDTH,
    )  # fmt: skip

    s = tl.arange(0, ALL_SLICES)
    of_p = tl.load(totals + b * 2 * SLICES + s, mask=s < SLICES, other=0)
    of_residual = tl.load(totals + (b * 2 + 1) * SLICES + s, mask=s < SLICES, other=0)
    valid = valid & (tl.min(of_p) >= 0) & ((tl.min(of_residual) >= 0) | (rejected == 0))
    use_residual = rejected & (tl.sum(of_residual) > 0)  # else p and q are equal: sample from p
    sums = tl.cumsum(tl.where(use_residual, of_residual, of_p), 0)
    total = tl.max(sums)
    valid = valid & (total > 0)

    # floor(R total / 2^62), where R is the upper 62 bits of the word.
    upper = (_word(key, t + n, 1) >> 2) << 2
    threshold = tl.umulhi(upper, total.to(tl.uint64)).to(tl.int64)
    chosen = tl.sum((sums <= threshold).to(tl.int32))
    before = tl.max(tl.where(sums <= threshold, sums, 0))
    v = chosen * SIZE + tl.arange(0, SIZE)
    _, residual, _ = _slice(
        b, n, last, v, use_residual, q_rows, p_rows, q_stride, q_step, p_stride, p_step, V_Q, V_P
    )
    running = before + tl.cumsum(_fixed_point(residual), 0)
    token = chosen * SIZE + tl.sum((running <= threshold).to(tl.int32))

    k = tl.arange(0, OUTPUT)
    d = tl.load(drafts + b * drafts_stride + k, mask=k < n, other=-1).to(tl.int64)
    result = tl.where(valid, tl.where(k == n, token.to(tl.int64), d), -1)
    tl.store(tokens + b * (K + 1) + k, result, mask=k <= K)
    tl.store(num_accepted + b, tl.where(valid, n, -1).to(tl.int64))


def rejection_sample(
    draft_tokens: Tensor,
    draft_probs: Tensor | None,
    target_probs: Tensor,
    seed: int | Tensor,
    position: int | Tensor,
) -> tuple[Tensor, Tensor]:
    """Launch the two kernels. Arguments as in :func:`rsk.rejection_sample`.

    Raises:
        ValueError: tensors on a CPU, and Triton does not interpret.
    """
    if not (draft_tokens.is_cuda or INTERPRETED):
        raise ValueError(
            f"triton: expected tensors on a GPU, got {draft_tokens.device}; with TRITON_INTERPRET=1"
            " in the environment from the start, Triton interprets its kernels on a CPU"
        )
    batch_size, spec_len = draft_tokens.shape
    target_size = target_probs.shape[2]
    draft_size = target_size if draft_probs is None else draft_probs.shape[2]
    vocab_size = max(target_size, draft_size)
    slices = triton.cdiv(vocab_size, SLICE)
    new = draft_tokens.new_empty
    tokens = new(batch_size, spec_len + 1, dtype=torch.int64)
    num_accepted = new(batch_size, dtype=torch.int64)
    totals = new(batch_size, 2, slices, dtype=torch.int64)
    seeds = seed if isinstance(seed, Tensor) else None
    positions = position if isinstance(position, Tensor) else None
    arguments = (
        *(draft_tokens, draft_probs, target_probs, seeds, positions),
        *(0 if isinstance(seed, Tensor) else seed, 0 if positions is not None else position),
        *(0 if x is None else x.stride(0) for x in (seeds, positions, draft_tokens)),
        *((0, 0) if draft_probs is None else draft_probs.stride()[:2]),
        *target_probs.stride()[:2],
        *(spec_len, vocab_size, draft_size, target_size),
    )
    if batch_size == 0:
        return tokens, num_accepted
    width = triton.next_power_of_2(max(spec_len, 1))
    options = {} if INTERPRETED else OPTIONS
    with torch.cuda.device_of(draft_tokens):
        _add_up[(batch_size, slices)](totals, *arguments, WIDTH=width, SIZE=SLICE, **options)
        _pick[(batch_size,)](
            *(tokens, num_accepted, totals, *arguments, slices),
            WIDTH=width,
            OUTPUT=triton.next_power_of_2(spec_len + 1),
            ALL_SLICES=triton.next_power_of_2(slices),
            SIZE=SLICE,
            **options,
        )
    return tokens, num_accepted
