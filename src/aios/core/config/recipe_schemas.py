"""The models of a recipe: how self-edits are made and an expert trained for one base model.

The key types below (``Rank``, ``Alpha``, …) hold range and meaning once; the recipes use them as
they are, the user's ``training`` section with null for "from the recipe".
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

from aios.core.errors import UsageError
from aios.core.seal.prompt_templates import AUTO
from aios.core.seal.strategy_mix import MAX_EDITS, mix_edits, parse_mix

_T = TypeVar("_T")

DEFAULT_RECIPE = "default"
LossOn = Literal["all", "answer"]


def allowed(text: str) -> Any:
    """JSON-schema extra that replaces the range derived from the type in messages."""
    return {"x-allowed": text}


def _check_mix(value: str) -> str:
    try:
        parse_mix(value)
    except UsageError as error:
        raise ValueError(f"{error.message}; {error.remedy}") from error
    return value


def auto_is_null(value: _T) -> _T | None:
    """None in place of ``auto``, where null means "from the recipe"."""
    return None if value == AUTO else value


def _switch(value: object) -> object:
    return bool(value) if type(value) is int and value in (0, 1) else value


def to_tuple(value: object) -> object:
    """Lists as YAML gives them and comma-separated texts, as a tuple."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return tuple(value) if isinstance(value, list) else value


def check_arms(names: tuple[str, ...]) -> tuple[str, ...]:
    """Refuses arms that are no single strategies, or are named twice.

    Raises:
        ValueError: They are.
    """
    if len(set(names)) != len(names):
        raise ValueError("must name each strategy once")
    if AUTO in names:
        raise ValueError(f"{AUTO} stands alone, and not in a recipe")
    for name in names:
        parts = parse_mix(_check_mix(name))
        if len(parts) > 1 or parts[0][1] is not None:
            raise ValueError(f"{name!r} is a mix; shares are learned, so name strategies alone")
    return names


Switch = Annotated[bool, BeforeValidator(_switch)]  # 0 and 1 are taken too
Strategy = Annotated[str, AfterValidator(_check_mix)]
NumEdits = Annotated[
    int, Field(ge=1, le=MAX_EDITS, description="Self-edits made from each passage")
]
Rank = Annotated[int, Field(ge=1, le=1024, description="LoRA rank r")]
Alpha = Annotated[
    int, Field(ge=1, le=4096, description="LoRA scale numerator: the update is times alpha / rank")
]
Dropout = Annotated[float, Field(ge=0, lt=1, description="Dropout on the adapter's input")]
LearningRate = Annotated[float, Field(gt=0, le=1, description="Peak learning rate of AdamW")]
Epochs = Annotated[int, Field(ge=1, le=1000, description="Passes over the training examples")]
BatchSize = Annotated[int, Field(ge=1, le=1024, description="Examples in one optimiser step")]
WarmupRatio = Annotated[
    float, Field(ge=0, lt=1, description="Share of the steps in which the rate rises from 0")
]
Schedule = Annotated[
    Literal["constant", "linear", "cosine"],
    Field(description="What the learning rate does after the warm-up"),
]
WeightDecay = Annotated[float, Field(ge=0, le=1, description="Weight decay of AdamW")]
GradClip = Annotated[float, Field(ge=0, le=1000, description="Largest gradient norm; 0 for none")]
MaxSeqLen = Annotated[
    int, Field(ge=16, le=131072, description="Longest training example, in tokens")
]
EvaluationsPerEpoch = Annotated[
    int, Field(ge=1, le=100, description="Validations in each pass over the examples")
]
Patience = Annotated[
    int,
    Field(
        ge=0,
        le=1000,
        description="Validations without a better loss after which training stops; 0 for never",
    ),
]
Loss = Annotated[
    LossOn, Field(description="Which part of question-answer items carries loss: all, or answers")
]
PassageCopies = Annotated[
    int,
    Field(
        ge=0,
        le=100,
        description="Times each original passage stands in one pass over the augmented data; "
        "0 trains on the self-edits alone",
    ),
]
MaxTokens = Annotated[
    int, Field(ge=0, le=10**12, description="Training tokens after which it ends; 0 for no limit")
]


