"""Train the small model pair that ships with rsk: a target, then a draft distilled from it.

    python data/models/train_pair.py            # train both; an interrupted run goes on
    python data/models/train_pair.py --measure  # measure the models again and rewrite the card

Both are Llama models trained on the source of the Python standard library, as found beside the
interpreter that runs this script. One module in twenty, chosen by a hash of its name, is held out:
neither the tokenizer nor a model sees it. On one core the whole takes about 45 minutes. The same
Python, package versions and kind of processor give the same weights.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import platform
import re
import shutil
import sys
import sysconfig
import time
import tokenize
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Nothing here is fetched, so nothing should try.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

HERE = Path(__file__).resolve().parent


# --- what is trained ------------------------------------------------------------------------------

VOCAB_SIZE = 2048
CONTEXT = 512  # positions that the models have seen
END = "<|endoftext|>"  # ends a module; also the first token of one, and padding

SHARED = {
    "vocab_size": VOCAB_SIZE,
    "head_dim": 32,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "rms_norm_eps": 1e-5,
    "initializer_range": 0.03,
    "tie_word_embeddings": True,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
# Deep and narrow, because the time of a small model's pass is its number of layers: a draft of one
# layer then costs about an eighth of the target, which is what makes speculation pay at all.
TARGET = dict(
    SHARED, hidden_size=192, num_hidden_layers=8, num_attention_heads=6, intermediate_size=384
)
DRAFT = dict(
    SHARED, hidden_size=128, num_hidden_layers=1, num_attention_heads=4, intermediate_size=384
)

SEED = 20
BATCH_TOKENS = 2048
TARGET_STEPS = 2400
DRAFT_STEPS = 2000
PEAK_RATE = {"target": 4e-3, "draft": 6e-3}
WARM_UP = 100
LONGER_WINDOWS = 0.75  # of the steps go by before
EVALUATE_EVERY = 100
CHECKPOINT_EVERY = 50


# --- the corpus -----------------------------------------------------------------------------------

# Tables and generated files, not code; tests; and files with the paths of the machine in them.
SKIPPED_PACKAGES = {"test", "encodings", "pydoc_data", "lib2to3", "idlelib", "turtledemo"}
SKIPPED_FOLDERS = {"test", "tests", "__pycache__"}
HELD_OUT_SHARE = 1 / 20


def modules() -> dict[str, str]:
    """Source text of the standard library's modules by dotted name, in order of name."""
    root = Path(sysconfig.get_path("stdlib"))
    found = {}
    for path in root.rglob("*.py"):
        parts = path.relative_to(root).with_suffix("").parts
        if (
            parts[0] in sys.stdlib_module_names
            and parts[0] not in SKIPPED_PACKAGES
            and not parts[0].startswith("_sysconfigdata")
            and not SKIPPED_FOLDERS.intersection(parts)
        ):
            with tokenize.open(path) as file:
                found[".".join(parts)] = file.read()
    return dict(sorted(found.items()))


def is_held_out(name: str) -> bool:
    """Whether a module is kept apart: a hash of its name, so that it never moves."""
    return hashlib.sha256(name.encode()).digest()[0] < 256 * HELD_OUT_SHARE


