"""``aios seal restem optimize``, for real, on the scripted model."""

from __future__ import annotations

import json
import os
import shlex
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aios.app.restem import job as restem_job
from aios.cli.aios import run
from aios.core.events import Event, RoundFinished
from tests.test_app.scripted_jobs import files_below, without_times, write_passages

pytestmark = pytest.mark.usefixtures("quick_jobs")

Capture = pytest.CaptureFixture[str]
QUICK = {
    "seal.min_length": 5,
    "seal.enable_deduplication": "false",
    "seal.enable_cache": "false",
    "restem.keep": "best_of_k",
    "restem.estimate": "false",
    "restem.trial_tokens": 200,
    "restem.held_out_fraction": 0.3,
    "restem.held_out_candidates": 1,
    "restem.patience": 0,
    "restem.sft_rank": 2,
    "restem.sft_alpha": 4,
}
OPTIONS = [
    "--model",
    "scripted",
    *(word for name, value in QUICK.items() for word in ("--set", f"{name}={value}")),
]
SMALL = ["--iterations", "1", "--batch-size", "2", "--candidates", "2", "--arms", "implications"]
COMMAND = ["seal", "restem", "optimize"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_passages(tmp_path / "passages.jsonl", 6, questions=2)


def line(data: Path, *more: str) -> list[str]:
    return [*COMMAND, "--dataset", str(data), *SMALL, *OPTIONS, *more]


def runs_of(folder: Path) -> list[Path]:
    return sorted((folder / "artifacts" / "runs").iterdir())


def without_places(text: str) -> Any:
    places = {"run_dir", "report_html", "metrics_json", "generator", "estimate"}
    found = {k: v for k, v in json.loads(text).items() if k not in places}
    found["info"] = {k: v for k, v in found["info"].items() if k not in ("command", "estimate")}
    return without_times(found)


def test_a_run_ends_with_its_rounds_and_where_all_is(
    data: Path, tmp_path: Path, capsys: Capture
) -> None:
    assert run(line(data, "--output-generator", "gen", "--quiet")) == 0
    out = capsys.readouterr().out
    (path,) = runs_of(tmp_path)
    assert "untrained" in out
    assert "round 1" in out
    assert "all 1 rounds are done" in out
    shown = out.replace("\n", "")
    assert str(Path("artifacts/runs") / path.name / "report.html") in shown
    assert (path / "metrics.json").exists()
    config = (path / "config.yaml").read_text()
    assert "restem_candidates_per_passage: 2" in config


def test_json_is_alone_on_the_output(data: Path, tmp_path: Path, capsys: Capture) -> None:
    alone = ("--set", "restem.held_out_fraction=0")  # then the last generator is the best
    assert run(line(data, "--json", *alone)) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    (path,) = runs_of(tmp_path)
    assert Path(found["run_dir"]).name == path.name
    assert found["stopped"] == "all 1 rounds are done"
    assert [r["number"] for r in found["rounds"]] == [0, 1]
    assert json.loads((path / "metrics.json").read_text())["rounds"] == found["rounds"]
    assert (Path(found["generator"]) / "generator.json").exists()


def test_a_dry_run_shows_the_plan_and_writes_nothing(
    data: Path, tmp_path: Path, capsys: Capture
) -> None:
    before = files_below(tmp_path)
    assert run(line(data, "--dry-run")) == 0
    out = capsys.readouterr().out
    assert "4 to optimise on, 2 held out" in out
    assert "2 passages, 4 candidates" in out
    assert "nothing was written" in out
    assert run(line(data, "--dry-run", "--json")) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["passages"], plan["held_out"], plan["candidates"]) == (4, 2, 4)
    assert plan["arms"] == ["implications"]
    assert plan["trials"] == 2 * (2 + 2 + 2)
    assert files_below(tmp_path) == before


