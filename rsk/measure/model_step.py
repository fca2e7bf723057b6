"""What the sampler's time is beside a model's: decoding steps of Llama-shaped pairs at real scale.

The weights are random, since time does not depend on them: no text comes out of these models, and
how many drafts are accepted is recorded because that does depend on them. Each pair has a context
in a static cache; a step is K passes of the draft over one position, each with its token drawn, one
pass of the target over K + 1, and the sampler, from both models' logits. The passes are run as
PyTorch runs them, neither compiled nor in a CUDA graph: the time to put their many launches on the
GPU is in them, as it is in a plain decoding loop. A pass that can be captured is recorded as a
graph's share too, which is the device's own time.

``python -m rsk.measure.model_step --save FILE``; started again, it goes on behind what is there.
"""

from __future__ import annotations

import argparse
import functools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rsk.base import terminal
from rsk.base.programs import UNFINISHED
from rsk.measure import clocks
from rsk.measure.logit_inputs import TEMPERATURE
from rsk.measure.provenance import provenance
from rsk.measure.record_files import RecordError
from rsk.measure.records import Spread
from rsk.measure.run_files import PartsRecord, Recorder
from rsk.measure.step_models import MINIATURE, PAIRS, Model, ModelPair
from rsk.sampler import logits
from rsk.sampler.api import RejectionSamples

SCHEMA = "rsk-model-step/1"
POSITIONS = 1, 5, 9
SPEC_LEN = 4
CONTEXT = 512
BATCH_SIZES = 1, 16, 64
SAMPLERS = ("baseline", "vectorized", "transformers", "fused")
"""The loop, PyTorch, transformers' own (one request after the other), and fused."""


@dataclass(frozen=True, kw_only=True)
class Pass:
    """One pass of one model."""

    pair: str
    model: str
    """"target" or "draft"."""
    parameters: int
    run: int
    batch_size: int
    positions: int
    context: int
    static_cache: bool
    """Whether keys and values were in a static cache; else in one that each pass copies."""
    call: Spread
    """Until its result is there."""
    device: Spread | None
    """Its share of a captured graph; ``None`` on a CPU, and where it could not be captured."""
    not_captured: str
    """Why it could not; else empty."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One decoding step with one sampler."""

    pair: str
    run: int
    batch_size: int
    spec_len: int
    vocab_size: int
    context: int
    sampler: str
    accepted: float
    """Draft tokens accepted per request."""
    step: Spread
    """The whole step, until its tokens are there."""
    sampling: Spread
    """The sampler alone, on the logits of such a step, until its tokens are there."""

    @property
    def share(self) -> float:
        """The sampler's part of the step."""
        return self.sampling.median_us / self.step.median_us


@dataclass(frozen=True, kw_only=True)
class ModelStepRecord(PartsRecord):
    """A file of ``data/model-step/``."""

    SCHEMA = SCHEMA
    passes: tuple[Pass, ...]
    steps: tuple[Step, ...]


Sampler = Callable[[Tensor, Tensor, Tensor, Tensor], RejectionSamples]


def sampler(name: str) -> Sampler:
    """One of ``SAMPLERS``, given draft tokens, draft logits, target logits and draft laws."""
    if name == "transformers":
        return _transformers()

    def sample(
        draft_tokens: Tensor, draft_logits: Tensor, target_logits: Tensor, laws: Tensor
    ) -> RejectionSamples:
        return logits.rejection_sample_from_logits(
            draft_tokens,
            draft_logits,
            target_logits,
            **TEMPERATURE.arguments,
            seed=1,
            backend="auto" if name == "fused" else name,
            draft_laws=laws if name == "fused" else None,
        )

    return sample


def _transformers() -> Sampler:
    """Transformers' own: the processed logits of one request after the other."""
    from rsk.measure.peers import of_transformers
    from rsk.measure.peers.peer import PeerInputs

    peer = of_transformers.make(torch.device("cpu"))  # where it runs, its inputs say
    bind = peer.bind_logits
    assert bind is not None

    def sample(
        draft_tokens: Tensor, draft_logits: Tensor, target_logits: Tensor, laws: Tensor
    ) -> RejectionSamples:
        found = []
        for b in range(len(draft_tokens)):
            one = slice(b, b + 1)
            probs = (draft_logits[one].float() / TEMPERATURE.temperature).softmax(-1)
            rows = PeerInputs(
                draft_tokens[one], draft_logits[one], probs, target_logits[one], TEMPERATURE, 0
            )
            found.append(peer.result(bind(rows)()))
        return RejectionSamples(*(torch.cat(parts) for parts in zip(*found, strict=True)))

    return sample


