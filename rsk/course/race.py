"""Timing implementations against each other on a machine that may be busy with other things.

They take turns, so that what disturbs one disturbs all, and go on until each ratio is known to
:data:`CERTAINTY` or the time is up. A ratio is certain if the two medians' 95 % intervals say so
(from order statistics, which assume no distribution), and if no median lies far above the fastest
rounds: other programs only ever make a call slower.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from rsk.measure.comparison import BASELINE
from rsk.measure.samples import median_interval

CERTAINTY = 0.1
"""How far a ratio's interval may reach to either side, over the ratio."""
QUIET = 1.3
"""A median is more than this many times the fast rounds' only if something disturbs most rounds."""
FEWEST = 9
"""Rounds before anything is said: with fewer, the intervals are as wide as the samples."""
ROUND_NS = 200_000
"""A round of one implementation lasts at least this long."""


class Timed(NamedTuple):
    """The time of one implementation over the rounds, in microseconds."""

    fast: float
    """The tenth percentile: what other programs disturbed least."""
    low: float
    """Lower end of the median's interval."""
    median: float
    high: float
    """Upper end of the median's interval."""

    @classmethod
    def over(cls, rounds: Sequence[float]) -> Timed:
        """Summarise rounds, at least one."""
        ordered = sorted(rounds)
        n = len(ordered)
        low, high = median_interval(ordered)
        return cls(ordered[n // 10], low, ordered[n // 2], high)

    @classmethod
    def known(cls, microseconds: float) -> Timed:
        """A time about which there is no doubt, such as a recorded one."""
        return cls(*[microseconds] * 4)

    @property
    def quiet(self) -> bool:
        """Whether most rounds were as fast as the fast ones."""
        return self.median <= QUIET * self.fast


class Row(NamedTuple):
    """The implementations at one batch size."""

    batch_size: int
    times: Mapping[str, Timed]
    rounds: int = FEWEST
    ratios: Mapping[str, float] | None = None
    """How many times faster than the baseline, where that was formed within whole runs."""

    def ratio(self, name: str) -> float:
        """How many times faster than the baseline."""
        if self.ratios is not None:
            return self.ratios[name]
        return self.times[BASELINE].median / self.times[name].median

    def between(self, name: str) -> tuple[float, float]:
        """The ratio's interval: from the ends of both medians' intervals."""
        base, other = self.times[BASELINE], self.times[name]
        return base.low / other.high, base.high / other.low

    def known(self, name: str) -> bool:
        """Whether there are rounds enough to tell that nothing disturbed most of them."""
        return self.rounds >= FEWEST and self.times[name].quiet

    def certain(self, name: str) -> bool:
        """Whether the ratio is known to :data:`CERTAINTY`, and nothing disturbed its times."""
        low, high = self.between(name)
        reach = math.sqrt(high / low)
        return reach <= 1 + CERTAINTY and self.known(BASELINE) and self.known(name)

    @property
    def settled(self) -> bool:
        """Whether all ratios are certain."""
        return all(self.certain(name) for name in self.times)


def race(
    calls: Mapping[str, Callable[[], Any]],
    batch_size: int,
    *,
    budget_s: float,
    clock: Callable[[], int] = time.perf_counter_ns,
) -> Row:
    """Time calls in turns until their ratios are certain, or the time is up.

    Args:
        calls: by name, the baseline among them; each returns when its work is done.
        batch_size: what they work on, for the row.
        budget_s: seconds to spend; a few rounds are taken however long they last.
        clock: in nanoseconds.
    """

    def lasted(call: Callable[[], Any], times: int) -> int:
        start = clock()
        for _ in range(times):
            call()
        return clock() - start

    repeats = {}
    for name, call in calls.items():
        call()
        repeats[name] = math.ceil(ROUND_NS / max(lasted(call, 1), 1))
    rounds: dict[str, list[float]] = {name: [] for name in calls}
    begin, taken, check_at = clock(), 0, FEWEST
    collecting = gc.isenabled()
    gc.disable()  # a collection would be on one implementation's account
    try:
        while True:
            for name, call in calls.items():
                rounds[name].append(lasted(call, repeats[name]) / repeats[name] / 1e3)
            taken += 1
            late = clock() - begin > budget_s * 1e9
            if late or taken == check_at:
                timed = {name: Timed.over(times) for name, times in rounds.items()}
                row = Row(batch_size, timed, taken)
                if late or row.settled:
                    return row
                check_at += max(FEWEST, taken // 2)
    finally:
        if collecting:
            gc.enable()
