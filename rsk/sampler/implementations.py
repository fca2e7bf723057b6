"""All implementations by name, as callables with the arguments of :func:`rsk.rejection_sample`.

The backends and the kernels are there to be used. The rivals are there to be measured: what
PyTorch's compiler makes of ``vectorized``, what most people would write, and the rule in Triton.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from rsk.sampler import idiomatic, vectorized
from rsk.sampler.api import BACKENDS, RejectionSamples, rejection_sample
from rsk.sampler.arguments import check_request
from rsk.sampler.kernels import KERNELS
from rsk.sampler.random_words import per_request
from rsk.sampler.registry import RIVALS


def compiled(
    draft_tokens: Tensor,
    draft_probs: Tensor | None,
    target_probs: Tensor,
    *,
    seed: int | Tensor | None = None,
    position: int | Tensor = 0,
) -> RejectionSamples:
    """Run ``vectorized`` under ``torch.compile``; else as :func:`rsk.rejection_sample`.

    Each new set of shapes, strides and dtypes, and of PyTorch's modes for gradients, is compiled at
    its first call, in some seconds.
    """
    seed, position = check_request(draft_tokens, draft_probs, target_probs, seed, position)
    # As tensors, since each new int would be compiled anew.
    like = len(draft_tokens), draft_tokens.device
    seed, position = per_request(seed, *like, step=1), per_request(position, *like, step=0)
    arguments = draft_tokens, draft_probs, target_probs, seed, position
    # Deterministic algorithms would be one more mode, and change nothing: all sums are exact.
    mode = torch.get_deterministic_debug_mode()
    if mode:
        torch.set_deterministic_debug_mode(0)
    try:
        return RejectionSamples(*_run_compiled(arguments))
    finally:
        if mode:
            torch.set_deterministic_debug_mode(mode)


def _run_compiled(arguments: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
    form = _form(arguments)
    function, known = _compiler()
    if form in known:
        return function(*arguments)
    with torch._dynamo.config.patch(recompile_limit=1 << 10, accumulated_recompile_limit=1 << 12):
        result = function(*arguments)
    known.add(form)
    return result


def _form(arguments: tuple[Tensor | None, ...]) -> Any:
    """All that decides whether what was compiled for some arguments serves these."""
    of_each = (
        x is not None
        and (x.shape, x.stride(), x.dtype, x.device, x.requires_grad, x.is_inference())
        for x in arguments
    )
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), *of_each


@functools.cache
def _compiler() -> tuple[Callable[..., tuple[Tensor, Tensor]], set[Any]]:
    """The function, and the forms of its arguments that it was compiled for."""
    return torch.compile(vectorized.rejection_sample, fullgraph=True, dynamic=False), set()


def of_floats(
    draft_tokens: Tensor,
    draft_probs: Tensor | None,
    target_probs: Tensor,
    *,
    seed: object = None,
    position: object = 0,
) -> RejectionSamples:
    """Run :mod:`rsk.sampler.idiomatic`, which looks at neither seed nor position."""
    del seed, position
    return RejectionSamples(*idiomatic.rejection_sample(draft_tokens, draft_probs, target_probs))


def triton(
    draft_tokens: Tensor,
    draft_probs: Tensor | None,
    target_probs: Tensor,
    *,
    seed: int | Tensor | None = None,
    position: int | Tensor = 0,
) -> RejectionSamples:
    """Run :mod:`rsk.sampler.triton_kernels`; else as :func:`rsk.rejection_sample`.

    Raises:
        ModuleNotFoundError: Triton is not installed; the message says what to do.
        ValueError: tensors on a CPU, and Triton does not interpret.
    """
    try:
        from rsk.sampler import triton_kernels
    except ModuleNotFoundError as error:
        if error.name != "triton":
            raise
        raise ModuleNotFoundError(
            "the implementation 'triton' needs the package triton, which PyTorch for CUDA on Linux "
            "brings along; elsewhere: pip install 'rsk[triton]'",
            name="triton",
        ) from None
    seed, position = check_request(draft_tokens, draft_probs, target_probs, seed, position)
    return RejectionSamples(
        *triton_kernels.rejection_sample(draft_tokens, draft_probs, target_probs, seed, position)
    )


IMPLEMENTATIONS: Mapping[str, Callable[..., RejectionSamples]] = MappingProxyType(
    {name: functools.partial(rejection_sample, backend=name) for name in BACKENDS}
    | dict(KERNELS)
    | dict(zip(RIVALS, (compiled, of_floats, triton), strict=True))
)
"""Name to callable; what each is, :mod:`rsk.sampler.registry` tells."""
