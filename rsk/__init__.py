"""rsk: the rejection sampler of speculative decoding, exact and fast, and a course about it."""

from typing import TYPE_CHECKING, Any

from rsk.sampler.api import BACKENDS, RejectionSamples, rejection_sample, sample
from rsk.sampler.build import BuildError
from rsk.sampler.kernels import KERNELS
from rsk.sampler.logits import probabilities, rejection_sample_from_logits, sample_from_logits

if TYPE_CHECKING:
    from rsk.decode.loop import speculative_generate
    from rsk.sampler import sharded

__all__ = [
    "BACKENDS",
    "KERNELS",
    "BuildError",
    "RejectionSamples",
    "probabilities",
    "rejection_sample",
    "rejection_sample_from_logits",
    "sample",
    "sample_from_logits",
    "sharded",
    "speculative_generate",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "speculative_generate":  # on demand: the sampler needs none of what it imports
        from rsk.decode.loop import speculative_generate

        return speculative_generate
    if name == "sharded":
        from rsk.sampler import sharded

        return sharded
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
