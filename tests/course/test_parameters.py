"""The notebooks' parameters: read, matched with what is declared, and held to their ranges."""

from __future__ import annotations

import nbformat
import pytest

from rsk.base import folders
from rsk.course.parameters import (
    _RANGES,
    check_ranges,
    declared_parameters,
    literals,
    match_parameters,
    parse_parameters,
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("[1, 4]", [1, 4]),
        ("1,4", [1, 4]),
        ("(1, 4)", [1, 4]),
        ("4,", [4]),
        ("True", True),
        ("true", True),
        ("null", None),
        ("1e-3", 1e-3),
        ("cpu", "cpu"),
        ("'cpu'", "cpu"),
        ("[a, b]", ["a", "b"]),
        ("", None),
    ],
)
def test_values_are_literals_or_yaml(text, value):
    assert parse_parameters([f"x={text}"]) == {"x": value}


@pytest.mark.parametrize("assignment", ["x", "=1", "two words=1", "x=[1,"])
def test_unreadable_parameters_are_refused(assignment):
    with pytest.raises(ValueError, match="name=value|cannot be read"):
        parse_parameters([assignment])


def test_a_parameter_is_given_once():
    with pytest.raises(ValueError, match="parameter x is given twice"):
        parse_parameters(["x=1", "y=2", "x=1"])


DECLARED = {
    "a": {"quick": True, "batch_sizes": [1, 4], "rate": 0.5, "device": "cpu", "limit": None},
    "b": {"quick": True, "steps": 3},
}


def test_parameters_go_to_the_notebooks_that_declare_them():
    given = {"quick": False, "batch_sizes": [2], "steps": 9}
    assert match_parameters(given, DECLARED) == {
        "a": {"quick": False, "batch_sizes": [2]},
        "b": {"quick": False, "steps": 9},
    }


def test_an_unknown_parameter_lists_the_known_ones():
    with pytest.raises(ValueError, match="'batch_size'") as error:
        match_parameters({"batch_size": [1]}, DECLARED)
    assert "a: quick, batch_sizes, rate, device, limit\n  b: quick, steps" in str(error.value)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("batch_sizes", 3, "a list of integers such as [1, 4], not an integer: 3"),
        ("batch_sizes", [1, "x"], "a list of integers such as [1, 4], not a list: [1, 'x']"),
        ("batch_sizes", [True], "a list of integers such as [1, 4], not a list of truth values"),
        ("batch_sizes", (8,), "a list of integers such as [1, 4], not a tuple: (8,)"),
        ("quick", 1, "a truth value such as True, not an integer: 1"),
        ("steps", True, "an integer such as 3, not a truth value: True"),
        ("steps", 2.5, "an integer such as 3, not a number: 2.5"),
        ("steps", None, "an integer such as 3, not null: None"),
        ("rate", "half", "a number such as 0.5, not a text: 'half'"),
        ("device", 0, "a text such as 'cpu', not an integer: 0"),
    ],
)
def test_a_value_of_another_type_is_refused(name, value, expected):
    with pytest.raises(ValueError, match=f"parameter {name} of") as error:
        match_parameters({name: value}, DECLARED)
    assert expected in str(error.value)


@pytest.mark.parametrize(("name", "value"), [("rate", 1), ("limit", 7)])
def test_compatible_types_are_accepted(name, value):
    assert match_parameters({name: value}, DECLARED)["a"] == {name: value}


def test_a_notebook_without_parameters_cell_is_refused(write_notebook):
    path = write_notebook("00_a")
    notebook = nbformat.read(path, as_version=4)
    del notebook.cells[0]
    with pytest.raises(ValueError, match="00_a: no code cell is tagged"):
        declared_parameters(notebook, "00_a")


@pytest.mark.parametrize("source", ["x = 1 + y", "import os", "x ="])
def test_parameters_are_literals_only(write_notebook, source):
    notebook = nbformat.read(write_notebook("00_a", parameters=source), as_version=4)
    with pytest.raises(ValueError, match="may only assign literals"):
        declared_parameters(notebook, "00_a")


def test_annotated_parameters_are_found(write_notebook):
    source = '"""Docs are no literal to assign."""'
    notebook = nbformat.read(write_notebook("00_a", parameters=source), as_version=4)
    with pytest.raises(ValueError):
        declared_parameters(notebook, "00_a")
    source = "quick: bool = True  # small and fast\nsizes = [\n    1,\n    -2,\n]"
    notebook = nbformat.read(write_notebook("00_a", parameters=source), as_version=4)
    assert declared_parameters(notebook, "00_a") == {"quick": True, "sizes": [1, -2]}


# --- ranges

LARGE = "1" + 30 * "0"


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        (
            "batch_sizes",
            "[]",
            "a list of at least one value, each an integer from 1 to 1048576",
        ),
        ("batch_sizes", "0,4", "each an integer from 1 to 1048576, got [0, 4]"),
        ("batch_sizes", "[4, -1]", "each an integer from 1 to 1048576, got [4, -1]"),
        ("batch_sizes", LARGE + ",", "each an integer from 1 to 1048576"),
        ("spec_lens", "129,", "each an integer from 0 to 128, got [129]"),
        ("spec_lens", "[-1]", "each an integer from 0 to 128, got [-1]"),
        ("vocab_size", "0", "an integer from 1 to 1048576, got 0"),
        ("vocab_size", LARGE, "an integer from 1 to 1048576"),
        ("seed", LARGE, "an integer from"),
        ("device", "gpu", "auto, cpu or cuda, got 'gpu'"),
        ("device", "cuda:x", "auto, cpu or cuda, got 'cuda:x'"),
    ],
)
def test_a_value_out_of_range_is_refused(name, text, expected):
    declared = {"a": {"device": "auto", "seed": 0, "vocab_size": 9}}
    declared["a"] |= {"batch_sizes": [1], "spec_lens": [4]}
    with pytest.raises(ValueError, match=f"^parameter {name}: expected ") as error:
        match_parameters(parse_parameters([f"{name}={text}"]), declared)
    assert expected in str(error.value)


@pytest.mark.parametrize(
    "values",
    [
        {"batch_sizes": [1, 1048576], "spec_lens": [0, 128], "vocab_size": 1, "seed": -(2**62)},
        {"device": "cuda:1", "vocab_size": 1048576, "seed": 2**62},
        {},
    ],
)
def test_the_ends_of_the_ranges_are_in_them(values):
    check_ranges(values)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batch_sizes", 4),
        ("batch_sizes", (1, 4)),
        ("spec_lens", [4.0]),
        ("quick", 1),
        ("seed", 1.0),
        ("vocab_size", True),
        ("device", None),
        ("language", "xx"),
        ("language", ["en"]),
    ],
)
def test_a_value_that_a_reader_typed_is_held_to_its_type(name, value):
    with pytest.raises(ValueError, match=f"^parameter {name}: expected"):
        check_ranges({name: value, "another": object()})


def test_every_parameter_of_the_course_has_a_range_and_fits_it():
    for path in folders.notebooks_dir().glob("[0-9]*.ipynb"):
        declared = declared_parameters(nbformat.read(path, as_version=4), path.name)
        assert set(declared) <= set(_RANGES)
        check_ranges(declared)


def test_what_papermill_writes_for_odd_numbers_is_read():
    cell = "# Parameters\na = float('nan')\nb = float('-inf')\nc = [1, None]\n"
    found = literals(cell)
    assert found["a"] != found["a"]
    assert (found["b"], found["c"]) == (float("-inf"), [1, None])
