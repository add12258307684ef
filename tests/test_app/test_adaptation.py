"""Sessions with adapters of their own: who learns what, who waits for whom, what is given back."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from aios.app.chat.adaptation import UNDO_STEPS, SessionAdapters
from aios.app.chat.adaptation_counts import AdaptationCounts
from aios.backends.scripted import ScriptedModel
from aios.backends.scripted_serving import ScriptedWriter
from aios.backends.scripted_trials import ScriptedTrialBench
from aios.core.config.schemas import Config
from aios.core.config.serving_schemas import AdaptationConfig, ServeConfig
from aios.core.errors import OutOfMemoryError, StorageError, UnknownStrategyError, UsageError
from aios.core.events import Event, Notice
from aios.core.protocols import TemporaryExpert
from aios.core.seal.adaptation_guard import mean_loss
from aios.core.seal.test_time_adaptation import TestTimeAdaptation
from aios.core.serving import Part, WriteRequest
from aios.core.trials import TrialJob
from aios.core.types import AdapterRef, LoraRecipe, ScoreRequest, TrainExample
from aios.storage.activity_records import AdaptationRecord
from tests.test_app.lending_writer import LendingWriter

RECIPE = LoraRecipe(rank=4, alpha=8, epochs=2, batch_size=2)
RUFUS = "My dog is called Rufus."
LOCKER = "My locker code is 4471."
ON_RUFUS = (ScoreRequest("What is my dog called?", " called Rufus"),)
ON_LOCKER = (ScoreRequest("What is my locker code?", " locker code is 4471"),)


def config(*, max_sessions: int = 32, **adaptation: Any) -> Config:
    settings: dict[str, Any] = {"every": 1, "steps": 4, "strategy": "cloze", **adaptation}
    return Config(
        adaptation=AdaptationConfig(**settings), serve=ServeConfig(max_sessions=max_sessions)
    )


def said(*texts: str) -> list[dict[str, str]]:
    messages = []
    for text in texts:
        messages.append({"role": "user", "content": text})
        messages.append({"role": "assistant", "content": "I see."})
    return messages


@contextmanager
def sessions(
    writer: ScriptedWriter | LendingWriter | None = None,
    settings: Config | None = None,
    **more: Any,
) -> Iterator[SessionAdapters]:
    writer = writer or ScriptedWriter(ScriptedModel())
    adapters = SessionAdapters(writer, settings or config(), **more)
    try:
        yield adapters
    finally:
        writer.close()
        adapters.close()


def note(adapters: SessionAdapters, session: str, *texts: str, chosen: Any = ()) -> None:
    adapters.note_turn(session, chosen, said(*texts))
    assert adapters.wait(20)


def own(adapters: SessionAdapters, session: str, *parts: Part) -> TemporaryExpert:
    """The session's adapter, which must be there."""
    (part,) = adapters.parts(session, parts)
    assert not isinstance(part.adapter, AdapterRef)
    return part.adapter


def expert(folder: Path, *texts: str, model: ScriptedModel | None = None) -> AdapterRef:
    """A saved expert that has learnt some texts."""
    job = TrialJob("e", tuple(TrainExample.whole(t) for t in texts), RECIPE, 0)
    (trained,) = ScriptedTrialBench(model or ScriptedModel()).train([job])
    assert isinstance(trained, tuple)
    return trained[1].export(folder)


class Log:
    """Keeps records, or fails to."""

    def __init__(self, *, broken: bool = False) -> None:
        self.records: list[AdaptationRecord] = []
        self.broken = broken

    def record_adaptation(self, adaptation: AdaptationRecord) -> None:
        if self.broken:
            raise StorageError("the disk is full")
        self.records.append(adaptation)


def test_a_session_answers_with_its_own_adapter_after_every_few_turns() -> None:
    with sessions(settings=config(every=3)) as adapters:
        note(adapters, "a", RUFUS)
        note(adapters, "a", RUFUS, "Hello!")
        assert adapters.parts("a", ()) == ()
        note(adapters, "a", RUFUS, "Hello!", "And you?")
        adapted = own(adapters, "a")
        assert (mean_loss(adapted, ON_RUFUS) or 9) < (mean_loss(ScriptedModel(), ON_RUFUS) or 0)
        assert adapters.parts("b", ()) == ()
        assert adapters.parts("", ()) == ()


