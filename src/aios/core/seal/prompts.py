"""Prompts that ask a model to write its own training data from a passage.

Takes a passage and the name of a strategy; gives the chat messages (system, worked examples, user
turn) that a model answers with a self-edit. Prompts of the user's own come from a YAML file.

Source: the prompt set of *Self-Adapting Language Models* (SEAL, arXiv 2506.10943), released in
``knowledge-incorporation/src/data_generation/make_squad_data.py``: a list of implications, a long
one, a very long one, a rewrite in several ways, and questions with answers. The intent of each is
kept and the words are ours.

Deviations: the release completes text with a base model, so its prompts end in an opening such as
``Implications:`` or ``Question 1:`` for the model to go on from. Ours are turns of a chat, so they
state the form of the answer instead. ``implications-cot`` asks for reasoning before the list,
between fixed headings, so that the reasoning can be cut away and is never trained on.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

from aios.core.errors import UnknownStrategyError, UsageError
from aios.core.seal.prompt_templates import (
    DEFAULT_STRATEGY,
    FewShotExample,
    PromptFormat,
    PromptTemplate,
    fill_template,
    is_variable_name,
    load_prompts_file,
    require_passage,
)
from aios.core.types import Passage

__all__ = [
    "BUILT_IN_PROMPTS",
    "IMPLICATIONS_COT_PROMPT",
    "IMPLICATIONS_LONG_PROMPT",
    "IMPLICATIONS_PROMPT",
    "IMPLICATIONS_VERY_LONG_PROMPT",
    "REWRITE_PROMPT",
    "SELF_QA_PROMPT",
    "FewShotExample",
    "PromptBuilder",
    "PromptFormat",
    "PromptTemplate",
]

IMPLICATIONS_PROMPT = """\
Read the passage below and list implications that follow directly or indirectly from it. Write \
each one as a full sentence that can be understood without the passage, numbered, one on a line.

Passage:
{title}
{passage}

Implications:"""
"""Asks for what follows directly or indirectly from the passage, one sentence a line."""

IMPLICATIONS_LONG_PROMPT = """\
Read the passage below and write a long list of implications that follow directly or indirectly \
from it. Cover every fact in it. Write each one as a full sentence that can be understood without \
the passage, numbered, one on a line.

Passage:
{title}
{passage}

Implications:"""
"""Asks for a long list of implications, one for every fact at least."""

IMPLICATIONS_VERY_LONG_PROMPT = """\
Read the passage below and write a very long list of implications that follow directly or \
indirectly from it. Cover every fact in it, then what the facts mean together. Write each one as \
a full sentence that can be understood without the passage, numbered, one on a line.

Passage:
{title}
{passage}

Implications:"""
"""Asks for a very long list: every fact, and then what the facts mean together."""

IMPLICATIONS_COT_PROMPT = """\
Read the passage below. First think step by step about what it says and what follows from it, \
under the heading "Reasoning:". Then, under the heading "Implications:", list the implications \
that follow directly or indirectly from the passage. Write each one as a full sentence that can \
be understood without the passage, numbered, one on a line.

Passage:
{title}
{passage}"""
"""Asks for reasoning first and the list after it, each under a heading."""

REWRITE_PROMPT = """\
Read the passage below and rewrite it in a few different ways. Each rewrite keeps all facts, \
names and numbers and uses other words. Write each rewrite as one paragraph on a line of its own, \
with nothing else.

Passage:
{title}
{passage}

Rewritten passages:"""
"""Asks for rewrites of the passage that keep all facts, a paragraph each."""

SELF_QA_PROMPT = """\
Read the passage below and rewrite it as questions and answers. Each question can be understood \
without the passage, and each answer is short and stands in the passage. Use this form:

Question 1: ...
Answer 1: ...
Question 2: ...
Answer 2: ...

