"""What goes in and out of the server, as the OpenAI API has it, with our few additions.

Unknown fields of a request are ignored, as other servers do; known ones that this server cannot
follow are refused (`openai_fields`). Types are strict: ``"1"`` is no number. Our additions:
``session_id`` and ``tta`` in requests, ``aios`` in answers, and ``/v1/feedback``.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from aios.web.openai_fields import (
    MAX_MESSAGES,
    Content,
    Prompts,
    Role,
    Session,
    Stops,
    Temperature,
    TopP,
    Whole,
    bounded_list,
    refuse_tool_calls,
    refuse_unsupported,
)

MOST_TEXTS = 16  # of one request: prompts times n
AUTO = "auto"
FinishReason = Literal["stop", "length"]
Seed = Annotated[Whole, Field(ge=-(2**63), lt=2**63)]


class _Request(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)


class StreamOptions(_Request):
    """What a stream holds besides the text."""

    include_usage: bool | None = None


class Message(_Request):
    """One thing that was said."""

    role: Role
    content: Content

    @model_validator(mode="before")
    @classmethod
    def _only_text(cls, data: object) -> object:
        return refuse_tool_calls(data)


class _WriteRequest(_Request):
    """What both ways of asking for a text have in common."""

    model: str = Field(
        default=AUTO, min_length=1, max_length=256, description="A model's id; auto picks experts"
    )
    max_tokens: Whole | None = Field(default=None, ge=1, description="Most tokens of the answer")
    temperature: Temperature | None = None
    top_p: TopP | None = None
    n: Whole | None = Field(default=None, ge=1, le=MOST_TEXTS, description="Answers wanted")
    seed: Seed | None = Field(default=None, description="The same seed draws the same tokens")
    stop: Stops = Field(default=[], description="Texts at which an answer ends")
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = Field(default=None, max_length=1024, description="Ignored")
    session_id: Session = Field(
        default="", description="The conversation, for test-time adaptation; ours, not OpenAI's"
    )
    tta: bool | None = Field(
        default=None, description="False: no test-time adaptation; ours, not OpenAI's"
    )

    @model_validator(mode="before")
    @classmethod
    def _supported(cls, data: object) -> object:
        return refuse_unsupported(data)


class ChatRequest(_WriteRequest):
    """The body of ``POST /v1/chat/completions``."""

    messages: Annotated[list[Message], BeforeValidator(bounded_list)] = Field(
        min_length=1, max_length=MAX_MESSAGES
    )
    max_completion_tokens: Whole | None = Field(
        default=None, ge=1, description="The newer name of max_tokens"
    )
    logprobs: bool | None = None
    top_logprobs: Whole | None = Field(default=None, ge=0, le=20)


class CompletionRequest(_WriteRequest):
    """The body of ``POST /v1/completions``."""

    prompt: Prompts
    logprobs: Whole | None = Field(default=None, ge=0, le=5)


class FeedbackRequest(_Request):
    """The body of ``POST /v1/feedback``."""

    id: str = Field(min_length=1, max_length=256, description="The answer's id")
    rating: Annotated[float, Field(ge=-1, le=1, allow_inf_nan=False)] | None = Field(
        default=None, description="-1 bad to 1 good"
    )
    correction: str = Field(default="", max_length=100_000, description="The right answer")
    comment: str = Field(default="", max_length=100_000, description="What else there is to say")


class Fault(BaseModel):
    """What is wrong with a request."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """The body of every answer that is an error."""

    error: Fault


class AnsweredBy(BaseModel):
    """An expert's part in an answer."""

    expert: str
    weight: float


class AnswerFacts(BaseModel):
    """What this server says of one text beyond the OpenAI API.

    Attributes:
        id: Its own id, for feedback.
        answered_by: The experts that wrote it; none: the base model alone.
        reason: Why these.
        adapted: Whether the session's own adapter took part.
        seed: The seed that it was drawn with.
        ended: How it really ended; empty before the end.
    """

    id: str
    answered_by: list[AnsweredBy]
    reason: str
    adapted: bool
    seed: int
    ended: Literal["", "stop", "length", "timeout", "cancelled"] = ""


class Extension(BaseModel):
    """What this server says of an answer beyond the OpenAI API.

    Attributes:
        answered_by: The experts that wrote the first text; none: the base model alone.
        reason: Why these.
        texts: The same and more for each choice, in the order of their index.
    """

    answered_by: list[AnsweredBy]
    reason: str
    texts: list[AnswerFacts]


class Usage(BaseModel):
    """Tokens that an answer took."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class TopLogprob(BaseModel):
    """One of the likeliest tokens at a place."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    """A token that was drawn."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    """The tokens of an answer."""

    content: list[TokenLogprob]
    refusal: None = None


class ChatMessage(BaseModel):
    """An answer in a chat."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(BaseModel):
    """One of the answers."""

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason


class ChatCompletion(BaseModel):
    """The answer of ``POST /v1/chat/completions``."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    aios: Extension


class CompletionLogprobs(BaseModel):
    """The tokens of a completion, as columns."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class CompletionChoice(BaseModel):
    """One of the texts."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason


class Completion(BaseModel):
    """The answer of ``POST /v1/completions``."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage
    aios: Extension


class ModelExtension(BaseModel):
    """What this server says of a model beyond the OpenAI API."""

    kind: Literal["base", "expert", "auto"]
    description: str


class ModelCard(BaseModel):
    """Something that can be asked."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "aios"
    aios: ModelExtension


class ModelList(BaseModel):
    """The answer of ``GET /v1/models``."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class Stored(BaseModel):
    """The answer of ``POST /v1/feedback``."""

    id: str
    object: Literal["feedback"] = "feedback"
    stored: Literal[True] = True


class Health(BaseModel):
    """The answer of ``GET /health`` and ``GET /ready``."""

    status: Literal["ok", "ready"]


def error_answers(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The errors of a route, for its description."""
    words = {
        400: "The request is not as it should be",
        401: "The token is missing or wrong",
        403: "The address that was asked for is not this server's",
        404: "There is no such thing",
        408: "The body did not arrive in time",
        413: "The body is too large",
        415: "The body is not declared as JSON",
        429: "As many wait as may; Retry-After says when to try again",
        500: "The server failed",
        503: "The server is stopping or its device is busy",
        504: "Nothing was written in the time that an answer may take",
    }
    return {status: {"model": ErrorBody, "description": words[status]} for status in statuses}
