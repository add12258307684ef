"""Trains an expert again without a passage, and says what still holds that passage.

The training is the expert's own, from the settings in its card: the same seed, recipe, strategy
and file, without the passage. Afterwards the older versions that hold the passage are removed. An
interrupted one goes on with ``resume``, like any training.

That weights were trained without a passage is exact unlearning (Bourtoule et al. 2021, "Machine
Unlearning", without their sharding): nothing of it is in them. What is outside the expert's folder
is named and not touched.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from aios.app.composition import build_generator, open_cache, recipe_for
from aios.app.experts.forget_plan import (
    ForgetPlan,
    Retraining,
    plan_retraining,
    trash_that_holds,
    versions_that_hold,
)
from aios.app.experts.registry import open_store
from aios.app.experts.training import ExpertReport, train_expert
from aios.app.generators import writing_model
from aios.app.models import load_model
from aios.core.config.schemas import Config
from aios.core.errors import AIOSError
from aios.core.protocols import Emit, LanguageModel, ShouldStop, ignore, never
from aios.storage.expert_versions import ExpertVersions


@dataclass(frozen=True, slots=True)
class ForgetReport:
    """What was done.

    Attributes:
        plan: What was planned.
        training: The training without the passage; None where the current version did not hold it.
        removed_versions: Numbers of the older versions that are gone.
        kept_versions: Numbers of older versions that still hold it.
        still_held: Where else the passage is, one line each.
    """

    plan: ForgetPlan
    training: ExpertReport | None
    removed_versions: tuple[int, ...]
    kept_versions: tuple[int, ...]
    still_held: tuple[str, ...]


def plan_forget(
    config: Config,
    expert_id: str,
    passage: str,
    *,
    dataset: Path | None = None,
    emit: Emit = ignore,
    model: LanguageModel | None = None,
) -> ForgetPlan:
    """What forgetting a passage takes; nothing is done. Takes and raises what `forget` does."""
    config = _with_base_model(config, expert_id)
    model = model or load_model(config, emit=emit)
    return plan_retraining(config, expert_id, passage, model, dataset=dataset).plan


def forget(
    config: Config,
    expert_id: str,
    passage: str,
    *,
    dataset: Path | None = None,
    keep_versions: bool = False,
    resume: bool = False,
    emit: Emit = ignore,
    should_stop: ShouldStop = never,
    model: LanguageModel | None = None,
) -> ForgetReport:
    """Trains an expert again without a passage, and removes the versions that hold it.

    Args:
        config: The resolved config; what decides the training comes from the expert's card.
        expert_id: The expert.
        passage: A passage's id; a long passage's id means all of its parts.
        dataset: The file that the expert was trained on, where it is not in its place any more.
        keep_versions: Keep older versions, though they hold it.
        resume: Go on with an interrupted training without the passage.
        emit: Shows events.
        should_stop: Asked at every step.
        model: The base model; loaded by default.

    Returns:
        What was done, and where else the passage still is.

    Raises:
        UsageError: As `forget_plan.plan_retraining`; nothing was done.
        BackendError: The training failed; the expert is as it was.
        StorageError: A file cannot be read or written.
        RunInterrupted: `should_stop` said so; the training can be resumed.
    """
    config = _with_base_model(config, expert_id)
    model = model or load_model(config, emit=emit)
    job = plan_retraining(config, expert_id, passage, model, dataset=dataset)
    store = open_store(config)
    training = None
    old_run = store.read_card(expert_id).get("restem")
    if job.plan.dataset is not None:
        training = train_expert(
            job.config,
            expert_id,
            job.plan.dataset,
            use_self_edits=job.use_self_edits,
            restem=job.plan.restem,
            overwrite=not resume,
            resume=resume,
            only=job.only,
            emit=emit,
            should_stop=should_stop,
            model=model,
        )
    holding = versions_that_hold(store, expert_id, passage, job.plan.digests)
    if not keep_versions:
        ExpertVersions(store).drop(expert_id, holding)
    held = _still_held(config, job, model)
    if isinstance(old_run, dict) and training is not None:
        held.append(f"the ReST-EM run {old_run.get('run')} that was made for the expert before")
    plan = replace(job.plan, trash=trash_that_holds(store, job.plan.digests))
    return ForgetReport(
        plan,
        training,
        removed_versions=() if keep_versions else holding,
        kept_versions=holding if keep_versions else (),
        still_held=tuple(held),
    )


def _with_base_model(config: Config, expert_id: str) -> Config:
    """The config with the base model that the expert was trained on."""
    store = open_store(config)
    name = store.require(expert_id).model_architecture or config.model.name
    settings = store.read_card(expert_id).get("settings")
    said = settings.get("model") if isinstance(settings, dict) else None
    if isinstance(said, dict) and isinstance(said.get("name"), str):
        name = said["name"]
    model = config.model.model_copy(update={"name": name})
    return config.model_copy(update={"model": model})


def _still_held(config: Config, job: Retraining, model: LanguageModel) -> list[str]:
    """Where the passage is besides the expert and its versions."""
    plan = job.plan
    held = []
    if plan.still_in_dataset:
        held.append(f"the data file {plan.dataset}")
    held += [f"{name}, of which it says nearly the same" for name in plan.near_duplicates]
    held += [
        f"perhaps version {number}, which does not say what it was made from"
        for number in plan.unknown_versions
    ]
    held += [f"expert {name}" for name in (*plan.children, *plan.other_experts)]
    held += [f"the trash: {name} (aios experts delete {name} --purge)" for name in plan.trash]
    runs = config.paths.artifacts / "runs"
    held += [f"the run {path}" for path in sorted(runs.glob(f"train-expert-{plan.expert_id}.*"))]
    if plan.generator_knows:
        held.append(f"the generator {job.config.seal.generator}, which was optimised on it")
    cached = _cached(job, model)
    if cached:
        held.append(
            f"{cached} self-edits in the cache {config.seal.cache_dir} (aios seal cache clear)"
        )
    held.append("exports of the expert, and copies of any of these, of which nothing is known here")
    return held


def _cached(job: Retraining, model: LanguageModel) -> int:
    """Self-edits of the passage in the cache, made with the expert's settings."""
    config = job.config
    if not (job.use_self_edits and config.seal.enable_cache and job.forgotten):
        return 0
    try:
        with writing_model(config, model) as writes:  # not closed: a look is not a use
            cache = open_cache(config)
            generator = build_generator(config, writes, recipe_for(config, model), cache=cache)
            return sum(generator.count_cached(passage) for passage in job.forgotten)
    except AIOSError:  # its generator is gone, say: the entries cannot be told any more
        return 0
