"""Progress displays: bars, plain lines, rates, and a display that breaks."""

from __future__ import annotations

import io
import logging

import pytest

from aios.cli.progress import (
    BarProgress,
    PlainProgress,
    StageClock,
    can_draw,
    describe,
    show_progress,
)
from aios.core.events import (
    Dropped,
    Evaluated,
    Event,
    GenerationMeasured,
    Heartbeat,
    Notice,
    PassageGenerated,
    RunFinished,
    RunStarted,
    StageFinished,
    StageProgress,
    StageStarted,
    Stalled,
    WorkFailed,
)


class Clock:
    """A clock that tests set."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


EVALUATED = Evaluated("passage seed 0", 40, 1.5, 4800, 3.21, 3.4567, 12.0)


def test_the_rate_counts_from_the_start_and_gives_the_time_left() -> None:
    stage = StageClock(StageStarted("generate", 24, "passages"), now=0.0)
    assert (stage.rate, stage.seconds_left(1.0)) == (None, None)
    stage.update(6, now=12.0)
    assert stage.rate == pytest.approx(0.5)
    assert stage.seconds_left(12.0) == pytest.approx(36.0)
    assert stage.seconds_left(20.0) == pytest.approx(28.0)
    assert stage.seconds_left(1000.0) == 0.0
    assert stage.count_text() == "6/24 passages"
    assert stage.rate_text() == "0.50 passages/s"
    assert stage.left_text(12.0) == "36 s left"


def test_work_of_an_earlier_run_is_not_speed() -> None:
    stage = StageClock(StageStarted("generate", 100, "passages"), now=0.0)
    stage.update(80, now=0.1)
    assert stage.rate is None
    stage.update(82, now=4.1)
    assert stage.rate == pytest.approx(0.5)


def test_slow_work_is_counted_by_the_minute() -> None:
    stage = StageClock(StageStarted("train", 10, "runs"), now=0.0)
    stage.update(1, now=30.0)
    assert stage.rate_text() == "2.0 runs/min"


def test_a_stage_of_unknown_size_has_no_time_left() -> None:
    stage = StageClock(StageStarted("read", unit="lines"), now=0.0)
    stage.update(50, now=10.0)
    assert stage.count_text() == "50 lines"
    assert stage.left_text(10.0) == ""


def test_plain_lines_are_few() -> None:
    stream, clock = io.StringIO(), Clock()
    display = PlainProgress(stream, clock=clock, interval=5.0)
    display(StageStarted("generate", 100, "passages"))
    for done in range(1, 101):
        clock.now += 0.125
        display(StageProgress("generate", done))
    display(StageFinished("generate", 10.0, "93 edits kept"))
    lines = stream.getvalue().splitlines()
    assert lines[0] == "generate: started, 100 passages"
    assert lines[-1] == "generate: done in 10 s: 93 edits kept"
    assert len(lines) == 4
    assert lines[1] == "generate: 40/100 passages, 8.0 passages/s, 7.5 s left"


def test_each_stage_has_its_own_pace_of_lines() -> None:
    stream, clock = io.StringIO(), Clock()
    display = PlainProgress(stream, clock=clock, interval=5.0)
    display(StageStarted("all", 2, "arms"))
    display(StageStarted("arm", 10, "steps"))
    clock.now += 6
    display(StageProgress("arm", 4, "loss 2.91"))
    display(StageProgress("all", 1))
    assert "arm: 4/10 steps, 0.67 steps/s, 9.0 s left, loss 2.91" in stream.getvalue()
    assert "all: 1/2 arms" in stream.getvalue()


def test_progress_of_a_stage_that_was_not_announced_is_shown() -> None:
    stream, clock = io.StringIO(), Clock()
    display = PlainProgress(stream, clock=clock, interval=0.0)
    display(StageProgress("late", 3))
    assert stream.getvalue() == "late: 3\n"


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (Notice("using the cache"), "note: using the cache"),
        (Notice("cache is full", "warning"), "warning: cache is full"),
        (WorkFailed("generate", "p3", "timed out"), "failed: generate p3: timed out"),
        (RunStarted("r1", "ab-test", resumed=True), "note: going on with ab-test run r1"),
        (RunStarted("r1", "ab-test"), None),
        (RunFinished("r1", "done", 3.0), None),
        (EVALUATED, None),
        (Dropped("p1", "rewrite", 2, "too_short"), None),
    ],
)
def test_what_is_shown_without_being_verbose(event: Event, line: str | None) -> None:
    assert describe(event, verbose=False) == line


@pytest.mark.parametrize(
    ("event", "parts"),
    [
        (EVALUATED, ["passage seed 0: step 40, epoch 1.50", "train 3.210, validation 3.457"]),
        (Evaluated("x", 0, 0.0, 0, None, 4.0, 0.0), ["step 0", "tokens, validation 4.000"]),
        (
            PassageGenerated("p1", 4, 1, 2, 3, 321, 6.0, 1),
            ["passage p1: 4 kept, 1 dropped, 2 cached, 3 generated, 321 tokens, 6.0 s, 1 retries"],
        ),
        (
            Dropped("p1", "rewrite", 2, "too_short", "7 tokens < 20"),
            ["dropped p1 #2: too_short (7 tokens < 20)"],
        ),
    ],
)
def test_what_verbose_adds(event: Event, parts: list[str]) -> None:
    line = describe(event, verbose=True)
    assert line is not None
    assert all(part in line for part in parts)


def test_bars_show_nested_stages_and_keep_finished_ones_as_lines() -> None:
    stream, clock = Terminal(), Clock()
    with BarProgress(stream, verbose=True, clock=clock) as display:
        display(StageStarted("experiment", 2, "arms"))
        display(StageStarted("train [passage]", 10, "steps"))
        clock.now += 2
        display(StageProgress("train [passage]", 5, "loss 2.91"))
        display._bars.refresh()
        drawn = stream.getvalue()
        display(EVALUATED)
        display(StageFinished("train [passage]", 4.0, "best 2.80"))
        display(StageFinished("experiment", 9.0))
    assert "experiment" in drawn
    assert "train [passage]" in drawn
    assert "5/10 steps · 2.5 steps/s" in drawn
    text = stream.getvalue()
    assert "validation 3.457" in text
    assert "train [passage]: done in 4.0 s: best 2.80" in text
    assert text.rstrip().count("experiment: done in 9.0 s") == 1


def test_a_stage_that_starts_again_replaces_its_bar() -> None:
    with BarProgress(Terminal(), clock=Clock()) as display:
        display(StageStarted("train", 10, "steps"))
        display(StageStarted("train", 20, "steps"))
        assert [task.total for task in display._bars.tasks] == [20]


def test_a_model_s_text_cannot_steer_the_terminal() -> None:
    stream = io.StringIO()
    PlainProgress(stream)(Notice("\x1b[2Jgone\r"))
    assert "\x1b" not in stream.getvalue()
    assert "\r" not in stream.getvalue()


def test_signs_of_life_and_the_final_figures_are_shown_on_request() -> None:
    beat = Heartbeat("generate", 12, 3.0, 1_500_000_000, 2_000_000_000)
    assert describe(beat, verbose=False) is None
    assert describe(beat, verbose=True) == "generate: 12 done, the last 3.0 s ago, 1.5 GB of memory"
    figures = {"tokens_per_second": 126.4, "hit_rate": 0.25, "drop_rate": 0.1, "passages": 9}
    assert describe(GenerationMeasured("generate", figures), verbose=True) == (
        "generate: 126 tokens/s, 25 % from the cache, 10 % dropped"
    )
    empty = describe(GenerationMeasured("generate", {}), verbose=True)
    assert empty == "generate: nothing to measure"


def test_a_stall_is_told_by_its_notice_alone() -> None:
    assert describe(Stalled("generate", 120.0), verbose=True) is None


def test_a_broken_display_is_logged_once_and_dropped(caplog: pytest.LogCaptureFixture) -> None:
    stream = io.StringIO()
    with (
        caplog.at_level(logging.WARNING),
        show_progress(stream=stream) as emit,
    ):
        stream.close()
        emit(Notice("one"))
        emit(Notice("two"))
    assert caplog.text.count("progress display dropped") == 1


def test_quiet_shows_nothing() -> None:
    stream = io.StringIO()
    with show_progress(quiet=True, stream=stream) as emit:
        emit(Notice("one"))
    assert stream.getvalue() == ""


def test_bars_need_a_terminal_that_can_move_its_cursor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    assert can_draw(Terminal())
    assert not can_draw(io.StringIO())
    monkeypatch.setenv("TERM", "dumb")
    assert not can_draw(Terminal())


def test_a_terminal_gets_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    with show_progress(stream=stream) as emit:
        emit(StageStarted("generate", 4, "passages"))
        emit(StageFinished("generate", 1.0))
    assert "generate: done in 1.0 s" in stream.getvalue()
