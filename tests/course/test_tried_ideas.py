"""What came of the ideas: words that follow from the times."""

from __future__ import annotations

import dataclasses
import json

import pytest

pytest.importorskip("pandas")
from measured import GPU_PROVENANCE

from rsk.base import folders, templates
from rsk.course import labels, tried_ideas
from rsk.measure import ideas


def outcome(before, times):
    idea = ideas.Idea("more of it", "Faster.", times_us=times)
    return tried_ideas.IdeaOutcome.of(idea, before)


def test_the_outcome_of_an_idea_follows_from_its_times():
    found = outcome((10.0, 10.0, 10.0, 10.0, 10.0), (None, 10.29, 9.71, 8.0, 15.0))
    assert found.name == "More of it" and found.prediction == "Faster."
    assert found.cells == ["failed", "same", "same", "\u221220%", "+50%"]
    near = outcome((10.0, 10.0), (10.31, 9.5)).cells
    assert near == ["+3.1%", "\u22125.0%"], "a whole percent would hide the limit"
    assert found.helped == [pytest.approx(0.2)] and found.hurt == [pytest.approx(0.5)]
    assert (found.same, found.failed) == (2, 1)


def test_the_outcomes_over_several_points_in_words():
    before = (10.0, 20.0, 40.0)

    def said(*times):
        found = outcome(before, times)
        values = {"ideas": [found], "noise": 0.0, "within": 0.03, "other_sources": False}
        text = templates.render("course.md#ideas", values)
        return text.splitlines()[0].partition("Measured: ")[2]

    assert said(10.1, 20.0, 39.5) == "no difference at any point."
    assert said(None, None, None) == "failed at every point."
    assert said(8.0, 10.0, 40.0) == (
        "helped at 2 of 3 points, 20% to 50% less time; no difference at 1."
    )
    assert said(8.0, 30.0, None) == (
        "helped at 1 of 3 points, 20% less time; hurt at 1 of 3 points, 50% more time; failed at 1."
    )


def test_ideas_are_shown_with_prediction_and_outcome(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(folders, "data_dir", lambda: tmp_path)
    with pytest.raises(FileNotFoundError, match="no run of"):
        tried_ideas.show()
    labels.reset()

    points = [
        {"batch_size": b, "spec_len": 4, "vocab_size": 32000, "dtype": "float32",
         "acceptance": 0.7, "cache": cache}
        for b, cache in ((1, "warm"), (1024, "cold"))
    ]  # fmt: skip
    text = {
        "schema": ideas.SCHEMA,
        "provenance": dataclasses.asdict(GPU_PROVENANCE),
        "points": points,
        "unchanged_us": [4.0, 200.0],
        "again_us": [4.1, 200.0],
        "ideas": [
            {"name": "less of it", "prediction": "Nothing.", "times_us": [4.0, 250.0]},
            {"name": "more of it", "prediction": "Faster.", "times_us": [3.0, None]},
            {"name": "none of it", "prediction": "Slower.", "times_us": [4.0, 201.0]},
        ],
    }
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "ideas-a-gpu.json").write_text(json.dumps(text))
    tried_ideas.show()
    said = " ".join(capsys.readouterr().out.split(" ")).replace(chr(10), " ")
    assert "Recorded on a GPU, driver 1.2.3" in said
    assert "1 × 32,000\t1,024 × 32,000, cold" in said
    assert "Unchanged (µs)\t4.00\t200" in said
    caption = templates.exhibit("tab-ideas", tried_ideas.table(ideas.load()).values).caption
    assert caption.endswith("2026-01-02, of earlier sources.")
    assert "Failed: it did not run" in caption
    assert "Less of it\tsame\t+25%" in said and "More of it\t\u221225%\tfailed" in said
    assert "**Less of it.** Predicted: Nothing. Measured: hurt at 1 of 2 points, 25%" in said
    assert "Of 3 ideas, 1 helped somewhere, 1 only hurt and 1 did neither." in said
    assert "differ by up to 2.5%. A change of no more than 3.0%" in said

    text["again_us"] = [5.2, 200.0]  # a difference of 30 % is noise, then
    text["ideas"][1]["times_us"] = [3.0, 200.0]
    text["provenance"]["date"] = "2026-01-03T00:00:00+00:00"
    # The newest by its date, whatever its name.
    (tmp_path / "kernels" / "ideas-1-gpu.json").write_text(json.dumps(text))
    labels.reset()
    tried_ideas.show()
    said = " ".join(capsys.readouterr().out.split(" ")).replace(chr(10), " ")
    assert "no more than 30.0%" in said and "0 only hurt and 3 did neither." in said
    assert "More of it\tsame\tsame" in said
    assert tried_ideas.table(ideas.load()).values["fails"] is False
