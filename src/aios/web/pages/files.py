"""Files of passages: choose or upload one, look at it, start a job on it."""

from __future__ import annotations

import threading
from collections.abc import Hashable
from pathlib import Path
from typing import Any, cast

from starlette.responses import Response
from starlette.routing import Route

from aios.app.costs.forecast import FORESEEN, Forecasts
from aios.app.data.files import ENDINGS, MOST_BYTES, DataFile, DataFiles, bundled_example
from aios.app.data.preview import DataPreview, Previews
from aios.app.jobs.records import Kind
from aios.app.jobs.results import KIND_NAMES
from aios.app.jobs.starts import (
    OPTIONS,
    default_of,
    start_job,
    strategy_choices,
    suggested_expert_id,
    work_of,
)
from aios.app.jobs.timed_estimates import TimedEstimates, What
from aios.core.errors import UsageError
from aios.web.pages.calls import Call, get, post
from aios.web.pages.live import live
from aios.web.pages.site import Note

# What jobs are called on their buttons, the main one first.
TITLES: dict[Kind, str] = {
    "ab-test": "Measure whether self-edits help",
    "generate": "Write self-edits",
    "restem": "Improve the writer (ReST-EM)",
    "train-expert": "Train an expert",
}
_PREVIEWS = Previews()
_FORECASTS = Forecasts()
_TIMED: dict[Path, TimedEstimates] = {}
_GUARD = threading.Lock()


def routes() -> list[Route]:
    """The routes."""
    return [
        get("/files", files_page),
        post("/files/upload", upload_file),
        get("/files/{file_id}", file_page),
        *live("/files/{file_id}/estimate", estimate_panel, estimate_stamp),
        post("/files/{file_id}/time", time_it),
        post("/files/{file_id}/start", start),
        post("/files/{file_id}/delete", delete_file),
    ]


def files_of(call: Call) -> DataFiles:
    """The files that can be chosen."""
    return DataFiles(call.site.artifacts, call.site.data, bundled_example())


def files_page(call: Call) -> Response:
    """All files that can be chosen."""
    return call.page("files.html.j2", files=files_of(call).list(), endings=",".join(ENDINGS))


def upload_file(call: Call) -> Response:
    """Takes a file in."""
    sent = call.upload("file")
    if sent is None:
        raise UsageError("no file was chosen", "Choose a file first.")
    file = files_of(call).add(sent.filename or "", sent.file)
    return call.go(f"/files/{file.id}", f"{file.name} was uploaded.")


def file_page(call: Call) -> Response:
    """One file, and the jobs that can be started on it."""
    file, preview = _file(call)
    config = call.site.config
    choices = strategy_choices(config)
    return call.page(
        "file.html.j2",
        jobs=[
            {
                "kind": kind,
                "title": title,
                "work": work_of(kind, preview, config),
                "options": [(option, default_of(config, option)) for option in OPTIONS[kind]],
            }
            for kind, title in TITLES.items()
        ],
        strategies=choices,
        expert_id=suggested_expert_id(config, call.site.artifacts, file.path.name),
        model=config.model.name,
        most_mib=MOST_BYTES // 2**20,
        past=_past(call, file),
        kinds=KIND_NAMES,
        **_estimates(call, file),
    )


def estimate_panel(call: Call) -> str:
    """What was found by timing."""
    return call.fragment("file_estimate.html.j2", **_estimates(call, _file(call)[0]))


def estimate_stamp(call: Call) -> Hashable:
    """Changes when a timing begins or is over."""
    file = files_of(call).get(call.path("file_id"))
    timed = _timed(call)
    return tuple(timed.get(what, file.path, call.site.config).state for what in _timeable())


def time_it(call: Call) -> Response:
    """Times a few passages."""
    file, preview = _file(call)
    what = call.field("what")
    if what not in _timeable():
        raise UsageError(f"{what!r} cannot be timed", "Choose one of the buttons.")
    if preview.problem:
        raise UsageError(preview.problem, preview.remedy)
    _timed(call).start(what, file.path, call.site.config)
    return call.go(f"/files/{file.id}", Note("A few passages are being timed.", "plain"))


def start(call: Call) -> Response:
    """Starts a job on the file; its page follows."""
    file, preview = _file(call)
    given = {name: call.field(name) for name in call.form if name not in ("code", "back", "kind")}
    if call.field("kind") == "train-expert":
        given["edits_too"] = call.field("edits_too")
    kind = cast(Kind, call.field("kind"))
    job = start_job(call.site.jobs, call.site.settings, kind, file.path, preview, given)
    return call.go(f"/jobs/{job.id}", "The job was started. It goes on if you close this page.")


def delete_file(call: Call) -> Response:
    """Removes an upload."""
    live_jobs = [job for job in call.site.jobs.list() if job.live]
    in_use = {job.request.input for job in live_jobs if job.request.input is not None}
    name = files_of(call).delete(call.path("file_id"), in_use)
    return call.go("/files", f"{name} was deleted.")


def _file(call: Call) -> tuple[DataFile, DataPreview]:
    file = files_of(call).get(call.path("file_id"))
    return file, _PREVIEWS.of(file.path)


def _timeable() -> tuple[What, ...]:
    return (*FORESEEN, "writing", "restem")


def _timed(call: Call) -> TimedEstimates:
    with _GUARD:
        return _TIMED.setdefault(call.site.artifacts, TimedEstimates(call.site.artifacts))


def _estimates(call: Call, file: DataFile) -> dict[str, Any]:
    timed, config, preview = _timed(call), call.site.config, _PREVIEWS.of(file.path)
    artifacts = call.site.artifacts
    return {
        "file": file,
        "estimates": {what: timed.get(what, file.path, config) for what in _timeable()},
        "forecasts": {
            kind: _FORECASTS.of(kind, config, file.path, artifacts)
            for kind in FORESEEN
            if not preview.problem
        },
        "preview": preview,
    }


def _past(call: Call, file: DataFile) -> list[tuple[Kind, float]]:
    """How long the last jobs took that are done on this very file."""
    found: dict[Kind, float] = {}
    for job in call.site.jobs.list():
        if job.state == "done" and job.request.input == file.path and job.started and job.ended:
            found.setdefault(job.request.kind, (job.ended - job.started).total_seconds())
    return [(kind, seconds) for kind, seconds in found.items() if seconds > 0]
