"""Experiment trackers: the figures of a run in TensorBoard, trackio, MLflow or W&B as well.

Takes the event stream, live or from a finished run's record; gives a tracker the run's settings
and metrics under standard names. It only reads: a run does not depend on a tracker, and one that
fails while the run goes on is logged and dropped by `storage.event_log.fan_out`.

Everything stays on this machine, below ``<artifacts>/trackers/<name>``, unless the user's own
environment variables for that tracker say otherwise; ``--offline`` refuses those. A tracker's
package is imported only where it is asked for. What such a package prints goes to stderr.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import logging
import time
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

from aios.app.trackers.metrics import Param, Tracker, TrackerSubscriber, prints_to_stderr
from aios.core.errors import AIOSError, UsageError
from aios.core.files import guarded
from aios.core.protocols import Emit
from aios.storage.event_log import read_events
from aios.storage.runs import read_run_info

PROJECT = "aios"  # what trackers that have projects or experiments file our runs under
TRACKERS = ("tensorboard", "trackio", "mlflow", "wandb")  # each named as its package

_LOGGER = logging.getLogger(__name__)
_PARAM_SECTIONS = ("seed", "model", "seal", "training", "data", "evaluation", "ab_test", "features")
_PRIVATE_ENDINGS = ("_dir", "_file", "_url")  # settings that say more of the machine than the run


@dataclass(frozen=True, slots=True)
class TrackedRun:
    """What an adapter needs to know of a run.

    Attributes:
        id: The run's id.
        kind: What sort of run, e.g. ``generate``.
        folder: Where the tracker keeps its files.
        started: When it began, in Unix seconds.
        replayed: Whether it is read from its record, after the fact.
    """

    id: str
    kind: str
    folder: Path
    started: float
    replayed: bool = False


# ---------------------------------------------------------------- opening


def check_trackers(names: Sequence[str], *, offline: bool, environ: Mapping[str, str]) -> None:
    """Refuses what could not be tracked, before any work.

    Args:
        names: Trackers, of `TRACKERS`.
        offline: Whether nothing may leave the machine.
        environ: Environment variables.

    Raises:
        UsageError: A name is not known, its package is missing, or `offline` and a variable sends
            its figures elsewhere.
    """
    for name in names:
        sender = _adapter(name).sends_to(environ)
        if offline and sender:
            raise UsageError(
                f"{sender} has {name} send the run's figures away, which --offline forbids",
                f"unset {sender}, or leave {name} out of telemetry.trackers",
            )
        if importlib.util.find_spec(name) is None:  # not imported: it may read variables first
            raise _missing(name)


@contextlib.contextmanager
def tracked(
    names: Sequence[str],
    *,
    run_id: str,
    kind: str,
    params: Mapping[str, Param],
    folder: Path,
    offline: bool,
    environ: MutableMapping[str, str],
) -> Iterator[tuple[Emit, ...]]:
    """Trackers for the time of a run: the subscribers to hand to `fan_out`.

    Args:
        names: Trackers, of `TRACKERS`; none is fine.
        run_id: The run's id.
        kind: What sort of run.
        params: Its settings (`run_params`).
        folder: Where trackers keep their files, each in a folder of its name.
        offline: Whether nothing may leave the machine.
        environ: Environment variables; what a package is to read at its import is set there.

    Raises:
        UsageError: As `check_trackers`.
        AIOSError: A tracker could not be started.
    """
    check_trackers(names, offline=offline, environ=environ)
    subscribers: list[TrackerSubscriber] = []
    try:
        for name in names:
            run = TrackedRun(run_id, kind, folder / name, time.time())
            subscribers.append(TrackerSubscriber(name, _open(name, run, params, environ)))
        yield tuple(subscribers)
    finally:
        for subscriber in subscribers:
            try:
                subscriber.close()
            except Exception:  # a third party's package, after the work: the result stands
                _LOGGER.exception("tracker %s could not be closed", subscriber.name)


def import_package(name: str) -> ModuleType:
    """Imports a tracker's package, or a module of it.

    Raises:
        UsageError: It is not installed, or not whole.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise _missing(name.partition(".")[0], f" ({error})") from error


def _missing(package: str, detail: str = "") -> UsageError:
    return UsageError(
        f"the tracker {package} needs a package that is not here{detail}",
        f"pip install 'aios[{package}]'",
    )


