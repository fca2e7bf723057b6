"""The demo: true, quick, and its sentences follow from its numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import measured
import pytest
import torch
from rich.console import Console

import rsk
from rsk.base import machine
from rsk.course import demo
from rsk.measure import implementations, workload
from rsk.measure.timing import MeasurementError


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that wait for each other make tests slow on a machine that does other things too."""
    with machine.pinned_threads(1):
        yield


def test_the_demo_runs_and_draws(tmp_path: Path) -> None:
    console = Console(width=100, record=True, file=(tmp_path / "out.txt").open("w"))
    figure = tmp_path / "pictures" / "demo.svg"
    found = demo.run(batch_sizes=(1, 4), vocab_size=2000, figure=figure, console=console)
    text = console.export_text()
    assert found.agreement.backends == rsk.BACKENDS
    assert found.agreement.requests == found.agreement.sampled == 10
    assert str(found.agreement).split(":")[0] in text.replace("\n", " ")
    for name in rsk.BACKENDS:
        assert name in text
    assert "█" in text
    assert found.explanation
    assert text.count("×") >= 4
    assert figure.read_text().startswith("<?xml")


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


def test_bars_are_as_long_as_they_say() -> None:
    assert demo.bar(1.0, 10) == "█" * 10
    assert demo.bar(0.5, 10) == "█" * 5
    assert demo.bar(0.0, 10) == "▏"
    assert demo.bar(0.1875, 10) == "█▉"


def test_bad_arguments_are_refused_before_anything_runs() -> None:
    with pytest.raises(ValueError, match=r"figure: expected a name in .png, .svg or .pdf"):
        demo.run(figure="demo.bmp")
    with pytest.raises(ValueError, match="batch_sizes: expected at least one value"):
        demo.run(batch_sizes=())
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="no NVIDIA GPU"):
            demo.run(device="cuda", console=Console(quiet=True))
