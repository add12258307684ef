"""The chat: a conversation with the base model, an expert, or whichever experts fit.

The browser keeps the conversation, for each tab its own, and sends it whole with each message, so
that it goes on after a restart of the server. The server keeps what the assistant keeps: the
record of answers and feedback, and each session's own adapter (test-time adaptation). The answers
themselves come through `chat_stream`.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from starlette.responses import Response
from starlette.routing import Route

from aios.app.chat.choices import chat_choices, check_choice
from aios.app.chat.conversation import Conversation
from aios.core.errors import DataError, UsageError
from aios.core.files import parse_json
from aios.web.openai_schemas import AUTO
from aios.web.pages.calls import Call, get, json_answer, post
from aios.web.pages.chat_bodies import checked_session
from aios.web.pages.chat_stream import ChatStreams
from aios.web.pages.site import Note, Site

if TYPE_CHECKING:
    from aios.app.chat.assistant import Assistant

_MOST_NAME = 256  # characters of a model's name in the address
_RATINGS = {"": None, "up": 1.0, "down": -1.0}


def routes() -> list[Route]:
    """The routes."""
    streams = ChatStreams()
    return [
        get("/chat", chat_page),
        get("/chat/state", chat_state),
        Route("/chat/answer", streams.stream, methods=["POST"], name="chat.answer"),
        post("/chat/feedback", feedback),
        post("/chat/adapting", set_adapting),
        post("/chat/undo", undo),
        post("/chat/forget", forget),
        post("/chat/save", save),
        post("/chat/open", open_file),
    ]


def chat_page(call: Call) -> Response:
    """The conversation, which the script fills in."""
    config, assistant = call.site.config, _opened(call.site)
    choices = chat_choices(config, assistant)
    wanted, problem = call.query("model")[:_MOST_NAME], None
    if wanted:
        try:
            check_choice(config, wanted, assistant)
        except UsageError as error:
            problem = error
    known = {choice.id for choice in choices}
    return call.page(
        "chat.html.j2",
        choices=choices,
        model=wanted if wanted in known else AUTO,
        problem=problem,
        wanted=wanted,
        model_status=_status(call.site, assistant),
        adapts=config.adaptation.enabled and (assistant is None or assistant.can_adapt),
        can_adapt=assistant is None or assistant.can_adapt,
        chat=config.chat,
        every=config.adaptation.every,
        most_tokens=config.serve.max_new_tokens,
        most_bytes=config.serve.max_body_bytes,
    )


def chat_state(call: Call) -> Response:
    """What there is to show of a session, and who can be asked; for the script.

    The list of choices is sent where it is another one than the stamp ``seen`` stands for.
    """
    assistant = _opened(call.site)
    session = checked_session(call.query("session"))
    lessons = assistant.lessons(session) if assistant is not None else ()
    choices = [
        {"id": choice.id, "kind": choice.kind, "description": choice.description}
        for choice in chat_choices(call.site.config, assistant)
    ]
    stamp = hashlib.sha256(json.dumps(choices).encode()).hexdigest()[:16]
    document: dict[str, Any] = {
        "ready": assistant is not None,
        "status": _status(call.site, assistant),
        "can_adapt": assistant.can_adapt if assistant is not None else None,
        "adaptations": call.fragment("chat_adaptations.html.j2", lessons=lessons[::-1]),
        "count": len(lessons),
        "in_use": sum(lesson.told.kept for lesson in lessons),
        "stamp": stamp,
    }
    if call.query("seen") != stamp:
        document["choices"] = choices
    return json_answer(document)


def feedback(call: Call) -> Response:
    """Keeps what somebody says of an answer."""
    rating = call.field("rating")
    if rating not in _RATINGS:
        raise UsageError("a rating is up or down")
    call.site.assistant.get().feedback(
        call.field("id"),
        rating=_RATINGS[rating],
        correction=call.field("correction"),
        comment=call.field("comment"),
    )
    return call.go("/chat", "Thank you, noted.")


def set_adapting(call: Call) -> Response:
    """Switches a session's adapter on or off."""
    session, wanted = checked_session(call.field("session")), call.field("on") == "1"
    assistant = _opened(call.site)
    if assistant is not None:
        if wanted and not assistant.can_adapt:
            raise UsageError("This model cannot be trained here, so no session adapts.")
        assistant.set_adapting(session, wanted)
    return call.go("/chat", f"Adaptation is {'on' if wanted else 'off'}.")


def undo(call: Call) -> Response:
    """Takes back a session's last adaptation."""
    session, assistant = checked_session(call.field("session")), _opened(call.site)
    if assistant is not None and assistant.undo(session):
        text = "The last adaptation is taken back. What it had learned is not learned again."
        return call.go("/chat", text)
    return call.go("/chat", Note("There is no adaptation to take back.", "plain"))


def forget(call: Call) -> Response:
    """Drops what a session has learned."""
    session, assistant = checked_session(call.field("session")), _opened(call.site)
    if assistant is not None:
        assistant.forget(session)
    return call.go("/chat", "The conversation and what was learned from it are forgotten.")


def save(call: Call) -> Response:
    """A conversation as the file that ``aios chat`` loads; the script hands it to the browser."""
    conversation = Conversation()
    spoken = _parsed(call.field("messages").encode("utf-8", "replace"))
    conversation.take_over({"system": call.field("system"), "messages": spoken}, "this")
    return json_answer(conversation.document())


def open_file(call: Call) -> Response:
    """Reads a file that ``aios chat`` or this page saved; the script goes on with it."""
    sent = call.upload("file")
    if sent is None:
        raise UsageError("No file was chosen.")
    conversation = Conversation()
    conversation.take_over(_parsed(sent.file.read()), "the file")
    spoken = [message.as_json() for message in conversation.messages if message.role != "system"]
    return json_answer({"system": conversation.system, "messages": spoken})


def _parsed(data: bytes) -> Any:
    try:
        return parse_json(data)
    except ValueError as error:
        raise DataError(f"the file is no JSON: {error}"[:300]) from None


def _opened(site: Site) -> Assistant | None:
    """The assistant, if the model is loaded."""
    return site.assistant.get() if site.assistant.ready else None


def _status(site: Site, assistant: Assistant | None) -> str:
    """What is true of the model now, in a sentence or two."""
    named = site.config.model.name
    if assistant is None:
        if site.assistant.loading:
            return f"The model {named} is being loaded."
        return f"The model {named} is loaded with the first message, which takes some seconds."
    used = assistant.model.name
    if used == named:
        return f"The model {used} is loaded."
    return (
        f"The model {used} is loaded. The settings name {named}: if that is another one, "
        "it answers once the server is started again."
    )
