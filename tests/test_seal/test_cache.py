from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aios.core.errors import StorageError
from aios.core.seal.cache import SelfEditCache, cache_key
from aios.core.seal.cache_format import _digest
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


def test_sampling_settings_that_nothing_depends_on_are_no_part_of_the_key() -> None:
    def keyed(sampling: SamplingParams | None) -> str:
        return cache_key(
            model_digest="m",
            adapter_digest="",
            prompt_text="p",
            sampling=sampling,
            seed=1,
            candidate=0,
            parser_version=1,
            strategy="cloze",
        )

    assert keyed(None) == keyed(None)
    assert keyed(None) not in {keyed(SamplingParams()), keyed(SamplingParams(temperature=0.5))}


def test_the_key_of_a_sampled_completion_stays_what_it_was() -> None:
    assert key() == "7833f5809c47e644641eb00b47486a9cec9d136c80d049d462f623c32cfc2af4"


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


def test_line_losses_come_back_exactly(tmp_path: Path) -> None:
    wrote = Completion("One.\nTwo.", 6, "stop", 7, (0.1 + 0.2, 1e-17))
    cache = SelfEditCache(tmp_path, BIG)
    assert cache.put(key(), wrote, strategy="rewrite", model="tiny")
    found = cache.get(key())
    assert found is not None
    assert found.completion == wrote
    assert type(found.completion.line_losses) is tuple


