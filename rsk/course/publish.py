'''The one way in which notebooks show results.

What is published here is readable in a plain notebook viewer and in JupyterLab, and
:mod:`rsk.export` carries it into the HTML and the PDF: numbered, captioned, cross-referenced and
readable by those who cannot see the pictures. A figure, a table, a paragraph whose numbers come
from the data, a function of the real source file, and where results are from::

    publish.figure(
        fig,                                               # matplotlib, pandas or seaborn
        label="fig-latency",
        caption="Median time of one call against batch size, $K = 4$, $V = 32000$.",
        alt="Three rising lines. The fused kernel is lowest at every batch size.",
        data=frame,
    )
    publish.figure(**benchmarks.speed_up(benchmark)._asdict())  # its words are in report/en/
    publish.table(frame, label="tab-latency", caption="Median time of one call.")
    publish.prose(
        """At $B = 64$ the fused kernel takes {{ fused | fixed(1) }} ms ([@fig-latency]).""",
        fused=fused,
    )
    publish.source("cuda/fused_cpu.cpp", "decide")         # a function or a `// region NAME`
    publish.banner("recorded", benchmark.provenance)       # gpu, driver, torch, date

Captions, prose and Markdown cells may hold formulas and references: ``[@fig-latency]`` becomes
"Figure 3", ``[@tab-latency]`` "Table 1", ``[@lst-...]`` "Listing 2", and ``[@sec-results]`` the
number of the section whose heading is "Results". A reference to nothing fails the export. In
Markdown cells, which nobody fills in, a reference is a link in words: ``[the loop](#lst-loop)``.
A figure is published as SVG (its text is drawn as outlines, so that no font is needed) together
with a PNG for viewers that show no SVG, and that is all if the SVG would be large.
'''

from __future__ import annotations

import html
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rsk.base import excerpt, templates
from rsk.course import frames, labels
from rsk.export.document import MIME, TOKEN_KINDS

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

SVG_LIMIT = 300_000
"""Largest SVG in bytes; a figure with more marks than that is published as PNG only."""


# --- what notebooks call ----------------------------------------------------------------------


def figure(
    fig: Figure,
    *,
    label: str,
    caption: str = "",
    alt: str = "",
    values: Mapping[str, object] | None = None,
    data: DataFrame | None = None,
    block: str = "",
    interactive: str = "",
    language: str = templates.LANGUAGE,
) -> None:
    """Publish a matplotlib figure (or axes, or seaborn grid), and close it.

    Args:
        fig: what was drawn.
        label: unique in the notebook, such as ``"fig-latency"``.
        caption: Markdown: what is shown and under which conditions.
        alt: plain text that says what a reader would see in the picture.
        values: instead of caption and alt text, the values for those, and for the title, in
            ``report/<language>/captions.md``; as in a :class:`rsk.figures.plotting.Picture`.
        data: the numbers behind the picture: a table below it in the HTML, a file attached to
            the PDF.
        block: of the words there, if not the one called like the label.
        interactive: a script of ``report/style`` that takes the picture's place on the pages, such
            as ``"rule"``; it is given the data.
        language: of the words.

    Raises:
        ValueError: no label or one that is taken, an empty caption or alt text, nothing drawn, or
            words that name another value (a TemplateError).
    """
    from rsk.figures import plotting

    fig = getattr(fig, "figure", fig)
    if not hasattr(fig, "savefig"):
        raise ValueError(f"figure {label!r}: expected a matplotlib figure, got {type(fig)}")
    if not fig.axes:
        raise ValueError(f"figure {label!r} is empty: it has no axes")
    if values is not None:
        title, caption, alt = templates.exhibit(block or label, values, language)
        plotting.translate(fig, language)
        if title:
            plotting.entitle(fig, title)
    caption, alt = _text(caption, "caption", label), _text(alt, "alt text", label)
    content: dict[str, Any] = {"kind": "figure", "caption": caption, "alt": alt}
    content["interactive"] = interactive
    if data is not None:
        content["data"] = frames.cells(data, None, language=language) | {"csv": frames.csv(data)}
    name = labels.claim(label, "figure", language)
    content["label"] = label

    import matplotlib.pyplot as plt

    vector, content["size"] = plotting.svg(fig)
    bundle: dict[str, Any] = {"image/png": plotting.png(fig)}
    if len(vector) <= SVG_LIMIT:
        bundle["image/svg+xml"] = vector
    plt.close(fig)
    heard = labels.read_aloud(caption, language)
    _display({**bundle, "text/plain": f"{name}. {heard}\n{alt}", MIME: content})
    _beside_the_image(name, heard, content.get("data"), templates.phrases(language)["data"])


