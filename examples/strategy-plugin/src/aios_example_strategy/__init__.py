"""The strategy ``glossary``: the terms of a passage, each explained in a sentence.

Takes a passage, asks for lines ``term – explanation``, and gives one training text a line. A text
is trained on without its passage, so each says where the term comes from: ``sluice keeper
(Orrin Canal): the person who opens the gates at high water``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from aios import Passage, SelfEditStrategy
from aios.core.protocols import LanguageModel
from aios.core.seal.completion_text import clean_completion, clean_item, normalise
from aios.core.seal.prompt_templates import fill_template
from aios.core.types import FinishReason

_SYSTEM = "You explain the terms of a passage, and say nothing that the passage does not say."
_PROMPT = """\
Read the passage below and write a glossary of it: its names and technical terms, each with what
the passage says about it. Write one term on a line, in this form:

term – explanation

Passage:
{title}
{passage}

Glossary:"""

_TITLE = re.compile(r" \([^()]*\)$")
_SEPARATOR = re.compile(r"\s+[-–—]+\s+|:\s+")
_MOST_WORDS_OF_A_TERM = 6
_FEWEST_WORDS_OF_AN_EXPLANATION = 3


class GlossaryStrategy(SelfEditStrategy):
    """The terms of a passage, each explained in one training text (``glossary``)."""

    parser_version = 1  # to be raised when parse_output reads the same completion differently

    def prompt_text(self, model: LanguageModel, passage: Passage) -> str:
        """The whole prompt, in the model's own chat format."""
        values = {"passage": passage.text, "title": passage.title}
        asked = fill_template(_PROMPT, values, "the glossary prompt")
        return model.format_chat(
            [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": asked}]
        )

    def parse_output(
        self, completion: str, passage: Passage, *, finish_reason: FinishReason | None = None
    ) -> list[str]:
        """One text a term: ``term (title): explanation``.

        Left out are lines of another form, a second explanation of a term, and the last line of
        a completion that was cut.
        """
        lines = clean_completion(completion).splitlines()
        if finish_reason in ("length", "deadline"):
            lines = lines[:-1]
        items = {}
        for line in lines:
            term, explanation = _split(line)
            if term and normalise(term) not in items:
                items[normalise(term)] = f"{_placed(term, passage.title)}: {explanation}"
        return list(items.values())

    def format_completion(self, items: Sequence[str]) -> str:
        """The entries in the prompt's form, for a generator to learn; the title is not written."""
        lines = []
        for item in items:
            entry, _, explanation = item.partition(": ")
            lines.append(f"{_TITLE.sub('', entry)} – {explanation}")
        return "\n".join(lines)


def _split(line: str) -> tuple[str, str]:
    """Term and explanation of a line; two empty texts where it is something else."""
    term, *rest = _SEPARATOR.split(clean_item(line), maxsplit=1)
    explanation = rest[0].strip() if rest else ""
    is_entry = (
        0 < len(term.split()) <= _MOST_WORDS_OF_A_TERM
        and len(explanation.split()) >= _FEWEST_WORDS_OF_AN_EXPLANATION
    )
    return (term.strip(), explanation) if is_entry else ("", "")


def _placed(term: str, title: str) -> str:
    """The term with the passage's title, unless it is the title or holds it."""
    return term if not title or normalise(title) in normalise(term) else f"{term} ({title})"
