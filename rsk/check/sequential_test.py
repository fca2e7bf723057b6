"""The statistics: a sequential test whose two error rates are what it says they are.

Evidence against the law. For counts n of N independent outcomes with law p, the Dirichlet mixture

    e = E[prod_i (a_i / p_i)^n_i]  with  a ~ Dirichlet(c p)

is a likelihood ratio: of "some other law near p" to p. If the law is p, e is a martingale that
starts at 1, so by Ville's inequality it ever exceeds 1/level with probability at most ``level``,
however often one looks and whenever one stops. This is exact for any counts, small cells included.
ln e is about half the G statistic, less a price for the freedom of choosing a.

Evidence for the law. G = 2 N KL(counts / N || p) is close to a noncentral chi-squared with
noncentrality 2 N KL(a || p) if the law is a; by Pinsker's inequality that is at least 4 N d^2 for
an a at total variation distance d from p, whatever its shape. Birgé's inequality bounds its lower
tail: P(G <= D + m - 2 sqrt((D + 2 m) x)) <= exp(-x) for D degrees of freedom and noncentrality m.
A G below that rules d out.

Sources: Ville 1939; Robbins, "Statistical methods related to the law of the iterated logarithm",
1970; Birgé, "An alternative point of view on Lepski's method", 2001, lemma 8.1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from rsk.check.cases import Aspect

SCALES = (1, 4, 16)
"""Biases that the mixture is tuned to, in units of the smallest one."""

MIN_EXPECTED = 5
"""Cells expected less often than this are merged for G, not for e. What moves among merged cells
alone G does not see, so their share is taken off the bias (:func:`hidden_by_merging`)."""

FIRST_LOOK = 256
"""After how many outcomes to look for the first time."""


def log_evidence(counts: Tensor, law: Tensor, bias: float) -> Tensor:
    """Ln e: how much better than ``law`` another law near it explains the counts.

    Args:
        counts: float64 [..., cells].
        law: float64 [cells], sums to 1.
        bias: total variation distance that the mixture is tuned to, with multiples of it.

    Returns:
        float64 [...]; infinite if something of probability 0 was seen.
    """
    possible = law > 0
    n, p = counts[..., possible], law[possible]
    total = n.sum(-1)
    freedom = max(len(p) - 1, 1)
    mixtures = []
    for scale in SCALES:
        # With this concentration, a typical a is at the distance at which it is best detected.
        c = torch.tensor(freedom / (2 * bias * scale) ** 2, dtype=torch.float64)
        rising = (torch.lgamma(n + c * p) - torch.lgamma(c * p)).sum(-1)
        mixtures.append(rising - (torch.lgamma(total + c) - torch.lgamma(c)))
    log_e = torch.stack(mixtures).logsumexp(0) - math.log(len(SCALES)) - (n * p.log()).sum(-1)
    return log_e.masked_fill((counts[..., ~possible] > 0).any(-1), math.inf)


def excludes(counts: Tensor, law: Tensor, bias: float, miss: float) -> Tensor:
    """Whether a bias of this size is ruled out: it would look so harmless with chance ``miss``.

    Args:
        counts: float64 [..., cells]; the total is the same in all of them.
        law: float64 [cells].
        bias: total variation distance.
        miss: the chance that a law at that distance is taken for this one.
    """
    g, freedom = g_statistic(counts, law)
    return g <= harmless_below(float(counts.sum(-1).max()), freedom, bias, miss)


def harmless_below(total: float, freedom: int, bias: float, miss: float) -> float:
    """G that a law at this distance falls below with a chance of at most ``miss``."""
    noncentrality = 4 * total * bias**2
    return (
        freedom + noncentrality - 2 * math.sqrt((freedom + 2 * noncentrality) * math.log(1 / miss))
    )


def g_statistic(counts: Tensor, law: Tensor) -> tuple[Tensor, int]:
    """G = 2 sum n ln(n / (N p)) and its degrees of freedom, small cells merged into one.

    Args:
        counts: float64 [..., cells]; the total is the same in all of them.
        law: float64 [cells].
    """
    total = float(counts.sum(-1).max())
    own = total * law >= MIN_EXPECTED
    n = torch.cat([counts[..., own], counts[..., ~own].sum(-1, keepdim=True)], -1)
    p = torch.cat([law[own], law[~own].sum(-1, keepdim=True)], -1)
    g = 2 * (torch.xlogy(n, n) - torch.xlogy(n, total * p)).sum(-1)
    return g, max(int((p > 0).sum()) - 1, 0)


def hidden_by_merging(law: Tensor, total: float) -> float:
    """The most of a law's total variation distance from this one that the merging of G hides.

    Where it gives more to some of the merged cells it takes from others: no more than they have.
    """
    merged = law[(law > 0) & (total * law < MIN_EXPECTED)]
    return float(merged.sum() - merged.min()) if len(merged) else 0.0


def total_variation(counts: Tensor, law: Tensor) -> Tensor:
    """Half the sum of |observed share - probability|: float64 [...]."""
    share = counts / counts.sum(-1, keepdim=True).clamp(min=1)
    return (share - law).abs().sum(-1) / 2


def noise_floor(law: Tensor, total: float) -> float:
    """The total variation distance to expect of ``total`` outcomes that do follow the law.

    A share's deviation is about normal with variance p (1 - p) / total.
    """
    return float((2 * law * (1 - law) / (math.pi * max(total, 1))).sqrt().sum() / 2)


class SequentialTest:
    """Watches the outcomes of one kind of request until they speak for or against their law.

    The counts may have leading dimensions: independent repetitions of the test, side by side.
    """

    def __init__(self, aspects: list[Aspect], *, needed: float, bias: float, miss: float) -> None:
        """Set up.

        Args:
            aspects: what to look at; the last one is the whole outcome.
            needed: natural logarithm of the evidence against the law that settles it.
            bias: total variation distance that must be ruled out.
            miss: the chance to miss it.
        """
        self._aspects = aspects
        self._needed = needed
        self._bias = bias
        self._miss = miss
        self._chances = 0

    def evidence(self, outcomes: Tensor) -> Tensor:
        """Ln e [..., aspects] of the counts [..., cells]."""
        aspects = self._aspects
        every = [
            log_evidence(aspect.counts(outcomes), aspect.law, self._bias) for aspect in aspects
        ]
        return torch.stack(every, -1)

    def failed(self, evidence: Tensor) -> Tensor:
        """Whether any aspect speaks against the law, given :meth:`evidence`."""
        return (evidence >= self._needed).any(-1)

    def passed(self, outcomes: Tensor) -> Tensor:
        """Whether the counts [..., cells] rule the bias out.

        Of the chance to miss it, the j-th look at which the answer may be yes spends 1/(j (j+1)).
        """
        whole = self._aspects[-1]
        counts = whole.counts(outcomes)
        total = float(counts.sum(-1).max())
        _, freedom = g_statistic(counts, whole.law)
        seen = self._bias - hidden_by_merging(whole.law, total)
        j = self._chances + 1
        miss = self._miss / (j * (j + 1))
        if seen <= 0 or harmless_below(total, freedom, seen, miss) < freedom:
            return torch.zeros(counts.shape[:-1], dtype=torch.bool)  # no chance yet: none spent
        self._chances = j
        return excludes(counts, whole.law, seen, miss)


def looks(freedom: int, bias: float, miss: float) -> Iterator[int]:
    """After how many outcomes of each kind to look.

    Doubling at first, to stop early; from where a correct sampler is likely to pass, more often.
    """
    enough = float(FIRST_LOOK)
    while harmless_below(enough, freedom, bias, miss / 2) < freedom + 2 * math.sqrt(2 * freedom):
        enough *= 1.05
    total = float(FIRST_LOOK)
    while 2 * total < enough:
        yield int(total)
        total *= 2
    while True:
        yield int(enough)
        enough *= 1.25
