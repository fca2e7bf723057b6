"""The arguments of :func:`rsk.decode.loop.speculative_generate`: what was meant, or a clear error.

Prompts, seeds and stop tokens come in the forms that tokenizers, NumPy and PyTorch hand out. What
has one meaning is taken; what has none, or several, is refused: what was expected, what came.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TokenIds = Sequence[int]
Prompts = str | TokenIds | Sequence[str | TokenIds] | Mapping[str, Any]
"""One text, several, or token ids: see :func:`token_ids`."""

_PROMPTS = "prompts: expected a text, token ids, or several of either"
_STOPS = "stop_tokens: expected token ids or texts of one token"


def integer(name: str, value: object, low: int, high: int | None = None) -> int:
    """A whole number, of Python, NumPy or a tensor of one element, in its range.

    Raises:
        TypeError: it is none; a float or a truth value is none.
        ValueError: it is out of range.
    """
    number = _index(value)
    if number is None:
        raise TypeError(f"{name}: expected an int, got {shown(value)}")
    if number < low or (high is not None and number > high):
        limits = f"{low} to {high}" if high is not None else f"at least {low}"
        raise ValueError(f"{name}: expected {limits}, got {number}")
    return number


def real(name: str, value: Any) -> float:
    """A number, of Python, NumPy or a tensor of one element.

    Raises:
        TypeError: it is none; a text or a truth value is none.
    """
    if _index(value) is None and (
        isinstance(value, bool | str)
        or not hasattr(value, "__float__")
        or getattr(value, "ndim", 0) != 0
    ):
        raise TypeError(f"{name}: expected a number, got {shown(value)}")
    return float(value)


def token_ids(prompts: Prompts, tokenizer: PreTrainedTokenizerBase | None) -> list[list[int]]:
    """The token ids of each prompt.

    Args:
        prompts: a text; the ids of one prompt, in a list, an array or a tensor [n]; several of
            these in a list; a tensor [B, n]; or what a tokenizer returns, whose attention mask
            leaves out the padding.
        tokenizer: needed for texts.

    Raises:
        TypeError: something else; names it, and the prompt.
        ValueError: none, an empty prompt, or a text without a tokenizer.
    """
    if isinstance(prompts, Mapping):
        return _tokenized(prompts)
    if isinstance(prompts, str):
        return [_text_ids(0, prompts, tokenizer)]
    rows = _rows(prompts)
    if rows is None:
        raise TypeError(f"{_PROMPTS}, got {shown(prompts)}")
    if not rows:
        raise ValueError("prompts: expected at least one, got none")
    if _index(rows[0]) is not None:  # the ids of one prompt
        rows = [rows]
    return [
        _text_ids(i, row, tokenizer) if isinstance(row, str) else _ids(f"prompt {i}", row)
        for i, row in enumerate(rows)
    ]


def stop_ids(
    stop_tokens: Any, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None
) -> frozenset[int]:
    """The token ids that end a text.

    Args:
        stop_tokens: an id or a text that is one token, several in any iterable, or ``None``: the
            model's own.
        model: the target.
        tokenizer: needed for texts.

    Raises:
        TypeError: something else.
        ValueError: an id outside the vocabulary; a text that is not one token, or no tokenizer.
    """
    if stop_tokens is None:
        return _end_of_text(model)
    if isinstance(stop_tokens, str) or _index(stop_tokens) is not None:
        stop_tokens = [stop_tokens]
    several = None if isinstance(stop_tokens, bytes | Mapping) else stop_tokens
    if not isinstance(several, Iterable):
        raise TypeError(f"{_STOPS}, got {shown(stop_tokens)}")
    found = set()
    for stop in several:
        if isinstance(stop, str):
            found.add(_stop_text(stop, tokenizer))
        elif _index(stop) is None:
            raise TypeError(f"{_STOPS}, got {shown(stop)}")
        else:
            found.add(integer("stop_tokens", stop, 0, model.config.vocab_size - 1))
    return frozenset(found)


def seeds(seed: Any, count: int) -> list[int]:
    """One seed for each of ``count`` prompts; see :func:`rsk.decode.loop.speculative_generate`.

    Raises:
        TypeError: neither an int, several, nor ``None``.
        ValueError: out of range, or as many as there are not prompts.
    """
    if seed is None:
        drawn = torch.empty((), dtype=torch.int64, device="cpu").random_(-(2**63), None)
        seed = int(drawn)
    if _index(seed) is not None:
        first = integer("seed", seed, -(2**63), 2**63 - 1)
        return [(first + i + 2**63) % 2**64 - 2**63 for i in range(count)]
    rows = _rows(seed)
    if rows is None:
        raise TypeError(f"seed: expected an int, one per prompt, or None, got {shown(seed)}")
    if len(rows) != count:
        raise ValueError(f"seed: expected one per prompt ({count}), got {len(rows)}")
    return [integer(f"seed[{i}]", row, -(2**63), 2**63 - 1) for i, row in enumerate(rows)]


def _index(value: object) -> int | None:
    """The value as an int if it is a whole number; bool and tensors of several elements are not."""
    if isinstance(value, bool | str) or str(getattr(value, "dtype", "")).endswith("bool"):
        return None
    if getattr(value, "ndim", 0) != 0:  # a tensor of one element in a row is a row
        return None
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return None


def _rows(value: Any) -> list[Any] | None:
    """What stands in a list, tuple, iterator, array or tensor, in its order; else ``None``."""
    if isinstance(value, str | bytes | bytearray | Mapping | AbstractSet):
        return None  # bytes are no text, and a set has no order
    if hasattr(value, "tolist") and hasattr(value, "ndim"):
        return value.tolist() if value.ndim else None
    return list(value) if isinstance(value, Iterable) else None


def _ids(where: str, row: Any) -> list[int]:
    values = _rows(row)
    if values is None:
        raise TypeError(f"{where}: expected a text or token ids, got {shown(row)}")
    ids = [_index(value) for value in values]
    for value, number in zip(values, ids, strict=True):
        if number is None:
            raise TypeError(f"{where}: expected token ids, which are ints, got {shown(value)}")
    return ids  # type: ignore[return-value]


def _text_ids(i: int, text: str, tokenizer: PreTrainedTokenizerBase | None) -> list[int]:
    if tokenizer is None:
        raise ValueError("prompts are texts: expected a tokenizer, got None")
    # A tokenizer that adds a first token would make something of nothing.
    ids = list(tokenizer(text).input_ids) if text else []
    if not ids:
        raise ValueError(f"prompt {i} is empty: expected some text to continue")
    return ids


def _tokenized(batch: Mapping[str, Any]) -> list[list[int]]:
    """What a tokenizer returned: its ids without the padding."""
    if "input_ids" not in batch:
        names = ", ".join(map(repr, batch))
        raise TypeError(f"{_PROMPTS}, got a mapping without 'input_ids': {names}")
    ids = token_ids(batch["input_ids"], None)
    if batch.get("attention_mask") is None:
        return ids
    mask = token_ids(batch["attention_mask"], None)
    if [len(row) for row in mask] != [len(row) for row in ids]:
        raise ValueError("prompts: 'attention_mask' and 'input_ids' differ in shape")
    return [
        [token for token, kept in zip(row, keep, strict=True) if kept]
        for row, keep in zip(ids, mask, strict=True)
    ]


def _stop_text(text: str, tokenizer: PreTrainedTokenizerBase | None) -> int:
    if tokenizer is None:
        raise ValueError(f"stop_tokens: {text!r} is a text: expected a tokenizer, got None")
    ids = list(tokenizer(text, add_special_tokens=False).input_ids)
    if len(ids) != 1:
        raise ValueError(f"{_STOPS}; {text!r} is {len(ids)} tokens, {ids}")
    return int(ids[0])


def _end_of_text(model: Any) -> frozenset[int]:
    ids = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    if ids is None:
        ids = getattr(model.config, "eos_token_id", None)
    return frozenset() if ids is None else frozenset([ids] if isinstance(ids, int) else ids)


def shown(value: object) -> str:
    """A value in an error message: its type, and itself if it is short."""
    shape = getattr(value, "shape", None)
    if shape is not None:
        return f"{type(value).__name__} of {value.dtype} {list(shape)}"  # type: ignore[attr-defined]
    text = repr(value)
    return f"{type(value).__name__} {text}" if len(text) <= 60 else type(value).__name__
