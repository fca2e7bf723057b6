"""A picture of what a check has found: what differs from its law, and by how much.

publish.figure(**rsk.figures.checks.deviations(verdict)._asdict())
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rsk.check.verdict import Finding, Verdict, cell_label
from rsk.figures.plotting import Picture, axes

if TYPE_CHECKING:
    import pandas as pd

ERRORS = 3
"""Half the height of a band, in standard errors."""

MOST_BARS = 24

_LAW, _WRONG, _RIGHT = "#b0b0b0", "#d55e00", "#0072b2"


def deviations(
    verdict: Verdict,
    aspect: str | None = None,
    *,
    kind: str | None = None,
    case: str | None = None,
    label: str = "fig-deviations",
) -> Picture:
    """How often each value came out, beside the probability that it should have.

    Args:
        verdict: of :func:`rsk.check.examine`.
        aspect: such as ``"recovered token at position 0"``; by default the one that gave the
            sampler away, or the joint distribution of one that is right.
        kind: the kind of request.
        case: the case.
        label: of the figure.

    Raises:
        KeyError: no such aspect, kind or case; the message lists what there is.
    """
    chosen = verdict.culprit if aspect is None and kind is None and case is None else None
    found = chosen or verdict.find(aspect or "joint distribution", kind, case)
    data = _table(found)
    data = data[data["expected"] + data["observed"] > 0].head(MOST_BARS).sort_index()
    at = range(len(data))
    error = ERRORS * data["standard error"]
    worst = ((data["observed"] - data["expected"]) / data["standard error"]).abs().max()
    certain = found.last.log_evidence >= verdict.needed
    with axes() as (fig, ax):
        ax.bar(at, data["expected"], color=_LAW, label="expected")
        ax.errorbar(
            at,
            data["observed"],
            yerr=error,
            fmt="X" if certain else "o",
            color=_WRONG if certain else _RIGHT,
            capsize=3,
            label="observed",
        )
        ax.set_xticks(list(at), data["value"], rotation=90 if len(data) > 10 else 0)
        ax.set_xlabel("tokens" if found.aspect != "accepted length" else "accepted draft tokens")
        ax.set_ylabel("share")
        ax.grid(visible=False, axis="x")
    values = {
        "found": found,
        "certain": certain,
        "worst": worst,
        "errors": ERRORS,
        "rows": list(data.head(8).itertuples(index=False, name=None)),
    }
    return Picture(fig, label, values, data, block="fig-deviations")


def _table(found: Finding) -> pd.DataFrame:
    """Expected and observed shares, the cells that deviate most first if there are many."""
    import pandas as pd

    total = max(found.last.total, 1)
    data = pd.DataFrame(
        {
            "value": [cell_label(label) for label in found.labels],
            "expected": found.law.tolist(),
            "observed": (found.counts / total).tolist(),
            "standard error": (found.law * (1 - found.law) / total).sqrt().clamp(min=0.5 / total),
        }
    )
    if len(data) <= MOST_BARS:
        return data
    deviation = (data["observed"] - data["expected"]).abs() / data["standard error"]
    return data.loc[deviation.sort_values(ascending=False, kind="stable").index]
