"""The experts: how many there are and of what kind, as a table or a tree; what is done with them.

One expert's own pages are in `aios.web.pages.expert`.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from starlette.responses import Response
from starlette.routing import Route

from aios.app.experts import changes
from aios.app.experts.browsing import ORDERS, STATUSES, ExpertQuery
from aios.app.experts.registry import open_goals, open_store, open_trash
from aios.core.errors import UsageError
from aios.core.files import valid_id
from aios.web.pages import expert
from aios.web.pages.calls import Call, get, local_path, post
from aios.web.pages.expert import browser
from aios.web.pages.live import live
from aios.web.pages.site import Note

PAGE_SIZE = 50
TREE_SIZE = 40
_SHOWN = 80  # characters of a name in a note


def routes() -> list[Route]:
    """The routes. Ids begin with a letter or digit, so ``-`` is none."""
    return [
        get("/experts", experts_page),
        *live("/experts/-/tiles", tiles, tiles_stamp),
        get("/experts/-/trash", trash_page),
        get("/experts/-/new", new_page),
        post("/experts/-/create", create),
        post("/experts/-/activate", activate),
        post("/experts/-/deactivate", deactivate),
        post("/experts/-/freeze", freeze),
        post("/experts/-/unfreeze", unfreeze),
        post("/experts/-/delete", delete),
        post("/experts/-/restore", restore),
        post("/experts/-/purge", purge),
        *expert.routes(),
    ]


# ------------------------------------------------------------ looking


def experts_page(call: Call) -> Response:
    """The table or the tree."""
    config = call.site.config
    query = _query(call)
    as_tree = call.query("view") == "tree"
    number = call.number("page", 1, least=1)
    if as_tree:
        found: Any = browser.tree(config, query, number, TREE_SIZE)
    else:
        found = browser.page(config, query, number, PAGE_SIZE)
    return call.page(
        "experts.html.j2",
        **_tiles(call),
        as_tree=as_tree,
        query=query,
        found=found,
        view="tree" if as_tree else "",
        links=[_address(call, page=found.page + step) for step in (-1, 1)],
        heads=[] if as_tree else _heads(call, query),
        statuses=STATUSES,
        categories=browser.categories(config),
        goals=open_goals(config).list(),
        back=_address(call, page=found.page),
        names={one.expert_id: one.name for one in browser.experts(config)},
        valid_id=valid_id,
    )


def tiles(call: Call) -> str:
    """How many experts there are."""
    return call.fragment("experts_tiles.html.j2", **_tiles(call))


def tiles_stamp(call: Call) -> Hashable:
    """Changes when an expert does."""
    return browser.revision(call.site.config)


def trash_page(call: Call) -> Response:
    """What was deleted and can come back."""
    trashed = sorted(
        open_trash(call.site.config).list(), key=lambda one: one.deleted_at, reverse=True
    )
    pages = max(1, -(-len(trashed) // PAGE_SIZE))
    page = call.number("page", 1, least=1, most=pages)
    return call.page(
        "experts_trash.html.j2",
        trashed=trashed[(page - 1) * PAGE_SIZE : page * PAGE_SIZE],
        total=len(trashed),
        bytes=sum(one.bytes for one in trashed),
        page=page,
        pages=pages,
        links=[f"/experts/-/trash?page={page + step}" for step in (-1, 1)],
    )


def new_page(call: Call) -> Response:
    """How experts come to be."""
    config = call.site.config
    return call.page(
        "expert_new.html.j2",
        local=_is_local(call),
        base_model=config.model.name,
        parents=browser.choices(config),
    )


# ------------------------------------------------------------ doing


def activate(call: Call) -> Response:
    """Lets experts answer."""
    return _switch(call, active=True)


def deactivate(call: Call) -> Response:
    """Lets experts answer no more."""
    return _switch(call, active=False)


def freeze(call: Call) -> Response:
    """Protects an expert from changes."""
    found = open_store(call.site.config).set_frozen(call.field("id"), True)
    return call.back(f"{_shown(found.name)} is frozen.", otherwise="/experts")


def unfreeze(call: Call) -> Response:
    """Allows changes again."""
    found = open_store(call.site.config).set_frozen(call.field("id"), False)
    return call.back(f"{_shown(found.name)} can be changed again.", otherwise="/experts")


def delete(call: Call) -> Response:
    """Moves experts to the trash; the note takes it back."""
    ids = _chosen(call)
    if len(ids) == 1:
        trashed: Sequence[Any] = (open_trash(call.site.config).delete(ids[0]),)
        problems: Sequence[Any] = ()
    else:
        done = changes.delete_experts(call.site.config, ids)
        trashed, problems = done.trashed, done.problems
    texts = []
    if len(trashed) == 1:
        texts.append(f"{_shown(trashed[0].expert.name)} is in the trash.")
    elif trashed:
        texts.append(f"{len(trashed)} experts are in the trash.")
    texts += [f"Not deleted: {one.message}." for one in problems[:3]]
    if len(problems) > 3:
        texts.append(f"{len(problems) - 3} more were not deleted.")
    note = Note(
        " ".join(texts),
        "bad" if problems else "good",
        remedy=problems[0].remedy if problems else "",
        undo="/experts/-/restore" if trashed else "",
        fields=(("back", _after(call)), *(("entry", one.name) for one in trashed)),
    )
    return call.go(_after(call), note)


def restore(call: Call) -> Response:
    """Brings experts back from the trash."""
    entries = call.fields("entry")
    if not entries:
        raise UsageError("no expert was chosen", "Choose one of the trash.")
    found = changes.restore_experts(call.site.config, entries)
    names = _shown(found[0].name) if len(found) == 1 else f"{len(found)} experts"
    verb = "is" if len(found) == 1 else "are"
    return call.back(f"{names} {verb} back.", otherwise="/experts")


def purge(call: Call) -> Response:
    """Removes what is in the trash for good."""
    entry = call.field("entry")
    if not entry and not call.field("all"):
        raise UsageError("no expert was chosen", "Choose one of the trash.")
    gone = open_trash(call.site.config).purge(entry or None)
    text = f"{len(gone)} {'expert was' if len(gone) == 1 else 'experts were'} removed for good."
    return call.go("/experts/-/trash", text)


def create(call: Call) -> Response:
    """Makes an expert of an adapter's folder on this machine."""
    from aios.app.experts.creation import create_expert

    if not _is_local(call):
        raise UsageError(
            "folders of the server's machine cannot be named from elsewhere",
            "Run `aios experts create` on that machine.",
        )
    made = create_expert(
        call.site.config,
        call.field("id"),
        _folder(call.field("folder")),
        name=call.field("name"),
        description=call.field("description"),
        category=call.field("category"),
        goals=tuple(filter(None, (line.strip() for line in call.field("goals").splitlines()))),
        parent=call.field("parent") or None,
    )
    text = f"{_shown(made.expert.name)} was made: rank {made.rank}, {made.modules} modules."
    return call.go(f"/experts/{made.expert.expert_id}", Note(text, remedy=_sentences(made.notes)))