def train_tokenizer(texts: Iterator[str]) -> Tokenizer:
    """Byte-level byte-pair encoding; any text comes back from its tokens unchanged."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, texts: list[str]) -> torch.Tensor:
    """All texts as one run of token ids, int64 [N], each text between two END tokens."""
    ids = [0]
    for text in texts:
        ids += [*tokenizer.encode(text).ids, 0]
    return torch.tensor(ids)


def windows(ids: torch.Tensor, step: int, length: int, stream: int) -> torch.Tensor:
    """Random windows int64 [BATCH_TOKENS / length, length + 1], a function of step and stream."""
    generator = torch.Generator().manual_seed((SEED * 100 + stream) * 1_000_000 + step)
    starts = torch.randint(len(ids) - length, (BATCH_TOKENS // length, 1), generator=generator)
    return ids[starts + torch.arange(length + 1)]


def held_out_windows(ids: torch.Tensor, count: int) -> torch.Tensor:
    """Evenly spread windows int64 [count, CONTEXT + 1], always the same."""
    starts = torch.linspace(0, len(ids) - CONTEXT - 1, count).long().unsqueeze(1)
    return ids[starts + torch.arange(CONTEXT + 1)]


# --- the two losses -------------------------------------------------------------------------------


def next_token_loss(model: LlamaForCausalLM, ids: torch.Tensor) -> torch.Tensor:
    """Cross entropy in nats per token over windows `ids`, int64 [N, length + 1]."""
    logits = model(input_ids=ids[:, :-1], use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


def log_probs(model: LlamaForCausalLM, ids: torch.Tensor) -> torch.Tensor:
    """Logarithms of next-token probabilities, float32 [N, length, V]."""
    logits: torch.Tensor = model(input_ids=ids[:, :-1], use_cache=False).logits
    return logits.log_softmax(-1)


def divergence(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """Kullback-Leibler divergence of the draft from the target, mean over positions, in nats."""
    return (log_p.exp() * (log_p - log_q)).sum(-1).mean()


def acceptance(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """Probability that a token drawn from q is accepted: sum min(p, q), mean over positions."""
    return torch.minimum(log_p.exp(), log_q.exp()).sum(-1).mean()


def evaluate(
    target: LlamaForCausalLM, draft: LlamaForCausalLM | None, ids: torch.Tensor
) -> dict[str, float]:
    """Figures over windows `ids`: losses in nats per token, acceptance rate at temperature 1."""
    sums: dict[str, float] = {}

    def add(name: str, value: torch.Tensor) -> None:
        sums[name] = sums.get(name, 0.0) + float(value)

    with torch.inference_mode():
        for window in ids.split(4):
            share = len(window) / len(ids)
            log_p = log_probs(target, window)
            expected = window[:, 1:].unsqueeze(-1)
            add("target_loss", -log_p.gather(-1, expected).mean() * share)
            if draft is not None:
                log_q = log_probs(draft, window)
                add("draft_loss", -log_q.gather(-1, expected).mean() * share)
                add("divergence", divergence(log_p, log_q) * share)
                add("acceptance", acceptance(log_p, log_q) * share)
    return sums


# --- training -------------------------------------------------------------------------------------


class Checkpoint:
    """What an interrupted run needs to go on: tensors and plain values, in one file."""

    def __init__(self, path: Path, fingerprint: str) -> None:
        self.path = path
        self.state: dict[str, Any] = {"fingerprint": fingerprint, "log": [], "cpu_seconds": 0.0}
        if path.exists():
            state = torch.load(path, weights_only=True)
            if state["fingerprint"] != fingerprint:
                raise SystemExit(
                    f"{path.name} in {path.parent.name}/ belongs to other settings, sources or "
                    "versions; delete it to start again."
                )
            self.state = state
            print(f"going on from a checkpoint: {sorted(set(state) & {'target', 'draft'})}")

    def save(self, **values: Any) -> None:
        """Write everything anew; a run killed in between leaves the file before."""
        self.state.update(values)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(self.state, self.path.with_suffix(".partial"))
        self.path.with_suffix(".partial").replace(self.path)


def learning_rate(name: str, step: int, steps: int) -> float:
    """Linear warm-up, then half a cosine down to zero."""
    fall = 0.5 * (1 + math.cos(math.pi * step / steps))
    return PEAK_RATE[name] * min(1.0, (step + 1) / WARM_UP) * fall


def window_length(step: int, steps: int) -> int:
    """Short windows are cheaper; longer ones at the end teach the positions beyond them."""
    return CONTEXT // 2 if step < LONGER_WINDOWS * steps else CONTEXT


def fit(
    name: str,
    model: LlamaForCausalLM,
    steps: int,
    loss_of: Callable[[int, int], torch.Tensor],
    held_out: Callable[[], dict[str, float]],
    checkpoint: Checkpoint,
) -> None:
    """Train `model` for `steps` steps of `loss_of(step, window length)`; log, keep checkpoints."""
    matrices = [p for p in model.parameters() if p.ndim == 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
        betas=(0.9, 0.95),
    )
    first = 0
    if saved := checkpoint.state.get(name):
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        first = saved["step"]
    log, spent = checkpoint.state["log"], checkpoint.state["cpu_seconds"]
    began, since, losses = time.process_time(), time.monotonic(), []
    for step in range(first, steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(name, step, steps)
        loss = loss_of(step, window_length(step, steps))
        if not math.isfinite(float(loss.detach())):
            raise SystemExit(
                f"the {name}'s loss is {float(loss.detach())} at step {step}: it diverged"
            )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(float(loss.detach()))

        done = step + 1
        cpu_seconds = spent + time.process_time() - began
        if done % 10 == 0:
            left = (time.monotonic() - since) / (done - first) * (steps - done)
            print(
                f"{name} {done:5d}/{steps}  loss {sum(losses[-10:]) / len(losses[-10:]):6.3f}  "
                f"{left / 60:5.1f} min left",
                flush=True,
            )
        if done % EVALUATE_EVERY == 0 or done == steps:
            row = {
                "model": name,
                "step": done,
                "tokens": done * BATCH_TOKENS,
                "cpu_seconds": round(cpu_seconds, 1),
                "training_loss": sum(losses) / len(losses),
            } | held_out()
            losses = []
            log.append(row)
            print(
                "  held out: " + ", ".join(f"{k} {v:.4g}" for k, v in row.items() if k != "model")
            )
        if done % CHECKPOINT_EVERY == 0 or done == steps:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": done}
            checkpoint.save(**{name: state}, log=log, cpu_seconds=cpu_seconds)


def save_model(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write a folder in hub layout with 16-bit safetensors weights, the tokenizer included."""
    half = LlamaForCausalLM(model.config)
    half.load_state_dict(model.state_dict())
    half.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def train(out: Path, target_steps: int, draft_steps: int) -> None:
    """Train both models and write `out`/target, `out`/draft and `out`/training.json."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    texts = modules()
    kept = [text for name, text in texts.items() if not is_held_out(name)]
    apart = [text for name, text in texts.items() if is_held_out(name)]
    digest = hashlib.sha256("\0".join(f"{n}\0{t}" for n, t in texts.items()).encode()).hexdigest()
    tokenizer = train_tokenizer(iter(kept))
    ids, held_out_ids = encode(tokenizer, kept), encode(tokenizer, apart)
    corpus = {
        "python": platform.python_version(),
        "sha256": digest,
        "modules": len(texts),
        "held_out_modules": [name for name in texts if is_held_out(name)],
        "training_tokens": len(ids),
        "held_out_tokens": len(held_out_ids),
        "held_out_bytes_per_token": sum(len(t.encode()) for t in apart) / len(held_out_ids),
    }
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    settings = {
        "target": TARGET,
        "draft": DRAFT,
        "seed": SEED,
        "batch_tokens": BATCH_TOKENS,
        "steps": {"target": target_steps, "draft": draft_steps},
        "peak_learning_rate": PEAK_RATE,
    }
    print(f"{len(kept)} modules, {len(ids):,} tokens; held out {len(apart)}, {len(held_out_ids):,}")
    sources = json.dumps([corpus, versions, settings], sort_keys=True)
    fingerprint = hashlib.sha256(sources.encode()).hexdigest()
    checkpoint = Checkpoint(out / ".training" / "checkpoint.pt", fingerprint)

    torch.manual_seed(SEED)
    target, draft = LlamaForCausalLM(LlamaConfig(**TARGET)), LlamaForCausalLM(LlamaConfig(**DRAFT))
    few = held_out_windows(held_out_ids, 24)

    fit(
        "target",
        target,
        target_steps,
        lambda step, length: next_token_loss(target, windows(ids, step, length, 0)),
        lambda: evaluate(target, None, few),
        checkpoint,
    )

    def distil(step: int, length: int) -> torch.Tensor:
        window = windows(ids, step, length, 1)
        with torch.no_grad():
            log_p = log_probs(target, window)
        log_q = log_probs(draft, window)
        # The divergence has gradients everywhere; the acceptance rate itself is what counts.
        if step < 0.5 * draft_steps:
            return divergence(log_p, log_q)
        return 1 - acceptance(log_p, log_q)

    fit("draft", draft, draft_steps, distil, lambda: evaluate(target, draft, few), checkpoint)

    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END,
        eos_token=END,
        pad_token=END,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )
    save_model(target, fast, out / "target")
    save_model(draft, fast, out / "draft")
    record = {
        "corpus": corpus,
        "versions": versions,
        "settings": settings,
        "parameters": {"target": target.num_parameters(), "draft": draft.num_parameters()},
        "cpu_seconds": round(checkpoint.state["cpu_seconds"], 1),
        "log": checkpoint.state["log"],
    }
    _write_json(out / "training.json", record)
    shutil.rmtree(checkpoint.path.parent)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", "utf-8")


# --- measuring the result -------------------------------------------------------------------------

TEMPERATURES = (0.0, 0.5, 0.7, 1.0, 1.3)
SPEC_LENS = (1, 2, 8)  # besides 4, at temperature 1
NEW_TOKENS = 128
SAMPLES = 4  # texts per prompt


def held_out_prompts(texts: dict[str, str]) -> list[dict[str, str]]:
    """A stretch from the middle of each held-out module that is long enough."""
    prompts = []
    for module, text in texts.items():
        if is_held_out(module) and len(text) > 4000:
            found = re.compile(r"^( *)(def|class) ", re.MULTILINE).search(text, len(text) // 3)
            start = found.start() if found else len(text) // 3
            prompts.append(
                {"module": module, "text": text[start : start + 400].rpartition("\n")[0]}
            )
    return prompts


def measure(out: Path) -> None:
    """Measure the models in `out` as they ship and write `out`/measured.json, from the prompts."""
    from rsk.decode.loop import load_pair, speculative_generate

    torch.set_num_threads(1)
    target, draft, tokenizer = load_pair(out / "target", out / "draft", device="cpu")
    apart = [text for name, text in modules().items() if is_held_out(name)]
    ids = encode(tokenizer.backend_tokenizer, apart)
    prompts = [
        entry["text"] for entry in json.loads((out.parent / "prompts.json").read_text("utf-8"))
    ]
    decoding = []
    for spec_len, temperature in [(4, t) for t in TEMPERATURES] + [(k, 1.0) for k in SPEC_LENS]:
        result = speculative_generate(
            target,
            draft,
            prompts * SAMPLES,
            tokenizer,
            spec_len=spec_len,
            temperature=temperature,
            max_new_tokens=NEW_TOKENS,
            seed=SEED,
            stop_tokens=(),
        )
        decoding.append(
            {
                "spec_len": spec_len,
                "temperature": temperature,
                "texts": len(result.tokens),
                "new_tokens": sum(map(len, result.tokens)),
                "tried": result.tried,
                "accepted": result.accepted,
                "acceptance_rate": result.acceptance_rate,
                "tokens_per_target_pass": result.tokens_per_target_pass,
            }
        )
        print(f"K={spec_len}, temperature {temperature}: accepted {result.acceptance_rate:.3f}")
    record = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "held_out": evaluate(target, draft, held_out_windows(ids, 100)),
        "decoding": decoding,
    }
    _write_json(out / "measured.json", record)


# --- the card -------------------------------------------------------------------------------------


def write_card(out: Path) -> None:
    """Write `out`/README.md and its figure from training.json and measured.json."""
    training = json.loads((out / "training.json").read_text("utf-8"))
    measured = json.loads((out / "measured.json").read_text("utf-8"))
    draw_curves(training["log"], out / "training.svg")
    (out / "README.md").write_text(card(training, measured), "utf-8")


def draw_curves(log: list[dict[str, Any]], path: Path) -> None:
    """Two panels: the target's loss, and the draft's acceptance rate, over training tokens."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update(
        {"svg.hashsalt": "rsk", "axes.spines.top": False, "axes.spines.right": False}
    )
    target = [row for row in log if row["model"] == "target"]
    draft = [row for row in log if row["model"] == "draft"]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    millions = [row["tokens"] / 1e6 for row in target]
    left.plot(
        millions, [row["training_loss"] for row in target], "--", color="0.5", label="training"
    )
    left.plot(millions, [row["target_loss"] for row in target], color="#0072B2", label="held out")
    left.set(
        xlabel="training tokens, millions",
        ylabel="loss, nats per token",
        title="The target learns to predict",
    )
    left.legend(frameon=False)
    millions = [row["tokens"] / 1e6 for row in draft]
    right.plot(millions, [row["acceptance"] for row in draft], color="#D55E00")
    right.set(
        xlabel="training tokens, millions",
        ylabel="acceptance rate, held out",
        title="The draft learns to follow the target",
    )
    for axes, rows in ((left, target), (right, draft)):
        longer = LONGER_WINDOWS * rows[-1]["tokens"] / 1e6
        axes.axvline(longer, color="0.7", linestyle=":")
        axes.annotate(
            "longer windows ",
            (longer, 0.92),
            xycoords=("data", "axes fraction"),
            horizontalalignment="right",
            color="0.4",
        )
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def card(training: dict[str, Any], measured: dict[str, Any]) -> str:
    """The model card as Markdown; every figure in it comes from the two records."""
    corpus, settings, held_out = training["corpus"], training["settings"], measured["held_out"]
    parameters, steps = training["parameters"], settings["steps"]
    one = next(d for d in measured["decoding"] if (d["spec_len"], d["temperature"]) == (4, 1.0))

    def row(name: str) -> str:
        shape = settings[name]
        bits = held_out[f"{name}_loss"] / math.log(2) / corpus["held_out_bytes_per_token"]
        return (
            f"| {name} | {parameters[name]:,} | {shape['num_hidden_layers']} | "
            f"{shape['hidden_size']} | {held_out[f'{name}_loss']:.3f} | {bits:.2f} |"
        )

    decoding = "\n".join(
        f"| {d['temperature']:g} | {d['spec_len']} | {d['acceptance_rate']:.3f} | "
        f"{d['tokens_per_target_pass']:.2f} |"
        for d in sorted(measured["decoding"], key=lambda d: (d["spec_len"], d["temperature"]))
    )
    return f"""---
license: mit
library_name: transformers
pipeline_tag: text-generation
tags: [speculative-decoding, llama, code]
---

# A small pair for speculative decoding

<!-- Written by train_pair.py from training.json and measured.json; change those, not this. -->

A target and a draft model that continue Python source, small enough to be kept beside the code and
to decode on any laptop. They exist to show speculative decoding with real models, offline: the
draft proposes tokens, the target verifies them. At temperature 1 with four draft tokens per step
the target accepts **{one["acceptance_rate"]:.0%}** of those that it judges and emits
**{one["tokens_per_target_pass"]:.2f}** tokens per pass.

| model | parameters | layers | width | held-out loss, nats per token | bits per byte |
|---|---|---|---|---|---|
{row("target")}
{row("draft")}

Both are Llama models with one byte-level BPE vocabulary of {settings["target"]["vocab_size"]:,}
tokens and a context of {settings["target"]["max_position_embeddings"]}; the weights are float16
safetensors. They load like any other:

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

target = AutoModelForCausalLM.from_pretrained("data/models/target")
tokenizer = AutoTokenizer.from_pretrained("data/models/target")
```

## Training

![Left: the target's loss falls on training and on held-out text, where it ends a little higher.
Right: the draft's acceptance rate on held-out text rises. Both improve at once where the training
windows become longer.](training.svg)

The target learned to predict the next token for {steps["target"]:,} steps, and the draft to follow
the target's distribution for {steps["draft"]:,}: in the first half by the Kullback-Leibler
divergence, in the second by the acceptance rate itself, the sum of min(p, q). A step is
{settings["batch_tokens"]:,} tokens, in windows of {CONTEXT // 2} and in the last quarter {CONTEXT};
held-out windows have {CONTEXT} throughout, so the curves bend there. The optimizer is AdamW with a
cosine schedule. Both models together took {training["cpu_seconds"] / 60:.0f} minutes on one core.
`python data/models/train_pair.py` does it again, and goes on where it was interrupted. The curves
are in `training.json`.

## Data

The source of the standard library of Python {corpus["python"]}, without its tests:
{corpus["modules"]} modules. {len(corpus["held_out_modules"])} of them, chosen by a hash of the
module's name, were held out from the tokenizer and both models
({corpus["held_out_tokens"]:,} of {corpus["held_out_tokens"] + corpus["training_tokens"]:,} tokens).
The source is copyright of the Python Software Foundation; the PSF License Version 2 permits this
use and derivative works. The weights come under the licence of this repository.

## Decoding held-out prompts

{one["texts"]} texts of {NEW_TOKENS} tokens, continuing stretches of held-out modules
(`../prompts.json`). The acceptance rate is the share accepted of the draft tokens that were
judged; those behind a rejection are not.

| temperature | K | acceptance rate | tokens per target pass |
|---|---|---|---|
{decoding}

## Limits

The text looks like Python and rarely is a program that works. It may repeat stretches of the
standard library. Do not use it to write code. The figures are for text like the training data;
on other text the acceptance rate differs.
"""


def main() -> None:
    """Train, measure, write the card."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n\n")[0])
    parser.add_argument(
        "--measure", action="store_true", help="keep the models, measure them again"
    )
    parser.add_argument(
        "--out", type=Path, default=HERE, help="where the models go (default: here)"
    )
    parser.add_argument("--target-steps", type=int, default=TARGET_STEPS, metavar="N")
    parser.add_argument("--draft-steps", type=int, default=DRAFT_STEPS, metavar="N")
    options = parser.parse_args()
    if not options.measure:
        train(options.out, options.target_steps, options.draft_steps)
    _write_json(options.out.parent / "prompts.json", held_out_prompts(modules()))
    measure(options.out)
    write_card(options.out)


if __name__ == "__main__":
    main()
