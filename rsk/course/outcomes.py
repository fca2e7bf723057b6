"""What came of the ideas that were tried on the kernels: each prediction beside its measurement."""

from __future__ import annotations

from collections.abc import Sequence

from rsk.course import publish
from rsk.measure import ideas, provenance
from rsk.measure.comparison import digits, plural
from rsk.measure.records import Point

SAME = 0.03
"""Times that differ by no more than this share are called the same."""


def outcome(unchanged_us: float, time_us: float | None, within: float = SAME) -> str:
    """What a change did to a time, in a cell of a table."""
    if time_us is None:
        return "failed"
    change = time_us / unchanged_us - 1
    return "same" if abs(change) <= within else f"{change:+.0%}".replace("-", "\u2212")


def outcomes(
    unchanged_us: Sequence[float], times_us: Sequence[float | None], within: float = SAME
) -> str:
    """What a change did over several points, in words: at most one sentence."""
    changes = [
        after / before - 1
        for before, after in zip(unchanged_us, times_us, strict=True)
        if after is not None
    ]
    helped = [-change for change in changes if change < -within]
    hurt = [change for change in changes if change > within]
    total = len(times_us)
    parts = []
    for word, group, kind in (("helped", helped, "less"), ("hurt", hurt, "more")):
        if group:
            least, most = f"{min(group):.0%}", f"{max(group):.0%}"
            by = most if least == most else f"{least} to {most}"
            parts.append(f"{word} at {len(group)} of {total} points, {by} {kind} time")
    if (same := len(changes) - len(helped) - len(hurt)) > 0:
        parts.append("no difference" + (f" at {same}" if parts else " at any point"))
    if (missing := total - len(changes)) > 0:
        parts.append(f"failed at {missing}" if changes else "failed at every point")
    return "; ".join(parts)


def show() -> None:
    """Publish the ideas that were tried on the kernels, each with its prediction and its outcome.

    Raises:
        ValueError: the recorded file is damaged; names the file.
    """
    import pandas as pd

    try:
        tried = ideas.load()
    except FileNotFoundError:
        publish.prose(
            "**Not recorded yet.** `data/kernels/ideas-*.json` is made on a GPU by "
            "`python -m rsk.measure.ideas --save FILE`; it is not there."
        )
        return
    noise = max(
        abs(again / first - 1)
        for first, again in zip(tried.unchanged_us, tried.again_us, strict=True)
    )
    within = max(SAME, noise)
    names = [idea.name[:1].upper() + idea.name[1:] for idea in tried.ideas]
    times = [idea.times_us for idea in tried.ideas]
    columns = [_name_of(point, tried.points) for point in tried.points]
    rows = [["Unchanged (µs)", *map(digits, tried.unchanged_us)]] + [
        [name, *(outcome(*pair, within) for pair in zip(tried.unchanged_us, row, strict=True))]
        for name, row in zip(names, times, strict=True)
    ]
    publish.banner("recorded", tried.provenance)
    publish.table(
        pd.DataFrame(rows, columns=["idea", *columns]),
        label="tab-ideas",
        caption="Each idea alone: how much more or less time `fused` takes on the device than it "
        f"does unchanged, at B × V. Same: no more than {within:.1%} away. Failed: it did not run "
        f"or gave wrong tokens.{_same_in_all(tried.points)}",
    )
    if tried.provenance["sources"] != provenance.sources("cuda"):
        publish.prose(
            "These times are of an earlier version of the kernels, so *unchanged* is not quite "
            "what is shown above: what an idea that helped has taught may be in it by now."
        )
    lines = [
        f"- **{name}.** Predicted: {idea.prediction} Measured: "
        f"{outcomes(tried.unchanged_us, idea.times_us, within)}."
        for name, idea in zip(names, tried.ideas, strict=True)
    ]
    publish.prose("\n".join(lines))
    publish.prose(
        "Of {{count}}, {{tally}}. The unchanged kernel was measured twice; its times differ by up "
        "to {{noise:.1%}}. A change of no more than {{within:.1%}} is called no difference.",
        count=plural(len(tried.ideas), "idea"),
        tally=_tally([outcomes(tried.unchanged_us, row, within) for row in times]),
        noise=noise,
        within=within,
    )


def _tally(said: Sequence[str]) -> str:
    """How many ideas helped somewhere, hurt somewhere and helped nowhere, and did neither."""
    count = {"helped": 0, "hurt": 0, "": 0}
    for words in said:
        count[next(kind for kind in count if kind in words)] += 1
    endings = {"helped": "helped somewhere", "hurt": "only hurt", "": "did neither"}
    parts = [f"{count[kind]} {ending}" for kind, ending in endings.items() if count[kind]]
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def _name_of(point: Point, points: Sequence[Point]) -> str:
    """A point by its size, and by what not all points share."""
    size = f"{point.batch_size:,} × {point.vocab_size:,}"
    others = [
        f"{'K=' if name == 'spec_len' else ''}{getattr(point, name)}"
        for name in ("spec_len", "dtype", "cache")
        if _varies(name, points)
    ]
    return ", ".join([size, *(other for other in others if other != "warm")])


def _same_in_all(points: Sequence[Point]) -> str:
    same = {name: getattr(points[0], name) for name in Point._fields if not _varies(name, points)}
    parts = [f"K = {same['spec_len']}"] if "spec_len" in same else []
    parts += [same["dtype"]] if "dtype" in same else []
    parts += [f"{same['cache']} cache" if "cache" in same else "warm cache where not cold"]
    return f" {', '.join(parts)}." if parts else ""


def _varies(name: str, points: Sequence[Point]) -> bool:
    return len({getattr(point, name) for point in points}) > 1
