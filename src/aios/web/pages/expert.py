"""The pages of one expert: its card, its passages, its training texts, its versions."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from aios.app.experts import changes
from aios.app.experts.browsing import ExpertBrowser
from aios.app.experts.download import adapter_download
from aios.app.experts.learnt import ExpertReader, learning_curve, require_document
from aios.app.experts.registry import (
    ExpertView,
    open_goals,
    open_store,
    open_versions,
    show_expert,
)
from aios.app.jobs.commands import forget_job
from aios.core.errors import UsageError
from aios.core.experts.lineage import ancestors, descendants
from aios.core.experts.registry import refuse_frozen
from aios.core.files import valid_id
from aios.core.types import Expert
from aios.web.pages.calls import Call, get, post
from aios.web.pages.site import Note

DOCUMENTS_SIZE = 50
TEXTS_SIZE = 25
_MOST_CHILDREN = 100
_MOST_GOALS = 500
browser = ExpertBrowser()
_reader = ExpertReader()


def routes() -> list[Route]:
    """The routes."""
    return [
        post("/experts/-/describe", describe),
        post("/experts/-/set-parent", set_parent),
        post("/experts/-/clear-parent", clear_parent),
        post("/experts/-/link", link_goal),
        post("/experts/-/unlink", unlink_goal),
        post("/experts/-/rollback", rollback),
        post("/experts/-/forget", forget),
        get("/experts/{expert_id}", card_page),
        get("/experts/{expert_id}/adapter.zip", download),
        get("/experts/{expert_id}/edit", edit_page),
        get("/experts/{expert_id}/passages", passages_page),
        get("/experts/{expert_id}/texts", texts_page),
        get("/experts/{expert_id}/versions", versions_page),
        get("/experts/{expert_id}/forget", forget_page),
    ]


# ------------------------------------------------------------ looking


def card_page(call: Call) -> Response:
    """What it is, what made it, how well it does, its goals and its place in the tree."""
    config = call.site.config
    view = _view(call)
    expert = view.expert
    experts = {one.expert_id: one for one in browser.experts(config)}
    below = descendants(experts, expert.expert_id)
    served = open_goals(config).of_expert(expert.expert_id)
    others = {one.text.casefold() for one in served}
    children = [experts[one] for one in expert.child_expert_ids if one in experts]
    return call.page(
        "expert_card.html.j2",
        tab="",
        view=view,
        expert=expert,
        above=[
            experts[one] for one in reversed(ancestors(experts, expert.expert_id)) if one in experts
        ],
        children=children[:_MOST_CHILDREN],
        more_children=max(0, len(children) - _MOST_CHILDREN),
        parents=[
            one
            for one in browser.choices(config)
            if one.expert_id != expert.expert_id and one.expert_id not in below
        ],
        served=served,
        goals=[one for one in open_goals(config).list() if one.text.casefold() not in others][
            :_MOST_GOALS
        ],
        scores=_reader.learnt(view.folder).scores,
        curve=learning_curve(open_store(config).read_card(expert.expert_id)),
        valid_id=valid_id,
    )


def edit_page(call: Call) -> Response:
    """A form for what people read of it."""
    expert = _expert(call)
    refuse_frozen(expert, "changed")
    categories = browser.categories(call.site.config)
    return call.page("expert_edit.html.j2", tab="", expert=expert, categories=categories)


def passages_page(call: Call) -> Response:
    """The passages that it was trained on, and what each of them gave."""
    expert = _expert(call)
    folder = open_store(call.site.config).folder(expert.expert_id)
    text = call.query("q").strip()[:200]
    found = _reader.documents(folder, text, call.number("page", 1, least=1), DOCUMENTS_SIZE)
    path = f"/experts/{expert.expert_id}/passages"
    return call.page(
        "expert_passages.html.j2",
        tab="passages",
        expert=expert,
        learnt=_reader.learnt(folder),
        text=text,
        found=found,
        links=[_with(path, q=text, page=found.page + step) for step in (-1, 1)],
        urlencode=urlencode,
    )


def texts_page(call: Call) -> Response:
    """The texts that it was trained on: its passages, and the self-edits of them."""
    expert = _expert(call)
    folder = open_store(call.site.config).folder(expert.expert_id)
    source, passage = call.query("source", "edits")[:200], call.query("passage")[:2000]
    found = _reader.texts(
        folder,
        source=source,
        passage=passage,
        page=call.number("page", 1, least=1),
        size=TEXTS_SIZE,
    )
    path = f"/experts/{expert.expert_id}/texts"
    return call.page(
        "expert_texts.html.j2",
        tab="texts",
        expert=expert,
        source=source,
        passage=passage,
        found=found,
        links=[
            f"{path}?{urlencode({'source': source, 'passage': passage, 'page': found.page + step})}"
            for step in (-1, 1)
        ],
        urlencode=urlencode,
    )


def versions_page(call: Call) -> Response:
    """Its versions, the newest first."""
    expert = _expert(call)
    versions = open_versions(call.site.config).list(expert.expert_id)
    return call.page(
        "expert_versions.html.j2", tab="versions", expert=expert, versions=versions[::-1]
    )


def forget_page(call: Call) -> Response:
    """What it means to train without a passage, and the button."""
    expert = _expert(call)
    refuse_frozen(expert, "trained")
    folder = open_store(call.site.config).folder(expert.expert_id)
    documents = _reader.learnt(folder).documents
    document = require_document(documents, expert.expert_id, call.query("passage"))
    return call.page(
        "expert_forget.html.j2",
        tab="passages",
        expert=expert,
        document=document,
        left=len(documents.trained) - 1,
    )


def download(call: Call) -> Response:
    """Its adapter in PEFT layout, as a zip file."""
    found = adapter_download(call.site.config, _expert(call).expert_id)
    return StreamingResponse(
        found.blocks,
        media_type="application/zip",
        headers={"Content-Disposition": f'attachment; filename="{found.name}"'},
    )


# ------------------------------------------------------------ doing


def describe(call: Call) -> Response:
    """Changes name, description and category."""
    found = changes.describe_expert(
        call.site.config,
        call.field("id"),
        name=call.field("name"),
        description=call.field("description"),
        category=call.field("category"),
    )
    return call.go(f"/experts/{found.expert_id}", "The description was changed.")


def set_parent(call: Call) -> Response:
    """Puts it below another."""
    parent = call.field("parent")
    if not parent:
        raise UsageError("no parent was chosen", "Choose one of the list.")
    found = open_store(call.site.config).set_parent(call.field("id"), parent)
    return call.go(f"/experts/{found.expert_id}", f"It is below {parent} now.")


def clear_parent(call: Call) -> Response:
    """Makes it a root."""
    found = open_store(call.site.config).clear_parent(call.field("id"))
    return call.go(f"/experts/{found.expert_id}", "It is a root of the tree now.")


def link_goal(call: Call) -> Response:
    """Lets it serve a goal."""
    goal = call.field("goal")
    if not goal:
        raise UsageError("no goal was chosen", "Choose one, or add one under Goals.")
    open_goals(call.site.config).link(goal, call.field("id"))
    return call.back("The expert serves the goal now.", otherwise="/goals")


def unlink_goal(call: Call) -> Response:
    """Lets it serve a goal no more; the goal stays."""
    expert_id, goal = call.field("id"), call.field("goal")
    goals = open_goals(call.site.config)
    known = next((one for one in goals.of_expert(expert_id) if goal in (one.id, one.text)), None)
    goals.unlink(goal, expert_id)
    back = call.field("back")
    note = Note("The expert serves the goal no more.")
    if known is not None and known.id:
        fields = (("id", expert_id), ("goal", known.id), ("back", back))
        note = Note(note.text, undo="/experts/-/link", fields=fields)
    return call.back(note, otherwise="/goals")


def rollback(call: Call) -> Response:
    """Makes an older version the current one, as a new version."""
    expert_id, number = call.field("id"), call.field("to")
    if not number.isdecimal() or len(number) > 9:
        raise UsageError("no version was chosen", "Choose one of the list.")
    store = open_versions(call.site.config)
    store.rollback(expert_id, int(number))
    current = store.list(expert_id)[-1]
    text = f"Version {number} is in use again, as version {current.number}."
    return call.go(f"/experts/{expert_id}/versions", text)


def forget(call: Call) -> Response:
    """Starts the job that trains it again without a passage."""
    config = call.site.config
    expert = open_store(config).require(call.field("id"))
    refuse_frozen(expert, "trained")
    folder = open_store(config).folder(expert.expert_id)
    document = require_document(
        _reader.learnt(folder).documents, expert.expert_id, call.field("passage")
    )
    request = forget_job(
        call.site.artifacts,
        expert.expert_id,
        document.id,
        keep_versions=bool(call.field("keep_versions")),
    )
    job = call.site.jobs.start(request, config)
    return call.go(f"/jobs/{job.id}", "The training without the passage was asked for.")


# ------------------------------------------------------------ inside


def _expert(call: Call) -> Expert:
    return open_store(call.site.config).require(call.path("expert_id"))


def _view(call: Call) -> ExpertView:
    def read(folder: Any) -> Any:
        return _reader.learnt(folder).documents

    return show_expert(call.site.config, call.path("expert_id"), read)


def _with(path: str, **values: Any) -> str:
    kept = {key: value for key, value in values.items() if value != ""}
    return f"{path}?{urlencode(kept)}" if kept else path