class Section(BaseModel):
    """Base of all config models: frozen, strict, no unknown keys, no NaN or infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def require_same_number(strategy: str, num_edits: int | None, remedy: str) -> None:
    """Refuses a number of self-edits that a mix contradicts.

    Args:
        strategy: A name or a mix.
        num_edits: The number; None for no other than the mix's.
        remedy: What to do then.

    Raises:
        ValueError: Both are given and disagree.
    """
    wanted = mix_edits(strategy)
    if wanted is not None and num_edits not in (None, wanted):
        raise ValueError(
            f"strategy {strategy!r} makes {wanted} self-edits of each passage, and "
            f"num_edits_per_passage is {num_edits}; {remedy}"
        )


class TrainingRecipe(Section):
    """A whole training recipe: every key has a value."""

    rank: Rank
    alpha: Alpha
    dropout: Dropout
    learning_rate: LearningRate
    epochs: Epochs
    batch_size: BatchSize
    warmup_ratio: WarmupRatio
    schedule: Schedule
    weight_decay: WeightDecay
    grad_clip: GradClip
    max_seq_len: MaxSeqLen
    evaluations_per_epoch: EvaluationsPerEpoch
    patience: Patience
    loss_on: Loss
    passage_copies: PassageCopies
    max_tokens: MaxTokens


class GeneratorRecipe(Section):
    """How ReST-EM trains a generator of self-edits."""

    arms: Annotated[tuple[Strategy, ...], BeforeValidator(to_tuple)] = Field(
        min_length=1,
        description="Strategies among which a passage's candidates are divided",
        json_schema_extra=allowed("list of names from `aios seal strategies`"),
    )
    rank: Rank
    alpha: Alpha
    learning_rate: LearningRate
    epochs: Epochs
    batch_size: BatchSize

    @field_validator("arms")
    @classmethod
    def _arms_are_names(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return check_arms(value)


# What the SEAL release trains its generators by, and the plan's six prompts.
RELEASE_GENERATOR = GeneratorRecipe(
    arms=(
        "implications",
        "implications-long",
        "implications-very-long",
        "implications-cot",
        "rewrite",
        "self-qa",
    ),
    rank=64,
    alpha=128,
    learning_rate=3e-4,
    epochs=2,
    batch_size=8,
)


class Recipe(Section):
    """What was measured to work for a base model."""

    strategy: Strategy = Field(
        min_length=1,
        description="How self-edits are made",
        json_schema_extra=allowed("the name of a strategy, or a mix such as rewrite:2,self-qa:2"),
    )
    num_edits_per_passage: NumEdits
    generator: GeneratorRecipe = Field(default_factory=lambda: RELEASE_GENERATOR)
    training: TrainingRecipe
    source: str = Field(min_length=1, description="Where the recipe was measured")

    @field_validator("strategy")
    @classmethod
    def _names_a_strategy(cls, value: str) -> str:
        if value == AUTO:
            raise ValueError("must name a strategy: auto means the one named here")
        return value

    @model_validator(mode="after")
    def _numbers_agree(self) -> Recipe:
        require_same_number(self.strategy, self.num_edits_per_passage, "change one of them")
        return self


def default_recipes() -> dict[str, Recipe]:
    """The recipes that ship, by model name; equal to those in ``config/default.yaml``."""
    release = TrainingRecipe(
        rank=32,
        alpha=64,
        dropout=0.0,
        learning_rate=1e-3,
        epochs=10,
        batch_size=1,
        warmup_ratio=0.0,
        schedule="constant",
        weight_decay=0.0,
        grad_clip=1.0,
        max_seq_len=1024,
        evaluations_per_epoch=1,
        patience=0,
        loss_on="all",
        passage_copies=1,
        max_tokens=0,
    )
    small = release.model_copy(
        update={
            "learning_rate": 1e-3,
            "epochs": 4,
            "batch_size": 8,
            "evaluations_per_epoch": 2,
            "patience": 3,
        }
    )
    return {
        DEFAULT_RECIPE: Recipe(
            strategy="implications",
            num_edits_per_passage=5,
            generator=RELEASE_GENERATOR,
            training=release,
            source="SEAL release, for a 7B model; not measured here",
        ),
        "smollm2-135m-instruct": Recipe(
            strategy="cloze",
            num_edits_per_passage=1,
            generator=GeneratorRecipe(
                arms=("implications", "rewrite", "self-qa"),
                rank=64,
                alpha=128,
                learning_rate=1e-3,
                epochs=3,
                batch_size=4,
            ),
            training=small,
            source="experiments/seal_phase1_results.md",
        ),
    }
