"""The values that the words may name follow the data, and are all named somewhere."""

from __future__ import annotations

import dataclasses
import inspect
import json

import pytest
import torch
from measured import GPU_PROVENANCE, record, spread, steps_record, story, twice
from studied import made_up

pytest.importorskip("matplotlib")

from rsk.base import folders, templates
from rsk.decode import decoding_speeds
from rsk.measure import ideas, resources
from rsk.measure.provenance import sources
from rsk.measure.publishable_runs import earlier_work
from rsk.measure.records import RecordError
from rsk.report import computed_here, measurements, runs, values
from rsk.report.computed_here import Here, Shortcut, Written
from rsk.report.logit_times import LogitTimes
from rsk.report.measurements import Grid, Measurements, Source
from rsk.report.runs import Run
from rsk.report.values import Story
from rsk.sampler import build

CPU = torch.device("cpu")


def found(cpu=None, gpu=None, study=None, **changes) -> Measurements:
    fields = {
        "cpu": Source(cpu or story(), recorded=True),
        "gpu": Source(gpu or story(gpu=True), recorded=True),
        "study": Source(study or made_up(), recorded=True),
        "quoted": earlier_work(),
        "grid": Grid(GPU_PROVENANCE, planned=20, done=20),
        "resources": resources.load(),
        "tried": ideas.load(),
        "logits": measurements.recorded_logits(),
        "sharded": measurements.recorded_sharded(),
        "peers": measurements.recorded_peers(),
        "steps": steps_record(),
        "public_model": decoding_speeds.recorded(),
        "narrower": of_instructions("AVX512"),
    }
    return Measurements(**{**fields, **changes})


def of_instructions(name):
    """A whole run on the CPU, as if with these vector instructions."""
    benchmark = twice(story())
    made = dataclasses.replace(benchmark.provenance, instructions=name)
    return dataclasses.replace(benchmark, provenance=made)


def slower(benchmark, name, factor):
    """The same run, in which one implementation took longer."""
    return dataclasses.replace(
        benchmark,
        records=tuple(
            dataclasses.replace(r, device=t, host=t, call=t)
            if r.implementation == name and (t := spread(r.call.median_us * factor, "wall"))
            else r
            for r in benchmark.records
        ),
    )


# --- a run


@pytest.fixture
def run():
    return Run(Source(twice(story()), recorded=False))


def test_what_stands_at_the_ends_of_the_line(run):
    assert run.smallest["fused"].batch_size == 1 and run.largest["fused"].batch_size == 16
    over_pytorch = run.over_pytorch
    assert [rival.one.implementation for rival in over_pytorch] == [
        *("baseline", "baseline", "vectorized"),
    ]
    assert over_pytorch[-1].gain.median == pytest.approx(500 / 30)
    assert run.over_peers == [] and run.roof_shares.most == pytest.approx(10 / 30)
    assert run.vectorized == ([16], [1, 4], [])
    assert [loss.batch_size for loss in run.losses] == [1, 4]
    assert run.losses[0].more_operators and not run.losses[1].more_operators
    assert {name: count.synchronizations for name, count in run.counted.items()} == {
        "baseline": 192,
        "vectorized": 0,
        "fused": 0,
    }


def test_what_all_points_say(run):
    assert run.over_loop.points == 6 and run.over_loop.most_at.batch_size == 16
    assert run.vectorized_over_loop.implementation == "vectorized"
    assert run.times == len(run.benchmark.records) == 36 and run.disturbed == 0
    assert run.repeated == (6, 6) and {row.between for row in run.repeatability} == {0}
    assert run.beats_vectorized == (6, 6)
    assert run.by_spec_len.first == 1 and run.by_vocab_size.last == 32000


def test_sixteen_bit_probabilities_and_other_projects_samplers(run):
    assert run.bfloat16 is None and run.peers == []
    more = [
        record("fused", 7.0, batch_size=16, dtype="bfloat16", roof=spread(5.0)),
        record("transformers", 300.0, batch_size=1),
        record("transformers", 200.0, batch_size=4),
        record("vLLM V2", 150.0, batch_size=4),
    ]
    base = run.benchmark
    other = dataclasses.replace(
        base,
        records=(*base.records, *more),
        provenance=dataclasses.replace(
            base.provenance, packages={"transformers": "5.0", "vllm": "0.33"}
        ),
    )
    run = Run(Source(other, recorded=True))
    assert run.bfloat16.ratio.median == pytest.approx(7 / 30)
    assert run.bfloat16.point.batch_size == 16
    peer, another = run.peers  # of a package whose name is its own, and of one that is not
    assert (peer.version, peer.one.batch_size) == ("5.0", 4)
    assert peer.ours.median == pytest.approx(15.6)
    assert (another.version, another.one.implementation) == ("0.33", "vLLM V2")
    assert [rival.gain.median for rival in run.over_peers] == pytest.approx([25, 150 / 15.6])


