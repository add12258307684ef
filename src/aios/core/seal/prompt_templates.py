"""Prompt templates: what they hold, how they are filled, and how a user's own are read from YAML.

Takes a YAML file, or a template and values; gives `PromptTemplate` records and filled texts. A
prompts file may come from someone else, so it is treated as hostile: it is read with YAML's safe
types alone, within a size limit and without aliases, and a placeholder is nothing but a name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml

from aios.core.errors import ConfigError, UnknownStrategyError, UsageError

PromptFormat = Literal["lines", "rewrites", "qa"]

MAX_PROMPTS_FILE_BYTES = 1_000_000
DEFAULT_STRATEGY = "implications"
AUTO = "auto"  # no strategy, but the one that a recipe names

# Parser names in the YAML file and the format each stands for.
PARSER_FORMATS: Mapping[str, PromptFormat] = {
    "implications": "lines",
    "rewrite": "rewrites",
    "self-qa": "qa",
}

# "{{" and "}}" stand for braces. A brace pair is a placeholder where a name follows the opening
# brace; "{passage.x}" or "{passage!r}" is thus an unknown variable and never an attribute access.
# Any other brace is text.
_PLACEHOLDER = re.compile(r"\{\{|\}\}|\{\s*([A-Za-z_][^{}\n]*)\}")
_LONE_PLACEHOLDER = re.compile(r"\s*\{([A-Za-z_]\w*)\}\s*")
_NAME = re.compile(r"[A-Za-z_]\w*")
_STRATEGY_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")


@dataclass(frozen=True, slots=True)
class FewShotExample:
    """A worked example: a passage and the completion wanted for it."""

    passage: str
    completion: str
    title: str = ""


@dataclass(frozen=True, slots=True)
class PromptTemplate:
    """How one strategy asks.

    Attributes:
        name: The strategy's name.
        template: The user turn, with placeholders such as ``{passage}``.
        system: The system turn, with placeholders of the user's variables; may be empty.
        few_shot: Worked examples, put before the user turn.
        format: How the completion is read: one item a line, one rewrite a paragraph, or
            question-answer pairs.
    """

    name: str
    template: str
    system: str = ""
    few_shot: tuple[FewShotExample, ...] = ()
    format: PromptFormat = "lines"


def fill_template(template: str, values: Mapping[str, str], where: str) -> str:
    """Replaces placeholders by values in one pass: braces within a value stay as they are.

    A line that holds a single placeholder whose value is empty is left out, so that a passage
    without a title leaves no blank line.

    Args:
        template: Text with placeholders ``{name}``; ``{{`` and ``}}`` stand for braces.
        values: What the placeholders stand for.
        where: What the template is, for messages.

    Raises:
        UnknownStrategyError: A placeholder has no value; the message lists the known names.
    """

    def replace(match: re.Match[str]) -> str:
        name = match.group(1)
        if name is None:
            return match.group(0)[0]
        if name not in values:
            raise UnknownStrategyError(
                f"unknown variable {{{name}}} in {where}",
                f"known: {', '.join(sorted(values))}; write {{{{ and }}}} for braces",
            )
        return values[name]

    lines = []
    for line in template.split("\n"):
        lone = _LONE_PLACEHOLDER.fullmatch(line)
        if lone is not None and values.get(lone.group(1)) == "":
            continue
        lines.append(_PLACEHOLDER.sub(replace, line))
    return "\n".join(lines)


def require_passage(prompt: PromptTemplate) -> None:
    """Refuses a prompt that leaves the passage out.

    Raises:
        UsageError: It does.
    """
    if "passage" not in _PLACEHOLDER.findall(prompt.template):
        raise UsageError(
            f"the prompt {prompt.name!r} does not hold {{passage}}",
            "write {passage} where the passage is to stand",
        )


def is_variable_name(name: str) -> bool:
    """Whether a placeholder can have this name: letters, digits and _, no digit first."""
    return _NAME.fullmatch(name) is not None


def load_prompts_file(path: Path) -> tuple[dict[str, PromptTemplate], dict[str, str]]:
    """Reads prompts of the user's own.

    The file maps a strategy's name to ``template`` (must hold ``{passage}``), and, where wanted,
    ``system``, ``parser`` (``implications``, ``rewrite`` or ``self-qa``; the first is the
    default) and ``few_shot`` (a list of ``passage``, ``completion`` and maybe ``title``). The key
    ``variables`` maps names of the user's own placeholders to their values.

    Args:
        path: The YAML file, at most `MAX_PROMPTS_FILE_BYTES`.

    Returns:
        Templates by name, and variables by name.

    Raises:
        ConfigError: The file is missing, too large, not YAML, or not of that shape; all faults
            are listed.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_PROMPTS_FILE_BYTES + 1)
        if len(raw) > MAX_PROMPTS_FILE_BYTES:
            raise ConfigError(
                f"{path}: larger than {MAX_PROMPTS_FILE_BYTES} bytes", "keep only prompts in it"
            )
        tree = _SafeLoaderWithoutAliases(raw.decode("utf-8")).get_single_data()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})", "check the path") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise ConfigError(f"{path}: not a YAML file in UTF-8 ({error})", "correct it") from error
    if not isinstance(tree, dict) or not tree:
        raise ConfigError(f"{path}: holds no prompts", "map each prompt's name to its template")

    faults: list[str] = []
    variables = _read_variables(tree.pop("variables", {}), faults)
    prompts = {}
    for name, entry in tree.items():
        if not isinstance(name, str) or not _STRATEGY_NAME.fullmatch(name):
            faults.append(f"{name!r}: a name has small letters, digits, - and _ (at most 64)")
            continue
        if name == AUTO:
            faults.append(f"{name}: this name means the strategy measured for the model")
            continue
        prompt = _read_prompt(name, entry, faults)
        if prompt is not None:
            prompts[name] = prompt
    if faults:
        raise ConfigError(f"{path}: " + "; ".join(faults), "correct these prompts")
    return prompts, variables


