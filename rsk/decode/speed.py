"""Where speculation pays, and by how much: plain decoding of a target against its drafts, timed.

One prompt at a time, as for a single user: every way of drafting continues the same held-out
prompts on the same machine in turn, and the rival is plain decoding in the dtype that is fastest
for it. ``data/decoding/smollm2`` holds recorded :class:`DecodingSpeeds`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from rsk.base import terminal
from rsk.base.folders import data_dir
from rsk.decode.generation import Generation
from rsk.decode.greedy_check import check_greedy
from rsk.decode.loading import NGRAM, Pair, load_model, load_pair, parameters, resolved
from rsk.decode.loading import shipped_draft as draft_of
from rsk.decode.loop import speculative_generate
from rsk.decode.speculation_length import AUTO
from rsk.measure.provenance import provenance
from rsk.measure.records import Provenance, RecordFile, at_least, check_schema, one_of, positive

SCHEMA = "rsk-decoding-speeds/1"
PLAIN, MODEL, BOTH = "none", "model", "both"
DRAFTS = (PLAIN, NGRAM, MODEL, BOTH)
HELD_OUT = "held_out.json"
"""In the folder of a draft: prompts that it never saw, by kind."""
MEASURED = 0
"""In place of K: chosen by measuring, see :mod:`rsk.decode.speculation_length`."""
WAYS = {
    0.0: [
        (PLAIN, 1), (MODEL, 2), (MODEL, 4), (MODEL, 6), (NGRAM, 4), (BOTH, 4), (BOTH, MEASURED),
    ],
    0.8: [(PLAIN, 1), (MODEL, 2), (MODEL, 4), (BOTH, 4), (MODEL, MEASURED)],
}  # fmt: skip
"""By temperature, what is timed: a draft and K."""


@dataclass(frozen=True, kw_only=True)
class Text:
    """One prompt, continued in one way."""

    kind: str
    prompt: int
    """Which of its kind."""
    temperature: float
    draft: str
    """One of ``DRAFTS``; "both" is lookup where it finds something, else the model."""
    spec_len: int
    """K; 0 for one that was chosen by measuring, 1 without a draft."""
    seconds: float
    """Median over the rounds, of the whole text, its prompt's reading included."""
    parts: dict[str, float]
    """Of draft, target, sampler and rest, means over the rounds."""
    tokens: int
    passes: int
    """Of the target."""
    judged: int
    accepted: int

    def __post_init__(self) -> None:
        one_of("draft", self.draft, DRAFTS)
        positive("seconds", self.seconds)
        at_least("tokens", self.tokens, 1)
        at_least("judged", self.judged, self.accepted)


@dataclass(frozen=True, kw_only=True)
class Greedy:
    """Greedy texts with the draft beside the target's own, in float32."""

    tokens: int
    """Compared, and the same."""
    near_ties: tuple[float, ...]
    """Where two texts part: between the two best logits, below the rounding of their sums."""


