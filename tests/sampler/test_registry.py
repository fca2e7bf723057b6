"""The registry: one entry for each implementation, the same in Python, in C++ and in figures."""

from __future__ import annotations

import re

import pytest
import torch

import rsk
from rsk.base.folders import cuda_dir
from rsk.sampler import api, kernels, registry
from rsk.sampler.implementations import IMPLEMENTATIONS

LADDER = (cuda_dir() / "kernel_list.h").read_text()


def test_everybody_has_the_same_names():
    assert tuple(registry.BACKENDS) == rsk.BACKENDS == tuple(api._MODULES)
    assert list(registry.KERNELS) == list(rsk.KERNELS)
    assert set(registry.OURS) == {*rsk.BACKENDS, *rsk.KERNELS}
    assert set(IMPLEMENTATIONS) == {*registry.OURS, *registry.RIVALS}
    assert not set(registry.OURS) & set(registry.RIVALS)
    for name, kernel in rsk.KERNELS.items():
        source = (cuda_dir() / f"{name}.cu").read_text()
        assert f"namespace rsk::{name} {{" in source and "\nconst Kernel entry{" in source
        assert kernel.__name__ == name and registry.KERNELS[name].idea in kernel.__doc__


def test_no_two_look_alike():
    entries = {**registry.OURS, **registry.RIVALS}
    seen = [(e.color, e.marker) for e in entries.values()]
    assert len({color for color, _ in seen}) == len({marker for _, marker in seen}) == len(seen)


def test_a_capability_is_named_once(monkeypatch):
    numbers = re.findall(r"RSK_KERNEL\(\w+, (\d+),", LADDER)
    assert [e.capability for e in registry.KERNELS.values()] == [
        divmod(int(number), 10) for number in numbers
    ]
    cluster = registry.KERNELS["cluster"]
    assert cluster.needs == "compute capability 9.0"
    assert registry.KERNELS["thread_per_sequence"].needs == "any GPU"
    for capability, able in (((8, 9), False), ((9, 0), True), ((12, 0), True)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, c=capability: c)
        assert kernels.runs_on("cluster", torch.device("cuda")) == able
        assert kernels.runs_on("split_vocabulary", torch.device("cuda"))
    assert kernels.runs_on("cluster", torch.device("cpu")), "the emulator has clusters"


def test_an_entry_that_cannot_be_read_is_an_error():
    entry = 'RSK_KERNEL(one, 75, "#123456", "v",\n           "an idea")\n'
    (read,) = registry.read_kernels("// RSK_KERNEL(name, ...)\n" + entry)
    assert (read.name, read.capability, read.idea) == ("one", (7, 5), "an idea")
    with pytest.raises(ValueError, match=r"cuda/kernel_list.h: the entry of one"):
        registry.read_kernels(entry.replace("75", '"75"'))
    with pytest.raises(ValueError, match=r"cuda/kernel_list.h: the entry of one"):
        registry.read_kernels(entry.replace('"v",', ""))
    with pytest.raises(ValueError, match="each entry to begin and to end a line"):
        registry.read_kernels("  " + entry)
    with pytest.raises(ValueError, match="two entries have one name: one, one"):
        registry.by_name(read, read)
