"""The sampler where the vocabulary is split over several devices: ``rsk.sharded``.

Large models are served with their output layer split: each rank of a group holds the columns of a
contiguous slice of the vocabulary. To sample, an engine would gather all rows on each rank. Here
rows stay where they are. Weights are integers, so the totals of slices add up to the total of the
row in any order, exactly, and the token is the one that a single device would draw, bit for bit.

From probabilities two collectives cross the link:

1. *all_gather*: where the walk over the drafts ends, as far as each rank can tell from the draft
   tokens in its slice; and of every position at which it may end, the totals of the slice's
   weights. That is B (2 K + 2) numbers of 8 bytes, and a header of 22. Every rank then knows how
   many drafts were accepted, the total of the row, and which slice the token is in.
2. *all_reduce*: the tokens, B numbers, from the ranks that hold them.

The first could be split in two, so that the slices of one row only are summed, as on one device:
the coins, then the totals. It would save reading up to 2 K rows of a slice, which a GPU does in
less time than a collective takes until batches are large, and be a third wait for all ranks.

From logits the laws of the rows come first (:mod:`rsk.sampler.slice_laws`), then these two:

- 3 in all for a greedy call, and for top-k with one k of at most 128: one all_gather of B (2 K + 1)
  numbers, or of lists of the k largest logits, from which the thresholds, also those of top-p and
  min-p, and the total weight follow;
- 4 with temperature and min-p alone: the maxima; then the total weights, which depend on them;
- else 4 more for each of top-k and top-p for rows of float32, 2 for 16 bits: a threshold is found
  8 bits at a time, by counts or weights of 256 numbers a row.

With ``draft_laws`` rows of the draft need none of this. Messages have 1024 numbers, or 4096 and so
on where that is too few, so 64 requests with four drafts send 8 kB and 4 kB for probabilities; a
group's first call sends one message more (:mod:`rsk.sampler.channel` says why). Gathering their
rows of 128256 float32 sends 148 MB between two ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

from rsk.sampler import build
from rsk.sampler.api import RejectionSamples
from rsk.sampler.arguments import (
    MAX_SPEC_LEN,
    MAX_VOCAB_SIZE,
    PROBABILITY_DTYPES,
    TOKEN_DTYPES,
    UNREADABLE_LOGITS,
    UNREADABLE_PROBABILITIES,
    check_device,
    check_filters,
    check_range,
    check_seed_and_position,
    check_shape,
    check_tensor,
    raise_if_invalid,
)
from rsk.sampler.build import BuildError
from rsk.sampler.channel import Channel, channel_of
from rsk.sampler.logits import check_laws
from rsk.sampler.random_words import DRAFT, SAMPLE
from rsk.sampler.sharded_call import Hands, Operators, ShardedCall, run
from rsk.sampler.sharded_kernels import Kernels


def rejection_sample(
    draft_tokens: Tensor,
    draft_probs: Tensor | None,
    target_probs: Tensor,
    *,
    seed: int | Tensor | None = None,
    position: int | Tensor = 0,
    group: dist.ProcessGroup | None = None,
    backend: str = "auto",
    validate: bool = False,
) -> RejectionSamples:
    """Run :func:`rsk.rejection_sample` on rows that are split over the ranks of a group.

    Every rank returns the same samples, those of ``rsk.rejection_sample`` on the whole rows.

    Args:
        draft_tokens: as there, the same on every rank.
        draft_probs: [B, K, S], this rank's columns of them. The slices of the ranks follow one
            another in the order of the ranks; they may differ in size and be empty.
        target_probs: [B, K+1, S], of the same tokens. Where the vocabularies differ in size the
            last slices of the smaller one are shorter, or empty.
        seed: as there, the same on every rank. ``None`` draws from PyTorch's global CPU generator,
            which then has to be in the same state on all of them.
        position: as there, the same on every rank.
        group: the process group; ``None`` is the default one. Its backend is gloo or nccl.
        backend: who computes this rank's part: "vectorized", "fused", for GPUs only, or "auto":
            fused on a GPU where it can be built, else vectorized.
        validate: raise if a request is invalid, or the ranks do not mean the same call. This waits
            for the device. Without it a GPU call that the ranks disagree on returns -1 everywhere,
            and a later one raises. Rows that are no distributions are not looked for.

    Raises:
        ValueError: as there; on every rank, with the ranks named, if they disagree on B, K, a
            dtype, or what ``draft_tokens``, ``seed`` and ``position`` contain, or if one of them
            was given wrong arguments.
        TypeError: an argument of the wrong type.
        RuntimeError: a rank is gone, or did not come within the group's timeout (PyTorch's error).
    """
    channel = channel_of(group)
    with _failing_everywhere(channel, draft_tokens, target_probs):
        _check_tensors(draft_tokens, draft_probs, target_probs, "probs")
        seed, position = check_seed_and_position(seed, position, draft_tokens)
        hands = _choose(backend, draft_tokens.device, channel)
    arguments = draft_tokens, draft_probs, target_probs, seed, position, SAMPLE
    call = ShardedCall("rejection_sample", *arguments)
    samples = RejectionSamples(*run(call, hands(call, channel), channel, look=validate)[:2])
    if validate:
        raise_if_invalid(samples.num_accepted, UNREADABLE_PROBABILITIES)
    return samples


def sample(
    probs: Tensor,
    *,
    seed: int | Tensor | None = None,
    position: int | Tensor = 0,
    group: dist.ProcessGroup | None = None,
    backend: str = "auto",
    validate: bool = False,
) -> Tensor:
    """Run :func:`rsk.sample` on rows that are split over the ranks of a group.

    Args:
        probs: [B, S], this rank's columns.
        seed, position, group, backend, validate: as in :func:`rejection_sample`.

    Returns:
        int64 [B], the same on every rank.

    Raises:
        ValueError, TypeError, RuntimeError: as in :func:`rejection_sample`.
    """
    channel = channel_of(group)
    with _failing_everywhere(channel, probs):
        check_tensor("probs", probs, ("B", "S"), PROBABILITY_DTYPES)
        seed, position = check_seed_and_position(seed, position, probs)
        hands = _choose(backend, probs.device, channel)
    no_drafts = torch.empty((len(probs), 0), dtype=torch.int64, device=probs.device)
    call = ShardedCall("sample", no_drafts, None, probs.unsqueeze(1), seed, position, DRAFT)
    tokens = run(call, hands(call, channel), channel, look=validate)[0].squeeze(1)
    if validate:
        raise_if_invalid(tokens, UNREADABLE_PROBABILITIES)
    return tokens


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
    group: dist.ProcessGroup | None = None,
    backend: str = "auto",
    validate: bool = False,
    draft_laws: Tensor | None = None,
) -> RejectionSamples:
    """Run :func:`rsk.rejection_sample_from_logits` on rows that are split over a group's ranks.

    Every rank returns the same samples, those of the function on the whole rows.

    Args:
        draft_tokens: as in :func:`rejection_sample`.
        draft_logits: [B, K, S], this rank's columns, as in :func:`rejection_sample`.
        target_logits: [B, K+1, S].
        temperature, top_k, top_p, min_p: as in :func:`rsk.probabilities`, the same on every rank.
        seed, position, group, backend, validate: as in :func:`rejection_sample`.
        draft_laws: as in :func:`rsk.rejection_sample_from_logits`, the laws of the whole rows, the
            same on every rank: what :func:`sample_from_logits` returned.

    Raises:
        ValueError, TypeError, RuntimeError: as in :func:`rejection_sample`.
    """
    channel = channel_of(group)
    with _failing_everywhere(channel, draft_tokens, target_logits):
        _check_tensors(draft_tokens, draft_logits, target_logits, "logits")
        if draft_laws is not None:
            check_laws(draft_laws, draft_logits)
        filters = check_filters(temperature, top_k, top_p, min_p, target_logits)
        seed, position = check_seed_and_position(seed, position, draft_tokens)
        hands = _choose(backend, draft_tokens.device, channel)
    arguments = draft_tokens, draft_logits, target_logits, seed, position, SAMPLE
    laws = None if draft_laws is None else draft_laws.contiguous()
    call = ShardedCall("rejection_sample_from_logits", *arguments, filters, laws)
    samples = RejectionSamples(*run(call, hands(call, channel), channel, look=validate)[:2])
    if validate:
        raise_if_invalid(samples.num_accepted, UNREADABLE_LOGITS)
    return samples


def sample_from_logits(
    logits: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    top_k: int | Tensor = 0,
    top_p: float | Tensor = 1.0,
    min_p: float | Tensor = 0.0,
    seed: int | Tensor | None = None,
    position: int | Tensor = 0,
    group: dist.ProcessGroup | None = None,
    backend: str = "auto",
    return_laws: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Run :func:`rsk.sample_from_logits` on rows that are split over the ranks of a group.

    Args:
        logits: [B, S], this rank's columns.
        temperature, top_k, top_p, min_p: as in :func:`rsk.probabilities`, the same on every rank.
        seed, position, group, backend: as in :func:`rejection_sample`.
        return_laws: as in :func:`rsk.sample_from_logits`; of the whole rows.

    Returns:
        int64 [B], the same on every rank; with ``return_laws``, and float32 [B, 4].

    Raises:
        ValueError, TypeError, RuntimeError: as in :func:`rejection_sample`.
    """
    channel = channel_of(group)
    with _failing_everywhere(channel, logits):
        check_tensor("logits", logits, ("B", "S"), PROBABILITY_DTYPES)
        filters = check_filters(temperature, top_k, top_p, min_p, logits)
        seed, position = check_seed_and_position(seed, position, logits)
        hands = _choose(backend, logits.device, channel)
    no_drafts = torch.empty((len(logits), 0), dtype=torch.int64, device=logits.device)
    rows = logits.unsqueeze(1)
    call = ShardedCall("sample_from_logits", no_drafts, None, rows, seed, position, DRAFT, filters)
    tokens, _, laws = run(call, hands(call, channel), channel, look=False)
    assert laws is not None
    return (tokens.squeeze(1), laws.squeeze(1)) if return_laws else tokens.squeeze(1)


