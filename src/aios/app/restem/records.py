"""What a ReST-EM run has put on disk: its state and its candidates, read with suspicion.

Takes a run directory, which a user may have been handed by somebody else; gives the nouns of
`aios.core.restem`. Sizes are bounded, links do not lead out of the directory, and every value is
of the type that its field says, so that whoever shows or counts it need not ask again. A line
that cannot be used is counted and left out; a state that cannot be used is an error, since the
run itself could not go on with it.
"""

from __future__ import annotations

import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aios.app.runs.checked_values import fits
from aios.core.data.rejects import Reject
from aios.core.data.structured_records import jsonl_values
from aios.core.errors import StorageError, UsageError
from aios.core.files import confined, guarded, read_json
from aios.core.restem import ReSTEMState, TriedPassage, tried_from_json

STATE_FILE = "state.json"
ROUNDS_FOLDER = "rounds"
CANDIDATES_FILE = "candidates.jsonl"
HELD_OUT_FILE = "held_out.jsonl"

MAX_ROUNDS = 1000
MAX_BYTES = 512 * 2**20  # of all files of candidates of a run

_MOVE = "Restore it from a copy, or start a new run."


@dataclass(frozen=True, slots=True)
class SavedState:
    """The state committed last, and what stands beside it in its file.

    Attributes:
        state: The rounds that are done.
        finished: Whether no work is left.
        dataset: The file of passages; empty where it is not said.
        train: How many passages are optimised on; None where it is not said.
        held_out: How many passages generators are compared on; None where it is not said.
    """

    state: ReSTEMState = field(default_factory=ReSTEMState)
    finished: bool = False
    dataset: str = ""
    train: int | None = None
    held_out: int | None = None


@dataclass(frozen=True, slots=True)
class RoundRewards:
    """The candidates of a round that have had their trials so far.

    Attributes:
        number: Of the round, from 0.
        tried: Passages that are optimised on, in the order in which they were done.
        held_out: Passages that generators are only compared on.
        broken: Lines that could not be used.
    """

    number: int
    tried: tuple[TriedPassage, ...] = ()
    held_out: tuple[TriedPassage, ...] = ()
    broken: int = 0


def read_state(path: Path) -> SavedState:
    """The state of a run; an empty one where none is committed yet.

    Args:
        path: The run's directory.

    Raises:
        StorageError: The file is corrupt, too large, or of another form.
    """
    file = path / STATE_FILE
    record = read_json(file, default=None)
    if record is None:
        return SavedState()
    if not isinstance(record, dict):
        raise StorageError(f"{file} is corrupt: not a JSON object", _MOVE)
    try:
        state = ReSTEMState.from_json(record)
    except (AttributeError, StorageError) as error:
        raise StorageError(f"{file} is of another form", _MOVE) from error
    if not fits(state, ReSTEMState):
        raise StorageError(f"{file} is corrupt: values of the wrong type", _MOVE)
    dataset, train, held_out = (record.get(key) for key in ("dataset", "train", "held_out"))
    return SavedState(
        state,
        record.get("finished") is True,
        dataset if isinstance(dataset, str) else "",
        len(train) if isinstance(train, list) else None,
        len(held_out) if isinstance(held_out, list) else None,
    )


def read_rewards(path: Path) -> tuple[RoundRewards, ...]:
    """All candidates of a run that have had their trials, by round; also while the run goes on.

    Where a passage stands in a file twice, its last line counts.

    Args:
        path: The run's directory.

    Returns:
        The rounds that have such files, in order; one without a usable line is among them.

    Raises:
        StorageError: A file cannot be read, or they are larger than `MAX_BYTES` together.
        UsageError: A link leads out of the directory.
    """
    room = MAX_BYTES
    rounds = []
    for number in _round_numbers(path / ROUNDS_FOLDER):
        files = [
            confined(path, ROUNDS_FOLDER, str(number), name)
            for name in (CANDIDATES_FILE, HELD_OUT_FILE)
        ]
        sizes = [_size(file) for file in files]
        if sizes == [None, None]:
            continue
        room -= sum(size or 0 for size in sizes)
        if room < 0:
            raise StorageError(
                f"the candidates of {path} are larger than the {MAX_BYTES:,} bytes allowed",
                "Check that it is the run you mean.",
            )
        (tried, bad), (held_out, more_bad) = (
            _read_passages(file) if size is not None else ((), 0)
            for file, size in zip(files, sizes, strict=True)
        )
        rounds.append(RoundRewards(number, tried, held_out, bad + more_bad))
    return tuple(rounds)


def _round_numbers(folder: Path) -> list[int]:
    """The numbers of the rounds that have a folder.

    Raises:
        StorageError: There are more than `MAX_ROUNDS`.
    """
    numbers: list[int] = []
    with guarded("read", folder):
        try:
            for entry in folder.iterdir():
                name = entry.name
                if name.isascii() and name.isdigit() and len(name) < 7 and name == str(int(name)):
                    numbers.append(int(name))
                    if len(numbers) > MAX_ROUNDS:
                        raise StorageError(f"{folder} has more than {MAX_ROUNDS:,} rounds", _MOVE)
        except FileNotFoundError:
            return []
    return sorted(numbers)


def _size(file: Path) -> int | None:
    """Bytes of a regular file; None where there is none."""
    with guarded("read", file):
        try:
            found = file.stat()
        except FileNotFoundError:
            return None
    if not stat.S_ISREG(found.st_mode):
        raise StorageError(f"cannot read {file}: not a regular file", _MOVE)
    return found.st_size


def _read_passages(file: Path) -> tuple[tuple[TriedPassage, ...], int]:
    """The passages of a file in order, and how many lines were of no use."""
    passages: dict[str, TriedPassage] = {}
    broken = 0
    try:
        for found in jsonl_values(file):
            passage = None if isinstance(found, Reject) else _passage(found[1])
            if passage is None:
                broken += 1
            else:
                passages.pop(passage.passage_id, None)
                passages[passage.passage_id] = passage
    except UsageError as error:  # it has gone or cannot be read: this is no input of the user's
        raise StorageError(error.message, error.remedy) from error
    return tuple(passages.values()), broken


def _passage(record: Mapping[str, Any]) -> TriedPassage | None:
    """The passage of a line; None if it is none."""
    try:
        passage = tried_from_json(record)
    except (AttributeError, KeyError, TypeError, ValueError):
        return None
    return passage if fits(passage, TriedPassage) else None
