"""A run is a directory: what was asked, with which versions, what happened, and its state.

Takes a kind, a resolved config and a seed; gives a folder that holds ``config.yaml``,
``run.json`` (versions, platform, git revision, command line), ``events.jsonl``, ``state.json``,
``rejects.jsonl`` and ``checkpoints/``. One process at a time works on a run; the
lock falls with the process, so a killed run can be opened again at once.
"""

from __future__ import annotations

import os
import platform
import secrets
import shutil
import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from aios.core.errors import StorageError, UsageError
from aios.core.events import Event
from aios.core.files import (
    append_jsonl,
    atomic_write_json,
    atomic_write_text,
    guarded,
    locked,
    read_json,
    require_id,
    sync_folder,
)
from aios.storage.event_log import EventLog

VERSION = 1
_PACKAGES = ("aios", "torch", "transformers", "peft", "tokenizers", "safetensors", "numpy")
_GIT_SECONDS = 5.0


class RunDirectory:
    """A run's folder, held by this process until `close`.

    Attributes:
        path: The folder.
        info: The content of ``run.json``.
        id: The run's id, the folder's name.
        kind: What sort of run it is, e.g. ``ab-test``.
        seed: The run's seed.
    """

    def __init__(self, path: Path, info: Mapping[str, Any], held: ExitStack) -> None:
        """Used by `create` and `open`."""
        self.path = path
        self.info = info
        self.id = str(info["id"])
        self.kind = str(info["kind"])
        self.seed = int(info["seed"])
        self._held = held
        self._log: EventLog | None = None

    @classmethod
    def create(
        cls, root: Path, kind: str, *, run_id: str | None = None, config_yaml: str, seed: int
    ) -> RunDirectory:
        """Makes a run's folder in `root`; it appears whole or not at all.

        Args:
            root: The folder of runs, made if missing.
            kind: What sort of run it is; begins the id that is made up.
            run_id: The run's id; without it ``<kind>-<UTC date>-<time>-<4 hex digits>``.
            config_yaml: The resolved config, kept as ``config.yaml``.
            seed: The run's seed.

        Raises:
            UsageError: The id is not valid, or there is such a run already.
            StorageError: The folder cannot be made or written.
        """
        run_id = require_id(run_id if run_id is not None else _new_id(kind), "run id")
        path = root / run_id
        info = _describe(run_id, kind, seed)
        building = root / f".{run_id}.{secrets.token_hex(4)}.new"
        try:
            with guarded("make", building):
                building.mkdir(parents=True)
                (building / "checkpoints").mkdir()
            atomic_write_text(building / "config.yaml", config_yaml)
            atomic_write_json(building / "run.json", info)
            with guarded("make", path):
                if path.exists() and (not path.is_dir() or any(path.iterdir())):
                    raise _taken(path)
                try:
                    os.rename(building, path)  # fails where another process made it meanwhile
                except OSError as error:
                    if path.exists():
                        raise _taken(path) from error
                    raise
                sync_folder(root)
        finally:
            shutil.rmtree(building, ignore_errors=True)
        return cls(path, info, _hold(path))

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        """Opens a run to go on with it.

        Raises:
            UsageError: There is no run at that path.
            StorageError: Another process works on it, or ``run.json`` is corrupt.
        """
        info = read_run_info(path)
        return cls(path, info, _hold(path))

    # ------------------------------------------------------------ what it holds

    @property
    def config_file(self) -> Path:
        """The resolved config."""
        return self.path / "config.yaml"

    @property
    def events_file(self) -> Path:
        """The record of events."""
        return self.path / "events.jsonl"

    @property
    def rejects_file(self) -> Path:
        """Input that could not be used: a JSON line each; missing if there is none."""
        return self.path / "rejects.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Folder of the training's states and adapters."""
        return self.path / "checkpoints"

    def emit(self, event: Event) -> None:
        """Records an event in ``events.jsonl``.

        Raises:
            StorageError: It cannot be written.
        """
        if self._log is None:
            self._log = EventLog(self.events_file)
        self._log.emit(event)

    def add_rejects(self, *records: Mapping[str, object]) -> None:
        """Appends to ``rejects.jsonl`` (file, line and reason of input that was left out).

        Raises:
            StorageError: It cannot be written.
        """
        append_jsonl(self.rejects_file, records)

    def commit_state(self, state: Mapping[str, object]) -> None:
        """Replaces the run's state, all of it or nothing; announce it afterwards.

        Raises:
            StorageError: It cannot be written; the state before is intact.
        """
        atomic_write_json(self.path / "state.json", dict(state))

    def read_state(self) -> dict[str, Any] | None:
        """The state committed last; None if there is none yet.

        Raises:
            StorageError: The file is corrupt.
        """
        path = self.path / "state.json"
        state = read_json(path, default=None)
        if state is not None and not isinstance(state, dict):
            raise StorageError(f"{path} is corrupt: not a JSON object", "Start a new run.")
        return state

    def close(self) -> None:
        """Closes the record and lets other processes work on the run."""
        if self._log is not None:
            self._log.close()
            self._log = None
        self._held.close()

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_run_info(path: Path) -> dict[str, Any]:
    """The content of a run's ``run.json``, also while another process works on the run.

    Raises:
        UsageError: There is no run at that path.
        StorageError: The file is corrupt.
    """
    info = read_json(path / "run.json", default=None)
    if info is None:
        raise UsageError(f"no run at {path}: it has no run.json", "Check the path of the run.")
    if not isinstance(info, dict) or not {"id", "kind", "seed"} <= info.keys():
        raise StorageError(f"{path / 'run.json'} is corrupt", "Start a new run.")
    return info


