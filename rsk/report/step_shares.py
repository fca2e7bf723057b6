"""``step`` of the templates: what the sampler is of a decoding step of models at real scale."""

from __future__ import annotations

from rsk.base.numbers import Span, span
from rsk.measure.model_step import ModelStepRecord, Step
from rsk.measure.over_runs import OverRuns
from rsk.report.measurements import Recorded


class StepShares(Recorded[ModelStepRecord]):
    """One file of ``data/model-step``."""

    @property
    def runs(self) -> int:
        """Whole runs."""
        return len({step.run for step in self.found.steps})

    @property
    def context(self) -> int:
        """Tokens that each model had read before."""
        return self.found.steps[0].context

    def of(self, sampler: str) -> Span:
        """The least and the most that a sampler is of a step, over the models and batch sizes.

        Each is the median over the runs.
        """
        steps: dict[tuple[str, int], list[Step]] = {}
        for step in self.found.steps:
            if step.sampler == sampler:
                steps.setdefault((step.pair, step.batch_size), []).append(step)
        shares = (OverRuns({s.run: s.share for s in some}) for some in steps.values())
        return span([share.median for share in shares])

    def positions(self, count: int, time: str = "call") -> Span | None:
        """How many times the time of one position a target's pass over so many takes, B = 1.

        Args:
            count: positions.
            time: ``"call"``, or ``"device"``, for the passes that were captured in a graph.

        Returns:
            The least and the most over the pairs of models; ``None`` if no pass was so timed.
        """
        ratios = []
        for pair in dict.fromkeys(one.pair for one in self.found.passes):
            times: dict[int, dict[int, float]] = {}
            for one in self.found.passes:
                taken = one.call if time == "call" else one.device
                if (one.pair, one.model, one.batch_size) == (pair, "target", 1) and taken:
                    times.setdefault(one.positions, {})[one.run] = taken.median_us
            if times.keys() >= {1, count}:
                ratios.append(OverRuns(times[count]).over(OverRuns(times[1])).median)
        return span(ratios) if ratios else None
