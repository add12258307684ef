"""What chat and server talk to: a base model, its experts, and who of them answers.

Takes messages (or a plain prompt) and the name of who is to answer: ``base``, an expert's id, or
``auto``, where the router chooses by what was said last. Gives an `Answering`, whose pieces come
as they are written. Around the writer stand the registry of experts, which is followed as it
changes, the router, the record of answers and feedback, and each session's own adapter
(test-time adaptation). All of it may be used from many threads at once.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from aios.app.chat import assistant_parts as parts
from aios.app.chat.adaptation_counts import AdaptationCounts
from aios.app.chat.answer_records import AnswerRecords
from aios.app.chat.answer_settings import AnswerSettings, checked_settings, usual_sampling
from aios.app.chat.answerers import Answerers, Chosen
from aios.app.chat.answerers import ServedModel as ServedModel
from aios.app.chat.answering import Answering, Routed, Seen
from aios.app.chat.conversation import (
    Message,
    check_messages,
    check_text,
    fit_window,
    last_question,
)
from aios.app.chat.offered_experts import AUTO, OfferedExperts, damaged_experts
from aios.core.config.schemas import Config
from aios.core.errors import ModelError, StorageError, UsageError
from aios.core.events import Notice
from aios.core.protocols import Emit, LanguageModel, ignore
from aios.core.serving import Part, Writer, WriteRequest, WriterLoad
from aios.core.types import SamplingParams

if TYPE_CHECKING:
    from aios.app.chat.adaptation import SessionAdapters
    from aios.app.chat.session_training import Lesson
    from aios.storage.activity_records import AdaptationRecord


@dataclass(frozen=True, slots=True)
class _Asked:
    """A text to go on with.

    Attributes:
        kind: What its id begins with.
        prompt: The rendered text.
        seen: What of the conversation is in it.
        question: What was asked last.
        messages: The conversation; empty for a plain prompt.
    """

    kind: str
    prompt: str
    seen: Seen
    question: str
    messages: tuple[Message, ...] = ()


class Assistant:
    """Answers messages; see `open_assistant`.

    Args:
        config: Its sections ``chat`` and ``adaptation``.
        writer: What writes.
        answerers: Who is there to answer.
        records: Where answers are recorded; None: nowhere.
        adapters: The sessions' own adapters; None: none are trained.
        emit: For notices.
        on_close: What to do at the end.
    """

    def __init__(
        self,
        config: Config,
        *,
        writer: Writer,
        answerers: Answerers,
        records: AnswerRecords | None = None,
        adapters: SessionAdapters | None = None,
        emit: Emit = ignore,
        on_close: Callable[[], None] = lambda: None,
    ) -> None:
        self._config = config
        self._writer = writer
        self._answerers = answerers
        self._records = records
        self._adapters = adapters
        self._emit = emit
        self._on_close = on_close
        self._lock = threading.Lock()
        self._closed = False

    @property
    def model(self) -> LanguageModel:
        """The base model, for its name and token counts."""
        return self._writer.model

    def between(self) -> AbstractContextManager[LanguageModel]:
        """The base model for a short block in which nothing else is written (`Writer.between`)."""
        return self._writer.between()

    def models(self) -> tuple[ServedModel, ...]:
        """Everything that can be asked for: ``auto``, ``base``, and the experts that answer."""
        return self._answerers.models()

    def check_model(self, model: str) -> None:
        """Whether this name can be asked for now.

        Raises:
            UsageError: The expert is not active, damaged, or of another base model.
            UnknownExpertError: There is no such expert; the remedy names close ones.
        """
        self._answerers.check(model)

    def chat(
        self,
        messages: object,
        *,
        model: str = AUTO,
        session: str = "",
        sampling: SamplingParams | None = None,
        seed: int | None = None,
        top_logprobs: int | None = None,
        timeout_seconds: float | None = None,
        tta: bool | None = None,
    ) -> Answering:
        """Begins the answer to a conversation.

        Args:
            messages: ``{"role": "system" | "user" | "assistant", "content": text}``, oldest
                first. As many of the last turns are read as fit ``chat.max_context_tokens``.
            model: ``base``, ``auto``, or an expert's id.
            session: The caller's text for this conversation; empty for none.
            sampling: How tokens are drawn; as the config says by default.
            seed: Seed of the draws; a new one by default (`Answering.seed`).
            top_logprobs: How many likeliest tokens to report at each place; None: none at all.
            timeout_seconds: It ends, with what is written, so long after now.
            tta: Whether the session adapts to what is said in it (it needs an id);
                ``adaptation.enabled`` by default.

        Raises:
            UsageError: The messages or a setting cannot be used, or the expert is not active or is
                damaged; a notice says then what is wrong with it.
            UnknownExpertError: There is no such expert; the remedy names close ones.
            QueueFullError: As many wait as may.
            BackendError: The writer is closed.
            StorageError: What the router reads is damaged.
        """
        wanted = checked_settings(
            self._config, model, session, sampling, seed, top_logprobs, timeout_seconds, tta
        )
        checked = check_messages(messages)
        question, history = last_question(checked)
        routed, chosen = self._answerers.who(wanted.model, question, history)
        window = fit_window(
            self.model,
            checked,
            system=self._config.chat.system,
            max_tokens=self._room_for_prompt(wanted.sampling.max_new_tokens),
        )
        if window.cut:
            self._warn(
                f"the last message is too long for the model; its first {window.cut:,} "
                "characters are not read"
            )
        seen = Seen(window.tokens, window.kept, window.left_out, window.cut)
        asked = _Asked("chatcmpl", window.prompt, seen, question, checked)
        return self._begin(asked, wanted, routed, chosen)

    def complete(
        self,
        prompt: str,
        *,
        model: str = AUTO,
        session: str = "",
        sampling: SamplingParams | None = None,
        seed: int | None = None,
        top_logprobs: int | None = None,
        timeout_seconds: float | None = None,
        tta: bool | None = None,
    ) -> Answering:
        """Begins the text that goes on after a prompt, without a chat template.

        Arguments and errors are those of `chat`; a prompt longer than the model's context is a
        `UsageError`. A session's own adapter takes part, but nothing is learned from the prompt.
        """
        wanted = checked_settings(
            self._config, model, session, sampling, seed, top_logprobs, timeout_seconds, tta
        )
        if not check_text(prompt, "the prompt"):
            raise UsageError("the prompt is empty")
        tokens, most = self.model.count_tokens(prompt), self.model.context_length
        if tokens >= most:
            raise UsageError(
                f"the prompt has {tokens:,} tokens, and the model's context holds {most:,} with "
                "the answer",
                "shorten it",
            )
        routed, chosen = self._answerers.who(wanted.model, prompt, ())
        return self._begin(_Asked("cmpl", prompt, Seen(tokens), prompt), wanted, routed, chosen)

    def feedback(
        self,
        answer_id: str,
        *,
        rating: float | None = None,
        correction: str = "",
        comment: str = "",
    ) -> None:
        """Stores what a person says about an answer, for later learning.

        Args:
            answer_id: `Answering.id`.
            rating: From -1 (bad) to 1 (good).
            correction: What should have been answered.
            comment: Anything else.

        Raises:
            UsageError: The answer is not known, nothing is said, or a value is out of its bounds.
            StorageError: It cannot be stored.
        """
        for text, what in ((answer_id, "id"), (correction, "correction"), (comment, "comment")):
            check_text(text, f"the {what}")
        if self._records is None:
            raise StorageError("answers are not recorded", "a warning at the start says why")
        self._records.feedback(answer_id, rating=rating, correction=correction, comment=comment)

    @property
    def can_adapt(self) -> bool:
        """Whether sessions can have adapters of their own."""
        return self._adapters is not None

    def adaptations(self, session: str) -> tuple[AdaptationRecord, ...]:
        """What the session's adapter has been through."""
        return () if self._adapters is None else self._adapters.history(session)

    def lessons(self, session: str) -> tuple[Lesson, ...]:
        """What the session's adapter has been through, and which statements it was trained on."""
        return () if self._adapters is None else self._adapters.lessons(session)

    def adaptation_counts(self) -> AdaptationCounts:
        """How many adaptations of all sessions have ended since the start, and how."""
        return AdaptationCounts() if self._adapters is None else self._adapters.counts()

    def set_adapting(self, session: str, enabled: bool) -> None:
        """Switches a session's adapter on or off; off, it is kept, but not used or trained."""
        if self._adapters is not None:
            self._adapters.set_enabled(session, enabled)

    def undo(self, session: str) -> bool:
        """Takes back the session's last adaptation; whether there was one."""
        return self._adapters is not None and self._adapters.undo(session)

    def forget(self, session: str) -> None:
        """Drops the session's adapter and what it has learned from."""
        if self._adapters is not None:
            self._adapters.forget(session)

    def load(self) -> WriterLoad:
        """What there is to do now."""
        return self._writer.load()

    def close(self) -> None:
        """Ends all answers and adaptations, and writes what is to be recorded; may come twice."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        if self._adapters is not None:
            self._adapters.close()
        self._on_close()
        if self._records is not None:
            self._records.close()

    def __enter__(self) -> Assistant:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def default_sampling(self) -> SamplingParams:
        """How tokens are drawn where nothing else is asked for."""
        return usual_sampling(self._config)

    def _room_for_prompt(self, max_new_tokens: int) -> int:
        """Tokens that a window may have; at most half of the context is kept for the answer."""
        context = self.model.context_length
        reserved = min(max_new_tokens, context // 2)
        return max(1, min(self._config.chat.max_context_tokens, context - reserved))

    def _begin(
        self, asked: _Asked, wanted: AnswerSettings, routed: Routed, chosen: Chosen
    ) -> Answering:
        own = tuple(
            Part(adapter, weight)
            for (_, adapter), (_, weight) in zip(chosen, routed.experts, strict=True)
        )
        used = own
        if self._adapters is not None and wanted.adapts:
            used = self._adapters.parts(wanted.session, own)
        request = WriteRequest(
            prompt=asked.prompt,
            parts=used,
            sampling=wanted.sampling,
            seed=wanted.seed,
            top_logprobs=wanted.top_logprobs,
            timeout_seconds=wanted.timeout_seconds,
        )
        try:
            writing = self._writer.submit(request)
        except (ModelError, StorageError) as error:  # names files, so it is told here alone
            if not chosen:
                raise
            self._warn(
                f"expert {routed.name} cannot answer: {error.message} {error.remedy}".strip()
            )
            raise damaged_experts(dict(chosen)) from error
        return Answering(
            writing,
            id=f"{asked.kind}-{secrets.token_hex(12)}",
            model=wanted.model,
            session=wanted.session,
            answered_by=replace(routed, adapted=used != own),
            seen=asked.seen,
            seed=wanted.seed,
            on_end=lambda answer: self._ended(answer, asked, wanted, chosen),
        )

    def _ended(
        self, answer: Answering, asked: _Asked, wanted: AnswerSettings, chosen: Chosen
    ) -> None:
        """An answer has ended: it is recorded, and the session may learn from it."""
        if self._records is not None:
            self._records.record(answer, asked.question)
        whole = answer.ending is not None and answer.ending.reason in ("stop", "length")
        if self._adapters is not None and wanted.adapts and asked.messages and whole:
            said = [message.as_json() for message in asked.messages]
            said.append({"role": "assistant", "content": answer.text})
            self._adapters.note_turn(wanted.session, chosen, said)

    def _warn(self, text: str) -> None:
        self._emit(Notice(text, "warning"))


def open_assistant(
    config: Config, *, emit: Emit = ignore, writer: Writer | None = None
) -> Assistant:
    """Loads the model, and opens everything that an assistant needs.

    Args:
        config: The resolved config.
        emit: For notices; it may be called from any thread, one at a time.
        writer: What writes; it stays open at the end. By default one is opened over the config's
            model.

    Returns:
        The assistant, to be closed, or used in a ``with`` block.

    Raises:
        ModelError: The model is not known, missing or broken, or not on this machine.
        StorageError: The registry cannot be read.
    """
    told = parts.one_at_a_time(emit)
    opened = parts.open_writer(config, told) if writer is None else writer
    close = opened.close if writer is None else _do_nothing
    try:
        store = parts.open_store(config)
        experts = OfferedExperts(store, opened.model.digest, told)
        experts.now()
        routes = parts.open_routes(config, store, opened, told)
        recorded = parts.open_records(config, store, told)
        records, activity = recorded or (None, None)
        adapters = parts.open_adapters(config, opened, activity, told)
    except BaseException:
        close()
        raise
    return Assistant(
        config,
        writer=opened,
        answerers=Answerers(opened.model.name, experts, routes),
        records=records,
        adapters=adapters,
        emit=told,
        on_close=close,
    )


def _do_nothing() -> None:
    pass
