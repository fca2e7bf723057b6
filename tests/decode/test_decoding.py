"""The study of a pair of models: what is counted, what is predicted, what is said about it."""

from __future__ import annotations

import dataclasses
import json
import math
import re

import pytest
import torch
from studied import made_up
from tiny_models import llama

from rsk.base import templates
from rsk.decode import greedy_check, trials
from rsk.decode.generation import ACCEPTED, BONUS, RECOVERED
from rsk.decode.loading import LoadedPair
from rsk.decode.loop import speculative_generate
from rsk.decode.speculation_length import expected_speed_up, expected_tokens
from rsk.decode.step_counts import count_steps, ratio_with_error
from rsk.decode.study import Study
from rsk.measure.records import RecordError, parse

transformers = pytest.importorskip("transformers")


# --- counting and predicting ----------------------------------------------------------------------


def test_expected_tokens_is_the_closed_form():
    for a in (0.0, 0.3, 0.7, 0.999):
        for k in (0, 1, 4, 8):
            assert expected_tokens(a, k) == pytest.approx((1 - a ** (k + 1)) / (1 - a))
    assert expected_tokens(1.0, 4) == 5
    assert expected_speed_up(0.7, 4, 0.0) == expected_tokens(0.7, 4)
    assert expected_speed_up(0.0, 4, 0.25) == 0.5
    with pytest.raises(ValueError, match="acceptance rate"):
        expected_tokens(1.1, 4)


def test_expected_tokens_agrees_with_coins():
    generator = torch.Generator().manual_seed(0)
    accepted = (torch.rand(200_000, 4, generator=generator) < 0.7).long().cumprod(1).sum(1)
    assert float(accepted.double().mean() + 1) == pytest.approx(expected_tokens(0.7, 4), abs=0.02)


def test_steps_are_cut_where_a_token_is_not_a_drafts():
    origins = [ACCEPTED, RECOVERED, *[ACCEPTED] * 3, BONUS, RECOVERED]
    count = count_steps(origins, spec_len=3, new_tokens=100)
    assert (count.steps, count.tokens) == (3, 7)
    assert count.accepted == 4
    assert count.judged == 4 + 2  # a recovered token stands for a draft token that was rejected
    assert count.drafted == 9


def test_steps_that_the_end_of_the_text_shortens_are_left_out():
    origins = [*[ACCEPTED] * 4, BONUS, ACCEPTED, BONUS]  # the second step had room for one draft
    count = count_steps(origins, spec_len=4, new_tokens=7)
    assert (count.steps, count.tokens, count.accepted, count.judged) == (1, 5, 4, 4)
    assert count.drafted == 5


def test_the_error_of_a_ratio_is_what_repetition_shows():
    generator = torch.Generator().manual_seed(1)
    rates, errors = [], []
    for _ in range(400):
        easy = torch.rand(16, generator=generator)  # texts differ
        judged = torch.full((16,), 40.0)
        accepted = torch.binomial(judged, 0.4 + 0.5 * easy, generator=generator)
        rate, error = ratio_with_error(accepted.tolist(), judged.tolist())
        rates.append(rate)
        errors.append(error)
    spread = torch.tensor(rates).std().item()
    assert sum(errors) / len(errors) == pytest.approx(spread, rel=0.15)
    assert ratio_with_error([], []) == (0.0, 0.0)


# --- a study of tiny models -----------------------------------------------------------------------


class Characters:
    """A tokenizer of one token per letter, with as much of the interface as a study needs."""

    def __call__(self, text):
        return transformers.BatchEncoding({"input_ids": [ord(c) % 61 for c in text]})

    def decode(self, tokens, **_):
        return "".join(chr(97 + token % 26) for token in tokens)


@pytest.fixture(scope="module")
def pair():
    target = llama(1)
    draft = llama(1, noise_of=target, noise=0.1)
    return LoadedPair(target, draft, Characters())


PROMPTS = ["a text", "another", "the third one", "four"]


@pytest.fixture(scope="module")
def study(pair):
    return trials.study(pair, PROMPTS, spec_lens=(1, 4), new_tokens=24, rounds=2)


def test_a_study_measures_every_setting(study):
    assert list(study.by_spec_len()) == [1, 4]
    assert {draft: len(trials) for draft, trials in study.by_temperature().items()} == {
        "model": 4,
        "ngram": 2,
        "target": 1,
    }
    assert {"baseline", "vectorized"} <= set(study.by_backend())
    assert [(race.draft, race.spec_len) for race in study.races] == [
        ("none", 0),
        ("model", 1),
        ("model", 4),
        ("ngram", 4),
        ("target", 4),
    ]
    assert study.plain.passes == 24
    assert all(race.passes < 24 for race in study.speculative)


