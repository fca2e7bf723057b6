"""Decoding steps of models with random weights, in miniature."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from rsk.base import machine
from rsk.measure import clocks, model_step, step_models
from rsk.measure.records import RecordError, Spread
from rsk.measure.step_models import PAIRS, Model

CPU = torch.device("cpu")
PAIR = step_models.MINIATURE["miniature"]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that wait for each other make tests slow on a machine that does other things too."""
    with machine.pinned_threads(1), torch.inference_mode():
        yield


def test_a_rewound_pass_continues_the_context() -> None:
    """Each pass gives the logits of the whole sequence in one pass without a cache."""
    torch.manual_seed(1)
    model = Model(PAIR.target, PAIR, CPU)
    seen: list[torch.Tensor] = []
    forward = model.forward

    def watched(tokens: torch.Tensor, keep: int = 0) -> torch.Tensor:
        seen.append(tokens)
        return forward(tokens, keep)

    model.forward = watched  # type: ignore[method-assign]
    model.begin(2, 11, 9)
    context = seen[0]
    for count in (5, 1, 9, 5):
        tokens = torch.randint(97, (2, count))
        whole = model.model(input_ids=torch.cat([context, tokens], 1)).logits[:, 11:]
        torch.testing.assert_close(model.rewound_pass(tokens), whole)


def test_a_cache_that_cannot_be_rewound_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    grown = transformers.DynamicCache
    monkeypatch.setattr(transformers, "StaticCache", lambda **options: grown())
    torch.manual_seed(1)
    model = Model(PAIR.target, PAIR, CPU)
    model.begin(2, 11, 9)
    assert not model.is_static
    tokens = torch.randint(97, (2, 5))
    torch.testing.assert_close(model.rewound_pass(tokens), model.rewound_pass(tokens))
    assert model.cache.get_seq_length() == 16


@pytest.mark.parametrize("how", model_step.SAMPLERS)
def test_a_step_accepts_drafts_and_ends_with_a_token(how: str) -> None:
    torch.manual_seed(2)
    target, drafter = (Model(size, PAIR, CPU) for size in (PAIR.target, PAIR.draft))
    for model in (target, drafter):
        model.begin(3, 16, 16)
    last = torch.zeros(3, 1, dtype=torch.int64)
    tokens, rows, _ = model_step.draft(drafter, last)
    assert rows.shape == (3, model_step.SPEC_LEN, 97)
    found = model_step.step(target, drafter, last, model_step.sampler(how))
    for b, n in enumerate(found.num_accepted.tolist()):
        assert found.tokens[b, :n].tolist() == tokens[b, :n].tolist()
        assert 0 <= found.tokens[b, n] < 97
        assert (found.tokens[b, n + 1 :] == -1).all()


def test_our_samplers_agree_in_a_step() -> None:
    torch.manual_seed(2)
    target, drafter = (Model(size, PAIR, CPU) for size in (PAIR.target, PAIR.draft))
    for model in (target, drafter):
        model.begin(3, 16, 16)
    last = torch.zeros(3, 1, dtype=torch.int64)
    ours = [
        model_step.step(target, drafter, last, model_step.sampler(how)).tokens
        for how in ("baseline", "vectorized", "fused")
    ]
    assert torch.equal(ours[0], ours[1])
    assert torch.equal(ours[0], ours[2])


@pytest.mark.parametrize(
    ("size", "pair", "billions"),
    [
        (PAIRS["1.1 B with 68 M"].target, "1.1 B with 68 M", 1.10),
        (PAIRS["1.1 B with 68 M"].draft, "1.1 B with 68 M", 0.068),
        (PAIRS["8 B with 1 B"].target, "8 B with 1 B", 8.03),
        (PAIRS["8 B with 1 B"].draft, "8 B with 1 B", 1.24),
    ],
)
def test_the_models_have_the_sizes_of_their_names(size, pair: str, billions: float) -> None:
    model = Model(size, PAIRS[pair], torch.device("meta"))
    assert model.parameters / 1e9 == pytest.approx(billions, rel=0.01)


