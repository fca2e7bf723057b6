"""What speculation does for a pair of models: acceptance, tokens per target pass, time.

Notebook 07 measures a :class:`Study` and the report reads it back. Acceptance is counted over a
batch of prompts, with its standard error over the prompts; time is taken for one prompt at a time,
plain and speculative decoding in turn, because a single user is whom speculation is for.
"""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

from rsk.decode.command_line import shipped_prompts
from rsk.decode.generation import ACCEPTED, RECOVERED, Generation
from rsk.decode.kv_cache import CachedModel, Clock
from rsk.decode.loading import NGRAM, Pair, fitting_threads, load_pair, parameters, shipped_pair
from rsk.decode.loop import speculative_generate
from rsk.measure.provenance import provenance
from rsk.measure.records import Provenance, RecordError, check_schema
from rsk.sampler import build
from rsk.sampler.api import BACKENDS

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SCHEMA = "rsk-decoding/1"
USUAL_SPEC_LEN = 4
USUAL_TEMPERATURE = 1.0
ROUNDING_GAP = 1e-3
"""Logits of a float32 model that are closer may come out in either order."""
PARTS = ("draft", "target", "sampler", "rest")
TWO = 2.0
"""Standard errors within which two numbers are called the same."""


def expected_tokens(acceptance: float, spec_len: int) -> float:
    """Tokens per target pass, (1 - a^(K+1)) / (1 - a), if each draft token is accepted alike.

    Source: Leviathan, Kalman and Matias 2023, equation 1.

    Args:
        acceptance: a, the probability in [0, 1] that a draft token is accepted, given that those
            before it were.
        spec_len: K.

    Raises:
        ValueError: a rate outside [0, 1] or a negative K.
    """
    if not 0 <= acceptance <= 1 or spec_len < 0:
        raise ValueError(
            f"expected an acceptance rate in [0, 1] and K >= 0, got {acceptance} and {spec_len}"
        )
    return sum(acceptance**k for k in range(spec_len + 1))  # the same sum, also for a = 1


def expected_speed_up(acceptance: float, spec_len: int, cost: float) -> float:
    """Speed-up over plain decoding, if the target reads K + 1 tokens as fast as one.

    Source: Leviathan, Kalman and Matias 2023, theorem 3.8.

    Args:
        acceptance: as is ``spec_len``, see :func:`expected_tokens`.
        spec_len: K.
        cost: c, the time of a draft pass over that of a target pass.
    """
    return expected_tokens(acceptance, spec_len) / (spec_len * cost + 1)


# --- what is recorded -----------------------------------------------------------------------------


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
    median_s: float
    """Time of one generation after the prompt was read; half of the rounds took longer."""
    q25_s: float
    q75_s: float
    rounds: int
    acceptance: float | None
    passes: float
    """Passes of the target per generation, on average, without the one that reads the prompt."""
    draft_passes: float
    """The same of the draft."""
    seconds: dict[str, float]
    """Mean wall time of a generation by part, without the reading of the prompt."""

    def __post_init__(self) -> None:
        if not 0 < self.q25_s <= self.median_s <= self.q75_s:
            raise RecordError(
                f"median_s: expected a positive time between the quartiles {self.q25_s} and "
                f"{self.q75_s}, got {self.median_s}"
            )


@dataclass(frozen=True, kw_only=True)
class Study:
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
    def other_drafts(self) -> list[Race]:
        """Races with another draft than the model."""
        return [race for race in self.races if race.draft not in ("none", "model")]

    def speed_up(self, race: Race) -> float:
        """Time of plain decoding over that of a race, for as many tokens."""
        return (self.plain.median_s / self.plain.tokens) / (race.median_s / race.tokens)

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
    def dearest_check(self) -> Race:
        """The race in which the target's pass on K + 1 tokens takes longest, beside one on one."""
        return max(self.speculative, key=self.verify_cost)

    def yield_of(self, race: Race) -> float:
        """Tokens per pass that the trial of a race's draft, at the usual K and temperature, had."""
        return next(
            trial.tokens_per_pass
            for trial in self.by_temperature()[race.draft]
            if trial.temperature == USUAL_TEMPERATURE
        )

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

    def break_even(self, spec_len: int) -> float | None:
        """Least acceptance rate at which K pays by theorem 3.8; ``None`` if none does."""
        rates = (i / 1000 for i in range(1001))
        return next((a for a in rates if expected_speed_up(a, spec_len, self.cost) > 1), None)


