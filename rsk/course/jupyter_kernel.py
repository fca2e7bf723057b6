"""The kernel that notebooks run in: one process for a whole run, cleared before each notebook.

Starting one and importing what the course needs takes five seconds, a third of a short chapter.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rsk.base import folders

RUN_DIR_VARIABLE = "RSK_RUN_DIR"
"""Environment variable that hands the run's folder on to the notebooks."""
START_S = 120

_CLEAR = """
import sys
get_ipython().reset(new_session=True)
import sys
for module in ("rsk.course.labels", "rsk.course.beginning"):
    if module in sys.modules:
        sys.modules[module].reset()
del sys, module
"""
"""What a new kernel would not know: the notebook's names and history, and what we keep for it."""


@contextmanager
def started(folder: Path) -> Iterator[Kernel]:
    """A kernel for the notebooks of a run, which starts with the first of them.

    Args:
        folder: the run's folder.
    """
    kernel = Kernel(folder)
    try:
        yield kernel
    finally:
        kernel.stop()


class Kernel:
    """A kernel that is run by the interpreter that runs this module.

    Jupyter would look "python3" up among the installed kernels and may find another environment's.
    """

    def __init__(self, folder: Path) -> None:
        self.manager = _manager(_environment(folder.resolve()))
        self.used = False

    def clear(self) -> None:
        """Forget what earlier notebooks left."""
        from jupyter_core.utils import run_sync

        if self.used:
            run_sync(self._clear)()
            self._hang_up()
        self.used = True

    async def _clear(self) -> None:
        client = self.manager.client()
        client.start_channels()
        await client.wait_for_ready(timeout=START_S)
        reply = await client.execute_interactive(
            _CLEAR, silent=True, store_history=False, output_hook=lambda _: None
        )
        if reply["content"]["status"] != "ok":
            raise RuntimeError(f"the kernel could not be cleared: {reply['content']}")

    def _hang_up(self) -> None:
        """Close the connections; nbclient does so only with a kernel that it started."""
        while self.manager.clients:
            self.manager.clients.pop().stop_channels()

    def stop(self) -> None:
        """End the kernel, and what it is doing."""
        from jupyter_core.utils import run_sync

        if self.manager.has_kernel:
            run_sync(self._stop)()
        self._hang_up()

    async def _stop(self) -> None:
        # After an interruption nbclient still waits for a cell, and calls the end of that a death.
        waiting = asyncio.all_tasks() - {asyncio.current_task()}
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        await self.manager.shutdown_kernel(now=True)

    def death(self, error: Exception) -> str:
        """How the kernel died, if it did, else what the error says."""
        status: int | None = self.manager.exit_status
        if status is None:
            return str(error) or type(error).__name__
        if status >= 0:
            return f"the kernel ended by itself with status {status}"
        known = -status in set(signal.Signals)
        name = signal.Signals(-status).name if known else f"signal {-status}"
        hint = ", as the system does when memory runs out," if name == "SIGKILL" else ""
        return f"the kernel was killed by {name}{hint}"


def register_engine() -> str:
    """Tell papermill of an engine that writes less, and return its name.

    Its own writes the notebook when any cell begins and when it ends, be it words: with pictures in
    it, that takes longer than a short chapter. This one writes when code begins, and at the end.
    """
    from papermill.engines import NBClientEngine, papermill_engines

    class Sparing(NBClientEngine):  # type: ignore[misc]  # papermill has no types
        @classmethod
        def execute_managed_notebook(cls, nb_man: Any, *args: Any, **options: Any) -> Any:
            save, told = nb_man.save, options.pop("on_cell_execute")

            def begin(**cell: Any) -> None:
                save()
                told(**cell)

            nb_man.save = lambda **_: None
            try:
                return super().execute_managed_notebook(
                    nb_man, *args, on_cell_execute=begin, **options
                )
            finally:
                nb_man.save = save

    papermill_engines.register("sparing", Sparing)
    return "sparing"


def _manager(environment: dict[str, str]) -> Any:
    from ipykernel.kernelspec import get_kernel_dict
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager

    class ThisInterpreter(AsyncKernelManager):
        exit_status: int | None = None  # negative: a signal
        clients: list[Any]

        def client(self, **options: Any) -> Any:
            self.clients.append(super().client(**options))
            return self.clients[-1]

        @property
        def kernel_spec(self) -> KernelSpec:
            # It would warn that what it sends, to this very machine, is not encrypted.
            arguments = ["--IPKernelApp.log_level=CRITICAL"]
            return KernelSpec(**get_kernel_dict(arguments), env=environment)

        async def _async_is_alive(self) -> bool:
            alive: bool = await super()._async_is_alive()
            if not alive and self.provisioner is not None:
                status: Any = await self.provisioner.poll()
                if status is not None:
                    self.exit_status = status
            return alive

    manager = ThisInterpreter(kernel_name="python3")
    manager.clients = []
    return manager


def _environment(folder: Path) -> dict[str, str]:
    environment = {
        RUN_DIR_VARIABLE: str(folder),
        # ipykernel would warn that a debugger may miss breakpoints.
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }
    top = folders.checkout()
    if top is not None:  # also when rsk is not installed but run from the checkout
        paths = [str(top), os.environ.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    return environment
