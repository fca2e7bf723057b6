"""The sweep, its files, and what is computed from them."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import measured
import pytest
import torch
from rich.console import Console

import rsk
from rsk.base import machine
from rsk.base.folders import data_dir
from rsk.measure import (
    benchmark,
    comparison,
    implementations,
    peers,
    publishable_runs,
    result_tables,
    run_files,
    timing,
    workload,
)
from rsk.measure.quoted import EARLIER_WORK, Quoted
from rsk.measure.records import Benchmark, Record, RecordError, parse
from rsk.measure.sweep import Sweep, full_sweep
from rsk.sampler.registry import RIVALS

TINY = Sweep(batch_sizes=(1, 3), spec_lens=(2, 1), vocab_sizes=(100, 40), runs=2)
FILES = sorted((data_dir() / "benchmarks").glob("*.json"))


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that wait for each other make tests slow on a machine that does other things too."""
    with machine.pinned_threads(1):
        yield


def run(sweep: Sweep = TINY, **arguments: Any) -> Benchmark:
    return benchmark.run(sweep, budget_s=0.002, **{"chosen": rsk.BACKENDS, **arguments})


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[Benchmark, Path]:
    path = tmp_path_factory.mktemp("saved") / "run.json"
    return run(save=path), path


def printed(*what: Any) -> str:
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
    for thing in what:
        console.print(thing)
    return console.export_text()


def test_a_sweep_varies_one_thing_at_a_time() -> None:
    sweep = Sweep(
        batch_sizes=(1, 4, 16),
        spec_lens=(4, 1),
        vocab_sizes=(100, 50),
        dtypes=("float32", "bfloat16"),
        acceptances=(0.7, 0.9),
        caches=("warm", "cold"),
    )
    usual = sweep.usual
    assert usual == (4, 4, 100, "float32", 0.7, "warm")
    points = sweep.points()
    assert len(points) == len(set(points)) == 3 + 1 + 1 + 3 + 3 + 1
    for point in points:
        other = [a for a, b in zip(point, usual, strict=True) if a != b]
        assert len(other) <= 2
    full = dataclasses.replace(sweep, grid="BKV").points()
    assert len(full) == len(set(full)) == 3 * 2 * (2 + 1 + 1) + 1
    pools = [(p.vocab_size, p.dtype, p.acceptance) for p in points]
    changes = sum(a != b for a, b in itertools.pairwise(pools))
    assert changes == len(set(pools)) - 1, "points that share inputs follow each other"


