"""Prompts: built in, from a user's file, and filled safely."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aios.core.errors import ConfigError, UnknownStrategyError, UsageError
from aios.core.seal import prompt_templates, prompts
from aios.core.seal.prompts import PromptBuilder
from aios.core.types import Passage

PASSAGE = Passage.make("Otrar fell in 1220.", title="Mongol conquest")
SIX = (
    "implications",
    "implications-long",
    "implications-very-long",
    "implications-cot",
    "rewrite",
    "self-qa",
)


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("strategy", SIX)
def test_each_built_in_prompt_holds_title_and_passage_and_no_placeholder(strategy: str) -> None:
    prompt = PromptBuilder().build_prompt(PASSAGE, strategy)
    assert "Passage:\nMongol conquest\nOtrar fell in 1220." in prompt
    assert "{" not in prompt


def test_the_six_prompts_differ_from_one_another() -> None:
    builder = PromptBuilder()
    assert builder.strategies == SIX
    assert len({builder.build_prompt(PASSAGE, name) for name in SIX}) == 6


def test_public_constants_are_the_templates_in_use() -> None:
    builder = PromptBuilder()
    templates = [builder.template(name).template for name in SIX]
    assert templates == [
        prompts.IMPLICATIONS_PROMPT,
        prompts.IMPLICATIONS_LONG_PROMPT,
        prompts.IMPLICATIONS_VERY_LONG_PROMPT,
        prompts.IMPLICATIONS_COT_PROMPT,
        prompts.REWRITE_PROMPT,
        prompts.SELF_QA_PROMPT,
    ]


def test_a_passage_without_title_leaves_no_blank_line() -> None:
    prompt = PromptBuilder().build_prompt("Otrar fell.", "rewrite")
    assert "Passage:\nOtrar fell.\n" in prompt


def test_messages_are_system_then_user() -> None:
    builder = PromptBuilder()
    messages = builder.build_messages(PASSAGE, "self-qa")
    assert [message["role"] for message in messages] == ["system", "user"]
    assert messages[0]["content"] == builder.format_system_message("self-qa")
    assert messages[1]["content"] == builder.build_prompt(PASSAGE, "self-qa")


def test_system_message_and_examples_without_strategy_are_those_of_implications() -> None:
    builder = PromptBuilder()
    assert builder.format_system_message() == builder.format_system_message("implications")
    assert builder.format_few_shot_examples() == []


@pytest.mark.parametrize("text", ["", "  \n\t "])
def test_an_empty_passage_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="empty"):
        PromptBuilder().build_prompt(text, "implications")


def test_a_very_long_passage_is_kept_whole() -> None:
    text = "word " * 200_000
    assert text.strip() in PromptBuilder().build_prompt(text, "implications")


def test_an_unknown_strategy_lists_the_known_ones() -> None:
    with pytest.raises(UnknownStrategyError) as caught:
        PromptBuilder().build_prompt(PASSAGE, "implication")
    assert "'implication'" in caught.value.message
    assert all(name in caught.value.remedy for name in SIX)


@given(st.text(min_size=1).filter(str.strip))
def test_no_passage_is_ever_interpreted(text: str) -> None:
    passage = Passage.make(text + "{title}{passage}{{x}}{0.__class__}%s$passage", title="{domain}")
    prompt = PromptBuilder().build_prompt(passage, "rewrite")
    before, _, after = prompts.REWRITE_PROMPT.partition("{title}\n{passage}")
    assert prompt == f"{before}{{domain}}\n{passage.text}{after}"


def test_a_users_prompt_is_filled_with_its_variables(tmp_path: Path) -> None:
    path = write(
        tmp_path / "prompts.yaml",
        """
variables: {level: 7, tone: calm}
facts:
  template: |
    List facts on {domain} for level {level} in a {tone} tone, as {{"fact": ...}}.
    {title}
    {passage}
  system: You know {domain}.
  parser: implications
  few_shot:
    - {passage: "Snow is {cold}.", completion: "1. Snow is cold.", title: Snow}
