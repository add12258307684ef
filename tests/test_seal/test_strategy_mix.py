"""Mixes: what users may write, what it means, and that a part is the same in a mix as alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aios.backends.scripted import ScriptedModel
from aios.core.config.loader import load_config
from aios.core.config.recipes import ResolvedRecipe, resolve_recipe
from aios.core.config.seal_schema import SealConfig
from aios.core.errors import ConfigError, UnknownStrategyError, UsageError
from aios.core.seal.cache import SelfEditCache
from aios.core.seal.prompts import PromptBuilder
from aios.core.seal.self_edit_generator import SelfEditGenerator
from aios.core.seal.strategies import RewriteStrategy, SelfQAStrategy
from aios.core.seal.strategy_mix import (
    MAX_EDITS,
    describe_mix,
    format_mix,
    mix_edits,
    parse_mix,
    resolve_mix,
)
from aios.core.types import Passage

PASSAGE = Passage.make(
    "The Orrin Canal was dug in 1821 by Ada Finch. Its barges carry grain to the mills of Orr, "
    "and horses draw them. In 1904 the company sold the last of its horses.",
    title="Orrin Canal",
)
MIX = "rewrite:2,self-qa:2,implications:1"


# --- reading


@pytest.mark.parametrize(
    ("text", "mix"),
    [
        ("rewrite", (("rewrite", None),)),
        (" rewrite ", (("rewrite", None),)),
        ("rewrite:3", (("rewrite", 3),)),
        ("auto", (("auto", None),)),
        (MIX, (("rewrite", 2), ("self-qa", 2), ("implications", 1))),
        (" rewrite : 2 ,self-qa: 02", (("rewrite", 2), ("self-qa", 2))),
    ],
)
def test_what_users_write_is_read(text: str, mix: tuple[tuple[str, int | None], ...]) -> None:
    assert parse_mix(text) == mix


@pytest.mark.parametrize(
    ("text", "message", "remedy"),
    [
        ("", "name is missing", "rewrite:2,self-qa:2"),
        ("rewrite:2,", "name is missing in 'rewrite:2,'", "rewrite:2,self-qa:2"),
        ("a:1,,b:1", "name is missing", "rewrite:2,self-qa:2"),
        (":2", "':2' is not a strategy with a number", "rewrite:2,self-qa:2"),
        ("rewrite 2", "'rewrite 2' is not a strategy with a number", "rewrite:2,self-qa:2"),
        ("rewrite=2,b:1", "'rewrite=2' in 'rewrite=2,b:1' is not", "rewrite:2,self-qa:2"),
        ("a:1,rewrite:0", "'rewrite:0' in 'a:1,rewrite:0': '0' is not a number", "rewrite:2"),
        ("rewrite:-1", "'-1' is not a number", "from 1 to 100, such as rewrite:2"),
        ("rewrite:1.5", "'1.5' is not a number", "whole number"),
        ("rewrite:two", "'two' is not a number", "whole number"),
        ("rewrite:²", "'²' is not a number", "whole number"),
        ("rewrite:", "'' is not a number", "whole number"),
        ("a:1:2", "'1:2' is not a number", "whole number"),
        ("rewrite:" + "9" * 5000, "is not a number", "whole number"),
        ("rewrite:60,self-qa:41", "asks for 101 self-edits", "at most 100"),
        ("rewrite:2,rewrite:3", "rewrite is more than once", "once"),
        ("rewrite:2,self-qa", "self-qa has no number", "write rewrite:2,self-qa:1"),
        ("rewrite,self-qa", "rewrite has no number", "write rewrite:1,self-qa:1"),
        ("auto:2", "auto cannot be part of a mix", "write auto alone"),
        ("auto,rewrite:2", "auto cannot be part of a mix", "write auto alone"),
    ],
)
def test_what_is_no_mix_is_refused_with_what_to_write(text: str, message: str, remedy: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_mix(text)
    assert message in caught.value.message
    assert remedy in caught.value.remedy


@given(
    st.lists(
        st.tuples(st.from_regex(r"[a-z0-9_-]{1,8}", fullmatch=True), st.integers(1, 20)),
        min_size=2,
        max_size=5,
        unique_by=lambda part: part[0],
    ).filter(lambda mix: "auto" not in dict(mix))
)
def test_a_mix_is_read_back_from_its_one_spelling(mix: list[tuple[str, int]]) -> None:
    assert parse_mix(format_mix(mix)) == tuple(mix)
    assert mix_edits(format_mix(mix)) == sum(count for _, count in mix)


@given(st.text(max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        mix = parse_mix(text)
    except UsageError:
        return
    assert len({name for name, _ in mix}) == len(mix) > 0
    assert sum(count or 0 for _, count in mix) <= MAX_EDITS


def test_a_single_strategy_is_called_by_its_name() -> None:
    assert format_mix([("rewrite", 3)]) == "rewrite"
    assert format_mix([("rewrite", None)]) == "rewrite"
    assert mix_edits("rewrite") is None
    assert mix_edits("rewrite:3") == 3


# --- finding the strategies


def test_the_parts_are_numbered_through() -> None:
    parts = resolve_mix(" rewrite : 2, self-qa:3 ", num_edits=9)
    assert [type(part.strategy) for part in parts] == [RewriteStrategy, SelfQAStrategy]
    assert [(part.num_edits, part.first_index) for part in parts] == [(2, 0), (3, 2)]
    assert describe_mix(parts) == "rewrite:2,self-qa:3"


@pytest.mark.parametrize(("text", "count"), [("rewrite", 9), ("rewrite:4", 4)])
def test_a_single_strategy_takes_the_number_only_where_it_has_none(text: str, count: int) -> None:
    (part,) = resolve_mix(text, num_edits=9)
    assert (part.num_edits, part.first_index, describe_mix([part])) == (count, 0, "rewrite")


def test_an_unknown_part_lists_the_known_strategies() -> None:
    with pytest.raises(UnknownStrategyError, match="unknown strategy 'rewrit'") as caught:
        resolve_mix("self-qa:1,rewrit:2", 1)
    assert "rewrite" in caught.value.remedy


def test_a_prompt_of_the_users_own_can_be_a_part(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("mine: {template: 'List {passage}'}", encoding="utf-8")
    parts = resolve_mix("mine:1,rewrite:1", 1, PromptBuilder(tmp_path / "p.yaml"))
    assert describe_mix(parts) == "mine:1,rewrite:1"


@pytest.mark.parametrize("name", ["'a:b'", "'a,b'", "'a b'", "auto"])
def test_the_prompts_file_has_no_names_that_a_mix_could_not_hold(tmp_path: Path, name: str) -> None:
    (tmp_path / "p.yaml").write_text(f"{name}: {{template: '{{passage}}'}}", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"a name has small letters|this name means"):
        PromptBuilder(tmp_path / "p.yaml")


# --- writing


def test_a_part_writes_in_a_mix_what_it_writes_alone() -> None:
    model = ScriptedModel()
    (alone,) = SelfEditGenerator(model, strategy="self-qa", num_edits=2).generate([PASSAGE])
    (mixed,) = SelfEditGenerator(model, strategy=MIX).generate([PASSAGE])
    of_part = [edit for edit in mixed.kept if edit.strategy == "self-qa"]
    assert of_part
    assert [(e.completion, e.seed) for e in of_part] == [(e.completion, e.seed) for e in alone.kept]
    assert all(edit.index in (2, 3) for edit in of_part)


def test_a_mix_takes_what_one_of_its_strategies_has_put_into_the_cache(tmp_path: Path) -> None:
    model = ScriptedModel()
    with SelfEditCache(tmp_path / "cache", 10**9) as cache:
        first = SelfEditGenerator(model, strategy="rewrite", num_edits=2, cache=cache)
        assert [result.generated for result in first.generate([PASSAGE])] == [2]
        mixed = SelfEditGenerator(model, strategy=MIX, cache=cache)
        (result,) = mixed.generate([PASSAGE])
        assert (result.cached, result.generated) == (2, 3)
        again = SelfEditGenerator(model, strategy="self-qa:2,rewrite:2", cache=cache)
        assert [result.cached for result in again.generate([PASSAGE])] == [4]


# --- the config


def resolve(*overrides: str, **more: dict[str, str]) -> ResolvedRecipe:
    env = more.get("env", {})
    return resolve_recipe(load_config(overrides=overrides, env=env).config, "some-model")


def test_a_mix_in_the_config_decides_the_number_of_edits() -> None:
    found = resolve(f"seal.strategy= {MIX} ")
    assert (found.strategy, found.num_edits_per_passage) == (MIX, 5)
    assert found.sources["seal.num_edits_per_passage"] == "the mix"


def test_a_single_strategy_with_a_number_is_that_strategy() -> None:
    found = resolve("seal.strategy=rewrite:3")
    assert (found.strategy, found.num_edits_per_passage) == ("rewrite", 3)


def test_a_mix_and_its_own_number_agree() -> None:
    found = resolve(f"seal.strategy={MIX}", "seal.num_edits_per_passage=5")
    assert found.num_edits_per_passage == 5


def test_a_mix_and_another_number_given_beside_it_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"makes 5 self-edits.*is 3; leave out.*--num-edits"):
        resolve(f"seal.strategy={MIX}", "seal.num_edits_per_passage=3")
    with pytest.raises(ValueError, match="makes 5 self-edits"):
        SealConfig(strategy=MIX, num_edits_per_passage=3)


def test_a_stronger_number_is_not_overruled_by_a_weaker_mix() -> None:
    with pytest.raises(ConfigError, match="makes 5 self-edits"):
        resolve("seal.num_edits_per_passage=3", env={"AIOS_SEAL__STRATEGY": MIX})


def test_a_mix_beats_a_weaker_number_and_says_so(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("seal: {num_edits_per_passage: 3}", encoding="utf-8")
    loaded = load_config(config_file=file, overrides=[f"seal.strategy={MIX}"], env={})
    assert loaded.config.seal.num_edits_per_passage is None
    assert loaded.sources["seal.num_edits_per_passage"] == "--set"
    (note,) = loaded.notes
    assert f"({file}:1) is not used: {MIX} makes 5" in note
    same = load_config(config_file=file, overrides=["seal.strategy=rewrite:3"], env={})
    assert same.notes == ()
    kept = load_config(config_file=file, overrides=["seal.strategy=rewrite"], env={})
    assert kept.config.seal.num_edits_per_passage == 3


def test_a_mix_that_cannot_be_read_is_a_config_error_with_its_source() -> None:
    with pytest.raises(ConfigError, match=r"seal.strategy = .* \(--set\): self-qa has no number"):
        load_config(
            overrides=["seal.strategy=rewrite:2,self-qa"],
            env={"AIOS_SEAL__NUM_EDITS_PER_PASSAGE": "3"},
        )


RECIPE = ("recipes.default.strategy=rewrite:2,cloze:1", "recipes.default.num_edits_per_passage=3")


def test_a_recipe_may_name_a_mix() -> None:
    found = resolve(*RECIPE)
    assert (found.strategy, found.num_edits_per_passage) == ("rewrite:2,cloze:1", 3)
    assert found.sources["seal.strategy"] == "recipe default"
    assert resolve(*RECIPE, "seal.strategy=cloze", "seal.num_edits_per_passage=7").strategy == (
        "cloze"
    )


def test_a_recipes_mix_must_have_its_number() -> None:
    with pytest.raises(ConfigError, match=r"recipes.default \(--set\): .*makes 3 .* is 5; change"):
        resolve(RECIPE[0])


def test_a_users_number_against_a_recipes_mix_is_refused() -> None:
    with pytest.raises(UsageError, match=r"recipes.default makes 3") as caught:
        resolve(*RECIPE, "seal.num_edits_per_passage=4")
    assert "--num-edits" in caught.value.remedy