def resealed(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Changes an entry and gives it a checksum that fits."""
    record = json.loads(path.read_bytes())
    del record["checksum"]
    change(record)
    path.write_text(json.dumps({**record, "checksum": _digest(record)}))


def test_an_entry_without_line_losses_is_read(tmp_path: Path) -> None:
    cache = SelfEditCache(tmp_path, BIG)
    put(cache)
    resealed(cache.path(key()), lambda record: record["completion"].pop("line_losses"))
    found = cache.get(key())
    assert found is not None
    assert found.completion == completion()


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_no_finite_number_is_told_and_not_cached(
    tmp_path: Path, loss: float
) -> None:
    told: list[str] = []
    cache = SelfEditCache(tmp_path, BIG, on_problem=told.append)
    wrote = Completion("One.", 2, "stop", 7, (loss,))
    assert cache.put(key(), wrote, strategy="rewrite", model="tiny") is False
    assert len(told) == 1
    assert os.listdir(tmp_path) == []


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


@pytest.mark.parametrize(
    ("where", "name", "value"),
    [
        ("completion", "text", None),
        ("completion", "tokens", "3"),
        ("completion", "seed", True),
        ("completion", "finish_reason", "deadline"),
        ("completion", "line_losses", ["0.5"]),
        ("completion", "line_losses", 0.5),
        ("", "completion", []),
        ("", "strategy", 1),
    ],
)
def test_an_entry_with_wrong_fields_but_a_good_checksum_is_corrupt(
    tmp_path: Path, where: str, name: str, value: object
) -> None:
    reasons: list[str] = []
    cache = SelfEditCache(tmp_path, BIG, on_corrupt=lambda path, reason: reasons.append(reason))
    put(cache)
    resealed(
        cache.path(key()),
        lambda record: (record[where] if where else record).__setitem__(name, value),
    )
    assert cache.get(key()) is None
    assert "fields are missing or wrong" in reasons[0]


def test_an_entry_of_another_version_is_a_miss_and_replaced(tmp_path: Path) -> None:
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


def test_a_symlink_is_neither_read_nor_written_through(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere.json"
    cache = SelfEditCache(tmp_path / "cache", BIG)
    put(cache)
    cache.path(key()).rename(elsewhere)
    before = elsewhere.read_bytes()
    cache.path(key()).symlink_to(elsewhere)
    assert cache.get(key()) is None
    assert cache.stats().entries == 0
    assert put(cache, text="Another fact.")
    assert cache.path(key()).is_file()
    assert not cache.path(key()).is_symlink()
    assert elsewhere.read_bytes() == before


def test_a_pipe_in_an_entrys_place_blocks_nothing(tmp_path: Path) -> None:
    told: list[str] = []
    cache = SelfEditCache(tmp_path, BIG, on_problem=told.append)
    os.mkfifo(cache.path(key()))
    assert cache.get(key()) is None
    assert put(cache) is False
    assert len(told) == 1


def test_an_entry_is_a_hit_also_where_its_use_cannot_be_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    cache = SelfEditCache(tmp_path, BIG, on_problem=told.append)
    put(cache)

    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "utime", refuse)
    assert cache.get(key()) is not None
    assert told == []


# ---------------------------------------------------------------- size limit


def test_pruning_removes_the_least_recently_used(tmp_path: Path) -> None:
    cache, size = fill(tmp_path, 5)
    assert cache.get(key(0)) is not None  # now the most recently used
    report = cache.prune(2 * size)
    assert (report.removed, report.bytes_freed) == (3, 3 * size)
    assert [n for n in range(5) if cache.path(key(n)).exists()] == [0, 4]
    assert cache.prune(2 * size).removed == 0


def test_pruning_removes_what_was_not_used_for_long(tmp_path: Path) -> None:
    cache, size = fill(tmp_path, 3)
    assert cache.get(key(1)) is not None
    report = cache.prune(older_than=86_400)
    assert (report.removed, report.left, report.bytes_left) == (2, 1, size)
    assert cache.path(key(1)).exists()


def test_age_and_size_both_limit_what_stays(tmp_path: Path) -> None:
    cache, size = fill(tmp_path, 4)
    for number in (2, 3):
        assert cache.get(key(number)) is not None
    assert cache.prune(size, older_than=86_400, dry_run=True).removed == 3
    assert cache.prune(3 * size, older_than=86_400, dry_run=True).removed == 2
    assert cache.prune(3 * size, dry_run=True).removed == 1
    assert cache.prune(dry_run=True).removed == 0


def test_a_dry_run_removes_nothing_and_says_what_would_go(tmp_path: Path) -> None:
    cache, _ = fill(tmp_path, 3)
    before = sorted(os.listdir(tmp_path))
    planned = cache.prune(0, dry_run=True)
    assert cache.clear(dry_run=True) == planned
    assert sorted(os.listdir(tmp_path)) == before
    assert cache.prune(0) == planned


def test_pruning_removes_what_killed_writers_left(tmp_path: Path) -> None:
    cache, _ = fill(tmp_path, 1)
    old, young = (tmp_path / f".{key()}.json.{n * 16}.tmp" for n in "01")
    for path in (old, young):
        path.write_text("{")
    os.utime(old, (0, 0))
    assert cache.stats().unfinished.entries == 2
    assert cache.prune().temporaries == 1
    assert not old.exists()
    assert young.exists()  # its writer may be at work


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


@pytest.fixture
def listings(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The folders listed so far."""
    listed: list[object] = []
    scandir = os.scandir

    def counting(path: str) -> object:
        listed.append(path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", counting)
    return listed


def test_a_put_does_not_list_the_folder_each_time(tmp_path: Path, listings: list[object]) -> None:
    cache = SelfEditCache(tmp_path, BIG)
    for number in range(20):
        put(cache, number)
    assert len(listings) <= 2


@pytest.mark.slow
def test_a_full_cache_does_not_list_the_folder_at_each_put(
    tmp_path: Path, listings: list[object]
) -> None:
    _, size = fill(tmp_path, 1)
    cache = SelfEditCache(tmp_path, 100 * size)
    puts = 300
    for number in range(puts):
        put(cache, number)
        there = sum(os.stat(tmp_path / name).st_size for name in os.listdir(tmp_path))
        assert there <= 100 * size
    assert len(listings) <= 2 * puts / 4


@pytest.mark.slow
def test_what_cannot_be_removed_does_not_slow_down_every_put(
    tmp_path: Path, listings: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, size = fill(tmp_path, 200)
    cache = SelfEditCache(tmp_path, 100 * size)

    def refuse(*_: object) -> None:
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "unlink", refuse)
    listings.clear()
    for number in range(20):
        assert put(cache, number)
    assert len(listings) <= 2 * 6


def test_a_clock_that_goes_backwards_loses_nothing_but_order(tmp_path: Path) -> None:
    _, size = fill(tmp_path, 5)
    for path in tmp_path.glob("*.json"):
        os.utime(path, (4e9, 4e9))  # the others were used in what is now the future
    cache = SelfEditCache(tmp_path, 4 * size)
    assert put(cache, 9)
    assert cache.stats().bytes <= 4 * size
    assert cache.prune(older_than=0).removed <= 1
    assert put(cache, 9)
    assert cache.get(key(9)) is not None


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
    assert report.set_aside_left == 1


def test_clearing_removes_what_was_set_aside_if_asked(tmp_path: Path) -> None:
    cache, size = fill(tmp_path, 2)
    cache.path(key(0)).write_text("{")
    assert cache.get(key(0)) is None
    mine = tmp_path / "corrupt" / "notes.txt"
    mine.write_text("mine")
    planned = cache.clear(set_aside=True, dry_run=True)
    assert cache.clear(set_aside=True) == planned
    assert (planned.removed, planned.set_aside, planned.bytes_freed) == (1, 1, size + 1)
    assert os.listdir(tmp_path / "corrupt") == ["notes.txt"]
    mine.unlink()
    cache.clear(set_aside=True)
    assert not (tmp_path / "corrupt").exists()


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


def test_after_making_much_room_it_is_not_looked_for_again_at_once(
    tmp_path: Path, listings: list[object]
) -> None:
    _, size = fill(tmp_path / "probe", 1)
    cache = SelfEditCache(tmp_path / "c", 100 * size)
    cache.folder.mkdir()
    for number in range(3):  # of another process, with a larger limit
        cache.path(key(100 + number)).write_bytes(b"x" * cache.max_bytes)
        os.utime(cache.path(key(100 + number)), (1000, 1000))
    assert put(cache, 0)
    assert os.listdir(cache.folder) == [f"{key(0)}.json"]
    listings.clear()
    for number in range(1, 5):  # a twentieth of the limit is 5 entries
        assert put(cache, number)
    assert listings == []


def test_after_clearing_with_what_was_set_aside_nothing_is_left_there(tmp_path: Path) -> None:
    cache, _ = fill(tmp_path, 1)
    cache.path(key(0)).write_text("{")
    assert cache.get(key(0)) is None
    assert cache.clear().set_aside_left == 1
    assert cache.clear(set_aside=True).set_aside_left == 0


def test_pruning_takes_seconds_and_bytes_as_they_are(tmp_path: Path) -> None:
    cache, size = fill(tmp_path, 3)
    now = time.time()
    for number, age in enumerate((120, 50, 10)):
        os.utime(cache.path(key(number)), (now - age, now - age))
    assert cache.prune(older_than=130, dry_run=True).removed == 0
    assert cache.prune(older_than=30, dry_run=True).removed == 2
    assert cache.prune(3 * size, dry_run=True).removed == 0
    assert cache.prune(3 * size - 1, dry_run=True).removed == 1
