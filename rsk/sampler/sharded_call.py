"""One call of the sharded sampler on one rank: what it sends, in order, and what comes of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rsk.sampler.channel import Answers, Channel
from rsk.sampler.headers import Layout, Meaning
from rsk.sampler.row_law import Filters
from rsk.sampler.slice_laws import LogitRows, laws_from, opening, plan_for, together
from rsk.sampler.slices import Rows, Slice, decide, result


@dataclass(frozen=True)
class Call:
    """The arguments of a call on one rank, checked; with ``filters`` the rows are logits."""

    function: str
    draft_tokens: Tensor
    draft: Tensor | None
    target: Tensor
    seeds: Tensor
    positions: Tensor
    stream: int
    """Of the random words that the last token is drawn with."""
    validate: bool = False
    filters: Filters | None = None
    draft_laws: Tensor | None = None

    @torch.no_grad()
    def run(self, channel: Channel) -> tuple[Tensor, Tensor, Tensor | None]:
        """Tokens [B, K+1], num_accepted [B], and the laws [B, K+1, 4] of the target's logits."""
        laws = None
        if self.filters is None:
            answers = self._exchange(
                channel, lambda layout: self._slice(layout, channel.rank).message()
            )
            part, messages = self._slice(answers.layout, channel.rank), answers.numbers
        else:
            answers, laws, draft_laws = self._exchange_laws(channel, self.filters)
            part = self._slice(answers.layout, channel.rank, laws, draft_laws)
            messages = channel.gather(part.message())
        spec_len = self.draft_tokens.shape[1]
        decision = decide(
            messages[:, : len(self.seeds) * (2 * spec_len + 2)],
            *(channel.rank, spec_len, self.seeds, self.positions, self.stream),
        )
        token = channel.largest(part.find(decision))
        if answers.agreed is not None:
            decision = decision._replace(valid=decision.valid & answers.agreed)
        return *result(part.drafts, decision, token), laws

    def _exchange_laws(
        self, channel: Channel, filters: Filters
    ) -> tuple[Answers, Tensor, Tensor | None]:
        """The first answers, and the laws of the target's and of the draft's rows."""
        plan, groups = plan_for(filters, self._lawless()), self._lawless()

        def openings(layout: Layout) -> list[Tensor]:
            start = layout.bounds[channel.rank]
            return [opening(rows, start, plan.listed) for rows in groups]

        answers = self._exchange(
            channel,
            lambda layout: torch.cat([one.reshape(-1) for one in openings(layout)]),
        )
        sizes = answers.layout.target_size, answers.layout.draft_size
        exchanges, begin = [], 0
        for rows, size in zip(groups, sizes, strict=False):
            shape = (*rows.shape[:2], plan.opening_words)
            end = begin + shape[0] * shape[1] * shape[2]
            received = answers.numbers[:, begin:end].reshape(channel.size, *shape)
            exchanges.append(laws_from(received, rows, size, filters, plan))
            begin = end
        laws, *of_draft = together(exchanges, channel.gather)
        return answers, laws, of_draft[0] if of_draft else self.draft_laws

    def _lawless(self) -> list[Tensor]:
        """The rows of logits whose laws are to be found."""
        if self.draft is None or self.draft_laws is not None:
            return [self.target]
        return [self.target, self.draft]

    def _slice(
        self,
        layout: Layout,
        rank: int,
        laws: Tensor | None = None,
        draft_laws: Tensor | None = None,
    ) -> Slice:
        start = layout.bounds[rank]
        width = layout.bounds[rank + 1] - start

        def rows(values: Tensor, laws: Tensor | None) -> Rows:
            if self.filters is None or laws is None:
                return Rows(values, width)
            return LogitRows(values, width, start, laws, self.filters.min_p)

        return Slice(
            drafts=self.draft_tokens.long(),
            draft=None if self.draft is None else rows(self.draft, draft_laws),
            target=rows(self.target, laws),
            seeds=self.seeds,
            positions=self.positions,
            start=start,
            vocab_size=layout.bounds[-1],
        )

    def _exchange(self, channel: Channel, numbers: Callable[[Layout], Tensor]) -> Answers:
        device = self.draft_tokens.device
        return channel.exchange(self._meaning(), numbers, device, look=self.validate)

    def _meaning(self) -> Meaning:
        batch_size, spec_len = self.draft_tokens.shape
        contents = [self.draft_tokens.long(), self.seeds, self.positions]
        length = batch_size * (2 * spec_len + 2)
        rounds = way = 0
        if self.filters is not None:
            plan = plan_for(self.filters, self._lawless())
            rows = sum(len(each) * each.shape[1] for each in self._lawless())
            length = max(length, plan.length(rows))
            rounds, way = plan.rounds + 1, plan.code
            contents += [self._as_content(value) for value in self.filters]
            if self.draft_laws is not None:
                contents.append(self.draft_laws.contiguous().view(torch.int32).long())
        return Meaning(
            function=self.function,
            batch_size=batch_size,
            spec_len=spec_len,
            target_dtype=self.target.dtype,
            draft_dtype=None if self.draft is None else self.draft.dtype,
            token_dtype=self.draft_tokens.dtype,
            target_columns=self.target.shape[2],
            draft_columns=-1 if self.draft is None else self.draft.shape[2],
            contents=tuple(contents),
            length=length,
            rounds=rounds,
            way=way,
        )

    def _as_content(self, value: float | Tensor) -> Tensor:
        """A filter's value for each request, as int64."""
        if not isinstance(value, Tensor):
            dtype = torch.int64 if isinstance(value, int) else torch.float32
            value = torch.full(self.seeds.shape, value, dtype=dtype, device=self.seeds.device)
        bits = value.contiguous().view(torch.int32) if value.is_floating_point() else value
        return bits.long()
