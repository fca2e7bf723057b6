"""The session on a GPU machine: parts that fail, end late, pass, and are not run again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rsk.measure import session
from rsk.measure.session import Part

PROGRAM = """
import json, pathlib, sys, time
path = pathlib.Path(sys.argv[sys.argv.index("--save") + 1])
path.write_text(json.dumps({"complete": "incomplete" not in sys.argv}))
time.sleep(60 if "slow" in sys.argv else 0)
print("said")
raise SystemExit(int(sys.argv[1]))
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Run a session of parts that each end with a status, or take a minute."""
    (tmp_path / "a_part.py").write_text(PROGRAM)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def start(*ends: tuple[str, ...], minutes: str = "9") -> int:
        made = [
            Part(f"part {i}", "a_part", end, f"{i}/x.json", has_limit=True)
            for i, end in enumerate(ends)
        ]
        monkeypatch.setattr(session, "parts", lambda slug, dry: made)
        folders = ["--folder", str(tmp_path / "data"), "--logs", str(tmp_path / "logs")]
        return session.main(["--dry", "--minutes", minutes, *folders])

    return start


def test_a_failure_does_not_stop_the_next_and_is_told(run, tmp_path, capsys) -> None:
    assert run(("1",), ("0",)) == 1
    printed = capsys.readouterr().out
    assert "part 0: failed" in printed
    assert "said" in printed, "the log's last words"
    assert "part 1: passed" in printed
    assert json.loads((tmp_path / "data" / "1" / "x.json").read_text()) == {"complete": True}


def test_refused_arguments_are_a_failure(run, capsys) -> None:
    """A part that refuses what it is to go on with would else be started for ever."""
    assert run(("2", "incomplete")) == 1
    assert "part 0: failed" in capsys.readouterr().out


def test_what_has_passed_is_not_run_again(run, capsys) -> None:
    assert run(("0",), ("3",)) == 3
    assert "part 1: unfinished" in capsys.readouterr().out
    assert run(("0",), ("0",)) == 0
    printed = capsys.readouterr().out
    assert "part 0" not in printed
    assert "part 1: passed" in printed


def test_a_record_that_says_it_is_unfinished_is_run_again(run, capsys) -> None:
    assert run(("0", "incomplete")) == 3
    assert "part 0: unfinished" in capsys.readouterr().out
    assert run(("0",)) == 0


@pytest.mark.slow
def test_a_call_ends_when_its_time_is_up(run, monkeypatch, capsys) -> None:
    monkeypatch.setattr(session, "LEAST_S", 0.5)
    assert run(("0", "slow"), ("0",), minutes="0.02") == 3
    printed = capsys.readouterr().out
    assert "part 0: unfinished" in printed
    assert "part 1: not begun" in printed


def test_every_part_has_a_dry_run_that_its_program_knows() -> None:
    for dry in (False, True):
        made = session.parts("gpu", dry)
        assert len({part.name for part in made}) == len({part.saves for part in made}) == len(made)
        for part in made:
            command = part.command(Path("data"), 100.0)
            assert ("--time-limit" in command) == part.has_limit
