"""``rsk demo`` and notebook 00: the three implementations agree, and one of them is fast.

Synthetic data, nothing to download, under half a minute with the first compilation.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from rsk.check.synthetic import make_batch
from rsk.measure import benchmark, comparison
from rsk.measure.comparison import BASELINE, digits, duration, megabytes, plural
from rsk.measure.records import Benchmark, Operations, Record
from rsk.measure.timing import MeasurementError, difference
from rsk.measure.workload import Inputs, backend
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
        names = f"{', '.join(self.backends[:-1])} and {self.backends[-1]}"
        return (
            f"{self.requests:,} requests, {self.accepted:,} draft tokens accepted, "
            f"{self.sampled:,} tokens sampled: {names} return the same tokens, bit for bit."
        )


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
    sweep = benchmark.Sweep(
        batch_sizes=tuple(batch_sizes), spec_lens=(spec_len,), vocab_sizes=(vocab_size,), seed=seed
    )
    console.print("\n[bold]The rejection sampler of speculative decoding[/]\n")
    _say(
        console,
        f"A draft model has proposed K = {spec_len} tokens for each of B requests, and the target "
        f"model has scored them over V = {vocab_size:,} tokens. The sampler decides how many to "
        "keep and draws the token that follows, so that the text is distributed as the target's "
        "own. Three implementations of it, on synthetic data of which "
        f"{sweep.acceptances[0]:.0%} is accepted:",
    )
    for name, what in (
        ("baseline", "a Python loop over requests and tokens"),
        ("vectorized", "PyTorch operators on the whole batch"),
        ("fused", f"one {'CUDA' if device.startswith('cuda') else 'C++'} kernel"),
    ):
        console.print(f"  [bold]{name:11}[/] {what}")

    names = available(device)
    console.print("\n[bold]1  Do they agree?[/]\n")
    agreed = agreement(names, batch_sizes, spec_len, vocab_size, device=device, seed=seed)
    _say(console, str(agreed))

    console.print("[bold]2  How long do they take?[/]\n")
    found = benchmark.run(sweep, device=device, chosen=names, budget_s=BUDGET_S, console=console)
    console.print(bars(found))
    console.print(f"  {found.provenance.label}\n", style="dim", highlight=False)

    console.print("[bold]3  Why?[/]\n")
    explanation = explain(found)
    for sentence in explanation:
        _say(console, sentence)
    for line in found.refused:
        console.print(f"[red]refused[/] {line}", highlight=False)
    if figure is not None:
        from rsk.figures import benchmarks

        path = Path(figure)
        path.parent.mkdir(parents=True, exist_ok=True)
        benchmarks.latency_by_batch(found).fig.savefig(path, dpi=160)
        console.print(f"Figure: {path}\n", soft_wrap=True)
    return Demo(agreed, found, explanation)


def _say(console: Console, text: str) -> None:
    console.print(Padding(Text(text), (0, 4, 1, 2)))


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
    """The times of a benchmark's batch sizes as bars, each relative to the slowest of its size."""
    table = Table(box=None, padding=(0, 1), pad_edge=True)
    table.add_column("B", justify="right")
    table.add_column("")
    table.add_column("median", justify="right")
    table.add_column("± IQR/2", justify="right", style="dim")
    table.add_column("", width=BAR_WIDTH)
    table.add_column("speed-up", justify="right")
    colors = {"baseline": "white", "vectorized": "yellow", "fused": "cyan"}
    for size, by_name in benchmark.usual_line(found).items():
        slowest = max(record.call.median_us for record in by_name.values())
        for i, (name, record) in enumerate(by_name.items()):
            color = colors.get(name, "magenta")
            ratio = f"{digits(comparison.ratio(by_name[BASELINE], record))}×"
            table.add_row(
                str(size) if i == 0 else "",
                f"[{color}]{name}[/]",
                duration(record.call.median_us),
                f"{record.call.relative / 2:.0%}" + (" busy" if record.call.busy else ""),
                f"[{color}]{bar(record.call.median_us / slowest)}[/]",
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
    """Why fused is faster, in two sentences; and where vectorized is not faster, one more.

    Every number is from the benchmark: the operators and the waits are counted by PyTorch's
    profiler, the memory roof is measured in the same run. Times that other processes disturbed
    are passed over if there are others, and named. Without fused, the two sentences are left out.
    """
    line = benchmark.usual_line(found)
    counts = {(c.implementation, c.batch_size): c for c in found.operations}
    quiet = _quiet(line)
    busy = [size for size in line if size not in quiet or any(map(_is_busy, line[size].values()))]
    sentences = []
    if sizes := [size for size, by_name in quiet.items() if "fused" in by_name]:
        size = max(sizes)
        base, fused = line[size][BASELINE], line[size]["fused"]
        ratio = comparison.ratio(base, fused)
        verdict = (
            f"{digits(ratio)} times faster" if ratio > 1 else f"{digits(1 / ratio)} times slower"
        )
        sentences.append(
            f"At B = {size} the baseline {_work(counts[BASELINE, size])}; the fused sampler "
            f"{_work(counts['fused', size])}, and takes {duration(fused.call.median_us)} instead "
            f"of {duration(base.call.median_us)}: {verdict}."
        )
        sentences.append(
            "It ends each request at the first rejection and reads the rows that it samples from, "
            f"{megabytes(fused.bytes_moved)} in all, once"
            + (
                "."
                if fused.roof.busy  # such a roof is too slow, and says nothing
                else f": this takes {digits(1 / fused.roof_share, 2)} times as long as only "
                "reading so many bytes on this machine, where the baseline takes "
                f"{digits(1 / base.roof_share, 2)} times as long."
            )
        )
    if reasons := why_not_vectorized(found):
        sentences.append(reasons)
    if busy:
        sentences.append(
            f"Other programs kept the processor busy (at B = {', '.join(map(str, busy))}): the "
            "times marked busy are too long. Run it again when the machine is quiet."
        )
    return sentences


def _is_busy(record: Record) -> bool:
    return record.call.busy


def _quiet(line: dict[int, dict[str, Record]]) -> dict[int, dict[str, Record]]:
    """The batch sizes at which no time was disturbed, or all if there is none."""
    quiet = {
        size: by_name for size, by_name in line.items() if not any(map(_is_busy, by_name.values()))
    }
    return quiet or line


def _work(count: Operations) -> str:
    """What one call asks for, in words."""
    if count.launches is None:
        work = f"calls {plural(count.operators, 'PyTorch operator')}"
    else:
        work = f"makes {plural(count.launches, 'GPU launch')}"
    if count.synchronizations:
        return f"{work} and waits {plural(count.synchronizations, 'time')} to read a value"
    return f"{work} and never waits for a value"


def why_not_vectorized(found: Benchmark) -> str:
    """Where vectorized is not faster than the baseline, and why; empty if it is everywhere."""
    line = benchmark.usual_line(found)
    counts = {(c.implementation, c.batch_size): c for c in found.operations}
    sizes = [
        size
        for size, by_name in _quiet(line).items()
        if "vectorized" in by_name
        and comparison.ratio(by_name[BASELINE], by_name["vectorized"]) <= 1
    ]
    if not sizes:
        return ""
    few = [
        size
        for size in sizes
        if counts["vectorized", size].operators >= counts[BASELINE, size].operators
    ]
    many = [size for size in sizes if size not in few]
    times = ", ".join(
        f"{duration(line[size]['vectorized'].call.median_us)} against "
        f"{duration(line[size][BASELINE].call.median_us)} at B = {size}"
        for size in sizes
    )
    reasons = []
    if few:
        size = max(few)
        reasons.append(
            f"for few requests its {counts['vectorized', size].operators} operators are more than "
            f"the baseline's {counts[BASELINE, size].operators} (B = {size})"
        )
    if many:
        size = max(many)
        allocated = counts["vectorized", size].allocated_bytes
        cache = found.provenance.cache_bytes
        fits = (
            f"more than the {megabytes(cache)} of the last-level cache"
            if allocated > cache
            else "although no request needs more than two rows at a time"
        )
        reasons.append(
            f"at B = {size} it has fewer operators, but each makes a tensor of the whole batch, "
            f"{megabytes(allocated)} in all, {fits}"
        )
    return f"The vectorized sampler is not always faster ({times}): {'; and '.join(reasons)}."
