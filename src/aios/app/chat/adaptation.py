"""Sessions that learn from what is said in them: each one's own adapter, trained in the background.

Takes the turns of conversations; after every few of them the session's adapter is trained further
(`core.seal.test_time_adaptation`) and used for the answers that follow. An answer never waits for
it: one thread trains for all sessions, a step at a time inside `Writer.between`, and between two
steps whatever was asked meanwhile is written. On a machine that always writes nothing is learned.

A session's adapters are found by its id and by the digest of the expert that they are over, and by
nothing else, so neither another session nor another expert ever meets them. They live in memory
only: experts' files are read, never written. Sessions beyond ``serve.max_sessions`` are forgotten,
the least recently used first. An adapter is freed when nobody refers to it any more, so an answer
that is being written keeps the one that it began with.

Answers of several experts at once are not adapted: there is no one expert to train over.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, cast

from aios.app.chat.adaptation_counts import AdaptationCounts
from aios.app.chat.session_training import (
    AttachedExperts,
    Lesson,
    Slices,
    build_adaptation,
    stored_record,
)
from aios.app.models import load_trainer
from aios.core.config.schemas import Config
from aios.core.errors import AIOSError, RunInterrupted
from aios.core.events import Notice
from aios.core.protocols import Emit, TemporaryExpert, ignore
from aios.core.seal.test_time_adaptation import AdaptationRecord
from aios.core.serving import Part, Writer
from aios.core.types import AdapterRef
from aios.storage import activity_records

Chosen = Sequence[tuple[str, AdapterRef]]  # ids and adapters of the experts that answered

UNDO_STEPS = 3  # adaptations of a session that can be taken back
TAKEN_BACK = "taken back"  # the reason of one that was
_EXPERTS = 4  # of a session that have an adapter of its own over them
_RECORDS = 100  # adaptations of a session that are told of
_EXCLUDED = 256  # passages of a session that were taken back and are not learned again
_MESSAGES = 200  # of a conversation that are looked at
_SECONDS_TO_CLOSE = 2.0  # for the step in hand


class AdaptationLog(Protocol):
    """Where adaptations are recorded: `storage.activity.ActivityStore`."""

    def record_adaptation(self, adaptation: activity_records.AdaptationRecord) -> None:
        """Records an adaptation."""
        ...


@dataclass(frozen=True, slots=True)
class _Kept:
    """An adaptation that can be taken back: whose place its adapter took, and what it learned."""

    key: str
    before: TemporaryExpert | None
    learned: tuple[str, ...]
    told: activity_records.AdaptationRecord


@dataclass(slots=True)
class _Session:
    """A conversation's adapters, by the digest of the expert that each is over (empty: base)."""

    adapters: OrderedDict[str, TemporaryExpert] = field(default_factory=OrderedDict)
    undo: deque[_Kept] = field(default_factory=lambda: deque(maxlen=UNDO_STEPS))
    lessons: deque[Lesson] = field(default_factory=lambda: deque(maxlen=_RECORDS))
    excluded: deque[str] = field(default_factory=lambda: deque(maxlen=_EXCLUDED))
    enabled: bool = True
    turns: int = 0  # since the last adaptation was asked for
    state: int = 0  # another number: what is being trained is no longer wanted


@dataclass(frozen=True, slots=True)
class _Turn:
    """What is to be learned: the conversation at a turn, and who had answered."""

    state: int
    expert_id: str
    adapter: AdapterRef | None
    messages: tuple[dict[str, str], ...]

    @property
    def key(self) -> str:
        return self.adapter.digest if self.adapter is not None else ""


