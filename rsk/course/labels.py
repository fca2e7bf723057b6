"""Labels of what a notebook publishes: each is used once."""

from __future__ import annotations

import re

_LABEL = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
_published: dict[str, tuple[str, int | None]] = {}


def claim(label: str) -> None:
    """Take a label, or refuse it. Running the same cell again is not a second use.

    Raises:
        ValueError: it is no label, or taken.
    """
    if not isinstance(label, str) or not _LABEL.fullmatch(label):
        raise ValueError(
            f"a label is letters, digits, '-' and '_', such as 'fig-latency', not {label!r}"
        )
    cell, count = _running_cell()
    if label in _published:
        owner, last = _published[label]
        if owner != cell or last == count:
            raise ValueError(
                f"the label {label!r} is used already in this notebook; labels are unique "
                "(if you changed that cell, restart the kernel)"
            )
    _published[label] = (cell, count)


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
