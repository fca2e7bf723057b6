"""The command line: help, exit statuses, and one clear line in place of a traceback."""

from __future__ import annotations

import inspect
import itertools
import subprocess
import sys

import pytest
import torch
from typer.testing import CliRunner

import rsk
from rsk import cli, doctor
from rsk.base import fonts
from rsk.course import running
from rsk.report import measurements, talk

COMMANDS = ["demo", "benchmark", "generate", "report", "doctor"]


def run(*arguments):
    return CliRunner().invoke(cli.app, list(arguments))


def test_the_help_lists_the_commands_in_order():
    result = run("--help")
    assert result.exit_code == 0
    places = [result.output.index(f" {command} ") for command in COMMANDS]
    assert places == sorted(places)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_and_option_has_help(command):
    result = run(command, "--help")
    assert result.exit_code == 0
    group = cli.typer.main.get_command(cli.app)
    parsed = group.commands[command]
    summary = parsed.help.strip()
    assert summary.endswith(".")
    assert len(summary) <= 60  # one line of the list of commands
    for parameter in parsed.params:
        assert parameter.help, f"{command}: {parameter.name} has no help"


@pytest.mark.slow
def test_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "rsk", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"rsk {rsk.__version__}\n"


def test_an_unknown_command_is_a_usage_error():
    result = run("tuna")
    assert result.exit_code == 2
    assert "tuna" in result.output


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ValueError("batch size must be positive, got 0"), 2),
        (running.CourseError("00_quick_demo.ipynb: cell 3 of 9 failed"), 1),
        (rsk.BuildError("no compiler"), 1),
        (PermissionError(13, "Permission denied", "/x"), 1),
        (ModuleNotFoundError("No module named 'papermill'", name="papermill.execute"), 1),
    ],
)
def test_expected_errors_are_one_line_without_traceback(monkeypatch, error, status):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(running, "run_course", fail)
    result = run("report")
    assert result.exit_code == status
    assert "Traceback" not in result.output
    assert result.output.startswith("rsk: ")
    assert len(result.output.splitlines()) == 1
    monkeypatch.setenv("RSK_DEBUG", "1")
    assert run("report").exception is error


def test_a_missing_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "papermill", None)
    monkeypatch.setattr(running, "notebooks", lambda *_: [])
    monkeypatch.setattr(running, "run_course", lambda *_, **__: __import__("papermill.execute"))
    result = run("report")
    assert result.exit_code == 1
    assert (
        result.output
        == "rsk: this command needs the package papermill: pip install 'rsk[course]'\n"
    )


