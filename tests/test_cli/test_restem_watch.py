"""``aios seal restem status | rewards | stop`` on runs made by hand."""

from __future__ import annotations

import io
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import pytest

from aios.cli.commands import seal_restem_watch
from aios.cli.commands.seal_restem_rewards import rewards
from aios.cli.commands.seal_restem_watch import status, stop
from aios.core.errors import UsageError
from aios.core.events import (
    RoundFinished,
    RunFinished,
    StageFinished,
    StageProgress,
    StageStarted,
    WorkFailed,
)
from aios.storage import runs
from aios.storage.runs import RunDirectory
from tests.test_app.restem_run_files import (
    T0,
    candidate,
    first_round,
    hold_new,
    make_run,
    passage_of,
    report,
    set_record,
    two_rounds,
    untrained,
    write_candidates,
    write_events,
)

pytestmark = pytest.mark.usefixtures("quick_disk")

Capture = pytest.CaptureFixture[str]


@click.group()
def restem() -> None:
    """The commands, without the others."""


for command in (status, rewards, stop):
    restem.add_command(command)


def call(*arguments: str) -> int:
    """Runs a command; its exit code. Errors of the program propagate."""
    code = restem.main(list(arguments), standalone_mode=False)
    return code if isinstance(code, int) else 0


class Terminal(io.StringIO):
    """A stream that says it is a terminal, of an encoding."""

    def __init__(self, encoding: str = "utf-8") -> None:
        super().__init__()
        self._encoding = encoding

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._encoding

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _nothing_is_asked_of_git(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "git_revision", lambda folder: None)
    monkeypatch.setattr(runs, "package_versions", dict)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The folder of runs of the default config: below the current folder."""
    return tmp_path / "artifacts" / "runs"


@pytest.fixture
def held(root: Path) -> Iterator[RunDirectory]:
    """A run that is going on: round 0 is done, round 1 in its trials."""
    with hold_new(root, "r1") as directory:
        write_events(directory.path, first_round())
        set_record(directory.path, [untrained()])
        yield directory


def finish_round(path: Path) -> None:
    """Ends round 1."""
    set_record(path, [untrained(), report(1)], best=1)
    write_events(path, [(140, RoundFinished(1, "", {}))])


# ------------------------------------------------------------ status


def test_the_status_of_a_running_run(held: RunDirectory, capsys: Capture) -> None:
    write_events(held.path, [(122, WorkFailed("train", "p2", "out of memory"))])
    assert call("status") == 0
    out, err = capsys.readouterr()
    assert err == ""
    lines = out.splitlines()
    assert lines[0].split() == ["run", "r1"]
    assert lines[1].split() == ["state", "running"]
    assert "round 1 of 2, try: 2/5 passages, 2.0 passages/min, " in out
    assert "10 done for 6 candidates, about 19 left in the round, 10.0 a minute" in out
    assert "1.0 GB, at most 2.0 GB" in out
    assert "1, the last: train p2: out of memory" in out
    assert "Improvement over the baseline, round 1 so far: 5 candidates, 3 above 0" in out
    assert "─ 0, the baseline" in out
    assert "go on with" not in out


def test_finished_rounds_have_a_line_each(held: RunDirectory, capsys: Capture) -> None:
    finish_round(held.path)
    assert call("status", "r1") == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "round rewarded share kept improvement held-out gain time" in lines
    assert "0 - - - - +0.010 - 40 s" in lines
    assert "1 3/5 60 % 2 +0.030 +0.050 +0.040 10 min 00 s best" in lines
    assert "Improvement over the baseline, round 1: 5 candidates, 3 above 0" in lines
    assert any(line.startswith("─") and line.endswith("─ threshold 0.04") for line in lines)


def test_the_margin_of_the_round_before_is_marked_as_such(
    held: RunDirectory, capsys: Capture
) -> None:
    set_record(held.path, [untrained(), report(1), report(2, 0.09, threshold=0.03)], best=2)
    assert call("status") == 0
    out = capsys.readouterr().out
    assert "threshold 0.03 of round 2" in out
    assert "held-out by round  ▁▅█\n" in out


def test_a_terminal_without_block_characters_gets_ascii(
    held: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = Terminal("ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    assert call("status") == 0
    plot = stream.getvalue().split("Improvement over the baseline")[1]
    assert "###" in plot
    assert plot.isascii()


def test_a_killed_run_says_so_and_how_to_go_on(held: RunDirectory, capsys: Capture) -> None:
    held.close()
    assert call("status") == 0
    out = capsys.readouterr().out
    assert "killed: no process works on it" in out
    assert "stood at" in out
    assert "go on with  aios seal restem optimize --dataset 'my data.json' --resume " in out


def test_the_status_as_json(held: RunDirectory, capsys: Capture) -> None:
    finish_round(held.path)
    assert call("status", "r1", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["id"], document["state"], document["rounds"]) == ("r1", "running", 2)
    assert [one["number"] for one in document["rounds_done"]] == [0, 1]
    assert document["rounds_done"][1]["held_out_mean"] == pytest.approx(0.05)
    assert (document["best"], document["peak_rss_bytes"]) == (1, 2e9)
    assert document["started"].endswith("+00:00")
    assert document["eta_stage"] is None


def test_what_a_file_says_cannot_steer_the_terminal(held: RunDirectory, capsys: Capture) -> None:
    write_events(held.path, [(122, WorkFailed("train", "p\x1b[2J", "\x07"))])
    write_candidates(held.path, 1, [passage_of("p\x1b[2J", candidate("p", 0, (0.1,)))])
    assert call("status") == 0
    assert call("rewards") == 0
    assert "\x1b" not in capsys.readouterr().out


def test_an_unknown_run_and_one_of_another_kind_are_refused(root: Path) -> None:
    with pytest.raises(UsageError, match="no ReST-EM run"):
        call("status")
    with hold_new(root, "other", kind="generate"):
        for name in ("status", "rewards", "stop"):
            with pytest.raises(UsageError, match="no run 'r9'"):
                call(name, "r9")
            with pytest.raises(UsageError, match="kind is generate"):
                call(name, "other")


def test_a_run_of_which_nothing_is_written_yet(root: Path, capsys: Capture) -> None:
    with hold_new(root, "r1"):
        assert call("status") == 0
        assert call("rewards") == 0
    out = capsys.readouterr().out
    assert "running" in out
    assert "No round has candidates yet" in out


# ------------------------------------------------------------ status --watch


@pytest.fixture
def watched(held: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> RunDirectory:
    """A run in which something happens whenever the watching waits, until it has ended."""
    ended = RunFinished("r1", "done", 160.0, "two rounds")
    steps: list[Callable[[], object]] = [
        lambda: write_events(held.path, [(151, StageProgress("round 1: try", 3))]),
        lambda: None,
        lambda: finish_round(held.path),
        lambda: None,
        lambda: write_events(held.path, [(time.time() - T0, ended)]),
    ]

    sleep = time.sleep

    def wait(seconds: float) -> None:
        if threading.current_thread() is not threading.main_thread():
            sleep(seconds)  # a thread that an earlier test has left
        else:
            assert seconds == 0.05
            steps.pop(0)()

    monkeypatch.setattr(time, "sleep", wait)
    return held


@pytest.mark.usefixtures("watched")
def test_watching_without_a_terminal_prints_a_line_a_change_until_the_end(capsys: Capture) -> None:
    assert call("status", "--watch", "--interval", "0.05") == 0
    lines = capsys.readouterr().out.splitlines()
    end = lines.index("")
    stages = [line.partition(" ")[2] for line in lines[:end] if line[2] == ":"]
    assert stages[0].startswith("round 1 of 2, try: 2/5 passages")
    assert stages[1].startswith("round 1 of 2, try: 3/5 passages")
    assert stages[2:] in ([], ["round 1 of 2"])
    said = "rewarded 3/5, kept 2, improvement +0.030, held-out +0.050, gain +0.040"
    assert lines[0] == "round 0 done: held-out +0.010"
    assert lines[:end].count(f"round 1 done: {said}") == 1
    assert len(lines[:end]) <= 6  # nothing is said twice
    assert "state" in lines[end + 2]
    assert "done: two rounds" in lines[end + 2]


@pytest.mark.usefixtures("watched")
def test_watching_as_json_gives_a_line_a_change(capsys: Capture) -> None:
    assert call("status", "--watch", "--interval", "0.05", "--json") == 0
    documents = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["done"] for one in documents[:2]] == [2, 3]
    assert [one["state"] for one in documents[:-1]] == ["running"] * (len(documents) - 1)
    assert documents[-1]["state"] == "done"
    assert len(documents) <= 6


@pytest.mark.usefixtures("watched")
def test_watching_on_a_terminal_draws_in_place_and_leaves_the_last_status(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    monkeypatch.setattr(sys, "stdout", stream)
    assert call("status", "--watch", "--interval", "0.05") == 0
    written = stream.getvalue()
    assert "\x1b[1A" in written  # moved up over what was drawn before
    last = written.rpartition("\x1b")[2]
    assert "done: two rounds" in last
    assert last.count("Improvement over the baseline") == 1


def test_ctrl_c_ends_the_watching_and_not_the_run(
    held: RunDirectory, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", interrupted)
    assert call("status", "--watch") == 130
    assert "the run goes on" in capsys.readouterr().err
    assert not (held.path / "stop").exists()


def test_watching_a_run_that_has_ended_shows_it_once(held: RunDirectory, capsys: Capture) -> None:
    held.close()
    assert call("status", "--watch") == 0
    assert capsys.readouterr().out.count("killed: no process works on it") == 1


# ------------------------------------------------------------ rewards


@pytest.fixture
def tried(root: Path) -> Path:
    """A run with candidates of rounds 0 and 1."""
    path = make_run(root, "r1")
    two_rounds(path)
    return path


def table(out: str) -> list[list[str]]:
    """Cells of the lines of a table, without spaces."""
    return [line.split() for line in out.splitlines()]


@pytest.mark.parametrize("given", [("--run-id", "r1"), ("r1",), ()])
def test_candidates_by_round_and_passage(
    tried: Path, capsys: Capture, given: Sequence[str]
) -> None:
    assert call("rewards", *given) == 0
    out = capsys.readouterr().out
    assert "Round 0: 1 candidate of 1 passage, 0 rewarded, 0 kept" in out
    assert "Round 1: 5 candidates of 3 passages, 2 rewarded, 1 kept" in out
    rows = table(out)
    assert "p1 rewrite 0 2 +0.200 ±0.100 yes yes +25 % Edit 0 of p1. More.".split() in rows
    assert "p1 rewrite 1 0 - - - failed: out of memory".split() in rows
    assert "p2 rewrite 0 1 -0.200 no +25 % Edit 0 of p2. More.".split() in rows
    assert "h1 (held out) rewrite 0 1 +0.020 no +25 % Edit 0 of h1. More.".split() in rows


def test_candidates_of_a_round_and_of_a_passage(tried: Path, capsys: Capture) -> None:
    assert call("rewards", "--round", "0") == 0
    out = capsys.readouterr().out
    assert "Round 0" in out
    assert "Round 1" not in out
    assert call("rewards", "--passage", "p2", "--round", "1") == 0
    out = capsys.readouterr().out
    assert "Edit 1 of p2." in out
    assert "p1" not in out


def test_the_best_and_the_worst_candidates(tried: Path, capsys: Capture) -> None:
    assert call("rewards", "--best", "2", "--worst", "1") == 0
    out = capsys.readouterr().out
    assert "Best candidates" in out
    assert "Worst candidates" in out
    firsts = [row[:4] for row in table(out) if row and row[0] in "01"]
    assert firsts == [
        ["1", "p1", "rewrite", "0"],
        ["1", "p2", "rewrite", "1"],
        ["1", "p2", "rewrite", "0"],
    ]


def test_candidates_as_json_have_all_that_is_known(tried: Path, capsys: Capture) -> None:
    assert call("rewards", "--run-id", "r1", "--json") == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert [one["round"] for one in document["rounds"]] == [0, 1]
    passages = document["rounds"][1]["passages"]
    assert [(one["passage_id"], one["held_out"]) for one in passages] == [
        ("p1", False),
        ("p2", False),
        ("h1", True),
    ]
    first, failed = passages[0]["candidates"]
    assert first["improvements"] == [0.1, 0.3]
    assert first["standard_error"] == pytest.approx(0.1)
    assert first["edit"]["items"] == ["Edit 0 of p1.", "More."]
    assert (first["rewarded"], first["kept"], first["reward"]["repeats"]) == (True, True, 2)
    assert failed["failures"][0]["error"] == "out of memory"
    assert call("rewards", "--best", "1", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert [one["improvement"] for one in document["best"]] == [pytest.approx(0.2)]


def test_an_unknown_round_or_passage_is_refused_with_those_there_are(tried: Path) -> None:
    with pytest.raises(UsageError, match="round 7 has no candidates") as caught:
        call("rewards", "--round", "7")
    assert caught.value.remedy == "rounds that have: 0, 1"
    with pytest.raises(UsageError, match="no candidate of passage 'p9'") as caught:
        call("rewards", "--passage", "p9")
    assert caught.value.remedy == "there are h1, p1, p2"
    with pytest.raises(UsageError, match="two runs are given"):
        call("rewards", "r1", "--run-id", "r2")


def test_empty_rounds_and_broken_lines_are_said(root: Path, capsys: Capture) -> None:
    path = make_run(root, "r1")
    file = write_candidates(path, 1, [])
    file.write_bytes(b"{}\n")
    assert call("rewards") == 0
    assert "Round 1: 0 candidates of 0 passages, 0 rewarded, 0 kept, 1 broken line left out" in (
        capsys.readouterr().out
    )
    assert call("rewards", "--best", "3") == 0
    assert "No candidate has a reward yet" in capsys.readouterr().out


# ------------------------------------------------------------ stop


def test_a_running_run_is_asked_to_stop(held: RunDirectory, capsys: Capture) -> None:
    assert call("stop") == 0
    out = capsys.readouterr().out
    assert out.splitlines() == [
        "run r1 was asked to stop; it does so after the work in hand",
        "go on with: aios seal restem optimize --dataset 'my data.json' --resume artifacts/runs/r1",
    ]
    assert (held.path / "stop").exists()
    assert call("status") == 0
    assert "asked to stop" in capsys.readouterr().out


def test_stop_waits_until_the_run_has_ended(
    held: RunDirectory, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr(seal_restem_watch, "_WAIT_SECONDS", 0.02)

    def obey() -> None:
        while not (held.path / "stop").exists():
            time.sleep(0.01)
        write_events(held.path, [(time.time() - T0, RunFinished("r1", "interrupted", 1.0))])

    thread = threading.Thread(target=obey)
    thread.start()
    assert call("stop", "r1", "--wait", "--json") == 0
    thread.join()
    document = json.loads(capsys.readouterr().out)
    assert (document["asked"], document["state"]) == (True, "interrupted")
    assert document["resume"].endswith("/r1")


def test_stop_says_if_nothing_runs(held: RunDirectory, capsys: Capture) -> None:
    write_events(held.path, [(time.time() - T0, RunFinished("r1", "done", 1.0))])
    held.close()
    assert call("stop", "--wait") == 0
    assert capsys.readouterr().out == "nothing works on run r1: done\n"
    assert not (held.path / "stop").exists()


def test_without_a_name_the_run_that_goes_on_is_stopped_not_the_newest(
    held: RunDirectory, root: Path, capsys: Capture
) -> None:
    make_run(root, "r2")
    assert call("stop") == 0
    assert "run r1 was asked" in capsys.readouterr().out
    with hold_new(root, "r3"), pytest.raises(UsageError, match="several runs") as caught:
        call("stop")
    assert "r3" in caught.value.remedy
    assert "r1" in caught.value.remedy


def test_round_stages_that_follow_are_told_one_after_another(
    held: RunDirectory, capsys: Capture
) -> None:
    write_events(
        held.path,
        [
            (200, StageFinished("round 1: try", 140)),
            (200, StageStarted("round 1: fit", 1, "trainings")),
            (201, StageStarted("train generator", 50, "steps")),
            (211, StageProgress("train generator", 10)),
        ],
    )
    assert call("status") == 0
    assert "round 1 of 2, fit (train generator): 10/50 steps" in capsys.readouterr().out
