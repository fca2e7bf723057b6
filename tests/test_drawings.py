"""Drawings of who reads what: made from the loads of the Python kernels, and true to them."""

from __future__ import annotations

import pytest

pytest.importorskip("matplotlib")
import rsk
from rsk import drawings
from rsk.pseudo_kernels import LANES


@pytest.mark.parametrize("name", rsk.KERNELS)
def test_every_probability_is_drawn_once(name):
    loads = drawings.summing_loads(name, requests=3, vocab_size=41)
    assert [(x.request, x.v) for x in loads] == [(b, v) for b in range(3) for v in range(41)]


def test_the_sectors_of_the_first_load():
    by_thread = drawings.first_load(drawings.summing_loads("thread_per_sequence"))
    assert len(by_thread) == LANES and drawings.sectors(by_thread) == LANES
    by_block = drawings.first_load(drawings.summing_loads("block_per_sequence"))
    assert len(by_block) == drawings.SECTOR and drawings.sectors(by_block) == 1


@pytest.mark.parametrize("name", rsk.KERNELS)
def test_a_drawing_says_what_its_data_hold(name):
    picture = drawings.who_reads(name)
    (ax,) = picture.fig.axes
    assert len(ax.patches) >= len(picture.data)
    title = picture.fig.get_suptitle().replace("\n", " ")
    assert f"{picture.data.load.max() + 1} load" in title and title in picture.alt
    for block in picture.data.block.unique():
        if name != "thread_per_sequence":
            assert f"block {block}, warp 0" in picture.alt
    framed = [patch for patch in ax.patches if patch.get_edgecolor()[:3] == (0, 0, 0)]
    assert len(framed) == len(drawings.first_load(drawings.summing_loads(name)))


def test_more_blocks_mean_fewer_loads_in_turn():
    longest = [max(x.load for x in drawings.summing_loads(name)) for name in list(rsk.KERNELS)[:3]]
    assert longest[0] > longest[1] > longest[2]


def test_an_unknown_kernel_is_refused():
    with pytest.raises(ValueError, match="expected one of"):
        drawings.who_reads("nonsense")
