"""A number that the reader writes down before it is measured."""

from __future__ import annotations

from dataclasses import dataclass

from rsk.course import publish


@dataclass(frozen=True)
class Prediction:
    """A number that was written down before it was measured."""

    name: str
    value: float
    unit: str

    def compare(self, measured: float) -> None:
        """Show the prediction beside the measurement, and how far apart they are."""
        publish.passage("course.md#compared", guess=self, measured=measured)

    @property
    def heading(self) -> str:
        """What was predicted, as a sentence begins."""
        return self.name[:1].upper() + self.name[1:]

    def factor(self, measured: float) -> float | None:
        """How many times the larger is of the smaller; ``None`` if one is not positive."""
        if measured <= 0 or self.value <= 0:
            return None
        return max(measured / self.value, self.value / measured)


def predict(name: str, value: float, unit: str) -> Prediction:
    """Write down a number before measuring it.

    Args:
        name: what is predicted, such as ``"waits at B = 64"``.
        value: the reader's number; as committed, the author's guess.
        unit: of the value.

    Raises:
        ValueError: the value is not a number.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
        raise ValueError(f"prediction {name!r}: expected a number, got {value!r}")
    guess = Prediction(name, value, unit)
    publish.passage("course.md#predicted", guess=guess)
    return guess
