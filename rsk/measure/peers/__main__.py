"""Run the peers and record them: ``python -m rsk.measure.peers --save FILE``.

Of each: is it there, does its output follow the target (from probabilities, from logits, with
filters), what does it lack, and how long does it take beside ours, on the same inputs, in the same
run, on the same clocks. What fails is written into the record and does not end it; the file is
written after each time, and the program, started again, goes on behind what is there.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from rsk.base import terminal
from rsk.base.programs import UNFINISHED
from rsk.measure import (
    clocks,
    implementations,
    logit_inputs,
    peers,
    provenance,
    roof,
    timing,
    workload,
)
from rsk.measure.clocks import Thunk
from rsk.measure.logit_inputs import FILTERED, TEMPERATURE, LogitInputs, Ways
from rsk.measure.peer_records import (
    FOLLOWS,
    OURS,
    SCHEMA,
    Found,
    FromLogits,
    FromProbs,
    PeersRecord,
)
from rsk.measure.peers import checking, traits
from rsk.measure.peers.peer import Peer, PeerError, PeerInputs
from rsk.measure.records import RecordError, Spread
from rsk.measure.roof import Roof
from rsk.measure.run_files import Recorder
from rsk.sampler import logits

SHAPES = (
    *((1, 4, 32000), (16, 5, 32000), (64, 4, 32000), (1024, 4, 32000)),
    *((1, 4, 128256), (32, 8, 128256), (64, 4, 128256), (256, 4, 128256)),
)
"""B, K and V, from probabilities."""
LOGIT_SHAPES = (1, 32000), (64, 32000), (1, 128256), (64, 128256), (256, 128256)
"""B and V, from logits."""
DRY_SHAPES, DRY_LOGIT_SHAPES = ((2, 3, 97),), ((2, 97),)
WAYS = {"temperature": TEMPERATURE, "temperature, top-k, top-p": FILTERED}


class _Run(Recorder[PeersRecord]):
    """The peers, and the parts that are measured."""

    def __init__(self, record: PeersRecord, path: Path, budget_s: float) -> None:
        super().__init__(record, path, budget_s)
        self.peers: dict[str, Peer] = {OURS: _ours()}

    def look(self, name: str) -> None:
        """Find a peer, check its laws, try its traits; unless the record has that already."""
        is_known = any(one.name == name and not one.absent for one in self.record.found)
        found = Found(name=name, version="", absent="", law="", law_from_logits={}, traits=None)
        try:
            peer = self.peers[name] if name == OURS else peers.make(name, self.device)
        except PeerError as error:
            self.add(found=dataclasses.replace(found, absent=str(error)))
            print(f"{name}: {error}", flush=True)
            return
        if is_known:
            self.peers[name] = peer
            return
        try:
            tried = traits.traits_of(name, self.device)
        except Exception as error:
            self.fail(f"{name}, traits", error)
            tried = None
        law = self.law_of(lambda: checking.check_distribution(peer.implementation, self.device))
        laws = {}
        for how, ways in WAYS.items():
            laws[how] = self.law_of(lambda w=ways: checking.check_from_logits(peer, w, self.device))
        found = dataclasses.replace(
            found,
            version="" if name == OURS else peers.version_of(name),
            law=law,
            law_from_logits=laws,
            traits=tried,
        )
        self.add(found=found)
        print(f"{name} {found.version}: {law}; {laws}; {tried}", flush=True)
        self.peers[name] = peer

    def law_of(self, check: Any) -> str:
        """What a check says, in words."""
        try:
            check()
        except Exception as error:
            return terminal.error_line(error)
        return FOLLOWS

    def time_probs(self, shape: tuple[int, int, int], run: int) -> None:
        """All peers on one case from probabilities."""
        batch_size, spec_len, vocab_size = shape
        records = [one.record for one in self.record.from_probs]
        known = {
            r.implementation
            for r in records
            if (r.run, r.batch_size, r.spec_len, r.vocab_size) == (run, *shape)
        }
        if known >= {name for name in self.peers if self.is_timed(name, batch_size, None)}:
            return
        pool = workload.Pool([(batch_size, "warm")], spec_len, vocab_size, device=self.device)
        case = pool.workload(batch_size, spec_len)
        for name, peer in self.peers.items():
            if name in known or not self.is_timed(name, batch_size, None):
                continue
            try:
                one = implementations.backend(OURS) if name == OURS else peer.implementation
                record = timing.measure(one, case, budget_s=self.budget_s, run=run)
                alone = self.isolated(one.capturable, [one.bind(x) for x in case.inputs])
            except Exception as error:
                self.fail(f"{name}, from probabilities, {shape}, run {run}", error)
            else:
                self.add(from_probs=FromProbs(record=record, isolated=alone))
                print(f"run {run} {shape} {name}: {record.device.median_us:.1f} us", flush=True)

    def time_logits(self, shape: tuple[int, int], how: str, run: int) -> None:
        """All peers on one case from logits, bfloat16."""
        ways = WAYS[how]
        known = {
            one.name
            for one in self.record.from_logits
            if (one.run, one.batch_size, one.vocab_size, one.ways) == (run, *shape, how)
        }
        if known >= {name for name in self.peers if self.is_timed(name, shape[0], how)}:
            return
        sets = logit_inputs.make_sets(*shape, ways, torch.bfloat16, self.device)
        inputs = [_for_peers(some, ways, i) for i, some in enumerate(sets)]
        floor = self.roof_of(sets, inputs)
        for name, peer in self.peers.items():
            bind = peer.bind_logits
            if name in known or bind is None or not self.is_timed(name, shape[0], how):
                continue
            try:
                calls = [bind(one) for one in inputs]
                times, outputs = self.clocks(calls, peer.capturable)
                accepted = [peer.result(output).num_accepted for output in outputs]
                moved = logit_inputs.mean_needed_bytes(sets, accepted, draft_laws=True)
                found = FromLogits(
                    name=name,
                    run=run,
                    batch_size=shape[0],
                    spec_len=logit_inputs.SPEC_LEN,
                    vocab_size=shape[1],
                    dtype="bfloat16",
                    ways=how,
                    **times,
                    bytes_moved=moved,
                    roof=floor.least(moved),
                )
            except Exception as error:
                self.fail(f"{name}, from logits, {shape}, {how}, run {run}", error)
                continue
            self.add(from_logits=found)
            print(f"run {run} {shape} {how} {name}: {found.device.median_us:.1f} us", flush=True)

    def is_timed(self, name: str, batch_size: int, how: str | None) -> bool:
        """Whether a peer takes so many requests, and its output was found to follow the target."""
        limit = self.peers[name].max_batch_size
        found = next(one for one in self.record.found if one.name == name)
        law = found.law if how is None else found.law_from_logits[how]
        return law == FOLLOWS and (limit is None or batch_size <= limit)

    def roof_of(self, sets: list[LogitInputs], inputs: list[PeerInputs]) -> Roof:
        """The time to read the rows that our own sampler needs, and do nothing else."""
        bind = self.peers[OURS].bind_logits
        assert bind is not None
        accepted = [bind(one)().num_accepted for one in inputs]
        needed = logit_inputs.mean_needed_bytes(sets, accepted, draft_laws=True)
        return roof.measure(needed, len(sets), self.device, budget_s=self.budget_s)

    def clocks(self, calls: list[Thunk], capturable: bool) -> tuple[dict[str, Any], list[Any]]:
        """The times of calls, by the names of a record's fields; and the outputs last written."""
        if self.device.type == "cpu":
            wall, outputs = clocks.time_wall(calls, budget_s=self.budget_s)
            return {"device": wall, "host": wall, "call": wall, "isolated": None}, outputs
        host, call, outputs = clocks.time_eager(calls, budget_s=self.budget_s / 2)
        on_device = call
        if capturable:
            on_device, outputs = clocks.time_graph(calls, budget_s=self.budget_s / 2)
        alone = self.isolated(capturable, calls)
        times = {"device": on_device, "host": host, "call": call, "isolated": alone}
        return times, outputs

    def isolated(self, capturable: bool, calls: list[Thunk]) -> Spread | None:
        """The time of isolated launches, where there are any."""
        if self.device.type == "cpu" or not capturable:
            return None
        return clocks.time_isolated(calls, budget_s=self.budget_s / 2)[0]


