"""What the report says, computed from the data: notebook 07 holds the prose around it.

The evidence is what this run measured, else what was recorded under ``data/``. Sentences are
chosen by the numbers, so that a new record changes the text as well as the figures.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import matplotlib as mpl
import torch
from torch import Tensor

from rsk.base.folders import data_dir
from rsk.check.calls import Sampler
from rsk.check.mutants import MUTANTS
from rsk.course import kernel_records, lesson, publish
from rsk.course.demo import available, why_not_vectorized
from rsk.decode.studies import Study
from rsk.figures import benchmarks, plotting
from rsk.figures.lessons import law
from rsk.measure import comparison
from rsk.measure.benchmark import Sweep, run, usual_line
from rsk.measure.comparison import BASELINE, digits, duration, megabytes, plural, roof_share
from rsk.measure.records import Benchmark, Provenance, Quoted, Record
from rsk.report.findings import beside_quoted
from rsk.sampler import registry
from rsk.sampler.api import BACKENDS, rejection_sample, sample
from rsk.sampler.kernels import KERNELS, runs_on

if TYPE_CHECKING:
    import pandas as pd

    from rsk.figures.plotting import Picture

BENCHMARK, STUDY = "05_benchmarks", "06_real_llm"


# --- evidence -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Evidence:
    """All that the report draws on."""

    benchmark: Benchmark
    is_recorded: bool
    """Whether ``benchmark`` is from ``data/``; else this run measured it."""
    gpu: Benchmark | None
    """A recorded run on a GPU, unless ``benchmark`` is one itself; ``None`` if there is none."""
    study: Study
    study_is_recorded: bool
    quoted: Quoted
    """The table of the earlier work."""

    @property
    def on_gpu(self) -> bool:
        """Whether the main measurement was made on a GPU."""
        return self.benchmark.provenance.device == "cuda"

    @property
    def gpu_run(self) -> Benchmark | None:
        """What was measured on a GPU, here or recorded; ``None`` if nothing was."""
        return self.benchmark if self.on_gpu else self.gpu


def gather(device: torch.device, *, quick: bool = True) -> Evidence:
    """Collect this run's results, or the recorded ones, or else measure a small sweep now.

    Args:
        device: to measure on, if there is neither.
        quick: how long to measure then.

    Raises:
        LessonError: there are no results of notebook 06 and none recorded.
        RecordError: a file is damaged; names the file and the field.
    """
    study = lesson.load_result(STUDY, Study, recorded="decoding/*.json")
    benchmark, is_recorded = _benchmark(device, quick)
    runs = kernel_records.gpu_runs()
    on_gpu = benchmark.provenance.device == "cuda"
    return Evidence(
        benchmark=benchmark,
        is_recorded=is_recorded,
        gpu=runs[-1] if runs and not on_gpu else None,
        study=study.value,
        study_is_recorded=study.recorded,
        quoted=Quoted.load(data_dir() / "benchmarks" / "earlier-work.json"),
    )


def _benchmark(device: torch.device, quick: bool) -> tuple[Benchmark, bool]:
    """This run's benchmark, else the recorded one of this kind of device, else one made now."""
    if (lesson.results_dir() / f"{BENCHMARK}.json").is_file():
        found = lesson.load_result(BENCHMARK, Benchmark).value
        if suffices(found):
            return found, False
    pattern = f"benchmarks/{'cpu' if device.type == 'cpu' else 'nvidia'}*.json"
    if list(data_dir().glob(pattern)):
        return lesson.load_result("recorded", Benchmark, recorded=pattern).value, True
    return run(
        Sweep(vocab_sizes=(32000, 1000)),
        device=device,
        chosen=available(device),
        budget_s=0.06 if quick else 0.5,
    ), False


def suffices(benchmark: Benchmark) -> bool:
    """Whether a run got far enough to be reported: on a busy machine it may run out of time."""
    try:
        lines = [
            plotting.lines(benchmark, axis) for axis in ("batch_size", "spec_len", "vocab_size")
        ]
    except ValueError:
        return False
    names = {BASELINE, "vectorized"}
    return bool(benchmark.operations) and all(names <= set(line) for line in lines)


# --- words ----------------------------------------------------------------------------------------


def where(benchmark: Benchmark, is_recorded: bool) -> str:
    """How a measurement is labelled in running text."""
    return (
        f"{'recorded' if is_recorded else 'measured in this run'} on {benchmark.provenance.label}"
    )


def largest(benchmark: Benchmark) -> dict[str, Record]:
    """The records at the largest batch size of the usual line, by implementation."""
    line = usual_line(benchmark)
    return line[max(line)]


def best(benchmark: Benchmark) -> str:
    """The backend of this project that stands at the end of the story."""
    return "fused" if "fused" in largest(benchmark) else "vectorized"


def times_faster(ratio: float) -> str:
    """A ratio of times in words, whichever way it goes."""
    return f"{digits(ratio)} times faster" if ratio >= 1 else f"{digits(1 / ratio)} times slower"


