"""What the notebooks share: parameters, predictions, exercises, results and the ladder."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import measured
import pytest
import torch

pytest.importorskip("pandas")

from rsk.course import beginning, labels, ladder, lesson, results
from rsk.figures import lessons, plotting
from rsk.measure.records import Benchmark, Operations, RecordError
from rsk.measure.timing import roof_record
from rsk.measure.workload import Pool


@pytest.fixture(autouse=True)
def _run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RSK_RUN_DIR", str(tmp_path))
    monkeypatch.setattr(beginning, "_here", measured.CPU_PROVENANCE)  # as after begin()


# --- beginning --------------------------------------------------------------------------------

DECLARED = "quick = True\nbatch_sizes = [1, 4]"


def test_injected_parameters_that_fit_are_accepted() -> None:
    beginning.check_injected_parameters([DECLARED, "# Parameters\nbatch_sizes = [2]\n", "begin()"])
    beginning.check_injected_parameters([DECLARED, "begin()"])
    beginning.check_injected_parameters([])


@pytest.mark.parametrize(
    ("injected", "message"),
    [
        ("batchsizes = [2]", r"parameter 'batchsizes'[\s\S]*quick, batch_sizes"),
        ("quick = 1", "quick of this notebook must be a truth value"),
        ("batch_sizes = ['a']", "batch_sizes of this notebook must be a list of integers"),
        ("batch_sizes = '1,4'", r"a list such as \[1, 4\], got '1,4'; papermill reads .* with -y"),
        ("batch_sizes = 4", r"a list such as \[1, 4\], got 4"),
        ("batch_sizes = []", "batch_sizes: expected a list of at least one value"),
        ("batch_sizes = [0]", "batch_sizes: expected a list of .* from 1 to 1048576"),
        ("batch_sizes = [1, float('nan')]", r"line 2: batch_sizes = \[1, float"),
        ("quick = float('nan')", "quick of this notebook must be a truth value"),
    ],
)
def test_injected_parameters_that_do_not_fit_are_refused(injected: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        beginning.check_injected_parameters([DECLARED, f"# Parameters\n{injected}\n"])


def test_begin_chooses_the_device_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert lesson.begin("auto").type == expected
    assert lesson.begin("cpu").type == "cpu"
    assert "Measured here on CPU" in capsys.readouterr().out
    with pytest.raises(ValueError, match="expected 'auto', 'cpu' or 'cuda', got 'tpu'"):
        lesson.begin("tpu")


# --- predicting -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("predicted", "found", "verdict"),
    [
        (10, 10, "Exactly as predicted."),
        (10, 10.5, "Within 10% of the prediction."),
        (10, 34, "3.4 times more than predicted."),
        (10, 0.5, "20 times less than predicted."),
        (0, 3, "The difference is 3 waits."),
    ],
)
def test_a_prediction_is_held_to_the_measurement(
    predicted: float, found: float, verdict: str, capsys: pytest.CaptureFixture[str]
) -> None:
    guess = lesson.predict("waits at B = 4", predicted, "waits")
    guess.compare(found)
    out = capsys.readouterr().out
    assert f"**{predicted:g} waits**" in out
    assert "Waits at B = 4" in out
    assert verdict in out


@pytest.mark.parametrize("value", ["10", None, float("nan"), True])
def test_a_prediction_is_a_number(value: object) -> None:
    with pytest.raises(ValueError, match="prediction 'waits': expected a number"):
        lesson.predict("waits", value, "waits")  # type: ignore[arg-type]


# --- exercises --------------------------------------------------------------------------------


def test_an_exercise_is_unsolved_wrong_or_solved(capsys: pytest.CaptureFixture[str]) -> None:
    with lesson.exercise("sum"):
        lesson.todo()
    assert "Exercise 'sum': not solved yet" in capsys.readouterr().out

    with pytest.raises(AssertionError, match="expected 4") as failure, lesson.exercise("sum"):
        raise AssertionError("expected 4")
    assert "Exercise 'sum': not solved" in failure.value.__notes__[0]
    assert capsys.readouterr().out == ""

    with lesson.exercise("sum"):
        assert 2 + 2 == 4
    assert "Exercise 'sum': solved." in capsys.readouterr().out


# --- results ----------------------------------------------------------------------------------


def test_results_are_handed_on() -> None:
    story = measured.story()
    path = lesson.save_result("06_benchmarks", story)
    assert path.parent == results.results_dir()
    assert [file.name for file in path.parent.iterdir()] == ["06_benchmarks.json"]
    assert results.load_result("06_benchmarks", Benchmark) == story
    path = lesson.save_result("plain", {"tokens per pass": 2.7})
    assert json.loads(path.read_text()) == {"tokens per pass": 2.7}


@pytest.mark.parametrize("value", [{"x": float("nan")}, {"x": torch.ones(1)}])
def test_a_result_that_json_cannot_hold_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="result 'odd' cannot be written as JSON"):
        lesson.save_result("odd", value)
    assert not (results.results_dir() / "odd.json").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "05.json: .*No such file"),
        ("{", "05.json: Expecting"),
        ('{"schema": "rsk-benchmark/1"}', "05.json: provenance: missing"),
    ],
)
def test_a_missing_or_damaged_result_is_named(content: str | None, message: str) -> None:
    results.results_dir().mkdir()
    if content is not None:
        (results.results_dir() / "05.json").write_text(content)
    with pytest.raises(RecordError, match=message):
        results.load_result("05", Benchmark)


def test_pick_names_what_is_missing() -> None:
    story = measured.story()
    picked = lesson.pick(story, "fused", 4)
    assert (picked.implementation, picked.batch_size) == ("fused", 4)
    without = dataclasses.replace(story, skipped=("fused: no compiler",))
    without = dataclasses.replace(
        without, records=tuple(r for r in story.records if r.implementation != "fused")
    )
    with pytest.raises(beginning.LessonError, match=r"no time of fused at B=4: fused: no compiler"):
        lesson.pick(without, "fused", 4)


# --- the ladder -------------------------------------------------------------------------------


def test_the_ladder_grows_in_the_order_of_the_story(capsys: pytest.CaptureFixture[str]) -> None:
    baseline, fused = measured.record("baseline", 1000.0), measured.record("fused", 20.0)
    lesson.ladder_row("fused", fused, baseline=baseline)
    labels.reset()
    lesson.ladder_row("baseline", baseline)
    labels.reset()
    lesson.ladder_row(lesson.ROOF, measured.record(lesson.ROOF, 10.0))
    assert "% of the memory roof" in capsys.readouterr().out
    frame = ladder.load_ladder().frame()
    assert list(frame["step"]) == [lesson.ROOF, "baseline", "fused"]
    assert list(frame["× baseline"].fillna(-1)) == [-1, 1, 50], "the roof has no baseline beside it"
    assert list(frame["its roof (µs)"]) == [10, 10, 10]
    assert list(frame["% of the memory roof"]) == [100, 1, 50]

    labels.reset()
    lesson.ladder_row("fused", measured.record("fused", 40.0), baseline=baseline)
    assert list(ladder.load_ladder().frame()["× baseline"].fillna(-1)) == [-1, 1, 25], "replaced"


def test_a_row_is_of_a_run_that_has_the_baseline_too() -> None:
    """The first run of one may be without the other: a ratio across runs is none."""
    fused = measured.series(*(measured.record("fused", 20.0 + run, run=run) for run in (0, 1)))
    baseline = measured.series(
        *(measured.record("baseline", 105.0 * run, run=run) for run in (1, 2))
    )
    lesson.ladder_row("fused", fused, baseline=baseline)
    (step,) = ladder.load_ladder().steps
    assert step.baseline is not None
    assert (step.record.run, step.baseline.run) == (1, 1)
    assert list(ladder.load_ladder().frame()["× baseline"]) == [5]


def test_recorded_rows_stand_beside_measured_ones_and_say_so() -> None:
    gpu = measured.record("fused", 20.0, device=measured.spread(20.0, "graph replay"))
    lesson.ladder_row("fused", gpu, machine=measured.GPU_PROVENANCE)
    labels.reset()
    lesson.ladder_row("fused", measured.record("fused", 30.0))
    frame = ladder.load_ladder().frame()
    assert frame["× baseline"].isna().all(), "no baseline was measured beside either"
    assert sorted(where.split(",")[0] for where in frame["measured"]) == ["here", "recorded"]
    assert "recorded, a GPU, 2026-01-02 03:04 UTC" in set(frame["measured"])


def test_rows_of_different_runs_are_dated_and_have_their_own_roof(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Side by side stand times of different minutes, and a share of another roof than the row's."""
    roof = measured.record(lesson.ROOF, 323.0, roof=measured.spread(323.0))
    lesson.ladder_row(lesson.ROOF, roof)
    labels.reset()
    later = dataclasses.replace(measured.CPU_PROVENANCE, date="2026-01-02T04:56:07+00:00")
    monkeypatch.setattr(beginning, "_here", later)
    lesson.ladder_row("fused", measured.record("fused", 760.0, roof=measured.spread(463.6)))
    first, second = ladder.load_ladder().frame().to_dict("records")
    assert first["measured"].endswith("03:04 UTC") and second["measured"].endswith("04:56 UTC")
    assert second["its roof (µs)"] == 463.6
    assert second["% of the memory roof"] == pytest.approx(100 * 463.6 / 760)


