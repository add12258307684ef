"""Settings: what is in force, what each means, and changing it; doctor, models, strategies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from starlette.responses import Response
from starlette.routing import Route

from aios.app.page_settings import PageSettings
from aios.app.settings_view import (
    as_file,
    as_options,
    may_be_secret,
    to_typed,
    view_settings,
)
from aios.core.config.loader import LoadedConfig
from aios.core.errors import AIOSError, ConfigError, StorageError, UsageError
from aios.web.pages import settings_doctor, settings_models, settings_strategies
from aios.web.pages.calls import Call, get, post
from aios.web.pages.site import Note


def routes() -> list[Route]:
    """The routes."""
    return [
        get("/settings", settings_page),
        get("/settings/config.yaml", settings_file),
        get("/settings/change", to_settings),
        post("/settings/change", change_setting),
        post("/settings/reset", reset_setting),
        post("/settings/reset-all", reset_all),
        *settings_doctor.routes(),
        *settings_models.routes(),
        *settings_strategies.routes(),
    ]


@dataclass(frozen=True, slots=True)
class Refused:
    """A value that was not kept.

    Attributes:
        key: Of the setting.
        texts: What was typed; empty where it may be a secret.
        reason: Why it was refused.
    """

    key: str
    texts: tuple[str, ...]
    reason: str


def settings_page(call: Call) -> Response:
    """All settings."""
    return _page(call, query=call.query("q")[:200], changed_only=bool(call.query("changed")))


def to_settings(call: Call) -> Response:
    """Who opens the address of a refused change again sees the settings."""
    return call.go("/settings")


def settings_file(call: Call) -> Response:
    """The settings in force as a file."""
    return Response(
        as_file(call.site.settings),
        media_type="application/yaml",
        headers={"Content-Disposition": 'attachment; filename="config.yaml"'},
    )


def change_setting(call: Call) -> Response:
    """Sets one setting; a value that is refused is told at its field, which keeps it."""
    key, texts = call.field("key"), call.fields("value")
    try:
        call.site.settings.change(key, to_typed(key, texts))
    except (ConfigError, UsageError) as error:
        kept = () if may_be_secret(key) else texts
        reason = error.message.removeprefix("config: ")
        return _page(call, refused=Refused(key, kept, reason), status=400)
    return call.back(f"{key} was changed.", otherwise="/settings")


def reset_setting(call: Call) -> Response:
    """Takes back what was changed of one setting."""
    key = call.field("key")
    call.site.settings.reset(key)
    return call.back(f"{key} was reset.", otherwise="/settings")


def reset_all(call: Call) -> Response:
    """Takes back what was changed of all settings."""
    call.site.settings.reset()
    return call.go("/settings", Note("All settings are as the server was started."))


def _page(
    call: Call,
    *,
    query: str = "",
    changed_only: bool = False,
    refused: Refused | None = None,
    status: int = 200,
) -> Response:
    settings = call.site.settings
    loaded, broken = _loaded(settings)
    changed = _changed(settings)
    values: dict[str, Any] = {
        "view": view_settings(loaded, query=query, changed_only=changed_only),
        "query": query,
        "changed_only": changed_only,
        "changed": changed,
        "options": as_options(changed),
        "notes": loaded.notes,
        "broken": broken,
        "refused": refused,
        "assistant_ready": call.site.assistant.ready,
    }
    return call.page("settings.html.j2", status=status, **values)


def _loaded(settings: PageSettings) -> tuple[LoadedConfig, AIOSError | None]:
    """The settings in force; where there are none, those of the start, and why."""
    try:
        return settings.loaded(), None
    except (ConfigError, StorageError) as error:
        return settings.started, error


def _changed(settings: PageSettings) -> dict[str, str]:
    try:
        return settings.changed()
    except StorageError:
        return {}
