"""The goals: what experts are for, and which expert serves which goal."""

from __future__ import annotations

from starlette.responses import Response
from starlette.routing import Route

from aios.app.experts.browsing import goals_with_experts
from aios.app.experts.registry import open_goals
from aios.core.files import valid_id
from aios.web.pages.calls import Call, get, post
from aios.web.pages.expert import browser
from aios.web.pages.site import Note

PAGE_SIZE = 25
EXPERTS_SHOWN = 12


def routes() -> list[Route]:
    """The routes; linking is a button of an expert (`aios.web.pages.expert`)."""
    return [
        get("/goals", goals_page),
        post("/goals/add", add_goal),
        post("/goals/remove", remove_goal),
    ]


def goals_page(call: Call) -> Response:
    """All goals with the experts that serve them."""
    config = call.site.config
    found = goals_with_experts(config, browser.experts(config))
    pages = max(1, -(-len(found) // PAGE_SIZE))
    page = call.number("page", 1, least=1, most=pages)
    return call.page(
        "goals.html.j2",
        goals=found[(page - 1) * PAGE_SIZE : page * PAGE_SIZE],
        total=len(found),
        unserved=sum(not experts for _, experts in found),
        experts=browser.choices(config),
        page=page,
        pages=pages,
        links=[f"/goals?page={page + step}" for step in (-1, 1)],
        back="/goals" if page == 1 else f"/goals?page={page}",
        most=EXPERTS_SHOWN,
        valid_id=valid_id,
    )


def add_goal(call: Call) -> Response:
    """Adds a goal."""
    goal = open_goals(call.site.config).add(call.field("text"), call.field("id") or None)
    return call.back(f"The goal {goal.id} was added.", otherwise="/goals")


def remove_goal(call: Call) -> Response:
    """Removes a goal, from its experts too."""
    removed, served = open_goals(call.site.config).remove(call.field("goal"))
    lost = ""
    if served:
        lost = f" {len(served)} {'expert serves' if len(served) == 1 else 'experts serve'} it no"
        lost += " more."
    return call.back(Note(f"The goal {removed.id} was removed.{lost}"), otherwise="/goals")
