"""Signals: a graceful stop first, then an abort, and the line to go on with."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from aios.cli.aios import run
from aios.cli.interrupts import resume_line, stop_on_signals
from aios.core.errors import RunInterrupted
from aios.core.events import RunStarted

Capture = pytest.CaptureFixture[str]
pytestmark = pytest.mark.skipif(os.name != "posix", reason="POSIX signals")


def send(number: int) -> None:
    os.kill(os.getpid(), number)


def interrupted_by(number: int, times: int = 1) -> Any:
    def during(kwargs: dict[str, Any]) -> None:
        assert not kwargs["should_stop"]()
        for _ in range(times):
            send(number)
        assert kwargs["should_stop"]()
        raise RunInterrupted("stopped after 3 of 4 passages", "the app's own remedy")

    return during


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_stops_gracefully_and_prints_the_line_to_go_on_with(
    number: int, app: Any, passages: Path, capfd: Capture
) -> None:
    before = signal.getsignal(number)
    app.during = interrupted_by(number)
    line = ["seal", "generate", "--input", str(passages), "--output", "my edits.jsonl"]
    assert run([*line, "--resume", "never"]) == 130
    err = capfd.readouterr().err
    assert "stopping after the work in hand" in err
    assert "error: stopped after 3 of 4 passages" in err
    wanted = shlex.join(["aios", *line, "--resume", "if-possible"])
    assert f"→ go on with: {wanted}\n" in err
    assert signal.getsignal(number) == before


def test_the_second_signal_aborts_at_once(app: Any, passages: Path, capfd: Capture) -> None:
    app.during = interrupted_by(signal.SIGINT, times=2)
    line = ["hrm-hf", "train-expert", "--expert-id", "e1", "--dataset", str(passages)]
    assert run([*line, "--overwrite"]) == 130
    err = capfd.readouterr().err
    assert "error: aborted" in err
    assert f"go on with: {shlex.join(['aios', *line, '--resume'])}\n" in err


def test_work_that_ends_in_spite_of_the_signal_is_done(
    app: Any, passages: Path, capfd: Capture
) -> None:
    app.during = lambda kwargs: send(signal.SIGINT)
    line = ["seal", "generate", "--input", str(passages), "--output", "o.jsonl"]
    assert run(line) == 0


def test_an_ab_test_without_a_folder_names_the_one_it_made(
    app: Any, passages: Path, capfd: Capture
) -> None:
    folder = Path("artifacts/seal_experiments/ab-7")

    def during(kwargs: dict[str, Any]) -> None:
        folder.mkdir(parents=True)
        kwargs["emit"](RunStarted("ab-7", "ab-test"))
        raise RunInterrupted("stopped")

    app.during = during
    line = ["seal", "ab-test", "--input", str(passages)]
    assert run(line) == 130
    wanted = shlex.join(["aios", *line, "--output", str(folder), "--resume"])
    assert f"go on with: {wanted}\n" in capfd.readouterr().err


def test_an_ab_test_whose_folder_is_not_known_keeps_the_app_s_remedy(
    app: Any, passages: Path, capfd: Capture
) -> None:
    app.during = interrupted_by(signal.SIGINT)
    assert run(["seal", "ab-test", "--input", str(passages)]) == 130
    assert "→ the app's own remedy" in capfd.readouterr().err


def test_the_line_to_go_on_with_replaces_what_it_must() -> None:
    args = ["x", "--resume=always", "--a", "b c", "--resume", "never", "--overwrite", "--o=1"]
    line = resume_line(args, drop=["--resume=", "--overwrite"], add=["--resume", "if-possible"])
    assert line == "aios x --a 'b c' --o=1 --resume if-possible"


def test_a_flag_without_value_is_dropped_alone() -> None:
    assert resume_line(["x", "--resume", "y"], drop=["--resume"]) == "aios x y"


def test_outside_the_main_thread_no_handler_is_touched() -> None:
    seen: list[bool] = []

    def work() -> None:
        with stop_on_signals() as should_stop:
            seen.append(should_stop())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]


def test_a_real_process_stops_on_sigterm_with_130(tmp_path: Path) -> None:
    script = tmp_path / "work.py"
    script.write_text(
        "import sys, time\n"
        "from aios.cli.interrupts import stop_on_signals\n"
        "from aios.core.errors import RunInterrupted\n"
        "try:\n"
        "    with stop_on_signals(lambda: 'aios x') as should_stop:\n"
        "        print('ready', flush=True)\n"
        "        while not should_stop():\n"
        "            time.sleep(0.01)\n"
        "        raise RunInterrupted('stopped')\n"
        "except RunInterrupted as error:\n"
        "    print(error.remedy, flush=True)\n"
        "    sys.exit(error.exit_code)\n",
        encoding="utf-8",
    )
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.02)
        process.terminate()
        assert process.stdout.read() == "go on with: aios x\n"
    assert process.returncode == 130
