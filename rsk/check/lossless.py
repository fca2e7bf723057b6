"""Does a sampler's output follow the target? Decided by watching it, with stated error rates."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from rsk.base.machine import pinned_threads
from rsk.check.calls import Sampler, result_of
from rsk.check.cases import Aspect, Case, Outcomes, default_cases
from rsk.check.logit_cases import logit_cases
from rsk.check.sequential_test import (
    FIRST_LOOK,
    log_evidence,
    looks,
)
from rsk.check.verdict import NotLossless, Verdict, Watch
from rsk.sampler.api import sample

_MAX_ELEMENTS = 1 << 19  # target probabilities in one call: they stay in the cache


def assert_lossless(sampler: Sampler, **options: Any) -> Verdict:
    """Raise if a sampler's output does not follow the target.

    Args:
        sampler: what to test; see :func:`examine`, also for the options.
        **options: ``level``, ``power``, ``bias``, ``cases``, ``seed`` and others.

    Returns:
        The verdict of a sampler that passes.

    Raises:
        NotLossless: an ``AssertionError`` whose message and ``verdict`` say what is wrong.
        TypeError, ValueError: as :func:`examine`.
    """
    verdict = examine(sampler, **options)
    if not verdict.lossless:
        raise NotLossless(verdict)
    return verdict


def examine(
    sampler: Sampler,
    *,
    from_logits: bool = False,
    cases: Iterable[Case] | None = None,
    level: float = 1e-4,
    power: float = 0.99,
    bias: float = 0.03,
    seed: int = 0,
    batch_size: int = 4096,
    at_least: int = 0,
    draw: Callable[..., Tensor] = sample,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> Verdict:
    """Decide whether a sampler's output follows the target, and say why not if it does not.

    Drafts are drawn from q with random seeds and positions, and everything that a request emits is
    compared with its law: the joint distribution over all positions, the accepted length, the
    recovered tokens, the bonus token. The test is sequential: it ends as soon as there is enough
    evidence against the law (a likelihood-ratio martingale, exact at any time), or every bias of
    size ``bias`` is ruled out in every kind of request (a G-test of equivalence). The statistics
    are explained in :mod:`rsk.check.sequential_test`.

    Args:
        sampler: called as ``sampler(draft_tokens, draft_probs, target_probs, seed=int64 [B],
            position=int64 [B])`` with tensors as :func:`rsk.rejection_sample` takes them.
        from_logits: it is called as :func:`rsk.rejection_sample_from_logits` instead, with filters
            as tensors where a case has some.
        cases: what to test on; by default :func:`rsk.check.cases.default_cases`, and from logits
            also :func:`rsk.check.logit_cases.logit_cases`.
        level: largest probability to find a correct sampler wrong, all cases together.
        power: smallest probability to find a sampler wrong that is off by ``bias`` in any kind.
        bias: total variation distance between what a request emits and its law. The number of
            requests grows with 1 / bias^2: for a slow sampler, choose 0.1.
        seed: of everything random here; the same seed gives the same verdict.
        batch_size: largest number of requests in one call; 1 for a sampler of single requests.
        at_least: outcomes of each kind to collect even if the verdict is clear before, to draw.
        draw: draws the drafts, as :func:`rsk.sample` does, which is the default.
        dtype: of the rows that the sampler is given. The default cases' rows are exact in
            16 bits too, but for the large vocabulary, which is always float32.
        device: where the sampler runs.

    Raises:
        ValueError: ``level``, ``power``, ``bias`` or ``batch_size`` out of range; no cases.
        TypeError: the sampler returns something else than tokens and num_accepted.
    """
    for name, value in (("level", level), ("power", power), ("bias", bias)):
        if not 0 < value < 1:
            raise ValueError(f"{name}: expected a number between 0 and 1, got {value}")
    if batch_size < 1:
        raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
    if cases is None:
        *quick, last = default_cases()
        cases = [*quick, *(logit_cases() if from_logits else []), last]
    laws = [Outcomes(case) for case in cases]
    if not laws:
        raise ValueError("cases: expected at least one")
    start = time.perf_counter()
    aspects = [[law.aspects(r) for r in range(len(law.case.kinds))] for law in laws]
    shares = sum(p.freedom > 0 for of_case in aspects for of_kind in of_case for p in of_kind)
    verdict = Verdict(
        lossless=True,
        level=level,
        power=power,
        bias=bias,
        kinds=sum(len(law.case.kinds) for law in laws if law.case.general),
        needed=math.log(max(shares, 1) / level),  # the union bound: the aspects share the level
    )
    generator = torch.Generator().manual_seed(seed)
    where = torch.device(device)
    bench = _Bench(sampler, from_logits, draw, dtype, where, batch_size, generator)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for law, of_case in zip(laws, aspects, strict=True):
            _examine_case(bench, law, of_case, verdict, at_least)
            if not verdict.lossless:
                break
    verdict.requests = bench.requests
    verdict.seconds = time.perf_counter() - start
    return verdict


def _examine_case(
    bench: _Bench, law: Outcomes, aspects: list[list[Aspect]], verdict: Verdict, at_least: int
) -> None:
    case = law.case
    watched = [
        Watch(verdict, case.name, kind, of_kind, is_decided=not case.general)
        for kind, of_kind in zip(case.kinds, aspects, strict=True)
    ]
    outcomes = torch.zeros(len(case.kinds), law.malformed + 1, dtype=torch.float64)
    collected = 0
    for total in _totals(law, aspects, verdict):
        outcomes += bench.count(law, total - collected)
        collected = total
        for watch, counts in zip(watched, outcomes, strict=True):
            watch.look(counts)
        enough = case.seeds is not None or collected >= at_least
        if enough and (all(watch.is_decided for watch in watched) or not verdict.lossless):
            break
    if not verdict.lossless:
        verdict.blame()
        verdict.impossible = bench.impossible


def _totals(law: Outcomes, aspects: list[list[Aspect]], verdict: Verdict) -> Iterator[int]:
    """After how many outcomes of each kind to look at this case."""
    case = law.case
    if case.seeds is not None:
        yield 1
    elif case.fault is None:
        freedom = max(aspect.freedom for of_kind in aspects for aspect in of_kind)
        yield from looks(freedom, verdict.bias, 1 - verdict.power)
    else:
        total = float(FIRST_LOOK)
        seen = torch.cat([case.fault.double(), torch.zeros(1)])
        while log_evidence(total * seen, law.law[0], verdict.bias) < verdict.needed:
            total *= 1.05
        while True:
            yield int(total)
            total *= 2


class _Bench:
    """Sends requests to the sampler and counts what comes out."""

    def __init__(
        self,
        sampler: Sampler,
        from_logits: bool,
        draw: Callable[..., Tensor],
        dtype: torch.dtype,
        device: torch.device,
        batch_size: int,
        generator: torch.Generator,
    ) -> None:
        self.requests = 0
        self.impossible: str | None = None
        self._sampler = sampler
        self._from_logits = from_logits
        self._draw = draw
        self._dtype = dtype
        self._device = device
        self._batch_size = batch_size
        self._generator = generator

    def count(self, law: Outcomes, more: int) -> Tensor:
        """Outcomes [R, cells] of ``more`` requests of each kind, in batches of mixed order."""
        case = law.case
        num_kinds, num_cells = len(case.kinds), law.malformed + 1
        kinds = torch.arange(num_kinds).repeat(more)
        if case.seeds is None:
            kinds = kinds[torch.randperm(len(kinds), generator=self._generator)]
        per_request = (case.spec_len + 1) * case.vocab_size
        size = max(1, min(self._batch_size, _MAX_ELEMENTS // per_request))
        counts = torch.zeros(num_kinds * num_cells, dtype=torch.float64)
        with pinned_threads(1):  # the rows are short, or few: threads would wait for each other
            for kind in kinds.split(size):
                cell = self._run(law, kind)
                counts += torch.bincount(kind * num_cells + cell, minlength=len(counts))
                self.requests += len(kind)
        return counts.view(num_kinds, num_cells)

    def _run(self, law: Outcomes, kind: Tensor) -> Tensor:
        """The cells [B] of one call."""
        case = law.case
        seed, position = self._seeds_and_positions(case, kind)
        dtype = torch.float32 if case.fault is not None else self._dtype
        draft_probs = case.draft_probs[kind].to(self._device, dtype)
        drafts = torch.full((len(kind), case.spec_len), -1, device=self._device)
        length = torch.tensor(case.draft_len)[kind].to(self._device)
        for k in range(case.spec_len):
            if case.certain:
                token = draft_probs[:, k].argmax(1)
            else:
                token = self._draw(draft_probs[:, k], seed=seed, position=position + k)
            drafts[:, k] = torch.where(k < length, token, -1)
        draft_rows, target_rows, filters = case.rows(kind, self._from_logits)
        returned = self._sampler(
            drafts,
            None if case.certain else draft_rows.to(self._device, dtype),
            target_rows.to(self._device, dtype),
            seed=seed,
            position=position,
            **{name: values.to(self._device) for name, values in filters.items()},
        )
        tokens, num_accepted = (t.long().cpu() for t in result_of(returned, drafts))
        drafts = drafts.cpu()
        cell = law.of(kind, drafts, tokens, num_accepted)
        wrong = (law.law[kind, cell] == 0).nonzero().flatten()
        if self.impossible is None and len(wrong):
            b = int(wrong[0])
            reason = law.why_impossible(
                int(kind[b]), drafts[b].tolist(), tokens[b].tolist(), int(num_accepted[b])
            )
            self.impossible = f"{reason} (seed {int(seed[b])}, position {int(position[b])})"
        return cell

    def _seeds_and_positions(self, case: Case, kind: Tensor) -> tuple[Tensor, Tensor]:
        if case.seeds is not None:
            seed, position = torch.tensor(case.seeds)[kind], torch.zeros_like(kind)
        else:
            seed = torch.empty_like(kind).random_(-(2**63), None, generator=self._generator)
            position = torch.empty_like(kind).random_(0, 2**20, generator=self._generator)
        return seed.to(self._device), position.to(self._device)
