"""Plots made of text: what each line says, at any scale, with and without block characters."""

from __future__ import annotations

import math
import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aios.cli.text_plots import bar, can_write_blocks, columns, histogram, sparkline

MARKS = ((0.0, "baseline"), (0.062, "threshold"))
COUNT = re.compile(r"  +(\d+)(?:  (?:←|<-) .*)?$")


def counts(lines: list[str]) -> list[int]:
    """The counts of a histogram's rows; lines of marks have none."""
    found = (COUNT.search(line) for line in lines if "──" not in line and "--- " not in line)
    return [int(match[1]) for match in found if match is not None]


def test_a_histogram_has_round_ends_bars_counts_and_marks() -> None:
    values = [-0.02, 0.01, 0.03, 0.03, 0.06, 0.09]
    assert histogram(values, marks=MARKS, rows=6, width=8) == [
        "-0.04 … -0.02  ████      1",
        "-0.02 …  0.00            0",
        "               ──── baseline",
        " 0.00 …  0.02  ████      1",
        " 0.02 …  0.04  ████████  2",
        " 0.04 …  0.06  ████      1",
        " 0.06 …  0.08            0  ← threshold",
        " 0.08 …  0.10  ████      1",
    ]


def test_the_ends_of_ranges_belong_to_the_range_below() -> None:
    lines = histogram([0.0, 0.0, 0.001], marks=[(0.0, "baseline")], rows=1, width=4)
    mark = next(n for n, line in enumerate(lines) if "baseline" in line)
    assert sum(counts(lines[:mark])) == 2  # no better than the baseline
    assert sum(counts(lines[mark:])) == 1


def test_a_mark_beyond_the_values_is_still_there() -> None:
    lines = histogram([0.5, 0.51], marks=[(0.0, "baseline"), (0.93, "threshold")])
    assert any(line.endswith("baseline") for line in lines)
    assert any("← threshold" in line for line in lines)


def test_marks_at_the_same_place_share_a_line() -> None:
    lines = histogram([0.5, -0.5], marks=[(0.0, "baseline"), (0.0, "threshold 0")])
    assert sum("─" in line for line in lines) == 1
    assert any(line.endswith(" baseline, threshold 0") for line in lines)


def test_outliers_are_counted_in_open_ranges() -> None:
    values = [n / 100 for n in range(-10, 11)]
    lines = histogram([*values, 900.0, 1000.0, -50.0], marks=MARKS)
    assert lines[0].split()[0] == "below"
    assert lines[-1].split()[0] == "above"
    assert (counts(lines)[0], counts(lines)[-1]) == (1, 2)
    assert sum(counts(lines)) == 24
    assert len(lines) < 20


def test_ascii_bars_have_ascii_alone() -> None:
    lines = histogram([random.gauss(0, 1) for _ in range(99)], marks=MARKS, blocks=False)
    assert all(line.isascii() for line in lines)
    assert any("####" in line for line in lines)
    assert sum(counts(lines)) == 99


def test_nothing_gives_nothing() -> None:
    assert histogram([]) == []
    assert histogram([math.nan, math.inf], marks=MARKS) == []
    assert sparkline([]) == sparkline([math.nan]) == ""
    assert columns([]) == []


@given(
    st.lists(st.floats(allow_nan=True, allow_infinity=True), min_size=1, max_size=60),
    st.integers(1, 30),
    st.booleans(),
)
def test_every_finite_value_is_counted_once_at_any_scale(
    values: list[float], rows: int, blocks: bool
) -> None:
    lines = histogram(values, marks=[(0.0, "baseline")], rows=rows, width=10, blocks=blocks)
    assert sum(counts(lines)) == sum(abs(value) <= 1e300 for value in values)
    assert len(lines) <= rows + 6


@given(st.lists(st.floats(-1e300, 1e300, allow_subnormal=False), min_size=1, max_size=60))
def test_bars_are_as_long_as_their_counts_say(values: list[float]) -> None:
    lines = [line for line in histogram(values, width=20, blocks=False) if COUNT.search(line)]
    most = max(counts(lines))
    for line, count in zip(lines, counts(lines), strict=True):
        length = line.count("#")
        assert (length == 20) if count == most else (length < 20 or count > 0.9 * most)
        assert (length == 0) == (count == 0)


def test_a_bar_of_something_is_never_empty_and_never_too_long() -> None:
    assert bar(0.0, 8) == bar(-1.0, 8) == bar(math.nan, 8) == ""
    assert bar(1e-9, 8) == "▏"
    assert bar(1e-9, 8, blocks=False) == "#"
    assert bar(0.5, 8) == "████"
    assert bar(0.5 + 3 / 64, 8) == "████▍"
    assert bar(7.0, 8) == "█" * 8
    assert bar(1.0, 8, blocks=False) == "#" * 8


def test_a_sparkline_goes_from_the_lowest_to_the_highest() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"
    assert sparkline([5, 5, 5]) == "▄▄▄"
    assert sparkline([-1e300, 1e300, math.nan, 0.0]) == "▁█▅"
    assert sparkline([1, 2, 1], blocks=False).isascii()


def test_columns_line_up() -> None:
    rows = [("name", "n", "x"), ("a", "10", ""), ("longer", "7", "yes")]
    assert columns(rows, right=[1]) == ["name     n  x", "a       10", "longer   7  yes"]


@pytest.mark.parametrize(
    ("encoding", "can"),
    [("utf-8", True), ("ascii", False), ("latin-1", False), ("nonsense", False), (None, False)],
)
def test_encodings_that_have_the_blocks(encoding: str | None, can: bool) -> None:
    assert can_write_blocks(encoding) is can