def forget(group: dist.ProcessGroup | None = None) -> None:
    """Forget the slices that the ranks of a group have agreed on, and how long their messages are.

    On a CPU, and with ``validate``, ranks notice by themselves that slices have changed. On a GPU
    one whose own slice has not changed would not look: call this on every rank before the next
    call. It is also a way back to short messages after a large batch.

    Raises:
        ValueError: there is no such group.
    """
    channel_of(group).forget()


@contextmanager
def _failing_everywhere(channel: Channel, *arguments: object) -> Iterator[None]:
    """Let wrong arguments fail on every rank, not on this one alone while the others wait for it.

    Args:
        channel: to the other ranks.
        arguments: what may be a tensor, on the device of the call.
    """
    try:
        yield
    except (TypeError, ValueError, BuildError) as error:
        channel.fail(error, _device_among(channel, *arguments))


def _choose(
    backend: str, device: torch.device, channel: Channel
) -> Callable[[ShardedCall, Channel], Hands]:
    """Who computes a rank's part.

    Raises:
        ValueError: there is no such backend here, or the group has none for the device.
        rsk.BuildError: ``backend="fused"``, and the kernels cannot be compiled.
    """
    channel.transport(device)
    if backend not in ("auto", "vectorized", "fused"):
        raise ValueError(f"backend: expected 'auto', 'vectorized' or 'fused', got {backend!r}")
    if backend == "fused" and device.type != "cuda":
        raise ValueError("backend: expected 'auto' or 'vectorized' on a CPU, got 'fused'")
    if backend == "fused":
        build.load("sharded cuda")
    elif backend == "vectorized" or device.type != "cuda" or not build.available("sharded cuda"):
        return Operators
    return Kernels


