"""What a :class:`rsk.decode.studies.Study` says, in sentences that are chosen by its numbers.

They refer to the figures of :mod:`rsk.figures.decoding` by their labels.
"""

from __future__ import annotations

from rsk.decode.studies import Race, Study, Trial
from rsk.measure.comparison import digits, duration

TWO = 2.0
"""Standard errors within which two numbers are called the same."""


def formula(study: Study) -> str:
    """How the predicted tokens per pass compare with the counted ones."""
    trials = study.by_spec_len().values()
    off = [t for t in trials if abs(t.tokens_per_pass - t.expected) > TWO * t.tokens_per_pass_error]
    usual = study.usual
    sentence = (
        f"At K = {usual.spec_len} the acceptance rate is {_plus_minus(usual)}, for which the "
        f"formula predicts {usual.expected:.2f} tokens per pass; {usual.tokens_per_pass:.2f} ± "
        f"{usual.tokens_per_pass_error:.2f} were counted ([@fig-tokens-per-pass]; ± is one "
        "standard error, from how the prompts differ). "
    )
    if not off:
        return sentence + (
            "At every K the two agree within two standard errors, although the formula assumes "
            "that each draft token is accepted alike, and some words are easier to guess than "
            "others."
        )
    where = ", ".join(f"K = {t.spec_len}" for t in off)
    more = all(t.tokens_per_pass > t.expected for t in off)
    return sentence + (
        f"At {where} they differ by more than two standard errors: the formula assumes that each "
        "draft token is accepted alike, but some stretches are easier to guess than others"
        + (", and the easy ones yield long runs." if more else ".")
    )


def temperature(study: Study) -> str:
    """What temperature and the kind of draft do to the acceptance rate."""
    by_draft = study.by_temperature()
    first, last = by_draft["model"][0], by_draft["model"][-1]
    parts = [
        f"[@fig-temperature]: from temperature {first.temperature:g} to {last.temperature:g} the "
        f"draft model's rate goes from {_plus_minus(first)} to {_plus_minus(last)}, "
        + (
            "a difference that so few tokens cannot tell from none."
            if _same(first, last)
            else "a difference beyond two standard errors."
        )
    ]
    if lookups := by_draft.get("ngram"):
        first, last = lookups[0], lookups[-1]
        falls = last.acceptance < first.acceptance
        parts.append(
            f"Prompt lookup has {_plus_minus(first)} at temperature {first.temperature:g} and "
            f"{_plus_minus(last)} at {last.temperature:g}"
            + (": it lives on repetition, and chance leaves little of that." if falls else ".")
        )
    if itself := by_draft.get("target"):
        parts.append(
            "The target drafting for itself is accepted at a rate of "
            f"{itself[-1].acceptance:.4g}: where p = q, no coin can reject."
        )
    return " ".join(parts)


def speed(study: Study) -> str:
    """The measured speed-up, and what the theorem leaves out."""
    best = study.fastest
    ratio = study.speed_up(best)
    opening = (
        f"The best is K = {best.spec_len}: {_per_token(best)} a token instead of "
        f"{_per_token(study.plain)}, {digits(ratio)} times the speed of plain decoding"
        if ratio > 1
        else f"Speculation does not pay here: the best, K = {best.spec_len}, takes "
        f"{_per_token(best)} a token, plain decoding {_per_token(study.plain)}"
    )
    dearer = max(study.speculative, key=study.verify_cost)
    cost = study.verify_cost(dearer)
    reading = (
        f"reading {dearer.spec_len + 1} tokens takes the target {digits(cost)} times as long as "
        "reading one"
    )
    judged = (
        f"The theorem's assumption does not hold: {reading}."
        if cost > 1.05
        else f"The theorem's assumption holds: {reading}."
    )
    return (
        f"{opening} ([@fig-decoding-speed-up]). A draft pass costs c = {digits(study.cost, 2)} of "
        f"a target pass. {judged}"
    )


def losses(study: Study) -> str:
    """The settings in which speculation does not pay, with their numbers."""
    names = {
        "model": "the draft model",
        "ngram": "prompt lookup",
        "target": "the target as its own draft",
    }
    yields = {trial.draft: trial for trial in study.trials if trial.temperature == 1}
    found: list[str] = []
    paying: list[str] = []
    for race in [*study.speculative, *study.other_drafts]:
        text = f"{names[race.draft]} at K = {race.spec_len} takes {_per_token(race)} a token"
        if race.draft in yields and race.draft != "model":
            text += f", at {yields[race.draft].tokens_per_pass:.2f} tokens per pass"
        (paying if study.speed_up(race) > 1 else found).append(text)
    plain = f"Plain decoding takes {_per_token(study.plain)} a token. "
    losers = (
        f"What does not pay at temperature 1: {'; '.join(found)}. "
        if found
        else "Everything that was tried at temperature 1 pays. "
    )
    others = [text for text in paying if not text.startswith(names["model"])]
    winners = f"What does, beside the draft model: {'; '.join(others)}. " if others else ""
    rate = study.break_even(4)
    floor = (
        f"By the theorem, a draft of this cost needs an acceptance rate above {rate:.2f} to pay at "
        "K = 4."
        if rate is not None
        else "By the theorem, a draft of this cost cannot pay at K = 4, however good it is."
    )
    return plain + losers + winners + floor


def shares(study: Study) -> str:
    """The sampler's part of a step, by backend."""
    trials = study.by_backend()
    times = {name: t.seconds["sampler"] / t.passes * 1e6 for name, t in trials.items()}
    listed = ", ".join(
        f"{trials[name].sampler_share:.1%} with `{name}` ({duration(time)} a step)"
        for name, time in times.items()
    )
    first = next(iter(trials.values()))
    rest = max(t.seconds["rest"] / sum(t.seconds.values()) for t in trials.values())
    return (
        f"[@fig-step]: the sampler takes {listed}, for {first.prompts} requests. The loop around "
        f"models and sampler takes at most {rest:.1%}. The models here are tiny and so is their "
        "vocabulary: a larger model makes the sampler's share smaller, a larger vocabulary makes "
        "it larger."
    )


def _plus_minus(trial: Trial) -> str:
    return f"{trial.acceptance:.3f} ± {trial.acceptance_error:.3f}"


def _same(one: Trial, other: Trial) -> bool:
    error = (one.acceptance_error**2 + other.acceptance_error**2) ** 0.5
    return abs(one.acceptance - other.acceptance) <= TWO * error


def _per_token(race: Race) -> str:
    return duration(race.median_s / race.tokens * 1e6)
