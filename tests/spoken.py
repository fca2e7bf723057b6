"""How long the notes of a talk take to be read aloud: what its stated minutes are held to."""

from __future__ import annotations

import re

from rsk.export import pandoc
from rsk.export.talk import Division, Talk

WORDS_A_MINUTE, CHARACTERS_A_MINUTE = 140, 220
"""Of a calm speaker, in English and in Chinese."""
CHINESE = re.compile(r"[\u3400-\u9fff\uf900-\ufaff]")


def slides(talk: Talk) -> list[Division]:
    """What is shown, the title slide first."""
    return [part for part in talk.parts if part.number]


def minutes(talk: Talk, slide: Division) -> float | None:
    """Of a slide's notes; ``None`` if they are steps of a live demo."""
    if any(pandoc.find(slide.notes, "Table")):
        return None
    text = talk.document.plain(slide.notes)
    chinese = len(CHINESE.findall(text))
    others = len(re.findall(r"\w[\w.,'’-]*", CHINESE.sub(" ", text)))
    return chinese / CHARACTERS_A_MINUTE + others / WORDS_A_MINUTE
