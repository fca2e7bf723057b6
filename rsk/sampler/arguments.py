"""The checks of the public functions' arguments: what was expected, and what came.

A check raises ``TypeError`` for an argument of another type and ``ValueError`` for one of another
shape, dtype, device, stride or range.
"""

from __future__ import annotations

import operator

import torch
from torch import Tensor

from rsk.sampler.row_law import HOTTEST, Filters, to_float32

MAX_SPEC_LEN = 128
MAX_VOCAB_SIZE = 1 << 20
PROBABILITY_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
TOKEN_DTYPES = (torch.int64, torch.int32)
_CPU = torch.device("cpu")


def check_request(
    draft_tokens: Tensor,
    draft_probs: Tensor | None,
    target_probs: Tensor,
    seed: int | Tensor | None,
    position: int | Tensor,
) -> tuple[int | Tensor, int | Tensor]:
    """Check the arguments of :func:`rejection_sample`; return the seed and position to use."""
    check_tensors(draft_tokens, draft_probs, target_probs, "probs")
    return check_seed_and_position(seed, position, draft_tokens)


def check_tensors(draft_tokens: Tensor, draft: Tensor | None, target: Tensor, kind: str) -> None:
    """Check the tensors, of ``kind`` "probs" or "logits", against each other."""
    draft_name, target_name = f"draft_{kind}", f"target_{kind}"
    check_tensor("draft_tokens", draft_tokens, ("B", "K"), TOKEN_DTYPES)
    check_tensor(target_name, target, ("B", "K+1", "V"), PROBABILITY_DTYPES)
    batch_size, spec_len = draft_tokens.shape
    vocab_size = target.shape[2]
    check_range("the speculation length K", spec_len, 0, MAX_SPEC_LEN)
    check_range("the vocabulary size V", vocab_size, 1, MAX_VOCAB_SIZE)
    check_shape(target_name, target, (batch_size, spec_len + 1, vocab_size), "B, K+1, V")
    check_device(target_name, target, draft_tokens.device)
    if draft is not None:
        check_tensor(draft_name, draft, ("B", "K", "V"), PROBABILITY_DTYPES)
        vocab_size = draft.shape[2]
        check_range("the draft's vocabulary size V", vocab_size, 1, MAX_VOCAB_SIZE)
        check_shape(draft_name, draft, (batch_size, spec_len, vocab_size), "B, K, V")
        check_device(draft_name, draft, draft_tokens.device)


def check_tensor(
    name: str, tensor: Tensor, dims: tuple[str, ...], dtypes: tuple[torch.dtype, ...]
) -> None:
    """Check one tensor by itself: its type, number of dimensions, dtype, strides and device.

    Args:
        name: the argument's name, for the message.
        tensor: what came.
        dims: name of each dimension, such as ``("B", "V")``.
        dtypes: those that are allowed.
    """
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(tensor).__name__}")
    if tensor.dim() != len(dims):
        raise ValueError(
            f"{name}: expected {len(dims)} dimensions [{', '.join(dims)}], "
            f"got shape {list(tensor.shape)}"
        )
    if tensor.dtype not in dtypes:
        expected = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise ValueError(
            f"{name}: expected dtype {expected}, got {str(tensor.dtype).removeprefix('torch.')}"
        )
    # A tensor without elements has no two neighbours; NumPy, for one, gives it any strides.
    if tensor.stride(-1) != 1 and tensor.shape[-1] > 1 and tensor.numel() > 0:
        raise ValueError(
            f"{name}: expected the last dimension to be contiguous (stride 1), "
            f"got strides {tensor.stride()}; call .contiguous() first"
        )
    if tensor.device.type not in ("cpu", "cuda"):
        raise ValueError(f"{name}: expected a tensor on cpu or cuda, got {tensor.device}")


def check_shape(name: str, tensor: Tensor, shape: tuple[int, ...], dims: str) -> None:
    """Check a shape against what the other arguments make of it; ``dims`` names its dimensions."""
    if tuple(tensor.shape) != shape:
        raise ValueError(
            f"{name}: expected shape [{dims}] = {list(shape)} to match draft_tokens, "
            f"got {list(tensor.shape)}"
        )


def check_device(name: str, tensor: Tensor, device: torch.device) -> None:
    """Check that a tensor is where the others are."""
    if tensor.device != device:
        raise ValueError(f"{name}: expected device {device} like the others, got {tensor.device}")


def check_range(what: str, value: int, low: int, high: int) -> None:
    """Check that ``low <= value <= high``."""
    if not low <= value <= high:
        raise ValueError(f"{what}: expected {low} to {high}, got {value}")


def check_seed_and_position(
    seed: int | Tensor | None, position: int | Tensor, like: Tensor
) -> tuple[int | Tensor, int | Tensor]:
    """Check what random numbers depend on; ``like`` has the batch size and the device."""
    batch_size, device = len(like), like.device
    chosen = check_seed(seed, batch_size, device)
    return chosen, check_int64("position", position, batch_size, device)


def check_seed(seed: int | Tensor | None, batch_size: int, device: torch.device) -> int | Tensor:
    """The seed to use: the one given, once it is checked, or one drawn for ``None``."""
    if seed is not None:
        return check_int64("seed", seed, batch_size, device)
    if torch.compiler.is_compiling():  # stay a tensor: .item() would break the graph
        drawn = torch.randint(-(2**63), 2**63 - 1, (), device=_CPU)
        return drawn.to(device) + torch.arange(batch_size, device=device)
    return draw_seed(device.type == "cuda")


