"""What a sampler is tested on: draft and target rows, and the exact law of the output they give.

For fixed rows q[k] and p[k], with draft tokens drawn from q, the rule of speculative sampling has
a closed form. Token v is drafted at position k and accepted with probability min(p[k, v], q[k, v]);
token v replaces a rejected draft with probability max(p[k, v] - q[k, v], 0); and after K
acceptances the bonus token is v with probability p[K, v]. An outcome is what a request emits, the
accepted tokens and the last one, so its probability is a product of these.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from rsk.check.recipes import EXTREME_COINS

MAX_CELLS = 1024
"""Most outcomes that are counted apart; with a large vocabulary, tokens share bins."""

_SUM_TOLERANCE = 1e-4


@dataclass(frozen=True, eq=False)
class Case:
    """Requests to send to a sampler, of R kinds that are mixed in every batch."""

    name: str
    kinds: tuple[str, ...]
    """[R]: what is particular about each kind of request."""
    draft_probs: Tensor
    """float32 [R, K, V]: the distributions that drafts are drawn from; each row sums to 1."""
    target_probs: Tensor
    """float32 [R, K+1, V]; each row sums to 1."""
    draft_len: tuple[int, ...]
    """[R]: the length of each kind's draft, at most K."""
    bins: Tensor
    """int64 [V]: tokens that are counted together have the same bin, 0 to M-1."""
    certain: bool = False
    """Every draft row is one-hot, and the sampler is called with ``draft_probs=None``."""
    seeds: tuple[int, ...] | None = None
    """[R]: one request of each kind, with this seed and position 0, instead of random ones."""
    fault: Tensor | None = None
    """[M]: how the bins of the last token are distributed under the fault that the case is for.
    The number of requests is then what it takes to see this fault, and no other is excluded."""
    logits: tuple[Tensor, Tensor] | None = None
    """[R, K, V] and [R, K+1, V]: the draft's and the target's, for samplers that begin with them;
    ``None``: the logarithms of the probabilities."""
    filters: Mapping[str, Tensor] | None = None
    """[R] each: what turns those logits into the probabilities."""

    @classmethod
    def make(
        cls,
        name: str,
        rows: Mapping[str, tuple[Any, Any]],
        *,
        denominator: int = 1,
        draft_len: Mapping[str, int] | None = None,
        bins: Tensor | None = None,
        certain: bool = False,
        seeds: tuple[int, ...] | None = None,
        fault: Tensor | None = None,
    ) -> Self:
        """Make a case from (draft rows, target rows) per kind, each divided by ``denominator``.

        Raises:
            ValueError: shapes that do not fit, or a row that is not a distribution.
        """
        draft = torch.stack([torch.as_tensor(q, dtype=torch.float32) for q, _ in rows.values()])
        target = torch.stack([torch.as_tensor(p, dtype=torch.float32) for _, p in rows.values()])
        shape = target.shape
        if target.dim() != 3 or draft.shape != (shape[0], shape[1] - 1, shape[2]):
            raise ValueError(
                f"case {name!r}: expected draft rows [K, V] and target rows [K+1, V], "
                f"got {list(draft.shape[1:])} and {list(target.shape[1:])}"
            )
        for what, probs in (("draft", draft), ("target", target)):
            probs /= denominator
            sums = probs.double().sum(-1)
            if not (bool((probs >= 0).all()) and bool(((sums - 1).abs() < _SUM_TOLERANCE).all())):
                raise ValueError(
                    f"case {name!r}: a {what} row is not a distribution; the sums are "
                    f"{[round(s, 6) for s in sums.flatten().tolist()]}"
                )
        lengths = tuple((draft_len or {}).get(kind, shape[1] - 1) for kind in rows)
        if bins is None:
            bins = _bins(name, target)
        return cls(name, tuple(rows), draft, target, lengths, bins, certain, seeds, fault)

    def rows(self, kind: Tensor, from_logits: bool) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Draft rows, target rows and filters of requests of these kinds, for a sampler."""
        if from_logits and self.logits is not None:
            draft, target = self.logits
            filters = (self.filters or {}).items()
            return draft[kind], target[kind], {name: each[kind] for name, each in filters}
        draft, target = self.draft_probs[kind], self.target_probs[kind]
        return (draft.log(), target.log(), {}) if from_logits else (draft, target, {})

    @property
    def general(self) -> bool:
        """Whether the case is for any bias, not for one particular fault."""
        return self.seeds is None and self.fault is None

    @property
    def spec_len(self) -> int:
        """K."""
        return self.draft_probs.shape[1]

    @property
    def vocab_size(self) -> int:
        """V."""
        return self.target_probs.shape[2]


def _bins(name: str, target: Tensor) -> Tensor:
    """As many bins as there can be: one for each of the most likely tokens, two for the others."""
    _, columns, vocab_size = target.shape
    sizes = (m for m in range(vocab_size, 0, -1) if _num_cells(m, columns) <= MAX_CELLS)
    num_bins = next(sizes, 0)
    if num_bins < min(2, vocab_size):
        raise ValueError(
            f"case {name!r}: expected K of at most 8, so that all outcomes can be counted, "
            f"got {columns - 1}"
        )
    if num_bins == vocab_size:
        return torch.arange(vocab_size)
    ranks = torch.empty(vocab_size, dtype=torch.int64)
    ranks[target.mean((0, 1)).argsort(descending=True)] = torch.arange(vocab_size)
    alone = max(num_bins - 2, 1)
    return torch.where(ranks < alone, ranks, alone + ranks % (num_bins - alone))


def _num_cells(num_bins: int, columns: int) -> int:
    return sum(num_bins**n for n in range(1, columns + 1))


Outcome = tuple[int, ...]
"""The tokens, or their bins, that a request emits."""


class Outcomes:
    """The outcomes of a case as numbered cells, their law, and the aspects to look at.

    One more cell, the last and of probability 0, collects output that is not well-formed.
    """

    def __init__(self, case: Case) -> None:
        self.case = case
        self.num_bins = int(case.bins.max()) + 1
        columns = range(1, case.spec_len + 2)
        self.cells: list[Outcome] = [
            cell for n in columns for cell in itertools.product(range(self.num_bins), repeat=n)
        ]
        self.malformed = len(self.cells)
        self._first_cell = torch.tensor([_num_cells(self.num_bins, n) for n in range(len(columns))])
        self.law = torch.stack([self._law(r) for r in range(len(case.kinds))])
        """float64 [R, cells]."""

    def _law(self, r: int) -> Tensor:
        q, p = self.case.draft_probs[r].double(), self.case.target_probs[r].double()
        length = self.case.draft_len[r]
        reached = torch.ones(1, dtype=torch.float64)  # of each tuple of accepted tokens so far
        law = []
        for n in range(self.case.spec_len + 1):
            if n > length:
                last = torch.zeros_like(p[0])
            else:
                last = p[n] if n == length else (p[n] - q[n]).clamp(min=0)
            law.append(torch.outer(reached, self._binned(last)).flatten())
            if n < self.case.spec_len:
                kept = torch.minimum(p[n], q[n])
                reached = torch.outer(reached, self._binned(kept)).flatten()
        whole = torch.cat([*law, torch.zeros(1, dtype=torch.float64)])
        return whole / whole.sum()  # float32 rows sum to 1 up to rounding only

    def _binned(self, row: Tensor) -> Tensor:
        return row.new_zeros(self.num_bins).index_add_(0, self.case.bins, row)

    def of(self, kind: Tensor, drafts: Tensor, tokens: Tensor, num_accepted: Tensor) -> Tensor:
        """The cell of each request.

        Args:
            kind: int64 [B]. drafts: int64 [B, K]. tokens: int64 [B, K+1]. num_accepted: int64 [B].
        """
        length = torch.tensor(self.case.draft_len)[kind]
        column = torch.arange(self.case.spec_len + 1)
        n = num_accepted[:, None]
        fine = (num_accepted >= 0) & (num_accepted <= length)
        fine &= ((tokens >= 0) & (tokens < self.case.vocab_size) | (column > n)).all(1)
        fine &= ((tokens[:, :-1] == drafts) | (column[:-1] >= n)).all(1)
        binned = self.case.bins[tokens.clamp(0, self.case.vocab_size - 1)]
        code = torch.zeros_like(num_accepted)
        for k in range(self.case.spec_len + 1):
            code = torch.where(num_accepted >= k, code * self.num_bins + binned[:, k], code)
        cell = self._first_cell[num_accepted.clamp(0, self.case.spec_len)] + code
        return torch.where(fine, cell, self.malformed)

    def why_impossible(
        self, r: int, drafts: Sequence[int], tokens: Sequence[int], num_accepted: int
    ) -> str:
        """Why a request of kind r cannot emit these tokens, given that it cannot."""
        q, p = self.case.draft_probs[r], self.case.target_probs[r]
        length, n = self.case.draft_len[r], num_accepted
        if not 0 <= n <= length:
            return f"num_accepted is {n} for a draft of {length} tokens"
        for k in range(n):
            token, d = tokens[k], drafts[k]
            if token != d:
                return f"accepted token {k} is {token}, not the draft's {d}"
            if p[k, d] == 0:
                return f"draft token {d} is accepted although its target probability is 0"
        token = tokens[n]
        name = "bonus token" if n == length else "recovered token"
        if not 0 <= token < self.case.vocab_size:
            return f"the {name} is {token}, not one of {self.case.vocab_size} words"
        if n == length:
            return f"the {name} is {token}, whose target probability is 0"
        if p[n, drafts[n]] >= q[n, drafts[n]]:
            values = f"p = {p[n, drafts[n]]:g} >= q = {q[n, drafts[n]]:g}"
            return f"draft token {drafts[n]} is rejected although {values}"
        return f"the {name} is {token}, where p = {p[n, token]:g} <= q = {q[n, token]:g}"

    def aspects(self, r: int) -> list[Aspect]:
        """What can go wrong on its own in the outcome of kind r, and the outcome as a whole."""
        length = self.case.draft_len[r]
        labels: dict[str, Callable[[Outcome], object]] = {
            "accepted length": lambda cell: len(cell) - 1
        }
        for k in range(length):
            labels[f"recovered token at position {k}"] = _token(k, after_rejection=True)
        labels["bonus token"] = _token(length, after_rejection=True)
        for k in range(length):
            labels[f"token at position {k}"] = _token(k, after_rejection=False)
        aspects = [self._aspect(r, name, label) for name, label in labels.items()]
        whole = Aspect(
            "joint distribution", torch.arange(self.malformed + 1), self.law[r], [*self.cells, ()]
        )
        return [*aspects, whole]

    def _aspect(self, r: int, name: str, label: Callable[[Outcome], object]) -> Aspect:
        numbers: dict[object, int] = {}
        index = [-1] * (len(self.cells) + 1)
        for i, cell in enumerate(self.cells):
            value = label(cell)
            if value is not None:
                index[i] = numbers.setdefault(value, len(numbers))
        return Aspect(name, torch.tensor(index), self.law[r], list(numbers))


def _token(k: int, after_rejection: bool) -> Callable[[Outcome], object]:
    """The token at position k; only if it is the last one, or wherever there is one."""

    def label(cell: Outcome) -> int | None:
        there = len(cell) == k + 1 if after_rejection else len(cell) > k
        return cell[k] if there else None

    return label


class Aspect:
    """One aspect of an outcome, such as the accepted length, and its law."""

    def __init__(self, name: str, index: Tensor, law: Tensor, labels: list[Any]) -> None:
        self.name = name
        self.labels = labels
        """What each cell stands for: a number of tokens, a token, or an outcome."""
        self._index = index
        total = self.counts(law)
        self.law = total / total.sum().clamp(min=torch.finfo(torch.float64).tiny)
        """float64 [cells of this aspect]: how likely each value is, given that the aspect is there
        at all (there is no bonus token after a rejection, for instance)."""

    @property
    def freedom(self) -> int:
        """How many values there are to choose from, less one."""
        return max(int((self.law > 0).sum()) - 1, 0)

    def counts(self, outcomes: Tensor) -> Tensor:
        """Counts [..., cells of this aspect] from the counts [..., cells] of all outcomes."""
        used = self._index >= 0
        zeros = outcomes.new_zeros(*outcomes.shape[:-1], len(self.labels))
        return zeros.index_add_(-1, self._index[used], outcomes[..., used])


# --- the cases that every sampler is tested on --------------------------------------------------


def searched_coins() -> Case:
    """Requests whose coins are the extreme ones: no number of random requests finds them.

    The seeds are those at which the coin of position 0 is exactly 0, and the largest there is,
    1 - 2^-29. They were searched for; with another generator they are seeds like any other.
    """
    draft, other = [0, 1, 0, 0], [0, 0, 1, 0]  # neither the first word nor the last
    equal, ruled_out = ([draft], [draft, draft]), ([draft], [other, other])
    rows = {"coin 0, p = q": equal, "largest coin, p = q": equal}
    rows |= {"coin 0, p = 0": ruled_out, "largest coin, p = 0": ruled_out}
    return Case.make("searched coins", rows, seeds=EXTREME_COINS * 2)


def small_vocabulary() -> Case:
    """Two draft tokens, four words: few enough to count every outcome."""
    p = [[6, 5, 3, 2], [1, 4, 4, 7], [5, 1, 2, 8]]
    q = [[3, 3, 6, 4], [4, 2, 6, 4]]
    return Case.make(
        "small vocabulary",
        {
            "p and q overlap": (q, p),
            "q far from p": ([[10, 4, 1, 1], [1, 9, 5, 1]], [[1, 2, 5, 8], [6, 1, 1, 8], p[2]]),
            "q equals p": (p[:2], p),
            "q and p disjoint": ([[0, 7, 0, 9], q[1]], [[9, 0, 7, 0], p[1], p[2]]),
            "draft of length 1": (q, p),
            "no draft": (q, p),
        },
        denominator=16,
        draft_len={"draft of length 1": 1, "no draft": 0},
    )


def certain_drafts() -> Case:
    """Drafts without probabilities, as n-gram lookup gives them: q is 1 at the draft token."""
    p = [[6, 5, 3, 2], [1, 4, 4, 7], [5, 1, 2, 8]]
    q = [[16, 0, 0, 0], [0, 0, 0, 16]]
    return Case.make(
        "certain drafts",
        {"likely drafts": (q, p), "unlikely, length 1": (q[::-1], p)},
        denominator=16,
        draft_len={"unlikely, length 1": 1},
        certain=True,
    )


def long_draft() -> Case:
    """Five equal positions: what they share shows as dependence."""
    return Case.make("long draft", {"all rows equal": ([[3, 5]] * 5, [[5, 3]] * 6)}, denominator=8)


def large_vocabulary() -> Case:
    """A tail of very many very small probabilities behind one large one.

    Each is less than half the spacing of float32 numbers just below 1, so a running sum in float32
    never gets past the first word.
    """
    vocab_size, tail = 128256, 0.98 * 2.0**-25
    row = torch.full((1, vocab_size), tail)
    row[0, 0] = 1 - (vocab_size - 1) * tail
    return Case.make(
        "large vocabulary",
        {"long tail": (torch.empty(0, vocab_size), row)},
        bins=(torch.arange(vocab_size) > 0).long(),
        fault=torch.tensor([1.0, 0.0]),
    )


def small_cases() -> list[Case]:
    """The cases with few words, for samplers that are slow on many."""
    return [searched_coins(), small_vocabulary(), certain_drafts(), long_draft()]


def default_cases() -> list[Case]:
    """All of the above, the quickest first."""
    return [
        searched_coins(),
        small_vocabulary(),
        certain_drafts(),
        long_draft(),
        large_vocabulary(),
    ]
