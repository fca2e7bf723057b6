"""The CUDA kernels one by one; ``fused`` on a GPU picks among them.

Given CPU tensors, a kernel's unmodified source runs in an emulator: exact, and far too slow to
time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from rsk.sampler import build
from rsk.sampler.api import RejectionSamples
from rsk.sampler.arguments import check_request
from rsk.sampler.fused import tensor_and_int

# The order is that of the ladder in the course, and of kernel_at() in cuda/fused.cu.
_NAMES = ("thread_per_sequence", "block_per_sequence", "split_vocabulary", "cluster")


def _launcher(index: int) -> Callable[..., RejectionSamples]:
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

    name = _NAMES[index]
    launch.__name__ = launch.__qualname__ = name
    launch.__doc__ = f"""Run ``cuda/{name}.cu``; otherwise as :func:`rsk.rejection_sample`.

        On CPU tensors it runs in the emulator, whose order of threads is shuffled by the
        environment variable RSK_EMULATOR_SEED.

        Raises:
            rsk.BuildError: it cannot be compiled.
            RuntimeError: the launch failed; ``cluster`` needs compute capability 9.0.
        """
    return launch


KERNELS: Mapping[str, Callable[..., RejectionSamples]] = MappingProxyType(
    {name: _launcher(index) for index, name in enumerate(_NAMES)}
)
"""Name to callable, in the order in which the course introduces them."""
