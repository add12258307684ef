from __future__ import annotations

import os
import resource
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from aios.core.errors import StorageError, UsageError
from aios.storage import activity_schema
from aios.storage.activity import FILE, ActivityStore
from aios.storage.activity_records import MAX_TEXT, AdaptationRecord


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


def opened(folder: Path, *, store_text: bool = False) -> ActivityStore:
    return ActivityStore(folder / FILE, store_text=store_text, clock=Clock())


def adaptation(session: str, *, started: float = 1.0, kept: bool = True) -> AdaptationRecord:
    losses = (2.0, 1.5, 3.0, 3.01, 2.5, 2.4)
    return AdaptationRecord(session, "botany", started, 4.0, *losses, kept, "why")


def test_an_answer_comes_back_as_it_was_recorded(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        store.record_answer(
            "a1",
            model="auto",
            experts=[("plants", 0.25), ("botany", 0.75)],
            session="s1",
            reason="botany fits",
            prompt_tokens=12,
            completion_tokens=34,
            seconds=1.5,
            finish_reason="stop",
        )
        (answer,) = store.answers()
    assert (answer.id, answer.session, answer.model, answer.time) == ("a1", "s1", "auto", 1001.0)
    assert answer.experts == (("botany", 0.75), ("plants", 0.25))
    assert (answer.prompt_tokens, answer.completion_tokens) == (12, 34)
    assert (answer.seconds, answer.finish_reason, answer.reason) == (1.5, "stop", "botany fits")


def test_texts_are_kept_only_where_it_is_asked_for(tmp_path: Path) -> None:
    secret = "my secret is 4711"
    with opened(tmp_path) as store:
        store.record_answer("a1", model="base", message=secret, text=secret)
        assert store.answers()[0].message == store.answers()[0].text == ""
    assert not any(secret.encode() in path.read_bytes() for path in tmp_path.iterdir())
    with opened(tmp_path, store_text=True) as store:
        store.record_answer("a2", model="base", message=secret, text="x" * (MAX_TEXT + 5))
        answer = store.answers()[0]
    assert (answer.message, len(answer.text)) == (secret, MAX_TEXT)


def test_the_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        store.record_answer("a1", model="base")
        modes = {stat.S_IMODE(os.stat(p).st_mode) for p in tmp_path.glob(f"{FILE}*")}
    assert modes == {0o600}


def test_sessions_are_listed_the_last_used_first(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        store.record_answer("a1", model="auto", session="first")
        store.record_answer("a2", model="auto", session="second")
        store.record_answer("a3", model="botany", session="first")
        store.record_answer("a4", model="base")
        found = store.sessions()
        assert [s.id for s in found] == ["first", "second"]
        assert (found[0].created, found[0].last_used) == (1001.0, 1003.0)
        assert (found[0].model, found[0].answers) == ("botany", 2)
        assert [a.id for a in store.answers(session="first")] == ["a3", "a1"]
        assert [a.id for a in store.answers(limit=1)] == ["a4"]


def test_answers_of_an_expert_are_found(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        store.record_answer("a1", model="auto", experts=[("botany", 1.0)])
        store.record_answer("a2", model="auto", experts=[("plants", 1.0)])
        assert [a.id for a in store.answers(expert="botany")] == ["a1"]


def test_feedback_belongs_to_an_answer_and_names_who_gave_it(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        store.record_answer("a1", model="auto", experts=[("botany", 1.0)])
        store.record_feedback("a1", rating=-1, correction="It is green.", message="What colour?")
        store.record_feedback("a1", rating=0.5, comment="better")
        later, first = store.feedback()
        assert (first.rating, first.correction, first.message) == (
            -1.0,
            "It is green.",
            "What colour?",
        )
        assert first.experts == (("botany", 1.0),)
        assert (later.rating, later.comment, later.correction) == (0.5, "better", "")
        assert store.feedback(corrections_only=True) == (first,)
        assert store.feedback(since=later.time) == (later,)


@pytest.mark.parametrize(
    ("answer", "given"),
    [
        ("missing", {"rating": 1.0}),
        ("a1", {"rating": 1.5}),
        ("a1", {"rating": float("nan")}),
        ("a1", {}),
        ("a1", {"correction": "x" * (MAX_TEXT + 1)}),
        ("a1\ud800", {"rating": 1.0}),
    ],
)
def test_feedback_that_makes_no_sense_is_refused(
    tmp_path: Path, answer: str, given: dict[str, float]
) -> None:
    with opened(tmp_path) as store:
        store.record_answer("a1", model="auto")
        with pytest.raises(UsageError):
            store.record_feedback(answer, **given)  # type: ignore[arg-type]
        assert store.feedback() == ()


@pytest.mark.parametrize(
    "given",
    [
        {"answer_id": ""},
        {"answer_id": "x" * 513},
        {"answer_id": "taken"},
        {"session": "x" * 513},
        {"experts": [("a", float("nan"))]},
        {"experts": [("a", 1.0), ("a", 1.0)]},
        {"prompt_tokens": -1},
        {"completion_tokens": 2**63},
        {"seconds": float("inf")},
    ],
)
def test_an_answer_out_of_bounds_is_refused_and_nothing_of_it_stays(
    tmp_path: Path, given: dict[str, object]
) -> None:
    with opened(tmp_path) as store:
        store.record_answer("taken", model="auto")
        with pytest.raises(UsageError):
            store.record_answer(**{"answer_id": "a1", "model": "auto", **given})  # type: ignore[arg-type]
        assert [a.id for a in store.answers()] == ["taken"]
        assert store.sessions() == ()
        assert store.counters() == {}


def test_hostile_texts_are_only_text(tmp_path: Path) -> None:
    session = "'; DROP TABLE answers; --\0\ud800"
    with opened(tmp_path) as store:
        store.record_answer("a1", model="auto", session=session)
        assert len(store.answers(session=session)) == 1


def test_adaptations_are_kept_with_their_losses(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        store.record_adaptation(adaptation("s1"))
        store.record_adaptation(adaptation("s2", started=2.0, kept=False))
        assert store.adaptations() == (
            adaptation("s2", started=2.0, kept=False),
            adaptation("s1"),
        )
        assert store.adaptations("s1") == (adaptation("s1"),)


def test_a_loss_that_is_no_number_is_none(tmp_path: Path) -> None:
    odd = AdaptationRecord("s", "", 1.0, 1.0, float("nan"), None, 1.0, float("inf"), 1, 1, False)
    with opened(tmp_path) as store:
        store.record_adaptation(odd)
        (kept,) = store.adaptations()
    assert (kept.examples_before, kept.examples_after, kept.retention_after) == (None, None, None)


def test_counters_are_kept_when_answers_are_pruned(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        for number in range(4):
            store.record_answer(f"a{number}", model="auto", experts=[("e", 0.5)], session="s")
        store.record_feedback("a0", rating=1)
        store.record_adaptation(adaptation("s"))
        assert store.prune(1003.0) == 2
        assert [a.id for a in store.answers()] == ["a3", "a2"]
        assert store.feedback() == ()
        assert store.adaptations() == ()
        assert store.counters() == {"e": (4, 0.5)}
        assert [s.id for s in store.sessions()] == ["s"]
        assert store.prune(1e9) == 2
        assert store.sessions() == ()


# ------------------------------------------------------------------ folding


class Registry:
    """What stands in the registry file, which is written apart from the database."""

    def __init__(self, **figures: tuple[int, float]) -> None:
        self.figures = dict(figures)

    def read(self) -> dict[str, tuple[int, float]]:
        return dict(self.figures)


def answered(store: ActivityStore, *weights: float, expert: str = "e") -> None:
    for weight in weights:
        number = len(store.answers())
        store.record_answer(f"a{number}", model="auto", experts=[(expert, weight)])


def fold(store: ActivityStore, registry: Registry) -> None:
    with store.fold(registry.read) as changed:
        registry.figures.update(changed)


def test_folding_puts_new_activations_on_top_of_the_registry(tmp_path: Path) -> None:
    registry = Registry(e=(2, 1.0), other=(7, 0.3))
    with opened(tmp_path) as store:
        answered(store, 0.5, 0.5)
        assert store.counters_since_fold() == {"e": (2, 0.5)}
        fold(store, registry)
        assert registry.figures == {"e": (4, 0.75), "other": (7, 0.3)}
        assert store.counters_since_fold() == {}
        answered(store, 1.0)
        fold(store, registry)
        assert registry.figures["e"] == pytest.approx((5, 0.8))
        with store.fold(registry.read) as changed:
            assert changed == {}


class Killed(BaseException):
    pass


def test_killed_before_the_registry_is_written_nothing_is_lost(tmp_path: Path) -> None:
    registry = Registry(e=(0, 0.0))
    with opened(tmp_path) as store:
        answered(store, 1.0, 1.0)
        with pytest.raises(Killed), store.fold(registry.read):
            raise Killed
        answered(store, 1.0)
        fold(store, registry)
        assert registry.figures["e"] == (3, 1.0)


def test_killed_after_the_registry_is_written_nothing_counts_twice(tmp_path: Path) -> None:
    registry = Registry(e=(0, 0.0), f=(5, 1.0))
    with opened(tmp_path) as store:
        answered(store, 1.0, 1.0)
        answered(store, 0.5, expert="f")
        with pytest.raises(Killed), store.fold(registry.read) as changed:
            registry.figures["e"] = changed["e"]  # and f not any more
            raise Killed
    with opened(tmp_path) as store:
        answered(store, 1.0)
        fold(store, registry)
        assert registry.figures["e"] == (3, 1.0)
        assert registry.figures["f"] == pytest.approx((6, 5.5 / 6))
        fold(store, registry)
        assert registry.figures["e"] == (3, 1.0)


def test_a_figure_that_another_program_put_there_is_the_new_start(tmp_path: Path) -> None:
    registry = Registry(e=(0, 0.0))
    with opened(tmp_path) as store:
        answered(store, 1.0)
        fold(store, registry)
        registry.figures["e"] = (100, 0.5)
        answered(store, 0.5)
        fold(store, registry)
        assert registry.figures["e"] == (101, 0.5)


def test_an_expert_that_is_not_in_the_registry_waits(tmp_path: Path) -> None:
    registry = Registry()
    with opened(tmp_path) as store:
        answered(store, 1.0)
        fold(store, registry)
        assert registry.figures == {}
        registry.figures["e"] = (0, 0.0)
        fold(store, registry)
        assert registry.figures == {"e": (1, 1.0)}


# ------------------------------------------------------------------ many at once, and faults


def test_many_threads_lose_nothing(tmp_path: Path) -> None:
    with opened(tmp_path) as store:

        def work(thread: int) -> None:
            for number in range(25):
                store.record_answer(
                    f"{thread}-{number}", model="auto", experts=[("e", 1.0)], session=f"{thread}"
                )

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(work, range(8)))
        assert store.counters() == {"e": (200, 1.0)}
        assert len(store.answers()) == 200
        assert {s.answers for s in store.sessions()} == {25}


# Records answers NAME-0, NAME-1, …, so many; says a dot for each.
RECORD = """
import sys
from pathlib import Path
from aios.storage.activity import ActivityStore
path, name, count = sys.argv[1:]
with ActivityStore(Path(path)) as store:
    for number in range(int(count)):
        store.record_answer(f"{name}-{number}", model="auto", experts=[("e", 1.0)], session="s")
        print(end=".", flush=True)
"""


def recorder(path: Path, name: str, count: int) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-c", RECORD, str(path), name, str(count)]
    return subprocess.Popen(words, stdout=subprocess.PIPE)


def test_processes_that_make_the_file_at_once_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "new" / FILE
    workers = [recorder(path, name, 40) for name in "abc"]
    for worker in workers:
        worker.communicate()
    assert [w.returncode for w in workers] == [0, 0, 0]
    with ActivityStore(path) as store:
        assert store.counters() == {"e": (120, 1.0)}


def test_a_killed_process_loses_nothing_that_was_recorded(tmp_path: Path) -> None:
    path = tmp_path / FILE
    recorded = 0
    for round_number in range(5):
        with recorder(path, f"{round_number}", 1_000_000) as worker:
            assert worker.stdout is not None
            recorded += len(worker.stdout.read(1))
            time.sleep(0.003 * round_number)
            worker.kill()
            recorded += len(worker.stdout.read())
        with ActivityStore(path) as store:
            found = len(store.answers(limit=1_000_000))
            assert recorded <= found <= recorded + 1  # one may be recorded and not told
            assert store.counters() == {"e": (found, 1.0)}
            recorded = found


def test_a_writer_waits_for_another(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        other = sqlite3.connect(tmp_path / FILE, isolation_level=None, check_same_thread=False)
        other.execute("BEGIN IMMEDIATE")
        release = threading.Timer(0.2, lambda: other.execute("ROLLBACK"))
        release.start()
        began = time.monotonic()
        store.record_answer("a1", model="auto")
        release.join()
        other.close()
        assert time.monotonic() - began > 0.1


FULL_DISK = """
import resource, sys
from pathlib import Path
from aios.core.errors import StorageError
from aios.storage.activity import ActivityStore
store = ActivityStore(Path(sys.argv[1]), store_text=True)
store.record_answer("before", model="auto")
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
try:
    for number in range(100):
        store.record_answer(f"a{number}", model="auto", text="x" * 10_000)
except StorageError as error:
    print(number, error.message)
"""


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="no limit of file sizes here")
def test_a_disk_that_fills_up_is_an_error_and_keeps_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / FILE
    run = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(path)], capture_output=True, text=True, check=True
    )
    count, message = run.stdout.split(" ", 1)
    assert str(path) in message
    with ActivityStore(path) as store:
        assert {a.id for a in store.answers()} == {"before", *(f"a{n}" for n in range(int(count)))}


def test_a_full_database_is_told_as_a_full_disk(tmp_path: Path) -> None:
    with opened(tmp_path, store_text=True) as store:
        with store._database.writing() as db:
            pages = db.execute("PRAGMA page_count").fetchone()[0]
        store._database.all(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(StorageError, match="disk full"):
            store.record_answer("a1", model="auto", text="x" * 50_000)
        assert store.answers() == ()


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text("something else entirely" * 100)
    with pytest.raises(StorageError, match="corrupt"):
        opened(tmp_path)


def test_a_damaged_page_is_told(tmp_path: Path) -> None:
    with opened(tmp_path, store_text=True) as store:
        for number in range(50):
            store.record_answer(f"a{number}", model="auto", text="y" * 2000)
    data = bytearray((tmp_path / FILE).read_bytes())
    data[4096:] = b"\xff" * (len(data) - 4096)
    (tmp_path / FILE).write_bytes(data)
    with opened(tmp_path) as store, pytest.raises(StorageError, match="corrupt") as raised:
        store.answers()
    assert "backup" in raised.value.remedy


def test_a_later_version_is_refused_and_left_alone(tmp_path: Path) -> None:
    opened(tmp_path).close()
    with sqlite3.connect(tmp_path / FILE) as raw:
        raw.execute("PRAGMA user_version = 99")
    raw.close()
    with pytest.raises(StorageError, match="version 99") as raised:
        opened(tmp_path)
    assert "newer program" in raised.value.remedy


def test_another_programs_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    raw = sqlite3.connect(tmp_path / FILE)
    raw.execute("CREATE TABLE theirs (a)")
    raw.commit()
    raw.close()
    with pytest.raises(StorageError, match="another program"):
        opened(tmp_path)
    raw = sqlite3.connect(tmp_path / FILE)
    assert [row[0] for row in raw.execute("SELECT name FROM sqlite_master")] == ["theirs"]
    raw.close()


def test_an_older_file_is_migrated_and_keeps_its_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(tmp_path) as store:
        store.record_answer("a1", model="auto", experts=[("e", 1.0)])
    added = (*activity_schema.MIGRATIONS, "ALTER TABLE sessions ADD COLUMN note TEXT;\n")
    monkeypatch.setattr(activity_schema, "MIGRATIONS", added)
    with opened(tmp_path) as store:
        assert [a.id for a in store.answers()] == ["a1"]
        assert store._database.all("PRAGMA user_version") == [(len(added),)]
        store._database.all("SELECT note FROM sessions")


def test_a_migration_that_fails_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened(tmp_path).close()
    before = activity_schema.MIGRATIONS
    broken = (*before, "ALTER TABLE sessions ADD COLUMN note TEXT;\nNOT SQL;\n")
    monkeypatch.setattr(activity_schema, "MIGRATIONS", broken)
    with pytest.raises(StorageError):
        opened(tmp_path)
    monkeypatch.setattr(activity_schema, "MIGRATIONS", before)
    with opened(tmp_path) as store:
        columns = {row[1] for row in store._database.all("PRAGMA table_info(sessions)")}
    assert "note" not in columns


def test_a_place_that_cannot_be_written_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        ActivityStore(tmp_path / "file" / FILE)
    (tmp_path / FILE).mkdir()
    with pytest.raises(StorageError):
        opened(tmp_path)


def test_a_closed_store_says_so(tmp_path: Path) -> None:
    store = opened(tmp_path)
    store.close()
    store.close()
    with pytest.raises(StorageError, match="closed"):
        store.record_answer("a1", model="auto")


# ------------------------------------------------------------------ backup


def test_a_backup_is_one_whole_file_while_others_record(tmp_path: Path) -> None:
    target = tmp_path / "copies" / "activity.backup"
    with opened(tmp_path) as store:
        store.record_answer("a1", model="auto", experts=[("e", 1.0)])
        store.backup(target)
        store.record_answer("a2", model="auto")
        assert [p.name for p in target.parent.iterdir()] == [target.name]
        store.backup(target)  # replaces the earlier one
    with ActivityStore(target) as copy:
        assert [a.id for a in copy.answers()] == ["a2", "a1"]
        assert copy.counters() == {"e": (1, 1.0)}


def test_a_backup_overwrites_nothing_else(tmp_path: Path) -> None:
    other = tmp_path / "weights.safetensors"
    other.write_bytes(b"precious")
    with opened(tmp_path) as store:
        with pytest.raises(UsageError, match="no copy of a database"):
            store.backup(other)
        with pytest.raises(UsageError, match="the database itself"):
            store.backup(tmp_path / FILE)
        with pytest.raises(UsageError, match="regular file"):
            store.backup(tmp_path)
    assert other.read_bytes() == b"precious"


def test_a_backup_that_cannot_be_written_leaves_the_earlier_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "copy"
    with opened(tmp_path) as store:
        store.backup(target)
        before = target.read_bytes()
        store.record_answer("a1", model="auto")

        def fails(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "replace", fails)
        with pytest.raises(StorageError, match="disk full"):
            store.backup(target)
    assert target.read_bytes() == before
    assert not list(tmp_path.glob(".copy*"))


def test_recording_is_quick(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        took = []
        for number in range(200):
            began = time.perf_counter()
            store.record_answer(f"{number}", model="auto", experts=[("e", 1.0)], session="s")
            took.append(time.perf_counter() - began)
    assert sorted(took)[100] < 0.02  # the median; a commit that waits for the disk takes longer