""",
    )
    builder = PromptBuilder(path, {"domain": "history", "tone": "stern {level}"})
    expected = 'List facts on history for level 7 in a stern {level} tone, as {"fact": ...}.\n'
    assert builder.build_messages(PASSAGE, "facts") == [
        {"role": "system", "content": "You know history."},
        {"role": "user", "content": expected + "Snow\nSnow is {cold}."},
        {"role": "assistant", "content": "1. Snow is cold."},
        {"role": "user", "content": expected + "Mongol conquest\nOtrar fell in 1220."},
    ]
    assert builder.custom_strategies == ("facts",)
    assert builder.strategies == (*SIX, "facts")


def test_a_prompt_without_system_text_gives_no_system_turn(tmp_path: Path) -> None:
    path = write(tmp_path / "p.yaml", "mine: {template: 'Read {passage}', parser: rewrite}")
    builder = PromptBuilder(path)
    assert [m["role"] for m in builder.build_messages("x", "mine")] == ["user"]
    assert builder.template("mine").format == "rewrites"


def test_a_users_prompt_replaces_the_built_in_one_of_that_name(tmp_path: Path) -> None:
    path = write(tmp_path / "p.yaml", "rewrite: {template: 'Again: {passage}', parser: rewrite}")
    assert PromptBuilder(path).build_prompt("x", "rewrite") == "Again: x"


def test_braces_that_hold_no_name_are_text(tmp_path: Path) -> None:
    path = write(tmp_path / "p.yaml", "mine: {template: \"{passage} { } {1} {'a': 2} }\"}")
    assert PromptBuilder(path).build_prompt("x", "mine") == "x { } {1} {'a': 2} }"


@pytest.mark.parametrize(
    "placeholder",
    [
        "{pasage}",
        "{passage.__class__}",
        "{passage!r}",
        "{passage:>99}",
        "{ passage }",
        "{title[0]}",
    ],
)
def test_unknown_variables_and_attribute_access_are_refused(
    tmp_path: Path, placeholder: str
) -> None:
    path = write(tmp_path / "p.yaml", f"mine: {{template: '{{passage}} {placeholder}'}}")
    with pytest.raises(UnknownStrategyError, match="unknown variable") as caught:
        PromptBuilder(path)
    assert "domain, passage, title" in caught.value.remedy


def test_the_passage_is_no_variable_of_the_system_text(tmp_path: Path) -> None:
    path = write(tmp_path / "p.yaml", "mine: {template: '{passage}', system: '{passage}'}")
    with pytest.raises(UnknownStrategyError, match="the system text of 'mine'"):
        PromptBuilder(path)


@pytest.mark.parametrize("name", ["passage", "title", "a b", "a.b", ""])
def test_variables_with_unusable_names_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="cannot be set"):
        PromptBuilder(variables={name: "x"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no prompts"),
        ("- a\n- b", "holds no prompts"),
        ("a: [", "not a YAML file"),
        ("a: !!python/object/apply:os.system ['true']", "not a YAML file"),
        ("a: &x {template: '{passage}'}\nb: *x", "aliases"),
        ("a: 3", "a: must map"),
        ("A b: {template: '{passage}'}", "'A b': a name has"),
        ("a: {template: no place}", "a.template: must be a text that holds"),
        ("a: {template: 'escaped {{passage}}'}", "a.template: must be a text that holds"),
        ("a: {template: '{passage}', parser: csv}", "a.parser: must be one of implications"),
        ("a: {template: '{passage}', parser: [1]}", "a.parser: must be one of implications"),
        ("a: {template: '{passage}', sytem: x}", "a.sytem: unknown key"),
        ("a: {template: '{passage}', system: [x]}", "a.system: must be a text"),
        ("a: {template: '{passage}', few_shot: 3}", "a.few_shot: must be a list"),
        ("a: {template: '{passage}', few_shot: [3]}", r"a.few_shot\[0\]: must map"),
        ("a: {template: '{passage}', few_shot: [{passage: a}]}", r"a.few_shot\[0\]: must map"),
        (
            "a: {template: '{passage}', few_shot: [{passage: '', completion: x}]}",
            r"a.few_shot\[0\]: must map",
        ),
        ("variables: 3\na: {template: '{passage}'}", "variables: must map names"),
        ("variables: {x: [1]}\na: {template: '{passage}'}", "variables.x: must be a text"),
    ],
)
def test_a_faulty_prompts_file_is_refused_with_its_fault(
    tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        PromptBuilder(write(tmp_path / "p.yaml", text))


def test_all_faults_of_a_prompts_file_are_listed_at_once(tmp_path: Path) -> None:
    path = write(tmp_path / "p.yaml", "a: {template: x}\nb: 3\nc: {template: '{passage}', k: 1}")
    with pytest.raises(ConfigError) as caught:
        PromptBuilder(path)
    assert all(fault in caught.value.message for fault in ("a.template", "b: must", "c.k"))


@pytest.mark.slow
def test_missing_binary_and_huge_prompts_files_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        PromptBuilder(tmp_path / "missing.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00a")
    with pytest.raises(ConfigError, match="not a YAML file"):
        PromptBuilder(tmp_path / "binary.yaml")
    monkeypatch.setattr(prompt_templates, "MAX_PROMPTS_FILE_BYTES", 10)
    with pytest.raises(ConfigError, match="larger than 10 bytes"):
        PromptBuilder(write(tmp_path / "huge.yaml", "a: " + "x" * 20))
    monkeypatch.undo()
    with pytest.raises(ConfigError, match="not a YAML file"):
        PromptBuilder(write(tmp_path / "deep.yaml", "[" * 2000))


def test_a_file_of_prompts_may_be_as_large_as_the_limit(tmp_path: Path) -> None:
    text = "song: {template: 'Sing of {passage}'}\n#"
    room = prompt_templates.MAX_PROMPTS_FILE_BYTES - len(text)
    PromptBuilder(write(tmp_path / "full.yaml", text + "x" * room))
    with pytest.raises(ConfigError, match="larger than"):
        PromptBuilder(write(tmp_path / "larger.yaml", text + "x" * (room + 1)))
