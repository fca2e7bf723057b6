"""The public functions: check the arguments, choose a backend, run it.

The rule is speculative sampling (Leviathan, Kalman and Matias 2023; Chen et al. 2023). Every
backend returns the same tokens, bit for bit, because each step is an integer operation, an exact
one, or one correctly rounded float32 subtraction.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rsk.sampler import baseline, build, distributions, fused, registry, vectorized
from rsk.sampler.arguments import (
    MAX_VOCAB_SIZE,
    PROBABILITY_DTYPES,
    UNREADABLE_PROBABILITIES,
    check_range,
    check_request,
    check_seed_and_position,
    check_tensor,
    draw_seed,
    raise_if_invalid,
)

BACKENDS = tuple(registry.BACKENDS)

_MODULES = {"baseline": baseline, "vectorized": vectorized, "fused": fused}


class RejectionSamples(NamedTuple):
    """What :func:`rejection_sample` returns."""

    tokens: Tensor
    """int64 [B, K+1]: the accepted draft tokens, one sampled token, then -1."""
    num_accepted: Tensor
    """int64 [B]: accepted draft tokens; -1 marks an invalid request, whose tokens are all -1."""


def rejection_sample(
    draft_tokens: Tensor,
    draft_probs: Tensor | None,
    target_probs: Tensor,
    *,
    seed: int | Tensor | None = None,
    position: int | Tensor = 0,
    backend: str = "auto",
    validate: bool = False,
) -> RejectionSamples:
    """Decide which draft tokens to keep, so that the output is distributed as the target's own.

    Draft token d is accepted with probability min(1, p[d] / q[d]). The first one that is not is
    replaced by a sample of the residual max(p - q, 0); after K acceptances one more token is
    sampled from the target (the bonus token). Source: Leviathan, Kalman and Matias, "Fast
    inference from transformers via speculative decoding", 2023, theorem 1 in its appendix A.1.

    Per emitted token, for rows of p and q with equal sums, the distance in total variation from
    the target is at most 2^-29 + V * 2^-42; otherwise add half the difference of the sums. In the
    row that a token is sampled from, a negative weight counts as 0 and one above 1 as 1, so a row
    that is no distribution is sampled as another one: ``validate`` finds it.

    A request's result depends on its own draft, rows, seed and position alone: not on the other
    requests, their order, the backend, the kernel or the device.

    With a fixed int ``seed`` and the default ``position`` the same random numbers are used again
    at EVERY call. In a decoding loop pass each request's position, or leave ``seed=None``. A CUDA
    graph keeps every int: there give both as tensors, and change one between replays.

    Args:
        draft_tokens: int64 or int32 [B, K], 0 <= K <= 128. The first -1 in a row ends that
            request's draft, for batches of drafts of different lengths.
        draft_probs: float32, bfloat16 or float16 [B, K, V], 1 <= V <= 2^20: the distribution that
            each draft token was drawn from. ``None``: the draft is certain of its tokens (n-gram
            or prompt lookup), q[d] = 1.
        target_probs: float32, bfloat16 or float16 [B, K+1, V]: the target's distribution at each
            draft position and after the last one. Its V and dtype may differ from the draft's
            (padded vocabularies): what only one of the two has is 0 in the other.
        seed: int64 [B], one seed per request; or an int s in [-2^63, 2^63), and request b uses
            s + b, wrapping; or ``None``, and s is drawn from PyTorch's global CPU generator, which
            is refused while a CUDA graph is captured: its replays would repeat that s.
        position: index of each request's first draft position in its sequence, int64 [B], or one
            int for all. A step that accepted n tokens is followed by one at position + n + 1.
        backend: "baseline", "vectorized", "fused", or "auto": fused where it can be built, else
            vectorized.
        validate: raise if a request is invalid; or if, among what was read, a row has entries
            outside [0, 1] or a sum more than 1 % off 1, or a draft token has q[d] = 0. This reads
            all rows and waits for the device. Without it an invalid request returns -1 everywhere,
            the others are untouched, and no more is looked at than the rule needs.

    All tensors are on one device; in each, the last dimension is contiguous and the others may
    have any stride. Nothing is modified.

    Returns:
        ``tokens`` int64 [B, K+1] and ``num_accepted`` int64 [B]. A request is invalid, and
        ``num_accepted`` is -1, if a value that the rule reads is NaN or infinite, a draft token
        that it reaches lies outside the larger vocabulary, or there is no positive probability to
        sample from.

    Raises:
        ValueError: wrong shape, dtype, device, stride, seed, position or backend; with
            ``validate``, what that finds, with the rows.
        TypeError: an argument of the wrong type.
        rsk.BuildError: ``backend="fused"`` and the kernel cannot be compiled.
    """
    tensors = draft_tokens, draft_probs, target_probs
    if is_ready(backend, target_probs, seed, position):
        # The operator checks its arguments itself, in a tenth of the time that Python takes.
        drawn = draw_seed(target_probs.is_cuda) if seed is None else seed
        try:
            samples = RejectionSamples(*fused.rejection_sample(*tensors, drawn, position))
        except (RuntimeError, TypeError, OverflowError):
            check_request(*tensors, seed, position)  # to say what is wrong with them
            raise
    else:
        seed, position = check_request(*tensors, seed, position)
        module = _MODULES[_choose(backend, target_probs.device)]
        samples = RejectionSamples(*module.rejection_sample(*tensors, seed, position))
    if validate:
        raise_if_invalid(samples.num_accepted, UNREADABLE_PROBABILITIES)
        distributions.check_samples(*tensors, samples.num_accepted)
    return samples


def sample(
    probs: Tensor,
    *,
    seed: int | Tensor | None = None,
    position: int | Tensor = 0,
    backend: str = "auto",
    validate: bool = False,
) -> Tensor:
    """Draw one token per row, for instance the drafts that :func:`rejection_sample` decides on.

    The random numbers are a stream of their own, so a draft never shares one with the coin that
    judges it or with the token that replaces it, even at the same seed and position. The rule is
    that of the last token in :func:`rejection_sample`, and so is the remark on fixed seeds.

    Args:
        probs: float32, bfloat16 or float16 [B, V], 1 <= V <= 2^20; last dimension contiguous.
            A token is drawn in proportion to its weight, which is the entry within [0, 1]: a
            negative one counts as 0, one above 1 as 1. So rows need not sum to 1, but weights
            above 1 are not proportions: of [5, 1, 1] each token is drawn a third of the time.
        seed: as in :func:`rejection_sample`.
        position: the index of the drawn token in each request's sequence, int64 [B] or an int.
        backend: as in :func:`rejection_sample`.
        validate: raise if a row is invalid, has entries outside [0, 1] or a sum more than 1 % off
            1. This waits for the device.

    Returns:
        int64 [B]; -1 for a row with NaN, infinity or no positive entry.

    Raises:
        ValueError, TypeError, rsk.BuildError: as in :func:`rejection_sample`.
    """
    check_tensor("probs", probs, ("B", "V"), PROBABILITY_DTYPES)
    check_range("the vocabulary size V", probs.shape[1], 1, MAX_VOCAB_SIZE)
    seed, position = check_seed_and_position(seed, position, probs)
    tokens: Tensor = _MODULES[_choose(backend, probs.device)].sample(probs, seed, position)
    if validate:
        raise_if_invalid(tokens, UNREADABLE_PROBABILITIES)
        distributions.check_rows("probs", probs, tokens >= 0)
    return tokens


def is_ready(backend: str, probs: object, seed: object, position: object) -> bool:
    """Whether the fused kernel is loaded, and the arguments are plain enough to hand them on."""
    return (
        (backend == "auto" or backend == "fused")
        and isinstance(probs, Tensor)
        and build.is_loaded("cuda" if probs.is_cuda else "cpu" if probs.is_cpu else "")
        and (seed is None or type(seed) is int or isinstance(seed, Tensor))
        and (type(position) is int or isinstance(position, Tensor))
        and not torch.compiler.is_compiling()
    )


def _choose(backend: str, device: torch.device) -> str:
    if backend in _MODULES and backend != "fused":
        return backend
    if backend == "fused":
        build.load(device.type)
        return backend
    if backend != "auto":
        expected = ", ".join(repr(name) for name in ("auto", *BACKENDS))
        raise ValueError(f"backend: expected one of {expected}, got {backend!r}")
    return "fused" if build.available(device.type) else "vectorized"
