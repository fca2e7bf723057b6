"""The measuring function: right where it should be, and not to be fooled."""

from __future__ import annotations

import dataclasses
import math
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import measured
import pytest
import torch

import rsk
from rsk.base import machine
from rsk.base.folders import cuda_dir
from rsk.measure import clocks, implementations, provenance, samples, timing, workload
from rsk.measure.implementations import Implementation
from rsk.measure.records import RecordError
from rsk.measure.timing import MeasurementError
from rsk.measure.workload import Inputs, Pool, WorkloadError

BUDGET_S = 0.02


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that wait for each other make tests slow on a machine that does other things too."""
    with machine.pinned_threads(1):
        yield


@pytest.fixture(scope="module")
def case() -> workload.Workload:
    return Pool([(8, "warm")], 3, 500).workload(8, 3, budget_s=BUDGET_S)


def reference(inputs: Inputs) -> rsk.RejectionSamples:
    *tensors, seed = inputs
    return rsk.rejection_sample(*tensors, seed=seed, backend="vectorized")


def implementation(name: str, call) -> Implementation:
    return Implementation(name, lambda inputs: lambda: call(inputs))


@pytest.mark.parametrize("name", rsk.BACKENDS)
def test_every_backend_is_measured_and_checked(name: str, case: workload.Workload) -> None:
    found = timing.measure(implementations.backend(name), case, budget_s=BUDGET_S)
    assert found.implementation == name
    assert (found.batch_size, found.spec_len, found.vocab_size) == (8, 3, 500)
    assert found.device == found.host == found.call
    assert found.device.clock == "wall"
    assert found.device.samples >= samples.MIN_SAMPLES
    assert found.accepted == pytest.approx(
        torch.cat([s.num_accepted for s in case.expected]).double().mean()
    )


def test_a_stale_output_is_refused(case: workload.Workload) -> None:
    kept = reference(case.inputs[0])
    stale = implementation("stale", lambda inputs: kept)
    with pytest.raises(MeasurementError, match=r"stale: wrong result before timing: tokens\["):
        timing.measure(stale, case, budget_s=BUDGET_S)


def test_an_output_that_goes_stale_during_timing_is_refused(case: workload.Workload) -> None:
    seen: list[rsk.RejectionSamples] = []

    def call(inputs: Inputs) -> rsk.RejectionSamples:
        seen.append(reference(inputs))
        return seen[min(len(seen) - 1, 1)]  # right for the two checks before timing, then stuck

    with pytest.raises(MeasurementError, match="wrong result"):
        timing.measure(implementation("stuck", call), case, budget_s=BUDGET_S)


def test_an_output_that_is_never_written_is_refused(case: workload.Workload) -> None:
    """Memory that was just freed still holds the right tokens, unless it is poisoned."""

    def call(inputs: Inputs) -> rsk.RejectionSamples:
        right = reference(inputs)
        shape, counts = right.tokens.shape, right.num_accepted
        del right
        return rsk.RejectionSamples(torch.empty(shape, dtype=torch.int64), counts)

    with pytest.raises(MeasurementError, match=f"got .*{2**63 - 1}"):
        timing.measure(implementation("lazy", call), case, budget_s=BUDGET_S)


def test_an_impossibly_fast_sampler_is_refused(case: workload.Workload) -> None:
    """It looks the right tokens up, and has no time to have read the probabilities."""
    table = {}
    for inputs, right in (
        (case.probe, case.probe_expected),
        *zip(case.inputs, case.expected, strict=True),
    ):
        table[inputs.seed] = right

    def bind(inputs: Inputs):
        samples = table[inputs.seed]
        return lambda: samples

    with pytest.raises(
        RecordError, match=r"oracle.*(below the memory roof|only reading them takes)"
    ):
        timing.measure(Implementation("oracle", bind), case, budget_s=BUDGET_S)


def test_a_time_below_the_memory_roof_is_refused(case: workload.Workload) -> None:
    found = timing.measure(implementations.backend("vectorized"), case, budget_s=BUDGET_S)
    median = found.device.median_us
    quiet = dataclasses.replace(found.roof, disturbed=0.0)

    def with_roof(roof_us: float):
        roof = dataclasses.replace(quiet, q25_us=roof_us, median_us=roof_us, q75_us=roof_us)
        return dataclasses.replace(found, roof=roof)

    assert with_roof(1.01 * median).roof_share == pytest.approx(1.01)
    with pytest.raises(RecordError, match=r"device\.median_us: .*only reading them takes"):
        with_roof(1.2 * median)


def test_a_result_of_another_form_is_refused(case: workload.Workload) -> None:
    wrong = implementation("odd", lambda inputs: (reference(inputs).tokens.int(), torch.ones(8)))
    with pytest.raises(MeasurementError, match=r"tokens: expected torch.int64 \[8, 4\]"):
        timing.measure(wrong, case, budget_s=BUDGET_S)
    broken = implementation("broken", lambda inputs: None)
    with pytest.raises(MeasurementError, match="broken: its result before timing cannot be read"):
        timing.measure(broken, case, budget_s=BUDGET_S)


def test_results_with_random_numbers_of_their_own_are_checked_for_form(
    case: workload.Workload,
) -> None:
    inputs = case.inputs[0]
    good = reference(inputs._replace(seed=99))
    assert timing.malformed(good, inputs) == ""
    for column, value in ((0, 500), (3, 0)):
        tokens = good.tokens.clone()
        tokens[:, column] = value
        assert "request" in timing.malformed(good._replace(tokens=tokens), inputs)


def test_nan_times_are_refused() -> None:
    with pytest.raises(RecordError, match="samples: expected positive, finite times, got nan"):
        samples.Samples([(1.0,), (math.nan,), (1.0,)], 0.0).spread("wall")
    with pytest.raises(RecordError, match="got -1"):
        samples.Samples([(1.0,), (-1.0,)], 0.0).spread("wall")


def test_spread_is_the_median_with_quartiles() -> None:
    found = samples.Samples([(x, 2 * x) for x in (4.0, 1.0, 3.0, 2.0, 5.0)], 0.25).spread("wall", 1)
    assert (found.q25_us, found.median_us, found.q75_us) == (4.0, 6.0, 8.0)
    assert (found.samples, found.disturbed, found.relative) == (5, 0.25, 4 / 6)


def test_the_interval_of_a_median_holds_it_in_19_of_20_cases() -> None:
    assert samples.median_interval(range(100)) == (40, 60)
    assert samples.median_interval([7.0]) == (7.0, 7.0)
    drawn = torch.rand(2000, 33, generator=torch.Generator().manual_seed(0)).sort(1).values
    held = [low <= 0.5 <= high for low, high in map(samples.median_interval, drawn.tolist())]
    assert 0.94 < sum(held) / len(held) < 0.99


def test_sampling_stops_when_settled_and_not_before() -> None:
    steady = samples.sample_until_settled(lambda: (10.0,), 60.0, watch=False)
    assert len(steady.times_us) == 4 * samples.MIN_SAMPLES
    noise = torch.rand(100_000).add(0.1).tolist()
    restless = samples.sample_until_settled(lambda: (noise.pop(),), 0.05, watch=False)
    assert len(restless.times_us) > len(steady.times_us)
    hurried = samples.sample_until_settled(lambda: (10.0,), 0.0, watch=False)
    assert len(hurried.times_us) == samples.MIN_SAMPLES


def test_the_confidence_interval_covers_the_median() -> None:
    """95 % of the intervals, of which PRECISION is half the width, hold the true median."""
    generator = torch.Generator().manual_seed(0)
    trials, covered = 400, 0
    for _ in range(trials):
        values = (torch.rand(40, generator=generator) + 0.5).tolist()  # true median 1
        ordered = sorted(values)
        reach = 1.96 * math.sqrt(40) / 2
        low, high = ordered[math.floor(20 - reach)], ordered[math.ceil(20 + reach)]
        assert samples._precision(values) == pytest.approx((high - low) / 2 / ordered[20])
        covered += low <= 1 <= high
    assert 0.92 < covered / trials <= 1


def test_disturbed_samples_are_set_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    waited = 0
    count = 0

    def sample() -> tuple[float]:
        nonlocal waited, count
        count += 1
        if count % 2:
            waited += 10**9
            return (1000.0,)
        return (10.0,)

    monkeypatch.setattr(samples, "_waited_ns", lambda: waited)
    found = samples.sample_until_settled(sample, 0.01)
    assert {row[0] for row in found.times_us} == {10.0}
    assert found.disturbed == pytest.approx(0.5, abs=0.1)


def test_on_a_busy_machine_the_least_disturbed_samples_remain(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waited = 0
    count = 0

    def sample() -> tuple[float]:
        nonlocal waited, count
        count += 1
        waited += 10 ** (9 + 8 * (count % 7))
        return (float(1 + count % 7),)

    monkeypatch.setattr(samples, "_waited_ns", lambda: waited)
    found = samples.sample_until_settled(sample, 0.2)
    assert len(found.times_us) == samples.MIN_SAMPLES
    assert {row[0] for row in found.times_us} == {1.0}
    assert found.disturbed == 1.0


def test_the_wall_clock_measures_time() -> None:
    found, outputs = clocks.time_wall([lambda: time.sleep(0.002), lambda: 7], budget_s=0.02)
    assert found.median_us >= 1000  # the mean over the two calls
    assert outputs == [None, 7]


@pytest.mark.alone
def test_bytes_to_move() -> None:
    """Three requests: rejected at position 1, all accepted, and a draft that ends after one."""
    drafts = torch.tensor([[5, 6], [5, 6], [5, -1]])
    accepted = torch.tensor([1, 2, 1])
    target = torch.zeros(3, 3, 100)
    row, coin, output = 400, 8 + 4 + 4, 3 * 8 * 4
    assert workload.bytes_to_move(drafts, accepted, target) == 4 * row + (2 + 2 + 1) * coin + output
    half = target.bfloat16()
    assert workload.bytes_to_move(drafts, accepted, half) == 2 * row + 5 * (8 + 2 + 2) + output


def test_warm_and_cold_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workload, "last_level_cache", lambda device: 4 << 20)
    pool = Pool([(1, "warm"), (4, "warm"), (4, "cold")], 2, 4000)
    for size in (1, 4):
        warm = pool.workload(size, 2, budget_s=BUDGET_S)
        assert len(warm.inputs) * size == workload.WARM_REQUESTS
        assert len(warm.inputs) * warm.bytes_moved < pool.cache_bytes
    cold = pool.workload(4, 1, "cold", budget_s=BUDGET_S)
    assert cold.spec_len == 1
    assert len(cold.inputs) * cold.bytes_moved >= workload.COLD_ROTATION * pool.cache_bytes
    starts = {inputs.target_probs.data_ptr() for inputs in cold.inputs}
    assert len(starts) == len(cold.inputs), "each set lies elsewhere in memory"
    for inputs, expected in zip(cold.inputs[:3], cold.expected, strict=False):
        assert torch.equal(reference(inputs).tokens, expected.tokens)
    assert not torch.equal(cold.probe_expected.tokens, cold.expected[0].tokens)


def test_cases_that_cannot_be_had() -> None:
    pool = Pool([(1, "warm"), (1, "cold")], 2, 16)
    with pytest.raises(WorkloadError, match="more than 256 input sets"):
        pool.workload(1, 2, "cold")
    with pytest.raises(WorkloadError, match="not made for B=64"):
        pool.workload(64, 2)
    with pytest.raises(WorkloadError, match=r"GiB .* too much for the .* free memory"):
        Pool([(1 << 20, "warm")], 100, 1 << 20)


def test_operations_are_counted() -> None:
    x = torch.ones(1000)

    def call() -> float:
        return (x + 1).sum().item() + (x * 2)[3].item()

    counts = timing.count_operations(call, "cpu")
    assert counts["operators"] == 6  # add, sum, item, mul, select, item
    assert counts["launches"] is None
    assert counts["synchronizations"] == 2
    assert 8004 <= counts["allocated_bytes"] <= 8064  # two vectors, a sum, scalars as tensors


def test_the_baseline_waits_and_the_others_do_not(case: workload.Workload) -> None:
    counts = {name: timing.operations(implementations.backend(name), case) for name in rsk.BACKENDS}
    assert counts["baseline"].synchronizations > 3 * case.batch_size
    assert counts["vectorized"].synchronizations == counts["fused"].synchronizations == 0
    assert counts["fused"].operators == 1
    assert counts["baseline"].operators > counts["vectorized"].operators > 1
    result_bytes = 8 * case.batch_size * (case.spec_len + 2)
    assert counts["fused"].allocated_bytes == result_bytes


def test_poisoned_memory_is_poisoned_and_put_back() -> None:
    with timing.poisoned_memory():
        assert torch.empty(3, dtype=torch.int64).tolist() == [2**63 - 1] * 3
        assert torch.empty(3).isnan().all()
    assert not torch.are_deterministic_algorithms_enabled()


def test_threads_are_pinned() -> None:
    before = torch.get_num_threads()
    with machine.pinned_threads(1):
        assert torch.get_num_threads() == 1
        assert provenance.provenance("cpu").threads == 1
    assert torch.get_num_threads() == before
    with pytest.raises(ValueError, match="threads: expected at least 1"), machine.pinned_threads(0):
        pass


def test_the_checksum_covers_what_the_cpu_kernel_is_compiled_from() -> None:
    sources = {name: (cuda_dir() / name).read_text() for name in provenance.CPU_SOURCES}
    included = set(re.findall(r'#include "(.+?)"', "".join(sources.values())))
    assert included < set(sources)
    assert len({provenance.sources("cpu"), provenance.sources("cuda")}) == 2


def test_the_checksum_of_a_gpu_leaves_out_what_is_compiled_for_a_cpu_alone() -> None:
    covered = {p for p in provenance.source_files("cuda") if p.suffix != ".py"}
    assert len(covered) > 30
    included = re.findall(r'#include "(.+?)"', "".join(p.read_text() for p in covered))
    assert set(included) & set(provenance.CPU_ONLY) == set()
    assert all((cuda_dir() / name).is_file() for name in provenance.CPU_ONLY)


@pytest.mark.parametrize("backend", rsk.BACKENDS)
def test_the_checksum_covers_what_a_sampler_executes(backend: str) -> None:
    """From probabilities and from logits; ``rsk.base`` reads files and names machines."""
    package = Path(str(rsk.__file__)).parent
    executed: set[Path] = set()

    def note(frame: Any, event: str, arg: object) -> None:
        executed.add(Path(frame.f_code.co_filename))

    draft, target = torch.rand(2, 3, 7), torch.rand(2, 4, 7)
    tokens = torch.zeros(2, 3, dtype=torch.int64)
    sys.setprofile(note)
    try:
        rsk.rejection_sample(tokens, draft.softmax(-1), target.softmax(-1), backend=backend)
        rsk.rejection_sample_from_logits(tokens, draft, target, top_k=3, backend=backend)
    finally:
        sys.setprofile(None)
    ours = {file for file in executed if package in file.parents}
    assert package / "sampler" / "logits.py" in ours
    for device in ("cpu", "cuda"):
        left_out = ours - set(provenance.source_files(device))
        assert {file.parent.name for file in left_out} <= {"base"}


def test_the_checksum_changes_with_any_file(monkeypatch: pytest.MonkeyPatch) -> None:
    before = provenance.sources("cpu")
    files = provenance.source_files("cpu")
    for changed in files:
        others = [file for file in files if file != changed]
        monkeypatch.setattr(provenance, "source_files", lambda device, kept=others: kept)
        assert provenance.sources("cpu") != before, changed


def test_provenance_names_the_machine() -> None:
    found = provenance.provenance("cpu", {"transformers": "5"})
    assert found.device == "cpu"
    assert found.torch == torch.__version__
    assert found.rsk == rsk.__version__
    assert len(found.sources) == 64
    assert found.cache_bytes >= 1 << 20
    assert found.cpu in found.label
    assert found.date[:10] in found.label
    assert "/" not in found.cpu + found.os, "no path of this machine"


@pytest.mark.parametrize("capturable", [True, False])
def test_an_isolated_launch_is_timed_and_checked_where_it_is_asked_for(
    case: workload.Workload, monkeypatch: pytest.MonkeyPatch, capturable: bool
) -> None:
    """With clocks that only say which they are."""
    wrong = False

    def clock(name: str, median_us: float):
        def timed(calls: list[Any], *, budget_s: float) -> tuple[Any, list[Any]]:
            outputs = [call() for call in calls]
            if name == "isolated launch" and wrong:
                clocks.poison(outputs[0])
            return measured.spread(median_us, name), outputs

        return timed

    def eager(calls: list[Any], *, budget_s: float) -> tuple[Any, Any, list[Any]]:
        wall = measured.spread(9e6)
        return wall, wall, [call() for call in calls]

    monkeypatch.setattr(timing, "time_eager", eager)
    monkeypatch.setattr(timing, "time_graph", clock("graph replay", 7e6))
    monkeypatch.setattr(timing, "time_isolated", clock("isolated launch", 8e6))
    on_gpu = dataclasses.replace(case, device=torch.device("cuda"))
    one = dataclasses.replace(implementations.backend("vectorized"), capturable=capturable)
    assert timing.measure(one, on_gpu).isolated is None
    found = timing.measure(one, on_gpu, isolated=True)
    assert found.device.clock == ("graph replay" if capturable else "wall")
    if not capturable:
        assert found.isolated is None
        return
    assert found.isolated is not None
    assert (found.isolated.clock, found.isolated.median_us) == ("isolated launch", 8e6)
    wrong = True
    with pytest.raises(MeasurementError, match="in the timed calls"):
        timing.measure(one, on_gpu, isolated=True)


@pytest.mark.gpu
@pytest.mark.alone
def test_measuring_on_a_gpu() -> None:
    """Each backend on its clock; the fused kernel's share of a graph is below its call's time."""
    pool = Pool([(16, "warm"), (16, "cold")], 4, 32000, device="cuda")
    for cache in ("warm", "cold"):
        gpu_case = pool.workload(16, 4, cache)
        for name in rsk.BACKENDS:
            one = implementations.backend(name)
            found = timing.measure(one, gpu_case, budget_s=0.2, isolated=True)
            assert (found.isolated is None) == (name == "baseline")
            clock = "wall" if name == "baseline" else "graph replay"
            assert found.device.clock == clock
            assert found.call.median_us >= found.host.median_us
        assert found.device.median_us < found.call.median_us
        assert found.isolated is not None
        assert found.isolated.median_us > found.device.median_us
    counts = timing.operations(implementations.backend("fused"), gpu_case)
    assert counts.launches == 1
    assert counts.synchronizations == 0


@pytest.mark.gpu
def test_a_kernel_that_writes_nothing_is_refused_on_a_gpu() -> None:
    gpu_case = Pool([(4, "warm")], 2, 1000, device="cuda").workload(4, 2)

    def call(inputs: Inputs) -> rsk.RejectionSamples:
        right = reference(inputs)
        shape, counts = right.tokens.shape, right.num_accepted
        del right
        return rsk.RejectionSamples(torch.empty(shape, dtype=torch.int64, device="cuda"), counts)

    with pytest.raises(MeasurementError):
        timing.measure(implementation("lazy", call), gpu_case, budget_s=0.1)