def draft(model: Model, last: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """K draft tokens [B, K] behind the last token [B, 1], their logits and laws."""
    model.rewind()
    tokens, rows, laws = [last], [], []
    for k in range(SPEC_LEN):
        row = model.forward(tokens[-1])[:, -1]
        token, law = logits.sample_from_logits(
            row, **TEMPERATURE.arguments, seed=1, position=k, return_laws=True
        )
        tokens.append(token[:, None])
        rows.append(row)
        laws.append(law)
    return torch.cat(tokens[1:], 1), torch.stack(rows, 1), torch.stack(laws, 1)


def step(target: Model, drafter: Model, last: Tensor, sample: Sampler) -> RejectionSamples:
    """One decoding step: drafts, one pass over them, and the sampler."""
    tokens, draft_logits, laws = draft(drafter, last)
    target_logits = target.rewound_pass(torch.cat([last, tokens], 1))
    return sample(tokens, draft_logits, target_logits, laws)


class _Run(Recorder[ModelStepRecord]):
    """The parts that are measured."""

    def call_time(self, call: clocks.Thunk) -> Spread:
        """Time until the result of a call is there."""
        if self.device.type == "cpu":
            return clocks.time_wall([call], budget_s=self.budget_s)[0]
        _, to_result, _ = clocks.time_eager([call], budget_s=self.budget_s)
        return to_result

    def wanted(self, runs: int, batch_sizes: Sequence[int]) -> Iterator[tuple[int, int]]:
        """Run and batch size, whole runs one after the other."""
        return ((run, size) for run in range(runs) for size in batch_sizes)

    def one_pass(self, name: str, role: str, model: Model, run: int, tokens: Tensor) -> None:
        """Time one pass, unless it is there already."""
        key = name, role, run, *tokens.shape
        known = ((p.pair, p.model, p.run, p.batch_size, p.positions) for p in self.record.passes)
        if key in known:
            return
        call = functools.partial(model.rewound_pass, tokens)
        on_device, why = None, ""
        taken = self.call_time(call)
        if self.device.type == "cuda":
            try:
                on_device = clocks.time_graph([call], budget_s=self.budget_s / 2)[0]
            except RuntimeError as error:
                why = terminal.error_line(error)
        self.add(
            passes=Pass(
                pair=name,
                model=role,
                parameters=model.parameters,
                run=run,
                batch_size=len(tokens),
                positions=tokens.shape[1],
                context=model.context,
                static_cache=model.is_static,
                call=taken,
                device=on_device,
                not_captured=why,
            )
        )
        print(
            f"{name} {role} {tuple(tokens.shape)} run {run}: {taken.median_us:.0f} us", flush=True
        )

    def one_step(self, name: str, how: str, run: int, models: tuple[Model, Model]) -> None:
        """Time a step with one sampler, and that sampler alone, unless it is there already."""
        target, drafter = models
        batch_size = drafter.batch_size
        known = ((s.pair, s.sampler, s.run, s.batch_size) for s in self.record.steps)
        if (name, how, run, batch_size) in known:
            return
        sample = sampler(how)
        last = torch.zeros(batch_size, 1, dtype=torch.int64, device=self.device)
        tokens, draft_logits, laws = draft(drafter, last)
        target_logits = target.rewound_pass(torch.cat([last, tokens], 1))
        alone = functools.partial(sample, tokens, draft_logits, target_logits, laws)
        found = Step(
            pair=name,
            run=run,
            batch_size=batch_size,
            spec_len=SPEC_LEN,
            vocab_size=target.config.vocab_size,
            context=target.context,
            sampler=how,
            accepted=float(alone().num_accepted.double().mean()),
            step=self.call_time(functools.partial(step, target, drafter, last, sample)),
            sampling=self.call_time(alone),
        )
        self.add(steps=found)
        print(
            f"{name} B = {batch_size} {how} run {run}: step {found.step.median_us:.0f} us, "
            f"sampler {found.sampling.median_us:.0f} us, {found.share:.1%}",
            flush=True,
        )


def measure(run: _Run, pairs: dict[str, ModelPair], *, runs: int, batch_sizes: Sequence[int],
            context: int, time_limit_s: float | None) -> None:  # fmt: skip
    """Measure all pairs, in whole runs; ends early, unfinished, when the time is up."""
    until = math.inf if time_limit_s is None else time.monotonic() + time_limit_s
    cases = list(run.wanted(runs, batch_sizes))
    with torch.inference_mode():
        is_complete = all(_measure_pair(run, *one, cases, context, until) for one in pairs.items())
    run.end(is_complete)


def _measure_pair(run: _Run, name: str, pair: ModelPair, cases: Sequence[tuple[int, int]],
                  context: int, until: float) -> bool:  # fmt: skip
    """Measure one pair; whether the time sufficed. Its models are gone when this returns."""
    try:
        target, drafter = (Model(size, pair, run.device) for size in (pair.target, pair.draft))
    except RuntimeError as error:  # too large for this GPU
        run.fail(name, error)
        return True
    for index, batch_size in cases:
        try:
            for model in (target, drafter):
                model.begin(batch_size, context, max(POSITIONS) + SPEC_LEN)
        except RuntimeError as error:  # too many requests for its memory
            run.fail(f"{name}, B = {batch_size}, run {index}", error)
            continue
        parts: list[tuple[str, Callable[[], None]]] = []
        for role, model in (("target", target), ("draft", drafter)):
            for n in POSITIONS:
                tokens = torch.zeros(batch_size, n, dtype=torch.int64, device=run.device)
                one = functools.partial(run.one_pass, name, role, model, index, tokens)
                parts.append((f"{role}, {n} positions", one))
        for how in SAMPLERS:
            both = (target, drafter)
            parts.append((how, functools.partial(run.one_step, name, how, index, both)))
        for what, part in parts:
            if time.monotonic() > until:
                return False
            try:
                part()
            except (RuntimeError, ImportError, ValueError) as error:
                run.fail(f"{name}, B = {batch_size}, {what}, run {index}", error)
    return True


def main(arguments: Sequence[str] | None = None) -> int:
    """Run as a program; the exit status is 1 if something was not measured, 3 if unfinished."""
    terminal.accept_any_text()
    parser = argparse.ArgumentParser(prog="python -m rsk.measure.model_step")
    parser.add_argument("--save", type=Path, required=True, help="the file to write")
    parser.add_argument("--runs", type=int, default=5, help="whole runs (default: 5)")
    parser.add_argument("--budget", type=float, default=0.2, help="seconds for each time")
    parser.add_argument("--time-limit", type=float, help="seconds, after which it ends unfinished")
    parser.add_argument("--only", help="pairs with commas between them: " + ", ".join(PAIRS))
    parser.add_argument("--dry", action="store_true", help="a miniature on the CPU: a trial")
    chosen = parser.parse_args(arguments)
    if not chosen.dry and not torch.cuda.is_available():
        parser.error("there is no GPU here; --dry tries the program on the CPU")
    pairs = MINIATURE if chosen.dry else PAIRS
    if chosen.only:
        if unknown := set(chosen.only.split(",")) - set(pairs):
            parser.error(f"--only: expected {', '.join(pairs)}, got {', '.join(unknown)}")
        pairs = {name: pairs[name] for name in chosen.only.split(",")}
    device = torch.device("cpu" if chosen.dry else "cuda")
    place = provenance(device, _versions())
    settings: dict[str, Any] = {
        "pairs": list(pairs),
        "context": 16 if chosen.dry else CONTEXT,
        "batch_sizes": [1, 3] if chosen.dry else list(BATCH_SIZES),
        "spec_len": SPEC_LEN,
        "temperature": TEMPERATURE.temperature,
    }
    record = ModelStepRecord(
        schema=SCHEMA, provenance=place, settings=settings, complete=False,
        passes=(), steps=(), failed=(),
    )  # fmt: skip
    try:
        record = record.going_on(chosen.save)
    except RecordError as error:
        parser.error(str(error))
    run = _Run(record, chosen.save, 0.005 if chosen.dry else chosen.budget)
    measure(
        run, pairs, runs=chosen.runs, batch_sizes=settings["batch_sizes"],
        context=settings["context"], time_limit_s=chosen.time_limit,
    )  # fmt: skip
    return 1 if run.record.failed else 0 if run.record.complete else UNFINISHED


def _versions() -> dict[str, str]:
    import transformers

    return {"transformers": transformers.__version__}


if __name__ == "__main__":
    raise SystemExit(main())
