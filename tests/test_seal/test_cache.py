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

from aios.core.errors import StorageError
from aios.core.seal.cache import KEPT_RUNS, SelfEditCache, cache_key
from aios.core.types import Completion, SamplingParams

BIG = 10**9


def key(number: int = 0) -> str:
    return cache_key(
        model_digest="m",
        adapter_digest="",
        prompt_text="Write.",
        sampling=SamplingParams(),
        seed=7,
        candidate=number,
        parser_version=1,
        strategy="rewrite",
    )


def completion(text: str = "A fact.", finish: str = "stop") -> Completion:
    return Completion(text=text, tokens=3, finish_reason=finish, seed=7)  # type: ignore[arg-type]


def put(cache: SelfEditCache, number: int = 0, text: str = "A fact.") -> bool:
    return cache.put(key(number), completion(text), strategy="rewrite", model="tiny")


def fill(folder: Path, count: int) -> tuple[SelfEditCache, int]:
    """A cache of entries 0, 1, … used in that order, and the size of one."""
    cache = SelfEditCache(folder, BIG)
    for number in range(count):
        assert put(cache, number)
        os.utime(cache.path(key(number)), (1000 + number, 1000 + number))
    return cache, cache.path(key(0)).stat().st_size


# ---------------------------------------------------------------- the key


def test_the_key_changes_with_everything_that_determines_the_text() -> None:
    base: dict[str, object] = {
        "model_digest": "m",
        "adapter_digest": "a",
        "prompt_text": "p",
        "sampling": SamplingParams(),
        "seed": 1,
        "candidate": 2,
        "parser_version": "3",
        "strategy": "s",
    }
    changes: list[dict[str, object]] = [
        {"model_digest": "m2"},
        {"adapter_digest": "a2"},
        {"model_digest": "a", "adapter_digest": "m"},
        {"prompt_text": "p "},
        {"sampling": SamplingParams(temperature=0.5)},
        {"sampling": SamplingParams(top_p=0.5)},
        {"sampling": SamplingParams(max_new_tokens=5)},
        {"sampling": SamplingParams(stop=("\n",))},
        {"seed": 2, "candidate": 1},
        {"candidate": 3},
        {"parser_version": "4"},
        {"strategy": "s2"},
    ]
    keys = [cache_key(**{**base, **change}) for change in [{}, *changes]]  # type: ignore[arg-type]
    assert len(set(keys)) == len(keys)
    assert all(len(k) == 64 and set(k) <= set("0123456789abcdef") for k in keys)


def test_the_key_does_not_depend_on_how_a_number_is_written() -> None:
    ways: list[tuple[SamplingParams, str | int]] = [
        (SamplingParams(1, 1), 2),
        (SamplingParams(1.0, 1.0), "2"),
    ]
    one, two = (
        cache_key(
            model_digest="m",
            adapter_digest="",
            prompt_text="p\ud800",
            sampling=sampling,
            seed=1,
            candidate=0,
            parser_version=parser,
            strategy="s",
        )
        for sampling, parser in ways
    )
    assert one == two


# ---------------------------------------------------------------- get and put


def test_a_completion_comes_back_as_it_was(tmp_path: Path) -> None:
    cache = SelfEditCache(tmp_path / "made" / "here", BIG)
    assert cache.get(key()) is None
    wrote = completion("Zoë said:\u2028“no”\n\t\ud800", "length")
    assert cache.put(key(), wrote, strategy="self-qa", model="tiny+x")
    found = SelfEditCache(tmp_path / "made" / "here", BIG).get(key())
    assert found is not None
    assert found.completion == wrote
    assert (found.strategy, found.model) == ("self-qa", "tiny+x")
    assert found.created.endswith("+00:00")


def test_an_entry_is_one_json_file_named_by_its_key(tmp_path: Path) -> None:
    put(SelfEditCache(tmp_path, BIG))
    assert os.listdir(tmp_path) == [f"{key()}.json"]
    record = json.loads((tmp_path / f"{key()}.json").read_text())
    assert record["key"] == key()
    assert record["completion"]["text"] == "A fact."
    assert len(record["checksum"]) == 64


def test_what_a_deadline_cut_off_is_not_cached(tmp_path: Path) -> None:
    cache = SelfEditCache(tmp_path, BIG)
    assert not cache.put(key(), completion(finish="deadline"), strategy="s", model="m")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("bad", ["", "abc", "../" * 21 + "a", "A" * 64, "0" * 64 + "\n"])
def test_what_is_no_key_is_refused(tmp_path: Path, bad: str) -> None:
    with pytest.raises(ValueError, match="not a cache key"):
        SelfEditCache(tmp_path, BIG).get(bad)


