"""What goes wrong in getting a model."""

from __future__ import annotations


class LoadError(OSError):
    """A model or tokenizer could not be loaded; the message says what to do."""
