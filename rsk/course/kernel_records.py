"""What was recorded about the CUDA kernels, for a reader whose machine cannot measure them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from rsk.base import folders
from rsk.course import publish
from rsk.measure.benchmark import usual_line
from rsk.measure.comparison import roof_share
from rsk.measure.records import Benchmark, Record, RecordError, parse
from rsk.measure.resources import Resources
from rsk.sampler.kernels import KERNELS, runs_on

if TYPE_CHECKING:
    from rsk.course.lesson import Prediction

RESOURCES = "kernels/resources.json"


@dataclass(frozen=True)
class ResourceTable:
    """The file that ``python -m rsk.measure.resources --save`` writes."""

    nvcc: str
    flags: str
    kernels: tuple[Resources, ...]


def gpu_runs() -> list[Benchmark]:
    """The runs in ``data/benchmarks`` that were made on a GPU, oldest first.

    Raises:
        RecordError: a file there is damaged; names the file and the field.
    """
    found = []
    for path in sorted((folders.data_dir() / "benchmarks").glob("*.json")):
        if path.name != "earlier-work.json":
            found.append(Benchmark.load(path))
    return sorted(
        (one for one in found if one.provenance.device == "cuda"),
        key=lambda one: one.provenance.date,
    )


@dataclass(frozen=True)
class KernelTimes:
    """Where the times of the kernels come from: this machine, a recorded run, or nowhere yet."""

    benchmark: Benchmark | None
    is_recorded: bool

    def at(self, batch_size: int) -> dict[str, Record]:
        """Records by implementation at the largest measured batch size up to this one."""
        line = {} if self.benchmark is None else usual_line(self.benchmark)
        sizes = [size for size in line if size <= batch_size]
        return line[max(sizes)] if sizes else {}

    def compare(self, name: str, guess: Prediction, batch_size: int) -> None:
        """Show a predicted time, in microseconds, beside the measured one, or that there is none.

        Args:
            name: of the kernel.
            guess: from :func:`rsk.course.lesson.predict`.
            batch_size: the largest that may be compared with.
        """
        record = self.at(batch_size).get(name)
        if record is None:
            publish.prose(
                "**Not measured yet on a GPU.** This machine has none that runs this kernel, and "
                "no recorded run in `data/benchmarks` holds it. The emulator is never timed: it "
                "says nothing about speed. The prediction waits."
            )
            return
        if self.is_recorded and self.benchmark is not None:
            publish.banner("recorded", self.benchmark.provenance)
        publish.prose(
            "At B = {{batch}}, K = {{spec}}, V = {{vocab}}, {{dtype}}, {{cache}} cache, median "
            "time on the device ({{clock}}); reading the same bytes and doing nothing else takes "
            "{{roof}} µs, so this is {{share}} of the memory roof.",
            batch=record.batch_size,
            spec=record.spec_len,
            vocab=record.vocab_size,
            dtype=record.dtype,
            cache=record.cache,
            clock=record.device.clock,
            roof=record.roof.median_us,
            share=roof_share(record),
        )
        guess.compare(record.device.median_us)

    def show_choice(self, batch_size: int) -> None:
        """Show the kernels' times against batch size, and how good the choice of ``fused`` is."""
        line = self.at(batch_size)
        kernels = [line[name] for name in KERNELS if name in line]
        if self.benchmark is None or not kernels:
            publish.prose(
                "Whether the rule picks well is **not measured yet**: there is no run of these "
                "kernels on a GPU, here or in `data/benchmarks`."
            )
            return
        from rsk.figures import benchmarks

        if self.is_recorded:
            publish.banner("recorded", self.benchmark.provenance)
        picture = benchmarks.latency_by_batch(self.benchmark, "device")
        publish.figure(**picture._replace(label="fig-kernels")._asdict())
        if "fused" in line:
            best = min(kernels, key=lambda record: record.device.median_us)
            publish.prose(
                "At B = {{size}} the fastest kernel is `{{best}}`, and `fused` takes "
                "{{ratio:.2f}} times its time on the device.",
                size=best.batch_size,
                best=best.implementation,
                ratio=line["fused"].device.median_us / best.device.median_us,
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
        RecordError: a recorded file is damaged.
    """
    if here is not None and _holds_kernels(here):
        return KernelTimes(here, is_recorded=False)
    runs = [one for one in gpu_runs() if _holds_kernels(one)]
    return KernelTimes(runs[-1] if runs else None, is_recorded=bool(runs))


def _holds_kernels(benchmark: Benchmark) -> bool:
    return any(record.implementation in KERNELS for record in benchmark.records)


def show_gpu_run(here: Benchmark) -> None:
    """Publish the newest recorded run on a GPU beside what was measured here, if there is one.

    Args:
        here: the sweep of this run; a GPU's own needs no recorded one beside it.

    Raises:
        RecordError: a recorded file is damaged.
    """
    from rsk.figures import benchmarks

    if here.provenance.device == "cuda":
        publish.prose("This run was made on a GPU; the figures above are its own.")
        return
    runs = gpu_runs()
    if not runs:
        publish.prose(
            "**Not measured yet on a GPU.** This machine has none, and `data/benchmarks` holds no "
            "recorded run. All of the above is about the CPU."
        )
        return
    publish.banner("recorded", runs[-1].provenance)
    for picture in (benchmarks.latency_by_batch(runs[-1], "device"), benchmarks.roofline(runs[-1])):
        publish.figure(**picture._replace(label=f"{picture.label}-gpu")._asdict())


def resources() -> ResourceTable | None:
    """What each kernel takes of a multiprocessor, or ``None`` if nothing was recorded.

    Raises:
        RecordError: the file is not what it should be; names the field.
    """
    path = folders.data_dir() / RESOURCES
    if not path.is_file():
        return None
    try:
        return parse(ResourceTable, json.loads(path.read_text(encoding="utf-8")))
    except (json.JSONDecodeError, RecordError) as error:
        raise RecordError(f"{path}: {error}") from error


def show_resources(label: str = "tab-resources", dtype: str = "float32") -> None:
    """Publish :func:`resources` as a table, one row a kernel, or say that there is none yet."""
    import pandas as pd

    found = resources()
    if found is None:
        publish.prose(
            "**Not recorded yet.** `data/kernels/resources.json` is made where the CUDA compiler "
            "`nvcc` is installed; it is not there."
        )
        return
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
        label=label,
        caption=f"Registers a thread, for each architecture, and shared memory a block, {dtype}. "
        f"nvcc {found.nvcc}. A dash: the architecture has no clusters.",
        formats=dict.fromkeys((name for name in map(str, frame) if name.startswith("sm_")), ".0f"),
    )
    spilled = sum(one.spill_stores + one.spill_loads for one in found.kernels)
    publish.prose(
        "Over all {{count}} combinations of kernel, dtype and architecture, {{spilled}}. The most "
        "registers are {{most_registers}}, in `{{most_kernel}}` with {{most_dtype}} on "
        "sm_{{most_architecture}}.",
        count=len(found.kernels),
        spilled="nothing is spilled" if spilled == 0 else f"{spilled:,} bytes are spilled",
        **_most_registers(found),
    )


def _most_registers(found: ResourceTable) -> dict[str, object]:
    most = max(found.kernels, key=lambda one: one.registers)
    names = ("registers", "kernel", "dtype", "architecture")
    return {f"most_{name}": getattr(most, name) for name in names}
