"""``aios seal restem estimate`` on the scripted model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import pytest

from aios.cli.commands.seal_restem_estimate import (
    _range,
    estimate,
    parse_budget,
    parse_parameters,
    parse_price,
)
from aios.core.errors import UsageError
from aios.core.restem_workload import Span
from tests.test_app.scripted_jobs import write_passages

Capture = pytest.CaptureFixture[str]
SCRIPTED = ["--model", "scripted", "--set", "restem.arms=implications,rewrite"]
IMAGINED = ["--passages", "40", "--tokens-per-passage", "100", *SCRIPTED]
ON_GPU = [*IMAGINED, "--gpu", "A100-80GB", "--model-parameters", "7B"]


def call(*words: str) -> None:
    estimate.main(list(words), prog_name="estimate", standalone_mode=False)


def document(capsys: Capture, *words: str) -> dict[str, Any]:
    call(*words, "--json")
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_a_dataset_is_probed_and_the_stages_are_shown(tmp_path: Path, capsys: Capture) -> None:
    data = write_passages(tmp_path / "data.jsonl", 10)
    call("--dataset", str(data), *SCRIPTED)
    captured = capsys.readouterr()
    for text in ("propose", "held-out", "speed from", "timed on this machine", "assumed: "):
        assert text in captured.out
    assert "timing trials" in captured.err
    assert any(line.startswith("time") for line in captured.out.splitlines())


def test_a_range_is_shown_where_rounding_leaves_one() -> None:
    assert _range(Span(1.0, 2.0, 3.0), "usd") == "2.00 USD (1.00 USD to 3.00 USD)"
    assert _range(Span(1.999, 2.0, 2.001), "usd") == "2.00 USD"


def test_quiet_says_nothing_on_stderr(capsys: Capture) -> None:
    call(*IMAGINED, "--quiet")
    assert capsys.readouterr().err == ""


def test_json_is_alone_on_stdout_and_whole(capsys: Capture) -> None:
    found = document(capsys, *ON_GPU, "--price-per-hour", "1.5-3", "--iterations", "3")
    assert found["workload"]["rounds"] == 3
    assert found["estimate"]["seconds"]["low"] < found["estimate"]["seconds"]["high"]
    assert found["estimate"]["money"]["middle"] > 0
    assert found["memory"]["peak_bytes"] > 14 * 10**9
    assert set(found["estimate"]["stages"]) == {"propose", "try", "fit", "held-out", "expert"}


def test_options_reach_the_work(capsys: Capture) -> None:
    options = ["--candidates", "7", "--batch-size", "5", "--no-probe"]
    found = document(capsys, *IMAGINED, *options)
    assert (found["workload"]["candidates"], found["workload"]["passages"]) == (7, 5)
    assert found["estimate"] is None
    assert found["passages"] == 40


def test_without_a_speed_no_time_is_shown(capsys: Capture) -> None:
    call(*IMAGINED, "--no-probe")
    out = capsys.readouterr().out
    assert "No time: neither was a probe made" in out
    assert "in trials" in out


def test_money_memory_and_advice_are_shown(capsys: Capture) -> None:
    call(*ON_GPU, "--price-per-hour", "1.5-3", "--budget", "1s")
    out = capsys.readouterr().out
    assert "USD" in out
    assert "trainings at a time" in out
    assert "To fit the budget, in this order" in out
    assert "seal.restem_iterations" in out
    assert "Even so it does not fit" in out


def test_a_budget_that_is_enough_is_said_to_be(capsys: Capture) -> None:
    call(*ON_GPU, "--budget", "30d")
    assert "fits the budget as it is" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--passages", "3", "--gpu", "X9"], "X9"),
        ([], "either a dataset or a number of passages"),
        ([*IMAGINED, "--no-probe", "--budget", "20usd"], "needs a price"),
    ],
)
def test_wrong_usage_names_the_mistake(words: list[str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        call(*words)


@pytest.mark.parametrize(
    "words",
    [["--budget", "soon"], ["--price-per-hour", "3-1"], ["--model-parameters", "7X"]],
)
def test_what_cannot_be_read_is_wrong_usage(words: list[str]) -> None:
    with pytest.raises(click.BadParameter):
        call(*IMAGINED, *words)


def test_an_unknown_gpu_lists_the_known_ones() -> None:
    with pytest.raises(UsageError) as caught:
        call(*IMAGINED, "--gpu", "X9")
    assert "RTX-4090" in caught.value.remedy


@pytest.mark.parametrize(
    ("text", "hours", "money"),
    [
        ("2h", 2.0, None),
        ("30m", 0.5, None),
        ("30 min", 0.5, None),
        ("90s", 0.025, None),
        ("1.5d", 36.0, None),
        ("20usd", None, 20.0),
        ("$20", None, 20.0),
        ("20 USD", None, 20.0),
    ],
)
def test_budgets_are_read(text: str, hours: float | None, money: float | None) -> None:
    found = parse_budget(text)
    assert found == (pytest.approx(hours) if hours else None, money)


@pytest.mark.parametrize("text", ["", "2", "0h", "-2h", "2 weeks", "$2h", "1e3h", "nan"])
def test_what_is_no_budget_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a budget"):
        parse_budget(text)


def test_prices_and_sizes_are_read() -> None:
    assert parse_price("1.5") == (1.5, 1.5)
    assert parse_price("1.5 - 3") == (1.5, 3.0)
    assert parse_parameters("7B") == 7 * 10**9
    assert parse_parameters("1.7b") == 17 * 10**8
    assert parse_parameters("135M") == 135 * 10**6
    assert parse_parameters("1000") == 1000
    for text in ("", "0", "x", "3-"):
        with pytest.raises(ValueError, match="is not a price"):
            parse_price(text)
    for text in ("", "0", "seven", "7T"):
        with pytest.raises(ValueError, match="is not a number"):
            parse_parameters(text)
