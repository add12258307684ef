"""Runs of ReST-EM looked at again and again."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

from aios.app.restem.curves import training_curve
from aios.app.restem.progress import MemoryHistory
from aios.app.restem.run_rows import run_state
from aios.app.restem.watching import RunWatch
from aios.core.events import Heartbeat, RunFinished, RunStarted
from aios.core.restem import MOST_LOSSES, thin_losses
from tests.test_app.restem_run_files import (
    hold_new,
    make_run,
    report,
    set_record,
    two_rounds,
    untrained,
    write_events,
)


def test_a_run_is_read_on_where_it_was_left(tmp_path: Path) -> None:
    path, watch = make_run(tmp_path), RunWatch()
    write_events(path, [(0, RunStarted("r", "restem")), (1, Heartbeat("try", 0, 0, 100, 100))])
    assert len(watch.follow(path).memory) == 1
    write_events(path, [(2, Heartbeat("try", 0, 0, 200, 200))])
    found = watch.follow(path)
    assert [rss for _, rss in found.memory] == [100, 200]
    assert found.status.peak_rss_bytes == 200


def test_results_follow_the_state(tmp_path: Path) -> None:
    path, watch = make_run(tmp_path), RunWatch()
    assert watch.results(path).rounds == 0
    set_record(path, [untrained(), report()])
    two_rounds(path)
    found = watch.results(path)
    assert found.rounds == 1
    assert found.whole
    assert watch.results(path) is found
    assert watch.facts(path).rounds == 1
    assert watch.facts(path).gain is not None


def test_a_run_s_state_is_told_by_its_lock_and_the_end_of_its_record(tmp_path: Path) -> None:
    with hold_new(tmp_path) as directory:
        path = directory.path
        write_events(path, [(0, RunStarted("r", "restem"))])
        assert run_state(path) == "running"
        (path / "stop").write_text("please")
        assert run_state(path) == "stopping"
    assert run_state(path) == "stale"
    write_events(path, [(9, RunFinished(run="r", status="done", seconds=9.0, summary="well"))])
    assert run_state(path) == "done"
    write_events(path, [(10, RunStarted("r", "restem"))])
    assert run_state(path) == "stale"


def test_a_run_that_begins_is_in_the_list_at_once(tmp_path: Path) -> None:
    watch = RunWatch()
    assert watch.runs(tmp_path / "runs") == ()
    for number in range(3):
        make_run(tmp_path / "runs", f"run-{number}")
        assert len(watch.runs(tmp_path / "runs")) == number + 1


def test_memory_of_a_long_run_is_thinned() -> None:
    history = MemoryHistory()
    for number in range(10_000):
        history.note(number, number)
    times = [time for time, _ in history.points]
    assert 300 <= len(times) <= 600
    assert times[0] == 0
    assert times[-1] > 9_900
    assert len({b - a for a, b in pairwise(times)}) == 1


def test_a_training_curve_keeps_its_ends() -> None:
    losses = [2.0 - 0.001 * step for step in range(1000)]
    kept = thin_losses(losses)
    assert len(kept) == MOST_LOSSES
    assert (kept[0], kept[-1]) == (2.0, 1.001)
    assert thin_losses([1.23456]) == (1.2346,)
    assert thin_losses([]) == ()
    assert thin_losses([1.0, float("nan")]) == ()


def test_a_curve_is_drawn_for_each_trial() -> None:
    assert training_curve((), "id") is None
    assert training_curve(((), ()), "id") is None
    chart = training_curve(((2.0, 1.5, 1.0), (2.0, 1.2)), "id")
    assert chart is not None
    assert chart.count("<path") == 2
    assert "2 trials" in chart
    assert training_curve(((1.5,),), "id") is not None
