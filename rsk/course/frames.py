"""Data frames as tables of text: what notebooks, exports and attached files show of them."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from rsk.base.numbers import DASH, number
from rsk.base.templates import LANGUAGE, labels

if TYPE_CHECKING:
    from pandas import DataFrame


def cells(
    frame: DataFrame,
    formats: Mapping[str, str | Callable[[Any], str]] | None,
    label: str = "",
    language: str = LANGUAGE,
) -> dict[str, Any]:
    """Columns, alignment ("right" for numbers) and rows of a frame, all as text in a language."""
    import pandas as pd
    from pandas.api.types import is_bool_dtype, is_numeric_dtype

    if not isinstance(frame, pd.DataFrame):
        raise ValueError(f"{label!r}: expected a pandas DataFrame, got {type(frame)}")
    if frame.columns.nlevels > 1:
        raise ValueError(f"{label!r}: the columns have several levels; join their names first")
    if not isinstance(frame.index, pd.RangeIndex) or frame.index.name is not None:
        frame = frame.reset_index(drop=frame.index.names == [None] and _is_plain(frame.index))
    formats = dict(formats or {})
    if unknown := [name for name in formats if name not in frame.columns]:
        known = ", ".join(map(str, frame.columns))
        raise ValueError(f"{label!r}: a format for {unknown[0]!r}, but the columns are {known}")

    def show(column: object, value: object) -> str:
        rule = formats.get(column)  # type: ignore[call-overload]
        if rule is None or (isinstance(rule, str) and number(value) == DASH):
            return number(value)
        return str(rule(value)) if callable(rule) else format(value, rule).replace("-", "−")

    translated = labels(language)
    columns = list(frame.columns)
    right = [is_numeric_dtype(frame[c]) and not is_bool_dtype(frame[c]) for c in columns]
    rows = [
        [translated(show(column, value)) for column, value in zip(columns, row, strict=True)]
        for row in frame.astype(object).itertuples(index=False, name=None)
    ]
    return {
        "columns": [translated(str(column)) for column in columns],
        "align": ["right" if number_column else "left" for number_column in right],
        "rows": rows,
    }


def _is_plain(index: Any) -> bool:
    """Whether an unnamed index only counts rows, as after selecting some of them."""
    return bool(index.dtype.kind == "i")


def csv(frame: DataFrame) -> str:
    """The numbers as they are, as a file."""
    return frame.to_csv(index=frame.index.names != [None], lineterminator="\n")


def html_table(content: Mapping[str, Any], caption: str) -> str:
    """A table for notebook viewers."""

    def row(cells: list[str], tag: str) -> str:
        return "".join(
            f'<{tag} style="text-align:{align}">{html.escape(cell)}</{tag}>'
            for cell, align in zip(cells, content["align"], strict=True)
        )

    body = "".join(f"<tr>{row(cells, 'td')}</tr>" for cells in content["rows"])
    return (
        f"<table><caption>{html.escape(caption)}</caption>"
        f"<thead><tr>{row(content['columns'], 'th')}</tr></thead><tbody>{body}</tbody></table>"
    )
