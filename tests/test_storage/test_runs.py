from __future__ import annotations

import errno
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from aios.core.errors import StorageError, UsageError
from aios.core.events import Notice
from aios.storage import runs
from aios.storage.event_log import read_events
from aios.storage.runs import RunDirectory, git_revision, package_versions, read_run_info


def create(root: Path, run_id: str | None = "r1") -> RunDirectory:
    return RunDirectory.create(root, "ab-test", run_id=run_id, config_yaml="seed: 7\n", seed=7)


def test_a_run_holds_its_config_and_where_it_was_made(tmp_path: Path) -> None:
    with create(tmp_path / "runs") as run:
        assert run.path == tmp_path / "runs" / "r1"
        assert run.config_file.read_text() == "seed: 7\n"
        assert run.checkpoints.is_dir()
        info = json.loads((run.path / "run.json").read_text())
    assert (info["id"], info["kind"], info["seed"]) == ("r1", "ab-test", 7)
    assert info["versions"]["python"] == platform.python_version()
    assert {"aios", "torch", "transformers", "peft"} <= info["versions"].keys()
    assert info["cpu_count"] == os.cpu_count()
    assert info["argv"] == sys.argv
    assert info["created"].endswith("+00:00")
    assert "git" in info
    assert info == read_run_info(run.path)


def test_an_id_is_made_from_kind_and_time(tmp_path: Path) -> None:
    with create(tmp_path, None) as one, create(tmp_path, None) as two:
        assert re.fullmatch(r"ab-test-\d{8}-\d{6}-[0-9a-f]{4}", one.id)
        assert one.id != two.id
        assert one.path.name == one.id


def test_a_run_that_exists_is_not_overwritten(tmp_path: Path) -> None:
    create(tmp_path).close()
    with pytest.raises(UsageError, match="exists already") as caught:
        create(tmp_path)
    assert "Resume" in caught.value.remedy
    assert os.listdir(tmp_path) == ["r1"]


def test_a_run_made_by_another_process_meanwhile_is_not_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = os.rename

    def late(source: Path, target: Path) -> None:
        Path(target).mkdir()
        (Path(target) / "run.json").write_text("theirs")
        rename(source, target)

    monkeypatch.setattr(os, "rename", late)
    with pytest.raises(UsageError, match="exists already"):
        create(tmp_path)
    assert (tmp_path / "r1" / "run.json").read_text() == "theirs"
    assert os.listdir(tmp_path) == ["r1"]


def test_an_empty_folder_can_become_a_run(tmp_path: Path) -> None:
    (tmp_path / "r1").mkdir()
    create(tmp_path).close()
    assert read_run_info(tmp_path / "r1")["id"] == "r1"


def test_a_dangerous_id_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a valid run id"):
        create(tmp_path, "../r")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("call", ["fsync", "replace", "rename"])
def test_a_full_disk_leaves_no_half_made_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, refuse)
    with pytest.raises(StorageError, match="disk full"):
        create(tmp_path)
    assert os.listdir(tmp_path) == []


def test_a_run_can_be_opened_again_and_its_events_go_on(tmp_path: Path) -> None:
    with create(tmp_path) as run:
        run.emit(Notice("one"))
        run.emit(Notice("two"))
    with RunDirectory.open(tmp_path / "r1") as run:
        assert (run.id, run.kind, run.seed) == ("r1", "ab-test", 7)
        run.emit(Notice("three"))
    found = [event for _, event in read_events(run.events_file)]
    assert found == [Notice("one"), Notice("two"), Notice("three")]


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no run at"):
        RunDirectory.open(tmp_path)
    assert os.listdir(tmp_path) == []
    for text in ("{", "[]", '{"id": "r"}'):
        (tmp_path / "run.json").write_text(text)
        with pytest.raises(StorageError, match="is corrupt"):
            RunDirectory.open(tmp_path)


def test_the_state_is_committed_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with create(tmp_path) as run:
        assert run.read_state() is None
        run.commit_state({"round": 1})
        with monkeypatch.context() as patch:

            def refuse(*_: object) -> None:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

            patch.setattr(os, "replace", refuse)
            with pytest.raises(StorageError, match="disk full"):
                run.commit_state({"round": 2})
        assert run.read_state() == {"round": 1}
        (run.path / "state.json").write_text("[]")
        with pytest.raises(StorageError, match="is corrupt"):
            run.read_state()


def test_rejects_are_appended(tmp_path: Path) -> None:
    with create(tmp_path) as run:
        assert not run.rejects_file.exists()
        run.add_rejects({"file": "a", "line": 3, "reason": "no text"})
        run.add_rejects({"file": "a", "line": 5, "reason": "no text"})
    lines = run.rejects_file.read_text().splitlines()
    assert [json.loads(line)["line"] for line in lines] == [3, 5]


_HOLD = """
import sys, time
from pathlib import Path
from aios.storage.runs import RunDirectory
run = RunDirectory.open(Path(sys.argv[1]))
print("ready", flush=True)
time.sleep(60)
"""


def test_a_second_process_is_told_who_holds_the_run_and_a_killed_one_holds_nothing(
    tmp_path: Path,
) -> None:
    create(tmp_path).close()
    path = tmp_path / "r1"
    with subprocess.Popen([sys.executable, "-c", _HOLD, path], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(StorageError, match=f"in use by another process .*{process.pid}"):
            RunDirectory.open(path)
        assert read_run_info(path)["id"] == "r1"  # looking is free
        process.kill()
    RunDirectory.open(path).close()


def test_a_run_in_a_folder_without_write_access_is_a_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create(tmp_path).close()
    opened = os.open

    def refuse(path: str, *rest: int) -> int:
        if str(path).endswith(".lock"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return opened(path, *rest)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(StorageError, match="no write access"):
        RunDirectory.open(tmp_path / "r1")


def test_versions_are_read_without_importing_torch() -> None:
    code = (
        "import sys; from aios.storage.runs import package_versions\n"
        "assert package_versions()['aios']; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_package_that_is_missing_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "_PACKAGES", ("aios", "surely-not-installed"))
    versions = package_versions()
    assert versions["aios"]
    assert versions["surely-not-installed"] is None


# ---------------------------------------------------------------- git


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_the_revision_of_a_checkout_and_whether_it_is_changed(tmp_path: Path) -> None:
    source = tmp_path / "repo" / "src"
    source.mkdir(parents=True)
    assert git_revision(source) is None
    git(tmp_path / "repo", "init", "-q")
    assert git_revision(source) is None
    (source / "a.py").write_text("1")
    (tmp_path / "repo" / ".gitignore").write_text("/site\n")
    git(tmp_path / "repo", "add", ".")
    git(tmp_path / "repo", "commit", "-q", "-m", "one")
    head = git(tmp_path / "repo", "rev-parse", "HEAD")
    (source / "untracked").write_text("x")
    assert git_revision(source) == {"revision": head, "dirty": False}
    (source / "a.py").write_text("2")
    assert git_revision(source) == {"revision": head, "dirty": True}
    installed = tmp_path / "repo" / "site"
    installed.mkdir()
    (installed / "b.py").write_text("1")
    assert git_revision(installed) is None


def test_without_git_there_is_no_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert git_revision(tmp_path) is None
    monkeypatch.setattr(shutil, "which", lambda name: str(tmp_path / "no-such-git"))
    assert git_revision(tmp_path) is None
