"""Self-edits through a journal: in order, in bounded memory, and the same after any kill."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import count, islice
from pathlib import Path
from typing import Any

import pytest

from aios.app.edits.generate import dropped_path, generate_edits
from aios.app.edits.journal import _MOST_WAITING, JournalledEdits
from aios.core.errors import BackendError, RunInterrupted
from aios.core.events import Event, Notice
from aios.core.protocols import ShouldStop, ignore, never
from aios.core.seal.cache import SelfEditCache
from aios.core.seal.passage_edits import PassageEdits
from aios.core.seal.quality import FilterSettings
from aios.core.seal.self_edit_generator import SelfEditGenerator
from aios.core.types import Passage
from aios.storage.journal import Journal
from tests.letters import Letters, Silent, passage
from tests.shuffled_model import ShuffledModel, whenever
from tests.test_app.scripted_jobs import files_below, make_config, stop_after, write_passages

# The two texts of a passage differ in their last word: one of them is dropped.
SETTINGS = FilterSettings(min_length=1, enable_quality_filter=False, similarity_threshold=0.3)


class Killed(BaseException):
    """What stands for a kill: nothing catches it."""


def make(model: ShuffledModel, *, cache: Path | None = None, **options: Any) -> SelfEditGenerator:
    chosen: dict[str, Any] = {"strategy": Letters(), "num_edits": 2, **options}
    return SelfEditGenerator(model, cache_dir=cache, filter_settings=SETTINGS, **chosen)


def run(
    folder: Path,
    passages: Iterable[Passage],
    generator: SelfEditGenerator,
    *,
    should_stop: ShouldStop = never,
    emit: Callable[[Event], None] = ignore,
    found: list[tuple[PassageEdits, bool]] | None = None,
) -> list[tuple[PassageEdits, bool]]:
    """All passages through the journal of a folder; `found` has them even where it fails."""
    found = [] if found is None else found
    with Journal(folder / "journal", {"work": "this"}) as journal:
        for pair in JournalledEdits(generator, journal, should_stop, emit).run(passages):
            found.append(pair)
    return found


def what_counts(pairs: Iterable[tuple[PassageEdits, bool]]) -> list[tuple[Any, ...]]:
    """All that must not depend on kills: not what it cost, nor who made it."""
    return [(r.passage.id, r.kept, r.drops, r.failure) for r, _ in pairs]


def ids(pairs: Iterable[tuple[PassageEdits, bool]]) -> list[str]:
    return [result.passage.id for result, _ in pairs]


# ------------------------------------------------------------ order


@pytest.mark.parametrize("order", range(4))
def test_passages_come_out_in_order_whatever_order_they_are_finished_in(
    tmp_path: Path, order: int
) -> None:
    model = ShuffledModel(order, ahead=9)
    pairs = run(tmp_path, map(passage, range(50)), make(model))
    assert ids(pairs) == [f"p{n}" for n in range(50)]
    assert all(len(result.kept) == len(result.drops) == 1 for result, _ in pairs)
    assert not any(reused for _, reused in pairs)
    in_sequence = run(tmp_path / "other", map(passage, range(50)), make(ShuffledModel(ahead=1)))
    assert what_counts(pairs) == what_counts(in_sequence)


def test_no_passages_give_nothing(tmp_path: Path) -> None:
    assert run(tmp_path, [], make(ShuffledModel())) == []


def test_finished_passages_are_taken_from_the_journal(tmp_path: Path) -> None:
    first = run(tmp_path, map(passage, range(10)), make(ShuffledModel()))
    model, events = ShuffledModel(), list[Event]()
    pairs = run(tmp_path, map(passage, range(15)), make(model), emit=events.append)
    assert what_counts(pairs[:10]) == what_counts(first)
    assert [reused for _, reused in pairs] == [True] * 10 + [False] * 5
    assert [request.prompt.split()[0] for request in model.asked] == [
        f"p{n}" for n in range(10, 15)
    ]
    assert events == [Notice("resuming: 10 passages are already done")]
    assert [result.tokens for result, _ in pairs] == [10] * 15  # costs are remembered too


# ------------------------------------------------------------ memory


def test_behind_a_passage_that_is_never_finished_so_many_wait_and_no_more_are_begun(
    tmp_path: Path,
) -> None:
    # the model finishes passage 3 when it is given nothing else to do
    model = ShuffledModel(ahead=6, holds="p3 ")
    read = 0

    def endless() -> Iterator[Passage]:
        nonlocal read
        for read in count():
            yield passage(read)

    generator = make(model, batch_size=100)
    with Journal(tmp_path / "journal", {}) as journal:
        journalled = JournalledEdits(generator, journal, never, ignore)
        given = journalled.run(endless())
        assert ids(islice(given, 3)) == ["p0", "p1", "p2"]
        assert read < 100
        assert ids(islice(given, 1)) == ["p3"]
        assert read + 1 == 3 + _MOST_WAITING
        assert len(journal) == 3 + _MOST_WAITING
        assert ids(islice(given, 1000)) == [f"p{n}" for n in range(4, 1004)]


@pytest.mark.slow
def test_a_journal_that_has_everything_is_read_in_groups(tmp_path: Path) -> None:
    run(tmp_path, map(passage, range(1500)), make(ShuffledModel()))
    read = 0

    def counted() -> Iterator[Passage]:
        nonlocal read
        for read in range(1500):
            yield passage(read)

    model = ShuffledModel()
    with Journal(tmp_path / "journal", {"work": "this"}) as journal:
        for given, (result, reused) in enumerate(
            JournalledEdits(make(model), journal, never, ignore).run(counted())
        ):
            assert (result.passage.id, reused) == (f"p{given}", True)
            assert read - given <= _MOST_WAITING
    assert model.asked == []


@pytest.mark.parametrize("cached", [True, False])
def test_passages_that_need_no_model_are_journalled_in_groups(tmp_path: Path, cached: bool) -> None:
    cache = tmp_path / "cache"
    strategy: dict[str, Any] = {} if cached else {"strategy": Silent()}
    if cached:
        list(make(ShuffledModel(), cache=cache).generate(map(passage, range(300))))
    read = 0

    def counted() -> Iterator[Passage]:
        nonlocal read
        for read in range(300):
            yield passage(read)

    model = ShuffledModel()
    generator = make(model, cache=cache if cached else None, **strategy)
    with Journal(tmp_path / "journal", {}) as journal:
        for given, _ in enumerate(
            JournalledEdits(generator, journal, never, ignore).run(counted())
        ):
            assert read - given <= 64
    assert model.asked == []


# ------------------------------------------------------------ failures


def test_what_failed_is_tried_again_when_the_run_goes_on_unless_that_cannot_help(
    tmp_path: Path,
) -> None:
    def fails(request: Any) -> BackendError | None:
        if request.prompt.startswith("p1 "):
            return BackendError("busy", retryable=True)
        if request.prompt.startswith("p2 "):
            return BackendError("too long")
        return None

    pairs = run(tmp_path, map(passage, range(4)), make(ShuffledModel(fails=fails)))
    assert [result.failure is not None for result, _ in pairs] == [False, True, True, False]
    model = ShuffledModel()
    pairs = run(tmp_path, map(passage, range(4)), make(model))
    assert [request.prompt.split()[0] for request in model.asked] == ["p1"]
    assert [reused for _, reused in pairs] == [True, False, True, True]
    assert [result.failure is not None for result, _ in pairs] == [False, False, True, False]
    assert pairs[2][0].failure.error == "too long"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("how", "retryable"), [("fails", True), ("breaks", True), ("breaks", False)]
)
def test_a_run_on_a_dead_backend_ends_keeps_its_journal_and_goes_on_later(
    tmp_path: Path, how: str, retryable: bool
) -> None:
    whole = run(tmp_path / "whole", map(passage, range(100)), make(ShuffledModel()))

    def dead(request: Any) -> BackendError | None:
        number = int(request.prompt.split()[0][1:])
        return None if number < 30 else BackendError("refused", "start it", retryable=retryable)

    model = ShuffledModel(**{how: dead})  # type: ignore[arg-type]
    with pytest.raises(BackendError, match="20 passages in a row") as caught:
        run(tmp_path, map(passage, range(100)), make(model))
    assert caught.value.remedy == "start it"
    alive = ShuffledModel()
    pairs = run(tmp_path, map(passage, range(100)), make(alive))
    assert what_counts(pairs) == what_counts(whole)
    assert len(alive.asked) == 70
    assert sum(reused for _, reused in pairs) == 30


# ------------------------------------------------------------ stopping


@pytest.mark.parametrize("calls", [0, 1, 7, 29])
def test_a_stop_begins_nothing_new_and_finishes_what_is_in_flight(
    tmp_path: Path, calls: int
) -> None:
    model = ShuffledModel(ahead=6)
    found: list[tuple[PassageEdits, bool]] = []
    with pytest.raises(RunInterrupted, match="finished passages are kept"):
        run(
            tmp_path,
            map(passage, range(30)),
            make(model, cache=tmp_path / "cache"),
            should_stop=stop_after(calls),
            found=found,
        )
    assert len(model.asked) == len(found) == calls
    assert len(list((tmp_path / "cache").glob("*.json"))) == 2 * calls
    more = ShuffledModel()
    pairs = run(tmp_path, map(passage, range(30)), make(more, cache=tmp_path / "cache"))
    assert len(more.asked) == 30 - calls
    assert [reused for _, reused in pairs] == [True] * calls + [False] * (30 - calls)
    whole = run(tmp_path / "whole", map(passage, range(30)), make(ShuffledModel()))
    assert what_counts(pairs) == what_counts(whole)


def test_a_stop_with_nothing_left_to_begin_is_no_interruption(tmp_path: Path) -> None:
    model = ShuffledModel(ahead=30)
    pairs = run(tmp_path, map(passage, range(9)), make(model), should_stop=stop_after(9))
    assert len(pairs) == 9


def test_a_stop_is_heard_between_passages_that_are_done_already(tmp_path: Path) -> None:
    run(tmp_path, map(passage, range(20)), make(ShuffledModel()))
    found: list[tuple[PassageEdits, bool]] = []
    with pytest.raises(RunInterrupted):
        run(
            tmp_path,
            map(passage, range(20)),
            make(ShuffledModel()),
            should_stop=stop_after(5),
            found=found,
        )
    assert ids(found) == [f"p{n}" for n in range(5)]


# ------------------------------------------------------------ kills

DUPLICATES = [0, 1, 2, 1, 3, 4, 1, 5]


def kill_at(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """Raises `Killed` before or after the n-th write to journal or cache."""
    left = steps

    def killing(call: Callable[..., Any]) -> Callable[..., Any]:
        def step(*arguments: Any, **options: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                raise Killed
            result = call(*arguments, **options)
            left -= 1
            if left == 0:
                raise Killed
            return result

        return step

    monkeypatch.setattr(Journal, "append", killing(Journal.append))
    monkeypatch.setattr(SelfEditCache, "put", killing(SelfEditCache.put))


@pytest.mark.parametrize("with_cache", [True, False])
@pytest.mark.parametrize("order", [0, 1])
def test_a_kill_at_any_write_changes_nothing_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_cache: bool, order: int
) -> None:
    """Finished in another order each time, one passage failing, one there three times."""
    passages = [passage(n) for n in DUPLICATES]

    def generator(folder: Path, seed: int) -> SelfEditGenerator:
        model = ShuffledModel(seed, ahead=4, fails=whenever("p4 "))
        return make(model, cache=folder / "cache" if with_cache else None, max_retries=1)

    whole = run(tmp_path / "whole", passages, generator(tmp_path / "whole", order))
    assert sum(result.failure is not None for result, _ in whole) == 1
    steps = 0
    while True:
        steps += 1
        folder = tmp_path / str(steps)
        killed = False
        with monkeypatch.context() as patch:
            kill_at(patch, steps)
            try:
                run(folder, passages, generator(folder, order))
            except Killed:
                killed = True
        if not killed:
            break
        assert what_counts(run(folder, passages, generator(folder, steps))) == what_counts(whole)
        if with_cache:
            written = {path.name for path in (folder / "cache").glob("*.json")}
            assert written <= {path.name for path in (tmp_path / "whole" / "cache").glob("*.json")}
    assert steps > (2 * 8 + 2 * 10 if with_cache else 2 * 8)


def test_a_kill_between_journal_and_cache_loses_no_passage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*arguments: Any) -> None:
        raise Killed

    cache = tmp_path / "cache"
    with monkeypatch.context() as patch:
        patch.setattr(SelfEditGenerator, "remember", killed)
        with pytest.raises(Killed):
            run(tmp_path, map(passage, range(3)), make(ShuffledModel(ahead=1), cache=cache))
    model = ShuffledModel()
    pairs = run(tmp_path, map(passage, range(3)), make(model, cache=cache))
    assert [reused for _, reused in pairs] == [True, False, False]
    assert len(model.asked) == 2


@pytest.mark.slow
@pytest.mark.parametrize("with_cache", [True, False])
def test_a_kill_at_any_event_leaves_the_output_as_it_would_have_been(
    tmp_path: Path, with_cache: bool
) -> None:
    data = write_passages(tmp_path / "passages.jsonl", 5)

    def generate(folder: Path, seed: int, emit: Callable[[Event], None] = ignore) -> list[bytes]:
        model = ShuffledModel(seed, ahead=3, fails=whenever("mill of Cald"))
        seal = {
            "enable_cache": with_cache,
            "max_retries": 0,
            "enable_quality_filter": False,
            "similarity_threshold": 0.3,
        }
        output = folder / "out" / "edits.jsonl"
        generate_edits(make_config(folder, seal=seal), data, output, model=model, emit=emit)
        assert files_below(output.parent) == {"edits.jsonl", "edits.dropped.jsonl"}
        return [output.read_bytes(), dropped_path(output).read_bytes()]

    whole = generate(tmp_path / "whole", 0)
    assert all(len(content.splitlines()) >= 4 for content in whole)
    for steps in count(1):
        left = steps

        def killing(event: Event) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                raise Killed

        folder = tmp_path / str(steps)
        try:
            generate(folder, 0, killing)
        except Killed:
            assert generate(folder, steps) == whole
        else:
            break
    assert steps > 15
