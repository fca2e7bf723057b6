"""The figures of the report, drawn from a benchmark's records.

Each function returns a :class:`rsk.figures.plotting.Picture`: the figure, whose title says what was
found (computed from the data), a caption with the conditions, alt text, and the numbers as a table.
A notebook publishes it with ``publish.figure(**figures.latency_by_batch(benchmark)._asdict())``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rsk.figures import plotting
from rsk.figures.plotting import ROOF, Lines, Picture
from rsk.measure import comparison
from rsk.measure.comparison import BASELINE, digits, duration, megabytes, plural, roof_share
from rsk.measure.records import Benchmark, Operations, Quoted, Record
from rsk.sampler.api import BACKENDS
from rsk.sampler.kernels import KERNELS


def latency_by_batch(benchmark: Benchmark, time: str = "call") -> Picture:
    """Time of a call against batch size, for each implementation.

    Args:
        benchmark: measured or loaded.
        time: ``"call"`` (until the result is there), ``"device"`` or ``"host"``.

    Raises:
        ValueError: the benchmark has no times at its usual values.
    """
    title = _fused_summary(plotting.lines(benchmark, "batch_size"), time)
    return plotting.latency(benchmark, "batch_size", title, label="fig-latency", time=time)


def speed_up(benchmark: Benchmark, quoted: Quoted | None = None, time: str = "call") -> Picture:
    """How many times faster than the baseline, against batch size.

    Args:
        benchmark: measured or loaded.
        quoted: the earlier work's table, drawn faintly and labelled as quoted.
        time: as for :func:`latency_by_batch`.

    Raises:
        ValueError: no times at the usual values, or none of the baseline.
    """
    import pandas as pd

    lines = plotting.lines(benchmark, "batch_size")
    base = {record.batch_size: record for record in lines.get(BASELINE, [])}
    if not base:
        raise ValueError("speed_up: the benchmark has no times of the baseline")
    ratios = {
        name: {
            record.batch_size: comparison.ratio(base[record.batch_size], record, time)
            for record in line
            if record.batch_size in base
        }
        for name, line in lines.items()
        if name != BASELINE
    }
    found = []
    for name in BACKENDS[1:]:
        if values := list(ratios.get(name, {}).values()):
            mean = sum(values) / len(values)
            found.append(f"{name} {digits(mean)} on average, {digits(max(values))} at most")
    title = "Speed-up over the baseline: " + "; ".join(found)
    with plotting.axes(title) as (fig, ax):
        for name, by_size in ratios.items():
            style = plotting.style(name)
            ax.plot(list(by_size), list(by_size.values()), label=name, **style)
        if quoted is not None:
            sizes = [row.batch_size for row in quoted.times]
            for name, attribute in (("vectorized", "vectorized_ms"), ("fused", "fused_ms")):
                values = [row.baseline_ms / getattr(row, attribute) for row in quoted.times]
                style = {**plotting.style(name), "linestyle": ":", "alpha": 0.45, "markersize": 4}
                ax.plot(sizes, values, label=f"{name}, quoted", **style)
        ax.axhline(1, color=ROOF, linewidth=1)
        ax.text(1.01, 1, "baseline", transform=ax.get_yaxis_transform(), va="center", fontsize=8)
        ax.set_xscale("log", base=2)
        ax.set_yscale("log")
        ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}×")
        theirs = [row.batch_size for row in quoted.times] if quoted else []
        plotting.ticks(ax, sorted({*base, *theirs}))
        ax.set_xlabel("batch size B (requests)")
        ax.set_ylabel("speed-up over the baseline")
    caption = (
        "Time of the baseline over the time of each other. "
        f"{plotting.conditions(benchmark, lines, time)}"
    )
    if quoted is not None:
        caption += f" Dotted: quoted from {quoted.source}, not measured here."
    data = pd.DataFrame(ratios).rename_axis("B").reset_index()
    ranges = "; ".join(
        f"{name} from {digits(min(r.values()))} to {digits(max(r.values()))}"
        for name, r in ratios.items()
        if r
    )
    alt = f"Logarithmic line chart of speed-up over the baseline against batch size: {ranges}."
    return Picture(fig, "fig-speed-up", caption, alt, data)


def latency_by_spec_len(benchmark: Benchmark, time: str = "call") -> Picture:
    """Time of a call against speculation length. Arguments as :func:`latency_by_batch`."""
    lines = plotting.lines(benchmark, "spec_len")
    title = plotting.growth(lines, "spec_len", time)
    if _flat(lines, time):
        title += ": early exit makes long drafts cheap"
    return plotting.latency(benchmark, "spec_len", title, label="fig-spec-len", time=time)


def latency_by_vocab(benchmark: Benchmark, time: str = "call") -> Picture:
    """Time of a call against vocabulary size. Arguments as :func:`latency_by_batch`."""
    title = plotting.growth(plotting.lines(benchmark, "vocab_size"), "vocab_size", time)
    return plotting.latency(benchmark, "vocab_size", title, label="fig-vocab", time=time)


def roofline(benchmark: Benchmark) -> Picture:
    """Device time against the bytes that have to move, with the memory roof and launch floor.

    All float32 points with a warm cache are drawn. Each is judged by its own roof, measured over
    as many bytes in the same cache state, unless other processes disturbed that one. The title is
    about the point that moves the most bytes: where few bytes move, latency decides, not memory.

    Raises:
        ValueError: there are none.
    """
    import pandas as pd

    records = [
        record
        for by_name in comparison.merged(benchmark.records).values()
        for record in by_name.values()
        if record.dtype == "float32" and record.cache == "warm"
    ]
    if not records:
        raise ValueError("roofline: the benchmark has no float32 times with a warm cache")
    names = sorted({record.implementation for record in records}, key=plotting.rank)
    judged = [record for record in records if not record.roof.busy]
    roof = sorted({(r.bytes_moved, r.roof.median_us) for r in judged})
    with plotting.axes(_roofline_title(judged)) as (fig, ax):
        for name in names:
            chosen = [r for r in records if r.implementation == name]
            ax.plot(
                [r.bytes_moved for r in chosen],
                [r.device.median_us for r in chosen],
                label=name,
                **{**plotting.style(name), "linestyle": "", "alpha": 0.8},
            )
        if roof:
            ax.plot(*zip(*roof, strict=True), color=ROOF, linewidth=2, label="only reading")
        floor = min(r.floor_us for r in records)
        ax.axhline(floor, color=ROOF, linestyle=":", label="smallest operation")
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.xaxis.set_major_formatter(plotting.round_label(megabytes))
        ax.yaxis.set_major_formatter(plotting.round_label(duration))
        ax.set_xlabel("bytes that the algorithm has to move in one call")
        ax.set_ylabel("time on the device")
    data = pd.DataFrame(
        {
            "implementation": r.implementation,
            "B": r.batch_size,
            "K": r.spec_len,
            "V": r.vocab_size,
            "bytes": r.bytes_moved,
            "time (µs)": r.device.median_us,
            "roof (µs)": r.roof.median_us,
            "share of the roof": None if r.roof.busy else r.roof_share,
        }
        for r in sorted(records, key=lambda r: (names.index(r.implementation), r.bytes_moved))
    )
    clocks = " and ".join(sorted({r.device.clock for r in records}))
    caption = (
        "Median time on the device against the bytes that have to move: the row pair of the "
        "rejected position or the bonus row, the coins and the output. The line is the time of a "
        "read-only reduction over as many bytes, measured in the same run and cache state; the "
        f"dotted line is the time to write one element. float32, warm cache; clock: {clocks}. "
        f"{benchmark.provenance.label}."
    )
    if disturbed := len(records) - len(judged):
        caption += (
            f" Other processes disturbed the roof of {plural(disturbed, 'point')}, which "
            f"{'is' if disturbed == 1 else 'are'} drawn without it."
        )
    shares = "; ".join(
        f"{name} up to {max(shares):.0%}"
        for name in names
        if (shares := [r.roof_share for r in judged if r.implementation == name])
    )
    alt = (
        "Logarithmic scatter chart of time against bytes, with a line that rises: the time of "
        "only reading the bytes. Largest share of that speed, anywhere in the chart: "
        f"{shares or 'not known'}."
    )
    return Picture(fig, "fig-roofline", caption, alt, data)


def _roofline_title(judged: Sequence[Record]) -> str:
    """How near the roof the story's last sampler comes, where the most bytes move."""
    if not judged:
        return "Other processes disturbed every measurement of the memory roof"
    ours = [r for r in judged if r.implementation == "fused"] or judged
    most = max(ours, key=lambda r: (r.bytes_moved, r.roof_share))
    return (
        f"The {most.implementation} sampler reaches {most.roof_share:.0%} of the memory roof at "
        f"{megabytes(most.bytes_moved)} (B = {most.batch_size}, V = {most.vocab_size:,})"
    )


