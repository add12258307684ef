from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from aios.core.seal.cache import KEPT_RUNS, CachedCompletion, SelfEditCache, Share
from aios.core.seal.cache_format import encode_entry
from tests.test_seal.test_cache import BIG, completion, fill, key, put


def test_stats_count_entries_by_strategy_and_model(tmp_path: Path) -> None:
    cache = SelfEditCache(tmp_path, BIG)
    for number, (strategy, model) in enumerate([("a", "x"), ("b", "x"), ("b", "y")]):
        cache.put(key(number), completion(), strategy=strategy, model=model)
    (tmp_path / ("0" * 64 + ".json")).write_text("{")
    (tmp_path / "corrupt").mkdir()
    (tmp_path / "corrupt" / ("0" * 64 + ".json")).write_text("{")
    stats = cache.stats()
    assert stats.entries == 4
    assert stats.bytes == sum(p.stat().st_size for p in tmp_path.glob("*.json"))
    size = cache.path(key(0)).stat().st_size
    assert stats.by_strategy == {"b": Share(2, 2 * size), "a": Share(1, size)}
    assert stats.by_model == {"x": Share(2, 2 * size), "y": Share(1, size)}
    assert list(stats.by_strategy) == ["b", "a"]
    assert (stats.unreadable, stats.set_aside, stats.limit_bytes) == (1, Share(1, 1), BIG)
    assert stats.oldest is not None
    assert stats.newest is not None
    assert stats.oldest <= stats.newest


def test_stats_ignore_files_that_vanish_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, size = fill(tmp_path, 2)
    opened = os.open

    def vanished(path: str, flags: int, *more: Any, **options: Any) -> int:
        if Path(path) == cache.path(key(0)):
            raise FileNotFoundError
        return opened(path, flags, *more, **options)

    monkeypatch.setattr(os, "open", vanished)
    stats = cache.stats()
    assert (stats.entries, stats.bytes, stats.unreadable) == (1, size, 0)


@pytest.mark.slow
def test_stats_of_many_entries_add_up(tmp_path: Path) -> None:
    count = 1203  # more than one thread reads at a time
    for number in range(count):
        found = CachedCompletion(
            completion("x" * (number % 7) * 1000), "ab"[number % 2], "m", f"{number:04}"
        )
        name = f"{number:064x}"
        (tmp_path / f"{name}.json").write_bytes(encode_entry(name, found))
    stats = SelfEditCache(tmp_path, BIG).stats()
    assert (stats.entries, stats.unreadable) == (count, 0)
    assert {name: share.entries for name, share in stats.by_strategy.items()} == {
        "a": 602,
        "b": 601,
    }
    assert sum(share.bytes for share in stats.by_strategy.values()) == stats.bytes
    assert stats.bytes == sum(path.stat().st_size for path in tmp_path.iterdir())
    assert (stats.oldest, stats.newest) == ("0000", "1202")


def test_stats_read_the_head_whatever_the_names_hold(tmp_path: Path) -> None:
    cache = SelfEditCache(tmp_path, BIG)
    strategy, model = 'a,"completion":{"', "Zoë\ud800"
    assert cache.put(key(), completion("y" * 100_000), strategy=strategy, model=model)
    stats = cache.stats()
    assert (list(stats.by_strategy), list(stats.by_model)) == ([strategy], [model])


def test_hits_and_misses_of_the_last_runs_are_kept(tmp_path: Path) -> None:
    with SelfEditCache(tmp_path, BIG) as cache:
        cache.get(key(0))
        put(cache, 0)
    with SelfEditCache(tmp_path, BIG) as cache:
        for _ in range(3):
            cache.get(key(0))
        stats = cache.stats()
        assert (stats.hits, stats.misses, stats.hit_rate) == (3, 1, 0.75)
    cache.close()  # nothing new: nothing recorded
    stats = SelfEditCache(tmp_path, BIG).stats()
    assert (stats.hits, stats.misses) == (3, 1)
    assert [(run.hits, run.misses, run.hit_rate) for run in stats.runs] == [(0, 1, 0), (3, 0, 1)]
    assert stats.runs[0].time <= stats.runs[1].time
    assert len((tmp_path / "usage.jsonl").read_text().splitlines()) == 2


def test_the_usage_file_is_bounded_and_spoiled_lines_are_skipped(tmp_path: Path) -> None:
    lines = ['{"hits": 1, "misses": 1, "pad": "' + "x" * 1000 + '"}'] * 100
    (tmp_path / "usage.jsonl").write_text("\n".join([*lines, '{"hits": "?"', "[]", ""]))
    with SelfEditCache(tmp_path, BIG) as cache:
        cache.get(key())
    kept = (tmp_path / "usage.jsonl").read_text().splitlines()
    assert len(kept) == KEPT_RUNS
    stats = SelfEditCache(tmp_path, BIG).stats()
    assert (stats.hits, stats.misses) == (KEPT_RUNS - 3, KEPT_RUNS - 3 + 1)


@pytest.mark.parametrize("call", ["write", "stat"])
def test_usage_that_cannot_be_recorded_is_told_and_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    told: list[str] = []
    cache = SelfEditCache(tmp_path, BIG, on_problem=told.append)
    cache.get(key())

    def refuse(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if call == "write":
        monkeypatch.setattr(os, "write", refuse)
    else:
        monkeypatch.setattr(os.path, "getsize", refuse)
    cache.close()
    assert len(told) == 1
    assert "disk full" in told[0]


def test_usage_is_not_written_through_a_symlink(tmp_path: Path) -> None:
    told: list[str] = []
    (tmp_path / "mine").write_text("mine\n")
    folder = tmp_path / "cache"
    folder.mkdir()
    (folder / "usage.jsonl").symlink_to(tmp_path / "mine")
    with SelfEditCache(folder, BIG, on_problem=told.append) as cache:
        cache.get(key())
    assert (tmp_path / "mine").read_text() == "mine\n"
    assert "it is a symlink" in told[0]


def test_each_run_is_kept_with_its_time(tmp_path: Path) -> None:
    record = {"time": "2026-01-02T03:04:05.678+00:00", "hits": 3, "misses": 1}
    (tmp_path / "usage.jsonl").write_text(json.dumps(record) + "\n")
    (run,) = SelfEditCache(tmp_path, BIG).stats().runs
    assert (run.time, run.hits, run.misses) == (record["time"], 3, 1)
    (tmp_path / "usage.jsonl").write_text('{"hits": 3, "misses": 1}\n')
    assert SelfEditCache(tmp_path, BIG).stats().runs[0].time == ""