@dataclass(frozen=True, kw_only=True)
class DecodingSpeeds(RecordFile):
    """What one run of this module found on one machine."""

    SCHEMA = SCHEMA
    schema: str
    provenance: Provenance
    conditions: str
    """What else ran on the machine, in words."""
    target: str
    target_parameters: int
    draft_parameters: int
    dtype: str
    """Of the target in all of ``texts``."""
    plain_seconds: dict[str, float]
    """By the target's dtype, seconds a token of plain decoding."""
    new_tokens: int
    """At most, of a text."""
    rounds: int
    greedy: Greedy
    texts: tuple[Text, ...]

    def __post_init__(self) -> None:
        check_schema(self.schema, SCHEMA)

    def of(self, temperature: float, draft: str, spec_len: int) -> list[Text]:
        """The texts of one way."""
        wanted = (temperature, draft, spec_len)
        return [t for t in self.texts if (t.temperature, t.draft, t.spec_len) == wanted]

    def ways(self, temperature: float) -> list[tuple[str, int]]:
        """Drafts and K that were timed at a temperature, plain decoding first."""
        return list(dict.fromkeys(
            (t.draft, t.spec_len) for t in self.texts if t.temperature == temperature
        ))  # fmt: skip

    def speed_ups(self, temperature: float, draft: str, spec_len: int) -> list[float]:
        """Of each prompt: tokens a second over those of plain decoding."""
        plain = {(t.kind, t.prompt): t for t in self.of(temperature, PLAIN, 1)}
        return [
            (t.tokens / t.seconds) / (rival.tokens / rival.seconds)
            for t in self.of(temperature, draft, spec_len)
            for rival in [plain[t.kind, t.prompt]]
        ]

    def speed_up(self, temperature: float, draft: str, spec_len: int) -> float:
        """Geometric mean over the prompts."""
        return statistics.geometric_mean(self.speed_ups(temperature, draft, spec_len))

    def best(self, temperature: float, drafts: Sequence[str] = (MODEL, BOTH)) -> tuple[str, int]:
        """The fastest way with one of these drafts and a fixed K."""
        ways = [w for w in self.ways(temperature) if w[0] in drafts and w[1] != MEASURED]
        return max(ways, key=lambda way: self.speed_up(temperature, *way))

    def acceptance(self, temperature: float, draft: str, spec_len: int) -> float:
        """Share accepted of what was judged."""
        texts = self.of(temperature, draft, spec_len)
        judged = sum(text.judged for text in texts)
        return sum(text.accepted for text in texts) / judged if judged else math.nan

    def tokens_per_pass(self, temperature: float, draft: str, spec_len: int) -> float:
        """New tokens per pass of the target."""
        texts = self.of(temperature, draft, spec_len)
        return sum(text.tokens for text in texts) / sum(text.passes for text in texts)

    def seconds_per_token(self, temperature: float, draft: str, spec_len: int) -> float:
        """Of all texts together."""
        texts = self.of(temperature, draft, spec_len)
        return sum(text.seconds for text in texts) / sum(text.tokens for text in texts)


def measured(
    pair: Pair,
    prompts: Mapping[str, Sequence[str]],
    *,
    new_tokens: int = 96,
    rounds: int = 3,
    ways: Mapping[float, Sequence[tuple[str, int]]] = WAYS,
    say: Callable[[str], None] = lambda line: None,
) -> list[Text]:
    """Continue every prompt in every way, in turn; texts end at the target's stop tokens.

    Args:
        pair: with a draft model.
        prompts: by kind.
        new_tokens: at most, of each text.
        rounds: each continues all prompts in all ways.
        ways: by temperature, drafts and K, plain decoding among them.
        say: called with a line at the start of each round.
    """
    every = [
        (kind, index, text, temperature, way)
        for kind, texts in prompts.items()
        for index, text in enumerate(texts)
        for temperature, some in ways.items()
        for way in some
    ]
    for way in dict.fromkeys(way for *_, way in every):  # the first passes of a size are slow
        _continued(pair, every[0][2], 1.0, way, new_tokens)
    found: list[list[Generation]] = [[] for _ in every]
    for number in range(rounds):
        say(f"round {number + 1} of {rounds}: {len(every)} texts")
        for runs, (_, index, text, temperature, way) in zip(found, every, strict=True):
            runs.append(_continued(pair, text, temperature, way, new_tokens, seed=index))
    return [
        Text(
            kind=kind,
            prompt=index,
            temperature=temperature,
            draft=way[0],
            spec_len=way[1],
            seconds=statistics.median(run.total_seconds for run in runs),
            parts={
                part: statistics.fmean(run.seconds[part] for run in runs)
                for part in runs[0].seconds
            },
            tokens=len(runs[0].tokens[0]),
            passes=runs[0].target_passes,
            judged=sum(runs[0].tried),
            accepted=sum(runs[0].accepted),
        )
        for (kind, index, _, temperature, way), runs in zip(every, found, strict=True)
    ]


def _continued(
    pair: Pair, text: str, temperature: float, way: tuple[str, int], new_tokens: int, seed: int = 0
) -> Generation:
    draft, spec_len = way
    return speculative_generate(
        pair.target,
        {PLAIN: None, NGRAM: NGRAM}.get(draft, pair.draft),
        text,
        pair.tokenizer,
        spec_len=AUTO if spec_len == MEASURED else spec_len,
        lookup=draft == BOTH,
        temperature=temperature,
        max_new_tokens=new_tokens,
        seed=seed,
    )


