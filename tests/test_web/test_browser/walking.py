"""Every page of a site: what links lead to, a few of each kind."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlsplit

from starlette.routing import Route

from aios.web.pages.assembly import MODULES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Page

_LINKS = """() => [...document.querySelectorAll("a[href]:not([download])")]
    .filter((link) => link.origin === location.origin).map((link) => link.pathname + link.search)"""
SAME = {"note", "sort", "order", "down", "page", "per"}  # the same page in another order
NO_PAGES = ("/live", ".zip", ".yaml", ".json", ".jsonl", ".html", ".csv", ".svg")


def routes() -> list[Route]:
    """The routes of all modules of pages."""
    return [route for module in MODULES for route in module.routes() if isinstance(route, Route)]


def kind_of(path: str, known: list[Route]) -> str:
    """The route that a path belongs to, with the names of its query."""
    parts = urlsplit(path)
    for route in known:
        if "GET" in (route.methods or ()) and route.path_regex.match(parts.path):
            names = sorted({name for name, _ in parse_qsl(parts.query)} - SAME)
            return route.path + (f"?{','.join(names)}" if names else "")
    return parts.path


def walk(page: Page, *, each: int = 2, begin: tuple[str, ...] = ("/",)) -> Iterator[str]:
    """Goes to pages that links lead to; gives the path when the page is open.

    Args:
        page: Of the site.
        each: Most pages of a kind.
        begin: Where it begins.
    """
    known = routes()
    waiting, seen = list(begin), set(begin)
    counts: Counter[str] = Counter()
    while waiting:
        path = waiting.pop(0)
        kind = kind_of(path, known)
        if counts[kind] >= each or urlsplit(path).path.endswith(NO_PAGES):
            continue
        counts[kind] += 1
        answer = page.goto(path)
        if answer is None or not answer.ok:
            continue  # an error of the page's console, which its watch has seen
        if "sandbox" in answer.headers["content-security-policy"]:
            continue  # a report by itself: nothing runs in it
        yield path
        for link in page.evaluate(_LINKS):
            if link not in seen:
                seen.add(link)
                waiting.append(link)
