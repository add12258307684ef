"""Small fakes of the trackers' packages: the calls that our adapters make, and nothing else.

Each has the names and parameters of the real package that its adapter relies on; a call that the
real one would refuse (an unknown parameter, say) fails here too.
"""

from __future__ import annotations

import os
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import pytest


def install(monkeypatch: pytest.MonkeyPatch, name: str, **attributes: Any) -> ModuleType:
    """Makes a package, or a module of one, importable."""
    import sys

    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)
    for attribute, value in attributes.items():
        setattr(module, attribute, value)
    monkeypatch.setitem(sys.modules, name, module)
    return module


class Message(SimpleNamespace):
    """A protocol buffer of TensorBoard: keeps what it is given."""


class EventFileWriter:
    """``tensorboard.summary.writer.event_file_writer.EventFileWriter``."""

    made: ClassVar[list[EventFileWriter]] = []

    def __init__(
        self,
        logdir: str,
        max_queue_size: int = 10,
        flush_secs: int = 120,
        filename_suffix: str = "",
    ) -> None:
        Path(logdir).mkdir(parents=True, exist_ok=True)
        Path(logdir, "events.out.tfevents.1").touch()
        self.logdir = logdir
        self.events: list[Any] = []
        self.closed = False
        EventFileWriter.made.append(self)

    def add_event(self, event: Any) -> None:
        assert not self.closed
        self.events.append(event)

    def close(self) -> None:
        self.closed = True


def install_tensorboard(monkeypatch: pytest.MonkeyPatch) -> list[EventFileWriter]:
    """Gives the writers that will be made."""

    class Summary(Message):
        class Value(Message):
            pass

    class SummaryMetadata(Message):
        class PluginData(Message):
            pass

    class TensorShapeProto(Message):
        class Dim(Message):
            pass

    EventFileWriter.made = []
    proto = "tensorboard.compat.proto"
    install(monkeypatch, "tensorboard")
    install(monkeypatch, f"{proto}.event_pb2", Event=Message)
    install(monkeypatch, f"{proto}.summary_pb2", Summary=Summary, SummaryMetadata=SummaryMetadata)
    install(monkeypatch, f"{proto}.tensor_pb2", TensorProto=Message)
    install(monkeypatch, f"{proto}.tensor_shape_pb2", TensorShapeProto=TensorShapeProto)
    writer = "tensorboard.summary.writer.event_file_writer"
    install(monkeypatch, writer, EventFileWriter=EventFileWriter)
    return EventFileWriter.made


class Trackio:
    """``trackio``: prints to stdout as the real one does, and asks the Hub who is logged in."""

    def __init__(self, hub: ModuleType) -> None:
        self.hub = hub
        self.folder = ""
        self.asked_the_hub = False
        self.started: dict[str, Any] = {}
        self.logged: list[tuple[dict[str, float], int]] = []
        self.finished = False

    def init(
        self,
        project: str,
        name: str | None = None,
        group: str | None = None,
        config: dict[str, Any] | None = None,
        resume: str = "never",
        embed: bool = True,
        auto_log_gpu: bool | None = None,
    ) -> Trackio:
        print(f"* Trackio project initialized: {project}")  # noqa: T201
        self.folder = os.environ.get("TRACKIO_DIR", "")
        self.asked_the_hub = not self.hub.HF_HUB_OFFLINE
        self.started = {"project": project, "name": name, "group": group, "resume": resume}
        self.started["config"] = config
        return self

    def log(self, metrics: dict[str, float], step: int | None = None) -> None:
        assert step is not None
        self.logged.append((metrics, step))

    def finish(self) -> None:
        print("* Run finished")  # noqa: T201
        self.finished = True


def install_trackio(monkeypatch: pytest.MonkeyPatch) -> Trackio:
    """Gives the package, which is its only run too."""
    hub = install(monkeypatch, "huggingface_hub.constants", HF_HUB_OFFLINE=False)
    package = Trackio(hub)
    install(monkeypatch, "trackio", init=package.init)
    return package


class MlflowClient:
    """``mlflow.MlflowClient`` with a store in memory."""

    made: ClassVar[list[MlflowClient]] = []

    def __init__(self, tracking_uri: str | None = None, registry_uri: str | None = None) -> None:
        self.uri = tracking_uri
        self.experiments: dict[str, str | None] = {}
        self.run: dict[str, Any] = {}
        self.metrics: list[Any] = []
        self.params: list[Any] = []
        MlflowClient.made.append(self)

    def get_experiment_by_name(self, name: str) -> Any:
        return SimpleNamespace(experiment_id="1") if name in self.experiments else None

    def create_experiment(
        self, name: str, artifact_location: str | None = None, tags: Any = None
    ) -> str:
        self.experiments[name] = artifact_location
        return "1"

    def create_run(
        self,
        experiment_id: str,
        start_time: int | None = None,
        tags: dict[str, str] | None = None,
        run_name: str | None = None,
    ) -> Any:
        self.run = {"experiment": experiment_id, "start": start_time, "name": run_name}
        return SimpleNamespace(info=SimpleNamespace(run_id="abc"))

    def log_batch(self, run_id: str, metrics: Any = (), params: Any = (), tags: Any = ()) -> None:
        assert run_id == "abc"
        assert len(params) <= 100
        self.metrics += metrics
        self.params += params

    def set_terminated(
        self, run_id: str, status: str | None = None, end_time: int | None = None
    ) -> None:
        self.run |= {"status": status, "end": end_time}


def install_mlflow(monkeypatch: pytest.MonkeyPatch) -> list[MlflowClient]:
    """Gives the clients that will be made."""

    def metric(key: str, value: float, timestamp: int, step: int) -> Any:
        return SimpleNamespace(key=key, value=value, timestamp=timestamp, step=step)

    def param(key: str, value: str) -> Any:
        return SimpleNamespace(key=key, value=value)

    MlflowClient.made = []
    install(monkeypatch, "mlflow", MlflowClient=MlflowClient)
    install(monkeypatch, "mlflow.entities", Metric=metric, Param=param)
    return MlflowClient.made


class Wandb:
    """``wandb``, which is its only run too."""

    def __init__(self) -> None:
        self.started: dict[str, Any] = {}
        self.axes: dict[str, str | None] = {}
        self.rows: list[dict[str, float]] = []
        self.exit_code: int | None = None

    def init(
        self,
        project: str | None = None,
        dir: str | None = None,
        name: str | None = None,
        config: dict[str, Any] | None = None,
        job_type: str | None = None,
        mode: str | None = None,
    ) -> Wandb:
        self.started = {"project": project, "dir": dir, "name": name, "mode": mode}
        self.started |= {"config": config, "job_type": job_type}
        return self

    def define_metric(self, name: str, step_metric: str | None = None) -> None:
        self.axes[name] = step_metric

    def log(self, data: dict[str, float], step: int | None = None) -> None:
        assert step is None, "W&B drops what has a step behind its own"
        self.rows.append(data)

    def finish(self, exit_code: int | None = None) -> None:
        self.exit_code = exit_code


def install_wandb(monkeypatch: pytest.MonkeyPatch) -> Wandb:
    """Gives the package."""
    package = Wandb()
    install(monkeypatch, "wandb", init=package.init)
    return package
