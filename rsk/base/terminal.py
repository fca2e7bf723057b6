"""Text for terminals and files of any encoding: what one cannot show is written plainly."""

from __future__ import annotations

import codecs
import io
import sys
import unicodedata

ERROR_LENGTH = 300
"""Characters of an error's message in a line: a compiler's may have thousands."""
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


def error_line(error: BaseException) -> str:
    """What kind of error it is, and the first line of what it says, if it says anything."""
    said = str(error).strip().partition("\n")[0]
    return type(error).__name__ + (f": {said[:ERROR_LENGTH]}" if said else "")


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
