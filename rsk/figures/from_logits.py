"""The pictures of the chapter on logits: the softmax's cost, thresholds found, ranks that talk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from rsk.base.numbers import byte_size, duration
from rsk.figures import plotting
from rsk.figures.plotting import WIDTH, Picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from rsk.measure.records import Spread

_BLOCKS = "#56b4e9", "#e69f00"
_REST, _KEPT, _DROPPED, _LINE = "#cfcfcf", "#0072b2", "#d55e00", "#1a1a1a"


class Narrowing(NamedTuple):
    """One pass over a row for a threshold."""

    low: float
    high: float
    pivots: Sequence[float]
    reached: Sequence[bool]
    """For each pivot whether what is at least as large reaches the target."""


def cost_of_softmax(times: Mapping[str, Spread], conditions: str) -> Picture:
    """Bars of what a softmax takes and what the samplers take.

    Args:
        times: by name, in the order of the bars from the top.
        conditions: of all.
    """
    import pandas as pd

    names, us = list(times), [time.median_us for time in times.values()]
    with plotting.axes(2.4) as (fig, ax):
        at = range(len(names))
        errors = [
            [t.median_us - t.q25_us for t in times.values()],
            [t.q75_us - t.median_us for t in times.values()],
        ]
        colors = [_REST, *[_KEPT] * (len(names) - 1)]
        ax.barh(at, us, xerr=errors, color=colors, capsize=3)
        ax.set_yticks(list(at), names)
        ax.invert_yaxis()
        ax.set_xscale("log")
        ax.xaxis.set_major_formatter(plotting.round_label(duration))
        ax.set_xlabel("time of one call")
        ax.grid(visible=False, axis="y")
    values = {"times": {name: t.median_us for name, t in times.items()}, "conditions": conditions}
    data = pd.DataFrame({"what": names, "time (µs)": us})
    return Picture(fig, "fig-softmax-cost", values, data)


def bound(
    logits: Sequence[float],
    readers: Sequence[tuple[int, int]],
    maxima: Mapping[tuple[int, int], float],
    least: float,
    k: int,
) -> Picture:
    """A row, the largest logit of each thread, and the bound for top-k that these give."""
    import pandas as pd

    above = [x >= least for x in logits]
    with plotting.axes(3.0) as (fig, ax):
        for block in sorted({block for block, _ in readers}):
            mine = [v for v, reader in enumerate(readers) if reader[0] == block]
            ax.axvspan(mine[0] - 0.5, mine[-1] + 0.5, color=_BLOCKS[block % 2], alpha=0.13, lw=0)
            ax.text((mine[0] + mine[-1]) / 2, max(logits) + 0.9, f"block {block}", ha="center")
            largest = [v for v in mine if logits[v] == maxima[readers[v]]]
            ax.plot(largest, [logits[v] for v in largest], linestyle="", marker="o", markersize=8,
                    markerfacecolor="none", color=_LINE,
                    label="the largest of a thread" if block == 0 else None)  # fmt: skip
        for kept, color, name in ((False, _REST, "below"), (True, _KEPT, "listed")):
            places = [v for v, is_above in enumerate(above) if is_above == kept]
            ax.plot(places, [logits[v] for v in places], linestyle="", marker="o", markersize=4,
                    color=color, label=name)  # fmt: skip
        ax.axhline(least, color=_LINE, linestyle="--", linewidth=1, label="the bound")
        ax.set_ylim(top=max(logits) + 1.9)
        ax.set_xlabel("token v")
        ax.set_ylabel("logit")
        ax.grid(visible=False)
    values = {
        "k": k,
        "size": len(logits),
        "threads": len(maxima),
        "bound": least,
        "listed": sum(above),
    }
    data = pd.DataFrame(
        {
            "v": range(len(logits)),
            "logit": logits,
            "block": [block for block, _ in readers],
            "thread": [thread for _, thread in readers],
            "listed": above,
        }
    )
    return Picture(fig, "fig-bound", values, data)


def sorted_list(
    listed: Sequence[float], weights: Sequence[int], top_k: float, top_p: float, share: float
) -> Picture:
    """The list that the leader sorts: what top-k keeps of it, and what top-p keeps of that.

    Args:
        listed: logits, the largest first.
        weights: theirs, in fixed point.
        top_k, top_p: the thresholds.
        share: of top-p.
    """
    import pandas as pd

    fate = [
        "kept" if x >= top_p else "dropped by top-p" if x >= top_k else "dropped by top-k"
        for x in listed
    ]
    total = sum(w for w, x in zip(weights, listed, strict=True) if x >= top_k)
    running = [sum(weights[: i + 1]) / total for i in range(len(listed))]
    reached = list(zip(running, listed, strict=True))
    colors = {"kept": _KEPT, "dropped by top-p": _DROPPED, "dropped by top-k": _REST}
    with plotting.axes(2.8) as (fig, ax):
        for name, color in colors.items():
            places = [i for i, one in enumerate(fate) if one == name]
            heights = [weights[i] / total for i in places]
            ax.bar(places, heights, bottom=[running[i] - weights[i] / total for i in places],
                   color=color, label=name)  # fmt: skip
        ax.axhline(share, color=_LINE, linestyle="--", linewidth=1, label="share to reach")
        ax.set_xticks(range(len(listed)), [f"{x:.2f}" for x in listed], rotation=60, fontsize=8)
        ax.set_xlabel("logit, sorted")
        ax.set_ylabel("running share of top-k")
        ax.grid(visible=False, axis="x")
    values = {
        "listed": len(listed),
        "by_top_k": sum(x >= top_k for x in listed),
        "by_top_p": sum(x >= top_p for x in listed),
        "share": share,
        "before": max((r for r, x in reached if x > top_p), default=0.0),
        "reached": max(r for r, x in reached if x >= top_p),
    }
    data = pd.DataFrame({"logit": listed, "running share": running, "fate": fate})
    return Picture(fig, "fig-list", values, data)


def narrowing(logits: Sequence[float], passes: Sequence[Narrowing], threshold: float) -> Picture:
    """The interval that holds a threshold, pass by pass, above the logits themselves."""
    import pandas as pd

    def inside(one: Narrowing) -> int:
        return sum(one.low <= x < one.high for x in logits)

    after = [(p.low, p.high) for p in passes[1:]]
    left = [*map(inside, passes)]
    with plotting.axes(1.5 + 0.4 * len(passes)) as (fig, ax):
        finite = [x for x in logits if abs(x) < float("inf")]
        for i, one in enumerate(passes):
            low = max(one.low, min(finite))
            ax.plot([low, one.high], [-i, -i], linewidth=9, color=_BLOCKS[0], solid_capstyle="butt")
            for pivot, reached in zip(one.pivots, one.reached, strict=True):
                if pivot >= min(finite):
                    ax.plot(pivot, -i, marker="|", markersize=15, markeredgewidth=2.5,
                            color=_DROPPED if reached else _LINE)  # fmt: skip
            ax.text(max(finite) + 0.4, -i, str(left[i]), va="center", fontsize=9)
        ax.plot(finite, [-len(passes)] * len(finite), linestyle="", marker="|", color="#777777",
                markersize=9, markeredgewidth=0.5)  # fmt: skip
        ax.axvline(threshold, color=_KEPT, linewidth=1, linestyle="--")
        ax.set_yticks(
            range(0, -len(passes) - 1, -1),
            [*(f"pass {i + 1}" for i in range(len(passes))), "the logits"],
        )
        ax.set_xlabel("logit")
        ax.grid(visible=False)
    values = {"size": len(logits), "passes": len(passes), "left": left, "threshold": threshold}
    data = pd.DataFrame(
        {
            "pass": range(1, len(passes) + 1),
            "low": [one.low for one in passes],
            "high": [one.high for one in passes],
            "logits inside": left,
            "next low": [*(low for low, _ in after), None],
            "next high": [*(high for _, high in after), None],
        }
    )
    return Picture(fig, "fig-narrowing", values, data)


def messages(
    columns: Sequence[tuple[int, int]], sent: Sequence[tuple[str, int]], rows_bytes: int
) -> Picture:
    """Ranks with their columns of the logits, and what crosses the link in one call.

    Args:
        columns: first and end of each rank's.
        sent: name of the collective and bytes that a rank hands to it, in order.
        rows_bytes: that a rank would send if all were to have all rows.
    """
    import pandas as pd
    from matplotlib.figure import Figure

    fig = Figure(figsize=(WIDTH, 1.1 + 0.62 * len(sent)))
    ax = fig.add_subplot()
    last = len(columns) - 1
    bottom = -0.4 - 0.62 * len(sent)
    for rank, (first, end) in enumerate(columns):
        _box(ax, rank, f"rank {rank}\ntokens {first} to {end - 1}")
        ax.plot([rank, rank], [-0.05, bottom], color="#777777", linewidth=1)
    for i, (name, size) in enumerate(sent):
        y = -0.45 - 0.62 * i
        arrow = {"arrowstyle": "<->", "color": _KEPT, "linewidth": 1.6}
        ax.annotate("", (last, y), (0, y), arrowprops=arrow)
        text = f"{i + 1}. {name}: {byte_size(size)} a rank"
        ax.text(last / 2, y + 0.06, text, ha="center", va="bottom", fontsize=9)
    ax.set_xlim(-0.35, last + 0.35)
    ax.set_ylim(bottom - 0.1, 0.65)
    ax.set_axis_off()
    total = sum(size for _, size in sent)
    values = {
        "ranks": len(columns),
        "sent": [{"name": name, "bytes": size} for name, size in sent],
        "total": total,
        "rows": rows_bytes,
    }
    data = pd.DataFrame(
        {
            "what": [*(name for name, _ in sent), "the rows, not sent"],
            "bytes a rank": [*(size for _, size in sent), rows_bytes],
        }
    )
    return Picture(fig, "fig-messages", values, data)


def _box(ax: Axes, x: float, text: str) -> None:
    box: dict[str, Any] = {"boxstyle": "round,pad=0.5", "facecolor": "#eeeeee", "edgecolor": "#777"}
    ax.text(x, 0.3, text, ha="center", va="center", fontsize=9, bbox=box)
