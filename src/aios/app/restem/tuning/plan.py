"""What a tuning of ReST-EM will do, counted, and what it must not do.

Takes the config and a file of passages; gives the counts. Also what a tuning checks
before it begins.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from aios.app.composition import recipe_for
from aios.app.edits.generation_plan import check_input
from aios.app.models import load_model
from aios.app.restem.job import plan_restem
from aios.app.restem.tuning.space import EPOCHS, Space, choose_space
from aios.core.config.schemas import Config
from aios.core.errors import DataError, UsageError
from aios.core.protocols import Emit, LanguageModel, ignore

DEFAULT_TRIALS = 20


@dataclass(frozen=True, slots=True)
class TunePlan:
    """What a tuning would do.

    Attributes:
        space: What is searched.
        combinations: Its size.
        trials: Trials of the tuning.
        rounds: Rounds of each.
        passages: Passages that a round optimises on.
        held_out: Held-out passages.
        edit_trials: Trials of self-edits, at most.
        edit_trials_unshared: What these would be if trials did not share the E-step.
    """

    space: Space
    combinations: int
    trials: int
    rounds: int
    passages: int
    held_out: int
    edit_trials: int
    edit_trials_unshared: int


def plan_tuning(
    config: Config,
    dataset: Path,
    *,
    trials: int = DEFAULT_TRIALS,
    rounds: int = 1,
    space: str | None = None,
    emit: Emit = ignore,
    model: LanguageModel | None = None,
) -> TunePlan:
    """Counts the work of a tuning; nothing is written.

    Raises:
        UsageError: Data or config cannot be used.
    """
    check_tuning(config, trials, rounds, 0, None)
    check_input(dataset)
    model = model or load_model(config, emit=emit)
    chosen = choose_space(config, recipe_for(config, model), space)
    one = plan_restem(with_rounds(config, rounds), dataset, model=model)
    if not one.held_out:
        raise DataError("no passage is held out", "raise restem.held_out_fraction")
    trials = min(trials, chosen.size)
    lengths = min(trials, len(chosen.choices.get(EPOCHS, (0,))))
    first, later = one.trials + one.held_out_trials, (rounds - 1) * one.trials
    examined = (rounds + 1) * one.held_out_trials  # each round, and once by the yardstick
    return TunePlan(
        space=chosen,
        combinations=chosen.size,
        trials=trials,
        rounds=rounds,
        passages=one.passages_per_round,
        held_out=one.held_out,
        edit_trials=lengths * first + trials * (later + examined) + one.held_out_trials,
        edit_trials_unshared=trials * (first + later + examined) + one.held_out_trials,
    )


def check_tuning(
    config: Config, trials: int, rounds: int, confirm: int, timeout_seconds: float | None
) -> None:
    """Refuses what cannot be done, before any work.

    Raises:
        UsageError: Optuna is missing, or a number or setting makes no sense.
    """
    if importlib.util.find_spec("optuna") is None:
        raise UsageError("tuning needs Optuna, which is not installed", "pip install 'aios[tune]'")
    for name, value, least in (
        ("trials", trials, 1),
        ("rounds", rounds, 1),
        ("confirm", confirm, 0),
    ):
        if value < least:
            raise UsageError(f"{name} is {value}", f"give at least {least}")
    if timeout_seconds is not None and timeout_seconds <= 0:
        raise UsageError(f"the timeout is {timeout_seconds:g} seconds", "give more than 0")
    if config.seal.generator is not None:
        raise UsageError(
            "seal.generator is set, and ReST-EM begins with the base model", "leave it out"
        )


def with_rounds(config: Config, rounds: int) -> Config:
    """The config with so many ReST-EM rounds."""
    seal = config.seal.model_copy(update={"restem_iterations": rounds})
    return config.model_copy(update={"seal": seal})
