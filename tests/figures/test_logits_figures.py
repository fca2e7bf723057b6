"""The pictures of the chapter on logits: complete, and true to what they are given."""

from __future__ import annotations

import pytest

pytest.importorskip("matplotlib")
from measured import spread

from rsk.course.python_kernels.selection import Pass
from rsk.figures import from_logits, plotting
from rsk.figures.from_logits import Narrowing

LOGITS = [0.5, 3.0, 1.0, 2.0]


def check(picture):
    words = plotting.exhibit(picture)
    assert words.title and words.caption and words.alt.endswith(".")
    picture.fig.canvas.draw()
    assert not picture.data.empty
    return words


def test_cost_of_softmax():
    words = check(from_logits.cost_of_softmax({"softmax": spread(900), "ours": spread(30)}, "B."))
    assert words.title == "softmax 900 µs; ours 30.0 µs"


def test_bound():
    readers = [(0, 0), (0, 1), (1, 0), (1, 0)]
    maxima = {(0, 0): 0.5, (0, 1): 3.0, (1, 0): 2.0}
    picture = from_logits.bound(LOGITS, readers, maxima, least=2.0, k=2)
    assert "3 maxima leaves 2 of 4 logits" in check(picture).title
    assert list(picture.data.listed) == [False, True, False, True]


def test_sorted_list():
    picture = from_logits.sorted_list([3.0, 2.0, 2.0, 1.0], [4, 2, 2, 1], 2.0, 2.0, share=0.6)
    words = check(picture)
    assert words.title == "Of 4 listed logits top-k keeps 3, and top-p keeps 3 of those"
    assert "running share is 0.500, with it 1.000" in words.alt
    alone = check(from_logits.sorted_list([3.0, 2.0], [6, 2], 2.0, 3.0, share=0.6))
    assert alone.alt.endswith("with the first the running share is 0.750.")


def test_narrowing():
    passes = [
        Narrowing(-9.0, 3.5, (2.5, 1.5, 0.7), (False, True, True)),
        Narrowing(1.5, 2.5, (2.2, 2.0, 1.8), (False, True, True)),
    ]
    words = check(from_logits.narrowing(LOGITS, passes, 2.0))
    assert words.title == "2 passes over 4 logits: 4, then 1 may be the threshold"
    assert Pass._fields[:3] == Narrowing._fields[:3]


def test_messages():
    sent = [("all_gather", 4096), ("all_reduce", 904)]
    words = check(from_logits.messages([(0, 7), (7, 20)], sent, 2_000_000))
    assert words.title == "2 ranks exchange 5.00 kB each, not the 2.00 MB of their rows"
