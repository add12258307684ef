"""``aios seal restem tune`` on the scripted model."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click
import pytest

from aios.app.restem import results as restem_results
from aios.app.restem.tuning import job as restem_tune
from aios.app.restem.tuning import trial as restem_tune_trial
from aios.app.restem.tuning.space import Space
from aios.cli.commands.seal_restem_tune import parse_time, tune
from aios.core.errors import RunInterrupted, UsageError
from tests.planted_generators import write_planted
from tests.planted_world import planted_passages

Capture = pytest.CaptureFixture[str]
SETTINGS = (
    "restem.arms=implications",
    "restem.threshold=-9",
    "restem.trial_tokens=60",
    "restem.held_out_fraction=0.3",
    "seal.restem_batch_size=3",
    "seal.restem_candidates_per_passage=2",
    "seal.min_length=1",
    "seal.enable_quality_filter=false",
    "seal.enable_grounding=false",
    "training.rank=2",
    "training.batch_size=2",
)
SCRIPTED = ["--model", "scripted", *(word for one in SETTINGS for word in ("--set", one))]
TINY = Space("tiny", {"rank": (2, 4), "trial_epochs": (1,)}, "a test")

pytestmark = pytest.mark.usefixtures("quick_jobs")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_planted(tmp_path / "data.jsonl", planted_passages(8))


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restem_tune, "choose_space", lambda *given: TINY)
    monkeypatch.setattr(restem_results, "render_restem_report", lambda *given: "")


def call(*words: str) -> None:
    tune.main(list(words), prog_name="tune", standalone_mode=False)


def test_trials_are_run_and_the_best_settings_shown(
    tmp_path: Path, data: Path, capsys: Capture
) -> None:
    call("--dataset", str(data), "--output", "out", *SCRIPTED)
    captured = capsys.readouterr()
    assert "Best of 2 complete trials" in captured.out
    assert "--set restem.trial_tokens=null" in captured.out
    assert str(Path("out") / "best.yaml") in captured.out
    assert "trial 1 of 2" in captured.err
    assert (tmp_path / "out" / "report.html").exists()
    assert (tmp_path / "out" / "runs" / "trial-0002" / "state.json").exists()


def test_json_is_alone_on_stdout_and_resuming_changes_nothing(data: Path, capsys: Capture) -> None:
    words = ["--dataset", str(data), "--output", "out", "--json", "--quiet", *SCRIPTED]
    call(*words)
    captured = capsys.readouterr()
    first: dict[str, Any] = json.loads(captured.out)
    assert captured.err == ""
    assert first["best"]["number"] in (1, 2)
    assert first["report_html"] == str(Path("out") / "report.html")
    call(*words, "--resume")
    assert json.loads(capsys.readouterr().out)["trials"] == first["trials"]


def test_a_tuning_that_is_there_is_not_overwritten(data: Path) -> None:
    words = ["--dataset", str(data), "--output", "out", "--trials", "1", "--quiet", *SCRIPTED]
    call(*words)
    with pytest.raises(UsageError, match="exists already"):
        call(*words)


def test_a_dry_run_counts_and_writes_nothing(tmp_path: Path, data: Path, capsys: Capture) -> None:
    words = ["--dataset", str(data), "--output", "out", "--dry-run", *SCRIPTED]
    call(*words)
    out = capsys.readouterr().out
    assert "20 of 81 combinations" in out
    assert "without sharing" in out
    call(*words, "--space", "small", "--trials", "200", "--json")
    plan = json.loads(capsys.readouterr().out)
    assert (plan["trials"], plan["combinations"]) == (108, 108)
    assert not (tmp_path / "out").exists()


def test_an_interrupted_tuning_says_how_to_go_on(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*given: Any, **named: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(restem_tune_trial, "optimize", interrupted)
    with pytest.raises(RunInterrupted) as caught:
        call("--dataset", str(data), "--output", "out", *SCRIPTED)
    assert caught.value.remedy.endswith("--resume")


def test_without_optuna_the_extra_is_named(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UsageError) as caught:
        call("--dataset", str(data), "--output", "out", *SCRIPTED)
    assert caught.value.remedy == "pip install 'aios[tune]'"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("30m", 1800), ("2h", 7200), ("1.5d", 129_600), ("5 min", 300)],
)
def test_times_are_read(text: str, seconds: float) -> None:
    assert parse_time(text) == seconds


@pytest.mark.parametrize("text", ["2", "h", "-1h", "0h", "2w", "1e9h", ""])
def test_what_is_no_time_is_refused(data: Path, text: str) -> None:
    with pytest.raises(ValueError, match="not a time"):
        parse_time(text)
    with pytest.raises(click.BadParameter):
        call("--dataset", str(data), "--output", "out", "--timeout", text)
