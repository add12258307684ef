from __future__ import annotations

import errno
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from aios.core.errors import StorageError, UsageError
from aios.storage.journal import Journal

PRINT = {"input": "abc", "strategy": "rewrite", "seed": 7}


def test_finished_units_are_there_when_it_is_opened_again(tmp_path: Path) -> None:
    path = tmp_path / "out" / "j.jsonl"
    with Journal(path, PRINT) as journal:
        assert len(journal) == 0
        journal.append("p1", {"edits": ["Zoë", 1.5, None], "by number": {10: "a", 9: "b"}})
        journal.append("p2", ("x", "y"))
        assert "p1" in journal
        assert journal.get("p2") == ["x", "y"]
    with Journal(path, PRINT) as journal:
        assert journal.done == {
            "p1": {"edits": ["Zoë", 1.5, None], "by number": {"10": "a", "9": "b"}},
            "p2": ["x", "y"],
        }
        assert (len(journal), journal.skipped) == (2, 0)
        assert "p3" not in journal
        assert journal.get("p3") is None
        journal.append("p3", 3)
    with Journal(path, PRINT) as journal:
        assert list(journal.items())[2] == ("p3", 3)


def test_the_last_value_of_a_unit_counts_and_the_order_is_that_of_the_file(tmp_path: Path) -> None:
    with Journal(tmp_path / "j", PRINT) as journal:
        journal.append("a", 1)
        journal.append("b", 2)
        journal.append("a", 3)
        assert list(journal.items()) == [("b", 2), ("a", 3)]
    with Journal(tmp_path / "j", PRINT) as journal:
        assert list(journal.items()) == [("b", 2), ("a", 3)]


def test_a_journal_of_other_work_is_refused_with_what_differs(tmp_path: Path) -> None:
    path = tmp_path / "j"
    with Journal(path, PRINT) as journal:
        journal.append("a", 1)
    other = {"input": "abc", "strategy": "self-qa" * 20, "model": "m"}
    with pytest.raises(UsageError) as caught:
        Journal(path, other)
    assert 'strategy: "rewrite" then, "self-qaself-qa' in caught.value.message
    assert "…" in caught.value.message
    assert "seed: 7 then, null now" in caught.value.message
    assert 'model: null then, "m" now' in caught.value.message
    assert "input" not in caught.value.message
    assert "start over" in caught.value.remedy
    with Journal(path, PRINT) as journal:  # the refusal changed nothing and holds no lock
        assert journal.done == {"a": 1}


def test_a_fingerprint_is_compared_as_json(tmp_path: Path) -> None:
    Journal(tmp_path / "j", {"stop": ("a",), "n": 1}).close()
    Journal(tmp_path / "j", {"n": 1, "stop": ["a"]}).close()


def test_starting_over_forgets(tmp_path: Path) -> None:
    with Journal(tmp_path / "j", PRINT) as journal:
        journal.append("a", 1)
    with Journal(tmp_path / "j", {"other": True}, start_over=True) as journal:
        assert journal.done == {}
    with Journal(tmp_path / "j", {"other": True}) as journal:
        assert journal.done == {}


