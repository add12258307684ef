"""What the chat page sends: a conversation and how its answer is wanted, as strict JSON.

Everything in it is hostile; the bounds are those of the API (`openai_fields`). Gives a `ChatBody`,
or a `UsageError` that names the first fault.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from starlette.requests import Request

from aios.core.config.serving_schemas import ServeConfig
from aios.core.errors import UsageError
from aios.core.files import parse_json
from aios.core.seeds import derive
from aios.core.types import SamplingParams
from aios.web.openai_fields import MAX_MESSAGES, Session, Temperature, TopP, Whole, bounded_list
from aios.web.openai_schemas import AUTO, Message, Seed

_SHOWN = 300  # characters of a fault
_SESSION: TypeAdapter[str] = TypeAdapter(Session)


class ChatBody(BaseModel):
    """A conversation that is to go on.

    Attributes:
        messages: All that was said, oldest first.
        model: Who is to answer.
        session: The tab's id; empty: nothing is learned.
        temperature: Softmax temperature; None: as the settings say.
        top_p: Nucleus mass; None: as the settings say.
        max_tokens: Longest answer; None: as the settings say.
        seed: What all draws of the conversation begin with; None: new ones.
        drawn: Answers that were drawn before with this seed.
        tta: Whether the session adapts; None: as the settings say.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    messages: Annotated[list[Message], BeforeValidator(bounded_list)] = Field(
        min_length=1, max_length=MAX_MESSAGES
    )
    model: str = Field(default=AUTO, min_length=1, max_length=256)
    session: Session = ""
    temperature: Temperature | None = None
    top_p: TopP | None = None
    max_tokens: Annotated[Whole, Field(ge=1)] | None = None
    seed: Seed | None = None
    drawn: Annotated[Whole, Field(ge=0, lt=2**31)] = 0
    tta: bool | None = None

    def draw_seed(self) -> int | None:
        """The seed of this answer, as `aios chat --seed` has it; None: a new one."""
        return None if self.seed is None else derive(self.seed, "chat", self.drawn)

    def sampling(self, usual: SamplingParams, most_tokens: int) -> SamplingParams:
        """How the tokens are drawn, where `usual` is how they are otherwise."""
        return SamplingParams(
            temperature=usual.temperature if self.temperature is None else self.temperature,
            top_p=usual.top_p if self.top_p is None else self.top_p,
            max_new_tokens=self.max_tokens or min(usual.max_new_tokens, most_tokens),
        )


async def read_chat_body(request: Request, settings: ServeConfig) -> ChatBody:
    """The body of a request.

    Raises:
        UsageError: It is not as it should be.
    """
    kind = request.headers.get("content-type", "").partition(";")[0]
    if kind.strip().lower() != "application/json":
        raise UsageError("the conversation must be sent as JSON")
    try:
        document = parse_json(await request.body())
        if not isinstance(document, dict):
            raise UsageError("the conversation must be sent as a JSON object")
        body = ChatBody.model_validate(document)
    except ValidationError as error:
        raise UsageError(_first_fault(error)) from None
    except ValueError as error:
        raise UsageError(f"the conversation is no valid JSON: {error}"[:_SHOWN]) from None
    if body.max_tokens is not None and body.max_tokens > settings.max_new_tokens:
        raise UsageError(
            f"an answer may have {settings.max_new_tokens:,} tokens at most, "
            f"not {body.max_tokens:,}",
            "Choose a smaller number, or raise serve.max_new_tokens when the server is started.",
        )
    return body


def checked_session(text: str) -> str:
    """The id of a session, which must not be empty.

    Raises:
        UsageError: It is none.
    """
    try:
        return _SESSION.validate_python(text)
    except ValidationError as error:
        raise UsageError(_first_fault(error)) from None


def _first_fault(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"]) or "the session"
    return f"{where}: {first['msg']}"[:_SHOWN]
