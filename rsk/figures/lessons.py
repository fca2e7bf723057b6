"""The pictures of notebooks 01 to 03: the acceptance rule, and what two samplers spend.

Like those of :mod:`rsk.figures.benchmarks`, each comes with the values that its words name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rsk.base.numbers import byte_size
from rsk.figures import curves, plotting
from rsk.figures.plotting import STYLES, Picture
from rsk.measure.comparison import BASELINE
from rsk.measure.over_runs import ratio
from rsk.measure.records import Benchmark, Operations

if TYPE_CHECKING:
    from torch import Tensor

_TARGET, _DRAFT, _KEPT, _RESIDUAL, _SEEN = "#0072b2", "#1a1a1a", "#cfcfcf", "#e69f00", "#d55e00"
_ERRORS = 4
"""Standard errors beyond which a deviation is no longer put down to chance."""


def acceptance_rule(words: Sequence[str], p: Tensor, q: Tensor) -> Picture:
    """Target p [V], draft q [V], what is accepted (their minimum) and the residual.

    Args:
        words: the tokens' names.
        p: the target's probabilities.
        q: the draft's.
    """
    import pandas as pd

    kept, residual = p.minimum(q), (p - q).clamp(min=0)
    at = range(len(words))
    with plotting.axes() as (fig, ax):
        ax.bar(at, kept.tolist(), color=_KEPT, label="min(p, q): accepted")
        ax.bar(
            at,
            residual.tolist(),
            bottom=kept.tolist(),
            color=_RESIDUAL,
            hatch="//",
            label="max(p − q, 0): residual",
        )
        marks: dict[str, Any] = {"linestyle": "", "markersize": 22, "markeredgewidth": 2.5}
        ax.plot(at, p.tolist(), marker="_", color=_TARGET, label="p: target", **marks)
        ax.plot(at, q.tolist(), marker="_", color=_DRAFT, label="q: draft", **marks)
        ax.set_xticks(list(at), words)
        ax.set_ylabel("probability")
        ax.grid(visible=False, axis="x")
    data = pd.DataFrame(
        {
            "token": words,
            "p": p.tolist(),
            "q": q.tolist(),
            "min(p, q)": kept.tolist(),
            "residual": residual.tolist(),
        }
    )
    values = {
        "kept": float(kept.sum()),
        "residual": float(residual.sum()),
        "tokens": len(words),
        "filled": [word for word, rest in zip(words, residual, strict=True) if rest > 0],
    }
    return Picture(fig, "fig-rule", values, data, interactive="rule")


def law(
    words: Sequence[str], p: Tensor, seen: Mapping[str, Tensor], label: str = "fig-law"
) -> Picture:
    """How often each token came out, beside the probability that it should have.

    Args:
        words: the tokens' names.
        p: the target's probabilities [V].
        seen: for each sampler how often it emitted each token [V].
        label: of the figure.
    """
    import pandas as pd

    worst = {name: deviations(counts, p).abs().max().item() for name, counts in seen.items()}
    right = [name for name, errors in worst.items() if errors <= _ERRORS]
    at = range(len(words))
    data = pd.DataFrame({"token": words, "p": p.tolist()})
    with plotting.axes() as (fig, ax):
        ax.bar(at, p.tolist(), color=_KEPT, label="p: target")
        shift = 0.18 * (len(seen) - 1)
        for i, (name, counts) in enumerate(seen.items()):
            n = counts.sum()
            share = (counts / n).tolist()
            error = _ERRORS * (p * (1 - p) / n).sqrt()
            x = [v - shift + 0.36 * i for v in at]
            color, marker = (_TARGET, "o") if name in right else (_SEEN, "X")
            ax.errorbar(
                x,
                share,
                yerr=error.tolist(),
                fmt=marker,
                color=color,
                capsize=3,
                markersize=6,
                label=name,
            )
            data[name] = share
        ax.set_xticks(list(at), words)
        ax.set_ylabel("share of the emitted tokens")
        ax.grid(visible=False, axis="x")
    values = {
        "right": right,
        "wrong": {name: worst[name] for name in seen if name not in right},
        "drawn": {name: int(counts.sum()) for name, counts in seen.items()},
        "errors": _ERRORS,
        "shares": {name: dict(zip(words, data[name], strict=True)) for name in seen},
    }
    return Picture(fig, label, values, data, block="fig-law")


def deviations(counts: Tensor, p: Tensor) -> Tensor:
    """How many standard errors each token's count [V] is from its expectation under p [V].

    A token of probability 0 that was never seen is off by 0, one that was seen by infinity.
    """
    n, p = counts.sum(), p.double()
    off = counts - n * p
    return off.where(off == 0, off / (n * p * (1 - p)).sqrt())


def time_by_spec_len(found: Benchmark) -> Picture:
    """The baseline's time against K, beside what "B times K" and the coins tossed would give.

    Raises:
        ValueError: the benchmark has no times of the baseline along K.
    """
    line = curves.lines(found, "spec_len").get(BASELINE, [])
    if not line:
        raise ValueError("the benchmark has no times of the baseline along K")
    import pandas as pd

    first = line[0]
    k = [one.spec_len for one in line]
    times = [one.call.median / 1e3 for one in line]
    coins = [expected_coins(one.acceptance, one.spec_len) for one in line]
    with plotting.axes() as (fig, ax):
        errors = [
            [(one.call.median - one.call.least) / 1e3 for one in line],
            [(one.call.most - one.call.median) / 1e3 for one in line],
        ]
        ax.plot(k, [times[0] * x / max(k[0], 1) for x in k], color="#999999", linestyle=":",
                label="if every position were visited")  # fmt: skip
        ax.errorbar(k, times, yerr=errors, capsize=3, label="measured", **STYLES[BASELINE])
        ax.set_xticks(k, [str(x) for x in k])
        ax.set_ylim(bottom=0)
        ax.set_xlabel("speculation length K (draft tokens)")
        ax.set_ylabel(f"{plotting.CLOCKS[first.call.clock]} (ms)")
    data = pd.DataFrame({"K": k, "time (ms)": times, "coins a request, expected": coins})
    values = {
        "k": k,
        "times_us": [one.call.median for one in line],
        "grown": ratio(line[-1], first),
        "conditions": curves.conditions(found, {BASELINE: line}),
    }
    return Picture(fig, "fig-spec-len", values, data, block="fig-baseline-spec-len")


def expected_coins(acceptance: float, spec_len: int) -> float:
    """Coins that a request tosses on average before it stops: 1 + a + ... + a^(K-1)."""
    return sum(acceptance**k for k in range(spec_len))


def latency(found: Benchmark) -> Picture:
    """Time of a call against batch size, for a benchmark without the fused sampler.

    Its words tell where the vectorized sampler is faster than the baseline in every run, and where
    in none, or how the baseline grows if it is alone.
    """
    lines = curves.lines(found, "batch_size")
    base = {one.batch_size: one for one in lines[BASELINE]}
    ratios = {
        one.batch_size: ratio(base[one.batch_size], one) for one in lines.get("vectorized", [])
    }
    picture = curves.latency(
        found,
        "batch_size",
        "fig-latency",
        faster={size: x.median for size, x in ratios.items() if x.least > 1},
        slower={size: 1 / x.median for size, x in ratios.items() if x.most <= 1},
    )
    return picture._replace(block="fig-latency-without-fused")


def bytes_in_vain(found: Benchmark, name: str = "vectorized") -> Picture:
    """Bytes that a sampler allocates and fills, beside those that have to move at all.

    Raises:
        ValueError: the benchmark has not counted that sampler's operations.
    """
    import pandas as pd

    moved = {
        r.batch_size: r.bytes_moved
        for r in curves.lines(found, "batch_size").get(name, [])
    }  # fmt: skip
    counts: dict[int, Operations] = {
        c.batch_size: c for c in found.operations if c.implementation == name
    }
    sizes = sorted(set(moved) & set(counts))
    if not sizes:
        raise ValueError(f"the benchmark has not counted the operations of {name}")
    allocated = [counts[size].allocated_bytes for size in sizes]
    needed = [moved[size] for size in sizes]
    with plotting.axes() as (fig, ax):
        style = STYLES.get(name, {})
        ax.plot(sizes, allocated, label=f"allocated by {name}", **style)
        ax.plot(sizes, needed, label="has to move", color="#555555", marker="_", linewidth=2)
        ax.set_xscale("log", base=2)
        ax.set_yscale("log")
        plotting.ticks(ax, sizes)
        ax.yaxis.set_major_formatter(plotting.round_label(byte_size))
        ax.set_xlabel("batch size B (requests)")
        ax.set_ylabel("bytes in one call")
    data = pd.DataFrame({"B": sizes, "bytes allocated": allocated, "bytes to move": needed})
    values = {
        "name": name,
        "at": sizes[-1],
        "allocated": allocated[-1],
        "needed": needed[-1],
        "count": counts[sizes[0]],
        "label": found.provenance.label,
    }
    return Picture(fig, "fig-bytes", values, data)


def sums_by_order(float_errors: Tensor, integer_errors: Tensor) -> Picture:
    """The error of one row's total in many orders of adding: in float32, and in fixed point.

    Args:
        float_errors: [N] total in float32, minus the exact sum of the row.
        integer_errors: [N] total in fixed point, minus the exact sum of the row.
    """
    import pandas as pd

    different = [int(errors.unique().numel()) for errors in (float_errors, integer_errors)]
    n = len(float_errors)
    with plotting.axes(3.2) as (fig, ax):
        ax.plot(range(n), float_errors, label="float32", linestyle="", marker="o", markersize=4,
                color=STYLES["vectorized"]["color"])  # fmt: skip
        ax.plot(range(n), integer_errors, label="fixed point, int64", color=_TARGET, linewidth=2)
        ax.set_xlabel("order of adding (each a random permutation)")
        ax.set_ylabel("total − exact sum")
        ax.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    data = pd.DataFrame(
        {
            "arithmetic": ["float32", "fixed point, int64"],
            "different totals": different,
            "least error": [float(float_errors.min()), float(integer_errors.min())],
            "largest error": [float(float_errors.max()), float(integer_errors.max())],
        }
    )
    values = {
        "orders": n,
        "different": different,
        "least": float(float_errors.min()),
        "most": float(float_errors.max()),
    }
    return Picture(fig, "fig-order", values, data)
