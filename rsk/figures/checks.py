"""Pictures of what a check has found: what differs, and when it became certain.

publish.figure(**rsk.figures.checks.deviations(verdict)._asdict())
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from rsk.check.verdict import Finding, Verdict, cell_label
from rsk.figures.plotting import Picture, axes

if TYPE_CHECKING:
    import pandas as pd

ERRORS = 3
"""Half the height of a band, in standard errors."""

MOST_BARS = 24

_LAW, _SEEN, _NOISE = "#b0b0b0", "#d55e00", "#56b4e9"
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#1a1a1a")
_MARKERS = "oXsD^v"


def deviations(
    verdict: Verdict,
    part: str | None = None,
    *,
    kind: str | None = None,
    case: str | None = None,
    label: str = "fig-deviations",
) -> Picture:
    """How often each value came out, beside the probability that it should have.

    Args:
        verdict: of :func:`rsk.check.examine`.
        part: such as ``"recovered token at position 0"``; by default the part that gave the sampler
            away, or the joint distribution of one that is right.
        kind: the kind of request.
        case: the case.
        label: of the figure.

    Raises:
        KeyError: no such part, kind or case; the message lists what there is.
    """
    chosen = verdict.culprit if part is None and kind is None and case is None else None
    found = chosen or verdict.find(part or "joint distribution", kind, case)
    data = _table(found)
    data = data[data["expected"] + data["observed"] > 0].head(MOST_BARS).sort_index()
    total = found.last.total
    at = range(len(data))
    error = ERRORS * data["standard error"]
    worst = ((data["observed"] - data["expected"]) / data["standard error"]).abs().max()
    certain = found.last.log_evidence >= verdict.needed
    title = (
        f"The {found.part} "
        + ("does not follow its law" if certain else "follows its law")
        + f": off by up to {worst:.1f} standard errors"
    )
    with axes(title) as (fig, ax):
        ax.bar(at, data["expected"], color=_LAW, label="expected")
        ax.errorbar(
            at,
            data["observed"],
            yerr=error,
            fmt="X" if certain else "o",
            color=_SEEN if certain else _COLORS[0],
            capsize=3,
            label="observed",
        )
        ax.set_xticks(list(at), data["value"], rotation=90 if len(data) > 10 else 0)
        ax.set_xlabel("tokens" if found.part != "accepted length" else "accepted draft tokens")
        ax.set_ylabel("share")
        ax.grid(visible=False, axis="x")
    caption = (
        f"The {found.part} of {total:,.0f} requests ({found.case}, {found.kind}), beside its law. "
        f"Error bars: {ERRORS} standard errors. Total variation distance "
        f"{found.last.distance:.4f}, noise floor {found.last.noise_floor:.4f}."
    )
    rows = data.head(8).itertuples(index=False)
    values = "; ".join(f"{row[0]}: expected {row[1]:.3f}, observed {row[2]:.3f}" for row in rows)
    alt = f"Bar chart of expected shares with marks for the observed ones. {values}."
    return Picture(fig, label, caption, alt, data)


def convergence(
    verdicts: Mapping[str, Verdict],
    part: str = "joint distribution",
    *,
    kind: str | None = None,
    case: str | None = None,
    label: str = "fig-convergence",
) -> Picture:
    """The distance between output and law against the number of requests, for several samplers.

    A correct sampler's distance falls with the noise floor; a wrong one's levels off. Call
    :func:`rsk.check.examine` with ``at_least``, so that it does not stop before.

    Args:
        verdicts: the samplers' names and verdicts.
        part: of the output.
        kind: the kind of request; by default the first that has this part.
        case: the case.
        label: of the figure.

    Raises:
        KeyError: no such part, kind or case; the message lists what there is.
        ValueError: no verdicts.
    """
    import pandas as pd

    if not verdicts:
        raise ValueError("verdicts: expected at least one")
    found = {name: verdict.find(part, kind, case) for name, verdict in verdicts.items()}
    wrong = [name for name, verdict in verdicts.items() if not verdict.lossless]
    right = [name for name in verdicts if name not in wrong]
    title = "; ".join(
        text
        for text in (
            f"{' and '.join(right)}: as close to the law as chance allows" if right else "",
            f"{' and '.join(wrong)}: a distance remains, however many requests" if wrong else "",
        )
        if text
    )
    longest = max(found.values(), key=lambda f: f.last.total)
    with axes(title) as (fig, ax):
        totals = [look.total for look in longest.looks]
        floor = [look.noise_floor for look in longest.looks]
        ax.plot(totals, floor, color=_LAW, linewidth=4, label="noise floor")
        for i, (name, one) in enumerate(found.items()):
            ax.plot(
                [look.total for look in one.looks],
                [look.distance for look in one.looks],
                color=_COLORS[i % len(_COLORS)],
                marker=_MARKERS[i % len(_MARKERS)],
                label=name,
            )
        ax.set(xscale="log", yscale="log")
        ax.set_xlabel("requests")
        ax.set_ylabel("total variation distance from the law")
    data = pd.DataFrame(
        [
            {
                "sampler": name,
                "requests": int(look.total),
                "distance": look.distance,
                "noise floor": look.noise_floor,
            }
            for name, one in found.items()
            for look in one.looks
        ]
    )
    caption = (
        f"Total variation distance of the {longest.part} from its law ({longest.case}, "
        f"{longest.kind}) against the number of requests. The noise floor is what is left of a "
        "sampler that is right."
    )
    ends = "; ".join(
        f"{name} ends at {one.last.distance:.4f} after {one.last.total:,.0f} requests, where the "
        f"noise floor is {one.last.noise_floor:.4f}"
        for name, one in found.items()
    )
    return Picture(fig, label, caption, f"Logarithmic line chart. {ends}.", data)


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
