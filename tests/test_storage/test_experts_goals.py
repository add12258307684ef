"""Goals: their file, and the texts that experts carry."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from aios.core.errors import StorageError, UnknownExpertError, UsageError
from aios.core.experts.registry import Goal
from aios.core.types import Expert
from aios.storage.expert_goals import GoalStore
from aios.storage.experts import FileExpertStore


@pytest.fixture
def store(tmp_path: Path) -> FileExpertStore:
    store = FileExpertStore(tmp_path / "experts", "tiny")
    store.save(Expert("mills", "Mills", goals=("Written by a training",)))
    return store


@pytest.fixture
def goals(store: FileExpertStore) -> GoalStore:
    return GoalStore(store)


def test_a_goal_gets_an_id_of_its_words(goals: GoalStore) -> None:
    goal = goals.add("  Answer questions\nabout mills & their   millers, wherever they stand ")
    assert goal.text == "Answer questions about mills & their millers, wherever they stand"
    assert goal.id == "answer-questions-about-mills-their"
    assert goal.created.endswith("+00:00")
    assert goals.add("Über").id == "ber"
    assert goals.add("何か").id == "goal"
    assert goals.add("何").id == "goal-2"
    assert [one.text for one in goals.list()][1:] == ["Über", "何か", "何"]
    assert goals.add("Named", "my.goal").id == "my.goal"


@pytest.mark.parametrize("text", ["", "  \n", "x" * 2001, "bell \x07"])
def test_a_text_that_is_no_goal_is_refused(goals: GoalStore, text: str) -> None:
    with pytest.raises(UsageError, match="cannot be a goal"):
        goals.add(text)
    assert not goals.path.exists()


def test_a_goal_is_added_once(goals: GoalStore) -> None:
    goals.add("Mend roofs", "roofs")
    for text, goal_id in (("mend ROOFS", None), ("Other", "roofs")):
        with pytest.raises(UsageError, match="there is a goal 'roofs' already"):
            goals.add(text, goal_id)
    with pytest.raises(UsageError, match="not a valid goal id"):
        goals.add("Other", "../x")


def test_a_linked_expert_carries_the_text(store: FileExpertStore, goals: GoalStore) -> None:
    goals.add("Mend roofs", "roofs")
    for wanted in ("roofs", "mend  roofs", "roofs"):
        goals.link(wanted, "mills")
    registry = json.loads((store.root / "registry.json").read_text())
    assert registry["experts"][0]["goals"] == ["Written by a training", "Mend roofs"]
    found = goals.of_expert("mills")
    assert [(one.id, one.text) for one in found] == [
        ("", "Written by a training"),
        ("roofs", "Mend roofs"),
    ]
    assert goals.unlink("roofs", "mills").goals == ("Written by a training",)
    assert goals.unlink("written by a training", "mills").goals == ()
    with pytest.raises(UsageError, match="does not serve"):
        goals.unlink("roofs", "mills")


def test_removing_a_goal_takes_it_from_the_experts(
    store: FileExpertStore, goals: GoalStore
) -> None:
    store.save(Expert("ports", "Ports"))
    goals.add("Mend roofs", "roofs")
    goals.add("Dry walls", "walls")
    goals.link("roofs", "mills")
    goals.link("walls", "ports")
    removed, served = goals.remove("roofs")
    assert (removed.text, served) == ("Mend roofs", ("mills",))
    assert [one.id for one in goals.list()] == ["walls"]
    assert store.require("mills").goals == ("Written by a training",)
    assert store.require("ports").goals == ("Dry walls",)


def test_unknown_goals_and_experts_come_with_the_closest_ones(goals: GoalStore) -> None:
    goals.add("Mend roofs", "roofs")
    for call in (lambda: goals.get("roof"), lambda: goals.remove("roof")):
        with pytest.raises(UsageError, match="there is no goal 'roof'") as caught:
            call()
        assert caught.value.remedy == "did you mean roofs?"
    with pytest.raises(UnknownExpertError):
        goals.link("roofs", "mill")


def test_keys_that_we_do_not_know_survive(goals: GoalStore) -> None:
    goals.path.parent.mkdir(exist_ok=True)
    goal = {"id": "a", "text": "A", "owner": "someone"}
    goals.path.write_text(json.dumps({"goals": [goal], "theirs": 1}))
    goals.add("B")
    goals.remove("b")
    assert json.loads(goals.path.read_text()) == {"goals": [goal], "theirs": 1}
    assert goals.list() == (Goal("a", "A"),)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"goals": {}}',
        '{"goals": [1]}',
        '{"goals": [{"id": "a"}]}',
        '{"goals": [{"id": "a", "text": "A"}, {"id": "a", "text": "B"}]}',
    ],
)
def test_a_corrupt_file_is_refused_and_never_overwritten(goals: GoalStore, text: str) -> None:
    goals.path.write_text(text)
    for call in (goals.list, lambda: goals.add("A")):
        with pytest.raises(StorageError, match="is corrupt"):
            call()
    assert goals.path.read_text() == text


_ADDER = """
import sys
from pathlib import Path
from aios.storage.expert_goals import GoalStore
from aios.storage.experts import FileExpertStore
goals = GoalStore(FileExpertStore(Path(sys.argv[1]), "tiny"))
for number in range(15):
    goals.link(goals.add(f"{sys.argv[2]} {number}").id, "mills")
"""


def test_two_processes_at_once_lose_nothing(store: FileExpertStore, goals: GoalStore) -> None:
    command = [sys.executable, "-c", _ADDER, str(store.root)]
    processes = [subprocess.Popen([*command, name]) for name in "ab"]
    assert [process.wait(60) for process in processes] == [0, 0]
    assert len(goals.list()) == 30
    assert len(store.require("mills").goals) == 31
