"""One call of the sharded sampler on one rank: what it sends, in order, and what comes of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from rsk.sampler.channel import Answers, Channel
from rsk.sampler.headers import HEADER, Layout, Meaning, make_header
from rsk.sampler.row_law import Filters
from rsk.sampler.slice_laws import LogitRows, Plan, laws_from, opening, plan_for, together
from rsk.sampler.slices import Decision, Rows, Slice, decide, result

Gather = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class ShardedCall:
    """The arguments of a call on one rank, checked; with ``filters`` the rows are logits."""

    function: str
    draft_tokens: Tensor
    draft: Tensor | None
    target: Tensor
    seed: int | Tensor
    position: int | Tensor
    stream: int
    """Of the random words that the last token is drawn with."""
    filters: Filters | None = None
    draft_laws: Tensor | None = None

    @property
    def batch_size(self) -> int:
        """B."""
        return self.draft_tokens.shape[0]

    @property
    def spec_len(self) -> int:
        """K."""
        return self.draft_tokens.shape[1]

    @property
    def length(self) -> int:
        """Numbers in the message with the totals."""
        return self.batch_size * (2 * self.spec_len + 2)

    @property
    def lawless(self) -> list[Tensor]:
        """The rows of logits whose laws are to be found."""
        known = self.draft is None or self.draft_laws is not None
        return [self.target] if known or self.draft is None else [self.target, self.draft]

    @cached_property
    def plan(self) -> Plan:
        """How the laws are found."""
        assert self.filters is not None
        return plan_for(self.filters, self.lawless)

    @cached_property
    def seeds(self) -> Tensor:
        """int64 [B]."""
        return self._each(self.seed, step=1)

    @cached_property
    def positions(self) -> Tensor:
        """int64 [B]."""
        return self._each(self.position, step=0)

    def _each(self, value: float | Tensor, step: int = 0) -> Tensor:
        """One value a request: the tensor, or a number plus b steps (wrapping at 2^64)."""
        if isinstance(value, Tensor):
            return value
        if isinstance(value, int):
            return torch.arange(self.batch_size, device=self.draft_tokens.device) * step + value
        device = self.draft_tokens.device
        return torch.full((self.batch_size,), value, dtype=torch.float32, device=device)

    @property
    def contents(self) -> tuple[Tensor, ...]:
        """What is to be the same on all ranks, as int64."""
        contents = [self.draft_tokens.long(), self.seeds, self.positions]
        if self.filters is not None:
            contents += map(self._each, self.filters)
            if self.draft_laws is not None:
                contents.append(self.draft_laws)
        return tuple(
            each.contiguous().view(torch.int32).long() if each.is_floating_point() else each.long()
            for each in contents
        )

    @property
    def meaning(self) -> Meaning:
        """What the ranks compare."""
        length, rounds, way = self.length, 0, 0
        if self.filters is not None:
            rows = sum(len(each) * each.shape[1] for each in self.lawless)
            length = max(length, self.plan.length(rows))
            rounds, way = self.plan.rounds + 1, self.plan.code
        return Meaning(
            function=self.function,
            batch_size=self.batch_size,
            spec_len=self.spec_len,
            target_dtype=self.target.dtype,
            draft_dtype=None if self.draft is None else self.draft.dtype,
            token_dtype=self.draft_tokens.dtype,
            target_columns=self.target.shape[2],
            draft_columns=-1 if self.draft is None else self.draft.shape[2],
            contents=lambda: self.contents,
            length=length,
            rounds=rounds,
            way=way,
        )


class Hands(Protocol):
    """Who computes this rank's part: PyTorch's operators, or the kernels."""

    def opening(self, layout: Layout, header: list[int]) -> Tensor:
        """The first message about rows of logits."""

    def find_laws(self, answers: Answers, gather: Gather) -> tuple[Tensor, Tensor | None]:
        """The laws of the target's rows, [B, K+1, 4], and of the draft's, from the openings."""

    def use(self, laws: Tensor, draft_laws: Tensor | None) -> None:
        """From here on the rows have these laws."""

    def totals(self, layout: Layout, header: list[int] | None = None) -> Tensor:
        """The message with the totals; with a header, if it is the first."""

    def find(self, answers: Answers, totals: Tensor) -> Tensor:
        """The tokens that this rank holds, else -1."""

    def result(self, found: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens [B, K+1] and num_accepted [B]."""


