"""What the chapter on logits measures, and the recorded times that it shows."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from rsk.course import publish
from rsk.course.python_kernels.selection import Selection
from rsk.figures import from_logits as pictures
from rsk.figures import record_tables
from rsk.measure import clocks
from rsk.measure.logit_inputs import FILTERED, TEMPERATURE, LogitInputs, draw
from rsk.measure.logits_benchmark import LogitsBenchmark
from rsk.measure.record_files import by_date
from rsk.measure.records import Spread
from rsk.sampler import api, build, fused, logits, row_law
from rsk.sampler.row_law import fixed_point, relative_weight, to_float32

SOFTMAX = "softmax"
SAMPLER = "sampler, from probabilities"
FROM_LOGITS = "sampler, from logits"
WITH_FILTERS = "the same, top-k and top-p"


def time_softmax(inputs: LogitInputs, *, budget_s: float) -> dict[str, Spread]:
    """Time the softmax of both models' rows, and the samplers that need it and that do not."""
    tokens, draft, target, _ = inputs
    filtered = draw(draft, target, FILTERED, seed=1)  # drafts that the filters let through
    temperature = TEMPERATURE.temperature

    def softmax() -> tuple[torch.Tensor, torch.Tensor]:
        return (
            torch.softmax(draft / temperature, -1, dtype=torch.float32),
            torch.softmax(target / temperature, -1, dtype=torch.float32),
        )

    q, p = (logits.probabilities(rows, **TEMPERATURE.arguments) for rows in (draft, target))
    sampler = logits.rejection_sample_from_logits
    calls: dict[str, Callable[[], Any]] = {
        SOFTMAX: softmax,
        SAMPLER: functools.partial(api.rejection_sample, tokens, q, p, seed=0),
        FROM_LOGITS: functools.partial(
            sampler, tokens, draft, target, **TEMPERATURE.arguments, seed=0
        ),
        WITH_FILTERS: functools.partial(sampler, *filtered[:3], **FILTERED.arguments, seed=0),
    }
    timer = clocks.time_graph if target.is_cuda else clocks.time_wall
    return {name: timer([call], budget_s=budget_s)[0] for name, call in calls.items()}


def fused_weight(x: torch.Tensor, maximum: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Relative weights as a compiler would compute them that makes a product and a sum one step.

    Such a step rounds once: here it is done in double and rounded then.
    """
    y = (x.float() - maximum) * scale
    i = y.round()
    f = (y - i).double()
    first, *others = row_law._HORNER
    r = torch.full_like(y, first)
    for coefficient in (*others, 1.0):
        r = (r.double() * f + coefficient).float()
    return torch.where(y < row_law.LOWEST_EXPONENT, 0.0, r * torch.exp2(i))


def show_bound(found: Selection, k: int) -> None:
    """Publish how a row's bound for top-k is found."""
    picture = pictures.bound(found.logits, found.readers, found.maxima, found.bound, k)
    publish.figure(**picture._asdict())


def show_list(found: Selection, top_p: float) -> None:
    """Publish what the leader makes of its list."""
    of_top_k, of_top_p = found.listings[0], found.threshold
    listed = torch.tensor(of_top_k.logits)
    weights = fixed_point(relative_weight(listed, found.maximum, found.scale))
    publish.figure(
        **pictures.sorted_list(
            of_top_k.logits, weights.tolist(), of_top_k.threshold, of_top_p, to_float32(top_p)
        )._asdict()
    )


def show_passes(found: Selection) -> None:
    """Publish how the interval of a threshold shrinks."""
    passes = [
        pictures.Narrowing(p.low, p.high, p.pivots, [n >= p.target for n in p.numbers])
        for p in found.passes
    ]
    publish.figure(**pictures.narrowing(found.logits, passes, found.threshold)._asdict())


def show_recorded() -> None:
    """Publish the newest recorded times, or say that there are none."""
    recorded = by_date(LogitsBenchmark.load, "logits")
    if not recorded:
        publish.passage("course.md#logits-not-recorded")
        return
    publish.banner("recorded", recorded[-1].provenance)
    publish.table(**record_tables.from_logits(recorded[-1])._asdict())


def emulated(
    draft_tokens: torch.Tensor,
    draft_logits: torch.Tensor | None,
    target_logits: torch.Tensor,
    *,
    temperature: float | torch.Tensor = 1.0,
    top_k: int | torch.Tensor = 0,
    top_p: float | torch.Tensor = 1.0,
    min_p: float | torch.Tensor = 0.0,
    seed: int | torch.Tensor = 0,
    position: int | torch.Tensor = 0,
) -> api.RejectionSamples:
    """``cuda/from_logits.cu`` in the emulator; as :func:`rsk.rejection_sample_from_logits`.

    Raises:
        rsk.BuildError: it cannot be compiled.
    """
    build.load("emulator")
    numbers = [temperature, top_k, top_p, min_p, seed, position]
    pairs = [part for value in numbers for part in fused.tensor_and_int(value)]  # type: ignore[arg-type]
    call = torch.ops.rsk.emulated_rejection_sample_from_logits.default
    return api.RejectionSamples(*call(draft_tokens, draft_logits, None, target_logits, *pairs))
