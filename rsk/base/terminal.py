"""Text for terminals and files of any encoding: what one cannot show is written plainly."""

from __future__ import annotations

import codecs
import io
import sys
import unicodedata

_PLAIN = str.maketrans(
    {
        "×": "x",
        "µ": "u",
        "±": "+-",
        "→": "->",
        "←": "<-",
        "≥": ">=",
        "≤": "<=",
        "≈": "~",
        **dict.fromkeys("–—−", "-"),
        **dict.fromkeys("·⋅•", "."),
        **dict.fromkeys("‘’", "'"),
        **dict.fromkeys("“”", '"'),
        **dict.fromkeys("▏▎▍▌", "."),
        **dict.fromkeys("▋▊▉█", "#"),
    }
)


def plain(text: str) -> str:
    """The nearest in ASCII: a sign's name in letters, a letter without its accent, else "?"."""
    spelt = unicodedata.normalize("NFKD", text.translate(_PLAIN))
    bare = "".join(sign for sign in spelt if not unicodedata.combining(sign))
    return bare.encode("ascii", "replace").decode("ascii")


def _replace(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return plain(error.object[error.start : error.end]), error.end


def accept_any_text() -> None:
    """Let standard output and error take any text, whatever their encoding."""
    codecs.register_error("rsk.plain", _replace)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="rsk.plain")
