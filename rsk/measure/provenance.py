"""Where, when and with what a measurement is made."""

from __future__ import annotations

import hashlib
import os
import platform
from datetime import UTC, datetime
from pathlib import Path

import torch

from rsk import sampler
from rsk.base import machine
from rsk.base.folders import checkout, cuda_dir
from rsk.measure.records import Provenance


def provenance(device: torch.device | str, packages: dict[str, str] | None = None) -> Provenance:
    """Where, when and with what a run that begins now is made.

    Args:
        device: the one that is measured.
        packages: versions of the peers that are measured.
    """
    import rsk

    device = torch.device(device)
    gpu = capability = driver = cuda = None
    if device.type == "cuda":
        gpu = torch.cuda.get_device_name(device)
        capability = ".".join(map(str, torch.cuda.get_device_capability(device)))
        query = machine.output_of(
            "nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"
        )
        driver = query.partition("\n")[0] or "unknown"
        cuda = torch.version.cuda
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS and Windows
    return Provenance(
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        device=device.type,
        cpu=machine.cpu_name(),
        cores=len(affinity(0)) if affinity else os.cpu_count() or 1,
        threads=torch.get_num_threads(),
        instructions=torch.backends.cpu.get_cpu_capability(),
        cache_bytes=machine.last_level_cache(device),
        gpu=gpu,
        compute_capability=capability,
        driver=driver,
        cuda=cuda,
        os=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        torch=torch.__version__,
        rsk=rsk.__version__,
        packages=packages or {},
        commit=_commit(),
        sources=sources(device.type),
    )


def _commit() -> str:
    top = checkout()
    git = ["git", "-C", str(top)]
    commit = machine.output_of(*git, "rev-parse", "--short=12", "HEAD") if top else ""
    if not commit:
        return "none"
    # gpu-check writes its file between its stages: no change of what the next one runs.
    changed = [*git, "status", "--porcelain", "--", ":/", ":(exclude,top)data/gpu-check"]
    return commit + ("+changes" if machine.output_of(*changed) else "")


_CPU_KERNEL = "fused_cpu.cpp", "fused_cpu_logits.cpp", "unit_sum.h", "vectors.h"
CPU_ONLY = (*_CPU_KERNEL, "roof_cpu.cpp")
"""What no library for a GPU is compiled from, in ``cuda/``."""
CPU_SOURCES = (
    *("binding.cpp", "binding_logits.cpp", "binding_sharded.cpp", "binding.h", "arguments.h"),
    *("kernels.h", "kernel_list.h", "sharded.h"),
    *_CPU_KERNEL,
    *("specification.h", "host_device.h", "random_words.h", "row_law.h", "logits_batch.h"),
)
"""What the CPU's kernel is compiled from, in ``cuda/``."""


def sources(device_type: str) -> str:
    """A checksum of all samplers and of the kernels there: what a recorded time is a time of."""
    digest = hashlib.sha256()
    for file in sorted(source_files(device_type), key=lambda file: file.name):
        digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()


def source_files(device_type: str) -> list[Path]:
    """What :func:`sources` covers on a ``"cpu"`` or on ``"cuda"``.

    The whole room of the samplers, so that whatever is timed is in it: from probabilities, from
    logits, on several ranks, in Triton.
    """
    files = list(Path(sampler.__path__[0]).glob("*.py"))
    if device_type == "cpu":
        return files + [cuda_dir() / name for name in CPU_SOURCES]
    kernels = [p for p in cuda_dir().rglob("*") if p.suffix in (".h", ".cpp", ".cu")]
    return files + [p for p in kernels if p.name not in CPU_ONLY]
