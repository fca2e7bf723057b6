"""Drawings of who reads what in a kernel, made from what its threads did load.

The loads come from :mod:`rsk.course.python_kernels`, so a drawing shows what the code does,
not what somebody meant it to do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rsk.check.synthetic import make_batch
from rsk.course import python_kernels
from rsk.course.python_kernels import LANES, PACK, SPLIT, WARPS, Load
from rsk.figures.plotting import WIDTH, Picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Reader = Callable[[Load], str]
"""Names who loaded a probability."""

SECTOR = 8
"""Probabilities (float32) in the 32 bytes that the memory of a GPU moves at least."""

GAP = 1.6
"""Distance between the rows of two requests."""

# Light and dark in turn, so that neighbours differ on a grey printer too.
_COLORS = ("#56b4e9", "#f5d08a", "#009e73", "#f0b8d5")
_MEETING = {
    "block_per_sequence": ["shared memory of block {first}: the totals of its warps"],
    "split_vocabulary": [
        "global memory: the totals of the blocks and their warps, and the tickets"
    ],
    "cluster": [
        "mailbox of block {first}:\na letter with each block's total",
        "mailbox of block {second}:\na letter with each block's total",
    ],
}
"""Where the totals of a request's warps or blocks go."""


def summing_loads(name: str, requests: int = LANES, vocab_size: int = 64) -> list[Load]:
    """The loads with which a Python kernel sums the rows of a small batch, each v once.

    Args:
        name: of the kernel.
        requests: B.
        vocab_size: V.

    Raises:
        ValueError: an unknown kernel.
    """
    batch = make_batch(requests, 1, vocab_size, acceptance=0.5)
    _, loads = python_kernels.launch(name, *batch, seed=0)
    first: dict[tuple[int, int], Load] = {}
    for load in sorted(loads, key=lambda load: load.wait):
        first.setdefault((load.request, load.v), load)
    return sorted(first.values(), key=lambda load: (load.request, load.v))


def asked_at_once(loads: list[Load]) -> list[Load]:
    """What the lanes of the first warp ask for before they wait for the first time."""
    return [x for x in loads if x.block == 0 and x.thread < LANES and x.wait == 0]


