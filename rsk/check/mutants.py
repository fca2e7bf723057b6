"""Wrong samplers, each by one step: bugs that have been shipped, to try checks on.

A mutant overrides one step of :class:`rsk.check.right_sampler.Correct`; the override is the bug::

    rsk.check.assert_lossless(rsk.check.mutants.MUTANTS["residual_argmax"])  # raises, and says why
"""

# ruff: noqa: D102 - what an override is for is said where the step is defined

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from rsk.check.right_sampler import Correct, has_weight
from rsk.sampler.random_words import COIN, DRAFT, coins, words
from rsk.sampler.row_law import UNIT

# --- the last token is not what it should be ----------------------------------------------------


class ResidualArgmax(Correct):
    """The recovered token is the most likely one of the residual, not a sample of it."""

    name = "residual_argmax"
    seen = "a CUDA kernel of one thread per sequence, for which argmax is the easy thing to do"
    caught_by = "assert_lossless"
    verdict = "the recovered token"

    def recovered_token(self, p: Tensor, q: Tensor, random_words: Tensor) -> Tensor:
        return (p - q).argmax(1)


class ResidualNotClamped(Correct):
    """Where q exceeds p the difference stays negative: the sum is about 0 and the search strays."""

    name = "residual_not_clamped"
    seen = "samplers that normalise p - q as it is"
    caught_by = "assert_lossless"
    verdict = "the recovered token"

    def running_sum(self, weights: Tensor) -> Tensor:
        return (weights * UNIT).long().cumsum(1)


class ResidualNotRenormalised(Correct):
    """The threshold lies in [0, 1) although the residual sums to less than 1."""

    name = "residual_not_renormalised"
    seen = "kernels that walk the residual with a number from [0, 1) and stop at the last token"
    caught_by = "assert_lossless"
    verdict = "the recovered token"

    def threshold(self, random_words: Tensor, total: Tensor) -> Tensor:
        return super().threshold(random_words, torch.full_like(total, 1 << 42))


class BonusMissing(Correct):
    """A draft that is accepted as a whole is followed by no further token."""

    name = "bonus_missing"
    seen = "a decoding loop written for drafts that are always rejected somewhere"
    caught_by = "assert_well_formed"
    verdict = "the bonus token is -1"

    def bonus_token(self, p: Tensor, q: Tensor, random_words: Tensor) -> Tensor:
        return torch.full_like(random_words, -1)


class BonusFromDraft(Correct):
    """The bonus token is drawn from the draft's last row, not from the target's next one."""

    name = "bonus_from_draft"
    seen = "a loop that samples its extra token from the model that it called last"
    caught_by = "assert_lossless"
    verdict = "the bonus token"

    def bonus_token(self, p: Tensor, q: Tensor, random_words: Tensor) -> Tensor:
        return self.draw(torch.where(has_weight(q)[:, None], q, p), random_words)


class FirstTokenUnreachable(Correct):
    """Token 0 is never drawn: token 1 comes out instead."""

    name = "first_token_unreachable"
    seen = "a search over prefix sums that is off by one at its lower end"
    caught_by = "assert_lossless"
    verdict = r"\n +0 +0\.\d+ +0\.0000 .*never seen"

    def draw(self, weights: Tensor, random_words: Tensor) -> Tensor:
        return super().draw(weights, random_words).clamp(min=min(1, weights.shape[1] - 1))


class LastTokenUnreachable(Correct):
    """The last token of the vocabulary is never drawn: the one before it comes out instead."""

    name = "last_token_unreachable"
    seen = "a loop over tiles of the vocabulary that drops the end of the last one"
    caught_by = "assert_lossless"
    verdict = r"\n +3 +0\.\d+ +0\.0000 .*never seen"

    def draw(self, weights: Tensor, random_words: Tensor) -> Tensor:
        return super().draw(weights, random_words).clamp(max=max(weights.shape[1] - 2, 0))


class FloatAccumulation(Correct):
    """Running sums in float32: next to a sum near 1, probabilities below 3e-8 add nothing."""

    name = "float_accumulation"
    seen = "kernels that scan a vocabulary of 128256 words in float32 from left to right"
    caught_by = "assert_lossless"
    verdict = r"long tail[\s\S]*\n +1 +0\.0037 +0\.0000 .*never seen"

    def running_sum(self, weights: Tensor) -> Tensor:
        sums = weights.clamp(0, 1).cpu().numpy().cumsum(1, dtype="float32")
        return torch.from_numpy(sums).to(weights.device) * UNIT


# --- random numbers used twice ------------------------------------------------------------------