def test_an_interruption_is_no_traceback(monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(running, "run_course", interrupt)
    result = run("report")
    assert result.exit_code == 130
    assert result.output == "rsk: interrupted\n"


def interrupting(function, after):
    """The function, until it is interrupted in its last call."""
    calls = itertools.count(1)

    def replacement(*arguments, **options):
        if next(calls) > after:
            raise KeyboardInterrupt
        return function(*arguments, **options)

    return replacement


@pytest.mark.parametrize("after", [0, 1])
@pytest.mark.slow
def test_an_interrupted_demo_ends_as_interrupted(monkeypatch, after):
    from rsk.course import race

    monkeypatch.setattr(race, "race", interrupting(race.race, after))
    result = run("demo", "--device", "cpu", "--batch-sizes", "1,2", "--vocab-size", "100")
    assert result.exit_code == 130
    assert result.output.endswith("rsk: interrupted\n")
    assert "3  Why?" not in result.output


@pytest.mark.parametrize("after", [0, 1, 4])
def test_an_interrupted_benchmark_shows_and_saves_what_it_has(monkeypatch, tmp_path, after):
    from rsk.measure import benchmark
    from rsk.measure.records import Benchmark

    monkeypatch.setattr(benchmark, "measure", interrupting(benchmark.measure, after))
    monkeypatch.setattr(benchmark, "ATTEMPTS", 1)
    arguments = "--device cpu --batch-sizes 1,2,3 --spec-lens 2 --vocab-sizes 100 --budget 0.01"
    arguments += f" --only baseline,vectorized --save {tmp_path}"
    result = run("benchmark", *arguments.split())
    assert result.exit_code == 130
    (path,) = tmp_path.glob("*.json")
    assert f"saved to {path}" in result.output
    assert "interrupted: the rest of the sweep was not measured" in result.output
    assert len(Benchmark.load(path).records) == after


@pytest.mark.slow
def test_an_interrupted_text_stays_on_lines_of_its_own(monkeypatch):
    from rsk.decode import command_line, loop

    monkeypatch.setattr(command_line, "WARM_UP_TOKENS", 1)
    monkeypatch.setattr(loop, "decoding_step", interrupting(loop.decoding_step, 5))
    result = run("generate", "--plain", "--seed", "1", "--device", "cpu", "def f(x):")
    assert result.exit_code == 130
    assert "def f(x):" in result.output
    assert result.output.endswith("\n\nrsk: interrupted\n")


def test_an_error_that_nobody_expected_is_shown_in_full(monkeypatch):
    def fail(*_, **__):
        raise KeyError("a bug")

    monkeypatch.setattr(running, "run_course", fail)
    assert isinstance(run("report").exception, KeyError)


def test_report_passes_its_options_on(monkeypatch, tmp_path):
    seen = {}
    monkeypatch.setattr(running, "run_course", lambda *a, **k: seen.update(k, parameters=a[0]))
    arguments = ["-p", "batch_sizes=[1, 4]", "-p", "seed=3", "--full", "--only", "05"]
    result = run("report", *arguments, "--output", str(tmp_path), "--no-export")
    assert result.exit_code == 0, result.output
    more = seen.pop("more")
    assert (more.func, more.keywords) == (talk.write, {"language": "en", "presenter": ""})
    assert seen == {
        "parameters": {"batch_sizes": [1, 4], "seed": 3, "quick": False},
        "only": ["05"],
        "output": tmp_path,
        "export": False,
        "ready": measurements.gather,
    }
    assert run("report").exit_code == 0
    assert seen["parameters"] == {}


def test_report_is_made_in_the_language_asked_for(monkeypatch, tmp_path):
    seen = {}
    monkeypatch.setattr(running, "run_course", lambda *a, **k: seen.update(k, parameters=a[0]))
    monkeypatch.setattr(fonts, "find", lambda family: None)
    assert run("report", "--lang", "zh-TW", "--presenter", "Lin").exit_code == 0
    refused = run("report", "--no-export", "--presenter", "Lin")
    assert refused.exit_code == 2 and "--presenter goes with a talk" in refused.output
    assert seen["parameters"] == {"language": "zh-TW"}
    assert seen["more"].keywords == {"language": "zh-TW", "presenter": "Lin"}
    result = run("report", "--lang", "xx")
    assert result.exit_code == 2 and "no words in 'xx'; languages: en, zh-TW" in result.output


@pytest.mark.parametrize(
    "arguments",
    [
        ["report", "--lang", "zh-TW"],
        ["report", "--presenter", "林小明"],
        ["demo", "--device", "cpu", "--lang", "zh-TW", "--figure", "demo.svg"],
    ],
)
def test_a_missing_font_is_named_before_anything_runs(arguments, monkeypatch):
    from rsk.course import demo

    def missing(family):
        raise fonts.FontError(f"the font {family} is missing: {fonts.HINT}")

    monkeypatch.setattr(fonts, "find", missing)
    monkeypatch.setattr(running, "run_course", lambda *a, **k: pytest.fail("it ran"))
    monkeypatch.setattr(demo, "_say", lambda *a, **k: pytest.fail("it ran"))
    result = run(*arguments)
    assert result.exit_code == 1 and "pip install 'rsk[zh]'" in result.output


def test_report_refuses_a_parameter_that_cannot_be_read():
    result = run("report", "-p", "batch_sizes")
    assert result.exit_code == 2
    assert "name=value" in result.output


# --- demo and benchmark


def test_demo_passes_its_options_on(monkeypatch, tmp_path):
    from rsk.course import demo

    defaults = {p.name: p.default for p in inspect.signature(demo.run).parameters.values()}
    seen = {}
    monkeypatch.setattr(demo, "run", lambda **options: seen.update(options))
    assert run("demo", "--device", "cpu").exit_code == 0
    del seen["console"], defaults["console"]
    assert seen == defaults
    arguments = f"--batch-sizes 2,3 --spec-len 5 --vocab-size 70 --seed 8 --figure {tmp_path}/d.svg"
    result = run("demo", *arguments.split(), "--device", "cpu", "--lang", "zh-TW")
    assert result.exit_code == 0, result.output
    del seen["console"]
    assert seen == {
        "batch_sizes": (2, 3),
        "spec_len": 5,
        "vocab_size": 70,
        "figure": tmp_path / "d.svg",
        "device": "cpu",
        "seed": 8,
        "language": "zh-TW",
    }


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--batch-sizes", "few"], "--batch-sizes: expected integers"),
        (["--batch-sizes", "0"], "batch_sizes: expected at least 1, got 0"),
        (["--vocab-size", "0"], "vocab_sizes: expected at least 1, got 0"),
        (["--figure", "demo.doc"], "figure: expected a name in .png, .svg or .pdf"),
        (["--device", "tpu"], "device: expected 'auto', 'cpu' or 'cuda', got 'tpu'"),
        (["--lang", "xx"], "there are no words in 'xx'; languages: en"),
    ],
)
def test_demo_says_what_it_expected(arguments, expected):
    result = run("demo", *arguments)
    assert result.exit_code == 2
    assert expected in result.output
    assert "Traceback" not in result.output


