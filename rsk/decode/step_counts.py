"""What the steps of a text add up to, and how sure a rate over several texts is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rsk.decode.generation import ACCEPTED, RECOVERED


@dataclass
class StepCount:
    """What the unshortened steps of one request add up to."""

    steps: int = 0
    tokens: int = 0
    judged: int = 0
    accepted: int = 0
    drafted: int = 0
    """Draft tokens, those of shortened steps included."""


def count_steps(origins: Sequence[str], spec_len: int, new_tokens: int) -> StepCount:
    """Cut a request's tokens into steps: each ends with the one token that was not a draft's.

    Steps for which fewer than K draft tokens were of use, as the text was about to end, are left
    out: they would make speculation look worse than it is.
    """
    count = StepCount()
    start = 0
    for at, origin in enumerate(origins):
        if origin == ACCEPTED:
            continue
        count.drafted += min(spec_len, new_tokens - start - 1)
        if new_tokens - start - 1 >= spec_len:
            count.steps += 1
            count.tokens += at + 1 - start
            count.accepted += at - start
            count.judged += at - start + (origin == RECOVERED)
        start = at + 1
    return count


def ratio_with_error(parts: Sequence[float], wholes: Sequence[float]) -> tuple[float, float]:
    """Sum of the parts over sum of the wholes, and its standard error over the pairs.

    Tokens of one text are alike, so the texts are what is independent (the linearised error of a
    ratio estimate; Cochran, "Sampling Techniques", section 6.4). 0 and 0 if there is nothing.
    """
    total = sum(wholes)
    if not total:
        return 0.0, 0.0
    ratio = sum(parts) / total
    n = len(wholes)
    if n < 2:
        return ratio, 0.0
    squares = sum((part - ratio * whole) ** 2 for part, whole in zip(parts, wholes, strict=True))
    return ratio, math.sqrt(squares * n / (n - 1)) / total