def _switch(call: Call, *, active: bool) -> Response:
    found = changes.set_active(call.site.config, _chosen(call), active)
    state = "active" if active else "inactive"
    if len(found) == 1:
        text = f"{_shown(found[0].name)} is {state}."
    else:
        text = f"{len(found)} experts are {state}."
    return call.back(text, otherwise="/experts")


# ------------------------------------------------------------ inside


def _folder(text: str) -> Path:
    """A folder of this machine, as somebody typed it."""
    if not text or "\0" in text:
        raise UsageError("no folder was given", "Write the path of the adapter's folder.")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:  # ~somebody who is not there
        raise UsageError(f"there is no folder {text[:200]}", "Check the path.") from error


def _chosen(call: Call) -> tuple[str, ...]:
    ids = tuple(filter(None, call.fields("id")))
    if not ids:
        raise UsageError("no expert was chosen", "Tick the experts first.")
    return ids


def _after(call: Call) -> str:
    """Where to go after a deletion: never to the page of what is gone."""
    back = local_path(call.field("back"), "/experts")
    return back if back.partition("?")[0] == "/experts" else "/experts"


def _is_local(call: Call) -> bool:
    """Whether who asks is on this machine: a server without a token answers nobody else."""
    return not call.request.app.state.signs_in


def _query(call: Call) -> ExpertQuery:
    order, status = call.query("order"), call.query("status")
    return ExpertQuery(
        text=call.query("q").strip()[:200],
        status=status if status in STATUSES else "",
        category=call.query("category")[:200],
        goal=call.query("goal")[:2000],
        order=order if order in ORDERS else "name",
        down=call.query("down") == "1",
    )


def _address(call: Call, **changed: Any) -> str:
    """The address of this list with other values."""
    query = _query(call)
    values: dict[str, Any] = {
        "view": "tree" if call.query("view") == "tree" else "",
        "q": query.text,
        "status": query.status,
        "category": query.category,
        "goal": query.goal,
        "order": "" if query.order == "name" else query.order,
        "down": "1" if query.down else "",
        **changed,
    }
    if values.get("page") == 1:
        del values["page"]
    kept = {key: value for key, value in values.items() if value not in ("", None)}
    return f"/experts?{urlencode(kept)}" if kept else "/experts"


def _heads(call: Call, query: ExpertQuery) -> list[dict[str, Any]]:
    """The columns that sort, each with the address that sorts by it."""
    columns = (
        ("Name", "name", False),
        ("Category", "category", False),
        ("Status", "status", False),
        ("Activations", "activations", True),
        ("Average weight", "weight", True),
        ("Goals", "goals", False),
        ("Parent and children", "children", False),
    )
    heads = []
    for label, key, number in columns:
        down = not query.down if query.order == key else number  # of numbers the largest first
        link = _address(call, order="" if key == "name" else key, down="1" if down else "")
        heads.append({"label": label, "key": key, "number": number, "link": link})
    return heads


def _tiles(call: Call) -> dict[str, Any]:
    config = call.site.config
    return {
        "counts": browser.counts(config),
        "revision": abs(hash(browser.revision(config))),
    }


def _shown(name: str) -> str:
    name = " ".join(name.split())
    return name if len(name) <= _SHOWN else f"{name[: _SHOWN - 1]}…"


def _sentences(notes: Sequence[str]) -> str:
    return " ".join(f"{one[:1].upper()}{one[1:]}." for one in notes)
