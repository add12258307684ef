"""Kills, failing calls and many processes for the cache: a program for ``test_cache_faults.py``.

``kill FOLDER``: runs each scenario in a forked child that is killed at its first, second, third, …
file-system call, until one comes through; after each, the folder must be a working cache.
``fail FOLDER ERRNO``: the same with that error in place of the kill, once at each call.
``fail-on FOLDER ERRNO``: the same with the error at that call and all later ones.
``share FOLDER``: processes write, read, prune, count and clear one folder at once.

Prints a JSON object of counts; ends with another exit status than 0 and the reason on a fault.
A write is cut into two calls, so that a kill or error can also come in its middle.
"""

from __future__ import annotations

import io
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from aios.core import files
from aios.core.errors import StorageError
from aios.core.seal.cache import KEPT_RUNS, CachedCompletion, SelfEditCache, cache_key
from aios.core.seal.cache_format import decode_entry, encode_entry
from aios.core.seal.cache_usage import past_usage
from aios.core.types import Completion, SamplingParams

BIG = 10**9
CHANGES = {"os.rename", "os.mkdir", "os.utime", "os.remove", "os.rmdir"}
NEEDS_SPACE = {"open", "write", "fsync", "os.rename", "os.mkdir"}
LOOKS = {"os.scandir", "fcntl.flock"}


def key(number: int) -> str:
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


def completion(number: int, text: str = "") -> Completion:
    return Completion(text or f"Fact {number}. " * 20, 3, "stop", number, (0.5, number / 7))


def entry(number: int) -> bytes:
    found = CachedCompletion(completion(number), "rewrite", "tiny", "2025-01-01T00:00:00+00:00")
    return encode_entry(key(number), found)


SIZE = len(entry(0)) + 50


def put(cache: SelfEditCache, number: int, text: str = "") -> bool:
    return cache.put(key(number), completion(number, text), strategy="rewrite", model="tiny")


def fill(folder: Path, numbers: range) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        path = folder / f"{key(number)}.json"
        path.write_bytes(entry(number))
        os.utime(path, (1000 + number, 1000 + number))


# ---------------------------------------------------------------- what goes wrong, and when


class Faults:
    """Counts file-system calls, and acts on one of them.

    Args:
        act: What happens then.
        at: Number of the call, from 1.
        onwards: Whether it happens at all later ones, too.
        events: The calls that are counted.
    """

    def __init__(self, act: Callable[[], None], at: int, onwards: bool, events: set[str]) -> None:
        self.act, self.at, self.onwards, self.events = act, at, onwards, events
        self.calls = 0
        self.first = ""  # the call that was acted on first

    def call(self, event: str) -> None:
        if event in self.events:
            self.calls += 1
            if self.calls == self.at or (self.onwards and self.calls > self.at):
                self.first = self.first or event
                self.act()


faults: Faults | None = None


def note(event: str) -> None:
    if faults is not None:
        faults.call(event)


def hook(event: str, args: tuple[Any, ...]) -> None:
    if event == "open":
        if isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            note("open")
    elif event in CHANGES or event in LOOKS:
        note(event)