def test_sessions_never_meet() -> None:
    with sessions() as both, sessions() as alone:
        note(both, "a", RUFUS)
        note(both, "b", LOCKER)
        note(alone, "b", LOCKER)
        a, b, b_alone = own(both, "a"), own(both, "b"), own(alone, "b")
        assert a.adapter_digest != b.adapter_digest
        assert b.adapter_digest == b_alone.adapter_digest
        base = ScriptedModel()
        assert mean_loss(a, ON_LOCKER) == mean_loss(base, ON_LOCKER)
        assert mean_loss(b, ON_RUFUS) == mean_loss(base, ON_RUFUS)


def test_adaptations_build_on_each_other_and_can_be_taken_back() -> None:
    with sessions() as adapters:
        note(adapters, "a", RUFUS)
        first = own(adapters, "a")
        note(adapters, "a", RUFUS, LOCKER)
        second = own(adapters, "a")
        assert (mean_loss(second, ON_LOCKER) or 9) < (mean_loss(first, ON_LOCKER) or 0)
        assert (mean_loss(second, ON_RUFUS) or 9) <= (mean_loss(first, ON_RUFUS) or 0)
        assert adapters.undo("a")
        assert [record.kept for record in adapters.history("a")] == [True, False]
        assert adapters.history("a")[-1].reason == "taken back"
        assert own(adapters, "a") is first
        note(adapters, "a", RUFUS, LOCKER)  # what was taken back is not learned again
        assert own(adapters, "a") is first
        assert adapters.undo("a")
        assert adapters.parts("a", ()) == ()
        assert not adapters.undo("a")
        assert not adapters.undo("nobody")
        assert adapters.counts() == AdaptationCounts(kept=2, undone=2)


def test_so_many_adaptations_can_be_taken_back() -> None:
    with sessions() as adapters:
        texts = [f"My friend number {i} is called Name{i}." for i in range(UNDO_STEPS + 3)]
        for count in range(len(texts)):
            note(adapters, "a", *texts[: count + 1])
        assert len(adapters.history("a")) == len(texts)
        undone = [adapters.undo("a") for _ in range(UNDO_STEPS + 1)]
        assert undone == [True] * UNDO_STEPS + [False]


def test_another_expert_has_another_adapter(tmp_path: Path) -> None:
    ref = expert(tmp_path / "e", "The mill at Orvane was built in 1871.")
    over_expert = Part(ref, 0.75)
    with sessions() as adapters:
        note(adapters, "a", RUFUS)
        assert adapters.parts("a", [over_expert]) == (over_expert,)
        note(adapters, "a", RUFUS, chosen=[("mills", ref)])
        base_adapter, expert_adapter = own(adapters, "a"), own(adapters, "a", over_expert)
        assert base_adapter.adapter_digest != expert_adapter.adapter_digest
        (part,) = adapters.parts("a", [over_expert])
        assert part.weight == 0.75
        mill = (ScoreRequest("", "The mill at Orvane"),)
        assert (mean_loss(expert_adapter, mill) or 9) < (mean_loss(base_adapter, mill) or 0)
        assert [record.expert for record in adapters.history("a")] == ["", "mills"]
        other = Part(AdapterRef(ref.path, "f" * 64, ref.base_digest))
        assert adapters.parts("a", [other]) == (other,)


def test_experts_that_answer_together_are_left_as_they_are(tmp_path: Path) -> None:
    one, two = expert(tmp_path / "1", RUFUS), expert(tmp_path / "2", LOCKER)
    parts = (Part(one, 0.5), Part(two, 0.5))
    with sessions() as adapters:
        note(adapters, "a", RUFUS, chosen=[("1", one), ("2", two)])
        assert adapters.parts("a", parts) == parts
        assert adapters.history("a") == ()
        note(adapters, "a", RUFUS)  # the turn counts for the next
        assert len(adapters.history("a")) == 1


