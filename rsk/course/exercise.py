"""An exercise of a notebook: a skeleton to fill in, and the check that holds what was written."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NoReturn

from rsk.base import templates


class NotAttempted(Exception):
    """An exercise whose skeleton was left as it is."""


def todo() -> NoReturn:
    """Stand where the reader's code goes."""
    raise NotAttempted


@contextlib.contextmanager
def exercise(name: str) -> Iterator[None]:
    """Hold the check of an exercise: assertions on what the reader wrote.

    Prints whether it is solved. An untouched skeleton (:func:`todo`) is not an error, so that the
    notebook runs unattended; a wrong solution is.

    Args:
        name: of the exercise, for the message.

    Raises:
        AssertionError: the solution is wrong; says where.
    """
    try:
        yield
    except NotAttempted:
        print(templates.render("course.md#not-solved", {"name": name}))
    except AssertionError as error:
        error.add_note(f"Exercise {name!r}: not solved; this check does not hold yet.")
        raise
    else:
        print(templates.render("course.md#solved", {"name": name}))
