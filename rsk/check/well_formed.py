"""Is what a sampler returns well-formed, written in full, and its input left alone?"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from rsk.check.calls import Call, Sampler
from rsk.check.recipes import DTYPES, Recipe

POISON = -6148914691236517206
"""Bytes of 0xAA: no token, and easy to recognise."""


def assert_well_formed(
    sampler: Sampler,
    *,
    from_logits: bool = False,
    invalid: bool = True,
    device: str | torch.device = "cpu",
) -> None:
    """Raise if a sampler's result is not what :func:`rsk.rejection_sample` promises.

    Shapes and dtypes; accepted tokens that are the draft's, then one token of the vocabulary, then
    -1; nothing left over from an earlier call in the output; inputs untouched; and, with
    ``invalid``, requests that cannot be decided marked with -1 while the others are not affected.

    Args:
        sampler: called as :func:`rsk.rejection_sample`, without ``backend``.
        from_logits: it is called as :func:`rsk.rejection_sample_from_logits` instead.
        invalid: whether to test invalid requests; other projects leave them undefined.
        device: where the sampler runs.

    Raises:
        AssertionError: something is wrong; the message says what, and with which call.
    """
    for recipe in _recipes():
        call = recipe.make(device).from_logits(from_logits)
        with _about(recipe):
            _check_result(call, *_run_untouched(sampler, call))
            _check_fresh(sampler, call)
    _check_independent(sampler, from_logits, device)
    if invalid:
        for reason, call in _invalid_calls(device):
            _check_refused(sampler, reason, call.from_logits(from_logits))
        if from_logits:
            for reason, call in _invalid_logits(device):
                _check_refused(sampler, reason, call)


def _recipes() -> Iterator[Recipe]:
    for spec_len in (0, 1, 4):
        yield Recipe(batch_size=5, spec_len=spec_len, vocab_size=33, seed=spec_len)
    yield Recipe(batch_size=0, spec_len=3, vocab_size=8)
    yield Recipe(batch_size=3, spec_len=2, vocab_size=1, rows=("equal",))
    for rows in ("equal", "disjoint"):  # the longest output and the shortest
        yield Recipe(batch_size=6, spec_len=3, vocab_size=16, rows=(rows,), per_request=True)
    for dtype in DTYPES[1:]:
        yield Recipe(batch_size=4, spec_len=2, vocab_size=50, dtype=dtype, layout="padded")
    yield Recipe(batch_size=8, spec_len=5, vocab_size=20, rows=("near",), ragged=True)
    yield Recipe(batch_size=8, spec_len=3, vocab_size=5, certain=True, layout="transposed")
    yield Recipe(batch_size=4, spec_len=3, vocab_size=40, token_dtype=torch.int32)


@contextlib.contextmanager
def _about(recipe: Recipe) -> Iterator[None]:
    """Add to the message of an assertion that fails which call it is about."""
    try:
        yield
    except (AssertionError, TypeError) as error:
        raise AssertionError(f"not well-formed: {error}\n  in the call {recipe}.make()") from None


def _run_untouched(sampler: Sampler, call: Call) -> tuple[Tensor, Tensor]:
    """Run the sampler; raise if an input has changed, bit for bit."""
    before = {name: tensor.clone() for name, tensor in call.tensors().items()}
    result = call.run(sampler)
    for name, tensor in call.tensors().items():
        same = torch.equal(
            tensor.contiguous().view(torch.uint8), before[name].contiguous().view(torch.uint8)
        )
        assert same, f"the input {name} was modified"
    return result


def _check_result(call: Call, tokens: Tensor, num_accepted: Tensor) -> None:
    _, spec_len, vocab_size = call.shape
    for name, tensor in (("tokens", tokens), ("num_accepted", num_accepted)):
        assert tensor.dtype == torch.int64, f"{name}: expected int64, got {tensor.dtype}"
        device = call.target_rows.device
        assert tensor.device == device, f"{name}: expected device {device}, got {tensor.device}"
    for b, (row, n) in enumerate(zip(tokens.tolist(), num_accepted.tolist(), strict=True)):
        drafts = call.draft_tokens[b].tolist()
        length = drafts.index(-1) if -1 in drafts else spec_len
        where = f"request {b}, whose draft has {length} tokens"
        assert 0 <= n <= length, f"num_accepted is {n} in {where}"
        for k in range(n):
            assert row[k] == drafts[k], (
                f"accepted token {k} is {row[k]}, not the draft's {drafts[k]}, in {where}"
            )
        name = "bonus" if n == length else "recovered"
        assert 0 <= row[n] < vocab_size, (
            f"the {name} token is {row[n]}, not one of {vocab_size} words, in {where}"
        )
        for k in range(n + 1, spec_len + 1):
            assert row[k] == -1, (
                f"column {k}, behind the last token, is {row[k]}, not -1, in {where}"
            )


def _check_fresh(sampler: Sampler, call: Call) -> None:
    """Poison the previous result, and the free memory that the next one may be given."""
    expected = tuple(tensor.clone() for tensor in call.run(sampler))
    for tensor in call.run(sampler):
        tensor.fill_(POISON)
    blocks = [torch.full_like(tensor, POISON) for tensor in expected for _ in range(64)]
    del blocks, tensor
    got = call.run(sampler)
    for name, new, old in zip(("tokens", "num_accepted"), got, expected, strict=True):
        stale = (new == POISON).nonzero().tolist()
        assert not stale, (
            f"{name}{stale[0]} was not written: it holds what was in memory before the call"
        )
        assert torch.equal(new, old), (
            f"the same call returns other {name} the second time: {old.tolist()}, then "
            f"{new.tolist()}"
        )


def _check_independent(sampler: Sampler, from_logits: bool, device: str | torch.device) -> None:
    """Two calls in a row: neither result may show through in the other's."""
    recipe = Recipe(batch_size=6, spec_len=3, vocab_size=16, rows=("equal",))
    recipes = recipe, dataclasses.replace(recipe, rows=("disjoint",))
    long, short = (each.make(device).from_logits(from_logits) for each in recipes)
    first = long.run(sampler)
    copies = [tensor.clone() for tensor in first]
    expected = [tensor.clone() for tensor in short.run(sampler)]
    for tensor, copy in zip(first, copies, strict=True):
        assert torch.equal(tensor, copy), (
            "not well-formed: a later call changes the result of an earlier one; part of the "
            "output was not written anew, or its memory is handed out twice"
        )
    # The other call's values at the same addresses.
    for name, tensor in long.tensors().items():
        tensor.copy_(short.tensors()[name])
    got = long.run(sampler)
    assert all(map(torch.equal, got, expected)), (
        "not well-formed: inputs changed in place are not read again; the result is the earlier one"
    )