def damage(data: bytes, how: str) -> bytes:
    record = json.loads(data)
    if how == "text":
        record["completion"]["text"] = "Another fact."
    elif how == "list":
        record = [record]
    elif how == "nan":
        return data.replace(b'"seed":7', b'"seed":NaN')
    elif how == "half":
        return data[: len(data) // 2]
    elif how == "empty":
        return b""
    elif how == "zeros":
        return bytes(len(data))
    elif how == "large":
        return b" " * (16 * 2**20 + 1)
    return json.dumps(record).encode()


@pytest.mark.parametrize("how", ["text", "list", "nan", "half", "empty", "zeros", "large"])
def test_a_corrupt_entry_is_set_aside_reported_and_made_again(tmp_path: Path, how: str) -> None:
    reports: list[tuple[Path, str]] = []
    cache = SelfEditCache(tmp_path, BIG, on_corrupt=lambda *report: reports.append(report))
    put(cache)
    path = cache.path(key())
    path.write_bytes(damage(path.read_bytes(), how))
    assert cache.get(key()) is None
    assert [report[0] for report in reports] == [tmp_path / "corrupt" / path.name]
    assert reports[0][0].exists()
    assert reports[0][1]
    assert not path.exists()
    assert put(cache)
    assert cache.get(key()) is not None
    assert len(reports) == 1


def test_an_entry_copied_to_another_key_is_corrupt(tmp_path: Path) -> None:
    reasons: list[str] = []
    cache = SelfEditCache(tmp_path, BIG, on_corrupt=lambda path, reason: reasons.append(reason))
    put(cache, 0)
    cache.path(key(1)).write_bytes(cache.path(key(0)).read_bytes())
    assert cache.get(key(1)) is None
    assert reasons == ["made for another key"]


def test_an_entry_with_wrong_fields_but_a_good_checksum_is_corrupt(tmp_path: Path) -> None:
    from aios.core.seal.cache_format import _digest

    reasons: list[str] = []
    cache = SelfEditCache(tmp_path, BIG, on_corrupt=lambda path, reason: reasons.append(reason))
    entry = {"version": 1, "key": key(), "completion": {"words": 3}}
    cache.path(key()).write_text(json.dumps({**entry, "checksum": _digest(entry)}))
    assert cache.get(key()) is None
    assert "fields are missing or wrong" in reasons[0]


def test_an_entry_of_another_version_is_a_miss_and_replaced(tmp_path: Path) -> None:
    from aios.core.seal.cache_format import _digest

    reports: list[object] = []
    cache = SelfEditCache(tmp_path, BIG, on_corrupt=lambda *report: reports.append(report))
    entry = {"version": 2, "key": key()}
    cache.path(key()).write_text(json.dumps({**entry, "checksum": _digest(entry)}))
    assert cache.get(key()) is None
    assert reports == []
    assert put(cache)
    assert cache.get(key()) is not None


def test_a_corrupt_entry_that_cannot_be_moved_is_still_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reports: list[tuple[Path, str]] = []
    cache = SelfEditCache(tmp_path, BIG, on_corrupt=lambda *report: reports.append(report))
    cache.path(key()).write_text("{")

    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "replace", refuse)
    assert cache.get(key()) is None
    assert reports[0][0] == cache.path(key())


def test_a_corrupt_entry_that_another_process_set_aside_is_not_reported_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reports: list[object] = []
    cache = SelfEditCache(tmp_path, BIG, on_corrupt=lambda *report: reports.append(report))
    cache.path(key()).write_text("{")

    def gone(*_: object) -> None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))

    monkeypatch.setattr(os, "replace", gone)
    assert cache.get(key()) is None
    assert reports == []


def test_corruption_without_a_callback_is_only_a_miss(tmp_path: Path) -> None:
    cache = SelfEditCache(tmp_path, BIG)
    cache.path(key()).write_text("{")
    assert cache.get(key()) is None
    assert (tmp_path / "corrupt" / f"{key()}.json").exists()


@pytest.mark.parametrize(
    ("code", "words"), [(errno.ENOSPC, "disk full"), (errno.EROFS, "read-only disk")]
)
def test_a_cache_that_cannot_be_written_says_so_once_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, words: str
) -> None:
    told: list[str] = []
    cache = SelfEditCache(tmp_path, BIG, on_problem=told.append)
    put(cache, 0)
    with monkeypatch.context() as patch:

        def refuse(fd: int) -> None:
            raise OSError(code, os.strerror(code))

        patch.setattr(os, "fsync", refuse)
        assert put(cache, 1) is False
        assert put(cache, 2) is False
        assert cache.get(key(0)) is not None
    assert len(told) == 1
    assert words in told[0]
    assert put(cache, 1) is True
    assert sorted(os.listdir(tmp_path)) == sorted(f"{key(n)}.json" for n in (0, 1))


