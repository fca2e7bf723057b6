"""The pair that ships: what its card says, how it decodes; and the script that trained it."""

import importlib.util
import json
import math
from types import ModuleType

import pytest
import torch

from rsk.base.folders import checkout, data_dir
from rsk.decode.command_line import shipped_prompts
from rsk.decode.loop import load_pair, shipped_pair, speculative_generate

pytest.importorskip("transformers")
MODELS = data_dir() / "models"
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def pair():
    return load_pair(*shipped_pair(), device="cpu")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("train_pair", MODELS / "train_pair.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- what ships -----------------------------------------------------------------------------------


def test_sizes(pair):
    assert pair.target.num_parameters() <= 4_000_000
    assert pair.draft.num_parameters() <= 500_000
    files = [f for f in MODELS.rglob("*") if f.is_file() and ".training" not in f.parts]
    drafts = {f for f in files if "smollm2-draft" in f.parts}
    assert sum(f.stat().st_size for f in drafts) <= 14 * 10**6
    assert sum(f.stat().st_size for f in files if f not in drafts) <= 12 * 2**20
    assert not [f.name for f in files if f.suffix in {".bin", ".pt", ".pkl"}]


def test_weights_are_16_bit_and_load_without_rsk(pair):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    for folder in shipped_pair():
        model = AutoModelForCausalLM.from_pretrained(folder)
        assert model.dtype == torch.float16
        assert model.config.model_type == "llama"
        text = "def f(x):\n    return 'é' + x\n"
        tokenizer = AutoTokenizer.from_pretrained(folder)
        assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_acceptance_on_held_out_files(pair):
    prompts = [entry["text"] for entry in shipped_prompts()]
    result = speculative_generate(
        pair.target, pair.draft, prompts, pair.tokenizer, max_new_tokens=64, seed=7, stop_tokens=()
    )
    assert result.acceptance_rate >= 0.5
    assert result.tokens_per_target_pass > 1.7
    # Another seed and shorter texts than the recorded run, but the same rate: 5 standard errors.
    measured = json.loads((MODELS / "measured.json").read_text("utf-8"))
    one = next(d for d in measured["decoding"] if (d["spec_len"], d["temperature"]) == (4, 1.0))
    error = math.sqrt(0.25 / sum(result.tried) + 0.25 / sum(one["tried"]))
    assert abs(result.acceptance_rate - one["acceptance_rate"]) < 5 * error


def test_the_models_have_learned(pair):
    """Held-out text is far likelier than to a model that knows only how often each token occurs."""
    texts = [entry["text"] for entry in shipped_prompts()]
    windows = [torch.tensor([pair.tokenizer(text).input_ids]) for text in texts]
    counts = torch.bincount(torch.cat([w.flatten() for w in windows]), minlength=2048).double()
    unigram = -(counts * (counts / counts.sum()).clamp_min(1e-12).log()).sum() / counts.sum()
    with torch.inference_mode():
        losses = {
            name: sum(float(model(ids, labels=ids).loss) for ids in windows) / len(windows)
            for name, model in {"target": pair.target, "draft": pair.draft}.items()
        }
    assert losses["target"] < 0.7 * unigram
    assert losses["target"] < losses["draft"] < unigram


def test_greedy_agrees_with_transformers_own_assisted_generation(pair):
    prompt = shipped_prompts()[0]["text"]
    ids = pair.tokenizer(prompt, return_tensors="pt").input_ids
    ours = speculative_generate(
        pair.target, pair.draft, prompt, pair.tokenizer, temperature=0, max_new_tokens=48
    )
    theirs = pair.target.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=48
    )
    assert ours.tokens[0] == theirs[0, ids.shape[1] :].tolist()


def test_prompts_come_from_held_out_modules(script):
    training = json.loads((MODELS / "training.json").read_text("utf-8"))
    for entry in shipped_prompts():
        assert script.is_held_out(entry["module"])
        assert entry["module"] in training["corpus"]["held_out_modules"]


def test_the_card_is_that_of_the_records(script, tmp_path):
    training = json.loads((MODELS / "training.json").read_text("utf-8"))
    measured = json.loads((MODELS / "measured.json").read_text("utf-8"))
    text = (MODELS / "README.md").read_text("utf-8")
    assert script.card(training, measured) == text
    measured["held_out"]["target_loss"] = 1.2345
    assert "1.234 |" in script.card(training, measured) != text
    assert str(MODELS.parent.parent) not in text
    one = next(d for d in measured["decoding"] if d["spec_len"] == 4 and d["temperature"] == 1)
    assert one["acceptance_rate"] >= 0.5
    pytest.importorskip("matplotlib")
    script.draw_curves(training["log"], tmp_path / "again.svg")
    assert (tmp_path / "again.svg").read_text().count("<path") > 20


