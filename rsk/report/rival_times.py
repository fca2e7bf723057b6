"""``rivals`` of the templates: samplers of other projects, from logits and as they were tried."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rsk.base.numbers import Span, span
from rsk.measure import peers
from rsk.measure.over_runs import OverRuns
from rsk.measure.peer_records import FOLLOWS, OURS, Found, PeersRecord
from rsk.report.measurements import Recorded
from rsk.sampler import registry


class Beside(NamedTuple):
    """The fastest of the others from logits, at one kind of batch."""

    name: str
    batch_size: int
    vocab_size: int
    ways: str
    ours: OverRuns
    """Microseconds."""
    taken: OverRuns

    @property
    def gain(self) -> OverRuns:
        """How many times as fast ours is, run by run."""
        return self.taken.over(self.ours)


class RivalTimes(Recorded[PeersRecord]):
    """One file of ``data/peers``."""

    @property
    def runs(self) -> int:
        """Whole runs."""
        return self.found.runs

    @property
    def absent(self) -> list[Found]:
        """Those that could not be had."""
        return [one for one in self.found.found if one.absent]

    @property
    def astray(self) -> list[tuple[str, str, str]]:
        """Whose output was not found to follow the target: name, from what, and what was found."""
        told = [
            (one.name, how, law)
            for one in self.found.found
            if not one.absent
            for how, law in {"probabilities": one.law, **one.law_from_logits}.items()
        ]
        return [(name, how, law) for name, how, law in told if law not in ("", FOLLOWS)]

    @property
    def batch_dependent(self) -> list[str]:
        """Those whose tokens changed with the batch around a request, when it was tried."""
        return [
            one.name
            for one in self.found.found
            if one.traits is not None and one.traits.batch_invariant.startswith("no")
        ]

    @property
    def from_logits(self) -> list[Beside]:
        """The fastest of the others on the device at each kind of batch, where one was timed."""
        return self._beside("device")

    @property
    def from_logits_by_call(self) -> list[Beside]:
        """The same from call to result, which may be another one."""
        return self._beside("call")

    @property
    def gain(self) -> Span:
        """How many times as fast as those ours is on the device, over the kinds, of medians."""
        return span([one.gain.median for one in self.from_logits])

    @property
    def gain_by_call(self) -> Span:
        """The same from call to result."""
        return span([one.gain.median for one in self.from_logits_by_call])

    def _beside(self, time: str) -> list[Beside]:
        found = (self._fastest(kind, time) for kind in self.found.kinds)
        return [one for one in found if one is not None]

    def _fastest(self, kind: tuple[int, int, str], time: str) -> Beside | None:
        ours, waits = self.found.times(OURS, kind, time), self.found.waits(OURS)
        # Of one clock: no ratio divides a time from call to result by a graph's share.
        names = [
            name
            for name in self.found.names
            if name != OURS and (time == "call" or self.found.waits(name) == waits)
        ]
        timed = {name: self.found.times(name, kind, time) for name in names}
        known = {name: taken for name, taken in timed.items() if taken is not None}
        if ours is None or not known:
            return None
        name = min(known, key=lambda one: known[one].median)
        return Beside(name, *kind, ours, known[name])


def rows() -> Sequence[str]:
    """The rows of the table of rivals: PyTorch's versions, Triton's, the other projects', ours."""
    return ["baseline", "vectorized", *registry.RIVALS, *peers.ENTRIES, OURS]
