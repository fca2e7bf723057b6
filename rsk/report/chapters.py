"""The report's chapters as a notebook shows them: words, and the figures and tables they name.

A chapter is a file of ``report/<language>/``. A paragraph ``![](figure:fig-latency)`` stands for a
figure; ``![](table:tab-times)`` for a table; ``![](source:cuda/fused_cpu.cpp){part="decide"
label="lst-fused"}`` for a part of a source file; ``![](tokens:lst-text)`` for the text that two
models write, ``![](banner:cpu)`` for where the results below are from, and
``![](undone:kernels)`` for why they were not compared.
"""

from __future__ import annotations

import functools
import re
import shlex
from collections.abc import Callable, Mapping
from typing import Any

import torch

from rsk.base import templates
from rsk.base.templates import LANGUAGE, TemplateError
from rsk.course import publish, python_kernels, results, tried_ideas
from rsk.figures import benchmarks, decoding, device_times, memory_access, record_tables, tables
from rsk.figures.lessons import acceptance_rule, law
from rsk.figures.plotting import Picture
from rsk.figures.tables import DataTable
from rsk.report import measurements, rival_times, values
from rsk.report.computed_here import Here
from rsk.report.runs import SHOWN, Run
from rsk.report.sharded_times import ShardedTimes
from rsk.sampler.api import BACKENDS
from rsk.sampler.kernels import KERNELS

_EXHIBIT = re.compile(r"^!\[\]\((\w+):([^)]*)\)(?:\{(.*)\})?$", re.MULTILINE)


class Report:
    """The report of one run."""

    def __init__(
        self, device: torch.device, *, quick: bool = True, seed: int = 0, language: str = LANGUAGE
    ) -> None:
        """Collect what the report is made from.

        Args:
            device: for what is computed while the report is made.
            quick: whether to compare the kernels in few calls.
            seed: of what is drawn at random.
            language: of the words.

        Raises:
            RecordError: something is missing, damaged, or may not be published.
            ValueError: there are no words in that language.
        """
        templates.folder(language)
        self.language = language
        self.found = measurements.gather(results.results_dir())
        self.here = Here(device, seed, examples=20 if quick else 200)
        self.values = values.report(self.found, self.here)
        self._tables = _tables(self.found)
        self._figures = _figures(self.found, self.here)

    def show(self, name: str) -> None:
        """Publish a chapter.

        Args:
            name: of its file, without ``.md``.

        Raises:
            TemplateError: the chapter names something that is not known; says where.
        """
        text = templates.render(f"{name}.md", self.values, self.language)
        at = 0
        for match in _EXHIBIT.finditer(text):
            self._prose(text[at : match.start()])
            at = match.end()
            try:
                show = self._exhibit(match[1], match[2], match[3] or "")
            except KeyError:
                source = (templates.folder(self.language) / f"{name}.md").read_text("utf-8")
                line = source[: source.index(match[0])].count("\n") + 1
                raise TemplateError(
                    f"report/{self.language}/{name}.md, line {line}: {match[0]} stands for nothing"
                ) from None
            show()
        self._prose(text[at:])

    def _prose(self, text: str) -> None:
        if text.strip():
            publish.markdown(text.strip("\n"), self.language)

    def _exhibit(self, kind: str, name: str, about: str) -> Callable[[], None]:
        """What publishes an exhibit.

        Raises:
            KeyError: there is none of that kind and name.
        """
        given: dict[str, Any] = {"language": self.language}
        match kind:
            case "figure":
                draw = self._figures[name]
                return lambda: publish.figure(**draw()._asdict(), **given)
            case "table":
                make = self._tables[name]
                return lambda: publish.table(**make()._asdict(), **given)
            case "source":
                pairs = dict(pair.split("=", 1) for pair in shlex.split(about))
                part, label = pairs["part"], pairs["label"]
                caption = templates.exhibit(label, {}, self.language).caption
                return lambda: publish.source(name, part, label=label, caption=caption, **given)
            case "undone":
                compared = {"kernels": self.here}[name]
                return lambda: publish.undone("cuda/*.cu", compared.kernels.obstacle, **given)
            case "tokens":
                return functools.partial(self._tokens, {"lst-text": self.here}[name], name)
            case "banner":
                sources: Mapping[str, measurements.Source[Any]] = {
                    "cpu": self.found.cpu,
                    "gpu": self.found.gpu,
                    "study": self.found.study,
                }
                source = sources[name]
                made = source.value.provenance
                mode = "gpu" if made.device == "cuda" else "cpu"
                return lambda: publish.banner(
                    "recorded" if source.recorded else mode, made, **given
                )
            case _:
                raise KeyError(kind)

    def _tokens(self, here: Here, label: str) -> None:
        written = here.written
        caption = templates.exhibit(label, {"written": written}, self.language).caption
        publish.tokens(written.runs, label=label, caption=caption, language=self.language)


