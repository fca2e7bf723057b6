"""Reading an executed notebook: what each cell and output is, and what must not be there."""

from __future__ import annotations

import ast
import base64
import binascii
import datetime
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rsk.base import templates
from rsk.export import markdown, pandoc, references
from rsk.export.document import (
    MIME,
    TOKEN_KINDS,
    Banner,
    Cell,
    Code,
    Document,
    ExportError,
    Figure,
    Item,
    Listing,
    Output,
    Table,
    Text,
    Tokens,
)
from rsk.export.pandoc import NO_ATTRIBUTES, Node

if TYPE_CHECKING:
    from nbformat import NotebookNode

AUTHORS = "The rsk authors"
"""As in the licence and in ``CITATION.cff``."""
HIDDEN_CELLS = {"parameters", "injected-parameters", "hide-cell", "papermill-error-cell-tag"}


def read(path: Path, *, all_code: bool, pages: Mapping[str, str] | None = None) -> Document:
    """Read an executed notebook.

    Args:
        path: the executed notebook.
        all_code: whether to show the code of the cells.
        pages: notebook name (such as ``06_benchmarks``) to the page that a link to it leads to.
            Links to other notebooks become plain text.

    Raises:
        ExportError: the notebook is missing, was not run, holds an error, or something in it
            cannot be exported.
    """
    import nbformat

    try:
        notebook = nbformat.read(path, as_version=4)
    except FileNotFoundError:
        raise ExportError(f"there is no executed notebook {path}") from None
    except (ValueError, nbformat.ValidationError) as error:
        raise ExportError(f"{path.name} is not a notebook: {error}") from error
    return _Reader(path, notebook, all_code, dict(pages or {})).document()


