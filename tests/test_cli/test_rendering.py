"""What goes to stdout, and how numbers and texts look."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aios.cli.ab_tables import summary_document, write_ab_tables
from aios.cli.rendering import (
    error_lines,
    to_json,
    write_facts,
    write_json,
    write_line,
    write_table,
)
from aios.cli.text import (
    NOTHING,
    clean,
    format_bytes,
    format_count,
    format_duration,
    format_number,
    format_percent,
)
from aios.core.types import Failure

Capture = pytest.CaptureFixture[str]


@pytest.mark.parametrize(
    ("function", "value", "text"),
    [
        (format_duration, 0.04, "0.0 s"),
        (format_duration, 9.94, "9.9 s"),
        (format_duration, 9.96, "10 s"),
        (format_duration, 59.6, "1 min 00 s"),
        (format_duration, 185, "3 min 05 s"),
        (format_duration, 7799, "2 h 10 min"),
        (format_duration, math.inf, NOTHING),
        (format_bytes, 999, "999 B"),
        (format_bytes, 999_960, "1.0 MB"),
        (format_bytes, 1_500_000, "1.5 MB"),
        (format_bytes, 10**10, "10.0 GB"),
        (format_bytes, None, NOTHING),
        (format_count, 12345.0, "12,345"),
        (format_count, 0.5, "0.5"),
        (format_number, 3.14159, "3.142"),
        (format_number, math.nan, NOTHING),
        (format_number, None, NOTHING),
        (format_percent, 0.066, "6.6 %"),
        (format_percent, None, NOTHING),
    ],
)
def test_numbers_read_well(function: Callable[[Any], str], value: Any, text: str) -> None:
    assert function(value) == text


def test_control_characters_are_made_visible() -> None:
    assert clean("a\x1b[31mb\tc\nd\r\u202ee") == "a�[31mb\tc\nd��e"


def test_json_has_no_nan_and_knows_our_types(capsys: Capture) -> None:
    write_json({"a": math.nan, "b": Path("x/y"), "c": (1, 2.5), "d": Failure("train", "s", "e")})
    assert json.loads(capsys.readouterr().out) == {
        "a": None,
        "b": str(Path("x/y")),
        "c": [1, 2.5],
        "d": {"boundary": "train", "subject": "s", "error": "e", "retryable": False},
    }


def test_a_value_without_json_form_is_refused() -> None:
    with pytest.raises(TypeError, match="object has no JSON form"):
        to_json({"a": object()})


def test_long_paths_are_never_broken_or_cut(capsys: Capture) -> None:
    path = "/".join(["folder"] * 60)
    write_line(path)
    write_facts([("written to", path), ("nothing", "")])
    assert capsys.readouterr().out == f"{path}\nwritten to  {path}\n"


def test_tables_keep_every_character_and_take_markup_as_text(capsys: Capture) -> None:
    write_table(("name", "n"), [("[bold]x[/bold]", "12"), ("y" * 200, "3")], numeric=(1,))
    out = capsys.readouterr().out
    assert "[bold]x[/bold]" in out
    assert out.count("y") == 200
    assert "\x1b" not in out


def test_an_error_of_many_lines_is_indented() -> None:
    assert error_lines("2 errors:\n  a\n  b", "do this") == (
        "error: 2 errors:\n  a\n  b\n  → do this"
    )


def test_ab_tables_show_arms_costs_comparisons_and_the_verdict(
    metrics: dict[str, Any], capsys: Capture
) -> None:
    write_ab_tables(metrics)
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert "Held-out questions: 4 about 2 passages" in out
    summary = metrics["arms"]["passage+edits"]["summary"]
    row = next(line for line in lines if line.startswith("passage+edits "))
    assert f"{summary['validation_loss']['mean']:.3f} ±" in row
    assert row.count("100.0 ±0.0") == 3
    assert any("6,000" in line and "1 min 05 s" in line and "1.0 GB" in line for line in lines)
    assert any("3.300 (+10.0 %)" in line for line in lines)
    main = metrics["comparison"]
    assert f"{100 * main['relative_change']:+.1f} %" in out
    assert f"{100 * main['ci95'][0]:+.1f} … {100 * main['ci95'][1]:+.1f}" in out
    assert "+100.0 points" in out
    assert lines[-1] == metrics["verdict"]


def test_ab_tables_fit_a_terminal_of_eighty_columns(
    metrics: dict[str, Any], capsys: Capture
) -> None:
    metrics["arms"]["passage+other-edits"] = metrics["arms"].pop("passage")
    for arm in metrics["arms"].values():
        for metric in ("exact_match", "f1", "contains_answer"):
            arm["summary"][metric].update(mean=0.1234, sd=0.0123)
    write_ab_tables(metrics)
    arms, costs, *_ = capsys.readouterr().out.split("\n\n")
    assert max(map(len, f"{arms}\n{costs}".splitlines())) <= 80


def test_one_seed_has_no_spread(metrics: dict[str, Any], capsys: Capture) -> None:
    write_ab_tables(metrics)
    base = next(row for row in capsys.readouterr().out.splitlines() if row.startswith("base "))
    assert "±" not in base


def test_the_summary_for_programs_leaves_out_single_questions(metrics: dict[str, Any]) -> None:
    summary = summary_document(metrics)
    assert summary["comparison"] == metrics["comparison"]
    assert all("runs" not in arm for arm in summary["arms"].values())
    assert len(json.dumps(to_json(summary))) < len(json.dumps(to_json(metrics)))
