"""rsk: the rejection sampler of speculative decoding, exact and fast, and a course about it."""

from rsk.build import BuildError
from rsk.kernels import KERNELS
from rsk.sampler import BACKENDS, RejectionSamples, rejection_sample, sample

__all__ = ["BACKENDS", "KERNELS", "BuildError", "RejectionSamples", "rejection_sample", "sample"]
__version__ = "0.1.0"
