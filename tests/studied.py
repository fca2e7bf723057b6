"""A study for tests: made up, to test what is computed from it; never shown to anybody."""

from __future__ import annotations

from measured import CPU_PROVENANCE

from rsk.decode.speculation_length import expected_tokens
from rsk.decode.study import SCHEMA, Race, Study, Trial


def made_up(
    *, rate: float = 0.7, per_pass: float | None = None, speed: float = 1.5, verify: float = 1.0
) -> Study:
    """A study with chosen results."""
    seconds = {"draft": 0.2, "target": 1.0, "sampler": 0.01, "rest": 0.02}

    def trial(draft="model", spec_len=4, temperature=1.0, backend="auto", a=rate):
        return Trial(
            draft=draft,
            spec_len=spec_len,
            temperature=temperature,
            backend=backend,
            prompts=8,
            judged=400,
            acceptance=a,
            acceptance_error=0.02,
            steps=150,
            tokens_per_pass=per_pass or expected_tokens(a, spec_len),
            tokens_per_pass_error=0.05,
            passes=20,
            seconds=seconds,
        )

    def race(draft, spec_len, passes, seconds_per_generation):
        return Race(
            draft=draft,
            spec_len=spec_len,
            tokens=32,
            times_s=(seconds_per_generation,) * 3,
            acceptance=rate if spec_len else None,
            passes=passes,
            draft_passes=spec_len * passes,
            seconds={
                "draft": 0.005 * spec_len * passes,
                "target": 0.02 * passes * (verify if spec_len else 1),
                "sampler": 0.001,
                "rest": 0.001,
            },
        )

    return Study(
        schema=SCHEMA,
        provenance=CPU_PROVENANCE,
        models="made up",
        target_parameters=1,
        draft_parameters=1,
        vocab_size=61,
        new_tokens=32,
        trials=(
            trial(),
            trial(spec_len=1),
            trial(temperature=0.0, a=0.5),
            trial("ngram", temperature=0.0, a=0.5),
            trial("ngram", a=0.1),
            *(trial(backend=name) for name in ("baseline", "fused")),
        ),
        races=(
            race("none", 0, 32.0, 0.64),
            race("model", 4, 12.0, 0.64 / speed),
            race("ngram", 4, 30.0, 0.8),
        ),
    )
