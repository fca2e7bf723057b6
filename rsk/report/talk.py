"""The talk: its words from ``report/<language>/talk.md``, its figures, and what its demos print.

``rsk report`` makes ``slides.pdf`` and ``script.pdf`` from it, from recorded data only.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rsk import export
from rsk.base import fonts, templates
from rsk.base.templates import LANGUAGE
from rsk.course import demo, python_kernels
from rsk.export.talk import Drawn, Material
from rsk.figures import benchmarks, decoding, device_times, memory_access, plotting, slides
from rsk.figures.lessons import law
from rsk.measure.comparison import BASELINE
from rsk.measure.implementations import PYTORCH
from rsk.measure.publishable_runs import SIMPLE_KERNEL
from rsk.measure.records import Benchmark
from rsk.report import measurements, values
from rsk.report.computed_here import Shortcut, Written
from rsk.report.measurements import Measurements
from rsk.report.values import Story
from rsk.sampler.api import BACKENDS

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.legend import Legend

    from rsk.figures.plotting import Picture

SOURCE = "talk.md"
ASPECT = (6.4, 2.5)
"""Width and height in inches at which a figure is drawn: on a slide it is twice as large."""
BESIDE = {"latency": (3.9, 3.0)}
"""The same of figures that stand beside a table."""
LARGER = 1.25
"""By how much the labels of the report's figures grow for a slide."""
STEPS = (*BACKENDS[:-1], "compiled", SIMPLE_KERNEL, "loads_in_flight", "cluster", BACKENDS[-1])
"""On the ladder: what the slides before it explain, and what PyTorch's compiler makes."""
EXAMPLE_ACCEPTED = 2
"""Guesses that the request on the slides keeps."""
PROMPT, SEED, NEW_TOKENS = "def read(self, size=-1):", 7, 80
"""Of the text that the two models write; the command in the demo is given the same."""


def write(folder: Path, language: str = LANGUAGE, presenter: str = "") -> list[Path]:
    """Write ``slides.pdf`` and ``script.pdf``.

    Args:
        folder: where to.
        language: of the words.
        presenter: who gives the talk; shown on the title slide.

    Raises:
        RecordError: a record is missing, damaged, or may not be published; names it.
        TemplateError: the words name an unknown value; says where.
        ExportError: the words name another unknown thing, or a slide does not fit its page; names
            the line. Older files are left as they were.
        FontError: the language's font is missing; says what to install.
    """
    source = templates.folder(language) / SOURCE
    made = replace(material(measurements.gather(), language), presenter=presenter)
    return export.export_talk(source, made, folder)


def material(found: Measurements, language: str = LANGUAGE) -> Material:
    """The talk's words with their values, and what they name."""
    written = Written.by_the_pair(PROMPT, SEED, new_tokens=NEW_TOKENS)
    named = values.talk(found, written)
    story, shortcut = named["story"], named["shortcut"]
    assert isinstance(story, Story) and isinstance(shortcut, Shortcut)
    return Material(
        text=templates.render(SOURCE, named, language),
        figures={
            name: partial(_draw, draw, language, BESIDE.get(name, ASPECT))
            for name, draw in pictures(found, story, shortcut).items()
        },
        texts={
            "generated": lambda: written.runs,
            "demo": lambda: [(demonstrated(found.cpu.value, language), "prompt")],
        },
        epoch=found.epoch,
        language=language,
    )


# --- figures --------------------------------------------------------------------------------------


