"""A run's figures as TensorBoard event files, one folder a run: scalars, and settings as text.

Written with the ``tensorboard`` package alone; torch is not needed. Look at them with
``tensorboard --logdir <folder>``.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any

from aios.app.trackers.choice import TrackedRun, import_package
from aios.app.trackers.metrics import Param
from aios.core.errors import UsageError

_FLUSH_SECONDS = 10


def sends_to(environ: Mapping[str, str]) -> str:
    """The environment variable that sends figures elsewhere; there is none."""
    return ""


def open_tracker(run: TrackedRun, environ: MutableMapping[str, str]) -> TensorBoardTracker:
    """Opens a run's event file.

    Raises:
        UsageError: The run is replayed and is there already: its curves would be drawn twice.
    """
    folder = run.folder / run.id
    if run.replayed and any(folder.glob("events.out.tfevents.*")):
        raise UsageError(f"{folder} holds this run already", "remove it to export the run again")
    return TensorBoardTracker(str(folder), run.started)


class TensorBoardTracker:
    """Writes one event file.

    Args:
        folder: The run's folder, made if missing.
        started: When the run began, in Unix seconds: the time of its settings.
    """

    def __init__(self, folder: str, started: float) -> None:
        proto = "tensorboard.compat.proto"
        self._event = import_package(f"{proto}.event_pb2").Event
        self._summary = import_package(f"{proto}.summary_pb2")
        self._tensor = import_package(f"{proto}.tensor_pb2").TensorProto
        self._shape = import_package(f"{proto}.tensor_shape_pb2").TensorShapeProto
        writer = import_package("tensorboard.summary.writer.event_file_writer")
        self._writer: Any = writer.EventFileWriter(folder, flush_secs=_FLUSH_SECONDS)
        self._started = started
        self.place = folder

    def log_params(self, params: Mapping[str, Param]) -> None:
        """Writes the settings as a table in the text tab."""
        rows = [f"| `{name}` | {value} |" for name, value in params.items()]
        table = "\n".join(["| setting | value |", "|---|---|", *rows])
        summary = self._summary
        plugin = summary.SummaryMetadata.PluginData(plugin_name="text")
        value = summary.Summary.Value(
            tag="settings/text_summary",
            metadata=summary.SummaryMetadata(plugin_data=plugin),
            tensor=self._tensor(
                dtype="DT_STRING",
                string_val=[table.encode()],
                tensor_shape=self._shape(dim=[self._shape.Dim(size=1)]),
            ),
        )
        self._add(summary.Summary(value=[value]), 0, self._started)

    def log_metrics(self, metrics: Mapping[str, float], step: int, when: float) -> None:
        """Writes scalars."""
        summary = self._summary.Summary
        values = [summary.Value(tag=name, simple_value=value) for name, value in metrics.items()]
        self._add(summary(value=values), step, when)

    def close(self, status: str) -> None:
        """Closes the file; TensorBoard knows no status."""
        self._writer.close()

    def _add(self, summary: Any, step: int, when: float) -> None:
        self._writer.add_event(self._event(wall_time=when, step=step, summary=summary))