def abstract(evidence: Evidence) -> str:
    """The abstract, with the three figures that matter: of a GPU if there is a run on one."""
    gpu, study = evidence.gpu_run, evidence.study
    benchmark = evidence.benchmark if gpu is None else gpu
    place = where(benchmark, evidence.is_recorded or benchmark is evidence.gpu)
    records, name = largest(benchmark), best(benchmark)
    record, base = records[name], records[BASELINE]
    ratio = comparison.ratio(base, record)
    pays = study.speed_up(study.fastest)
    text = (
        "Speculative decoding lets a small draft model propose several tokens that a large target "
        "model checks in one pass. Between the two stands a rejection sampler, which decides how "
        "many of the proposed tokens to keep so that the text is distributed exactly as the "
        "target's own. This report takes that sampler from a Python loop to one fused kernel, in "
        "steps that all return the same tokens, bit for bit. Three figures matter.\n\n"
        f"1. **{digits(ratio)} times the speed of the loop.** A call of the {name} sampler takes "
        f"{duration(record.call.median_us)} instead of {duration(base.call.median_us)}, for "
        f"{record.batch_size} requests with K = {record.spec_len} draft tokens and a vocabulary of "
        f"{record.vocab_size:,} ({place}).{_busy(record, base)}\n"
        f"2. {_against_the_roof(record, base)}\n"
        f"3. **{study.usual.tokens_per_pass:.2f} tokens per pass of the target**, instead of one. "
        f"A small pair of real models yields them at K = {study.usual.spec_len}, where the formula "
        f"predicts {study.usual.expected:.2f}; "
        + (
            f"decoding is {digits(pays)} times as fast at the best draft length."
            if pays > 1
            else f"decoding is not faster for it ({digits(pays)} times the speed at best)."
        )
        + "\n\n"
    )
    return text + _other_machine(evidence)


def _busy(*records: Record) -> str:
    if not any(record.call.busy for record in records):
        return ""
    return " Other processes disturbed this measurement: both times are too long, if anything."


def _against_the_roof(record: Record, base: Record) -> str:
    """The second figure of the abstract: the distance from only reading the input."""
    if record.roof.busy:
        return (
            f"**An unknown distance from the memory roof.** The {megabytes(record.bytes_moved)} "
            "that the sampler must read limit its speed; other processes disturbed the "
            "measurement of that limit."
        )
    times = digits(1 / record.roof_share, 2)
    return (
        f"**{times} times the time of only reading.** That is how near the {record.implementation} "
        f"sampler comes{_on_device(record)} to the least possible, to read the "
        f"{megabytes(record.bytes_moved)} that it must and do nothing else; the loop takes "
        f"{digits(1 / base.roof_share, 2)} times as long."
    )


def _on_device(record: Record) -> str:
    """Where the device has a clock of its own, say that it was read."""
    return "" if record.device.clock == "wall" else " on the device"


def _other_machine(evidence: Evidence) -> str:
    """The same on the CPU, where the figures of the abstract are of a GPU."""
    if evidence.gpu_run is None:
        return (
            "**All times here are of a CPU. None was taken on a GPU yet**: the CUDA kernels were "
            "checked for the right tokens in an emulator, which says nothing about their speed."
        )
    if evidence.on_gpu:
        return "All times of the sampler are of this GPU."
    records, name = largest(evidence.benchmark), best(evidence.benchmark)
    record, base = records[name], records[BASELINE]
    return (
        f"On a CPU ({where(evidence.benchmark, evidence.is_recorded)}) the {name} sampler takes "
        f"{duration(record.call.median_us)} instead of {duration(base.call.median_us)} for "
        f"{record.batch_size} requests and is {times_faster(comparison.ratio(base, record))} than "
        f"the loop.{_busy(record, base)}"
    )


def operations(benchmark: Benchmark) -> str:
    """What one call of each implementation asks for."""
    size = max(count.batch_size for count in benchmark.operations)
    parts = []
    for count in benchmark.operations:
        if count.batch_size == size and count.implementation in BACKENDS:
            work = (
                plural(count.operators, "operator")
                if count.launches is None
                else plural(count.launches, "launch")
            )
            waits = (
                f"waits {plural(count.synchronizations, 'time')} for a value"
                if count.synchronizations
                else "never waits"
            )
            memory = megabytes(count.allocated_bytes)
            parts.append(f"`{count.implementation}` {work}, {waits}, and allocates {memory}")
    return f"One call for {size} requests takes ([@fig-operations]): {'; '.join(parts)}."


def the_earlier_work(evidence: Evidence) -> str:
    """What this work continues, and what is wrong in it."""
    return (
        "Earlier work on this sampler reported that a CUDA kernel is up to "
        f"{evidence.quoted.fused_max_speedup} times faster than the loop; its table is shown "
        "beside ours in [@sec-beside-the-earlier-work]. Two things in it invite another look. It "
        "replaced a rejected token by the *largest* entry of the residual, which is not a sample "
        "from it. And it let one thread walk a whole vocabulary row, which cannot be fast."
    )