def _ours() -> Peer:
    """Our own sampler; from logits with the laws of the draft's rows, as a caller has them."""

    def bind_logits(inputs: PeerInputs) -> Thunk:
        return lambda: logits.rejection_sample_from_logits(
            inputs.draft_tokens,
            inputs.draft_logits,
            inputs.target_logits,
            **inputs.ways.arguments,
            seed=inputs.seed,
            draft_laws=inputs.draft_laws,
        )

    return dataclasses.replace(traits.ours(), bind_logits=bind_logits)


def _for_peers(some: logit_inputs.LogitInputs, ways: Ways, seed: int) -> PeerInputs:
    q = logits.probabilities(some.draft_logits, **ways.arguments)
    masked = some.draft_logits.masked_fill(q == 0, float("-inf"))
    return PeerInputs(some.draft_tokens, masked, q, some.target_logits, ways, seed, some.draft_laws)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run as a program; the exit status is 1 if something was not measured, 3 if unfinished."""
    terminal.accept_any_text()
    parser = argparse.ArgumentParser(prog="python -m rsk.measure.peers")
    parser.add_argument("--save", type=Path, required=True, help="the file to write")
    parser.add_argument("--runs", type=int, default=5, help="whole runs (default: 5)")
    parser.add_argument("--budget", type=float, default=0.1, help="seconds for each time")
    parser.add_argument("--only", help="peers with commas between them: " + ", ".join(peers.MAKERS))
    parser.add_argument("--time-limit", type=float, help="seconds, after which it ends unfinished")
    parser.add_argument("--dry", action="store_true", help="tiny sizes on the CPU: a trial")
    chosen = parser.parse_args(arguments)
    names = chosen.only.split(",") if chosen.only else list(peers.MAKERS)
    if unknown := set(names) - set(peers.MAKERS):
        parser.error(f"--only: expected {', '.join(peers.MAKERS)}, got {', '.join(unknown)}")
    if not chosen.dry and not torch.cuda.is_available():
        parser.error("there is no GPU here; --dry tries the program on the CPU")
    device = torch.device("cpu" if chosen.dry else "cuda")
    shapes, logit_shapes = (DRY_SHAPES, DRY_LOGIT_SHAPES) if chosen.dry else (SHAPES, LOGIT_SHAPES)
    place = provenance.provenance(device, {n: peers.version_of(n) for n in names})
    record = PeersRecord(
        schema=SCHEMA,
        provenance=place,
        settings={"budget_s": chosen.budget, "peers": names},
        complete=False,
        found=(),
        from_probs=(),
        from_logits=(),
        failed=(),
    )
    try:
        record = record.going_on(chosen.save)
    except RecordError as error:
        parser.error(str(error))
    record = dataclasses.replace(record, found=tuple(x for x in record.found if not x.absent))
    run = _Run(record, chosen.save, 0.002 if chosen.dry else chosen.budget)
    begin = time.monotonic()
    for name in (OURS, *names):
        run.look(name)
    is_late = False
    for index in range(chosen.runs):
        cases = [(f"from probabilities, {x}", partial(run.time_probs, x, index)) for x in shapes]
        cases += [
            (f"from logits, {x}, {how}", partial(run.time_logits, x, how, index))
            for x in logit_shapes
            for how in WAYS
        ]
        for what, case in cases:
            if chosen.time_limit is not None and time.monotonic() - begin > chosen.time_limit:
                is_late = True
                break
            try:
                case()
            except Exception as error:
                run.fail(f"{what}, run {index}", error)
    run.end(not is_late)
    return 1 if run.record.failed else UNFINISHED if is_late else 0


if __name__ == "__main__":
    raise SystemExit(main())
