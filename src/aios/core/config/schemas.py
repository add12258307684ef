"""The config models: every key with its type, range, default and meaning.

Takes plain values (as YAML gives them) and gives frozen models; unknown keys are refused. Values
are checked strictly: ``"32"`` is no number and ``3.0`` no integer. Three things are lenient,
since people write them: ``0``/``1`` for false/true, ``auto`` for null where null means "from the
recipe", and a comma-separated text for a list. The defaults here equal ``config/default.yaml``,
which says where each comes from; a test holds the two together.

Large sections have modules of their own (``seal_schema``, ``restem_schema``, …); `Config` holds
them all.
"""

from __future__ import annotations

import string
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from aios.core.config.endpoint_schema import EndpointConfig
from aios.core.config.feature_flags import FLAGS
from aios.core.config.paths import UserPath
from aios.core.config.recipe_schemas import (
    DEFAULT_RECIPE,
    Alpha,
    BatchSize,
    Dropout,
    Epochs,
    EvaluationsPerEpoch,
    GradClip,
    LearningRate,
    Loss,
    MaxSeqLen,
    MaxTokens,
    PassageCopies,
    Patience,
    Rank,
    Recipe,
    Schedule,
    Section,
    Switch,
    WarmupRatio,
    WeightDecay,
    allowed,
    auto_is_null,
    default_recipes,
    to_tuple,
)
from aios.core.config.restem_schema import RestemConfig
from aios.core.config.seal_schema import SealConfig
from aios.core.config.serving_schemas import (
    AdaptationConfig,
    ChatConfig,
    RoutingConfig,
    ServeConfig,
)

Arm = Literal["base", "passage", "passage+edits", "passage+other-edits", "in-context"]
TrackerName = Literal["tensorboard", "trackio", "mlflow", "wandb"]


class ModelConfig(Section):
    """The base model and where it runs."""

    name: str = Field(
        default="smollm2-135m-instruct",
        min_length=1,
        description="Base model: a listed name, a folder, a GGUF file, a hub id, or endpoint:ID",
    )
    device: str = Field(
        default="auto",
        pattern=r"^(auto|cpu|mps|cuda(:\d{1,4})?)$",
        description="Where it runs; auto takes a GPU if there is one",
        json_schema_extra=allowed("auto, cpu, cuda, cuda:N or mps"),
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="Number format of the weights; auto goes by the device"
    )
    threads: int | None = Field(
        default=None, ge=1, le=1024, description="CPU threads; null for all cores"
    )
    offline: Switch = Field(default=False, description="Never touch the network")
    cache_dir: UserPath | None = Field(
        default=None, description="Where fetched models are kept; null for the user's cache folder"
    )


class TrainingConfig(Section):
    """How an expert is trained; null takes the recipe of the model in use."""

    rank: Rank | None = None
    alpha: Alpha | None = None
    dropout: Dropout | None = None
    learning_rate: LearningRate | None = None
    epochs: Epochs | None = None
    batch_size: BatchSize | None = None
    warmup_ratio: WarmupRatio | None = None
    schedule: Schedule | None = None
    weight_decay: WeightDecay | None = None
    grad_clip: GradClip | None = None
    max_seq_len: MaxSeqLen | None = None
    evaluations_per_epoch: EvaluationsPerEpoch | None = None
    patience: Patience | None = None
    loss_on: Loss | None = None
    passage_copies: PassageCopies | None = None
    max_tokens: MaxTokens | None = None
    validation_fraction: float = Field(
        default=0.2, ge=0, le=0.9, description="Share of the passages held out for validation"
    )
    retention_file: UserPath | None = Field(
        default=None, description="Unrelated text that retention is measured on; null for none"
    )

    @field_validator("*", mode="before")
    @classmethod
    def _auto(cls, value: object) -> object:
        return auto_is_null(value)


class DataConfig(Section):
    """How passages are read."""

    max_passage_tokens: int = Field(
        default=512,
        ge=16,
        le=131072,
        description="Longest passage in tokens; longer ones are split at sentences",
    )
    near_duplicate_threshold: float = Field(
        default=0.8,
        gt=0,
        le=1,
        description="Similarity from which two passages go to the same split",
    )


class EvaluationConfig(Section):
    """How an expert is examined."""

    question_template: str = Field(
        default="Question: {question}\nAnswer:",
        description="What stands before the answer that is scored",
        json_schema_extra=allowed("text that holds {question}, and no other {variable}"),
    )
    selection_fraction: float = Field(
        default=0.34,
        gt=0,
        le=0.9,
        description="Share of the questions that checkpoints are chosen on; never reported",
    )
    max_answer_tokens: int = Field(
        default=16, ge=1, le=4096, description="Longest answer that is generated, in tokens"
    )
    bootstrap_samples: int = Field(
        default=10_000, ge=100, le=1_000_000, description="Resamples behind each interval"
    )

    @field_validator("question_template")
    @classmethod
    def _holds_the_question(cls, value: str) -> str:
        try:
            fields = [field for _, field, _, _ in string.Formatter().parse(value)]
        except ValueError as error:
            raise ValueError(f"is no template ({error}); write {{{{ for a brace") from error
        if {field for field in fields if field is not None} != {"question"}:
            raise ValueError("must hold {question}, and no other {variable}")
        return value


