"""The right sampler cut into steps, each of which a mutant can get wrong."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from rsk.check.specimen import Specimen
from rsk.sampler.api import RejectionSamples
from rsk.sampler.arguments import check_request
from rsk.sampler.random_words import SAMPLE, coins, per_request, words
from rsk.sampler.row_law import UNIT
from rsk.sampler.vectorized import extreme, scale_62


class Correct(Specimen):
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
