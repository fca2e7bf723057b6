"""Numbers as readers see them."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
from measured import spread

from rsk.base import numbers


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (32000, "32,000"),
        (np.int64(-7), "−7"),
        (0.0, "0"),
        (0.04251, "0.0425"),
        (9.996, "10.0"),
        (66.92, "66.9"),
        (12345.6, "12,346"),
        (-1.5, "−1.50"),
        (1.2e-7, "1.20\u00a0×\u00a010⁻⁷"),
        (3e12, "3.00\u00a0×\u00a010¹²"),
        (math.nan, "–"),
        (math.inf, "∞"),
        (None, "–"),
        (pd.NA, "–"),
        (pd.NaT, "–"),
        (True, "yes"),
        (np.bool_(False), "no"),
        ("fused", "fused"),
    ],
)
def test_numbers_are_written_for_readers(value, text):
    assert numbers.number(value) == text


@pytest.mark.parametrize(
    ("value", "significant", "text"),
    [
        (0, 3, "0"),
        (9.996, 3, "10.0"),
        (1234.5, 3, "1,230"),
        (0.012345, 2, "0.012"),
        (21.33, 2, "21"),
    ],
)
def test_digits(value, significant, text):
    assert numbers.digits(value, significant) == text


@pytest.mark.parametrize(
    ("microseconds", "text"),
    [
        (18.44, "18.4 µs"),
        (999.4, "999 µs"),
        (999.6, "1.00 ms"),
        (7990, "7.99 ms"),
        (1.2e6, "1.20 s"),
    ],
)
def test_duration_and_the_median_of_a_time(microseconds, text):
    assert numbers.duration(microseconds) == text
    assert numbers.us(spread(microseconds)) == numbers.us(microseconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(12, "12.0 B"), (832e3, "832 kB"), (14.94e6, "14.9 MB"), (2.5e9, "2.50 GB")],
)
def test_byte_size(count, text):
    assert numbers.byte_size(count) == text


def test_percent_says_when_a_share_is_too_small_to_show():
    assert numbers.percent(0.614) == "61%"
    assert numbers.percent(0.0004) == "<1%"
    assert numbers.percent(0.0004, 1) == "<0.1%"
    assert numbers.percent(0.0006, 1) == "0.1%"
    assert numbers.percent(0) == "0%"


def test_changes_and_quartiles():
    assert numbers.change(10, 15) == "+50%" and numbers.change(10, 8) == "−20%"
    time = spread(18.0)
    assert numbers.quartiles(time) == "17.1 – 18.9 µs"
    assert numbers.quartiles(dataclasses.replace(time, q75_us=1100.0)) == "17.1 µs – 1.10 ms"
