"""Conversations: what may be said, what of it a model still sees, and keeping them in files.

Takes messages (``{"role": "system" | "user" | "assistant", "content": text}``) from a person or a
program and checks them; everything in them is hostile. Gives the *window*: the prompt that holds
the system text and as many of the last turns as fit a number of tokens, counted on the model's own
chat template. A turn is a message of the user with the answers to it, and is kept or left out
whole; only where the last message alone is too long is it cut, and its end is kept.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args

from aios.core.errors import DataError, UsageError
from aios.core.files import atomic_write_json, read_json
from aios.core.protocols import LanguageModel

Role = Literal["system", "user", "assistant"]

MAX_MESSAGES = 4096
MAX_CHARACTERS = 4_000_000
_MAX_FILE_BYTES = 64 * 2**20
_FORMAT = "aios-conversation"
_NEXT_WORD = re.compile(r"\S{0,80}\s+(\S.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Message:
    """One thing that was said."""

    role: Role
    content: str

    def as_json(self) -> dict[str, str]:
        """The message as programs write it."""
        return {"role": self.role, "content": self.content}


@dataclass(frozen=True, slots=True)
class Window:
    """What of a conversation a model sees.

    Attributes:
        prompt: The rendered text.
        tokens: Its tokens.
        kept: Messages in it, the system text not counted.
        left_out: Older messages that are not in it.
        cut: Characters at the start of the last message that are not in it.
    """

    prompt: str
    tokens: int
    kept: int
    left_out: int = 0
    cut: int = 0


def check_text(text: object, what: str, *, longest: int = MAX_CHARACTERS) -> str:
    """Returns a text that a tokenizer can read, unchanged.

    Raises:
        UsageError: It is no text, has half a surrogate pair, or is too long.
    """
    if not isinstance(text, str):
        raise UsageError(f"{what} must be a text, not {type(text).__name__}")
    if len(text) > longest:
        raise UsageError(f"{what} has {len(text):,} characters; at most {longest:,} are read")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UsageError(
            f"{what} is no valid Unicode: character {error.start + 1} is half a surrogate pair"
        ) from None
    return text


def check_messages(messages: object) -> tuple[Message, ...]:
    """The messages of a request, checked.

    Answers that are empty are left out; an empty system text stays, since it says that there is to
    be none.

    Raises:
        UsageError: It is no list, is empty or too long, a message has no known role or no text,
            or nothing was asked.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, (str, bytes)):
        raise UsageError("messages must be a list of objects with role and content")
    if len(messages) > MAX_MESSAGES:
        raise UsageError(
            f"{len(messages):,} messages; at most {MAX_MESSAGES:,} are read",
            "leave out the oldest",
        )
    checked = [_message(message, f"messages[{i}]") for i, message in enumerate(messages)]
    if sum(len(message.content) for message in checked) > MAX_CHARACTERS:
        raise UsageError(
            f"the messages have more than {MAX_CHARACTERS:,} characters together",
            "leave out the oldest",
        )
    if not any(message.role == "user" for message in checked):
        raise UsageError("the messages hold none of the user", 'add one with the role "user"')
    return tuple(m for m in checked if m.role == "system" or m.content.strip())


def _message(message: object, where: str) -> Message:
    if isinstance(message, Message):
        message = message.as_json()
    if not isinstance(message, Mapping):
        raise UsageError(f"{where} must be an object with role and content")
    role = message.get("role")
    if role not in get_args(Role):
        shown = repr(role)[:60]
        raise UsageError(f"{where}.role is {shown}", "the roles are system, user and assistant")
    text = check_text(message.get("content"), f"{where}.content")
    if role == "user" and not text.strip():
        raise UsageError(f"{where}.content is empty")
    return Message(cast(Role, role), text)


def last_question(messages: Sequence[Message]) -> tuple[str, tuple[str, ...]]:
    """What the user said last, and what the user said before (oldest first), for routing."""
    *before, last = (message.content for message in messages if message.role == "user")
    return last, tuple(before)


def fit_window(
    model: LanguageModel, messages: Sequence[Message], *, system: str, max_tokens: int
) -> Window:
    """The part of a conversation that fits, rendered by the model's chat template.

    System messages are put together before all, and nothing stands there if all are empty; without
    any, `system` does. Messages of the same role in a row are put together, since many templates
    want the roles to take turns.

    Args:
        model: For its template and its tokens.
        messages: Checked ones.
        system: The system text where the messages have none; may be empty.
        max_tokens: Most tokens of the rendered prompt.

    Raises:
        UsageError: The system text leaves no room for the last message.
    """
    own = _system_text(messages)
    text = system if own is None else own
    head = [Message("system", text)] if text else []
    spoken = _joined(message for message in messages if message.role != "system")

    def render(first: int, *changed: Message) -> str:
        return model.format_chat([m.as_json() for m in (*head, *spoken[first:], *changed)])

    starts = _starts_that_may_fit(model, spoken, max_tokens)
    low, high = 0, len(starts)  # the first start from which it fits is in starts[low:high + 1]
    while low < high:
        middle = (low + high) // 2
        if model.count_tokens(render(starts[middle])) <= max_tokens:
            high = middle
        else:
            low = middle + 1
    if low < len(starts):
        first = starts[low]
        prompt = render(first)
        return Window(prompt, model.count_tokens(prompt), len(spoken) - first, first)
    last = spoken[-1]
    text = _longest_end(
        last.content,
        lambda end: model.count_tokens(render(len(spoken), Message(last.role, end))) <= max_tokens,
        max_tokens,
    )
    if not text:
        raise UsageError(
            f"the system text leaves no room for the message in {max_tokens} tokens",
            "shorten it, or raise chat.max_context_tokens",
        )
    prompt = render(len(spoken), Message(last.role, text))
    cut = len(last.content) - len(text)
    return Window(prompt, model.count_tokens(prompt), 1, len(spoken) - 1, cut)


