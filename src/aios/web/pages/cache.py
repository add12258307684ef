"""The cache of self-edits: what it holds, how much it helped, and making room."""

from __future__ import annotations

import re
from typing import Any

from starlette.responses import Response
from starlette.routing import Route

from aios.app.edits.cache import CacheLook, open_cache
from aios.core.errors import UsageError
from aios.core.seal.cache import PruneReport
from aios.core.sizes import parse_size
from aios.web.pages.calls import Call, get, post
from aios.web.pages.site import Note
from aios.web.pages.templates import size

_HERE = "/cache"
_RUNS_SHOWN = 10
_DAYS = re.compile(r"\d{1,5}(\.\d{1,3})?")


_look = CacheLook()


def routes() -> list[Route]:
    """The routes."""
    return [
        get(_HERE, cache_page),
        post(f"{_HERE}/prune", prune),
        post(f"{_HERE}/clear", clear),
    ]


def cache_page(call: Call) -> Response:
    """What the cache holds."""
    return call.page("cache.html.j2", **_shown(call))


def _shown(call: Call) -> dict[str, Any]:
    config = call.site.config
    found = _look.of(config)
    return {
        "stats": found,
        "folder": config.seal.cache_dir,
        "enabled": config.seal.enable_cache,
        "full": found.bytes / found.limit_bytes if found.limit_bytes else None,
        "runs": found.runs[: -_RUNS_SHOWN - 1 : -1],
        "limit": f"{found.limit_bytes / 10**9:g}GB",
    }


def prune(call: Call) -> Response:
    """Removes what was not used for longest, down to a size or by age."""
    asked, days = call.field("max_size"), call.field("older_than")
    if not asked and not days:
        raise UsageError("nothing says what may stay", "Give a size, an age, or both.")
    try:
        limit = parse_size(asked) if asked else None
    except ValueError as error:
        raise UsageError(str(error)) from error
    if days and not _DAYS.fullmatch(days):
        raise UsageError(f"{days!r} is no number of days", "Write it like 30.")
    older = float(days) * 86_400 if days else None
    with open_cache(call.site.config) as store:
        removed = store.prune(limit, older_than=older)
    return call.go(_HERE, Note(_words(removed)))


def clear(call: Call) -> Response:
    """Removes every cached self-edit."""
    with open_cache(call.site.config) as store:
        removed = store.clear(set_aside=call.field("set_aside") == "yes")
    return call.go(_HERE, Note(_words(removed)))


def _words(report: PruneReport) -> str:
    text = (
        f"{report.removed:,} self-edits were removed, {size(report.bytes_freed)} freed; "
        f"{report.left:,} are left, {size(report.bytes_left)}."
    )
    if report.set_aside:
        text += f" {report.set_aside:,} corrupt files were removed, too."
    return text