class _Reader:
    """One pass over the cells, one call of pandoc for all their Markdown, then the links."""

    def __init__(
        self, path: Path, notebook: NotebookNode, all_code: bool, pages: dict[str, str]
    ) -> None:
        self.path, self.notebook, self.all_code, self.pages = path, notebook, all_code, pages
        self.language = templates.LANGUAGE
        # Cell, its Markdown if any, and what makes an item of the parsed Markdown.
        self.pending: list[tuple[Cell, str, Callable[[list[Node]], Item]]] = []

    def document(self) -> Document:
        for number, cell in enumerate(self.notebook.cells, 1):
            self._cell(number, cell)
        parsed = markdown.parse([(cell, text) for cell, text, _ in self.pending])
        items: list[tuple[Cell, Item]] = []
        for (cell, _, make), blocks in zip(self.pending, parsed, strict=True):
            items.append((cell, make(markdown.Cleaner(cell, self._image).blocks(blocks))))
        document = Document(
            self.path.stem, [], self._authors(), self._epoch(), items, language=self.language
        )
        references.resolve(document, self.pages)
        return document

    def _cell(self, number: int, cell: NotebookNode) -> None:
        tags = set(cell.metadata.get("tags", []))
        lines = [line for line in cell.source.strip().splitlines() if line.strip()]
        first_line = (lines[0] if lines else "empty").strip()
        where = Cell(self.path.name, number, first_line[:60])
        self.attachments = cell.get("attachments", {})
        if cell.cell_type == "markdown":
            if not tags & HIDDEN_CELLS:
                self._markdown(where, cell.source)
            return
        if cell.cell_type != "code" or not lines:
            return
        self._refuse_unfinished(where, cell)
        if tags & HIDDEN_CELLS:
            return
        code = _shown_code(cell) if self.all_code and "hide-input" not in tags else ""
        if code:
            self._add(where, lambda _: Code(code))
        if "hide-output" not in tags:
            for output in _merged(cell.outputs):
                self._output(where, output)

    def _refuse_unfinished(self, where: Cell, cell: NotebookNode) -> None:
        if cell.execution_count is None and not cell.outputs:
            raise where.error("it was not run: execute the notebook before exporting it")
        for output in cell.outputs:
            if output.output_type == "error":
                raise where.error(f"it ended with {output.ename}: {_plain_text(output.evalue)}")

    def _add(self, cell: Cell, make: Callable[[list[Node]], Item], text: str = "") -> None:
        self.pending.append((cell, text, make))

    def _markdown(self, cell: Cell, text: str) -> None:
        attachments = self.attachments

        def embedded(match: re.Match[str]) -> str:
            bundle = attachments.get(match[1])
            if bundle is None:
                raise cell.error(f"the attachment {match[1]!r} is missing")
            mime, data = next(iter(bundle.items()))
            return f"](data:{mime};base64,{''.join(data.split())}"

        text = re.sub(r"\]\(attachment:([^)\s]+)", embedded, text)
        self._add(cell, Text, text)

    def _output(self, cell: Cell, output: NotebookNode) -> None:
        if output.output_type == "stream":
            # Progress bars and warnings go to stderr; they are no part of a result.
            if output.name == "stdout" and output.text.strip():
                text = _plain_text(output.text)
                self._add(cell, lambda _: Output(text))
            return
        data = output.data
        if MIME in data:
            try:
                self._published(cell, data[MIME], data)
            except (KeyError, TypeError) as error:
                raise cell.error(f"its published output is incomplete: {error!r}") from error
        elif "text/markdown" in data:
            self._markdown(cell, data["text/markdown"])
        elif any(mime.startswith("image/") for mime in data):
            raise cell.error(
                "a picture without caption and alt text; use rsk.course.publish.figure"
            )
        elif any("widget" in mime for mime in data):
            return  # a live progress bar
        elif re.fullmatch(r"<.* object>", data.get("text/plain", "<no text object>")):
            kinds = ", ".join(data)
            raise cell.error(f"output that cannot be exported ({kinds}); use rsk.course.publish")
        else:
            text = _plain_text(data["text/plain"])
            self._add(cell, lambda _: Output(text))

    def _published(self, cell: Cell, content: Mapping[str, Any], data: Mapping[str, Any]) -> None:
        caption, label = content.get("caption", ""), content.get("label", "")

        numbered = content["kind"] in ("figure", "table", "tokens")
        if (label or numbered) and not (label and caption.strip()):
            raise cell.error(f"a {content['kind']} without label or caption")

        def labelled(make: Callable[[list[Node]], Item]) -> None:
            self._add(cell, lambda blocks: make(markdown.caption(cell, blocks)), caption)

        match content["kind"]:
            case "viewer":
                pass
            case "prose":
                self.language = content.get("language", self.language)
                self._markdown(cell, content.get("text", data["text/markdown"]))
            case "banner":
                banner = Banner(content["mode"], content["opening"], content["detail"])
                self._add(cell, lambda _: banner)
            case "figure":
                image, suffix = _image_of(cell, label, data)
                size = content["size"][0], content["size"][1]
                alt, behind = content["alt"], content.get("data")
                script = content.get("interactive", "")
                if not alt.strip():
                    raise cell.error(f"the figure {label!r} has no alt text")
                labelled(lambda text: Figure(label, text, alt, image, suffix, size, behind, script))
            case "table":
                table = _table_node(content)
                labelled(lambda text: Table(label, text, table))
            case "tokens":
                runs = [(text, kind) for text, kind in content["runs"]]
                if unknown := {kind for _, kind in runs} - set(TOKEN_KINDS):
                    raise cell.error(f"tokens of an unknown kind {unknown}")
                labelled(lambda text: Tokens(label, text, runs))
            case "source":
                code = content["code"], content["language"], content["where"]
                if label:
                    labelled(lambda text: Listing(label, text, *code))
                else:
                    self._add(cell, lambda _: Listing("", [], *code))
            case kind:
                raise cell.error(f"published output of an unknown kind {kind!r}")

    def _image(self, cell: Cell, target: str) -> str:
        """A picture that Markdown names, as a ``data:`` address."""
        if target.startswith("data:image/"):
            return target
        if re.match(r"[a-z]+:", target):
            raise cell.error(f"the picture {target} is not part of the notebook")
        suffix = Path(target).suffix.lower()
        mime = {".svg": "svg+xml", ".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg"}.get(suffix)
        if mime is None:
            raise cell.error(f"the picture {target} is neither SVG, PNG nor JPEG")
        for folder in (self.path.parent, *_source_folders()):
            file = folder / target
            if file.is_file():
                return f"data:image/{mime};base64,{base64.b64encode(file.read_bytes()).decode()}"
        raise cell.error(f"the picture {target} is missing")

    def _authors(self) -> list[str]:
        """Names from the notebook's metadata: ``{"authors": [{"name": ...}, ...]}``.

        A notebook of the course is by the authors of the package.
        """
        named = self.notebook.metadata.get("authors", [])
        if not named and any((folder / self.path.name).is_file() for folder in _source_folders()):
            return [AUTHORS]
        return [str(entry if isinstance(entry, str) else entry.get("name", "")) for entry in named]

    def _epoch(self) -> int | None:
        given = os.environ.get("SOURCE_DATE_EPOCH")
        if given:
            return int(given)
        start = self.notebook.metadata.get("papermill", {}).get("start_time")
        if not start:
            return None
        return int(datetime.datetime.fromisoformat(start).timestamp())


