'''What the notebooks share: beginning, predicting, exercises, results handed on, the ladder.

A notebook in outline::

    # tagged "parameters": quick = True; device = "auto"; seed = 0
    from rsk import lesson, publish

    device = lesson.begin(device)             # refuses unknown parameters, shows the banner
    guess = lesson.predict("waits", 64, "waits")
    guess.compare(waits)                      # "You predicted 64 waits. Measured: 451 ..."
    lesson.save_result("02_baseline", found)  # a benchmark, or anything that JSON holds
    lesson.ladder_row("baseline", record)     # last cell: adds a row and shows the ladder

An exercise is three cells: a skeleton tagged ``exercise``, its check tagged ``exercise-check``,
and Markdown whose ``<details>`` holds the solution in a fence of Python::

    def waits(accepted):
        """Times that the host waits ..."""
        lesson.todo()  # your code takes the place of this line

    with lesson.exercise("waits"):
        assert waits(0) == 3

An unsolved exercise says so and lets the notebook go on; a wrong solution fails.
'''

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar

from rsk.base import folders, templates
from rsk.base.numbers import number
from rsk.course import publish
from rsk.course.parameters import check_ranges, literals, match_parameters
from rsk.course.running import run_dir
from rsk.measure.comparison import BASELINE
from rsk.measure.records import Benchmark, Provenance, Record, RecordError, check_schema, parse
from rsk.measure.series import Series
from rsk.sampler import registry

if TYPE_CHECKING:
    import torch
    from pandas import DataFrame


LADDER = "ladder"
ROOF = "memory roof"
LADDER_SCHEMA = "rsk-ladder/1"

T = TypeVar("T")

_here: Provenance | None = None
"""Where this notebook measures: known once :func:`begin` has chosen the device."""


class LessonError(RuntimeError):
    """A notebook cannot go on; the message says what is missing and what to do."""


class NotAttempted(Exception):
    """An exercise whose skeleton was left as it is."""


def reset() -> None:
    """Forget where the notebook measures, as a new kernel does."""
    global _here
    _here = None


# --- beginning --------------------------------------------------------------------------------


def begin(device: str = "auto") -> torch.device:
    """Check the notebook's parameters, choose the device, and say where results come from.

    Args:
        device: ``"auto"`` (a GPU if there is one), ``"cpu"`` or ``"cuda"``.

    Returns:
        The device to measure on.

    Raises:
        ValueError: another device, one that is not there, or a parameter that the notebook does
            not declare, of the wrong type or out of range (papermill itself warns of the first).
    """
    import torch

    from rsk.measure.benchmark import check_device
    from rsk.measure.provenance import provenance

    shell = _shell()
    if shell is not None:
        check_injected_parameters([cell for cell in shell.get("In", []) if cell])
        check_ranges(shell)  # what papermill injected, or the reader changed
        # tqdm's, which loading a model imports: of widgets, which no export could show.
        warnings.filterwarnings("ignore", message="IProgress not found")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    global _here
    chosen = check_device(device)
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


# --- predicting -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prediction:
    """A number that was written down before it was measured."""

    name: str
    value: float
    unit: str

    def compare(self, measured: float) -> None:
        """Show the prediction beside the measurement, and how far apart they are."""
        publish.passage("course.md#compared", guess=self, measured=measured)

    @property
    def heading(self) -> str:
        """What was predicted, as a sentence begins."""
        return self.name[:1].upper() + self.name[1:]

    def factor(self, measured: float) -> float | None:
        """How many times the larger is of the smaller; ``None`` if one is not positive."""
        if measured <= 0 or self.value <= 0:
            return None
        return max(measured / self.value, self.value / measured)


def predict(name: str, value: float, unit: str) -> Prediction:
    """Write down a number before measuring it.

    Args:
        name: what is predicted, such as ``"waits at B = 64"``.
        value: the reader's number; as committed, the author's guess.
        unit: of the value.

    Raises:
        ValueError: the value is not a number.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
        raise ValueError(f"prediction {name!r}: expected a number, got {value!r}")
    guess = Prediction(name, value, unit)
    publish.passage("course.md#predicted", guess=guess)
    return guess


# --- exercises --------------------------------------------------------------------------------


def todo() -> NoReturn:
    """Stand where the reader's code goes."""
    raise NotAttempted


