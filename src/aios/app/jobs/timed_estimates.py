"""How long a job on a file would take here: a few passages are timed, when somebody asks.

That needs the model, so the command line's own dry run does it, in a process of its own:
``aios seal generate --dry-run`` (time and disk of the writing of self-edits), ``aios seal ab-test
--dry-run`` and ``aios hrm-hf train-expert --dry-run`` (time and memory), or ``aios seal restem
estimate`` (time and memory of all rounds). What it found is kept for the file as it is and the
settings as they are.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from aios.app.jobs.own_program import command_of
from aios.core.config.loader import dump, without_settings
from aios.core.config.schemas import Config
from aios.core.errors import StorageError, UsageError
from aios.core.files import atomic_write_text, guarded, read_bytes_if_there, read_json

What: TypeAlias = Literal["ab-test", "train-expert", "writing", "restem"]
EstimateState: TypeAlias = Literal["none", "running", "done", "failed"]

MOST_SECONDS = 600.0
_MOST_BYTES = 4 * 2**20
_RESULT, _ERRORS, _CONFIG = "result.json", "errors.txt", "config.yaml"


@dataclass(frozen=True, slots=True)
class TimedEstimate:
    """What was found by timing.

    Attributes:
        state: ``none``: nobody has asked, or it was broken off.
        seconds: Low, middle and high; None where it was not told.
        memory_bytes: At the peak; None where it was not told.
        at_least: Whether the memory is that of a probe, and more will be taken.
        basis: What it rests on.
        problem: Why it failed.
    """

    state: EstimateState
    seconds: tuple[float, float, float] | None = None
    memory_bytes: float | None = None
    basis: str = ""
    problem: str = ""
    at_least: bool = False


@dataclass(slots=True)
class _Timing:
    process: subprocess.Popen[bytes]
    key: str
    began: float


class TimedEstimates:
    """Times passages, one file at a time.

    Args:
        artifacts: What is found is kept below it.
    """

    def __init__(self, artifacts: Path) -> None:
        self._root = artifacts / "web" / "estimates"
        self._guard = threading.Lock()
        self._timing: _Timing | None = None

    def get(self, what: What, path: Path, config: Config) -> TimedEstimate:
        """What is known.

        Raises:
            StorageError: The file of passages cannot be looked at.
        """
        key = _key(what, path, config)
        with self._guard:
            running = self._running()
            if running is not None and running.key == key:
                return TimedEstimate("running")
        return _read(self._root / key)

    def start(self, what: What, path: Path, config: Config) -> None:
        """Begins to time.

        Raises:
            UsageError: Something is being timed.
            StorageError: It cannot be begun.
        """
        key = _key(what, path, config)
        folder = self._root / key
        with self._guard:
            if self._running() is not None:
                raise UsageError("another file is being timed", "Wait until that is done.")
            for name in (_RESULT, _ERRORS):
                with guarded("remove", folder):
                    (folder / name).unlink(missing_ok=True)
            atomic_write_text(folder / _CONFIG, dump(config))
            process = _begin(folder, _arguments(what, path, folder))
            self._timing = _Timing(process, key, time.monotonic())

    def _running(self) -> _Timing | None:
        timing = self._timing
        if timing is None:
            return None
        if timing.process.poll() is None:
            if time.monotonic() - timing.began < MOST_SECONDS:
                return timing
            timing.process.kill()
            timing.process.wait()
        self._timing = None
        return None


def _arguments(what: What, path: Path, folder: Path) -> list[str]:
    common = ["--json", "--quiet", "--config", str(folder / _CONFIG)]
    if what == "restem":
        return ["seal", "restem", "estimate", "--dataset", str(path), *common]
    if what == "ab-test":
        return ["seal", "ab-test", "--input", str(path), "--dry-run", *common]
    if what == "train-expert":
        words = ["--expert-id", "never-trained", "--dataset", str(path), "--dry-run"]
        return ["hrm-hf", "train-expert", *words, *common]
    never = str(folder / "never-written.jsonl")
    return ["seal", "generate", "--input", str(path), "--output", never, "--dry-run", *common]


def _begin(folder: Path, arguments: list[str]) -> subprocess.Popen[bytes]:
    with (
        guarded("write", folder),
        open(folder / _RESULT, "wb") as out,
        open(folder / _ERRORS, "wb") as errors,
    ):
        return subprocess.Popen(
            command_of("aios.__main__", arguments),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=errors,
            env=without_settings(os.environ),
        )


def _read(folder: Path) -> TimedEstimate:
    """What a timing that is over has left."""
    try:
        found = read_json(folder / _RESULT, _MOST_BYTES, default=None)
    except StorageError:  # broken off
        found = None
    if not isinstance(found, dict):
        told = _errors(folder)
        return TimedEstimate("failed", problem=told) if told else TimedEstimate("none")
    error = found.get("error")
    if isinstance(error, dict):
        return TimedEstimate("failed", problem=str(error.get("message", ""))[:400])
    return _told(found)


def _told(found: dict[str, Any]) -> TimedEstimate:
    estimate = found.get("estimate")
    if not isinstance(estimate, dict):
        return TimedEstimate("failed", problem="nothing was timed")
    seconds, memory, basis = estimate.get("seconds"), None, estimate.get("basis", "a timed probe")
    at_least = False
    if isinstance(seconds, dict):  # with memory
        three = tuple(seconds.get(end) for end in ("low", "middle", "high"))
        peak = found.get("memory")
        memory = peak.get("peak_bytes") if isinstance(peak, dict) else None
        at_least = isinstance(peak, dict) and peak.get("at_least") is True
    else:
        three = (estimate.get("seconds_low"), seconds, estimate.get("seconds_high"))
    numbers = [float(end) for end in three if isinstance(end, (int, float))]
    if len(numbers) != 3:
        return TimedEstimate("failed", problem="nothing was timed")
    return TimedEstimate(
        "done",
        (numbers[0], numbers[1], numbers[2]),
        float(memory) if isinstance(memory, (int, float)) else None,
        str(basis)[:200],
        at_least=at_least,
    )


def _errors(folder: Path) -> str:
    try:
        data = read_bytes_if_there(folder / _ERRORS, _MOST_BYTES)
    except StorageError:
        return ""
    lines = (data or b"").decode("utf-8", "replace").splitlines()
    return next((line for line in lines if line.startswith("error: ")), "")[7:407]


def _key(what: What, path: Path, config: Config) -> str:
    """Of the file as it is and the settings as they are."""
    with guarded("read", path):
        facts = os.stat(path)
    text = f"{what}\0{path}\0{facts.st_size}\0{facts.st_mtime_ns}\0{dump(config)}"
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:24]
