"""The sampler on rows that are split over processes: the same tokens as on whole rows."""

from __future__ import annotations

import os
import signal
import time

import pytest
import torch
import torch.distributed as dist
from process_group import Group, Raised

import rsk
from rsk.check.sharded import columns_of, compare_random_calls, compare_random_logit_calls
from rsk.sampler import build, sharded
from rsk.sampler.channel import Channel
from rsk.sampler.sharded_kernels import Kernels

SIZES = (2, 3, 4)


@pytest.fixture(scope="module")
def groups():
    build.load("sharded emulator")  # compiled before any rank waits for another
    made = {}

    def group(size):
        if size not in made:
            made[size] = Group(size)
        return made[size]

    yield group
    for each in made.values():
        each.close()


def random_calls(rank, size, *arguments):
    return compare_random_calls(*arguments)


def random_logit_calls(rank, size, count, seed, max_elements=1 << 11):
    return compare_random_logit_calls(count, seed, max_elements=max_elements)


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
def test_random_calls(groups, size):
    told = groups(size).run(random_calls, {2: 100, 3: 40, 4: 30}[size], size)
    assert all(each == told[0] for each in told)
    assert all(number > 3 for number in told[0].values()), told[0]


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
def test_random_calls_from_logits(groups, size):
    told = groups(size).run(random_logit_calls, {2: 50, 3: 30, 4: 16}[size], size)
    assert all(each == told[0] for each in told)
    assert len(told[0]) >= (8 if size == 2 else 6), told[0]  # each way to find laws


# --- the kernels, in the emulator ----------------------------------------------------------------


def with_kernels(rank, size, ranks, seed, function, *arguments):
    """Run a function where some ranks use the emulated kernels, the others PyTorch's operators."""
    if rank not in ranks:
        return function(rank, size, *arguments)
    build.load("sharded emulator")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RSK_EMULATOR_SEED", str(seed))
        patch.setattr(sharded, "_choose", lambda backend, device, channel: Kernels)
        return function(rank, size, *arguments)


@pytest.mark.parametrize("ranks", [(0, 1), (1,)])
def test_emulated_kernels(groups, ranks):
    told = groups(2).run(with_kernels, ranks, 1, random_calls, 16, 11)
    assert told[0] == told[1] and told[0]["rejected"] > 3


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [(0, 1), (1,)])
def test_emulated_kernels_from_logits(groups, ranks):
    told = groups(2).run(with_kernels, ranks, 2, random_logit_calls, 30, 12, 1 << 9)
    assert told[0] == told[1] and told[0]["listed"] > 3, told


def long_rows(rank, size, dtype, aligned):
    """Rows of several pieces for each rank; ties that do not fit into a block's memory."""
    g = torch.Generator().manual_seed(7)
    vocab_size = 9000
    bounds = [0, 4504 if aligned else 4501, vocab_size]
    p, q = (torch.rand(2, n, vocab_size, generator=g) ** 8 for n in (3, 2))
    p, q = ((rows / rows.sum(-1, keepdim=True)).to(dtype) for rows in (p, q))
    for d in ([[5, 8999], [4500, 4503]], [[4504, 0], [8999, -1]]):
        for draft in (q, None):
            whole = rsk.rejection_sample(torch.tensor(d), draft, p, seed=3)
            got = rsk.sharded.rejection_sample(
                torch.tensor(d),
                columns_of(draft, bounds, rank),
                columns_of(p, bounds, rank),
                seed=3,
            )
            assert torch.equal(got.tokens, whole.tokens)
    for spread, filters in ((0.5, {"top_k": 9}), (4.0, {"top_k": 128, "top_p": 0.9}), (2.0, {})):
        logits = (torch.randn(2, vocab_size, generator=g) * spread).round().to(dtype)
        logits[1, 100:] = -torch.inf
        for seed in range(3):
            whole, laws = rsk.sample_from_logits(logits, seed=seed, **filters, return_laws=True)
            got, got_laws = rsk.sharded.sample_from_logits(
                columns_of(logits, bounds, rank), seed=seed, **filters, return_laws=True
            )
            assert torch.equal(got, whole) and torch.equal(got_laws, laws), (spread, filters)


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_emulated_kernels_on_long_rows(groups, dtype, aligned):
    groups(2).run(with_kernels, (0, 1), 3, long_rows, dtype, aligned)


# --- PyTorch's defaults ------------------------------------------------------------------------


