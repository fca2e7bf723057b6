"""``sharded`` of the templates: recorded times of sampling on several GPUs."""

from __future__ import annotations

from rsk.base.numbers import Span, span
from rsk.measure.sharded_records import STARTS, Sharded, ShardedRecord
from rsk.report.measurements import Recorded


class ShardedTimes(Recorded[Sharded]):
    """One file of ``data/sharded``, measured with NCCL."""

    @property
    def machine(self) -> str:
        """The kind of GPU."""
        return self.found.provenance.machine

    @property
    def ranks(self) -> int:
        """GPUs."""
        return self.found.ranks

    @property
    def vocab_size(self) -> int:
        """The smallest that was measured."""
        return min(record.vocab_size for record in self.found.records)

    @property
    def gain(self) -> dict[str, Span]:
        """By what a call starts from: how many times as fast as gathering, over the batch sizes."""
        return {
            start: span([record.speedup or 0.0 for record in self._shown if record.start == start])
            for start in STARTS
        }

    @property
    def lost(self) -> list[ShardedRecord]:
        """Where gathering was faster."""
        return [record for record in self._shown if (record.speedup or 0.0) < 1]

    @property
    def largest(self) -> ShardedRecord:
        """The largest batch, from probabilities."""
        records = [record for record in self._shown if record.start == STARTS[0]]
        return max(records, key=lambda record: record.batch_size)

    @property
    def collectives(self) -> Span:
        """The fewest and the most collective operations of a call."""
        return span([record.collectives for record in self._shown])

    @property
    def _shown(self) -> list[ShardedRecord]:
        return [one for one in self.found.records if one.vocab_size == self.vocab_size]