@torch.no_grad()
def run(
    call: ShardedCall, hands: Hands, channel: Channel, *, look: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Tokens [B, K+1], num_accepted [B], and the laws [B, K+1, 4] of the target's logits."""
    device = call.draft_tokens.device
    laws = None
    if call.filters is None:
        answers = channel.exchange(call.meaning, hands.totals, device, look=look)
        totals = answers.messages[:, HEADER:]
    else:
        answers = channel.exchange(call.meaning, hands.opening, device, look=look)
        laws, draft_laws = hands.find_laws(answers, channel.gather)
        hands.use(laws, draft_laws)
        totals = channel.gather(hands.totals(answers.layout))
    found = channel.largest(hands.find(answers, totals))
    return *hands.result(found), laws


class Operators:
    """PyTorch's operators, on any device."""

    def __init__(self, call: ShardedCall, channel: Channel) -> None:
        self.call, self.channel = call, channel
        self.laws: Tensor | None = None
        self.draft_laws = call.draft_laws
        self.decision: Decision | None = None

    def opening(self, layout: Layout, header: list[int]) -> Tensor:  # noqa: D102
        start = layout.bounds[self.channel.rank]
        listed = self.call.plan.listed
        parts = [opening(rows, start, listed).reshape(-1) for rows in self.call.lawless]
        return torch.cat([make_header(header, self.call.contents), *parts])

    def find_laws(  # noqa: D102
        self, answers: Answers, gather: Gather
    ) -> tuple[Tensor, Tensor | None]:
        call = self.call
        assert call.filters is not None
        sizes = answers.layout.target_size, answers.layout.draft_size
        exchanges, begin = [], HEADER
        for rows, size in zip(call.lawless, sizes, strict=False):
            shape = (*rows.shape[:2], call.plan.opening_words)
            end = begin + shape[0] * shape[1] * shape[2]
            received = answers.messages[:, begin:end].reshape(self.channel.size, *shape)
            exchanges.append(laws_from(received, rows, size, call.filters, call.plan))
            begin = end
        laws, *of_draft = together(exchanges, gather)
        return laws, of_draft[0] if of_draft else call.draft_laws

    def use(self, laws: Tensor, draft_laws: Tensor | None) -> None:  # noqa: D102
        self.laws, self.draft_laws = laws, draft_laws

    def totals(self, layout: Layout, header: list[int] | None = None) -> Tensor:  # noqa: D102
        message = self._slice(layout).message()
        if header is None:
            return message
        return torch.cat([make_header(header, self.call.contents), message])

    def find(self, answers: Answers, totals: Tensor) -> Tensor:  # noqa: D102
        call = self.call
        self.decision = decide(
            totals[:, : call.length],
            *(self.channel.rank, call.spec_len, call.seeds, call.positions, call.stream),
        )
        token = self._slice(answers.layout).find(self.decision)
        if not answers.looked:
            valid = self.decision.valid & self.channel.compare(answers.messages)
            self.decision = self.decision._replace(valid=valid)
        return token

    def result(self, found: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        assert self.decision is not None
        return result(self.call.draft_tokens.long(), self.decision, found[: self.call.batch_size])

    def _slice(self, layout: Layout) -> Slice:
        call, rank = self.call, self.channel.rank
        start = layout.bounds[rank]
        width = layout.bounds[rank + 1] - start

        def rows(values: Tensor, laws: Tensor | None) -> Rows:
            if call.filters is None or laws is None:
                return Rows(values, width)
            return LogitRows(values, width, start, laws, call.filters.min_p)

        return Slice(
            drafts=call.draft_tokens.long(),
            draft=None if call.draft is None else rows(call.draft, self.draft_laws),
            target=rows(call.target, self.laws),
            seeds=call.seeds,
            positions=call.positions,
            start=start,
            vocab_size=layout.bounds[-1],
        )
