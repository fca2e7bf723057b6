"""What is recorded of a pair of models: acceptance, tokens per target pass, time.

Notebook 07 measures a :class:`Study` and the report reads it back; :mod:`rsk.decode.trials` makes
one. Acceptance is counted over a batch of prompts, with its standard error over the prompts; time
is taken for one prompt at a time, plain and speculative decoding in turn, because a single user is
whom speculation is for.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from rsk.decode.speculation_length import expected_speed_up, expected_tokens
from rsk.measure.record_files import RecordFile
from rsk.measure.records import Provenance, RecordError, check_schema

SCHEMA = "rsk-decoding/2"
USUAL_SPEC_LEN = 4
USUAL_TEMPERATURE = 1.0
PARTS = ("draft", "target", "sampler", "rest")
TWO = 2.0
"""Standard errors within which two numbers are called the same."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One batch of prompts, decoded with one setting."""

    draft: str
    """ "model", "ngram" or "target" (the target drafts for itself)."""
    spec_len: int
    temperature: float
    backend: str
    prompts: int
    judged: int
    """Draft tokens that the sampler came to judge; as in all counts, steps that the end of the
    text shortened are left out."""
    acceptance: float
    """Share of the judged draft tokens that was accepted."""
    acceptance_error: float
    """Its standard error, from how the prompts differ."""
    steps: int
    """Steps of all requests together: each is one request's part in a pass of the target."""
    tokens_per_pass: float
    tokens_per_pass_error: float
    passes: int
    """Passes of the target over the batch, shortened steps included; what ``seconds`` is for."""
    seconds: dict[str, float]
    """Wall time of draft, target, sampler and rest, without the reading of the prompts."""

    def __post_init__(self) -> None:
        if not 0 <= self.acceptance <= 1:
            raise RecordError(f"acceptance: expected a rate in [0, 1], got {self.acceptance}")
        if not 1 <= self.tokens_per_pass <= self.spec_len + 1:
            raise RecordError(
                f"tokens_per_pass: expected 1 to {self.spec_len + 1}, got {self.tokens_per_pass}"
            )
        if set(self.seconds) != set(PARTS):
            raise RecordError(f"seconds: expected {', '.join(PARTS)}, got {self.seconds}")

    @property
    def expected(self) -> float:
        """Tokens per target pass that the acceptance rate makes one expect."""
        return expected_tokens(self.acceptance, self.spec_len)

    @property
    def sampler_share(self) -> float:
        """The sampler's part of the time."""
        return self.seconds["sampler"] / sum(self.seconds.values())

    @property
    def rest_share(self) -> float:
        """The part of the loop around models and sampler."""
        return self.seconds["rest"] / sum(self.seconds.values())

    @property
    def is_off(self) -> bool:
        """Whether the formula misses the tokens per pass by more than two standard errors."""
        return abs(self.tokens_per_pass - self.expected) > TWO * self.tokens_per_pass_error

    def is_like(self, other: Trial) -> bool:
        """Whether the acceptance rates differ by no more than two standard errors."""
        error = math.hypot(self.acceptance_error, other.acceptance_error)
        return abs(self.acceptance - other.acceptance) <= TWO * error


@dataclass(frozen=True, kw_only=True)
class Race:
    """One prompt at a time, several times, with one draft and length; 0 is plain decoding."""

    draft: str
    """As in :class:`Trial`, or "none"."""
    spec_len: int
    tokens: int
    """New tokens of one generation."""
    times_s: tuple[float, ...]
    """Of each round's generation, after its prompt was read; each round takes the next prompt."""
    acceptance: float | None
    passes: float
    """Passes of the target per generation, on average, without the one that reads the prompt."""
    draft_passes: float
    """The same of the draft."""
    seconds: dict[str, float]
    """Mean wall time of a generation by part, without the reading of the prompt."""

    def __post_init__(self) -> None:
        if not self.times_s or min(self.times_s) <= 0:
            raise RecordError(f"times_s: expected positive times, got {self.times_s}")

    @property
    def rounds(self) -> int:
        """How often it was timed."""
        return len(self.times_s)

    @property
    def seconds_per_token(self) -> tuple[float, float, float]:
        """Over the rounds: the lower quartile, the median and the upper quartile."""
        return _quartiles([time / self.tokens for time in self.times_s])


def _quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, median, high