class ABTestConfig(Section):
    """What an A/B test compares."""

    arms: Annotated[tuple[Arm, ...], BeforeValidator(to_tuple)] = Field(
        default=("base", "passage", "passage+edits", "passage+other-edits"),
        min_length=1,
        description="What is compared",
    )
    seeds: int = Field(
        default=3, ge=1, le=100, description="Trainings of each arm, with derived seeds"
    )
    match: Literal["epochs", "tokens", "steps"] = Field(
        default="tokens", description="What is the same in every trained arm"
    )
    max_passages: int | None = Field(
        default=None, ge=1, le=10_000_000, description="Passages used; null for all"
    )
    evaluations: int = Field(
        default=6,
        ge=1,
        le=1000,
        description="Checkpoints that each arm chooses its best from under match tokens",
    )
    budget_tokens: int | None = Field(
        default=None,
        ge=1,
        le=10**12,
        description="Training tokens of each arm under match tokens; null goes by the recipe's "
        "epochs over the augmented data",
    )

    @field_validator("arms")
    @classmethod
    def _arms_differ(cls, value: tuple[Arm, ...]) -> tuple[Arm, ...]:
        if len(set(value)) != len(value):
            raise ValueError("must name each arm once")
        return value


class TelemetryConfig(Section):
    """What a run records of itself. All of it stays on this machine."""

    heartbeat_seconds: float = Field(
        default=30.0,
        ge=0.05,
        le=86_400,
        description="Seconds between two signs of life in the record of a long run",
    )
    stall_seconds: float = Field(
        default=120.0,
        ge=0.05,
        le=86_400,
        description="Seconds without a finished passage after which you are warned",
    )
    abort_after_seconds: float | None = Field(
        default=None,
        ge=0.05,
        le=604_800,
        description="Seconds without a finished passage after which the run is stopped, to be "
        "resumed; null for never",
    )
    trackers: Annotated[tuple[TrackerName, ...], BeforeValidator(to_tuple)] = Field(
        default=(), description="Experiment trackers that are given a run's figures as well"
    )

    @field_validator("trackers")
    @classmethod
    def _trackers_differ(cls, value: tuple[TrackerName, ...]) -> tuple[TrackerName, ...]:
        if len(set(value)) != len(value):
            raise ValueError("must name each tracker once")
        return value

    @model_validator(mode="after")
    def _warns_before_it_aborts(self) -> TelemetryConfig:
        if self.abort_after_seconds is not None and self.abort_after_seconds < self.stall_seconds:
            raise ValueError(
                f"abort_after_seconds ({self.abort_after_seconds:g}) must not be below "
                f"stall_seconds ({self.stall_seconds:g})"
            )
        return self


class PathsConfig(Section):
    """Where results go."""

    artifacts: UserPath = Field(
        default=Path("artifacts"), description="Folder of runs, experts and experiments"
    )


class Config(Section):
    """The whole configuration. Functions receive the section they need, not this."""

    seed: int = Field(
        default=0, ge=0, le=2**63 - 1, description="Seed that every random choice is derived from"
    )
    model: ModelConfig = ModelConfig()
    seal: SealConfig = SealConfig()
    restem: RestemConfig = RestemConfig()
    training: TrainingConfig = TrainingConfig()
    data: DataConfig = DataConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    ab_test: ABTestConfig = ABTestConfig()
    telemetry: TelemetryConfig = TelemetryConfig()
    endpoint: EndpointConfig = EndpointConfig()
    routing: RoutingConfig = RoutingConfig()
    chat: ChatConfig = ChatConfig()
    adaptation: AdaptationConfig = AdaptationConfig()
    serve: ServeConfig = ServeConfig()
    paths: PathsConfig = PathsConfig()
    features: Mapping[str, Switch] = Field(
        default_factory=lambda: {flag.name: flag.default for flag in FLAGS},
        description="Feature flags by name",
    )
    recipes: Mapping[str, Recipe] = Field(
        default_factory=default_recipes,
        description="Measured recipes by model name; the one named default is for all others",
    )

    @field_validator("features")
    @classmethod
    def _flags_are_known(cls, value: Mapping[str, bool]) -> Mapping[str, bool]:
        known = [flag.name for flag in FLAGS]
        unknown = sorted(set(value) - set(known))
        if unknown:
            raise ValueError(f"unknown flags {', '.join(unknown)}; known: {', '.join(known)}")
        return value

    @field_validator("recipes")
    @classmethod
    def _has_a_default(cls, value: Mapping[str, Recipe]) -> Mapping[str, Recipe]:
        if DEFAULT_RECIPE not in value:
            raise ValueError("must hold a recipe named default")
        return value
