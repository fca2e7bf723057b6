"""``logits`` of the templates: recorded times of sampling from logits."""

from __future__ import annotations

import statistics
from typing import NamedTuple

from rsk.measure.logits_benchmark import LogitsBenchmark, Result
from rsk.measure.records import RecordError
from rsk.report.measurements import Recorded


class Shown(NamedTuple):
    """One shape in bfloat16, each number the median over whole runs."""

    batch_size: int
    vocab_size: int
    temperature_us: float
    """On the device, with a temperature alone."""
    filtered_us: float
    """With top-k and top-p."""
    with_laws_us: float
    """With both, and the laws of the draft's rows given."""
    roof_share: float
    """With a temperature alone."""


class LogitTimes(Recorded[LogitsBenchmark]):
    """One file of ``data/logits``."""

    @property
    def runs(self) -> int:
        """Whole runs."""
        return self.found.runs

    @property
    def small(self) -> Shown:
        """One request with the largest vocabulary."""
        return self._at(min(self._shapes))

    @property
    def large(self) -> Shown:
        """The largest batch with the largest vocabulary."""
        return self._at(max(self._shapes))

    @property
    def _shapes(self) -> set[tuple[int, int]]:
        records = [result.record for result in self.found.results]
        vocab_size = max(record.vocab_size for record in records)
        return {
            (record.batch_size, record.vocab_size)
            for record in records
            if record.vocab_size == vocab_size
        }

    def _at(self, shape: tuple[int, int]) -> Shown:
        alone = self._results(shape, filtered=False, draft_laws=False)
        shares = (result.record.roof_share for result in alone)
        known = [share for share in shares if share is not None]
        if not known:
            raise RecordError(f"data/logits: every roof at B, V = {shape} was disturbed")
        return Shown(
            *shape,
            _median_us(alone),
            _median_us(self._results(shape, filtered=True, draft_laws=False)),
            _median_us(self._results(shape, filtered=True, draft_laws=True)),
            statistics.median(known),
        )

    def _results(self, shape: tuple[int, int], *, filtered: bool, draft_laws: bool) -> list[Result]:
        return [
            result
            for result in self.found.results
            if (result.record.batch_size, result.record.vocab_size) == shape
            and result.record.dtype == "bfloat16"
            and (result.ways.top_k > 0) == filtered
            and result.draft_laws == draft_laws
        ]


def _median_us(results: list[Result]) -> float:
    return statistics.median(result.record.device.median_us for result in results)
