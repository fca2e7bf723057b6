"""Messages between the ranks of a group: who holds which tokens, and do all mean the same call?

A rank's message is int64 words: a header that describes its call, then numbers. Backends neither
check nor forgive messages of different length (gloo ends the process, NCCL waits), so the length
does not depend on the arguments: all messages of a group have one length, which its ranks agree on
and which only grows. Whatever the ranks call with, their first messages fit together, and the
headers say who differs.

The ranks also agree on a *layout*, the tokens that each of them holds. A rank that does not know
it, or needs longer messages, says so in its header; then all learn from the headers and send again.
That happens at a group's first call, when slices change, and when a batch outgrows all before.

On a CPU, and with ``validate``, every rank reads all headers before it goes on, and raises what is
wrong. On a GPU that would mean to wait for the device. There the headers are compared on the
device; a call that the ranks do not agree on returns -1 everywhere, and the next one raises.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import NamedTuple, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor

from rsk.sampler.headers import (
    FAULT,
    FIRST_MEANT,
    HEADER,
    LATE,
    LAYOUT,
    LENGTH,
    LOOKS,
    PURPOSE,
    ROUNDS,
    Layout,
    Meaning,
    difference_in,
    fault_of_layout,
    given_numbers,
    layout_of,
    make_header,
)

WORDS = 1024
"""Length of a group's messages at first: enough for 100 requests with four drafts each."""
GROWTH = 4
"""Longer messages are so many times as long."""


class Answers(NamedTuple):
    """The first messages of all ranks."""

    messages: Tensor
    """int64 [R, words]: headers, then numbers."""
    layout: Layout
    looked: bool
    """Whether the host has seen that all mean the same call; else see :meth:`Channel.compare`."""


