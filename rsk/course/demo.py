"""``rsk demo`` and notebook 00: the three implementations agree, and one of them is fast.

Synthetic data, nothing to download, half a minute. The command times the implementations in turns
(:mod:`rsk.course.race`), so that it can be shown on a machine that does other things too.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from rsk.base import fonts, machine, templates
from rsk.base.numbers import digits, duration
from rsk.check.synthetic import make_batch
from rsk.course import race
from rsk.course.race import Row, Timed
from rsk.measure import benchmark, comparison
from rsk.measure.comparison import BASELINE
from rsk.measure.implementations import backend
from rsk.measure.over_runs import Series
from rsk.measure.provenance import provenance
from rsk.measure.records import Benchmark, Operations
from rsk.measure.sweep import Sweep
from rsk.measure.timing import MeasurementError, count_operations, difference
from rsk.measure.workload import Inputs
from rsk.sampler import build
from rsk.sampler.api import BACKENDS

FIGURE_S = 0.1
"""Seconds for each time of the figure."""
RACE_S = 2.5
"""Seconds for each batch size at most: with the rest, half a minute on a busy machine too."""


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
    rows: list[Row]


def run(
    *,
    device: torch.device | str = "cpu",
    batch_sizes: Sequence[int] = Sweep.batch_sizes,
    spec_len: int = 4,
    vocab_size: int = 32000,
    seed: int = 0,
    figure: str | os.PathLike[str] | None = None,
    console: Console | None = None,
    language: str = templates.LANGUAGE,
) -> Demo:
    """Show that the implementations agree, time them in turns, and say why one is fast.

    Args:
        device: as for :func:`rsk.base.machine.device`.
        batch_sizes: B, several.
        spec_len: K.
        vocab_size: V.
        seed: of the synthetic data.
        figure: file to draw a comparison to, such as ``demo.png`` or ``demo.svg``, measured as
            ``rsk benchmark`` does; needs matplotlib, seaborn and pandas.
        console: where to print; standard output by default.
        language: of what is printed, and of the figure.

    Raises:
        ValueError: an unknown device or language, a size out of range, or an unknown kind of
            figure.
        MeasurementError: the implementations do not agree.
        FontError: the figure needs one that is missing; says what to install.
    """
    if figure is not None and Path(figure).suffix not in (".png", ".svg", ".pdf"):
        raise ValueError(f"figure: expected a name in .png, .svg or .pdf, got {figure}")
    if figure is not None and (family := templates.phrases(language)["font"]):
        fonts.find(family)
    device = machine.device(device)
    console = console or Console()
    sweep = Sweep(
        batch_sizes=tuple(batch_sizes), spec_lens=(spec_len,), vocab_sizes=(vocab_size,), seed=seed
    )
    on_gpu = device.type == "cuda"
    say = partial(_say, console, language)
    say("opening", spec_len=spec_len, vocab_size=vocab_size, on_gpu=on_gpu)

    names = available(device)
    agreed = agreement(names, batch_sizes, spec_len, vocab_size, device=device, seed=seed)
    say("agreement", agreement=agreed)

    say("times")
    rows = []
    for i, size in enumerate(batch_sizes):
        batch = make_batch(size, spec_len, vocab_size, device=device, seed=seed + i)
        inputs = Inputs(*batch, seed)
        calls = {name: _until_done(name, inputs, on_gpu) for name in names}
        rows.append(race.race(calls, size, budget_s=RACE_S))
    console.print(table(rows, on_gpu, language))
    label = templates.labels(language)(provenance(device).label)
    console.print(f"  {label}\n", style="dim", highlight=False)
    say("certainty", **_certainty(rows, on_gpu))
    say("reason", **_reason(rows[-1], inputs, device))
    if figure is not None:
        path = Path(figure)
        path.parent.mkdir(parents=True, exist_ok=True)  # before anything is measured for it
        found = benchmark.run(
            sweep, device=device, chosen=names, budget_s=FIGURE_S, console=console
        )
        _draw(found, path, language)
        console.print(f"{templates.phrases(language)['figure']}: {path}\n", soft_wrap=True)
    return Demo(agreed, rows)


def _draw(found: Benchmark, path: Path, language: str) -> None:
    """Draw the comparison to a file."""
    from rsk.figures import benchmarks, plotting

    picture = benchmarks.latency_by_batch(found)
    plotting.translate(picture.fig, language)
    plotting.entitle(picture.fig, plotting.exhibit(picture, language).title)
    plotting.save(picture.fig, path)


def _until_done(name: str, inputs: Inputs, on_gpu: bool) -> Callable[[], object]:
    """A call that returns when its result is there."""
    call = backend(name).bind(inputs)
    if not on_gpu:
        return call

    def wait() -> None:
        call()
        torch.cuda.synchronize()

    return wait


def _say(console: Console, language: str, block: str, **values: object) -> None:
    """Print a block of ``demo.md``: its headings and paragraphs."""
    for paragraph in templates.render(f"demo.md#{block}", values, language).split("\n\n"):
        heading = paragraph.startswith("**") and paragraph.endswith("**")
        text = Text.from_markup(
            re.sub(r"\*\*(.+?)\*\*", r"[bold]\1[/]", paragraph.replace("[", "\\["))
        )
        padding = 0, 4, 1, 0 if heading else 2
        text = _broken(text, console.width - padding[1] - padding[3])
        console.print(Padding(text, padding))


def _broken(text: Text, width: int) -> Text:
    """The text in lines; between Chinese letters any may end, where rich breaks at spaces alone."""
    if not fonts.is_needed(text.plain):
        return text
    lines: list[Text] = []
    for line in text.split():
        ends, begin, end = [], 0, 0
        for piece in fonts.pieces(line.plain):
            if fonts.columns(line.plain[begin:end] + piece.rstrip()) > width:
                ends.append(begin := end)
            end += len(piece)
        lines += line.divide(ends)
    return Text("\n").join(lines)


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


def table(rows: Sequence[Row], on_gpu: bool, language: str = templates.LANGUAGE) -> Table:
    """A line for each batch size: the times, and how many times faster the last one is.

    A time that is only known to be no longer stands behind a ≤.
    """
    drawn = Table(box=None, padding=(0, 2), pad_edge=True)
    for column in _columns(rows, on_gpu, language):
        drawn.add_column(column, justify="right")
    unclear = templates.render("demo.md#unclear", language=language)
    for row in rows:
        last = list(row.times)[-1]
        low, high = row.between(last)
        if row.certain(last):
            ratio = f"[bold]{digits(row.ratio(last), 2)} ×[/]"
        elif low > 1 and row.rounds >= race.FEWEST:
            ratio = f"{digits(low, 2)} – {digits(high, 2)} ×"
        else:
            ratio = unclear
        times = [
            f"{'' if row.known(name) else '≤ '}{duration(time.median)}"
            for name, time in row.times.items()
        ]
        drawn.add_row(str(row.batch_size), *times, ratio)
    return drawn


def recorded(found: Benchmark) -> list[Row]:
    """The lines of a recorded benchmark: its usual point at each batch size.

    A ratio is the median of those within whole runs, as it is in the report.
    """
    rows = []
    for size, by_name in comparison.usual_line(found).items():
        series = {name: by_name[name] for name in BACKENDS if name in by_name}
        rows.append(
            Row(
                size,
                {name: Timed.known(one.call.median_us) for name, one in series.items()},
                ratios={
                    name: comparison.ratio(by_name[BASELINE], one).median
                    for name, one in series.items()
                },
            )
        )
    return rows


def _columns(rows: Sequence[Row], on_gpu: bool, language: str = templates.LANGUAGE) -> list[str]:
    """The names above the columns, as a class knows them."""
    values = {"names": list(rows[0].times), "on_gpu": on_gpu}
    return templates.render("demo.md#columns", values, language).split(" | ")


def _certainty(rows: Sequence[Row], on_gpu: bool) -> dict[str, object]:
    """What is said about how well the ratios are known."""
    last = list(rows[0].times)[-1]
    doubtful = [row.batch_size for row in rows if not row.certain(last)]
    return {
        "too_long": not all(row.known(name) for row in rows for name in row.times),
        "last": _columns(rows, on_gpu)[-2],
        "certainty": race.CERTAINTY,
        "doubtful": doubtful,
        "settled": len(doubtful) < len(rows),
    }


def _reason(row: Row, inputs: Inputs, device: torch.device | str) -> dict[str, object]:
    """What one call at a batch size asks of the machine, for the first and the last."""
    first, *_, last = row.times
    count = {
        name: Operations(
            implementation=name,
            batch_size=row.batch_size,
            spec_len=inputs.draft_tokens.shape[1],
            vocab_size=inputs.target_probs.shape[2],
            **count_operations(backend(name).bind(inputs), device),
        )
        for name in (first, last)
    }
    return {
        "batch_size": row.batch_size,
        "baseline": count[first],
        "other": count[last],
        "is_kernel": last == "fused",
        "last": _columns([row], torch.device(device).type == "cuda")[-2],
    }


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