# --- measuring ------------------------------------------------------------------------------------


def study(
    pair: Pair,
    prompts: Sequence[str],
    *,
    spec_lens: Sequence[int] = (1, 2, 4, 8),
    temperatures: Sequence[float] = (0.0, 0.5, 1.0, 1.5),
    new_tokens: int = 32,
    rounds: int = 3,
    seed: int = 0,
    models: str = "the pair that ships with rsk",
    progress: Callable[[str], None] = lambda line: None,
) -> Study:
    """Measure acceptance, tokens per pass and time of a pair of models.

    Args:
        pair: with a draft model; from :func:`rsk.decode.loading.load_pair`.
        prompts: texts; all are decoded together in a trial, one after the other in a race.
        spec_lens: K, several; 4 is measured in any case.
        temperatures: several; 1 is measured in any case.
        new_tokens: per prompt.
        rounds: of the races; each takes the next prompt.
        seed: of everything that is drawn.
        models: what is run, in words.
        progress: called with a line before each measurement.

    Raises:
        ValueError: no draft model, no prompts, or arguments out of range.
    """
    if pair.draft is None or isinstance(pair.draft, str):
        raise ValueError("study: expected a pair with a draft model")
    if not prompts or rounds < 1:
        raise ValueError(f"study: expected prompts and rounds, got {len(prompts)} and {rounds}")
    with fitting_threads(pair):
        machine = provenance(pair.target.device)
        _generate(pair, pair.draft, prompts[:1], 8, USUAL_SPEC_LEN, 1.0, seed)  # first passes: slow
        trials: list[Trial] = []
        reading: dict[str, dict[str, float]] = {}
        for draft, spec_len, temperature, backend in _settings(spec_lens, temperatures):
            progress(f"{draft} draft, K = {spec_len}, temperature {temperature:g}, {backend}")
            if draft not in reading:
                reading[draft] = reading_seconds(pair, _drafts(pair)[draft], prompts)
            setting = (draft, spec_len, temperature, backend)
            trials.append(trial(pair, prompts, *setting, new_tokens, seed, reading[draft]))
        progress("plain and speculative decoding in turn")
        races = race(pair, prompts, sorted({*spec_lens, USUAL_SPEC_LEN}), new_tokens, rounds, seed)
    return Study(
        schema=SCHEMA,
        provenance=machine,
        models=models,
        target_parameters=parameters(pair.target),
        draft_parameters=parameters(pair.draft),
        vocab_size=pair.target.config.vocab_size,
        new_tokens=new_tokens,
        trials=tuple(trials),
        races=tuple(races),
    )


def _settings(
    spec_lens: Sequence[int], temperatures: Sequence[float]
) -> Iterator[tuple[str, int, float, str]]:
    """Draft, K, temperature and backend of each trial."""
    for spec_len in sorted({*spec_lens, USUAL_SPEC_LEN}):
        yield "model", spec_len, USUAL_TEMPERATURE, "auto"
    for temperature in sorted({*temperatures, USUAL_TEMPERATURE}):
        if temperature != USUAL_TEMPERATURE:
            yield "model", USUAL_SPEC_LEN, temperature, "auto"
    for temperature in sorted({min(temperatures, default=0.0), USUAL_TEMPERATURE}):
        yield "ngram", USUAL_SPEC_LEN, temperature, "auto"
    yield "target", USUAL_SPEC_LEN, USUAL_TEMPERATURE, "auto"
    for backend in BACKENDS:
        if backend != "fused" or build.available("cpu"):
            yield "model", USUAL_SPEC_LEN, USUAL_TEMPERATURE, backend


def _generate(
    pair: Pair,
    draft: PreTrainedModel | str | None,
    prompts: Sequence[str],
    new_tokens: int,
    spec_len: int,
    temperature: float,
    seed: int,
    backend: str = "auto",
) -> Generation:
    return speculative_generate(
        pair.target,
        draft,
        list(prompts),
        pair.tokenizer,
        spec_len=spec_len,
        max_new_tokens=new_tokens,
        temperature=temperature,
        seed=seed,
        backend=backend,
        stop_tokens=(),  # every text gets the same number of tokens
    )


