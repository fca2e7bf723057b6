"""Run a CUDA kernel given as text in the emulator: for exercises, and to test the emulator itself.

The kernels of the package need none of this: :data:`rsk.KERNELS` runs them on CPU tensors.
"""

from __future__ import annotations

import ctypes
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from rsk.base.folders import cuda_dir
from rsk.sampler import build
from rsk.sampler.api import RejectionSamples
from rsk.sampler.arguments import check_request
from rsk.sampler.cache import cache_dir, ensure, keep, usable
from rsk.sampler.compilers import check_emulated, failure, host_compiler

_FLAGS = ["-O2", "-std=c++17", "-ffp-contract=off", "-DRSK_CUDA", "-shared", "-fPIC"]
_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_SAMPLE_STREAM = 1
_FIELDS = (
    *("draft_tokens", "draft_probs", "target_probs", "seeds", "positions"),
    *("tokens", "num_accepted", "seed", "position", "draft_tokens_stride"),
    *(f"{side}_probs_stride[{i}]" for side in ("draft", "target") for i in (0, 1)),
    *("batch_size", "spec_len", "vocab_size", "draft_vocab_size", "sample_stream"),
    *("dtype", "draft_dtype", "wide_tokens"),
)
"""Of ``rsk::Batch`` in cuda/specification.h; the compiler knows their types and their order."""


def _entry(launch: str) -> str:
    """C++ that fills a Batch with numbers in the order of the fields, and launches the kernel."""
    fill = "".join(f"  batch.{x} = (decltype(batch.{x}))v[{i}];\n" for i, x in enumerate(_FIELDS))
    return f"""
extern "C" const char* rsk_launch(const int64_t* v, void* workspace) {{
  rsk::Batch batch{{}};
{fill}  const cudaError_t error = {launch}(batch, workspace, nullptr);
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}}
"""


def compile_kernel(source: str, launch: str) -> Callable[..., RejectionSamples]:
    """Compile a kernel's source text for the emulator.

    Args:
        source: what would stand in a ``.cu`` file; it may include the headers of ``cuda/``.
        launch: name of its entry point, such as ``rsk::block_per_sequence::launch``:
            ``cudaError_t (const rsk::Batch&, void* workspace, cudaStream_t)``.

    Returns:
        A function with the arguments and the result of the kernels in :data:`rsk.KERNELS`, for
        CPU tensors; others are a ``ValueError``. It raises ``RuntimeError`` if a barrier is not
        reached by all threads.

    Raises:
        rsk.BuildError: the source does not compile; the message is the compiler's.
    """
    library = ctypes.CDLL(str(_compile(source + _entry(launch))))
    library.rsk_launch.restype = ctypes.c_char_p

    def run(
        draft_tokens: Tensor,
        draft_probs: Tensor | None,
        target_probs: Tensor,
        *,
        seed: int | Tensor | None = None,
        position: int | Tensor = 0,
    ) -> RejectionSamples:
        seed, position = check_request(draft_tokens, draft_probs, target_probs, seed, position)
        if draft_tokens.device.type != "cpu":
            raise ValueError(
                f"draft_tokens: expected tensors on cpu for the emulator, got {draft_tokens.device}"
            )
        batch_size, spec_len = draft_tokens.shape
        tokens = _filled(batch_size, spec_len + 1)
        num_accepted = _filled(batch_size)
        draft = target_probs if draft_probs is None else draft_probs
        fields = dict.fromkeys(_FIELDS, 0) | {
            "draft_tokens": draft_tokens.data_ptr(),
            "draft_tokens_stride": draft_tokens.stride(0),
            "wide_tokens": draft_tokens.dtype == torch.int64,
            "tokens": tokens.data_ptr(),
            "num_accepted": num_accepted.data_ptr(),
            "batch_size": batch_size,
            "spec_len": spec_len,
            "vocab_size": target_probs.shape[2],
            "draft_vocab_size": draft.shape[2],
            "sample_stream": _SAMPLE_STREAM,
            "dtype": _DTYPES[target_probs.dtype],
            "draft_dtype": _DTYPES[draft.dtype],
        }
        for name, rows in (("draft_probs", draft_probs), ("target_probs", target_probs)):
            if rows is not None:
                fields[name] = rows.data_ptr()
                fields[f"{name}_stride[0]"], fields[f"{name}_stride[1]"] = rows.stride()[:2]
        for name, value in (("seed", seed), ("position", position)):
            if isinstance(value, Tensor):
                fields[f"{name}s"] = value.data_ptr()
            else:
                fields[name] = value
        if batch_size > 0:
            workspace = _filled(batch_size * 1024 + 64)
            values = (ctypes.c_int64 * len(fields))(*fields.values())
            error = library.rsk_launch(values, ctypes.c_void_p(workspace.data_ptr()))
            if error is not None:
                raise RuntimeError(f"the launch failed: {error.decode()}")
        return RejectionSamples(tokens, num_accepted)

    return run


def _filled(*shape: int) -> Tensor:
    """Memory, int64, whose content nobody may rely on: what is not written shows."""
    return torch.full(shape, -7, dtype=torch.int64, device="cpu")


def _compile(source: str) -> Path:
    check_emulated()
    folder = cache_dir() / "emulated"
    library = folder / f"{build.fingerprint(_FLAGS, [], source)}.so"

    def make() -> None:
        built = library.with_suffix(".unfinished")
        command = [*host_compiler(), *_FLAGS, f"-I{cuda_dir() / 'emulator'}", f"-I{cuda_dir()}"]
        command += ["-x", "c++", "-", "-o", str(built)]
        done = subprocess.run(
            command, input=source, capture_output=True, encoding="utf-8", errors="replace"
        )
        if done.returncode != 0:
            raise failure("the kernel does not compile", done.stderr, shlex.join(command))
        keep(built, library)

    with usable():
        ensure(library, make, "waiting for another process that compiles the same kernel")
    return library
