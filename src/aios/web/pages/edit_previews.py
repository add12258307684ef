"""Trying a prompt on a passage: what the model would read, and what it writes; nothing is kept."""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from starlette.responses import Response
from starlette.routing import Route

from aios.app.data.files import DataFile, DataFiles, bundled_example
from aios.app.edits.prompt_preview import (
    MOST_EDITS,
    MOST_PROMPT_CHARACTERS,
    OWN,
    READ_AS,
    OwnPrompt,
    choose_passage,
    prompts_with,
    show_prompts,
    shown_result,
    strategy_in_force,
    write_preview,
)
from aios.app.edits.strategies import list_strategies
from aios.core.errors import AIOSError, UsageError
from aios.core.seal.passage_edits import PassageEdits
from aios.core.seal.prompt_templates import AUTO
from aios.web.pages.calls import Call, get, post
from aios.web.pages.site import Note

_HERE = "/edits/preview"
_MOST_KEPT = 50
_LISTED_FILES = 300
_MOST_NUMBER = 1_000_000


@dataclass(frozen=True, slots=True)
class Wish:
    """What is to be tried: the fields of the form.

    Attributes:
        file: Id of the file.
        number: Number of the passage, from 1.
        strategy: Name, ``auto`` or `OWN`.
        edits: How many self-edits.
        template: The prompt that was typed in.
        system: Its system turn.
        read_as: How what is written is read.
    """

    file: str = ""
    number: int = 1
    strategy: str = AUTO
    edits: int = 1
    template: str = ""
    system: str = ""
    read_as: str = "implications"

    @property
    def own(self) -> OwnPrompt | None:
        """The prompt that was typed in, where it is chosen."""
        if self.strategy != OWN:
            return None
        return OwnPrompt(self.template, self.system, self.read_as)


@dataclass(frozen=True, slots=True)
class Try:
    """What was tried, and what came of it."""

    wish: Wish
    result: PassageEdits | None = None
    error: AIOSError | None = None


class _Tries:
    """The last tries, by keys that cannot be guessed: a page that is loaded again shows them."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, Try] = OrderedDict()
        self._guard = threading.Lock()
        self.writing = threading.Lock()

    def keep(self, tried: Try) -> str:
        key = secrets.token_urlsafe(12)
        with self._guard:
            self._kept[key] = tried
            while len(self._kept) > _MOST_KEPT:
                self._kept.popitem(last=False)
        return key

    def get(self, key: str) -> Try | None:
        with self._guard:
            return self._kept.get(key)


_tries = _Tries()


def routes() -> list[Route]:
    """The routes."""
    return [
        get(_HERE, preview_page),
        post(_HERE, show_prompt),
        post(f"{_HERE}/write", write_edits),
    ]


def preview_page(call: Call) -> Response:
    """The form, the prompt on the passage, and what was written to it."""
    tried = _tries.get(call.query("tried"))
    if tried is None:
        tried = Try(
            Wish(
                file=call.query("file"),
                number=call.number("passage", 1, least=1, most=_MOST_NUMBER),
                strategy=call.query("strategy", AUTO),
            )
        )
    files = DataFiles(call.site.artifacts, call.site.data, bundled_example()).list()
    config = call.site.config
    found: dict[str, Any] = {
        "wish": tried.wish,
        "error": tried.error,
        "files": files[:_LISTED_FILES],
        "strategies": [one for one in list_strategies(config) if not one.problem],
        "auto": strategy_in_force(config, AUTO),
        "variables": sorted({"passage", "title", *prompts_with(config, None).variables}),
        "read_as": READ_AS,
        "own_name": OWN,
        "most_characters": MOST_PROMPT_CHARACTERS,
        "counts": range(1, MOST_EDITS + 1),
        "chosen": None,
        "prompts": (),
        "result": tried.result,
        "shown": None if tried.result is None else shown_result(tried.result),
        "model": call.site.config.model.name,
        "ready": call.site.assistant.ready,
    }
    try:
        found |= _on_passage(call, tried.wish, files)
    except UsageError as error:
        found["error"] = tried.error or error
    return call.page("edits_preview.html.j2", **found)


def _on_passage(call: Call, wish: Wish, files: tuple[DataFile, ...]) -> Mapping[str, Any]:
    """The chosen file and passage, and what the model is asked on it."""
    file = next((one for one in files if one.id == wish.file), files[0] if files else None)
    if wish.file and (file is None or file.id != wish.file):
        raise UsageError("there is no such file", "Choose another.")
    if file is None:
        return {}
    chosen = choose_passage(file.path, wish.number)
    model = call.site.assistant.get().model if call.site.assistant.ready else None
    found = {"chosen": chosen, "wish": replace(wish, file=file.id, number=chosen.number)}
    try:
        prompts = show_prompts(call.site.config, chosen.passage, wish.strategy, wish.own, model)
    except UsageError as error:
        return {**found, "error": error}
    return {**found, "prompts": prompts}


def show_prompt(call: Call) -> Response:
    """Shows the prompt for what was chosen."""
    return call.go(_HERE, tried=_tries.keep(Try(_wish(call))))


def write_edits(call: Call) -> Response:
    """Has the model write a few self-edits to the prompt; nothing is saved."""
    wish = _wish(call)
    if not _tries.writing.acquire(blocking=False):
        note = Note("Another preview is being written.", "bad", "Try again when it is done.")
        return call.go(_HERE, note, tried=_tries.keep(Try(wish)))
    try:
        file = DataFiles(call.site.artifacts, call.site.data, bundled_example()).get(wish.file)
        result = write_preview(
            call.site.config,
            choose_passage(file.path, wish.number).passage,
            wish.strategy,
            num_edits=wish.edits,
            own=wish.own,
            assistant=call.site.assistant.get,
        )
    except AIOSError as error:  # told on the page, where what was typed in still stands
        return call.go(_HERE, tried=_tries.keep(Try(wish, error=error)))
    finally:
        _tries.writing.release()
    return call.go(_HERE, tried=_tries.keep(Try(wish, result)))


def _wish(call: Call) -> Wish:
    number = _number(call.field("passage"), 1, _MOST_NUMBER)
    step = {"before": -1, "after": 1}.get(call.field("step"), 0)
    return Wish(
        file=call.field("file"),
        number=max(1, number + step),
        strategy=call.field("strategy") or AUTO,
        edits=_number(call.field("edits"), 1, MOST_EDITS),
        template=call.field("template").replace("\r\n", "\n"),
        system=call.field("system").replace("\r\n", "\n"),
        read_as=call.field("read_as") or "implications",
    )


def _number(text: str, default: int, most: int) -> int:
    try:
        return min(max(int(text), 1), most)
    except ValueError:
        return default