def with_defaults(rank, size, dtype, function, *arguments):
    """Run a function whose calls find this default dtype, and a default device without values."""

    def elsewhere(call):
        def run(*rows, **options):
            before = torch.get_default_dtype()
            torch.set_default_dtype(dtype)
            try:
                with torch.device("meta"):
                    return call(*rows, **options)
            finally:
                torch.set_default_dtype(before)

        return run

    with pytest.MonkeyPatch.context() as patch:
        for name in ("rejection_sample", "sample"):
            for each in (name, f"{name}_from_logits"):
                patch.setattr(sharded, each, elsewhere(getattr(sharded, each)))
        return function(rank, size, *arguments)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_defaults_do_not_matter(groups, dtype):
    groups(2).run(with_defaults, dtype, random_calls, 6, 3)
    told = groups(2).run(with_defaults, dtype, random_logit_calls, 8, 3, 1 << 9)
    assert len(told[0]) >= 4, told  # ways to find laws
    groups(2).run(with_kernels, (0, 1), 4, with_defaults, dtype, random_logit_calls, 2, 4, 1 << 8)


def test_a_fault_is_told_whatever_the_defaults(groups):
    groups(2).send(with_defaults, torch.float64, changed_call, "wrong shape")
    for answer in groups(2).answers():
        assert isinstance(answer, Raised) and "rank 1: target_probs: expected" in answer.message
    groups(2).run(usual_call)


# --- bad input ---------------------------------------------------------------------------------


