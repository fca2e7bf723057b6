"""What a run is doing, as it does it, and how long each stage took."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

ALIVE_S = 2.0
"""A log gets a line about as often: enough to see that the run is alive."""


@dataclass(frozen=True)
class Stage:
    """One stage of a run: what it was and how long it took, in seconds."""

    name: str
    seconds: float


class Progress:
    """What is running now: a live line on a terminal, plain lines elsewhere."""

    def __init__(self, console: Console, stages: int) -> None:
        self.console = console
        self.stages = stages
        self.done: list[Stage] = []

    @contextmanager
    def stage(self, name: str) -> Iterator[Callable[[int, int], None]]:
        """Show a stage while a ``with`` block does it; yields what to call before each cell."""
        from rich.markup import escape
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        title = f"{len(self.done) + 1}/{self.stages} {name}"
        start = time.perf_counter()
        if self.console.is_terminal:
            columns = (
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(bar_width=20),
                TextColumn("{task.fields[cell]}"),
                TimeElapsedColumn(),
            )
            with Progress(*columns, console=self.console, transient=True) as progress:
                task = progress.add_task(escape(title), total=None, cell="")
                yield lambda cell, total: progress.update(
                    task, completed=cell - 1, total=total, cell=f"cell {cell}/{total}"
                )
        else:
            last = start
            self.say(title)

            def on_cell(cell: int, total: int) -> None:
                nonlocal last
                now = time.perf_counter()
                if now - last >= ALIVE_S:
                    last = now
                    self.say(f"{title}: cell {cell}/{total}, {now - start:.0f} s")

            yield on_cell
        self.done.append(Stage(name, time.perf_counter() - start))
        self.say(f"{title}: done in {self.done[-1].seconds:.1f} s")

    def say(self, line: str) -> None:
        """Print a line as it is."""
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)
