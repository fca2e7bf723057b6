"""Save and load the bit-for-bit agreement of the CUDA kernels on a GPU, with where it was seen.

``python -m rsk.measure.agreement --save FILE`` runs :mod:`rsk.check.grid` and
:mod:`rsk.check.logits_grid`.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rsk.base import folders, terminal
from rsk.check import grid, logits_grid
from rsk.measure.provenance import provenance, sources
from rsk.measure.record_files import write_json
from rsk.measure.records import Provenance, RecordError, parse
from rsk.measure.run_files import made_here


@dataclass(frozen=True)
class Grid:
    """How many shapes the CUDA kernels were compared on, and where; all agreed."""

    provenance: Provenance
    planned: int
    done: int

    @property
    def other_sources(self) -> bool:
        """Whether the kernels have changed since."""
        return self.provenance.sources != sources("cuda")


def newest() -> Grid:
    """The newest record.

    Raises:
        RecordError: there is none, one is damaged, or in the newest a kernel was wrong.
    """
    found = []
    for path in (folders.data_dir() / "kernels").glob("agreement*.json"):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            made = parse(Provenance, content["provenance"])
            counts = content["grid"]["planned"], content["grid"]["done"]
            wrong = [grid.wrong(content)]
            if "from_logits" in content:  # older records have none
                wrong.append(grid.wrong(content["from_logits"]))
            found.append((Grid(made, *counts), [each for each in wrong if each]))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RecordError(f"{path}: expected a record of agreement: {error!r}") from error
    if not found:
        raise RecordError(
            "data/kernels/agreement*.json is missing; python -m rsk.measure.agreement makes it"
        )
    latest, faults = max(found, key=lambda pair: pair[0].provenance.date)
    if faults:
        raise RecordError(f"data/kernels: in the newest agreement, kernels differ: {faults}")
    return latest


def main() -> int:
    """Run the grid, print its summary and save the result."""
    terminal.accept_any_text()
    options = grid.parser()
    options.add_argument("--save", type=Path, required=True, help="write the result to this file")
    arguments = options.parse_args()
    if not torch.cuda.is_available():
        print(grid.NO_GPU)
        return 2
    content = made_here(arguments.save, provenance("cuda"))
    if content and "from_logits" in content and not _wrong(content):
        print(f"{arguments.save} is of these sources and this GPU; delete it to compare again")
        return 0
    arguments.save.parent.mkdir(parents=True, exist_ok=True)  # before the long work
    result = grid.run(arguments.seconds, arguments.gib)
    from_logits = logits_grid.run(arguments.seconds)
    saved = {
        "provenance": dataclasses.asdict(provenance("cuda")),
        **result,
        "from_logits": from_logits,
    }
    write_json(arguments.save, saved)
    print(grid.summary(result))
    print(f"from logits, {grid.summary(from_logits)}")
    return 1 if _wrong(saved) else 0


def _wrong(saved: dict[str, Any]) -> bool:
    return bool(grid.wrong(saved) or grid.wrong(saved["from_logits"]))


if __name__ == "__main__":
    sys.exit(main())
