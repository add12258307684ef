"""The config section ``endpoint``: where and how a model behind an HTTP API is asked.

It is used where ``model.name`` is ``endpoint:<model id>``. The key of the service is not part of
the config: `api_key_env` names the environment variable that holds it.
"""

from __future__ import annotations

import json
import re
from typing import Any, Literal

from pydantic import Field, field_validator
from pydantic_core import Url

from aios.core.config.recipe_schemas import Section, allowed


class EndpointConfig(Section):
    """The server that is asked when model.name is endpoint:MODEL."""

    url: str = Field(
        default="http://127.0.0.1:8000/v1",
        description="Base address of its OpenAI-compatible API",
        json_schema_extra=allowed("http:// or https://, without user, password or ?query"),
    )
    api_key_env: str = Field(
        default="OPENAI_API_KEY",
        pattern=r"^[A-Z_][A-Z0-9_]{0,99}$",
        description="Environment variable that holds the key; the key itself is never kept",
        json_schema_extra=allowed("a variable's name in capitals, not the key"),
    )
    api: Literal["auto", "completions", "chat"] = Field(
        default="auto",
        description="Which API is asked; auto sends chats to chat and plain texts to completions",
    )
    concurrency: int = Field(
        default=8, ge=1, le=1024, description="Most calls at a time; the server's slots"
    )
    requests_per_minute: int | None = Field(
        default=None, ge=1, le=1_000_000, description="Most calls a minute; null for no limit"
    )
    tokens_per_minute: int | None = Field(
        default=None,
        ge=1,
        le=10**9,
        description="Most tokens a minute, prompts included; null for no limit",
    )
    timeout_seconds: float = Field(
        default=60.0,
        gt=0,
        le=3600,
        description="Longest time to connect, and longest silence within an answer, in seconds",
    )
    max_retries: int = Field(
        default=5, ge=0, le=100, description="New tries of a call that failed in passing"
    )
    context_length: int | None = Field(
        default=None,
        ge=16,
        le=10_000_000,
        description="Tokens of prompt and completion; null for what the server says, or 4096",
    )
    logprobs: Literal["auto", "always", "never"] = Field(
        default="auto",
        description="Ask for log-probabilities; auto where they are known to be the model's own",
    )
    token_counts: Literal["auto", "estimate"] = Field(
        default="auto", description="Count tokens by the server's /tokenize where it has one"
    )
    extra_body: str = Field(
        default="",
        max_length=10_000,
        description="Fields added to every request; a null in it takes the field out",
        json_schema_extra=allowed('a JSON object as text, such as {"top_k": 0}, or empty'),
    )

    @field_validator("url")
    @classmethod
    def _is_a_plain_url(cls, value: str) -> str:
        wanted = "must start with http:// or https:// and name a host"
        if not re.fullmatch(r"https?://[^/\s\\][^\s\\]*", value) or not value.isascii():
            raise ValueError(wanted)
        try:
            parts = Url(value)
        except ValueError as error:
            raise ValueError(wanted) from error
        if "@" in value.split("/")[2] or re.search("[?#]", value) or parts.username:
            raise ValueError(
                "must hold no user, password or ?query; endpoint.api_key_env is for the key"
            )
        return value.rstrip("/")

    @field_validator("extra_body")
    @classmethod
    def _is_an_object(cls, value: str) -> str:
        if value.strip() and not isinstance(_json(value), dict):
            raise ValueError('must be a JSON object as text, such as {"top_k": 0}, or empty')
        return value

    @property
    def extra_fields(self) -> dict[str, Any]:
        """`extra_body` as a mapping."""
        fields: dict[str, Any] = json.loads(self.extra_body) if self.extra_body.strip() else {}
        return fields


def _json(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