def _system_text(messages: Sequence[Message]) -> str | None:
    """The system messages put together, without empty ones; None where there are none at all."""
    own = [message.content for message in messages if message.role == "system"]
    return "\n\n".join(text for text in own if text.strip()) if own else None


def _joined(messages: Iterable[Message]) -> list[Message]:
    joined: list[Message] = []
    for message in messages:
        if joined and joined[-1].role == message.role:
            text = f"{joined[-1].content}\n\n{message.content}"
            joined[-1] = Message(message.role, text)
        else:
            joined.append(message)
    return joined


def _starts_that_may_fit(
    model: LanguageModel, spoken: Sequence[Message], max_tokens: int
) -> list[int]:
    """Where turns begin, oldest first, without those that are too long by their texts alone."""
    starts: list[int] = []
    tokens = 0
    for index in range(len(spoken) - 1, -1, -1):
        tokens += model.count_tokens(spoken[index].content)
        if tokens > max_tokens:
            break
        if index in (0, len(spoken) - 1) or spoken[index].role == "user":
            starts.append(index)
    return starts[::-1]


def _longest_end(text: str, fits: Callable[[str], bool], tokens: int) -> str:
    """The longest end of a text that fits, from the start of a word where one is near."""
    text = text.strip()
    size = max(1, min(len(text), 4 * tokens))
    while size < len(text) and fits(text[-size:]):
        size = min(len(text), 2 * size)
    low, high = 0, size  # the longest end has low to high characters
    while low < high:
        middle = (low + high + 1) // 2
        if fits(text[-middle:]):
            low = middle
        else:
            high = middle - 1
    end = text[len(text) - low :]
    next_word = _NEXT_WORD.match(end)
    if low < len(text) and next_word and not text[len(text) - low - 1].isspace():
        end = next_word[1]
    return end.strip()


class Conversation:
    """What a person and the model have said to each other, in one place.

    Args:
        system: The system text; may be empty.
    """

    def __init__(self, system: str = "") -> None:
        self.system = system
        self._messages: list[Message] = []

    @property
    def messages(self) -> tuple[Message, ...]:
        """What was said, after the system text, which is empty where there is to be none."""
        return (Message("system", self.system), *self._messages)

    @property
    def turns(self) -> int:
        """How often the user has spoken."""
        return sum(message.role == "user" for message in self._messages)

    def ask(self, text: str) -> None:
        """The user says something.

        Raises:
            UsageError: It is empty, too long, or no valid Unicode.
        """
        if not check_text(text, "the message").strip():
            raise UsageError("the message is empty")
        self._messages.append(Message("user", text))

    def answer(self, text: str) -> None:
        """The model has answered."""
        self._messages.append(Message("assistant", text))

    def take_back(self) -> str | None:
        """Takes back the last turn; gives what the user had said, None where nothing was said."""
        while self._messages:
            message = self._messages.pop()
            if message.role == "user":
                return message.content
        return None

    def reset(self) -> None:
        """Forgets what was said; the system text stays."""
        self._messages.clear()

    def restore(self, messages: Sequence[Message]) -> None:
        """Goes back to what was said before, as `messages` gave it."""
        self._messages = [message for message in messages if message.role != "system"]

    def save(self, path: Path) -> None:
        """Writes it as JSON, atomically.

        Raises:
            StorageError: It cannot be written.
        """
        atomic_write_json(path, self.document())

    def document(self) -> dict[str, object]:
        """The conversation as `save` writes it."""
        spoken = [message.as_json() for message in self._messages]
        return {"format": _FORMAT, "version": 1, "system": self.system, "messages": spoken}

    def load(self, path: Path) -> None:
        """Takes over what a file holds, and forgets what was said.

        The file is one that `save` wrote, or a JSON list of messages.

        Raises:
            StorageError: It cannot be read, is too large, or is no JSON.
            DataError: It holds no conversation.
        """
        self.take_over(read_json(path, _MAX_FILE_BYTES), str(path))

    def take_over(self, document: object, name: str) -> None:
        """Takes over a document, and forgets what was said.

        Args:
            document: What `document` gave, or a list of messages.
            name: What it is called in errors.

        Raises:
            DataError: It holds no conversation.
        """
        system: object = ""
        if isinstance(document, dict):
            if document.get("format", _FORMAT) != _FORMAT:
                raise DataError(f"{name} is no conversation: its format is another")
            system = document.get("system", "")
            document = document.get("messages")
        try:
            text = check_text(system, "system")
            messages = check_messages(document) if document != [] else ()
        except UsageError as error:
            raise DataError(f"{name} is no conversation: {error.message}", error.remedy) from None
        self.system = _system_text(messages) or text
        self._messages = [message for message in messages if message.role != "system"]
