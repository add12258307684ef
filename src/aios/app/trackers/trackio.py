"""A run's figures in trackio, on this machine. Look at them with ``trackio show``.

trackio keeps a SQLite file in ``TRACKIO_DIR``, which is the tracker's folder unless the user has
set it. It would ask the Hugging Face Hub who is logged in when a run starts: for a local run that
request is kept from being made. ``TRACKIO_SPACE_ID`` and ``TRACKIO_SERVER_URL`` are the user's
way to send figures elsewhere.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import Any

from aios.app.trackers.choice import PROJECT, TrackedRun, import_package
from aios.app.trackers.metrics import Param

_SENDERS = ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL")


def sends_to(environ: Mapping[str, str]) -> str:
    """The environment variable that sends figures elsewhere, or empty."""
    return next((name for name in _SENDERS if environ.get(name)), "")


def open_tracker(run: TrackedRun, environ: MutableMapping[str, str]) -> TrackioTracker:
    """Prepares a run; it starts with its settings."""
    if not environ.get("TRACKIO_DIR"):  # trackio reads it when it is imported
        environ["TRACKIO_DIR"] = str(run.folder.resolve())
    place = f"{environ['TRACKIO_DIR']}, project {PROJECT}"
    return TrackioTracker(run, sends_to(environ), place)


class TrackioTracker:
    """A run of trackio.

    Args:
        run: The run.
        remote: The variable that sends its figures elsewhere; empty for a local run.
        place: Where they are, for people.
    """

    def __init__(self, run: TrackedRun, remote: str, place: str) -> None:
        self._package: Any = import_package("trackio")
        self._described = run
        self._local = not remote
        self._run: Any = None
        self.place = place if self._local else f"where {remote} says, project {PROJECT}"

    def log_params(self, params: Mapping[str, Param]) -> None:
        """Starts the run with its settings."""
        described = self._described
        with _no_hub_requests() if self._local else _as_it_is():
            self._run = self._package.init(
                project=PROJECT,
                name=described.id,
                group=described.kind,
                config=dict(params),
                resume="never" if described.replayed else "allow",
                embed=False,
                auto_log_gpu=False,
            )

    def log_metrics(self, metrics: Mapping[str, float], step: int, when: float) -> None:
        """Logs numbers; trackio gives them the time at which they come."""
        self._run.log(dict(metrics), step=step)

    def close(self, status: str) -> None:
        """Ends the run; trackio knows no status."""
        if self._run is not None:
            self._run.finish()


@contextmanager
def _as_it_is() -> Iterator[None]:
    yield


@contextmanager
def _no_hub_requests() -> Iterator[None]:
    """Puts the Hub's client, which trackio has imported, into offline mode for the block."""
    hub: Any = sys.modules.get("huggingface_hub.constants")
    before = getattr(hub, "HF_HUB_OFFLINE", None)
    if before is None:
        yield
        return
    hub.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        hub.HF_HUB_OFFLINE = before
