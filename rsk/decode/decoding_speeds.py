"""The record of where speculation pays, and by how much; :mod:`rsk.decode.speed` makes one.

``data/decoding/smollm2`` holds recorded :class:`DecodingSpeeds`; a file with a missing, unknown or
impossible field is refused with that field's name.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from rsk.base.folders import data_dir
from rsk.base.numbers import Span, span
from rsk.decode.loading import NGRAM
from rsk.decode.speculation_length import AUTO, expected_tokens
from rsk.measure.record_files import (
    RecordError,
    RecordFile,
    at_least,
    check_schema,
    one_of,
    positive,
)
from rsk.measure.records import Provenance

SCHEMA = "rsk-decoding-speeds/1"
PLAIN, MODEL, BOTH = "none", "model", "both"
DRAFTS = (PLAIN, NGRAM, MODEL, BOTH)
MEASURED = 0
"""In place of K: chosen by measuring, see :mod:`rsk.decode.speculation_length`."""


@dataclass(frozen=True, kw_only=True)
class TimedText:
    """One prompt, continued in one way."""

    kind: str
    prompt: int
    """Which of its kind."""
    temperature: float
    draft: str
    """One of ``DRAFTS``; "both" is lookup where it finds something, else the model."""
    spec_len: int
    """K; 0 for one that was chosen by measuring, 1 without a draft."""
    seconds: float
    """Median over the rounds, of the whole text, its prompt's reading included."""
    parts: dict[str, float]
    """Of draft, target, sampler and rest, means over the rounds."""
    tokens: int
    passes: int
    """Of the target."""
    judged: int
    accepted: int

    def __post_init__(self) -> None:
        one_of("draft", self.draft, DRAFTS)
        positive("seconds", self.seconds)
        at_least("tokens", self.tokens, 1)
        at_least("judged", self.judged, self.accepted)


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Tokens in a row that came from one place."""

    text: str
    kind: str
    """"prompt", or where tokens come from (:mod:`rsk.decode.generation`)."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A text to look at, with where its tokens came from."""

    temperature: float
    spec_len: int
    tokens: int
    passes: int
    pieces: tuple[Piece, ...]

    @property
    def runs(self) -> list[tuple[str, str]]:
        """For :func:`rsk.course.publish.tokens`."""
        return [(piece.text, piece.kind) for piece in self.pieces]


@dataclass(frozen=True, kw_only=True)
class Greedy:
    """Greedy texts with the draft beside the target's own, in float32."""

    tokens: int
    """Compared, and the same."""
    near_ties: tuple[float, ...]
    """Where two texts part: between the two best logits, below the rounding of their sums."""