class SessionAdapters:
    """The adapters of all sessions; for many threads.

    Args:
        writer: Lends the model between answers.
        config: Its sections ``adaptation``, ``serve``, ``seal`` and ``recipes``.
        activity: Where adaptations are recorded; None: nowhere.
        emit: Told of each adaptation, from the thread that trains.

    Raises:
        UsageError: ``adaptation.strategy`` or ``training.retention_file`` cannot be used, or no
            adapter can be trained on the writer's model.
        StorageError: The retention file cannot be read.
    """

    def __init__(
        self,
        writer: Writer,
        config: Config,
        activity: AdaptationLog | None = None,
        emit: Emit = ignore,
    ) -> None:
        self._writer, self._activity, self._emit = writer, activity, emit
        self._settings, self._most = config.adaptation, config.serve.max_sessions
        self._adaptation = build_adaptation(config, writer.model)
        self._experts = AttachedExperts(load_trainer(config, writer.model))
        self._changed = threading.Condition()  # guards all below
        self._sessions: OrderedDict[str, _Session] = OrderedDict()
        self._waiting: OrderedDict[str, _Turn] = OrderedDict()  # at most one a session
        self._counts = AdaptationCounts()
        self._working = self._closing = False
        self._thread: threading.Thread | None = None

    # ------------------------------------------------------------ any thread

    def parts(self, session: str, expert_parts: Sequence[Part]) -> tuple[Part, ...]:
        """Who writes an answer: the experts, with the session's adapter over them if there is one.

        Args:
            session: Its id.
            expert_parts: The experts' own adapters; none: the base model.
        """
        own = tuple(expert_parts)
        with self._changed:
            found = self._sessions.get(session)
            if found is None or not found.enabled or len(own) > 1:
                return own
            self._sessions.move_to_end(session)
            if not own:
                adapted, weight = found.adapters.get(""), 1.0
            elif isinstance(own[0].adapter, AdapterRef):
                adapted, weight = found.adapters.get(own[0].adapter.digest), own[0].weight
            else:
                return own
        return own if adapted is None else (Part(adapted, weight),)

    def note_turn(
        self, session: str, chosen: Chosen, messages: Sequence[Mapping[str, str]]
    ) -> None:
        """A turn has ended; after every ``adaptation.every`` of them the session adapts.

        Args:
            session: Its id; without one nothing is learned.
            chosen: Ids and adapters of the experts that answered; none: the base model.
            messages: The conversation so far, the answer included, oldest first.
        """
        if not session:
            return
        with self._changed:
            found = self._open(session)
            if self._closing or not found.enabled:
                return
            found.turns += 1
            if found.turns < self._settings.every or len(chosen) > 1:
                return
            found.turns = 0
            expert_id, adapter = chosen[0] if chosen else ("", None)
            said = tuple(_readable(message) for message in messages[-_MESSAGES:])
            self._waiting[session] = _Turn(found.state, expert_id, adapter, said)
            self._start()
            self._changed.notify_all()

    def undo(self, session: str) -> bool:
        """Takes back the session's last adaptation; whether there was one.

        What it had learned is not learned again. An adaptation that is under way is dropped.
        """
        with self._changed:
            found = self._sessions.get(session)
            if found is None:
                return False
            self._drop_work(session, found)
            if not found.undo:
                return False
            kept = found.undo.pop()
            self._counts.undone += 1
            undone = replace(kept.told, kept=False, reason=TAKEN_BACK)
            lessons = (
                replace(lesson, told=undone) if lesson.told is kept.told else lesson
                for lesson in found.lessons
            )
            found.lessons = deque(lessons, maxlen=_RECORDS)
            if kept.before is None:
                found.adapters.pop(kept.key, None)
            else:
                found.adapters[kept.key] = kept.before
            found.excluded.extend(kept.learned)
            return True

    def history(self, session: str) -> tuple[activity_records.AdaptationRecord, ...]:
        """The session's adaptations, dropped and taken back ones too, the latest last."""
        return tuple(lesson.told for lesson in self.lessons(session))

    def lessons(self, session: str) -> tuple[Lesson, ...]:
        """The session's adaptations as in `history`, each with what it was trained on."""
        with self._changed:
            found = self._sessions.get(session)
            return tuple(found.lessons) if found is not None else ()

    def counts(self) -> AdaptationCounts:
        """How many adaptations of all sessions have ended, and how."""
        with self._changed:
            return replace(self._counts)

    def forget(self, session: str) -> None:
        """Drops the session's adapters and all that is known of it."""
        with self._changed:
            found = self._sessions.pop(session, None)
            if found is not None:
                self._drop_work(session, found)

    def set_enabled(self, session: str, enabled: bool) -> None:
        """Switches a session's adapters on or off; off, they are kept but neither used nor trained.

        A session adapts unless it is switched off.
        """
        if not session:
            return
        with self._changed:
            found = self._open(session)
            found.enabled = enabled
            if not enabled:
                self._drop_work(session, found)

    def wait(self, timeout_seconds: float | None = None) -> bool:
        """Waits until nothing is to be learned; False where that takes longer."""
        with self._changed:
            return self._changed.wait_for(
                lambda: self._closing or not (self._waiting or self._working), timeout_seconds
            )

    def close(self) -> None:
        """Ends the training and forgets all sessions; may be called twice.

        Waits for the step in hand at most: where answers are being written, the thread ends with
        them, or when the writer is closed.
        """
        with self._changed:
            self._closing = True
            self._waiting.clear()
            self._sessions.clear()
            self._changed.notify_all()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(_SECONDS_TO_CLOSE)

    # ------------------------------------------------------------ with the lock held

    def _open(self, session: str) -> _Session:
        """The session, now the last used; the least recently used ones beyond the limit go."""
        found = self._sessions.setdefault(session, _Session())
        self._sessions.move_to_end(session)
        while len(self._sessions) > self._most:
            self._drop_work(*self._sessions.popitem(last=False))
        return found

    def _drop_work(self, session: str, found: _Session) -> None:
        """What waits to be learned is dropped, and so is what is being learned."""
        self._waiting.pop(session, None)
        found.state += 1
        self._changed.notify_all()

    def _start(self) -> None:
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._run, name="adaptation", daemon=True)
            self._thread.start()

    def _wanted(self, session: str, turn: _Turn) -> _Session | None:
        """The session, if what is learned for it is still wanted."""
        found = self._sessions.get(session)
        unchanged = found is not None and found.state == turn.state and not self._closing
        return found if unchanged else None

    # ------------------------------------------------------------ the thread

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closing or self._waiting)
                if self._closing:
                    return
                session, turn = self._waiting.popitem(last=False)
                self._working = True
            try:
                self._adapt(session, turn)
            finally:
                with self._changed:
                    self._working = False
                    self._changed.notify_all()

    def _adapt(self, session: str, turn: _Turn) -> None:
        """Trains a session's adapter further, and puts it in its place."""
        with self._changed:
            found = self._wanted(session, turn)
            if found is None:
                return
            current, excluded = found.adapters.get(turn.key), frozenset(found.excluded)

        def unwanted() -> bool:
            with self._changed:
                return self._wanted(session, turn) is None

        began = time.time()
        try:
            with Slices(self._writer, unwanted) as slices:
                expert = current or self._experts.over(slices.model, turn.adapter)
                adapted, record = self._adaptation.adapt_to_context(
                    expert,
                    turn.messages,
                    self._settings.steps,
                    exclude=excluded,
                    should_stop=slices.give_way,
                )
        except RunInterrupted:
            return
        except AIOSError as error:
            with self._changed:
                self._counts.failed += 1
            self._emit(Notice(f"session {session!r} cannot adapt: {error.message}", "warning"))
            return
        if record.passages:  # else nothing new was said
            self._experts.note_user(turn.adapter, adapted)
            told = stored_record(session, turn.expert_id, began, record)
            kept = cast(TemporaryExpert, adapted) if record.kept else None
            if self._keep(session, turn, kept, record, told):
                self._tell(told, record)

    def _keep(
        self,
        session: str,
        turn: _Turn,
        adapted: TemporaryExpert | None,
        record: AdaptationRecord,
        told: activity_records.AdaptationRecord,
    ) -> bool:
        """Puts an adapter, if there is one, in its place; False where it is no longer wanted."""
        with self._changed:
            found = self._wanted(session, turn)
            if found is None:
                return False
            found.lessons.append(
                Lesson(told, record.texts[: record.new], record.texts[record.new :])
            )
            self._counts.failed += record.failed
            self._counts.dropped += not (record.kept or record.failed)
            self._counts.kept += record.kept
            if adapted is not None:
                before = found.adapters.get(turn.key)
                found.undo.append(_Kept(turn.key, before, record.passages[: record.new], told))
                found.adapters[turn.key] = adapted
                found.adapters.move_to_end(turn.key)
            while len(found.adapters) > _EXPERTS:
                gone, _ = found.adapters.popitem(last=False)
                left = [kept for kept in found.undo if kept.key != gone]
                found.undo = deque(left, maxlen=UNDO_STEPS)
            return True

    def _tell(self, told: activity_records.AdaptationRecord, record: AdaptationRecord) -> None:
        """Records an adaptation, and tells of it."""
        what = (
            f"session {told.session!r} learned {record.new} new passages in {record.steps} steps "
            f"({record.seconds:.1f} s)"
            if told.kept
            else f"session {told.session!r} did not adapt: {told.reason}"
        )
        self._emit(Notice(what))
        if self._activity is None:
            return
        try:
            self._activity.record_adaptation(told)
        except AIOSError as error:
            self._emit(Notice(f"an adaptation was not recorded: {error.message}", "warning"))


def _readable(message: Mapping[str, str]) -> dict[str, str]:
    """A message without lone surrogates, which no tokenizer reads."""
    content = message["content"].encode("utf-8", "replace").decode("utf-8")
    return {"role": message["role"], "content": content}
