"""What the talk says and shows, from recorded data only: ``report/templates/talk.md`` holds the
words around it.

``rsk report`` makes ``slides.pdf`` and ``script.pdf`` from it. Sentences are chosen by the numbers,
as in :mod:`rsk.report.facts`, so that a new record changes them.
"""

from __future__ import annotations

import io
import json
import os
import re
import textwrap
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from rsk import export
from rsk.base import folders
from rsk.course import demo, kernel_records, lesson
from rsk.decode.studies import Study
from rsk.export.talk import Drawn, Material
from rsk.figures import benchmarks, decoding, memory_access, slides
from rsk.figures.lessons import law
from rsk.measure import comparison
from rsk.measure.benchmark import usual_line
from rsk.measure.comparison import BASELINE, digits, duration, megabytes, plural, ratio
from rsk.measure.records import Benchmark, Operations, Record, RecordError
from rsk.report import facts, findings
from rsk.report.facts import Evidence
from rsk.sampler.api import BACKENDS

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.legend import Legend

    from rsk.decode.loading import Pair
    from rsk.decode.loop import Generation
    from rsk.figures.plotting import Picture

SOURCE = "talk.md"
ASPECT = (6.4, 2.5)
"""Width and height in inches at which a figure is drawn: on a slide it is twice as large."""
LARGER = 1.25
"""By how much the labels of the report's figures grow for a slide."""
LARGEST_BATCH = 64
"""The story is told at this batch size, or the largest below it that was measured everywhere."""
THREAD = "thread_per_sequence"
EXAMPLE_ACCEPTED = 2
"""Guesses that the request on the slides keeps."""
PROMPT, SEED, TEMPERATURE, NEW_TOKENS = "def read(self, size=-1):", 7, 0.5, 80
"""Of the text that the two models write; the command in the demo is given the same."""


def write(folder: Path) -> list[Path]:
    """Write ``slides.pdf`` and ``script.pdf``.

    Args:
        folder: where to.

    Raises:
        RecordError: a recorded file is missing or damaged; names it.
        ExportError: the Markdown names something unknown, or a slide does not fit its page; names
            the line. Older files are left as they were.
    """
    return export.export_talk(folders.templates_dir() / SOURCE, material(), folder)


def material() -> Material:
    """All that the Markdown may name."""
    evidence = gather()
    story = Story.of(evidence)
    text = _Text()
    return Material(
        values={**values(story), **text.values()},
        figures=pictures(story),
        texts={"generated": text.runs, "demo": lambda: [(demonstrated(story.cpu), "prompt")]},
        epoch=epoch(evidence),
    )


# --- evidence -------------------------------------------------------------------------------------


def gather() -> Evidence:
    """The recorded runs, whatever was measured on this machine.

    Raises:
        RecordError: one is missing or damaged; names it.
    """
    runs = kernel_records.gpu_runs()
    if not runs:
        raise RecordError(
            "data/benchmarks: the talk needs a run on a GPU, and none is recorded; make measure "
            "makes one"
        )
    return Evidence(
        benchmark=_newest("benchmarks/cpu*.json", Benchmark),
        is_recorded=True,
        gpu=runs[-1],
        study=_newest("decoding/*.json", Study),
        study_is_recorded=True,
        quoted=findings.earlier_work(),
    )


def _newest(pattern: str, kind: type[Any]) -> Any:
    try:
        return lesson.load_result("recorded", kind, recorded=pattern).value
    except lesson.LessonError as error:
        raise RecordError(f"the talk needs data/{pattern}: {error}") from error


def epoch(evidence: Evidence) -> int:
    """The date of the newest record, in seconds, or ``$SOURCE_DATE_EPOCH``."""
    if given := os.environ.get("SOURCE_DATE_EPOCH"):
        return int(given)
    provenances = [evidence.benchmark.provenance, evidence.study.provenance]
    provenances += [evidence.gpu.provenance] if evidence.gpu is not None else []
    return max(int(datetime.fromisoformat(one.date).timestamp()) for one in provenances)


