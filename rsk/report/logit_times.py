"""``logits`` of the templates: recorded times of sampling from logits."""

from __future__ import annotations

import statistics
from collections.abc import Hashable
from typing import NamedTuple

from rsk.base.numbers import Span, span
from rsk.measure.logits_benchmark import LogitsBenchmark
from rsk.measure.records import RecordError
from rsk.report.measurements import Recorded


class Shown(NamedTuple):
    """One shape in one dtype, each number the median over whole runs."""

    dtype: str
    batch_size: int
    vocab_size: int
    temperature_us: float
    """On the device, with a temperature alone."""
    filtered_us: float
    """With top-k and top-p."""
    with_laws_us: float
    """With both, and the laws of the draft's rows given."""


class LogitTimes(Recorded[LogitsBenchmark]):
    """One file of ``data/logits``."""

    @property
    def runs(self) -> int:
        """Whole runs."""
        return self.found.runs

    @property
    def small(self) -> Shown:
        """One request with the largest vocabulary, in bfloat16."""
        return self._at(min(self._shapes))

    @property
    def large(self) -> Shown:
        """The largest batch with the largest vocabulary, in bfloat16."""
        return self._at(max(self._shapes))

    @property
    def large_in_float32(self) -> Shown:
        """The same in float32."""
        return self._at(max(self._shapes), "float32")

    @property
    def roof_shares(self) -> Span:
        """The least and the most share of the roof, of all that was timed, medians over the runs.

        Raises:
            RecordError: no share is known.
        """
        shares: dict[Hashable, list[float]] = {}
        for result in self.found.results:
            record = result.record
            case = record.batch_size, record.vocab_size, record.dtype, result.ways
            if record.roof_share is not None:
                shares.setdefault((*case, result.draft_laws), []).append(record.roof_share)
        if not shares:
            raise RecordError("data/logits: every roof was disturbed")
        return span([statistics.median(some) for some in shares.values()])

    @property
    def _shapes(self) -> set[tuple[int, int]]:
        records = [result.record for result in self.found.results]
        vocab_size = max(record.vocab_size for record in records)
        return {
            (record.batch_size, record.vocab_size)
            for record in records
            if record.vocab_size == vocab_size
        }

    def _at(self, shape: tuple[int, int], dtype: str = "bfloat16") -> Shown:
        return Shown(
            dtype,
            *shape,
            self._median_us(shape, dtype, filtered=False, draft_laws=False),
            self._median_us(shape, dtype, filtered=True, draft_laws=False),
            self._median_us(shape, dtype, filtered=True, draft_laws=True),
        )

    def _median_us(
        self, shape: tuple[int, int], dtype: str, *, filtered: bool, draft_laws: bool
    ) -> float:
        return statistics.median(
            result.record.device.median_us
            for result in self.found.results
            if (result.record.batch_size, result.record.vocab_size) == shape
            and result.record.dtype == dtype
            and (result.ways.top_k > 0) == filtered
            and result.draft_laws == draft_laws
        )