def test_the_full_sweep_holds_the_points_that_a_record_promises() -> None:
    points = full_sweep("cpu").points()
    assert full_sweep("cpu").runs == full_sweep("cuda").runs == 5
    for b in (1, 4, 16, 64, 256):
        for k in (1, 4, 8):
            for v in (1000, 32000, 128256):
                assert (b, k, v, "float32", 0.7, "warm") in points
        for v in (1000, 32000, 128256):
            for dtype in ("bfloat16", "float16"):
                assert (b, 4, v, dtype, 0.7, "warm") in points
            assert (b, 4, v, "float32", 0.7, "cold") in points
    assert len({point.acceptance for point in points}) == 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_sizes": ()}, "batch_sizes: expected at least one value"),
        ({"batch_sizes": (0,)}, "batch_sizes: expected at least 1, got 0"),
        ({"spec_lens": (-1,)}, "spec_lens: expected at least 0"),
        ({"dtypes": ("float64",)}, "dtypes: expected one of float32"),
        ({"caches": ("tepid",)}, "caches: expected one of warm, cold"),
        ({"acceptances": (1.5,)}, "acceptances: expected rates"),
        ({"acceptances": (math.nan,)}, "acceptances: expected rates"),
        ({"runs": 0}, "runs: expected at least one"),
    ],
)
def test_a_sweep_refuses_what_it_cannot_measure(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sweep(**changes)


def test_a_run_measures_every_point_twice(found: tuple[Benchmark, Path]) -> None:
    result, _ = found
    assert result.complete
    assert result.refused == ()
    points = TINY.points()
    measured_at = [(r.point, r.implementation, r.run) for r in result.records]
    expected = {(p, name, i) for p in points for name in rsk.BACKENDS for i in (0, 1)}
    assert set(measured_at) == expected
    assert len(measured_at) == len(expected)
    counted = {(c.implementation, c.batch_size) for c in result.operations}
    assert counted == {(name, b) for name in rsk.BACKENDS for b in TINY.batch_sizes}


def test_a_file_is_what_was_measured(found: tuple[Benchmark, Path]) -> None:
    result, path = found
    assert Benchmark.load(path) == result
    assert [file.name for file in path.parent.iterdir()] == [path.name], "nothing half-written"
    assert result.settings["batch_sizes"] == [1, 3]
    assert result.settings["implementations"] == list(rsk.BACKENDS)


def test_a_folder_gets_a_file_named_for_the_machine_and_none_is_overwritten(
    tmp_path: Path,
) -> None:
    cpu, gpu = measured.CPU_PROVENANCE, measured.GPU_PROVENANCE
    for name in ("", "-2", "-3"):
        path = run_files.save_path(tmp_path, cpu)
        assert path.name == f"cpu-a-processor-2026-01-02{name}.json"
        path.touch()
    assert run_files.save_path(tmp_path, gpu).name == "a-gpu-2026-01-02.json"
    assert run_files.save_path(tmp_path / "x.json", gpu) == tmp_path / "x.json"


SMALL = Sweep(batch_sizes=(1, 3), spec_lens=(2,), vocab_sizes=(100,), runs=2)


def test_two_whole_runs_of_a_day_are_two_files(tmp_path: Path) -> None:
    for _ in range(2):
        run(Sweep(batch_sizes=(1,), spec_lens=(1,), vocab_sizes=(64,)), save=tmp_path)
    assert len(list(tmp_path.glob("*.json"))) == 2


def stopped_after(monkeypatch: pytest.MonkeyPatch, calls: int, stop: BaseException) -> list[Any]:
    """Let so many times be taken, then raise; returns the arguments of each."""
    measure, taken = benchmark.measure, []

    def measure_or_stop(*args: Any, **kwargs: Any) -> Any:
        if len(taken) == calls:
            raise stop
        taken.append((args, kwargs))
        return measure(*args, **kwargs)

    monkeypatch.setattr(benchmark, "measure", measure_or_stop)
    monkeypatch.setattr(benchmark, "ATTEMPTS", 1)  # other processes must not add calls,
    monkeypatch.setattr(timing, "check_above", lambda *times: None)  # nor take one away
    return taken


@pytest.mark.slow
@pytest.mark.parametrize(
    ("calls", "stop"), [(0, KeyboardInterrupt()), (4, SystemExit(143)), (7, KeyboardInterrupt())]
)
def test_an_interrupted_run_is_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: int, stop: BaseException
) -> None:
    with monkeypatch.context() as patch:
        stopped_after(patch, calls, stop)
        with pytest.raises(type(stop)):
            run(SMALL, save=tmp_path)
    (path,) = tmp_path.glob("*.json")
    before = Benchmark.load(path)
    assert len(before.records) == calls and not before.complete
    taken = stopped_after(monkeypatch, 99, stop)
    after = run(SMALL, save=tmp_path)
    assert list(tmp_path.glob("*.json")) == [path]
    assert after == Benchmark.load(path) and after.complete and after.skipped == ()
    assert after.records[:calls] == before.records, "what was measured stays as it is"
    assert len(taken) == 2 * 2 * 3 - calls
    assert len({(r.run, r.point, r.implementation) for r in after.records}) == 12
    counted = [(c.implementation, c.batch_size) for c in after.operations]
    assert sorted(counted) == sorted(set(counted)) and len(counted) == 6


