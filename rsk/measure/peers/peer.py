"""What a sampler of another project is here, and what it is given."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rsk.measure.clocks import Thunk
from rsk.measure.implementations import Implementation
from rsk.measure.logit_inputs import Ways
from rsk.measure.workload import Inputs
from rsk.sampler.api import RejectionSamples
from rsk.sampler.registry import Entry


class PeerError(RuntimeError):
    """A peer that cannot be measured here; the message says why."""


class NotOffered(PeerError):
    """A peer's interface has no place for what was asked; the message says for what."""


class PeerInputs(NamedTuple):
    """One call from logits. Each peer takes of it what its own project hands to it."""

    draft_tokens: Tensor
    """int64 [B, K], drawn from ``draft_probs``"""
    draft_logits: Tensor
    """[B, K, V], before the temperature; -inf where a filter has removed a token"""
    draft_probs: Tensor
    """float32 [B, K, V]: the law that the drafts were drawn from"""
    target_logits: Tensor
    """[B, K+1, V], as the model gives them"""
    ways: Ways
    seed: int
    draft_laws: Tensor | None = None
    """What our own sampler has of ``draft_probs``: see :func:`rsk.rejection_sample_from_logits`."""


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A sampler of another project.

    Attributes:
        entry: its name, and how figures draw it.
        bind: makes a call from probabilities, with a seed for each request, int64 [B], or seeds of
            its own choice. What ``bind`` does, such as converting inputs, is not timed. Raises
            :class:`NotOffered` for seeds that it has no place for.
        bind_logits: makes a call from logits, or ``None`` if it does not start from them.
        result: turns what a call returns into tokens and counts; not timed.
        capturable: whether its calls can be captured in a CUDA graph.
        max_batch_size: the largest batch that it takes, or ``None``.
    """

    entry: Entry
    bind: Callable[[Inputs, Tensor | None], Thunk]
    result: Callable[[Any], RejectionSamples]
    bind_logits: Callable[[PeerInputs], Thunk] | None = None
    capturable: bool = True
    max_batch_size: int | None = None

    @property
    def implementation(self) -> Implementation:
        """The peer from probabilities, as :func:`rsk.measure.timing.measure` takes it."""
        return Implementation(
            self.entry.name,
            lambda inputs: self.bind(inputs, None),
            self.result,
            exact=False,
            capturable=self.capturable,
            max_batch_size=self.max_batch_size,
        )


def with_counts(tokens: Tensor, spec_len: int) -> RejectionSamples:
    """A result from tokens alone, [B, up to K+1], in which -1 stands behind the last one."""
    padded = torch.nn.functional.pad(tokens.long(), (0, spec_len + 1 - tokens.shape[1]), value=-1)
    return RejectionSamples(padded, (padded >= 0).sum(1) - 1)


def own_seeds(inputs: Inputs, seeds: Tensor | None) -> Tensor:
    """The seeds, or those that follow from the call's one: request b has ``seed + b``."""
    if seeds is not None:
        return seeds
    rows = torch.arange(len(inputs.draft_tokens), device=inputs.draft_tokens.device)
    return rows + inputs.seed


def single_module(package: str, path: str) -> ModuleType:
    """One module of a package, loaded from its file without the package around it.

    For packages that import a whole engine when any part of them is imported. The file is the
    installed one, unchanged; it may import nothing of the package itself.

    Raises:
        ModuleNotFoundError: the package is not installed, or has no such file.
    """
    name = f"{package}_alone_{path.replace('/', '_').removesuffix('.py')}"
    if name in sys.modules:
        return sys.modules[name]
    found = importlib.util.find_spec(package)
    folders = [] if found is None else list(found.submodule_search_locations or [])
    file = next((Path(one) / path for one in folders if (Path(one) / path).is_file()), None)
    spec = file and importlib.util.spec_from_file_location(name, file)
    if not spec or spec.loader is None:
        raise ModuleNotFoundError(f"No module {package}/{path}", name=package)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # Triton looks a kernel's source up there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