@pytest.mark.parametrize("compiled", ["cpu", "cuda"])
def test_fused_is_measured_where_it_was_compiled_for_the_models_device(monkeypatch, compiled):
    monkeypatch.setattr(trials.build, "available", lambda device_type: device_type == compiled)
    for device_type in ("cpu", "cuda"):
        backends = {backend for *_, backend in trials._settings([4], [1.0], device_type)}
        assert ("fused" in backends) == (device_type == compiled)


def test_a_study_asks_for_the_kernels_of_the_models_device(pair, monkeypatch):
    asked = []

    def stop(*arguments):
        asked.append(arguments[-1])
        return iter(())

    monkeypatch.setattr(trials, "_settings", stop)
    with pytest.raises(RecordError, match="trials: expected one of the draft model"):
        trials.study(pair, PROMPTS, spec_lens=(), new_tokens=1, rounds=1)
    assert asked == [pair.target.device.type]


def test_a_study_counts_what_happened(pair, study):
    again = speculative_generate(
        pair.target, pair.draft, PROMPTS, pair.tokenizer, seed=0, max_new_tokens=24, stop_tokens=()
    )
    counts = [count_steps(origins, 4, 24) for origins in again.origins]
    trial = study.usual
    assert trial.judged == sum(count.judged for count in counts)
    assert trial.acceptance == sum(c.accepted for c in counts) / trial.judged
    assert 0 < trial.acceptance < 1
    assert trial.tokens_per_pass == sum(c.tokens for c in counts) / trial.steps


def test_all_backends_decode_the_same_text(study):
    counted = {(t.judged, t.acceptance, t.tokens_per_pass) for t in study.by_backend().values()}
    assert len(counted) == 1


def test_a_target_that_drafts_for_itself_is_accepted(study):
    (itself,) = study.by_temperature()["target"]
    assert itself.acceptance == pytest.approx(1, abs=0.01)
    assert itself.tokens_per_pass == pytest.approx(5, abs=0.1)


def test_a_study_is_a_file_like_the_other_records(study, tmp_path, monkeypatch):
    path = tmp_path / "decoding" / "pair.json"
    monkeypatch.setattr(trials, "load_pair", lambda *_: None)
    monkeypatch.setattr(trials, "study", lambda *_, **__: study)
    trials.record(path)
    assert Study.load(path) == study
    wrong = dataclasses.replace(study, models=float("nan"))
    monkeypatch.setattr(trials, "study", lambda *_, **__: wrong)
    with pytest.raises(ValueError, match="JSON"):
        trials.record(path)
    assert Study.load(path) == study and list(path.parent.iterdir()) == [path]
    path.write_text(path.read_text().replace('"judged"', '"judges"'))
    with pytest.raises(RecordError, match=r"pair\.json: trials\[0\]\.judged: missing"):
        Study.load(path)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda s: s["trials"][0].update(acceptance=1.2), r"trials\[0\].acceptance"),
        (lambda s: s["trials"][0].update(tokens_per_pass=9.0), r"trials\[0\].tokens_per_pass"),
        (lambda s: s["trials"][0].pop("judged"), r"trials\[0\].judged: missing"),
        (lambda s: s["races"][1].update(times_s=[0.1, 0.0]), r"races\[1\].times_s"),
        (lambda s: s["races"][1]["times_s"].pop(), "races: expected as many rounds"),
        (lambda s: s["races"].pop(0), "races: expected plain decoding"),
        (lambda s: s.update(schema="other"), "schema"),
    ],
)
def test_an_impossible_study_is_refused(study, change, complaint):
    value = json.loads(json.dumps(dataclasses.asdict(study)))
    change(value)
    with pytest.raises(RecordError, match=complaint):
        parse(Study, value)


def test_a_study_needs_a_draft_and_prompts(pair):
    with pytest.raises(ValueError, match="draft model"):
        trials.study(pair._replace(draft="ngram"), PROMPTS)
    with pytest.raises(ValueError, match="prompts"):
        trials.study(pair, [])


# --- greedy ---------------------------------------------------------------------------------------


def test_greedy_decoding_is_the_targets_own(pair):
    check = greedy_check.check_greedy(pair, PROMPTS, new_tokens=24)
    assert check.prompts == len(PROMPTS)
    assert check.tokens == 24 * len(PROMPTS) or check.near_ties


def test_a_wrong_greedy_text_is_found(pair, monkeypatch):
    right = greedy_check.continued

    def wrong(pair, draft, *arguments):
        found = right(pair, draft, *arguments)
        if draft is not None:
            found.tokens[1][5] = (found.tokens[1][5] + 1) % 61
        return found

    monkeypatch.setattr(greedy_check, "continued", wrong)
    with pytest.raises(AssertionError, match="after 5 tokens of 'another'"):
        greedy_check.check_greedy(pair, PROMPTS, new_tokens=24)


