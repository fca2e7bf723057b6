"""What a sharded call is of."""

from __future__ import annotations

import math
from typing import NamedTuple

LISTED = 50
"""k of the calls with top-k."""


class ShardedPoint(NamedTuple):
    """What a call is of."""

    start: str
    batch_size: int
    spec_len: int
    vocab_size: int
    ranks: int
    item_bytes: int
    acceptance: float = 0.7

    @property
    def from_logits(self) -> bool:
        """Whether the laws of the rows are to be found."""
        return self.start != "probabilities"

    @property
    def listed(self) -> int:
        """Length of the lists that find the thresholds."""
        return LISTED if "top-k" in self.start else 0

    @property
    def gathered_bytes(self) -> int:
        """What one rank receives if the rows are gathered."""
        rows = self.batch_size * (2 * self.spec_len + 1)
        columns = math.ceil(self.vocab_size / self.ranks)  # of the largest slice
        return rows * columns * self.item_bytes * (self.ranks - 1)
