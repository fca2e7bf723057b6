"""The figures: they say what the data says, to every reader."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable

import measured
import pytest

pytest.importorskip("matplotlib")

from rsk.base import numbers
from rsk.figures import benchmarks, device_times, plotting
from rsk.figures.plotting import Picture
from rsk.measure.publishable_runs import earlier_work
from rsk.measure.records import Benchmark

QUOTED = earlier_work()
ALL: dict[str, Callable[[Benchmark], Picture]] = {
    "latency": benchmarks.latency_by_batch,
    "speed-up": benchmarks.speed_up,
    "speed-up-over-loop": lambda b: benchmarks.speed_up_over_loop(b, QUOTED),
    "shapes": benchmarks.latency_by_shape,
    "roofline": device_times.roofline,
    "ladder": device_times.ladder,
    "operations": benchmarks.operation_counts,
}


def title(picture: Picture) -> str:
    return plotting.exhibit(picture).title


def caption(picture: Picture) -> str:
    return plotting.exhibit(picture).caption


@pytest.mark.parametrize(
    ("microseconds", "label"),
    [
        (0.5, "0.5 µs"),
        (10, "10 µs"),
        (2e5, "200 ms"),
        (1e6, "1 s"),
        (1e9, "1,000 s"),
        (1e12, "1,000,000 s"),
    ],
)
def test_ticks_are_labelled_however_far_the_axis_reaches(microseconds: float, label: str) -> None:
    assert plotting.round_label(numbers.duration)(microseconds, 0) == label


@pytest.mark.parametrize("gpu", [False, True], ids=["cpu", "gpu"])
@pytest.mark.parametrize("name", ALL)
def test_every_figure_is_complete(name: str, gpu: bool) -> None:
    benchmark = measured.story(gpu)
    picture = ALL[name](benchmark)
    assert picture.label == f"fig-{name}"
    words = plotting.exhibit(picture)
    assert benchmark.provenance.label in words.caption
    assert len(words.alt) > 40
    assert words.alt.endswith(".")
    assert not picture.data.empty
    assert words.title
    plotting.entitle(picture.fig, words.title)
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


def test_values_say_what_was_found() -> None:
    story = measured.story()
    found = {name: draw(story).values for name, draw in ALL.items()}
    wins = found["latency"]["wins"]
    # the best in PyTorch is the loop at B = 1 and 4, and vectorized at 16
    gains = [40 / 12, 160 / 15.6, 500 / 30]
    assert wins[:2] == (3, 3) and [g.median for g in wins.gains] == pytest.approx(gains)
    ours = found["speed-up"]["ratios"]["fused"]
    assert [ours[b].median for b in (1, 4, 16)] == pytest.approx(gains)
    assert found["speed-up"]["bases"] == ["baseline", "vectorized"]
    over_loop = found["speed-up-over-loop"]["ratios"]
    assert over_loop["vectorized"][16].median == pytest.approx(640 / 500)
    assert found["speed-up-over-loop"]["means"]["fused"].most.median == pytest.approx(640 / 30)
    growth = found["shapes"]["growth"]
    first, last, factors = growth["K"]
    assert (first, last) == (1, 8) and factors["fused"].median == pytest.approx(1.16 / 1.02)
    assert growth["V"].factors["baseline"].median == pytest.approx(4)
    assert found["ladder"]["last"].implementation == "fused"
    assert found["ladder"]["last"].roof_share.median == pytest.approx(10 / 30)
    counts = {count.implementation: count for count in found["operations"]["counts"]}
    assert counts["baseline"].synchronizations == 192 and counts["fused"].operators == 1
    best = found["roofline"]["best"]
    assert (best.implementation, best.batch_size) == ("fused", 16)


def test_the_words_of_a_figure_follow_its_values() -> None:
    words = {name: " ".join(plotting.exhibit(draw(measured.story()))) for name, draw in ALL.items()}
    assert (
        "3.3 times the speed of the best PyTorch version" in words["latency"]
        and "640 µs at 16" in words["latency"]
    )
    assert "One run: nothing says" in words["latency"]
    assert "3.3 times as fast as the best PyTorch version at B = 1, 17 times" in words["speed-up"]
    assert "21 at most" in words["speed-up-over-loop"]
    assert "takes 1.1 times as long at K = 8 as at K = 1, and" in words["shapes"]
    assert "33% of the memory roof at 4.00 MB" in words["roofline"]
    assert "33% of the memory roof, and is 17 times as fast as vectorized" in words["ladder"]
    assert "960 operators, 192 waits" in words["operations"]


def test_the_kernels_that_fused_picks_from_do_not_compete_with_it() -> None:
    wins = benchmarks.latency_by_batch(measured.story(True)).values["wins"]
    assert wins.at == wins.of == 3


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
    assert benchmarks.latency_by_batch(slow).values["wins"].at == 2
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
    picture = device_times.roofline(story)
    assert title(picture) == title(device_times.roofline(measured.story()))
    shares = picture.data.set_index("B")["share of the roof"]
    assert shares[1].isna().all()
    assert shares.max() <= 1
    assert picture.values["unjudged"] == 3 and "of 3 points" in caption(picture)
    assert "%" not in title(device_times.roofline(with_busy_roofs(measured.story(), 1, 4, 16)))

    ladder = device_times.ladder(with_busy_roofs(measured.story(), 16))
    assert ladder.values["last"].roof_share is None and "unknown share" in title(ladder)
    assert ladder.data["share of the roof"].isna().all()


def test_the_roofline_judges_the_point_that_moves_most() -> None:
    """A small input is in a cache, or its time is all latency: its share says little."""
    story = measured.story()
    near = measured.record(
        "fused", 2.0, batch_size=1, vocab_size=1000, bytes_moved=30_000, roof=measured.spread(2.0)
    )
    others = tuple(r for r in story.records if r.point != near.point)
    picture = device_times.roofline(dataclasses.replace(story, records=(*others, near)))
    assert "at 4.00 MB (B = 16" in title(picture)
    assert picture.values["shares"]["fused"].median == pytest.approx(10 / 30)


def test_captions_name_the_clock_of_the_time_that_is_drawn() -> None:
    story = measured.story(gpu=True)
    both = "Call time (baseline), device time (vectorized, thread_per_sequence"
    assert both in caption(benchmarks.latency_by_batch(story, "device"))
    assert caption(benchmarks.latency_by_batch(story, "call")).startswith("Call time against")
    said = caption(device_times.ladder(story))
    assert "baseline: call time, not comparable with the rest" in said
    assert said.startswith("Device time; the line is the memory roof.") and "One run" in said
    axis = {
        time: benchmarks.latency_by_batch(story, time).fig.axes[0].get_ylabel()
        for time in ("call", "device")
    }
    said = {time: " ".join(label.split()) for time, label in axis.items()}
    assert said["call"] == "call time"
    assert said["device"] == "device time (baseline: call time)"
    assert "call time" in benchmarks.speed_up(story).fig.axes[0].get_ylabel()


def test_the_ladders_gain_is_of_steps_that_one_run_has() -> None:
    story = measured.story()
    moved = [
        dataclasses.replace(one, run=1) if one.implementation == "baseline" else one
        for one in story.records
    ]
    found = device_times.ladder(dataclasses.replace(story, records=tuple(moved)))
    assert found.values["rival"].implementation == "vectorized"


def test_tables_hold_what_is_drawn() -> None:
    data = benchmarks.latency_by_batch(measured.story()).data
    assert list(data["B"]) == [1, 4, 16]
    assert list(data["fused (µs)"]) == pytest.approx([12.0, 15.6, 30.0])
    assert data["fused range"][0] == "–", "one run has none"
    assert set(data["fused clock"]) == {"wall"}
    ladder = device_times.ladder(measured.story(gpu=True), 16).data
    assert list(ladder["implementation"]) == [
        "baseline",
        "vectorized",
        "thread_per_sequence",
        "cluster",
        "fused",
    ]
    assert ladder["× baseline, call"][4] == pytest.approx(640 / 30)
    counts = benchmarks.operation_counts(measured.story()).data
    assert "launches" not in counts
    assert "launches" in benchmarks.operation_counts(measured.story(gpu=True)).data


def drawn(picture: Picture) -> dict[str, list[tuple[float, float]]]:
    """By line, the ends of its error bars."""
    (ax,) = picture.fig.axes
    found = {}
    for container in ax.containers:
        bars = container.lines[2][0].get_segments()
        found[container.get_label()] = [(bar[0][1], bar[1][1]) for bar in bars]
    return found


def test_two_runs_that_differ_are_both_seen() -> None:
    """By clock: the second run's calls take 1.5 times as long, its device times twice."""
    both = measured.twice(measured.story(gpu=True), call=1.5, device=2.0)
    for time, factor in (("call", 1.5), ("device", 2.0)):
        picture = benchmarks.latency_by_batch(both, time)
        assert drawn(picture)["fused"][0] == pytest.approx((12.0, 12.0 * factor))
        assert picture.data["fused (µs)"][0] == pytest.approx(12.0 * (1 + factor) / 2)
        assert picture.data["fused range"][0] == f"12.0 – {12 * factor:.1f} µs"
        said = caption(picture)
        assert "Medians and ranges of 2 runs." in said
    assert set(benchmarks.latency_by_batch(both, "device").data["fused clock"]) == {"graph replay"}
    assert set(benchmarks.latency_by_batch(both, "call").data["fused clock"]) == {"wall"}


