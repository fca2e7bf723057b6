"""The cache of compiled kernels: its folder, the locks of builds, and whether a file is whole."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rsk.sampler.compilers import BuildError

if TYPE_CHECKING:
    from filelock import BaseFileLock


def cache_dir() -> Path:
    """The folder of compiled kernels: ``$RSK_CACHE_DIR``, or the user's cache folder.

    Raises:
        BuildError: this user has no home folder.
    """
    if override := os.environ.get("RSK_CACHE_DIR"):
        return Path(override)
    variable = "LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME"
    if sys.platform != "darwin" and (chosen := os.environ.get(variable)):
        return Path(chosen) / "rsk"
    try:
        home = Path.home()
    except RuntimeError as error:
        raise BuildError(
            "no folder for the build cache: this user has no home folder; "
            "set RSK_CACHE_DIR to a folder that can be written"
        ) from error
    usual = {"win32": "AppData/Local", "darwin": "Library/Caches"}
    return home / usual.get(sys.platform, ".cache") / "rsk"


def is_whole(library: Path) -> bool:
    """Whether a library is there as it was kept: loading one cut short would end the process."""
    try:
        return _mark(library).read_text(encoding="ascii") == _checksum(library)
    except (OSError, ValueError):
        return False


def keep(finished: Path, library: Path) -> None:
    """Move a finished library to its name in one step, with its checksum beside it."""
    mark = finished.with_name(f"{finished.name}.sum")
    mark.write_text(_checksum(finished), encoding="ascii")
    mark.replace(_mark(library))
    finished.replace(library)


def ensure(library: Path, make: Callable[[], None], waiting: str) -> bool:
    """Have a library in the cache: made by whichever process comes first, once.

    Args:
        library: its path.
        make: compiles it and keeps it (:func:`keep`).
        waiting: what to say on standard error if another process is making it.

    Returns:
        Whether it was made by this call.
    """
    if is_whole(library):
        return False
    library.parent.mkdir(parents=True, exist_ok=True)
    with held(library, waiting):
        if is_whole(library):
            return False
        make()
        return True


@contextlib.contextmanager
def usable() -> Iterator[None]:
    """Say of a file that cannot be written, read or loaded what to do about it.

    Raises:
        BuildError: instead of an ``OSError``; or where files cannot be locked.
    """
    try:
        yield
    except (OSError, NotImplementedError) as error:  # the second is filelock's, without flock
        raise BuildError(
            f"cannot use the build cache {cache_dir()}: {error.__cause__ or error}; "
            "set RSK_CACHE_DIR to a folder that can be written and programs can be loaded from"
        ) from error


def _mark(library: Path) -> Path:
    return library.with_suffix(".sum")


def _checksum(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def lock_of(library: Path) -> BaseFileLock:
    """The lock of whoever compiles a library."""
    from filelock import FileLock  # here, because most processes find everything built

    return FileLock(library.with_suffix(".lock"))


@contextlib.contextmanager
def held(library: Path, waiting: str) -> Iterator[None]:
    """Hold the lock of a library, which the system ends with its process, however that ends.

    Args:
        library: its path in the cache.
        waiting: what to say on standard error if another process holds it.
    """
    lock = lock_of(library)
    try:
        lock.acquire(timeout=0)
    except TimeoutError:
        say(waiting)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def leftovers() -> list[Path]:
    """Folders of builds that were interrupted: nobody holds the lock of their library.

    Raises:
        BuildError: there is no cache, or it cannot be used.
    """
    found = []
    with usable():
        for folder in sorted(cache_dir().glob("*.building")):
            try:
                with lock_of(folder.with_suffix("")).acquire(timeout=0):
                    if folder.is_dir():
                        found.append(folder)
            except TimeoutError:
                pass  # being built right now
    return found


def say(message: str) -> None:
    """Print a line on standard error."""
    print(f"rsk: {message}", file=sys.stderr, flush=True)