@dataclass(frozen=True)
class Story:
    """The records that the talk is about: one batch size, on a GPU and on a CPU."""

    evidence: Evidence
    gpu: Benchmark
    cpu: Benchmark
    batch_size: int
    on_gpu: dict[str, Record]
    on_cpu: dict[str, Record]

    @classmethod
    def of(cls, evidence: Evidence) -> Story:
        """Choose the batch size.

        Raises:
            RecordError: the runs have none in common, or an implementation was not measured there.
        """
        assert evidence.gpu is not None, "gathered with a run on a GPU"
        lines = usual_line(evidence.gpu), usual_line(evidence.benchmark)
        sizes = [size for size in lines[0] if size in lines[1] and size <= LARGEST_BATCH]
        if not sizes:
            raise RecordError(
                "data/benchmarks: the runs on the GPU and on the CPU have no batch size in common"
            )
        size = max(sizes)
        for line, needed in zip(lines, ((*BACKENDS, THREAD), BACKENDS), strict=True):
            if missing := [name for name in needed if name not in line[size]]:
                raise RecordError(
                    f"data/benchmarks: {missing[0]} was not measured at B = {size} in one of the "
                    "runs that the talk is about"
                )
        return cls(evidence, evidence.gpu, evidence.benchmark, size, lines[0][size], lines[1][size])

    def counted(self, name: str) -> Operations:
        """What one call of an implementation asks of the GPU."""
        for count in self.gpu.operations:
            if (count.implementation, count.batch_size) == (name, self.batch_size):
                return count
        raise RecordError(f"operations: {name} was not counted at B = {self.batch_size}")


# --- numbers and sentences ------------------------------------------------------------------------


def values(story: Story) -> dict[str, object]:
    """What stands for ``{{name}}`` in the Markdown."""
    return {
        **_sizes(story),
        **_times(story),
        **_results(story),
        **_checked(story),
        **_shortcut(),
        **_decoding(story.evidence.study),
        **_earlier(story),
    }


def _sizes(story: Story) -> dict[str, object]:
    base = story.on_gpu[BASELINE]
    b, k, v = base.batch_size, base.spec_len, base.vocab_size
    given = b * (2 * k + 1) * v * 4  # float32: the draft's K rows and the target's K + 1
    return {
        "b": b,
        "k": k,
        "v": v,
        "decisions": b * k,
        "given": megabytes(given),
        "needed": megabytes(base.bytes_moved),
        "gpu": story.gpu.provenance.machine,
        "gpu_label": story.gpu.provenance.label,
        "cpu": story.cpu.provenance.machine,
        "cpu_label": story.cpu.provenance.label,
    }


def _times(story: Story) -> dict[str, object]:
    base, vectorized, fused, thread = (
        story.on_gpu[name] for name in (BASELINE, "vectorized", "fused", THREAD)
    )
    one = usual_line(story.gpu)[min(usual_line(story.gpu))]["fused"]
    launches = sorted(
        {c.launches or 0 for c in story.gpu.operations if c.implementation == "vectorized"}
    )
    counted = story.counted("vectorized")
    return {
        "gpu_base": duration(base.call.median_us),
        "gpu_vec": duration(vectorized.call.median_us),
        "gpu_fused": duration(fused.call.median_us),
        "gpu_fused_device": duration(fused.device.median_us),
        "gpu_thread": duration(thread.call.median_us),
        "gpu_ratio": digits(ratio(base, fused), 2),
        "cpu_base": duration(story.on_cpu[BASELINE].call.median_us),
        "cpu_vec": duration(story.on_cpu["vectorized"].call.median_us),
        "cpu_fused": duration(story.on_cpu["fused"].call.median_us),
        "cpu_ratio": digits(ratio(story.on_cpu[BASELINE], story.on_cpu["fused"]), 2),
        "base_launches": plural(story.counted(BASELINE).launches or 0, "launch"),
        "base_waits": plural(story.counted(BASELINE).synchronizations, "wait"),
        "vec_launches": plural(launches[0], "launch")
        if launches[0] == launches[-1]
        else f"{launches[0]} to {plural(launches[-1], 'launch')}",
        "vec_bytes": megabytes(counted.allocated_bytes),
        "vec_traffic": digits(counted.allocated_bytes / vectorized.bytes_moved, 2),
        "smallest": one.batch_size,
        "smallest_device": duration(one.device.median_us),
        "smallest_call": duration(one.call.median_us),
    }