def _invalid_calls(device: str | torch.device) -> Iterator[tuple[str, Call]]:
    """Calls of which request 1 is invalid, and the reason; all drafts would be accepted."""
    call = partial(_sure_call, device)
    _, spec_len, vocab_size = call().shape
    for value, name in ((torch.nan, "NaN"), (torch.inf, "infinity"), (-torch.inf, "-infinity")):
        for row in ("target probability of a draft token", "draft probability of a draft token"):
            broken = call()
            tensor = broken.target_rows if row.startswith("target") else broken.draft_rows
            assert tensor is not None
            tensor[1, 0, 0] = value
            yield f"{name} as the {row}", broken
        broken = call()
        broken.target_rows[1, spec_len, 3] = value
        yield f"{name} in the row of the bonus token", broken
        for which in ("target", "draft"):
            broken = call()
            assert broken.draft_rows is not None
            broken.target_rows[1, 0, :2] = torch.tensor([0.0, 0.625])  # rejected at once
            rows = broken.target_rows if which == "target" else broken.draft_rows
            rows[1, 0, 4] = value
            yield f"{name} in the {which} row of the recovered token", broken
    for token in (-2, vocab_size, 2**40):
        broken = call()
        broken.draft_tokens[1, 1] = token
        yield f"draft token {token} of a vocabulary of {vocab_size}", broken
    broken = call()
    broken.target_rows[1, spec_len] = 0
    yield "a row without any probability to draw the bonus token from", broken


def _invalid_logits(device: str | torch.device) -> Iterator[tuple[str, Call]]:
    """The same, for what only logits can have: bad parameters, rows that are ruled out."""
    call = _sure_call(device).from_logits()
    for name, off, values in (
        ("temperature", 1.0, (torch.nan, torch.inf, -1.0, 2.0**-21, 2.0**21)),
        ("top_k", 0, (-1, -(2**31))),
        ("top_p", 1.0, (torch.nan, -0.5, 1.5)),
        ("min_p", 0.0, (torch.nan, -0.5, 1.5)),
    ):
        for value in values:
            each = torch.tensor([off, value, off, off], device=device)
            yield f"{name} {value}", dataclasses.replace(call, filters={name: each})
    broken = call.map(torch.clone)
    broken.target_rows[1, 0] = -torch.inf
    yield "a row of -infinity to judge a draft token by", broken


def _sure_call(device: str | torch.device) -> Call:
    """Four requests of two draft tokens, all of which are accepted."""
    values = torch.tensor([0.5, 0.125, 0.125, 0.125, 0.125], device=device)
    target = values.repeat(4, 3, 1)
    drafts = torch.zeros(4, 2, dtype=torch.int64, device=device)
    return Call(drafts, target[:, :2].clone(), target, 5, 0)


def _check_refused(sampler: Sampler, reason: str, call: Call) -> None:
    message = f"not well-formed: {reason}:"
    try:
        tokens, num_accepted = call.run(sampler)
    except Exception as error:
        raise AssertionError(f"{message} it raises {type(error).__name__}: {error}") from error
    rows, counts = tokens.tolist(), num_accepted.tolist()
    assert counts[1] == -1 and set(rows[1]) == {-1}, (
        f"{message} expected num_accepted -1 and tokens of -1, got {counts[1]} and {rows[1]}"
    )
    for b in (0, 2, 3):
        assert counts[b] == call.shape[1] and 0 <= rows[b][-1] < call.shape[2], (
            f"{message} it spoils request {b} too, which is valid: {counts[b]} and {rows[b]}"
        )