def test_an_expert_stays_attached_while_an_adapter_over_it_lives(tmp_path: Path) -> None:
    refs = [expert(tmp_path / str(i), f"The mill {i} was built in 187{i}.") for i in range(3)]
    with sessions() as adapters:
        attached = adapters._experts._models
        for number, ref in enumerate(refs):
            note(adapters, "a", RUFUS, chosen=[(str(number), ref)])
        assert set(attached) == {ref.digest for ref in refs}
        in_flight = own(adapters, "a", Part(refs[0]))
        adapters.forget("a")
        note(adapters, "b", LOCKER)
        assert set(attached) == {refs[0].digest}
        assert mean_loss(in_flight, ON_RUFUS) is not None
        del in_flight
        note(adapters, "c", LOCKER)
        assert set(attached) == set()


def test_experts_files_are_never_written(tmp_path: Path) -> None:
    ref = expert(tmp_path / "e", "The mill at Orvane was built in 1871.")
    before = {p.name: p.read_bytes() for p in ref.path.iterdir()}
    with sessions() as adapters:
        note(adapters, "a", RUFUS, chosen=[("e", ref)])
        own(adapters, "a", Part(ref))
    assert {p.name: p.read_bytes() for p in ref.path.iterdir()} == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["e"]


def test_a_session_can_be_switched_off() -> None:
    with sessions() as adapters:
        note(adapters, "a", RUFUS)
        adapted = own(adapters, "a")
        adapters.set_enabled("a", False)
        assert adapters.parts("a", ()) == ()
        note(adapters, "a", RUFUS, LOCKER)
        assert len(adapters.history("a")) == 1
        adapters.set_enabled("a", True)
        assert own(adapters, "a") is adapted


def test_the_least_recently_used_session_is_forgotten_and_its_adapter_freed() -> None:
    with sessions(settings=config(max_sessions=2)) as adapters:
        note(adapters, "a", RUFUS)
        note(adapters, "b", LOCKER)
        freed = weakref.ref(own(adapters, "b"))
        in_use = own(adapters, "a")
        note(adapters, "c", LOCKER)
        gc.collect()
        assert adapters.parts("b", ()) == ()
        assert freed() is None
        assert own(adapters, "a") is in_use
        note(adapters, "d", LOCKER)
        note(adapters, "e", LOCKER)
        assert adapters.parts("a", ()) == ()
        assert mean_loss(in_use, ON_RUFUS) is not None  # an answer that has it keeps it


def test_forgetting_a_session_leaves_nothing_of_it() -> None:
    with sessions() as adapters:
        note(adapters, "a", RUFUS)
        freed = weakref.ref(own(adapters, "a"))
        adapters.forget("a")
        adapters.forget("nobody")
        gc.collect()
        assert freed() is None
        assert adapters.history("a") == ()
        assert adapters.parts("a", ()) == ()


def test_what_happened_is_recorded_and_told() -> None:
    log, events = Log(), list[Event]()
    with sessions(activity=log, emit=events.append) as adapters:
        note(adapters, "a", RUFUS)
        note(adapters, "a", RUFUS, "Hello!")  # nothing new: no record
        (record,) = log.records
        assert adapters.history("a") == (record,)
        assert record.session == "a"
        assert record.kept
        assert record.examples_after is not None
        assert record.examples_before is not None
        assert record.examples_after < record.examples_before
        assert record.retention_before == record.retention_after
        assert record.started > 1e9
        (notice,) = [e for e in events if isinstance(e, Notice)]
        assert "1 new passages in 4 steps" in notice.message


def test_a_record_that_cannot_be_written_stops_nothing() -> None:
    events = list[Event]()
    with sessions(activity=Log(broken=True), emit=events.append) as adapters:
        note(adapters, "a", RUFUS)
        own(adapters, "a")
        assert any(isinstance(e, Notice) and "disk is full" in e.message for e in events)


