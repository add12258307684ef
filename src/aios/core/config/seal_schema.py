"""The config section ``seal``: how self-edits are made, filtered and cached.

The plan uses ``max_length`` both for the longest generation and for the longest edit that the
filter keeps; here the first is ``max_new_tokens`` and only the second is ``max_length``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from aios.core.config.paths import UserPath
from aios.core.config.recipe_schemas import (
    NumEdits,
    Section,
    Strategy,
    Switch,
    allowed,
    auto_is_null,
    require_same_number,
)
from aios.core.seal.prompt_templates import AUTO


def _on_or_off(value: object) -> object:
    """YAML reads a bare on or off as true or false."""
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


class SealConfig(Section):
    """How self-edits are made, filtered and cached."""

    enabled: Switch = Field(default=True, description="Make and train on self-edits")
    strategy: Strategy = Field(
        default=AUTO,
        min_length=1,
        description="How self-edits are made; auto for the recipe's way",
        json_schema_extra=allowed(
            "auto, a name from `aios seal strategies`, or a mix such as rewrite:2,self-qa:2"
        ),
    )
    num_edits_per_passage: Annotated[NumEdits | None, BeforeValidator(auto_is_null)] = Field(
        default=None, description="Self-edits made from each passage; null for the recipe's number"
    )
    generator: UserPath | None = Field(
        default=None,
        description="Folder of a generator that writes the self-edits, an adapter on the base "
        "model; null for the base model alone",
    )
    temperature: float = Field(
        default=1.0, ge=0.1, le=2.0, description="Softmax temperature of generation"
    )
    top_p: float = Field(default=0.95, gt=0, le=1, description="Nucleus mass tokens are drawn from")
    max_new_tokens: int = Field(
        default=1024,
        ge=1,
        le=32768,
        description="Longest generation, in tokens; not the filter's limit",
    )
    min_length: int = Field(
        default=20, ge=0, le=32768, description="Shortest edit the filter keeps, in tokens"
    )
    max_length: int = Field(
        default=2048, ge=1, le=131072, description="Longest edit the filter keeps, in tokens"
    )
    enable_deduplication: Switch = Field(default=True, description="Drop exact and near duplicates")
    enable_quality_filter: Switch = Field(
        default=True, description="Drop edits that are too short, too long, gibberish or incomplete"
    )
    similarity_threshold: float = Field(
        default=0.9, gt=0, le=1, description="Similarity from which two edits count as duplicates"
    )
    enable_grounding: Switch = Field(
        default=True, description="Drop edits with names or numbers that the passage does not hold"
    )
    max_loss: float | None = Field(
        default=2.5,
        gt=0,
        le=100,
        description="Mean loss of an item, in nats a token under the model that wrote it, above "
        "which it is dropped; null for no limit",
    )
    deduplicate_across: Literal["passage", "file"] = Field(
        default="passage", description="What an edit is compared with to find duplicates"
    )
    embedding_deduplication: Annotated[
        Literal["auto", "on", "off"], BeforeValidator(_on_or_off)
    ] = Field(
        default="auto",
        description="Find duplicates by meaning as well; auto where the embedding model is "
        "installed",
    )
    embedding_threshold: float = Field(
        default=0.97,
        gt=0,
        le=1,
        description="Cosine similarity of embeddings from which two edits count as duplicates",
    )
    enable_cache: Switch = Field(
        default=True, description="Keep generated edits and use them again"
    )
    cache_dir: UserPath = Field(
        default=Path("artifacts/seal_cache"), description="Where generated edits are kept"
    )
    max_cache_size_gb: float = Field(
        default=10.0,
        gt=0,
        le=100_000,
        description="Largest cache in GB; the least recently used go first",
    )
    batch_size: int = Field(
        default=4, ge=1, le=1024, description="Passages that are written at the same time"
    )
    max_generation_time: float = Field(
        default=30.0, gt=0, le=86_400, description="Deadline of one edit, in seconds"
    )
    max_retries: int = Field(
        default=3,
        ge=0,
        le=100,
        description="New tries, with other seeds, for a passage that failed",
    )
    prompts_file: UserPath | None = Field(
        default=None, description="YAML file with your own prompts; null for the built-in ones"
    )
    domain: str = Field(
        default="", max_length=1000, description="Subject of the passages, for prompts that name it"
    )
    enable_rl_optimization: Switch = Field(
        default=False, description="Improve the generator by ReST-EM before an expert is trained"
    )
    restem_iterations: int = Field(default=2, ge=1, le=100, description="ReST-EM rounds")
    restem_batch_size: int = Field(
        default=50, ge=1, le=100_000, description="Passages in one ReST-EM round"
    )
    restem_candidates_per_passage: int = Field(
        default=5, ge=1, le=1000, description="Candidates tried for each passage in a round"
    )

    @model_validator(mode="after")
    def _lengths_agree(self) -> SealConfig:
        if self.min_length >= self.max_length:
            raise ValueError(
                f"min_length ({self.min_length}) must be below max_length ({self.max_length}); "
                "max_length is the filter's, the longest generation is max_new_tokens"
            )
        return self

    @model_validator(mode="after")
    def _numbers_agree(self) -> SealConfig:
        require_same_number(
            self.strategy,
            self.num_edits_per_passage,
            "leave out num_edits_per_passage (--num-edits), or change the numbers in the strategy",
        )
        return self
