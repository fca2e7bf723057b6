"""The timing of drafts against plain decoding, on tiny models, and the record of it."""

import dataclasses
import itertools
import json
import math

import pytest
from test_decoding import Characters
from tiny_models import llama

from rsk.decode import decoding_speeds, speed
from rsk.decode.loading import LoadedPair
from rsk.measure.provenance import provenance
from rsk.measure.records import RecordError

WAYS = {
    0.0: [("none", 1), ("model", 2), ("model", 3), ("both", 3), ("model", 0)],
    0.8: [("none", 1), ("ngram", 4)],
}
PROMPTS = {"chat": ["a text", "another"], "list": ["1. one 2. two"]}


@pytest.fixture(scope="module")
def texts():
    target = llama(1)
    pair = LoadedPair(target, llama(1, noise_of=target, noise=0.1), Characters())
    return speed.measured(pair, PROMPTS, new_tokens=24, rounds=2, ways=WAYS)


@pytest.fixture
def speeds(texts):
    return decoding_speeds.DecodingSpeeds(
        schema=decoding_speeds.SCHEMA, provenance=provenance("cpu"), conditions="tests",
        target="tiny",
        target_parameters=2, draft_parameters=1, dtype="float32", plain_seconds={"float32": 0.1},
        new_tokens=24, rounds=2, greedy=decoding_speeds.Greedy(tokens=5, near_ties=()), sample=None,
        texts=tuple(texts),
    )  # fmt: skip


@pytest.mark.slow
def test_every_prompt_is_continued_in_every_way(texts, speeds):
    ways = list(itertools.chain.from_iterable(WAYS.values()))
    assert len(texts) == 3 * len(ways) and speeds.ways(0.0) == WAYS[0.0]
    for temperature, some in WAYS.items():
        for way in some:
            assert [(t.kind, t.prompt) for t in speeds.of(temperature, *way)] == [
                ("chat", 0), ("chat", 1), ("list", 0)
            ]  # fmt: skip
    for text in texts:
        assert math.isclose(sum(text.parts.values()), text.seconds, rel_tol=1.0)
        assert text.tokens <= 24 and text.passes <= text.tokens
        assert text.draft != "none" or (text.judged, text.passes) == (0, text.tokens)
    assert sum(t.accepted for t in speeds.of(0.0, "model", 3)) > 0


@pytest.mark.slow
def test_what_follows_from_the_times(speeds):
    def timed(text):
        seconds = {"none": 3.0, "model": 1.0 + text.spec_len, "both": 0.5, "ngram": 6.0}
        return dataclasses.replace(text, seconds=seconds[text.draft] * text.tokens)

    made = dataclasses.replace(speeds, texts=tuple(map(timed, speeds.texts)))
    assert made.speed_up(0.0, "none", 1) == pytest.approx(1)
    assert made.speed_up(0.0, "model", 2) == pytest.approx(1)
    assert made.speed_ups(0.0, "model", 3) == pytest.approx([0.75] * 3)
    assert made.speed_up(0.8, "ngram", 4) == pytest.approx(0.5)
    assert made.best(0.0) == ("both", 3)
    assert made.contenders(0.0) == [("model", 2), ("model", 3), ("both", 3)]
    assert made.losing(0.0) == [("model", 3)] and made.losing(0.8) == [("ngram", 4)]
    assert made.best(0.0, ["model"]) == ("model", 2)  # a K that was measured is none to name
    assert made.seconds_per_token(0.8, "ngram", 4) == pytest.approx(6)
    uneven = [dataclasses.replace(t, seconds=t.seconds * 3**i) for i, t in enumerate(made.texts)]
    made = dataclasses.replace(made, texts=tuple(uneven))
    plain = made.seconds_per_token(0.0, "none", 1)
    for way in WAYS[0.0]:  # the columns of the table are of one mean
        found = plain / made.seconds_per_token(0.0, *way)
        assert found == pytest.approx(made.speed_up(0.0, *way))
    assert decoding_speeds.table(made).count("\n") == 6 and "K=auto" in decoding_speeds.table(made)


def test_plain_decoding_is_a_rival_at_its_best(speeds):
    """Its passes are those of any temperature; the time of one may hold what was slow at first."""

    def timed(text):
        slow = 5.0 if (text.temperature, text.prompt) == (0.0, 1) else 1.0
        return dataclasses.replace(text, seconds=slow * text.tokens)

    made = dataclasses.replace(speeds, texts=tuple(map(timed, speeds.texts)))
    for temperature in WAYS:
        assert made.seconds_per_token(temperature, "none", 1) == pytest.approx(1)
        assert [t.prompt for t in made.of(temperature, "none", 1)] == [0, 1, 0]
    assert made.speed_ups(0.0, "model", 2) == pytest.approx([1, 1 / 5, 1])


def test_what_the_formula_promises_beside_what_was_counted(speeds):
    errors = speeds.formula_errors()
    assert len(errors) == len([way for ways in WAYS.values() for way in ways
                               if way[0] == "model" and way[1]])  # fmt: skip
    one = speeds.acceptance(0.0, "model", 2)
    counted = speeds.tokens_per_pass(0.0, "model", 2)
    assert errors[0] == pytest.approx((1 + one + one**2) / counted - 1)
    assert speeds.formula_error == (min(errors), max(errors))


def test_how_far_passes_of_one_way_differ_between_temperatures(speeds):
    """Only ways that were timed at several temperatures count, and none without a draft."""
    assert speeds.pass_spread == 0, "none was"
    slower = [
        dataclasses.replace(
            t, temperature=0.8, parts={**t.parts, "target": 1.5 * t.parts["target"]}
        )
        for t in speeds.texts
        if (t.temperature, t.draft, t.spec_len) in ((0.0, "model", 2), (0.0, "none", 1))
    ]
    made = dataclasses.replace(speeds, texts=(*speeds.texts, *slower))
    assert made.pass_spread == pytest.approx(0.5)


def test_a_record_is_read_back_and_checked(speeds, tmp_path):
    speeds.save(tmp_path / "one.json")
    assert decoding_speeds.DecodingSpeeds.load(tmp_path / "one.json") == speeds
    content = json.loads((tmp_path / "one.json").read_text())
    content["texts"][0]["draft"] = "magic"
    (tmp_path / "one.json").write_text(json.dumps(content))
    with pytest.raises(RecordError, match=r"texts\[0\].draft: expected one of none"):
        decoding_speeds.DecodingSpeeds.load(tmp_path / "one.json")


def test_the_recorded_speeds_of_the_public_model(monkeypatch, tmp_path):
    """On a GPU at least 1.5 times plain decoding, the geometric mean over prompts of four kinds."""
    found = decoding_speeds.recorded()
    for one in found:
        assert one.dtype == min(one.plain_seconds, key=one.plain_seconds.__getitem__)
        assert {text.kind for text in one.texts} == {"chat", "code", "prose", "list"}
        assert one.greedy.tokens >= 100
        assert one.weight_rate > 0 and 0 < one.draft_cost(0.0, 4) < 1
    gpus = [one for one in found if one.provenance.device == "cuda"]
    assert gpus and all(one.speed_up(0.0, *one.best(0.0)) >= 1.5 for one in gpus)
    monkeypatch.setattr(decoding_speeds, "data_dir", lambda: tmp_path)
    with pytest.raises(RecordError, match="data/decoding/smollm2: expected a record, found none"):
        decoding_speeds.recorded()