def record(
    target: str, *, each: int, new_tokens: int, rounds: int, conditions: str
) -> DecodingSpeeds:
    """Measure a public model with the draft that ships for it.

    Args:
        target: its name.
        each: held-out prompts of each kind.
        new_tokens: at most, of a text.
        rounds: of everything.
        conditions: what else runs on the machine.
    """
    folder = draft_of(target)
    if folder is None:
        raise ValueError(f"target: no draft ships for {target}")
    held_out = json.loads((folder / HELD_OUT).read_text("utf-8"))
    prompts = {kind: texts[:each] for kind, texts in held_out.items()}
    texts = list(itertools.chain.from_iterable(prompts.values()))
    exact = load_pair(target, folder, dtype=torch.float32)
    greedy = check_greedy(exact, texts, new_tokens=new_tokens)
    pair = load_pair(target, folder)
    device = pair.target.device
    rivals = {"packed" if device.type == "cpu" else _name(pair.target.dtype): pair.target}
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        if _name(dtype) not in rivals and (dtype != torch.float16 or device.type == "cuda"):
            rivals[_name(dtype)] = load_model(resolved(target), device=device, dtype=dtype)
    plain = {}
    for name, model in rivals.items():
        runs = [
            _continued(Pair(model, None, pair.tokenizer), texts[0], 0.0, (PLAIN, 1), 48)
            for _ in range(4)
        ]
        plain[name] = min(1 / run.tokens_per_second for run in runs)
        print(f"plain decoding in {name}: {plain[name] * 1e3:.2f} ms a token", flush=True)
    found = measured(
        pair, prompts, new_tokens=new_tokens, rounds=rounds,
        say=lambda line: print(line, flush=True),
    )  # fmt: skip
    return DecodingSpeeds(
        schema=SCHEMA,
        provenance=provenance(device),
        conditions=conditions,
        target=target,
        target_parameters=parameters(pair.target),
        draft_parameters=sum(p.numel() for p in exact.draft.model.layers.parameters()),  # type: ignore[union-attr]
        dtype=next(iter(rivals)),
        plain_seconds=plain,
        new_tokens=new_tokens,
        rounds=rounds,
        greedy=Greedy(tokens=greedy.tokens, near_ties=tuple(greedy.near_ties)),
        texts=tuple(found),
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def recorded(target: str = "smollm2") -> list[DecodingSpeeds]:
    """What is recorded of a public model, the newest of each device, a GPU first."""
    folder = data_dir() / "decoding" / target
    found = sorted(map(DecodingSpeeds.load, folder.glob("*.json")), key=lambda s: s.provenance.date)
    by_device = {speeds.provenance.device: speeds for speeds in found}
    return [by_device[device] for device in ("cuda", "cpu") if device in by_device]


def table(speeds: DecodingSpeeds) -> str:
    """One line a way: acceptance, tokens a pass, time a token, speed-up and its range."""
    lines = []
    for temperature in dict.fromkeys(text.temperature for text in speeds.texts):
        for way in speeds.ways(temperature):
            ratios = speeds.speed_ups(temperature, *way)
            texts = speeds.of(temperature, *way)
            seconds = sum(sum(text.parts.values()) for text in texts)
            parts = {name: sum(text.parts[name] for text in texts) / seconds
                     for name in texts[0].parts}  # fmt: skip
            lines.append(
                f"{temperature:3g}  {way[0]:5} K={way[1] or AUTO!s:4}  "
                f"accepted {speeds.acceptance(temperature, *way):.3f}  "
                f"{speeds.tokens_per_pass(temperature, *way):.2f} tokens a pass  "
                f"{speeds.seconds_per_token(temperature, *way) * 1e3:.2f} ms a token  "
                f"speed-up {speeds.speed_up(temperature, *way):.2f} "
                f"({min(ratios):.2f} to {max(ratios):.2f})  "
                + " ".join(f"{name} {share:.0%}" for name, share in parts.items())
            )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """``python -m rsk.decode.speed FILE``: measure, write the file, print the table."""
    terminal.accept_any_text()
    parser = argparse.ArgumentParser(prog="python -m rsk.decode.speed", description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--target", default="smollm2")
    parser.add_argument("--each", type=int, default=4, help="prompts of each kind")
    parser.add_argument("--new-tokens", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--conditions", default="nothing else ran", help="on the machine, in words")
    options = vars(parser.parse_args(arguments))
    file = options.pop("file")
    speeds = record(**options)
    speeds.save(file)
    print(f"greedy, float32: {speeds.greedy.tokens} tokens the same, "
          f"{len(speeds.greedy.near_ties)} near ties")  # fmt: skip
    print(table(speeds))


if __name__ == "__main__":
    main()
