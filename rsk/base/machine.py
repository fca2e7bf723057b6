"""The machine and the versions that a measurement was made with."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import torch

from rsk.measure.records import Provenance


@contextlib.contextmanager
def pinned_threads(threads: int | None) -> Iterator[None]:
    """Run with this many PyTorch threads; ``None`` leaves the number as it is.

    Raises:
        ValueError: less than one thread.
    """
    if threads is not None and threads < 1:
        raise ValueError(f"threads: expected at least 1, got {threads}")
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def last_level_cache(device: torch.device | str) -> int:
    """Bytes of the device's last-level cache; 64 MiB if a CPU does not tell."""
    device = torch.device(device)
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).L2_cache_size)
    sizes = []
    for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = file.read_text().strip()  # such as 32768K
        sizes.append(int(text.rstrip("KMG")) << {"K": 10, "M": 20, "G": 30}.get(text[-1], 0))
    if platform.system() == "Darwin":
        for name in ("hw.perflevel0.l2cachesize", "hw.l3cachesize"):
            sizes.append(int(_output("sysctl", "-n", name) or 0))
    return max(sizes, default=0) or 64 << 20


def available_memory(device: torch.device | str) -> int | None:
    """Bytes of memory that are free on the device; ``None`` if the system does not tell."""
    device = torch.device(device)
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    info = Path("/proc/meminfo")
    if not info.is_file():
        return None
    fields = dict(line.split(":") for line in info.read_text().splitlines())
    return int(fields["MemAvailable"].split()[0]) << 10


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
        query = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
        driver = query.partition("\n")[0] or "unknown"
        cuda = torch.version.cuda
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS and Windows
    return Provenance(
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        device=device.type,
        cpu=_cpu_name(),
        cores=len(affinity(0)) if affinity else os.cpu_count() or 1,
        threads=torch.get_num_threads(),
        instructions=torch.backends.cpu.get_cpu_capability(),
        cache_bytes=last_level_cache(device),
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


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    brand = platform.system() == "Darwin" and _output("sysctl", "-n", "machdep.cpu.brand_string")
    return brand or platform.processor() or platform.machine()


def _commit() -> str:
    from rsk.base.folders import checkout

    top = checkout()
    git = ["git", "-C", str(top)]
    commit = _output(*git, "rev-parse", "--short=12", "HEAD") if top else ""
    if not commit:
        return "none"
    return commit + ("+changes" if _output(*git, "status", "--porcelain") else "")


CPU_SOURCES = ("binding.cpp", "fused_cpu.cpp", "kernels.h", "specification.h")
"""What the CPU's kernel is compiled from, in ``cuda/``."""


def sources(device_type: str) -> str:
    """A checksum of the sampler and the kernels there: what a recorded time is a time of."""
    from rsk.base.folders import cuda_dir
    from rsk.sampler import api, baseline, fused, random_words, vectorized

    modules = (baseline, fused, api, vectorized, random_words)
    files = [Path(str(module.__file__)) for module in modules]
    if device_type == "cpu":
        files += [cuda_dir() / name for name in CPU_SOURCES]
    else:
        files += [path for path in cuda_dir().rglob("*") if path.suffix in (".h", ".cpp", ".cu")]
    digest = hashlib.sha256()
    for file in sorted(files, key=lambda file: file.name):
        digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()


def _output(*command: str) -> str:
    """What a command prints; nothing if it is missing or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
