"""The executed notebooks as a report (HTML and PDF) and a site of HTML pages; the talk as PDF.

Everything comes from pip: pandoc reads the Markdown and writes HTML and Typst, Typst sets the PDF
and draws the formulas, pygments colours the code. The same notebooks give the same bytes.
The date of the run is the one that the notebook recorded, or ``$SOURCE_DATE_EPOCH``.

Code is shown on the site, and not in the report; code that only publishes is shown in neither. Tags
that hide: ``hide-cell``, ``hide-input``, ``hide-output``, and the parameters' own tags.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rsk.base import templates
from rsk.export.document import ExportError
from rsk.export.notebook import read
from rsk.export.pandoc import PandocError

if TYPE_CHECKING:
    from rsk.export.talk import Material

__all__ = ["ExportError", "export_report", "export_site", "export_talk", "replace"]

REPORT = "08_report.ipynb"


def export_report(
    source: Path,
    out_dir: Path | None = None,
    *,
    epoch: int | None = None,
    others: Mapping[str, str] | None = None,
) -> list[Path]:
    """Write ``report.html`` and ``report.pdf``.

    Args:
        source: an executed notebook, or a run's folder, whose ``notebooks/08_report.ipynb`` it is.
        out_dir: where to write; by default the run's folder, or the notebook's.
        epoch: the date to show, in seconds; by default that of the run.
        others: where the page is in other languages: language to address.

    Returns:
        The two files.

    Raises:
        ExportError: the notebook cannot be exported; older files are left as they were.
    """
    from rsk.export import html, navigation, pdf

    source = Path(source)
    notebook = source / "notebooks" / REPORT if source.is_dir() else source
    folder = Path(out_dir) if out_dir else source if source.is_dir() else source.parent
    try:
        document = read(notebook, all_code=False)
        document.epoch = document.epoch if epoch is None else epoch
        switch = navigation.languages(others or {}, document.phrases)
        files = {
            folder / "report.html": html.write(document, switch).encode(),
            folder / "report.pdf": pdf.write(document),
        }
    except PandocError as error:
        raise ExportError(f"{notebook.name}: pandoc: {error}") from error
    return replace(files)


def export_site(source: Path | Sequence[Path], out_dir: Path | None = None) -> list[Path]:
    """Write executed notebooks as HTML pages with links between them, and an ``index.html``.

    Args:
        source: executed notebooks in order, or a run's folder.
        out_dir: where to write; needed unless ``source`` is a run's folder (then its ``site``).

    Returns:
        The pages, the index first.

    Raises:
        ExportError: a notebook cannot be exported; older pages are left as they were.
        ValueError: no notebook, or no ``out_dir``.
    """
    from rsk.export import html, navigation

    if isinstance(source, Path):
        notebooks = sorted((source / "notebooks").glob("[0-9][0-9]_*.ipynb"))
        folder = out_dir or source / "site"
        reports = [source / "report.html", source / "report.pdf"]
    else:
        notebooks, reports = list(source), []
        if out_dir is None:
            raise ValueError("out_dir is needed: where should the pages go?")
        folder = out_dir
    if not notebooks:
        raise ValueError(f"no executed notebook in {source}")
    pages = {notebook.stem: f"{notebook.stem}.html" for notebook in notebooks}
    documents = []
    for notebook in notebooks:
        try:
            documents.append(read(notebook, all_code=True, pages=pages))
        except PandocError as error:
            raise ExportError(f"{notebook.name}: pandoc: {error}") from error
    phrases = templates.phrases()
    title = phrases["site_title"]
    titles = [document.plain_title for document in documents]
    files: dict[Path, bytes] = {}
    extra = [
        (
            phrases["report_as"].format(path.suffix[1:].upper()),
            Path(os.path.relpath(path, folder)).as_posix(),
        )
        for path in reports
        if path.is_file()
    ]
    files[folder / "index.html"] = navigation.index(documents, extra).encode()
    for at, document in enumerate(documents):
        neighbours = [("index", "index.html", title)]
        if at > 0:
            neighbours.insert(0, ("prev", pages[documents[at - 1].name], titles[at - 1]))
        if at + 1 < len(documents):
            neighbours.append(("next", pages[documents[at + 1].name], titles[at + 1]))
        page = html.write(document, navigation.links(neighbours, phrases))
        files[folder / pages[document.name]] = page.encode()
    return replace(files)


def export_talk(source: Path, material: Material, out_dir: Path) -> list[Path]:
    """Write ``slides.pdf`` and ``script.pdf``.

    Args:
        source: the file of the talk's words: see :mod:`rsk.export.talk`.
        material: the words with their values, and the figures and texts that they name.
        out_dir: where to write.

    Returns:
        The two files.

    Raises:
        ExportError: something is unknown, missing or too large for its slide; older files are left
            as they were.
    """
    from rsk.export import slides, talk

    try:
        read_talk = talk.read(source, material)
        pages, previews = slides.write_slides(read_talk)
        script = slides.write_script(read_talk, previews)
    except PandocError as error:
        raise ExportError(f"{source.name}: pandoc: {error}") from error
    return replace({out_dir / "slides.pdf": pages, out_dir / "script.pdf": script})


def replace(files: Mapping[Path, bytes]) -> list[Path]:
    """Write all files under other names first, then put them in place.

    Raises:
        ExportError: one cannot be written; names it.
    """
    staged: dict[Path, Path] = {}
    try:
        for path, content in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            staged[path] = path.with_name(f".{path.name}.{os.getpid()}")
            staged[path].write_bytes(content)
        for path, temporary in staged.items():
            temporary.replace(path)
    except OSError as error:  # a full disk; on Windows also a file that a viewer holds open
        raise ExportError(f"{error.filename2 or error.filename}: {error.strerror}") from error
    finally:
        for temporary in staged.values():
            temporary.unlink(missing_ok=True)
    return list(files)
