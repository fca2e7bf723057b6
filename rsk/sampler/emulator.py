"""Run a CUDA kernel given as text in the emulator: for exercises, and to test the emulator itself.

The kernels of the package need none of this: :data:`rsk.KERNELS` runs them on CPU tensors.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
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
from rsk.sampler.cache import is_whole, keep
from rsk.sampler.compilers import failure, version_of

_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_SAMPLE_STREAM = 1
_ENTRY = """
extern "C" const char* rsk_launch(const rsk::Batch& batch, void* workspace) {{
  const cudaError_t error = {launch}(batch, workspace, nullptr);
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}}
extern "C" unsigned long rsk_batch_bytes() {{ return sizeof(rsk::Batch); }}
"""


class _Batch(ctypes.Structure):
    """``rsk::Batch`` of cuda/specification.h, field by field."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("draft_tokens", "draft_probs", "target_probs")),
        *((name, ctypes.c_void_p) for name in ("seeds", "positions", "tokens", "num_accepted")),
        *((name, ctypes.c_int64) for name in ("seed", "position", "draft_tokens_stride")),
        ("draft_probs_stride", ctypes.c_int64 * 2),
        ("target_probs_stride", ctypes.c_int64 * 2),
        *((name, ctypes.c_int32) for name in ("batch_size", "spec_len", "vocab_size")),
        *((name, ctypes.c_int32) for name in ("draft_vocab_size", "sample_stream")),
        *((name, ctypes.c_int32) for name in ("dtype", "draft_dtype")),
        ("wide_tokens", ctypes.c_bool),
    )


def compile_kernel(source: str, launch: str) -> Callable[..., RejectionSamples]:
    """Compile a kernel's source text for the emulator.

    Args:
        source: what would stand in a ``.cu`` file; it may include the headers of ``cuda/``.
        launch: name of its entry point, such as ``rsk::block_per_sequence::launch``:
            ``cudaError_t (const rsk::Batch&, void* workspace, cudaStream_t)``.

    Returns:
        A function with the arguments and the result of the kernels in :data:`rsk.KERNELS`, for
        CPU tensors. It raises ``RuntimeError`` if a barrier is not reached by all threads.

    Raises:
        rsk.BuildError: the source does not compile; the message is the compiler's.
    """
    library = ctypes.CDLL(str(_compile(source + _ENTRY.format(launch=launch))))
    library.rsk_launch.restype = ctypes.c_char_p
    library.rsk_batch_bytes.restype = ctypes.c_ulong
    if library.rsk_batch_bytes() != ctypes.sizeof(_Batch):
        raise build.BuildError("rsk::Batch in cuda/specification.h and in rsk/emulator.py differ")

    def run(
        draft_tokens: Tensor,
        draft_probs: Tensor | None,
        target_probs: Tensor,
        *,
        seed: int | Tensor | None = None,
        position: int | Tensor = 0,
    ) -> RejectionSamples:
        seed, position = check_request(draft_tokens, draft_probs, target_probs, seed, position)
        batch_size, spec_len = draft_tokens.shape
        tokens = torch.full((batch_size, spec_len + 1), -7)  # whatever is not written shows
        num_accepted = torch.full((batch_size,), -7)
        draft = target_probs if draft_probs is None else draft_probs
        batch = _Batch(
            draft_tokens=draft_tokens.data_ptr(),
            draft_tokens_stride=draft_tokens.stride(0),
            wide_tokens=draft_tokens.dtype == torch.int64,
            target_probs=target_probs.data_ptr(),
            target_probs_stride=target_probs.stride()[:2],
            tokens=tokens.data_ptr(),
            num_accepted=num_accepted.data_ptr(),
            batch_size=batch_size,
            spec_len=spec_len,
            vocab_size=target_probs.shape[2],
            draft_vocab_size=draft.shape[2],
            sample_stream=_SAMPLE_STREAM,
            dtype=_DTYPES[target_probs.dtype],
            draft_dtype=_DTYPES[draft.dtype],
        )
        if draft_probs is not None:
            batch.draft_probs = draft_probs.data_ptr()
            batch.draft_probs_stride = draft_probs.stride()[:2]
        for name, value in (("seed", seed), ("position", position)):
            if isinstance(value, Tensor):
                setattr(batch, name + "s", value.data_ptr())
            else:
                setattr(batch, name, value)
        if batch_size > 0:
            workspace = torch.full((batch_size * 1024 + 64,), -7)  # nobody may rely on its content
            error = library.rsk_launch(ctypes.byref(batch), ctypes.c_void_p(workspace.data_ptr()))
            if error is not None:
                raise RuntimeError(f"the launch failed: {error.decode()}")
        return RejectionSamples(tokens, num_accepted)

    return run


def include_flags() -> list[str]:
    """Compiler flags for a kernel that is to run in the emulator."""
    includes = [f"-I{cuda_dir() / 'emulator'}", f"-I{cuda_dir()}"]
    return ["-std=c++17", "-ffp-contract=off", "-DRSK_CUDA", *includes]


def _compile(source: str) -> Path:
    compiler = build.find_compiler()
    if compiler is None or os.name == "nt":
        raise build.BuildError("the emulator needs a C++ compiler on Linux or macOS")
    digest = hashlib.sha256("\0".join([source, version_of(*compiler)]).encode())
    for header in sorted(cuda_dir().rglob("*.h")):
        digest.update(header.read_bytes())
    folder = build.cache_dir() / "emulated"
    library = folder / f"{digest.hexdigest()[:16]}.so"
    if is_whole(library):
        return library
    # A name of our own until it is whole: processes may compile the same text at once.
    unfinished = library.with_suffix(f".{os.getpid()}")
    command = [*compiler, "-O2", "-shared", "-fPIC", *include_flags()]
    command += ["-x", "c++", "-", "-o", str(unfinished)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(
            command, input=source, capture_output=True, encoding="utf-8", errors="replace"
        )
        if done.returncode != 0:
            raise failure("the kernel does not compile", done.stderr, shlex.join(command))
        keep(unfinished, library)
    except OSError as error:
        raise build.BuildError(f"cannot use the build cache {folder}: {error}") from error
    return library