@dataclass(frozen=True, kw_only=True)
class Study(RecordFile):
    """What one run of notebook 07 found; ``data/decoding`` holds a recorded one."""

    SCHEMA = SCHEMA
    schema: str
    provenance: Provenance
    models: str
    """What was run, in words."""
    target_parameters: int
    draft_parameters: int
    vocab_size: int
    new_tokens: int
    """Tokens decoded for each prompt of a trial."""
    trials: tuple[Trial, ...]
    races: tuple[Race, ...]

    def __post_init__(self) -> None:
        check_schema(self.schema, SCHEMA)
        if not {"none", "model"} <= {race.draft for race in self.races}:
            raise RecordError("races: expected plain decoding and one of the draft model")
        if len({(race.rounds, race.tokens) for race in self.races}) > 1:
            raise RecordError("races: expected as many rounds and tokens in each")
        self.usual  # noqa: B018 - there has to be one

    @property
    def usual(self) -> Trial:
        """The draft model at K = 4 and temperature 1."""
        return self.by_spec_len()[USUAL_SPEC_LEN]

    def by_spec_len(self) -> dict[int, Trial]:
        """Trials of the draft model at temperature 1, by K."""
        found = {
            trial.spec_len: trial
            for trial in self.trials
            if trial.draft == "model"
            and trial.temperature == USUAL_TEMPERATURE
            and trial.backend == "auto"
        }
        if USUAL_SPEC_LEN not in found:
            raise RecordError(f"trials: expected one of the draft model at K = {USUAL_SPEC_LEN}")
        return dict(sorted(found.items()))

    def by_temperature(self) -> dict[str, list[Trial]]:
        """By draft, the trials at K = 4 in order of temperature."""
        found: dict[str, list[Trial]] = {}
        for trial in sorted(self.trials, key=lambda trial: trial.temperature):
            if trial.spec_len == USUAL_SPEC_LEN and trial.backend == "auto":
                found.setdefault(trial.draft, []).append(trial)
        return found

    def by_backend(self) -> dict[str, Trial]:
        """Trials that name the sampler's backend."""
        return {trial.backend: trial for trial in self.trials if trial.backend != "auto"}

    @property
    def plain(self) -> Race:
        """Plain decoding."""
        return next(race for race in self.races if race.draft == "none")

    @property
    def speculative(self) -> list[Race]:
        """Races with the draft model, in order of K."""
        found = (race for race in self.races if race.draft == "model")
        return sorted(found, key=lambda race: race.spec_len)

    @property
    def usual_race(self) -> Race:
        """That at the usual K."""
        return next(race for race in self.speculative if race.spec_len == USUAL_SPEC_LEN)

    @property
    def other_drafts(self) -> list[Race]:
        """Races with another draft than the model."""
        return [race for race in self.races if race.draft not in ("none", "model")]

    def speed_up(self, race: Race) -> float:
        """Time of plain decoding over that of a race, formed in each round: their median."""
        return self._speed_ups(race)[1]

    def speed_up_quartiles(self, race: Race) -> tuple[float, float]:
        """The quartiles of the same, the smaller first."""
        low, _, high = self._speed_ups(race)
        return low, high

    def _speed_ups(self, race: Race) -> tuple[float, float, float]:
        times = zip(self.plain.times_s, race.times_s, strict=True)
        return _quartiles([plain / time for plain, time in times])

    @property
    def unclear(self) -> list[Race]:
        """Races of the draft model that gain, but not in a quarter of the rounds or more."""
        return [
            race
            for race in self.speculative
            if self.speed_up(race) > 1 >= self.speed_up_quartiles(race)[0]
        ]

    @property
    def fastest(self) -> Race:
        """The race with the largest speed-up."""
        return max(self.speculative, key=self.speed_up)

    @property
    def losing(self) -> list[Race]:
        """Races that took longer than plain decoding."""
        races = [*self.speculative, *self.other_drafts]
        return [race for race in races if self.speed_up(race) <= 1]

    @property
    def cost(self) -> float:
        """Time of a draft pass over that of a target pass on one token: c in theorem 3.8."""
        plain = self.plain.seconds["target"] / self.plain.passes
        passes = sum(race.draft_passes for race in self.speculative)
        return sum(race.seconds["draft"] for race in self.speculative) / passes / plain

    def verify_cost(self, race: Race) -> float:
        """Time of a target pass on K + 1 tokens over that of one on a single token."""
        plain = self.plain.seconds["target"] / self.plain.passes
        return race.seconds["target"] / race.passes / plain

    def expected_speed_up(self, race: Race, check: float = 1.0) -> float:
        """What theorem 3.8 has for a race of the draft model, from its acceptance rate and c.

        Args:
            race: one of :attr:`speculative`.
            check: as :meth:`verify_cost`; the theorem takes it as 1.
        """
        return expected_speed_up(race.acceptance or 0.0, race.spec_len, self.cost, check)

    def break_even(self, spec_len: int, check: float = 1.0) -> float | None:
        """Least acceptance rate at which K pays by theorem 3.8; ``None`` if none does."""
        rates = (i / 1000 for i in range(1001))
        cost = self.cost
        return next((a for a in rates if expected_speed_up(a, spec_len, cost, check) > 1), None)
