"""Base models: which are here, which is in use; fetch one, choose one."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from starlette.responses import Response
from starlette.routing import Route

from aios.app.kept import stamp_of
from aios.app.model_choice import fetch_model, model_rows, pull_jobs, use_model
from aios.app.models import is_offline, models_folder
from aios.web.pages.calls import Call, get, post
from aios.web.pages.live import live
from aios.web.pages.site import Note

_PATH = "/settings/models"


def routes() -> list[Route]:
    """The routes."""
    return [
        get(_PATH, models_page),
        *live(f"{_PATH}/table", models_table, models_stamp),
        post(f"{_PATH}/use", use),
        post(f"{_PATH}/fetch", fetch),
    ]


def models_page(call: Call) -> Response:
    """The models, and a form for one that is not in the list."""
    return call.page("models.html.j2", **_shown(call))


def models_table(call: Call) -> str:
    """The models as a table."""
    return call.fragment("models_table.html.j2", **_shown(call))


def models_stamp(call: Call) -> Hashable:
    """Changes when a model is chosen, a fetch begins or ends, or the folder changes."""
    jobs = tuple((job.id, job.state) for job in pull_jobs(call.site.jobs))
    config = call.site.config
    return config.model, jobs, stamp_of(models_folder(config))


def use(call: Call) -> Response:
    """Makes a model the one in use."""
    info = use_model(call.site.settings, call.field("name"))
    remedy = "Jobs that start from now on use it."
    if not info.installed and info.kind not in ("endpoint", "scripted"):
        remedy = "It is not here yet: the first job that needs it fetches it."
    if call.site.assistant.ready:
        remedy += " The chat keeps its model until the server is started again."
    return call.go(_PATH, Note(f"{info.name} is the model in use now.", "good", remedy))


def fetch(call: Call) -> Response:
    """Begins to fetch a model."""
    job = fetch_model(call.site.jobs, call.site.config, call.field("name"))
    return call.go(_PATH, Note(f"{job.request.title} is being fetched.", remedy="See Jobs."))


def _shown(call: Call) -> dict[str, Any]:
    config = call.site.config
    return {
        "rows": model_rows(config, call.site.jobs),
        "offline": is_offline(config),
        "folder": models_folder(config),
    }