def test_a_file_where_the_folder_should_be_is_told(tmp_path: Path) -> None:
    told: list[str] = []
    (tmp_path / "f").write_text("x")
    assert put(SelfEditCache(tmp_path / "f", BIG, on_problem=told.append)) is False
    assert "a file is where a folder should be" in told[0]


def test_a_cache_that_cannot_be_read_says_so_once_and_misses(tmp_path: Path) -> None:
    told: list[str] = []
    cache = SelfEditCache(tmp_path, BIG, on_problem=told.append)
    cache.path(key(0)).mkdir()
    cache.path(key(1)).mkdir()
    assert cache.get(key(0)) is None
    assert cache.get(key(1)) is None
    assert len(told) == 1


# ---------------------------------------------------------------- size limit


def test_pruning_removes_the_least_recently_used(tmp_path: Path) -> None:
    cache, size = fill(tmp_path, 5)
    assert cache.get(key(0)) is not None  # now the most recently used
    report = cache.prune(2 * size)
    assert (report.removed, report.bytes_freed) == (3, 3 * size)
    assert [n for n in range(5) if cache.path(key(n)).exists()] == [0, 4]
    assert cache.prune(2 * size).removed == 0


def test_the_cache_stays_within_its_limit(tmp_path: Path) -> None:
    _, size = fill(tmp_path / "probe", 1)
    cache = SelfEditCache(tmp_path / "c", 10 * size)
    for number in range(40):
        assert put(cache, number)
        os.utime(cache.path(key(number)), (1000 + number, 1000 + number))
        assert cache.stats().bytes <= 10 * size
    assert cache.stats().entries >= 9
    assert cache.path(key(39)).exists()
    assert not cache.path(key(0)).exists()


def test_what_another_process_wrote_counts_towards_the_limit(tmp_path: Path) -> None:
    _, size = fill(tmp_path, 30)
    cache = SelfEditCache(tmp_path, 20 * size)
    put(cache, 30)
    assert cache.stats().bytes <= 20 * size


def test_a_put_does_not_list_the_folder_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed: list[object] = []
    scandir = os.scandir

    def counting(path: str) -> object:
        listed.append(path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", counting)
    cache = SelfEditCache(tmp_path, BIG)
    for number in range(20):
        put(cache, number)
    assert len(listed) <= 2


def test_an_entry_larger_than_the_limit_is_not_cached(tmp_path: Path) -> None:
    cache = SelfEditCache(tmp_path, 1000)
    assert put(cache, 0)
    assert put(cache, 1, "x" * 1000) is False
    assert put(SelfEditCache(tmp_path, 0), 2) is False
    assert os.listdir(tmp_path) == [f"{key(0)}.json"]


def test_a_problem_while_pruning_does_not_lose_the_entry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, size = fill(tmp_path, 3)
    told: list[str] = []
    cache = SelfEditCache(tmp_path, 2 * size, on_problem=told.append)

    def refuse(*_: object) -> None:
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "unlink", refuse)
    assert put(cache, 9) is True
    assert len(told) == 1
    assert "cannot remove" in told[0]
    with pytest.raises(StorageError, match="cannot remove"):
        cache.clear()


def test_only_the_caches_own_files_are_removed(tmp_path: Path) -> None:
    cache, _ = fill(tmp_path, 2)
    others = ["notes.json", "0" * 63 + ".json", "G" * 64 + ".json", "0" * 64 + ".json.bak"]
    for name in others:
        (tmp_path / name).write_text("mine")
    (tmp_path / "corrupt").mkdir()
    (tmp_path / "corrupt" / ("1" * 64 + ".json")).write_text("{")
    (tmp_path / ("2" * 64 + ".json")).mkdir()
    (tmp_path / ("3" * 64 + ".json")).symlink_to(tmp_path / "notes.json")
    before = set(os.listdir(tmp_path)) - {f"{key(n)}.json" for n in range(2)}
    report = cache.clear()
    assert report.removed == 2
    assert report.bytes_freed > 0
    assert set(os.listdir(tmp_path)) == before
    assert len(os.listdir(tmp_path / "corrupt")) == 1


def test_files_that_vanish_meanwhile_are_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, size = fill(tmp_path, 3)
    unlink = os.unlink

    def taken_first(path: Path) -> None:
        if Path(path) == cache.path(key(0)):
            unlink(path)
        unlink(path)

    monkeypatch.setattr(os, "unlink", taken_first)
    report = cache.prune(0)
    assert (report.removed, report.bytes_freed) == (2, 2 * size)


