"""Which settings of ReST-EM are searched, and how a choice of them becomes a config.

The grid is small and discrete: learning rate and rank of the generator's training, the threshold
of a reward, and how long a trial trains. There are two grids of learning rates: ``plan`` is for
models of billions of parameters, ``small`` for small ones, whose measured recipes have rates ten
times as high.

The epochs of trials take effect with ``restem.trial_tokens: null``: then a trial has the epochs of
``training.epochs``, which are those of final experts too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any, TypeAlias

from aios.core.config.recipe_schemas import DEFAULT_RECIPE
from aios.core.config.recipes import ResolvedRecipe, resolve_recipe
from aios.core.config.restem_schema import RewardKind
from aios.core.config.schemas import Config
from aios.core.errors import UsageError

Choice: TypeAlias = "float | int | str"
Parameters: TypeAlias = Mapping[str, Choice]


RATE, THRESHOLD, RANK, EPOCHS = "learning_rate", "threshold", "rank", "trial_epochs"
NAMES = {
    RATE: "learning rate",
    THRESHOLD: "threshold",
    RANK: "rank",
    EPOCHS: "trial epochs",
}

_RATES: dict[str, tuple[float, ...]] = {
    "plan": (1e-5, 3e-5, 1e-4),
    "small": (1e-4, 3e-4, 1e-3),
}
_RANKS: dict[str, tuple[int, ...]] = {"plan": (8, 16, 32), "small": (8, 16, 32, 64)}
# Anything better than the baseline, and better by about the noise of a trial.
_THRESHOLDS: dict[RewardKind, tuple[Choice, ...]] = {
    "loss": ("auto", 0.0, 0.1),  # nats per answer token
    "perplexity": ("auto", 0.0, 1.0),
    "accuracy": ("auto", 0.0, 0.2),
}
_EPOCHS = (3, 5, 10)
_SMALL_FROM = 1e-4  # learning rate of a measured recipe above which a model counts as small


@dataclass(frozen=True, slots=True)
class Space:
    """A grid of settings.

    Attributes:
        name: ``plan`` or ``small``, or whatever it is called.
        choices: For each parameter its values, none twice.
        why: Why this one is searched, in a few words.
    """

    name: str
    choices: Mapping[str, tuple[Choice, ...]]
    why: str = ""

    @property
    def size(self) -> int:
        """Number of combinations."""
        size = 1
        for values in self.choices.values():
            size *= len(values)
        return size

    def grid(self) -> list[dict[str, Choice]]:
        """All combinations."""
        return [
            dict(zip(self.choices, one, strict=True)) for one in product(*self.choices.values())
        ]

    def holds(self, parameters: Parameters) -> bool:
        """Whether these are a combination of the grid."""
        return parameters.keys() == self.choices.keys() and all(
            value in self.choices[name] for name, value in parameters.items()
        )


def space_of(name: str, reward: RewardKind, why: str = "chosen by you") -> Space:
    """The grid of that name.

    Raises:
        UsageError: There is none.
    """
    if name not in _RATES:
        raise UsageError(f"there is no search space {name!r}", "choose plan or small")
    choices: dict[str, tuple[Choice, ...]] = {
        RATE: _RATES[name],
        THRESHOLD: _THRESHOLDS[reward],
        RANK: _RANKS[name],
        EPOCHS: _EPOCHS,
    }
    return Space(name, choices, why)


def choose_space(config: Config, recipe: ResolvedRecipe, name: str | None = None) -> Space:
    """The grid that was asked for, or else the one that suits the model's recipe.

    A model with a recipe of its own whose generators learn at a rate above 1e-4 gets ``small``.

    Raises:
        UsageError: There is no grid of that name.
    """
    reward = config.restem.reward
    if name is not None:
        return space_of(name, reward)
    key = recipe.name.removeprefix("recipes.")
    rate = config.recipes[key].generator.learning_rate
    if key != DEFAULT_RECIPE and rate > _SMALL_FROM:
        return space_of("small", reward, f"{recipe.name} has a rate of {rate:g}")
    return space_of("plan", reward, f"there is no recipe of a higher rate for {config.model.name}")


def with_parameters(config: Config, parameters: Parameters) -> Config:
    """The config with these settings; alpha keeps its proportion to the rank."""
    sections: dict[str, dict[str, Any]] = {}
    for key, value in settings_of_parameters(config, parameters).items():
        section, _, name = key.partition(".")
        sections.setdefault(section, {})[name] = value
    return config.model_copy(
        update={
            section: getattr(config, section).model_copy(update=values)
            for section, values in sections.items()
        }
    )


def settings_of_parameters(config: Config, parameters: Parameters) -> dict[str, Any]:
    """What parameters are as config keys, dotted."""
    found: dict[str, Any] = {}
    if RATE in parameters:
        found["restem.sft_learning_rate"] = parameters[RATE]
    if THRESHOLD in parameters:
        found["restem.threshold"] = parameters[THRESHOLD]
    if RANK in parameters:
        rank, usual = int(parameters[RANK]), resolve_recipe(config, config.model.name).generator
        found["restem.sft_rank"] = rank
        found["restem.sft_alpha"] = max(1, round(rank * usual.alpha / usual.rank))
    if EPOCHS in parameters:
        found["restem.trial_tokens"] = None
        found["training.epochs"] = parameters[EPOCHS]
    return found


def set_lines(settings: Mapping[str, Any]) -> list[str]:
    """Settings as texts for ``--set``."""
    return [f"{key}={_plain(value)}" for key, value in settings.items()]


def yaml_text(settings: Mapping[str, Any], heading: str) -> str:
    """Settings as a config file, with a comment of one line at its top."""
    lines, section = [f"# {' '.join(heading.split())}"], ""
    for key, value in settings.items():
        begun, _, name = key.partition(".")
        if begun != section:
            lines.append(f"{begun}:")
            section = begun
        lines.append(f"  {name}: {_plain(value)}")
    return "\n".join(lines) + "\n"


def describe(parameters: Parameters) -> str:
    """``learning rate 0.0003, threshold auto, rank 16, trial epochs 5``."""
    return ", ".join(f"{NAMES.get(k, k)} {_plain(value)}" for k, value in parameters.items())


def _plain(value: Any) -> str:
    if value is None:
        return "null"
    return f"{value:g}" if isinstance(value, float) else str(value)
