"""What was recorded about the CUDA kernels, for a reader whose machine cannot measure them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from rsk.course import publish
from rsk.measure import publishable_runs, resources
from rsk.measure.comparison import usual_line
from rsk.measure.over_runs import Series
from rsk.measure.records import Benchmark, RecordError
from rsk.sampler import registry
from rsk.sampler.kernels import KERNELS, runs_on

if TYPE_CHECKING:
    from rsk.course.prediction import Prediction


@dataclass(frozen=True)
class KernelTimes:
    """Where the times of the kernels come from: this machine, or a recorded run."""

    benchmark: Benchmark
    is_recorded: bool

    def at(self, batch_size: int) -> dict[str, Series]:
        """What was measured at the largest batch size up to this one, by implementation."""
        line = usual_line(self.benchmark)
        sizes = [size for size in line if size <= batch_size]
        return line[max(sizes)] if sizes else {}

    def compare(self, name: str, guess: Prediction, batch_size: int) -> None:
        """Show a predicted time, in microseconds, beside the measured one, or that there is none.

        Args:
            name: of the kernel.
            guess: from :func:`rsk.course.prediction.predict`.
            batch_size: the largest that may be compared with.
        """
        record = self.at(batch_size).get(name)
        if record is None:
            publish.passage("course.md#not-measured", name=name)
            return
        self.show_banner()
        publish.passage("course.md#kernel-time", record=record)
        guess.compare(record.device.median)

    def show_choice(self, batch_size: int) -> None:
        """Show the kernels' times against batch size, and how good the choice of ``fused`` is.

        Args:
            batch_size: the largest at which to judge it.

        Raises:
            RecordError: nothing was measured up to there.
        """
        from rsk.figures import benchmarks

        line = self.at(batch_size)
        kernels = [line[name] for name in KERNELS if name in line]
        if not kernels or "fused" not in line:
            raise RecordError(f"the kernels were not measured up to B = {batch_size}")
        self.show_banner()
        steps = benchmarks.only(self.benchmark, registry.OURS)
        picture = benchmarks.latency_by_batch(steps, "device")
        publish.figure(**picture.relabelled("fig-kernels")._asdict())
        best = min(kernels, key=lambda record: record.device.median)
        publish.passage("course.md#choice", best=best, fused=line["fused"])

    def show_banner(self) -> None:
        """Say where the times are from, if they are not from here."""
        if self.is_recorded:
            publish.banner("recorded", self.benchmark.provenance)


def show_kernels() -> None:
    """Publish the steps of the ladder as a table: each kernel's name, its idea, what it needs."""
    import pandas as pd

    publish.table(
        pd.DataFrame(
            {"step": step, "kernel": one.name, "its idea": one.idea, "runs on": one.needs}
            for step, one in enumerate(registry.KERNELS.values(), start=1)
        ),
        label="tab-steps",
        values={},
    )


def names_to_measure(device: torch.device) -> list[str]:
    """The backends, and on a GPU the kernels that it runs."""
    from rsk.course.demo import available

    names = available(device)  # without a compiler there is no fused one
    if device.type == "cuda" and "fused" in names:
        names += [name for name in KERNELS if runs_on(name, device)]
    return names


def kernel_times(here: Benchmark | None = None) -> KernelTimes:
    """The times of the kernels: measured here if they were, else the newest recorded run.

    Args:
        here: what was measured on this machine.

    Raises:
        RecordError: no recorded run may be published; says why.
    """
    if here is not None and any(record.implementation in KERNELS for record in here.records):
        return KernelTimes(here, is_recorded=False)
    return KernelTimes(publishable_runs.newest("cuda"), is_recorded=True)


def show_gpu_run(here: Benchmark) -> None:
    """Publish the newest recorded run on a GPU beside what was measured here.

    Args:
        here: the sweep of this run; a GPU's own needs no recorded one beside it.

    Raises:
        RecordError: no recorded run may be published; says why.
    """
    from rsk.figures import benchmarks, device_times

    if here.provenance.device == "cuda":
        publish.passage("course.md#own-gpu")
        return
    run = benchmarks.only(publishable_runs.newest("cuda"), registry.OURS)
    publish.banner("recorded", run.provenance)
    for picture in (benchmarks.latency_by_batch(run, "device"), device_times.roofline(run)):
        publish.figure(**picture.relabelled(f"{picture.label}-gpu")._asdict())


def show_resources(dtype: str = "float32") -> None:
    """Publish what each kernel takes of a multiprocessor, one row a kernel.

    Raises:
        RecordError: nothing was recorded, or the file is damaged.
    """
    import pandas as pd

    found = resources.load()
    rows: dict[str, dict[str, object]] = {}
    for one in found.kernels:
        if one.dtype == dtype:
            row = rows.setdefault(one.kernel, {"kernel": one.kernel})
            row[f"sm_{one.architecture}"] = one.registers
            row["shared bytes"] = one.shared_bytes
    frame = pd.DataFrame(list(rows.values()))
    shared = frame.pop("shared bytes")
    publish.table(
        frame.assign(**{"shared bytes": shared}),
        label="tab-resources",
        values={"dtype": dtype, "nvcc": found.nvcc},
        formats=dict.fromkeys((name for name in map(str, frame) if name.startswith("sm_")), ".0f"),
    )
    most = max(found.kernels, key=lambda one: one.registers)
    publish.passage("course.md#resources", resources=found, most=most)
