"""What was found of the samplers of other projects, and their times: a file of ``data/peers/``."""

from __future__ import annotations

from dataclasses import dataclass

from rsk.measure.over_runs import OverRuns
from rsk.measure.peers.traits import Traits
from rsk.measure.records import Record, Spread
from rsk.measure.roof import check_above
from rsk.measure.run_files import PartsRecord

SCHEMA = "rsk-peers/1"
OURS = "fused"
FOLLOWS = "follows the target"


@dataclass(frozen=True, kw_only=True)
class Found:
    """A peer on this machine."""

    name: str
    version: str
    absent: str
    """Why it is not measured; empty if it is."""
    law: str
    """From probabilities: that the output follows the target (``FOLLOWS``), or why not."""
    law_from_logits: dict[str, str]
    """The same from logits, by way."""
    traits: Traits | None


@dataclass(frozen=True, kw_only=True)
class FromProbs:
    """A time from probabilities."""

    record: Record
    isolated: Spread | None
    """One launch on an idle GPU; ``None`` where the call cannot be captured, or on a CPU."""


@dataclass(frozen=True, kw_only=True)
class FromLogits:
    """A time from logits."""

    name: str
    run: int
    batch_size: int
    spec_len: int
    vocab_size: int
    dtype: str
    ways: str
    device: Spread
    """Its share of a graph of many calls, or where it cannot be captured the time to its result."""
    host: Spread
    call: Spread
    isolated: Spread | None
    bytes_moved: int | None = None
    """Of the rows that no sampler does without that accepted what this one did; older files do not
    have it: see :func:`rsk.measure.logit_inputs.needed_bytes`, with the draft's laws."""
    roof: Spread | None = None
    """What reading so many bytes takes at least."""

    def __post_init__(self) -> None:
        if self.roof is not None:
            check_above(self.name, self.device, self.roof)


@dataclass(frozen=True, kw_only=True)
class PeersRecord(PartsRecord):
    """A file of ``data/peers/``."""

    SCHEMA = SCHEMA
    found: tuple[Found, ...]
    from_probs: tuple[FromProbs, ...]
    from_logits: tuple[FromLogits, ...]

    @property
    def runs(self) -> int:
        """Whole runs from logits."""
        return len({one.run for one in self.from_logits})

    @property
    def names(self) -> list[str]:
        """Ours, and the peers that were there."""
        return [one.name for one in self.found if not one.absent]

    @property
    def kinds(self) -> list[tuple[int, int, str]]:
        """Batch size, vocabulary size and filters of what was timed from logits."""
        every = ((one.batch_size, one.vocab_size, one.ways) for one in self.from_logits)
        return sorted(dict.fromkeys(every), key=lambda kind: (kind[2], kind[1], kind[0]))

    def waits(self, name: str) -> bool:
        """Whether a call waits for the GPU, so that its time is by the wall clock."""
        return any(one.name == name and one.device.clock == "wall" for one in self.from_logits)

    def times(self, name: str, kind: tuple[int, int, str], time: str = "device") -> OverRuns | None:
        """Microseconds from logits, on the device or ``"call"``; ``None`` if it was not timed."""
        by_run = {
            one.run: getattr(one, time).median_us
            for one in self.from_logits
            if one.name == name and (one.batch_size, one.vocab_size, one.ways) == kind
        }
        return OverRuns(by_run) if by_run else None