def test_the_program_measures_goes_on_and_refuses_another_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model-step" / "cpu.json"
    arguments = ["--dry", "--save", str(path)]
    assert model_step.main([*arguments, "--runs", "1", "--time-limit", "0"]) == 3
    assert not model_step.ModelStepRecord.load(path).complete
    assert model_step.main([*arguments, "--runs", "1"]) == 0
    first = model_step.ModelStepRecord.load(path)
    assert first.complete
    assert len(first.passes) == 2 * 2 * len(model_step.POSITIONS)
    assert {(one.sampler, one.batch_size) for one in first.steps} == {
        (how, size) for how in model_step.SAMPLERS for size in (1, 3)
    }
    for one in first.steps:
        assert 0 < one.share < 1
        assert 0 <= one.accepted <= model_step.SPEC_LEN
    capsys.readouterr()
    assert model_step.main([*arguments, "--runs", "1"]) == 0
    assert capsys.readouterr().out == "", "all is there already"
    assert model_step.ModelStepRecord.load(path) == dataclasses.replace(first, complete=True)
    monkeypatch.setattr(model_step, "CONTEXT", 1)
    monkeypatch.setattr(model_step, "SPEC_LEN", 3)
    with pytest.raises(SystemExit):
        model_step.main([*arguments, "--runs", "1"])


def test_on_a_gpu_a_time_is_that_until_the_result_is_there(tmp_path: Path, monkeypatch) -> None:
    """And why a pass could not be captured stays with it."""

    def spread(us: float) -> Spread:
        return Spread(median_us=us, q25_us=us, q75_us=us, samples=5, disturbed=0.0, clock="wall")

    monkeypatch.setattr(
        clocks, "time_eager", lambda calls, budget_s: (spread(1.0), spread(2.0), [])
    )
    model_step.main(["--dry", "--save", str(tmp_path / "cpu.json"), "--time-limit", "0"])
    record = model_step.ModelStepRecord.load(tmp_path / "cpu.json")
    run = model_step._Run(record, tmp_path / "cpu.json", 0.01)
    run.device = torch.device("cuda")
    assert run.call_time(lambda: None).median_us == 2.0

    def refused(calls: object, budget_s: float) -> None:
        raise RuntimeError("operation not permitted\nmore")

    monkeypatch.setattr(clocks, "time_graph", refused)
    model = Model(PAIR.target, PAIR, CPU)
    model.begin(1, 11, 9)
    run.one_pass("miniature", "target", model, 0, torch.zeros(1, 1, dtype=torch.int64))
    (found,) = model_step.ModelStepRecord.load(tmp_path / "cpu.json").passes
    assert (found.call.median_us, found.device) == (2.0, None)
    assert found.not_captured == "RuntimeError: operation not permitted"
    assert run.record.failed == ()


def test_a_failing_sampler_does_not_end_the_others(tmp_path: Path, monkeypatch) -> None:
    right = model_step.sampler

    def broken(name: str) -> model_step.Sampler:
        if name == "vectorized":
            raise RuntimeError("out of memory\nmore")
        return right(name)

    monkeypatch.setattr(model_step, "sampler", broken)
    path = tmp_path / "cpu.json"
    assert model_step.main(["--dry", "--save", str(path), "--runs", "1"]) == 1
    found = model_step.ModelStepRecord.load(path)
    assert "miniature, B = 1, vectorized, run 0: RuntimeError: out of memory" in found.failed
    assert {one.sampler for one in found.steps} == set(model_step.SAMPLERS) - {"vectorized"}


def test_a_batch_that_does_not_fit_does_not_end_the_others(tmp_path: Path, monkeypatch) -> None:
    begin = Model.begin

    def begun(self: Model, batch_size: int, context: int, room: int) -> None:
        if batch_size == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        begin(self, batch_size, context, room)

    monkeypatch.setattr(Model, "begin", begun)
    path = tmp_path / "cpu.json"
    assert model_step.main(["--dry", "--save", str(path), "--runs", "1"]) == 1
    found = model_step.ModelStepRecord.load(path)
    assert "miniature, B = 1, run 0: OutOfMemoryError: CUDA out of memory" in found.failed
    assert {one.batch_size for one in found.steps} == {3}


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text('{"schema": "rsk-peers/1"}')
    with pytest.raises(RecordError, match="expected 'rsk-model-step/1'"):
        model_step.ModelStepRecord.load(path)
