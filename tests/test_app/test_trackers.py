"""Experiment trackers: events become metrics; adapters call their packages rightly; all is local.

The packages are fakes (`tracker_fakes`): what the real ones do with the calls is not tested here.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from aios.app.trackers import metrics as tracker_metrics
from aios.app.trackers.choice import TRACKERS, check_trackers, export_run, run_params, tracked
from aios.app.trackers.metrics import Param, TrackerSubscriber, metric_name
from aios.core.config.loader import dump
from aios.core.config.schemas import Config, TrackerName
from aios.core.errors import AIOSError, UsageError
from aios.core.events import (
    Evaluated,
    Event,
    Heartbeat,
    Notice,
    PassageGenerated,
    RunFinished,
    RunStarted,
    StageFinished,
    StageStarted,
    Stalled,
    WorkFailed,
)
from aios.core.telemetry import TelemetrySummary
from aios.storage.event_log import fan_out
from aios.storage.runs import RunDirectory
from tests.test_app.tracker_fakes import (
    install,
    install_mlflow,
    install_tensorboard,
    install_trackio,
    install_wandb,
)


class Clock:
    """A clock that tests set."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Recorder:
    """A `Tracker` that keeps what it is given."""

    place: str = "memory"
    rows: list[tuple[dict[str, float], int, float]] = field(default_factory=list)
    closed: str = ""

    def log_params(self, params: Mapping[str, Param]) -> None:
        """Nothing."""

    def log_metrics(self, metrics: Mapping[str, float], step: int, when: float) -> None:
        self.rows.append((dict(metrics), step, when))

    def close(self, status: str) -> None:
        self.closed = status

    def of(self, prefix: str) -> list[tuple[dict[str, float], int]]:
        return [(row, step) for row, step, _ in self.rows if next(iter(row)).startswith(prefix)]


def passage(number: int) -> PassageGenerated:
    return PassageGenerated(f"p{number}", 4, 1, 1, 4, 100, 2.0)


EVENTS: list[Event] = [
    RunStarted("generate-1", "generate"),
    StageStarted("generate", 2, "passages"),
    Heartbeat("generate", 0, 0.0, 10**8, 2 * 10**8),
    passage(1),
    passage(2),
    WorkFailed("generate", "p3", "no"),
    Evaluated("passage+edits seed 0", 10, 0.5, 1200, None, 2.5, 3.0),
    StageFinished("generate", 4.0),
    RunFinished("generate-1", "done", 5.0),
]


# ---------------------------------------------------------------- events to metrics


def test_running_totals_are_thinned_by_time_and_the_last_is_never_lost() -> None:
    tracker, clock = Recorder(), Clock()
    subscriber = TrackerSubscriber("t", tracker, clock, interval_seconds=5.0)
    subscriber(StageStarted("generate", 100))
    for number in range(100):
        clock.now += 1
        subscriber(passage(number))
    subscriber(StageFinished("generate", 100.0))
    totals = tracker.of("generate/")
    assert [step for _, step in totals] == [*range(1, 100, 5), 100]
    last = totals[-1][0]
    assert (last["generate/passages"], last["generate/tokens"]) == (100, 10_000)
    assert last["generate/tokens_per_second"] == pytest.approx(100)
    assert last["generate/hit_rate"] == pytest.approx(0.2)


def test_losses_go_under_the_training_s_name_by_its_steps() -> None:
    tracker = Recorder()
    TrackerSubscriber("t", tracker, Clock())(Evaluated("a+b seed 0", 7, 0.5, 90, None, 2.5, 1.0))
    row, step = tracker.of("train/")[0]
    assert step == 7
    assert row["train/a_b_seed_0/validation_loss"] == 2.5
    assert "train/a_b_seed_0/train_loss" not in row


def test_memory_failures_stalls_and_stages_go_by_seconds() -> None:
    tracker, clock = Recorder(), Clock()
    subscriber = TrackerSubscriber("t", tracker, clock)
    subscriber(Notice("hello"))
    clock.now += 30
    for event in (
        Heartbeat("generate", 1, 2.0, 100, 200),
        WorkFailed("generate", "p", "no"),
        WorkFailed("generate", "q", "no"),
        Stalled("generate", 120.0),
        StageFinished("load model", 12.5),
    ):
        subscriber(event)
    assert all(step == 30 for _, step, _ in tracker.rows)
    assert tracker.of("process/")[0][0]["process/peak_rss_bytes"] == 200
    assert [row for row, _ in tracker.of("run/")] == [
        {"run/failures": 1.0},
        {"run/failures": 2.0},
        {"run/stalls": 1.0},
    ]
    assert tracker.of("stages/") == [({"stages/load_model/seconds": 12.5}, 30)]