def interrupting(at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C when a round is done."""
    optimize = restem_job.optimize

    def interrupted(*given: Any, emit: Callable[[Event], None], **more: Any) -> Any:
        def tell(event: Event) -> None:
            emit(event)
            if isinstance(event, RoundFinished) and event.number == at:
                os.kill(os.getpid(), signal.SIGINT)

        return optimize(*given, emit=tell, **more)

    monkeypatch.setattr(restem_job, "optimize", interrupted)


def test_ctrl_c_ends_with_130_and_the_line_to_go_on_with(
    data: Path, tmp_path: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = line(data, "--output-generator", "gen", "--json")
    with monkeypatch.context() as patch:
        interrupting(0, patch)
        assert run(given) == 130
    captured = capfd.readouterr()
    (path,) = runs_of(tmp_path)
    where = Path("artifacts") / "runs" / path.name
    wanted = shlex.join(["aios", *given, "--resume", str(where)])
    assert f"go on with: {wanted}" in (captured.err + captured.out)
    assert not (path / "report.html").exists()
    assert run(shlex.split(wanted)[1:]) == 0
    resumed = capfd.readouterr().out
    assert runs_of(tmp_path) == [path]
    assert run(line(data, "--json", "--run-dir", "whole")) == 0
    assert without_places(resumed) == without_places(capfd.readouterr().out)


@pytest.mark.parametrize("how", ["name", "path"])
def test_a_run_is_resumed_by_its_name_or_its_path(
    data: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    with monkeypatch.context() as patch:
        interrupting(0, patch)
        assert run(line(data)) == 130
    (path,) = runs_of(tmp_path)
    named = path.name if how == "name" else str(path)
    assert run(line(data, "--resume", named, "--quiet")) == 0
    assert (path / "report.html").exists()
    assert runs_of(tmp_path) == [path]


def test_the_line_to_go_on_with_names_the_folder_that_was_given(
    data: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupting(0, monkeypatch)
    assert run(line(data, "--run-dir", "my run")) == 2  # a folder's name is the run's id
    assert run(line(data, "--run-dir", "mine")) == 130
    err = capfd.readouterr().err
    wanted = shlex.join(["aios", *line(data), "--resume", "mine"])
    assert f"go on with: {wanted}\n" in err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--resume", "nothing-here"], "there is no run 'nothing-here'"),
        (["--resume", "a", "--run-dir", "b"], "--resume and --run-dir exclude each other"),
        (["--candidates", "0"], "restem_candidates_per_passage"),
        (["--arms", "no-such-strategy"], "no-such-strategy"),
        (["--executor", "cloud"], "cloud"),
        (["--workers", "0"], "workers"),
        (["--set", "restem.reward=beauty"], "restem.reward"),
        (["--set", "restem.threshold=high"], "restem.threshold"),
        (["--set", "seal.generator=gen"], "seal.generator is set"),
        (["--output-generator", "taken"], "which is no part of a generator"),
        (["--no-such-option"], "--no-such-option"),
    ],
    ids=lambda value: "" if isinstance(value, str) else " ".join(value),
)
def test_wrong_usage_ends_with_2_and_a_line_before_any_work(
    data: Path, tmp_path: Path, capsys: Capture, more: list[str], message: str
) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "letter.txt").write_text("mine")
    assert run(line(data, *more)) == 2
    captured = capsys.readouterr()
    assert message in " ".join(captured.err.split())
    assert len(captured.err.strip().splitlines()) <= 6
    assert captured.out == ""
    assert not (tmp_path / "artifacts").exists()


def test_a_file_is_needed_and_must_be_there(data: Path, capsys: Capture) -> None:
    assert run([*COMMAND, *SMALL, *OPTIONS]) == 2
    assert "--dataset" in capsys.readouterr().err
    assert run(line(data.with_name("missing.jsonl"))) == 2
    assert "missing.jsonl" in capsys.readouterr().err


def test_data_without_questions_ends_with_2_also_in_json(
    data: Path, tmp_path: Path, capsys: Capture
) -> None:
    write_passages(data, 4, questions=0)
    assert run(line(data, "--json")) == 2
    captured = capsys.readouterr()
    assert "has questions" in captured.out
    assert "error" in json.loads(captured.out)
    assert run(line(data)) == 2
    assert "has questions" in capsys.readouterr().err


def test_other_settings_on_resume_end_with_2_and_say_which(
    data: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupting(0, patch)
        assert run(line(data)) == 130
    (path,) = runs_of(tmp_path)
    capsys.readouterr()
    assert run(line(data, "--resume", path.name, "--set", "restem.repeats=3")) == 2
    assert "started with another restem.repeats" in " ".join(capsys.readouterr().err.split())
    assert run(line(data, "--resume", path.name, "--workers", "3")) == 0
