"""What a peer's interface lacks, found out by trying: one process for each peer.

``python -m rsk.measure.peers.traits NAME --device cuda`` prints the answers as one line of JSON. A
row of NaN comes last: a sampler may answer it with a device assertion, which ends the process.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rsk.base import terminal
from rsk.check.synthetic import make_batch
from rsk.measure.peers.peer import NotOffered, Peer, PeerError
from rsk.measure.workload import Inputs
from rsk.sampler.api import RejectionSamples

BATCH, SPEC_LEN, VOCAB = 8, 4, 97
SEED = 1234
TIME_LIMIT_S = 300.0


@dataclass(frozen=True, kw_only=True)
class Traits:
    """What came of each trial, in words; "yes" and "no" where that is all there is to say."""

    repeats: str
    """The same call twice, from the same state of all generators."""
    seeds: str
    """A seed for each request: the same ones give the same tokens, others give others."""
    batch_invariant: str
    """The same requests, with their seeds, in other places of the batch."""
    ragged: str
    """Fewer drafts for one request than for the others, marked by -1."""
    equal_laws: str
    """Rejections where p = q, and nothing may be rejected."""
    nan: str
    """A target row of NaN in one request of the batch."""


def example(peer: Peer, device: torch.device) -> Inputs:
    """Inputs that are rejected now and then; one request for a peer that takes no more."""
    batch = make_batch(
        peer.max_batch_size or BATCH, SPEC_LEN, VOCAB, acceptance=0.6, device=device, seed=SEED
    )
    return Inputs(*batch, SEED)


def _run(peer: Peer, inputs: Inputs, seeds: Tensor | None = None) -> RejectionSamples:
    tokens, counts = peer.result(peer.bind(inputs, seeds)())
    return RejectionSamples(tokens.cpu(), counts.cpu())


def repeats(peer: Peer, inputs: Inputs) -> str:
    """See :class:`Traits`."""

    def once() -> Tensor:
        torch.manual_seed(SEED)
        return _run(peer, inputs).tokens

    first = once()
    return "yes" if all(torch.equal(first, once()) for _ in range(3)) else "no"


def seeds(peer: Peer, inputs: Inputs) -> str:
    """See :class:`Traits`."""
    chosen = _seeds(inputs)
    first, again = (_run(peer, inputs, chosen).tokens for _ in range(2))
    others = [_run(peer, inputs, chosen + 1000 * (i + 1)).tokens for i in range(8)]
    if not torch.equal(first, again):
        return "no: the same seeds give other tokens"
    return (
        "yes" if any(not torch.equal(first, other) for other in others) else "no: it ignores them"
    )


def batch_invariant(peer: Peer, inputs: Inputs) -> str:
    """See :class:`Traits`."""
    size = len(inputs.draft_tokens)
    if size == 1:
        return "one request at a time"
    chosen = _seeds(inputs)
    first = _run(peer, inputs, chosen).tokens
    same = total = 0
    for shift in range(1, size):
        tokens, draft, target = (x.roll(shift, 0) for x in inputs[:3])
        rolled = Inputs(tokens, draft, target, inputs.seed)
        moved = _run(peer, rolled, chosen.roll(shift)).tokens.roll(-shift, 0)
        same += int((moved == first).all(1).sum())
        total += size
    return "yes" if same == total else f"no: {same} of {total} are the same"


def ragged(peer: Peer, inputs: Inputs) -> str:
    """See :class:`Traits`."""
    if len(inputs.draft_tokens) == 1:
        return "one request at a time"
    # With p = q all drafts are accepted, so that it shows where a request ends.
    tokens = inputs.draft_tokens.clone()
    tokens[0, 1:] = -1
    target = inputs.target_probs.clone()
    target[:, :SPEC_LEN] = inputs.draft_probs
    found = _run(peer, Inputs(tokens, inputs.draft_probs, target, inputs.seed))
    row, count = found.tokens[0].tolist(), int(found.num_accepted[0])
    ended = count == 1 and 0 <= row[1] < VOCAB and set(row[2:]) == {-1}
    others = bool((found.num_accepted[1:] == SPEC_LEN).all())
    return "yes" if ended and others else f"no: {count} accepted, tokens {row}"


def equal_laws(peer: Peer, inputs: Inputs, calls: int = 20) -> str:
    """See :class:`Traits`."""
    target = inputs.target_probs.clone()
    target[:, :SPEC_LEN] = inputs.draft_probs
    rejected = coins = 0
    for i in range(calls):
        same = Inputs(inputs.draft_tokens, inputs.draft_probs, target, inputs.seed + 1000 * i)
        found = _run(peer, same)
        rejected += int((found.num_accepted < SPEC_LEN).sum())
        coins += int(found.num_accepted.sum())
    return f"{rejected} of {coins + rejected:,}"


def nan(peer: Peer, inputs: Inputs) -> str:
    """See :class:`Traits`."""
    target = inputs.target_probs.clone()
    target[0, :] = float("nan")
    found = _run(peer, Inputs(inputs.draft_tokens, inputs.draft_probs, target, inputs.seed))
    count, row = int(found.num_accepted[0]), found.tokens[0].tolist()
    if count < 0:
        return "flagged, without a token"
    return f"{count} accepted, tokens {row}"


TRIALS: dict[str, Callable[[Peer, Inputs], str]] = {
    "repeats": repeats,
    "seeds": seeds,
    "batch_invariant": batch_invariant,
    "ragged": ragged,
    "equal_laws": equal_laws,
    "nan": nan,
}


def attempt(trial: Callable[[Peer, Inputs], str], peer: Peer, inputs: Inputs) -> str:
    """What comes of a trial; an exception is an answer too."""
    try:
        return trial(peer, inputs)
    except NotOffered as error:
        return f"no: {error}"
    except Exception as error:
        return terminal.error_line(error)


def _seeds(inputs: Inputs) -> Tensor:
    tokens = inputs.draft_tokens
    return torch.arange(len(tokens), device=tokens.device) * 7919 + SEED


def traits_of(name: str, device: torch.device, *, time_limit_s: float = TIME_LIMIT_S) -> Traits:
    """Try a peer in a process of its own.

    Raises:
        PeerError: the process printed nothing that can be read.
    """
    command = [sys.executable, "-m", "rsk.measure.peers.traits", name, "--device", device.type]
    path = os.pathsep.join(filter(None, sys.path))  # of a test or a checkout, too
    try:
        done = subprocess.run(
            command,
            env=os.environ | {"PYTHONPATH": path},
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=time_limit_s,
        )
        printed, why = done.stdout, f"ended with status {done.returncode}"
    except subprocess.TimeoutExpired as error:
        printed = (error.stdout or b"").decode(errors="replace")
        why = f"did not end in {time_limit_s:.0f} s"
    answers: dict[str, str] = {}
    for line in printed.splitlines():
        if line.startswith("{"):
            answers |= json.loads(line)
    if not answers:
        raise PeerError(f"{name}: the trial {why} without an answer")
    return Traits(**{trial: answers.get(trial, f"the process {why}") for trial in TRIALS})


def main(arguments: Sequence[str] | None = None) -> None:
    """Run as a program; each answer is a line, so that a crash does not take those before it."""
    from rsk.measure import peers

    terminal.accept_any_text()
    parser = argparse.ArgumentParser(prog="python -m rsk.measure.peers.traits")
    parser.add_argument("name", choices=[*peers.MAKERS, "fused"])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    chosen = parser.parse_args(arguments)
    device = torch.device(chosen.device)
    peer = ours() if chosen.name == "fused" else peers.make(chosen.name, device)
    inputs = example(peer, device)
    for name, trial in TRIALS.items():
        print(json.dumps({name: attempt(trial, peer, inputs)}), flush=True)


def ours() -> Peer:
    """Our own sampler as a peer, for the same trials."""
    from rsk.sampler.api import rejection_sample
    from rsk.sampler.registry import BACKENDS

    def bind(inputs: Inputs, seeds: Tensor | None) -> Callable[[], RejectionSamples]:
        *tensors, seed = inputs
        chosen = seed if seeds is None else seeds
        return lambda: rejection_sample(*tensors, seed=chosen)

    return Peer(entry=BACKENDS["fused"], bind=bind, result=lambda output: output)


if __name__ == "__main__":
    main()