def _results(story: Story) -> dict[str, object]:
    line = usual_line(story.gpu)
    ratios = {size: ratio(r[BASELINE], r["fused"]) for size, r in line.items() if "fused" in r}
    thread, vectorized = story.on_gpu[THREAD], story.on_gpu["vectorized"]
    to_vectorized = ratio(vectorized, thread)
    last = max(size for size, r in line.items() if "fused" in r)
    best = line[last]["fused"]
    slower = [
        size
        for size, r in usual_line(story.cpu).items()
        if "vectorized" in r and ratio(r[BASELINE], r["vectorized"]) < 1
    ]
    everywhere = len(slower) == len(usual_line(story.cpu))
    cpu_title = (
        "On a CPU it is slower than the loop" + ("" if everywhere else f" at B = {_and(slower)}")
        if slower
        else "On a CPU, too, it is faster than the loop"
    )
    return {
        "cpu_vectorized_title": cpu_title,
        "cpu_vectorized_why": findings.catching_up(story.cpu),
        "thread_title": "One launch is not enough: one thread loses to PyTorch"
        if to_vectorized < 1
        else "One thread a request: already faster than PyTorch",
        "thread_ratio": facts.times_faster(to_vectorized),
        "ladder_title": f"From {duration(story.on_gpu[BASELINE].device.median_us)} to "
        f"{duration(min(r.device.median_us for r in story.on_gpu.values()))} on the same GPU",
        "speed_title": f"The fused sampler is {digits(min(ratios.values()), 2)} to "
        f"{digits(max(ratios.values()), 2)} times as fast as the loop",
        "speed_least": digits(min(ratios.values()), 2),
        "speed_most": digits(max(ratios.values()), 2),
        "speed_sizes": f"{min(ratios)} to {max(ratios):,}",
        "roof_title": (
            f"At B = {last:,}: {comparison.roof_share(best)} of the speed of only reading"
        ),
        "roof_time": duration(best.device.median_us),
        "roof_reading": duration(best.roof.median_us),
        "roof_bytes": megabytes(best.bytes_moved),
        "roof_batch": last,
        "faster_than_vectorized": _faster_than_vectorized(story),
    }


def _faster_than_vectorized(story: Story) -> str:
    """At how many of all measured points fused beats the PyTorch operators."""
    parts = []
    for benchmark in (story.gpu, story.cpu):
        pairs = [
            ratio(by_name["vectorized"], by_name["fused"])
            for by_name in comparison.merged(benchmark.records).values()
            if {"vectorized", "fused"} <= set(by_name)
        ]
        wins = sum(pair > 1 for pair in pairs)
        number = f"all {len(pairs)}" if wins == len(pairs) else f"{wins} of {len(pairs)}"
        parts.append(f"{number} measured points on {benchmark.provenance.machine}")
    return " and at ".join(parts)