def test_tokens_per_pass_are_what_the_acceptance_rate_predicts():
    """(1 - a^(K+1)) / (1 - a) holds if each draft token is accepted independently: roughly."""
    measured = json.loads((MODELS / "measured.json").read_text("utf-8"))
    assert len(measured["decoding"]) > 5
    for entry in measured["decoding"]:
        rate, spec_len = entry["acceptance_rate"], entry["spec_len"]
        predicted = (1 - rate ** (spec_len + 1)) / (1 - rate)
        assert math.isclose(entry["tokens_per_target_pass"], predicted, rel_tol=0.2), entry


def test_the_loop_itself_costs_little(pair):
    """Neither a model nor the sampler: under a tenth of the time where nobody disturbs."""
    shares = []
    for entry in shipped_prompts()[:5]:
        result = speculative_generate(
            pair.target, pair.draft, entry["text"], pair.tokenizer, max_new_tokens=48, seed=0
        )
        shares.append(result.seconds["rest"] / result.total_seconds)
    assert min(shares) < 0.1


def test_stop_tokens_that_are_texts(pair):
    def tokens(**options):
        prompt = shipped_prompts()[0]["text"]
        return speculative_generate(
            *pair[:2], prompt, pair.tokenizer, seed=1, max_new_tokens=60, **options
        ).tokens[0]

    free = tokens(stop_tokens=())
    stop = next(t for t in free[5:] if pair.tokenizer(text_of(pair, t)).input_ids == [t])
    for same in (text_of(pair, stop), [text_of(pair, stop)], {stop, text_of(pair, stop)}):
        assert tokens(stop_tokens=same) == free[: free.index(stop) + 1]
    for several in ("no single token", [""]):
        with pytest.raises(ValueError, match=r"stop_tokens: .* is \d tokens, \["):
            tokens(stop_tokens=several)


def text_of(pair, token):
    return pair.tokenizer.decode([token])


# --- how it was trained ---------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(checkout() is None, reason="the script belongs to the checkout")
def test_training_goes_on_where_it_was_interrupted(script, tmp_path, monkeypatch):
    """Interrupted in either half, the weights come out bit for bit as in one run."""
    small = {"num_hidden_layers": 1, "hidden_size": 32, "num_attention_heads": 1, "head_dim": 32}
    small |= {"num_key_value_heads": 1, "intermediate_size": 32, "vocab_size": 300}
    monkeypatch.setattr(script, "TARGET", script.TARGET | small)
    monkeypatch.setattr(script, "DRAFT", script.DRAFT | small)
    for name, value in {
        "VOCAB_SIZE": 300,
        "CONTEXT": 32,
        "BATCH_TOKENS": 64,
        "CHECKPOINT_EVERY": 2,
        "EVALUATE_EVERY": 4,
    }.items():
        monkeypatch.setattr(script, name, value)
    every = script.modules()
    few = {name: every[name] for name in ("bisect", "heapq", "cmd", "queue", "keyword", "types")}
    assert {script.is_held_out(name) for name in few} == {True, False}
    monkeypatch.setattr(script, "modules", lambda: few)

    script.train(tmp_path / "whole", 6, 6)
    rate = script.learning_rate
    stops = {("target", 3), ("draft", 5)}

    def interrupting(name, step, steps):
        if (name, step) in stops:
            stops.remove((name, step))
            raise KeyboardInterrupt
        return rate(name, step, steps)

    monkeypatch.setattr(script, "learning_rate", interrupting)
    while True:
        try:
            script.train(tmp_path / "resumed", 6, 6)
            break
        except KeyboardInterrupt:
            assert (tmp_path / "resumed" / ".training" / "checkpoint.pt").exists()
    assert not stops
    for name in ("target", "draft"):
        weights = [
            (tmp_path / run / name / "model.safetensors").read_bytes()
            for run in ("whole", "resumed")
        ]
        assert weights[0] == weights[1]
    logs = [
        json.loads((tmp_path / run / "training.json").read_text())["log"]
        for run in ("whole", "resumed")
    ]
    for row in (row for log in logs for row in log):
        del row["cpu_seconds"]
        if row["step"] == 4:  # the mean since the last evaluation, which an interruption shortens
            del row["training_loss"]
    assert [set(row) for row in logs[0]] == [set(row) for row in logs[1]]
    assert [row["target_loss"] for row in logs[0]] == [row["target_loss"] for row in logs[1]]


def test_a_checkpoint_of_other_settings_is_refused(script, tmp_path):
    script.Checkpoint(tmp_path / "checkpoint.pt", "these").save(step=1)
    with pytest.raises(SystemExit, match="other settings"):
        script.Checkpoint(tmp_path / "checkpoint.pt", "those")


def test_held_out_modules_never_move(script):
    held_out = [
        name for name in ("queue", "cmd", "operator", "heapq", "bisect") if script.is_held_out(name)
    ]
    assert held_out == ["queue", "cmd", "operator"]
