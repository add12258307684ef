"""A ReST-EM run that is killed at random moments ends as if nothing had happened.

On a tiny real model, which writes gibberish: what counts is that all numbers are the same.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.killed_process import killed_at
from tests.test_app.scripted_jobs import without_times

pytestmark = [
    pytest.mark.usefixtures("process_server", "quick_jobs"),
    pytest.mark.timeout(600),
    pytest.mark.slow,
]


@dataclass(frozen=True)
class Whole:
    """What an undisturbed run came to."""

    model: Path
    result: dict[str, Any]
    trials: Counter[str]
    events: int


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    from tests import killed_restem
    from tests.tiny_model import build_tiny_model

    folder = tmp_path_factory.mktemp("restem")
    model = build_tiny_model(folder / "tiny", max_position_embeddings=1024)
    killed_restem.write_passages(folder / "passages.jsonl")
    events = 0

    def count(event: object) -> None:
        nonlocal events
        events += 1

    killed_restem.run(folder, model, resume=False, emit=count)
    return Whole(model, result(folder), trials(folder), events)


def result(folder: Path) -> dict[str, Any]:
    """All that a run comes to, without times."""
    run = folder / "run"
    state = json.loads((run / "state.json").read_text())
    del state["dataset"]
    found: dict[str, Any] = {"state": without_times(state)}
    for file in sorted((run / "rounds").rglob("*.jsonl")):
        found[str(file.relative_to(run))] = file.read_bytes()
    for file in sorted((run / "rounds").rglob("adapter_model.safetensors")):
        found[str(file.relative_to(run))] = file.read_bytes()
    found["generator"] = (folder / "generator" / "generator.json").exists()
    return found


def trials(folder: Path) -> Counter[str]:
    """The trials that have been run, over all attempts."""
    return Counter((folder / "trials.log").read_text().splitlines())


def kill_until_done(folder: Path, whole: Whole, rng: random.Random, within: int, most: int) -> int:
    """Runs, kills after up to `within` events, goes on; gives the number of kills."""
    from tests import killed_restem

    killed_restem.write_passages(folder / "passages.jsonl")
    kills = 0
    while True:
        resume = (folder / "run" / "run.json").exists()
        event = rng.randint(1, within) if kills < most else 10**6
        pause = rng.random() * 0.03
        if not killed_at(event, pause, killed_restem.work, folder, whole.model, resume):
            return kills
        kills += 1


def check(folder: Path, whole: Whole, kills: int) -> None:
    from tests.killed_restem import BATCH, TRIALS_OF_A_PASSAGE

    assert result(folder) == whole.result
    done = trials(folder)
    assert not whole.trials - done  # none is missing
    again = sum((done - whole.trials).values())
    assert again <= kills * BATCH * TRIALS_OF_A_PASSAGE
    for name, lines in whole.result.items():
        if name.endswith("candidates.jsonl"):
            passages = [json.loads(line)["passage_id"] for line in lines.splitlines()]
            assert len(passages) == len(set(passages)) == 4


def test_the_undisturbed_run_is_worth_comparing_with(whole: Whole) -> None:
    rounds = whole.result["state"]["rounds"]
    assert [r["number"] for r in rounds] == [0, 1, 2]
    assert all(r["kept"] > 0 for r in rounds[1:])
    assert len({r["digest"] for r in rounds}) == 3
    assert rounds[1]["arms"].keys() == {"implications", "rewrite"}
    counted = sum(
        json.loads(line)["trials"]
        for name, lines in whole.result.items()
        if name.endswith(".jsonl")
        for line in lines.splitlines()
    )
    assert whole.trials.total() == counted > 40


def test_a_run_killed_twice_ends_with_the_same_numbers(tmp_path: Path, whole: Whole) -> None:
    rng = random.Random(3)
    kills = kill_until_done(tmp_path, whole, rng, whole.events // 2, most=2)
    assert kills == 2
    check(tmp_path, whole, kills)


@pytest.mark.slow
def test_a_run_killed_at_20_random_moments_ends_with_the_same_numbers(
    tmp_path: Path, whole: Whole
) -> None:
    rng, total, number = random.Random(20), 0, 0
    while total < 20:
        folder = tmp_path / str(number)
        kills = kill_until_done(folder, whole, rng, whole.events // 8, most=20)
        check(folder, whole, kills)
        total, number = total + kills, number + 1
