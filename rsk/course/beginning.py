"""How a notebook begins: its parameters checked, the device chosen, where it measures said."""

from __future__ import annotations

import itertools
import warnings
from typing import TYPE_CHECKING, Any

from rsk.base import machine
from rsk.course import publish
from rsk.course.parameters import check_ranges, literals, match_parameters
from rsk.measure.records import Provenance

if TYPE_CHECKING:
    import torch


class LessonError(RuntimeError):
    """A notebook cannot go on; the message says what is missing and what to do."""


_here: Provenance | None = None
"""Where this notebook measures: known once :func:`begin` has chosen the device."""


def reset() -> None:
    """Forget where the notebook measures, as a new kernel does."""
    global _here
    _here = None


def here() -> Provenance:
    """Where this notebook measures.

    Raises:
        LessonError: :func:`begin` was not called.
    """
    if _here is None:
        raise LessonError("call lesson.begin() first: it chooses the device that is measured on")
    return _here


def begin(device: str = "auto") -> torch.device:
    """Check the notebook's parameters, choose the device, and say where results come from.

    Args:
        device: as for :func:`rsk.base.machine.device`.

    Returns:
        The device to measure on.

    Raises:
        ValueError: another device, one that is not there, or a parameter that the notebook does
            not declare, of the wrong type or out of range (papermill itself warns of the first).
    """
    from rsk.measure.provenance import provenance

    shell = _shell()
    if shell is not None:
        check_injected_parameters([cell for cell in shell.get("In", []) if cell])
        check_ranges(shell)  # what papermill injected, or the reader changed
        # tqdm's, which loading a model imports: of widgets, which no export could show.
        warnings.filterwarnings("ignore", message="IProgress not found")
    global _here
    chosen = machine.device(device)
    _here = provenance(chosen)
    publish.banner("gpu" if chosen.type == "cuda" else "cpu", _here)
    return chosen


def check_injected_parameters(cells: list[str]) -> None:
    """Refuse parameters that papermill injected and that do not fit what the notebook declares.

    Args:
        cells: sources of the cells that were run so far, oldest first.

    Raises:
        ValueError: an unknown name, or a value of another type or out of range; says which.
    """
    for declaring, injected in itertools.pairwise(cells):
        if not injected.startswith("# Parameters\n"):  # as papermill heads its cell
            continue
        declared, given = literals(declaring), literals(injected)
        for name, value in given.items():
            default = declared.get(name)
            if isinstance(default, list) and not isinstance(value, list):
                raise ValueError(
                    f"parameter {name}: expected a list such as {default}, got {value!r}; "
                    f"papermill reads a list with -y '{name}: {default}'"
                )
        match_parameters(given, {"this notebook": declared})
        return


def _shell() -> dict[str, Any] | None:
    """The names of the notebook that runs, or ``None`` outside of one."""
    from IPython import get_ipython

    shell = get_ipython()
    return None if shell is None else shell.user_ns
