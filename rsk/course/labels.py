"""Labels of what a notebook publishes: each is used once, and stands for a name with a number."""

from __future__ import annotations

import re
from typing import NamedTuple

from rsk.base import templates
from rsk.base.templates import LANGUAGE

_LABEL = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
_REFERENCE = re.compile(r"(^|[.!?]\s+)?\[@([\w-]+)\]")
_WORDS = {"fig": "figure", "tab": "table", "lst": "listing", "sec": "section"}
"""What a label that is not published yet will be, by its first letters."""


class _Claim(NamedTuple):
    cell: str
    execution: int | None
    word: str
    number: int


_published: dict[str, _Claim] = {}


def claim(label: str, word: str, language: str = LANGUAGE) -> str:
    """Take a label, or refuse it. Running the same cell again is not a second use.

    Args:
        label: such as ``"fig-latency"``.
        word: ``"figure"``, ``"table"`` or ``"listing"``: each kind is counted by itself, as in the
            export.
        language: of the name.

    Returns:
        What it is called, such as "Figure 3".

    Raises:
        ValueError: it is no label, or taken.
    """
    if not isinstance(label, str) or not _LABEL.fullmatch(label):
        raise ValueError(
            f"a label is letters, digits, '-' and '_', such as 'fig-latency', not {label!r}"
        )
    cell, count = _running_cell()
    number = 1 + sum(claim.word == word for claim in _published.values())
    if label in _published:
        owner, last, _, number = _published[label]
        if owner != cell or last == count:
            raise ValueError(
                f"the label {label!r} is used already in this notebook; labels are unique "
                "(if you changed that cell, restart the kernel)"
            )
    _published[label] = _Claim(cell, count, word, number)
    return f"{templates.phrases(language)[word]} {number}"


def read_aloud(text: str, language: str = LANGUAGE) -> str:
    """A text in which ``[@fig-latency]`` reads "Figure 3", or "the figure below".

    For viewers of notebooks; the exports make links of the references.

    Args:
        text: Markdown.
        language: of the names.
    """
    words = templates.phrases(language)

    def name(match: re.Match[str]) -> str:
        before, label = match[1] or "", match[2]
        if label in _published:
            _, _, word, number = _published[label]
            return f"{before}{words[word]} {number}"
        ahead = words["below"][_WORDS.get(label.partition("-")[0], "section")]
        return before + (ahead if match[1] is None else ahead[0].upper() + ahead[1:])

    return _REFERENCE.sub(name, text)


def _running_cell() -> tuple[str, int | None]:
    from IPython import get_ipython

    shell = get_ipython()
    if shell is None:
        return "", None
    metadata = (shell.get_parent() if hasattr(shell, "get_parent") else {}).get("metadata") or {}
    history = shell.user_ns.get("In") or [""]
    return metadata.get("cellId") or history[-1], shell.execution_count


def reset() -> None:
    """Forget which labels were published, as a new kernel does."""
    _published.clear()
