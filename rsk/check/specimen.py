"""What is told of a sampler or a decoding loop in the gallery of wrong ones."""

from __future__ import annotations

from typing import ClassVar


class Specimen:
    """What the gallery tells of a sampler."""

    name: ClassVar[str]
    seen: ClassVar[str] = ""
    """Where such a bug was found."""
    caught_by: ClassVar[str] = ""
    """The check in :mod:`rsk.check` that names the fault."""
    verdict: ClassVar[str] = ""
    """What its message says."""

    @property
    def description(self) -> str:
        """What is wrong, in a line."""
        return (type(self).__doc__ or "").splitlines()[0]
