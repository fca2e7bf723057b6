"""This machine: its devices, processor, caches and free memory; and threads set for a while."""

from __future__ import annotations

import contextlib
import platform
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def device(name: torch.device | str = "auto") -> torch.device:
    """The device to run on.

    Args:
        name: "auto" (the GPU if there is one, else the CPU), "cpu", "cuda", or one of several GPUs
            by its number, such as "cuda:1".

    Raises:
        ValueError: another kind of device, or one that is not there.
    """
    import torch

    has_gpu = torch.cuda.is_available()
    if str(name) == "auto":
        return torch.device("cuda" if has_gpu else "cpu")
    wanted = f"device: expected 'auto', 'cpu' or 'cuda', got {str(name)!r}"
    try:
        found = torch.device(name)
    except RuntimeError:
        raise ValueError(wanted) from None
    if found.type not in ("cpu", "cuda"):
        raise ValueError(wanted)
    if found.type == "cuda" and not has_gpu:
        raise ValueError(f"device {name}: PyTorch finds no NVIDIA GPU (see rsk doctor)")
    if found.type == "cuda" and (found.index or 0) > (last := torch.cuda.device_count() - 1) >= 0:
        raise ValueError(f"device {name}: the last NVIDIA GPU that PyTorch finds is cuda:{last}")
    return found


@contextlib.contextmanager
def pinned_threads(threads: int | None) -> Iterator[None]:
    """Run with this many PyTorch threads; ``None`` leaves the number as it is.

    Raises:
        ValueError: less than one thread.
    """
    import torch

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
    import torch

    device = torch.device(device)
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).L2_cache_size)
    sizes = []
    for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = file.read_text().strip()  # such as 32768K
        sizes.append(int(text.rstrip("KMG")) << {"K": 10, "M": 20, "G": 30}.get(text[-1], 0))
    if platform.system() == "Darwin":
        for name in ("hw.perflevel0.l2cachesize", "hw.l3cachesize"):
            sizes.append(int(output_of("sysctl", "-n", name) or 0))
    return max(sizes, default=0) or 64 << 20


def available_memory(device: torch.device | str) -> int | None:
    """Bytes of memory that are free on the device; ``None`` if the system does not tell."""
    import torch

    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.empty_cache()  # what PyTorch keeps of freed tensors and graphs is free, too
        return int(torch.cuda.mem_get_info(device)[0])
    info = Path("/proc/meminfo")
    if not info.is_file():
        return None
    fields = dict(line.split(":") for line in info.read_text().splitlines())
    return int(fields["MemAvailable"].split()[0]) << 10


def cpu_name() -> str:
    """The processor's name, as the system tells it."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    brand = platform.system() == "Darwin" and output_of("sysctl", "-n", "machdep.cpu.brand_string")
    return brand or platform.processor() or platform.machine()


def output_of(*command: str) -> str:
    """What a command prints; nothing if it is missing or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
