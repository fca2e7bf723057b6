"""The report's sentences and tables follow the data: other data, other words."""

from __future__ import annotations

import dataclasses
import json
import re

import pytest
import torch
from measured import GPU_PROVENANCE, benchmark, record, spread, story
from studied import made_up

from rsk.course import lesson
from rsk.measure.records import Quoted
from rsk.report import facts
from rsk.report.facts import Evidence

pytest.importorskip("matplotlib")

QUOTED = Quoted.load(facts.data_dir() / "benchmarks" / "earlier-work.json")


def evidence(here=None, gpu=None, study=None, **changes) -> Evidence:
    fields = {
        "benchmark": here or story(),
        "is_recorded": False,
        "gpu": gpu,
        "study": study or made_up(),
        "study_is_recorded": False,
        "quoted": QUOTED,
    }
    return Evidence(**{**fields, **changes})


def everything(found: Evidence) -> str:
    """All that the report says about some evidence."""
    return "\n".join(
        [
            facts.abstract(found),
            facts.the_earlier_work(found),
            facts.machines(found),
            facts.limits(found),
            facts.conclusions(found),
            facts.future_work(found),
            facts.operations(found.benchmark),
            facts.over_all_points(found.benchmark),
            facts.repeatability(found.benchmark),
            facts.growth(found.benchmark),
            facts.roof(found.benchmark),
            facts.earlier(found),
            facts.by_batch(found.benchmark),
            facts.other_samplers(found),
            facts.solutions_caption(found),
            facts.times_caption(found),
            facts.kernels_caption(found),
            facts.beside_caption(found),
        ]
    )


@pytest.mark.parametrize("gpu", [None, story(gpu=True)])
@pytest.mark.parametrize("here", [story(), story(gpu=True)])
def test_nothing_is_left_out_or_not_a_number(here, gpu):
    text = everything(evidence(here, gpu if here.provenance.device == "cpu" else None))
    assert "nan" not in text.lower().split()
    assert not re.search(r"\bNone\b(?! was taken| has been)", text)
    assert "{" not in text


def test_the_abstract_states_the_measured_ratio():
    here = story()
    last = facts.largest(here)
    ratio = last["baseline"].call.median_us / last["fused"].call.median_us
    assert f"**{ratio:.1f} times the speed of the loop.**" in facts.abstract(evidence(here))
    slower = [
        dataclasses.replace(r, device=t, host=t, call=t)
        if r.implementation == "baseline" and (t := spread(r.call.median_us * 3))
        else r
        for r in here.records
    ]
    other = dataclasses.replace(here, records=tuple(slower))
    assert f"**{ratio * 3:.1f} times the speed of the loop.**" in facts.abstract(evidence(other))


def test_without_a_gpu_record_the_report_says_so_everywhere():
    found = evidence()
    assert "None was taken on a GPU yet" in facts.abstract(found)
    assert "**not measured**" in facts.machines(found)
    assert "**No GPU.**" in facts.limits(found)
    assert "make measure" in facts.future_work(found)
    assert set(facts.kernels_frame(found)["time on the device"]) == {"not measured"}


def test_a_gpu_record_corrects_the_text():
    found = evidence(gpu=story(gpu=True))
    text = everything(found)
    assert "None was taken on a GPU" not in text
    assert "not measured**" not in text
    assert "No GPU" not in text
    abstract = facts.abstract(found)
    assert "(recorded on a GPU, driver 1.2.3" in abstract, "the figures are of the GPU"
    assert "On a CPU (measured in this run on a processor" in abstract
    assert "On a GPU (a GPU) the fused sampler is" in facts.conclusions(found)
    times = facts.kernels_frame(found).set_index("kernel")["time on the device"]
    assert times["cluster"] != "not measured"
    assert times["split_vocabulary"] == "not measured"  # that run holds no time of it
    assert "[@fig-latency-gpu]" in facts.gpu_results(found.gpu)
    assert "from the first kernel to the fastest, `cluster`" in facts.ladder(found.gpu)
    assert list(facts.environment_frame(found).columns)[-1] == "CUDA kernels"


def test_a_run_on_a_gpu_is_the_gpu_run():
    found = evidence(story(gpu=True))
    assert found.gpu_run is found.benchmark
    assert "measured in this run on a GPU" in facts.kernels_caption(found)
    assert "recorded on a GPU" in facts.kernels_caption(
        dataclasses.replace(found, is_recorded=True)
    )


def test_recorded_data_is_labelled():
    found = evidence(is_recorded=True, study_is_recorded=True)
    assert "(recorded on a processor, 2 threads" in facts.abstract(found)
    assert "measured in this run" not in facts.machines(found)


