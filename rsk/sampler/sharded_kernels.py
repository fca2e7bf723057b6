"""The kernels of the sharded sampler (``cuda/sharded.cu``, ``cuda/sharded_laws.cu``) as its hands.

They send what :class:`rsk.sampler.sharded_call.Operators` sends, so ranks may mix the two.
"""

from __future__ import annotations

import struct
from typing import Any

import torch
from torch import Tensor

from rsk.sampler.channel import Answers, Channel
from rsk.sampler.headers import GIVEN, HEADER, Layout
from rsk.sampler.sharded_call import Gather, Operators, ShardedCall

_MOST_ENTRIES = 4096
"""Entries of all ranks' lists together that the kernel merges."""


class Kernels:
    """The kernels, loaded for the device of the call."""

    def __init__(self, call: ShardedCall, channel: Channel) -> None:
        self.call, self.channel = call, channel
        self.laws: Tensor | None = None
        self.draft_laws = call.draft_laws
        self.arguments: list[Any] = []  # of the operator that made the totals
        self.sums: Tensor | None = None
        self.num_accepted: Tensor | None = None

    def opening(self, layout: Layout, header: list[int]) -> Tensor:  # noqa: D102
        message: Tensor = torch.ops.rsk.sharded_opening(*self._shared(layout, header))
        return message

    def find_laws(  # noqa: D102
        self, answers: Answers, gather: Gather
    ) -> tuple[Tensor, Tensor | None]:
        plan, call = self.call.plan, self.call
        entries = self.channel.size * (plan.listed + 1)
        if plan.top_k or plan.top_p or entries > _MOST_ENTRIES:
            return Operators(call, self.channel).find_laws(answers, gather)
        shared = self._shared(answers.layout)
        weights = None
        if plan.rounds:
            weights = gather(torch.ops.rsk.sharded_weights(*shared, answers.messages))
        laws = torch.ops.rsk.sharded_laws(*shared, answers.messages, weights)
        of_target, of_draft = (each.view(torch.float32) for each in laws)
        return of_target, of_draft if len(call.lawless) == 2 else call.draft_laws

    def use(self, laws: Tensor, draft_laws: Tensor | None) -> None:  # noqa: D102
        self.laws, self.draft_laws = laws, draft_laws

    def totals(self, layout: Layout, header: list[int] | None = None) -> Tensor:  # noqa: D102
        self.arguments = self._shared(layout, header)
        message, self.sums = torch.ops.rsk.sharded_totals(*self.arguments)
        return message

    def find(self, answers: Answers, totals: Tensor) -> Tensor:  # noqa: D102
        is_first = self.call.filters is None
        found, self.num_accepted = torch.ops.rsk.sharded_find(
            *self.arguments,
            answers.messages,
            answers.messages if is_first else totals,
            self.sums,
            self.channel.differing,
        )
        return found

    def result(self, found: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        assert self.num_accepted is not None
        tokens = torch.ops.rsk.sharded_result(self.call.draft_tokens, self.num_accepted, found)
        return tokens, self.num_accepted

    def _shared(self, layout: Layout, header: list[int] | None = None) -> list[Any]:
        """The arguments of every operator; with a header the message is the first of the call."""
        call, rank = self.call, self.channel.rank
        start = layout.bounds[rank]
        seed, seed0 = _tensor_and_number(call.seed)
        position, position0 = _tensor_and_number(call.position)
        filters = [_tensor_and_number(value) for value in call.filters or ()]
        numbers = [
            *(start, layout.bounds[rank + 1] - start),
            *(layout.bounds[-1], layout.target_size, layout.draft_size),
            *(
                rank,
                self.channel.size,
                self.channel.words,
                0 if header is None else HEADER,
                call.stream,
            ),
            *(seed0, position0, int(call.filters is not None)),
            call.plan.listed if call.filters is not None else 0,
            *(number for _, number in filters or [(None, 0)] * 4),
            *(header or [0] * GIVEN),
        ]
        return [
            torch.tensor(numbers, device="cpu"),
            *(call.draft_tokens, call.draft, call.target, seed, position),
            *(tensor for tensor, _ in filters or [(None, 0)] * 4),
            *(self.laws, self.draft_laws),
        ]


def _tensor_and_number(value: float | Tensor) -> tuple[Tensor | None, int]:
    """One of the two; a float as its bits."""
    if isinstance(value, Tensor):
        return value, 0
    if isinstance(value, int):
        return None, value
    bits: int = struct.unpack("I", struct.pack("f", value))[0]
    return None, bits
