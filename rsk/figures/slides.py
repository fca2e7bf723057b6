"""The talk's own drawings: what speculation does with time, and what of its input a request reads.

The other figures of the talk are the report's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rsk.decode.study import Study
from rsk.figures.plotting import WIDTH, Picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_DRAFT, _TARGET, _READ, _COIN, _UNREAD = "#56b4e9", "#cfcfcf", "#e69f00", "#1a1a1a", "#eeeeee"


def passes(study: Study) -> Picture:
    """Plain decoding and one speculative step, to scale: how long each pass of a model takes."""
    import pandas as pd

    race = next(r for r in study.speculative if r.spec_len == study.usual.spec_len)
    k, cost, verify = race.spec_len, study.cost, study.verify_cost(race)
    end = k * cost + verify
    plain = int(end) + 1
    fig, ax = _canvas(1.95)
    rows: list[dict[str, object]] = []

    def box(row: float, start: float, width: float, text: str, color: str, model: str) -> None:
        from matplotlib.patches import Rectangle

        style: dict[str, Any] = {"facecolor": color, "edgecolor": "white", "linewidth": 2}
        ax.add_patch(Rectangle((start, row), width, 0.62, **style))
        ax.text(start + width / 2, row + 0.3, text, ha="center", va="center", fontsize=10)
        rows.append({"model": model, "starts": start, "takes": width})

    for at in range(plain):
        box(1, at, 1, "target: 1 token", _TARGET, "target, alone")
    for at in range(k):
        box(0, at * cost, cost, str(at + 1), _DRAFT, "draft")
    box(0, k * cost, verify, f"target: checks {k}", _TARGET, "target, checking")
    ax.text(0, 1.72, "plain decoding", fontsize=11, fontweight="bold")
    ax.text(0, 0.72, f"speculative: the draft guesses {k}, then", fontsize=11, fontweight="bold")
    ax.text(end + 0.04, 0.3, f"{study.usual.tokens_per_pass:.2f} tokens", va="center",
            fontsize=11, fontweight="bold")  # fmt: skip
    ax.annotate("", (plain, -0.25), (0, -0.25), arrowprops={"arrowstyle": "->", "color": "#555555"})
    ax.text(plain, -0.32, "time", ha="right", va="top", fontsize=10)
    ax.set_xlim(-0.02, max(plain, end + 0.75) + 0.02)
    ax.set_ylim(-0.6, 1.95)
    values = {"cost": cost, "verify": verify, "k": k, "plain": plain, "end": end, "study": study}
    return Picture(fig, "fig-passes", values, pd.DataFrame(rows))


def one_request(spec_len: int, accepted: int) -> Picture:
    """Which of its rows a request reads that stops at its first rejection.

    Args:
        spec_len: K.
        accepted: draft tokens before the rejection, fewer than K.

    Raises:
        ValueError: ``accepted`` is not.
    """
    import pandas as pd
    from matplotlib.patches import Rectangle

    if not 0 <= accepted < spec_len:
        raise ValueError(f"accepted: expected 0 to {spec_len - 1} tokens, got {accepted}")
    fig, ax = _canvas(2.35)
    rows = []
    for column, (name, count) in enumerate((("draft's q", spec_len), ("target's p", spec_len + 1))):
        left = column * 1.12
        ax.text(left + 0.5, 0.78, name, ha="center", fontsize=11, fontweight="bold")
        for k in range(count):
            in_full, coin = k == accepted, k <= accepted
            color = _READ if in_full else _UNREAD
            ax.add_patch(Rectangle((left, -k), 1, 0.62, facecolor=color, edgecolor="#999999"))
            if coin:  # somewhere in the row: where the guessed token stands
                at = left + 0.15 + 0.6 * ((k * 0.37) % 1)
                ax.add_patch(Rectangle((at, -k), 0.018, 0.62, facecolor=_COIN))
            words = "read in full" if in_full else "one number" if coin else "never looked at"
            ax.text(left + 0.98, -k + 0.28, words, ha="right", va="center", fontsize=9.5)
            rows.append({"row": name, "position": k + 1, "read": words})
    for k in range(spec_len + 1):
        name = f"guess {k + 1}" if k < spec_len else "bonus"
        ax.text(-0.03, -k + 0.28, name, ha="right", va="center", fontsize=10)
    ax.set_xlim(-0.3, 2.14)
    ax.set_ylim(-spec_len - 0.1, 1.25)
    values = {"accepted": accepted, "spec_len": spec_len}
    return Picture(fig, "fig-request", values, pd.DataFrame(rows))


def _canvas(height: float) -> tuple[Any, Axes]:
    from matplotlib.figure import Figure

    fig = Figure(figsize=(WIDTH, height))
    ax = fig.add_axes((0, 0, 1, 1))
    ax.set_axis_off()
    return fig, ax
