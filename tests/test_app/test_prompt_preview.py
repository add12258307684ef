from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from aios.app.chat.assistant import open_assistant
from aios.app.edits.generate import preview_edits
from aios.app.edits.prompt_preview import (
    OWN,
    OwnPrompt,
    TakingTurns,
    choose_passage,
    show_prompts,
    shown_result,
    write_preview,
)
from aios.backends.scripted import ScriptedModel
from aios.core.config.loader import load_config
from aios.core.config.schemas import Config
from aios.core.errors import DataError, UnknownStrategyError, UsageError
from aios.core.protocols import LanguageModel
from aios.core.types import GenerationRequest, Passage

PASSAGE = Passage.make(
    "The lighthouse of Arnholt was built in 1842. Its keeper was Per Lindqvist of the guild.",
    id="arnholt",
    title="Arnholt",
)


def config(tmp_path: Path, *more: str) -> Config:
    given = ("model.name=scripted", f"paths.artifacts={tmp_path}", "seal.strategy=implications")
    return load_config(overrides=(*given, *more), env={}).config


def test_the_prompt_is_what_the_model_is_asked(tmp_path: Path) -> None:
    model = ScriptedModel()
    (shown,) = show_prompts(config(tmp_path), PASSAGE, "self-qa", model=model)
    assert [role for role, _ in shown.turns] == ["system", "user"]
    assert PASSAGE.text in shown.turns[1][1]
    assert shown.requests == (model.format_chat([{"content": t} for _, t in shown.turns]),)
    assert (shown.templated, shown.tokens) == (True, model.count_tokens(shown.requests[0]))


def test_a_mix_shows_each_of_its_prompts_and_cloze_asks_nothing(tmp_path: Path) -> None:
    shown = show_prompts(config(tmp_path), PASSAGE, "rewrite:2,cloze:2,self-qa-grounded:1")
    assert [one.strategy for one in shown] == ["rewrite", "cloze", "self-qa-grounded"]
    assert [bool(one.requests) for one in shown] == [True, False, True]
    assert "Answer: Per Lindqvist" in "".join(shown[2].requests)


def test_ones_own_prompt_is_filled_with_the_passage_and_variables(tmp_path: Path) -> None:
    own = OwnPrompt("About {domain}, {title}:\n{passage}\n{{json}}", "Be brief.", "rewrite")
    (shown,) = show_prompts(config(tmp_path, "seal.domain=the sea"), PASSAGE, OWN, own)
    assert shown.turns == (
        ("system", "Be brief."),
        ("user", f"About the sea, Arnholt:\n{PASSAGE.text}\n{{json}}"),
    )


@pytest.mark.parametrize(
    ("own", "error", "said"),
    [
        (OwnPrompt("{passage} {topic}"), UnknownStrategyError, "domain, passage, title"),
        (OwnPrompt("Nothing of it"), UsageError, "write {passage}"),
        (OwnPrompt("{passage}" + "x" * 30_000), UsageError, ""),
        (OwnPrompt("{passage}", read_as="pickle"), UsageError, "implications"),
    ],
)
def test_a_prompt_that_cannot_be_used_is_refused_with_what_can(
    tmp_path: Path, own: OwnPrompt, error: type[UsageError], said: str
) -> None:
    with pytest.raises(error) as caught:
        show_prompts(config(tmp_path), PASSAGE, OWN, own)
    assert said in caught.value.remedy


def test_what_is_written_is_what_the_command_previews_and_nothing_is_saved(tmp_path: Path) -> None:
    file = tmp_path / "passages.txt"
    file.write_text(PASSAGE.text)
    three = ("seal.num_edits_per_passage=3", "seal.enable_quality_filter=false")
    settings = config(tmp_path / "artifacts", *three)
    passage = choose_passage(file, 1).passage
    with open_assistant(settings) as assistant:
        before = sorted(tmp_path.rglob("*"))
        result = write_preview(settings, passage, "auto", num_edits=3, assistant=lambda: assistant)
        assert sorted(tmp_path.rglob("*")) == before
    (theirs,) = preview_edits(settings, file, 1)
    assert (result.kept, result.drops) == (theirs.kept, theirs.drops)
    assert result.kept
    shown = shown_result(result)
    assert len(shown.edits) + len([d for d in shown.drops if d.whole]) == 3


def test_ones_own_prompt_is_written_to(tmp_path: Path) -> None:
    own = OwnPrompt("Rewrite.\n\nPassage:\n{passage}", read_as="rewrite")
    result = write_preview(config(tmp_path), PASSAGE, OWN, own=own)
    strategies = [edit.strategy for edit in result.kept] + [d.strategy for d in result.drops]
    assert set(strategies) == {OWN}


def test_of_a_long_passage_the_first_part_is_taken(tmp_path: Path) -> None:
    long = Passage.make(" ".join(f"Sentence number {n} is here." for n in range(60)), id="long")
    result = write_preview(config(tmp_path, "data.max_passage_tokens=50"), long, "implications")
    assert result.passage.id == "long#1"
    assert len(result.passage.text.split()) <= 50


def test_numbers_of_edits_are_bounded(tmp_path: Path) -> None:
    for count in (0, 4):
        with pytest.raises(UsageError):
            write_preview(config(tmp_path), PASSAGE, "rewrite", num_edits=count)


def test_the_model_is_lent_for_one_completion_at_a_time() -> None:
    model, lent, held = ScriptedModel(), [], threading.Lock()

    @contextmanager
    def between() -> Iterator[LanguageModel]:
        assert held.acquire(blocking=False)
        yield model
        lent.append(len(model.requests))
        held.release()

    turns = TakingTurns(model, between)
    assert isinstance(turns, LanguageModel)
    request = GenerationRequest("Passage:\nOne is here. Two is there.", (1, 2, 3))
    assert turns.generate([request]) == model.generate([request])
    assert lent == [1, 2, 3]


def test_a_passage_is_chosen_by_its_number(tmp_path: Path) -> None:
    file = tmp_path / "passages.txt"
    file.write_text("One.\n\nTwo.\n\nThree.\n")
    chosen = [choose_passage(file, number) for number in (1, 2, 3, 99)]
    assert [(one.passage.text, one.number, one.more) for one in chosen] == [
        ("One.", 1, True),
        ("Two.", 2, True),
        ("Three.", 3, False),
        ("Three.", 3, False),
    ]
    file.write_text("")
    with pytest.raises(DataError):
        choose_passage(file, 1)
