"""Jobs on the scripted model: in this process, or in one of its own that is killed on the way."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aios.app.ab_tests.job import run_ab_test
from aios.app.edits.generate import generate_edits
from aios.app.experts.training import train_expert
from aios.backends.scripted import Faults, ScriptedModel
from aios.core.config.schemas import Config
from aios.storage import runs
from tests.killed_process import Tell, killed_at

NAMES = "Arn Bosk Cald Dunmery Eskel Fennick Garth Holm Ister Jarrow Kelm Lund".split()
THINGS = "mill harbour tower saltworks ferry orchard quarry lock archive forge inn bridge".split()


def record(number: int, questions: int = 3) -> dict[str, Any]:
    """A passage of four sentences with up to three questions."""
    name, thing = NAMES[number % 12], THINGS[number // 12 % 12]
    year, count = 1700 + 3 * number, number + 4
    asked = [
        {"question": f"Who founded the {thing} of {name}?", "answer": f"Tove Lind-{name}"},
        {"question": f"When was the {thing} of {name} founded?", "answer": str(year)},
        {"question": f"What keeps the {thing} of {name} dry?", "answer": f"{name} pitch"},
    ]
    return {
        "id": f"{name}-{thing}",
        "text": (
            f"The {thing} of {name} was founded by Tove Lind-{name} in {year}. "
            f"Each spring {count} wardens mend its roof with larch from the hills. "
            f"Its walls are kept dry with {name} pitch, since the moor is wet. "
            f"A bell rings over {name} whenever the north gate is shut."
        ),
        "questions": asked[:questions],
    }


def write_passages(path: Path, count: int = 9, questions: int = 3) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(record(number, questions)) for number in range(count)]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def make_config(folder: Path, **sections: Any) -> Config:
    """A config whose files are all below a folder; jobs take well under a second with it."""
    defaults: dict[str, dict[str, Any]] = {
        "model": {"name": "scripted"},
        "paths": {"artifacts": folder / "artifacts"},
        "seal": {
            "strategy": "implications",
            "num_edits_per_passage": 2,
            "batch_size": 2,
            "min_length": 5,
            "cache_dir": folder / "cache",
        },
        "training": {"rank": 2, "alpha": 4, "epochs": 2, "batch_size": 4},
        "ab_test": {"seeds": 2, "evaluations": 3},
        "evaluation": {"bootstrap_samples": 200},
    }
    extra = {name: value for name, value in sections.items() if not isinstance(value, dict)}
    for name, section in sections.items():
        if isinstance(section, dict):
            defaults[name] = {**defaults.get(name, {}), **section}
    return Config.model_validate({**defaults, **extra})


def without_times(value: Any) -> Any:
    """A JSON value without what differs between two runs of the same work."""
    if isinstance(value, dict):
        return {
            key: without_times(one)
            for key, one in value.items()
            if not key.endswith("seconds") and key not in ("peak_memory_bytes", "input", "command")
        }
    return [without_times(one) for one in value] if isinstance(value, list) else value


def files_below(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


def stop_after(calls: int) -> Callable[[], bool]:
    """A `ShouldStop` that says yes from its call number `calls` + 1 on."""
    left = calls

    def should_stop() -> bool:
        nonlocal left
        left -= 1
        return left < 0

    return should_stop


# ------------------------------------------------------------ jobs in a process of their own


def generate(folder: Path, *, resume: bool, **options: Any) -> Any:
    return generate_edits(
        make_config(folder),
        folder / "passages.jsonl",
        folder / "out" / "edits.jsonl",
        resume="if-possible",
        **options,
    )


def expert(folder: Path, *, resume: bool, **options: Any) -> Any:
    config, data = make_config(folder), folder / "passages.jsonl"
    return train_expert(config, "mills", data, resume=resume, **options)


def ab_test(folder: Path, *, resume: bool, **options: Any) -> Any:
    config, data = make_config(folder), folder / "passages.jsonl"
    return run_ab_test(config, data, output=folder / "ab", resume=resume, **options)


JOBS: dict[str, Callable[..., Any]] = {
    "generate": generate,
    "train-expert": expert,
    "ab-test": ab_test,
}


def pause_in_writes(seconds: float) -> None:
    """Makes every write, sync and rename of this process slow, with a pause in the middle."""
    write, fsync, replace, rename = os.write, os.fsync, os.replace, os.rename

    def half_a_write(fd: int, data: Any) -> int:
        done = write(fd, data[: max(1, len(data) // 2)])
        time.sleep(seconds)
        return done

    def paused(call: Callable[..., None]) -> Callable[..., None]:
        def slow(*arguments: Any, **options: Any) -> None:
            time.sleep(seconds)
            call(*arguments, **options)
            time.sleep(seconds)

        return slow

    os.write = half_a_write
    os.fsync, os.replace, os.rename = paused(fsync), paused(replace), paused(rename)


def work_slowly(job: str, folder: Path, resume: bool, tell: Tell) -> None:
    """Does a job on a disk that pauses in the middle of every write, and tells of each event."""
    pause_in_writes(0.0005)
    runs.git_revision = lambda folder: None
    model = ScriptedModel(faults=Faults(hang_seconds=0.004))
    JOBS[job](folder, resume=resume, emit=lambda event: tell(), model=model)


def kill_on_the_way(
    job: str, folder: Path, rng: random.Random, *, resume: bool, within: int
) -> bool:
    """Starts a job and kills it after up to `within` events; whether it was still at work then."""
    event, pause = rng.randint(1, within), rng.random() * 0.02
    return killed_at(event, pause, work_slowly, job, folder, resume)
