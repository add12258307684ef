"""``aios experts backup``: a whole copy of the record of answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aios.cli.aios import run
from aios.storage.activity import ActivityStore

DATABASE = Path("artifacts") / "experts" / "activity.sqlite3"


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_record_of_answers_is_copied_whole(capsys: pytest.CaptureFixture[str]) -> None:
    DATABASE.parent.mkdir(parents=True)
    with ActivityStore(DATABASE) as store:
        store.record_answer("answer-1", model="base")
        assert run(["experts", "backup", "copy.sqlite3", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["bytes"] == Path("copy.sqlite3").stat().st_size
    with ActivityStore(Path("copy.sqlite3")) as copy:
        assert [answer.id for answer in copy.answers()] == ["answer-1"]


def test_without_a_record_there_is_nothing_to_copy(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["experts", "backup", "copy.sqlite3"]) == 2
    assert "nothing to back up" in capsys.readouterr().err
    assert not Path("copy.sqlite3").exists()