def _check_tensors(draft_tokens: Tensor, draft: Tensor | None, target: Tensor, kind: str) -> None:
    """Check the three tensors against each other."""
    check_tensor("draft_tokens", draft_tokens, ("B", "K"), TOKEN_DTYPES)
    batch_size, spec_len = draft_tokens.shape
    check_range("the speculation length K", spec_len, 0, MAX_SPEC_LEN)
    every = [(f"target_{kind}", target, spec_len + 1, "B, K+1, S")]
    if draft is not None:
        every.append((f"draft_{kind}", draft, spec_len, "B, K, S"))
    for name, values, rows, dims in every:
        check_tensor(name, values, tuple(dims.split(", ")), PROBABILITY_DTYPES)
        columns = values.shape[2]
        check_range(f"the columns S of {name}", columns, 0, MAX_VOCAB_SIZE)
        check_shape(name, values, (batch_size, rows, columns), dims)
        check_device(name, values, draft_tokens.device)


def _device_among(channel: Channel, *arguments: object) -> torch.device:
    """The device that the other ranks' tensors are likely to be on."""
    devices = [x.device for x in arguments if isinstance(x, Tensor)]
    for device in (*devices, torch.device("cpu"), torch.device("cuda")):
        try:
            channel.transport(device)
        except ValueError:
            continue
        return device
    raise AssertionError("a group has a backend for one of them")