def draw_seed(is_cuda: bool) -> int:
    """A seed from PyTorch's global CPU generator.

    Args:
        is_cuda: whether the call that it is for is on a GPU.

    Raises:
        ValueError: a CUDA graph is being captured, which would keep this one seed.
    """
    if is_cuda and not torch.compiler.is_compiling() and torch.cuda.is_current_stream_capturing():
        raise ValueError(
            "seed: expected an int64 tensor [B] while a CUDA graph is captured, got None, of which "
            "every replay would repeat one seed; change the seed's tensor, or the position's, "
            "between replays"
        )
    return int(torch.randint(-(2**63), 2**63 - 1, (), device=_CPU).item())


def check_int64(name: str, value: object, batch_size: int, device: torch.device) -> int | Tensor:
    """Check a value that is one integer for all requests, or one of each in an int64 [B]."""
    if isinstance(value, Tensor):
        check_tensor(name, value, ("B",), (torch.int64,))
        check_shape(name, value, (batch_size,), "B")
        check_device(name, value, device)
        return value
    return as_int64(name, value, "an int or an int64 tensor [B]")


def as_int64(name: str, value: object, expected: str = "an int") -> int:
    """A plain int for whatever Python takes for an index: NumPy's integers too, but no bool."""
    if type(value) is not int:  # the common case, and the one that torch.compile traces
        try:
            if isinstance(value, bool):
                raise TypeError
            value = operator.index(value)  # type: ignore[arg-type]
        except TypeError:
            raise TypeError(f"{name}: expected {expected}, got {type(value).__name__}") from None
    assert isinstance(value, int)
    if not -(2**63) <= value < 2**63:
        raise ValueError(f"{name}: expected an int in [-2^63, 2^63), got {value}")
    return value


def check_filters(
    temperature: float | Tensor,
    top_k: int | Tensor,
    top_p: float | Tensor,
    min_p: float | Tensor,
    logits: Tensor,
) -> Filters:
    """Check what turns logits into probabilities; numbers become the nearest float32."""
    like = len(logits), logits.device
    degrees = "0 (greedy) or a number from 2^-20 to 2^20"
    return Filters(
        _check_number("temperature", temperature, (1 / HOTTEST, HOTTEST), degrees, *like),
        _check_top_k(top_k, *like),
        _check_number("top_p", top_p, (0.0, 1.0), "a number in [0, 1]", *like),
        _check_number("min_p", min_p, (0.0, 1.0), "a number in [0, 1]", *like),
    )


def _check_number(
    name: str,
    value: object,
    limits: tuple[float, float],
    expected: str,
    batch_size: int,
    device: torch.device,
) -> float | Tensor:
    if isinstance(value, Tensor):
        return _check_each(name, value, (torch.float32,), batch_size, device)
    if type(value) is not float:  # the common case, and the one that torch.compile traces
        try:
            if isinstance(value, bool) or not hasattr(value, "__float__"):
                raise TypeError  # float() reads texts, too
            value = float(value)
        except (TypeError, ValueError):
            raise TypeError(
                f"{name}: expected a number or a float32 tensor [B], got {type(value).__name__}"
            ) from None
    assert isinstance(value, float)
    low, high = limits
    if not (low <= value <= high or value == 0):
        raise ValueError(f"{name}: expected {expected}, got {value}")
    # torch.compile may trace the number as a symbol; every operator rounds it to float32 itself.
    return value if torch.compiler.is_compiling() else to_float32(value)


def _check_top_k(value: object, batch_size: int, device: torch.device) -> int | Tensor:
    if isinstance(value, Tensor):
        return _check_each("top_k", value, (torch.int64, torch.int32), batch_size, device)
    number = as_int64("top_k", value, "an int or an int64 or int32 tensor [B]")
    if number < 0:
        raise ValueError(f"top_k: expected an int of at least 0, which keeps all, got {number}")
    return number


def _check_each(
    name: str,
    value: Tensor,
    dtypes: tuple[torch.dtype, ...],
    batch_size: int,
    device: torch.device,
) -> Tensor:
    """Check one value a request, [B] with any stride."""
    if value.dtype not in dtypes or tuple(value.shape) != (batch_size,):
        expected = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise ValueError(
            f"{name}: expected a number or a tensor {expected} [B] = [{batch_size}], "
            f"got {str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
        )
    check_device(name, value, device)
    return value


UNREADABLE_PROBABILITIES = (
    "a draft token outside the vocabulary, NaN or infinity in a probability that was read, or no "
    "positive probability to sample from"
)
UNREADABLE_LOGITS = (
    "a draft token outside the vocabulary; or a row that was read with NaN, with infinity, with "
    "nothing but -infinity, or with a parameter out of range"
)


def raise_if_invalid(num_accepted: Tensor, reasons: str) -> None:
    """Name the requests whose ``num_accepted`` says that they are invalid; waits for the device."""
    rows = (num_accepted < 0).nonzero().flatten().tolist()
    if rows:
        shown = ", ".join(map(str, rows[:20])) + (", ..." if len(rows) > 20 else "")
        raise ValueError(
            f"{len(rows)} of {len(num_accepted)} requests are invalid (rows {shown}): {reasons}"
        )