def test_times_from_logits_are_told_by_dtype():
    logits = LogitTimes(measurements.recorded_logits())
    assert (logits.small.batch_size, logits.large.vocab_size) == (1, 128256)
    assert logits.large.dtype == "bfloat16" and logits.large_in_float32.dtype == "float32"
    assert logits.large.with_laws_us < logits.large.filtered_us
    halved = dataclasses.replace(logits.found, results=tuple(
        dataclasses.replace(result, record=dataclasses.replace(
            result.record, roof=dataclasses.replace(
                result.record.roof, **{name: getattr(result.record.roof, name) / 2
                                       for name in ("median_us", "q25_us", "q75_us")})))
        for result in logits.found.results))  # fmt: skip
    least, most = LogitTimes(halved).roof_shares
    assert (2 * least, 2 * most) == pytest.approx(logits.roof_shares)
    gone = dataclasses.replace(logits.found, results=logits.found.results[:1])
    assert len(set(LogitTimes(gone).roof_shares)) == 1


def test_which_batches_fit_into_the_cache(run):
    largest = run.largest["fused"]
    small = dataclasses.replace(run.benchmark.provenance, cache_bytes=largest.bytes_moved - 1)
    run = Run(Source(dataclasses.replace(run.benchmark, provenance=small), recorded=True))
    assert run.in_cache == [1, 4] and run.data_sheet_rate is None
    assert run.read_rate == pytest.approx(largest.bytes_moved / largest.roof.median * 1e6)
    assert Run(Source(story(gpu=True), recorded=True)).data_sheet_rate is None, "no such GPU"


def test_the_kernels_in_the_courses_order():
    run = Run(Source(story(gpu=True), recorded=True))
    assert [one.implementation for one in run.kernels] == ["thread_per_sequence", "cluster"]
    assert run.fastest_kernel.implementation == "cluster"


def test_what_splitting_a_row_does_is_told_by_shape():
    """At the usual draft length, in float32 and from a warm cache, where both were timed."""
    times = {"split_vocabulary": 16.0, "loads_in_flight": 20.0}
    more = [
        record(name, us, batch_size=16, vocab_size=v, **other)
        for name, us in times.items()
        for v in (1000, 32000)
        for other in ({}, {"cache": "cold"})
    ]
    more.append(record("loads_in_flight", 18.0, batch_size=4))
    base = story(gpu=True)
    run = Run(Source(dataclasses.replace(base, records=(*base.records, *more)), recorded=True))
    assert {size: {v: gain.median for v, gain in gains.items()} for size, gains in run.split.items()
            } == {16: {1000: pytest.approx(0.8), 32000: pytest.approx(0.8)}}  # fmt: skip


def test_a_weight_is_near_the_power_of_two():
    assert 1e-8 < Here(CPU).weight_error < 2.0**-22


def test_what_was_skipped_for_one_reason_is_one_line():
    skipped = ["cold: B=1: too many", "x: not installed", "cold: B=4096: too many", "no time"]
    lines = ["cold (B=1; B=4,096): too many", "x: not installed", "no time"]
    assert runs.gathered(skipped) == lines


def test_two_runs_that_differ_are_both_told():
    run = Run(Source(twice(story(gpu=True), call=1.5, device=2.0), recorded=True))
    fused = run.largest["fused"]
    assert (fused.call.least, fused.call.most) == pytest.approx((30, 45))
    assert (fused.device.least, fused.device.most) == pytest.approx((30, 60))
    calls = {row.implementation: row.between for row in run.repeatability}
    device = {row.implementation: row.between for row in run.repeatability_on_device}
    assert calls["fused"] == pytest.approx(0.4) and device["fused"] == pytest.approx(2 / 3)
    assert "baseline" not in device, "its only clock is the wall clock"
    text = templates.render("abstract.md", values.report(found(gpu=run.benchmark), Here(CPU)))
    assert "37.5 µs (30.0 – 45.0 µs) instead of 625 µs (500 – 750 µs)" in text


# --- the talk's story


def test_the_story_is_at_one_batch_size():
    one = Story.of(Run(Source(story(gpu=True), True)), Run(Source(story(), True)))
    assert one.batch_size == 16 and one.thread.implementation == "thread_per_sequence"
    assert one.given_bytes == 16 * 9 * 32000 * 4
    assert one.launches == (180, 180) and one.counted["fused"].launches == 1
    assert one.fastest.implementation == "cluster"


