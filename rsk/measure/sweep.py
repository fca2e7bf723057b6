"""What a benchmark measures: points along each axis, or a whole grid, in several whole runs."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch

from rsk.measure import comparison
from rsk.measure.records import CACHES, DTYPES, Point

GRIDS = ("", "BV", "BKV")
RECORDED_RUNS = 5
"""Whole runs of what is recorded: fewer say little about how a time varies from run to run."""
OUT_OF_TIME = "out of time: the rest of the sweep was not measured"
"""What is written of a sweep that a time limit ended."""


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What to measure. The first value of each list but the batch sizes is the usual one.

    Every batch size is measured at the usual values, with every dtype and in every cache state;
    every speculation length, vocabulary and acceptance rate at the middle batch size. With
    ``grid`` "BV", every batch size is measured with every vocabulary, dtype and cache state; with
    "BKV", with every speculation length and vocabulary too.
    """

    batch_sizes: tuple[int, ...] = (1, 4, 16, 64)
    spec_lens: tuple[int, ...] = (4, 1, 8)
    vocab_sizes: tuple[int, ...] = (32000, 1000, 128256)
    dtypes: tuple[str, ...] = ("float32",)
    acceptances: tuple[float, ...] = (0.7,)
    caches: tuple[str, ...] = ("warm",)
    grid: str = ""
    runs: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if not getattr(self, field.name) and field.name not in ("grid", "seed"):
                raise ValueError(f"{field.name}: expected at least one value, got none")
        for name, least in (("batch_sizes", 1), ("spec_lens", 0), ("vocab_sizes", 1)):
            for value in getattr(self, name):
                if value < least:
                    raise ValueError(f"{name}: expected at least {least}, got {value}")
        for name, known in (("dtypes", DTYPES), ("caches", CACHES)):
            for value in getattr(self, name):
                if value not in known:
                    raise ValueError(f"{name}: expected one of {', '.join(known)}, got {value!r}")
        if self.grid not in GRIDS:
            raise ValueError(f"grid: expected one of {', '.join(GRIDS[1:])}, got {self.grid!r}")
        for value in self.acceptances:
            if not 0 <= value <= 1:
                raise ValueError(f"acceptances: expected rates in [0, 1], got {value}")

    @property
    def settings(self) -> dict[str, Any]:
        """As a record keeps them: what JSON holds."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(self).items()
        }

    @property
    def usual(self) -> Point:
        """The point that the others vary; its batch size is the middle one."""
        return comparison.usual(dataclasses.asdict(self))

    def points(self) -> list[Point]:
        """All points, without repetition; those that share a pool of inputs follow each other."""
        usual = self.usual
        chosen = [usual._replace(batch_size=b) for b in self.batch_sizes]
        chosen += [usual._replace(spec_len=k) for k in self.spec_lens]
        chosen += [usual._replace(vocab_size=v) for v in self.vocab_sizes]
        vocab_sizes = self.vocab_sizes if self.grid else self.vocab_sizes[:1]
        for point in [
            usual._replace(batch_size=b, vocab_size=v)
            for v in vocab_sizes
            for b in self.batch_sizes
        ]:
            if "K" in self.grid:
                chosen += [point._replace(spec_len=k) for k in self.spec_lens]
            chosen += [point._replace(dtype=dtype) for dtype in self.dtypes]
            chosen += [point._replace(cache=cache) for cache in self.caches]
        chosen += [usual._replace(acceptance=a) for a in self.acceptances]
        pools = {pool: i for i, pool in enumerate(dict.fromkeys(map(pool_of, chosen)))}
        return sorted(dict.fromkeys(chosen), key=lambda point: pools[pool_of(point)])


def full_sweep(device: torch.device | str) -> Sweep:
    """What is recorded: the whole grid and every other axis, in so many whole runs."""
    on_gpu = torch.device(device).type == "cuda"
    return Sweep(
        batch_sizes=(1, 4, 16, 64, 256, 1024) if on_gpu else (1, 4, 16, 64, 256),
        dtypes=DTYPES,
        acceptances=(0.7, 0.3, 0.5, 0.9, 1.0),
        caches=CACHES,
        grid="BKV",
        runs=RECORDED_RUNS,
    )


def pool_of(point: Point) -> tuple[int, str, float]:
    """What points share that have one pool of inputs: V, the dtype and the acceptance rate."""
    return point.vocab_size, point.dtype, point.acceptance