class CutFile(io.FileIO):
    """A file that is written in two halves."""

    def write(self, data: Any, /) -> int:
        whole = bytes(data)
        for half in (whole[: len(whole) // 2], whole[len(whole) // 2 :]):
            note("write")
            super().write(half)
        return len(whole)


def install() -> None:
    sys.addaudithook(hook)
    write = os.write

    def cut_write(fd: int, data: Any, /) -> int:
        note("write")
        return write(fd, data[: max(1, len(data) // 2)])

    def noted_fsync(fd: Any, /) -> None:
        note("fsync")  # and not done: what is tested is a kill, not a power cut

    os.write = cut_write
    os.fsync = noted_fsync  # type: ignore[assignment]

    def opened(path: Any, mode: str = "r", **options: Any) -> Any:
        written = set(mode) & set("xwa")
        return CutFile(path, mode.replace("b", "")) if written else open(path, mode, **options)

    files.open = opened  # type: ignore[attr-defined]


# ---------------------------------------------------------------- scenarios

OLD = ".0123456789abcdef.tmp"
LONG_USAGE = ('{"hits":1,"misses":1,"time":"' + "x" * 1000 + '"}\n') * 80


def old_temporary(folder: Path) -> None:
    path = folder / f".{key(0)}.json{OLD}"
    path.write_text("{")
    os.utime(path, (0, 0))


def prepare(name: str, folder: Path) -> None:
    if name == "put first":
        return
    fill(folder, range(6))
    if name in ("prune", "put and evict"):
        old_temporary(folder)
    if name == "corrupt":
        (folder / f"{key(0)}.json").write_text("{")
    if name == "clear":
        (folder / "corrupt").mkdir()
        (folder / "corrupt" / f"{key(9)}.json").write_text("{")
    if name == "shorten usage":
        (folder / "usage.jsonl").write_text(LONG_USAGE)


def act(name: str, cache: SelfEditCache) -> object:
    if name == "put first":
        return put(cache, 0)
    if name == "put again":
        return put(cache, 1, "Another text. " * 30)
    if name == "put and evict":
        cache.max_bytes = 4 * SIZE
        return put(cache, 6)
    if name == "hit":
        return cache.get(key(0)) is not None
    if name == "corrupt":
        return cache.get(key(0)) is None
    if name == "prune":
        return cache.prune(3 * SIZE)
    if name == "clear":
        return cache.clear(set_aside=True)
    cache.get(key(99))
    cache.close()
    return None


SCENARIOS = {
    "put first": True,
    "put again": True,
    "put and evict": True,
    "hit": True,
    "corrupt": True,
    "prune": False,
    "clear": False,
    "usage": True,
    "shorten usage": True,
}  # whether it must never raise, but report


def refuse(*problem: object) -> None:
    raise AssertionError(f"a problem was reported: {problem}")


def check_usable(name: str, folder: Path, *, temporaries: bool = True) -> None:
    """The folder is a working cache after a scenario, and nothing in it is half-written.

    Args:
        name: The scenario.
        folder: The cache's folder.
        temporaries: Whether files may be left that are not finished.
    """
    corrupt = f"{key(0)}.json" if name == "corrupt" else ""
    if name == "shorten usage":
        assert len(past_usage(folder)) == KEPT_RUNS
    folder.mkdir(parents=True, exist_ok=True)
    numbers = {f"{key(number)}.json": number for number in range(8)}
    there = [file for file in os.listdir(folder) if file.endswith(".json")]
    for file in there:
        if file != corrupt:
            assert decode_entry((folder / file).read_bytes(), file[:-5]) is not None, file
    left = [file for file in os.listdir(folder) if file.endswith(".tmp")]
    assert temporaries or all(file.endswith(OLD) for file in left), left
    if corrupt in there:
        SelfEditCache(folder, BIG).get(corrupt[:-5])  # moves it away
        there.remove(corrupt)
    for file in left:
        os.utime(folder / file, (0, 0))
    with SelfEditCache(folder, BIG, on_corrupt=refuse, on_problem=refuse) as cache:
        for file in there:
            found = cache.get(file[:-5])
            assert found is not None
            assert found.completion.text.startswith(("Another", f"Fact {numbers[file]}."))
        assert put(cache, 7)
        again = cache.get(key(7))
        assert again is not None
        assert again.completion == completion(7)
    stats = cache.stats()
    assert stats.unreadable == 0
    assert stats.unfinished.entries == 0, "the first put cleans up"
    assert stats.entries == len({*there, f"{key(7)}.json"})
    assert stats.runs[-1].hits == len(there) + 1
    assert cache.prune(0).removed == stats.entries


def start_child(work: Callable[[], None]) -> int:
    """The process id of a forked child that does some work; its exit status says how it went."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        except (AssertionError, OSError, StorageError) as error:
            sys.stderr.write(f"{type(error).__name__}: {error}\n")
        finally:
            sys.stderr.flush()
            os._exit(status)
    return child


def kill_at_each_call(root: Path) -> dict[str, int]:
    """How many calls of each scenario a kill was tried at."""
    kills: dict[str, int] = {}
    for name in SCENARIOS:
        for at in count(1):
            folder = root / f"{name} {at}"
            prepare(name, folder)

            def work(name: str = name, at: int = at, folder: Path = folder) -> None:
                global faults
                cache = SelfEditCache(folder, BIG)
                events = CHANGES | LOOKS | {"open", "write", "fsync"}
                faults = Faults(lambda: os.kill(os.getpid(), signal.SIGKILL), at, False, events)
                act(name, cache)

            _, status = os.waitpid(start_child(work), 0)
            assert status in (0, signal.SIGKILL), (name, at, status)
            check_usable(name, folder)
            if status == 0:
                break
            kills[name] = at
    return kills


def fail_at_each_call(root: Path, code: int, onwards: bool) -> dict[str, int]:
    """How many calls of each scenario the error was tried at."""
    global faults
    events = CHANGES | {"open", "write", "fsync"} if onwards else NEEDS_SPACE

    def fail() -> None:
        raise OSError(code, os.strerror(code))

    failures: dict[str, int] = {}
    for name, never_raises in SCENARIOS.items():
        for at in count(1):
            folder = root / f"{name} {at}"
            prepare(name, folder)
            told: list[str] = []
            cache = SelfEditCache(folder, BIG, on_problem=told.append)
            faults = Faults(fail, at, onwards, events)
            result: object = None
            try:
                result = act(name, cache)
            except StorageError as error:
                assert not never_raises, (name, at)
                told.append(str(error))
            calls, first, faults = faults.calls, faults.first, None
            where = (name, at, result, told)
            assert len(told) <= 1, where
            if name == "put first" and first:
                assert bool(told) == (first != "os.remove"), where  # there is nothing to remove
            if name in ("hit", "corrupt"):
                assert result is True, where
            check_usable(name, folder, temporaries=onwards)
            if calls < at:
                assert not told, where
                break
            failures[name] = at
    return failures


# ---------------------------------------------------------------- several processes


def share(folder: Path, seconds: float = 1.0, at_most: float = 30.0) -> dict[str, int]:
    """Processes do everything to one folder at once until each has done some; what they did."""
    began = time.monotonic()
    roles = ("write", "write", "prune", "clear", "stats")

    def go_on() -> bool:
        passed = time.monotonic() - began
        if passed < seconds:
            return True
        return passed < at_most and len(list(folder.parent.glob("*.enough"))) < len(roles)

    def role(name: str, seed: int) -> None:
        rng = random.Random(seed)
        done = removed = counted = 0
        with SelfEditCache(folder, 25 * SIZE, on_corrupt=refuse, on_problem=refuse) as cache:
            while go_on():
                number = rng.randrange(40)
                found = cache.get(key(number))
                assert found is None or found.completion == completion(number)
                if name == "write":
                    assert put(cache, number)
                elif name == "prune":
                    removed += cache.prune(15 * SIZE, older_than=60).removed
                elif name == "clear":
                    removed += cache.clear(set_aside=True).removed
                    time.sleep(0.02)
                else:
                    assert cache.stats().unreadable == 0
                done += 1
                before, counted = counted, removed if name in ("prune", "clear") else done
                if done > 5 and counted > before:
                    (folder.parent / f"{name}{seed}.enough").touch()
            assert done > 5, (name, done)
        record = {"name": name, "counted": counted}
        (folder.parent / f"{name}{seed}.json").write_text(json.dumps(record))

    folder.mkdir()
    children = [start_child(partial(role, name, seed)) for seed, name in enumerate(roles)]
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * len(roles)
    check_shared(folder)
    counts: dict[str, int] = dict.fromkeys(roles, 0)
    for path in folder.parent.glob("*.json"):
        record = json.loads(path.read_text())
        counts[record["name"]] += record["counted"]
    return counts


def check_shared(folder: Path) -> None:
    stats = SelfEditCache(folder, BIG).stats()
    assert stats.bytes <= 30 * SIZE
    assert (stats.unreadable, stats.unfinished.entries, stats.set_aside.entries) == (0, 0, 0)
    assert len(stats.runs) == 5
    for path in folder.glob("?" * 64 + ".json"):
        assert decode_entry(path.read_bytes(), path.stem) is not None


def main() -> None:
    mode, folder, *rest = sys.argv[1:]
    root = Path(folder)
    if mode == "share":
        result = share(root / "cache")
    else:
        install()
        if mode == "kill":
            result = kill_at_each_call(root)
        else:
            result = fail_at_each_call(root, int(rest[0]), onwards=mode == "fail-on")
    sys.stdout.write(json.dumps(result))


if __name__ == "__main__":
    main()
