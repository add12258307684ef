from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from aios.app.ab_tests.progress import ABFollower, Followers, planned_arms
from aios.core.events import (
    Evaluated,
    Event,
    Notice,
    RunFinished,
    RunStarted,
    StageFinished,
    StageProgress,
    StageStarted,
    WorkFailed,
)
from tests.test_app.restem_run_files import T0, write_events

ARMS = ("base", "passage", "passage+edits")
CONFIG = "ab_test: {arms: [base, passage, passage+edits], seeds: 2}\n"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "config.yaml").write_text(CONFIG)
    return tmp_path


def training(
    arm: str, start: float, losses: Iterable[float], total: int = 100
) -> list[tuple[float, Event]]:
    """A training with an evaluation every 10 seconds and 50 tokens."""
    events: list[tuple[float, Event]] = [(start, StageStarted(f"train {arm}", total, "tokens"))]
    for number, loss in enumerate(losses):
        moment, tokens = start + 10 * number, 50 * number
        events.append((moment, Evaluated(arm, number, number / 2, tokens, None, loss, 1.0)))
        events.append((moment, StageProgress(f"train {arm}", tokens, f"loss {loss}")))
    return events


def two_arms_done() -> list[tuple[float, Event]]:
    return [
        (0, RunStarted("r", "ab-test")),
        (1, Notice("two passages are learned")),
        (2, StageStarted("arms", 5, "arms and seeds")),
        (6, StageProgress("arms", 1, "base, seed 0")),
        *training("passage.0", 7, (3.0, 2.5, 2.0)),
        (46, StageProgress("arms", 2, "passage, seed 0")),
        *training("passage+edits.0", 47, (3.0, 1.5)),
    ]


def test_one_seed_of_all_arms_comes_after_the_other_and_untrained_arms_once() -> None:
    assert list(planned_arms(ARMS, 2)) == [
        ("base", 0), ("passage", 0), ("passage+edits", 0), ("passage", 1), ("passage+edits", 1),
    ]  # fmt: skip


def test_arms_and_seeds_are_told_before_during_and_after(run: Path) -> None:
    follower = ABFollower(run)
    assert [unit.state for unit in follower.status(live=True).units] == ["waiting"] * 5
    write_events(run, two_arms_done())
    status = follower.status(live=True, now=T0 + 57)
    assert [unit.state for unit in status.units] == ["done", "done", "running", *["waiting"] * 2]
    assert status.units_done == 2
    passage = status.units[1]
    assert (passage.tokens, passage.total, passage.loss, passage.seconds) == (100, 100, 2.0, 40.0)
    assert (status.stage, status.done, status.total) == ("arms", 2, 5)
    assert status.notices == ("two passages are learned",)
    curve = status.curves["arms"]["passage"]["runs"][0]["curve"]
    assert [point["validation_loss"] for point in curve] == [3.0, 2.5, 2.0]


def test_time_left_is_what_trainings_took_so_far(run: Path) -> None:
    write_events(run, two_arms_done())
    status = ABFollower(run).status(live=True, now=T0 + 57)
    assert status.seconds_left == pytest.approx(3 * 40 - 11)
    assert ABFollower(run).status(live=False, now=T0 + 57).seconds_left is None


def test_before_a_training_is_done_its_own_pace_tells_the_time_left(run: Path) -> None:
    write_events(run, two_arms_done()[:4])
    follower = ABFollower(run)
    assert follower.status(live=True, now=T0 + 6).seconds_left is None
    write_events(run, training("passage.0", 6, (3.0, 2.5)))  # half of it after 10 seconds
    assert follower.status(live=True, now=T0 + 16).seconds_left == pytest.approx(4 * 20 - 10)


def test_a_resumed_experiment_keeps_what_arms_took_and_one_point_a_step(run: Path) -> None:
    write_events(
        run,
        [
            *two_arms_done(),
            (60, RunFinished("r", "interrupted", 60, "stopped on request")),
        ],
    )
    follower = ABFollower(run)
    assert follower.status(live=False).ended == "stopped on request"
    write_events(
        run,
        [
            (100, RunStarted("r", "ab-test", True)),
            (101, StageStarted("arms", 5, "arms and seeds")),
            (101, StageProgress("arms", 1, "base, seed 0")),
            (101, StageProgress("arms", 2, "passage, seed 0")),
            *training("passage+edits.0", 102, (3.0, 1.4)),
        ],
    )
    status = follower.status(live=True, now=T0 + 111)
    assert status.ended == ""
    assert status.units[1].seconds == 40.0
    curve = status.curves["arms"]["passage+edits"]["runs"][0]["curve"]
    assert [point["validation_loss"] for point in curve] == [3.0, 1.4]


def test_the_stage_of_self_edits_is_told(run: Path) -> None:
    write_events(
        run,
        [
            (0, RunStarted("r", "ab-test")),
            (1, StageStarted("self-edits", 28, "passages")),
            (2, StageProgress("self-edits", 3, "1 edits")),
            (2, WorkFailed("generate", "p", "too long")),
        ],
    )
    status = ABFollower(run).status(live=True)
    assert (status.stage, status.done, status.total) == ("self-edits", 3, 28)
    assert status.failures == 1
    write_events(run, [(3, StageFinished("self-edits", 2))])
    assert ABFollower(run).status(live=True).stage == ""


def test_without_a_config_the_record_names_the_arms(tmp_path: Path) -> None:
    write_events(tmp_path, two_arms_done())
    units = ABFollower(tmp_path).status(live=True).units
    assert [unit.arm for unit in units] == ["base", "passage", "passage+edits"]


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b'{"time":"2026-01-01","type":"Evaluated","training":"passage.0"}',
        b'{"time":"x","type":"Notice","message":"m"}',
        b'{"time":"2026-01-01","type":"Notice","message":3}',
        b'{"time":"2026-01-01","type":"StageStarted","stage":"arms","total":"nan","unit":""}',
        b'{"time":"2026-01-01","type":"StageProgress","stage":[],"done":1,"note":""}',
        b'{"time":"2026-01-01","type":"Evaluated","training":"a.0","step":1,"tokens":1e300,'
        b'"validation_loss":1}',
        b'{"time":"9999-12-31T23:59:59-23:59","type":"Notice","message":"m"}',
        b"\xff\xfe",
    ],
)
def test_lines_that_are_no_events_are_left_out(run: Path, line: bytes) -> None:
    (run / "events.jsonl").write_bytes(line + b"\n")
    write_events(run, two_arms_done())
    assert ABFollower(run).status(live=True).units_done == 2


def test_followers_are_bounded(tmp_path: Path) -> None:
    followers = Followers(most=2)
    first = followers.of(tmp_path / "a")
    assert followers.of(tmp_path / "a") is first
    followers.of(tmp_path / "b")
    followers.of(tmp_path / "c")
    assert followers.of(tmp_path / "a") is not first
