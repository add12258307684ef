"""A run's figures in MLflow, in a SQLite file on this machine.

Look at them with ``mlflow ui --backend-store-uri sqlite:///<folder>/mlflow.db``. A SQLite file, as
MLflow no longer develops its store of plain files. Its usage reports are switched off unless the
user has decided on them. ``MLFLOW_TRACKING_URI`` is the user's way to send figures elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from itertools import islice
from typing import Any
from urllib.parse import urlsplit

from aios.app.trackers.choice import PROJECT, TrackedRun, import_package
from aios.app.trackers.metrics import Param

_URI = "MLFLOW_TRACKING_URI"
_LOCAL_SCHEMES = ("file", "sqlite")
_QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_LOGGING_LEVEL": "WARNING"}
_MOST_PARAMS = 100  # in one request
_LONGEST_PARAM = 500  # characters; newer versions take more
_STATUS = {"done": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}


def sends_to(environ: Mapping[str, str]) -> str:
    """The environment variable that sends figures elsewhere, or empty."""
    uri = environ.get(_URI, "")
    scheme = urlsplit(uri).scheme
    local = not uri or scheme in _LOCAL_SCHEMES or (not scheme and uri != "databricks")
    return "" if local else _URI


def open_tracker(run: TrackedRun, environ: MutableMapping[str, str]) -> MLflowTracker:
    """Starts a run in the experiment ``aios``, made if missing."""
    for name, value in _QUIET.items():  # MLflow reads them when it is imported
        environ.setdefault(name, value)
    folder = run.folder.resolve()
    uri = environ.get(_URI) or f"sqlite:///{folder / 'mlflow.db'}"
    artifacts = None if environ.get(_URI) else (folder / "artifacts").as_uri()
    return MLflowTracker(run, uri, artifacts)


class MLflowTracker:
    """A run of MLflow, by its client (nothing of MLflow's global state is used).

    Args:
        run: The run.
        uri: MLflow's tracking URI.
        artifacts: Where a new experiment keeps files; None for MLflow's own choice.
    """

    def __init__(self, run: TrackedRun, uri: str, artifacts: str | None) -> None:
        entities = import_package("mlflow.entities")
        self._metric, self._param = entities.Metric, entities.Param
        self._client: Any = import_package("mlflow").MlflowClient(tracking_uri=uri)
        experiment = self._client.get_experiment_by_name(PROJECT)
        number = (
            self._client.create_experiment(PROJECT, artifact_location=artifacts)
            if experiment is None
            else experiment.experiment_id
        )
        made = self._client.create_run(
            number,
            start_time=_milliseconds(run.started),
            tags={"aios.run": run.id, "aios.kind": run.kind},
            run_name=run.id,
        )
        self._id = made.info.run_id
        self._latest = run.started
        self.place = f"{uri}, experiment {PROJECT}"

    def log_params(self, params: Mapping[str, Param]) -> None:
        """Keeps the settings, cut to the length that every version of MLflow takes."""
        kept = [self._param(name, str(value)[:_LONGEST_PARAM]) for name, value in params.items()]
        for some in _batched(kept, _MOST_PARAMS):
            self._client.log_batch(self._id, params=some)

    def log_metrics(self, metrics: Mapping[str, float], step: int, when: float) -> None:
        """Keeps numbers with their time."""
        self._latest = max(self._latest, when)
        moment = _milliseconds(when)
        values = [self._metric(name, value, moment, step) for name, value in metrics.items()]
        self._client.log_batch(self._id, metrics=values)

    def close(self, status: str) -> None:
        """Ends the run, at the time of its last number."""
        self._client.set_terminated(
            self._id, status=_STATUS.get(status, "FAILED"), end_time=_milliseconds(self._latest)
        )


def _milliseconds(seconds: float) -> int:
    return int(seconds * 1000)


def _batched(values: Sequence[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(values)
    while some := list(islice(iterator, size)):
        yield some
