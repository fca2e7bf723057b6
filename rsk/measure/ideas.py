"""What was tried on the fused CUDA kernel, and what it changed.

Each idea is a small change of the sources in ``cuda/``, most of them the undoing of something that
is in there. ``python -m rsk.measure.ideas --save FILE`` builds the kernel with each of them in a
copy of the package, checks its tokens and times it, all in one run on one GPU; it needs nothing but
PyTorch. A prediction is written before, so that the outcome can teach something.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from rsk.base import terminal
from rsk.base.folders import cuda_dir, data_dir
from rsk.measure.implementations import backend
from rsk.measure.provenance import provenance
from rsk.measure.record_files import by_date, write_json
from rsk.measure.records import Point, Provenance, RecordError, parse
from rsk.measure.run_files import made_here
from rsk.measure.timing import MeasurementError, measure
from rsk.measure.workload import Pool
from rsk.sampler.kernels import runs_on
from rsk.sampler.registry import KERNELS

SCHEMA = 1
POINTS = (
    Point(1, 4, 32000, "float32", 0.7, "warm"),
    Point(16, 4, 32000, "float32", 0.7, "warm"),
    Point(1, 4, 128256, "float32", 0.7, "warm"),
    Point(64, 4, 128256, "float32", 0.7, "warm"),
    Point(1024, 4, 128256, "float32", 0.7, "cold"),
)
BUDGET_S = 0.3
"""For each point: half of it for the time on the device."""


class Change(NamedTuple):
    """A text that occurs once in a file of ``cuda/``, and what to put in its place."""

    file: str
    old: str
    new: str


@dataclass(frozen=True)
class Idea:
    """A change of the kernel.

    Attributes:
        name: what is different.
        prediction: what that was expected to do, written before it was measured.
        changes: the texts to replace.
        times_us: device time at each point; ``None`` where it did not run or was wrong.
    """

    name: str
    prediction: str
    changes: tuple[Change, ...] = ()
    times_us: tuple[float | None, ...] = ()


@dataclass(frozen=True)
class Ideas:
    """The ideas, measured in one run.

    Attributes:
        provenance: where, when and with what, as in a benchmark's record.
        points: what was measured.
        unchanged_us: device time of the kernel as it is, at each point.
        again_us: the same, measured once more at the end.
        ideas: what was tried.
    """

    provenance: Provenance
    points: tuple[Point, ...]
    unchanged_us: tuple[float, ...]
    again_us: tuple[float, ...]
    ideas: tuple[Idea, ...]

    def save(self, path: Path) -> None:
        """Write the file that :func:`load` reads: without the changes, which are in here."""
        data = dataclasses.asdict(self)
        data["points"] = [point._asdict() for point in self.points]
        for idea in data["ideas"]:
            del idea["changes"]
        write_json(path, {"schema": SCHEMA, **data})


_LETTER = (
    '  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.b64 [%0], %1, [%2];" '
    '::"r"(\n                   place),\n               "l"(letter), "r"(arrivals)\n'
    '               : "memory");'
)
_TRIGGER = "  cudaTriggerProgrammaticLaunchCompletion();\n"
IDEAS = (
    Idea(
        "one load at a time",
        "A thread that waits for each pair of packs before it asks for the next has a quarter of "
        "the bytes on their way: slower wherever bandwidth counts, little change for one request.",
        (Change("tile.h", "CHUNKS = 4;", "CHUNKS = 1;"),),
    ),
    Idea(
        "two loads at a time",
        "By Little's law two are enough to fill the memory system: no difference.",
        (Change("tile.h", "CHUNKS = 4;", "CHUNKS = 2;"),),
    ),
    Idea(
        "no overlap with the kernel before",
        "Each call pays the whole launch latency again: most of a microsecond more at every size.",
        (Change("cluster.cu", "config.numAttrs = 3;", "config.numAttrs = 2;"),),
    ),
    Idea(
        "let the next kernel start first thing",
        "The sooner its blocks are in place, the less of their start is seen: a little faster for "
        "small batches.",
        (
            Change("cluster.cu", _TRIGGER, ""),
            Change(
                "cluster.cu",
                "  if (threadIdx.x == 0) {\n",
                f"{_TRIGGER}  if (threadIdx.x == 0) {{\n",
            ),
        ),
    ),
    Idea(
        "a barrier of the cluster instead of letters",
        "The barrier comes with a fence of the GPU's memory: some tenths of a microsecond more.",
        (
            Change(
                "mailbox.h",
                _LETTER,
                '  asm volatile("st.shared::cluster.b64 [%0], %1;" ::"r"(place), "l"(letter) '
                ': "memory");',
            ),
            Change(
                "mailbox.h",
                "  uint32_t complete = 0;\n",
                '  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");\n'
                '  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");\n'
                "  uint32_t complete = 1;\n",
            ),
        ),
    ),
    Idea(
        "clusters of at most 8 blocks",
        "Fewer multiprocessors share one long row: slower for one request of V = 128256, "
        "the same elsewhere.",
        (Change("mailbox.h", "MAX_CLUSTER = 16;", "MAX_CLUSTER = 8;"),),
    ),
    Idea(
        "clusters placed as the GPU does by default",
        "It knows its multiprocessors best: no difference.",
        (Change("cluster.cu", "PolicyLoadBalancing", "PolicyDefault"),),
    ),
    Idea(
        "twice as many blocks",
        "More warps hide more of each other's waits: a little faster from B = 64 on.",
        (Change("cluster.cu", "multiprocessors * 4 /", "multiprocessors * 8 /"),),
    ),
    Idea(
        "search a piece from its beginning",
        "The warp that has the token reads half of its piece once more, one tile after another: a "
        "percent or two at B = 1024, nothing where a piece is one tile.",
        (Change("piece.h", "if (piece.stretch < piece.end - piece.begin)", "if (false)"),),
    ),
    Idea(
        "a conversion to integer instead of two additions",
        "The conversion runs at a quarter of the rate of additions or less: slower where many "
        "probabilities are summed and memory is fast, that is, from the cache.",
        (
            Change(
                "pack.h",
                "  return ((int64_t)upper_bits << 20) + lower_bits;\n",
                "  int64_t total = 0;\n#pragma unroll\n"
                "  for (int32_t j = 0; j < PACK_SIZE<Probability>; ++j) {\n"
                "    total += fixed_point(p.at(j) - q.at(j));\n  }\n  return total;\n",
            ),
        ),
    ),
    Idea(
        "80 registers a thread instead of 64",
        "The compiler has more freedom, but a multiprocessor holds three quarters of the threads: "
        "faster for small batches, slower for large ones.",
        (Change("cluster.cu", "(32 * WARPS, 32 / WARPS)", "(32 * WARPS, 24 / WARPS)"),),
    ),
    Idea(
        "blocks of 8 warps for every batch",
        "Half as many blocks have to be brought together: no slower anywhere.",
        (Change("cluster.cu", "return is_long ?", "return true ?"),),
    ),
    Idea(
        "start the first row before the coins are decided",
        "Where the first draft is rejected, the row is in the nearest cache by the time it is "
        "wanted: a little faster for small batches; for large ones it is traffic for nothing.",
        (
            Change(
                "cluster.cu",
                "  const Walk walk = walk_drafts<Probability>(batch, b, lane);\n",
                "  if constexpr (!std::is_same_v<Probability, Mixed>)\n"
                "  if (batch.spec_len > 0 && batch.draft_probs) {\n"
                "    const int32_t line = 128 / (int32_t)sizeof(Probability);\n"
                "    const int32_t i = mine * cut.piece + lane % 16 * line;\n"
                "    const Probability* ahead = lane < 16 ? target_row<Probability>(batch, b, 0)"
                " : draft_row<Probability>(batch, b, 0);\n"
                "    if (i < batch.vocab_size && lane % 16 * line < cut.piece)\n"
                '      asm volatile("prefetch.global.L1 [%0];" ::"l"(ahead + i));\n'
                "  }\n"
                "  const Walk walk = walk_drafts<Probability>(batch, b, lane);\n",
            ),
        ),
    ),
)


def load(path: Path | None = None) -> Ideas:
    """Read a saved run; by default the newest that is shipped.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the file is not such a run; the message names the file.
    """
    if path is None:
        found = by_date(load, "kernels", "ideas-*.json")
        if not found:
            raise FileNotFoundError("no run of rsk.measure.ideas is recorded in data/kernels")
        return found[-1]
    try:
        data = json.loads(path.read_text())
        if data["schema"] != SCHEMA:
            raise ValueError(f"expected schema {SCHEMA}, got {data['schema']!r}")
        result = Ideas(
            provenance=parse(Provenance, data["provenance"], "provenance"),
            points=tuple(Point(**point) for point in data["points"]),
            unchanged_us=tuple(data["unchanged_us"]),
            again_us=tuple(data["again_us"]),
            ideas=tuple(
                Idea(one["name"], one["prediction"], times_us=tuple(one["times_us"]))
                for one in data["ideas"]
            ),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: not a run of rsk.measure.ideas: {error}") from error
    rows = [result.unchanged_us, result.again_us, *(one.times_us for one in result.ideas)]
    for row in rows:
        if len(row) != len(result.points) or any(
            time is not None and not 0 < time < float("inf") for time in row
        ):
            raise ValueError(f"{path}: expected a positive time for each point, got {row}")
    return result


def changed_sources(idea: Idea, folder: Path) -> None:
    """Apply an idea to a copy of ``cuda/``.

    Raises:
        ValueError: a text to replace does not occur exactly once.
    """
    for name, old, new in idea.changes:
        path = folder / name
        text = path.read_text()
        if text.count(old) != 1:
            raise ValueError(
                f"{idea.name}: expected {old!r} once in {name}, found {text.count(old)}"
            )
        path.write_text(text.replace(old, new))


def measure_points(points: Sequence[Point] = POINTS, device: str = "cuda") -> list[float | None]:
    """Device time of ``fused`` at each point, in microseconds; ``None`` for wrong tokens."""
    times: list[float | None] = []
    for point in points:
        pool = Pool(
            [(point.batch_size, point.cache)],
            point.spec_len,
            point.vocab_size,
            dtype=point.dtype,
            acceptance=point.acceptance,
            device=device,
        )
        workload = pool.workload(point.batch_size, point.spec_len, point.cache, budget_s=0.02)
        try:
            times.append(measure(backend("fused"), workload, budget_s=BUDGET_S).device.median_us)
        except (MeasurementError, RecordError) as error:
            print(error, file=sys.stderr)
            times.append(None)
    return times


def _in_copy(package: Path, *arguments: str) -> str:
    """Run this module from a copy of the package; returns what it prints."""
    done = subprocess.run(
        [sys.executable, "-m", "rsk.measure.ideas", *arguments],
        env=os.environ | {"PYTHONPATH": str(package)},
        cwd=package,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise RuntimeError(lines[-1])
    return done.stdout


def run() -> Ideas:
    """Build everything at once, then measure one after the other."""
    unchanged = Idea("unchanged", "")
    with tempfile.TemporaryDirectory() as folder:
        copies = []
        for i, idea in enumerate((unchanged, *IDEAS)):
            copy = Path(folder) / str(i)
            top = Path(__file__).resolve().parents[2]
            shutil.copytree(top / "rsk", copy / "rsk")
            shutil.copytree(cuda_dir(), copy / "cuda")
            (copy / "data").symlink_to(data_dir())
            (copy / "notebooks").mkdir()
            (copy / "pyproject.toml").touch()  # a checkout, for rsk.base.folders
            changed_sources(idea, copy / "cuda")
            copies.append(copy)
        with ThreadPoolExecutor(max_workers=11) as workers:
            list(workers.map(lambda copy: _in_copy(copy, "--build"), copies))

        def times(copy: Path) -> tuple[float | None, ...]:
            try:
                return tuple(json.loads(_in_copy(copy, "--times").splitlines()[-1]))
            except RuntimeError as error:
                print(error, file=sys.stderr)
                return (None,) * len(POINTS)

        first = times(copies[0])
        ideas = []
        for idea, copy in zip(IDEAS, copies[1:], strict=True):
            ideas.append(dataclasses.replace(idea, changes=(), times_us=times(copy)))
            print(idea.name, *ideas[-1].times_us, flush=True)
        again = times(copies[0])
    if None in first or None in again:
        raise RuntimeError("the unchanged kernel did not run or gave wrong tokens")
    return Ideas(
        provenance=provenance("cuda"),
        points=POINTS,
        unchanged_us=first,  # type: ignore[arg-type]
        again_us=again,  # type: ignore[arg-type]
        ideas=tuple(ideas),
    )


def main() -> int:
    """Measure the ideas and save them."""
    terminal.accept_any_text()
    parser = argparse.ArgumentParser(description="Time changes of the fused CUDA kernel.")
    parser.add_argument("--save", type=Path, help="write the result to this JSON file")
    parser.add_argument("--build", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--times", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not torch.cuda.is_available() or not runs_on("cluster", torch.device("cuda")):
        print(f"rsk.measure.ideas needs a GPU with {KERNELS['cluster'].needs}")
        return 2
    if arguments.build:
        from rsk.sampler import build

        build.load("cuda")
        return 0
    if arguments.times:
        print(json.dumps(measure_points()))
        return 0
    if arguments.save and made_here(arguments.save, provenance("cuda")):
        print(f"{arguments.save} is of these sources and this GPU; delete it to measure again")
        return 0
    if arguments.save:  # now: a folder that cannot be made would be seen after all the measuring
        arguments.save.parent.mkdir(parents=True, exist_ok=True)
    result = run()
    print("unchanged", *result.unchanged_us)
    print("again", *result.again_us)
    if arguments.save:
        result.save(arguments.save)
    return 0


if __name__ == "__main__":
    sys.exit(main())
