"""The config sections of experts at work: ``routing``, ``chat``, ``adaptation``, ``serve``."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, field_validator

from aios.core.config.paths import UserPath
from aios.core.config.recipe_schemas import Section, allowed, to_tuple

_ORIGIN = re.compile(
    r"(https?)://([a-z0-9](?:[a-z0-9.-]*[a-z0-9])?|\[[0-9a-f:.]{2,45}\])(?::([0-9]{1,5}))?/?"
)
_USUAL_PORTS = {"http": 80, "https": 443}

Signal = Literal["goals", "lexical", "embeddings", "loss"]


class RoutingConfig(Section):
    """How `auto` picks experts for a message."""

    signals: Annotated[tuple[Signal, ...], BeforeValidator(to_tuple)] = Field(
        default=("goals", "lexical"),
        min_length=1,
        description="What experts are compared by; their scores are averaged",
        json_schema_extra=allowed("list of goals, lexical, embeddings, loss"),
    )
    top_k: int = Field(default=1, ge=1, le=16, description="Most experts that answer together")
    threshold: float = Field(
        default=0.25, ge=0, le=1, description="Score below which an expert does not fit a message"
    )
    temperature: float = Field(
        default=0.1, gt=0, le=100, description="Softmax temperature of the weights of a mix"
    )


class ChatConfig(Section):
    """How answers in a conversation are written."""

    system: str = Field(default="", max_length=20_000, description="Text that stands before all")
    temperature: float = Field(default=0.7, ge=0, le=2, description="Softmax temperature")
    top_p: float = Field(default=0.95, gt=0, le=1, description="Nucleus mass")
    max_new_tokens: int = Field(default=256, ge=1, le=131_072, description="Longest answer")
    max_context_tokens: int = Field(
        default=1024,
        ge=16,
        le=1_048_576,
        description="Tokens of the conversation that the model sees; older turns are left out",
    )


class AdaptationConfig(Section):
    """Test-time adaptation: a small adapter a session, trained on what was said."""

    enabled: bool = Field(default=True, description="Adapt in `aios chat`; --no-tta turns it off")
    every: int = Field(
        default=4, ge=1, le=10_000, description="Messages of the user between two adaptations"
    )
    steps: int = Field(default=8, ge=1, le=1000, description="Training steps of an adaptation")
    rank: int = Field(default=4, ge=1, le=256, description="LoRA rank r")
    alpha: int = Field(default=8, ge=1, le=4096, description="LoRA scale numerator")
    learning_rate: float = Field(default=1e-3, gt=0, le=1, description="Peak learning rate")
    strategy: str = Field(
        default="auto", description="What self-edits are made of what was said; auto: the recipe's"
    )
    max_passages: int = Field(
        default=4, ge=1, le=100, description="Passages of the conversation learned at a time"
    )
    max_examples: int = Field(
        default=32, ge=1, le=10_000, description="Training texts of an adaptation, at most"
    )
    tolerance: float = Field(
        default=0.02,
        ge=0,
        le=10,
        description="Rise of the loss, in nats a token, on unrelated text or on the last turns "
        "from which an adaptation is dropped",
    )


class ServeConfig(Section):
    """The server of `aios serve`."""

    host: str = Field(default="127.0.0.1", min_length=1, description="Address to listen on")
    port: int = Field(default=8000, ge=0, le=65_535, description="Port; 0 for any free one")
    public_url: str | None = Field(
        default=None,
        description="Address that browsers see, where a proxy stands before the server",
        json_schema_extra=allowed("https://NAME or https://NAME:PORT, without a path; or null"),
    )
    token_file: UserPath | None = Field(
        default=None,
        description="File with the token that clients must send; required beyond loopback",
    )
    tls_certificate: UserPath | None = Field(default=None, description="Certificate chain (PEM)")
    tls_key: UserPath | None = Field(default=None, description="Its private key (PEM)")
    max_concurrent: int = Field(default=32, ge=1, le=4096, description="Texts written at once")
    max_waiting: int = Field(
        default=64, ge=0, le=100_000, description="Requests that may wait; beyond it is 429"
    )
    max_body_bytes: int = Field(
        default=1_048_576, ge=1024, le=1 << 30, description="Largest body of a request"
    )
    max_new_tokens: int = Field(
        default=1024, ge=1, le=131_072, description="Longest answer that a request may ask for"
    )
    timeout_seconds: float = Field(
        default=120.0, gt=0, le=86_400, description="Time for one answer, waiting included"
    )
    max_sessions: int = Field(
        default=32, ge=1, le=10_000, description="Sessions with adapters kept in memory"
    )

    @field_validator("public_url")
    @classmethod
    def _is_an_origin(cls, value: str | None) -> str | None:
        """As browsers write it in the header ``Origin``: no usual port, no slash, no capitals."""
        if value is None:
            return None
        found = _ORIGIN.fullmatch(value.lower())
        if found is None or not 0 < int(found[3] or 1) < 65_536:
            raise ValueError(
                "must be https://NAME or https://NAME:PORT (or http://), without a path"
            )
        port = int(found[3] or _USUAL_PORTS[found[1]])
        return f"{found[1]}://{found[2]}" + ("" if port == _USUAL_PORTS[found[1]] else f":{port}")
