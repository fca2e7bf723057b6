"""Devices, by the names that commands, notebooks and functions take."""

from __future__ import annotations

import pytest
import torch

from rsk.base import machine
from rsk.course import beginning, demo, running
from rsk.decode import command_line, loading
from rsk.measure import benchmark
from rsk.measure.sweep import Sweep


@pytest.fixture
def gpus(monkeypatch):
    """Sets how many GPUs there seem to be."""

    def there_are(count):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    return there_are


def test_a_device_that_is_there(gpus):
    gpus(2)
    for name in ("cpu", "cuda", "cuda:0", "cuda:1", torch.device("cuda", 1)):
        assert machine.device(name) == torch.device(name)
    assert machine.device().type == machine.device("auto").type == "cuda"
    gpus(0)
    assert machine.device().type == "cpu"


@pytest.mark.parametrize("name", ["", "gpu", "mps", "meta", "cuda:x", "cuda:-1"])
def test_what_is_no_device_here_is_refused(name, gpus):
    gpus(1)
    with pytest.raises(ValueError, match=f"device: expected 'auto', 'cpu' or 'cuda', got '{name}'"):
        machine.device(name)


@pytest.mark.parametrize(
    "enter",
    [
        machine.device,
        beginning.begin,
        lambda device: benchmark.run(Sweep(), device=device),
        lambda device: demo.run(device=device),
        lambda device: loading.load_pair("no folder", None, device=device),
        lambda device: command_line.run(target="smollm2", device=device),
        lambda device: running.run_course({"device": device}, only=["00"]),
    ],
)
def test_a_gpu_that_is_not_there_is_refused_by_its_number_everywhere(enter, gpus):
    gpus(0)
    with pytest.raises(ValueError, match=r"device cuda:1: PyTorch finds no NVIDIA GPU"):
        enter("cuda:1")
    gpus(1)
    with pytest.raises(ValueError, match="device cuda:1: the last NVIDIA GPU .* is cuda:0"):
        enter("cuda:1")