def test_a_failed_training_is_recorded_and_leaves_the_adapter_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = ScriptedModel()
    errors = [None, OutOfMemoryError("no memory left"), None]
    bench = ScriptedTrialBench(model, fail=lambda job: errors.pop(0))
    monkeypatch.setattr(model, "trial_bench", lambda: bench)
    with sessions(ScriptedWriter(model)) as adapters:
        note(adapters, "a", RUFUS)
        first = own(adapters, "a")
        note(adapters, "a", RUFUS, LOCKER)
        assert own(adapters, "a") is first
        assert "no memory left" in adapters.history("a")[-1].reason
        note(adapters, "a", RUFUS, LOCKER)  # it is tried again
        assert adapters.history("a")[-1].kept
        assert adapters.counts() == AdaptationCounts(kept=2, failed=1)


def test_an_expert_that_cannot_be_read_is_told_of(tmp_path: Path) -> None:
    events = list[Event]()
    gone = AdapterRef(tmp_path / "gone", "0" * 64, ScriptedModel().digest)
    with sessions(emit=events.append) as adapters:
        note(adapters, "a", RUFUS, chosen=[("gone", gone)])
        assert any(isinstance(e, Notice) and e.level == "warning" for e in events)
        assert adapters.counts() == AdaptationCounts(failed=1)
        note(adapters, "a", RUFUS)
        own(adapters, "a")


def test_an_adaptation_that_does_harm_is_counted_as_dropped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(TestTimeAdaptation, "_harm", lambda *_: "a loss rose")
    with sessions() as adapters:
        note(adapters, "a", RUFUS)
        note(adapters, "a", "Hello!")  # nothing to learn: nothing to count
        assert adapters.parts("a", ()) == ()
        assert adapters.counts() == AdaptationCounts(dropped=1)


def test_the_counts_outlive_the_sessions() -> None:
    with sessions(settings=config(max_sessions=1)) as adapters:
        note(adapters, "a", RUFUS)
        note(adapters, "b", LOCKER)
        adapters.forget("b")
        seen = adapters.counts()
        assert seen == AdaptationCounts(kept=2)
        note(adapters, "c", LOCKER)
        assert seen.kept == 2  # what was given is a copy


# ------------------------------------------------------------ waiting


def held(writer: LendingWriter) -> tuple[threading.Event, threading.Event]:
    """Stops the first slice in its middle: (it has begun, it may go on)."""
    begun, go_on = threading.Event(), threading.Event()

    def hold(number: int) -> None:
        begun.set()
        assert go_on.wait(10)

    writer.on_slice = hold
    return begun, go_on


def test_of_a_session_only_the_latest_turn_waits() -> None:
    writer = LendingWriter(ScriptedModel())
    begun, go_on = held(writer)
    with sessions(writer) as adapters:
        adapters.note_turn("x", (), said("I live in Tolvik."))
        assert begun.wait(10)
        for count in range(5):
            adapters.note_turn("a", (), said(*[RUFUS, LOCKER][: 1 + count % 2]))
        go_on.set()
        assert adapters.wait(20)
        assert len(adapters.history("x")) == 1
        assert len(adapters.history("a")) == 1


@pytest.mark.parametrize(
    "drop",
    [
        lambda adapters: adapters.undo("a"),
        lambda adapters: adapters.forget("a"),
        lambda adapters: adapters.set_enabled("a", False),
    ],
)
def test_what_is_being_learned_is_dropped_when_it_is_no_longer_wanted(
    drop: Callable[[SessionAdapters], object],
) -> None:
    writer = LendingWriter(ScriptedModel())
    begun, go_on = held(writer)
    with sessions(writer) as adapters:
        adapters.note_turn("a", (), said(RUFUS))
        assert begun.wait(10)
        drop(adapters)
        go_on.set()
        assert adapters.wait(20)
        assert adapters.history("a") == ()
        assert adapters.counts() == AdaptationCounts()
        adapters.set_enabled("a", True)
        assert adapters.parts("a", ()) == ()


