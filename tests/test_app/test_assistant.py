"""The assistant: who answers, with what, what is recorded, and what is refused."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from aios.app.chat import answer_records, assistant_parts
from aios.app.chat.adaptation_counts import AdaptationCounts
from aios.app.chat.answerers import Answerers
from aios.app.chat.answering import Answering
from aios.app.chat.assistant import Assistant, ServedModel, open_assistant
from aios.app.chat.offered_experts import Offer, OfferedExperts
from aios.backends.scripted import ScriptedModel
from aios.backends.scripted_serving import ScriptedWriter
from aios.core.config.schemas import Config
from aios.core.errors import (
    BackendError,
    QueueFullError,
    StorageError,
    UnknownExpertError,
    UsageError,
)
from aios.core.events import Event, Notice
from aios.core.serving import Part
from aios.core.types import AdapterRef, Expert, SamplingParams
from aios.storage.activity import FILE, ActivityStore
from aios.storage.experts import FileExpertStore
from tests.test_app.scripted_experts import WordRouter, add_expert, store_in

TELL = "Passage: The mill stands. The bell rings. The gate shuts."  # needs many words


def made_config(artifacts: Path, **sections: Any) -> Config:
    fixed = {"model": {"name": "scripted"}, "paths": {"artifacts": artifacts}}
    return Config(**{**fixed, **sections})


class FakeAdapters:
    """What `SessionAdapters` is to the assistant: an adapter for a session that has spoken."""

    def __init__(self, adapter: AdapterRef) -> None:
        self.adapter = adapter
        self.turns: list[tuple[str, tuple[tuple[str, AdapterRef], ...], list[dict[str, str]]]] = []
        self.learned: set[str] = set()
        self.closed = False

    def parts(self, session: str, parts: tuple[Part, ...]) -> tuple[Part, ...]:
        return (*parts, Part(self.adapter)) if session in self.learned else parts

    def note_turn(self, session: str, chosen: Any, messages: Any) -> None:
        self.turns.append((session, tuple(chosen), list(messages)))
        self.learned.add(session)

    def undo(self, session: str) -> bool:
        found = session in self.learned
        self.learned.discard(session)
        return found

    def history(self, session: str) -> tuple[Any, ...]:
        return ("learned",) if session in self.learned else ()

    def lessons(self, session: str) -> tuple[Any, ...]:
        return self.history(session)

    def counts(self) -> AdaptationCounts:
        return AdaptationCounts(kept=3, dropped=1)

    def forget(self, session: str) -> None:
        self.learned.discard(session)

    def close(self) -> None:
        self.closed = True


class Place:
    """An assistant over the scripted writer, with everything around it in reach."""

    def __init__(self, folder: Path, *, adapting: bool = False, **sections: Any) -> None:
        self.config = made_config(folder, **sections)
        self.events: list[Event] = []
        self.store = store_in(folder)
        self.writer = ScriptedWriter(ScriptedModel())
        self.routers: list[WordRouter] = []
        self.folder = folder
        self.adapters: FakeAdapters | None = None
        if adapting:
            add_expert(self.store, "own")
            self.store.set_active("own", False)
            self.adapters = FakeAdapters(self.store.adapter("own"))
        self.opened: Assistant | None = None

    @property
    def assistant(self) -> Assistant:
        if self.opened is None:
            records = assistant_parts.open_records(self.config, self.store, self.events.append)
            self.opened = Assistant(
                self.config,
                writer=self.writer,
                answerers=Answerers(
                    "scripted",
                    OfferedExperts(self.store, self.writer.model.digest, self.events.append),
                    self.router,
                ),
                records=records[0] if records else None,
                adapters=self.adapters,  # type: ignore[arg-type]
                emit=self.events.append,
                on_close=self.writer.close,
            )
        return self.opened

    def router(self, offer: Offer) -> WordRouter:
        self.routers.append(WordRouter(offer.experts))
        return self.routers[-1]

    def ask(self, text: str, **settings: Any) -> Answering:
        answer = self.assistant.chat([{"role": "user", "content": text}], **settings)
        answer.read()
        return answer

    def activity(self) -> ActivityStore:
        """What was recorded; ends the assistant."""
        self.assistant.close()
        return ActivityStore(self.folder / "experts" / FILE)

    @property
    def notices(self) -> list[str]:
        return [event.message for event in self.events if isinstance(event, Notice)]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.assistant.close()
    made.writer.close()


@pytest.fixture
def adapting(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path, adapting=True)
    yield made
    made.assistant.close()
    made.writer.close()


def test_without_experts_the_base_model_answers(place: Place) -> None:
    answer = place.ask("Where is the mill?")
    assert answer.text == "unknown"
    assert answer.answered_by.experts == ()
    assert answer.answered_by.name == "base"
    assert answer.ending is not None
    assert answer.ending.reason == "stop"
    assert place.routers == []


def test_the_models_are_auto_base_and_the_active_experts(place: Place) -> None:
    add_expert(place.store, "mills", description="Mills and weirs", created_at="2025-01-31T12:00Z")
    add_expert(place.store, "bells", is_active=False)
    auto, base, *experts = place.assistant.models()
    assert (auto.id, auto.kind, base.id, base.kind) == ("auto", "auto", "base", "base")
    assert experts == [ServedModel("mills", "expert", "Mills and weirs", 1738324800)]


def test_an_expert_that_is_asked_for_answers(place: Place) -> None:
    add_expert(place.store, "mills")
    answer = place.ask("Where?", model="mills")
    assert answer.text == "[mills] unknown"
    assert answer.answered_by.experts == (("mills", 1.0),)
    assert place.ask("Where?", model="base").text == "unknown"
    assert place.ask("Where?", model="scripted").text == "unknown"


def test_auto_lets_the_router_choose(place: Place) -> None:
    for name in ("mills", "bells", "gates"):
        add_expert(place.store, name)
    both = place.ask("Of mills and bells?")
    assert both.text == "[bells*0.5 mills*0.5] unknown"
    assert both.answered_by.experts == (("mills", 0.5), ("bells", 0.5))
    assert both.answered_by.reason == "named: 2"
    assert place.ask("Of weather?").answered_by.experts == ()
    assert len(place.routers) == 1


def test_the_router_sees_the_last_question_and_what_was_said_before(place: Place) -> None:
    add_expert(place.store, "mills")
    place.assistant.chat(
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "one"},
            {"role": "assistant", "content": "two"},
            {"role": "user", "content": "three"},
        ]
    ).read()
    assert place.routers[0].asked == [("three", ("one",))]


def test_a_change_of_the_registry_is_seen_by_the_next_answer(place: Place) -> None:
    assert place.ask("mills?").answered_by.experts == ()
    add_expert(place.store, "mills")
    assert place.ask("mills?").answered_by.experts == (("mills", 1.0),)
    place.store.set_active("mills", False)
    assert place.ask("mills?").answered_by.experts == ()
    with pytest.raises(UsageError, match="mills is not active") as caught:
        place.ask("where?", model="mills")
    assert "aios experts activate mills" in caught.value.remedy


def test_counters_alone_make_no_new_router(place: Place) -> None:
    add_expert(place.store, "mills")
    place.ask("mills?")
    place.store.update("mills", lambda e: Expert(**{**asdict(e), "total_activations": 7}))
    place.ask("mills?")
    assert len(place.routers) == 1


def test_an_expert_that_is_trained_again_answers_as_it_is_now(place: Place) -> None:
    add_expert(place.store, "mills", "question: Who owns it? answer: Tove")
    assert place.ask("Who owns it?", model="mills").text == "[mills] Tove"
    add_expert(place.store, "mills", "question: Who owns it? answer: Arn")
    assert place.ask("Who owns it?", model="mills").text == "[mills] Arn"


def test_experts_of_another_base_model_are_not_offered_and_a_notice_says_so_once(
    place: Place,
) -> None:
    add_expert(place.store, "mills", base_digest="ab" * 32)
    add_expert(place.store, "base")
    add_expert(place.store, "bells")
    (place.store.folder("bells") / "expert.json").write_text("{}")
    for _ in range(3):
        assert [served.id for served in place.assistant.models()] == ["auto", "base"]
        add_expert(place.store, "new", is_active=False)
    assert [text.split(",")[0] for text in place.notices[:2]] == [
        "expert mills was trained on another base model",
        "expert base has a reserved name",
    ]
    assert "bells" in place.notices[2]
    assert len(place.notices) == 3
    with pytest.raises(UsageError, match="another base model"):
        place.ask("where?", model="mills")


def _lead_out(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.symlink_to("/")


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "expert.json").write_text("{"),
        lambda folder: (folder / "expert.json").write_text("{}"),
        lambda folder: (folder / "adapter_model.safetensors").unlink(),
        lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"no adapter"),
        _lead_out,
    ],
    ids=["card", "empty card", "no weights", "weights", "symlink"],
)
def test_who_asks_a_damaged_expert_is_told_its_id_and_no_path(
    place: Place, damage: Callable[[Path], object]
) -> None:
    add_expert(place.store, "mills")
    damage(place.store.root / "mills")
    with pytest.raises(UsageError, match="mills cannot answer") as caught:
        place.ask("where?", model="mills")
    assert str(place.folder) not in str(caught.value)
    (notice,) = place.notices
    assert "mills" in notice
    assert str(place.folder) in notice


def test_a_damaged_expert_that_the_router_chose_is_named(place: Place) -> None:
    for name in ("mills", "bells"):
        add_expert(place.store, name)
    (place.store.folder("bells") / "adapter_model.safetensors").write_bytes(b"no adapter")
    with pytest.raises(UsageError, match="bells cannot answer") as caught:
        place.ask("bells?")
    assert "mills" not in str(caught.value)


def test_of_a_base_model_in_a_folder_its_own_name_alone_is_shown(tmp_path: Path) -> None:
    for name, shown in {
        "/srv/models/tiny": "tiny",
        "./tiny.gguf": "tiny.gguf",
        "owner/tiny@main": "owner/tiny@main",
        "smollm2-135m": "smollm2-135m",
        "/": "/",
    }.items():
        experts = OfferedExperts(store_in(tmp_path), "", lambda _: None)
        auto, base = Answerers(name, experts, lambda offer: WordRouter(())).models()
        assert base.description == shown
        assert auto.description == f"experts over {shown}, chosen for each message"


def test_an_unknown_expert_is_refused_with_close_names(place: Place) -> None:
    add_expert(place.store, "mills")
    with pytest.raises(UnknownExpertError, match="there is no expert 'mils'") as caught:
        place.ask("where?", model="mils")
    assert "mills" in caught.value.remedy
    for name in ("../mills", "mills\0", "x" * 100_000, ""):
        with pytest.raises(UnknownExpertError) as caught:
            place.ask("where?", model=name)
        assert len(str(caught.value)) < 1000


def test_a_broken_registry_is_an_error_at_first_and_a_warning_later(tmp_path: Path) -> None:
    first = Place(tmp_path / "first")
    first.store.root.mkdir(parents=True)
    first.store.path.write_text("{")
    with pytest.raises(StorageError, match="corrupt"):
        first.assistant.models()
    first.assistant.close()
    later = Place(tmp_path / "later")
    add_expert(later.store, "mills")
    assert len(later.assistant.models()) == 3
    later.store.path.write_text("{")
    assert len(later.assistant.models()) == 3
    assert later.ask("mills?").answered_by.experts == (("mills", 1.0),)
    assert len([n for n in later.notices if "stay as they were" in n]) == 1
    later.assistant.close()


def test_only_the_last_turns_are_read(tmp_path: Path) -> None:
    place = Place(tmp_path, chat={"max_context_tokens": 20, "system": "Be brief."})
    talk = [
        {"role": role, "content": f"{role} {i} " + "w " * 5}
        for i in range(4)
        for role in ("user", "assistant")
    ]
    answer = place.assistant.chat([*talk, {"role": "user", "content": "And now?"}])
    answer.read()
    assert place.writer.requests[-1].prompt.startswith("Be brief.\n\nuser 3")
    assert (answer.seen.kept, answer.seen.left_out, answer.seen.tokens) == (3, 6, 18)
    long = place.ask("early " + "w " * 100 + "late")
    assert place.writer.requests[-1].prompt.endswith("late")
    assert long.seen.cut > 0
    assert any("too long for the model" in notice for notice in place.notices)
    place.assistant.close()


def test_room_for_the_answer_is_kept_in_a_small_context(tmp_path: Path) -> None:
    place = Place(tmp_path, chat={"max_context_tokens": 1000, "max_new_tokens": 500})
    place.writer = ScriptedWriter(ScriptedModel(context_length=100))
    answer = place.ask("w " * 300)
    assert answer.seen.tokens == 50
    place.assistant.close()


def test_a_plain_prompt_goes_without_a_template(place: Place) -> None:
    add_expert(place.store, "mills")
    answer = place.assistant.complete("mills are", model="auto")
    assert answer.read() == "[mills] unknown"
    assert place.writer.requests[-1].prompt == "mills are"
    assert answer.id.startswith("cmpl-")
    with pytest.raises(UsageError, match="is empty"):
        place.assistant.complete("")
    with pytest.raises(UsageError, match="context"):
        place.assistant.complete("w " * 5000)


def test_settings_reach_the_writer(place: Place) -> None:
    sampling = SamplingParams(0.0, 0.5, 3, ("END",))
    answer = place.ask("hi", sampling=sampling, seed=7, top_logprobs=2, timeout_seconds=9.0)
    request = place.writer.requests[-1]
    assert (request.sampling, request.seed, request.top_logprobs) == (sampling, 7, 2)
    assert (request.timeout_seconds, answer.seed) == (9.0, 7)
    place.ask("hi", seed=-1)
    assert place.writer.requests[-1].seed == 2**63 - 1
    place.ask("hi")
    chat = place.config.chat
    assert place.writer.requests[-1].sampling == SamplingParams(
        chat.temperature, chat.top_p, chat.max_new_tokens
    )


def test_answers_without_a_seed_draw_their_own(place: Place) -> None:
    assert place.ask("hi").seed != place.ask("hi").seed


@pytest.mark.parametrize(
    "settings",
    [
        {"session": "x" * 300},
        {"session": "a\nb"},
        {"session": "\ud800"},
        {"sampling": SamplingParams(temperature=-1)},
        {"sampling": SamplingParams(temperature=float("nan"))},
        {"sampling": SamplingParams(top_p=0)},
        {"sampling": SamplingParams(max_new_tokens=0)},
        {"sampling": SamplingParams(stop=("",))},
        {"sampling": SamplingParams(stop=("x",) * 17)},
        {"top_logprobs": 21},
        {"timeout_seconds": 0},
        {"timeout_seconds": float("inf")},
    ],
)
def test_settings_that_cannot_be_used_are_refused(place: Place, settings: Any) -> None:
    with pytest.raises(UsageError):
        place.ask("hi", **settings)
    assert place.writer.requests == []


def test_a_full_queue_passes_through(place: Place) -> None:
    place.writer.full = True
    with pytest.raises(QueueFullError):
        place.ask("hi")


def test_an_answer_is_recorded_when_it_has_ended(place: Place) -> None:
    add_expert(place.store, "mills")
    answer = place.ask("mills?", session="s1")
    cut = place.assistant.chat([{"role": "user", "content": TELL}], model="base")
    for _ in cut:
        break  # the reader leaves
    with place.activity() as activity:
        records = {record.id: record for record in activity.answers()}
        assert set(records) == {answer.id, cut.id}
        record = records[answer.id]
        assert (record.model, record.session, record.reason) == ("auto", "s1", "named: 1")
        assert record.experts == (("mills", 1.0),)
        assert record.finish_reason == "stop"
        assert (record.message, record.text) == ("", "")
        assert records[cut.id].finish_reason == "cancelled"
    assert place.store.require("mills").total_activations == 1


def test_an_answer_that_fails_is_not_recorded(place: Place) -> None:
    place.writer.batch.fail_after = 1
    answer = place.assistant.chat([{"role": "user", "content": TELL}])
    with pytest.raises(BackendError, match="says to fail"):
        answer.read()
    with place.activity() as activity:
        assert activity.answers() == ()


def test_a_cancelled_answer_ends_and_says_so(place: Place) -> None:
    place.writer.batch.seconds_per_token = 0.01
    answer = place.assistant.chat([{"role": "user", "content": TELL}])
    for index, _ in enumerate(answer):
        if index == 1:
            answer.cancel()
    assert answer.ending is not None
    assert answer.ending.reason == "cancelled"
    with place.activity() as activity:
        assert [record.finish_reason for record in activity.answers()] == ["cancelled"]


def test_an_answer_is_read_once(place: Place) -> None:
    answer = place.ask("hi")
    with pytest.raises(RuntimeError, match="once"):
        list(answer)


def test_counters_are_folded_in_at_the_end_and_every_few_minutes(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_expert(place.store, "mills")
    for _ in range(3):
        place.ask("mills?")
    assert place.store.require("mills").total_activations == 0
    monkeypatch.setattr(answer_records, "FOLD_SECONDS", 0.0)
    place.assistant.feedback(place.ask("mills?").id, rating=1)  # waits for the records before it
    assert place.store.require("mills").total_activations >= 3
    place.assistant.close()
    assert place.store.require("mills").total_activations == 4


def test_a_record_that_cannot_be_written_is_a_warning_and_the_answer_is_not_lost(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: ActivityStore, *args: Any, **kwargs: Any) -> None:
        raise StorageError("cannot write it: disk full", "Free some space.")

    monkeypatch.setattr(ActivityStore, "record_answer", full)
    assert [place.ask("hi").text for _ in range(3)] == ["unknown"] * 3
    place.assistant.close()
    assert [n for n in place.notices if "disk full" in n] == [
        "cannot write it: disk full Free some space."
    ]


def test_a_database_that_cannot_be_opened_is_a_warning(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.store.root.mkdir()
    (place.store.root / FILE).write_text("no database, this")
    answer = place.ask("hi")
    assert answer.text == "unknown"
    assert "answers are not recorded" in place.notices[0]
    with pytest.raises(StorageError, match="not recorded"):
        place.assistant.feedback(answer.id, rating=1)
    place.assistant.close()


def test_a_slow_disk_holds_up_no_answer(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()
    record = ActivityStore.record_answer

    def slow(self: ActivityStore, *args: Any, **kwargs: Any) -> None:
        assert go_on.wait(10)
        record(self, *args, **kwargs)

    monkeypatch.setattr(ActivityStore, "record_answer", slow)
    answers = [place.ask("hi").id for _ in range(3)]
    go_on.set()
    with place.activity() as activity:
        assert {record.id for record in activity.answers()} == set(answers)


def test_feedback_is_stored_with_what_was_asked(place: Place) -> None:
    answer = place.ask("Where is the mill?")
    place.assistant.feedback(answer.id, rating=-1.0, correction="At the weir.", comment="wrong")
    place.assistant.feedback(answer.id, rating=1.0)
    for bad in ({"rating": 7.0}, {}, {"correction": "\ud800"}):
        with pytest.raises(UsageError):
            place.assistant.feedback(answer.id, **bad)
    with pytest.raises(UsageError, match="no answer"):
        place.assistant.feedback("chatcmpl-unknown", rating=1.0)
    with place.activity() as activity:
        last, first = activity.feedback()
    assert (first.rating, first.correction, first.comment) == (-1.0, "At the weir.", "wrong")
    assert first.message == "Where is the mill?"
    assert (last.rating, last.message) == (1.0, "")


def test_adaptations_are_counted(adapting: Place, tmp_path: Path) -> None:
    assert adapting.assistant.adaptation_counts() == AdaptationCounts(kept=3, dropped=1)
    without = Place(tmp_path / "without")
    assert without.assistant.adaptation_counts() == AdaptationCounts()
    without.assistant.close()


def test_a_session_adapts_and_another_does_not(adapting: Place) -> None:
    add_expert(adapting.store, "mills")
    adapters = adapting.adapters
    assert adapters is not None
    first = adapting.ask("Of mills?", session="s1")
    assert (first.text, first.answered_by.adapted) == ("[mills] unknown", False)
    ((session, chosen, messages),) = adapters.turns
    assert session == "s1"
    assert chosen == (("mills", adapting.store.adapter("mills")),)
    assert messages == [
        {"role": "user", "content": "Of mills?"},
        {"role": "assistant", "content": "[mills] unknown"},
    ]
    again = adapting.ask("Of mills?", session="s1")
    assert again.answered_by.adapted
    assert again.answered_by.experts == (("mills", 1.0),)
    assert len(adapting.writer.requests[-1].parts) == 2
    for settings in ({"session": "s2"}, {"session": "s1", "tta": False}, {}):
        assert not adapting.ask("Of mills?", **settings).answered_by.adapted
    assert [turn[0] for turn in adapters.turns] == ["s1", "s1", "s2"]
    assert adapting.assistant.complete("mills", session="s1").read().startswith("[mills own]")
    assert len(adapters.turns) == 3


def test_what_a_session_has_learned_can_be_seen_and_taken_back(adapting: Place) -> None:
    adapting.ask("hi", session="s1")
    assistant = adapting.assistant
    assert assistant.can_adapt
    assert len(assistant.adaptations("s1")) == len(assistant.lessons("s1")) == 1
    assert assistant.undo("s1")
    assert not assistant.undo("s1")
    adapting.ask("hi", session="s1")
    assistant.forget("s1")
    assert assistant.adaptations("s1") == ()
    assistant.close()
    assert adapting.adapters is not None
    assert adapting.adapters.closed


def test_adaptation_is_off_where_the_config_says_so(tmp_path: Path) -> None:
    place = Place(tmp_path, adapting=True, adaptation={"enabled": False})
    place.ask("hi", session="s1")
    assert place.adapters is not None
    assert place.adapters.turns == []
    place.ask("hi", session="s1", tta=True)
    assert len(place.adapters.turns) == 1
    place.assistant.close()


def test_an_answer_that_was_stopped_teaches_nothing(adapting: Place) -> None:
    answer = adapting.assistant.chat([{"role": "user", "content": TELL}], session="s1")
    for _ in answer:
        break
    assert adapting.adapters is not None
    assert adapting.adapters.turns == []


def test_many_threads_ask_at_once(place: Place) -> None:
    for name in ("mills", "bells"):
        add_expert(place.store, name)
    place.assistant.models()

    def ask(number: int) -> str:
        name = ("mills", "bells", "weather")[number % 3]
        return place.ask(f"Of {name}?", session=f"s{number}").text

    with ThreadPoolExecutor(8) as pool:
        texts = list(pool.map(ask, range(48)))
    assert texts == ["[mills] unknown", "[bells] unknown", "unknown"] * 16
    assert len(place.routers) == 1
    with place.activity() as activity:
        assert len(activity.answers()) == 48
        assert {e: c.activations for e, c in activity.counters().items()} == {
            "mills": 16,
            "bells": 16,
        }


def test_close_may_come_twice_and_ends_answers(place: Place) -> None:
    place.writer.batch.seconds_per_token = 0.05
    answer = place.assistant.chat([{"role": "user", "content": TELL}])
    place.assistant.close()
    place.assistant.close()
    answer.read()
    assert answer.ending is not None
    assert answer.ending.reason == "cancelled"
    with pytest.raises(BackendError):
        place.ask("hi")


def test_an_assistant_is_opened_as_the_config_says(tmp_path: Path) -> None:
    config = made_config(tmp_path)
    store = FileExpertStore(tmp_path / "experts", "scripted")
    add_expert(store, "mills", goals=("mills and weirs",))
    events: list[Event] = []
    with open_assistant(config, emit=events.append) as assistant:
        assert [served.id for served in assistant.models()] == ["auto", "base", "mills"]
        answer = assistant.chat([{"role": "user", "content": "hi"}], model="mills")
        assert answer.read() == "[mills] unknown"
        assert assistant.load().writing == 0
        routed = assistant.chat([{"role": "user", "content": "Tell me of mills and weirs."}])
        routed.read()
        assert routed.answered_by.experts == (("mills", 1.0),)
    assert store.require("mills").total_activations == 2


def test_a_writer_that_was_given_stays_open(tmp_path: Path) -> None:
    config = made_config(tmp_path)
    writer = ScriptedWriter()
    with open_assistant(config, writer=writer) as assistant:
        assistant.chat([{"role": "user", "content": "hi"}]).read()
    with open_assistant(config, writer=writer) as assistant:
        assistant.chat([{"role": "user", "content": "hi"}]).read()
    writer.close()


def test_experts_can_be_chosen_by_their_loss(tmp_path: Path) -> None:
    add_expert(store_in(tmp_path), "mills", "The mill of Orrin was built in 1821.")
    add_expert(store_in(tmp_path), "bells", "The bell of Cald rings at noon.")
    config = made_config(tmp_path, routing={"signals": ("loss",), "threshold": 0.05})
    with open_assistant(config) as assistant:
        answer = assistant.chat(
            [{"role": "user", "content": "The mill of Orrin was built in 1821."}]
        )
        answer.read()
    assert answer.answered_by.name == "mills"


def test_a_model_that_cannot_be_trained_answers_without_adapting(tmp_path: Path) -> None:
    class Plain:
        """Names and counts, and nothing to train."""

        def __init__(self) -> None:
            self._model = ScriptedModel()
            for name in ("name", "digest", "context_length", "count_tokens", "format_chat"):
                setattr(self, name, getattr(self._model, name))

    class PlainWriter(ScriptedWriter):
        model = Plain()  # type: ignore[assignment]

    writer = PlainWriter()
    with open_assistant(made_config(tmp_path), writer=writer) as assistant:  # type: ignore[arg-type]
        assert not assistant.can_adapt
        answer = assistant.chat([{"role": "user", "content": "hi"}], session="s1")
        assert answer.read() == "unknown"
        assert not assistant.undo("s1")
        assert assistant.adaptations("s1") == ()
        assistant.set_adapting("s1", True)
        assistant.forget("s1")
    writer.close()


@pytest.mark.slow
def test_a_real_model_answers_and_adapts(tmp_path: Path) -> None:
    from tests.tiny_model import build_tiny_model

    folder = build_tiny_model(tmp_path / "tiny")
    config = made_config(
        tmp_path / "artifacts",
        model={"name": str(folder), "device": "cpu"},
        chat={"max_new_tokens": 4, "max_context_tokens": 48},
        adaptation={"every": 1, "steps": 2, "strategy": "cloze"},
    )
    told: list[Event] = []
    with open_assistant(config, emit=told.append) as assistant:
        answers = [
            assistant.chat(
                [{"role": "user", "content": "The mill of Orrin was built in 1821 by Tove."}],
                session="s1",
                seed=3,
            )
            for _ in range(2)
        ]
        first, second = (answer.read() for answer in answers)
        assert first == second
        assert answers[0].ending is not None
        assert 1 <= answers[0].ending.completion_tokens <= 4
        adapters = assistant._adapters
        assert adapters is not None
        assert adapters.wait(60)
        assert assistant.adaptations("s1"), told