def over_all_points(benchmark: Benchmark) -> str:
    """Mean and largest speed-up of each backend over all points, and where it loses."""
    sentences = []
    for row in comparison.speed_ups(benchmark.records):
        if row.implementation not in BACKENDS:
            continue
        at = row.most_at
        sentences.append(
            f"Over {plural(row.points, 'point')}, `{row.implementation}` is on average "
            f"{digits(row.mean)} times as fast as `{BASELINE}` (geometric mean "
            f"{digits(row.geometric_mean)}), at most {digits(row.most)} times (B = "
            f"{at.batch_size}, K = {at.spec_len}, V = {at.vocab_size:,}), at least "
            f"{digits(row.least)} times{' – that is, slower' if row.least < 1 else ''}."
        )
    return " ".join(sentences)


def repeatability(benchmark: Benchmark) -> str:
    """How far two whole runs differ, beside the spread that one run states."""
    rows = comparison.repeatability(benchmark.records)
    if not rows:
        return (
            "The sweep was run once, so the quartiles show how a time varies within a run, and not "
            "how it varies from run to run."
        )
    parts = "; ".join(
        f"`{row.implementation}` {row.between:.1%} (largest {row.between_most:.0%}), where one run "
        f"states {row.stated:.1%}"
        for row in rows
    )
    return (
        "The sweep was run more than once. Medians of two runs differ, in the median over "
        f"{comparison.repeated_points(benchmark.records)}, by: {parts}. Where the first "
        "number is the larger one, the quartiles of a single run understate the uncertainty."
    )


def dtypes(benchmark: Benchmark) -> str:
    """What 16-bit probabilities change, if they were measured; else nothing."""
    name = best(benchmark)
    merged = comparison.merged(benchmark.records)
    pairs = [
        (point, by_name[name], merged[point._replace(dtype="float32")][name])
        for point, by_name in merged.items()
        if point.dtype == "bfloat16"
        and name in by_name
        and name in merged.get(point._replace(dtype="float32"), {})
    ]
    if not pairs:
        return ""
    point, half, full = max(pairs, key=lambda pair: pair[0].batch_size)
    return (
        f"With bfloat16 probabilities, which are half as many bytes, the {name} sampler takes "
        f"{digits(half.device.median_us / full.device.median_us, 2)} times the time of float32 "
        f"(B = {point.batch_size}, V = {point.vocab_size:,})."
    )


def other_samplers(evidence: Evidence) -> str:
    """:func:`peers` of each run, a paragraph each."""
    runs = [evidence.benchmark, *([] if evidence.gpu is None else [evidence.gpu])]
    return "\n\n".join(
        f"On {made.provenance.machine}: {peers(made)}" if len(runs) > 1 else peers(made)
        for made in runs
    )


def by_batch(benchmark: Benchmark) -> str:
    """How the implementations compare at the usual values, and why where the loop is faster."""
    line = usual_line(benchmark)
    name = best(benchmark)
    quoted = [
        f"{duration(r[name].call.median_us)} instead of {duration(r[BASELINE].call.median_us)} at "
        f"B = {size}, {times_faster(comparison.ratio(r[BASELINE], r[name]))}"
        for size, r in sorted(line.items())
        if name in r and size in (min(line), max(line))
    ]
    text = f"[@fig-latency] and [@tab-times]: the {name} sampler takes {'; '.join(quoted)}."
    return " ".join(filter(None, [text, why_not_vectorized(benchmark)]))


def peers(benchmark: Benchmark) -> str:
    """The times of other people's samplers, where they were measured."""
    merged = comparison.merged(benchmark.records)
    names = set(benchmark.provenance.packages)
    sentences = []
    for name in sorted(names):
        found = [(r[name], r[best(benchmark)]) for r in merged.values() if name in r]
        if found:
            other, ours = min(found, key=lambda pair: pair[0].call.median_us)
            sentences.append(
                f"`{name}` {benchmark.provenance.packages[name]} takes "
                f"{duration(other.call.median_us)} where the {ours.implementation} sampler takes "
                f"{duration(ours.call.median_us)} (B = {other.batch_size}, K = {other.spec_len}, "
                f"V = {other.vocab_size:,}; its input is logits, its random numbers are its own, "
                "and it judges one request at a time)."
                if name == "transformers"
                else f"`{name}` {benchmark.provenance.packages[name]} takes "
                f"{duration(other.call.median_us)} where the {ours.implementation} sampler takes "
                f"{duration(ours.call.median_us)} (B = {other.batch_size}, K = {other.spec_len}, "
                f"V = {other.vocab_size:,})."
            )
    missing = [line for line in benchmark.skipped if "not installed" in line]
    if missing:
        sentences.append(f"Not measured: {'; '.join(missing)}.")
    return " ".join(sentences) or "No other implementation was installed to compare with."


