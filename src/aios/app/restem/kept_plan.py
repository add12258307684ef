"""What a run's results follow from, kept in its directory as ``plan.json``.

A run that is gone on with must be on the same data and settings as it was begun with; otherwise its
numbers would be of neither.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from aios.app.composition import Run
from aios.app.restem.rounds import RunFacts
from aios.core.config.recipes import ResolvedRecipe
from aios.core.config.schemas import Config
from aios.core.errors import StorageError, UsageError
from aios.core.files import atomic_write_json, read_json
from aios.core.protocols import LanguageModel

_PLAN = "plan.json"
_MOST_NAMES = 3  # of what differs


def keep_plan(run: Run, plan: Mapping[str, Any]) -> bool:
    """Keeps what results follow from; a run that goes on must be on the same.

    Args:
        run: The run.
        plan: JSON values by names for people.

    Returns:
        Whether the run had a plan already.

    Raises:
        UsageError: It is not; the message names what differs.
        StorageError: The plan that it was started with cannot be read.
    """
    path = run.directory.path / _PLAN
    before = read_json(path, default=None)
    if before is None:
        atomic_write_json(path, dict(plan))
        return False
    if not isinstance(before, dict):
        raise StorageError(f"{path} is corrupt: not a JSON object", "start a new run")
    changed = [name for name in plan if before.get(name) != plan[name]]
    if changed:
        more = ", …" if len(changed) > _MOST_NAMES else ""
        raise UsageError(
            f"the run in {run.directory.path} was started with another "
            f"{', '.join(changed[:_MOST_NAMES])}{more}",
            "give the same data and settings, or start a new run",
        )
    return True


def plan_of(
    facts: RunFacts, config: Config, model: LanguageModel, recipe: ResolvedRecipe
) -> dict[str, Any]:
    """What a run's results follow from, by names for people, as JSON values."""
    restem = config.restem.model_dump(mode="json")
    for name in ("estimate", "executor", "workers"):  # where, not what
        del restem[name]
    seal = {
        name: value
        for name, value in config.seal.model_dump(mode="json").items()
        if not name.startswith(("enable_cache", "cache_", "max_cache", "batch_size"))
    }
    return {
        "model": model.digest,
        "seed": config.seed,
        **{f"restem.{name}": value for name, value in restem.items()},
        **{f"seal.{name}": value for name, value in seal.items()},
        "training recipe": asdict(recipe.lora),
        "training.loss_on": recipe.loss_on,
        "training.passage_copies": recipe.passage_copies,
        "question template": config.evaluation.question_template,
        "evaluation.max_answer_tokens": config.evaluation.max_answer_tokens,
        "data.near_duplicate_threshold": config.data.near_duplicate_threshold,
        "dataset": facts.data_fingerprint,  # the passages of each side: last, since others name why
    }
