"""Files of self-edits as a generation leaves them, and as its journal has them while it goes on."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path

from aios.app.edits.journal import encode_result
from aios.app.jobs.commands import generate_job
from aios.app.jobs.records import to_document
from aios.core.data.edit_rows import to_row
from aios.core.files import atomic_write_json
from aios.core.seal.passage_edits import PassageEdits
from aios.core.types import Drop, Failure, Passage, SelfEdit

WORDS = "harbour guild winter timber salt boat north master ferry crank".split()


def kept(
    passage: str, index: int, *items: str, strategy: str = "rewrite", **scores: float
) -> SelfEdit:
    return SelfEdit(passage, strategy, index, items or ("A text.",), "m", 1, "", 9, scores)


def dropped(
    passage: str, index: int, reason: str = "too_short", strategy: str = "rewrite", text: str = ""
) -> Drop:
    return Drop(passage, strategy, index, text or f"Text {index}.", reason, "2 < 20")


def write(folder: Path, edits: Iterable[SelfEdit], drops: Iterable[Drop] = (), *more: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "edits.jsonl"
    path.write_text("\n".join([*(json.dumps(to_row(e)) for e in edits), *more, ""]))
    text = "\n".join([*(json.dumps(asdict(d)) for d in drops), ""])
    (folder / "edits.dropped.jsonl").write_text(text)
    return path


def journal_line(number: int, passage: str, *records: SelfEdit | Drop, failure: str = "") -> bytes:
    result = PassageEdits(
        Passage.make("text", id=passage),
        kept=tuple(one for one in records if isinstance(one, SelfEdit)),
        drops=tuple(one for one in records if isinstance(one, Drop)),
        failure=Failure("generate", passage, failure, True) if failure else None,
    )
    line = {"key": f"{number}:{passage}", "sum": "", "value": encode_result(result)}
    return json.dumps(line).encode() + b"\n"


def write_job(artifacts: Path, job_id: str, input: Path, *, done: bool = True) -> None:
    """The record of a job that wrote ``edits/<job_id>``; without an end, its process was killed."""
    request = generate_job(artifacts, job_id, input)
    folder = artifacts / "jobs" / job_id
    folder.mkdir(parents=True, exist_ok=True)
    now = datetime.now(timezone.utc)
    atomic_write_json(folder / "job.json", to_document(request, now))
    if done:
        atomic_write_json(folder / "ended.json", {"exit_code": 0, "ended": now.isoformat()})


def write_many(folder: Path, passages: int) -> None:
    """Four candidates of each of many passages; one of two words stands in each text."""
    dice = random.Random(0)
    edits, drops = [], []
    for number in range(passages):
        for index, strategy in enumerate(("rewrite", "self-qa", "implications", "cloze")):
            items = [" ".join(dice.choices(WORDS, k=12)) + f" {number}-{index}." for _ in range(4)]
            if dice.random() < 0.25:
                text = "\n".join(items)
                drops.append(dropped(f"p{number}", index, "ungrounded", strategy, text))
            else:
                scores = {"entropy": dice.random(), "loss": dice.random()}
                edits.append(kept(f"p{number}", index, *items, strategy=strategy, **scores))
    write(folder, edits, drops)
