"""Where the project's folders are: beside the package in a checkout, inside it when installed."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]


def checkout() -> Path | None:
    """Top folder of the source checkout that this package runs from, or ``None`` if installed."""
    top = _PACKAGE.parent
    is_checkout = (top / "pyproject.toml").is_file() and (top / "notebooks").is_dir()
    return top if is_checkout else None


def _room(name: str) -> Path:
    top = checkout()
    # The wheel carries the folders under these names: see [tool.hatch] in pyproject.toml.
    folder = top / name if top is not None else _PACKAGE / f"_{name}"
    if not folder.is_dir():
        raise FileNotFoundError(f"rsk's own folder {folder} is missing: install rsk again")
    return folder


def cuda_dir() -> Path:
    """The C++ and CUDA sources of the kernels."""
    return _room("cuda")


def notebooks_dir() -> Path:
    """The notebooks' sources, without outputs."""
    return _room("notebooks")


def data_dir() -> Path:
    """Recorded measurements, the small models and the prompts."""
    return _room("data")


def style_dir() -> Path:
    """Styles and page templates of the exported report and talk."""
    return _room("report") / "style"


def report_dir() -> Path:
    """The words of the report, the talk and the demo: a folder for each language."""
    return _room("report")
