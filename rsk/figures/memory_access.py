"""Drawings of who reads what in a kernel, made from what its threads did load.

The loads are those of the course's Python kernels, so a drawing shows what the code does, not what
somebody meant it to do.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from rsk.figures.plotting import WIDTH, Picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GAP = 1.6
"""Distance between the rows of two requests."""

# Light and dark in turn, so that neighbours differ on a grey printer too.
_COLORS = ("#56b4e9", "#f5d08a", "#009e73", "#f0b8d5")


class Load(NamedTuple):
    """One probability that a thread loaded to sum or to search a row."""

    block: int
    thread: int
    wait: int
    """At which of the thread's waits for memory it arrived, from 0; what was asked for together
    shares it."""
    request: int
    v: int
    """Place in the row of the target's (and the draft's) probabilities."""


Reader = Callable[[Load], str]
"""Names who loaded a probability."""


@dataclass(frozen=True)
class Reading:
    """How the threads of a kernel read the rows of a small batch to sum them."""

    kernel: str
    """Its name."""
    loads: list[Load]
    """One for each probability, by request and place."""
    lanes: int
    """Threads of a warp."""
    warps: int
    """Of a block."""
    blocks: int
    """For each request; 0: each thread has a request of its own."""
    sector: int
    """Probabilities that memory moves at least."""
    meeting: tuple[str, ...]
    """Where the sums of a request's threads go; ``{block}`` stands for the number of its first
    block in the first text, of the next one in the next."""

    @property
    def requests(self) -> int:
        """B."""
        return self.loads[-1].request + 1

    @property
    def vocab_size(self) -> int:
        """V."""
        return self.loads[-1].v + 1

    @property
    def waits(self) -> int:
        """How often the thread that waits most does so."""
        return max(x.wait for x in self.loads) + 1

    @property
    def together(self) -> list[Load]:
        """What the lanes of the first warp ask for before they wait for the first time."""
        return [x for x in self.loads if x.block == 0 and x.thread < self.lanes and x.wait == 0]

    @property
    def sectors(self) -> int:
        """Sectors of memory that this touches; rows begin at a sector."""
        return len({(x.request, x.v // self.sector) for x in self.together})

    def reader(self, load: Load) -> str:
        """Who loaded a probability: a thread, or the warp where its threads share a row."""
        if self.blocks == 0:
            return f"thread {load.thread}"
        return f"block {load.block}, warp {load.thread // self.lanes}"


def who_reads(reading: Reading) -> Picture:
    """Draw which thread or warp reads which probability, and when."""
    import pandas as pd
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    by_thread = reading.blocks == 0
    requests, vocab_size, loads = reading.requests, reading.vocab_size, reading.loads
    fig = Figure(figsize=(WIDTH, 0.9 + 0.62 * requests + (0.9 if reading.meeting else 0)))
    ax = fig.add_subplot()
    first, cells = set(reading.together), _cells(loads)
    for x, width in cells:
        who = x.thread if by_thread else x.block * reading.warps + x.thread // reading.lanes
        edge = {"edgecolor": "black", "linewidth": 1.8, "zorder": 3} if x in first else {}
        style: dict[str, Any] = {"edgecolor": "white", "linewidth": 0.6, **edge}
        style["facecolor"] = _COLORS[who % len(_COLORS)]
        ax.add_patch(Rectangle((x.v, -x.request * GAP), width, 0.8, **style))
    for together in _arrivals(cells, reading.reader):
        x, width = together[(len(together) - 1) // 2]
        at = x.v + width / 2, -x.request * GAP + 0.38
        ax.text(*at, str(x.wait + 1), ha="center", va="center", fontsize=7, zorder=4)
    for b in range(requests):
        ax.text(
            -0.02 * vocab_size, -b * GAP + 0.4, f"request {b}", ha="right", va="center", fontsize=8
        )
        _name_readers(ax, [x for x in loads if x.request == b], reading.reader)
    bottom = -(requests - 1) * GAP - 0.75
    if reading.meeting:
        _draw_meeting(ax, reading, bottom)
        bottom -= 2.2
    ax.set_xlim(-0.16 * vocab_size, vocab_size + 0.3)
    ax.set_ylim(bottom, 1.05)
    ax.set_axis_off()
    values = {
        "reading": reading,
        "by_thread": by_thread,
        "used": len(reading.together) / (reading.sectors * reading.sector),
        "pack": max(width for _, width in cells),
        "spans": [
            _spans([x for x in loads if x.request == b], reading.reader) for b in range(requests)
        ],
    }
    data = pd.DataFrame(
        {
            "request": x.request,
            "v": x.v,
            "block": x.block,
            "warp": x.thread // reading.lanes,
            "lane": x.thread % reading.lanes,
            "wait": x.wait + 1,
        }
        for x in loads
    )
    label = f"fig-reads-{reading.kernel.replace('_', '-')}"
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


def _arrivals(cells: list[tuple[Load, int]], reader: Reader) -> list[list[tuple[Load, int]]]:
    """Neighbouring cells that one reader has at one of its waits: their number is written once."""

    def arrival(cell: tuple[Load, int]) -> tuple[object, ...]:
        load, _ = cell
        return load.request, reader(load), load.wait

    return [list(together) for _, together in itertools.groupby(cells, arrival)]


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


def _draw_meeting(ax: Axes, reading: Reading, top: float) -> None:
    """Boxes below the last request for where its sums go, with an arrow from each sender."""
    loads = [x for x in reading.loads if x.request == reading.requests - 1]
    first = min(x.block for x in loads)

    def sender(load: Load) -> str:
        return reading.reader(load) if reading.blocks == 1 else f"block {load.block}"

    for i, text in enumerate(reading.meeting):
        place = (i + 0.5) * reading.vocab_size / len(reading.meeting)
        box = {"boxstyle": "round,pad=0.4", "facecolor": "#eeeeee", "edgecolor": "#777777"}
        words = text.format(block=first + i)
        ax.text(place, top - 1.65, words, ha="center", va="center", fontsize=7.5, bbox=box)
        for _, begin, end in _spans(loads, sender):
            arrow = {"arrowstyle": "->", "color": "#555555", "shrinkA": 0, "shrinkB": 0}
            start = (begin + end) / 2
            ax.annotate(
                "", (place + (start - place) / 5, top - 1.2), (start, top), arrowprops=arrow
            )
