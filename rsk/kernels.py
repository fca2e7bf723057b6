"""The CUDA kernels one by one; ``fused`` on a GPU picks among them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from rsk.sampler import RejectionSamples

KERNELS: Mapping[str, Callable[..., RejectionSamples]] = MappingProxyType({})
