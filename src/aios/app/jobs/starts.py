"""Starting jobs on a file of passages: which jobs there are, their few options, what they do.

Takes a file, what a person chose as text, and the settings; gives a started job. Choices become
settings and are checked with all others before anything is started. What a job needs of the file
(questions, say) is checked here too, so that nobody waits for a job that cannot work.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from aios.app.composition import check_strategy, recipe_named
from aios.app.data.preview import DataPreview
from aios.app.edits.strategies import list_strategies
from aios.app.jobs.commands import (
    ab_test_job,
    generate_job,
    require_readable,
    restem_job,
    train_expert_job,
)
from aios.app.jobs.records import Job, JobRequest, Kind
from aios.app.jobs.store import JobStore
from aios.app.page_settings import PageSettings
from aios.core.config.schemas import Config
from aios.core.errors import AIOSError, DataError, ExpertExistsError, UsageError
from aios.core.evaluation.ab_test import UNTRAINED
from aios.core.experts.registry import refuse_reserved
from aios.core.files import require_id, valid_id
from aios.storage.experts import FileExpertStore

CONTROL = "passage+other-edits"
_NO_WORDS = re.compile(r"[^A-Za-z0-9]+")


@dataclass(frozen=True, slots=True)
class Option:
    """A setting that can be chosen when a job is started.

    Attributes:
        name: Of its field.
        key: The setting's key.
        label: For people.
        kind: What it takes.
        help: What it does, in a few words.
        most: Largest number.
        may_be_empty: Whether the setting may have no value, and what that means; empty: no.
    """

    name: str
    key: str
    label: str
    kind: Literal["number", "strategy"]
    help: str
    most: int = 0
    may_be_empty: str = ""


_STRATEGY = Option(
    "strategy",
    "seal.strategy",
    "Strategy",
    "strategy",
    "How self-edits are written; auto is what was measured best for the model.",
)
_EDITS = Option(
    "edits",
    "seal.num_edits_per_passage",
    "Self-edits a passage",
    "number",
    "More take longer; empty for the recipe's number.",
    1000,
    "as the recipe says",
)
OPTIONS: Mapping[Kind, tuple[Option, ...]] = {
    "ab-test": (
        Option(
            "seeds",
            "ab_test.seeds",
            "Seeds",
            "number",
            "Trainings of each arm; more make the interval surer.",
            100,
        ),
        _STRATEGY,
        Option(
            "max_passages",
            "ab_test.max_passages",
            "Most passages",
            "number",
            "Fewer are faster; empty for all.",
            10_000_000,
            "all",
        ),
    ),
    "generate": (_STRATEGY, _EDITS),
    "restem": (
        Option("rounds", "seal.restem_iterations", "Rounds", "number", "At most so many.", 100),
        Option(
            "passages",
            "seal.restem_batch_size",
            "Passages a round",
            "number",
            "Each is written for, tried and asked about.",
            100_000,
        ),
        Option(
            "candidates",
            "seal.restem_candidates_per_passage",
            "Self-edits tried a passage",
            "number",
            "An expert is trained for each.",
            1000,
        ),
    ),
    "train-expert": (_STRATEGY, _EDITS),
}


@dataclass(frozen=True, slots=True)
class Work:
    """What a job would do, counted without a model.

    Attributes:
        facts: Names and words for people.
        refusal: Why it cannot be started on this file; empty where it can.
        remedy: What would help.
    """

    facts: tuple[tuple[str, str], ...]
    refusal: str = ""
    remedy: str = ""


def default_of(config: Config, option: Option) -> str:
    """An option's value in the settings, as text; empty where it has none."""
    value: Any = config
    for name in option.key.split("."):
        value = getattr(value, name)
    return "" if value is None else str(value)


def strategy_choices(config: Config) -> tuple[str, ...]:
    """What a strategy can be; the one in force is among them."""
    try:
        names = [info.name for info in list_strategies(config) if not info.problem]
    except AIOSError:  # an unreadable prompts file; starting a job tells of it
        names = []
    return tuple(dict.fromkeys(("auto", config.seal.strategy, *names)))


def work_of(kind: Kind, preview: DataPreview, config: Config) -> Work:
    """What a job would do with a file, and whether it can."""
    if preview.problem:
        return Work((), preview.problem, preview.remedy)
    try:
        recipe = recipe_named(config, config.model.name)
    except AIOSError as error:
        return Work((), error.message, error.remedy)
    edits = recipe.num_edits_per_passage
    about = "" if preview.whole else "more than "
    if kind in ("generate", "train-expert"):
        facts = [
            ("self-edits to write", f"{about}{preview.passages * edits:,}"),
            ("how", f"{recipe.strategy}, {edits} a passage"),
        ]
        if kind == "train-expert":
            facts.append(("then", f"one training, {recipe.lora.epochs} epochs at most"))
        return Work(tuple(facts))
    refusal, remedy = _lacks(kind, preview, config)
    facts = _ab_facts(preview, config, edits, about)
    if kind == "restem":
        facts = _restem_facts(preview, config)
    return Work(tuple(facts), refusal, remedy)