@contextlib.contextmanager
def exercise(name: str) -> Iterator[None]:
    """Hold the check of an exercise: assertions on what the reader wrote.

    Prints whether it is solved. An untouched skeleton (:func:`todo`) is not an error, so that the
    notebook runs unattended; a wrong solution is.

    Args:
        name: of the exercise, for the message.

    Raises:
        AssertionError: the solution is wrong; says where.
    """
    try:
        yield
    except NotAttempted:
        print(templates.render("course.md#not-solved", {"name": name}))
    except AssertionError as error:
        error.add_note(f"Exercise {name!r}: not solved; this check does not hold yet.")
        raise
    else:
        print(templates.render("course.md#solved", {"name": name}))


# --- results handed on ------------------------------------------------------------------------


@dataclass(frozen=True)
class Result(Generic[T]):
    """What a notebook handed on, or the recorded data that stands in for it."""

    value: T
    recorded: bool
    """Whether it was recorded on another machine: show it under ``publish.banner("recorded")``."""
    path: Path


def results_dir() -> Path:
    """The folder of the results of this run."""
    return run_dir() / "results"


def save_result(name: str, value: Any) -> Path:
    """Write what later notebooks use to ``<run folder>/results/<name>.json``.

    Args:
        name: such as ``"06_benchmarks"``.
        value: a :class:`rsk.measure.records.Benchmark` or another dataclass, or what JSON holds.

    Raises:
        ValueError: JSON cannot hold the value.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    try:
        text = json.dumps(value, indent=1, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"result {name!r} cannot be written as JSON: {error}") from error
    path = results_dir() / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_text(text + "\n", encoding="utf-8")
    partial.replace(path)  # a reader sees the old file or the new one, never a part
    return path


def load_result(
    name: str, kind: type[T] | None = None, *, recorded: str | None = None
) -> Result[T] | Result[Any]:
    """Read what an earlier notebook of this run wrote, or else recorded data.

    Args:
        name: as given to :func:`save_result`.
        kind: a dataclass of :mod:`rsk.measure.records` to check the content against, for instance
            ``Benchmark``; otherwise what the JSON holds is returned.
        recorded: file or pattern under ``data/`` to use when there is no result, for instance
            ``"benchmarks/nvidia-h200-*.json"`` (of several files the last by name).

    Raises:
        LessonError: there is neither.
        RecordError: the content is not of that kind; names the file and the field.
    """
    path = results_dir() / f"{name}.json"
    is_recorded = not path.is_file()
    if is_recorded:
        found = sorted(folders.data_dir().glob(recorded)) if recorded else []
        if not found:
            instead = f", and no recorded data in data/{recorded}" if recorded else ""
            raise LessonError(
                f"no result {name!r} in {path.parent}{instead}: run the notebook that makes it "
                "first, or the whole course with `rsk report`"
            )
        # One that cannot be read does not keep an older one from being used; the run names it.
        for path in reversed(found[1:]):
            with contextlib.suppress(RecordError):
                return Result(_read(path, kind), is_recorded, path)
        path = found[0]
    return Result(_read(path, kind), is_recorded, path)


def _read(path: Path, kind: type[T] | None) -> Any:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        return value if kind is None else parse(kind, value)
    except (UnicodeDecodeError, json.JSONDecodeError, RecordError) as error:
        raise RecordError(f"{path}: {error}") from error


# --- the ladder -------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Step:
    """One row of the ladder: a time, the baseline's on the same inputs, and where both are from."""

    name: str
    record: Record
    baseline: Record | None
    machine: str
    recorded: bool

    def __post_init__(self) -> None:
        if self.baseline is not None and self.baseline.point != self.record.point:
            raise RecordError(
                f"baseline: expected the same point as {self.name}, {self.record.point}, "
                f"got {self.baseline.point}"
            )

    @property
    def where(self) -> str:
        """Where the time is from, and whether other processes disturbed it."""
        place = f"{'recorded' if self.recorded else 'here'}, {self.machine}"
        disturbed = self.record.device.busy or self.record.roof.busy
        return f"{place} (disturbed by other programs)" if disturbed else place


