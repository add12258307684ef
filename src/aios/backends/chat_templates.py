"""Chat templates of tokenizers: messages to a prompt, and what ends an answer.

Takes a transformers tokenizer and messages (``role``, ``content``); gives text. A template is a
program that came with a model (transformers runs it in a sandbox of Jinja's) and may refuse what
it is given; that is an error of ours here, whose message names no file, as it may be told to
clients of a server.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError

from aios.core.errors import ModelError, UsageError

_SHOWN = 200  # characters of what a template says
_ANSWER = "Twelve stones."  # stands for an answer, to see what ends it


def has_template(tokenizer: Any) -> bool:
    """Whether there is a chat template at all."""
    return bool(getattr(tokenizer, "chat_template", None))


def render_prompt(tokenizer: Any, messages: Sequence[Mapping[str, str]]) -> str:
    """Messages as a prompt that the model answers.

    Without a template: their contents, joined by blank lines.

    Raises:
        UsageError: The template refuses them; many want a user to begin and the roles to take
            turns, and some know no system text.
        ModelError: The template itself is broken.
    """
    if not has_template(tokenizer):
        return "\n\n".join(m["content"] for m in messages) + "\n\n"
    return _render(tokenizer, messages, add_generation_prompt=True)


def end_of_turn(tokenizer: Any, end_tokens: Iterable[int]) -> str:
    """The end token that the chat template puts behind an answer, or else the tokenizer's.

    Tokenizers read special tokens in texts, so that this text is one token wherever it stands.

    Args:
        tokenizer: It.
        end_tokens: Ids of the tokens that end a completion.

    Raises:
        ModelError: The template is broken.
        UsageError: It refuses a question and an answer.
    """
    texts = {token: str(tokenizer.convert_ids_to_tokens(token)) for token in sorted(end_tokens)}
    ends = [
        text
        for token, text in texts.items()
        if tokenizer(text, add_special_tokens=False)["input_ids"] == [token]
    ]
    behind = ""
    if has_template(tokenizer):
        turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _ANSWER}]
        written = _render(tokenizer, turns, add_generation_prompt=False)
        behind = written.rpartition(_ANSWER)[2]
    ends.sort(key=lambda end: end != tokenizer.eos_token)
    ends.sort(key=lambda end: behind.find(end) if end in behind else len(behind))
    return ends[0] if ends else ""


def _render(
    tokenizer: Any, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool
) -> str:
    try:
        text: str = tokenizer.apply_chat_template(
            [dict(m) for m in messages],
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
        )
    except (TemplateSyntaxError, TypeError, ValueError) as error:
        raise ModelError(
            f"the model's chat template is broken: {str(error)[:_SHOWN]}",
            "pull the model again (aios models pull), or use another",
        ) from error
    except TemplateError as error:
        raise UsageError(
            f"the model's chat template refuses these messages: {str(error)[:_SHOWN]}",
            "let a user begin and the roles take turns, and leave out system texts "
            "(such as chat.system)",
        ) from error
    return text