def machines(evidence: Evidence) -> str:
    """Which results are from where, and which were not measured, as a list."""
    lines = [
        f"- The three implementations: {where(evidence.benchmark, evidence.is_recorded)}"
        + ("." if evidence.benchmark.complete else "; the sweep was not finished.")
    ]
    study_label = "recorded" if evidence.study_is_recorded else "measured in this run"
    lines.append(f"- The real models: {study_label} on {evidence.study.provenance.label}.")
    if evidence.gpu is not None:
        lines.append(f"- The CUDA kernels: {where(evidence.gpu, True)}.")
    elif not evidence.on_gpu:
        lines.append(
            "- The CUDA kernels: **not measured**. No run on a GPU has been recorded; their tokens "
            "were checked in the emulator."
        )
    lines.append(
        f"- The earlier work's table is quoted ({evidence.quoted.source}); none of its figures was "
        "measured for this report."
    )
    for made in filter(None, (evidence.benchmark, evidence.gpu)):
        place = " on the GPU" if made is evidence.gpu else ""
        lines += [f"- Not measured{place}: {line}." for line in gathered(made.skipped)]
        lines += [f"- Refused{place} as wrong or impossible: {line}." for line in made.refused]
    return "\n".join(lines)


def gathered(skipped: Sequence[str]) -> list[str]:
    """What was not measured, with what has one kind and one reason in one line.

    Args:
        skipped: lines ``kind: instance: reason``, or others, which stay as they are.
    """
    found: dict[tuple[str, str], list[str]] = {}
    for line in skipped:
        kind, _, rest = line.partition(": ")
        instance, _, reason = rest.rpartition(": ")
        found.setdefault((kind, reason), []).append(instance)
    lines = []
    for (kind, reason), instances in found.items():
        which = f" ({'; '.join(instances)})" if all(instances) else ""
        lines.append(f"{kind}{which}: {reason}" if reason else kind)
    return lines


def limits(evidence: Evidence) -> str:
    """Threats to validity that follow from the data, as a list."""
    benchmark, study = evidence.benchmark, evidence.study
    lines = [
        "- **One machine.** Every time is of one machine"
        + (" for each kind of device" if evidence.gpu is not None else "")
        + ". Ratios carry over to others better than times do, and neither carries over safely.",
        "- **Synthetic distributions.** The sampler is timed on Zipf-like rows with an acceptance "
        "rate that is set, not on a model's rows. Its time depends on the rows only through how "
        "many draft tokens are accepted.",
    ]
    if evidence.gpu_run is None:
        lines.insert(
            0,
            "- **No GPU.** The sampler is meant for one, and nothing here was timed on one. On a "
            "CPU there are no launches and a wait costs little, so the gain over the loop has "
            "other causes there than on a GPU.",
        )
    for made in filter(None, (benchmark, evidence.gpu)):
        lines += _limits_of(made, " on the GPU" if made is evidence.gpu else "")
    lines.append(
        f"- **Small models.** The real pair has {study.target_parameters / 1e6:.2f} and "
        f"{study.draft_parameters / 1e6:.2f} million parameters and a vocabulary of "
        f"{study.vocab_size:,}: it shows that the loop is right and the formula holds, and says "
        "nothing about the speed of large models."
    )
    return "\n".join(lines)


def _limits_of(benchmark: Benchmark, place: str) -> Iterator[str]:
    """Threats to the validity of one run."""
    busy = sum(record.call.busy for record in benchmark.records)
    if busy:
        yield (
            f"- **A busy machine.** Other processes disturbed most samples of {busy} of "
            f"{len(benchmark.records)} times{place}; those are too long, if anything."
        )
    if not comparison.repeatability(benchmark.records):
        yield f"- **One run{place}.** How times vary from run to run was not measured."
    provenance = benchmark.provenance
    if provenance.commit == "none" or provenance.commit.endswith("+changes"):
        reason = (
            "was made outside of a git checkout"
            if provenance.commit == "none"
            else "measured files that differ from the last commit"
        )
        yield (
            f"- **Provenance.** The run{place} {reason}; the checksum of its sources is "
            f"{provenance.sources[:12]}."
        )


def conclusions(evidence: Evidence) -> str:
    """What was found, as a numbered list."""
    lines = [*_of_the_sampler(evidence.benchmark)]
    if evidence.gpu is not None:
        lines.append(_of_the_kernels(evidence.gpu))
    lines.append(_of_the_models(evidence.study))
    return "\n".join(f"{number}. {line}" for number, line in enumerate(lines, start=1))


def _of_the_sampler(benchmark: Benchmark) -> Iterator[str]:
    line = usual_line(benchmark)
    name = best(benchmark)
    kind = "GPU" if benchmark.provenance.device == "cuda" else "CPU"
    ratios = {size: comparison.ratio(r[BASELINE], r[name]) for size, r in line.items() if name in r}
    yield (
        f"On the {kind} the {name} sampler is {digits(min(ratios.values()))} to "
        f"{digits(max(ratios.values()))} times as fast as the loop for batches of {min(ratios)} to "
        f"{max(ratios)}, and returns the same tokens."
    )
    both = {size: r for size, r in line.items() if "vectorized" in r}
    slower = [
        size for size, r in both.items() if comparison.ratio(r[BASELINE], r["vectorized"]) < 1
    ]
    gains = [comparison.ratio(r["vectorized"], r[name]) for r in both.values() if name in r]
    if slower:
        yield (
            "Removing the loop is not enough. The vectorised sampler is slower than the loop at "
            f"B = {', '.join(map(str, slower))}: its operators each write a tensor that the next "
            "one reads back, and there are many of them."
        )
    elif both and name != "vectorized":
        yield "Removing the loop helps at every batch size, and fusing " + (
            f"helps again, {digits(min(gains))} times or more."
            if min(gains) > 1
            else f"does not always help again ({digits(min(gains))} times the speed at worst)."
        )
    last = largest(benchmark)[name]
    if not last.roof.busy:
        yield (
            f"At B = {last.batch_size} the {name} sampler runs at {roof_share(last)} of the speed "
            "of only reading its input. "
            + (
                "There is little left to gain by computing faster."
                if last.roof_share > 0.75
                else "What is left to gain is bounded by that number."
            )
        )