def _lacks(kind: Kind, preview: DataPreview, config: Config) -> tuple[str, str]:
    """What a file lacks for an examination, and what would help."""
    if not preview.whole:
        return "", ""  # the job sees the rest
    if not preview.with_questions:
        return (
            "No passage of this file has questions, so nothing can be examined.",
            "Add questions with answers to the file. Without them you can write self-edits or "
            "train an expert.",
        )
    if kind == "ab-test" and preview.questions < 2:
        return (
            "One question is too few.",
            "Give each passage at least two: some choose checkpoints, the others are reported.",
        )
    if kind == "ab-test" and CONTROL in config.ab_test.arms and preview.passages < 2:
        return (
            "The control arm needs self-edits of another passage, and there is only one.",
            f"Add passages, or leave {CONTROL} out of the setting ab_test.arms.",
        )
    if kind == "restem" and preview.with_questions < 2:
        return (
            "One passage with questions is too few: some are held out to compare generators on.",
            "Add passages with questions.",
        )
    return "", ""


def _ab_facts(
    preview: DataPreview, config: Config, edits: int, about: str
) -> list[tuple[str, str]]:
    settings = config.ab_test
    trained = [arm for arm in settings.arms if arm not in UNTRAINED]
    return [
        ("self-edits to write", f"{about}{preview.passages * edits:,}"),
        (
            "trainings",
            f"{len(trained) * settings.seeds} "
            f"({len(trained)} ways to train, {settings.seeds} seeds each)",
        ),
        ("questions", f"{about}{preview.questions:,}, some to choose checkpoints on"),
    ]


def _restem_facts(preview: DataPreview, config: Config) -> list[tuple[str, str]]:
    seal = config.seal
    usable = preview.with_questions
    held_out = min(max(1, round(config.restem.held_out_fraction * usable)), max(0, usable - 1))
    batch = min(seal.restem_batch_size, usable - held_out)
    return [
        ("held out", f"{held_out:,} of {usable:,} passages with questions"),
        (
            "a round",
            f"{batch:,} passages, {batch * seal.restem_candidates_per_passage:,} self-edits, "
            "each tried by training an expert",
        ),
        ("rounds", f"{seal.restem_iterations} at most"),
    ]


def suggested_expert_id(config: Config, artifacts: Path, name: str) -> str:
    """An id for a new expert, from a file's name, that no expert has."""
    stem = _NO_WORDS.sub("-", Path(name).stem).strip("-").lower()[:60] or "expert"
    if not valid_id(stem):
        stem = f"expert-{stem}"
    store = FileExpertStore(artifacts / "experts", config.model.name)
    taken = {expert.expert_id for expert in store.list()}
    number, found = 2, stem
    while found in taken or store.folder(found).exists():
        found, number = f"{stem}-{number}", number + 1
    return found


def start_job(
    jobs: JobStore,
    settings: PageSettings,
    kind: Kind,
    path: Path,
    preview: DataPreview,
    given: Mapping[str, str],
) -> Job:
    """Starts a job on a file.

    Args:
        jobs: Where.
        settings: The settings that it runs with, besides what was chosen.
        kind: Which job.
        path: The file of passages.
        preview: What that holds.
        given: What was chosen, by the names of `OPTIONS`; and for an expert ``expert_id``,
            ``name``, ``description``, ``category`` and ``edits_too`` (empty: the passages alone).

    Raises:
        UsageError: The file lacks what the job needs, or a choice is wrong.
        StorageError: The job cannot be started.
    """
    if kind not in OPTIONS:
        raise UsageError(f"{kind!r} is no job that can be started here", "Choose one at Home.")
    path = require_readable(path)
    config = settings.loaded_with(_chosen(kind, given))
    check_strategy(config)
    work = work_of(kind, preview, config)
    if work.refusal:
        raise DataError(work.refusal, work.remedy)
    job_id = jobs.new_id(kind, path.name)
    request = _request(jobs, config, kind, path, given, job_id)
    return jobs.start(request, config, job_id=job_id)


def _chosen(kind: Kind, given: Mapping[str, str]) -> dict[str, str]:
    """Settings by key, of options that were filled in, or emptied where that means something."""
    found: dict[str, str] = {}
    for option in OPTIONS[kind]:
        text = given.get(option.name)
        if text:
            found[option.key] = text
        elif text is not None and option.may_be_empty:
            found[option.key] = "null"
    return found


def _request(
    jobs: JobStore, config: Config, kind: Kind, path: Path, given: Mapping[str, str], job_id: str
) -> JobRequest:
    if kind == "generate":
        return generate_job(jobs.artifacts, job_id, path)
    if kind == "ab-test":
        return ab_test_job(jobs.artifacts, job_id, path)
    if kind == "restem":
        return restem_job(jobs.artifacts, job_id, path)
    expert_id = given.get("expert_id", "")
    _refuse_taken(jobs, config, expert_id)
    return train_expert_job(
        jobs.artifacts,
        path,
        expert_id,
        name=given.get("name", ""),
        description=given.get("description", ""),
        category=given.get("category", ""),
        use_self_edits=bool(given.get("edits_too", "yes")),
    )


def _refuse_taken(jobs: JobStore, config: Config, expert_id: str) -> None:
    """Refuses an id that is not valid, has an expert, or is being trained.

    Raises:
        UsageError: It is one of them.
    """
    if not expert_id:
        raise UsageError("the expert needs an id", "Give it one, such as harbours.")
    refuse_reserved(require_id(expert_id, "expert id"))
    store = FileExpertStore(jobs.artifacts / "experts", config.model.name)
    if store.get(expert_id) is not None:
        raise ExpertExistsError(f"expert {expert_id!r} exists already", "Choose another id.")
    for job in jobs.list():
        if job.live and job.request.kind == "train-expert" and job.request.title == expert_id:
            raise UsageError(f"expert {expert_id!r} is being trained", "Choose another id.")
