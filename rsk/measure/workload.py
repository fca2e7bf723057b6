"""The inputs that all implementations are timed on, and what they are held to there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from rsk.base.machine import available_memory, last_level_cache
from rsk.check.synthetic import make_batch
from rsk.measure import roof
from rsk.measure.clocks import launch_floor
from rsk.measure.records import Spread
from rsk.sampler.api import RejectionSamples, rejection_sample

WARM_REQUESTS = 16
"""With a warm cache, sets that hold at least this many requests rotate, if the cache allows."""
COLD_ROTATION = 2
"""With a cold one, what a rotation touches, at least, as a multiple of the last-level cache."""
MAX_SETS = 256
ATTEMPTS = 6
"""How often what other programs disturb is measured, before the least disturbed is kept."""
MEMORY_SHARE = 0.6
"""The inputs may take this share of the free memory; the rest is for the samplers."""


class WorkloadError(ValueError):
    """Inputs that cannot be made as asked; the message says why."""


class Inputs(NamedTuple):
    """The arguments of one call; request b uses the seed ``seed + b``."""

    draft_tokens: Tensor
    draft_probs: Tensor
    target_probs: Tensor
    seed: int


@dataclass(frozen=True)
class Workload:
    """One kind of batch, with what every implementation is held to on it."""

    dtype: str
    acceptance: float
    cache: str
    device: torch.device
    inputs: list[Inputs]
    """The sets that are timed, in rotation."""
    expected: list[RejectionSamples]
    probe: Inputs
    """A set that is not timed, and whose result differs from the first one's."""
    probe_expected: RejectionSamples
    bytes_moved: int
    roof: Spread
    floor_us: float

    @property
    def batch_size(self) -> int:
        """B."""
        return self.inputs[0].draft_tokens.shape[0]

    @property
    def spec_len(self) -> int:
        """K."""
        return self.inputs[0].draft_tokens.shape[1]

    @property
    def vocab_size(self) -> int:
        """V."""
        return self.inputs[0].target_probs.shape[2]


