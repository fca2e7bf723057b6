"""The public functions that begin with logits: probabilities, a token, a decided draft.

What a row of logits stands for is defined to the last bit (:mod:`rsk.sampler.row_law`), and all
else is the rule of :mod:`rsk.sampler.api`: sampling from logits *is* sampling from their
probabilities, whether or not a backend ever writes those down.
"""

from __future__ import annotations

import math
import operator
from types import ModuleType

import torch
from torch import Tensor

from rsk.sampler import api, baseline_logits, fused, vectorized_logits
from rsk.sampler.api import RejectionSamples
from rsk.sampler.row_law import HOTTEST, Filters, to_float32

_MODULES: dict[str, ModuleType] = {
    "baseline": baseline_logits,
    "vectorized": vectorized_logits,
    "fused": fused,
}
_LOGIT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


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
        backend: as in :func:`rsk.rejection_sample`.

    Returns:
        float32, the shape of ``logits``. A row is NaN throughout if it is invalid: a logit is NaN
        or +infinity, all are -infinity, or an entry of a tensor of parameters is out of range.

    Raises:
        ValueError: wrong shape, dtype, device, stride or backend, or a number out of range.
        TypeError: an argument of the wrong type.
        rsk.BuildError: ``backend="fused"`` and the kernel cannot be compiled.
    """
    if isinstance(logits, Tensor) and logits.dim() == 3:
        _check_logits("logits", logits, ("B", "K", "V"))
    else:
        _check_logits("logits", logits, ("B", "V"))
    filters = _check_filters(temperature, top_k, top_p, min_p, logits)
    probs: Tensor = _module(backend, logits.device).probabilities(logits, filters)
    return probs


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
        backend: as in :func:`rsk.rejection_sample`.
        return_laws: also return the four numbers of each row (:mod:`rsk.sampler.row_law`), for
            ``draft_laws`` of :func:`rsk.rejection_sample_from_logits`.

    Returns:
        int64 [B], -1 for an invalid row; with ``return_laws``, and float32 [B, 4].

    Raises:
        ValueError, TypeError, rsk.BuildError: as in :func:`rsk.probabilities`.
    """
    _check_logits("logits", logits, ("B", "V"))
    filters = _check_filters(temperature, top_k, top_p, min_p, logits)
    seed = api._check_seed(seed, len(logits), logits.device)
    position = api._check_int64("position", position, len(logits), logits.device)
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
        seed, position, backend, validate: as in :func:`rsk.rejection_sample`.
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
    batch_size, spec_len = _check_draft(draft_tokens, draft_logits, draft_laws, target_logits)
    filters = _check_filters(temperature, top_k, top_p, min_p, target_logits)
    seed = api._check_seed(seed, batch_size, draft_tokens.device)
    position = api._check_int64("position", position, batch_size, draft_tokens.device)
    module = _module(backend, draft_tokens.device)
    samples = RejectionSamples(
        *module.rejection_sample_from_logits(
            draft_tokens, draft_logits, draft_laws, target_logits, filters, seed, position
        )
    )
    if validate:
        api._raise_if_invalid(
            samples.num_accepted,
            "a draft token outside the vocabulary, or a row that was read with NaN, +infinity, "
            "nothing but -infinity, or a parameter out of range",
        )
    return samples


def _module(backend: str, device: torch.device) -> ModuleType:
    chosen = api._choose(backend, device)
    if chosen == "fused" and not fused.takes_logits():
        chosen = "vectorized"
    return _MODULES[chosen]


def _check_logits(name: str, logits: Tensor, dims: tuple[str, ...]) -> None:
    api._check_tensor(name, logits, dims, _LOGIT_DTYPES)
    api._check_range("the vocabulary size V", logits.shape[-1], 1, api.MAX_VOCAB_SIZE)


def _check_draft(
    draft_tokens: Tensor,
    draft_logits: Tensor | None,
    draft_laws: Tensor | None,
    target_logits: Tensor,
) -> tuple[int, int]:
    """Check the tensors against each other; return B and K."""
    batch_size, spec_len = api._check_tensors(
        draft_tokens, draft_logits, target_logits, ("draft_logits", "target_logits")
    )
    if draft_laws is not None:
        if draft_logits is None:
            raise ValueError("draft_laws: expected draft_logits with them, got None")
        api._check_tensor("draft_laws", draft_laws, ("B", "K", "4"), (torch.float32,))
        api._check_shape("draft_laws", draft_laws, (batch_size, spec_len, 4), "B, K, 4")
        api._check_device("draft_laws", draft_laws, draft_tokens.device)
    return batch_size, spec_len


def _check_filters(
    temperature: float | Tensor,
    top_k: int | Tensor,
    top_p: float | Tensor,
    min_p: float | Tensor,
    logits: Tensor,
) -> Filters:
    coldest = f"0, or a number in [2^-{int(math.log2(HOTTEST))}, 2^{int(math.log2(HOTTEST))}]"
    return Filters(
        _check_float("temperature", temperature, logits, 1 / HOTTEST, HOTTEST, coldest),
        _check_top_k(top_k, logits),
        _check_float("top_p", top_p, logits, 0.0, 1.0, "a number in [0, 1]"),
        _check_float("min_p", min_p, logits, 0.0, 1.0, "a number in [0, 1]"),
    )


def _check_float(
    name: str, value: object, logits: Tensor, low: float, high: float, expected: str
) -> float | Tensor:
    if isinstance(value, Tensor):
        return _check_each(name, value, logits, (torch.float32,))
    if not hasattr(value, "__float__") or isinstance(value, bool):
        raise TypeError(
            f"{name}: expected a number or a float32 tensor [B], got {type(value).__name__}"
        )
    number = float(value)
    if not (low <= number <= high or number == 0):
        raise ValueError(f"{name}: expected {expected}, got {value}")
    return to_float32(number)


def _check_top_k(value: object, logits: Tensor) -> int | Tensor:
    if isinstance(value, Tensor):
        return _check_each("top_k", value, logits, (torch.int64, torch.int32))
    if not hasattr(value, "__index__") or isinstance(value, bool):
        raise TypeError(
            f"top_k: expected an int or an int64 or int32 tensor [B], got {type(value).__name__}"
        )
    number = operator.index(value)
    if not 0 <= number < 2**63:
        raise ValueError(f"top_k: expected an int in [0, 2^63), 0 for all, got {value}")
    return number


def _check_each(
    name: str, value: Tensor, logits: Tensor, dtypes: tuple[torch.dtype, ...]
) -> Tensor:
    """Check a parameter given as one value a request, with any stride."""
    batch_size = len(logits)
    names = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
    if value.dtype not in dtypes or tuple(value.shape) != (batch_size,):
        got = f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
        raise ValueError(f"{name}: expected {names} [B] = [{batch_size}], got {got}")
    api._check_device(name, value, logits.device)
    return value
