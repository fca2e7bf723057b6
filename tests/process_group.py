"""Processes that form a group, and do what a test sends them: started once, used by many tests."""

from __future__ import annotations

import contextlib
import datetime
import multiprocessing
import tempfile
import time
import traceback
from pathlib import Path

import torch
import torch.distributed as dist

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["torch", "torch.distributed", "rsk.sampler.sharded"])


def _serve(rank, size, store, timeout, connection):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        store=dist.FileStore(store, size),
        rank=rank,
        world_size=size,
        timeout=datetime.timedelta(seconds=timeout),
    )
    connection.send(("ready", None))
    while (job := connection.recv()) is not None:
        function, arguments = job
        try:
            connection.send(("returned", function(rank, size, *arguments)))
        except Exception as error:
            connection.send(("raised", (type(error), str(error), traceback.format_exc())))
    dist.destroy_process_group()


class Raised(Exception):
    """A rank raised: ``.kind`` is the type, ``.message`` the text."""

    def __init__(self, kind, message, trace):
        super().__init__(f"{kind.__name__}: {message}\n{trace}")
        self.kind, self.message = kind, message


class Group:
    """Ranks 0 to size - 1, each a process with gloo."""

    def __init__(self, size, timeout=30.0):
        self.size = size
        self._folder = tempfile.TemporaryDirectory()
        store = str(Path(self._folder.name) / "store")
        self._connections, self.processes = [], []
        for rank in range(size):
            ours, theirs = CONTEXT.Pipe()
            process = CONTEXT.Process(
                target=_serve, args=(rank, size, store, timeout, theirs), daemon=True
            )
            process.start()
            theirs.close()
            self._connections.append(ours)
            self.processes.append(process)
        self.answers()

    def send(self, function, *arguments):
        """Have every rank call ``function(rank, size, *arguments)``."""
        for connection in self._connections:
            with contextlib.suppress(OSError):  # it was killed
                connection.send((function, arguments))

    def answers(self, seconds=60):
        """What each rank returned; ``Raised`` if it raised, ``None`` if it is gone."""
        end = time.monotonic() + seconds
        return [self.answer_of(rank, end - time.monotonic()) for rank in range(self.size)]

    def answer_of(self, rank, seconds):
        """The same of one rank."""
        if not self._connections[rank].poll(max(0, seconds)):
            raise TimeoutError(f"rank {rank} did not answer in {seconds:.0f} s")
        try:
            what, value = self._connections[rank].recv()
        except (EOFError, ConnectionResetError):
            return None
        return Raised(*value) if what == "raised" else value

    def run(self, function, *arguments):
        """What each rank returns, in their order; an exception of one of them is raised here."""
        self.send(function, *arguments)
        answers = self.answers()
        for answer in answers:
            if isinstance(answer, Raised):
                raise answer
        return answers

    def close(self):
        """End the processes."""
        for connection in self._connections:
            with contextlib.suppress(OSError):
                connection.send(None)
        for process in self.processes:
            process.join(10)
            if process.is_alive():
                process.kill()
        self._folder.cleanup()
