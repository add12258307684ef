"""Nothing that happens to the cache's folder loses an entry, stops a run or is kept quiet.

What is done to it is in ``cache_harness.py``, which runs as a program, as it forks.
"""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from aios.backends.scripted import ScriptedModel
from aios.core.seal.cache import SelfEditCache
from aios.core.seal.self_edit_generator import SelfEditGenerator
from aios.core.types import Passage

HARNESS = Path(__file__).with_name("cache_harness.py")
WRITES_ENTRIES = {"put first", "put again", "put and evict"}


def harness(*arguments: object) -> dict[str, int]:
    line = [sys.executable, str(HARNESS), *map(str, arguments)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    counts: dict[str, int] = json.loads(done.stdout)
    return counts


@pytest.mark.slow
def test_a_kill_at_any_call_leaves_a_working_cache(tmp_path: Path) -> None:
    kills = harness("kill", tmp_path)
    assert {*kills} >= {*WRITES_ENTRIES, "hit", "corrupt", "prune", "clear", "shorten usage"}
    assert min(kills[name] for name in WRITES_ENTRIES) >= 8  # open, write twice, sync, rename, …


@pytest.mark.slow
def test_a_full_disk_at_any_call_is_told_once_and_leaves_nothing_half_written(
    tmp_path: Path,
) -> None:
    failures = harness("fail", tmp_path, errno.ENOSPC)
    assert {*failures} >= {*WRITES_ENTRIES, "corrupt", "usage", "shorten usage"}
    assert min(failures[name] for name in WRITES_ENTRIES) >= 6


@pytest.mark.slow
def test_a_disk_that_becomes_read_only_is_told_once(tmp_path: Path) -> None:
    failures = harness("fail-on", tmp_path, errno.EROFS)
    assert {*failures} >= {*WRITES_ENTRIES, "hit", "corrupt", "prune", "clear", "usage"}


@pytest.mark.slow
def test_processes_that_write_read_prune_and_clear_do_not_disturb_each_other(
    tmp_path: Path,
) -> None:
    did = harness("share", tmp_path)
    assert min(did.values()) > 0, did


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_generation_goes_on_without_a_cache_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    text = "The mill of Orr was built in 1820 by Ada Finch. It has four sails and grinds oats."
    passages = [Passage.make(f"{text} It stands on hill {n}.") for n in range(3)]

    def edits(cache: SelfEditCache | None) -> list[str]:
        generator = SelfEditGenerator(ScriptedModel(), strategy="rewrite", cache=cache)
        return [e.completion for r in generator.generate(passages) for e in r.kept]

    def refuse(fd: int) -> None:
        raise OSError(code, os.strerror(code))

    expected = edits(None)
    told: list[str] = []
    monkeypatch.setattr(os, "fsync", refuse)
    with SelfEditCache(tmp_path / "cache", 10**9, on_problem=told.append) as cache:
        assert edits(cache) == expected
    assert expected
    assert len(told) == 1
    assert not list((tmp_path / "cache").glob("*.json"))


def test_generation_goes_on_where_a_file_is_in_the_folders_place(tmp_path: Path) -> None:
    told: list[str] = []
    (tmp_path / "cache").write_text("mine")
    with SelfEditCache(tmp_path / "cache", 10**9, on_problem=told.append) as cache:
        generator = SelfEditGenerator(ScriptedModel(), strategy="rewrite", cache=cache)
        (result,) = generator.generate([Passage.make("The mill of Orr was built in 1820.")])
    assert result.generated == 5
    assert len(told) == 1
    assert (tmp_path / "cache").read_text() == "mine"
