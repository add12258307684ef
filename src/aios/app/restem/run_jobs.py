"""ReST-EM runs as jobs: start one, tell how it stands, pause, stop and go on with it.

A job's id is the name of its run's folder, so what is known of both is found by one name. A run
that was started on the command line has no job until it is gone on with as one: with the settings
that it was started with, since its numbers would be of neither otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

from aios.app.composition import recipe_named
from aios.app.data.preview import DataPreview
from aios.app.jobs.commands import require_readable, restem_job
from aios.app.jobs.records import Job, JobState
from aios.app.jobs.starts import work_of
from aios.app.jobs.store import JobStore
from aios.app.page_settings import PageSettings
from aios.app.restem.folders import is_held, request_stop, restem_info
from aios.app.restem.records import read_state
from aios.app.restem.run_rows import run_state
from aios.app.restem.settings import arms_of
from aios.app.restem.status import State
from aios.core.config.loader import load_config
from aios.core.errors import DataError, UsageError
from aios.core.files import confined, require_id

AnyState: TypeAlias = "State | JobState"

_LIVE = ("waiting", "running", "stopping")


@dataclass(frozen=True, slots=True)
class Choices:
    """What can be chosen of a new run; an empty text leaves the settings as they are.

    Attributes:
        rounds: Rounds at most.
        passages: Passages of a round.
        candidates: Self-edits tried for each passage.
        arms: Strategies; none for the model's measured ones.
    """

    rounds: str = ""
    passages: str = ""
    candidates: str = ""
    arms: tuple[str, ...] = ()

    def settings(self) -> dict[str, str]:
        """As settings by key, in texts."""
        texts = {
            "seal.restem_iterations": self.rounds,
            "seal.restem_batch_size": self.passages,
            "seal.restem_candidates_per_passage": self.candidates,
            "restem.arms": ",".join(self.arms),
        }
        return {key: text for key, text in texts.items() if text}


@dataclass(frozen=True, slots=True)
class RunOrJob:
    """A run, its job, or both, by their name.

    Attributes:
        id: Name of the run's folder, and the job's id.
        path: The run's folder; it may not be there yet.
        job: None for a run of the command line.
        exists: Whether the run has begun.
        state: How it stands; that of the job while the run has not begun, or not begun again.
    """

    id: str
    path: Path
    job: Job | None
    exists: bool
    state: AnyState

    @property
    def live(self) -> bool:
        """Whether a process works on it, or waits to."""
        return self.state in _LIVE

    @property
    def can_pause(self) -> bool:
        """Whether it can be asked to stop after the work in hand."""
        return self.state == "running" and self.exists

    @property
    def can_stop(self) -> bool:
        """Whether its process can be told to stop."""
        return self.job is not None and self.job.state in ("waiting", "running")

    @property
    def can_end(self) -> bool:
        """Whether a process that does not listen can be ended."""
        return self.job is not None and self.job.state == "stopping"

    @property
    def can_resume(self) -> bool:
        """Whether it can be gone on with."""
        return not self.live and self.state != "done"


def find(jobs: JobStore, run_id: str) -> RunOrJob:
    """A run, or a job that will make one.

    Raises:
        UsageError: There is neither, or the name is not valid, or of something else.
        StorageError: A record is corrupt or cannot be read.
    """
    require_id(run_id, "run id")
    path = confined(jobs.artifacts, "runs", run_id)
    job = _job_of(jobs, run_id)
    if not (path / "run.json").exists():
        if job is None:
            raise UsageError(f"there is no ReST-EM run {run_id}", "It may have been deleted.")
        return RunOrJob(run_id, path, job, False, job.state)
    restem_info(path)
    return RunOrJob(run_id, path, job, True, _state(run_state(path), job))


def waiting_jobs(jobs: JobStore) -> list[Job]:
    """Jobs of ReST-EM whose run has not begun, the newest first.

    Raises:
        StorageError: The jobs cannot be read.
    """
    return [
        job
        for job in jobs.list()
        if job.request.kind == "restem"
        and job.request.run is not None
        and not (job.request.run / "run.json").exists()
    ]


def start(
    jobs: JobStore,
    settings: PageSettings,
    path: Path,
    preview: DataPreview,
    choices: Choices,
) -> Job:
    """Starts a run as a job.

    Args:
        jobs: Where.
        settings: The settings that it runs with, besides what is chosen.
        path: The file of passages.
        preview: What that holds.
        choices: What was chosen.

    Raises:
        UsageError: The file lacks what is needed, or a choice is wrong.
        StorageError: The job cannot be started.
    """
    path = require_readable(path)
    config = settings.loaded_with(choices.settings())
    arms_of(config, recipe_named(config, config.model.name))
    work = work_of("restem", preview, config)
    if work.refusal:
        raise DataError(work.refusal, work.remedy)
    job_id = jobs.new_id("restem", path.name)
    return jobs.start(restem_job(jobs.artifacts, job_id, path), config, job_id=job_id)


def pause(jobs: JobStore, run_id: str) -> None:
    """Asks a run to stop after the work in hand.

    Raises:
        UsageError: There is no such run, or nobody works on it.
        StorageError: The request cannot be written.
    """
    found = find(jobs, run_id)
    if not found.exists or not request_stop(found.path):
        raise UsageError(f"{run_id} is not running", "There is nothing to pause.")


def stop(jobs: JobStore, run_id: str, *, at_once: bool = False) -> None:
    """Tells the process of a run to stop, or ends it.

    Raises:
        UsageError: There is no such run, it has ended, or it is not a job.
        StorageError: It cannot be told.
    """
    found = find(jobs, run_id)
    if found.job is None:
        raise UsageError(
            f"{run_id} was started on the command line", "Pause it, or stop it where it runs."
        )
    jobs.stop(run_id, at_once=at_once)


def resume(jobs: JobStore, run_id: str) -> Job:
    """Goes on with a run; one that was started on the command line becomes a job.

    Raises:
        UsageError: There is no such run, it goes on, is done, or its passages are gone.
        StorageError: The job cannot be started.
    """
    found = find(jobs, run_id)
    if not found.can_resume:
        done = "is done" if found.state == "done" else "goes on already"
        raise UsageError(f"{run_id} {done}")
    if found.job is not None and found.job.can_resume:
        return jobs.resume(run_id)
    return _resume_as_job(jobs, found)


def _resume_as_job(jobs: JobStore, found: RunOrJob) -> Job:
    """A job that goes on with a run of the command line, or with one whose job was done."""
    if is_held(found.path):
        raise UsageError(f"{found.id} goes on already")
    if not own_command(found.path):
        raise UsageError(
            f"{found.id} is part of an expert's training", "Resume that, with its own command."
        )
    dataset = dataset_of(found.path)
    if dataset is None or not dataset.is_file():
        name = "its file of passages" if dataset is None else f"{dataset}, its file of passages,"
        raise UsageError(
            f"{name} is not there, so the run cannot go on",
            "Put the file back, or resume it where it was started.",
        )
    config = load_config(
        config_file=found.path / "config.yaml",
        overrides=(f"paths.artifacts={jobs.artifacts}",),
        env={},
    ).config
    request = restem_job(jobs.artifacts, found.id, dataset.absolute())
    if found.job is not None:
        jobs.delete(found.id)  # of an earlier time: its results are those of the run
    return jobs.start(replace(request, arguments=request.resume), config, job_id=found.id)


def own_command(path: Path) -> bool:
    """Whether a run was begun by ``aios seal restem optimize``, not inside another command.

    Raises:
        UsageError: There is no run, or it is of another kind.
        StorageError: Its record is corrupt.
    """
    return list(_argv(restem_info(path))[1:2]) != ["hrm-hf"]


def dataset_of(path: Path) -> Path | None:
    """The file of passages that a run is on; None where nothing tells.

    Raises:
        UsageError: There is no run, or it is of another kind.
        StorageError: Its record is corrupt.
    """
    saved = read_state(path).dataset
    if saved:
        return Path(saved)
    argv = _argv(restem_info(path))
    for word, following in zip(argv, [*argv[1:], ""], strict=True):
        if word in ("--dataset", "--input") and following:
            return Path(following)
        if word.startswith(("--dataset=", "--input=")):
            return Path(word.partition("=")[2])
    return None


def _argv(info: Mapping[str, object]) -> Sequence[str]:
    argv = info.get("argv")
    return argv if isinstance(argv, list) and all(isinstance(word, str) for word in argv) else ()


def _job_of(jobs: JobStore, run_id: str) -> Job | None:
    try:
        job = jobs.get(run_id)
    except UsageError:
        return None
    return job if job.request.kind == "restem" else None


def _state(run: State, job: Job | None) -> AnyState:
    """Of a run that has begun: the job's where that works on it and the run does not say so."""
    if job is None or not job.live:
        return run
    if run in ("running", "stopping"):
        return "stopping" if job.state == "stopping" else run
    return job.state
