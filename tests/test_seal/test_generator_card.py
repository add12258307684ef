"""Cards of generators are read back as written, and nothing else is taken for one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aios.core.errors import StorageError
from aios.core.seal.generator_card import (
    GeneratorCard,
    RoundSummary,
    passage_hash,
    prompts_digest,
)
from aios.core.seal.prompts import PromptBuilder
from aios.core.types import Passage
from tests.generator_folders import CARD


def record(**changes: Any) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(CARD.to_json()))
    return {**plain, **changes}


def test_a_card_is_read_back_as_it_was_written() -> None:
    assert GeneratorCard.from_json(record()) == CARD
    bare = replace(CARD, rounds=(), reward=replace(CARD.reward, threshold=None))
    assert GeneratorCard.from_json(json.loads(json.dumps(bare.to_json()))) == bare


def test_the_strategy_is_the_one_with_the_largest_share_and_of_equal_ones_the_first() -> None:
    assert CARD.strategy == "rewrite"
    assert replace(CARD, strategies={"b": 0.5, "a": 0.5}).strategy == "b"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"surprise": 1}, "surprise"),
        ({"passages": "8"}, "passages"),
        ({"passages": 1.5}, "passages"),
        ({"passages": True}, "passages"),
        ({"round": -1}, "round"),
        ({"base_digest": "../x"}, "base_digest"),
        ({"adapter_digest": "a" * 1000}, "adapter_digest"),
        ({"base_model": "m" * 501}, "base_model"),
        ({"base_model": "a\x1b[31mb"}, "control characters"),
        ({"created_at": None}, "created_at"),
        ({"strategies": {}}, "strategies"),
        ({"strategies": {"a": 2.0}}, "strategies.a"),
        ({"strategies": {"a:1,b": 1.0}}, "strategies"),
        ({"strategies": {"auto": 1.0}}, "no strategy's name"),
        ({"strategies": {f"s{n}": 0.01 for n in range(101)}}, "strategies"),
        ({"rounds": [{"number": 1}]}, "rounds.0.tried"),
        ({"rounds": [{**record()["rounds"][0], "x": 1}]}, "rounds.0.x"),
        ({"rounds": [record()["rounds"][0]] * 1001}, "rounds"),
        ({"reward": "loss"}, "reward"),
        ({"passage_ids": ["../x"]}, "passage_ids.0"),
        ({"passage_ids": ["ab" * 8] * 10_001}, "passage_ids"),
        ({"recipe": {"rank": "8"}}, "recipe.rank"),
        ({"recipe": {"schedule": "wild"}}, "recipe.schedule"),
        ({"x\x1b\ud800": 1}, r"not valid"),
    ],
)
def test_what_is_no_card_is_refused_with_the_place(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(StorageError, match=r"generator\.json is not valid") as caught:
        GeneratorCard.from_json(record(**changes), where="generator.json")
    assert said in caught.value.message
    assert caught.value.message.isprintable()
    assert caught.value.remedy


@pytest.mark.parametrize("field", sorted(record().keys() - {"version", "passage_ids"}))
def test_a_card_without_one_of_its_fields_is_refused(field: str) -> None:
    left = record()
    del left[field]
    with pytest.raises(StorageError, match=field):
        GeneratorCard.from_json(left)


@pytest.mark.parametrize("value", [None, [], 3, "card", {}])
def test_other_json_is_refused(value: object) -> None:
    with pytest.raises(StorageError, match="not valid"):
        GeneratorCard.from_json(value)


def test_a_card_of_a_newer_form_asks_for_an_update() -> None:
    with pytest.raises(StorageError, match="version 7") as caught:
        GeneratorCard.from_json(record(version=7))
    assert "update AI-OS" in caught.value.remedy
    with pytest.raises(StorageError, match="not valid: version"):
        GeneratorCard.from_json(record(version=0))


def test_a_passage_is_known_by_its_title_and_text_alone() -> None:
    one = Passage.make("A text.", id="mine", title="A title")
    assert passage_hash(one) == passage_hash(Passage.make(" A text. ", id="yours", title="A title"))
    assert passage_hash(one) == Passage.make("A text.", title="A title").id
    assert passage_hash(one) != passage_hash(Passage.make("A text.", id="mine"))
    card = GeneratorCard.from_json(record(passage_ids=[passage_hash(one)]))
    assert card.passage_ids == (passage_hash(one),)


def test_a_round_without_held_out_passages_has_no_gain() -> None:
    assert GeneratorCard.from_json(record()).rounds[2] == RoundSummary(2, 40, 15, 8, None)


def test_the_prompts_digest_depends_on_the_templates_and_on_nothing_else(tmp_path: Path) -> None:
    built_in = PromptBuilder()
    digest = prompts_digest(built_in, ["rewrite", "implications"])
    assert digest == prompts_digest(built_in, ["implications", "rewrite", "rewrite"])
    assert digest != prompts_digest(built_in, ["rewrite"])
    assert digest == prompts_digest(PromptBuilder(None, {"domain": "law"}), CARD.strategies)
    file = tmp_path / "prompts.yaml"
    file.write_text("rewrite:\n  template: 'Say it otherwise: {passage}'\n", encoding="utf-8")
    own = PromptBuilder(file)
    assert prompts_digest(own, ["implications"]) == prompts_digest(built_in, ["implications"])
    assert prompts_digest(own, ["rewrite"]) != prompts_digest(built_in, ["rewrite"])
    assert prompts_digest(built_in, ["cloze"]) != prompts_digest(built_in, ["another-packages"])
