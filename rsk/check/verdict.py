"""What a check of the output's law has found, and how it is told."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rsk.check.cases import Aspect
from rsk.check.sequential_test import SequentialTest, noise_floor, total_variation

_MEANING = {
    "accepted length": "draft token d must be accepted with probability min(1, p[d] / q[d]), each "
    "position with a coin of its own",
    "recovered token": "after a rejection the token must be drawn from max(p - q, 0), "
    "renormalised, with a random number of its own",
    "bonus token": "after the whole draft is accepted, one more token must be drawn from the "
    "target's next row",
    "length": "a text must end at its first stop token or at the limit, and nowhere else",
    "token": "the token emitted at a position must follow the target's row, however it came about",
    "joint": "everything that a request emits must have the probability that the rule gives it; "
    "aspects that are right by themselves may depend on one another",
}
_MOST_TELLING = (("accepted", "recovered", "bonus", "length"), ("token",), ("joint",))
"""Parts by how much they say about a fault."""


class Look(NamedTuple):
    """What one aspect of the output looked like when so many of its values had been seen."""

    total: float
    distance: float
    """Total variation distance of the observed shares from the law."""
    noise_floor: float
    """The distance to expect if the output does follow the law."""
    log_evidence: float
    """Natural logarithm of the likelihood ratio against the law."""


@dataclass
class Finding:
    """One aspect of the output of one kind of request, beside its law."""

    case: str
    kind: str
    aspect: str
    labels: list[Any]
    """What the cells stand for: a number of tokens, a token, or all tokens that are emitted."""
    law: Tensor
    """float64 [cells]: probabilities."""
    counts: Tensor = field(default_factory=lambda: torch.zeros(0))
    """float64 [cells]: how often each was seen."""
    looks: list[Look] = field(default_factory=list)

    @property
    def last(self) -> Look:
        """The look after all requests."""
        return self.looks[-1] if self.looks else Look(0, 0, 0, 0)

    def look(self, counts: Tensor, log_evidence: float) -> None:
        """Note what was counted so far, float64 [cells], and what it says against the law."""
        total = float(counts.sum())
        distance = float(total_variation(counts, self.law))
        self.counts = counts
        self.looks.append(Look(total, distance, noise_floor(self.law, total), log_evidence))


@dataclass
class Verdict:
    """What :func:`rsk.check.examine` or one like it has found. ``print`` it."""

    lossless: bool
    level: float
    """A correct sampler is called wrong with at most this probability."""
    power: float
    """A sampler that is off by ``bias`` is called wrong with at least this probability."""
    bias: float
    """The smallest detectable bias: total variation distance of all that a request emits."""
    kinds: int
    """In how many kinds of request such a bias is looked for."""
    needed: float
    """Natural logarithm of the evidence that settles it."""
    findings: list[Finding] = field(default_factory=list, repr=False)
    requests: int = 0
    """How many requests were sent to the sampler."""
    subject: str = "sampler"
    """What was examined, in a word."""
    seconds: float = 0.0
    culprit: Finding | None = field(default=None, repr=False)
    """The aspect that gave the sampler away, if it is not lossless."""
    impossible: str | None = None
    """An outcome of probability 0 that was seen, and why it cannot be."""

    def blame(self) -> None:
        """Not lossless: name the most telling aspect with enough evidence, with the most of it."""
        self.lossless = False
        guilty = [f for f in self.findings if f.last.log_evidence >= self.needed]
        certain = [f for f in guilty if math.isinf(f.last.log_evidence)]
        for names in _MOST_TELLING:
            of_these = [f for f in certain or guilty if f.aspect.startswith(names)]
            if of_these:
                self.culprit = max(of_these, key=lambda f: f.last.log_evidence)
                return
        raise AssertionError("no aspect has enough evidence")

    def find(self, aspect: str, kind: str | None = None, case: str | None = None) -> Finding:
        """The first finding with this aspect, kind and case.

        Raises:
            KeyError: there is none; the message lists what there is.
        """
        for found in self.findings:
            if found.aspect == aspect and kind in (None, found.kind) and case in (None, found.case):
                return found
        known = ", ".join(f"{f.aspect!r} of {f.kind!r}" for f in self.findings)
        raise KeyError(f"no {aspect!r} of {kind!r} was looked at; there is {known}")

    def __str__(self) -> str:
        return "\n".join([*self._story(), *self._errors()])

    def _story(self) -> Iterator[str]:
        if self.culprit is None:
            yield "lossless: the output follows the target"
            shown = max(self.findings, key=lambda f: f.last.distance - f.last.noise_floor)
            yield f"  furthest from its law: the {shown.aspect}, {shown.case}, {shown.kind}"
        else:
            shown = self.culprit
            yield f"not lossless: {self.impossible or f'the {shown.aspect} is wrong'}"
            yield f"  seen in the {shown.aspect}, {shown.case}, {shown.kind}"
            meanings = (text for name, text in _MEANING.items() if shown.aspect.startswith(name))
            yield f"  {next(meanings)}"
        look = shown.last
        yield (
            f"  total variation distance {look.distance:.4f}, noise floor {look.noise_floor:.4f}, "
            f"in {look.total:,.0f} values"
        )
        yield (
            f"  evidence against it {_power_of_ten(look.log_evidence)} to 1, "
            f"{_power_of_ten(self.needed)} needed"
        )
        if self.culprit is not None:
            yield from _table(shown)

    def _errors(self) -> Iterator[str]:
        yield (
            f"  level {self.level:g}: a correct {self.subject} is called wrong with at most this "
            "probability"
        )
        if self.kinds:
            where = "in this kind of" if self.kinds == 1 else f"in any of {self.kinds} kinds of"
            yield (
                f"  power {self.power:g}: a {self.subject} off by {self.bias:g} or more (total "
                f"variation distance) {where} request is called wrong with at least this "
                "probability"
            )
        yield f"  {self.requests:,} requests, {self.seconds:.1f} s"


def _power_of_ten(log: float) -> str:
    return "infinite" if math.isinf(log) else f"10^{log / math.log(10):.1f}"


def _table(finding: Finding, rows: int = 6) -> Iterator[str]:
    """The cells that deviate most, in units of their standard error."""
    total = finding.last.total
    expected = total * finding.law
    error = (expected * (1 - finding.law)).sqrt().clamp(min=0.5)
    deviation = (finding.counts - expected) / error
    yield f"  {'value':>16}  {'expected':>9}  {'observed':>9}  {'deviation':>9}"
    for i in deviation.abs().argsort(descending=True, stable=True)[:rows].tolist():
        if deviation[i] == 0:
            continue
        share = finding.counts[i] / total
        line = f"  {cell_label(finding.labels[i]):>16}  {finding.law[i]:9.4f}  {share:9.4f}"
        never = f"  never seen, expected {expected[i]:.0f} times" if share == 0 else ""
        yield f"{line}  {deviation[i]:+7.1f} s{never}"


def cell_label(label: Any) -> str:
    """A cell in words: a number, or the tokens that are emitted."""
    return "malformed" if label == () else str(label).strip("(,)")


class Watch:
    """One kind of request, watched until its outcomes speak for or against their law."""

    def __init__(
        self,
        verdict: Verdict,
        case: str,
        kind: str,
        aspects: list[Aspect],
        *,
        is_decided: bool = False,
    ) -> None:
        """Add a finding for each aspect to the verdict.

        Args:
            verdict: what the watching leads to.
            case: of the findings.
            kind: of the findings.
            aspects: what to look at; the last one is the whole outcome.
            is_decided: whether it need not speak for the law.
        """
        self._verdict, self._aspects, self.is_decided = verdict, aspects, is_decided
        self._test = SequentialTest(
            aspects, needed=verdict.needed, bias=verdict.bias, miss=1 - verdict.power
        )
        self._findings = [Finding(case, kind, p.name, p.labels, p.law) for p in aspects]
        verdict.findings += self._findings

    def look(self, outcomes: Tensor) -> None:
        """Note what was counted so far, and whether that decides it."""
        evidence = self._test.evidence(outcomes)
        for found, aspect, log_e in zip(
            self._findings, self._aspects, evidence.tolist(), strict=True
        ):
            found.look(aspect.counts(outcomes), log_e)
        if bool(self._test.failed(evidence)):
            self._verdict.lossless = False
        elif not self.is_decided:
            self.is_decided = bool(self._test.passed(outcomes))


class NotLossless(AssertionError):
    """A sampler whose output does not follow the target; ``verdict`` holds the evidence."""

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(str(verdict))
        self.verdict = verdict