def pictures(
    found: Measurements, story: Story, shortcut: Shortcut
) -> dict[str, Callable[[], Picture]]:
    """The figures by name: the report's with fewer lines, and the talk's own."""
    gpu, cpu, study = found.gpu.value, found.cpu.value, found.study.value
    only = benchmarks.only
    return {
        "law": lambda: law(shortcut.tokens, shortcut.p, shortcut.seen),
        "passes": lambda: slides.passes(study),
        "request": lambda: slides.one_request(study.usual.spec_len, EXAMPLE_ACCEPTED),
        "operations": lambda: benchmarks.operation_counts(only(gpu, BACKENDS), story.batch_size),
        "latency-cpu": lambda: benchmarks.latency_by_batch(only(cpu, BACKENDS)),
        "latency-thread": lambda: benchmarks.latency_by_batch(
            only(gpu, (BASELINE, "vectorized", SIMPLE_KERNEL))
        ),
        "reads-block": lambda: memory_access.who_reads(python_kernels.reading("loads_in_flight")),
        "reads-cluster": lambda: memory_access.who_reads(python_kernels.reading("cluster")),
        "ladder": lambda: device_times.ladder(only(gpu, STEPS), story.batch_size),
        "speed-up": lambda: benchmarks.speed_up(only(gpu, (*PYTORCH, "fused"))),
        "latency": lambda: benchmarks.latency_by_batch(only(gpu, (*BACKENDS, SIMPLE_KERNEL))),
        "roofline": lambda: device_times.roofline(only(gpu, BACKENDS)),
        "decoding": lambda: decoding.speed_up_by_spec_len(study),
    }


def _draw(draw: Callable[[], Picture], language: str, size: tuple[float, float]) -> Drawn:
    return for_slide(draw(), language, size)


def for_slide(
    picture: Picture, language: str = LANGUAGE, size: tuple[float, float] = ASPECT
) -> Drawn:
    """A figure without a title, which the slide has, of this size, and with larger labels."""
    from matplotlib.text import Text
    from matplotlib.ticker import LogLocator

    fig = picture.fig
    plotting.translate(fig, language)
    for text in fig.findobj(Text):
        text.set_fontsize(float(text.get_fontsize()) * LARGER)
    if fig.get_layout_engine() is not None:  # a drawing has sizes of its own
        fig.set_size_inches(*size)
        for ax in fig.axes:
            room = 16 if fonts.is_needed(ax.get_ylabel()) else plotting.LABEL_WIDTH
            ax.set_ylabel("\n".join(plotting.wrap(ax.get_ylabel(), room)))
            if len(fig.axes) > 1:
                ax.set_xlabel("\n".join(plotting.wrap(ax.get_xlabel(), 22)))
            if isinstance(ax.xaxis.get_major_locator(), LogLocator):
                ax.xaxis.set_major_locator(LogLocator(numticks=5))
        for legend in list(fig.legends):
            _below(fig, legend, lines=1 if size == ASPECT else 2)
    svg, points = plotting.svg(fig)
    shown = plotting.exhibit(picture, language)
    return Drawn(svg.encode(), points, shown.alt, shown.caption)


def _below(fig: Figure, legend: Legend, lines: int) -> None:
    """Give the figure's height to its axes."""
    handles, names = fig.axes[0].get_legend_handles_labels()
    size = legend.get_texts()[0].get_fontsize()
    legend.remove()
    fig.legend(
        handles,
        names,
        loc="outside lower center",
        ncols=-(-len(names) // lines),
        frameon=False,
        fontsize=size,
        columnspacing=1.2,
        handletextpad=0.5,
    )


# --- what the demos print -------------------------------------------------------------------------


def demonstrated(benchmark: Benchmark, language: str = LANGUAGE) -> str:
    """The table that ``rsk demo`` prints, of a recorded run's smallest and largest batch."""
    from rich.console import Console

    rows = demo.recorded(benchmark)
    console = Console(file=io.StringIO(), width=100, force_terminal=False, color_system=None)
    on_gpu = benchmark.provenance.device == "cuda"
    console.print(demo.table([rows[0], rows[-1]], on_gpu, language))
    assert isinstance(console.file, io.StringIO)
    lines = [line.rstrip() for line in console.file.getvalue().splitlines()]
    return "\n".join(lines).strip("\n")
