"""YAML for configs: a text in, plain values with their line numbers and comments out.

Safe by construction: only mappings with text keys, lists and plain scalars; tags, anchors and
aliases are refused. Stricter than YAML 1.1 where that surprises people: a key given twice is an
error, ``1e-3`` is a number, and dates, ``1:30`` and ``010`` are texts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

MAX_BYTES = 1_000_000

KeyPath = tuple[str, ...]

_BOOL, _FLOAT, _INT, _NULL, _STR = (
    f"tag:yaml.org,2002:{name}" for name in ("bool", "float", "int", "null", "str")
)
_FLOAT_TEXT = re.compile(
    r"""^(?:[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?
        |[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+
        |[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$""",
    re.VERBOSE,
)
_INT_TEXT = re.compile(r"^[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F]+)$")


@dataclass(frozen=True, slots=True)
class Mistake:
    """Something wrong with the text itself.

    Attributes:
        path: The key it concerns; empty where it concerns the whole text.
        line: Line number from 1; 0 where it is not known.
        message: What is wrong.
    """

    path: KeyPath
    line: int
    message: str


@dataclass(frozen=True, slots=True)
class Document:
    """A YAML text, read.

    Attributes:
        value: Plain Python values; None for an empty text.
        lines: Line number, from 1, of each key at any depth.
        comments: For each key, the comment behind its value, or else those right above it.
        mistakes: What is wrong with it; `value` leaves those parts out.
    """

    value: Any
    lines: Mapping[KeyPath, int] = field(default_factory=dict)
    comments: Mapping[KeyPath, str] = field(default_factory=dict)
    mistakes: tuple[Mistake, ...] = ()


class _Loader(yaml.SafeLoader):
    """A safe loader without aliases and with the scalars described above."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise yaml.composer.ComposerError(
                None, None, "anchors and aliases are not allowed", event.start_mark
            )
        return super().compose_node(parent, index)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag in (_BOOL, _NULL)]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_FLOAT, _FLOAT_TEXT, list("-+.0123456789"))
_Loader.add_implicit_resolver(_INT, _INT_TEXT, list("-+0123456789"))


class _Dumper(yaml.SafeDumper):
    """Quotes texts that YAML 1.1 or this module's loader would take for something else."""


_Dumper.add_implicit_resolver(_FLOAT, _FLOAT_TEXT, list("-+.0123456789"))


class _Reader:
    """Walks the nodes of one text."""

    def __init__(self, text: str) -> None:
        self.text_lines = text.splitlines()
        self.loader = _Loader(text)
        self.lines: dict[KeyPath, int] = {}
        self.comments: dict[KeyPath, str] = {}
        self.mistakes: list[Mistake] = []

    def value(self, node: yaml.Node, path: KeyPath) -> Any:
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(child, path) for child in node.value]
        if node.tag not in (_BOOL, _FLOAT, _INT, _NULL, _STR):
            self.mistake(path, node, f"the tag {node.tag} is not allowed")
            return None
        try:
            value = self.loader.construct_object(node)
            if isinstance(value, str):
                value.encode()  # half of a surrogate pair is no text
            return value
        except (ValueError, KeyError, IndexError):
            kind = node.tag.rsplit(":", 1)[-1]
            self.mistake(path, node, f"{str(node.value)[:40]!r} is not a value of type {kind}")
            return None

    def mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                self.mistake(path, key_node, "keys must be texts")
                continue
            key = str(key_node.value)
            here = (*path, key)
            if key in values:
                self.mistake(here, key_node, f"given twice, first on line {self.lines[here]}")
                continue
            self.lines[here] = key_node.start_mark.line + 1
            self.comments[here] = self.comment(key_node, value_node)
            values[key] = self.value(value_node, here)
        return values

    def mistake(self, path: KeyPath, node: yaml.Node, message: str) -> None:
        self.mistakes.append(Mistake(path, node.start_mark.line + 1, message))

    def comment(self, key_node: yaml.Node, value_node: yaml.Node) -> str:
        if isinstance(value_node, yaml.ScalarNode) or getattr(value_node, "flow_style", False):
            end = value_node.end_mark
        else:  # a block below the key
            end = key_node.end_mark
        rest = self.text_lines[end.line][end.column :] if end.line < len(self.text_lines) else ""
        behind = re.search(r"(?:^|\s)#\s*(.*)", rest)
        if behind:
            return behind[1].strip()
        above: list[str] = []
        for text in reversed(self.text_lines[: key_node.start_mark.line]):
            if not text.lstrip().startswith("#"):
                break
            above.append(text.strip().lstrip("#").strip())
        return " ".join(reversed(above))


def read_text(text: str) -> Document:
    """Reads a YAML text; what is wrong with it is in the document's mistakes."""
    try:
        reader = _Reader(text)
        node = reader.loader.get_single_node()
        if node is None:
            return Document(None)
        value = reader.value(node, ())
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        detail = getattr(error, "problem", None) or str(error).splitlines()[0]
        context = getattr(error, "context", None)
        message = f"no valid YAML: {detail}" + (f" {context}" if context else "")
        return Document(None, mistakes=(Mistake((), mark.line + 1 if mark else 0, message),))
    except RecursionError:
        return Document(None, mistakes=(Mistake((), 0, "nested too deeply"),))
    return Document(value, reader.lines, reader.comments, tuple(reader.mistakes))


def read_file(path: Path) -> Document:
    """Reads a YAML file of at most `MAX_BYTES`; what is wrong with it is in the mistakes."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            problem = f"larger than {MAX_BYTES // 1000} kB, which no config is"
        else:
            return read_text(data.decode("utf-8-sig"))
    except OSError as error:
        problem = f"cannot be read: {error.strerror or error}"
    except UnicodeDecodeError as error:
        problem = f"is not UTF-8 text (byte {error.start})"
    return Document(None, mistakes=(Mistake((), 0, problem),))


def write_text(value: Any) -> str:
    """Plain values as YAML that `read_text` reads back the same; the order of keys is kept."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
