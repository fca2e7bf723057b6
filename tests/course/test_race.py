"""Implementations that take turns, on a clock with noise: what is said about them is true."""

from __future__ import annotations

import random

import pytest

from rsk.course import race
from rsk.course.race import CERTAINTY, Row, Timed


class Machine:
    """Calls that last as long as they are said to, on a clock of their own, and what disturbs."""

    def __init__(self, noise, seed=0):
        self.now, self.noise, self.random, self.calls = 0, noise, random.Random(seed), 0

    def clock(self):
        return self.now

    def call(self, name, microseconds):
        def work():
            self.calls += 1
            factor = self.noise(self.random, name, self.now / 1e9)
            self.now += round(1e3 * microseconds * factor)

        return work

    def race(self, budget_s=2.5, **times):
        calls = {name: self.call(name, time) for name, time in times.items()}
        return race.race(calls, 8, budget_s=budget_s, clock=self.clock)


TIMES = {"baseline": 900.0, "vectorized": 1500.0, "fused": 60.0}


def quiet(random, name, now):
    return random.uniform(1.0, 1.05)


def test_on_a_quiet_machine_it_is_over_soon():
    machine = Machine(quiet)
    row = machine.race(**TIMES)
    assert row.settled and row.batch_size == 8
    assert row.ratio("fused") == pytest.approx(15, rel=0.05)
    assert row.ratio("vectorized") == pytest.approx(0.6, rel=0.05)
    assert machine.now < 0.2e9


def bursts(random, name, now):
    """Other programs take the processor for half of the time, a tenth of a second each."""
    return random.uniform(1.0, 1.05) * (random.uniform(1.5, 6.0) if int(now * 10) % 2 else 1.0)


def starved(random, name, now):
    """A threaded kernel waits for its slowest thread in almost every call; the loop has one."""
    return random.uniform(5.0, 60.0) if name == "fused" and random.random() < 0.85 else 1.0


def crowded(random, name, now):
    return random.lognormvariate(0.7, 0.8)


@pytest.mark.parametrize("noise", [bursts, starved, crowded])
@pytest.mark.parametrize("seed", range(20))
def test_what_is_called_certain_is_true_and_noise_is_not_hidden(noise, seed):
    machine = Machine(noise, seed)
    row = machine.race(**TIMES)
    for name, time in TIMES.items():
        truth = TIMES["baseline"] / time
        if row.certain(name):
            assert row.ratio(name) == pytest.approx(truth, rel=2 * CERTAINTY), name
    assert row.ratio("fused") > 1 or not row.certain("fused")


@pytest.mark.parametrize("seed", range(5))
def test_the_time_it_may_take_is_kept(seed):
    machine = Machine(crowded, seed)
    row = machine.race(budget_s=1.0, **TIMES)
    assert not row.certain("fused")
    assert 1e9 < machine.now < 1.3e9


def test_a_slow_call_is_not_repeated_for_ever_and_nothing_is_claimed():
    machine = Machine(quiet)
    row = machine.race(baseline=2e6, fused=1e3)
    assert row.rounds == 2 and not row.certain("fused")
    assert machine.now < 9e9


def test_short_calls_are_repeated_in_a_round():
    machine = Machine(quiet)
    row = machine.race(baseline=400.0, fused=2.0)
    assert row.times["fused"].median == pytest.approx(2.0, rel=0.06)
    assert machine.calls > 90 * row.rounds


def test_a_median_has_an_interval():
    timed = Timed.over([*range(1, 102)])
    assert (timed.fast, timed.median) == (11, 51)
    assert timed.low == 41 and timed.high == 62
    assert not timed.quiet and Timed.known(3.0).quiet
    row = Row(1, {"baseline": Timed.known(6.0), "fused": Timed.known(3.0)})
    assert row.settled and row.between("fused") == (2.0, 2.0)
