"""What came of the ideas that were tried on the kernels: each prediction beside its measurement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rsk.base.numbers import change, digits
from rsk.course import publish
from rsk.figures.tables import DataTable
from rsk.measure import ideas, provenance
from rsk.measure.records import Point

SAME = 0.03
"""Times that differ by no more than this share are called the same."""


@dataclass(frozen=True)
class IdeaOutcome:
    """What a change did to the times at several points."""

    name: str
    prediction: str
    cells: list[str]
    """For each point what it did: "same", "failed", or by how much the time changed."""
    helped: list[float]
    """Shares of the time that it saved, where it did."""
    hurt: list[float]
    """Shares that it added."""
    same: int
    """Points at which it made no difference."""
    failed: int
    """Points at which it did not run or gave wrong tokens."""

    @classmethod
    def of(
        cls, idea: ideas.Idea, unchanged_us: Sequence[float], within: float = SAME
    ) -> IdeaOutcome:
        """Compare an idea's times with those of the unchanged kernel.

        Args:
            idea: with a time or ``None`` for each point.
            unchanged_us: without it.
            within: up to which share times are called the same.
        """
        pairs = list(zip(unchanged_us, idea.times_us, strict=True))
        changes = [after / before - 1 for before, after in pairs if after is not None]
        helped = [-x for x in changes if x < -within]
        hurt = [x for x in changes if x > within]
        return cls(
            idea.name[:1].upper() + idea.name[1:],
            idea.prediction,
            [_cell(before, after, within) for before, after in pairs],
            helped,
            hurt,
            len(changes) - len(helped) - len(hurt),
            len(pairs) - len(changes),
        )


def _cell(before: float, after: float | None, within: float) -> str:
    if after is None:
        return "failed"
    share = abs(after / before - 1)
    # Near the limit a whole percent would not tell on which side of it a change is.
    return "same" if share <= within else change(before, after, decimals=int(share < 2 * within))


def show() -> None:
    """Publish the ideas that were tried on the kernels, each with its prediction and its outcome.

    Raises:
        FileNotFoundError: nothing was recorded.
        ValueError: the recorded file is damaged; names the file.
    """
    tried = ideas.load()
    publish.banner("recorded", tried.provenance)
    publish.table(**table(tried)._asdict())
    publish.passage(
        "course.md#ideas",
        ideas=outcomes(tried),
        noise=noise(tried),
        within=within(tried),
        other_sources=is_of_other_sources(tried),
    )


def table(tried: ideas.Ideas) -> DataTable:
    """What each idea did to the time at each point."""
    import pandas as pd

    columns = ["change", *(_name_of(point, tried.points) for point in tried.points)]
    rows = [["Unchanged (µs)", *map(digits, tried.unchanged_us)]]
    rows += [[one.name, *one.cells] for one in outcomes(tried)]
    fixed = {name: getattr(tried.points[0], name) for name in Point._fields}
    same = {name: value for name, value in fixed.items() if not _varies(name, tried.points)}
    frame = pd.DataFrame(rows, columns=columns)
    values = {
        "within": within(tried),
        "same": same,
        "fails": any(one.failed for one in outcomes(tried)),
        "label": tried.provenance.label,
        "other_sources": is_of_other_sources(tried),
    }
    return DataTable(frame, "tab-ideas", values)


def is_of_other_sources(tried: ideas.Ideas) -> bool:
    """Whether the kernels have changed since the ideas were tried."""
    return tried.provenance.sources != provenance.sources("cuda")


def noise(tried: ideas.Ideas) -> float:
    """By how much the unchanged kernel's time differs between its first and last measurement."""
    pairs = zip(tried.unchanged_us, tried.again_us, strict=True)
    return max(abs(again / first - 1) for first, again in pairs)


def within(tried: ideas.Ideas) -> float:
    """Up to which share times are called the same."""
    return max(SAME, noise(tried))


def outcomes(tried: ideas.Ideas) -> list[IdeaOutcome]:
    """What came of each."""
    return [IdeaOutcome.of(idea, tried.unchanged_us, within(tried)) for idea in tried.ideas]


def _name_of(point: Point, points: Sequence[Point]) -> str:
    """A point by its size, and by what not all points share."""
    others = {"spec_len": f"K={point.spec_len}", "dtype": point.dtype, "cache": point.cache}
    names = [name for field, name in others.items() if _varies(field, points)]
    size = f"{point.batch_size:,} × {point.vocab_size:,}"
    return ", ".join([size, *(name for name in names if name != "warm")])


def _varies(name: str, points: Sequence[Point]) -> bool:
    return len({getattr(point, name) for point in points}) > 1