def _of_the_kernels(gpu: Benchmark) -> str:
    records = largest(gpu)
    record, base = records[best(gpu)], records[BASELINE]
    return (
        f"On a GPU ({gpu.provenance.machine}) the {record.implementation} sampler is "
        f"{times_faster(comparison.ratio(base, record))} than the loop at B = {record.batch_size}, "
        f"and its kernel runs at {roof_share(record)} of the memory roof."
    )


def _of_the_models(study: Study) -> str:
    usual, ratio = study.usual, study.speed_up(study.fastest)
    agree = abs(usual.tokens_per_pass - usual.expected) <= 2 * usual.tokens_per_pass_error
    return (
        "With real models, tokens per pass "
        f"{'follow the formula' if agree else 'are off the formula'}, {usual.expected:.2f} "
        f"predicted and {usual.tokens_per_pass:.2f} counted at K = {usual.spec_len}. Time follows "
        "only as far as passes are what costs: "
        + (
            f"{digits(ratio)} times as fast at best."
            if ratio > 1
            else "here speculation does not pay at any K."
        )
    )


def future_work(evidence: Evidence) -> str:
    """What to do next, as a list."""
    lines = [
        "- Take logits instead of probabilities, so that no softmax has to be written to memory.",
        "- Judge trees of drafts, not only chains.",
        "- Decode with a pair of current size, and measure the sampler's share there.",
    ]
    if evidence.gpu_run is None:
        lines.insert(
            0,
            "- Measure the kernels on a GPU: `make measure` there writes one file into "
            "`data/benchmarks`, and this report is then made from it.",
        )
    return "\n".join(lines)


def show_argmax(device: torch.device, *, seed: int) -> None:
    """Show one decision, made right and with the shortcut of the earlier work."""
    words, p, seen = argmax_example(device, seed=seed)
    publish.figure(**law(words, p, seen)._asdict())
    publish.prose(about_argmax(p, seen["argmax"], words))


def argmax_example(
    device: torch.device, *, seed: int, requests: int = 40_000
) -> tuple[list[str], Tensor, dict[str, Tensor]]:
    """Make one decision many times, right and with the shortcut of the earlier work.

    Returns:
        The tokens' names, the target's probabilities [V], and for each sampler how often it emitted
        each token [V].
    """
    words = ["mat", "floor", "sofa", "bed", "roof", "table", "chair", "dog"]
    p = torch.tensor([0.30, 0.25, 0.15, 0.10, 0.08, 0.06, 0.04, 0.02], device=device)
    q = torch.tensor([0.10, 0.35, 0.10, 0.20, 0.03, 0.12, 0.02, 0.08], device=device)
    q_rows = q.expand(requests, -1)  # one row, many times, no copy
    drafts = sample(q_rows, seed=seed)[:, None]
    request = drafts, q_rows[:, None], p.expand(requests, 2, -1)
    seen = {}
    samplers: dict[str, Sampler] = {"rsk": rejection_sample, "argmax": MUTANTS["residual_argmax"]}
    for name, sampler in samplers.items():
        first = sampler(*request, seed=seed).tokens[:, 0]
        seen[name] = first.bincount(minlength=len(words)).cpu()
    return words, p.cpu(), seen


def about_argmax(p: Tensor, seen: Tensor, words: Sequence[str]) -> str:
    """What the shortcut of the earlier work does to the output.

    Args:
        p: the target's probabilities [V].
        seen: how often each token came out of it [V].
        words: the tokens' names.
    """
    shares = seen / seen.sum()
    worst = int((shares - p).abs().argmax())
    return (
        "[@fig-law] shows a single decision: eight words, a target, and a draft that overrates "
        "some of them. Drawing the recovered token from the residual gives every word its due. "
        "Taking the residual's largest entry instead, as the earlier work did, gives "
        f'"{words[worst]}" a share of {float(shares[worst]):.3f} where the target gives it '
        f"{float(p[worst]):.3f}, at the cost of the words that should have shared the residual. "
        "The text would still read well, and nothing would crash."
    )


def solutions_caption(evidence: Evidence) -> str:
    """Conditions of :func:`solutions_frame`."""
    record = largest(evidence.benchmark)[BASELINE]
    place = where(evidence.benchmark, evidence.is_recorded)
    return f"The three solutions at {_shape(record)}; {place}."