@dataclass(frozen=True, kw_only=True)
class DecodingSpeeds(RecordFile):
    """What one run of this module found on one machine."""

    SCHEMA = SCHEMA
    schema: str
    provenance: Provenance
    conditions: str
    """What else ran on the machine, in words."""
    target: str
    target_parameters: int
    draft_parameters: int
    dtype: str
    """Of the target in all of ``texts``."""
    plain_seconds: dict[str, float]
    """By the target's dtype, seconds a token of plain decoding."""
    new_tokens: int
    """At most, of a text."""
    rounds: int
    greedy: Greedy
    sample: Sample | None
    texts: tuple[TimedText, ...]

    def __post_init__(self) -> None:
        check_schema(self.schema, SCHEMA)

    @property
    def temperatures(self) -> list[float]:
        """In the order of measuring."""
        return list(dict.fromkeys(text.temperature for text in self.texts))

    @property
    def prompts(self) -> int:
        """How many were continued."""
        return len({(text.kind, text.prompt) for text in self.texts})

    def of(self, temperature: float, draft: str, spec_len: int) -> list[TimedText]:
        """The texts of one way.

        Plain decoding makes the same passes at any temperature. So that it is a rival at its best,
        each prompt's faster text stands for all of them.
        """
        if draft == PLAIN:
            by_prompt: dict[tuple[str, int], list[TimedText]] = {}
            for text in self.texts:
                if text.draft == PLAIN:
                    by_prompt.setdefault((text.kind, text.prompt), []).append(text)
            return [min(some, key=lambda t: t.seconds / t.tokens) for some in by_prompt.values()]
        wanted = (temperature, draft, spec_len)
        return [t for t in self.texts if (t.temperature, t.draft, t.spec_len) == wanted]

    def ways(self, temperature: float) -> list[tuple[str, int]]:
        """Drafts and K that were timed at a temperature, plain decoding first."""
        return list(dict.fromkeys(
            (t.draft, t.spec_len) for t in self.texts if t.temperature == temperature
        ))  # fmt: skip

    def speed_ups(self, temperature: float, draft: str, spec_len: int) -> list[float]:
        """Of each prompt: tokens a second over those of plain decoding."""
        plain = {(t.kind, t.prompt): t for t in self.of(temperature, PLAIN, 1)}
        return [
            (t.tokens / t.seconds) / (rival.tokens / rival.seconds)
            for t in self.of(temperature, draft, spec_len)
            for rival in [plain[t.kind, t.prompt]]
        ]

    def speed_up(self, temperature: float, draft: str, spec_len: int) -> float:
        """Geometric mean over the prompts."""
        return statistics.geometric_mean(self.speed_ups(temperature, draft, spec_len))

    def contenders(
        self, temperature: float, drafts: Sequence[str] = (MODEL, BOTH)
    ) -> list[tuple[str, int]]:
        """The ways with one of these drafts and a fixed K."""
        return [w for w in self.ways(temperature) if w[0] in drafts and w[1] != MEASURED]

    def best(self, temperature: float, drafts: Sequence[str] = (MODEL, BOTH)) -> tuple[str, int]:
        """The fastest of them; it is chosen after measuring, so say of how many."""
        ways = self.contenders(temperature, drafts)
        return max(ways, key=lambda way: self.speed_up(temperature, *way))

    def losing(self, temperature: float) -> list[tuple[str, int]]:
        """The ways with a draft that are slower than plain decoding on some prompt."""
        return [way for way in self.ways(temperature) if min(self.speed_ups(temperature, *way)) < 1]

    def acceptance(self, temperature: float, draft: str, spec_len: int) -> float:
        """Share accepted of what was judged."""
        texts = self.of(temperature, draft, spec_len)
        judged = sum(text.judged for text in texts)
        return sum(text.accepted for text in texts) / judged if judged else math.nan

    def tokens_per_pass(self, temperature: float, draft: str, spec_len: int) -> float:
        """New tokens per pass of the target."""
        texts = self.of(temperature, draft, spec_len)
        return sum(text.tokens for text in texts) / sum(text.passes for text in texts)

    @property
    def formula_error(self) -> Span:
        """The least and the most of :meth:`formula_errors` with the model alone."""
        return span(self.formula_errors())

    @property
    def pass_spread(self) -> float:
        """By how much a target's pass of one way takes longer at one temperature than at another.

        The most of all ways that were timed at several; 0 if none was.
        """
        spread = 0.0
        for way in {way for t in self.temperatures for way in self.ways(t) if way[0] != PLAIN}:
            at = [t for t in self.temperatures if way in self.ways(t)]
            times = [self.target_pass(t, *way) for t in at]
            spread = max(spread, max(times) / min(times) - 1)
        return spread

    def formula_errors(self, draft: str = MODEL) -> list[float]:
        """By how much the formula promises more tokens per pass than were counted, as a share.

        Of each temperature and fixed K; the formula is that of
        :func:`rsk.decode.speculation_length.expected_tokens`.
        """
        ways = [(t, way) for t in self.temperatures for way in self.ways(t)]
        return [
            expected_tokens(self.acceptance(t, *way), way[1]) / self.tokens_per_pass(t, *way) - 1
            for t, way in ways
            if way[0] == draft and way[1] != MEASURED
        ]

    def target_pass(self, temperature: float, draft: str, spec_len: int) -> float:
        """Seconds of a pass of the target, the one that reads the prompt among them."""
        texts = self.of(temperature, draft, spec_len)
        seconds = sum(text.parts["target"] for text in texts)
        return seconds / sum(text.passes + 1 for text in texts)

    @property
    def weight_rate(self) -> float:
        """Bytes a second at which plain greedy decoding reads the target's weights."""
        size = 4 if self.dtype == "float32" else 2
        return size * self.target_parameters / self.target_pass(0.0, PLAIN, 1)

    def draft_cost(self, temperature: float, spec_len: int) -> float:
        """Seconds to draft a token with the model, over those of a target's pass over one."""
        texts = self.of(temperature, MODEL, spec_len)
        seconds = sum(t.parts["draft"] for t in texts) / sum(t.passes * spec_len for t in texts)
        return seconds / self.target_pass(temperature, PLAIN, 1)

    def verify_cost(self, temperature: float, spec_len: int) -> float:
        """Seconds of a target's pass over K + 1 tokens, over those of one over one."""
        verifying = self.target_pass(temperature, MODEL, spec_len)
        return verifying / self.target_pass(temperature, PLAIN, 1)

    def seconds_per_token(self, temperature: float, draft: str, spec_len: int) -> float:
        """Geometric mean over the prompts: plain decoding's over this is :meth:`speed_up`."""
        texts = self.of(temperature, draft, spec_len)
        return statistics.geometric_mean(text.seconds / text.tokens for text in texts)


def recorded(target: str = "smollm2") -> list[DecodingSpeeds]:
    """What is recorded of a public model, the newest of each device, a GPU first.

    Raises:
        RecordError: nothing is, or a file is damaged.
    """
    folder = data_dir() / "decoding" / target
    found = sorted(map(DecodingSpeeds.load, folder.glob("*.json")), key=lambda s: s.provenance.date)
    by_device = {speeds.provenance.device: speeds for speeds in found}
    if not by_device:
        raise RecordError(f"data/decoding/{target}: expected a record, found none")
    return [by_device[device] for device in ("cuda", "cpu") if device in by_device]


def table(speeds: DecodingSpeeds) -> str:
    """One line a way: acceptance, tokens a pass, time a token, speed-up and its range."""
    lines = []
    for temperature in speeds.temperatures:
        for way in speeds.ways(temperature):
            ratios = speeds.speed_ups(temperature, *way)
            texts = speeds.of(temperature, *way)
            seconds = sum(sum(text.parts.values()) for text in texts)
            parts = {name: sum(text.parts[name] for text in texts) / seconds
                     for name in texts[0].parts}  # fmt: skip
            lines.append(
                f"{temperature:3g}  {way[0]:5} K={way[1] or AUTO!s:4}  "
                f"accepted {speeds.acceptance(temperature, *way):.3f}  "
                f"{speeds.tokens_per_pass(temperature, *way):.2f} tokens a pass  "
                f"{speeds.seconds_per_token(temperature, *way) * 1e3:.2f} ms a token  "
                f"speed-up {speeds.speed_up(temperature, *way):.2f} "
                f"({min(ratios):.2f} to {max(ratios):.2f})  "
                + " ".join(f"{name} {share:.0%}" for name, share in parts.items())
            )
    return "\n".join(lines)
