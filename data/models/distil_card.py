"""The model card and curves of the draft that ``distil_smollm2.py`` makes, from its two records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def write_card(out: Path) -> None:
    """Write ``out``/README.md and its figure from training.json and measured.json."""
    training, measured = (
        json.loads((out / f"{name}.json").read_text("utf-8")) for name in ("training", "measured")
    )
    draw_curves(training, out / "training.svg")
    (out / "README.md").write_text(card(training, measured), "utf-8")


def draw_curves(training: dict[str, Any], path: Path) -> None:
    """Two panels: the loss, and the acceptance rate on held-out texts, over steps."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update(
        {"svg.hashsalt": "rsk", "axes.spines.top": False, "axes.spines.right": False}
    )
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    steps = [row["step"] for row in training["log"]]
    left.plot(steps, [row["loss"] for row in training["log"]], color="#0072B2")
    left.set(xlabel="step", ylabel="loss", title="The loss falls, and becomes another half-way")
    right.plot(steps, [row["acceptance"] for row in training["log"]], color="#D55E00")
    right.set(xlabel="step", ylabel="acceptance rate, held out", title="The draft follows")
    for axes in (left, right):
        axes.axvline(training["settings"]["steps"] / 2, color="0.7", linestyle=":")
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def card(training: dict[str, Any], measured: dict[str, Any]) -> str:
    """The card as Markdown; every figure in it comes from the two records."""
    settings = training["settings"]
    own, known = training["own_parameters"], settings["known_tokens"]
    steps, batch, tokens = settings["steps"], settings["batch"], training["sampled_tokens"]
    sampling, fitting = (seconds / 60 for seconds in training["seconds"].values())
    temperatures = ", ".join(f"{t:g}" for t in settings["temperatures"])
    lines = [
        "| prompts | temperature | drafts | accepted | tokens per target pass |",
        "|---|---|---|---|---|",
    ]
    for row in measured["rows"]:
        rate = f"{row['accepted'] / row['judged']:.3f}" if row["judged"] else "–"
        lines.append(
            f"| {row['kind']} | {row['temperature']:g} | {row['drafter']} | {rate} "
            f"| {row['tokens_per_pass']:.2f} |"
        )
    return (
        f"""---
license: apache-2.0
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
tags: [speculative-decoding, llama]
---

# A draft for SmolLM2-135M-Instruct

<!-- Written by distil_card.py from training.json and measured.json; change those, not this. -->

{settings["layers"]} layers of the target's width, {own:,} parameters of its own in 8 bits each. It
reads and writes through the target's embedding, which it borrows, and knows the {known:,} tokens
that the target writes most ({training["known_share"]:.1%} of what it wrote). So it works with that
target alone: `rsk generate --target smollm2`.

## Training

![Left: the loss falls. Right: the acceptance rate on held-out texts rises.](training.svg)

The layers began as copies of the target's, and learned to follow its distribution for {steps:,}
steps of {batch} texts: in the first half by the Kullback-Leibler divergence, in the second by the
acceptance rate itself. Sampling took {sampling:.1f} minutes and training {fitting:.1f}, on
{training["device"]}. `python data/models/distil_smollm2.py` does it again.

## Data

{tokens:,} tokens that the target wrote by itself, at temperatures {temperatures}, after
made-up prompts of four kinds: questions in its chat template, beginnings of prose, of code and of
lists. One prompt in twenty was held out. No other text was used.

## Licence

The weights derive from SmolLM2-135M-Instruct, which is under the Apache License 2.0, and come under
the same.

## Acceptance on held-out prompts, K = 4

On {measured["device"]}. "lookup" is prompt lookup. Both together, and the time that
they save, are in `data/decoding/smollm2`.

"""
        + "\n".join(lines)
        + "\n"
    )
