"""The command ``rsk generate``: stream a text and show what speculation did for it."""

from __future__ import annotations

import functools
import json
import math
import os
import secrets
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from rsk.base import machine
from rsk.decode import fetching
from rsk.decode.errors import LoadError
from rsk.decode.generation import ACCEPTED, BONUS, RECOVERED, Emission, Generation
from rsk.decode.loading import (
    NGRAM,
    LoadedPair,
    fitting_threads,
    load_pair,
    missing,
    parameters,
    shipped_draft,
    shipped_pair,
)
from rsk.decode.loop import speculative_generate

if TYPE_CHECKING:
    from rich.console import Console
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Told apart without colour, too: recovered tokens are underlined, bonus tokens bold.
STYLES = {ACCEPTED: "cyan", RECOVERED: "underline red", BONUS: "bold"}
WARM_UP_TOKENS = 8


def run(
    prompt: str | None = None,
    target: str | None = None,
    draft: str | None = None,
    spec_len: int | str = 4,
    lookup: bool = False,
    max_new_tokens: int = 128,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    seed: int | None = None,
    backend: str = "auto",
    device: str = "auto",
    plain: bool = False,
) -> None:
    """Continue a prompt, streaming it, then compare with plain decoding by the same target.

    Args:
        prompt: a text; by default the first of the shipped prompts.
        target: folder, hub id or the name of a public model; by default the shipped target with
            the shipped draft.
        draft: folder or hub id, or "ngram"; by default the one that ships for the target, or
            "ngram".
        spec_len: K, draft tokens per step, or "auto".
        lookup: prompt lookup where the last three tokens occurred before, else the draft.
        max_new_tokens: at most so many new tokens.
        temperature: 0 is greedy.
        top_k: 0 means all.
        top_p: 1 means all.
        min_p: 0 means all.
        seed: reproduces the text, given the same options, models and machine (see
            :func:`rsk.decode.loop.speculative_generate`); by default another one each time, and it
            is printed.
        backend: of the sampler.
        device: as for :func:`rsk.base.machine.device`.
        plain: no colours, only text.

    Raises:
        ValueError: see :func:`rsk.decode.loading.load_pair` and
            :func:`rsk.decode.loop.speculative_generate`.
        LoadError: a model cannot be loaded, or there is not enough memory for it.
    """
    from rich.console import Console

    if prompt is None:
        prompt = shipped_prompts()[0]["text"]
    if seed is None:
        seed = secrets.randbits(31)
    console = Console(highlight=False, no_color=plain or None, soft_wrap=True)
    where = machine.device(device)  # before anything is fetched
    for source in (target, draft):
        if source is not None and missing(source):
            _offer(source)
    with _enough_memory():
        pair = load_pair(*_sources(target, draft), device=where)
        settings: dict[str, Any] = {
            "spec_len": spec_len,
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "min_p": min_p,
            "seed": seed,
            "backend": backend,
        }

        def generate(new: int, draft: PreTrainedModel | str | None, **more: Any) -> Generation:
            return speculative_generate(
                pair.target,
                draft,
                prompt,
                pair.tokenizer,
                lookup=lookup and draft is not None,  # plain decoding drafts nothing
                max_new_tokens=new,
                **settings,
                **more,
            )

        with fitting_threads(pair):
            # The first passes of a process are slow, with a draft and without: not counted.
            for warm_up in (pair.draft, None):
                generate(min(WARM_UP_TOKENS, max_new_tokens), warm_up)
            heading = _heading(pair, spec_len, lookup, seed)
            stream = _stream(console, heading, pair.tokenizer, prompt, plain)
            try:
                speculative = generate(max_new_tokens, pair.draft, on_emit=stream)
            except KeyboardInterrupt:  # leaves the text as it is, on lines of its own
                console.print("\n")
                raise
            console.print("\n")
            # Another text from the same distribution; as long, or the times would not compare.
            ordinary = generate(len(speculative.tokens[0]), None, stop_tokens=())
    _print_figures(console, speculative, ordinary)


def shipped_prompts() -> list[dict[str, str]]:
    """Stretches of held-out modules of the standard library: "module" and "text" of each."""
    from rsk.base.folders import data_dir

    prompts: list[dict[str, str]] = json.loads((data_dir() / "prompts.json").read_text("utf-8"))
    return prompts


