"""The glossary strategy: what it asks, what it reads, and that it works in the generator."""

from __future__ import annotations

import pytest

from aios import Passage, SelfEditGenerator, get_strategy
from aios.backends.scripted import ScriptedModel

PASSAGE = Passage.make(
    "The Orrin Canal has a sluice keeper, who opens the gates at high water. Its barges are "
    "called lighters, carry grain, and are drawn by horses.",
    title="Orrin Canal",
)
COMPLETION = """\
Glossary:
1. **sluice keeper** – the person who opens the gates at high water
- lighter: a barge that carries grain and is drawn by horses
- Lighter — a barge of the canal once more
- Orrin Canal - a canal with gates that open at high water
- horses
- barge – a boat that"""


def parse(completion: str, passage: Passage = PASSAGE, **more: str) -> list[str]:
    """The training texts in a completion."""
    return get_strategy("glossary").parse_output(completion, passage, **more)


def test_the_prompt_holds_title_and_passage_and_asks_for_a_glossary() -> None:
    """What the model is asked."""
    text = get_strategy("glossary").prompt_text(ScriptedModel(), PASSAGE)
    assert f"Passage:\nOrrin Canal\n{PASSAGE.text}\n" in text
    assert "term – explanation" in text


def test_braces_in_a_passage_are_text() -> None:
    """A passage is put in as it stands."""
    passage = Passage.make("The set {a} has {title} in it.")
    assert passage.text in get_strategy("glossary").prompt_text(ScriptedModel(), passage)


def test_every_term_becomes_one_text_that_names_its_passage() -> None:
    """Markers, bold, several separators, a term twice, a line without an explanation."""
    assert parse(COMPLETION, finish_reason="stop") == [
        "sluice keeper (Orrin Canal): the person who opens the gates at high water",
        "lighter (Orrin Canal): a barge that carries grain and is drawn by horses",
        "Orrin Canal: a canal with gates that open at high water",
        "barge (Orrin Canal): a boat that",
    ]


@pytest.mark.parametrize("reason", ["length", "deadline"])
def test_a_last_line_that_was_cut_is_left_out(reason: str) -> None:
    """A model that ran out of tokens or time leaves half a line."""
    assert not any("barge (" in text for text in parse(COMPLETION, finish_reason=reason))


def test_a_passage_without_a_title_is_not_named() -> None:
    """Nothing is put into brackets then."""
    passage = Passage.make(PASSAGE.text)
    assert parse("lighter – a barge for grain", passage) == ["lighter: a barge for grain"]


@pytest.mark.parametrize("completion", ["", "\n\n", "I cannot do that.", "– nothing before it"])
def test_what_is_no_glossary_gives_no_texts(completion: str) -> None:
    """The quality filter then counts the edit as no_items."""
    assert parse(completion) == []


def test_what_a_generator_learns_is_read_back_as_the_same_texts() -> None:
    """ReST-EM trains generators on it."""
    strategy = get_strategy("glossary")
    items = parse(COMPLETION)
    assert items
    assert parse(strategy.format_completion(items)) == items


def test_the_generator_keeps_what_the_model_writes() -> None:
    """From the passage to the self-edit, with a model that follows a script."""
    model = ScriptedModel({"write a glossary": [COMPLETION]})
    generator = SelfEditGenerator(model, strategy="glossary", num_edits=1)
    (result,) = generator.generate([PASSAGE])
    (edit,) = result.kept
    assert edit.strategy == "glossary"
    assert edit.items[0].startswith("sluice keeper (Orrin Canal): ")
    assert result.failure is None
