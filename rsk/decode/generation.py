"""What decoding returns: texts, where each token came from, what was judged, the time it took."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from rsk.decode.loading import LoadedPair

ACCEPTED, RECOVERED, BONUS = "accepted", "recovered", "bonus"
"""Where a token came from: the draft; the residual, in place of a rejected draft token; the target
alone, after every draft token was accepted (or where there was none)."""


class Emission(NamedTuple):
    """What one step added to one request."""

    request: int
    """Index of the request in ``prompts``."""
    tokens: list[int]
    """The new token ids, at least one."""
    origins: list[str]
    """For each token "accepted", "recovered" or "bonus"."""


@dataclass
class Generation:
    """What :func:`rsk.decode.loop.speculative_generate` returns; lists have an entry per prompt."""

    texts: list[str]
    """New text, without the prompt; empty strings when there was no tokenizer."""
    tokens: list[list[int]]
    """New token ids, a stop token included."""
    origins: list[list[str]]
    """For each token "accepted", "recovered" or "bonus"."""
    tried: list[int]
    """By draft position: how many draft tokens the sampler came to judge."""
    accepted: list[int]
    """By draft position: how many of those it accepted."""
    target_passes: int
    """Passes of the target over the batch, without the one that reads the prompts."""
    request_passes: int
    """The same, counted once for each request that took part."""
    spec_lens: list[int]
    """K of each pass, which "auto" chooses."""
    seconds: dict[str, float]
    """Wall time of "draft" and "target" (passes), "sampler" (from logits to tokens) and "rest" (the
    loop itself, tokenization). Time inside ``on_emit`` is not counted."""

    @property
    def text(self) -> str:
        """The text of a single prompt."""
        if len(self.texts) != 1:
            raise ValueError(f"text is for one prompt, this is a batch of {len(self.texts)}")
        return self.texts[0]

    @property
    def acceptance_by_position(self) -> list[float]:
        """Share accepted of the draft tokens that were judged, by position; NaN where none was."""
        return [a / t if t else math.nan for a, t in zip(self.accepted, self.tried, strict=True)]

    @property
    def acceptance_rate(self) -> float:
        """Share accepted of all draft tokens that were judged; NaN without any.

        Tokens behind a rejection are never judged, so this estimates the probability that one
        draft token is accepted: the rate in (1 - a^(K+1)) / (1 - a).
        """
        return sum(self.accepted) / sum(self.tried) if sum(self.tried) else math.nan

    @property
    def tokens_per_target_pass(self) -> float:
        """New tokens of one request per pass of the target; 1 without speculation."""
        return sum(map(len, self.tokens)) / self.request_passes

    @property
    def total_seconds(self) -> float:
        """Wall time of the whole call without ``on_emit``."""
        return sum(self.seconds.values())

    @property
    def tokens_per_second(self) -> float:
        """New tokens of all requests per second of wall time, reading the prompts included."""
        return sum(map(len, self.tokens)) / self.total_seconds


def token_runs(generation: Generation, prompt: str, pair: LoadedPair) -> list[tuple[str, str]]:
    """The text of one prompt in pieces with their kinds, for :func:`rsk.course.publish.tokens`."""
    from tokenizers.decoders import DecodeStream

    tokenizer = pair.tokenizer
    # Several tokens may make one character; the stream waits for the last of them.
    stream = DecodeStream(ids=list(tokenizer(prompt).input_ids), skip_special_tokens=True)
    pieces = [(prompt, "prompt")]
    for token, origin in zip(generation.tokens[0], generation.origins[0], strict=True):
        if text := stream.step(tokenizer.backend_tokenizer, token):
            pieces.append((text, origin))
    return [
        ("".join(text for text, _ in run), kind)
        for kind, run in (
            (kind, list(run)) for kind, run in groupby(pieces, lambda piece: piece[1])
        )
    ]