def fetch(name: str) -> None:
    """Fetch a public model for ``--target``; says its size and licence first.

    Raises:
        ValueError: an unknown name.
        FetchError: see :func:`rsk.decode.fetching.fetch`.
    """
    fetching.fetch(name, functools.partial(print, flush=True))  # before what pip says


def _offer(name: str) -> None:
    """Fetch a public model if the user at the terminal agrees.

    Raises:
        LoadError: there is nobody to ask, or the answer is no.
    """
    if sys.stdin.isatty() and sys.stdout.isatty():
        print(fetching.described(name))
        if input("Fetch it now? [y/N] ").strip().lower() in ("y", "yes"):
            fetch(name)
            return
    raise LoadError(f"{name} is not here yet: rsk fetch {name}")


def _sources(target: str | None, draft: str | None) -> tuple[str, str]:
    if target is None:
        small_target, small_draft = map(str, shipped_pair())
        return small_target, draft or small_draft
    return target, draft or os.fspath(shipped_draft(target) or NGRAM)


@contextmanager
def _enough_memory() -> Iterator[None]:
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        is_memory = isinstance(error, MemoryError | torch.OutOfMemoryError)
        if not is_memory and "can't allocate memory" not in str(error):
            raise
        reason = (str(error).strip() or "out of memory").splitlines()[0]
        raise LoadError(
            f"not enough memory ({reason}); use smaller models, fewer tokens, or another --device"
        ) from error


def _heading(pair: LoadedPair, spec_len: int | str, lookup: bool, seed: int) -> str:
    def size(model: PreTrainedModel) -> str:
        return f"{parameters(model) / 1e6:.3g} M parameters"

    draft = "no draft model, prompt lookup"
    if pair.draft is not None and not isinstance(pair.draft, str):
        draft = f"draft {size(pair.draft)}" + (" and prompt lookup" if lookup else "")
    device = pair.target.device.type
    return f"target {size(pair.target)}, {draft}, K={spec_len}, on {device}, seed {seed}"


def _stream(
    console: Console, heading: str, tokenizer: PreTrainedTokenizerBase, prompt: str, plain: bool
) -> Callable[[Emission], None]:
    """What prints tokens as they come; and before the first, when all is well, what leads to it."""
    from rich.text import Text
    from tokenizers.decoders import DecodeStream

    def write(text: str, style: str) -> None:
        if plain:
            sys.stdout.write(text)
            sys.stdout.flush()
        else:
            console.print(Text(text, style=style), end="")

    def begin() -> None:
        console.print(heading, style="dim")
        if not plain:
            console.print(
                Text.assemble(
                    *((f"{origin} ", style) for origin, style in STYLES.items()),
                    ("prompt\n", "dim"),
                )
            )
        write(prompt, "dim")

    # Several tokens may make one character, and a word may begin with a space only inside a text.
    stream = DecodeStream(ids=list(tokenizer(prompt).input_ids), skip_special_tokens=True)
    began = False

    def on_emit(emission: Emission) -> None:
        nonlocal began
        if not began:
            began = True
            begin()
        for token, origin in zip(emission.tokens, emission.origins, strict=True):
            if text := stream.step(tokenizer.backend_tokenizer, token):
                write(text, STYLES[origin])

    return on_emit


def _print_figures(console: Console, speculative: Generation, plain: Generation) -> None:
    rates = " ".join(
        "-" if math.isnan(r) else f"{r:.2f}" for r in speculative.acceptance_by_position
    )
    total, new = speculative.total_seconds, len(speculative.tokens[0])
    shares = ", ".join(f"{part} {s / total:.0%}" for part, s in speculative.seconds.items())
    speed_up = speculative.tokens_per_second / plain.tokens_per_second
    passes = Counter(speculative.spec_lens)
    lines = {
        "acceptance rate": f"{speculative.acceptance_rate:.3f} (by position: {rates})",
        "tokens per target pass": f"{speculative.tokens_per_target_pass:.2f}",
        "passes by K": ", ".join(f"{k}: {passes[k]}" for k in sorted(passes)),
        "tokens per second": f"{speculative.tokens_per_second:.0f} ({new} tokens)",
        "plain, same run": f"{plain.tokens_per_second:.0f}",
        "speed-up": f"{speed_up:.2f}x" + ("" if speed_up > 1 else ", so it does not pay here"),
        "time": shares,
    }
    for name, value in lines.items():
        console.print(f"{name + ':':24}{value}")