def test_what_the_story_needs_is_named():
    gpu = story(gpu=True)
    far = tuple(dataclasses.replace(r, batch_size=r.batch_size * 3) for r in gpu.records)
    cpu = Run(Source(story(), True))
    with pytest.raises(RecordError, match="no batch size in common"):
        Story.of(Run(Source(dataclasses.replace(gpu, records=far), True)), cpu)
    counts = tuple(c for c in gpu.operations if c.implementation != "vectorized")
    with pytest.raises(RecordError, match="vectorized was not counted at B = 16"):
        Story.of(Run(Source(dataclasses.replace(gpu, operations=counts), True)), cpu)


# --- what is computed on the spot


def test_the_shortcut_distorts_one_word():
    shortcut = Shortcut.watch(CPU)
    assert shortcut.word == "mat" and shortcut.right == pytest.approx(0.3)
    assert shortcut.share == pytest.approx(0.42, abs=0.01)
    assert shortcut.requests == 40_000 == int(shortcut.seen["this sampler"].sum())


def test_a_text_and_the_command_that_writes_it():
    written = Written.by_the_pair("def read(", 7, new_tokens=12)
    assert written.command == (
        'rsk generate "def read(" --seed 7 --temperature 0.5 --max-new-tokens 12'
    )
    assert written.count == 12 >= written.accepted
    assert "".join(text for text, _ in written.runs).startswith("def read(")


def test_a_wrong_kernel_is_not_reported_as_right(monkeypatch):
    from rsk.check.mutants import MUTANTS

    if not build.available("emulator"):
        pytest.skip("no compiler")
    monkeypatch.setattr(computed_here, "KERNELS", {"cluster": MUTANTS["residual_argmax"]})
    with pytest.raises(AssertionError):
        _ = Here(CPU, examples=200).kernels


# --- gathering


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A data folder with what is recorded on GPUs alone, and a run on each device."""
    shipped = folders.data_dir()
    place = tmp_path / "data"
    copied = ("kernels", "logits", "sharded", "peers", "model-step")
    for name in ("benchmarks", "decoding", *copied):
        (place / name).mkdir(parents=True)
    paths = [path for name in copied for path in (shipped / name).glob("*.json")]
    for path in [*paths, shipped / "benchmarks/earlier-work.json"]:
        (place / path.relative_to(shipped)).write_bytes(path.read_bytes())
    monkeypatch.setattr(folders, "data_dir", lambda: place)
    monkeypatch.setattr(resources, "data_dir", lambda: place)
    write(place / "benchmarks" / "cpu.json", twice(story()))
    write(place / "benchmarks" / "gpu.json", twice(story(gpu=True)))
    write(place / "decoding" / "pair.json", usable())
    return place


def usable(**changes):
    """A study that may be published."""
    study = made_up(**changes)
    backend = next(t for t in study.trials if t.backend == "fused")
    more = dataclasses.replace(backend, backend="vectorized")
    return dataclasses.replace(study, trials=(*study.trials, more))


def here_now(record):
    """The same, made with today's sources."""
    provenance = dataclasses.replace(record.provenance, sources=sources("cpu"))
    return dataclasses.replace(record, provenance=provenance)


def write(path, value):
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(dataclasses.asdict(value)), encoding="utf-8")


def test_recorded_data_stands_in(data):
    got = measurements.gather()
    assert (got.cpu, got.gpu) == (
        Source(twice(story()), recorded=True),
        Source(twice(story(gpu=True)), recorded=True),
    )
    assert got.study.recorded and got.set_aside == ()
    assert got.grid.done == got.grid.planned > 100
    assert got.resources.spilled_bytes == 0 and "90a" in got.resources.architectures


def test_this_runs_results_come_first(data, tmp_path):
    results = tmp_path / "results"
    write(results / "06_benchmarks.json", here_now(twice(slower(story(), "baseline", 2))))
    write(results / "07_real_llm.json", here_now(usable(rate=0.6)))
    got = measurements.gather(results)
    assert not got.cpu.recorded and not got.study.recorded and got.gpu.recorded
    assert Run(got.cpu).over_loop.most.median == pytest.approx(2 * 640 / 30)
    assert measurements.gather().cpu.recorded, "the talk is from recorded data alone"


def test_what_may_not_be_published_is_set_aside_with_its_reason(data, tmp_path):
    results = tmp_path / "results"
    write(results / "06_benchmarks.json", here_now(story()))
    write(results / "07_real_llm.json", usable())
    got = measurements.gather(results)
    assert got.cpu.recorded and got.study.recorded
    assert got.set_aside == (
        "06_benchmarks.json: it is 1 run of the sweep, of 2 at least",
        "07_real_llm.json: the samplers have changed since",
    )


