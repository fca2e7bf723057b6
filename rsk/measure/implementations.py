"""What is timed: the implementations, each a way to make a call without arguments from inputs.

Ours come from the sampler's registry; those of other projects, in the same form, from
:mod:`rsk.measure.peers`. One that is made of PyTorch's operators alone has its name in
:data:`PYTORCH`: the fastest of those is what speed-ups are told over.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from rsk.measure.clocks import Thunk
from rsk.measure.workload import Inputs
from rsk.sampler import registry
from rsk.sampler.api import BACKENDS, RejectionSamples, rejection_sample
from rsk.sampler.implementations import IMPLEMENTATIONS
from rsk.sampler.kernels import KERNELS, runs_on

BASELINE = "baseline"
PYTORCH = (BASELINE, "vectorized", "compiled", "idiomatic")
"""The implementations made of PyTorch's operators, the loop included: for few requests it may be
the fastest of them."""


def _as_samples(output: Any) -> RejectionSamples:
    return RejectionSamples(*output)


@dataclass(frozen=True)
class Implementation:
    """Something to measure.

    Attributes:
        name: as shown.
        bind: makes a call without arguments from one set of inputs. What ``bind`` itself does,
            such as converting inputs to what a peer takes, is not timed.
        result: turns what the call returns into tokens and counts; not timed.
        exact: whether it returns the specification's tokens. Otherwise each result is only
            checked to be well formed, and its distribution has to be checked apart.
        capturable: whether its calls can be captured in a CUDA graph, that is, never wait.
        max_batch_size: the largest batch that it takes, or ``None``.
    """

    name: str
    bind: Callable[[Inputs], Thunk]
    result: Callable[[Any], RejectionSamples] = _as_samples
    exact: bool = True
    capturable: bool = True
    max_batch_size: int | None = None


def backend(name: str) -> Implementation:
    """One of ``rsk.BACKENDS``, called as a user calls it."""

    def bind(inputs: Inputs) -> Thunk:
        *tensors, seed = inputs
        return functools.partial(rejection_sample, *tensors, seed=seed, backend=name)

    return Implementation(name, bind, capturable=name != BASELINE)


def kernel(name: str) -> Implementation:
    """One of ``rsk.KERNELS``. On a CPU those run in an emulator, which is never timed."""

    def bind(inputs: Inputs) -> Thunk:
        *tensors, seed = inputs
        return functools.partial(KERNELS[name], *tensors, seed=seed)

    return Implementation(name, bind)


def rival(name: str) -> Implementation:
    """One of the registry's rivals, which are measured where they are asked for by name."""
    function = IMPLEMENTATIONS[name]

    def bind(inputs: Inputs) -> Thunk:
        *tensors, seed = inputs
        return functools.partial(function, *tensors, seed=seed)

    return Implementation(name, bind, exact=registry.RIVALS[name].exact)


def ours(device: torch.device) -> tuple[list[Implementation], list[str]]:
    """The backends, and on a GPU the kernels one by one: on a CPU those run in an emulator.

    Returns:
        What can be timed on the device, and a line for each kernel that the GPU does not run.
    """
    found = [backend(name) for name in BACKENDS]
    missing = []
    if device.type == "cuda":
        for entry in registry.KERNELS.values():
            if runs_on(entry.name, device):
                found.append(kernel(entry.name))
            else:
                missing.append(f"{entry.name}: needs {entry.needs}")
    return found, missing


def is_peer(name: str) -> bool:
    """Whether a name is of another project's sampler."""
    return name not in registry.OURS and name not in registry.RIVALS