def _checked(story: Story) -> dict[str, object]:
    agreement = _agreement()
    grid = agreement["grid"]
    wrong = len(grid["wrong"]) + sum(
        bool(found) for part in ("inputs", "concurrency") for found in agreement[part].values()
    )
    resources = kernel_records.resources()
    if resources is None:
        raise RecordError(
            f"data/{kernel_records.RESOURCES} is missing; python -m rsk.measure.resources makes it"
        )
    spilled = sum(kernel.spill_stores + kernel.spill_loads for kernel in resources.kernels)
    names = sorted({kernel.architecture for kernel in resources.kernels}, key=_number_in)
    return {
        "grid_cases": f"{grid['done']} of {grid['planned']}",
        "grid_verdict": "all agree, bit for bit" if not wrong else f"{wrong} disagree",
        "grid_gpu": agreement["provenance"]["gpu"],
        "architectures": ", ".join(f"sm_{name}" for name in names),
        "spills": "no kernel spills a register"
        if spilled == 0
        else f"{spilled:,} bytes are spilled",
        "gpus": _and(_gpus()),
        "records": len(story.gpu.records) + len(story.cpu.records),
        "refused": str(len(story.gpu.refused) + len(story.cpu.refused) or "none"),
        "trust_gpu": findings.trust(story.gpu),
        "trust_cpu": findings.trust(story.cpu),
        "peers": facts.peers(story.gpu),
        "peers_cpu": facts.peers(story.cpu),
    }


@cache
def _gpus() -> list[str]:
    """All GPUs that something was recorded on."""
    return sorted({run.provenance.machine for run in kernel_records.gpu_runs()})