def _taken(path: Path) -> UsageError:
    return UsageError(f"{path} exists already", "Resume that run, or give another name.")


def _hold(path: Path) -> ExitStack:
    """Takes the run's lock and notes whose it is.

    Raises:
        StorageError: Another process has it.
    """
    lock_file = path / ".lock"
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(lock_file, timeout=0.5))
        except StorageError as error:
            holder = ""
            with suppress(OSError, ValueError):
                holder = f" (process {int(lock_file.read_text())})"
            if "another process" not in error.message:
                raise
            raise StorageError(
                f"run {path.name} is in use by another process{holder}",
                "Wait until it ends, or stop it, then run the same command again.",
            ) from None
        with suppress(OSError):  # only for the message above
            lock_file.write_text(str(os.getpid()))
        return stack.pop_all()


def _new_id(kind: str) -> str:
    now = datetime.now(timezone.utc)
    return f"{kind}-{now:%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def _describe(run_id: str, kind: str, seed: int) -> dict[str, Any]:
    """The content of ``run.json``."""
    return {
        "version": VERSION,
        "id": run_id,
        "kind": kind,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "seed": seed,
        "argv": list(sys.argv),
        "versions": {"python": platform.python_version(), **package_versions()},
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpu_count": os.cpu_count(),
        "git": git_revision(Path(__file__).resolve().parent),
    }


def package_versions() -> dict[str, str | None]:
    """Installed versions of the packages that decide a run's numbers; nothing is imported."""
    versions: dict[str, str | None] = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def git_revision(folder: Path) -> dict[str, Any] | None:
    """Revision of the git checkout that a source folder is tracked in.

    Returns:
        ``{"revision": <hex>, "dirty": <whether tracked files are changed>}``; None where git is
        missing or the folder is not part of a checkout (an installed package, say).
    """
    git = shutil.which("git")
    if git is None or not _git(git, folder, "ls-files", "--", "."):
        return None
    revision = _git(git, folder, "rev-parse", "HEAD")
    changes = _git(git, folder, "status", "--porcelain", "--untracked-files=no")
    if not revision or changes is None:
        return None
    return {"revision": revision, "dirty": bool(changes)}


def _git(git: str, folder: Path, *arguments: str) -> str | None:
    """What git prints; None if it fails or takes too long."""
    try:
        done = subprocess.run(
            [git, "-C", os.fspath(folder), "--no-optional-locks", *arguments],
            capture_output=True,
            text=True,
            timeout=_GIT_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
