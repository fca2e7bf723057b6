"""The CUDA kernels one by one; ``fused`` on a GPU picks among them.

Given CPU tensors, a kernel's unmodified source runs in an emulator: exact, and far too slow to
time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from rsk.sampler import build, registry
from rsk.sampler.api import RejectionSamples
from rsk.sampler.arguments import check_request
from rsk.sampler.fused import tensor_and_int


def _launcher(index: int, entry: registry.Entry) -> Callable[..., RejectionSamples]:
    def launch(
        draft_tokens: Tensor,
        draft_probs: Tensor | None,
        target_probs: Tensor,
        *,
        seed: int | Tensor | None = None,
        position: int | Tensor = 0,
    ) -> RejectionSamples:
        seed, position = check_request(draft_tokens, draft_probs, target_probs, seed, position)
        build.load("cuda" if draft_tokens.is_cuda else "emulator")
        return RejectionSamples(
            *torch.ops.rsk.launch(
                index,
                draft_tokens,
                draft_probs,
                target_probs,
                *tensor_and_int(seed),
                *tensor_and_int(position),
            )
        )

    launch.__name__ = launch.__qualname__ = entry.name
    launch.__doc__ = f"""Run ``cuda/{entry.name}.cu``; else as :func:`rsk.rejection_sample`.

        Its idea: {entry.idea}. It runs on {entry.needs}. On CPU tensors it runs in the emulator,
        whose order of threads is shuffled by the environment variable RSK_EMULATOR_SEED.

        Raises:
            rsk.BuildError: it cannot be compiled.
            RuntimeError: the launch failed, or the GPU is not one that it runs on.
        """
    return launch


KERNELS: Mapping[str, Callable[..., RejectionSamples]] = MappingProxyType(
    {name: _launcher(i, entry) for i, (name, entry) in enumerate(registry.KERNELS.items())}
)
"""Name to callable, in the order in which the course introduces them."""


def runs_on(name: str, device: torch.device) -> bool:
    """Whether a device has what a kernel needs; on a CPU it runs in the emulator, which has all."""
    if device.type != "cuda":
        return True
    return torch.cuda.get_device_capability(device) >= registry.KERNELS[name].capability
