"""Measuring what speculation does for a pair of models: a :class:`rsk.decode.study.Study`."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from rsk.decode.command_line import shipped_prompts
from rsk.decode.generation import Generation
from rsk.decode.kv_cache import CachedModel, Clock
from rsk.decode.loading import (
    NGRAM,
    LoadedPair,
    fitting_threads,
    load_pair,
    parameters,
    shipped_pair,
)
from rsk.decode.loop import speculative_generate
from rsk.decode.step_counts import count_steps, ratio_with_error
from rsk.decode.study import (
    PARTS,
    SCHEMA,
    USUAL_SPEC_LEN,
    USUAL_TEMPERATURE,
    Race,
    Study,
    Trial,
)
from rsk.measure.provenance import provenance
from rsk.sampler import build
from rsk.sampler.api import BACKENDS

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def study(
    pair: LoadedPair,
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
        continued(pair, pair.draft, prompts[:1], 8, USUAL_SPEC_LEN, 1.0, seed)  # first passes: slow
        trials: list[Trial] = []
        reading: dict[str, dict[str, float]] = {}
        for setting in _settings(spec_lens, temperatures, pair.target.device.type):
            draft, spec_len, temperature, backend = setting
            progress(f"{draft} draft, K = {spec_len}, temperature {temperature:g}, {backend}")
            if draft not in reading:
                reading[draft] = reading_seconds(pair, _drafts(pair)[draft], prompts)
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
    spec_lens: Sequence[int], temperatures: Sequence[float], device_type: str
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
        if backend != "fused" or build.available(device_type):
            yield "model", USUAL_SPEC_LEN, USUAL_TEMPERATURE, backend


def continued(
    pair: LoadedPair,
    draft: PreTrainedModel | str | None,
    prompts: Sequence[str],
    new_tokens: int,
    spec_len: int,
    temperature: float,
    seed: int,
    backend: str = "auto",
) -> Generation:
    """Texts of equal length after the prompts; stop tokens end nothing."""
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


def _drafts(pair: LoadedPair) -> dict[str, PreTrainedModel | str | None]:
    """What the names in :attr:`Trial.draft` and :attr:`Race.draft` stand for."""
    return {"model": pair.draft, "target": pair.target, NGRAM: NGRAM, "none": None}


@torch.inference_mode()
def reading_seconds(
    pair: LoadedPair, draft: PreTrainedModel | str | None, prompts: Sequence[str]
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
    pair: LoadedPair,
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
    found = continued(
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


def race(
    pair: LoadedPair,
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
            run = continued(pair, draft, prompt, new_tokens, spec_len, 1.0, seed + index)
            run.seconds = _without(run.seconds, reading_seconds(pair, draft, prompt))
            runs.append(run)
    return [_as_race(*entry, new_tokens, runs) for entry, runs in found.items()]


def _as_race(draft: str, spec_len: int, new_tokens: int, runs: list[Generation]) -> Race:
    counts = [count_steps(run.origins[0], spec_len, new_tokens) for run in runs]
    judged = sum(count.judged for count in counts)
    return Race(
        draft=draft,
        spec_len=spec_len,
        tokens=new_tokens,
        times_s=tuple(run.total_seconds for run in runs),
        acceptance=sum(count.accepted for count in counts) / judged if judged else None,
        passes=statistics.fmean(run.target_passes for run in runs),
        draft_passes=statistics.fmean(count.drafted for count in counts),
        seconds={part: statistics.fmean(run.seconds[part] for run in runs) for part in PARTS},
    )


def record(path: Path) -> Study:
    """Measure the pair that ships with rsk at length, and write what the report falls back on."""
    pair = load_pair(*shipped_pair())
    prompts = [prompt["text"] for prompt in shipped_prompts()]
    found = study(pair, prompts, new_tokens=128, rounds=16, progress=print)
    found.save(path)
    return found


if __name__ == "__main__":  # python -m rsk.decode.trials data/decoding/shipped-pair.json
    record(Path(sys.argv[1]))
