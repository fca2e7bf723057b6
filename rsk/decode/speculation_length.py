"""How many tokens to draft, from what drafting costs and how much of it is accepted."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from rsk.decode import arguments
from rsk.sampler.arguments import MAX_SPEC_LEN

AUTO = "auto"
"""In place of K: :class:`MeasuredLength` chooses it."""


def expected_tokens(acceptance: float, spec_len: int) -> float:
    """Tokens per target pass, (1 - a^(K+1)) / (1 - a), if each draft token is accepted alike.

    Source: Leviathan, Kalman and Matias 2023, equation 1.

    Args:
        acceptance: a, the probability in [0, 1] that a draft token is accepted, given that those
            before it were.
        spec_len: K.

    Raises:
        ValueError: a rate outside [0, 1] or a negative K.
    """
    if not 0 <= acceptance <= 1 or spec_len < 0:
        raise ValueError(
            f"expected an acceptance rate in [0, 1] and K >= 0, got {acceptance} and {spec_len}"
        )
    return sum(acceptance**k for k in range(spec_len + 1))  # the same sum, also for a = 1


def expected_speed_up(acceptance: float, spec_len: int, cost: float, check: float = 1.0) -> float:
    """Speed-up over plain decoding.

    Source: Leviathan, Kalman and Matias 2023, theorem 3.8, in which the target reads K + 1 tokens
    as fast as one.

    Args:
        acceptance: as is ``spec_len``, see :func:`expected_tokens`.
        spec_len: K.
        cost: c, the time of a draft pass over that of a target pass.
        check: time of a target pass over K + 1 tokens over that of one over a single token.
    """
    return expected_tokens(acceptance, spec_len) / (spec_len * cost + check)


class StepCost(NamedTuple):
    """What one step of decoding took and brought."""

    positions: int
    """That the target read for each request: the draft tokens and one more."""
    judged: int
    """Draft tokens that the sampler came to judge, of all requests."""
    accepted: int
    target_s: float
    draft_s: float
    rest_s: float


class SpeculationLength:
    """The same K for every step."""

    def __init__(self, spec_len: int) -> None:
        self.longest = spec_len
        """Largest K that is ever chosen."""

    def choose(self) -> int:
        """K of the next step."""
        return self.longest

    def learn(self, step: StepCost) -> None:
        """Take note of a step."""


class MeasuredLength(SpeculationLength):
    """The K that brings most tokens a second, from what the steps so far took and brought.

    With K drafts a step is expected to bring (1 - a^(K+1)) / (1 - a) tokens (Leviathan et al.
    2023, equation 1) and to take the target's pass over K + 1 positions, K drafts, and the rest.
    Their theorem 3.8 assumes that the pass takes as long for K + 1 positions as for one; here it
    is measured, because on a CPU it does not. Where drafting does not pay, K is 0: plain decoding.

    The choice depends on past steps alone, so the law of the text stays the target's. But it
    depends on the clock: a seed does not repeat a sampled text.
    """

    PROBES = (4, 0, 1, 2, 8)
    """The first steps have these K, each twice, as the first pass of a size is slow; between them
    the time of the target's pass is interpolated."""
    RECENT = 5
    """Passes of one size that are remembered; the fastest counts, the others were disturbed."""
    FORGETTING = 0.97
    """How much of what was judged counts after the next step."""
    RETRY = 32
    """After so many plain steps drafting is tried once more: the text may have changed."""

    def __init__(self, longest: int = max(PROBES)) -> None:
        super().__init__(longest)
        self._probes = [k for k in self.PROBES if k <= longest] * 2
        self._passes: dict[int, deque[float]] = {}
        self._drafts: deque[float] = deque(maxlen=self.RECENT)
        self._rests: deque[float] = deque(maxlen=self.RECENT)
        self._judged = self._accepted = 0.0
        self._plain = 0
        self._was_plain = False

    @property
    def acceptance(self) -> float:
        """Probability that a draft token is accepted, recent steps counting most; 1/2 at first."""
        return (self._accepted + 1) / (self._judged + 2)

    def pass_seconds(self, positions: int) -> float:
        """Time of the target's pass over so many positions, interpolated."""
        known = sorted(self._passes)
        below = max((n for n in known if n <= positions), default=known[0])
        above = min((n for n in known if n >= positions), default=known[-1])
        low, high = min(self._passes[below]), min(self._passes[above])
        share = (positions - below) / (above - below) if above > below else 0.0
        return low + share * (high - low)

    def tokens_per_second(self, spec_len: int) -> float:
        """Expected of each request with this K."""
        draft = min(self._drafts, default=0.0)
        seconds = self.pass_seconds(spec_len + 1) + spec_len * draft + min(self._rests)
        return expected_tokens(self.acceptance, spec_len) / seconds

    def choose(self) -> int:  # noqa: D102
        if self._probes:
            return self._probes.pop(0)
        if not self._passes:
            return self.longest
        best = max(range(self.longest + 1), key=self.tokens_per_second)  # the first of equals
        self._plain = 0 if best else self._plain + 1
        if self._plain == self.RETRY and self.longest:
            self._plain = 0
            return max(range(1, self.longest + 1), key=self.tokens_per_second)
        return best

    def learn(self, step: StepCost) -> None:  # noqa: D102
        times = self._passes.setdefault(step.positions, deque(maxlen=self.RECENT))
        times.append(step.target_s)
        self._rests.append(step.rest_s)
        # After a plain step the draft reads what it missed as well: that is no cost of a token.
        if step.positions > 1 and not (self._was_plain and self._drafts):
            self._drafts.append(step.draft_s / (step.positions - 1))
        self._was_plain = step.positions == 1
        if step.judged:
            self._judged = self.FORGETTING * self._judged + step.judged
            self._accepted = self.FORGETTING * self._accepted + step.accepted


def speculation_length(spec_len: object) -> SpeculationLength:
    """What chooses K: a number is K, "auto" lets it be measured.

    Raises:
        TypeError: neither a whole number nor "auto".
        ValueError: out of range, or another word.
    """
    if isinstance(spec_len, str):
        if spec_len != AUTO:
            raise ValueError(
                f"spec_len: expected 0 to {MAX_SPEC_LEN} or {AUTO!r}, got {spec_len!r}"
            )
        return MeasuredLength()
    return SpeculationLength(arguments.integer("spec_len", spec_len, 0, MAX_SPEC_LEN))
