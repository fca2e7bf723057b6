"""Wrong samplers from logits, each by one step, as in :mod:`rsk.check.mutants`.

:class:`CorrectFromLogits` is the rule of :func:`rsk.rejection_sample_from_logits`, cut into steps::

    rsk.check.assert_lossless(LOGIT_MUTANTS["top_p_before_top_k"], from_logits=True)  # raises
"""

# ruff: noqa: D102 - what an override is for is said where the step is defined

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rsk.check.specimen import Specimen
from rsk.sampler.api import RejectionSamples, rejection_sample
from rsk.sampler.row_law import HOTTEST, LOG2_E, UNIT, fixed_point, relative_weight


class CorrectFromLogits(Specimen):
    """The rule from logits, step by step: the same tokens as every backend.

    Rows have three dimensions, [B, n, V]; so have their filters, [B, 1, 1].
    """

    name = "correct_from_logits"

    @torch.no_grad()
    def __call__(
        self,
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
    ) -> RejectionSamples:
        """Decide which draft tokens to keep, as :func:`rsk.rejection_sample_from_logits` does."""

        def column(value: float | Tensor, dtype: torch.dtype) -> Tensor:
            each = torch.as_tensor(value, dtype=dtype, device=target_logits.device)
            return each.expand(len(target_logits))[:, None, None]

        shares = (column(value, torch.float32) for value in (top_p, min_p))
        filters = column(temperature, torch.float32), column(top_k, torch.int64), *shares
        draft = None if draft_logits is None else self.draft_probs(draft_logits, *filters)
        target = self.probabilities(target_logits, *filters)
        return rejection_sample(draft_tokens, draft, target, seed=seed, position=position)

    # --- the probabilities that a row stands for

    def draft_probs(
        self, logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor
    ) -> Tensor:
        """The distributions that the draft tokens are judged by."""
        return self.probabilities(logits, temperature, top_k, top_p, min_p)

    def probabilities(
        self, logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor
    ) -> Tensor:
        """Probabilities of logits in any dtype."""
        x = logits.float()
        valid = self.valid(x) & in_range(temperature, top_k, top_p, min_p)
        maximum = x.amax(-1, keepdim=True)
        e = relative_weight(x, maximum, (LOG2_E / temperature.double()).float())
        kept = self.keep(x, fixed_point(e), top_k, top_p) & (e >= min_p)
        p = torch.where(kept, self.normalize(e, kept), 0.0)
        greedy = F.one_hot(x.argmax(-1), x.shape[-1]).float()
        p = torch.where(temperature == 0, greedy, p)
        return torch.where(valid, p, math.nan)

    def valid(self, x: Tensor) -> Tensor:
        """Which rows can be sampled from, [B, n, 1]."""
        return x.amax(-1, keepdim=True).isfinite()

    def keep(self, x: Tensor, weights: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
        """Which tokens top-k keeps, and of these top-p; weights are integers."""
        kept = self.top_k(x, top_k)
        return kept & self.top_p(x, weights.masked_fill(~kept, 0), top_p)

    def top_k(self, x: Tensor, k: Tensor) -> Tensor:
        """Which tokens are among the k with the largest logits, ties included."""
        values = x.sort(-1, descending=True).values
        on = (k > 0) & (k < x.shape[-1])
        last = torch.where(on, k - 1, 0).expand(*x.shape[:-1], 1)
        return ~on | (x >= values.gather(-1, last))

    def top_p(self, x: Tensor, weights: Tensor, p: Tensor) -> Tensor:
        """Which tokens are among the largest that together have the share p, ties included."""
        values, order = x.sort(-1, descending=True)
        sums = self.running_sums(weights.gather(-1, order))
        last = self.last_of_nucleus(sums, p).clamp(max=x.shape[-1] - 1)
        return (p >= 1) | (x >= values.gather(-1, last))

    def running_sums(self, weights: Tensor) -> Tensor:
        """Running sums of integer weights."""
        return weights.cumsum(-1)

    def last_of_nucleus(self, sums: Tensor, p: Tensor) -> Tensor:
        """Index of the token with which the running sum reaches the share p of the total."""
        mass = (p.double() * sums[..., -1:].double()).ceil().clamp(min=1)
        return torch.searchsorted(sums, mass.to(sums.dtype))

    def normalize(self, e: Tensor, kept: Tensor) -> Tensor:
        """Probabilities of those that are kept, given their relative weights."""
        total = fixed_point(e).masked_fill(~kept, 0).sum(-1, keepdim=True)
        return e * (UNIT / total.double()).float()


def in_range(temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor) -> Tensor:
    """Whether the filters of each request are what they may be."""
    fine = (temperature == 0) | (temperature >= 1 / HOTTEST) & (temperature <= HOTTEST)
    fine &= (top_k >= 0) & (top_p >= 0) & (top_p <= 1) & (min_p >= 0) & (min_p <= 1)
    return fine


# --- filters --------------------------------------------------------------------------------------


class TopPBeforeTopK(CorrectFromLogits):
    """Top-p is applied to all tokens, and top-k to what it has left."""

    name = "top_p_before_top_k"
    seen = "samplers that sort once and take both thresholds from the same running sum"
    caught_by = "assert_lossless"
    verdict = "top-k 3, then top-p"

    def keep(self, x: Tensor, weights: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
        return self.top_p(x, weights, top_p) & self.top_k(x, top_k)


class TiesCut(CorrectFromLogits):
    """Of tokens that tie at the end of the top k, those stay that the sort happens to put first."""

    name = "ties_cut"
    seen = "samplers that keep the first k entries of a sorted row"
    caught_by = "assert_lossless"
    verdict = "tie"

    def top_k(self, x: Tensor, k: Tensor) -> Tensor:
        rank = x.sort(dim=-1, descending=True, stable=True).indices.argsort(-1)
        return (k <= 0) | (rank < k)


class CrossingTokenDropped(CorrectFromLogits):
    """Top-p leaves out the token with which the running sum reaches the share."""

    name = "crossing_token_dropped"
    seen = "masks of the form cumsum > p, not moved by one"
    caught_by = "assert_lossless"
    verdict = "top-p"

    def last_of_nucleus(self, sums: Tensor, p: Tensor) -> Tensor:
        return (super().last_of_nucleus(sums, p) - 1).clamp(min=0)


class FloatSums(CorrectFromLogits):
    """The running sums of top-p are float32: in a long tail nothing is added any more."""

    name = "float_sums"
    seen = "softmax, cumsum and a comparison, in float32 over a vocabulary of 128256 words"
    caught_by = "assert_agrees"
    verdict = "not the baseline's tokens"

    def running_sums(self, weights: Tensor) -> Tensor:
        e = weights.cpu().numpy() / UNIT
        return torch.from_numpy(e.cumsum(-1, dtype="float32")).to(weights.device) * UNIT


# --- one side is not treated as the other ---------------------------------------------------------


class TemperatureOnOneSide(CorrectFromLogits):
    """The draft is judged by its distribution at temperature 1, whatever it was drawn at."""

    name = "temperature_on_one_side"
    seen = "draft models that hand over their logits before the temperature"
    caught_by = "assert_lossless"
    verdict = "filters, (all|temperature)"

    def draft_probs(self, logits: Tensor, temperature: Tensor, *filters: Any) -> Tensor:
        return super().draft_probs(logits, torch.ones_like(temperature), *filters)


class DraftUnfiltered(CorrectFromLogits):
    """A draft drawn from filtered logits is judged by the distribution without filters."""

    name = "draft_unfiltered"
    seen = "engines that filter while they draft and verify with the plain softmax"
    caught_by = "assert_lossless"
    verdict = "top-k|top-p|min-p"

    def draft_probs(self, logits: Tensor, temperature: Tensor, *filters: Any) -> Tensor:
        top_k, top_p, min_p = map(torch.zeros_like, filters)
        return super().draft_probs(logits, temperature, top_k, top_p + 1, min_p)


# --- numbers --------------------------------------------------------------------------------------


class SoftmaxIn16Bits(CorrectFromLogits):
    """Probabilities are rounded to the bfloat16 of the model's logits."""

    name = "softmax_in_16_bits"
    seen = "softmax called on a model's output as it comes"
    caught_by = "assert_agrees"
    verdict = "not the baseline's tokens"

    def normalize(self, e: Tensor, kept: Tensor) -> Tensor:
        return super().normalize(e, kept).bfloat16().float()


class RuledOutRowPasses(CorrectFromLogits):
    """A row in which every token is masked is treated as if all its logits were equal."""

    name = "ruled_out_row_passes"
    seen = "masks of -infinity replaced by a large negative number, which softmax forgives"
    caught_by = "assert_well_formed"
    verdict = "expected num_accepted -1"

    def probabilities(self, logits: Tensor, *filters: Any) -> Tensor:
        lowest = torch.finfo(logits.dtype).min
        return super().probabilities(logits.masked_fill(logits == -math.inf, lowest), *filters)


LOGIT_MUTANTS: Mapping[str, CorrectFromLogits] = MappingProxyType(
    {
        mutant.name: mutant
        for mutant in (
            TopPBeforeTopK(),
            TiesCut(),
            CrossingTokenDropped(),
            FloatSums(),
            TemperatureOnOneSide(),
            DraftUnfiltered(),
            SoftmaxIn16Bits(),
            RuledOutRowPasses(),
        )
    }
)
"""Name to sampler; each is called as :func:`rsk.rejection_sample_from_logits` is."""
