"""Run directories of kind ``restem``, made by hand: for tests of what reads them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from aios.core.events import (
    CandidateTried,
    Event,
    Heartbeat,
    RoundFinished,
    RunStarted,
    StageFinished,
    StageProgress,
    StageStarted,
    encode,
)
from aios.core.files import encode_json
from aios.core.restem import (
    HeldOut,
    ReSTEMState,
    RoundReport,
    Tried,
    TriedPassage,
    tried_to_json,
)
from aios.core.trials import Reward
from aios.core.types import Failure, SelfEdit
from aios.storage.runs import RunDirectory

T0 = 1_760_000_000.0  # Unix seconds of a run's first event
SECONDS = {"propose": 100.0, "try": 400.0, "fit": 60.0, "held-out": 40.0}


def make_run(root: Path, run_id: str | None = None, *, config: str = "", seed: int = 0) -> Path:
    """An empty run that nobody works on."""
    with hold_new(root, run_id, config=config, seed=seed) as directory:
        return directory.path


def hold_new(
    root: Path, run_id: str | None = None, *, kind: str = "restem", config: str = "", seed: int = 0
) -> RunDirectory:
    """A new run that this process works on."""
    config = config or "seal: {restem_iterations: 2}\n"
    return RunDirectory.create(root, kind, run_id=run_id, config_yaml=config, seed=seed)


def line(seconds: float, event: Event) -> bytes:
    """A line of ``events.jsonl``, so many seconds after `T0`."""
    time = datetime.fromtimestamp(T0 + seconds, timezone.utc).isoformat(timespec="milliseconds")
    return encode_json({"time": time, **encode(event)}) + b"\n"


def write_events(path: Path, events: Iterable[tuple[float, Event]]) -> None:
    """Appends events with their times to a run's record."""
    with open(path / "events.jsonl", "ab") as handle:
        handle.writelines(line(seconds, event) for seconds, event in events)


def set_record(path: Path, reports: Iterable[RoundReport], **changes: Any) -> None:
    """Commits the state of the rounds that are done."""
    state = ReSTEMState(tuple(reports), {"rewrite": 1.0}, **changes)
    record = {
        **state.to_json(),
        "finished": False,
        "dataset": "my data.json",
        "train": ["p1"],
        "held_out": ["h1", "h2"],
    }
    (path / "state.json").write_text(json.dumps(record), encoding="utf-8")


def untrained(held_out: float = 0.01) -> RoundReport:
    """Round 0."""
    return RoundReport(0, held_out=_held_out(held_out), seconds={"held-out": 40.0})


def report(number: int = 1, held_out: float = 0.05, **changes: Any) -> RoundReport:
    """A finished round of 5 candidates, three of them rewarded."""
    values: dict[str, Any] = {
        "number": number,
        "passages": 2,
        "asked": 6,
        "tried": 5,
        "rewarded": 3,
        "kept": 2,
        "threshold": 0.04,
        "improvement": 0.03,
        "improvements": (-0.02, 0.0, 0.05, 0.06, 0.07),
        "held_out": _held_out(held_out),
        "seconds": SECONDS,
    }
    return RoundReport(**{**values, **changes})


def _held_out(mean: float) -> HeldOut:
    return HeldOut({"h1": mean - 0.01, "h2": mean + 0.01}, {"h1": 0.0, "h2": 0.5}, 0.5)


def tried(passage: str, index: int, improvement: float | None) -> Event:
    """A candidate of round 1 that has had two trials; none gave a number without an improvement."""
    trials = 0 if improvement is None else 2
    return CandidateTried(1, False, passage, "rewrite", index, trials, improvement)


def first_round() -> list[tuple[float, Event]]:
    """Round 0 done, round 1 in its trials: 2 of 5 passages, 3 candidates of each tried."""
    return [
        (0, RunStarted("r", "restem")),
        (11, StageStarted("round 0: held-out", 2, "passages")),
        (21, CandidateTried(0, True, "h1", "rewrite", 0, 2, 0.01)),
        (31, CandidateTried(0, True, "h2", "rewrite", 0, 2, -0.01)),
        (31, StageFinished("round 0: held-out", 20)),
        (31, RoundFinished(0, "", asdict(untrained()))),
        (31, StageStarted("round 1: write", 5, "passages")),
        (61, StageProgress("round 1: write", 5)),
        (61, StageFinished("round 1: write", 30)),
        (61, StageStarted("round 1: try", 5, "passages")),
        (70, Heartbeat("try", 0, 1.0, 10**9, 2 * 10**9)),
        *((91, tried("p1", k, (0.05, -0.02, None)[k])) for k in range(3)),
        (91, StageProgress("round 1: try", 1)),
        *((121, tried("p2", k, (0.1, 0.0, 0.02)[k])) for k in range(3)),
        (121, StageProgress("round 1: try", 2, "37 trials")),
    ]


# ------------------------------------------------------------ candidates


def candidate(
    passage: str, index: int, improvements: tuple[float, ...], *, kept: bool = False
) -> Tried:
    """A candidate with its trials; one without any has failed."""
    edit = SelfEdit(passage, "rewrite", index, (f"Edit {index} of {passage}.", "More."))
    if not improvements:
        return Tried(edit, None, failures=(Failure("train", passage, "out of memory"),))
    mean = sum(improvements) / len(improvements)
    reward = Reward(
        float(mean > 0.04),
        2.0,
        2.0 - mean,
        4,
        "logprob",
        0.04,
        0.01,
        "loss",
        "auto",
        mean,
        len(improvements),
    )
    return Tried(edit, reward, improvements, 0.25, 300, kept=kept)


def passage_of(passage: str, *candidates: Tried) -> TriedPassage:
    """A passage with its candidates."""
    return TriedPassage(
        passage,
        candidates,
        asked=len(candidates) + 1,
        trials=7,
        failed_trials=1,
        before=2.2,
        baseline=2.0,
    )


def write_candidates(
    path: Path, number: int, passages: Iterable[TriedPassage], *, part: str = "candidates"
) -> Path:
    """Writes a round's candidates."""
    return write_lines(
        path / "rounds" / str(number) / f"{part}.jsonl", (tried_to_json(one) for one in passages)
    )


def write_lines(file: Path, records: Iterable[Mapping[str, Any]]) -> Path:
    """Writes JSON lines."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"".join(encode_json(record) + b"\n" for record in records))
    return file


def two_rounds(path: Path) -> None:
    """Candidates of rounds 0 (held-out alone) and 1."""
    write_candidates(path, 0, [passage_of("h1", candidate("h1", 0, (0.01, 0.03)))], part="held_out")
    write_candidates(
        path,
        1,
        [
            passage_of("p1", candidate("p1", 0, (0.1, 0.3), kept=True), candidate("p1", 1, ())),
            passage_of("p2", candidate("p2", 0, (-0.2,)), candidate("p2", 1, (0.05, 0.05))),
        ],
    )
    write_candidates(path, 1, [passage_of("h1", candidate("h1", 0, (0.02,)))], part="held_out")