def test_a_ratio_is_formed_within_a_run() -> None:
    """Only the slower side is slower in the second run: its ratio is seen, and not a third one."""
    story = measured.story()
    second = [
        dataclasses.replace(
            r, run=1, call=measured.longer(r.call, 3 if r.implementation == "baseline" else 1)
        )
        for r in story.records
    ]
    both = dataclasses.replace(story, records=(*story.records, *second))
    picture = benchmarks.speed_up_over_loop(both)
    assert drawn(picture)["fused"][0] == pytest.approx((40 / 12, 3 * 40 / 12))
    assert picture.data["fused"][0] == pytest.approx(2 * 40 / 12)
    assert picture.data["fused range"][0] == "3.3 – 10"


def test_a_ladder_divides_no_wall_clock_by_a_share_of_a_graph() -> None:
    ladder = device_times.ladder(measured.story(gpu=True))
    assert ladder.values["rival"].implementation == "vectorized"
    assert ladder.values["gain"].median == pytest.approx(500 / 28.75, rel=0.01)
    assert "17 times as fast as vectorized" in title(ladder)
    assert "not comparable" in caption(ladder)
    assert "not comparable" not in caption(device_times.ladder(measured.story()))
    shares = ladder.data.set_index("implementation")["share of the roof"]
    assert shares.isna()["baseline"] and not shares.isna()["vectorized"]


def test_quoted_figures_are_labelled() -> None:
    picture = benchmarks.speed_up_over_loop(measured.story(), QUOTED)
    assert f"quoted from {QUOTED.source}, not measured here" in caption(picture)
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
