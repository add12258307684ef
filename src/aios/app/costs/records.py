"""What finished runs have measured of this machine, and where that is kept.

A run that has trained keeps a ``costs.json`` in its directory: pieces of work with their seconds,
and what their speed depends on. Takes the folder of artifacts; gives what earlier runs measured.
Runs come from anywhere: a file is read up to a bound, one that is damaged is counted and left out,
and so is a run of another machine, model or way to train.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache, partial
from itertools import islice
from pathlib import Path

import psutil
from pydantic import TypeAdapter

from aios.app.kept import KeptByStamp, stamp_of
from aios.app.runs.listing import FOLDERS
from aios.backends.scripted import SCRIPTED_NAME
from aios.core.config.recipes import ResolvedRecipe
from aios.core.config.schemas import Config
from aios.core.errors import AIOSError
from aios.core.files import atomic_write_json, read_json
from aios.core.training_costs import Manner, RunCosts

COSTS_FILE = "costs.json"
VERSION = 1

_MOST_BYTES = 65_536
_MOST_FOLDERS = 10_000  # looked at, in each place
_MOST_READ = 256  # the newest
_MOST_USED = 8  # runs of the same manner
_GIB = 2**30


def manner_of(config: Config, recipe: ResolvedRecipe) -> Manner:
    """What the speed of a run with this config depends on."""
    model, seal, lora = config.model, config.seal, recipe.lora
    memory = round(psutil.virtual_memory().total / _GIB)
    threads = "" if model.threads is None else f" with {model.threads} threads"
    generator = "" if seal.generator is None else f", generator {seal.generator}"
    return Manner(
        where=f"{model.name}, device {model.device}, {model.dtype}{threads}; {platform.machine()}, "
        f"{os.cpu_count()} cores, {memory} GiB",
        writing=f"{recipe.strategy}, {recipe.num_edits_per_passage} a passage, at most "
        f"{seal.max_new_tokens} tokens, {seal.batch_size} passages at a time{generator}",
        training=f"rank {lora.rank}, batches of {lora.batch_size}",
        answering=f"at most {config.evaluation.max_answer_tokens} tokens",
    )


def device_kind(config: Config) -> str:
    """The kind of device that a loaded model computes on: ``cpu``, ``cuda`` or ``mps``."""
    if config.model.name == SCRIPTED_NAME:
        return "cpu"
    from aios.backends.devices import choose_device

    return choose_device(config.model.device).type


def keep_costs(run: Path, costs: RunCosts) -> None:
    """Keeps what a run has measured in its directory.

    Raises:
        StorageError: It cannot be written.
    """
    record = {"version": VERSION, **asdict(costs)}
    atomic_write_json(run / COSTS_FILE, record, indent=None)


def read_costs(file: Path) -> RunCosts:
    """What a run has measured.

    Raises:
        StorageError: The file is missing, too large or no JSON.
        ValueError: It is of another form.
    """
    record = read_json(file, _MOST_BYTES)
    if not isinstance(record, dict) or record.pop("version", None) != VERSION:
        raise ValueError(f"{file} is of another version")
    return _form().validate_python(record)


@cache
def _form() -> TypeAdapter[RunCosts]:
    return TypeAdapter(RunCosts)


@dataclass(frozen=True, slots=True)
class Earlier:
    """What earlier runs have measured.

    Attributes:
        runs: Their names and what they measured, the newest first.
        damaged: Files that could not be read.
    """

    runs: tuple[tuple[str, RunCosts], ...]
    damaged: int


class EarlierRuns:
    """Reads what runs have measured; what was read is kept until the file changes."""

    def __init__(self) -> None:
        self._kept: KeptByStamp[RunCosts | None] = KeptByStamp(_MOST_READ)

    def of(self, artifacts: Path, manner: Manner) -> Earlier:
        """The newest runs that were like the one to come, on this machine.

        Args:
            artifacts: The folder of artifacts; it need not be there.
            manner: That of the run to come. A run counts if it wrote or trained likewise.
        """
        files = sorted(_files(artifacts), reverse=True)[:_MOST_READ]
        runs: list[tuple[str, RunCosts]] = []
        damaged = 0
        for _, file in files:
            found = self._kept.get(file, stamp_of(file), partial(_read, file))
            if found is None:
                damaged += 1
            elif _alike(found.manner, manner) and len(runs) < _MOST_USED:
                runs.append((file.parent.name, found))
        return Earlier(tuple(runs), damaged)


def _alike(one: Manner, other: Manner) -> bool:
    return one.where == other.where and (
        one.training == other.training or one.writing == other.writing
    )


def _read(file: Path) -> RunCosts | None:
    try:
        return read_costs(file)
    except (AIOSError, ValueError):  # the run's own page says what is wrong with it
        return None


def _files(artifacts: Path) -> Iterator[tuple[float, Path]]:
    """The files of all runs with their times."""
    for folder in FOLDERS:
        root = artifacts / folder
        try:
            with os.scandir(root) as entries:
                names = [entry.name for entry in islice(entries, _MOST_FOLDERS)]
        except OSError:  # not there
            continue
        for name in names:
            file = root / name / COSTS_FILE
            try:
                yield os.stat(file).st_mtime, file
            except OSError:  # it has none
                continue
