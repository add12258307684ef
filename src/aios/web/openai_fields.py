"""Fields of requests in the OpenAI API that have several forms, each brought into one.

Takes values of parsed JSON, which are hostile; gives checked texts. A field with several forms is
checked by hand, since the errors of a union name every form, and a list of wrong items must not
make a list of errors as long. What the API has and this server does not is refused wherever it
would change the answer's meaning, and never ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

MAX_MESSAGES = 4096
MAX_PARTS = 4096
MAX_PROMPTS = 16
MAX_STOPS = 16
MAX_STOP_CHARACTERS = 1000
MAX_TEXT = 4_000_000
_STRING = {"type": "string"}
_NO_LOGIT = "token ids are not supported; send the prompt as text"

# What is not supported, with the values that ask for nothing. Any other value is refused.
_NEUTRAL: dict[str, tuple[object, ...]] = {
    "audio": (),
    "best_of": (1,),
    "echo": (False,),
    "frequency_penalty": (0,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "guided_choice": (),
    "guided_grammar": (),
    "guided_json": (),
    "guided_regex": (),
    "ignore_eos": (False,),
    "logit_bias": ({},),
    "min_p": (0,),
    "min_tokens": (0,),
    "modalities": (["text"],),
    "prediction": (),
    "presence_penalty": (0,),
    "prompt_logprobs": (),
    "reasoning_effort": ("none",),
    "repetition_penalty": (1,),
    "response_format": ({"type": "text"},),
    "structured_outputs": (),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_k": (0, -1),
    "web_search_options": (),
}


def refuse_unsupported(data: object) -> object:
    """Returns a request's object unchanged if it asks for nothing that is not supported.

    Raises:
        PydanticCustomError: It does; the context names the field.
    """
    if isinstance(data, Mapping):
        for name, neutral in _NEUTRAL.items():
            value = data.get(name)
            if value is not None and not _is_one_of(value, neutral):
                context = {"param": name, "code": "unsupported_parameter"}
                raise PydanticCustomError("unsupported", "is not supported by this server", context)
    return data


def _is_one_of(value: object, neutral: tuple[object, ...]) -> bool:
    """Whether it equals one of the values; True and False are no numbers here."""
    return any(
        value == each and isinstance(value, bool) == isinstance(each, bool) for each in neutral
    )


def _text(value: object, *, longest: int = MAX_TEXT) -> str:
    if not isinstance(value, str):
        raise PydanticCustomError("string_type", "must be a text")
    if len(value) > longest:
        raise PydanticCustomError(
            "too_long", "has more than {longest} characters", {"longest": longest}
        )
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise PydanticCustomError(
            "string_unicode", "is no valid Unicode: it has half a surrogate pair"
        ) from None
    return value


def content_text(value: object) -> str:
    """The text of a message: a text, or a list of parts of type ``text``.

    Raises:
        PydanticCustomError: It is neither, or a part is of another type (an image, say).
    """
    if isinstance(value, str):
        return _text(value)
    if not isinstance(value, list):
        raise PydanticCustomError("content", "must be a text or a list of parts")
    if len(value) > MAX_PARTS:
        raise PydanticCustomError("too_long", "has too many parts")
    texts = []
    for part in value:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind != "text":
            shown = str(kind)[:40] if isinstance(kind, str) else "no known type"
            raise PydanticCustomError(
                "content", "only parts of type text are supported, not {kind}", {"kind": shown}
            )
        texts.append(_text(part.get("text")))
    return "".join(texts)


def prompt_texts(value: object) -> list[str]:
    """The prompts of a completion: a text or a list of texts.

    Raises:
        PydanticCustomError: It is neither, has none or too many, or holds token ids.
    """
    if isinstance(value, str):
        return [_text(value)]
    if not isinstance(value, list) or not value:
        raise PydanticCustomError("prompt", "must be a text or a list of texts")
    if isinstance(value[0], (int, list)):
        raise PydanticCustomError("prompt", _NO_LOGIT)
    if len(value) > MAX_PROMPTS:
        raise PydanticCustomError("too_long", "has more than {most} texts", {"most": MAX_PROMPTS})
    return [_text(each) for each in value]


def stop_texts(value: object) -> list[str]:
    """Where a text ends: none, a text, or a list of them.

    Raises:
        PydanticCustomError: It is neither, has too many, or one is empty or too long.
    """
    if value is None:
        return []
    stops = value if isinstance(value, list) else [value]
    if len(stops) > MAX_STOPS:
        raise PydanticCustomError("too_long", "has more than {most} texts", {"most": MAX_STOPS})
    texts = [_text(each, longest=MAX_STOP_CHARACTERS) for each in stops]
    if "" in texts:
        raise PydanticCustomError("too_short", "must not be empty")
    return texts


def session_name(value: object) -> str:
    """The id of a session: printable, without a space, of at most 128 characters.

    Raises:
        PydanticCustomError: It is not.
    """
    if value is None:
        return ""
    text = _text(value, longest=128)
    if not text or not text.isprintable() or any(character.isspace() for character in text):
        raise PydanticCustomError("session", "must be 1 to 128 printable characters, no spaces")
    return text


def whole_number(value: object) -> object:
    """A number such as 5.0 as 5: JSON does not tell them apart."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    return value


