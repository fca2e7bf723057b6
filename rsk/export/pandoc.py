"""Pandoc as a library: Markdown to its syntax tree, the tree to HTML or Typst.

A tree is what ``pandoc -t json`` writes: nested lists of nodes ``{"t": type, "c": content}``.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

Node = dict[str, Any]

NO_ATTRIBUTES: list[Any] = ["", [], []]
"""A node without identifier, classes and other attributes."""

# What JupyterLab renders, and no more: other Markdown would read differently there.
MARKDOWN = (
    "commonmark+tex_math_dollars+pipe_tables+strikeout+task_lists+autolink_bare_uris"
    "+east_asian_line_breaks"  # a line that ends between two Chinese letters is no space
)


class PandocError(RuntimeError):
    """Pandoc failed or warned. The message is what it said."""


@cache
def _executable() -> str:
    try:
        import pypandoc

        return str(pypandoc.get_pandoc_path())
    except (ImportError, OSError) as error:
        raise PandocError("pandoc is missing: pip install pypandoc_binary") from error


@cache
def _api_version() -> list[int]:
    version = json.loads(_run("", "--from=commonmark", "--to=json"))["pandoc-api-version"]
    return list(version)


def _run(text: str, *arguments: str) -> str:
    done = subprocess.run(
        [_executable(), "--fail-if-warnings", "--sandbox", *arguments],
        input=text.encode(),
        capture_output=True,
        check=False,
    )
    if done.returncode:
        raise PandocError(done.stderr.decode(errors="replace").strip())
    return done.stdout.decode().replace("\r\n", "\n")


def parse(text: str, reader: str = MARKDOWN) -> list[Node]:
    """Blocks of a text."""
    return list(json.loads(_run(text, f"--from={reader}", "--to=json"))["blocks"])


def write(blocks: list[Node], writer: str, *options: str) -> str:
    """Blocks as ``"html5"`` or ``"typst"``, without a head."""
    tree = {"pandoc-api-version": _api_version(), "meta": {}, "blocks": blocks}
    return _run(
        json.dumps(tree),
        "--from=json",
        f"--to={writer}",
        "--wrap=none",
        "--syntax-highlighting=none",
        *options,
    )


def walk(tree: Any, change: Callable[[Node], Node | list[Node] | None]) -> Any:
    """A copy of a tree, from the leaves up, in which ``change`` replaced nodes.

    ``change`` returns ``None`` to keep a node, another node, or a list of nodes, which takes its
    place in the list that the node stood in.
    """
    if isinstance(tree, list):
        out = []
        for child in tree:
            new = walk(child, change)
            if isinstance(child, dict) and isinstance(new, list):
                out.extend(new)
            else:
                out.append(new)
        return out
    if isinstance(tree, dict):
        node = {key: walk(value, change) for key, value in tree.items()}
        new = change(node) if "t" in node else None
        return node if new is None else new
    return tree


def find(tree: Any, kind: str) -> Iterable[Node]:
    """All nodes of one type, in order."""
    if isinstance(tree, list):
        for child in tree:
            yield from find(child, kind)
    elif isinstance(tree, dict):
        if tree.get("t") == kind:
            yield tree
        for value in tree.values():
            yield from find(value, kind)


def plain(tree: Any) -> str:
    """The words of a tree, without markup."""
    if isinstance(tree, list):
        return "".join(plain(child) for child in tree)
    if not isinstance(tree, dict):
        return ""
    kind, content = tree.get("t"), tree.get("c")
    if kind == "Str":
        return str(content)
    if kind in ("Space", "SoftBreak", "LineBreak"):
        return " "
    if kind in ("Code", "Math", "CodeBlock"):
        return str(content[1]) if content else ""
    if kind in ("RawInline", "RawBlock"):
        return ""
    if kind == "Quoted":
        return f'"{plain(content[1])}"' if content else ""
    text = plain(content) if isinstance(content, list) else ""
    return text + (" " if kind in ("Plain", "Para", "Header") else "")


def words(text: str) -> list[Node]:
    """Plain text as inline nodes."""
    nodes: list[Node] = []
    for word in text.split():
        nodes += [{"t": "Space"}, {"t": "Str", "c": word}]
    return nodes[1:]


def raw(writer: str, text: str) -> Node:
    """Inline text for one writer, passed on as it is."""
    return {"t": "RawInline", "c": [writer, text]}


def raw_block(writer: str, text: str) -> Node:
    """A block for one writer, passed on as it is."""
    return {"t": "RawBlock", "c": [writer, text]}


def block(inlines: list[Node]) -> Node:
    """Inline nodes as a block without the spacing of a paragraph."""
    return {"t": "Plain", "c": inlines}