def _agreement() -> Any:
    """The newest record of the kernels' agreement on a GPU."""
    found = []
    for path in sorted((folders.data_dir() / "kernels").glob("agreement*.json")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            found.append((content["provenance"]["date"], content))
        except (ValueError, KeyError) as error:
            raise RecordError(f"{path}: expected a record of agreement: {error!r}") from error
    if not found:
        raise RecordError(
            "data/kernels/agreement*.json is missing; python -m rsk.check.grid --save makes it"
        )
    return max(found, key=lambda pair: pair[0])[1]


def _number_in(text: str) -> int:
    return int(re.sub(r"\D", "", text) or 0)


@cache
def _example() -> tuple[list[str], torch.Tensor, dict[str, torch.Tensor]]:
    return facts.argmax_example(torch.device("cpu"), seed=0)


def _shortcut() -> dict[str, object]:
    """What the largest entry of the residual does, instead of a sample from it."""
    words, p, seen = _example()
    shares = seen["argmax"] / seen["argmax"].sum()
    worst = int((shares - p).abs().argmax())
    return {
        "shortcut_word": words[worst],
        "shortcut_share": f"{float(shares[worst]):.0%}",
        "shortcut_right": f"{float(p[worst]):.0%}",
        "shortcut_requests": int(seen["argmax"].sum()),
    }


def _decoding(study: Study) -> dict[str, object]:
    usual, fastest = study.usual, study.fastest
    gain = study.speed_up(fastest)
    slower = [race for race in study.other_drafts if study.speed_up(race) <= 1]
    names = {"ngram": "prompt lookup", "target": "the target as its own draft"}
    by_backend = study.by_backend()
    shares = [f"{trial.sampler_share:.1%} with {name}" for name, trial in by_backend.items()]
    verify = next(race for race in study.speculative if race.spec_len == usual.spec_len)
    return {
        "decoding_title": f"{usual.tokens_per_pass:.2f} tokens a pass, and decoding is "
        f"{digits(gain, 3)} times as fast"
        if gain > 1
        else f"{usual.tokens_per_pass:.2f} tokens a pass, and decoding is not faster for it",
        "decoding_label": study.provenance.label,
        "target_size": f"{study.target_parameters / 1e6:.2g} million",
        "draft_size": f"{study.draft_parameters / 1e6:.2g} million",
        "pair_vocabulary": study.vocab_size,
        "study_k": usual.spec_len,
        "tokens_per_pass": f"{usual.tokens_per_pass:.2f}",
        "expected_tokens": f"{usual.expected:.2f}",
        "acceptance": f"{usual.acceptance:.0%}",
        "best_k": fastest.spec_len,
        "decoding_gain": f"{digits(gain, 3)} times as fast as plain decoding"
        if gain > 1
        else f"{digits(gain, 3)} times the speed of plain decoding, so it does not pay",
        "draft_cost": f"{study.cost:.0%}",
        "verify_tokens": usual.spec_len + 1,
        "verify_cost": digits(study.verify_cost(verify), 2),
        "not_paying": f"Slower than plain decoding: {_and([names[r.draft] for r in slower])}."
        if slower
        else "Every draft that was tried pays.",
        "sampler_shares": _and(shares),
    }


def _earlier(story: Story) -> dict[str, object]:
    quoted = story.evidence.quoted
    lost = [row for row in quoted.times if row.fused_ms > row.vectorized_ms]
    sizes = _and([row.batch_size for row in lost])
    ours = usual_line(story.gpu)
    rows = []
    for row in quoted.times:
        found = ours.get(row.batch_size, {})
        times = [
            duration(found[name].call.median_us) if name in found else "not measured"
            for name in ("vectorized", THREAD, "fused")
        ]
        rows.append([str(row.batch_size), *(f"{ms} ms" for ms in (row.vectorized_ms, row.fused_ms)),
                     *times])  # fmt: skip
    heading = ["B", "PyTorch, quoted", "CUDA, quoted", "our PyTorch", "one thread", "fused"]
    table = [heading, ["--:"] * len(heading), *rows]
    return {
        "earlier_title": f"Why an earlier CUDA kernel lost to PyTorch at B = {sizes}"
        if lost
        else "An earlier CUDA kernel was faster than PyTorch at every batch size",
        "earlier_lost": f"B = {sizes}" if lost else "no batch size",
        "earlier_most": f"{quoted.fused_max_speedup:g}",
        "earlier_source": quoted.source,
        "earlier_table": "\n".join(f"| {' | '.join(row)} |" for row in table),
    }


def _and(items: Sequence[object]) -> str:
    """Items as one reads them out: 1, 4 and 16."""
    words = [f"{item:,}" if isinstance(item, int) else str(item) for item in items]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


# --- figures --------------------------------------------------------------------------------------


def pictures(story: Story) -> dict[str, Callable[[], Drawn]]:
    """The report's figures by name, with fewer lines and larger labels."""
    gpu, cpu, study, size = story.gpu, story.cpu, story.evidence.study, story.batch_size
    drawn: dict[str, Callable[[], Picture]] = {
        "law": lambda: law(*_example()),
        "passes": lambda: slides.passes(study),
        "request": lambda: slides.one_request(study.usual.spec_len, EXAMPLE_ACCEPTED),
        "operations": lambda: benchmarks.operation_counts(_only(gpu, BACKENDS), size),
        "latency-cpu": lambda: benchmarks.latency_by_batch(_only(cpu, BACKENDS)),
        "latency-thread": lambda: benchmarks.latency_by_batch(
            _only(gpu, (BASELINE, "vectorized", THREAD))
        ),
        "reads-block": lambda: memory_access.who_reads("block_per_sequence"),
        "reads-cluster": lambda: memory_access.who_reads("cluster"),
        "ladder": lambda: benchmarks.ladder(_without(gpu, "transformers"), size),
        "speed-up": lambda: benchmarks.speed_up(_only(gpu, BACKENDS)),
        "roofline": lambda: benchmarks.roofline(_only(gpu, BACKENDS)),
        "decoding": lambda: decoding.speed_up_by_spec_len(study),
    }
    return {
        name: (lambda draw=draw: for_slide(draw()))  # type: ignore[misc]
        for name, draw in drawn.items()
    }


def _only(benchmark: Benchmark, names: Collection[str]) -> Benchmark:
    """The same run, with a few of its implementations."""
    return replace(
        benchmark,
        records=tuple(r for r in benchmark.records if r.implementation in names),
        operations=tuple(c for c in benchmark.operations if c.implementation in names),
    )


def _without(benchmark: Benchmark, *names: str) -> Benchmark:
    return _only(benchmark, {r.implementation for r in benchmark.records} - set(names))


def for_slide(picture: Picture) -> Drawn:
    """A figure without its title, which the slide has, wide, and with larger labels."""
    import matplotlib as mpl
    from matplotlib.text import Text
    from matplotlib.ticker import LogLocator

    fig = picture.fig
    title = fig.get_suptitle()
    for text in fig.findobj(Text):
        if title and text.get_text() == title:
            text.set_visible(False)
            text.set_in_layout(False)
        text.set_fontsize(float(text.get_fontsize()) * LARGER)
    if fig.get_layout_engine() is not None:  # a drawing has sizes of its own
        fig.set_size_inches(*ASPECT)
        for ax in fig.axes:
            ax.set_ylabel(textwrap.fill(ax.get_ylabel(), 22))
            if len(fig.axes) > 1:
                ax.set_xlabel(textwrap.fill(ax.get_xlabel(), 22))
            if isinstance(ax.xaxis.get_major_locator(), LogLocator):
                ax.xaxis.set_major_locator(LogLocator(numticks=5))
        for legend in list(fig.legends):
            _on_one_line(fig, legend)
    with mpl.rc_context({"svg.fonttype": "path", "svg.hashsalt": "rsk"}):
        svg = _svg(fig)
    size = re.search(rb'width="([\d.]+)pt" height="([\d.]+)pt"', svg)
    assert size, "matplotlib writes the size of an SVG in points"
    return Drawn(svg, (float(size[1]), float(size[2])), picture.alt, picture.caption)


def _on_one_line(fig: Figure, legend: Legend) -> None:
    """Give the figure's height to its axes."""
    handles, names = fig.axes[0].get_legend_handles_labels()
    size = legend.get_texts()[0].get_fontsize()
    legend.remove()
    fig.legend(
        handles,
        names,
        loc="outside lower center",
        ncols=len(names),
        frameon=False,
        fontsize=size,
        columnspacing=1.2,
        handletextpad=0.5,
    )


def _svg(fig: Figure) -> bytes:
    buffer = io.BytesIO()
    fig.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    return buffer.getvalue()


# --- what the demos print -------------------------------------------------------------------------


def demonstrated(benchmark: Benchmark) -> str:
    """The bars that ``rsk demo`` draws, of a recorded run's smallest and largest batch."""
    from rich.console import Console

    sizes = usual_line(benchmark)
    ends = [r for r in benchmark.records if r.batch_size in (min(sizes), max(sizes))]
    console = Console(file=io.StringIO(), width=100, force_terminal=False, color_system=None)
    console.print(demo.bars(_only(replace(benchmark, records=tuple(ends)), BACKENDS)))
    assert isinstance(console.file, io.StringIO)
    lines = [line.rstrip() for line in console.file.getvalue().splitlines()]
    return "\n".join(lines).strip("\n")


# --- the text that two models write ---------------------------------------------------------------


class _Text:
    """What ``rsk generate`` writes in the demo, written once."""

    def __init__(self) -> None:
        from rsk.decode.loading import fitting_threads, load_pair, shipped_pair
        from rsk.decode.loop import speculative_generate

        self.pair: Pair = load_pair(*shipped_pair(), device="cpu")
        with fitting_threads(self.pair):
            self.made: Generation = speculative_generate(
                self.pair.target,
                self.pair.draft,
                PROMPT,
                self.pair.tokenizer,
                max_new_tokens=NEW_TOKENS,
                temperature=TEMPERATURE,
                seed=SEED,
            )

    def runs(self) -> list[tuple[str, str]]:
        """The text in runs, each with its kind."""
        from rsk.decode.studies import token_runs

        return token_runs(self.made, PROMPT, self.pair)

    def values(self) -> Mapping[str, object]:
        """The command that writes it, and what it reports."""
        return {
            "generate_command": f'rsk generate "{PROMPT}" --seed {SEED} --temperature '
            f"{TEMPERATURE:g} --max-new-tokens {NEW_TOKENS}",
            "generated_tokens": len(self.made.tokens[0]),
            "generated_passes": self.made.target_passes,
            "generated_acceptance": f"{self.made.acceptance_rate:.3f}",
            "generated_per_pass": f"{self.made.tokens_per_target_pass:.2f}",
        }
