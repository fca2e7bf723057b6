"""Distil a draft for SmolLM2-135M-Instruct from its own samples: a few layers that borrow its head.

    rsk fetch smollm2
    python data/models/distil_smollm2.py            # sample, train, measure; a rerun goes on
    python data/models/distil_smollm2.py --measure  # measure again and rewrite the card

Meant for one GPU and about 15 minutes. First the target writes texts after made-up prompts of four
kinds, at several temperatures. The tokens that it writes most are those that the draft will know.
Then the draft, whose layers begin as copies of some of the target's, learns to follow the target's
distribution on these texts: first by the Kullback-Leibler divergence, which has gradients
everywhere, then by the acceptance rate itself, the sum of min(p, q). One prompt in twenty, chosen
by a hash, is held out from all that. All seeds are fixed; but the gradients of attention on a GPU
differ in their last bits from run to run, so another run gives weights that are only as good.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import math
import platform
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from rsk.decode import distilled_draft
from rsk.decode.loading import LoadedPair, load_model, load_tokenizer, resolved
from rsk.decode.loop import speculative_generate

HERE = Path(__file__).resolve().parent
END = -100
"""In place of what follows the end of a sampled text."""


@dataclass(frozen=True)
class Settings:
    """All that decides the weights, beside the target and the machine."""

    layers: int = 3
    known_tokens: int = 16384
    seed: int = 21
    shards: int = 32
    """Batches of sampled texts."""
    texts: int = 1280
    """In a shard."""
    new_tokens: int = 256
    temperatures: tuple[float, ...] = (0.0, 0.5, 0.8, 1.0)
    """Of a shard each, in turn: greedy states are learned from greedy texts."""
    steps: int = 4000
    batch: int = 64
    """Texts of a step."""
    micro_batch: int = 64
    peak_rate: float = 1e-3
    warm_up: int = 100
    judged_at: tuple[float, ...] = (1.0, 0.5)
    """Temperatures at which p and q are compared."""
    evaluate_every: int = 100
    checkpoint_every: int = 100


# --- prompts --------------------------------------------------------------------------------------

TOPICS = """\
rivers, the moon, bread, chess, winter, bridges, bees, glass, maps, clocks, sleep, music, salt,
trains, volcanoes, ink, gardens, shadows, mountains, tea, rain, money, dreams, horses, stars,
paper, lighthouses, islands, fire, kites, cities, whales, soap, forests, numbers, schools, ships,
spiders, markets, ice, photography, deserts, birds, coffee, iron, tides, libraries, wind,
potatoes, friendship, memory, cheese, earthquakes, cotton, dogs, electricity, castles, colours,
running, medicine, mirrors, painting, rockets, rice, roads, theatre, vaccines, wheels, writing,
language, cats, computers, gravity, dinosaurs, football, robots, the ocean, planets, chocolate,
history, poetry, democracy, evolution, the brain, the internet, solar power, climate, cooking,
dancing, farming, fishing, gold, hospitals, insects, jazz, kings, lakes, mathematics, magnets,
newspapers, oil, parks, radio, satellites, snow, sports, sugar, swimming, taxes, teachers,
telescopes, travel, trees, universities, villages, violins, water, wolves, yoga, ancient Egypt,
Rome, Japan, Africa, Paris, London, Einstein, Shakespeare, atoms, bacteria, bicycles, camping,
children, comets, courage, debt, diamonds, energy, exercise, families, fashion, flowers, food,
happiness, health, honesty, holidays, jobs, law, leadership, light, love, machines, meditation"""
NAMES = """\
parse, merge, count, search, sort, load, save, filter, rotate, encode, decode, split, join,
validate, resize, update, remove, insert, find, compare, reverse, flatten, group, hash, normalise"""
OBJECTS = """\
list, tree, matrix, string, file, graph, queue, date, image, table, word, record, path, number,
token, cache, user, stack, line, message, interval, polygon, account, buffer, event"""
FORMS = {
    "chat": [
        "What should I know about {0}?", "Explain {0} to a child of ten.",
        "Write a short poem about {0}.", "Give me some advice about {0}.",
        "Why do people care about {0}?", "Compare {0} and {1}.", "Tell me a joke about {0}.",
        "Write an e-mail to a friend about {0}.", "Summarise the history of {0}.",
    ],
    "prose": [
        "It was late in the evening when she began to think about {0} again. ",
        "The old man had spent his whole life with {0}, and ", "Nobody in the village spoke of {0}",
        "In the first chapter of her book on {0}, the author", "Once upon a time, {0} and {1}",
        "The trouble with {0} is that", "An essay on {0}.\n\n",
    ],
    "code": [
        "def {0}_{1}(", "class {2}{3}:\n    def __init__(self", "# {0} a {1}\nimport ",
        "function {0}{3}(", "def test_{0}_{1}():\n    ", "// {2} every {1} in the\nfor (",
        '"""{2} a {1} and return the result."""\n\n', "SELECT {1} FROM {1}s WHERE ",
    ],
    "list": [
        "Ten facts about {0}:\n\n1.", "Things to remember about {0}:\n- ",
        "A glossary of {0}:\n\n", "Five steps to understand {0}:\n1.",
        "Some questions about {0} and {1}:\n\n1.", "The most important dates of {0}:\n",
    ],
}  # fmt: skip


def prompts() -> dict[str, list[str]]:
    """By kind, all combinations of forms and what they speak of."""
    topics, names, objects = (
        text.replace("\n", " ").split(", ") for text in (TOPICS, NAMES, OBJECTS)
    )
    subjects = [(topic, topics[(i * 7 + 3) % len(topics)]) for i, topic in enumerate(topics)]
    codes = [(n, o, n.title(), o.title()) for n, o in itertools.product(names, objects)]
    found = {}
    for kind, forms in FORMS.items():
        about = codes if kind == "code" else subjects
        every = [form.format(*each) for form in forms for each in about]
        found[kind] = list(dict.fromkeys(every))  # not every form speaks of everything
    return found


def is_held_out(prompt: str) -> bool:
    """Whether a prompt is kept apart: by a hash, so that it never moves."""
    return hashlib.sha256(prompt.encode()).digest()[0] < 256 / 20


def as_text(kind: str, prompt: str, tokenizer: Any) -> str:
    """What the model reads: chat in its own template, all else as it is."""
    if kind == "chat" and tokenizer.chat_template:
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
        )
    return prompt


# --- samples --------------------------------------------------------------------------------------


def sample_shard(target: Any, tokenizer: Any, settings: Settings, index: int) -> Tensor:
    """Texts that the target wrote, prompts included, int32 [texts, length], END behind the end."""
    every = [(k, p) for k, some in prompts().items() for p in some if not is_held_out(p)]
    generator = torch.Generator().manual_seed(settings.seed * 1000 + index)
    # Each kind as often as the others, however many prompts it has.
    kinds = list(FORMS)
    rows = []
    for i in range(settings.texts):
        own = [p for k, p in every if k == kinds[i % len(kinds)]]
        chosen = own[int(torch.randint(len(own), (), generator=generator))]
        text = as_text(kinds[i % len(kinds)], chosen, tokenizer)
        rows.append(list(tokenizer(text).input_ids))
    width = max(map(len, rows))
    pad = target.config.eos_token_id or 0
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows], device=target.device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    temperature = settings.temperatures[index % len(settings.temperatures)]
    torch.manual_seed(settings.seed * 1000 + index)
    greedy = {"do_sample": False} if not temperature else {"do_sample": True, "top_k": 0}
    made = target.generate(
        ids, attention_mask=mask.to(target.device), max_new_tokens=settings.new_tokens,
        pad_token_id=pad, **greedy, **({"temperature": temperature} if temperature else {}),
    ).cpu()  # fmt: skip
    texts = torch.full((len(rows), width + settings.new_tokens), END, dtype=torch.int32)
    stops = set(torch.tensor(target.generation_config.eos_token_id or []).flatten().tolist())
    for out, row, text in zip(texts, rows, made.tolist(), strict=True):
        new = text[width:]
        end = next((i + 1 for i, token in enumerate(new) if token in stops), len(new))
        whole = torch.tensor([*row, *new[:end]], dtype=torch.int32)
        out[: len(whole)] = whole
    return texts


def samples(target: Any, tokenizer: Any, settings: Settings, where: Path) -> tuple[Tensor, float]:
    """All sampled texts, and the seconds that they took; those that are there are kept."""
    where.mkdir(parents=True, exist_ok=True)
    shards, seconds = [], 0.0
    for index in range(settings.shards):
        path = where / f"samples-{index:03d}.safetensors"
        if not path.exists():
            began = time.monotonic()
            texts = sample_shard(target, tokenizer, settings, index)
            took = time.monotonic() - began
            shard = {"texts": texts, "seconds": torch.tensor(took)}
            save_file(shard, str(path.with_suffix(".partial")))
            path.with_suffix(".partial").replace(path)
            print(f"sampled {index + 1}/{settings.shards}, {took:.0f} s", flush=True)
        shard = load_file(str(path))
        shards.append(shard["texts"])
        seconds += float(shard["seconds"])
    width = max(shard.shape[1] for shard in shards)
    pads = [torch.nn.functional.pad(s, (0, width - s.shape[1]), value=END) for s in shards]
    return torch.cat(pads), seconds


def frequent(texts: Tensor, vocab_size: int, count: int) -> Tensor:
    """The tokens that occur most, in order of id: int64 [count]."""
    counts = torch.bincount(texts[texts != END].long(), minlength=vocab_size)
    return counts.argsort(descending=True, stable=True)[:count].sort().values


# --- training -------------------------------------------------------------------------------------


def losses(target: Any, draft: Any, ids: Tensor, settings: Settings, by_divergence: bool) -> Tensor:
    """[loss, acceptance rate at temperature 1], both with gradients, means over positions."""
    fed = ids[:, :-1].clamp_min(0).long()
    counted = (ids[:, 1:] != END).flatten()
    with torch.no_grad():
        logits = target(input_ids=fed, use_cache=False).logits.flatten(0, 1)[counted].float()
    hidden = draft.model(input_ids=fed, use_cache=False).last_hidden_state
    known = draft.lm_head.among_known(hidden).flatten(0, 1)[counted].float()
    total, rate = logits.new_zeros(()), logits.new_zeros(())
    for temperature in settings.judged_at:
        p = (logits / temperature).softmax(-1)[:, draft.lm_head.known]  # below 1 in sum
        log_q = (known / temperature).log_softmax(-1)
        accepted = torch.minimum(p, log_q.exp()).sum(-1).mean()
        total = total + (-(p * log_q).sum(-1).mean() if by_divergence else 1 - accepted)
        rate = accepted if temperature == 1.0 else rate
    return torch.stack([total / len(settings.judged_at), rate])


def learning_rate(settings: Settings, step: int) -> float:
    """Linear warm-up, then half a cosine down to zero."""
    fall = 0.5 * (1 + math.cos(math.pi * step / settings.steps))
    return settings.peak_rate * min(1.0, (step + 1) / settings.warm_up) * fall


def train(
    target: Any, texts: Tensor, apart: Tensor, settings: Settings, where: Path
) -> tuple[Any, list[dict[str, float]], float]:
    """The draft; rows of step, loss and held-out acceptance; and seconds. Goes on from a file."""
    known = frequent(texts, target.config.vocab_size, settings.known_tokens).to(target.device)
    draft: Any = distilled_draft.make(target, settings.layers, known)
    target.requires_grad_(False)  # and with it what the draft borrows
    for mine in (draft.model.layers, draft.model.norm):
        mine.float()
    own = [p for p in draft.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(own, betas=(0.9, 0.95), weight_decay=0.01)
    path, first, log, seconds = where / "checkpoint.pt", 0, [], 0.0
    if path.exists():
        state = torch.load(path, weights_only=True, map_location="cpu")  # it is copied from there
        draft.load_state_dict(state["draft"], strict=False)
        optimizer.load_state_dict(state["optimizer"])
        first, log, seconds = state["step"], state["log"], state["seconds"]
        print(f"going on from step {first}")

    def found(part: Tensor, by_divergence: bool) -> Tensor:
        kind = target.device.type
        with torch.autocast(kind, torch.bfloat16, enabled=kind == "cuda"):
            return losses(target, draft, part.to(target.device), settings, by_divergence)

    since, recent = time.monotonic(), list[Tensor]()
    for step in range(first, settings.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(settings, step)
        generator = torch.Generator().manual_seed(settings.seed * 1_000_000 + step)
        chosen = texts[torch.randint(len(texts), (settings.batch,), generator=generator)]
        recent.append(torch.zeros((), device=target.device))
        for part in chosen.split(settings.micro_batch):
            loss = found(part, step < settings.steps / 2)[0] * len(part) / len(chosen)
            loss.backward()
            recent[-1] += loss.detach()  # a number only when it is shown: nobody waits for the GPU
        torch.nn.utils.clip_grad_norm_(own, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        done = step + 1
        if done % settings.evaluate_every == 0 or done == settings.steps:
            with torch.no_grad():
                rates = [found(part, False)[1] for part in apart.split(settings.micro_batch)]
            row = {
                "step": done,
                "loss": float(torch.stack(recent).mean()),
                "acceptance": float(torch.stack(rates).mean()),
            }
            log.append(row)
            recent = []
            left = (time.monotonic() - since) / (done - first) * (settings.steps - done)
            print(f"{done}/{settings.steps}  loss {row['loss']:.4f}  held-out acceptance "
                  f"{row['acceptance']:.3f}  {left / 60:.1f} min left", flush=True)  # fmt: skip
        if done % settings.checkpoint_every == 0 or done == settings.steps:
            state = {"draft": distilled_draft.own_state(draft), "optimizer": optimizer.state_dict()}
            state |= {"step": done, "log": log, "seconds": seconds + time.monotonic() - since}
            torch.save(state, path.with_suffix(".partial"))
            path.with_suffix(".partial").replace(path)
    return draft.eval(), log, state["seconds"]


# --- measuring ------------------------------------------------------------------------------------


def held_out(tokenizer: Any, each: int = 8) -> dict[str, list[str]]:
    """By kind, some of the prompts that are kept apart, chat in the model's template."""
    found = {}
    for kind, some in prompts().items():
        apart = [p for p in some if is_held_out(p)]
        found[kind] = [as_text(kind, p, tokenizer) for p in apart[:: max(len(apart) // each, 1)]]
    return {kind: texts[:each] for kind, texts in found.items()}


def measure(
    pair: LoadedPair, apart: dict[str, list[str]], new_tokens: int = 128
) -> list[dict[str, Any]]:
    """Acceptance at K = 4 on held-out prompts, by kind, temperature and drafter."""
    rows = []
    settings = itertools.product(apart, (0.0, 0.8), ("draft", "lookup"))
    for kind, temperature, drafter in settings:
        found = speculative_generate(
            pair.target, "ngram" if drafter == "lookup" else pair.draft, apart[kind],
            pair.tokenizer, temperature=temperature, max_new_tokens=new_tokens, seed=5,
        )  # fmt: skip
        rows.append({
            "kind": kind, "temperature": temperature, "drafter": drafter,
            "texts": len(apart[kind]), "judged": sum(found.tried),
            "accepted": sum(found.accepted), "tokens_per_pass": found.tokens_per_target_pass,
        })  # fmt: skip
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Sample, train, measure and write the card."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--measure", action="store_true", help="only measure, and write the card")
    parser.add_argument("--target", default="smollm2", help="folder or name of the target")
    parser.add_argument("--out", type=Path, default=HERE / "smollm2-draft")
    given = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    target: Any = load_model(resolved(given.target), device=device)
    tokenizer: Any = load_tokenizer(resolved(given.target))
    if not given.measure:
        distil(target, tokenizer, Settings(), given.out, given.out / ".training")
    draft = distilled_draft.load(given.out, target)
    apart = held_out(tokenizer)
    _write_json(given.out / "held_out.json", apart)
    record = {
        "device": _device(device),
        "rows": measure(LoadedPair(target, draft, tokenizer), apart),
    }
    _write_json(given.out / "measured.json", record)
    write_card(given.out)


def distil(target: Any, tokenizer: Any, settings: Settings, out: Path, where: Path) -> None:
    """Sample and train, and write the draft and its record; ``where`` keeps what a rerun needs."""
    where.mkdir(parents=True, exist_ok=True)
    mark = where / "settings.json"
    wanted = json.dumps(asdict(settings), sort_keys=True)
    if mark.exists() and mark.read_text("utf-8") != wanted:
        raise SystemExit(f"{where} belongs to other settings; delete it to start again")
    mark.write_text(wanted, "utf-8")
    texts, sampling_s = samples(target, tokenizer, settings, where)
    apart = texts[:: len(texts) // 32 or 1][:32]  # of other texts than those trained on
    rest = torch.ones(len(texts), dtype=torch.bool)
    rest[:: len(texts) // 32 or 1] = False
    draft, log, training_s = train(target, texts[rest], apart, settings, where)
    distilled_draft.save(draft, out)
    known = draft.lm_head.known.cpu()
    inside = torch.isin(texts[texts != END].long(), known).float().mean()
    record = {
        "settings": asdict(settings),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "device": _device(target.device),
        "sampled_tokens": int((texts != END).sum()),
        "known_share": float(inside),
        "own_parameters": sum(t.numel() for t in distilled_draft.own_state(draft).values()),
        "seconds": {"sampling": sampling_s, "training": training_s},
        "log": log,
    }
    _write_json(out / "training.json", record)


def _device(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    from distil_card import write_card

    main()
