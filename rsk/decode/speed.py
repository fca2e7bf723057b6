"""Where speculation pays, and by how much: plain decoding of a target against its drafts, timed.

One prompt at a time, as for a single user: every way of drafting continues the same held-out
prompts on the same machine in turn, and the rival is plain decoding in the dtype that is fastest
for it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from rsk.base import terminal
from rsk.decode.decoding_speeds import (
    BOTH,
    MEASURED,
    MODEL,
    PLAIN,
    SCHEMA,
    DecodingSpeeds,
    Greedy,
    Piece,
    Sample,
    TimedText,
    table,
)
from rsk.decode.generation import Generation, token_runs
from rsk.decode.greedy_check import check_greedy
from rsk.decode.loading import NGRAM, LoadedPair, load_model, load_pair, parameters, resolved
from rsk.decode.loading import shipped_draft as draft_of
from rsk.decode.loop import speculative_generate
from rsk.decode.speculation_length import AUTO
from rsk.decode.study import USUAL_SPEC_LEN
from rsk.measure.provenance import provenance

HELD_OUT = "held_out.json"
"""In the folder of a draft: prompts that it never saw, by kind."""
WAYS = {
    0.0: [
        (PLAIN, 1), (MODEL, 2), (MODEL, 4), (MODEL, 6), (NGRAM, 4), (BOTH, 4), (BOTH, MEASURED),
    ],
    0.8: [(PLAIN, 1), (MODEL, 2), (MODEL, 4), (BOTH, 4), (MODEL, MEASURED)],
}  # fmt: skip
"""By temperature, what is timed: a draft and K."""


def measured(
    pair: LoadedPair,
    prompts: Mapping[str, Sequence[str]],
    *,
    new_tokens: int = 96,
    rounds: int = 3,
    ways: Mapping[float, Sequence[tuple[str, int]]] = WAYS,
    say: Callable[[str], None] = lambda line: None,
) -> list[TimedText]:
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
    # The first passes of a way are slow, and so is the first reading of a prompt, by its length.
    for temperature, way in dict.fromkeys((t, way) for *_, t, way in every):
        _continued(pair, every[0][2], temperature, way, new_tokens)
    for text in dict.fromkeys(text for _, _, text, _, _ in every):
        _continued(pair, text, 0.0, (PLAIN, 1), 4)
    found: list[list[Generation]] = [[] for _ in every]
    for number in range(rounds):
        say(f"round {number + 1} of {rounds}: {len(every)} texts")
        for runs, (_, index, text, temperature, way) in zip(found, every, strict=True):
            runs.append(_continued(pair, text, temperature, way, new_tokens, seed=index))
    return [
        TimedText(
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
    pair: LoadedPair,
    text: str,
    temperature: float,
    way: tuple[str, int],
    new_tokens: int,
    seed: int = 0,
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
            _continued(LoadedPair(model, None, pair.tokenizer), texts[0], 0.0, (PLAIN, 1), 32)
            for _ in range(3)
        ]
        plain[name] = min(1 / run.tokens_per_second for run in runs)
        print(f"plain decoding in {name}: {plain[name] * 1e3:.2f} ms a token", flush=True)
    found = measured(
        pair, prompts, new_tokens=new_tokens, rounds=rounds,
        say=lambda line: print(line, flush=True),
    )  # fmt: skip
    sample = _sample(pair, prompts["list"][0], new_tokens)
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
        sample=sample,
        texts=tuple(found),
    )


def _sample(pair: LoadedPair, prompt: str, new_tokens: int) -> Sample:
    temperature, spec_len = 0.8, USUAL_SPEC_LEN
    found = _continued(pair, prompt, temperature, (MODEL, spec_len), new_tokens)
    return Sample(
        temperature=temperature,
        spec_len=spec_len,
        tokens=len(found.tokens[0]),
        passes=found.target_passes,
        pieces=tuple(Piece(text=t, kind=k) for t, k in token_runs(found, prompt, pair)),
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


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