def test_closing_ends_the_thread_and_may_come_twice() -> None:
    writer = LendingWriter(ScriptedModel())
    adapters = SessionAdapters(writer, config())
    begun, go_on = held(writer)
    adapters.note_turn("a", (), said(RUFUS))
    assert begun.wait(10)
    go_on.set()
    adapters.close()
    adapters.close()
    assert adapters._thread is not None
    assert not adapters._thread.is_alive()
    adapters.note_turn("a", (), said(RUFUS))
    assert adapters.parts("a", ()) == ()


def test_closing_the_writer_first_ends_it_too() -> None:
    writer = LendingWriter(ScriptedModel())
    events = list[Event]()
    adapters = SessionAdapters(writer, config(), emit=events.append)
    writer.close()
    note(adapters, "a", RUFUS)
    assert adapters.history("a") == ()
    assert events == []
    adapters.close()


def test_answers_of_a_session_are_written_with_its_adapter() -> None:
    writer = ScriptedWriter(ScriptedModel())
    with sessions(writer) as adapters:
        note(adapters, "a", RUFUS)
        text = writer.submit(WriteRequest("Tell me", parts=adapters.parts("a", ())))
        assert "".join(piece.text for piece in text).startswith("[session]")


def test_a_strategy_that_asks_the_model_asks_for_one_short_edit_of_each_passage() -> None:
    model = ScriptedModel()
    with sessions(ScriptedWriter(model), config(strategy="implications")) as adapters:
        note(adapters, "a", RUFUS, "Hello!", LOCKER)
        assert len(model.requests) == 2
        for request in model.requests:
            assert len(request.seeds) == 1
            assert request.sampling.max_new_tokens <= 128
            assert request.deadline_seconds is not None
            assert request.deadline_seconds <= 2
        own(adapters, "a")


# ------------------------------------------------------------ what is refused


def test_settings_that_cannot_be_used_are_refused_at_the_start(tmp_path: Path) -> None:
    writer = ScriptedWriter(ScriptedModel())
    with pytest.raises(UnknownStrategyError):
        SessionAdapters(writer, config(strategy="nonsense"))
    bad = tmp_path / "bad.txt"
    bad.write_bytes(b"\xff\xfe\xff")
    settings = config()
    training = settings.training.model_copy(update={"retention_file": bad})
    with pytest.raises(UsageError, match="UTF-8"):
        SessionAdapters(writer, settings.model_copy(update={"training": training}))
    writer.close()


def test_the_users_own_retention_text_is_used(tmp_path: Path) -> None:
    path = tmp_path / "retention.txt"
    path.write_text("The sea is deep.\n\nThe sky is wide.\n", encoding="utf-8")
    settings = config()
    training = settings.training.model_copy(update={"retention_file": path})
    with sessions(settings=settings.model_copy(update={"training": training})) as adapters:
        note(adapters, "a", RUFUS)
        record = adapters.history("a")[0]
        texts = [ScoreRequest("", "The sea is deep."), ScoreRequest("", "The sky is wide.")]
        assert record.retention_before == pytest.approx(mean_loss(ScriptedModel(), texts))


def test_a_session_tells_which_statements_it_has_learned() -> None:
    with sessions() as adapters:
        note(adapters, "a", RUFUS, "How are you?")
        note(adapters, "a", RUFUS, LOCKER)
        first, second = adapters.lessons("a")
        assert (first.new, first.repeated) == ((RUFUS,), ())
        assert (second.new, second.repeated) == ((LOCKER,), (RUFUS,))
        assert adapters.lessons("b") == ()
        adapters.undo("a")
        last = adapters.lessons("a")[-1]
        assert (last.new, last.told.kept, last.told.reason) == ((LOCKER,), False, "taken back")
        adapters.forget("a")
        assert adapters.lessons("a") == ()


def test_hostile_texts_are_read() -> None:
    with sessions() as adapters:
        note(adapters, "\ud800", "My name is \udcff Brandt and my code is 4471.", "x" * 100_000)
        assert len(adapters.history("\ud800")) == 1