class Pool:
    """One large synthetic batch that the workloads of one vocabulary, dtype and acceptance share.

    A workload of B requests takes B rows of it for each of its input sets, and its first K draft
    positions; nothing is copied.

    Args:
        kinds: batch size and cache state of all workloads to come.
        spec_len: their largest K.
        vocab_size: V.
        dtype: ``"float32"``, ``"bfloat16"`` or ``"float16"``.
        acceptance: mean acceptance rate of the drafts.
        device: where the tensors are made and used.
        seed: same seed, same inputs.

    Raises:
        WorkloadError: the inputs would not leave enough free memory.
    """

    def __init__(
        self,
        kinds: Sequence[tuple[int, str]],
        spec_len: int,
        vocab_size: int,
        *,
        dtype: str = "float32",
        acceptance: float = 0.7,
        device: torch.device | str = "cpu",
        seed: int = 0,
    ) -> None:
        self.device = torch.device(device)
        self.dtype = dtype
        self.acceptance = acceptance
        self.seed = seed
        self.cache_bytes = last_level_cache(self.device)
        self.row_bytes = vocab_size * getattr(torch, dtype).itemsize
        rows = max(size * self._sets(size, cache) for size, cache in kinds)
        size = (2 * spec_len + 1) * rows * self.row_bytes
        available = available_memory(self.device)
        if available is not None and size > available * MEMORY_SHARE:
            raise WorkloadError(
                f"inputs of {size / 2**30:.1f} GiB for V={vocab_size} and up to {rows} rows of "
                f"K={spec_len} are too much for the {available / 2**30:.1f} GiB of free memory"
            )
        self.rows = make_batch(
            rows,
            spec_len,
            vocab_size,
            dtype=getattr(torch, dtype),
            device=self.device,
            acceptance=acceptance,
            seed=seed,
        )

    def _sets(self, batch_size: int, cache: str) -> int:
        """How many input sets a workload rotates over; a request reads one row or two."""
        rows = batch_size * self.row_bytes
        if cache == "cold":
            sets = math.ceil(COLD_ROTATION * self.cache_bytes / rows)
            return sets if sets <= MAX_SETS else 0
        fitting = self.cache_bytes // 4 // (2 * rows)
        return max(1, min(WARM_REQUESTS // batch_size, fitting))

    def workload(
        self, batch_size: int, spec_len: int, cache: str = "warm", *, budget_s: float = 0.1
    ) -> Workload:
        """Prepare a workload: its inputs, the expected tokens, and the memory roof.

        Args:
            batch_size: B, one of those that the pool was made for.
            spec_len: K, at most the pool's.
            cache: ``"warm"`` or ``"cold"``.
            budget_s: seconds to spend on the roof.

        Raises:
            WorkloadError: so few bytes that a cold cache would take too many input sets; or the
                pool was not made for it.
        """
        n_sets = self._sets(batch_size, cache)
        if n_sets == 0:
            raise WorkloadError(
                f"B={batch_size}, rows of {self.row_bytes} bytes: a cold cache would take more "
                f"than {MAX_SETS} input sets"
            )
        rows, positions = self.rows.draft_tokens.shape
        if n_sets * batch_size > rows or spec_len > positions:
            raise WorkloadError(
                f"the pool of {rows} rows and {positions} positions was not made for "
                f"B={batch_size}, K={spec_len} and a {cache} cache"
            )
        inputs = []
        for i in range(n_sets):
            chosen = slice(i * batch_size, (i + 1) * batch_size)
            inputs.append(
                Inputs(
                    self.rows.draft_tokens[chosen, :spec_len],
                    self.rows.draft_probs[chosen, :spec_len],
                    self.rows.target_probs[chosen, : spec_len + 1],
                    self.seed + chosen.start,
                )
            )
        expected = [reference(one) for one in inputs]
        probe, probe_expected = _probe(inputs[0], expected[0])
        moved = [
            bytes_to_move(one.draft_tokens, samples.num_accepted, one.target_probs)
            for one, samples in zip(inputs, expected, strict=True)
        ]
        bytes_moved = round(sum(moved) / len(moved))
        return Workload(
            dtype=self.dtype,
            acceptance=self.acceptance,
            cache=cache,
            device=self.device,
            inputs=inputs,
            expected=expected,
            probe=probe,
            probe_expected=probe_expected,
            bytes_moved=bytes_moved,
            roof=roof.measure(bytes_moved, n_sets, self.device, budget_s=budget_s).time,
            floor_us=launch_floor(self.device, budget_s=budget_s / 2),
        )

    def quiet_workload(self, batch_size: int, spec_len: int, cache: str = "warm") -> Workload:
        """A workload, the least disturbed one of several if other programs disturb its roof.

        It is chosen by what the operating system tells of them, not by the roof's time.

        Raises:
            WorkloadError: as for :meth:`workload`.
        """
        found: list[Workload] = []
        while len(found) < ATTEMPTS and (not found or found[-1].roof.busy):
            found.append(self.workload(batch_size, spec_len, cache))
        return min(found, key=lambda one: one.roof.disturbed)


def reference(inputs: Inputs) -> RejectionSamples:
    """The tokens that the specification asks for, from the baseline."""
    *tensors, seed = inputs
    return rejection_sample(*tensors, seed=seed, backend="baseline")


def _probe(first: Inputs, expected: RejectionSamples) -> tuple[Inputs, RejectionSamples]:
    """The same tensors with a seed whose result is another one, to expose a stale output."""
    probe, samples = first, expected
    for step in range(1, 65):
        probe = first._replace(seed=first.seed + step * 1_000_003)
        samples = reference(probe)
        if not torch.equal(samples.tokens, expected.tokens):
            break
    return probe, samples


def bytes_to_move(draft_tokens: Tensor, num_accepted: Tensor, target_probs: Tensor) -> int:
    """Bytes that the algorithm cannot avoid to move, given what it decided.

    For each request: the row pair of the rejected position, or the bonus row alone; a token and
    two probabilities per coin; the output.

    Args:
        draft_tokens: [B, K], as given to the sampler.
        num_accepted: int64 [B], as returned.
        target_probs: [B, K+1, V].
    """
    batch_size, spec_len = draft_tokens.shape
    row = target_probs.shape[2] * target_probs.element_size()
    coin = draft_tokens.element_size() + 2 * target_probs.element_size()
    ended = torch.nn.functional.pad(draft_tokens, (0, 1), value=-1) == -1
    rejected = ~ended.gather(1, num_accepted.clamp(min=0)[:, None]).squeeze(1)
    rows = batch_size + int(rejected.sum())
    coins = int((num_accepted + rejected).sum())
    return rows * row + coins * coin + batch_size * 8 * (spec_len + 2)
