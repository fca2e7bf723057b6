"""How many tokens to draft, from what drafting costs and how much of it is accepted."""

from __future__ import annotations


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


def expected_speed_up(acceptance: float, spec_len: int, cost: float) -> float:
    """Speed-up over plain decoding, if the target reads K + 1 tokens as fast as one.

    Source: Leviathan, Kalman and Matias 2023, theorem 3.8.

    Args:
        acceptance: as is ``spec_len``, see :func:`expected_tokens`.
        spec_len: K.
        cost: c, the time of a draft pass over that of a target pass.
    """
    return expected_tokens(acceptance, spec_len) / (spec_len * cost + 1)
