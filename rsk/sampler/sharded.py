"""The sampler where the vocabulary is split over several devices: ``rsk.sharded``.

Large models are served with their output layer split: each rank of a group holds the columns of a
contiguous slice of the vocabulary. To sample, an engine would gather all rows on each rank. Here
rows stay where they are. Weights are integers, so the totals of slices add up to the total of the
row in any order, exactly, and the token is the one that a single device would draw, bit for bit.

What crosses the link, from probabilities, in two collectives:

1. *all_gather*: where the walk over the drafts ends, as far as each rank can tell from the draft
   tokens in its slice; and of every position at which it may end, the totals of the slice's
   weights. That is B (2 K + 2) numbers of 8 bytes, and a header. Every rank then knows how many
   drafts were accepted, the total of the row, and which slice the token is in.
2. *all_reduce*: the tokens, B numbers, from the ranks that hold them.

The first could be split in two, so that the slices of one row only are summed, as on one device:
the coins, then the totals. It would save reading up to 2 K rows of a slice, which a GPU does in
less time than a collective takes until batches are large, and be a third wait for all ranks.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from rsk.sampler.api import RejectionSamples
from rsk.sampler.arguments import (
    MAX_SPEC_LEN,
    MAX_VOCAB_SIZE,
    PROBABILITY_DTYPES,
    TOKEN_DTYPES,
    UNREADABLE_PROBABILITIES,
    check_device,
    check_int64,
    check_range,
    check_seed,
    check_shape,
    check_tensor,
    raise_if_invalid,
)
from rsk.sampler.channel import Channel, channel_of
from rsk.sampler.headers import Layout, Meaning
from rsk.sampler.random_words import DRAFT, SAMPLE
from rsk.sampler.slices import Rows, Slice, decide, result
from rsk.sampler.vectorized import per_request


def rejection_sample(
    draft_tokens: Tensor,
    draft_probs: Tensor | None,
    target_probs: Tensor,
    *,
    seed: int | Tensor | None = None,
    position: int | Tensor = 0,
    group: dist.ProcessGroup | None = None,
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
        validate: raise if a request is invalid, or the ranks do not mean the same call. This waits
            for the device. Without it a GPU call that the ranks disagree on returns -1 everywhere,
            and a later one raises.

    Raises:
        ValueError: as there; on every rank, with the ranks named, if they disagree on B, K, a
            dtype, or what ``draft_tokens``, ``seed`` and ``position`` contain, or if one of them
            was given wrong arguments.
        TypeError: an argument of the wrong type.
        RuntimeError: a rank is gone, or did not come within the group's timeout (PyTorch's error).
    """
    channel = channel_of(group)
    try:
        batch_size = _check_tensors(draft_tokens, draft_probs, target_probs)
        device = draft_tokens.device
        seed = check_seed(seed, batch_size, device)
        position = check_int64("position", position, batch_size, device)
        channel.transport(device)
    except (TypeError, ValueError) as error:
        channel.fail(error, _device_among(channel, draft_tokens, target_probs))
    call = _Call(
        "rejection_sample", draft_tokens, draft_probs, target_probs, seed, position, validate
    )
    samples = RejectionSamples(*_run(channel, call, SAMPLE))
    if validate:
        raise_if_invalid(samples.num_accepted, UNREADABLE_PROBABILITIES)
    return samples


def sample(
    probs: Tensor,
    *,
    seed: int | Tensor | None = None,
    position: int | Tensor = 0,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """Run :func:`rsk.sample` on rows that are split over the ranks of a group.

    Args:
        probs: [B, S], this rank's columns.
        seed, position, group: as in :func:`rejection_sample`.

    Returns:
        int64 [B], the same on every rank.

    Raises:
        ValueError, TypeError, RuntimeError: as in :func:`rejection_sample`.
    """
    channel = channel_of(group)
    try:
        check_tensor("probs", probs, ("B", "S"), PROBABILITY_DTYPES)
        seed = check_seed(seed, len(probs), probs.device)
        position = check_int64("position", position, len(probs), probs.device)
        channel.transport(probs.device)
    except (TypeError, ValueError) as error:
        channel.fail(error, _device_among(channel, probs))
    no_drafts = torch.empty((len(probs), 0), dtype=torch.int64, device=probs.device)
    call = _Call("sample", no_drafts, None, probs.unsqueeze(1), seed, position, False)
    return _run(channel, call, DRAFT)[0].squeeze(1)


class _Call(NamedTuple):
    function: str
    draft_tokens: Tensor
    draft_probs: Tensor | None
    target_probs: Tensor
    seed: int | Tensor
    position: int | Tensor
    validate: bool


@torch.no_grad()
def _run(channel: Channel, call: _Call, stream: int) -> tuple[Tensor, Tensor]:
    """Tokens [B, K+1] and num_accepted [B]."""
    device = call.draft_tokens.device
    batch_size, spec_len = call.draft_tokens.shape
    drafts = call.draft_tokens.long()
    seeds = per_request(call.seed, batch_size, device, step=1)
    positions = per_request(call.position, batch_size, device, step=0)
    draft, target = call.draft_probs, call.target_probs
    columns = target.shape[2], -1 if draft is None else draft.shape[2]
    width = max(columns)

    def part(layout: Layout) -> Slice:
        return Slice(
            drafts=drafts,
            draft=None if draft is None else Rows(draft, width),
            target=Rows(target, width),
            seeds=seeds,
            positions=positions,
            start=layout.bounds[channel.rank],
            vocab_size=layout.bounds[-1],
        )

    length = batch_size * (2 * spec_len + 2)
    meaning = Meaning(
        function=call.function,
        batch_size=batch_size,
        spec_len=spec_len,
        target_dtype=target.dtype,
        draft_dtype=None if draft is None else draft.dtype,
        token_dtype=call.draft_tokens.dtype,
        target_columns=columns[0],
        draft_columns=columns[1],
        contents=(drafts, seeds, positions),
        length=length,
    )
    answers = channel.exchange(
        meaning, lambda layout: part(layout).message(), device, look=call.validate
    )
    messages = answers.numbers[:, :length]
    decision = decide(messages, channel.rank, spec_len, seeds, positions, stream)
    token = channel.largest(part(answers.layout).find(decision))
    if answers.agreed is not None:
        decision = decision._replace(valid=decision.valid & answers.agreed)
    return result(drafts, decision, token)


def _check_tensors(draft_tokens: Tensor, draft_probs: Tensor | None, target_probs: Tensor) -> int:
    """Check the three tensors against each other; return B."""
    check_tensor("draft_tokens", draft_tokens, ("B", "K"), TOKEN_DTYPES)
    batch_size, spec_len = draft_tokens.shape
    check_range("the speculation length K", spec_len, 0, MAX_SPEC_LEN)
    every = [("target_probs", target_probs, spec_len + 1, "B, K+1, S")]
    if draft_probs is not None:
        every.append(("draft_probs", draft_probs, spec_len, "B, K, S"))
    for name, probs, rows, dims in every:
        check_tensor(name, probs, tuple(dims.split(", ")), PROBABILITY_DTYPES)
        columns = probs.shape[2]
        check_range(f"the columns S of {name}", columns, 0, MAX_VOCAB_SIZE)
        check_shape(name, probs, (batch_size, rows, columns), dims)
        check_device(name, probs, draft_tokens.device)
    return batch_size


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