def _source_folders() -> Iterable[Path]:
    from rsk.base import folders

    try:
        yield folders.notebooks_dir()
    except FileNotFoundError:
        return


def _shown_code(cell: NotebookNode) -> str:
    """The code of a cell without what only publishes: what that shows speaks for itself.

    Left out are calls such as ``publish.source(...)``, and cells that are nothing but calls of
    which all that came out was published.
    """
    try:
        statements = ast.parse(cell.source).body
    except SyntaxError:  # a magic command
        return str(cell.source).strip("\n")
    published = [MIME in output.get("data", {}) for output in cell.outputs]
    if published and all(published) and all(map(_is_call, statements)):
        return ""
    lines: list[str | None] = cell.source.split("\n")
    for statement in statements:
        if _is_call(statement, "publish."):
            start, end = statement.lineno - 1, statement.end_lineno or statement.lineno
            lines[start:end] = [None] * (end - start)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(line for line in lines if line is not None)).strip(
        "\n"
    )


def _is_call(statement: ast.stmt, of: str = "") -> bool:
    """Whether a statement calls something, perhaps in a loop, and drops what it returns."""
    if isinstance(statement, ast.For):
        return all(_is_call(inner, of) for inner in statement.body)
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Call)
        and ast.unparse(statement.value.func).startswith(of)
    )


def _merged(outputs: list[NotebookNode]) -> Iterable[NotebookNode]:
    """Outputs with the pieces of one stream put together."""
    merged: list[Any] = []
    for output in outputs:
        last = merged[-1] if merged else None
        if (
            output.output_type == "stream"
            and last is not None
            and last.output_type == "stream"
            and last.name == output.name
        ):
            merged[-1] = type(last)({**last, "text": last.text + output.text})
        else:
            merged.append(output)
    return merged


def _plain_text(text: str) -> str:
    """Terminal text without colours, and with lines that were overwritten left out."""
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b\][^\x07]*\x07", "", text)
    lines = [line.rstrip("\r").rsplit("\r", 1)[-1] for line in text.split("\n")]
    return "\n".join(line.rstrip() for line in lines).strip("\n").expandtabs()


def _image_of(cell: Cell, label: str, data: Mapping[str, Any]) -> tuple[bytes, str]:
    if "image/svg+xml" in data:
        image = str(data["image/svg+xml"]).encode()
        if b"<svg" not in image[:2000]:
            raise cell.error(f"the picture of figure {label!r} is not an SVG")
        return image, "svg"
    if "image/png" in data:
        try:
            image = base64.b64decode(data["image/png"])
        except binascii.Error as error:
            raise cell.error(f"the picture of figure {label!r} is damaged: {error}") from error
        if not image.startswith(b"\x89PNG"):
            raise cell.error(f"the picture of figure {label!r} is not a PNG")
        return image, "png"
    raise cell.error(f"the picture of figure {label!r} is missing")


def _table_node(content: Mapping[str, Any]) -> Node:
    """A published table as pandoc's Table."""

    def row(cells: list[str]) -> list[Any]:
        return [
            NO_ATTRIBUTES,
            [
                [NO_ATTRIBUTES, {"t": "AlignDefault"}, 1, 1, [pandoc.block(pandoc.words(text))]]
                for text in cells
            ],
        ]

    sides = {"left": "AlignLeft", "right": "AlignRight"}
    columns = [[{"t": sides[side]}, {"t": "ColWidthDefault"}] for side in content["align"]]
    head = [NO_ATTRIBUTES, [row(content["columns"])]]
    body = [NO_ATTRIBUTES, 0, [], [row(cells) for cells in content["rows"]]]
    caption: list[Any] = [None, []]
    return {
        "t": "Table",
        "c": [NO_ATTRIBUTES, caption, columns, head, [body], [NO_ATTRIBUTES, []]],
    }