@pytest.fixture
def measured(monkeypatch):
    """Calls of ``rsk.measure.benchmark.run``, which is replaced: its own tests measure."""
    from rsk.measure import benchmark, result_tables

    calls = []
    monkeypatch.setattr(benchmark, "run", lambda sweep, **options: calls.append((sweep, options)))
    monkeypatch.setattr(result_tables, "show", lambda *_: None)
    return calls


def test_the_defaults_shown_are_the_defaults_used():
    from rsk.measure.sweep import Sweep

    group = cli.typer.main.get_command(cli.app)
    shown = {p.name: p.show_default for p in group.commands["benchmark"].params}
    for name in ("batch_sizes", "spec_lens", "vocab_sizes", "dtypes", "acceptances", "caches"):
        assert shown[name] == ",".join(map(str, getattr(Sweep(), name))), name
    assert shown["runs"] == str(Sweep().runs)


def test_benchmark_without_options_measures_the_usual_sweep(measured):
    from rsk.measure.sweep import Sweep

    assert run("benchmark", "--device", "cpu").exit_code == 0
    ((sweep, options),) = measured
    assert sweep == Sweep()
    assert options["device"].type == "cpu"
    assert options["chosen"] is None
    assert options["save"] is None


def test_benchmark_passes_its_options_on(measured):
    from rsk.measure.sweep import Sweep

    arguments = "--batch-sizes 1,2 --spec-lens 3 --dtypes bfloat16,float16 --acceptances 0.5,1"
    arguments += " --vocab-sizes 7 --caches cold --grid BKV --runs 2 --seed 9 --only fused,baseline"
    arguments += " --budget 0.5 --time-limit 60 --threads 1 --device cpu"
    result = run("benchmark", *arguments.split())
    assert result.exit_code == 0, result.output
    ((sweep, options),) = measured
    assert sweep == Sweep(
        batch_sizes=(1, 2),
        spec_lens=(3,),
        vocab_sizes=(7,),
        dtypes=("bfloat16", "float16"),
        acceptances=(0.5, 1.0),
        caches=("cold",),
        grid="BKV",
        runs=2,
        seed=9,
    )
    del options["console"]
    assert options == {
        "device": torch.device("cpu"),
        "chosen": ("fused", "baseline"),
        "threads": 1,
        "budget_s": 0.5,
        "time_limit_s": 60,
        "save": None,
    }


def test_a_full_sweep_can_be_changed_in_parts(measured):
    from rsk.measure.sweep import full_sweep

    assert run("benchmark", "--full", "--batch-sizes", "2", "--device", "cpu").exit_code == 0
    sweep = measured[0][0]
    assert sweep.batch_sizes == (2,)
    assert sweep.vocab_sizes == full_sweep("cpu").vocab_sizes
    assert sweep.grid == "BKV"
    assert sweep.runs == full_sweep("cpu").runs


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--batch-sizes", "1,x"], "--batch-sizes: expected integers with commas between them"),
        (["--batch-sizes", "0"], "batch_sizes: expected at least 1, got 0"),
        (["--acceptances", "most"], "--acceptances: expected numbers"),
        (["--dtypes", "int8"], "dtypes: expected one of"),
        pytest.param(  # for which all other projects' samplers are looked for
            *(["--only", "fastest", "--batch-sizes", "1"], "got 'fastest'"),
            marks=pytest.mark.slow,
        ),
        (["--device", "tpu"], "device: expected 'auto', 'cpu' or 'cuda', got 'tpu'"),
        (["some.json"], "rsk benchmark --compare FILE..."),
        (["--compare"], "rsk benchmark --compare FILE..."),
    ],
)
def test_benchmark_says_what_it_expected(arguments, expected):
    result = run("benchmark", *arguments)
    assert result.exit_code == 2
    assert expected in result.output
    assert len(result.output.splitlines()) == 1


