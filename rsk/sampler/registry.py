"""The implementations of the sampler: what each is, what it needs, and how figures draw it.

One entry each. The CUDA kernels' entries are in ``cuda/kernel_list.h``, where C++ takes its enum
and tables from; the backends' are here, and those of the rivals, which are there to be compared
with; those of other projects' samplers, in the same form, are in :mod:`rsk.measure.peers`. What
each name calls is in :mod:`rsk.sampler.implementations`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from rsk.base.folders import cuda_dir


@dataclass(frozen=True)
class Entry:
    """One implementation."""

    name: str
    idea: str
    """What it is, in a line."""
    color: str
    marker: str
    """Of its points in figures, as matplotlib names it."""
    linestyle: str = "-"
    capability: tuple[int, int] = (0, 0)
    """Compute capability that it needs of a GPU; (0, 0): any."""
    exact: bool = True
    """Whether it returns the specification's tokens, bit for bit; else only their distribution."""
    devices: tuple[str, ...] = ("cpu", "cuda")
    """Where it runs: what an emulator or an interpreter runs is not timed."""
    package: str = ""
    """What has to be installed for it besides PyTorch."""

    @property
    def style(self) -> dict[str, str]:
        """How figures draw it, as matplotlib's keyword arguments."""
        return {"color": self.color, "marker": self.marker, "linestyle": self.linestyle}

    @property
    def needs(self) -> str:
        """What it needs of a GPU, in words."""
        major, minor = self.capability
        return f"compute capability {major}.{minor}" if self.capability > (0, 0) else "any GPU"


def by_name(*entries: Entry) -> Mapping[str, Entry]:
    """The entries under their names, in their order.

    Raises:
        ValueError: two have the same name.
    """
    found = {entry.name: entry for entry in entries}
    if len(found) != len(entries):
        raise ValueError(f"two entries have one name: {', '.join(e.name for e in entries)}")
    return MappingProxyType(found)


def read_kernels(text: str) -> list[Entry]:
    """The entries in the text of ``cuda/kernel_list.h``.

    Raises:
        ValueError: a line there is not as its comment says.
    """
    found = []
    for name, rest in re.findall(r"^RSK_KERNEL\((\w+),(.*?)\)$", text, re.M | re.S):
        try:
            capability, color, marker, idea = ast.literal_eval(f"({rest.strip()})")
            needed = divmod(capability, 10)
        except (SyntaxError, TypeError, ValueError) as error:
            raise ValueError(f"cuda/kernel_list.h: the entry of {name}: {error}") from error
        found.append(Entry(name, idea, color, marker, ":", needed, devices=("cuda",)))
    if len(found) != len(re.findall(r"^\s*RSK_KERNEL\(", text, re.M)):
        raise ValueError("cuda/kernel_list.h: expected each entry to begin and to end a line")
    return found


# The colours are from Okabe and Ito's palette, which the colour-blind can tell apart.
BACKENDS = by_name(
    Entry(
        "baseline",
        "a Python loop over requests and draft positions, which waits for each token",
        "#1a1a1a",
        "o",
    ),
    Entry("vectorized", "PyTorch operators over the whole batch, no loop", "#e69f00", "s", "--"),
    Entry("fused", "one kernel a call, the best of those there are", "#0072b2", "D"),
)
KERNELS = by_name(*read_kernels((cuda_dir() / "kernel_list.h").read_text(encoding="utf-8")))
"""In the order of the course; a kernel's place is its number in C++."""

_FIRST, _SECOND, _LAST = BACKENDS.values()
OURS = by_name(_FIRST, _SECOND, *KERNELS.values(), _LAST)
"""In the order of the story: ``fused`` comes after the kernels that it picks from."""

RIVALS = by_name(
    Entry("compiled", "vectorized under torch.compile", "#f0e442", "h", "--"),
    Entry(
        "idiomatic",
        "PyTorch operators in floats, with the device's random numbers: not reproducible",
        "#882255",
        "*",
        "--",
        exact=False,
    ),
    Entry(
        "triton",
        "the specification in Triton, two launches a call",
        "#117733",
        "8",
        "-.",
        devices=("cuda",),
        package="triton",
    ),
)
"""What else one might write in Python; not for use, but to be compared with."""