def table(
    frame: DataFrame,
    *,
    label: str,
    caption: str = "",
    values: Mapping[str, object] | None = None,
    formats: Mapping[str, str | Callable[[Any], str]] | None = None,
    language: str = templates.LANGUAGE,
) -> None:
    """Publish a data frame as a table.

    Whole numbers get thousands separators, other numbers three significant digits, missing values
    a dash. A named index becomes the first columns.

    Args:
        frame: one row a line; column names are the headings.
        label: unique in the notebook, such as ``"tab-latency"``.
        caption: Markdown.
        values: instead of the caption, the values for it in ``captions.md``, as for :func:`figure`.
        formats: for some columns a format specification (``".1f"``, ``".0%"``) or a function from
            value to text.
        language: of the words; the frame's are in English.

    Raises:
        ValueError: no label or one that is taken, an empty caption, an empty frame, columns in
            several levels, or a format for a column that does not exist.
    """
    if values is not None:
        caption = templates.exhibit(label, values, language).caption
    caption = _text(caption, "caption", label)
    content = frames.cells(frame, formats, label, language) | {"kind": "table", "caption": caption}
    if not content["rows"]:
        raise ValueError(f"table {label!r} is empty: it has no rows")
    name = labels.claim(label, "table", language)
    content["label"] = label
    plain = "\n".join("\t".join(row) for row in [content["columns"], *content["rows"]])
    _display(
        {
            "text/html": frames.html_table(
                content, f"{name}. {labels.read_aloud(caption, language)}"
            ),
            "text/plain": plain,
            MIME: content,
        }
    )


def prose(text: str, /, **values: object) -> None:
    """Publish a notebook's own Markdown whose numbers come from data.

    Args:
        text: Markdown. ``{{ name }}`` is replaced by the value of that name, and
            ``{{ name | fixed(1) }}`` by what a filter of :mod:`rsk.base.numbers` makes of it.
        values: what to fill in.

    Raises:
        ValueError: a name without a value, a value without a name, or a value that is missing, NaN
            or infinite.
    """
    text = inspect.cleandoc(_text(text, "text", "prose"))
    markdown(templates.fill(text, values))


def undone(what: str, reason: object, language: str = templates.LANGUAGE) -> None:
    """Say that this chapter could not do a part of its work; ``rsk report`` then fails, naming it.

    Args:
        what: the work, such as the name of a kernel.
        reason: why not: an error, or a text.
        language: of the words.
    """
    lines = [line.strip() for line in str(reason).splitlines() if line.strip()]
    because = lines[0] if lines else type(reason).__name__
    if because.endswith(":") and len(lines) > 1:  # of a compiler, what it says first
        because += f" {lines[1]}"
    text = templates.render("course.md#undone", {"what": what, "because": because}, language)
    markdown(text, language, undone=f"{what}: {because}")


def passage(name: str, /, *, language: str = templates.LANGUAGE, **values: object) -> None:
    """Publish words that stand in ``report/<language>/``.

    Args:
        name: of the block, such as ``"course.md#predicted"``.
        language: of the words.
        values: what the block may name.

    Raises:
        TemplateError: there is no such block, or it names another value; says where.
    """
    markdown(templates.render(name, values, language), language)


def markdown(text: str, language: str = templates.LANGUAGE, **more: object) -> None:
    """Publish Markdown as it is, with ``more`` in the part that :mod:`rsk.export` reads."""
    content = {"kind": "prose", "text": text, "language": language, **more}
    heard = labels.read_aloud(text, language)
    _display({"text/markdown": heard, "text/plain": heard, MIME: content})


