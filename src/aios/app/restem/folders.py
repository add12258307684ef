"""Run directories of ReST-EM: find one, tell whether somebody works on it, ask it to stop.

Takes the folder of runs; changes nothing in it but the file ``stop`` of a run. Whether a process
works on a run is told by the run's lock, which falls with its holder.

The working process asks `stop_requested` wherever it may stop, and calls `clear_stop` when it
begins; so a request from before a resume does not end the resumed run.
"""

from __future__ import annotations

import fcntl
import heapq
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aios.core.data.rejects import one_line
from aios.core.errors import AIOSError, UsageError
from aios.core.files import atomic_write_text, guarded, valid_id
from aios.storage.runs import read_run_info

if TYPE_CHECKING:  # what lists runs for a shell's completion does not wait for the models
    from aios.core.config.schemas import Config

KIND = "restem"
STOP_FILE = "stop"

_LISTED = 5
_MAX_FOLDERS = 20_000
_MAX_COMMAND = 4000  # characters


def find_run(config: Config, given: str | None) -> Path:
    """The directory of a ReST-EM run.

    Args:
        config: Its ``paths.artifacts`` holds the folder of runs.
        given: A run's id there, or the path of a run's directory; None for the newest.

    Raises:
        UsageError: There is none such; the error lists those there are.
        StorageError: Its ``run.json`` is corrupt, or the folder of runs cannot be read.
    """
    root = config.paths.artifacts / "runs"
    if given is None:
        newest = next(iter(_newest(root, 1)), None)
        if newest is None:
            raise UsageError(
                f"there is no ReST-EM run in {root}",
                "`aios seal restem optimize` begins one; give the path of a run elsewhere.",
            )
        return newest
    path = Path(os.path.expanduser(given))
    if valid_id(given) and os.path.exists(root / given / "run.json"):
        path = root / given
    if not os.path.isdir(path):  # False too where a name cannot be one
        raise UsageError(f"there is no run {one_line(given)!r} in {root}", _which(root))
    try:
        restem_info(path)
    except UsageError as error:
        raise UsageError(error.message, _which(root)) from error
    return path


def running_runs(config: Config) -> list[Path]:
    """The ReST-EM runs that a process works on, newest first.

    Raises:
        StorageError: The folder of runs cannot be read.
    """
    root = config.paths.artifacts / "runs"
    return [path for path in newest_runs(root) if is_held(path)]


def newest_runs(root: Path) -> list[Path]:
    """The ReST-EM runs of a folder, those that began last first; what is no run is left out.

    Raises:
        StorageError: The folder cannot be read.
    """
    return _newest(root, _MAX_FOLDERS)


def _which(root: Path) -> str:
    names = [path.name for path in _newest(root, _LISTED + 1)]
    if not names:
        return f"There is no ReST-EM run in {root}; give the path of one elsewhere."
    more = ", …" if len(names) > _LISTED else ""
    return f"The ReST-EM runs there, newest first: {', '.join(names[:_LISTED])}{more}"


def _newest(root: Path, count: int) -> list[Path]:
    """The ReST-EM runs of a folder, those that began last first; what is no run is left out."""
    return [path for _, path in heapq.nlargest(count, _dated(root))]


def _dated(root: Path) -> Iterator[tuple[tuple[float, int], Path]]:
    with guarded("read", root):
        try:
            with os.scandir(root) as entries:
                folders = [
                    Path(entry.path)
                    for entry, _ in zip(entries, range(_MAX_FOLDERS), strict=False)
                    if valid_id(entry.name) and entry.is_dir()
                ]
        except FileNotFoundError:
            return
    for folder in folders:
        try:
            info = restem_info(folder)
            created = datetime.fromisoformat(str(info.get("created"))).timestamp()
            changed = os.stat(folder / "run.json").st_mtime_ns
        except (AIOSError, OSError, ValueError, OverflowError):
            continue
        yield (created, changed), folder


def restem_info(path: Path) -> dict[str, Any]:
    """The content of ``run.json`` of a ReST-EM run.

    Raises:
        UsageError: There is no run, or it is of another kind.
        StorageError: The file is corrupt.
    """
    info = read_run_info(path)
    if info["kind"] != KIND:
        raise UsageError(
            f"run {path.name} is no ReST-EM run; its kind is {one_line(info['kind'], 40)}",
            "Give the id of a run of `aios seal restem optimize`.",
        )
    return info


def resume_command(info: Mapping[str, Any], path: Path, dataset: str = "") -> str:
    """The command line that goes on with a run: the one that it was begun with, and ``--resume``.

    A run that belongs to an expert's training goes on with that.

    Args:
        info: The content of ``run.json``.
        path: The run's directory.
        dataset: The file of passages, for a run that was begun otherwise than by a command.

    Returns:
        A line to paste into a POSIX shell.
    """
    argv = info.get("argv")
    given = argv[1:] if isinstance(argv, list) and all(isinstance(x, str) for x in argv) else []
    if given[:2] == ["hrm-hf", "train-expert"] and sum(map(len, given)) <= _MAX_COMMAND:
        return shlex.join(["aios", *(w for w in given if w != "--resume"), "--resume"])
    words = _without(given, ("--resume", "--run-dir"))
    if words[:3] != ["seal", "restem", "optimize"] or sum(map(len, words)) > _MAX_COMMAND:
        words = ["seal", "restem", "optimize", "--dataset", dataset or "FILE"]
    return shlex.join(["aios", *words, "--resume", str(path)])


def _without(words: Sequence[str], options: Sequence[str]) -> list[str]:
    """A command line without some options and their values."""
    kept: list[str] = []
    left = iter(words)
    for word in left:
        if word in options:
            next(left, None)
        elif not word.startswith(tuple(f"{option}=" for option in options)):
            kept.append(word)
    return kept


# ------------------------------------------------------------ stopping


def is_held(path: Path) -> bool:
    """Whether a process works on a run.

    Raises:
        StorageError: The lock's file cannot be opened.
    """
    return held_since(path) is not None


def held_since(path: Path) -> float | None:
    """When the process that works on a run took its lock; None if nobody has it.

    Nothing is written, and no two askers are in each other's way: they ask for a shared lock.

    Returns:
        Unix seconds.

    Raises:
        StorageError: The lock's file cannot be opened.
    """
    lock_file = path / ".lock"
    with guarded("read", lock_file):
        try:
            descriptor = os.open(lock_file, os.O_RDONLY | os.O_NONBLOCK)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return os.fstat(descriptor).st_mtime  # its holder wrote its number into it
        finally:
            os.close(descriptor)
    return None


def request_stop(path: Path) -> bool:
    """Asks the process that works on a run to stop after the work in hand.

    Returns:
        Whether one works on it; if not, nothing is written.

    Raises:
        StorageError: The request cannot be written.
    """
    if not is_held(path):
        return False
    asked = datetime.now(timezone.utc).isoformat(timespec="seconds")
    atomic_write_text(path / STOP_FILE, f"asked to stop at {asked}\n")
    return True


def stop_requested(path: Path) -> bool:
    """Whether a run was asked to stop; costs one look at a folder."""
    return os.path.lexists(path / STOP_FILE)


def clear_stop(path: Path) -> None:
    """Takes back a request to stop; the working process calls it when it begins and ends.

    Raises:
        StorageError: It cannot be removed.
    """
    file = path / STOP_FILE
    with guarded("remove", file):
        file.unlink(missing_ok=True)
