"""What samplers from logits are tested on: logits, filters, and the law that they stand for.

The probabilities are those of the softmax in float64, filtered in the order of transformers'
processors; ties at a threshold stay. They are computed here once more, from the definitions.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rsk.check.calls import FILTERS
from rsk.check.cases import Case


def filtered_softmax(
    logits: Tensor,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
) -> Tensor:
    """Probabilities, float64 [V], of one row of logits [V]."""
    x = logits.double()
    if temperature == 0:
        return torch.nn.functional.one_hot(x.argmax(), len(x)).double()
    p = (x / temperature).softmax(0)
    if 0 < top_k < len(x):
        p = p.masked_fill(x < x.sort().values[-top_k], 0)
        p /= p.sum()
    if top_p < 1:
        values = x.sort(descending=True).values
        shares = torch.stack([p[x >= value].sum() for value in values])
        enough = int((shares >= top_p).nonzero()[0]) if bool((shares >= top_p).any()) else -1
        p = p.masked_fill(x < values[enough], 0)
        p /= p.sum()
    if min_p > 0:
        p = p.masked_fill(p < min_p * p.max(), 0)
    return p / p.sum()


def make_case(
    name: str, rows: Mapping[str, tuple[Any, Any, Mapping[str, float]]], **options: Any
) -> Case:
    """Make a case from (draft logits, target logits, filters) per kind; see ``Case.make``."""
    draft = torch.tensor([q for q, _, _ in rows.values()], dtype=torch.float32)
    target = torch.tensor([p for _, p, _ in rows.values()], dtype=torch.float32)
    filters: list[Mapping[str, Any]] = [filters for _, _, filters in rows.values()]

    def probs(logits: Tensor, r: int) -> Tensor:
        return torch.stack([filtered_softmax(row, **filters[r]) for row in logits[r]])

    columns = {
        key: torch.tensor([each.get(key, off) for each in filters]) for key, off in FILTERS.items()
    }
    laws = {kind: (probs(draft, r), probs(target, r)) for r, kind in enumerate(rows)}
    case = Case.make(name, laws, **options)
    return dataclasses.replace(case, logits=(draft, target), filters=columns)


def logit_cases() -> list[Case]:
    """One case: in each kind of request another filter decides, or several in a certain order."""
    rising = [0.0, 0.5, 1.0, 1.5, 2.0, 2.5]
    q = [rising]
    p = [rising[::-1], [1.0, 2.5, 0.5, 2.0, 0.0, 1.5]]
    ties = [2.0, 1.0, 1.0, 1.0, 0.0, -1.0]
    masked = [-math.inf, 1.0, -math.inf, 0.5, 2.0, -math.inf]
    return [
        make_case(
            "filters",
            {
                "temperature 0.5": (q, p, {"temperature": 0.5}),
                "temperature 2": (q, p, {"temperature": 2.0}),
                "greedy": (q, p, {"temperature": 0.0}),
                "top-k 3": (q, p, {"top_k": 3}),
                "top-k 2, four tie for it": ([ties[::-1]], [ties, ties], {"top_k": 2}),
                "top-p 0.7": (q, p, {"top_p": 0.7}),
                "top-p 0.6, three tie at its end": ([ties[::-1]], [ties, ties], {"top_p": 0.6}),
                "top-k 3, then top-p 0.7": (q, p, {"top_k": 3, "top_p": 0.7}),
                "min-p 0.3": (q, p, {"min_p": 0.3}),
                "all": (q, p, {"temperature": 1.5, "top_k": 5, "top_p": 0.8, "min_p": 0.3}),
                "masks": ([masked[::-1]], [masked, masked], {}),
            },
        )
    ]