def run_params(config: Mapping[str, Any]) -> dict[str, Param]:
    """A run's settings as a tracker takes them: ``seal.temperature`` → 1.0.

    Paths and addresses, recipes that are not in use, and settings that are null are left out.

    Args:
        config: The resolved config as plain values.
    """
    found: dict[str, Param] = {}

    def walk(key: str, value: object) -> None:
        if isinstance(value, Mapping):
            for name, below in value.items():
                walk(f"{key}.{name}" if key else str(name), below)
        elif value is None or key.endswith(_PRIVATE_ENDINGS):
            return
        elif isinstance(value, (list, tuple)):
            found[key] = ", ".join(map(str, value))
        else:
            found[key] = value if isinstance(value, (bool, int, float)) else str(value)

    walk("", {name: config[name] for name in _PARAM_SECTIONS if name in config})
    return found


def _adapter(name: str) -> Any:
    """The module of an adapter; it imports no package of a tracker by itself."""
    if name not in TRACKERS:
        raise UsageError(f"no tracker is called {name!r}", f"known: {', '.join(TRACKERS)}")
    return importlib.import_module(f"aios.app.trackers.{name}")


def _open(
    name: str, run: TrackedRun, params: Mapping[str, Param], environ: MutableMapping[str, str]
) -> Tracker:
    with guarded("make", run.folder):
        run.folder.mkdir(parents=True, exist_ok=True)
    with _package_errors(name), prints_to_stderr():
        tracker: Tracker = _adapter(name).open_tracker(run, environ)
        tracker.log_params(params)
    return tracker


@contextlib.contextmanager
def _package_errors(name: str) -> Iterator[None]:
    """Names the tracker whose package raised something.

    Raises:
        AIOSError: In place of whatever a third party's package raises.
    """
    try:
        yield
    except AIOSError:
        raise
    except Exception as error:
        raise AIOSError(
            f"tracker {name} failed: {type(error).__name__}: {error}",
            "see its documentation, or leave it out; --debug shows where it happened",
        ) from error


# ---------------------------------------------------------------- after the fact


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What was exported.

    Attributes:
        run: The run's id.
        tracker: The tracker's name.
        place: Where the figures are now.
        events: Events read.
        values: Numbers given to the tracker.
    """

    run: str
    tracker: str
    place: str
    events: int
    values: int


def export_run(
    path: Path, name: str, *, folder: Path, offline: bool, environ: MutableMapping[str, str]
) -> ExportReport:
    """Gives a run's record to a tracker, with the times that stand in it.

    Args:
        path: The run's directory; the run may still be going on.
        name: A tracker, of `TRACKERS`.
        folder: Where trackers keep their files, each in a folder of its name.
        offline: Whether nothing may leave the machine.
        environ: Environment variables; what a package is to read at its import is set there.

    Raises:
        UsageError: There is no run at `path`, or as `check_trackers`.
        StorageError: The record cannot be read.
        AIOSError: The tracker failed.
    """
    info = read_run_info(path)
    check_trackers((name,), offline=offline, environ=environ)
    records = read_events(path / "events.jsonl")
    first = next(records, None)
    if first is None:
        raise UsageError(f"{path} has no events yet", "wait until the run has begun")
    run = TrackedRun(
        str(info["id"]), str(info["kind"]), folder / name, first[0].timestamp(), replayed=True
    )
    tracker = _open(name, run, run_params(_config_of(path)), environ)
    now = run.started
    subscriber = TrackerSubscriber(name, tracker, now=lambda: now)
    events = 0
    with _package_errors(name):
        try:
            for when, event in (first, *records):
                now = when.timestamp()
                subscriber(event)
                events += 1
        finally:
            subscriber.close()
    return ExportReport(run.id, name, tracker.place, events, subscriber.values)


def _config_of(path: Path) -> Mapping[str, Any]:
    """The resolved config that is kept in a run's directory; empty where it is not there."""
    file = path / "config.yaml"
    if not file.exists():
        return {}
    with guarded("read", file):
        text = file.read_text(encoding="utf-8")
    try:
        config = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"{file} is not valid YAML: {error}", "restore it from a copy") from error
    return config if isinstance(config, Mapping) else {}