def banner(mode: str, machine: object = None, language: str = templates.LANGUAGE) -> None:
    """Say whether the results below were measured here or recorded elsewhere.

    Args:
        mode: ``"gpu"`` or ``"cpu"`` (measured here), or ``"recorded"``.
        machine: where: a :class:`rsk.measure.records.Provenance`, or a mapping with the same names:
            ``gpu`` and ``driver``, or ``cpu``; ``torch``; ``date``. When measured here, this
            machine is asked if nothing is given.
        language: of the words.

    Raises:
        ValueError: an unknown mode, "gpu" where there is none, or a machine not fully named.
    """
    if mode not in ("gpu", "cpu", "recorded"):
        raise ValueError(f"banner mode must be 'gpu', 'cpu' or 'recorded', not {mode!r}")
    if machine is None and mode != "recorded":
        machine = _this_machine(mode)
    read = machine.get if isinstance(machine, Mapping) else partial(getattr, machine)
    fact = {key: str(read(key, None) or "") for key in ("gpu", "cpu", "driver", "torch", "date")}
    on_gpu = mode == "gpu" or (mode == "recorded" and bool(fact["gpu"] or not fact["cpu"]))
    needed = ["gpu", "driver"] if on_gpu else ["cpu"]
    if missing := [key for key in (*needed, "torch", "date") if not fact[key]]:
        raise ValueError(f"banner {mode!r} names the machine; missing: {', '.join(missing)}")
    driver = f", driver {fact['driver']}" if on_gpu else ""
    where = f"{fact[needed[0]]}{driver}, PyTorch {fact['torch']}, {fact['date'][:10]}"
    text = templates.render(f"course.md#banner-{mode}", {"where": where}, language)
    opening, detail = re.fullmatch(r"\*\*(.+?)\*\*(.*)", text, re.DOTALL).groups()  # type: ignore[union-attr]
    _display(
        {
            "text/markdown": f"> {text}",
            "text/plain": f"{opening}{detail}",
            MIME: {"kind": "banner", "mode": mode, "opening": opening, "detail": detail},
        }
    )


def source(
    what: str | Path | Callable[..., object] | type,
    name: str | None = None,
    *,
    label: str | None = None,
    caption: str | None = None,
    language: str = templates.LANGUAGE,
) -> None:
    """Show a real source file of this project, or a part of it: read now, never a copy.

    Args:
        what: a path such as ``"cuda/specification.h"``, seen from the project's top folder, or a
            Python function or class.
        name: the part to show: a function or class (``"Class.method"`` in Python), or a region
            between the comments ``region NAME`` and ``endregion``. Default: the whole file.
        label: makes it a numbered listing that can be referred to, such as ``"lst-kernel"``.
        caption: Markdown; needed with a label.
        language: of the words around it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: there is no such part, or several; a label without a caption.
    """
    if not isinstance(what, str | Path):
        path = Path(inspect.getsourcefile(what) or "")
        name = what.__qualname__ if name is None else name
    else:
        path = excerpt.find(Path(what))
    text = path.read_text(encoding="utf-8")
    first, last = 1, len(text.splitlines())
    where = excerpt.shown_name(path)
    if name is not None:
        first, last = excerpt.part(text, name, path.suffix, where)
        where += templates.phrases(language)["lines"].format(first, last)
    lines = text.splitlines()[first - 1 : last]
    code = excerpt.dedented(excerpt.without_markers(lines))
    written_in = excerpt.language(path)
    content = {"kind": "source", "code": code, "language": written_in, "where": where}
    heading = f"`{where}`"
    if label is not None:
        content["caption"] = caption = _text(caption or "", "caption", label)
        name = labels.claim(label, "listing", language)
        content["label"] = label
        heading = f"**{name}.** {labels.read_aloud(caption, language)} {heading}"
    elif caption is not None:
        raise ValueError("source: a caption needs a label")
    fence = "`" * max(3, *(len(run) + 1 for run in re.findall(r"`+", code + " ` ")))
    shown = {"cuda": "cpp"}.get(written_in, written_in)
    _display(
        {
            "text/markdown": f"{heading}\n\n{fence}{shown}\n{code}\n{fence}",
            "text/plain": f"{where}\n\n{code}",
            MIME: content,
        }
    )


