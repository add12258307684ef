"""``aios runs``: exporting a run's record, through a fake of a tracker's package."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aios.app.trackers.choice import TRACKERS as KNOWN
from aios.cli.aios import run
from aios.cli.commands.runs import TRACKERS
from aios.core.events import PassageGenerated, RunFinished, RunStarted
from aios.storage.runs import RunDirectory
from tests.test_app.tracker_fakes import install_mlflow


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_DISABLE_TELEMETRY", "MLFLOW_LOGGING_LEVEL"):
        monkeypatch.setenv(name, "set")  # so that what the export sets is undone
    with RunDirectory.create(tmp_path / "runs", "generate", config_yaml="", seed=0) as directory:
        directory.emit(RunStarted(directory.id, "generate"))
        directory.emit(PassageGenerated("p1", 4, 1, 0, 5, 100, 2.0))
        directory.emit(RunFinished(directory.id, "done", 2.0))
    return directory.path


def test_the_choices_are_the_trackers_there_are() -> None:
    assert TRACKERS == KNOWN


def test_an_export_says_what_it_did(
    recorded: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install_mlflow(monkeypatch)
    assert run(["runs", "export", str(recorded), "--to", "mlflow"]) == 0
    shown = capsys.readouterr().out
    assert recorded.name in shown
    assert "events read" in shown
    assert "artifacts/trackers/mlflow/mlflow.db" in shown


def test_an_export_as_json(
    recorded: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install_mlflow(monkeypatch)
    assert run(["runs", "export", str(recorded), "--to", "mlflow", "--json", "--offline"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["run"], document["tracker"], document["events"]) == (
        recorded.name,
        "mlflow",
        3,
    )


def test_a_folder_that_is_no_run_and_a_missing_package_are_usage_errors(
    recorded: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["runs", "export", str(recorded.parent), "--to", "mlflow"]) == 2
    assert "no run at" in capsys.readouterr().err
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert run(["runs", "export", str(recorded), "--to", "mlflow"]) == 2
    assert "pip install 'aios[mlflow]'" in capsys.readouterr().err