Passage:
{title}
{passage}"""
"""Asks for numbered pairs of question and answer."""

_SYSTEM_IMPLICATIONS = (
    "You analyse a passage and list implications that follow directly or indirectly from it."
)
_SYSTEM_REWRITE = "You rewrite a passage in several ways and keep every fact."
_SYSTEM_QA = "You turn a passage into questions and answers that keep every fact."

BUILT_IN_VARIABLES: Mapping[str, str] = {"domain": "general knowledge"}
_PASSAGE_VARIABLES = ("passage", "title")


BUILT_IN_PROMPTS: Mapping[str, PromptTemplate] = {
    prompt.name: prompt
    for prompt in (
        PromptTemplate("implications", IMPLICATIONS_PROMPT, _SYSTEM_IMPLICATIONS),
        PromptTemplate("implications-long", IMPLICATIONS_LONG_PROMPT, _SYSTEM_IMPLICATIONS),
        PromptTemplate(
            "implications-very-long", IMPLICATIONS_VERY_LONG_PROMPT, _SYSTEM_IMPLICATIONS
        ),
        PromptTemplate("implications-cot", IMPLICATIONS_COT_PROMPT, _SYSTEM_IMPLICATIONS),
        PromptTemplate("rewrite", REWRITE_PROMPT, _SYSTEM_REWRITE, format="rewrites"),
        PromptTemplate("self-qa", SELF_QA_PROMPT, _SYSTEM_QA, format="qa"),
    )
}
"""The prompts above by the name of their strategy."""


class PromptBuilder:
    """Fills prompt templates with passages.

    Args:
        prompts_file: YAML file with prompts of the user's own (see `load_prompts_file`); a name
            that is built in replaces the built-in prompt.
        variables: Values of user-defined placeholders, over those of the file.

    Raises:
        ConfigError: The file cannot be read or is not of the right shape.
        UnknownStrategyError: A template uses a variable that is not known.
        UsageError: A variable has a name that cannot be used.
    """

    def __init__(
        self, prompts_file: Path | None = None, variables: Mapping[str, str] | None = None
    ) -> None:
        own: dict[str, PromptTemplate] = {}
        file_variables: dict[str, str] = {}
        if prompts_file is not None:
            own, file_variables = load_prompts_file(prompts_file)
        self._own = own
        self._prompts: dict[str, PromptTemplate] = {**BUILT_IN_PROMPTS, **own}
        self._variables = {**BUILT_IN_VARIABLES, **file_variables, **(variables or {})}
        for name in self._variables:
            if name in _PASSAGE_VARIABLES or not is_variable_name(name):
                raise UsageError(
                    f"the prompt variable {name!r} cannot be set",
                    f"use letters, digits and _; {', '.join(_PASSAGE_VARIABLES)} come from the"
                    " passage",
                )
        for prompt in own.values():
            self._check(prompt)

    @property
    def strategies(self) -> tuple[str, ...]:
        """Names that a prompt is known for, built-in ones first."""
        return tuple(self._prompts)

    @property
    def custom_strategies(self) -> tuple[str, ...]:
        """Names that come from the user's file."""
        return tuple(self._own)

    @property
    def variables(self) -> Mapping[str, str]:
        """Values of the placeholders that do not come from the passage."""
        return dict(self._variables)

    def with_prompt(self, prompt: PromptTemplate) -> PromptBuilder:
        """These prompts and one more, which replaces one of its name.

        Raises:
            UnknownStrategyError: It uses a variable that is not known; the remedy lists those that
                are.
            UsageError: It does not hold ``{passage}``.
        """
        require_passage(prompt)
        made = copy.copy(self)
        made._own = {**self._own, prompt.name: prompt}
        made._prompts = {**self._prompts, prompt.name: prompt}
        made._check(prompt)
        return made

    def template(self, strategy: str) -> PromptTemplate:
        """The template of a strategy.

        Raises:
            UnknownStrategyError: There is none; the message lists the known ones.
        """
        prompt = self._prompts.get(strategy)
        if prompt is None:
            raise UnknownStrategyError(
                f"no prompt for the strategy {strategy!r}",
                f"known: {', '.join(sorted(self._prompts))}",
            )
        return prompt

    def build_prompt(self, passage: str | Passage, strategy: str) -> str:
        """The user turn's text for a passage.

        Args:
            passage: The passage, or its text alone (then without a title).
            strategy: Name of the strategy.

        Returns:
            The text, its variables filled in.

        Raises:
            UnknownStrategyError: No such strategy, or its template has an unknown variable.
            UsageError: The passage is empty.
        """
        prompt = self.template(strategy)
        if isinstance(passage, Passage):
            text, title = passage.text, passage.title
        else:
            text, title = passage, ""
        return self._fill_passage(prompt, text, title)

    def format_system_message(self, strategy: str | None = None) -> str:
        """The system turn's text (of `implications` where no strategy is named); may be empty.

        Args:
            strategy: Name of the strategy.

        Returns:
            The text.
        """
        prompt = self.template(strategy or DEFAULT_STRATEGY)
        return fill_template(prompt.system, self._variables, f"the system text of {prompt.name!r}")

    def format_few_shot_examples(self, strategy: str | None = None) -> list[dict[str, str]]:
        """Worked examples as chat turns (`role`, `content`), user and assistant by turns.

        The built-in prompts have none, as in the release.

        Args:
            strategy: Name of the strategy; `implications` by default.

        Returns:
            The turns; empty where the prompt has no examples.
        """
        prompt = self.template(strategy or DEFAULT_STRATEGY)
        turns = []
        for example in prompt.few_shot:
            asked = self._fill_passage(prompt, example.passage, example.title)
            turns.append({"role": "user", "content": asked})
            turns.append({"role": "assistant", "content": example.completion})
        return turns

    def build_messages(self, passage: str | Passage, strategy: str) -> list[dict[str, str]]:
        """The whole chat: system turn (if any), worked examples, user turn."""
        system = self.format_system_message(strategy)
        messages = [{"role": "system", "content": system}] if system else []
        messages += self.format_few_shot_examples(strategy)
        messages.append({"role": "user", "content": self.build_prompt(passage, strategy)})
        return messages

    def _fill_passage(self, prompt: PromptTemplate, text: str, title: str) -> str:
        if not text.strip():
            raise UsageError(
                "the passage is empty, so there is nothing to write a self-edit from",
                "remove the passage or give it a text",
            )
        values = {**self._variables, "passage": text.strip(), "title": title.strip()}
        return fill_template(prompt.template, values, f"the prompt {prompt.name!r}")

    def _check(self, prompt: PromptTemplate) -> None:
        """Raises for variables that are not known, before any passage is read."""
        self.build_prompt("text", prompt.name)
        self.format_system_message(prompt.name)
        self.format_few_shot_examples(prompt.name)
