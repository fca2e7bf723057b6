"""What the options of the command line stand for: a device, a list, a number or a word."""

from __future__ import annotations

import re
from typing import TypeVar

T = TypeVar("T")


def device(name: str) -> str:
    """The device to run on: the GPU, if there is one, for "auto".

    Raises:
        ValueError: there is no such device.
    """
    import torch

    has_gpu = torch.cuda.is_available()
    if name == "auto":
        return "cuda" if has_gpu else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise ValueError(f"--device: expected auto, cpu or cuda, got {name!r}")
    if name != "cpu" and not has_gpu:
        raise ValueError(f"--device {name}: PyTorch finds no NVIDIA GPU (see rsk doctor)")
    return name


def entries(text: str | None, kind: type[T], option: str) -> tuple[T, ...] | None:
    """Read a comma-separated list; ``None`` if the option was not given.

    Raises:
        ValueError: an entry is not of that kind.
    """
    if text is None:
        return None
    try:
        return tuple(kind(entry.strip()) for entry in text.split(","))  # type: ignore[call-arg]
    except ValueError:
        wanted = "integers" if kind is int else "numbers"
        raise ValueError(
            f"{option}: expected {wanted} with commas between them, got {text!r}"
        ) from None
