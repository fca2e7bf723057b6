"""The values that the templates in ``report/<language>/`` may name, each from a record.

:func:`report` and :func:`talk` say which names there are. What stands behind a name is a record of
:mod:`rsk.measure.records` itself (``gpu.largest.fused.call`` is a time with its range), a
:class:`rsk.decode.study.Study`, or one of the classes here, whose fields and properties are
described; of several runs, a :class:`rsk.measure.over_runs.Series`. No sentence stands here.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from rsk.base.numbers import Span, span
from rsk.course import tried_ideas
from rsk.measure import comparison, publishable_runs
from rsk.measure.comparison import BASELINE
from rsk.measure.over_runs import Series, ratio
from rsk.measure.records import TOLERANCE, Operations, RecordError
from rsk.report.computed_here import Here, Shortcut, Written
from rsk.report.logit_times import LogitTimes
from rsk.report.measurements import Measurements, Source
from rsk.report.rival_times import RivalTimes
from rsk.report.runs import Rival, Run, counted_at
from rsk.report.sharded_times import ShardedTimes
from rsk.report.step_shares import StepShares
from rsk.sampler.kernels import KERNELS


def shared(found: Measurements) -> dict[str, object]:
    """What both the report and the talk may name.

    * ``cpu``, ``gpu``: :class:`Run`;
    * ``study``: :class:`rsk.decode.study.Study`, and ``study_source``, where it is from;
      ``study_gain``, the speed-up of the fastest K over plain decoding;
    * ``quoted``: the earlier work's :class:`rsk.measure.quoted.Quoted`, and ``quoted_mean``, the
      mean of its own speed-ups;
    * ``kernels``: the names of the CUDA kernels, in the course's order;
    * ``tolerance``: by how much a time may beat the memory roof before it is refused;
    * ``ratio(a, b)``: how many times as fast b is as a, both :class:`rsk.measure.over_runs.Series`.
    """
    study = found.study.value
    return {
        "cpu": Run(found.cpu),
        "gpu": Run(found.gpu),
        "study": study,
        "study_source": found.study,
        "study_gain": study.speed_up(study.fastest),
        "quoted": found.quoted,
        "quoted_mean": statistics.fmean(row.fused_speedup for row in found.quoted.times),
        "kernels": list(KERNELS),
        "ratio": ratio,
        "tolerance": TOLERANCE,
    }


def report(found: Measurements, here: Here) -> dict[str, object]:
    """What the report's chapters may name, beside :func:`shared`.

    * ``here``: :class:`Here`;
    * ``narrower``: a :class:`Run` on the CPU with other vector instructions, or ``None``;
    * ``grid``: the comparison of the kernels with the baseline on a GPU;
    * ``set_aside``: what this run measured and may not be published, each with its reason;
    * ``logits``: :class:`rsk.report.logit_times.LogitTimes`;
    * ``sharded``: :class:`rsk.report.sharded_times.ShardedTimes`;
    * ``rivals``: :class:`rsk.report.rival_times.RivalTimes`;
    * ``step``: :class:`rsk.report.step_shares.StepShares`, or ``None``;
    * ``public_model``: a list of :class:`rsk.decode.decoding_speeds.DecodingSpeeds`, one of each
      device that it was recorded on;
    * ``tried``: what came of the ideas tried on the kernels, a list of
      :class:`rsk.course.tried_ideas.IdeaOutcome`; ``tried_on``, the GPU, and ``tried_earlier``,
      whether the kernels have changed since.
    """
    return {
        **shared(found),
        "here": here,
        "narrower": Run(Source(found.narrower, recorded=True)) if found.narrower else None,
        "grid": found.grid,
        "set_aside": found.set_aside,
        "logits": LogitTimes(found.logits),
        "sharded": ShardedTimes(found.sharded),
        "rivals": RivalTimes(found.peers),
        "step": StepShares(found.steps) if found.steps else None,
        "public_model": found.public_model,
        "tried": tried_ideas.outcomes(found.tried),
        "tried_on": found.tried.provenance.machine,
        "tried_earlier": tried_ideas.is_of_other_sources(found.tried),
    }


@dataclass(frozen=True)
class Story:
    """``story`` in the talk: one batch size, on a GPU and on a CPU."""

    LARGEST = 64
    """The batch size, or the largest below it that was measured on both."""

    batch_size: int
    gpu: Mapping[str, Series]
    """By implementation."""
    cpu: Mapping[str, Series]
    counted: Mapping[str, Operations]
    """What one call of each backend asks of the GPU."""
    launches: Span
    """Of vectorized, over the batch sizes."""

    @classmethod
    def of(cls, gpu: Run, cpu: Run) -> Story:
        """Choose the batch size.

        Raises:
            RecordError: the runs have none in common, or something was not measured there.
        """
        sizes = [size for size in gpu.line if size in cpu.line and size <= cls.LARGEST]
        if not sizes:
            raise RecordError(
                "data/benchmarks: the runs on the GPU and on the CPU have no batch size in common"
            )
        size = max(sizes)
        counts = [c.launches for c in gpu.benchmark.operations if c.implementation == "vectorized"]
        return cls(
            size,
            gpu.line[size],
            cpu.line[size],
            counted_at(gpu.benchmark, size),
            span([count or 0 for count in counts]),
        )

    @property
    def thread(self) -> Series:
        """The simplest kernel: one thread a request."""
        return self.gpu[publishable_runs.SIMPLE_KERNEL]

    @property
    def given_bytes(self) -> int:
        """Of the sampler's whole input: K rows of the draft and K + 1 of the target, in float32."""
        one = self.gpu[BASELINE]
        return one.batch_size * (2 * one.spec_len + 1) * one.vocab_size * 4

    @property
    def fastest(self) -> Series:
        """What takes the least time on the GPU, in the median over runs."""
        return min(self.gpu.values(), key=lambda one: one.device.median)

    @property
    def pytorch(self) -> Rival:
        """The best PyTorch version beside fused, call to result.

        Raises:
            RecordError: there is none.
        """
        best = comparison.best_pytorch(self.gpu, "call")
        if best is None:
            raise RecordError(f"no PyTorch version was measured at B = {self.batch_size}")
        return Rival(best, self.gpu["fused"], "call")


def talk(found: Measurements, written: Written) -> dict[str, object]:
    """What the talk may name, beside :func:`shared`.

    * ``story``: :class:`Story`;
    * ``shortcut``: :class:`Shortcut`, ``written``: :class:`Written`;
    * ``grid``: the comparison of the kernels on a GPU, ``resources``: what they were compiled to;
    * ``sharded``, ``step``, ``public_model``: as in :func:`report`;
    * ``gpus``: all GPUs that a run was recorded on;
    * ``check``: the race at the study's usual K, in which the target checks the guesses;
    * ``lost``: rows of the earlier work's table in which its CUDA kernel lost to PyTorch.
    """
    values = shared(found)
    study = found.study.value
    return {
        **values,
        "story": Story.of(Run(found.gpu), Run(found.cpu)),
        "shortcut": Shortcut.watch(torch.device("cpu")),
        "written": written,
        "grid": found.grid,
        "resources": found.resources,
        "sharded": ShardedTimes(found.sharded),
        "step": StepShares(found.steps) if found.steps else None,
        "public_model": found.public_model,
        "gpus": sorted({run.provenance.machine for run in publishable_runs.all_runs("cuda")}),
        "check": study.usual_race,
        "lost": [row for row in found.quoted.times if row.fused_ms > row.vectorized_ms],
    }
