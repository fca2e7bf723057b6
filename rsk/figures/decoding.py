"""The figures of a :class:`rsk.decode.study.Study`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rsk.base.numbers import digits, duration
from rsk.decode.speculation_length import expected_tokens
from rsk.decode.study import PARTS, Study
from rsk.figures import plotting
from rsk.figures.plotting import STYLES, Picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DRAFT_STYLES = {
    "model": {**STYLES["fused"], "label": "draft model"},
    "ngram": {**STYLES["vectorized"], "label": "prompt lookup, no model"},
    "target": {**STYLES["baseline"], "label": "the target itself"},
}
PART_STYLES: dict[str, dict[str, Any]] = {
    "draft": {"color": "#56b4e9"},
    "target": {"color": "#cfcfcf"},
    "sampler": {"color": "#d55e00", "hatch": "//", "edgecolor": "white", "linewidth": 0.5},
    "rest": {"color": "#1a1a1a"},
}
FORMULA = r"$(1 - a^{K+1}) / (1 - a)$"


def tokens_per_pass(study: Study) -> Picture:
    """Tokens per target pass against K: the formula's curve and what was counted."""
    import pandas as pd

    trials = study.by_spec_len()
    pooled = sum(t.acceptance * t.judged for t in trials.values())
    rate = pooled / sum(t.judged for t in trials.values())
    worst = max(abs(t.tokens_per_pass / t.expected - 1) for t in trials.values())
    with plotting.axes() as (fig, ax):
        ks = range(max(trials) + 1)
        curve = [expected_tokens(rate, k) for k in ks]
        label = f"{FORMULA} with a = {rate:.2f}"
        ax.plot(ks, curve, color="#555555", linewidth=1.5, label=label)
        _error_bars(
            ax,
            list(trials),
            [t.tokens_per_pass for t in trials.values()],
            [t.tokens_per_pass_error for t in trials.values()],
            {**STYLES["fused"], "linestyle": "", "label": "counted"},
        )
        plotting.ticks(ax, [0, *trials])
        ax.set_ylim(0.8, None)
        ax.set_xlabel("speculation length K (draft tokens)")
        ax.set_ylabel("tokens per target pass")
    data = pd.DataFrame(
        {
            "K": t.spec_len,
            "acceptance rate a": t.acceptance,
            "± (a)": t.acceptance_error,
            "predicted tokens per pass": t.expected,
            "counted tokens per pass": t.tokens_per_pass,
            "±": t.tokens_per_pass_error,
            "steps": t.steps,
        }
        for t in trials.values()
    )
    values = {"trials": list(trials.values()), "worst": worst, "study": study}
    return Picture(fig, "fig-tokens-per-pass", values, data)


def acceptance_by_temperature(study: Study) -> Picture:
    """Acceptance rate against temperature, for each kind of draft."""
    import pandas as pd

    by_draft = study.by_temperature()
    with plotting.axes() as (fig, ax):
        for draft, trials in by_draft.items():
            style: dict[str, Any] = dict(DRAFT_STYLES[draft])
            _error_bars(
                ax,
                [t.temperature for t in trials],
                [t.acceptance for t in trials],
                [t.acceptance_error for t in trials],
                style,
            )
        ax.set_ylim(0, 1.05)
        ax.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        ax.set_xlabel("temperature (0: greedy)")
        ax.set_ylabel("acceptance rate")
    data = pd.DataFrame(
        {
            "draft": draft,
            "temperature": t.temperature,
            "acceptance rate": t.acceptance,
            "±": t.acceptance_error,
            "draft tokens judged": t.judged,
            "tokens per pass": t.tokens_per_pass,
        }
        for draft, trials in by_draft.items()
        for t in trials
    )
    return Picture(fig, "fig-temperature", {"by_draft": by_draft, "study": study}, data)


def speed_up_by_spec_len(study: Study) -> Picture:
    """Speed-up over plain decoding against K: measured, and as the paper's theorem has it."""
    import pandas as pd

    races = study.speculative
    with plotting.axes() as (fig, ax):
        ks = [race.spec_len for race in races]
        ax.plot(
            ks,
            [study.expected_speed_up(race) for race in races],
            color="#555555",
            linewidth=1.5,
            label=f"if reading K + 1 tokens took as long as one (c = {study.cost:.2f})",
        )
        values = [study.speed_up(race) for race in races]
        ends = [study.speed_up_quartiles(race) for race in races]
        low = [value - end[0] for value, end in zip(values, ends, strict=True)]
        high = [end[1] - value for value, end in zip(values, ends, strict=True)]
        style = {**STYLES["fused"], "label": "measured"}
        ax.errorbar(ks, values, yerr=[low, high], capsize=3, elinewidth=1, **style)
        ax.axhline(1, color="#1a1a1a", linewidth=1)
        ax.text(1.01, 1, "plain", transform=ax.get_yaxis_transform(), va="center", fontsize=8)
        ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}×")
        plotting.ticks(ax, ks)
        ax.set_ylim(0, None)
        ax.set_xlabel("speculation length K (draft tokens)")
        ax.set_ylabel("speed-up over plain decoding")
    data = pd.DataFrame(
        {
            "K": race.spec_len,
            "time per token (µs)": race.seconds_per_token[1] * 1e6,
            "quartiles (µs)": f"{digits(race.seconds_per_token[0] * 1e6)} – "
            f"{digits(race.seconds_per_token[2] * 1e6)}",
            "target passes": race.passes,
            "pass on K + 1 tokens / on one": study.verify_cost(race),
            "speed-up": study.speed_up(race),
        }
        for race in [study.plain, *races]
    )
    slower = [race.spec_len for race in races if study.speed_up(race) <= 1]
    named: dict[str, object] = {"races": races, "slower": slower, "study": study}
    return Picture(fig, "fig-decoding-speed-up", named, data)


def time_of_a_step(study: Study) -> Picture:
    """Where the time of a step goes, for each backend of the sampler."""
    import pandas as pd

    trials = study.by_backend()
    with plotting.axes(height=1.9 + 0.45 * len(trials)) as (fig, ax):
        left = [0.0] * len(trials)
        for part in PARTS:
            widths = [t.seconds[part] / t.passes * 1e3 for t in trials.values()]
            ax.barh(list(trials), widths, left=left, label=part, height=0.62, **PART_STYLES[part])
            left = [a + b for a, b in zip(left, widths, strict=True)]
        for row, trial in enumerate(trials.values()):
            text = f" sampler {duration(trial.seconds['sampler'] / trial.passes * 1e6)}"
            ax.text(left[row], row, text, va="center", fontsize=9)
        ax.set_xlim(0, max(left) * 1.25)
        ax.grid(visible=False, axis="y")
        ax.invert_yaxis()
        ax.set_xlabel("time of one step (ms)")
    data = pd.DataFrame(
        {
            "backend": name,
            **{f"{part} (ms)": t.seconds[part] / t.passes * 1e3 for part in PARTS},
            "sampler's share": t.sampler_share,
        }
        for name, t in trials.items()
    )
    return Picture(fig, "fig-step", {"trials": trials, "study": study}, data)


def _error_bars(
    ax: Axes, x: list[Any], y: list[float], errors: list[float], style: dict[str, Any]
) -> None:
    """Points with bars of two standard errors."""
    ax.errorbar(x, y, yerr=[2 * error for error in errors], capsize=3, elinewidth=1, **style)