def test_a_row_names_the_device_it_ran_on_whatever_its_clock(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The loop waits for the device, so on a GPU too its only clock is the wall clock."""
    monkeypatch.setattr(beginning, "_here", measured.GPU_PROVENANCE)
    lesson.ladder_row("baseline", measured.record("baseline", 20.0))
    assert list(ladder.load_ladder().frame()["measured"]) == ["here, a GPU, 2026-01-02 03:04 UTC"]


def test_a_row_needs_to_know_where_it_ran(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beginning, "_here", None)
    with pytest.raises(beginning.LessonError, match=r"call lesson\.begin\(\) first"):
        lesson.ladder_row("baseline", measured.record("baseline", 20.0))


def test_a_disturbed_time_is_marked() -> None:
    busy = measured.spread(20.0, disturbed=0.9)
    lesson.ladder_row("baseline", measured.record("baseline", 20.0, device=busy))
    assert ladder.load_ladder().frame()["measured"][0].endswith("(disturbed by other programs)")


def test_the_ladder_compares_like_with_like() -> None:
    other = measured.record("baseline", 1000.0, batch_size=64)
    with pytest.raises(RecordError, match="baseline: expected the same point as fused"):
        lesson.ladder_row("fused", measured.record("fused", 20.0), baseline=other)


def test_a_damaged_ladder_is_named() -> None:
    lesson.save_result(ladder.LADDER, {"schema": "another", "steps": []})
    with pytest.raises(RecordError, match=r"ladder\.json: schema: expected 'rsk-ladder/1'"):
        ladder.load_ladder()


def test_the_roof_is_a_record_that_reaches_itself() -> None:
    pool = Pool([(2, "warm")], 2, 1009)
    roof = roof_record(lesson.ROOF, pool, 2, 2)
    assert roof.implementation == lesson.ROOF
    assert roof.roof_share == 1
    assert (roof.batch_size, roof.spec_len, roof.vocab_size) == (2, 2, 1009)
    json.dumps(dataclasses.asdict(roof), allow_nan=False)


# --- the pictures -----------------------------------------------------------------------------

P = torch.tensor([0.5, 0.3, 0.2, 0.0])
Q = torch.tensor([0.25, 0.5, 0.25, 0.0])
WORDS = ["a", "b", "c", "d"]


def title(picture: lessons.Picture) -> str:
    return plotting.exhibit(picture).title


def test_the_rules_picture_holds_the_rules_numbers() -> None:
    picture = lessons.acceptance_rule(WORDS, P, Q)
    assert (picture.values["kept"], picture.values["residual"]) == (0.75, 0.25)
    assert "probability 0.75" in title(picture)
    total = picture.data["min(p, q)"] + picture.data["residual"]
    assert total.tolist() == pytest.approx(P.tolist())
    assert picture.values["filled"] == ["a"]


def test_deviations_are_in_standard_errors() -> None:
    counts = torch.tensor([500, 300, 200, 0])
    assert lessons.deviations(counts, P).abs().max() < 1e-4
    counts = torch.tensor([500 + 16, 300 - 16, 200, 0])  # one standard error is 15.8
    assert lessons.deviations(counts, P)[0] == pytest.approx(1.012, abs=0.01)
    assert lessons.deviations(torch.tensor([499, 300, 200, 1]), P)[3] == torch.inf


def test_the_law_picture_tells_right_from_wrong() -> None:
    right, wrong = torch.tensor([5000, 3000, 2000, 0]), torch.tensor([5500, 2500, 2000, 0])
    picture = lessons.law(WORDS, P, {"rsk": right, "argmax": wrong})
    assert picture.values["right"] == ["rsk"]
    assert picture.values["wrong"]["argmax"] == pytest.approx(10.9, abs=0.1)
    assert "Argmax: up to 11 standard errors off" in title(picture)
    assert picture.data["argmax"].tolist() == pytest.approx([0.55, 0.25, 0.2, 0])


def spec_len_story(times: dict[int, float]) -> Benchmark:
    records = [
        measured.record("baseline", time, spec_len=k, accepted=1.0) for k, time in times.items()
    ]
    return measured.benchmark(records)


def test_time_by_spec_len_says_what_grew() -> None:
    flat = lessons.time_by_spec_len(spec_len_story({4: 2000.0, 1: 1000.0, 8: 2500.0}))
    assert flat.values["grown"].median == 2.5
    assert "not by 8" in title(flat)
    assert flat.data["K"].tolist() == [1, 4, 8]
    assert flat.data["coins a request, expected"].tolist() == pytest.approx(
        [1, 1 + 0.7 + 0.49 + 0.343, (1 - 0.7**8) / 0.3]
    )
    steep = lessons.time_by_spec_len(spec_len_story({4: 4000.0, 1: 1000.0, 8: 8000.0}))
    assert steep.values["grown"].median == 8
    assert "not by" not in title(steep)
    with pytest.raises(ValueError, match="no times of the baseline along K"):
        lessons.time_by_spec_len(measured.benchmark([measured.record("fused", 9.0)]))


def test_latency_says_where_vectorized_is_faster_and_slower() -> None:
    records = [
        measured.record(name, time, batch_size=b)
        for name, by_size in {
            "baseline": {1: 100.0, 4: 400.0, 16: 1600.0},
            "vectorized": {1: 300.0, 4: 350.0, 16: 400.0},
        }.items()
        for b, time in by_size.items()
    ]
    both = lessons.latency(measured.benchmark(records))
    assert both.values["faster"] == {4: pytest.approx(400 / 350), 16: 4.0}
    assert both.values["slower"] == {1: 3.0}
    assert "4.0 times faster at B = 4 and 16" in title(both)
    alone = lessons.latency(measured.benchmark(records[:3]))
    assert alone.values["growth"].factors["baseline"].median == 16
    assert "B = 1 to 16" in title(alone)


def test_bytes_in_vain_are_counted_bytes() -> None:
    record = measured.record("vectorized", 300.0, batch_size=4, bytes_moved=1_000_000)
    count = Operations(
        implementation="vectorized",
        batch_size=4,
        spec_len=4,
        vocab_size=32000,
        operators=168,
        launches=None,
        synchronizations=0,
        allocated_bytes=6_000_000,
    )
    picture = lessons.bytes_in_vain(measured.benchmark([record], [count]))
    assert (picture.values["allocated"], picture.values["needed"]) == (6_000_000, 1_000_000)
    assert "6.00 MB" in title(picture) and "1.00 MB" in title(picture)
    with pytest.raises(ValueError, match="has not counted the operations of vectorized"):
        lessons.bytes_in_vain(measured.benchmark([record]))


def test_sums_by_order_counts_different_totals() -> None:
    floats = torch.tensor([1e-7, 2e-7, 1e-7], dtype=torch.float64)
    picture = lessons.sums_by_order(floats, torch.zeros(3, dtype=torch.float64))
    assert picture.values["different"] == [2, 1]
    assert title(picture)
    assert picture.data["different totals"].tolist() == [2, 1]