@pytest.mark.parametrize("cut", [1, 2, 10, 40])
def test_a_torn_last_line_is_done_again(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "j"
    with Journal(path, PRINT) as journal:
        journal.append("a", 1)
        journal.append("b", "x" * 50)
    path.write_bytes(path.read_bytes()[:-cut])
    with Journal(path, PRINT) as journal:
        whole = cut == 1  # only the newline is missing
        assert journal.done == ({"a": 1, "b": "x" * 50} if whole else {"a": 1})
        assert journal.skipped == (0 if whole else 1)
        journal.append("c", 3)
        assert journal.get("c") == 3
    with Journal(path, PRINT) as journal:
        assert journal.get("c") == 3
        assert journal.get("a") == 1


def test_a_line_whose_checksum_is_wrong_is_done_again(tmp_path: Path) -> None:
    path = tmp_path / "j"
    with Journal(path, PRINT) as journal:
        journal.append("a", "right")
        journal.append("b", 2)
    text = path.read_text()
    path.write_text(text.replace("right", "wrong") + "[]\n")
    with Journal(path, PRINT) as journal:
        assert journal.done == {"b": 2}
        assert journal.skipped == 2


@pytest.mark.parametrize(
    "data", ["x\n", "[]\n", '{"journal": 1}\n', '{"journal": 9, "fingerprint": {}}\n']
)
def test_a_file_that_is_no_journal_is_refused_and_kept(tmp_path: Path, data: str) -> None:
    path = tmp_path / "j"
    path.write_text(data)
    with pytest.raises(StorageError) as caught:
        Journal(path, PRINT)
    assert str(path) in caught.value.message
    assert "Start over" in caught.value.remedy
    assert path.read_text() == data


def test_an_empty_file_becomes_a_journal(tmp_path: Path) -> None:
    (tmp_path / "j").write_text("")
    with Journal(tmp_path / "j", PRINT) as journal:
        journal.append("a", 1)
    with Journal(tmp_path / "j", PRINT) as journal:
        assert journal.done == {"a": 1}


def test_only_one_process_works_on_a_journal(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j", PRINT)
    with pytest.raises(StorageError, match="held by another process"):
        Journal(tmp_path / "j", PRINT, lock_timeout=0.02)
    journal.close()
    Journal(tmp_path / "j", PRINT).close()


def test_a_full_disk_loses_only_the_unit_in_flight(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with Journal(tmp_path / "j", PRINT) as journal:
        journal.append("a", 1)
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", refuse)
            with pytest.raises(StorageError, match="disk full"):
                journal.append("b", 2)
        assert "b" not in journal
        journal.append("c", 3, sync=False)
        journal.sync()
        assert journal.done == {"a": 1, "c": 3}


def test_a_value_with_nan_is_refused(tmp_path: Path) -> None:
    with Journal(tmp_path / "j", PRINT) as journal:
        with pytest.raises(StorageError):
            journal.append("a", float("nan"))
        assert journal.done == {}


def test_a_journal_changed_by_others_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "j"
    with Journal(path, PRINT) as journal:
        journal.append("a", 1)
        journal.append("b", 1)
        lines = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(lines[0] + lines[2] + lines[1])
        with pytest.raises(StorageError, match="changed while it was in use"):
            journal.get("a")
        path.write_bytes(lines[0])
        with pytest.raises(StorageError, match="changed while it was in use"):
            journal.get("a")


def test_a_discarded_journal_leaves_no_file(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j", PRINT)
    journal.append("a", 1)
    journal.discard()
    assert os.listdir(tmp_path) == []
    Journal(tmp_path / "j", PRINT).discard()


def test_values_stay_on_disk(tmp_path: Path) -> None:
    with Journal(tmp_path / "j", PRINT) as journal:
        journal.append("a", "x" * 100_000)
        assert "x" * 100 not in repr(vars(journal))


@pytest.mark.slow
def test_a_kill_loses_at_most_the_unit_in_flight(tmp_path: Path) -> None:
    path = tmp_path / "j"
    code = (
        "import sys; from pathlib import Path\n"
        "from aios.storage.journal import Journal\n"
        "journal = Journal(Path(sys.argv[1]), {'seed': 7})\n"
        "print('ready', flush=True)\n"
        "for i in range(len(journal), 10**9):\n"
        "    journal.append(str(i), [i] * 3000)\n"
        "    print(i, flush=True)\n"
    )
    before = 0
    for seed in range(5):
        command = [sys.executable, "-c", code, str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(random.Random(seed).uniform(0.005, 0.04))
            process.kill()
            announced = process.stdout.read().split(b"\n")[:-1]
        with Journal(path, {"seed": 7}) as journal:
            done = journal.done
            assert len(done) >= before + len(announced)
            before = len(done)
        assert done == {str(i): [i] * 3000 for i in range(len(done))}
    assert before > 0
    assert json.loads(path.read_bytes().split(b"\n")[0])["fingerprint"] == {"seed": 7}