def tokens(
    runs: Iterable[tuple[str, str]], *, label: str, caption: str, language: str = templates.LANGUAGE
) -> None:
    """Publish generated text with each run marked by where its tokens came from.

    Args:
        runs: pairs of text and kind: ``"prompt"``, ``"accepted"`` (a draft that was kept),
            ``"recovered"`` (sampled after a rejection) or ``"bonus"`` (sampled after the last
            accepted draft).
        label: unique in the notebook, such as ``"lst-text"``.
        caption: Markdown.
        language: of the words around the text.

    Raises:
        ValueError: no text, an unknown kind, no label or one that is taken, an empty caption.
    """
    pairs = [(str(text), kind) for text, kind in runs]
    if not any(text for text, _ in pairs):
        raise ValueError(f"tokens {label!r}: there is no text")
    if unknown := {kind for _, kind in pairs} - set(TOKEN_KINDS):
        raise ValueError(
            f"tokens {label!r}: unknown kind {', '.join(map(repr, sorted(unknown)))}; "
            f"expected one of {', '.join(TOKEN_KINDS)}"
        )
    caption = _text(caption, "caption", label)
    name = labels.claim(label, "listing", language)
    words = templates.phrases(language)
    styles = {
        "accepted": "background:#cfe8d5;color:#000",
        "recovered": "background:#ffd9b8;color:#000;text-decoration:underline",
        "bonus": "background:#d4e1f9;color:#000;font-weight:bold",
    }
    spans = "".join(
        f'<span style="{styles.get(kind, "")}">{html.escape(text)}</span>' for text, kind in pairs
    )
    legend = (f'<span style="{style}">{words[kind]}</span>' for kind, style in styles.items())
    _display(
        {
            "text/html": f'<pre style="white-space:pre-wrap">{spans}</pre>'
            f"<p><b>{name}.</b> {html.escape(labels.read_aloud(caption, language))} "
            f"({' '.join(legend)})</p>",
            "text/plain": "".join(text for text, _ in pairs),
            MIME: {"kind": "tokens", "runs": pairs, "label": label, "caption": caption},
        }
    )


# --- how it is done ---------------------------------------------------------------------------


def _text(value: str, what: str, label: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{label!r} needs a {what} that is not empty, got {value!r}")
    return value.strip("\n") if what == "text" else " ".join(value.split())


def _display(bundle: dict[str, Any]) -> None:
    from IPython import get_ipython
    from IPython.display import publish_display_data

    if get_ipython() is None:
        print(bundle["text/plain"])
        return
    width, height = bundle[MIME].get("size", (0, 0))
    # The PNG has more pixels than its place on the screen, or it would look coarse.
    size = {"width": round(width * 4 / 3), "height": round(height * 4 / 3)}
    publish_display_data(bundle, {"image/png": size} if width else {})


def _beside_the_image(name: str, caption: str, data: dict[str, Any] | None, title: str) -> None:
    """What a notebook viewer needs beside the image; the exporter writes its own."""
    note = {MIME: {"kind": "viewer"}}
    _display({"text/markdown": f"**{name}.** {caption}", "text/plain": "", **note})
    if data is not None and data["rows"]:
        shown = frames.html_table(data, title.format(name))
        shown = f"<details><summary>{title.format(name)}</summary>{shown}</details>"
        _display({"text/html": shown, "text/plain": "", **note})


def _this_machine(mode: str) -> object:
    import torch

    from rsk.measure.provenance import provenance

    if mode == "gpu" and not torch.cuda.is_available():
        raise ValueError("banner 'gpu' says that results were measured here, without a GPU")
    return provenance("cuda" if mode == "gpu" else "cpu")
