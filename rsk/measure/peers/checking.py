"""Does a peer's output follow the target? Checked before any of its times is shown."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from rsk.base import terminal
from rsk.check import Case, Verdict, examine
from rsk.measure.clocks import Thunk
from rsk.measure.implementations import Implementation
from rsk.measure.logit_inputs import Ways
from rsk.measure.peers.peer import Peer, PeerError, PeerInputs
from rsk.measure.workload import Inputs
from rsk.sampler.api import RejectionSamples

LEVEL = 1e-4
"""Chance that a correct peer fails :func:`check_distribution`."""
BIAS = 0.07
"""Distance in total variation at which a wrong one passes it with a chance of 1 % at most."""
TAIL = 0.05
"""Probability that a filter has to remove, from two tokens behind those of the case."""


def check_distribution(
    peer: Implementation, device: torch.device, *, bias: float = BIAS, seed: int = 0
) -> Verdict:
    """Test that a peer's output follows the target, with the check that any sampler can be given.

    The requests have two draft positions, three tokens and no row of zeros: what every peer takes.
    A peer that takes one request at a time is called once for each.

    Args:
        peer: what to test.
        device: where to run it.
        bias: the smallest distance from the target, in total variation, that must not pass.
        seed: of the drafts and of the global generators, which the peer draws from; their state is
            restored after.

    Returns:
        The verdict, with its error rates.

    Raises:
        PeerError: the output does not follow the target or is malformed, or the peer raised
            something; the message says what.
    """

    def sampler(
        draft_tokens: Tensor,
        draft_probs: Tensor,
        target_probs: Tensor,
        *,
        seed: Tensor,
        position: Tensor,
    ) -> RejectionSamples:
        inputs = Inputs(draft_tokens, draft_probs, target_probs, int(seed[0]))
        return peer.result(peer.bind(inputs)())

    cuda = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=cuda):
            verdict = examine(
                sampler,
                cases=[_small_case()],
                level=LEVEL,
                bias=bias,
                seed=seed,
                batch_size=1 if peer.max_batch_size == 1 else 4096,
                device=device,
            )
    except Exception as error:  # other people's code: a kernel that does not compile, a wrong type
        raise PeerError(f"it was called and raised {terminal.error_line(error)}") from error
    if not verdict.lossless:
        found = verdict.culprit.aspect if verdict.culprit else "output"
        why = verdict.impossible or f"the {found} is wrong"
        raise PeerError(
            f"its output does not follow the target: {why} ({verdict.requests:,} requests)"
        )
    return verdict


def _small_case() -> Case:
    """A request that is rejected as often as not, with each of p < q and p > q somewhere."""
    draft = [[3, 8, 5], [7, 3, 6]]
    target = [[8, 5, 3], [3, 6, 7], [4, 4, 8]]
    return Case.make("a peer", {"overlapping rows": (draft, target)}, denominator=16)


def check_from_logits(peer: Peer, ways: Ways, device: torch.device, *, bias: float = BIAS) -> None:
    """Test that a peer's output follows the target where it starts from logits.

    The target's rows of the small case become logits that these ways turn back into them: a filter
    has two tokens more to remove.

    Raises:
        PeerError: it does not start from logits; or its output does not follow the target.
    """
    bind_logits = peer.bind_logits
    if bind_logits is None:
        raise PeerError("it does not start from logits")
    has_tail = bool(ways.top_k) or ways.top_p < 1

    def widened(probs: Tensor, mass: float) -> Tensor:
        behind = torch.full_like(probs[..., :2], mass / 2)
        return torch.cat([probs * (1 - mass), behind], -1) if has_tail else probs

    def bind(inputs: Inputs) -> Thunk:
        target = widened(inputs.target_probs, TAIL)
        draft = widened(inputs.draft_probs, 0.0)
        return bind_logits(
            PeerInputs(
                inputs.draft_tokens,
                ways.temperature * draft.log(),
                draft,
                ways.temperature * target.log(),
                ways,
                inputs.seed,
            )
        )

    check_distribution(replace(peer.implementation, bind=bind), device, bias=bias)