def ladder(benchmark: Benchmark, batch_size: int | None = None) -> Picture:
    """The steps from the baseline to the fastest kernel: time, times faster, share of the roof.

    Args:
        benchmark: measured or loaded.
        batch_size: which; the largest by default.

    Raises:
        ValueError: no times at that batch size and the usual values.
    """
    import pandas as pd

    lines = plotting.lines(benchmark, "batch_size")
    size = batch_size or max(record.batch_size for line in lines.values() for record in line)
    steps = [record for line in lines.values() for record in line if record.batch_size == size]
    if not steps:
        raise ValueError(f"ladder: the benchmark has no times at batch size {size}")
    first, last = steps[0], min(steps, key=lambda r: r.device.median_us)
    title = (
        f"From {duration(first.device.median_us)} to {duration(last.device.median_us)}: "
        f"{last.implementation} is {digits(first.device.median_us / last.device.median_us)} times "
        f"faster than {first.implementation} and at {roof_share(last)} of the memory roof"
    )
    with plotting.axes(title, height=1.4 + 0.45 * len(steps)) as (fig, ax):
        rows = range(len(steps))
        for row, record in zip(rows, steps, strict=True):
            ax.barh(
                row,
                record.device.median_us,
                color=plotting.style(record.implementation)["color"],
                xerr=[
                    [record.device.median_us - record.device.q25_us],
                    [record.device.q75_us - record.device.median_us],
                ],
                ecolor="#888888",
                height=0.62,
            )
            text = (
                f" {duration(record.device.median_us)}, "
                f"{digits(first.device.median_us / record.device.median_us)}×, "
                f"{roof_share(record, 1)} of the roof"
            )
            ax.text(record.device.q75_us, row, text, va="center", fontsize=9)
        low, high = last.device.median_us, max(r.device.q75_us for r in steps)
        if not last.roof.busy:
            low = last.roof.median_us
            ax.axvline(low, color=ROOF, linewidth=2, label="memory roof")
        ax.set_xscale("log")
        ax.set_xlim(low / 2, high * (high / low) ** 0.75)  # room for the text beside the bars
        ax.set_yticks(list(rows), [record.implementation for record in steps])
        ax.invert_yaxis()
        ax.grid(visible=False, axis="y")
        ax.xaxis.set_major_formatter(plotting.round_label(duration))
        ax.set_xlabel("time on the device (logarithmic)")
    data = pd.DataFrame(
        {
            "implementation": record.implementation,
            "time (µs)": record.device.median_us,
            "quartiles (µs)": f"{digits(record.device.q25_us)} to {digits(record.device.q75_us)}",
            "clock": record.device.clock,
            "× baseline": first.device.median_us / record.device.median_us,
            "share of the roof": None if record.roof.busy else record.roof_share,
        }
        for record in steps
    )
    caption = (
        f"Median time on the device at B = {size}, with the quartiles; the line is the memory "
        f"roof. {plotting.conditions(benchmark, lines, 'device')}"
    )
    alt = "Bar chart, one bar a step: " + "; ".join(
        f"{record.implementation} {duration(record.device.median_us)}" for record in steps
    )
    return Picture(fig, "fig-ladder", caption, alt + ".", data)


