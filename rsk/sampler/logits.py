"""The public functions that begin with logits: probabilities, a token, a decided draft.

What a row of logits stands for is defined to the last bit (:mod:`rsk.sampler.row_law`), and all
else is the rule of :mod:`rsk.sampler.api`: sampling from logits *is* sampling from their
probabilities, whether or not a backend ever writes those down.
"""

from __future__ import annotations

from typing import Any, Literal, overload

import torch
from torch import Tensor

from rsk.sampler import api, baseline_logits, build, fused, vectorized_logits
from rsk.sampler.api import RejectionSamples
from rsk.sampler.arguments import (
    MAX_VOCAB_SIZE,
    PROBABILITY_DTYPES,
    UNREADABLE_LOGITS,
    check_device,
    check_filters,
    check_range,
    check_seed_and_position,
    check_shape,
    check_tensor,
    check_tensors,
    draw_seed,
    raise_if_invalid,
)
from rsk.sampler.distributions import check_drawn
from rsk.sampler.row_law import Filters

_EMULATOR = "emulator"
_FUSED = fused.FromLogits()
_MODULES: dict[str, Any] = {
    "baseline": baseline_logits,
    "vectorized": vectorized_logits,
    "fused": _FUSED,
    _EMULATOR: fused.FromLogits("emulated_"),
}


def probabilities(
    logits: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    top_k: int | Tensor = 0,
    top_p: float | Tensor = 1.0,
    min_p: float | Tensor = 0.0,
    backend: str = "auto",
) -> Tensor:
    """The probabilities that rows of logits stand for: the same bits on every backend and device.

    The filters are those of transformers, in the same order, each among what the one before it
    has kept: top-k, top-p (nucleus sampling; Holtzman et al., "The curious case of neural text
    degeneration", 2020), min-p. Tokens that tie at a threshold all stay. The distance from the
    softmax in real numbers is of the order of 1e-7 in total variation.

    Args:
        logits: float32, bfloat16 or float16 [B, V] or [B, K, V], 1 <= V <= 2^20; the last
            dimension is contiguous. -infinity rules a token out.
        temperature: 0, which is greedy (1 at the first of the largest logits), or 2^-20 to 2^20.
            Like the others a number, or a tensor [B] of one value a request: float32, but for
            ``top_k``, whose dtype is int64 or int32; any stride. Numbers are rounded to float32.
        top_k: keep the k largest logits and what ties with the last; 0 keeps all.
        top_p: keep the largest logits that together have at least this share of what top-k kept,
            0 to 1; the largest always stays, and 1 keeps all.
        min_p: keep the tokens at least this probable relative to the largest, 0 to 1.
        backend: as in :func:`rsk.rejection_sample`; and "emulator", the CUDA kernel on CPU tensors,
            to learn and to test with.

    Returns:
        float32, the shape of ``logits``. A row is NaN throughout if it is invalid: a logit is NaN
        or +infinity, all are -infinity, or an entry of a tensor of parameters is out of range.

    Raises:
        ValueError: wrong shape, dtype, device, stride or backend, or a number out of range.
        TypeError: an argument of the wrong type.
        rsk.BuildError: ``backend="fused"`` and the kernel cannot be compiled.
    """
    if isinstance(logits, Tensor) and logits.dim() == 3:
        _check_logits(logits, ("B", "K", "V"))
    else:
        _check_logits(logits, ("B", "V"))
    filters = check_filters(temperature, top_k, top_p, min_p, logits)
    probs: Tensor = _module(backend, logits.device).probabilities(logits, filters)
    return probs


@overload
def sample_from_logits(
    logits: Tensor,
    *,
    temperature: float | Tensor = ...,
    top_k: int | Tensor = ...,
    top_p: float | Tensor = ...,
    min_p: float | Tensor = ...,
    seed: int | Tensor | None = ...,
    position: int | Tensor = ...,
    backend: str = ...,
    return_laws: Literal[False] = ...,
) -> Tensor: ...


