"""Drawings of who reads what: made from the loads of the Python kernels, and true to them."""

from __future__ import annotations

import pytest

pytest.importorskip("matplotlib")
from matplotlib.patches import Rectangle

import rsk
from rsk.course.python_kernels import reading
from rsk.course.python_kernels.gpu import SPLIT, WARPS
from rsk.figures import memory_access, plotting


@pytest.mark.parametrize("name", rsk.KERNELS)
def test_every_probability_is_drawn_once(name):
    loads = reading(name, requests=3, vocab_size=41).loads
    assert [(x.request, x.v) for x in loads] == [(b, v) for b in range(3) for v in range(41)]


@pytest.mark.parametrize("name", rsk.KERNELS)
def test_a_drawing_says_what_its_data_hold(name):
    picture = memory_access.who_reads(reading(name))
    (ax,) = picture.fig.axes
    cells = [patch for patch in ax.patches if isinstance(patch, Rectangle)]
    assert sum(cell.get_width() for cell in cells) == len(picture.data)
    words = plotting.exhibit(picture)
    waits = picture.data.wait.max()
    assert picture.values["reading"].waits == waits
    assert words.title.endswith({1: "once", 2: "twice"}.get(waits, f"waits {waits} times"))
    assert words.title in words.alt
    for block in picture.data.block.unique():
        if name != "thread_per_sequence":
            assert f"block {block}, warp 0" in words.alt
    framed = [cell for cell in cells if cell.get_edgecolor()[:3] == (0, 0, 0)]
    first = picture.data.query("block == 0 and warp == 0 and wait == 1")
    assert sum(cell.get_width() for cell in framed) == len(first)


def test_what_arrives_together_is_numbered_once():
    picture = memory_access.who_reads(reading("block_per_sequence"))
    shown = [one for one in picture.fig.axes[0].texts if one.get_text().isdigit()]
    by_warp = picture.data.groupby(["request", "block", "warp", "wait"])
    assert sorted(int(one.get_text()) for one in shown) == sorted(
        wait for *_, wait in by_warp.groups
    )
    places = {(round(-one.get_position()[1] / memory_access.GAP, 1), one.get_text()): one
              for one in shown}  # fmt: skip
    assert places and all(one.get_position()[0] % 1 == 0.5 for one in shown), "inside of a cell"


def test_each_step_waits_less_often_in_turn():
    waits = [reading(name).waits for name in rsk.KERNELS]
    assert waits[0] > waits[1] > waits[2] > waits[3] == waits[4]


def test_the_totals_of_several_blocks_are_sent_by_block():
    arrows = {
        name: len(
            [
                text
                for text in memory_access.who_reads(reading(name)).fig.axes[0].texts
                if not text.get_text()
            ]
        )
        for name in list(rsk.KERNELS)[1:]
    }
    assert arrows["block_per_sequence"] == arrows["loads_in_flight"] == WARPS
    assert arrows["split_vocabulary"] == SPLIT
    assert arrows["cluster"] == SPLIT * SPLIT, "each block to each mailbox"


def test_an_unknown_kernel_is_refused():
    with pytest.raises(ValueError, match="expected one of"):
        reading("nonsense")