# --- what is said ---------------------------------------------------------------------------------


def test_the_costs_of_passes():
    study = made_up(verify=1.3)
    assert study.cost == pytest.approx(0.25)
    assert study.verify_cost(study.speculative[0]) == pytest.approx(1.3)
    assert study.speed_up(study.fastest) == pytest.approx(1.5)
    rate = study.break_even(4)
    assert expected_speed_up(rate, 4, 0.25) > 1 >= expected_speed_up(rate - 0.001, 4, 0.25)
    assert study.break_even(4, 1.3) > rate, "what the check takes has to be earned as well"
    race = study.usual_race
    assert study.expected_speed_up(race) == expected_speed_up(0.7, 4, study.cost)
    assert study.expected_speed_up(race, 1.3) == pytest.approx(expected_tokens(0.7, 4) / 2.3)


def test_a_gain_that_some_rounds_did_not_have_is_unclear():
    study = made_up()
    assert study.unclear == [] and study.speed_up_quartiles(study.fastest) == pytest.approx(
        (1.5,) * 2
    )
    plain, *others = study.races
    first = [(t, t, 2 * t, t, 2 * t) for t in (race.times_s[0] for race in others)]
    races = [dataclasses.replace(r, times_s=t) for r, t in zip(others, first, strict=True)]
    plain = dataclasses.replace(plain, times_s=plain.times_s[:1] * 5)
    spread = dataclasses.replace(study, races=(plain, *races))
    assert spread.unclear == [spread.fastest]
    assert spread.speed_up_quartiles(spread.fastest) == pytest.approx((0.75, 1.5))


def test_what_the_numbers_mean():
    study = made_up()
    assert not study.usual.is_off and made_up(per_pass=1.99).usual.is_off
    cold, hot = study.by_temperature()["model"]
    assert not cold.is_like(hot)
    cold, hot = made_up(rate=0.52).by_temperature()["model"]
    assert cold.is_like(hot)
    assert study.usual.rest_share == pytest.approx(0.02 / 1.23)
    assert [race.draft for race in study.losing] == ["ngram"]
    assert [race.draft for race in made_up(speed=0.8).losing] == ["model", "ngram"]


def words(block, study):
    return " ".join(templates.render(f"decoding.md#{block}", {"study": study}).split())


def test_the_words_follow_the_numbers():
    for block, one, other in (
        ("formula", made_up(), made_up(per_pass=1.99)),
        ("temperature", made_up(), made_up(rate=0.52)),
        ("speed", made_up(), made_up(speed=0.8)),
        ("speed", made_up(), made_up(verify=1.5)),
        ("losses", made_up(), made_up(speed=0.8)),
    ):
        assert words(block, one) != words(block, other)
    assert "1.50 times the speed" in words("speed", made_up())
    assert "prompt lookup at K = 4 with 0.80 times its speed" in words("losses", made_up())


@pytest.mark.parametrize("block", ["formula", "temperature", "speed", "losses", "shares"])
def test_no_number_is_missing(study, block):
    text = words(block, study)
    assert not re.search(r"\bnan\b|\binf\b|None|\{|\}", text), text


@pytest.mark.parametrize(
    "name",
    ["tokens_per_pass", "acceptance_by_temperature", "speed_up_by_spec_len", "time_of_a_step"],
)
def test_figures_say_what_the_data_says(study, name):
    pytest.importorskip("matplotlib")
    from rsk.figures import decoding, plotting

    picture = getattr(decoding, name)(study)
    words = plotting.exhibit(picture)
    assert words.title and words.alt and words.caption and len(picture.data)
    slower = getattr(decoding, name)(made_up(speed=0.5))
    title = plotting.exhibit(slower).title
    if name == "speed_up_by_spec_len":
        assert "No K pays here" in title
        assert slower.data["speed-up"].tolist() == pytest.approx([1.0, 0.5])
    if name == "tokens_per_pass":
        assert slower.data["predicted tokens per pass"].iloc[-1] == pytest.approx(
            expected_tokens(0.7, 4)
        )
    assert not math.isnan(float(slower.data.select_dtypes("number").to_numpy().sum()))


def test_a_speed_up_is_formed_within_a_round():
    """Prompts differ more than ways to continue them: medians apart would say something else."""
    study = made_up()
    plain, *others = study.races
    plain = dataclasses.replace(plain, times_s=(1.0, 4.0, 9.0))
    races = [dataclasses.replace(race, times_s=(0.5, 4.0, 3.0)) for race in others]
    study = dataclasses.replace(study, races=(plain, *races))
    assert study.speed_up(study.fastest) == 2.0  # of 2, 1 and 3; of the medians, 4/3
    assert study.speed_up_quartiles(study.fastest) == (1.5, 2.5)