def test_only_the_same_run_is_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(SMALL, save=tmp_path, time_limit_s=0.0)
    (path,) = tmp_path.glob("*.json")
    begun = Benchmark.load(path)
    later = dataclasses.replace(begun.provenance, date="2031-01-01T00:00:00+00:00", commit="abc")
    assert run_files.place(tmp_path, dataclasses.replace(begun, provenance=later)) == path
    others = [
        dataclasses.replace(begun, settings={**begun.settings, "seed": 7}),
        dataclasses.replace(
            begun, provenance=dataclasses.replace(begun.provenance, sources="1" * 64)
        ),
        dataclasses.replace(begun, provenance=dataclasses.replace(begun.provenance, threads=3)),
    ]
    for other in others:
        assert run_files.unfinished(path, other) is None
        assert run_files.place(tmp_path, other) != path
    dataclasses.replace(begun, complete=True).save(path)
    assert run_files.place(tmp_path, begun).stem == path.stem + "-2", "a whole run stays"


def test_what_was_refused_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.json"
    run(SMALL, save=path, time_limit_s=0.0)
    begun = dataclasses.replace(Benchmark.load(path), refused=("fused: wrong",), skipped=("x",))
    begun.save(path)
    found = run(SMALL, save=path)
    assert found.complete and found.refused == () and found.skipped == ()


def test_an_interrupted_run_keeps_what_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped_after(monkeypatch, 4, KeyboardInterrupt())
    path = tmp_path / "run.json"
    with pytest.raises(benchmark.Interrupted) as interruption:
        run(save=path)
    result = interruption.value.benchmark
    assert not result.complete
    assert len(result.records) == 4
    assert "interrupted" in result.skipped[-1]
    assert Benchmark.load(path) == result


def test_a_run_that_ended_anywhere_can_be_shown() -> None:
    whole = measured.story()
    quoted = Quoted.load(data_dir() / "benchmarks" / "earlier-work.json")
    for count in range(len(whole.records)):
        part = dataclasses.replace(whole, complete=False, records=whole.records[:count])
        result_tables.show(part, Console(quiet=True), quoted)


def test_a_run_out_of_time_says_so() -> None:
    result = run(time_limit_s=0.0)
    assert not result.complete
    assert result.records == ()
    assert result.skipped == ("out of time: the rest of the sweep was not measured",)


def test_a_wrong_implementation_is_refused_and_the_others_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stale = rsk.RejectionSamples(torch.zeros(1, 2, dtype=torch.int64), torch.zeros(1).long())
    real = implementations.backend

    def backend(name: str) -> Any:
        wrong = dataclasses.replace(real(name), bind=lambda inputs: lambda: stale)
        return wrong if name == "fused" else real(name)

    monkeypatch.setattr(implementations, "backend", backend)
    result = run(Sweep(batch_sizes=(1,), spec_lens=(1,), vocab_sizes=(64,)))
    assert {r.implementation for r in result.records} == {"baseline", "vectorized"}
    assert "B=1 K=1 V=64 float32: fused: wrong result before timing" in result.refused[0]
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
    result_tables.show(result, console)
    assert "refused" in console.export_text()


def test_what_a_peer_raises_is_refused_and_the_others_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = implementations.backend

    def bind(inputs: Any) -> Any:
        raise TypeError("unexpected keyword argument")

    def backend(name: str) -> Any:
        one = real(name)
        return dataclasses.replace(one, bind=bind) if name == "vectorized" else one

    monkeypatch.setattr(implementations, "backend", backend)
    result = run(Sweep(batch_sizes=(1,), spec_lens=(1,), vocab_sizes=(64,)))
    assert {r.implementation for r in result.records} == {"baseline", "fused"}
    line = "B=1 K=1 V=64 float32: vectorized: TypeError: unexpected keyword argument"
    assert result.refused == (line,)