def usual_call(rank, size, *, is_right=True, **changes):
    """One call whose arguments a rank may change: names to functions of the usual value.

    Of a right one the tokens are compared with the whole rows'.
    """
    g = torch.Generator().manual_seed(1)
    batch_size, spec_len, vocab_size = 3, 4, 40
    target = torch.rand(batch_size, spec_len + 1, vocab_size, generator=g)
    draft = torch.rand(batch_size, spec_len, vocab_size, generator=g)
    tokens = torch.randint(vocab_size, (batch_size, spec_len), generator=g)
    bounds = [vocab_size * r // size for r in range(size + 1)]
    arguments = {
        "validate": False,
        "draft_tokens": tokens,
        "draft_probs": columns_of(draft, bounds, rank),
        "target_probs": columns_of(target, bounds, rank),
        "seed": 5,
        "position": 7,
    }
    for name, change in changes.items():
        arguments[name] = change(arguments[name])
    got = rsk.sharded.rejection_sample(**arguments)
    if is_right and not changes:
        whole = rsk.rejection_sample(tokens, draft, target, seed=5, position=7)
        assert torch.equal(got.tokens, whole.tokens)
    return got.tokens.tolist()


CHANGES = {
    "K": (
        {
            "draft_tokens": lambda x: x[:, :3],
            "draft_probs": lambda x: x[:, :3],
            "target_probs": lambda x: x[:, :4],
        },
        "K is 4 on {others}, 3 on rank 1",
    ),
    "B": (
        {name: lambda x: x[:2] for name in ("draft_tokens", "draft_probs", "target_probs")},
        "B is 3 on {others}, 2 on rank 1",
    ),
    "a far larger B": (
        {
            name: lambda x: x.repeat(600, *[1] * (x.dim() - 1))
            for name in ("draft_tokens", "draft_probs", "target_probs")
        },
        "B is 3 on {others}, 1800 on rank 1",
    ),
    "dtype": (
        {"target_probs": lambda x: x.bfloat16()},
        "target's dtype is float32 on {others}, bfloat16 on rank 1",
    ),
    "no draft": ({"draft_probs": lambda x: None}, "draft's dtype is float32 on {others}, none on"),
    "token dtype": ({"draft_tokens": lambda x: x.int()}, "dtype of draft_tokens is int64 on"),
    "seed": ({"seed": lambda x: x + 1}, "seed differs between {others} and rank 1"),
    "seeds": (
        {"seed": lambda x: torch.tensor([5, 6, 8])},
        "seed differs between {others} and rank 1",
    ),
    "position": ({"position": lambda x: x + 1}, "position differs between {others} and rank 1"),
    "drafts": (
        {"draft_tokens": lambda x: x.flip(0)},
        "draft_tokens differs between {others} and rank 1",
    ),
    "wrong shape": ({"target_probs": lambda x: x[:, :2]}, "rank 1: target_probs: expected shape"),
    "wrong dtype": ({"target_probs": lambda x: x.double()}, "rank 1: target_probs: expected dtype"),
    "wrong type": ({"draft_tokens": lambda x: None}, "rank 1: draft_tokens: expected a tensor"),
}


def changed_call(rank, size, name):
    return usual_call(rank, size, **(CHANGES[name][0] if rank == 1 else {}))


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("size", SIZES)
def test_a_rank_that_differs_is_named_on_every_rank(groups, size, name):
    group = groups(size)
    group.run(usual_call)
    group.send(changed_call, name)
    others = {2: "rank 0", 3: "ranks 0 and 2", 4: "ranks 0, 2 and 3"}[size]
    for answer in group.answers():
        assert isinstance(answer, Raised), answer
        assert issubclass(answer.kind, ValueError | TypeError)
        assert CHANGES[name][1].format(others=others) in answer.message
    group.run(usual_call)  # and all are in step again


def with_a_hole(rank, size):
    return usual_call(rank, size, **({"draft_probs": lambda x: x[..., :-1]} if rank == 0 else {}))


def too_large(rank, size):
    return rsk.sharded.sample(torch.ones(1, (1 << 20) // size + 1))


def nothing_at_all(rank, size):
    return rsk.sharded.sample(torch.ones(1, 0))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (with_a_hole, "rank 0: slices of draft and target begin at the same token"),
        (too_large, "the target's vocabulary size V: expected 1 to 1048576 in all slices"),
        (nothing_at_all, "in all slices together, got 0"),
    ],
)
def test_slices_that_make_no_vocabulary(groups, function, message):
    groups(2).send(function)
    for answer in groups(2).answers():
        assert isinstance(answer, Raised) and answer.kind is ValueError
        assert message in answer.message
    groups(2).run(usual_call)


def drawn_seed(rank, size, differ):
    torch.manual_seed(rank if differ else 3)
    probs = torch.ones(4, 100)
    got = rsk.sharded.sample(probs[:, rank * 50 : rank * 50 + 50])
    torch.manual_seed(3)
    assert torch.equal(got, rsk.sample(probs))


def test_a_seed_of_none_needs_equal_generators(groups):
    groups(2).run(drawn_seed, False)
    groups(2).send(drawn_seed, True)
    for answer in groups(2).answers():
        assert isinstance(answer, Raised) and "seed differs between rank 0 and rank" in str(answer)


def other_functions(rank, size):
    if rank == 1:
        return rsk.sharded.sample(torch.ones(3, 20))
    return usual_call(rank, size)


def test_ranks_that_call_different_functions(groups):
    groups(2).send(other_functions)
    for answer in groups(2).answers():
        assert isinstance(answer, Raised)
        assert "function is rejection_sample on rank 0, sample on rank 1" in answer.message


def nan_in_one_slice(rank, size):
    """Only the request that reads it is invalid."""
    target = torch.full((3, 2, 40), 1 / 40)
    draft = target[:, :1].clone()
    tokens = torch.tensor([[3], [3], [-1]])
    target[0, 0, 39] = target[2, 1, 39] = torch.nan  # accepted; and an ended draft does not read it
    target[1, 1, 39] = torch.nan  # the bonus row of a draft that is accepted
    columns = slice(0, 25) if rank == 0 else slice(25, 40)
    got = rsk.sharded.rejection_sample(
        tokens, draft[..., columns], target[..., columns], seed=1, validate=False
    )
    assert got.num_accepted.tolist() == [1, -1, 0]
    assert got.tokens[1].tolist() == [-1, -1]
    return rsk.sharded.rejection_sample(
        tokens, draft[..., columns], target[..., columns], seed=1, validate=True
    )


def test_nan_in_one_slice(groups):
    groups(2).send(nan_in_one_slice)
    for answer in groups(2).answers():
        assert isinstance(answer, Raised) and "1 of 3 requests are invalid (rows 1)" in str(answer)


def a_batch_that_outgrows_all(rank, size, batch_size):
    probs = torch.rand(batch_size, 30, generator=torch.Generator().manual_seed(2))
    half = probs[:, rank * 15 : rank * 15 + 15]
    return torch.equal(rsk.sharded.sample(half, seed=1), rsk.sample(probs, seed=1))


def test_batches_that_outgrow_all_before(groups):
    for batch_size in (1, 3000, 0, 40000, 2):
        assert groups(2).run(a_batch_that_outgrows_all, batch_size) == [True, True]


def count_collectives(rank, size, function, *arguments):
    """The collectives of a call, without those of the first."""
    names = ("all_gather_single", "all_gather_into_tensor", "all_reduce", "broadcast", "all_gather")
    names += ("send", "recv", "all_to_all_single", "reduce_scatter_tensor", "barrier")
    function(rank, size, *arguments)
    counts = []
    with pytest.MonkeyPatch.context() as patch:
        for name in names:
            if hasattr(dist, name):
                original = getattr(dist, name)

                def counted(*given, name=name, original=original, **keywords):
                    counts.append(name)
                    return original(*given, **keywords)

                patch.setattr(dist, name, counted)
        function(rank, size, *arguments)
    return counts


def test_two_collectives(groups):
    for counts in groups(2).run(count_collectives, usual_call):
        assert len(counts) == 2, counts


# --- as on a GPU, where nobody waits for the headers ---------------------------------------------


def without_looking(rank, size, name, looking_rank):
    """What comes of a call that differs on rank 1, and of the two after it: tokens or a message."""
    with pytest.MonkeyPatch.context() as patch:
        usual_call(rank, size)
        patch.setattr(Channel, "is_on_host", lambda channel, device: False)
        usual_call(rank, size)
        changes = dict(CHANGES[name][0]) if rank == 1 else {}
        if rank == looking_rank:
            changes["validate"] = lambda x: True
        told = []
        for each in (changes, {}, {}):
            try:
                told.append(usual_call(rank, size, is_right=False, **each))
            except (ValueError, TypeError) as error:
                told.append(str(error))
        usual_call(rank, size)  # all are in step again
        patch.undo()
        usual_call(rank, size)
        return told


def is_nothing(told):
    return isinstance(told, list) and {token for row in told for token in row} == {-1}


@pytest.mark.parametrize(
    ("name", "kernels"), [*((name, ()) for name in CHANGES), ("K", (0, 1, 2)), ("seed", (0, 1))]
)
def test_without_looking_nobody_gets_tokens_and_the_next_call_raises(groups, name, kernels):
    message = CHANGES[name][1].format(others="ranks 0 and 2")
    told = groups(3).run(with_kernels, kernels, 4, without_looking, name, -1)
    for rank, (first, then, last) in enumerate(told):
        if rank == 1 and name.startswith(("wrong", "a far", "no draft")):  # it saw that itself
            assert message in first
            assert is_nothing(then)  # the others raised
        else:
            assert is_nothing(first)
            assert "at an earlier call" in then
            assert message in then or "rank 1 had wrong arguments" in then
        assert isinstance(last, list) and not is_nothing(last)


@pytest.mark.parametrize("name", ["K", "seed", "wrong shape"])
def test_a_rank_that_looks_keeps_step_with_those_that_do_not(groups, name):
    message = CHANGES[name][1].format(others="ranks 0 and 2")
    for rank, (first, then, last) in enumerate(groups(3).run(without_looking, name, 1)):
        assert message in first if rank == 1 else is_nothing(first)
        assert "at an earlier call" in then or (rank == 1 and is_nothing(then)), then
        assert isinstance(last, list) and not is_nothing(last)


# --- ranks that are alone, or gone -------------------------------------------------------------


def test_one_rank():
    group = Group(1)
    try:
        assert group.run(random_calls, 40, 5)[0]["requests"] > 20
        group.run(usual_call)
    finally:
        group.close()


def test_without_a_group():
    with pytest.raises(ValueError, match="torch.distributed is not initialised"):
        rsk.sharded.sample(torch.ones(1, 4))


def calls_for_ever(rank, size):
    for _ in range(100_000):
        usual_call(rank, size)
        if rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)


def comes_too_late(rank, size):
    if rank == 1:
        time.sleep(60)
        return
    usual_call(rank, size)


def test_a_rank_that_is_killed_fails_the_others():
    group = Group(3, timeout=10)
    try:
        group.run(usual_call)
        group.send(calls_for_ever)
        first, gone, last = group.answers(30)
        assert gone is None
        for answer in (first, last):
            assert isinstance(answer, Raised) and issubclass(answer.kind, RuntimeError)
    finally:
        group.close()


@pytest.mark.slow
def test_a_rank_that_does_not_come_fails_the_others_in_time():
    group = Group(2, timeout=2)
    try:
        group.run(usual_call)
        begin = time.monotonic()
        group.send(comes_too_late)
        waiting = group.answer_of(0, 30)
        assert isinstance(waiting, Raised) and issubclass(waiting.kind, RuntimeError)
        assert time.monotonic() - begin < 15
        group.processes[1].kill()
    finally:
        group.close()