def times_caption(evidence: Evidence) -> str:
    """Conditions of :func:`times_frame`."""
    record = largest(evidence.benchmark)[BASELINE]
    return (
        "Median time until the result of a call is there, ± half the interquartile range: "
        f"{_shape(record, with_batch=False)}, {record.cache} cache, {record.call.clock} clock; "
        f"{where(evidence.benchmark, evidence.is_recorded)}."
    )


def kernels_caption(evidence: Evidence) -> str:
    """Conditions of :func:`kernels_frame`."""
    gpu = evidence.gpu_run
    if gpu is None:
        return "The CUDA kernels in the order of the course. None has been timed yet."
    record = largest(gpu)[BASELINE]
    return (
        f"The CUDA kernels in the order of the course, at {_shape(record)}; "
        f"{where(gpu, not evidence.on_gpu or evidence.is_recorded)}."
    )


def beside_caption(evidence: Evidence) -> str:
    """Conditions of :func:`beside_frame`."""
    benchmark = evidence.gpu_run or evidence.benchmark
    record = largest(benchmark)[BASELINE]
    return (
        f"Milliseconds a call by batch size. Quoted: {evidence.quoted.source}. Ours: "
        f"{_shape(record, with_batch=False)}, {benchmark.provenance.label}."
    )


def _shape(record: Record, *, with_batch: bool = True) -> str:
    batch = f"B = {record.batch_size}, " if with_batch else ""
    return (
        f"{batch}K = {record.spec_len}, V = {record.vocab_size:,}, {record.dtype}, acceptance rate "
        f"{record.acceptance:g}"
    )


NO_GPU_RUN = (
    "**Not measured.** This run had no GPU, and no run on one has been recorded in "
    "`data/benchmarks`."
)
NO_LADDER = (
    "**No times yet.** No run on a GPU has been recorded, so this report cannot say how fast these "
    "kernels are. When one lands in `data/benchmarks`, its times appear here."
)


def check_kernels(device: torch.device, *, examples: int, seed: int) -> str:
    """Compare every kernel that runs here with the baseline, and say what was compared.

    Raises:
        AssertionError: a kernel returns other tokens; says which call.
    """
    from rsk import check
    from rsk.sampler import build

    kind = "cuda" if device.type == "cuda" else "emulator"
    if not build.available(kind):
        return "The kernels could not be compiled here, so they were not run."
    names = [name for name in KERNELS if runs_on(name, device)]
    calls = sum(
        check.assert_agrees(
            KERNELS[name],
            examples=examples,
            seed=seed,
            device=device,
            max_elements=1 << 11,
            large_vocabulary=False,
        )
        for name in names
    )
    return (
        f"In this run, {'on the GPU' if kind == 'cuda' else 'in the emulator'}: "
        f"{', '.join(f'`{name}`' for name in names)} returned the baseline's tokens, bit for bit, "
        f"in all of {calls} random "
        "calls, among them ragged drafts, 16-bit rows, strided tensors and rows of NaN."
    )


def ladder(benchmark: Benchmark) -> str:
    """What the ladder of a GPU run shows."""
    records = largest(benchmark)
    found = [records[name] for name in KERNELS if name in records]
    first, last = found[0], min(found, key=lambda record: record.device.median_us)
    reached = f"at {roof_share(last)} of the memory roof"
    if last is first:
        return (
            f"[@fig-ladder]: the first kernel, `{first.implementation}`, is the fastest here, "
            f"{duration(first.device.median_us)}, {reached}."
        )
    return (
        f"[@fig-ladder]: from the first kernel to the fastest, `{last.implementation}`, the time "
        f"falls from {duration(first.device.median_us)} to {duration(last.device.median_us)} at "
        f"B = {last.batch_size}: {digits(first.device.median_us / last.device.median_us)} times "
        f"faster, with the same work to do, and {reached}."
    )


def growth(benchmark: Benchmark) -> str:
    """How the times grow with K and V."""
    sentences = []
    for axis, letter, figure in (
        ("spec_len", "K", "fig-spec-len"),
        ("vocab_size", "V", "fig-vocab"),
    ):
        picture = (
            benchmarks.latency_by_spec_len if axis == "spec_len" else benchmarks.latency_by_vocab
        )
        columns = picture(benchmark).data
        parts = []
        for name in BACKENDS:
            if f"{name} (µs)" in columns:
                times = columns[f"{name} (µs)"].dropna().tolist()
                parts.append(f"{digits(times[-1] / times[0], 2)} for `{name}`")
        values = columns[letter].tolist()
        sentences.append(
            f"From {letter} = {values[0]:,} to {values[-1]:,} ([@{figure}]) the time is multiplied "
            f"by {', '.join(parts)}."
        )
    return " ".join([*sentences, dtypes(benchmark)]).strip()


