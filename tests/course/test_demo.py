"""The demo: true, quick, and its sentences follow from its numbers."""

from __future__ import annotations

import dataclasses
import io
import re
from collections.abc import Iterator
from pathlib import Path

import measured
import pytest
import torch
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

import rsk
from rsk.base import machine, templates
from rsk.course import demo
from rsk.course.race import Row, Timed
from rsk.measure import implementations, workload
from rsk.measure.timing import MeasurementError


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that wait for each other make tests slow on a machine that does other things too."""
    with machine.pinned_threads(1):
        yield


@pytest.mark.slow
def test_the_demo_runs_and_draws(tmp_path: Path) -> None:
    console = Console(width=100, record=True, file=(tmp_path / "out.txt").open("w"))
    figure = tmp_path / "pictures" / "demo.svg"
    found = demo.run(batch_sizes=(1, 4), vocab_size=2000, figure=figure, console=console)
    text = console.export_text()
    assert found.agreement.backends == rsk.BACKENDS
    assert found.agreement.requests == found.agreement.sampled == 10
    assert str(found.agreement).split(":")[0] in text.replace("\n", " ")
    assert [line.split() for line in text.splitlines() if "times as fast" in line] == [
        ["B", "baseline", "PyTorch", "C++", "times", "as", "fast"]
    ]
    assert [row.batch_size for row in found.rows] == [1, 4]
    assert text.count("×") + text.count("unclear") >= 2
    assert re.search(r"At B = 4 the baseline calls \d+ PyTorch operators and waits \d+ times", text)
    assert "the C++ version calls 1 PyTorch operator and never waits" in " ".join(text.split())
    assert figure.read_text().startswith("<?xml")


def test_on_a_gpu_the_demos_own_waits_are_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    def waited() -> None:
        raise AssertionError("the call that is counted waits for the device")

    def counted(call, device: str) -> dict[str, int]:
        call()
        return {"operators": 1, "launches": 1, "synchronizations": 0, "allocated_bytes": 0}

    monkeypatch.setattr(torch.cuda, "synchronize", waited)
    monkeypatch.setattr(demo, "count_operations", counted)
    inputs = workload.Inputs(*demo.make_batch(2, 3, 100, seed=0), 0)
    row = Row(2, {name: Timed.known(1.0) for name in rsk.BACKENDS})
    found = demo._reason(row, inputs, "cuda")["other"]
    assert found.synchronizations == 0
    assert (found.batch_size, found.spec_len, found.vocab_size) == (2, 3, 100)


def test_disagreement_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def backend(name: str) -> implementations.Implementation:
        real = implementations.backend(name)
        if name != "vectorized":
            return real

        def bind(inputs: workload.Inputs):
            return real.bind(inputs._replace(seed=inputs.seed + 1))

        return dataclasses.replace(real, bind=bind)

    monkeypatch.setattr(demo, "backend", backend)
    with pytest.raises(MeasurementError, match=r"vectorized and baseline differ at B=8, seed=0"):
        demo.agreement(["baseline", "vectorized"], [8], 3, 500)


def test_the_reasons_follow_from_the_numbers() -> None:
    first, second, third = demo.explain(measured.story())
    assert first == (
        "At B = 16 the baseline calls 960 PyTorch operators and waits 192 times to read a value; "
        "the fused sampler calls 1 PyTorch operator and never waits for a value, and takes "
        "30.0 µs instead of 640 µs: 21 times faster."
    )
    assert "4.00 MB in all, once: this takes 3.0 times as long as only reading" in second
    assert "the baseline takes 64 times as long" in second
    assert third.startswith(
        "The vectorized sampler is not always faster (200 µs against 40.0 µs at B = 1, "
        "260 µs against 160 µs at B = 4): for few requests its 168 operators are more than the "
        "baseline's 60 (B = 1); and at B = 4 it has fewer operators"
    )


def test_the_reasons_change_with_the_numbers() -> None:
    story = measured.story()
    slow = dataclasses.replace(
        story,
        records=tuple(
            dataclasses.replace(r, call=measured.spread(2 * 640.0))
            if r.implementation == "fused"
            else r
            for r in story.records
        ),
    )
    assert "2.0 times slower" in demo.explain(slow)[0]
    faster = dataclasses.replace(
        story,
        records=tuple(
            dataclasses.replace(r, call=measured.spread(1.0))
            if r.implementation == "vectorized"
            else r
            for r in story.records
        ),
    )
    assert not any("vectorized" in sentence for sentence in demo.explain(faster))


def test_on_a_gpu_launches_are_counted() -> None:
    first = demo.explain(measured.story(gpu=True))[0]
    assert "the baseline makes 1,120 GPU launches and waits 192 times" in first
    assert "the fused sampler makes 1 GPU launch and never waits" in first


def test_without_a_compiler_the_demo_says_less() -> None:
    story = measured.story()
    without = dataclasses.replace(
        story, records=tuple(r for r in story.records if r.implementation != "fused")
    )
    (only,) = demo.explain(without)
    assert only.startswith("The vectorized sampler is not always faster")


def test_disturbed_times_are_named_and_passed_over() -> None:
    story = measured.story()
    busy = dataclasses.replace(
        story,
        records=tuple(
            dataclasses.replace(r, call=measured.spread(r.call.median_us, disturbed=0.9))
            if r.batch_size == 16
            else r
            for r in story.records
        ),
    )
    sentences = demo.explain(busy)
    assert sentences[0].startswith("At B = 4 the baseline")
    assert "busy (at B = 16)" in sentences[-1]


def shown(rows: list[Row], on_gpu: bool = False) -> list[list[str]]:
    console = Console(width=100, file=io.StringIO(), color_system=None)
    console.print(demo.table(rows, on_gpu))
    assert isinstance(console.file, io.StringIO)
    return [line.split() for line in console.file.getvalue().splitlines()]


def test_recorded_times_are_shown_as_measured_ones() -> None:
    rows = demo.recorded(measured.story(gpu=True))
    head, *lines = shown([rows[0], rows[-1]], on_gpu=True)
    assert head[:4] == ["B", "baseline", "PyTorch", "CUDA"]
    assert lines[-1][0] == "16" and lines[-1][-2:] == ["21", "×"]
    said = demo._certainty(rows, True)
    assert said["doubtful"] == [] and said["last"] == "CUDA"


def test_a_recorded_ratio_is_formed_within_runs() -> None:
    (row, *_) = demo.recorded(measured.twice(measured.story(gpu=True), call=1.5))
    assert row.ratios is not None and row.ratio("fused") == row.ratios["fused"]
    by_hand = row.times["baseline"].median / row.times["fused"].median
    assert row._replace(ratios=None).ratio("fused") == by_hand


def test_a_doubtful_ratio_is_a_range_or_unclear() -> None:
    quiet, noisy = Timed.known(100.0), Timed(100.0, 110.0, 300.0, 900.0)
    lucky = Timed(8.0, 8.0, 10.0, 20.0)
    rows = [
        Row(1, {"baseline": quiet, "fused": Timed.known(10.0)}),
        Row(4, {"baseline": quiet, "fused": lucky}),
        Row(16, {"baseline": quiet, "fused": noisy}),
        Row(64, {"baseline": quiet, "fused": Timed.known(10.0)}, rounds=1),
    ]
    endings = [line[3:] if line[0] == "1" else line for line in shown(rows)[1:]]
    assert [" ".join(line).split("µs")[-1].strip() for line in endings] == [
        *("10 ×", "5.0 – 12 ×", "unclear", "unclear"),
    ]
    said = templates.render("demo.md#certainty", demo._certainty(rows, False))
    assert "known to 10%, except at B = 4, 16 and 64" in said
    quiet_rows = templates.render("demo.md#certainty", demo._certainty(rows[:1], False))
    assert quiet_rows == "Each ratio of baseline to C++ is known to 10%."
    none = templates.render("demo.md#certainty", demo._certainty(rows[1:], False))
    assert "No ratio is known to 10%" in none
    assert "A time with ≤ is too long" in said and shown(rows)[3][3:5] == ["≤", "300"]


def test_a_time_that_was_disturbed_is_not_shown_as_if_it_were_known() -> None:
    quiet, noisy = Timed.known(100.0), Timed(100.0, 110.0, 300.0, 900.0)
    rows = [Row(1, {"baseline": quiet, "vectorized": noisy, "fused": Timed.known(10.0)})]
    assert shown(rows)[1] == ["1", "100", "µs", "≤", "300", "µs", "10.0", "µs", "10", "×"]
    for language in templates.languages():
        values = demo._certainty(rows, False)
        said = templates.render("demo.md#certainty", values, language)
        assert values["doubtful"] == [] and "≤" in said and "10%" in said


def test_every_language_says_all_of_it() -> None:
    for language in templates.languages():
        console = Console(width=60, record=True, file=io.StringIO())
        demo.run(batch_sizes=(1, 2), vocab_size=200, console=console, language=language)
        text = console.export_text()
        assert max(map(cell_len, text.splitlines())) <= 60, language
        assert "{" not in text and "**" not in text
        times = templates.render("demo.md#times", language=language)
        assert times.replace("**", "") in text


def test_chinese_is_broken_between_letters() -> None:
    text = Text.from_markup(
        "[bold]基準[/]  K = 4 個詞元，" + "草稿模型替每個請求猜。" * 5 + "\n第二行"
    )
    lines = demo._broken(text, 30).split()
    assert "".join(line.plain for line in lines) == text.plain.replace("\n", "")
    widths = [cell_len(line.plain.rstrip()) for line in lines]
    assert max(widths) <= 30 and min(widths[:-2]) >= 26
    assert not any(line.plain.startswith(("，", "。")) for line in lines)
    assert demo._broken(Text("a b c"), 2).plain == "a b c"


def test_bad_arguments_are_refused_before_anything_runs() -> None:
    with pytest.raises(ValueError, match=r"figure: expected a name in .png, .svg or .pdf"):
        demo.run(figure="demo.bmp")
    with pytest.raises(ValueError, match="batch_sizes: expected at least one value"):
        demo.run(batch_sizes=())
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="no NVIDIA GPU"):
            demo.run(device="cuda", console=Console(quiet=True))
