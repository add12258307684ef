"""The pages of the library: every public name is on one of them, with a docstring that says all.

The pages name modules, and mkdocstrings takes the rest from the sources; here the sources are read
without importing them.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache

import pytest

import aios
from tests.pages import ROOT

FOLDER = ROOT / "docs" / "api"
SOURCES = ROOT / "src"
# Names that are promised beside those of `aios.__all__`: module to names and methods.
PROMISED = {
    "core.seal.prompts": (
        "IMPLICATIONS_PROMPT IMPLICATIONS_LONG_PROMPT IMPLICATIONS_VERY_LONG_PROMPT "
        "IMPLICATIONS_COT_PROMPT REWRITE_PROMPT SELF_QA_PROMPT PromptBuilder.build_prompt "
        "PromptBuilder.format_system_message PromptBuilder.format_few_shot_examples"
    ),
    "core.seal.strategies": (
        "SelfEditStrategy.parse_output ImplicationsStrategy RewriteStrategy SelfQAStrategy"
    ),
    "core.seal.self_edit_generator": (
        "SelfEditGenerator.generate_self_edits SelfEditGenerator.generate"
    ),
    "core.seal.cache": "SelfEditCache",
    "core.seal.reward": "RewardFunction.compute_reward",
    "core.seal.test_time_training": "TTTTrainer.train_temporary_expert TTTTrainer.train_many",
    "core.seal.restem_optimizer": "ReSTEMOptimizer.optimize",
    "core.seal.test_time_adaptation": "TestTimeAdaptation.adapt_to_context",
    "core.training.expert_trainer": "train_expert log_dataset_stats",
    "core.training.auto_training_orchestrator": (
        "AutoTrainingOrchestrator.prepare_training_data "
        "AutoTrainingOrchestrator.train_expert_with_restem"
    ),
    "core.config.feature_flags": "ENABLE_SEAL_SELF_EDITS",
}
_DIRECTIVE = re.compile(r"^::: ([\w.]+)(?:\n    options: \{([^\n]*)\})?", re.MULTILINE)
_MEMBERS = re.compile(r"members: \[([^\]]*)\]")


def names() -> Iterator[tuple[str, str]]:
    """Module and name of all that must be described; a method's name has its class before it."""
    for name, module in aios._EXPORTS.items():
        yield module, name
    for module, listed in PROMISED.items():
        for name in listed.split():
            yield f"aios.{module}", name


NAMES = sorted(set(names()))


@cache
def described() -> dict[str, list[tuple[str, frozenset[str]]]]:
    """Module → the pages that it is on, each with the names that it is limited to (none: all)."""
    found: dict[str, list[tuple[str, frozenset[str]]]] = {}
    for path in sorted(FOLDER.glob("*.md")):
        for match in _DIRECTIVE.finditer(path.read_text(encoding="utf-8")):
            members = _MEMBERS.search(match[2] or "")
            only = frozenset(members[1].replace(" ", "").split(",")) if members else frozenset()
            found.setdefault(match[1], []).append((path.name, only))
    return found


@cache
def tree_of(module: str) -> ast.Module:
    path = SOURCES / module.replace(".", "/")
    file = path.with_suffix(".py") if not path.is_dir() else path / "__init__.py"
    return ast.parse(file.read_text(encoding="utf-8"))


def find(module: str, name: str) -> tuple[ast.AST, str]:
    """What a name is bound to, and its docstring; a constant's stands below it."""
    body: list[ast.stmt] = tree_of(module).body
    found: tuple[ast.AST, str] | None = None
    for part in name.split("."):
        found = _find_in(body, part)
        assert found is not None, f"{module} has no {name}"
        body = found[0].body if isinstance(found[0], ast.ClassDef) else []
    assert found is not None
    return found


def _find_in(body: list[ast.stmt], name: str) -> tuple[ast.AST, str] | None:
    for node, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name == name:
            return node, ast.get_docstring(node) or ""
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(each, ast.Name) and each.id == name for each in targets):
            below = after.value if isinstance(after, ast.Expr) else None
            if isinstance(below, ast.Constant) and isinstance(below.value, str):
                return node, below.value
            return node, ""
    return None


@pytest.mark.parametrize(("module", "name"), NAMES, ids=lambda part: part.removeprefix("aios."))
class TestName:
    def test_it_stands_on_exactly_one_page(self, module: str, name: str) -> None:
        outer = name.partition(".")[0]
        pages = [page for page, only in described().get(module, []) if not only or outer in only]
        assert len(pages) == 1, f"{module}.{name}: {pages}"

    def test_its_docstring_says_all(self, module: str, name: str) -> None:
        node, doc = find(module, name)
        assert doc
        if isinstance(node, ast.FunctionDef):
            assert problems(node, doc) == []

    def test_it_is_in_the_overview(self, module: str, name: str) -> None:
        if aios._EXPORTS.get(name) == module:
            overview = (FOLDER / "index.md").read_text(encoding="utf-8")
            assert len(re.findall(rf"`{name}`", overview)) == 1


def problems(function: ast.FunctionDef, doc: str) -> list[str]:
    """What a function's docstring does not say."""
    doc = inspect.cleandoc(doc)
    given = function.args
    named = [each.arg for each in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    arguments = doc.partition("Args:\n")[2].partition("\n\n")[0]
    found = [
        f"argument {name}"
        for name in named
        if name not in ("self", "cls") and not re.search(rf"^ +{name}: ", arguments, re.MULTILINE)
    ]
    returned = ast.unparse(function.returns) if function.returns else "None"
    if returned != "None" and not re.search(r"^(?:Returns|Yields):$", doc, re.MULTILINE):
        found.append(f"result {returned}")
    raised = {
        ast.unparse(each.exc.func)
        for each in ast.walk(function)
        if isinstance(each, ast.Raise) and isinstance(each.exc, ast.Call)
    }
    listed = doc.partition("Raises:\n")[2]
    return [*found, *(f"error {name}" for name in sorted(raised) if name not in listed)]


def test_every_module_of_the_pages_exists_and_is_on_one() -> None:
    for module, pages in described().items():
        tree_of(module)
        for _, only in pages:
            for name in only:
                find(module, name)
        named = Counter(name for _, only in pages for name in only or {"everything"})
        assert max(named.values()) == 1, module
        assert len(pages) == 1 or "everything" not in named, module


def test_every_page_is_in_the_overview() -> None:
    overview = (FOLDER / "index.md").read_text(encoding="utf-8")
    pages = {path.name for path in FOLDER.glob("*.md")} - {"index.md"}
    assert {page for page in pages if f"]({page}" not in overview} == set()


def test_what_a_docstring_lacks_is_found() -> None:
    code = "def f(a, *, b=1) -> int:\n    raise ValueError('no')\n"
    (function,) = ast.parse(code).body
    assert isinstance(function, ast.FunctionDef)
    assert problems(function, "Does.\n\nArgs:\n    a: One.\n") == [
        "argument b",
        "result int",
        "error ValueError",
    ]
    told = "Args:\n    a: One.\n    b: Two.\n\nReturns:\n    It.\n\nRaises:\n    ValueError: No."
    assert problems(function, told) == []