def sectors(loads: list[Load]) -> int:
    """Memory sectors of 32 bytes that these loads touch; rows begin at a sector."""
    return len({(x.request, x.v // SECTOR) for x in loads})


def who_reads(name: str) -> Picture:
    """Draw which thread or warp reads which probability, and when.

    Args:
        name: of a kernel, one of :data:`rsk.course.python_kernels.KERNELS`.

    Raises:
        ValueError: an unknown kernel.
    """
    import pandas as pd
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    by_thread = name == "thread_per_sequence"
    requests, vocab_size = (LANES, 32) if by_thread else (2, 64)
    loads = summing_loads(name, requests, vocab_size)
    together = asked_at_once(loads)
    fig = Figure(figsize=(WIDTH, 0.9 + 0.62 * requests + (0.9 if name in _MEETING else 0)))
    ax = fig.add_subplot()
    first = set(together)
    for x, width in _cells(loads):
        who = x.thread if by_thread else x.block * WARPS + x.thread // LANES
        edge = {"edgecolor": "black", "linewidth": 1.8, "zorder": 3} if x in first else {}
        style: dict[str, Any] = {"edgecolor": "white", "linewidth": 0.6, **edge}
        style["facecolor"] = _COLORS[who % len(_COLORS)]
        ax.add_patch(Rectangle((x.v, -x.request * GAP), width, 0.8, **style))
        at = x.v + width / 2, -x.request * GAP + 0.38
        ax.text(*at, str(x.wait + 1), ha="center", va="center", fontsize=6.5, zorder=4)
    for b in range(requests):
        ax.text(
            -0.02 * vocab_size, -b * GAP + 0.4, f"request {b}", ha="right", va="center", fontsize=8
        )
        _name_readers(ax, [x for x in loads if x.request == b], _reader(by_thread))
    bottom = -(requests - 1) * GAP - 0.75
    if name in _MEETING:
        _draw_meeting(ax, name, [x for x in loads if x.request == requests - 1], bottom)
        bottom -= 2.2
    ax.set_xlim(-0.16 * vocab_size, vocab_size + 0.3)
    ax.set_ylim(bottom, 1.05)
    ax.set_axis_off()
    values = {
        "name": name,
        "vocab_size": vocab_size,
        "by_thread": by_thread,
        "lanes": LANES,
        "warps": WARPS,
        "pack": PACK,
        "split": SPLIT if name in ("split_vocabulary", "cluster") else 0,
        "sectors": sectors(together),
        "used": len(together) / (sectors(together) * SECTOR),
        "waits": max(x.wait for x in loads) + 1,
        "meets": name in _MEETING,
        "spans": [
            _spans([x for x in loads if x.request == b], _reader(by_thread))
            for b in range(requests)
        ],
    }
    data = pd.DataFrame(
        {
            "request": x.request,
            "v": x.v,
            "block": x.block,
            "warp": x.thread // LANES,
            "lane": x.thread % LANES,
            "wait": x.wait,
        }
        for x in loads
    )
    label = f"fig-reads-{name.replace('_', '-')}"
    return Picture(fig, label, values, data, block="fig-reads")


def _cells(loads: list[Load]) -> list[tuple[Load, int]]:
    """What each thread loads with one instruction: its first probability, and how many."""
    cells: list[tuple[Load, int]] = []
    for x in loads:
        if cells:
            begun, width = cells[-1]
            if x == begun._replace(v=begun.v + width):
                cells[-1] = begun, width + 1
                continue
        cells.append((x, 1))
    return cells


def _thread(load: Load) -> str:
    return f"thread {load.thread}"


def _warp(load: Load) -> str:
    return f"block {load.block}, warp {load.thread // LANES}"


def _block(load: Load) -> str:
    return f"block {load.block}"


def _reader(by_thread: bool) -> Reader:
    return _thread if by_thread else _warp


def _spans(loads: list[Load], reader: Reader) -> list[tuple[str, int, int]]:
    """Reader, first place and end of each run of neighbours that one reader reads."""
    spans: list[tuple[str, int, int]] = []
    for x in loads:
        unit = reader(x)
        if spans and spans[-1][0] == unit:
            spans[-1] = (unit, spans[-1][1], x.v + 1)
        else:
            spans.append((unit, x.v, x.v + 1))
    return spans


def _name_readers(ax: Axes, loads: list[Load], reader: Reader) -> None:
    y = -loads[0].request * GAP
    for unit, begin, end in _spans(loads, reader):
        ax.text((begin + end) / 2, y - 0.12, unit, ha="center", va="top", fontsize=7.5)


def _draw_meeting(ax: Axes, name: str, loads: list[Load], top: float) -> None:
    """Boxes below the last request for where the totals go, with an arrow from each sender."""
    blocks = sorted({x.block for x in loads})
    texts = _MEETING[name]
    places = [(i + 0.5) * (loads[-1].v + 1) / len(texts) for i in range(len(texts))]
    for text, place in zip(texts, places, strict=True):
        text = text.format(first=blocks[0], second=blocks[-1])
        box = {"boxstyle": "round,pad=0.4", "facecolor": "#eeeeee", "edgecolor": "#777777"}
        ax.text(place, top - 1.65, text, ha="center", va="center", fontsize=7.5, bbox=box)
        for _, begin, end in _spans(loads, _warp if len(blocks) == 1 else _block):
            arrow = {"arrowstyle": "->", "color": "#555555", "shrinkA": 0, "shrinkB": 0}
            start = (begin + end) / 2
            ax.annotate(
                "", (place + (start - place) / 5, top - 1.2), (start, top), arrowprops=arrow
            )
