"""The PyTorch operators that a call asks for, whoever calls them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Operators(NamedTuple):
    """The names of the operators of one call, in the order of calling."""

    computing: tuple[str, ...]
    """Those that compute, create or copy something: on a GPU, a launch or more each."""
    views: tuple[str, ...]
    """Those that look at a tensor in another way: they cost the host alone."""


def count_operators(call: Callable[[], object]) -> Operators:
    """Run a call once, and count below everything that is built of other operators."""
    with _Counter() as counter:
        call()
    return Operators(tuple(counter.computing), tuple(counter.views))


class _Counter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.computing: list[str] = []
        self.views: list[str] = []

    def __torch_dispatch__(
        self,
        func: torch._ops.OpOverload,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        (self.views if func.is_view else self.computing).append(func.name())
        return func(*args, **(kwargs or {}))
