"""The copies of the report and the talk that ``report/`` holds, made from recorded data alone.

They are for who reads without running anything. Nothing in them depends on the machine that makes
them: the report's notebook runs on the CPU in an empty folder, so that it falls back on what was
recorded, and the date shown is that of the newest record.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from rsk import export
from rsk.base import folders, templates
from rsk.base.templates import LANGUAGE
from rsk.course import running
from rsk.figures import benchmarks, plotting
from rsk.report import measurements, talk
from rsk.report.measurements import Measurements
from rsk.report.runs import SHOWN
from rsk.sampler import build

if TYPE_CHECKING:
    from rich.console import Console

PICTURE = "speed-up.svg"


def rebuild(
    folder: Path | None = None, console: Console | None = None, language: str = LANGUAGE
) -> list[Path]:
    """Make the copies.

    Args:
        folder: where to; by default ``report/`` of the checkout, or the language's folder there if
            it is not the first one.
        console: where to say what is made.
        language: of the report and the talk.

    Raises:
        ValueError: there is no checkout, and no folder is given.
        BuildError: no C++ compiler: the report compares the kernels in the emulator.
        ExportError, CourseError, RecordError: something cannot be made; older copies stay.
    """
    elsewhere = {}
    if folder is None:
        if folders.checkout() is None:
            raise ValueError("--publish writes to report/ of a checkout; else name an --output")
        elsewhere = others(language)
        folder = home(language)
    found = measurements.gather()  # first: without records there is nothing to publish
    build.load("cpu")
    build.load("emulator")
    with tempfile.TemporaryDirectory(prefix="rsk-published-") as name:
        run = Path(name)
        source = folders.notebooks_dir() / running.REPORT
        running.run_notebook(source, run, {"device": "cpu", "language": language})
        made = [
            *export.export_report(run, epoch=found.epoch, others=elsewhere),
            *talk.write(run, language),
        ]
        copies = {folder / path.name: path.read_bytes() for path in made}
    copies[folder / PICTURE] = picture(found, language)
    written = export.replace(copies)
    if console is not None:
        for path in written:
            size = f"{path.stat().st_size / 1e6:.2f} MB"
            console.print(f"{path}: {size}", markup=False, highlight=False, soft_wrap=True)
    return written


def home(language: str) -> Path:
    """The folder of a language's copies: ``report/`` for the first one, else its own there."""
    own = templates.folder(language)
    return own.parent if language == LANGUAGE else own


def others(language: str) -> dict[str, str]:
    """Where the report is in the other languages, seen from its place in this one."""
    up = "" if language == LANGUAGE else "../"
    return {
        other: f"{up}{'' if other == LANGUAGE else other + '/'}report.html"
        for other in templates.languages()
        if other != language
    }


def picture(found: Measurements, language: str = LANGUAGE) -> bytes:
    """The picture of the README, as SVG: the speed-ups over PyTorch on a GPU."""
    drawn = benchmarks.speed_up(benchmarks.only(found.gpu.value, SHOWN))
    plotting.translate(drawn.fig, language)
    plotting.entitle(drawn.fig, plotting.exhibit(drawn, language).title)
    (ax,) = drawn.fig.axes
    ax.set_xlabel(f"{ax.get_xlabel()}\n{templates.labels(language)(found.gpu.label)}")
    return plotting.svg(drawn.fig)[0].encode()