def _who_reads(kernel: str) -> Picture:
    return memory_access.who_reads(python_kernels.reading(kernel))


def _tables(found: measurements.Measurements) -> dict[str, Callable[[], DataTable]]:
    cpu, gpu, steps = Run(found.cpu), Run(found.gpu), found.steps
    of_steps = {"tab-step-shares": lambda: record_tables.shares_of_a_step(steps)} if steps else {}
    return of_steps | {
        "tab-solutions": lambda: tables.solutions(cpu.benchmark, cpu),
        "tab-kernels": lambda: tables.kernels(gpu.benchmark, gpu),
        "tab-rungs": lambda: record_tables.rungs(gpu.benchmark, gpu),
        "tab-ideas": lambda: tried_ideas.table(found.tried),
        "tab-from-logits": lambda: record_tables.from_logits(found.logits),
        "tab-sharded": lambda: _sharded(ShardedTimes(found.sharded)),
        "tab-rivals": lambda: record_tables.rivals(gpu.benchmark, gpu, rival_times.rows()),
        "tab-promises": lambda: record_tables.promises(found.peers),
        "tab-rivals-logits": lambda: record_tables.rivals_from_logits(found.peers),
        "tab-rivals-logits-device": lambda: record_tables.rivals_from_logits(found.peers, "device"),
        "tab-public-model": lambda: record_tables.public_model(found.public_model),
        "tab-times": lambda: tables.times(cpu.benchmark, cpu),
        "tab-yardsticks": lambda: tables.yardsticks(gpu.benchmark),
        "tab-yardsticks-cpu": lambda: tables.yardsticks(cpu.benchmark)._replace(
            label="tab-yardsticks-cpu"
        ),
        "tab-caches": lambda: tables.caches({"CPU": cpu.benchmark, "GPU": gpu.benchmark}),
        "tab-repeatability": lambda: tables.repeatability(
            {"CPU": cpu.benchmark, "GPU": benchmarks.only(gpu.benchmark, SHOWN)}
        ),
        "tab-earlier": lambda: tables.beside_earlier(gpu.benchmark, found.quoted),
        "tab-environment": lambda: tables.environment(found.provenances),
        "tab-machines": lambda: tables.machines(found.provenances),
    }


def _sharded(times: ShardedTimes) -> DataTable:
    return record_tables.sharded(times.found, times.vocab_size)


def _figures(found: measurements.Measurements, here: Here) -> dict[str, Callable[[], Picture]]:
    cpu, gpu, study = found.cpu.value, found.gpu.value, found.study.value
    few, ours = benchmarks.only(gpu, SHOWN), benchmarks.only(gpu, BACKENDS)
    readings = {
        f"fig-reads-{name.replace('_', '-')}": functools.partial(_who_reads, name)
        for name in KERNELS
    }
    return readings | {
        "fig-rule": lambda: acceptance_rule(here.shortcut.tokens, here.shortcut.p, here.shortcut.q),
        "fig-law": lambda: law(here.shortcut.tokens, here.shortcut.p, here.shortcut.seen),
        "fig-operations": lambda: benchmarks.operation_counts(cpu),
        "fig-ladder": lambda: device_times.ladder(
            benchmarks.only(gpu, (*BACKENDS, "compiled", *KERNELS))
        ),
        "fig-latency": lambda: benchmarks.latency_by_batch(cpu),
        "fig-shapes": lambda: benchmarks.latency_by_shape(cpu),
        "fig-roofline": lambda: device_times.roofline(cpu),
        "fig-latency-gpu": lambda: benchmarks.latency_by_batch(few).relabelled("fig-latency-gpu"),
        "fig-speed-up-gpu": lambda: benchmarks.speed_up(few).relabelled("fig-speed-up-gpu"),
        "fig-roofline-gpu": lambda: device_times.roofline(ours).relabelled("fig-roofline-gpu"),
        "fig-tokens-per-pass": lambda: decoding.tokens_per_pass(study),
        "fig-temperature": lambda: decoding.acceptance_by_temperature(study),
        "fig-decoding-speed-up": lambda: decoding.speed_up_by_spec_len(study),
        "fig-step": lambda: decoding.time_of_a_step(study),
    }
