"""The figures: they say what the data says, to every reader."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable

import measured
import pytest

pytest.importorskip("matplotlib")

from rsk.base.folders import data_dir
from rsk.figures import benchmarks, plotting
from rsk.figures.plotting import Picture
from rsk.measure.records import Benchmark, Quoted

QUOTED = Quoted.load(data_dir() / "benchmarks" / "earlier-work.json")
ALL: dict[str, Callable[[Benchmark], Picture]] = {
    "latency": benchmarks.latency_by_batch,
    "speed-up": lambda b: benchmarks.speed_up(b, QUOTED),
    "spec-len": benchmarks.latency_by_spec_len,
    "roofline": benchmarks.roofline,
    "ladder": benchmarks.ladder,
    "operations": benchmarks.operation_counts,
    "vocab": benchmarks.latency_by_vocab,
}


def title(picture: Picture) -> str:
    return picture.fig.get_suptitle().replace("\n", " ").replace("\u00a0", " ")


@pytest.mark.parametrize("gpu", [False, True], ids=["cpu", "gpu"])
@pytest.mark.parametrize("name", ALL)
def test_every_figure_is_complete(name: str, gpu: bool) -> None:
    benchmark = measured.story(gpu)
    picture = ALL[name](benchmark)
    assert picture.label == f"fig-{name}"
    assert benchmark.provenance.label in picture.caption
    assert len(picture.alt) > 40
    assert picture.alt.endswith(".")
    assert not picture.data.empty
    assert title(picture)
    image = io.BytesIO()
    picture.fig.savefig(image, format="svg")
    assert b"nan" not in image.getvalue()
    picture.fig.canvas.draw()
    right_edge = picture.fig.bbox.x1
    extents = [picture.fig._suptitle.get_window_extent()]
    extents += [text.get_window_extent() for ax in picture.fig.axes for text in ax.texts]
    extents += [legend.get_window_extent() for legend in picture.fig.legends]
    assert min(extent.x0 for extent in extents) >= 0
    assert max(extent.x1 for extent in extents) <= right_edge, "no text is cut off"


def test_titles_say_what_was_found() -> None:
    story = measured.story()
    found = {name: title(draw(story)) for name, draw in ALL.items()}
    assert found["latency"] == (
        "The fused sampler is the fastest at every batch size: "
        "3.3 to 21 times as fast as the baseline"
    )
    # 40/200, 160/260, 640/500 and 40/12, 160/15.6, 640/30
    assert found["speed-up"] == (
        "Speed-up over the baseline: vectorized 0.698 on average, 1.28 at most; "
        "fused 11.6 on average, 21.3 at most"
    )
    assert found["spec-len"].startswith("From K = 1 to 8 the time is multiplied by ")
    assert found["spec-len"].endswith("early exit makes long drafts cheap")
    assert found["ladder"] == (
        "From 640 µs to 30.0 µs: fused is 21.3 times faster than baseline "
        "and at 33% of the memory roof"
    )
    assert found["operations"] == (
        "One call at B = 16: baseline 960 operators, 192 waits; "
        "vectorized 168 operators, 0 waits; fused 1 operator, 0 waits"
    )
    assert found["roofline"] == (
        "The fused sampler reaches 33% of the memory roof at 4.00 MB (B = 16, V = 32,000)"
    )
    assert found["vocab"].startswith("From V = 1,000 to 32,000 the time is multiplied by ")


def test_the_kernels_that_fused_picks_from_do_not_compete_with_it() -> None:
    assert "fastest at every batch size" in title(benchmarks.latency_by_batch(measured.story(True)))


def test_titles_change_with_the_data() -> None:
    slow = dataclasses.replace(
        measured.story(),
        records=tuple(
            dataclasses.replace(r, device=time, call=time, host=time)
            for r in measured.story().records
            for time in [measured.spread(r.call.median_us * (50 if r.batch_size == 1 else 1))]
            if r.implementation == "fused"
        )
        + tuple(r for r in measured.story().records if r.implementation != "fused"),
    )
    assert "fastest at 2 of 3 batch sizes" in title(benchmarks.latency_by_batch(slow))
    for name in ("latency", "speed-up"):
        assert title(ALL[name](slow)) != title(ALL[name](measured.story()))


def with_busy_roofs(benchmark: Benchmark, *batch_sizes: int) -> Benchmark:
    """The same run, but other processes made the roof a thousand times slower there."""
    records = [
        dataclasses.replace(
            r, roof=measured.spread(1000 * r.roof.median_us, r.roof.clock, disturbed=0.9)
        )
        if r.batch_size in batch_sizes
        else r
        for r in benchmark.records
    ]
    return dataclasses.replace(benchmark, records=tuple(records))


def test_a_disturbed_roof_judges_nothing() -> None:
    """Its share would be many times 100 %: the point is drawn, its share is not known."""
    story = with_busy_roofs(measured.story(), 1)
    picture = benchmarks.roofline(story)
    assert title(picture) == title(benchmarks.roofline(measured.story()))
    shares = picture.data.set_index("B")["share of the roof"]
    assert shares[1].isna().all()
    assert shares.max() <= 1
    assert "Other processes disturbed the roof of 3 points" in picture.caption
    assert "%" not in title(benchmarks.roofline(with_busy_roofs(measured.story(), 1, 4, 16)))

    ladder = benchmarks.ladder(with_busy_roofs(measured.story(), 16))
    assert "at an unknown share of the memory roof" in title(ladder)
    assert ladder.data["share of the roof"].isna().all()


def test_the_roofline_judges_the_point_that_moves_most() -> None:
    """A small input is in a cache, or its time is all latency: its share says little."""
    story = measured.story()
    near = measured.record(
        "fused", 2.0, batch_size=1, vocab_size=1000, bytes_moved=30_000, roof=measured.spread(2.0)
    )
    others = tuple(r for r in story.records if r.point != near.point)
    picture = benchmarks.roofline(dataclasses.replace(story, records=(*others, near)))
    assert "at 4.00 MB (B = 16" in title(picture)
    assert "fused up to 100%" in picture.alt


def test_captions_name_the_clock_of_the_time_that_is_drawn() -> None:
    story = measured.story(gpu=True)
    assert "graph replay and wall clock" in benchmarks.latency_by_batch(story, "device").caption
    assert "; wall clock" in benchmarks.latency_by_batch(story, "call").caption
    assert "graph replay and wall clock" in benchmarks.ladder(story).caption


def test_tables_hold_what_is_drawn() -> None:
    data = benchmarks.latency_by_batch(measured.story()).data
    assert list(data["B"]) == [1, 4, 16]
    assert list(data["fused (µs)"]) == pytest.approx([12.0, 15.6, 30.0])
    assert data["fused quartiles (µs)"][0] == "11.4 to 12.6"
    ladder = benchmarks.ladder(measured.story(gpu=True), 16).data
    assert list(ladder["implementation"]) == [
        "baseline",
        "vectorized",
        "thread_per_sequence",
        "cluster",
        "fused",
    ]
    assert ladder["× baseline"][4] == pytest.approx(640 / 30)
    counts = benchmarks.operation_counts(measured.story()).data
    assert "launches" not in counts
    assert "launches" in benchmarks.operation_counts(measured.story(gpu=True)).data


def test_run_to_run_differences_are_in_the_caption() -> None:
    story = measured.story()
    again = tuple(
        dataclasses.replace(r, run=1, device=measured.spread(1.2 * r.device.median_us))
        for r in story.records
    )
    both = dataclasses.replace(story, records=story.records + again)
    caption = benchmarks.latency_by_batch(both).caption
    assert "Two runs differ, in the median over all points, by" in caption
    assert "fused 18.2% (stated: 10.0%)" in caption
    points = {record.point for record in again}
    some = tuple(record for record in again if record.point == again[0].point)
    part = dataclasses.replace(story, records=story.records + some)
    expected = f"over the 1 of {len(points)} points that both runs reached"
    assert expected in benchmarks.latency_by_batch(part).caption
    assert "Two runs" not in benchmarks.latency_by_batch(story).caption


def test_quoted_figures_are_labelled() -> None:
    picture = benchmarks.speed_up(measured.story(), QUOTED)
    assert f"quoted from {QUOTED.source}, not measured here" in picture.caption
    labels = [text.get_text() for text in picture.fig.legends[0].get_texts()]
    assert "fused, quoted" in labels
    assert "fused" in labels


def test_implementations_can_be_told_apart_without_colour() -> None:
    def lightness(color: str) -> float:
        red, green, blue = (int(color[i : i + 2], 16) / 255 for i in (1, 3, 5))
        return 0.299 * red + 0.587 * green + 0.114 * blue

    three = [plotting.STYLES[name] for name in ("baseline", "vectorized", "fused")]
    levels = sorted(lightness(style["color"]) for style in three)
    assert levels[1] - levels[0] > 0.2
    assert levels[2] - levels[1] > 0.2
    assert levels[2] < 0.75, "still visible on white paper"
    markers = [style["marker"] for style in plotting.STYLES.values()]
    assert len(set(markers)) == len(markers)


def test_an_empty_benchmark_is_refused() -> None:
    empty = measured.benchmark([])
    for name, draw in ALL.items():
        with pytest.raises(ValueError, match="benchmark has no|nothing was counted"):
            draw(empty)
        assert name
