"""Strategies: the ways to have self-edits written, and which is in use."""

from __future__ import annotations

from starlette.responses import Response
from starlette.routing import Route

from aios.app.edits.strategies import auto_choice, list_strategies, strategies_in_use
from aios.web.pages.calls import Call, get, post
from aios.web.pages.site import Note

_PATH = "/settings/strategies"


def routes() -> list[Route]:
    """The routes."""
    return [get(_PATH, strategies_page), post(f"{_PATH}/use", use)]


def strategies_page(call: Call) -> Response:
    """All strategies."""
    config = call.site.config
    return call.page(
        "strategies.html.j2",
        strategies=list_strategies(config),
        auto=auto_choice(config),
        chosen=config.seal.strategy,
        in_use=dict(strategies_in_use(config)),
    )


def use(call: Call) -> Response:
    """Has self-edits written so from now on."""
    name = call.field("name")
    call.site.settings.change("seal.strategy", name)
    note = Note(f"The strategy is {name} now.", remedy="Jobs that start from now on use it.")
    return call.go(_PATH, note)