def operation_counts(benchmark: Benchmark, batch_size: int | None = None) -> Picture:
    """Operators (or kernel launches) and synchronisations of one call, from the profiler.

    Args:
        benchmark: measured or loaded.
        batch_size: which; the largest that was counted by default.

    Raises:
        ValueError: nothing was counted at that batch size.
    """
    import seaborn as sns
    from matplotlib.figure import Figure

    from rsk.measure.records import operations_frame

    counted = list(benchmark.operations)
    size = batch_size or max((count.batch_size for count in counted), default=0)
    here = [count for count in counted if count.batch_size == size]
    if not here:
        raise ValueError(f"operation_counts: nothing was counted at batch size {size}")
    here.sort(key=lambda count: plotting.rank(count.implementation))
    on_gpu = here[0].launches is not None

    def launches(count: Operations) -> int:
        return count.operators if count.launches is None else count.launches

    what = "kernels, copies and fills put on the GPU" if on_gpu else "operators called"
    title = f"One call at B = {size}: " + "; ".join(
        f"{count.implementation} {plural(launches(count), 'launch' if on_gpu else 'operator')}, "
        f"{plural(count.synchronizations, 'wait')}"
        for count in here
        if count.implementation in BACKENDS
    )
    panels: list[tuple[str, Callable[[Operations], int]]] = [
        (what, launches),
        ("values that the host waits for", lambda count: count.synchronizations),
    ]
    with sns.axes_style("white"), sns.plotting_context("paper", font_scale=1.05):
        fig = Figure(figsize=(plotting.WIDTH, 1.5 + 0.4 * len(here)), layout="constrained")
        plotting.entitle(fig, title)
        for ax, (heading, number) in zip(fig.subplots(1, 2, sharey=True), panels, strict=True):
            values = [number(count) for count in here]
            colors = [plotting.style(count.implementation)["color"] for count in here]
            rows = range(len(here))
            ax.barh(rows, values, color=colors, height=0.62)
            for row, value in zip(rows, values, strict=True):
                ax.text(max(value, 0.6), row, f" {value:,}", va="center", fontsize=9)
            ax.set_xscale("symlog", linthresh=1)
            ax.set_xlim(0, max(10, *values) * 8)
            ax.set_yticks(list(rows), [count.implementation for count in here])
            ax.set_xlabel(heading, fontsize=9)
            ax.set_xticks([])  # the numbers are beside the bars
            ax.xaxis.set_minor_locator(plotting.no_ticks())
            sns.despine(ax=ax)
        fig.axes[0].invert_yaxis()
    first = here[0]
    caption = (
        f"Counted by PyTorch's profiler during one call, K = {first.spec_len}, "
        f"V = {first.vocab_size:,}; logarithmic scales. {benchmark.provenance.label}."
    )
    alt = f"Two bar charts. {title}."
    data = operations_frame(
        sorted(counted, key=lambda c: (plotting.rank(c.implementation), c.batch_size))
    ).drop(columns=["spec_len", "vocab_size"] + ([] if on_gpu else ["launches"]))
    data = data.rename(
        columns={
            "batch_size": "B",
            "synchronizations": "waits",
            "allocated_bytes": "bytes allocated",
        }
    )
    return Picture(fig, "fig-operations", caption, alt, data)