def roof(benchmark: Benchmark) -> str:
    """How near the memory roof the implementations come."""
    records = largest(benchmark)
    record = records[best(benchmark)]
    opening = "[@fig-roofline] is a roofline in the sense of [3]. "
    if record.roof.busy:
        return opening + "Other processes disturbed the roof at the largest batch."
    shares = ", ".join(
        f"`{name}` {roof_share(records[name], 1)}" for name in BACKENDS if name in records
    )
    return opening + (
        f"For {record.batch_size} requests the sampler must move {megabytes(record.bytes_moved)}, "
        f"which takes {duration(record.roof.median_us)} if nothing else is done. Of the speed of "
        f"only reading, the implementations reach: {shares}."
    )


def gpu_results(benchmark: Benchmark) -> str:
    """A recorded GPU run in words; refers to the figures whose labels end in "-gpu"."""
    records = largest(benchmark)
    record, base = records[best(benchmark)], records[BASELINE]
    sentences = [
        f"On {benchmark.provenance.machine} at {_shape(record)}, the {record.implementation} "
        f"sampler takes {duration(record.call.median_us)} from call to result and "
        f"{duration(record.device.median_us)} on the device ([@fig-latency-gpu]), and is "
        f"{times_faster(comparison.ratio(base, record))} than the loop ([@fig-speed-up-gpu]). On "
        f"the device it runs at {roof_share(record)} of the memory roof ([@fig-roofline-gpu]).",
    ]
    sentences.append(dtypes(benchmark))
    rest = [over_all_points(benchmark), repeatability(benchmark)]
    if not benchmark.complete:
        rest.append("This sweep was not finished.")
    return "\n\n".join(" ".join(filter(None, part)) for part in (sentences, rest))


def earlier(evidence: Evidence) -> str:
    """The earlier work's own summary beside ours."""
    benchmark = evidence.gpu_run or evidence.benchmark
    ours = {row.implementation: row for row in comparison.speed_ups(benchmark.records)}
    quoted = evidence.quoted
    ratios = [row.fused_speedup for row in quoted.times]
    text = (
        f"It reported {quoted.vectorized_mean_speedup} times on average for PyTorch and "
        f"{quoted.fused_mean_speedup} times for CUDA, {quoted.fused_max_speedup} at most. The mean "
        f"of its own four rows is {digits(sum(ratios) / len(ratios))}."
    )
    if "fused" in ours:
        text += (
            f" Ours are {digits(ours['vectorized'].mean)} times for `vectorized`, "
            f"{digits(ours['fused'].mean)} for `fused` and {digits(ours['fused'].most)} at most, "
            f"over {plural(ours['fused'].points, 'point')}"
            + ("" if benchmark.provenance.device == "cuda" else ", on a CPU")
            + "."
        )
    return text


class Text(NamedTuple):
    """A generated text in coloured runs, and a sentence on it."""

    runs: list[tuple[str, str]]
    summary: str


def generate_text(device: torch.device, *, seed: int = 0, new_tokens: int = 96) -> Text:
    """Let the shipped pair write a text, now."""
    from rsk.decode.command_line import shipped_prompts
    from rsk.decode.loading import fitting_threads, load_pair, shipped_pair
    from rsk.decode.loop import speculative_generate
    from rsk.decode.studies import token_runs

    pair = load_pair(*shipped_pair(), device=device, dtype=torch.float32)
    prompt = shipped_prompts()[-1]["text"]
    with fitting_threads(pair):
        made = speculative_generate(
            pair.target,
            pair.draft,
            prompt,
            pair.tokenizer,
            temperature=0.5,
            seed=seed,
            max_new_tokens=new_tokens,
        )
    kept = made.origins[0].count("accepted")
    return Text(
        token_runs(made, prompt, pair),
        f"Of the {len(made.tokens[0])} new tokens in [@lst-text] the draft wrote {kept}. The "
        f"target made {made.target_passes} passes for them instead of {len(made.tokens[0])}.",
    )


def show_banner(evidence: Evidence) -> None:
    """Say where the main measurement is from."""
    provenance = evidence.benchmark.provenance
    mode = "gpu" if evidence.on_gpu else "cpu"
    publish.banner("recorded" if evidence.is_recorded else mode, provenance)


def show_gpu_results(evidence: Evidence) -> None:
    """The recorded run on a GPU, beside a measurement on a CPU; or why there is none."""
    if evidence.gpu is None:
        publish.prose("All of the above was measured on a GPU." if evidence.on_gpu else NO_GPU_RUN)
        return
    publish.banner("recorded", evidence.gpu.provenance)
    publish.prose(gpu_results(evidence.gpu))
    for draw in (benchmarks.latency_by_batch, benchmarks.speed_up, benchmarks.roofline):
        publish.figure(**relabelled(draw(evidence.gpu), "gpu")._asdict())


def show_study_banner(evidence: Evidence) -> None:
    """Say where the measurement of the real models is from."""
    provenance = evidence.study.provenance
    mode = "gpu" if provenance.device == "cuda" else "cpu"
    publish.banner("recorded" if evidence.study_is_recorded else mode, provenance)


# --- tables ---------------------------------------------------------------------------------------