class OneRandomNumber(Correct):
    """The coin that rejects a draft token also draws the token that replaces it."""

    name = "one_random_number"
    seen = "a kernel that draws one uniform number per request"
    caught_by = "assert_reproducible"
    verdict = "the coin of a position and the sample of the same position"

    def words(self, seeds: Tensor, t: Tensor) -> Tensor:
        return words(seeds, t, COIN)


class SeedResetAtEveryCoin(Correct):
    """The generator starts anew at every position, so that all coins of a request are one."""

    name = "seed_reset_at_every_coin"
    seen = "a loop that calls manual_seed or curand_init for each draft token"
    caught_by = "assert_reproducible"
    verdict = "the coin of a position and the coin of another position"

    def coins(self, seeds: Tensor, t: Tensor) -> Tensor:
        return coins(seeds[:, None], t[:, :1]).expand_as(t)


class DraftsRandomNumbers(Correct):
    """A rejected token and its replacement are drawn with the same random number."""

    name = "drafts_random_numbers"
    seen = "a draft and a target model whose generators are seeded alike"
    caught_by = "assert_reproducible"
    verdict = "the sample of a position and the draft of the same position"

    def words(self, seeds: Tensor, t: Tensor) -> Tensor:
        return words(seeds, t, DRAFT)


class DependsOnBatchSlot(Correct):
    """The random numbers of a request depend on where in the batch it stands."""

    name = "depends_on_batch_slot"
    seen = "kernels that use the block index as the generator's subsequence"
    caught_by = "assert_reproducible"
    verdict = "slot in the batch"

    def seeds(self, seeds: Tensor) -> Tensor:
        return seeds + torch.arange(len(seeds), device=seeds.device)


# --- the edges of the coin ----------------------------------------------------------------------


class CoinUpToOne(Correct):
    """Coins lie in (0, 1]: the largest one rejects a draft token although p = q."""

    name = "coin_up_to_one"
    seen = "CUDA's curand_uniform, whose range excludes 0 and includes 1"
    caught_by = "assert_lossless"
    verdict = "is rejected although p"

    def coins(self, seeds: Tensor, t: Tensor) -> Tensor:
        return super().coins(seeds, t) + 2.0**-29


class CoinLessOrEqual(Correct):
    """The coin is compared with <=, so that coin 0 accepts a token that the target rules out."""

    name = "coin_less_or_equal"
    seen = "the acceptance test of several inference engines, written u <= p / q"
    caught_by = "assert_lossless"
    verdict = "is accepted although its target probability is 0"

    def accept(self, u: Tensor, p: Tensor, q: Tensor) -> Tensor:
        return u * q <= p


# --- input and output ---------------------------------------------------------------------------


class NanFallsThrough(Correct):
    """A request whose probabilities are NaN gets a token as if nothing had happened."""

    name = "nan_falls_through"
    seen = "most samplers: no comparison with NaN is true, and a loop ends somewhere"
    caught_by = "assert_well_formed"
    verdict = "NaN"

    def valid(self, valid: Tensor) -> Tensor:
        return torch.ones_like(valid)


class StaleOutput(Correct):
    """The output memory is kept from call to call, and written only as far as tokens go."""

    name = "stale_output"
    seen = "kernels that write through a preallocated buffer, right whenever it happens to be clean"
    caught_by = "assert_well_formed"
    verdict = "was not written"

    def __init__(self) -> None:
        self._buffers: dict[tuple[torch.Size, torch.device], Tensor] = {}

    def write(self, tokens: Tensor, n: Tensor) -> Tensor:
        key = tokens.shape, tokens.device
        buffer = self._buffers.setdefault(key, torch.full_like(tokens, -1))
        written = torch.arange(tokens.shape[1], device=tokens.device) <= n[:, None]
        buffer[written] = tokens[written]
        return buffer


MUTANTS: Mapping[str, Correct] = MappingProxyType(
    {
        mutant.name: mutant
        for mutant in (
            ResidualArgmax(),
            ResidualNotClamped(),
            ResidualNotRenormalised(),
            OneRandomNumber(),
            SeedResetAtEveryCoin(),
            DraftsRandomNumbers(),
            BonusMissing(),
            BonusFromDraft(),
            FirstTokenUnreachable(),
            LastTokenUnreachable(),
            CoinUpToOne(),
            CoinLessOrEqual(),
            FloatAccumulation(),
            NanFallsThrough(),
            StaleOutput(),
            DependsOnBatchSlot(),
        )
    }
)
"""Name to sampler; each is called as :func:`rsk.rejection_sample` is, without ``backend``."""
