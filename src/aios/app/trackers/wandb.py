"""A run's figures in Weights & Biases, in its offline mode: files on this machine.

``wandb sync <folder>/wandb/offline-run-*`` sends them, when and if the user wants that. W&B's
error reports, and its copy of what the terminal shows, are switched off unless the user has decided
on them. ``WANDB_MODE=online`` is the user's way to send figures while the run goes on.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any

from aios.app.trackers.choice import PROJECT, TrackedRun, import_package
from aios.app.trackers.metrics import Param

_MODE = "WANDB_MODE"
_STAYS = ("", "offline", "dryrun", "disabled")
_QUIET = {"WANDB_ERROR_REPORTING": "false", "WANDB_CONSOLE": "off", "WANDB_SILENT": "true"}


def sends_to(environ: Mapping[str, str]) -> str:
    """The environment variable that sends figures elsewhere, or empty."""
    return "" if environ.get(_MODE, "").lower() in _STAYS else _MODE


def open_tracker(run: TrackedRun, environ: MutableMapping[str, str]) -> WandbTracker:
    """Prepares a run; it starts with its settings."""
    for name, value in _QUIET.items():
        environ.setdefault(name, value)
    mode = environ.get(_MODE, "").lower() or "offline"
    return WandbTracker(run, "offline" if mode == "dryrun" else mode)


class WandbTracker:
    """A run of W&B.

    W&B counts steps of its own and takes none that lies behind; so each group of metrics is given
    an x-axis of its own, ``<prefix>/step``.

    Args:
        run: The run.
        mode: ``offline``, ``online``, ``shared`` or ``disabled``.
    """

    def __init__(self, run: TrackedRun, mode: str) -> None:
        self._package: Any = import_package("wandb")
        self._described = run
        self._mode = mode
        self._run: Any = None
        self._axes: set[str] = set()
        self.place = str(run.folder / "wandb") if mode == "offline" else f"W&B, {mode}"

    def log_params(self, params: Mapping[str, Param]) -> None:
        """Starts the run with its settings."""
        described = self._described
        self._run = self._package.init(
            project=PROJECT,
            name=described.id,
            job_type=described.kind,
            dir=str(described.folder.resolve()),
            config=dict(params),
            mode=self._mode,
        )

    def log_metrics(self, metrics: Mapping[str, float], step: int, when: float) -> None:
        """Logs numbers over their group's axis; W&B gives them the time at which they come."""
        row: dict[str, float] = dict(metrics)
        for prefix in {name.rpartition("/")[0] for name in metrics}:
            axis = f"{prefix}/step" if prefix else "step"
            if axis not in self._axes:
                self._axes.add(axis)
                self._run.define_metric(axis)
                self._run.define_metric(f"{prefix}/*" if prefix else "*", step_metric=axis)
            row[axis] = step
        self._run.log(row)

    def close(self, status: str) -> None:
        """Ends the run; its exit code is 0 if it is done."""
        if self._run is not None:
            self._run.finish(exit_code=0 if status == "done" else 1)