class _SafeLoaderWithoutAliases(yaml.SafeLoader):
    """`yaml.SafeLoader` that refuses aliases, which a few lines can blow up to gigabytes."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not allowed")
        return super().compose_node(parent, index)


def _read_variables(entry: object, faults: list[str]) -> dict[str, str]:
    if not isinstance(entry, dict):
        faults.append("variables: must map names to texts")
        return {}
    variables = {}
    for name, value in entry.items():
        if isinstance(name, str) and isinstance(value, (str, int, float)):
            variables[name] = str(value)
        else:
            faults.append(f"variables.{name}: must be a text")
    return variables


def _read_prompt(name: str, entry: object, faults: list[str]) -> PromptTemplate | None:
    if not isinstance(entry, dict):
        faults.append(f"{name}: must map template, system, parser and few_shot to their values")
        return None
    before = len(faults)
    known = ("template", "system", "parser", "few_shot")
    for key in entry:
        if key not in known:
            faults.append(f"{name}.{key}: unknown key (known: {', '.join(known)})")
    template, system = entry.get("template"), entry.get("system", "")
    if not isinstance(template, str) or "passage" not in _PLACEHOLDER.findall(template):
        faults.append(f"{name}.template: must be a text that holds {{passage}}")
    if not isinstance(system, str):
        faults.append(f"{name}.system: must be a text")
    parser = entry.get("parser", DEFAULT_STRATEGY)
    if not isinstance(parser, str) or parser not in PARSER_FORMATS:
        faults.append(f"{name}.parser: must be one of {', '.join(PARSER_FORMATS)}")
    few_shot = _read_few_shot(name, entry.get("few_shot", []), faults)
    if len(faults) > before:
        return None
    return PromptTemplate(
        name, str(template).strip(), str(system).strip(), few_shot, PARSER_FORMATS[str(parser)]
    )


def _read_few_shot(name: str, entry: object, faults: list[str]) -> tuple[FewShotExample, ...]:
    if not isinstance(entry, list):
        faults.append(f"{name}.few_shot: must be a list")
        return ()
    examples = []
    for number, item in enumerate(entry):
        values = item if isinstance(item, dict) else {}
        complete = {"passage", "completion"} <= set(values) <= {"passage", "completion", "title"}
        texts = {key: text for key, text in values.items() if isinstance(text, str)}
        if not complete or len(texts) < len(values) or not texts["passage"].strip():
            faults.append(
                f"{name}.few_shot[{number}]: must map passage and completion (and maybe title)"
                " to texts"
            )
            continue
        examples.append(FewShotExample(**texts))
    return tuple(examples)