def test_every_option_of_a_sweep_is_refused_by_the_other_ways_of_benchmarking():
    command = cli.typer.main.get_command(cli.app).commands["benchmark"]
    for mode, allowed in (
        (["--compare", "a.json"], {"--compare"}),
        (["--sharded", "2"], {"--sharded", "--full", "--save", "--compare"}),
    ):
        for parameter in command.params:
            option = parameter.opts[0]
            if parameter.param_type_name != "option" or option in allowed:
                continue
            value = [] if parameter.is_flag else ["1"]
            result = run("benchmark", *mode, option, *value)
            assert result.exit_code == 2, option
            assert f"{mode[0]} goes with no other option" in result.output, option
            assert result.output.endswith(f"got {option}\n")


def test_a_benchmark_is_saved_and_compared(tmp_path):
    path = tmp_path / "record.json"
    arguments = "--batch-sizes 2 --spec-lens 2 --vocab-sizes 50 --budget 0.01 --device cpu"
    chosen = ["--only", "baseline,vectorized", "--save", str(path)]
    result = run("benchmark", *arguments.split(), *chosen)
    assert result.exit_code == 0, result.output
    assert f"saved to {path}" in result.output
    compared = run("benchmark", "--compare", str(path), str(path))
    assert compared.exit_code == 0
    assert "1.0×" in compared.output
    missing = run("benchmark", "--compare", str(tmp_path / "none.json"))
    assert missing.exit_code == 1
    assert missing.output == f"rsk: {tmp_path / 'none.json'}: No such file or directory\n"


# --- devices


@pytest.mark.parametrize("command", ["demo", "benchmark", "generate"])
def test_a_gpu_that_is_not_there_is_refused(monkeypatch, command):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    result = run(command, "--device", "cuda")
    assert result.exit_code == 2
    assert result.output == "rsk: device cuda: PyTorch finds no NVIDIA GPU (see rsk doctor)\n"


def test_the_device_is_the_gpu_if_there_is_one(monkeypatch, measured):
    for has_gpu, device in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr("torch.cuda.is_available", lambda has_gpu=has_gpu: has_gpu)
        assert run("benchmark").exit_code == 0
        assert measured[-1][1]["device"].type == device


# --- generate and doctor


def test_generate_passes_its_options_on(monkeypatch):
    from rsk.decode import command_line

    expected = {p.name: p.default for p in inspect.signature(command_line.run).parameters.values()}
    seen = {}
    monkeypatch.setattr(command_line, "run", lambda *a, **k: seen.update(k, prompt=a[0]))
    arguments = "--target t --draft ngram --spec-len 3 --max-new-tokens 9 --temperature 0.5"
    arguments += " --lookup"
    arguments += " --top-k 4 --top-p 0.9 --min-p 0.1 --seed 1 --backend fused --device cpu --plain"
    result = run("generate", "Once upon", *arguments.split())
    assert result.exit_code == 0, result.output
    assert seen == {
        "prompt": "Once upon",
        "target": "t",
        "draft": "ngram",
        "spec_len": 3,
        "lookup": True,
        "max_new_tokens": 9,
        "temperature": 0.5,
        "top_k": 4,
        "top_p": 0.9,
        "min_p": 0.1,
        "seed": 1,
        "backend": "fused",
        "device": "cpu",
        "plain": True,
    }
    assert run("generate").exit_code == 0
    assert {name: seen[name] for name in seen if name != "prompt"} | {"prompt": None} == expected


def test_doctor_fails_only_on_problems(monkeypatch):
    ok = doctor.Diagnosis("Python", "ok", "3.11")
    problem = doctor.Diagnosis("ninja", "problem", "not installed", "pip install ninja")
    monkeypatch.setattr(doctor, "examine", lambda: [ok])
    assert run("doctor").exit_code == 0
    monkeypatch.setattr(doctor, "examine", lambda: [ok, problem])
    result = run("doctor")
    assert result.exit_code == 1
    assert "pip install ninja" in result.output