def _fastest(lines: Lines, size: int, time: str) -> str:
    # The kernels one by one do not compete: fused picks among them.
    rivals = [line for name, line in lines.items() if name not in KERNELS]
    here = [r for line in rivals for r in line if r.batch_size == size]
    return min(here, key=lambda r: float(getattr(r, time).median_us)).implementation


def _fused_summary(lines: Lines, time: str) -> str:
    if "fused" not in lines:
        return plotting.growth(lines, "batch_size", time)
    sizes = sorted({record.batch_size for line in lines.values() for record in line})
    wins = [size for size in sizes if _fastest(lines, size, time) == "fused"]
    if len(wins) == len(sizes):
        opening = "The fused sampler is the fastest at every batch size"
    else:
        opening = f"The fused sampler is the fastest at {len(wins)} of {len(sizes)} batch sizes"
    base = {record.batch_size: record for record in lines.get(BASELINE, [])}
    ratios = [
        comparison.ratio(base[record.batch_size], record, time)
        for record in lines["fused"]
        if record.batch_size in base
    ]
    if not ratios:
        return opening
    low, high = digits(min(ratios), 2), digits(max(ratios), 2)
    span = f"{low} times" if low == high else f"{low} to {high} times"
    return f"{opening}: {span} as fast as the baseline"


def _flat(lines: Lines, time: str) -> bool:
    """Whether the fused sampler's time grows by less than half as K does."""
    line = lines.get("fused", [])
    return (
        len(line) > 1 and getattr(line[-1], time).median_us < 1.5 * getattr(line[0], time).median_us
    )
