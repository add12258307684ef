"""Base models on pages: which there are, fetching one as a job, choosing the one in use."""

from __future__ import annotations

from dataclasses import dataclass

from aios.app.jobs.commands import pull_job
from aios.app.jobs.records import Job
from aios.app.jobs.store import JobStore
from aios.app.models import ModelInfo, is_offline, list_models, models_folder, show_model
from aios.app.page_settings import PageSettings
from aios.core.config.schemas import Config
from aios.core.errors import UsageError

_NOT_FETCHED = ("endpoint", "scripted")  # on a server, and in the program


@dataclass(frozen=True, slots=True)
class ModelRow:
    """A base model that can be chosen.

    Attributes:
        info: What is known of it.
        in_use: Whether the settings name it.
        can_fetch: Whether it is not here and a job could fetch it now.
        job: The job that is fetching it; None where none is.
    """

    info: ModelInfo
    in_use: bool
    can_fetch: bool
    job: Job | None


def model_rows(config: Config, jobs: JobStore) -> list[ModelRow]:
    """The models that are known, were used before or are in use."""
    fetching = {job.request.title: job for job in pull_jobs(jobs) if job.live}
    offline = is_offline(config)
    return [
        ModelRow(
            info=info,
            in_use=info.name == config.model.name,
            can_fetch=not (info.installed or offline or info.kind in _NOT_FETCHED),
            job=fetching.get(info.name),
        )
        for info in list_models(config)
    ]


def pull_jobs(jobs: JobStore) -> list[Job]:
    """The jobs that fetch models."""
    return [job for job in jobs.list() if job.request.kind == "pull"]


def fetch_model(jobs: JobStore, config: Config, name: str) -> Job:
    """Begins to fetch a model; it does not wait for other jobs.

    Raises:
        ModelError: There is no such model.
        UsageError: The network is off, it is here already or being fetched, or lies elsewhere.
        StorageError: The job cannot be started.
    """
    request = pull_job(models_folder(config), name)
    info = show_model(config, name)
    if info.installed:
        raise UsageError(f"{name} is on this machine already", "Use it.")
    if info.kind in _NOT_FETCHED:
        raise UsageError(f"{name} is not fetched: it is asked over the network", "Use it as it is.")
    if is_offline(config):
        raise UsageError(
            f"{name} cannot be fetched: the network is off",
            "Set model.offline to false, and unset AIOS_OFFLINE and HF_HUB_OFFLINE.",
        )
    if any(job.live and job.request.title == name for job in pull_jobs(jobs)):
        raise UsageError(f"{name} is being fetched already", "See Jobs.")
    return jobs.start(request, config, wait=False)


def use_model(settings: PageSettings, name: str) -> ModelInfo:
    """Makes a model the one in use, if it is known.

    Raises:
        ModelError: There is no such model, or its folder is broken.
        ConfigError: The settings are not valid with it.
        StorageError: The choice cannot be kept.
    """
    info = show_model(settings.loaded().config, name)
    settings.change("model.name", name)
    return info
