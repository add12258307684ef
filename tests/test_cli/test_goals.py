"""``aios goals``, on real files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from aios.cli.aios import run
from aios.core.types import Expert
from aios.storage.experts import FileExpertStore

Cli = Callable[..., tuple[int, str, str]]
ROOT = Path("artifacts") / "experts"


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """Runs ``aios goals``: exit code, stdout, stderr."""

    def call(*arguments: str) -> tuple[int, str, str]:
        code = run(["goals", *arguments])
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


@pytest.fixture(autouse=True)
def store(quick_disk: None) -> FileExpertStore:
    store = FileExpertStore(ROOT, "scripted")
    store.save(Expert("mills", "Mills", goals=("From a training",)))
    store.save(Expert("ports", "Ports"))
    return store


def test_goals_are_added_and_listed(cli: Cli) -> None:
    assert cli("list")[1] == 'no goals: add one with `aios goals add "TEXT"`\n'
    assert cli("add", "Answer about tides") == (
        0,
        "answer-about-tides: Answer about tides\n",
        "",
    )
    code, out, _ = cli("add", "Mend", "roofs", "--id", "roofs", "--json")
    goal = json.loads(out)
    assert (code, goal["id"], goal["text"]) == (0, "roofs", "Mend roofs")
    assert cli("link-expert", "roofs", "mills")[1] == "mills serves: From a training; Mend roofs\n"
    assert cli("link-expert", "roofs", "ports", "--json")[0] == 0
    assert "Mend roofs          mills, ports" in cli("list")[1]
    listed = json.loads(cli("list", "--json")[1])["goals"]
    assert [(one["id"], one["experts"]) for one in listed] == [
        ("answer-about-tides", []),
        ("roofs", ["mills", "ports"]),
    ]


def test_goals_of_an_expert_are_listed(cli: Cli) -> None:
    cli("add", "Mend roofs", "--id", "roofs")
    cli("link-expert", "roofs", "mills")
    out = cli("list-for-expert", "mills")[1]
    assert [line.strip() for line in out.splitlines()[2:]] == [
        "From a training",
        "roofs  Mend roofs",
    ]
    found = json.loads(cli("list-for-expert", "mills", "--json")[1])["goals"]
    assert [(one["id"], one["text"]) for one in found] == [
        ("", "From a training"),
        ("roofs", "Mend roofs"),
    ]
    assert cli("list-for-expert", "ports")[1] == "ports serves no goal\n"


def test_goals_are_unlinked_and_removed(cli: Cli, store: FileExpertStore) -> None:
    cli("add", "Mend roofs", "--id", "roofs")
    for name in ("mills", "ports"):
        cli("link-expert", "Mend roofs", name)
    assert cli("unlink-expert", "roofs", "ports")[1] == "ports serves: no goal\n"
    assert cli("remove", "roofs") == (0, "roofs is removed; it was taken from mills\n", "")
    assert store.require("mills").goals == ("From a training",)
    cli("add", "Mend roofs", "--id", "roofs")
    assert json.loads(cli("remove", "roofs", "--json")[1])["unlinked_experts"] == []


@pytest.mark.parametrize(
    ("words", "message", "remedy"),
    [
        ("remove roof", "there is no goal 'roof'", "did you mean roofs?"),
        ("link-expert roof mills", "there is no goal 'roof'", "did you mean roofs?"),
        ("link-expert roofs mill", "there is no expert 'mill'", "did you mean mills?"),
        ("list-for-expert mill", "there is no expert 'mill'", "did you mean mills?"),
        ("unlink-expert roofs mills", "does not serve the goal 'roofs'", "list-for-expert mills"),
        ("add roofs --id roofs", "there is a goal 'roofs' already", "use that one"),
        ("add roofs --id ../x", "not a valid goal id", "Use letters"),
    ],
)
def test_mistakes_are_wrong_usage(cli: Cli, words: str, message: str, remedy: str) -> None:
    cli("add", "Mend roofs", "--id", "roofs")
    code, out, err = cli(*words.split())
    assert (code, out) == (2, "")
    first, second = err.splitlines()
    assert message in first
    assert remedy in second