def solutions_frame(benchmark: Benchmark) -> pd.DataFrame:
    """The three solutions at the largest batch: work, time, and both relative numbers."""
    import pandas as pd

    records = largest(benchmark)
    size = max(usual_line(benchmark))
    counts = {c.implementation: c for c in benchmark.operations if c.batch_size == size}
    base = records[BASELINE]
    rows = []
    for name in BACKENDS:
        if name in records:
            record, count = records[name], counts[name]
            on_gpu = count.launches is not None
            rows.append(
                {
                    "implementation": name,
                    "launches" if on_gpu else "operators": count.launches
                    if on_gpu
                    else count.operators,
                    "waits": count.synchronizations,
                    "allocated": megabytes(count.allocated_bytes),
                    "median": duration(record.call.median_us),
                    "quartiles": f"{duration(record.call.q25_us)} to "
                    f"{duration(record.call.q75_us)}",
                    "× baseline": comparison.ratio(base, record),
                    "of the roof": "–" if record.roof.busy else roof_share(record, 1),
                }
            )
    return pd.DataFrame(rows)


def times_frame(benchmark: Benchmark) -> pd.DataFrame:
    """Time of a call with half the interquartile range, by batch size and implementation."""
    import pandas as pd

    rows = []
    for size, by_name in sorted(usual_line(benchmark).items()):
        row: dict[str, object] = {"B": size}
        for name, record in by_name.items():
            row[name] = f"{duration(record.call.median_us)} ± {record.call.relative / 2:.0%}"
        rows.append(row)
    return pd.DataFrame(rows)


def beside_frame(evidence: Evidence) -> pd.DataFrame:
    """The earlier work's times and ours by batch size, in milliseconds."""
    return beside_quoted(evidence.gpu_run or evidence.benchmark, evidence.quoted)


def kernels_frame(evidence: Evidence) -> pd.DataFrame:
    """The kernels, what each adds, and its time on the device where it was measured."""
    import pandas as pd

    gpu = evidence.gpu_run
    records = {} if gpu is None else largest(gpu)
    return pd.DataFrame(
        {
            "kernel": name,
            "its idea": registry.KERNELS[name].idea,
            "time on the device": duration(records[name].device.median_us)
            if name in records
            else "not measured",
            **(
                {"of the roof": roof_share(records[name]) if name in records else "–"}
                if gpu is not None
                else {}
            ),
        }
        for name in KERNELS
    )


def environment_frame(evidence: Evidence) -> pd.DataFrame:
    """Where and with what everything was measured: a row for each fact, a column for each run."""
    import pandas as pd

    runs: dict[str, Provenance] = {
        "three implementations": evidence.benchmark.provenance,
        "real models": evidence.study.provenance,
    }
    if evidence.gpu is not None:
        runs["CUDA kernels"] = evidence.gpu.provenance
    facts: dict[str, Callable[[Provenance], object]] = {
        "date (UTC)": lambda p: p.date[:16].replace("T", " "),
        "processor": lambda p: f"{p.cpu}, {plural(p.cores, 'core')}, {p.instructions}",
        "threads": lambda p: str(p.threads),
        "last-level cache": lambda p: megabytes(p.cache_bytes),
        "GPU (compute capability)": lambda p: (
            f"{p.gpu} ({p.compute_capability})" if p.gpu else "none"
        ),
        "driver, CUDA": lambda p: f"{p.driver}, {p.cuda}" if p.driver else "–",
        "system": lambda p: p.os,
        "Python, PyTorch": lambda p: f"{p.python}, {p.torch}",
        "rsk, commit": lambda p: f"{p.rsk}, {p.commit}",
        "checksum of the sources": lambda p: p.sources[:12],
    }
    return pd.DataFrame(
        {"fact": fact, **{name: read(run) for name, run in runs.items()}}
        for fact, read in facts.items()
    )


def relabelled(picture: Picture, suffix: str) -> Picture:
    """The same figure under another label, where a report shows it for two machines."""
    return picture._replace(label=f"{picture.label}-{suffix}")


# --- the picture of the README --------------------------------------------------------------------


def write_picture(path: Path) -> None:
    """Draw the speed-up over the loop from the newest recorded run, on a GPU if there is one.

    Raises:
        LessonError: nothing has been recorded.
    """
    recorded_runs = [
        Benchmark.load(file)
        for file in (data_dir() / "benchmarks").glob("*.json")
        if file.name != "earlier-work.json"
    ]
    if not recorded_runs:
        raise lesson.LessonError("data/benchmarks holds no recorded run to draw")
    newest = max(recorded_runs, key=lambda r: (r.provenance.device == "cuda", r.provenance.date))
    picture = benchmarks.speed_up(newest)
    ax = picture.fig.axes[0]
    ax.set_xlabel(f"{ax.get_xlabel()}\n{newest.provenance.label}")
    with mpl.rc_context({"svg.fonttype": "path", "svg.hashsalt": "rsk"}):
        picture.fig.savefig(path, bbox_inches="tight", metadata={"Date": None})


if __name__ == "__main__":  # python -m rsk.report.facts report/speed-up.svg
    write_picture(Path(sys.argv[1]))
