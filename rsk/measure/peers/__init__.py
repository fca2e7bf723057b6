"""Samplers of other projects, measured on the same inputs, in the same run, on the same clock.

There is a module for each. A peer draws its own random numbers, so its tokens differ from ours;
what is checked before its time is shown is the distribution of its output
(:mod:`rsk.measure.peers.checking`). What its interface lacks is tried, not read off, in
:mod:`rsk.measure.peers.traits`. ``python -m rsk.measure.peers --save FILE`` does all of it, from
probabilities and from logits; ``data/benchmarks/README.md`` says how the peers are installed.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Sequence

import torch

from rsk.base import terminal
from rsk.measure.implementations import Implementation
from rsk.measure.peers import of_flashinfer, of_sglang, of_transformers, of_vllm_v1, of_vllm_v2
from rsk.measure.peers.checking import check_distribution
from rsk.measure.peers.peer import Peer, PeerError
from rsk.sampler.registry import Entry, by_name

Maker = Callable[[torch.device], Peer]
MAKERS: dict[str, tuple[str, Entry, Maker]] = {
    one.ENTRY.name: (package, one.ENTRY, one.make)
    for package, one in (
        ("transformers", of_transformers),
        ("flashinfer-python", of_flashinfer),
        ("sglang", of_sglang),
        ("vllm", of_vllm_v1),
        ("vllm", of_vllm_v2),
    )
}
"""By name: the package that a peer is in, as pip knows it, its entry, and what makes it."""
ENTRIES = by_name(*(entry for _, entry, _ in MAKERS.values()))
"""The peers by name, in the form of :mod:`rsk.sampler.registry`."""


def make(name: str, device: torch.device) -> Peer:
    """A peer, not yet checked.

    Raises:
        PeerError: it cannot be had here; the message says why, and what to install.
    """
    package, _, maker = MAKERS[name]
    try:
        return maker(device)
    except ModuleNotFoundError as error:
        wanted = "" if error.name in (None, *_modules_of(package)) else f" (no module {error.name})"
        raise PeerError(f"not installed{wanted}: pip install {package}") from error
    except (ImportError, AttributeError) as error:
        raise PeerError(f"another version of {package} than is known here: {error}") from error
    except PeerError:
        raise
    except Exception as error:  # other people's code: what its import does is not ours to foresee
        raise PeerError(f"cannot be made: {terminal.error_line(error)}") from error


def _modules_of(package: str) -> tuple[str, str]:
    return package, package.removesuffix("-python")


def version_of(name: str) -> str:
    """The version of a peer's package; of one that was only unpacked, too."""
    try:
        return importlib.metadata.version(MAKERS[name][0])
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def find(
    device: torch.device | str, names: Sequence[str] | None = None
) -> tuple[list[Implementation], dict[str, str], list[str]]:
    """The peers that can be measured on a device, from probabilities.

    Args:
        device: where.
        names: of those to look for, or ``None`` for all.

    Returns:
        Those whose output distribution was checked just now, the versions of their packages,
        and a line for each that is not measured.
    """
    device = torch.device(device)
    found: list[Implementation] = []
    versions: dict[str, str] = {}
    missing: list[str] = []
    for name in MAKERS if names is None else names:
        try:
            peer = make(name, device)
            check_distribution(peer.implementation, device)
        except PeerError as error:
            missing.append(f"{name}: {error}")
        else:
            found.append(peer.implementation)
            versions[MAKERS[name][0]] = version_of(name)
    return found, versions, missing
