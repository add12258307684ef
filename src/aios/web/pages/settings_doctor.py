"""The doctor: what this machine has, what is missing, and what to do about it."""

from __future__ import annotations

import threading
from collections.abc import Hashable
from typing import Any
from weakref import WeakKeyDictionary

from starlette.responses import Response
from starlette.routing import Route

from aios.app.machine.doctor_report import Doctor
from aios.web.pages.calls import Call, get, post
from aios.web.pages.live import live
from aios.web.pages.site import Note, Site

_PATH = "/settings/doctor"
_doctors: WeakKeyDictionary[Site, Doctor] = WeakKeyDictionary()
_guard = threading.Lock()


def routes() -> list[Route]:
    """The routes."""
    return [
        get(_PATH, doctor_page),
        *live(f"{_PATH}/result", doctor_result, doctor_stamp),
        post(f"{_PATH}/begin", begin_checks),
    ]


def doctor_of(site: Site) -> Doctor:
    """The doctor of a site."""
    with _guard:
        return _doctors.setdefault(site, Doctor(site.settings.folder))


def doctor_page(call: Call) -> Response:
    """The last result, and a button for a new one."""
    return call.page("doctor.html.j2", **_shown(call))


def doctor_result(call: Call) -> str:
    """The last result, or that one is on its way."""
    return call.fragment("doctor_result.html.j2", **_shown(call))


def doctor_stamp(call: Call) -> Hashable:
    """Changes when checks begin or end."""
    doctor = doctor_of(call.site)
    last = doctor.last()
    return doctor.begun, last.time if last else None


def begin_checks(call: Call) -> Response:
    """Begins the checks, and does not wait for them."""
    if doctor_of(call.site).begin(lambda: call.site.config):
        return call.go(_PATH)
    return call.go(_PATH, Note("The checks go on already.", "plain"))


def _shown(call: Call) -> dict[str, Any]:
    doctor = doctor_of(call.site)
    return {"begun": doctor.begun, "failed": doctor.failed, "report": doctor.last()}