def bounded_list(value: object) -> object:
    """Returns a value unchanged unless it is a list with too many items to look at each.

    Raises:
        PydanticCustomError: It is.
    """
    if isinstance(value, list) and len(value) > MAX_MESSAGES:
        raise PydanticCustomError("too_long", "has more than {most} items", {"most": MAX_MESSAGES})
    return value


def message_role(value: object) -> str:
    """Who says a message; ``developer`` is another word for ``system``.

    Raises:
        PydanticCustomError: It is nobody that can speak here.
    """
    if value == "developer":
        return "system"
    if value in ("tool", "function"):
        raise PydanticCustomError("role", "tools are not supported by this server")
    if not isinstance(value, str) or value not in ("system", "user", "assistant"):
        raise PydanticCustomError("role", "must be system, developer, user or assistant")
    return value


def refuse_tool_calls(data: object) -> object:
    """Returns a message unchanged if it calls no tool and has text.

    Raises:
        PydanticCustomError: It calls one, or is a refusal or an audio.
    """
    if isinstance(data, Mapping):
        for name in ("tool_calls", "function_call", "audio", "refusal"):
            if data.get(name):
                raise PydanticCustomError(
                    "unsupported", "{name} is not supported by this server", {"name": name}
                )
    return data


_PART_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"type": {"const": "text"}, "text": _STRING},
    "required": ["type", "text"],
}
_STOP_SCHEMA: dict[str, Any] = {**_STRING, "minLength": 1, "maxLength": MAX_STOP_CHARACTERS}

Content = Annotated[
    str,
    BeforeValidator(content_text),
    WithJsonSchema(
        {"anyOf": [_STRING, {"type": "array", "maxItems": MAX_PARTS, "items": _PART_SCHEMA}]}
    ),
]
Prompts = Annotated[
    list[str],
    BeforeValidator(prompt_texts),
    WithJsonSchema(
        {
            "anyOf": [
                _STRING,
                {"type": "array", "minItems": 1, "maxItems": MAX_PROMPTS, "items": _STRING},
            ]
        }
    ),
]
Stops = Annotated[
    list[str],
    BeforeValidator(stop_texts),
    WithJsonSchema(
        {
            "anyOf": [
                _STOP_SCHEMA,
                {"type": "array", "maxItems": MAX_STOPS, "items": _STOP_SCHEMA},
                {"type": "null"},
            ]
        }
    ),
]
Session = Annotated[
    str,
    BeforeValidator(session_name),
    WithJsonSchema({"anyOf": [{**_STRING, "pattern": "^[!-~]{1,128}$"}, {"type": "null"}]}),
]
Role = Annotated[
    Literal["system", "user", "assistant"],
    BeforeValidator(message_role),
    WithJsonSchema({"enum": ["system", "developer", "user", "assistant"]}),
]
Whole = Annotated[int, BeforeValidator(whole_number)]
Temperature = Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)]
TopP = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
