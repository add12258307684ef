"""What was made from files is kept until one of them changes."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from aios.app.kept import KeptByStamp


def test_what_was_read_is_kept_until_the_file_changes(tmp_path: Path) -> None:
    file, reads = tmp_path / "file", []

    def read(path: Path) -> str:
        reads.append(path.name)
        return path.read_text() if path.exists() else "none"

    kept: KeptByStamp[str] = KeptByStamp(2)
    assert [kept.of_file(file, read), kept.of_file(file, read)] == ["none", "none"]
    file.write_text("one")
    assert [kept.of_file(file, read), kept.of_file(file, read)] == ["one", "one"]
    assert reads == ["file", "file"]
    for name in "ab":
        kept.of_file(tmp_path / name, read)
    kept.of_file(file, read)  # pushed out by the two others
    assert reads == ["file", "file", "a", "b", "file"]


def test_a_value_is_made_once_for_a_stamp_by_one_thread() -> None:
    kept: KeptByStamp[int] = KeptByStamp(2)
    made: list[int] = []

    def make() -> int:
        time.sleep(0.02)
        made.append(1)
        return len(made)

    threads = [threading.Thread(target=kept.get, args=("a", 1, make)) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == [1]
    assert kept.get("a", 1, make) == 1
    assert kept.get("a", 2, make) == 2
    for key in ("b", "c"):
        kept.get(key, 1, make)
    assert kept.get("a", 2, make) == 5  # it was forgotten: there is room for two


def test_many_threads_may_ask_at_once(tmp_path: Path) -> None:
    kept: KeptByStamp[str] = KeptByStamp(2)
    wrong: list[str] = []

    def ask(number: int) -> None:
        for step in range(200):
            name = f"f{(number + step) % 5}"
            if kept.of_file(tmp_path / name, lambda path: path.name) != name:
                wrong.append(name)

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert wrong == []
