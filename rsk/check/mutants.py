"""Wrong samplers, each by one step: bugs that have been shipped, to try checks on.

:class:`Correct` is the rule of :func:`rsk.rejection_sample`, cut into steps. A mutant overrides one
step, so the override is the bug::

    rsk.check.assert_lossless(rsk.check.mutants.MUTANTS["residual_argmax"])  # raises, and says why
"""

# ruff: noqa: D102 - what an override is for is said where the step is defined

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from rsk.sampler.api import RejectionSamples
from rsk.sampler.arguments import check_request
from rsk.sampler.random_words import COIN, DRAFT, SAMPLE, coins, per_request, words
from rsk.sampler.vectorized import extreme, scale_62

UNIT = 2.0**42
"""Fixed point: a weight of 1."""


class Exhibit:
    """What the gallery tells of a sampler."""

    name: ClassVar[str]
    seen: ClassVar[str] = ""
    """Where such a bug was found."""
    caught_by: ClassVar[str] = ""
    """The check in :mod:`rsk.check` that names the fault."""
    verdict: ClassVar[str] = ""
    """What its message says."""

    @property
    def description(self) -> str:
        """What is wrong, in a line."""
        return (type(self).__doc__ or "").splitlines()[0]


class Correct(Exhibit):
    """The rule of speculative sampling, step by step: the same tokens as every backend."""

    name = "correct"

    @torch.no_grad()
    def __call__(
        self,
        draft_tokens: Tensor,
        draft_probs: Tensor | None,
        target_probs: Tensor,
        *,
        seed: int | Tensor | None = None,
        position: int | Tensor = 0,
    ) -> RejectionSamples:
        """Decide which draft tokens to keep. Arguments as in :func:`rsk.rejection_sample`."""
        seed, position = check_request(draft_tokens, draft_probs, target_probs, seed, position)
        (batch_size, spec_len), vocab_size = draft_tokens.shape, target_probs.shape[2]
        device = draft_tokens.device
        seeds = self.seeds(per_request(seed, batch_size, device, step=1))
        column = torch.arange(spec_len + 1, device=device)
        t = per_request(position, batch_size, device, step=0)[:, None] + column

        # One column more than the draft has, as if it ended with -1.
        drafts = F.pad(draft_tokens.long(), (0, 1), value=-1)
        in_vocab = (drafts >= 0) & (drafts < vocab_size)
        index = torch.where(in_vocab, drafts, 0)
        p = target_probs.gather(2, index[:, :, None]).squeeze(2).double()
        q = torch.ones_like(p)
        if draft_probs is not None and spec_len:
            q[:, :-1] = draft_probs.gather(2, index[:, :-1, None]).squeeze(2).double()
        readable = in_vocab & p.isfinite() & q.isfinite()
        accepted = readable & self.accept(self.coins(seeds, t), p, q)
        n = accepted.long().cumprod(1).sum(1)

        request = torch.arange(batch_size, device=device)
        ended = drafts[request, n] == -1
        rejected = ~ended & readable[request, n]
        p_row = target_probs[request, n].float()
        q_row = torch.zeros_like(p_row)
        if draft_probs is not None and spec_len:
            q_row = draft_probs[request, n.clamp(max=spec_len - 1)].float()
        elif draft_probs is None:
            q_row[request, index[request, n]] = 1
        random_words = self.words(seeds, t[request, n])
        token = self.bonus_token(p_row, q_row, random_words)
        if bool(rejected.any()):
            recovered = self.recovered_token(p_row, q_row, random_words)
            token = torch.where(rejected, recovered, token)
        finite = extreme(p_row).isfinite() & (~rejected | extreme(q_row).isfinite())
        drawable = has_weight(p_row) | (rejected & has_weight(p_row - q_row))
        valid = self.valid(finite & (ended | rejected) & drawable)

        tokens = torch.where(column < n[:, None], drafts, -1)
        tokens = torch.where(column == n[:, None], token[:, None], tokens)
        tokens = torch.where(valid[:, None], tokens, -1)
        n = torch.where(valid, n, -1)
        return RejectionSamples(self.write(tokens, n), n)

    # --- random numbers

    def seeds(self, seeds: Tensor) -> Tensor:
        """The seed of each request [B]."""
        return seeds

    def coins(self, seeds: Tensor, t: Tensor) -> Tensor:
        """The coin of each position t [B, K+1], in [0, 1)."""
        return coins(seeds[:, None], t)

    def words(self, seeds: Tensor, t: Tensor) -> Tensor:
        """The random word that the last token is drawn with, at positions t [B]."""
        return words(seeds, t, SAMPLE)

    # --- accept or reject

    def accept(self, u: Tensor, p: Tensor, q: Tensor) -> Tensor:
        """Whether to accept draft tokens of these probabilities, given the coins u."""
        return u * q < p

    # --- draw the last token; rows are float32 [B, V]

    def recovered_token(self, p: Tensor, q: Tensor, random_words: Tensor) -> Tensor:
        """The token that replaces a rejected one."""
        residual = p - q
        usable = has_weight(residual)  # else p and q are equal
        return self.draw(torch.where(usable[:, None], residual, p), random_words)

    def bonus_token(self, p: Tensor, q: Tensor, random_words: Tensor) -> Tensor:
        """The token after a draft that was accepted as a whole."""
        return self.draw(p, random_words)

    def draw(self, weights: Tensor, random_words: Tensor) -> Tensor:
        """The first token whose running sum of weights exceeds the threshold."""
        sums = self.running_sum(weights)
        threshold = self.threshold(random_words, sums[:, -1].long()).to(sums.dtype)
        token = torch.searchsorted(sums, threshold[:, None], right=True).squeeze(1)
        return token.clamp(max=weights.shape[1] - 1)

    def running_sum(self, weights: Tensor) -> Tensor:
        """Running sums of the positive weights [B, V] in fixed point."""
        return (weights.clamp(0, 1) * UNIT).long().cumsum(1)

    def threshold(self, random_words: Tensor, total: Tensor) -> Tensor:
        """A uniform number in [0, total)."""
        return scale_62((random_words >> 2) & ((1 << 62) - 1), total)

    # --- write the result

    def valid(self, valid: Tensor) -> Tensor:
        """Which requests [B] to give tokens to; the others are marked with -1."""
        return valid

    def write(self, tokens: Tensor, n: Tensor) -> Tensor:
        """Put the tokens [B, K+1] where the caller gets them; n [B] are accepted."""
        return tokens


def has_weight(rows: Tensor) -> Tensor:
    """Whether each row [B, V] has a weight to draw from that is not 0 in fixed point."""
    return rows.amax(1) * UNIT >= 1


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