class Channel:
    """What the ranks of one group have agreed on, and their messages."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.rank = dist.get_rank(group)
        self.size = dist.get_world_size(group)
        self.words = WORDS
        self.collectives = self.sent_bytes = 0
        """How many there were so far, and what this rank put into them."""
        self._group = weakref.ref(group)
        backends = (entry.split(":") for entry in dist.get_backend_config(group).split(","))
        self._backends = dict(backends)  # by the type of device
        self._layouts: dict[tuple[int, int], Layout] = {}
        self.differing: Tensor | None = None
        """Headers on the host, int64 [R, HEADER]: not 0 after a call that the ranks did not agree
        on and did not look at."""
        self._kept: Tensor | None = None  # the same on the device

    def exchange(
        self,
        meaning: Meaning,
        message: Callable[[Layout, list[int]], Tensor],
        device: torch.device,
        *,
        look: bool,
    ) -> Answers:
        """Send this rank's first message of a call, and get everyone's.

        Args:
            meaning: what the call is.
            message: makes the message, int64 [n], from the layout and what its header begins with.
            device: where the message is made.
            look: read the headers on the host, which waits for a GPU.

        Raises:
            ValueError: the ranks do not mean the same call, or their slices do not make a
                vocabulary; on a GPU also if that was so at an earlier call.
        """
        self._raise_what_was_found(device)
        look = look or self.is_on_host(device)
        if not look and self.differing is None:
            shape, pin = (self.size, HEADER), device.type == "cuda"
            self.differing = torch.zeros(shape, dtype=torch.int64, device="cpu", pin_memory=pin)
        key = meaning.target_columns, meaning.draft_columns
        while True:
            layout = self._layouts.get(key)
            ready = layout is not None and meaning.length <= self.words - HEADER
            if not ready and _is_capturing(device):
                raise ValueError(
                    "the ranks have not agreed on a call of this size yet: make one before you "
                    "capture it"
                )
            numbers = given_numbers(meaning, layout, look or not ready)
            if layout is not None and ready:
                messages = self.gather(message(layout, numbers))
                if not look:
                    return Answers(messages, layout, looked=False)
            else:
                messages = self.gather(make_header(numbers, meaning.contents()))
            headers = messages[:, :HEADER].tolist()
            difference = difference_in(headers, messages) or fault_of_layout(headers)
            if difference:
                self._join(headers, device)
                raise ValueError(difference)
            layout = self._layouts[key] = layout_of(headers)
            longest = max(header[LENGTH] for header in headers)
            known = all(header[LAYOUT] == layout.digest for header in headers)
            if known and longest <= self.words - HEADER:
                return Answers(messages, layout, looked=True)
            if self._join(headers, device):
                raise ValueError(
                    "some ranks have slices or a batch that the ranks have not agreed on, and the "
                    "others went on without looking: make one call with validate=True on all"
                )
            while self.words - HEADER < longest:
                self.words *= GROWTH

    def forget(self) -> None:
        """Forget what was agreed on; on all ranks, or the next call will not agree."""
        self._layouts.clear()
        self.words = WORDS

    def fail(self, error: Exception, device: torch.device) -> NoReturn:
        """Raise what is wrong with this rank's arguments, and tell the others, who wait for it.

        Into a CUDA graph nobody waits, and no answer can be read.
        """
        text = f"rank {self.rank}: {error}"
        if not _is_capturing(device):
            self._raise_what_was_found(device)
            self._tell(FAULT, text, device)
        raise type(error)(text) from error

    def _tell(self, purpose: int, text: str, device: torch.device) -> None:
        """Send words instead of numbers, and keep step with the others."""
        letters = text.encode()[: 8 * (WORDS - HEADER)]
        letters += b"\0" * (-len(letters) % 8)
        header = [0] * HEADER
        header[PURPOSE], header[LENGTH], header[LOOKS] = purpose, len(letters) // 8, 1
        message = torch.tensor([*header, *memoryview(letters).cast("q")], device=device)
        answers = self.gather(message)
        self._join(answers[:, :HEADER].tolist(), device)

    def gather(self, message: Tensor) -> Tensor:
        """Everyone's message, int64 [R, words]; one's own is filled up with zeros."""
        sent = self._filled(message, self.words)
        self._count(sent)
        if self.size == 1:
            return sent[None].to(message.device)
        received = sent.new_empty(self.size * self.words)
        gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
        gather(received, sent, group=self._group())
        return received.view(self.size, self.words).to(message.device)

    def largest(self, numbers: Tensor) -> Tensor:
        """The largest of all ranks' numbers, each for itself: int64 [n], n <= words / 2."""
        sent = self._filled(numbers, self.words // 2)
        self._count(sent)
        if self.size == 1:
            return numbers
        dist.all_reduce(sent, dist.ReduceOp.MAX, group=self._group())
        return sent[: len(numbers)].to(numbers.device)

    def _count(self, sent: Tensor) -> None:
        self.collectives += 1
        self.sent_bytes += sent.nbytes

    def _filled(self, numbers: Tensor, length: int) -> Tensor:
        device = self.transport(numbers.device)
        if len(numbers) == length and numbers.device == device:
            return numbers
        filled = torch.zeros(length, dtype=torch.int64, device=device)
        filled[: len(numbers)] = numbers
        return filled

    def transport(self, device: torch.device) -> torch.device:
        """Where the messages of a call on ``device`` are made: with gloo, on the host.

        Raises:
            ValueError: the group's backend cannot send them.
        """
        if device.type == "cuda" and self._backends.get("cuda") == "nccl":
            return device
        if "cpu" in self._backends:
            return torch.device("cpu")
        raise ValueError(f"expected tensors on cuda, as the group's backend is nccl, got {device}")

    def is_on_host(self, device: torch.device) -> bool:
        """Whether messages are at hand without waiting for a GPU."""
        return self.transport(device).type == "cpu"

    def _join(self, headers: list[list[int]], device: torch.device) -> bool:
        """Keep step with ranks that go on without looking at the headers; whether there are any."""
        blind = [header for header in headers if not header[LOOKS]]
        if blind:
            nothing = torch.zeros(0, dtype=torch.int64, device=device)
            for _ in range(blind[0][ROUNDS]):
                self.gather(nothing)
            self.largest(nothing)
        return bool(blind)

    def compare(self, messages: Tensor) -> Tensor:
        """Whether all headers say the same, on the device; if not, they are kept for later."""
        headers = messages[:, :HEADER]
        alike = [PURPOSE, LAYOUT, *range(FIRST_MEANT, HEADER)]
        agreed = torch.stack([(headers[:, i] == headers[:1, i]).all() for i in alike]).all()
        if self._kept is None:
            self._kept = torch.zeros_like(headers)
        known = agreed | (headers[:, PURPOSE] == LATE).any()
        self._kept.copy_(torch.where(known, self._kept, headers))
        assert self.differing is not None
        self.differing.copy_(self._kept, non_blocking=True)
        return agreed

    def _raise_what_was_found(self, device: torch.device) -> None:
        """Raise how an earlier call differed, if the device has come so far."""
        if self.differing is None or not self.differing.any():
            return
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        headers = self.differing.tolist()
        self.differing.zero_()
        if self._kept is not None:
            self._kept.zero_()
        difference = difference_in(headers, None) or "the ranks had slices not agreed on"
        text = f"at an earlier call, {difference}"
        self._tell(LATE, text, device)
        raise ValueError(text)


def _is_capturing(device: torch.device) -> bool:
    """Whether what is called now is not run but kept, in a CUDA graph."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


_channels: weakref.WeakKeyDictionary[dist.ProcessGroup, Channel] = weakref.WeakKeyDictionary()


def channel_of(group: dist.ProcessGroup | None) -> Channel:
    """The channel of a group; ``None`` is the default group.

    Raises:
        ValueError: there is no default group, or this process is not in the group.
    """
    if not dist.is_available() or not dist.is_initialized():
        raise ValueError("group: torch.distributed is not initialised; call init_process_group")
    if group is None:
        group = dist.group.WORLD
    if not isinstance(group, dist.ProcessGroup):
        raise ValueError(f"group: expected a process group that this rank is in, got {group!r}")
    channel = _channels.get(group)
    if channel is None:
        channel = _channels[group] = Channel(group)
    return channel
