"""Save the bit-for-bit agreement of the CUDA kernels on a GPU, with where it was seen.

``python -m rsk.measure.agreement --save FILE`` runs :mod:`rsk.check.grid`.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import torch

from rsk.check import grid
from rsk.measure.provenance import provenance


def main() -> int:
    """Run the grid, print its summary and save the result."""
    options = grid.parser()
    options.add_argument("--save", type=Path, required=True, help="write the result to this file")
    arguments = options.parse_args()
    if not torch.cuda.is_available():
        print(grid.NO_GPU)
        return 2
    result = grid.run(arguments.seconds, arguments.gib)
    saved = {"provenance": dataclasses.asdict(provenance("cuda")), **result}
    arguments.save.parent.mkdir(parents=True, exist_ok=True)
    arguments.save.write_text(json.dumps(saved, indent=1) + "\n")
    print(grid.summary(result))
    return 1 if grid.wrong(result) else 0


if __name__ == "__main__":
    sys.exit(main())