def test_the_final_figures_go_under_summary() -> None:
    tracker = Recorder()
    summary = TelemetrySummary(passages=2, dropped_by_reason={"too_short": 3}, drop_rate=0.25)
    TrackerSubscriber("t", tracker, Clock())(summary.event())
    row, _ = tracker.of("summary/")[0]
    assert (row["summary/drop_rate"], row["summary/dropped_too_short"]) == (0.25, 3)


def test_numbers_that_are_not_finite_are_left_out() -> None:
    tracker = Recorder()
    nan = float("nan")
    TrackerSubscriber("t", tracker, Clock())(Evaluated("a", 1, 0.5, 90, nan, None, 1.0))
    assert "train/a/train_loss" not in tracker.rows[0][0]


def test_names_hold_only_what_every_tracker_takes() -> None:
    assert metric_name("train/passage+edits (seed 0)") == "train/passage_edits_seed_0_"


def test_a_tracker_that_fails_is_logged_once_and_the_run_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Broken(Recorder):
        def log_metrics(self, metrics: Mapping[str, float], step: int, when: float) -> None:
            raise ConnectionError("server gone")

    recorded: list[Event] = []
    emit = fan_out(recorded.append, TrackerSubscriber("t", Broken()))
    with caplog.at_level(logging.ERROR):
        for event in EVENTS:
            emit(event)
    assert recorded == EVENTS
    assert len(caplog.records) == 1
    assert "server gone" in caplog.text


def test_a_tracker_that_holds_up_the_run_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracker_metrics, "SLOWEST_SECONDS", -1.0)
    subscriber = TrackerSubscriber("t", Recorder())
    with pytest.raises(TimeoutError, match="tracker t"):
        subscriber(passage(1))


# ---------------------------------------------------------------- settings


def test_settings_are_flat_and_hold_no_paths_addresses_or_recipes() -> None:
    params = run_params(
        Config().model_dump(mode="json") | {"model": {"base_url": "x", "name": "m"}}
    )
    assert params["seal.temperature"] == 1.0
    assert params["ab_test.arms"].startswith("base, passage")  # type: ignore[union-attr]
    assert params["model.name"] == "m"
    assert params["seal.enable_cache"] is True
    assert not any(key.endswith(("_dir", "_file", "_url")) for key in params)
    assert not any(key.startswith(("recipes", "paths")) for key in params)
    assert "training.rank" not in params


def test_the_config_knows_the_same_trackers() -> None:
    assert TrackerName.__args__ == TRACKERS  # type: ignore[attr-defined]
    assert Config().telemetry.trackers == ()


# ---------------------------------------------------------------- opening


def test_a_missing_package_is_refused_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError) as caught:
        check_trackers(["wandb"], offline=False, environ={})
    assert caught.value.remedy == "pip install 'aios[wandb]'"


def test_an_unknown_tracker_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match="comet") as caught:
        check_trackers(["comet"], offline=False, environ={})
    assert "tensorboard" in caught.value.remedy


@pytest.mark.parametrize(
    ("name", "variable", "value"),
    [
        ("trackio", "TRACKIO_SPACE_ID", "me/space"),
        ("trackio", "TRACKIO_SERVER_URL", "https://example.invalid"),
        ("mlflow", "MLFLOW_TRACKING_URI", "https://example.invalid"),
        ("mlflow", "MLFLOW_TRACKING_URI", "databricks"),
        ("mlflow", "MLFLOW_TRACKING_URI", "postgresql://db/x"),
        ("wandb", "WANDB_MODE", "online"),
        ("wandb", "WANDB_MODE", "shared"),
    ],
)
def test_offline_refuses_what_would_send_figures_away(
    monkeypatch: pytest.MonkeyPatch, name: str, variable: str, value: str
) -> None:
    install(monkeypatch, name)
    check_trackers([name], offline=False, environ={variable: value})
    with pytest.raises(UsageError, match=variable):
        check_trackers([name], offline=True, environ={variable: value})