def test_a_folder_that_does_not_exist_is_an_empty_cache(tmp_path: Path) -> None:
    cache = SelfEditCache(tmp_path / "none", BIG)
    assert cache.clear().removed == 0
    stats = cache.stats()
    assert (stats.entries, stats.bytes, stats.oldest, stats.hit_rate) == (0, 0, None, None)
    cache.get(key())
    cache.close()
    assert not (tmp_path / "none").exists()


def test_a_folder_that_cannot_be_listed_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("x")
    with pytest.raises(StorageError, match="cannot list"):
        SelfEditCache(tmp_path / "f", BIG).stats()


# ---------------------------------------------------------------- stats


def test_stats_count_entries_by_strategy_and_model(tmp_path: Path) -> None:
    cache = SelfEditCache(tmp_path, BIG)
    for number, (strategy, model) in enumerate([("a", "x"), ("b", "x"), ("b", "y")]):
        cache.put(key(number), completion(), strategy=strategy, model=model)
    (tmp_path / ("0" * 64 + ".json")).write_text("{")
    (tmp_path / "corrupt").mkdir()
    (tmp_path / "corrupt" / "c").write_text("{")
    stats = cache.stats()
    assert stats.entries == 4
    assert stats.bytes == sum(p.stat().st_size for p in tmp_path.glob("*.json"))
    assert stats.by_strategy == {"b": 2, "a": 1}
    assert stats.by_model == {"x": 2, "y": 1}
    assert (stats.unreadable, stats.set_aside) == (1, 1)
    assert stats.oldest is not None
    assert stats.newest is not None
    assert stats.oldest <= stats.newest


def test_stats_ignore_files_that_vanish_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, _ = fill(tmp_path, 2)
    read_bytes = Path.read_bytes

    def vanished(path: Path) -> bytes:
        if path == cache.path(key(0)):
            raise FileNotFoundError
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", vanished)
    assert cache.stats().entries == 1


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


# ---------------------------------------------------------------- several processes, kills

_WRITER = """
import itertools, sys
from pathlib import Path
from aios.core.seal.cache import SelfEditCache, cache_key
from aios.core.types import Completion, SamplingParams

folder, limit, first, count, distinct, size = Path(sys.argv[1]), *map(int, sys.argv[2:])

def fail(*problem):
    sys.exit(f"problem: {problem}")

cache = SelfEditCache(folder, limit, on_corrupt=fail, on_problem=fail)
print("ready", flush=True)
for i in range(count) if count else itertools.count():
    number = (first + i) % distinct
    key = cache_key(model_digest="m", adapter_digest="", prompt_text="Write.",
                    sampling=SamplingParams(), seed=7, candidate=number, parser_version=1,
                    strategy="rewrite")
    text = f"{number} " * size
    found = cache.get(key)
    if found is not None and found.completion.text != text:
        fail(key, "wrong text")
    cache.put(key, Completion(text, 3, "stop", 7), strategy="rewrite", model="tiny")
cache.close()
"""


def writer(folder: Path, *numbers: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", _WRITER, str(folder), *map(str, numbers)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_two_processes_share_a_cache_that_is_always_pruned(tmp_path: Path) -> None:
    processes = [writer(tmp_path, 8000, first, 60, 30, 50) for first in (0, 15)]
    for process in processes:
        _, errors = process.communicate(timeout=30)
        assert process.returncode == 0, errors.decode()
    cache = SelfEditCache(tmp_path, 8000)
    stats = cache.stats()
    assert 0 < stats.bytes <= 8000
    assert stats.unreadable == stats.set_aside == 0
    assert stats.hits + stats.misses == 120
    assert not [n for n in os.listdir(tmp_path) if n.endswith(".tmp")]


def test_a_kill_during_puts_leaves_whole_entries(tmp_path: Path) -> None:
    corrupt: list[object] = []
    for seed in range(5):
        with writer(tmp_path, BIG, 0, 0, 5, 20_000) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            time.sleep(random.Random(seed).uniform(0.0, 0.05))
            process.kill()
        cache = SelfEditCache(tmp_path, BIG, on_corrupt=lambda *report: corrupt.append(report))
        for number in range(5):
            found = cache.get(key(number))
            assert found is None or found.completion.text == f"{number} " * 20_000
    assert corrupt == []
    assert SelfEditCache(tmp_path, BIG).stats().entries > 0
    assert put(SelfEditCache(tmp_path, BIG), 99)


def test_temporaries_of_killed_processes_are_cleaned_up(tmp_path: Path) -> None:
    left = tmp_path / f".{key()}.json.0123456789abcdef.tmp"
    left.write_text("{")
    os.utime(left, (0, 0))
    put(SelfEditCache(tmp_path, BIG))
    assert not left.exists()
