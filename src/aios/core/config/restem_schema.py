"""The config section ``restem``: how the rounds of ReST-EM are run.

How many rounds, passages and candidates stands in the section ``seal`` (``seal.restem_…``), where
the plan has it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator

from aios.core.config.recipe_schemas import (
    Alpha,
    BatchSize,
    Epochs,
    LearningRate,
    MaxSeqLen,
    Rank,
    Section,
    allowed,
    check_arms,
    to_tuple,
)
from aios.core.seal.prompt_templates import AUTO

RewardKind = Literal["loss", "perplexity", "accuracy"]
Baseline = Literal["passage", "base"]
Keep = Literal["threshold", "best_of_k"]
Init = Literal["base", "previous"]
ExecutorKind = Literal["serial", "processes", "ray"]


class RestemConfig(Section):
    """How ReST-EM improves the generator of self-edits."""

    arms: Annotated[tuple[str, ...], BeforeValidator(to_tuple)] = Field(
        default=("auto",),
        min_length=1,
        description="Strategies among which the candidates of a passage are divided; auto for "
        "the measured ones of the model",
        json_schema_extra=allowed("list of names from `aios seal strategies`, or auto"),
    )
    learn_format: bool = Field(
        default=True,
        description="Move candidates towards the strategies that paid more for a token",
    )
    floor: float = Field(
        default=0.3,
        ge=0,
        le=1,
        description="Share of the candidates that is divided equally among the strategies",
    )
    reward: RewardKind = Field(
        default="loss", description="What a trial is judged by, on the passage's questions"
    )
    baseline: Baseline = Field(
        default="passage",
        description="What a self-edit must beat: the better of no training and training on the "
        "passage alone, or no training",
    )
    threshold: float | Literal["auto"] = Field(
        default="auto",
        description="Improvement over the baseline from which a self-edit is rewarded; auto for "
        "more than the measured noise",
        json_schema_extra=allowed("auto or a number"),
    )
    keep: Keep = Field(
        default="threshold",
        description="What the generator learns from: rewarded self-edits, or the best of each "
        "passage",
    )
    kept_per_passage: int = Field(
        default=2, ge=1, le=100, description="Most self-edits of a passage that it learns from"
    )
    racing: bool = Field(
        default=True, description="Repeat trials only where they decide between candidates"
    )
    repeats: int = Field(
        default=2,
        ge=1,
        le=100,
        description="Trials of each candidate; under racing, of the two best",
    )
    trial_tokens: int | None = Field(
        default=1500,
        ge=1,
        le=10**9,
        description="Training tokens of a trial, the same for all; null for the recipe's epochs",
    )
    trial_batch: int = Field(
        default=4,
        ge=1,
        le=10_000,
        description="Passages whose trials are run together and recorded at once",
    )
    init: Init = Field(
        default="base",
        description="What a round's generator is trained from: the base model, or the previous "
        "generator",
    )
    sft_rank: Rank | None = None
    sft_alpha: Alpha | None = None
    sft_learning_rate: LearningRate | None = None
    sft_epochs: Epochs | None = None
    sft_batch_size: BatchSize | None = None
    sft_max_seq_len: MaxSeqLen = 2048
    held_out_fraction: float = Field(
        default=0.2,
        ge=0,
        le=0.9,
        description="Share of the passages that generators are compared on; never optimised on",
    )
    held_out_candidates: int = Field(
        default=3, ge=1, le=1000, description="Self-edits tried for each held-out passage"
    )
    patience: int = Field(
        default=1,
        ge=0,
        le=100,
        description="Rounds without gain on held-out passages after which it stops; 0 for never",
    )
    max_failed_share: float = Field(
        default=0.5,
        gt=0,
        le=1,
        description="Share of a round's trials that may fail before the run stops",
    )
    estimate: bool = Field(
        default=True, description="Time a probe before a run, and say what the run will take"
    )
    executor: ExecutorKind = Field(
        default="serial",
        description="Where trials are run: in this process, in several, or on a Ray cluster",
    )
    workers: int | None = Field(
        default=None,
        ge=1,
        le=4096,
        description="Workers of that executor; null for one a GPU, or two without",
    )

    @field_validator("arms")
    @classmethod
    def _arms_are_names(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return value if value == (AUTO,) else check_arms(value)

    @field_validator("threshold", mode="before")
    @classmethod
    def _whole_numbers_too(cls, value: Any) -> Any:
        return float(value) if type(value) is int else value