def test_a_study_needs_every_backend_and_several_settings():
    assert measurements.study_refusal(usable()) == ""
    assert "the backend vectorized was not measured" in measurements.study_refusal(made_up())
    few = [t for t in usable().trials if t.spec_len != 1]
    one = dataclasses.replace(usable(), trials=tuple(few))
    assert "spec_len: expected several" in measurements.study_refusal(one)
    few = [t for t in usable().trials if t.draft != "ngram"]
    one = dataclasses.replace(usable(), trials=tuple(few))
    assert "temperature: expected several values with the draft ngram" in (
        measurements.study_refusal(one)
    )


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("benchmarks/gpu.json", "expected a run on cuda that may be published"),
        ("decoding/*.json", r"data/decoding/\*\.json is missing"),
        ("kernels/agreement*.json", r"agreement\*\.json is missing"),
        ("kernels/resources.json", r"resources\.json is missing"),
    ],
)
def test_a_missing_record_is_named(data, pattern, message):
    for path in data.glob(pattern):
        path.unlink()
    with pytest.raises(RecordError, match=message):
        measurements.gather()


def test_a_damaged_record_is_named(data):
    (path,) = (data / "kernels").glob("agreement*.json")
    content = json.loads(path.read_text())
    content["grid"]["wrong"] = [{}]
    path.write_text(json.dumps(content))
    with pytest.raises(RecordError, match=r"kernels differ: \[\{'grid': \[\{\}\]\}\]"):
        measurements.gather()
    path.write_text("{}")
    with pytest.raises(RecordError, match=r"agreement.*expected a record of agreement"):
        measurements.gather()


def test_the_date_is_that_of_the_newest(monkeypatch):
    newer = dataclasses.replace(GPU_PROVENANCE, date="2031-05-01T00:00:00+00:00")
    for change in (
        {"gpu": dataclasses.replace(story(gpu=True), provenance=newer)},
        {"peers": dataclasses.replace(measurements.recorded_peers(), provenance=newer)},
        {"grid": Grid(newer, planned=20, done=20)},
        {"narrower": dataclasses.replace(of_instructions("AVX512"), provenance=newer)},
    ):
        got = found(**change)
        assert got.epoch == 1935360000, change.keys()
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    assert got.epoch == 86400


# --- the values and the words

INTERNAL = {
    *(
        "source",
        "benchmark",
        "line",
        "device",
        "seed",
        "examples",
        "p",
        "q",
        "seen",
        "tokens",
        "runs",
    ),
    "prompt",
}
"""What code reads, not the words."""
DOCUMENTED = (Run, Here, Shortcut, Written, Story, Grid)


def public(kind):
    """Fields and properties of a class."""
    fields = {field.name for field in dataclasses.fields(kind)}
    described = {
        name
        for name, member in inspect.getmembers(kind)
        if isinstance(member, property) or type(member).__name__ == "cached_property"
    }
    return {name for name in fields | described if not name.startswith("_")}


def test_every_value_is_named_by_a_template():
    used = set().union(*(uses.attributes for uses in templates.uses().values()))
    for kind in DOCUMENTED:
        assert public(kind) - INTERNAL <= used, f"{kind.__name__}: no template uses these"


@pytest.mark.slow
def test_every_name_that_a_chapter_uses_is_given_and_the_other_way_round():
    given = {
        "talk.md": set(values.talk(found(), None)),
        **{
            f"{name}.md": set(values.report(found(), Here(CPU)))
            for name in ("abstract", "problem", "algorithm", "solutions", "kernels", "results")
        },
    }
    uses = templates.uses()
    for name, names in given.items():
        roots = {value.split(".")[0] for value in uses[name].values}
        assert roots <= names, f"{name} names {roots - names}"
    in_report = set(values.report(found(), Here(CPU)))
    everywhere = set().union(*(use.values for use in uses.values()))
    roots = {value.split(".")[0] for value in everywhere}
    assert (in_report | given["talk.md"]) - roots == set(), "given, and named nowhere"


def test_the_table_of_runs_has_a_row_for_each_record():
    got = found()
    assert list(got.provenances) == [
        *("sweep, CPU", "sweep, GPU", "from logits", "several GPUs", "other projects"),
        *("decoding steps", "small models"),
        *("kernels compared", "sweep, CPU (AVX512)"),
        *(f"public model, {'GPU' if s.provenance.gpu else 'CPU'}" for s in got.public_model),
        "ideas tried",
    ]
    assert got.provenances["other projects"] is got.peers.provenance
    assert "decoding steps" not in found(steps=None).provenances
    assert "sweep, CPU (AVX512)" not in found(narrower=None).provenances