def test_a_cold_cache_that_cannot_be_had_is_skipped() -> None:
    result = run(
        Sweep(batch_sizes=(1,), spec_lens=(1,), vocab_sizes=(64,), caches=("warm", "cold"))
    )
    assert result.complete
    assert {r.cache for r in result.records} == {"warm"}
    assert "cold cache: B=1" in result.skipped[0]


def test_what_pytorch_keeps_of_freed_tensors_is_free_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kept = [600]
    monkeypatch.setattr(torch.cuda, "empty_cache", kept.clear)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000 - sum(kept), 1000))
    assert machine.available_memory("cuda") == 1000


def test_inputs_too_large_for_the_memory_are_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workload, "available_memory", lambda device: 200_000)
    result = run(Sweep(batch_sizes=(1, 8), spec_lens=(1,), vocab_sizes=(64, 4000)))
    assert {r.vocab_size for r in result.records} == {64}
    (line,) = result.skipped
    assert "V=4000" in line
    assert "too much for" in line


def test_times_that_others_disturb_are_taken_again(monkeypatch: pytest.MonkeyPatch) -> None:
    shares = iter([0.9, 0.8, 0.1] + [0.0] * 100)
    measure = benchmark.measure

    def disturbed(*args: Any, **kwargs: Any) -> Record:
        found = measure(*args, **kwargs)
        time = dataclasses.replace(found.device, disturbed=next(shares))
        return dataclasses.replace(found, device=time)

    monkeypatch.setattr(benchmark, "measure", disturbed)
    result = run(Sweep(batch_sizes=(1,), spec_lens=(1,), vocab_sizes=(64,)))
    assert [r.device.disturbed for r in result.records] == [0.1, 0.0, 0.0]


def test_isolated_launches_are_asked_for_along_the_line_of_batch_sizes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    taken = stopped_after(monkeypatch, 99, KeyboardInterrupt())
    sweep = dataclasses.replace(TINY, batch_sizes=(1, 2, 3), runs=1)
    run(sweep, chosen=["fused"])
    line = {(b, 2, 100) for b in sweep.batch_sizes}
    asked = {
        (one.batch_size, one.spec_len, one.vocab_size): options["isolated"]
        for (_, one), options in taken
    }
    assert {shape for shape, isolated in asked.items() if isolated} == line
    assert len(asked) > len(line)


def test_only_the_peers_that_were_asked_for_are_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def find(device: torch.device, names: Any = None) -> Any:
        asked.append(names)
        ones = peers.MAKERS if names is None else names
        found = [dataclasses.replace(implementations.backend("fused"), name=one) for one in ones]
        return found[:1], {"of": "1.0"}, [f"{one.name}: not installed" for one in found[1:]]

    monkeypatch.setattr(peers, "find", find)
    names = [one.name for one in benchmark.choose("cpu", ["fused", "transformers"])[0]]
    assert (names, asked.pop()) == (["fused", "transformers"], ["transformers"])
    assert len(benchmark.choose("cpu", ["fused", "idiomatic"])[0]) == 2
    assert not asked
    assert benchmark.choose("cpu")[2] and asked.pop() is None
    with pytest.raises(ValueError, match="^implementation: SGLang: not installed$"):
        benchmark.choose("cpu", ["transformers", "SGLang"])


def test_unknown_names_are_refused() -> None:
    """Without a look at the peers, some of which take minutes to be imported."""
    with pytest.raises(ValueError, match="implementation: expected one of baseline, ") as caught:
        run(chosen=["fastest"])
    assert "got 'fastest'" in str(caught.value)
    assert all(name in str(caught.value) for name in (*RIVALS, *peers.MAKERS))
    for device in ("gpu", "mps"):
        with pytest.raises(
            ValueError, match=f"device: expected 'auto', 'cpu' or 'cuda', got '{device}'"
        ):
            run(device=device)
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="no NVIDIA GPU"):
            run(device="cuda")