def test_the_conclusion_on_vectorizing_depends_on_the_times():
    slow = facts.conclusions(evidence())
    assert "Removing the loop is not enough" in slow
    assert "slower than the loop at B = 1." not in slow  # it names every size where it is slower
    fast = [record(n, t, batch_size=4) for n, t in (("baseline", 90), ("vectorized", 30))]
    fast.append(record("fused", 12, batch_size=4))
    assert "Removing the loop helps" in facts.conclusions(evidence(benchmark(fast)))


def test_without_a_compiler_there_is_no_fused_sampler():
    records = [r for r in story().records if r.implementation != "fused"]
    operations = [c for c in story().operations if c.implementation != "fused"]
    found = evidence(benchmark(records, operations))
    assert facts.best(found.benchmark) == "vectorized"
    everything(found)
    assert list(facts.solutions_frame(found.benchmark)["implementation"]) == [
        "baseline",
        "vectorized",
    ]


def test_what_was_refused_or_skipped_is_said():
    found = evidence(dataclasses.replace(story(), skipped=("a: no GPU",), refused=("b: wrong",)))
    assert "- Not measured: a: no GPU." in facts.machines(found)
    assert "- Refused as wrong or impossible: b: wrong." in facts.machines(found)


def test_what_was_skipped_for_one_reason_is_one_line():
    skipped = ["cold: B=1: too many", "x: not installed", "cold: B=4: too many", "no time"]
    assert facts.gathered(skipped) == ["cold (B=1; B=4): too many", "x: not installed", "no time"]


def test_a_disturbed_roof_is_no_figure_that_matters():
    records = [
        dataclasses.replace(r, roof=spread(1e6 * r.roof.median_us, disturbed=0.9))
        for r in story().records
    ]
    found = evidence(benchmark(records, story().operations))
    assert "An unknown distance from the memory roof" in facts.abstract(found)
    assert "Other processes disturbed the roof" in facts.roof(found.benchmark)
    assert set(facts.solutions_frame(found.benchmark)["of the roof"]) == {"–"}
    assert not re.search(r"\d{4,}%", everything(found))


def test_conclusions_choose_their_words_by_the_numbers():
    def three(baseline, vectorized, fused):
        times = {"baseline": baseline, "vectorized": vectorized, "fused": fused}
        return evidence(benchmark([record(name, time) for name, time in times.items()]))

    assert "fusing helps again, 2.50 times or more" in facts.conclusions(three(90, 30, 12))
    assert "does not always help again (0.750 times" in facts.conclusions(three(90, 30, 40))
    off = evidence(study=made_up(per_pass=2.0))
    assert "are off the formula" in facts.conclusions(off)
    assert "follow the formula" in facts.conclusions(evidence())
    one = [record("baseline", 900.0), record("thread_per_sequence", 30), record("cluster", 50.0)]
    fastest = facts.ladder(benchmark(one, provenance=GPU_PROVENANCE))
    assert "the first kernel, `thread_per_sequence`, is the fastest here" in fastest


def test_a_busy_machine_is_admitted():
    records = [
        dataclasses.replace(r, call=spread(r.call.median_us, disturbed=0.9))
        for r in story().records
    ]
    found = evidence(benchmark(records, story().operations))
    assert f"{len(records)} of {len(records)} times" in facts.limits(found)
    assert "Other processes disturbed" in facts.abstract(found)
    gpu = evidence(gpu=found.benchmark)
    assert facts.abstract(gpu).count("Other processes disturbed") == 1
    assert "disturbed" not in facts.limits(evidence())


def test_two_runs_are_compared():
    again = [dataclasses.replace(r, run=1) for r in story().records]
    both = dataclasses.replace(story(), records=(*story().records, *again))
    assert "more than once" in facts.repeatability(both)
    assert "run once" in facts.repeatability(story())


def test_the_tables_hold_the_times():
    found = evidence()
    times = facts.times_frame(found.benchmark)
    assert times["B"].tolist() == [1, 4, 16]
    assert times["baseline"].iloc[0] == "40.0 µs ± 5%"
    beside = facts.beside_frame(found)
    assert beside["B"].tolist() == [1, 4, 16, 64]
    assert beside["fused"].iloc[0] == pytest.approx(0.012)
    assert beside["quoted baseline"].iloc[0] == 1.48


def test_the_earlier_works_own_mean_is_computed():
    assert "The mean of its own four rows is 16.7." in facts.earlier(evidence())