def _drafts(pair: Pair) -> dict[str, PreTrainedModel | str | None]:
    """What the names in :attr:`Trial.draft` and :attr:`Race.draft` stand for."""
    return {"model": pair.draft, "target": pair.target, NGRAM: NGRAM, "none": None}


@torch.inference_mode()
def reading_seconds(
    pair: Pair, draft: PreTrainedModel | str | None, prompts: Sequence[str]
) -> dict[str, float]:
    """Wall time in which target and draft read prompts, before the first step."""
    clock = Clock(pair.target.device)
    ids = [list(pair.tokenizer(prompt).input_ids) for prompt in prompts]
    CachedModel(pair.target, "target", clock).read([row[:-1] for row in ids])
    if draft is not None and not isinstance(draft, str):
        CachedModel(draft, "draft", clock).read([row[:-2] for row in ids])
    return {part: clock.seconds.get(part, 0.0) for part in PARTS}


def _without(seconds: dict[str, float], reading: dict[str, float]) -> dict[str, float]:
    return {part: max(seconds[part] - reading[part], 0.0) for part in PARTS}


def trial(
    pair: Pair,
    prompts: Sequence[str],
    draft: str,
    spec_len: int,
    temperature: float,
    backend: str,
    new_tokens: int,
    seed: int,
    reading: dict[str, float],
) -> Trial:
    """Decode all prompts together once, and count. Arguments as in :class:`Trial`."""
    found = _generate(
        pair, _drafts(pair)[draft], prompts, new_tokens, spec_len, temperature, seed, backend
    )
    counts = [count_steps(origins, spec_len, new_tokens) for origins in found.origins]
    acceptance, acceptance_error = ratio_with_error(
        [count.accepted for count in counts], [count.judged for count in counts]
    )
    per_pass, per_pass_error = ratio_with_error(
        [count.tokens for count in counts], [count.steps for count in counts]
    )
    return Trial(
        draft=draft,
        spec_len=spec_len,
        temperature=float(temperature),
        backend=backend,
        prompts=len(prompts),
        judged=sum(count.judged for count in counts),
        acceptance=acceptance,
        acceptance_error=acceptance_error,
        steps=sum(count.steps for count in counts),
        tokens_per_pass=per_pass,
        tokens_per_pass_error=per_pass_error,
        passes=found.target_passes,
        seconds=_without(found.seconds, reading),
    )


@dataclass
class StepCount:
    """What the unshortened steps of one request add up to."""

    steps: int = 0
    tokens: int = 0
    judged: int = 0
    accepted: int = 0
    drafted: int = 0
    """Draft tokens, those of shortened steps included."""


def count_steps(origins: Sequence[str], spec_len: int, new_tokens: int) -> StepCount:
    """Cut a request's tokens into steps: each ends with the one token that was not a draft's.

    Steps for which fewer than K draft tokens were of use, as the text was about to end, are left
    out: they would make speculation look worse than it is.
    """
    count = StepCount()
    start = 0
    for at, origin in enumerate(origins):
        if origin == ACCEPTED:
            continue
        count.drafted += min(spec_len, new_tokens - start - 1)
        if new_tokens - start - 1 >= spec_len:
            count.steps += 1
            count.tokens += at + 1 - start
            count.accepted += at - start
            count.judged += at - start + (origin == RECOVERED)
        start = at + 1
    return count


def ratio_with_error(parts: Sequence[float], wholes: Sequence[float]) -> tuple[float, float]:
    """Sum of the parts over sum of the wholes, and its standard error over the pairs.

    Tokens of one text are alike, so the texts are what is independent (the linearised error of a
    ratio estimate; Cochran, "Sampling Techniques", section 6.4). 0 and 0 if there is nothing.
    """
    total = sum(wholes)
    if not total:
        return 0.0, 0.0
    ratio = sum(parts) / total
    n = len(wholes)
    if n < 2:
        return ratio, 0.0
    squares = sum((part - ratio * whole) ** 2 for part, whole in zip(parts, wholes, strict=True))
    return ratio, math.sqrt(squares * n / (n - 1)) / total


