"""Strategies of other packages: the example in `examples/`, and packages with faults of all kinds.

A package counts as installed when its files and its ``dist-info`` folder lie in a folder of
`sys.path`; that is what these tests make, and what pip makes where it is run for real.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from aios.app.machine.doctor import run_doctor
from aios.backends.scripted import ScriptedModel
from aios.cli.aios import run
from aios.core.config.loader import load_config
from aios.core.errors import UsageError
from aios.core.seal.self_edit_generator import SelfEditGenerator
from aios.core.seal.strategies import RewriteStrategy, get_strategy, known_strategies
from aios.core.types import Passage

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = ROOT / "examples" / "strategy-plugin"
Capture = pytest.CaptureFixture[str]
Install = Callable[..., None]

GLOSSARY_PASSAGES = """\
Sluice keeper: the person who opens the gates of the Orrin Canal when the water is high. \
Lighter: a barge of the Orrin Canal that carries grain and is drawn by horses. \
Lock bell: a bell that is rung twice before a lock is emptied. \
Ice boat: a heavy boat with an iron bow that keeps the water open in winter.

Gable crane: a crane under the roof of a warehouse in Orr that lifts sacks from the barges. \
Toll board: a painted board beside each bridge of Orr that lists what a barge must pay. \
Tally clerk: the clerk who counts the sacks and signs for them. \
Mill race: the narrow channel that leads the water to the wheel of a mill.
"""
FAULTY = '''
from aios import SelfEditStrategy

class Complete(SelfEditStrategy):
    """Takes the sentences of the passage."""

    def prompt_text(self, model, passage):
        return f"Passage: {passage.text}"

    def parse_output(self, completion, passage, *, finish_reason=None):
        return [line.partition(". ")[2] for line in completion.splitlines()]

class Unfinished(SelfEditStrategy):
    pass

class OtherSignature(Complete):
    def __init__(self):
        super().__init__("mine")

class NoStrategy:
    def __init__(self, name, prompts):
        pass

class Fussy(Complete):
    def parse_output(self, completion, passage, *, finish_reason=None):
        if "Orrin" in passage.text:
            raise KeyError("no such heading")
        return super().parse_output(completion, passage)
'''


@pytest.fixture
def install(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Install]:
    """Puts a package beside the installed ones: ``install(NAME, entry points, its modules)``."""
    before = set(sys.modules)

    def add(package: str, entry_points: dict[str, str], *modules: Path) -> None:
        target = tmp_path_factory.mktemp("site")
        for module in modules:
            copy = shutil.copytree if module.is_dir() else shutil.copy
            copy(module, target / module.name)
        info = target / f"{package.replace('-', '_')}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.2\n")
        lines = [f"{name} = {value}" for name, value in entry_points.items()]
        (info / "entry_points.txt").write_text("\n".join(["[aios.strategies]", *lines, ""]))
        monkeypatch.syspath_prepend(str(target))

    yield add
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in ("aios_example_strategy", "faulty_strategies"):
            del sys.modules[name]


@pytest.fixture
def glossary(install: Install) -> None:
    """The example package."""
    source = EXAMPLE / "src" / "aios_example_strategy"
    install("aios-example-strategy", {"glossary": "aios_example_strategy:GlossaryStrategy"}, source)


@pytest.fixture
def faulty(install: Install, tmp_path: Path) -> None:
    """A package whose strategies are broken, each in its way."""
    module = tmp_path / "faulty_strategies.py"
    module.write_text(FAULTY, encoding="utf-8")
    entry_points = {
        "absent": "no_such_module:Strategy",
        "gone": "faulty_strategies:Gone",
        "unfinished": "faulty_strategies:Unfinished",
        "other-signature": "faulty_strategies:OtherSignature",
        "no-strategy": "faulty_strategies:NoStrategy",
        "rewrite": "faulty_strategies:Complete",
        "complete": "faulty_strategies:Complete",
        "fussy": "faulty_strategies:Fussy",
    }
    install("faulty-strategies", entry_points, module)


@pytest.fixture
def passages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "passages.txt"
    path.write_text(GLOSSARY_PASSAGES, encoding="utf-8")
    return path


# --- the example


@pytest.mark.usefixtures("glossary")
def test_the_example_is_found_by_its_name() -> None:
    assert "glossary" in known_strategies()
    strategy = get_strategy("glossary")
    assert type(strategy).__module__ == "aios_example_strategy"
    assert strategy.name == "glossary"


@pytest.mark.usefixtures("glossary")
def test_the_example_is_previewed_by_the_program(passages: Path, capsys: Capture) -> None:
    line = ["seal", "preview", "--input", str(passages), "--model", "scripted", "--quiet"]
    assert run([*line, "--strategy", "glossary", "--num-edits", "1"]) == 0
    shown = capsys.readouterr().out
    assert "kept, glossary #0:" in shown
    assert "• Sluice keeper: the person who opens the gates of the Orrin Canal" in shown


@pytest.mark.usefixtures("glossary")
def test_the_example_writes_a_file_alone_and_in_a_mix(passages: Path, capsys: Capture) -> None:
    line = ["seal", "generate", "--input", str(passages), "--model", "scripted", "--quiet"]
    assert run([*line, "--output", "a.jsonl", "--strategy", "glossary:1"]) == 0
    assert run([*line, "--output", "b.jsonl", "--strategy", "cloze:1,glossary:1"]) == 0
    capsys.readouterr()
    alone, mixed = (
        [json.loads(row) for row in Path(name).read_text(encoding="utf-8").splitlines()]
        for name in ("a.jsonl", "b.jsonl")
    )
    assert [row["strategy"] for row in alone] == ["glossary"] * 2
    assert {row["strategy"] for row in mixed} == {"cloze", "glossary"}
    of_part = [row for row in mixed if row["strategy"] == "glossary"]
    assert [row["items"] for row in of_part] == [row["items"] for row in alone]
    assert [row["edit"] for row in of_part] == [1, 1]


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("hatchling") is None, reason="pip needs hatchling")
def test_the_example_is_installed_by_pip_and_passes_its_own_tests(tmp_path: Path) -> None:
    shutil.copytree(EXAMPLE, tmp_path / "package", ignore=shutil.ignore_patterns("__pycache__"))
    offline = "--no-deps --no-build-isolation --no-index --disable-pip-version-check".split()
    target = tmp_path / "target"
    install = ["install", "--quiet", *offline, "--target", str(target), str(tmp_path / "package")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(target), str(ROOT / "src")])}
    for arguments in (["pip", *install], ["pytest", "-q", str(tmp_path / "package")]):
        done = subprocess.run(
            [sys.executable, "-m", *arguments],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    (dist,) = importlib.metadata.distributions(name="aios-example-strategy", path=[str(target)])
    (entry_point,) = dist.entry_points
    assert (entry_point.group, entry_point.name) == ("aios.strategies", "glossary")
    assert entry_point.value == "aios_example_strategy:GlossaryStrategy"


# --- packages with faults


@pytest.mark.usefixtures("faulty")
@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("absent", "no_such_module"),
        ("gone", "faulty_strategies:Gone"),
        ("unfinished", "abstract"),
        ("other-signature", "TypeError"),
        ("no-strategy", "not a SelfEditStrategy"),
    ],
)
def test_a_plug_in_that_cannot_be_loaded_is_named(name: str, fault: str) -> None:
    with pytest.raises(UsageError) as caught:
        get_strategy(name)
    assert f"the strategy {name!r} of " in caught.value.message
    assert fault in caught.value.message
    assert "package" in caught.value.remedy


@pytest.mark.usefixtures("faulty")
def test_the_program_ends_before_any_work_when_a_plug_in_cannot_be_loaded(
    passages: Path, capsys: Capture
) -> None:
    line = ["seal", "generate", "--input", str(passages), "--output", "o.jsonl"]
    assert run([*line, "--model", "scripted", "--strategy", "cloze:1,absent:1"]) == 2
    assert "error: the strategy 'absent' of " in capsys.readouterr().err
    assert not Path("o.jsonl").exists()


@pytest.mark.usefixtures("faulty")
def test_a_plug_in_cannot_take_the_name_of_a_built_in_strategy(
    passages: Path, capsys: Capture
) -> None:
    assert type(get_strategy("rewrite")) is RewriteStrategy
    assert run(["seal", "strategies", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["strategies"]
    used, hidden = (row for row in rows if row["name"] == "rewrite")
    assert (used["source"], used["problem"]) == ("built in", "")
    assert hidden["source"] == "package faulty-strategies 1.2"
    assert hidden["problem"] == "not used: built in has this name already"


@pytest.mark.usefixtures("faulty")
def test_the_list_names_the_package_of_each_strategy_and_what_is_wrong(capsys: Capture) -> None:
    assert run(["seal", "strategies", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["strategies"]}
    assert rows["complete"]["source"] == "package faulty-strategies 1.2"
    assert rows["complete"]["description"] == "Takes the sentences of the passage."
    for name in ("absent", "gone", "unfinished", "other-signature", "no-strategy"):
        assert rows[name]["source"] == "package faulty-strategies 1.2"
        assert rows[name]["problem"]
    assert run(["seal", "strategies"]) == 0
    shown = capsys.readouterr().out
    assert "cannot be used: gone (package faulty-strategies 1.2): " in shown
    assert shown.count("complete ") == 1


@pytest.mark.usefixtures("faulty")
def test_the_doctor_warns_of_broken_plug_ins() -> None:
    facts = {"version": "2.4", "cuda": [], "mps": False, "threads": 1}
    checks = {c.name: c for c in run_doctor(load_config(env={}).config, probe=lambda: facts)}
    assert checks["strategies"].status == "warning"
    assert "absent (package faulty-strategies 1.2): " in checks["strategies"].detail


@pytest.mark.usefixtures("faulty")
def test_a_parser_that_raises_fails_its_passage_and_no_other() -> None:
    passages = [Passage.make(text, id=f"p{n}") for n, text in enumerate(texts())]
    generator = SelfEditGenerator(ScriptedModel(), strategy="fussy:1,cloze:1")
    first, second = generator.generate(passages)
    assert first.failure is not None
    assert (first.failure.boundary, first.failure.subject) == ("parse", "p0")
    assert "'fussy'" in first.failure.error
    assert "faulty_strategies" in first.failure.error
    assert "no such heading" in first.failure.error
    assert [edit.strategy for edit in first.kept] == ["cloze"]
    assert second.failure is None
    assert {edit.strategy for edit in second.kept} == {"fussy", "cloze"}


def texts() -> list[str]:
    return [text.strip() for text in GLOSSARY_PASSAGES.split("\n\n")]