@pytest.mark.parametrize(
    ("name", "variable", "value"),
    [
        ("mlflow", "MLFLOW_TRACKING_URI", "sqlite:///mlflow.db"),
        ("mlflow", "MLFLOW_TRACKING_URI", "./mlruns"),
        ("mlflow", "MLFLOW_TRACKING_URI", "file:///x"),
        ("wandb", "WANDB_MODE", "disabled"),
        ("wandb", "WANDB_MODE", "dryrun"),
        ("tensorboard", "WANDB_MODE", "online"),
    ],
)
def test_offline_allows_what_stays_here(
    monkeypatch: pytest.MonkeyPatch, name: str, variable: str, value: str
) -> None:
    install(monkeypatch, name)
    check_trackers([name], offline=True, environ={variable: value})


@pytest.mark.parametrize("name", TRACKERS)
def test_the_fakes_stand_for_packages_that_adapters_do_not_import_by_themselves(name: str) -> None:
    import importlib
    import sys

    before = set(sys.modules)
    importlib.import_module(f"aios.app.trackers.{name}")
    assert name not in {module.partition(".")[0] for module in set(sys.modules) - before}


def run_with(
    name: str, folder: Path, environ: dict[str, str] | None = None, *, events: list[Event] = EVENTS
) -> None:
    variables = {} if environ is None else environ
    with tracked(
        [name],
        run_id="generate-1",
        kind="generate",
        params={"seal.temperature": 0.7, "seal.strategy": "rewrite"},
        folder=folder,
        offline=False,
        environ=variables,
    ) as subscribers:
        emit = fan_out(lambda event: None, *subscribers)
        for event in events:
            emit(event)


def test_no_trackers_are_no_subscribers(tmp_path: Path) -> None:
    with tracked(
        [], run_id="r", kind="generate", params={}, folder=tmp_path, offline=True, environ={}
    ) as subscribers:
        assert subscribers == ()
    assert list(tmp_path.iterdir()) == []


def test_what_a_package_raises_at_its_start_is_one_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def init(**arguments: Any) -> None:
        raise LookupError("no such entity")

    install(monkeypatch, "wandb", init=init)
    with pytest.raises(AIOSError, match="tracker wandb failed: LookupError: no such entity"):
        run_with("wandb", tmp_path)


