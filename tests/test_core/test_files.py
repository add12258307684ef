from __future__ import annotations

import errno
import json
import os
import random
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from aios.core.errors import StorageError, UsageError
from aios.core.files import (
    LineAppender,
    append_jsonl,
    atomic_write_bytes,
    atomic_write_json,
    atomic_write_text,
    atomic_writer,
    confined,
    encode_json,
    locked,
    read_bytes,
    read_json,
    remove_stale_temporaries,
    require_id,
    valid_id,
)
from aios.core.folders import atomic_folder, recover


def kill_at_random(code: str, *arguments: object, seed: int) -> None:
    """Runs Python code that prints a line when it begins, and kills it a little later."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        time.sleep(random.Random(seed).uniform(0.0, 0.03))
        process.kill()


def raising(code: int) -> Callable[..., None]:
    def call(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    return call


# ---------------------------------------------------------------- atomic writes


def test_a_write_replaces_the_file_and_makes_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file.txt"
    atomic_write_text(path, "old")
    atomic_write_text(path, "neu ü")
    assert path.read_bytes() == "neu ü".encode()
    assert [p.name for p in path.parent.iterdir()] == ["file.txt"]


def test_a_written_file_has_the_usual_permissions(tmp_path: Path) -> None:
    old = os.umask(0o022)
    try:
        atomic_write_bytes(tmp_path / "f", b"x")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o644


def test_json_is_written_whole_and_ends_in_a_newline(tmp_path: Path) -> None:
    path = tmp_path / "f.json"
    atomic_write_json(path, {"name": "Zoë", "n": 1})
    assert path.read_text().endswith("}\n")
    assert "Zoë" in path.read_text()
    assert read_json(path) == {"name": "Zoë", "n": 1}


def test_a_lone_surrogate_survives_json(tmp_path: Path) -> None:
    atomic_write_json(tmp_path / "f", ["\ud800"])
    assert read_json(tmp_path / "f") == ["\ud800"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"a": [-float("inf")]}])
def test_json_with_a_number_that_is_not_finite_is_not_written(
    tmp_path: Path, value: object
) -> None:
    path = tmp_path / "f.json"
    atomic_write_json(path, 1)
    with pytest.raises(StorageError, match="not JSON compliant"):
        atomic_write_json(path, value)
    assert read_json(path) == 1


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.ENOSPC, "disk full"),
        (errno.EACCES, "no write access"),
        (errno.EROFS, "read-only disk"),
        (errno.EIO, "Input/output error"),
    ],
)
def test_a_failed_write_says_why_and_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int, words: str
) -> None:
    path = tmp_path / "f.json"
    atomic_write_text(path, "old")
    monkeypatch.setattr(os, call, raising(code))
    with pytest.raises(StorageError, match=words) as caught:
        atomic_write_text(path, "new")
    assert str(path) in caught.value.message
    assert caught.value.remedy
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["f.json"]


def test_a_write_beyond_the_space_left_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "f"
    atomic_write_bytes(path, b"old")
    code = (
        "import resource, sys; from pathlib import Path\n"
        "from aios.core.files import atomic_write_bytes\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
        "atomic_write_bytes(Path(sys.argv[1]), b'x' * 500_000)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
    assert "StorageError: cannot write" in done.stderr
    assert "disk full" in done.stderr
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["f"]


def test_a_block_that_raises_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "f"
    atomic_write_bytes(path, b"old")

    def write_half() -> None:
        with atomic_writer(path) as handle:
            handle.write(b"half")
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        write_half()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["f"]


def test_a_blocks_own_error_about_another_file_is_not_blamed_on_this_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_writer(tmp_path / "f"):
        (tmp_path / "missing").read_bytes()
    assert os.listdir(tmp_path) == []


def test_a_write_through_a_symlink_changes_its_target(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("old")
    link.symlink_to(target)
    atomic_write_text(link, "new")
    assert link.is_symlink()
    assert target.read_text() == "new"


def test_a_device_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(StorageError, match="not a regular file"):
        atomic_write_text(tmp_path / "pipe", "x")
    with pytest.raises(StorageError, match="not a regular file"):
        read_json(tmp_path / "pipe")


def test_a_parent_that_is_a_file_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("x")
    with pytest.raises(StorageError, match="a file is where a folder should be"):
        atomic_write_text(tmp_path / "f" / "g", "x")


@pytest.mark.slow
def test_a_kill_during_writes_leaves_an_old_or_a_new_file(tmp_path: Path) -> None:
    path = tmp_path / "f"
    code = (
        "import itertools, sys, time; from pathlib import Path\n"
        "from aios.core.files import atomic_writer\n"
        "print('ready', flush=True)\n"
        "for i in itertools.count():\n"
        "    with atomic_writer(Path(sys.argv[1])) as handle:\n"
        "        for part in range(10):\n"
        "            handle.write(bytes([97 + i % 26]) * 10_000)\n"
        "            time.sleep(0.0005)\n"
    )
    atomic_write_bytes(path, b"a" * 100_000)
    for seed in range(5):
        kill_at_random(code, path, seed=seed)
        data = path.read_bytes()
        assert len(data) == 100_000
        assert len(set(data)) == 1
    left = [p for p in tmp_path.iterdir() if p != path]
    for leftover in left:
        os.utime(leftover, (0, 0))
    assert remove_stale_temporaries(tmp_path) == len(left)
    assert os.listdir(tmp_path) == ["f"]


def test_temporaries_in_use_and_foreign_files_are_not_removed(tmp_path: Path) -> None:
    with atomic_writer(tmp_path / "f") as handle:
        handle.write(b"x")
        assert remove_stale_temporaries(tmp_path) == 0
    foreign = tmp_path / ".notes.tmp"
    foreign.write_text("mine")
    os.utime(foreign, (0, 0))
    assert remove_stale_temporaries(tmp_path) == 0
    assert remove_stale_temporaries(tmp_path / "missing") == 0


# ---------------------------------------------------------------- reading


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b'{"a": NaN}', b"[1e999]", b"[-Infinity]", b"\xff\xfe", b"[" * 200_000],
    ids=["empty", "half", "nan", "overflow", "infinity", "encoding", "nested"],
)
def test_a_corrupt_json_file_is_a_clear_error(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "f.json"
    path.write_bytes(data)
    with pytest.raises(StorageError, match="is corrupt") as caught:
        read_json(path)
    assert str(path) in caught.value.message
    assert caught.value.remedy


def test_a_missing_file_is_an_error_or_the_default(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no such file"):
        read_json(tmp_path / "f")
    with pytest.raises(StorageError, match="no such file"):
        read_bytes(tmp_path / "f", 10)
    assert read_json(tmp_path / "f", default=None) is None


def test_a_file_that_is_too_large_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_text(json.dumps("x" * 100))
    assert read_json(path, 102) == "x" * 100
    with pytest.raises(StorageError, match="larger than the 101 bytes"):
        read_json(path, 101)


# ---------------------------------------------------------------- appended lines


def test_appended_records_are_lines(tmp_path: Path) -> None:
    path = tmp_path / "a" / "f.jsonl"
    append_jsonl(path, [{"a": 1}, {"b": "x\u2028y"}])
    append_jsonl(path, [])
    append_jsonl(path, [3], sync=False)
    lines = path.read_bytes().split(b"\n")
    assert [json.loads(line) for line in lines[:-1]] == [{"a": 1}, {"b": "x\u2028y"}, 3]


def test_append_tells_where_a_line_starts(tmp_path: Path) -> None:
    lines = LineAppender(tmp_path / "f")
    assert [lines.append(b"abc"), lines.append(b"d", b"e"), lines.append(b"f")] == [0, 4, 8]
    lines.sync()
    lines.close()
    lines.close()
    with pytest.raises(StorageError):
        lines.append(b"after close")


def test_a_torn_last_line_spoils_no_other(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"whole\nto")
    lines = LineAppender(path)
    assert lines.append(b"next") == len(b"whole\nto\n")
    assert path.read_bytes() == b"whole\nto\nnext\n"


def test_a_line_torn_by_a_full_disk_spoils_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "f"
    lines = LineAppender(path)
    write = os.write
    room = [6]

    def write_while_there_is_room(fd: int, data: bytes) -> int:
        if not room[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = write(fd, data[: room[0]])
        room[0] -= written
        return written

    monkeypatch.setattr(os, "write", write_while_there_is_room)
    with pytest.raises(StorageError, match="disk full"):
        lines.append(b"too long a line")
    room[0] = 100
    lines.append(b"fits")
    assert path.read_bytes() == b"too lo\nfits\n"


def test_encode_json_is_compact_utf8() -> None:
    assert encode_json({"a": [1, "é"]}) == '{"a":[1,"é"]}'.encode()


# ---------------------------------------------------------------- locks


def test_a_lock_keeps_others_out_and_says_so(tmp_path: Path) -> None:
    lock = tmp_path / "made" / ".lock"
    with locked(lock):
        with (
            pytest.raises(StorageError, match="held by another process") as caught,
            locked(lock, timeout=0.05),
        ):
            pytest.fail("entered twice")
        assert "Wait" in caught.value.remedy
    with locked(lock, timeout=0):
        pass


def test_a_lock_excludes_threads(tmp_path: Path) -> None:
    inside: list[int] = []
    most: list[int] = []

    def work() -> None:
        for _ in range(5):
            with locked(tmp_path / ".lock"):
                inside.append(1)
                most.append(len(inside))
                time.sleep(0.001)
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(most) == 15
    assert max(most) == 1


def test_a_killed_holder_leaves_no_lock(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path\n"
        "from aios.core.files import locked\n"
        "with locked(Path(sys.argv[1])):\n"
        "    print('ready', flush=True); time.sleep(60)\n"
    )
    kill_at_random(code, tmp_path / ".lock", seed=0)
    with locked(tmp_path / ".lock", timeout=1.0):
        pass


def test_a_lock_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("x")
    with pytest.raises(StorageError, match="cannot lock"), locked(tmp_path / "f" / ".lock"):
        pass


# ---------------------------------------------------------------- published folders


def make_folder(path: Path, **content: str) -> Path:
    path.mkdir()
    for name, text in content.items():
        (path / name).write_text(text)
    return path


def publish(final: Path, **content: str) -> None:
    with atomic_folder(final) as folder:
        for name, text in content.items():
            (folder / name).write_text(text)


def contents(folder: Path) -> dict[str, str]:
    return {p.name: p.read_text() for p in folder.iterdir()}


def test_a_folder_is_published_and_replaces_the_old_one(tmp_path: Path) -> None:
    final = tmp_path / "final"
    publish(final, a="1", b="1")
    assert contents(final) == {"a": "1", "b": "1"}
    with atomic_folder(final) as folder:
        (folder / "a").write_text("2")
        (folder / "dangling").symlink_to("nowhere")
    assert (final / "a").read_text() == "2"
    assert not (final / "b").exists()
    assert sorted(os.listdir(tmp_path)) == [".final.lock", "final"]


def test_an_old_folder_is_put_back_if_the_new_one_cannot_be_renamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    final = make_folder(tmp_path / "final", a="old")
    rename = os.rename

    def rename_unless_new(source: Path, target: Path) -> None:
        if Path(source) == tmp_path / ".final.new":
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        rename(source, target)

    monkeypatch.setattr(os, "rename", rename_unless_new)
    with pytest.raises(StorageError, match="cannot publish"):
        publish(final, a="new")
    assert contents(final) == {"a": "old"}


def test_a_crash_between_the_two_renames_is_recovered(tmp_path: Path) -> None:
    final = tmp_path / "final"
    make_folder(tmp_path / ".final.old", a="old")  # as a kill leaves it
    assert recover(final) is True
    assert contents(final) == {"a": "old"}
    assert recover(final) is False


def test_a_crash_before_the_old_folder_is_removed_keeps_the_new_one(tmp_path: Path) -> None:
    final = make_folder(tmp_path / "final", a="new")
    make_folder(tmp_path / ".final.old", a="old")
    assert recover(final) is False
    assert contents(final) == {"a": "new"}
    assert not (tmp_path / ".final.old").exists()


def test_publishing_recovers_first(tmp_path: Path) -> None:
    final = tmp_path / "final"
    make_folder(tmp_path / ".final.old", a="older")
    publish(final, a="new")
    assert contents(final) == {"a": "new"}
    assert not (tmp_path / ".final.old").exists()
    make_folder(tmp_path / ".final.old", a="older")  # killed after the second rename
    publish(final, a="newest")
    assert contents(final) == {"a": "newest"}
    assert not (tmp_path / ".final.old").exists()


def test_something_else_than_a_folder_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(make_folder(tmp_path / "elsewhere", a="mine"))
    for final in (tmp_path / "file", tmp_path / "link"):
        with pytest.raises(StorageError, match="not a folder"):
            publish(final, a="new")
    assert (tmp_path / "file").read_text() == "mine"
    assert contents(tmp_path / "elsewhere") == {"a": "mine"}


def test_an_atomic_folder_appears_when_it_is_finished(tmp_path: Path) -> None:
    final = tmp_path / "models" / "m"
    with atomic_folder(final) as folder:
        (folder / "a").write_text("1")
        assert not final.exists()
    assert contents(final) == {"a": "1"}

    def build_half() -> None:
        with atomic_folder(final) as folder:
            (folder / "a").write_text("2")
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        build_half()
    assert contents(final) == {"a": "1"}
    assert sorted(os.listdir(final.parent)) == [".m.lock", "m"]


@pytest.mark.slow
def test_a_kill_while_folders_are_published_leaves_a_whole_one(tmp_path: Path) -> None:
    final = tmp_path / "final"
    code = (
        "import itertools, sys; from pathlib import Path\n"
        "from aios.core.folders import atomic_folder\n"
        "print('ready', flush=True)\n"
        "for i in itertools.count():\n"
        "    with atomic_folder(Path(sys.argv[1])) as folder:\n"
        "        for name in 'abc':\n"
        "            (folder / name).write_text(str(i))\n"
    )
    make_folder(final, a="x", b="x", c="x")
    for seed in range(5):
        kill_at_random(code, final, seed=seed)
        recover(final)
        found = contents(final)
        assert sorted(found) == ["a", "b", "c"]
        assert len(set(found.values())) == 1
    with atomic_folder(final) as folder:
        (folder / "a").write_text("last")
    assert sorted(os.listdir(tmp_path)) == [".final.lock", "final"]


# ---------------------------------------------------------------- names and paths


@pytest.mark.parametrize("text", ["a", "Expert-1", "x.y_z", "0", "a" * 128])
def test_usual_ids_are_valid(text: str) -> None:
    assert valid_id(text)
    assert require_id(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".a",
        "-a",
        "_a",
        "a b",
        "a/b",
        "a\\b",
        "a..b",
        "é",
        "a\0",
        "a\n",
        "a" * 129,
        "a.",
        "nul",
        "COM1.txt",
    ],
)
def test_dangerous_ids_are_refused(text: str) -> None:
    assert not valid_id(text)
    with pytest.raises(UsageError, match="not a valid expert id"):
        require_id(text, "expert id")


def test_a_confined_path_is_inside_its_root(tmp_path: Path) -> None:
    assert confined(tmp_path) == tmp_path
    assert confined(tmp_path, "a", "b/c.txt") == tmp_path / "a" / "b" / "c.txt"
    (tmp_path / "inner").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "inner")
    assert confined(tmp_path, "link", "x") == tmp_path / "link" / "x"


@pytest.mark.parametrize(
    "part",
    [
        "",
        ".",
        "..",
        "a/../../b",
        "/etc/passwd",
        "a//b",
        "a\\..\\b",
        "C:x",
        "a\0b",
        "con",
        "a/.",
        "lpt1.txt",
        "tail.",
        "tail ",
        "new\nline",
    ],
)
def test_a_part_that_may_leave_the_root_is_refused(tmp_path: Path, part: str) -> None:
    with pytest.raises(UsageError, match="not a safe path"):
        confined(tmp_path, part)


def test_a_symlink_out_of_the_root_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "out").symlink_to(tmp_path)
    (root / "sibling").symlink_to(tmp_path / "root2")
    for parts in (("out",), ("out", "x"), ("sibling",)):
        with pytest.raises(UsageError, match="leads out of"):
            confined(root, *parts)