@dataclass(frozen=True, kw_only=True)
class Ladder:
    """The steps so far, in the order of the story."""

    SCHEMA = LADDER_SCHEMA
    schema: str
    steps: tuple[Step, ...]

    def __post_init__(self) -> None:
        check_schema(self.schema, LADDER_SCHEMA)

    def with_step(self, step: Step) -> Ladder:
        """The ladder with this step, which takes the place of an older one of its kind."""
        others = [s for s in self.steps if (s.name, s.recorded) != (step.name, step.recorded)]
        return Ladder(
            schema=self.schema, steps=tuple(sorted([*others, step], key=lambda s: _rank(s.name)))
        )

    def times_baseline(self, step: Step) -> float | None:
        """How many times faster than the baseline a step's result is there, by the same clock.

        ``None`` if that was not measured beside it.
        """
        if step.baseline is not None:
            return _times(step.baseline, step.record)
        for other in self.steps:  # in another notebook of this run, on the same inputs
            if (
                other.name == BASELINE
                and other.record.point == step.record.point
                and (other.machine, other.recorded) == (step.machine, step.recorded)
            ):
                return _times(other.record, step.record)
        return None

    def frame(self) -> DataFrame:
        """One row a step: time on the device with its clock, times the baseline, share of the roof.

        A step that was measured in several runs is shown as in the first of them.
        """
        import pandas as pd

        return pd.DataFrame(
            {
                "step": step.name,
                "B": step.record.batch_size,
                "K": step.record.spec_len,
                "V": step.record.vocab_size,
                "device (µs)": step.record.device.median_us,
                "clock": step.record.device.clock,
                "× baseline": self.times_baseline(step),
                "% of the memory roof": None
                if step.record.roof_share is None
                else 100 * step.record.roof_share,
                "measured": step.where,
            }
            for step in self.steps
        )


def _times(baseline: Record, record: Record) -> float | None:
    if baseline.call.clock != record.call.clock:  # the roof on a GPU is a share of a graph
        return None
    return baseline.call.median_us / record.call.median_us


def ladder_row(
    name: str,
    found: Record | Series,
    *,
    baseline: Record | Series | None = None,
    machine: Provenance | None = None,
) -> None:
    """Add a notebook's row to the ladder, and show the ladder so far.

    Args:
        name: of the step: an implementation of ``rsk.BACKENDS`` or ``rsk.KERNELS``, or ``ROOF``.
        found: its time; of several runs the first is kept.
        baseline: the baseline's time at the same point in the same run; not needed for its own.
        machine: where it was recorded; if not given, here and now, on the device that
            :func:`begin` chose.

    Raises:
        RecordError: the two were not measured at the same point, or the ladder's file is damaged.
        LessonError: measured here, and :func:`begin` was not called.
    """
    record = _first(found)
    where = _here if machine is None else machine
    if where is None:
        raise LessonError("call lesson.begin() first: it chooses the device that is measured on")
    step = Step(
        name=name,
        record=record,
        baseline=record if name == BASELINE else None if baseline is None else _first(baseline),
        machine=where.machine,
        recorded=machine is not None,
    )
    ladder = load_ladder().with_step(step)
    save_result(LADDER, ladder)
    show_ladder(ladder)


def _first(found: Record | Series) -> Record:
    return found if isinstance(found, Record) else found.records[0]


def load_ladder() -> Ladder:
    """The ladder of this run, which may have no steps yet.

    Raises:
        RecordError: its file is damaged; names the file and the field.
    """
    if not (results_dir() / f"{LADDER}.json").is_file():
        return Ladder(schema=LADDER_SCHEMA, steps=())
    return load_result(LADDER, Ladder).value


def show_ladder(ladder: Ladder, label: str = "tab-ladder") -> None:
    """Publish the ladder as a table."""
    publish.table(
        ladder.frame(),
        label=label,
        values={},
        formats=dict.fromkeys(["× baseline", "% of the memory roof"], number),
    )


def _rank(name: str) -> int:
    order = [ROOF, *registry.OURS]
    return order.index(name) if name in order else len(order)


def pick(found: Benchmark, name: str, batch_size: int) -> Series:
    """All runs of an implementation at a batch size, all else at the sweep's usual values.

    Raises:
        LessonError: it was not measured; says what was skipped or refused.
    """
    from rsk.measure.comparison import usual_line

    by_name: Mapping[str, Series] = usual_line(found).get(batch_size, {})
    if name in by_name:
        return by_name[name]
    reasons = "; ".join((*found.refused, *found.skipped)) or "it was not asked for"
    raise LessonError(f"there is no time of {name} at B={batch_size}: {reasons}")