def test_a_tracker_that_cannot_be_closed_does_not_spoil_the_result(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    package = install_wandb(monkeypatch)
    monkeypatch.setattr(type(package), "finish", lambda self, exit_code: 1 / 0)
    with caplog.at_level(logging.ERROR):
        run_with("wandb", tmp_path)
    assert "tracker wandb could not be closed" in caplog.text


# ---------------------------------------------------------------- the four adapters


def test_tensorboard_gets_scalars_with_their_times_and_settings_as_text(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made = install_tensorboard(monkeypatch)
    run_with("tensorboard", tmp_path)
    (writer,) = made
    assert writer.closed
    assert writer.logdir == str(tmp_path / "tensorboard" / "generate-1")
    settings, *scalars = writer.events
    text = settings.summary.value[0]
    assert text.metadata.plugin_data.plugin_name == "text"
    assert b"| `seal.temperature` | 0.7 |" in text.tensor.string_val[0]
    values = {
        value.tag: (value.simple_value, event.step)
        for event in scalars
        for value in event.summary.value
    }
    assert values["generate/tokens"] == (200.0, 2)
    assert values["train/passage_edits_seed_0/validation_loss"] == (2.5, 10)
    assert all(event.wall_time > 1e9 for event in writer.events)


def test_trackio_stays_here_and_says_nothing_on_stdout(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    package = install_trackio(monkeypatch)
    monkeypatch.setenv("TRACKIO_DIR", "")
    run_with("trackio", tmp_path, os.environ)  # type: ignore[arg-type]
    assert package.folder == str(tmp_path / "trackio")
    assert not package.asked_the_hub
    assert package.hub.HF_HUB_OFFLINE is False, "the program itself may still fetch a model"
    assert package.started["project"] == "aios"
    assert package.started["config"]["seal.strategy"] == "rewrite"
    assert any(row.get("generate/tokens") == 200 and step == 2 for row, step in package.logged)
    assert package.finished
    assert capsys.readouterr().out == ""


def test_trackio_goes_where_the_user_has_sent_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    package = install_trackio(monkeypatch)
    run_with("trackio", tmp_path, {"TRACKIO_SPACE_ID": "me/space"})
    assert package.asked_the_hub


def test_mlflow_keeps_a_database_here_and_sends_no_usage_reports(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made = install_mlflow(monkeypatch)
    environ: dict[str, str] = {}
    run_with("mlflow", tmp_path, environ)
    (client,) = made
    assert environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert client.uri == f"sqlite:///{tmp_path / 'mlflow' / 'mlflow.db'}"
    assert client.experiments == {"aios": (tmp_path / "mlflow" / "artifacts").as_uri()}
    assert client.run["name"] == "generate-1"
    assert client.run["status"] == "FINISHED"
    assert client.run["end"] >= client.run["start"] > 1e12
    assert {(p.key, p.value) for p in client.params} >= {("seal.temperature", "0.7")}
    tokens = [metric for metric in client.metrics if metric.key == "generate/tokens"]
    assert (tokens[-1].value, tokens[-1].step) == (200.0, 2)


def test_mlflow_goes_where_the_user_has_sent_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made = install_mlflow(monkeypatch)
    run_with("mlflow", tmp_path, {"MLFLOW_TRACKING_URI": "https://example.invalid"})
    assert made[0].uri == "https://example.invalid"
    assert made[0].experiments == {"aios": None}


def test_mlflow_marks_a_run_that_was_stopped(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made = install_mlflow(monkeypatch)
    run_with("mlflow", tmp_path, events=[*EVENTS[:-1], RunFinished("r", "interrupted", 1.0)])
    assert made[0].run["status"] == "KILLED"


def test_wandb_is_offline_and_each_group_has_its_own_axis(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    package = install_wandb(monkeypatch)
    environ: dict[str, str] = {}
    run_with("wandb", tmp_path, environ)
    assert package.started["mode"] == "offline"
    assert package.started["dir"] == str(tmp_path / "wandb")
    assert environ["WANDB_ERROR_REPORTING"] == "false"
    assert package.axes["generate/*"] == "generate/step"
    assert package.axes["train/passage_edits_seed_0/*"] == "train/passage_edits_seed_0/step"
    rows = [row for row in package.rows if "generate/tokens" in row]
    assert (rows[-1]["generate/tokens"], rows[-1]["generate/step"]) == (200.0, 2)
    assert package.exit_code == 0


def test_wandb_goes_where_the_user_has_sent_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    package = install_wandb(monkeypatch)
    run_with("wandb", tmp_path, {"WANDB_MODE": "online", "WANDB_ERROR_REPORTING": "true"})
    assert package.started["mode"] == "online"


# ---------------------------------------------------------------- after the fact


@pytest.fixture
def run_directory(tmp_path: Path) -> Path:
    config = dump(Config.model_validate({"seal": {"strategy": "rewrite"}}))
    root = tmp_path / "runs"
    with RunDirectory.create(root, "generate", config_yaml=config, seed=0) as directory:
        for event in EVENTS:
            directory.emit(event)
    return directory.path


def test_a_finished_run_is_exported_with_its_settings(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, run_directory: Path
) -> None:
    made = install_mlflow(monkeypatch)
    report = export_run(
        run_directory, "mlflow", folder=tmp_path / "trackers", offline=True, environ={}
    )
    (client,) = made
    assert report.run == client.run["name"] == run_directory.name
    assert (report.events, report.values) == (len(EVENTS), len(client.metrics))
    assert client.run["status"] == "FINISHED"
    assert ("seal.strategy", "rewrite") in {(p.key, p.value) for p in client.params}
    assert "experiment aios" in report.place


def test_a_run_without_an_end_is_exported_as_interrupted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made = install_mlflow(monkeypatch)
    with RunDirectory.create(tmp_path, "generate", config_yaml="", seed=0) as directory:
        directory.emit(EVENTS[0])
    export_run(directory.path, "mlflow", folder=tmp_path / "t", offline=True, environ={})
    assert made[0].run["status"] == "KILLED"


def test_a_run_is_not_drawn_twice_in_tensorboard(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, run_directory: Path
) -> None:
    install_tensorboard(monkeypatch)
    export_run(run_directory, "tensorboard", folder=tmp_path / "t", offline=True, environ={})
    with pytest.raises(UsageError, match="holds this run already"):
        export_run(run_directory, "tensorboard", folder=tmp_path / "t", offline=True, environ={})


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"run\.json"):
        export_run(tmp_path, "mlflow", folder=tmp_path, offline=True, environ={})


def test_what_a_package_raises_in_an_export_is_one_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, run_directory: Path
) -> None:
    package = install_wandb(monkeypatch)
    monkeypatch.setattr(type(package), "log", lambda self, data: 1 / 0)
    with pytest.raises(AIOSError, match="tracker wandb failed: ZeroDivisionError"):
        export_run(run_directory, "wandb", folder=tmp_path / "t", offline=True, environ={})
    assert package.exit_code == 1
