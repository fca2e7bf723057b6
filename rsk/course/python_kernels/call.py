"""One call of a Python kernel: its arguments, its result, and what was loaded on the way."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rsk.figures.memory_access import Load
from rsk.sampler.random_words import SAMPLE, coin, word

ACCEPTED, REJECTED, ENDED, INVALID = "accepted", "rejected", "ended", "invalid"


@dataclass
class KernelCall:
    """The arguments of a call, its result, and what was loaded on the way."""

    draft_tokens: list[list[int]]
    p: Any
    """float32 [B, K+1, V]"""
    q: Any
    """float32 [B, K, V]"""
    seeds: list[int]
    positions: list[int]
    tokens: Tensor
    num_accepted: Tensor
    loads: list[Load] = field(default_factory=list)
    running: tuple[int, int] = (0, 0)
    """Block and thread that are running now."""
    waits: dict[tuple[int, int], int] = field(default_factory=dict)

    @property
    def vocab_size(self) -> int:
        """V."""
        return int(self.p.shape[2])

    @property
    def spec_len(self) -> int:
        """K."""
        return int(self.q.shape[1])

    def judge(self, b: int, k: int) -> str:
        """Decide on draft token k of request b, on its own."""
        d = self.draft_tokens[b][k]
        if d == -1:
            return ENDED
        if not 0 <= d < self.vocab_size:
            return INVALID
        u = coin(self.seeds[b], self.positions[b] + k)
        return ACCEPTED if u * float(self.q[b, k, d]) < float(self.p[b, k, d]) else REJECTED

    def row_to_sample(self, b: int, n: int, verdict: str) -> Row:
        """The row that the last token is sampled from."""
        return Row(self, b, n, verdict == REJECTED)

    def threshold(self, b: int, n: int, total: int) -> int:
        """The token is the first whose running sum of weights exceeds this."""
        return (word(self.seeds[b], self.positions[b] + n, SAMPLE) >> 2) * total >> 62

    def write_result(self, b: int, n: int, token: int) -> None:
        """Accepted drafts, then the token, then -1; a negative token marks an invalid request."""
        row = [*self.draft_tokens[b][:n], token] if token >= 0 else []
        self.tokens[b] = torch.tensor(row + [-1] * (self.spec_len + 1 - len(row)))
        self.num_accepted[b] = n if token >= 0 else -1


@dataclass
class Row:
    """Weights max(p - q, 0), or max(p, 0), of one row, in fixed point."""

    call: KernelCall
    b: int
    n: int
    is_residual: bool

    def load(self, *spans: range) -> list[list[int]]:
        """Ask for the probabilities of each span, wait for all of them, and return the weights."""
        call, who = self.call, self.call.running
        number = call.waits[who] = call.waits.get(who, -1) + 1
        call.loads += [Load(*who, number, self.b, v) for span in spans for v in span]
        return [self._weights(span) for span in spans]

    def weight(self, v: int) -> int:
        """Load one probability."""
        return self.load(range(v, v + 1))[0][0]

    def _weights(self, span: range) -> list[int]:
        w = self.call.p[self.b, self.n, span.start : span.stop]
        if self.is_residual:
            w = w - self.call.q[self.b, self.n, span.start : span.stop]  # float32, rounded once
        return [int(float(x) * 2**42) for x in np.clip(w, 0, 1)]
