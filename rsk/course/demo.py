"""``rsk demo`` and notebook 00: the three implementations agree, and one of them is fast.

Synthetic data, nothing to download, under half a minute with the first compilation.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from rsk.base import templates
from rsk.base.numbers import duration, run_range, times
from rsk.check.synthetic import make_batch
from rsk.measure import benchmark, comparison
from rsk.measure.comparison import BASELINE
from rsk.measure.implementations import backend
from rsk.measure.records import Benchmark
from rsk.measure.series import Series
from rsk.measure.sweep import Sweep
from rsk.measure.timing import MeasurementError, difference
from rsk.measure.workload import Inputs
from rsk.sampler import build
from rsk.sampler.api import BACKENDS

BAR_WIDTH = 28
BUDGET_S = 0.1
"""Seconds for each time: enough for two digits, and the whole takes half a minute."""


@dataclass(frozen=True)
class Agreement:
    """How much was compared before it was said that the implementations agree."""

    backends: tuple[str, ...]
    requests: int
    accepted: int
    """Draft tokens that were accepted."""
    sampled: int
    """Tokens that were sampled: one a request."""

    def __str__(self) -> str:
        return templates.render("demo.md#agreement", {"agreement": self})


@dataclass(frozen=True)
class Demo:
    """What the demo found."""

    agreement: Agreement
    benchmark: Benchmark
    explanation: list[str]


def run(
    *,
    device: str = "cpu",
    batch_sizes: Sequence[int] = (1, 4, 16, 64),
    spec_len: int = 4,
    vocab_size: int = 32000,
    seed: int = 0,
    figure: str | os.PathLike[str] | None = None,
    console: Console | None = None,
) -> Demo:
    """Show that the implementations agree, time them, draw the comparison, and say why.

    Args:
        device: ``"cpu"`` or ``"cuda"``.
        batch_sizes: B, several.
        spec_len: K.
        vocab_size: V.
        seed: of the synthetic data.
        figure: file to draw the comparison to, such as ``demo.png`` or ``demo.svg``; needs
            matplotlib, seaborn and pandas.
        console: where to print; standard output by default.

    Raises:
        ValueError: an unknown device, a size out of range, or an unknown kind of figure.
        MeasurementError: the implementations do not agree.
    """
    if figure is not None and Path(figure).suffix not in (".png", ".svg", ".pdf"):
        raise ValueError(f"figure: expected a name in .png, .svg or .pdf, got {figure}")
    benchmark.check_device(device)
    console = console or Console()
    sweep = Sweep(
        batch_sizes=tuple(batch_sizes), spec_lens=(spec_len,), vocab_sizes=(vocab_size,), seed=seed
    )
    values = {
        "spec_len": spec_len,
        "vocab_size": vocab_size,
        "acceptance": sweep.acceptances[0],
        "on_gpu": device.startswith("cuda"),
    }
    _say(console, "opening", **values)

    names = available(device)
    agreed = agreement(names, batch_sizes, spec_len, vocab_size, device=device, seed=seed)
    _say(console, "agreement", agreement=agreed)

    _say(console, "times")
    found = benchmark.run(sweep, device=device, chosen=names, budget_s=BUDGET_S, console=console)
    console.print(bars(found))
    console.print(f"  {found.provenance.label}\n", style="dim", highlight=False)

    explanation = explain(found)
    _say(console, "reasons", reasons=explanation)
    for line in found.refused:
        console.print(f"[red]refused[/] {line}", highlight=False)
    if figure is not None:
        from rsk.figures import benchmarks, plotting

        path = Path(figure)
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = benchmarks.latency_by_batch(found)
        plotting.entitle(picture.fig, plotting.exhibit(picture).title)
        picture.fig.savefig(path, dpi=160)
        console.print(f"Figure: {path}\n", soft_wrap=True)
    return Demo(agreed, found, explanation)


def _say(console: Console, block: str, **values: object) -> None:
    """Print a block of ``demo.md``: its headings and paragraphs."""
    for paragraph in templates.render(f"demo.md#{block}", values).split("\n\n"):
        heading = paragraph.startswith("**") and paragraph.endswith("**")
        text = Text.from_markup(
            re.sub(r"\*\*(.+?)\*\*", r"[bold]\1[/]", paragraph.replace("[", "\\["))
        )
        console.print(Padding(text, (0, 4, 1, 0 if heading else 2)))


def available(device: torch.device | str) -> list[str]:
    """The backends that run on a device; without a compiler there is no fused one."""
    kind = torch.device(device).type
    return [name for name in BACKENDS if name != "fused" or build.available(kind)]


def agreement(
    names: Sequence[str],
    batch_sizes: Sequence[int],
    spec_len: int,
    vocab_size: int,
    *,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> Agreement:
    """Run the backends on the same inputs and compare their tokens.

    Args:
        names: of backends; the first is compared with the others.
        batch_sizes: B; a batch is made for each, and run with two seeds.
        spec_len: K.
        vocab_size: V.
        device: where.
        seed: of the batches.

    Raises:
        MeasurementError: they differ; says where.
    """
    requests = accepted = 0
    for i, size in enumerate(batch_sizes):
        batch = make_batch(size, spec_len, vocab_size, device=device, seed=seed + i)
        for run_seed in (seed, seed - 1 - i):
            inputs = Inputs(*batch, run_seed)
            first, *others = (backend(name).bind(inputs)() for name in names)
            for name, result in zip(names[1:], others, strict=True):
                if fault := difference(result, first):
                    raise MeasurementError(
                        f"{name} and {names[0]} differ at B={size}, seed={run_seed}: {fault}"
                    )
            requests += size
            accepted += int(first.num_accepted.sum())
    return Agreement(tuple(names), requests, accepted, requests)


def bars(found: Benchmark) -> Table:
    """Times of a call until its result is there as bars, relative to the slowest of a batch size.

    Beside each stands the range over the runs, or, of a single run, half the interquartile range of
    its samples.
    """
    one_run = comparison.runs_of(found.records) == 1
    table = Table(box=None, padding=(0, 1), pad_edge=True)
    table.add_column("B", justify="right")
    table.add_column("")
    table.add_column("median", justify="right")
    table.add_column("± IQR/2" if one_run else "range", justify="right", style="dim")
    table.add_column("", width=BAR_WIDTH)
    table.add_column("speed-up", justify="right")
    colors = {"baseline": "white", "vectorized": "yellow", "fused": "cyan"}
    for size, by_name in comparison.usual_line(found).items():
        slowest = max(one.call.median for one in by_name.values())
        for i, (name, one) in enumerate(by_name.items()):
            color = colors.get(name, "magenta")
            ratio = f"{times(comparison.ratio(by_name[BASELINE], one))}×"
            spread = f"{one.call.within / 2:.0%}" if one.call.runs == 1 else run_range(one.call)
            table.add_row(
                str(size) if i == 0 else "",
                f"[{color}]{name}[/]",
                duration(one.call.median),
                spread + (" busy" if one.call.busy else ""),
                f"[{color}]{bar(one.call.median / slowest)}[/]",
                "" if name == BASELINE else ratio,
            )
        table.add_row()
    return table


def bar(share: float, width: int = BAR_WIDTH) -> str:
    """A horizontal bar of eighths of a character; never empty."""
    eighths = max(1, round(share * width * 8))
    full, rest = divmod(eighths, 8)
    return "█" * full + (" ▏▎▍▌▋▊▉"[rest] if rest else "")


def explain(found: Benchmark) -> list[str]:
    """Why fused is faster, in two paragraphs; and where vectorized is not faster, one more.

    Every number is from the benchmark: the operators and the waits are counted by PyTorch's
    profiler, the memory roof is measured in the same run. Times that other processes disturbed
    are passed over if there are others, and named. Without fused, the two are left out.
    """
    line = comparison.usual_line(found)
    quiet = _quiet(line)
    sizes = [size for size, by_name in quiet.items() if "fused" in by_name]
    values: dict[str, object] = {
        "fused": None,
        "losses": losses(found),
        "cache_bytes": found.provenance.cache_bytes,
        "busy": [size for size, by_name in line.items() if any(map(_is_busy, by_name.values()))],
    }
    if sizes:
        by_name = line[max(sizes)]
        counted = {c.implementation: c for c in found.operations if c.batch_size == max(sizes)}
        values |= {
            "fused": by_name["fused"],
            "baseline": by_name[BASELINE],
            "counted": counted,
            "ratio": comparison.ratio(by_name[BASELINE], by_name["fused"]),
        }
    text = templates.render("demo.md#why", values)
    return [" ".join(paragraph.split()) for paragraph in text.split("\n\n") if paragraph.strip()]


def _is_busy(one: Series) -> bool:
    return one.call.busy


def _quiet(line: dict[int, dict[str, Series]]) -> dict[int, dict[str, Series]]:
    """The batch sizes at which no time was disturbed, or all if there is none."""
    quiet = {
        size: by_name for size, by_name in line.items() if not any(map(_is_busy, by_name.values()))
    }
    return quiet or line


class Loss(NamedTuple):
    """A batch size at which vectorized is not faster than the baseline."""

    batch_size: int
    vectorized: Series
    baseline: Series
    operators: int
    """That one call of vectorized asks for."""
    baseline_operators: int
    allocated_bytes: int

    @property
    def more_operators(self) -> bool:
        """Whether the number of operators explains it."""
        return self.operators >= self.baseline_operators


def losses(found: Benchmark) -> list[Loss]:
    """Where vectorized is faster in no run, at batch sizes that nothing disturbed."""
    counts = {(c.implementation, c.batch_size): c for c in found.operations}
    return [
        Loss(
            size,
            by_name["vectorized"],
            by_name[BASELINE],
            counts["vectorized", size].operators,
            counts[BASELINE, size].operators,
            counts["vectorized", size].allocated_bytes,
        )
        for size, by_name in _quiet(comparison.usual_line(found)).items()
        if "vectorized" in by_name
        and comparison.ratio(by_name[BASELINE], by_name["vectorized"]).most <= 1
    ]