@overload
def sample_from_logits(
    logits: Tensor,
    *,
    temperature: float | Tensor = ...,
    top_k: int | Tensor = ...,
    top_p: float | Tensor = ...,
    min_p: float | Tensor = ...,
    seed: int | Tensor | None = ...,
    position: int | Tensor = ...,
    backend: str = ...,
    return_laws: Literal[True],
) -> tuple[Tensor, Tensor]: ...


def sample_from_logits(
    logits: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    top_k: int | Tensor = 0,
    top_p: float | Tensor = 1.0,
    min_p: float | Tensor = 0.0,
    seed: int | Tensor | None = None,
    position: int | Tensor = 0,
    backend: str = "auto",
    return_laws: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Draw one token per row of logits: :func:`rsk.sample` of their :func:`rsk.probabilities`.

    Args:
        logits: as in :func:`rsk.probabilities`, [B, V].
        temperature, top_k, top_p, min_p: as in :func:`rsk.probabilities`.
        seed, position: as in :func:`rsk.sample`.
        backend: as in :func:`rsk.probabilities`.
        return_laws: also return the four numbers of each row (:mod:`rsk.sampler.row_law`), for
            ``draft_laws`` of :func:`rsk.rejection_sample_from_logits`.

    Returns:
        int64 [B], -1 for an invalid row; with ``return_laws``, and float32 [B, 4].

    Raises:
        ValueError, TypeError, rsk.BuildError: as in :func:`rsk.probabilities`.
    """
    given = Filters(temperature, top_k, top_p, min_p)
    if _is_ready(backend, logits, given, seed, position):
        drawn = draw_seed(logits.is_cuda) if seed is None else seed
        try:
            tokens, laws = _FUSED.sample_from_logits(logits, given, drawn, position)
        except (RuntimeError, TypeError, OverflowError):
            _check_sample(logits, given, seed, position)  # to say what is wrong with them
            raise
    else:
        filters, seed, position = _check_sample(logits, given, seed, position)
        module = _module(backend, logits.device)
        tokens, laws = module.sample_from_logits(logits, filters, seed, position)
    return (tokens, laws) if return_laws else tokens


def rejection_sample_from_logits(
    draft_tokens: Tensor,
    draft_logits: Tensor | None,
    target_logits: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    top_k: int | Tensor = 0,
    top_p: float | Tensor = 1.0,
    min_p: float | Tensor = 0.0,
    seed: int | Tensor | None = None,
    position: int | Tensor = 0,
    backend: str = "auto",
    validate: bool = False,
    draft_laws: Tensor | None = None,
) -> RejectionSamples:
    """Decide which draft tokens to keep: :func:`rsk.rejection_sample` of the probabilities.

    Equal, token for token, to ``rsk.rejection_sample(draft_tokens, q, p, ...)`` with q and p the
    :func:`rsk.probabilities` of ``draft_logits`` and ``target_logits`` under the same parameters.
    The drafts must have been drawn under these parameters too, as by
    :func:`rsk.sample_from_logits`.

    Args:
        draft_tokens: as in :func:`rsk.rejection_sample`.
        draft_logits: float32, bfloat16 or float16 [B, K, V], or ``None``: the draft is certain of
            its tokens. The dtype and V may differ from those of ``target_logits``: tokens that a
            model lacks have probability 0 there.
        target_logits: float32, bfloat16 or float16 [B, K+1, V].
        temperature, top_k, top_p, min_p: as in :func:`rsk.probabilities`, for both models.
        seed, position: as in :func:`rsk.rejection_sample`.
        backend: as in :func:`rsk.probabilities`.
        validate: raise if a request is invalid, or if a draft token that was judged cannot have
            been drawn from its row under these parameters. This reads all rows of the draft and
            waits for the device.
        draft_laws: float32 [B, K, 4]: what :func:`rsk.sample_from_logits` returned for each row of
            ``draft_logits`` under the same parameters, so that it need not be computed again. The
            result is the same.

    Returns:
        As :func:`rsk.rejection_sample`. A request is invalid if it reads an invalid row, as
        :func:`rsk.probabilities` defines it, or reaches a draft token outside both vocabularies.

    Raises:
        ValueError, TypeError, rsk.BuildError: as in :func:`rsk.rejection_sample` and
            :func:`rsk.probabilities`.
    """
    tensors = draft_tokens, draft_logits, draft_laws, target_logits
    given = Filters(temperature, top_k, top_p, min_p)
    if _is_ready(backend, target_logits, given, seed, position) and (
        draft_laws is None or isinstance(draft_laws, Tensor)
    ):
        # The operator checks its arguments itself, in a tenth of the time that Python takes.
        drawn = draw_seed(target_logits.is_cuda) if seed is None else seed
        try:
            samples = RejectionSamples(
                *_FUSED.rejection_sample_from_logits(*tensors, given, drawn, position)
            )
        except (RuntimeError, TypeError, OverflowError):
            _check_request(*tensors, given, seed, position)  # to say what is wrong with them
            raise
    else:
        filters, seed, position = _check_request(*tensors, given, seed, position)
        module = _module(backend, draft_tokens.device)
        samples = RejectionSamples(
            *module.rejection_sample_from_logits(*tensors, filters, seed, position)
        )
    if validate:
        raise_if_invalid(samples.num_accepted, UNREADABLE_LOGITS)
        if draft_logits is not None:
            draft_probs = probabilities(
                draft_logits,
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                min_p=min_p,
                backend=backend,
            )
            check_drawn("draft_logits", draft_tokens, draft_probs, samples.num_accepted)
    return samples


def _is_ready(
    backend: str, logits: object, filters: Filters, seed: object, position: object
) -> bool:
    """Whether the fused kernel is loaded, and the arguments are plain enough to hand them on."""
    return api.is_ready(backend, logits, seed, position) and all(
        type(value) is float or type(value) is int or isinstance(value, Tensor) for value in filters
    )


def _check_sample(
    logits: Tensor, filters: Filters, seed: int | Tensor | None, position: int | Tensor
) -> tuple[Filters, int | Tensor, int | Tensor]:
    _check_logits(logits, ("B", "V"))
    return check_filters(*filters, logits), *check_seed_and_position(seed, position, logits)


def _check_request(
    draft_tokens: Tensor,
    draft_logits: Tensor | None,
    draft_laws: Tensor | None,
    target_logits: Tensor,
    filters: Filters,
    seed: int | Tensor | None,
    position: int | Tensor,
) -> tuple[Filters, int | Tensor, int | Tensor]:
    check_tensors(draft_tokens, draft_logits, target_logits, "logits")
    if draft_laws is not None:
        check_laws(draft_laws, draft_logits)
    checked = check_filters(*filters, target_logits)
    return checked, *check_seed_and_position(seed, position, draft_tokens)


def _module(backend: str, device: torch.device) -> Any:
    if backend == _EMULATOR and device.type == "cpu":
        build.load(_EMULATOR)
        return _MODULES[_EMULATOR]
    return _MODULES[api._choose(backend, device)]


def _check_logits(logits: Tensor, dims: tuple[str, ...]) -> None:
    check_tensor("logits", logits, dims, PROBABILITY_DTYPES)
    check_range("the vocabulary size V", logits.shape[-1], 1, MAX_VOCAB_SIZE)


def check_laws(draft_laws: Tensor, draft_logits: Tensor | None) -> None:
    """Check the laws of the draft's rows against their logits."""
    if draft_logits is None:
        raise ValueError("draft_laws: expected draft_logits beside them, got None")
    check_tensor("draft_laws", draft_laws, ("B", "K", "4"), (torch.float32,))
    check_shape("draft_laws", draft_laws, (*draft_logits.shape[:2], 4), "B, K, 4")
    check_device("draft_laws", draft_laws, draft_logits.device)