def race(
    pair: Pair,
    prompts: Sequence[str],
    spec_lens: Sequence[int],
    new_tokens: int,
    rounds: int,
    seed: int,
) -> list[Race]:
    """Time plain decoding, each K, and the other drafts in turn, one prompt at a time."""
    entries = [("none", 0), *(("model", spec_len) for spec_len in spec_lens)]
    entries += [(draft, USUAL_SPEC_LEN) for draft in (NGRAM, "target")]
    found: dict[tuple[str, int], list[Generation]] = {entry: [] for entry in entries}
    for index in range(rounds):
        prompt = [prompts[index % len(prompts)]]
        for (name, spec_len), runs in found.items():
            draft = _drafts(pair)[name]
            run = _generate(pair, draft, prompt, new_tokens, spec_len, 1.0, seed + index)
            run.seconds = _without(run.seconds, reading_seconds(pair, draft, prompt))
            runs.append(run)
    return [_as_race(*entry, new_tokens, runs) for entry, runs in found.items()]


def _as_race(draft: str, spec_len: int, new_tokens: int, runs: list[Generation]) -> Race:
    times = [run.total_seconds for run in runs]
    quartiles = statistics.quantiles(times, n=4, method="inclusive") if times[1:] else times * 3
    counts = [count_steps(run.origins[0], spec_len, new_tokens) for run in runs]
    judged = sum(count.judged for count in counts)
    return Race(
        draft=draft,
        spec_len=spec_len,
        tokens=new_tokens,
        median_s=quartiles[1],
        q25_s=quartiles[0],
        q75_s=quartiles[2],
        rounds=len(runs),
        acceptance=sum(count.accepted for count in counts) / judged if judged else None,
        passes=statistics.fmean(run.target_passes for run in runs),
        draft_passes=statistics.fmean(count.drafted for count in counts),
        seconds={part: statistics.fmean(run.seconds[part] for run in runs) for part in PARTS},
    )


# --- greedy decoding: the check that needs no statistics ------------------------------------------


class GreedyCheck(NamedTuple):
    """How many greedy texts were the target's own."""

    prompts: int
    tokens: int
    """Tokens compared."""
    near_ties: list[float]
    """Where a text parts from the target's own: the gap between the two best logits there."""


@torch.inference_mode()
def check_greedy(
    pair: Pair, prompts: Sequence[str], *, spec_len: int = USUAL_SPEC_LEN, new_tokens: int = 32
) -> GreedyCheck:
    """Compare greedy speculative decoding with the target's own greedy decoding.

    A target that reads several tokens at once adds numbers up in another order than one that reads
    a single token. Where its two best logits are closer than the rounding of that, either choice
    is right: such a near tie is counted, and the rest of that text is not compared.

    Args:
        pair: from :func:`rsk.decode.loading.load_pair`.
        prompts: texts.
        spec_len: K.
        new_tokens: per prompt.

    Raises:
        AssertionError: they part where there is no near tie.
    """
    with fitting_threads(pair):
        ours = _generate(pair, pair.draft, prompts, new_tokens, spec_len, 0.0, 0).tokens
        theirs = _generate(pair, None, prompts, new_tokens, 0, 0.0, 0).tokens
    compared, near_ties = 0, []
    for prompt, tokens, own in zip(prompts, ours, theirs, strict=True):
        same = next((i for i, (a, b) in enumerate(zip(tokens, own, strict=True)) if a != b), None)
        compared += new_tokens if same is None else same
        if same is not None:
            ids = torch.tensor([[*pair.tokenizer(prompt).input_ids, *own[:same]]])
            best = pair.target(ids.to(pair.target.device)).logits[0, -1].float().topk(2).values
            gap = float(best[0] - best[1])
            if gap >= ROUNDING_GAP:
                raise AssertionError(
                    f"greedy speculative decoding chose token {tokens[same]} where the target "
                    f"chooses {own[same]}, {gap:.3g} ahead, after {same} tokens of {prompt[:40]!r}"
                )
            near_ties.append(gap)
    return GreedyCheck(len(prompts), compared, near_ties)


# --- text -----------------------------------------------------------------------------------------


def token_runs(generation: Generation, prompt: str, pair: Pair) -> list[tuple[str, str]]:
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


def record(path: Path) -> Study:
    """Measure the pair that ships with rsk at length, and write what the report falls back on."""
    pair = load_pair(*shipped_pair())
    prompts = [prompt["text"] for prompt in shipped_prompts()]
    found = study(pair, prompts, new_tokens=128, rounds=16, progress=print)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(dataclasses.asdict(found), indent=1, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")
    return found


if __name__ == "__main__":  # python -m rsk.decode.studies data/decoding/shipped-pair.json
    record(Path(sys.argv[1]))