# Files: every field that is missing, unknown or impossible is named.


@pytest.fixture
def document() -> dict[str, Any]:
    return json.loads(json.dumps(dataclasses.asdict(measured.story(gpu=True))))


def paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every field of a document, through the first item of each list."""
    if isinstance(value, dict) and path[-1:] not in (("settings",), ("packages",)):
        for name, item in value.items():
            yield (*path, name)
            yield from paths(item, (*path, name))
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        yield from paths(value[0], (*path, 0))


def written(path: tuple[Any, ...]) -> str:
    return "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in path).lstrip(".")


def test_every_missing_field_is_named(document: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    everything = [path for path in paths(document) if path[-1] != "isolated"]
    assert len(everything) > 60
    for path in everything:
        damaged = copy.deepcopy(document)
        parent = damaged
        for step in path[:-1]:
            parent = parent[step]
        del parent[path[-1]]
        file.write_text(json.dumps(damaged))
        with pytest.raises(RecordError) as error:
            Benchmark.load(file)
        assert str(error.value) == f"{file}: {written(path)}: missing"


def test_a_cpu_has_no_isolated_launch() -> None:
    document = json.loads(json.dumps(dataclasses.asdict(measured.story(gpu=False))))
    alone = dataclasses.asdict(measured.spread(9.0)) | {"clock": "isolated launch"}
    document["records"][0]["isolated"] = alone
    with pytest.raises(
        RecordError, match=r"records\[0\].isolated: expected none for a run on a CPU"
    ):
        parse(Benchmark, document)


def test_a_file_from_before_isolated_launches_is_read(document: dict[str, Any]) -> None:
    for one in document["records"]:
        del one["isolated"]
    found = parse(Benchmark, document)
    assert all(record.isolated is None for record in found.records)
    assert comparison.usual_line(found)[1]["fused"].isolated is None


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (
            "schema",
            "rsk-benchmark/9",
            r"schema: expected .*; it was written by a newer rsk$",
        ),
        ("complete", 1, "complete: expected bool, got 1"),
        ("records", {}, "records: expected a list"),
        ("records.0", 3, r"records\[0\]: expected an object, got 3"),
        ("records.0.device.median_us", "fast", r"records\[0\].device.median_us: expected float"),
        ("records.0.device.median_us", math.nan, r"records\[0\].device.median_us: .*got nan"),
        ("records.0.device.median_us", math.inf, r"records\[0\].device.median_us: .*got inf"),
        ("records.0.device.median_us", -1.0, r"records\[0\].device.median_us: expected a positive"),
        ("records.0.call.median_us", 1e9, r"records\[0\].call.median_us: .*between the quartiles"),
        ("records.0.host.samples", 0, r"records\[0\].host.samples: expected at least 1"),
        ("records.0.host.samples", True, r"records\[0\].host.samples: expected int, got True"),
        ("records.0.host.disturbed", 1.5, r"records\[0\].host.disturbed: expected a share"),
        ("records.0.device.clock", "sundial", r"records\[0\].device.clock: expected one of wall"),
        (
            "records.0.isolated",
            dataclasses.asdict(measured.spread(9.0)),
            r"records\[0\].isolated.clock: expected one of isolated launch, got 'wall'",
        ),
        ("records.0.batch_size", 0, r"records\[0\].batch_size: expected at least 1"),
        ("records.0.spec_len", 1.5, r"records\[0\].spec_len: expected int, got 1.5"),
        ("records.0.dtype", "int8", r"records\[0\].dtype: expected one of float32"),
        ("records.0.cache", "tepid", r"records\[0\].cache: expected one of warm, cold"),
        ("records.0.acceptance", 1.2, r"records\[0\].acceptance: expected a rate"),
        ("records.0.accepted", 9.0, r"records\[0\].accepted: expected 0 to spec_len = 4"),
        ("records.0.bytes_moved", 0, r"records\[0\].bytes_moved: expected at least 1"),
        ("records.0.floor_us", 0.0, r"records\[0\].floor_us: expected a positive"),
        ("records.0.floor_us", 1e6, r"records\[0\].device.median_us: .*smallest operation"),
        ("records.0.implementation", "", r"records\[0\].implementation: expected a name"),
        ("records.0.colour", "red", r"records\[0\].colour: unknown; expected implementation"),
        ("operations.0.operators", -1, r"operations\[0\].operators: expected at least 0"),
        ("provenance.date", "yesterday", "provenance.date: expected ISO 8601"),
        ("provenance.date", "2026-01-02", "provenance.date: expected ISO 8601 with a time zone"),
        ("provenance.driver", None, "provenance.driver: expected a name, got None"),
        ("provenance.threads", 0, "provenance.threads: expected at least 1"),
        ("provenance.device", "cpu", r"records\[0\].roof.clock: expected 'wall' .* on a CPU"),
    ],
)
def test_impossible_fields_are_named(
    document: dict[str, Any], tmp_path: Path, path: str, value: Any, message: str
) -> None:
    steps: list[Any] = [int(p) if p.isdigit() else p for p in path.split(".")]
    parent = document
    for step in steps[:-1]:
        parent = parent[step]
    parent[steps[-1]] = value
    file = tmp_path / "run.json"
    file.write_text(json.dumps(document))
    with pytest.raises(RecordError, match=message):
        Benchmark.load(file)


def test_another_version_is_refused_before_its_fields(
    document: dict[str, Any], tmp_path: Path
) -> None:
    document |= {"schema": "rsk-benchmark/2", "energy_joules": 3.5}
    with pytest.raises(RecordError, match=r"^schema: expected 'rsk-benchmark/1'.* newer rsk$"):
        parse(Benchmark, document)
    with pytest.raises(RecordError, match=r"^schema: expected 'rsk-benchmark/1', got 'rsk-quot"):
        parse(Benchmark, document | {"schema": "rsk-quoted/1"})


def test_one_bad_file_does_not_keep_the_others_from_being_read(
    document: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "benchmarks"
    folder.mkdir()
    monkeypatch.setattr(publishable_runs.folders, "data_dir", lambda: tmp_path)
    older = copy.deepcopy(document)
    older["provenance"]["date"] = "2020-01-02T03:04:05+00:00"
    contents = {"a": document, "b": older, "c": document | {"schema": "rsk-benchmark/2"}, "d": 3}
    for name, content in contents.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    (folder / "e.json").write_bytes(b"\xff")
    (folder / EARLIER_WORK).write_text("{}")
    found, refused = publishable_runs.recorded()
    assert found == [parse(Benchmark, older), parse(Benchmark, document)]
    assert [Path(line.split(":")[0]).name for line in refused] == ["c.json", "d.json", "e.json"]


def test_a_file_that_is_no_json_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    file.write_text('{"schema": ')
    with pytest.raises(RecordError, match=r"run\.json: expected a JSON file"):
        Benchmark.load(file)
    with pytest.raises(RecordError, match="Benchmark: expected an object, got 7"):
        parse(Benchmark, 7)


def test_a_time_below_the_roof_is_refused_in_a_file_too(document: dict[str, Any]) -> None:
    roof = document["records"][0]["roof"]
    slow = document["records"][0]["device"]["median_us"] * 2
    roof.update(q25_us=slow, median_us=slow, q75_us=slow)
    with pytest.raises(RecordError, match=r"records\[0\].device.median_us: baseline took"):
        parse(Benchmark, document)


def test_nan_is_never_written(tmp_path: Path) -> None:
    result = measured.benchmark([], settings={"budget_s": math.nan})
    with pytest.raises(ValueError, match="not JSON compliant"):
        result.save(tmp_path / "run.json")
    assert list(tmp_path.iterdir()) == []


# What is computed.


def test_speed_ups() -> None:
    records = [
        measured.record("baseline", 100.0, batch_size=1),
        measured.record("fused", 10.0, batch_size=1),
        measured.record("baseline", 400.0, batch_size=4),
        measured.record("fused", 20.0, batch_size=4),
        measured.record("fused", 20.0, batch_size=64),  # no baseline: does not count
        measured.record("vectorized", 200.0, batch_size=1),
    ]
    vectorized, fused = sorted(comparison.speed_ups(records), key=lambda s: s.mean.median)
    means = fused.mean.median, fused.least.median, fused.most.median
    assert fused.points == 2 and means == (15.0, 10.0, 20.0)
    assert fused.geometric_mean.median == pytest.approx(math.sqrt(200))
    assert fused.most_at.batch_size == 4
    assert (vectorized.points, vectorized.mean.median) == (1, 0.5)


def test_two_runs_are_compared_with_what_one_states() -> None:
    records = [
        measured.record("fused", 10.0, run=0),
        measured.record("fused", 12.0, run=1),
        measured.record("fused", 20.0, run=0, batch_size=16),
        measured.record("fused", 20.0, run=1, batch_size=16),
        measured.record("baseline", 50.0),
    ]
    (row,) = comparison.repeatability(records)
    assert (row.implementation, row.points) == ("fused", 2)
    assert row.within == pytest.approx(0.1)
    assert row.between == pytest.approx((2 / 11 + 0) / 2)
    assert row.between_most == pytest.approx(2 / 11)
    assert row.most_at.batch_size == 4


def test_the_terminal_shows_two_runs_that_differ() -> None:
    both = measured.twice(measured.story(gpu=True), call=1.5, device=2.0)
    text = printed(result_tables.times_table(both), result_tables.repeatability_table(both))
    assert "800 µs (640 – 960 µs)" in text
    assert "the median over 2 whole runs, and their range" in text
    assert "40.0%" in text and "66.7%" in text, "the wall clock's and the graph share's difference"


def test_the_usual_values_along_each_axis() -> None:
    story = measured.story()
    assert comparison.usual(story.settings)[:3] == (4, 4, 32000)
    assert list(comparison.along(story, "batch_size")) == [1, 4, 16]
    assert list(comparison.along(story, "spec_len")) == [1, 4, 8]
    assert list(comparison.along(story, "vocab_size")) == [1000, 32000]
    without = [r for r in story.records if (r.implementation, r.batch_size) != ("baseline", 1)]
    line = comparison.usual_line(dataclasses.replace(story, records=tuple(without)))
    assert list(line) == [4, 16], "where the baseline was measured"
    assert comparison.against_baseline(story, "vectorized") == ([16], [1, 4], [])


def test_a_disturbed_roof_has_no_share() -> None:
    record = measured.record("fused", 20.0)
    assert record.roof_share == 0.5
    busy = dataclasses.replace(record, roof=measured.spread(900.0, disturbed=0.9))
    assert busy.roof_share is None
    graph = dataclasses.replace(record, roof=measured.spread(9.0, "graph replay"))
    assert graph.roof_share is None, "a wall clock over a share of a graph says nothing"
    both = measured.series(record, dataclasses.replace(busy, run=1))
    assert both.roof_share is not None and both.roof_share.by_run == {0: 0.5}


def test_the_terminal_shows_the_numbers_of_the_file(found: tuple[Benchmark, Path]) -> None:
    result = measured.story()
    quoted = Quoted.load(data_dir() / "benchmarks" / "earlier-work.json")
    text = printed(
        result_tables.times_table(result),
        result_tables.speed_up_table(result, quoted),
        result_tables.quoted_table(result, quoted),
    )
    assert "640 µs ±5.0%" in text  # the baseline at B = 16
    assert "21×" in text  # 640 / 30
    assert "35.57×" in text
    assert quoted.source in text
    slower = dataclasses.replace(
        result, records=tuple(r for r in result.records if r.implementation != "fused")
    )
    assert " 21×" not in printed(result_tables.times_table(slower))


def test_files_are_compared_side_by_side() -> None:
    result = measured.story()
    other = dataclasses.replace(
        result,
        records=tuple(
            dataclasses.replace(r, call=measured.spread(2 * r.call.median_us))
            for r in result.records
        ),
    )
    text = printed(result_tables.compare([result, other], ["before", "after"]))
    assert "before" in text
    assert "0.50×" in text
    assert measured.CPU_PROVENANCE.label in text


# The files in data/.


def test_the_quoted_table_is_the_published_one() -> None:
    quoted = Quoted.load(data_dir() / "benchmarks" / "earlier-work.json")
    assert quoted.source == "earlier work, RTX 3060 12 GB, K unstated"
    assert [row.batch_size for row in quoted.times] == [1, 4, 16, 64]
    for row in quoted.times:  # times are rounded to 10 us, so ratios agree roughly
        assert row.baseline_ms / row.fused_ms == pytest.approx(row.fused_speedup, rel=0.05)
    assert max(row.fused_speedup for row in quoted.times) == quoted.fused_max_speedup


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_recorded_files_are_valid(path: Path) -> None:
    if path.stem == "earlier-work":
        return
    result = Benchmark.load(path)
    assert result.complete
    assert result.refused == ()
    needed = {"baseline", "vectorized", "fused"}
    if not publishable_runs.refusal(result):  # else a record beside one, for a part of it
        needed.add("transformers")
    assert needed <= {r.implementation for r in result.records}
    if result.settings["runs"] > 1:
        assert comparison.repeatability(result.records)


def test_fused_is_the_fastest_on_the_cpu_at_every_recorded_point_in_every_run() -> None:
    for path in FILES:
        if not path.stem.startswith("cpu-"):
            continue
        for point, by_name in comparison.by_point(Benchmark.load(path).records).items():
            for name in ("baseline", "vectorized"):
                gain = comparison.ratio(by_name[name], by_name["fused"])
                assert gain.least >= 1, f"{path.name}: fused is slower than {name} at {point}"


def test_what_was_made_here_by_these_sources_is_not_made_again(tmp_path: Path) -> None:
    now, path = measured.GPU_PROVENANCE, tmp_path / "x.json"
    assert run_files.made_here(path, now) is None
    path.write_text(json.dumps({"provenance": dataclasses.asdict(now), "grid": 1}))
    later = dataclasses.replace(now, date="2031-01-01T00:00:00+00:00", commit="other")
    content = run_files.made_here(path, later)
    assert content is not None and content["grid"] == 1
    for changes in ({"sources": "1" * 64}, {"gpu": "another GPU"}, {"torch": "3.0"}):
        assert run_files.made_here(path, dataclasses.replace(now, **changes)) is None
    for text in ("{}", "7", '{"provenance": {}}', "no JSON"):
        path.write_text(text)
        assert run_files.made_here(path, now) is None


@pytest.mark.parametrize("saved", [False, True])
def test_a_run_that_can_be_gone_on_with_keeps_its_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saved: bool
) -> None:
    taken = stopped_after(monkeypatch, 99, KeyboardInterrupt())
    monkeypatch.setattr(benchmark, "LEAST_BUDGET_S", 0.0)
    benchmark.run(
        Sweep(batch_sizes=(1,), spec_lens=(1,), vocab_sizes=(64,)),
        chosen=["baseline"],
        budget_s=0.02,
        time_limit_s=0.03,
        save=tmp_path / "run.json" if saved else None,
    )
    budgets = [options["budget_s"] for _, options in taken]
    assert all(budget == 0.02 if saved else budget < 0.02 for budget in budgets)