# --- gathering ------------------------------------------------------------------------------------


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """An empty run's folder, and a data folder with the quoted table alone."""
    data = tmp_path / "data"
    (data / "benchmarks").mkdir(parents=True)
    (data / "decoding").mkdir()
    text = (facts.data_dir() / "benchmarks" / "earlier-work.json").read_text(encoding="utf-8")
    (data / "benchmarks" / "earlier-work.json").write_text(text, encoding="utf-8")
    monkeypatch.setenv("RSK_RUN_DIR", str(tmp_path / "run"))
    monkeypatch.setattr("rsk.base.folders.data_dir", lambda: data)
    monkeypatch.setattr(facts, "data_dir", lambda: data)
    return data


def write(path, value):
    path.write_text(json.dumps(dataclasses.asdict(value)), encoding="utf-8")


CPU = torch.device("cpu")


def test_this_runs_results_come_first(folders):
    write(folders / "benchmarks" / "cpu-old.json", benchmark([record("baseline", 100.0)]))
    write(folders / "decoding" / "pair.json", made_up(rate=0.3))
    lesson.save_result(facts.BENCHMARK, story())
    lesson.save_result(facts.STUDY, made_up(rate=0.6))
    found = facts.gather(CPU)
    assert found.benchmark == story() and not found.is_recorded
    assert found.study == made_up(rate=0.6) and not found.study_is_recorded


def test_recorded_data_stands_in(folders):
    write(folders / "benchmarks" / "cpu-a-processor.json", story())
    write(folders / "benchmarks" / "nvidia-a-gpu.json", story(gpu=True))
    write(folders / "decoding" / "pair.json", made_up())
    found = facts.gather(CPU)
    assert found.is_recorded and found.study_is_recorded
    assert found.benchmark.provenance.device == "cpu"
    assert found.gpu is not None and found.gpu.provenance == GPU_PROVENANCE


def test_a_run_that_was_cut_short_is_not_reported(folders):
    write(folders / "benchmarks" / "cpu-a-processor.json", story())
    write(folders / "decoding" / "pair.json", made_up())
    usual = [r for r in story().records if r.batch_size != 4]  # the middle size, which all vary
    lesson.save_result(facts.BENCHMARK, dataclasses.replace(story(), records=tuple(usual)))
    assert facts.gather(CPU).is_recorded


def test_a_study_that_is_nowhere_is_asked_for(folders):
    lesson.save_result(facts.BENCHMARK, story())
    with pytest.raises(lesson.LessonError, match="06_real_llm"):
        facts.gather(CPU)


def test_a_change_in_the_data_changes_the_report(folders):
    write(folders / "decoding" / "pair.json", made_up())
    path = folders / "benchmarks" / "cpu-a-processor.json"
    write(path, story())
    before = everything(facts.gather(CPU))
    value = json.loads(path.read_text())
    for one in value["records"]:
        if one["implementation"] == "fused":
            for time in ("device", "host", "call"):
                for name in ("median_us", "q25_us", "q75_us"):
                    one[time][name] *= 2
    path.write_text(json.dumps(value))
    after = everything(facts.gather(CPU))
    assert before != after


# --- the picture ----------------------------------------------------------------------------------


def test_the_picture_is_drawn_from_the_newest_record(folders, tmp_path):
    with pytest.raises(lesson.LessonError, match="no recorded run"):
        facts.write_picture(tmp_path / "picture.svg")
    write(folders / "benchmarks" / "cpu-a-processor.json", story())
    facts.write_picture(tmp_path / "one.svg")
    facts.write_picture(tmp_path / "two.svg")
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
    write(folders / "benchmarks" / "nvidia-a-gpu.json", story(gpu=True))
    facts.write_picture(tmp_path / "gpu.svg")
    assert (tmp_path / "gpu.svg").read_bytes() != (tmp_path / "one.svg").read_bytes()


def test_a_wrong_kernel_is_not_reported_as_right(monkeypatch):
    from rsk.check.mutants import MUTANTS
    from rsk.sampler import build

    if not build.available("emulator"):
        pytest.skip("no compiler")
    wrong = {"thread_per_sequence": MUTANTS["residual_argmax"]}
    monkeypatch.setattr(facts, "KERNELS", wrong)
    with pytest.raises(AssertionError):
        facts.check_kernels(CPU, examples=200, seed=0)


def test_every_kernel_is_in_the_table_with_its_idea():
    frame = facts.kernels_frame(evidence(gpu=story(gpu=True)))
    assert list(frame["kernel"]) == list(facts.KERNELS)
    assert all(frame["its idea"])
