"""``aios experts``: the commands on real registries, with the scripted model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aios.cli import interrupts
from aios.cli.aios import run
from aios.core.types import Expert
from aios.storage.experts import FileExpertStore
from tests.test_app.scripted_jobs import write_passages

Cli = Callable[..., tuple[int, str, str]]
ROOT = Path("artifacts") / "experts"
SETTINGS = {
    "MODEL__NAME": "scripted",
    "SEAL__STRATEGY": "implications",
    "SEAL__NUM_EDITS_PER_PASSAGE": "1",
    "SEAL__MIN_LENGTH": "5",
    "TRAINING__MAX_TOKENS": "200",
    "TRAINING__RANK": "2",
}


@pytest.fixture(autouse=True)
def _settings(monkeypatch: pytest.MonkeyPatch, quick_jobs: None) -> None:
    for name, value in SETTINGS.items():
        monkeypatch.setenv(f"AIOS_{name}", value)


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """Runs the program: exit code, stdout, stderr."""

    def call(*arguments: str) -> tuple[int, str, str]:
        code = run(arguments)
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


@pytest.fixture
def store() -> FileExpertStore:
    return FileExpertStore(ROOT, "scripted")


@pytest.fixture
def three(store: FileExpertStore) -> None:
    """A parent, an active child with a goal, and an inactive expert over another model."""
    store.save(Expert("places", "Places", category="Geography", model_architecture="scripted"))
    store.save(
        Expert(
            "mills",
            "The mills",
            category="buildings",
            goals=("Answer about mills",),
            model_architecture="scripted",
            performance_metrics={"validation_loss": 2.5},
            total_activations=1234,
        )
    )
    store.save(Expert("other", "Other", is_active=False, model_architecture="big"))
    store.set_parent("mills", "places")


def train(cli: Cli, *more: str, expert_id: str = "mills") -> dict[str, Any]:
    data = write_passages(Path("passages.jsonl"), 4)
    words = ["hrm-hf", "train-expert", "--expert-id", expert_id, "--dataset", str(data)]
    code, out, err = cli(*words, "--json", "--quiet", *more)
    assert code == 0, err
    report: dict[str, Any] = json.loads(out)
    return report


def ids(out: str) -> list[str]:
    return [one["expert_id"] for one in json.loads(out)["experts"]]


# ------------------------------------------------------------ list and show


def test_no_experts_are_listed_with_a_hint(cli: Cli) -> None:
    code, out, _ = cli("experts", "list")
    assert (code, out) == (0, "no experts: train one with `aios hrm-hf train-expert`\n")
    code, out, _ = cli("experts", "list", "--json")
    assert json.loads(out) == {"registry": str(ROOT / "registry.json"), "experts": []}
    assert cli("experts", "list", "--trash")[1] == "the trash is empty\n"
    assert not ROOT.exists()


@pytest.mark.parametrize(
    ("flags", "found"),
    [
        ("", ["places", "mills", "other"]),
        ("--active", ["places", "mills"]),
        ("--inactive", ["other"]),
        ("--category geography", ["places"]),
        ("--base-model BIG", ["other"]),
        ("--parent places", ["mills"]),
        ("--active --base-model big", []),
    ],
)
def test_experts_are_filtered(cli: Cli, three: None, flags: str, found: list[str]) -> None:
    code, out, _ = cli("experts", "list", "--json", *flags.split())
    assert (code, ids(out)) == (0, found)


def test_experts_are_filtered_by_a_goals_text_or_id(cli: Cli, three: None) -> None:
    assert ids(cli("experts", "list", "--json", "--goal", "answer about MILLS")[1]) == ["mills"]
    assert cli("goals", "add", "Answer about mills", "--id", "m")[0] == 0
    assert ids(cli("experts", "list", "--json", "--goal", "m")[1]) == ["mills"]
    assert cli("experts", "list", "--goal", "x")[1] == "no experts with these filters\n"


def test_the_table_shows_state_loss_and_answers(cli: Cli, three: None) -> None:
    lines = cli("experts", "list")[1].splitlines()
    assert lines[0].split() == "id name category state parent loss answers trained".split()
    assert lines[3].split() == "mills The mills buildings active places 2.500 1,234".split()
    assert "inactive" in lines[4]


def test_an_expert_is_shown_with_what_it_was_made_from(cli: Cli) -> None:
    train(cli, "--goal", "Answer about mills", "--description", "Knows mills.")
    code, out, _ = cli("experts", "show", "mills")
    assert code == 0
    for line in (
        "expert           mills (mills)\n",
        "description      Knows mills.\n",
        "goals            Answer about mills\n",
        "version          1\n",
        f"on               {Path('passages.jsonl').resolve()}\n",
        "self-edits       4 (implications)\n",
    ):
        assert line in out
    assert "Arn-mill" in out
    assert "passages.jsonl:1" in out
    document = json.loads(cli("experts", "show", "mills", "--documents", "--json")[1])
    assert document["documents"][0]["id"] == "Arn-mill"
    assert document["passages"] == 4
    assert "documents" not in json.loads(cli("experts", "show", "mills", "--json")[1])


def test_an_expert_of_another_program_is_shown_as_far_as_it_is_known(cli: Cli, three: None) -> None:
    out = cli("experts", "show", "other")[1]
    assert "its folder is gone" in out
    assert "not recorded which passages" in out


@pytest.mark.parametrize(
    "command",
    [
        *("show", "activate", "deactivate", "freeze", "unfreeze", "clear-parent", "versions"),
        *("rollback", "delete", "set-parent places", "delete --purge --yes", "forget --passage p"),
        *("export --output out", "edit --name x"),
    ],
)
def test_an_unknown_id_comes_with_the_closest_ones(cli: Cli, three: None, command: str) -> None:
    name, *more = command.split()
    code, out, err = cli("experts", name, "mill", *more)
    assert (code, out) == (2, "")
    assert err == "error: there is no expert 'mill'\n  → did you mean mills?\n"
    code, out, _ = cli("experts", name, "mill", *more, "--json")
    assert json.loads(out)["error"]["type"] == "UnknownExpertError"


# ------------------------------------------------------------ switches and trees


def test_switches_are_set_and_said(cli: Cli, three: None, store: FileExpertStore) -> None:
    for command, said, field, value in (
        ("deactivate", "mills is not active", "is_active", False),
        ("activate", "mills is active", "is_active", True),
        ("freeze", "mills is frozen", "is_frozen", True),
        ("unfreeze", "mills is not frozen", "is_frozen", False),
    ):
        assert cli("experts", command, "mills") == (0, f"{said}\n", "")
        assert getattr(store.require("mills"), field) is value
    out = cli("experts", "freeze", "mills", "--json")[1]
    assert json.loads(out)["is_frozen"] is True


def test_texts_of_an_expert_are_changed(cli: Cli, three: None, store: FileExpertStore) -> None:
    code, out, _ = cli("experts", "edit", "mills", "--description", "Mills and\x1b[2J weirs.")
    assert code == 0
    assert out.splitlines() == [
        "name         The mills",
        "description  Mills and�[2J weirs.",
        "category     buildings",
    ]
    assert store.require("mills").description == "Mills and\x1b[2J weirs."
    out = cli("experts", "edit", "mills", "--name", "", "--category", "places", "--json")[1]
    shown = json.loads(out)
    assert (shown["name"], shown["category"]) == ("mills", "places")
    assert store.require("mills").goals == ("Answer about mills",)
    for words, said in (
        ([], "there is nothing to change"),
        (["--name", "two\nlines"], "the name cannot be used"),
        (["--category", "x" * 101], "the category is too long"),
    ):
        code, out, err = cli("experts", "edit", "mills", *words)
        assert (code, out) == (2, "")
        assert said in err
    assert store.require("mills").name == "mills"


def test_parents_are_set_and_cleared(cli: Cli, three: None, store: FileExpertStore) -> None:
    assert cli("experts", "set-parent", "other", "mills")[1] == "other is below mills\n"
    assert store.require("mills").child_expert_ids == ("other",)
    code, _, err = cli("experts", "set-parent", "places", "other")
    assert (code, "cannot be the parent" in err) == (2, True)
    assert cli("experts", "clear-parent", "other")[1] == "other is a root\n"
    assert cli("experts", "set-parent", "other", "mill")[0] == 2


def test_a_frozen_expert_is_not_changed(cli: Cli, store: FileExpertStore) -> None:
    train(cli)
    train(cli, "--overwrite")
    assert cli("experts", "freeze", "mills")[0] == 0
    data = ["hrm-hf", "train-expert", "--expert-id", "mills", "--dataset", "passages.jsonl"]
    for words in (
        ["experts", "delete", "mills"],
        ["experts", "delete", "mills", "--purge", "--yes"],
        ["experts", "rollback", "mills"],
        ["experts", "clear-parent", "mills"],
        ["experts", "edit", "mills", "--name", "Mills"],
        ["experts", "forget", "mills", "--passage", "Arn-mill"],
        [*data, "--overwrite"],
    ):
        code, _, err = cli(*words)
        assert code == 2, words
        assert "is frozen and cannot be" in err
        assert "aios experts unfreeze mills" in err
    assert store.require("mills").is_frozen


# ------------------------------------------------------------ trash


def test_a_deleted_expert_is_restored(cli: Cli, store: FileExpertStore) -> None:
    train(cli)
    before = store.list()
    code, out, _ = cli("experts", "delete", "mills")
    assert (code, out.splitlines()[-1]) == (0, "aios experts restore mills")
    assert store.list() == ()
    assert "mills" in cli("experts", "list", "--trash")[1]
    (entry,) = json.loads(cli("experts", "list", "--trash", "--json")[1])["trash"]
    assert entry["expert"]["expert_id"] == "mills"
    assert cli("experts", "restore", "mills") == (0, "mills is back\n", "")
    assert store.list() == before
    assert (store.folder("mills") / "adapter_model.safetensors").is_file()
    code, _, err = cli("experts", "restore", "mills")
    assert code == 2
    assert "there is no expert 'mills' in the trash" in err


def test_purging_asks_and_is_for_good(cli: Cli, store: FileExpertStore, three: None) -> None:
    code, _, err = cli("experts", "delete", "mills", "--purge")
    assert code == 2
    assert "no terminal to ask" in err
    assert store.get("mills") is not None
    assert cli("experts", "delete", "mills")[0] == 0
    store.save(Expert("mills", "Again"))
    code, out, _ = cli("experts", "delete", "mills", "--purge", "--yes", "--json")
    assert code == 0
    assert len(json.loads(out)["purged"]) == 2
    assert store.get("mills") is None
    assert json.loads(cli("experts", "list", "--trash", "--json")[1])["trash"] == []
    assert cli("experts", "delete", "mills", "--purge", "--yes")[0] == 2


# ------------------------------------------------------------ versions


def test_versions_are_listed_and_rolled_back(cli: Cli) -> None:
    train(cli)
    train(cli, "--overwrite", "--rank", "3")
    lines = cli("experts", "versions", "mills")[1].splitlines()
    assert lines[2].split()[0] == "1"
    assert lines[3].endswith("training  in use")
    code, out, _ = cli("experts", "rollback", "mills")
    assert (code, out) == (0, "mills is version 1 again, as version 3\n")
    out = cli("experts", "versions", "mills", "--json")[1]
    found = json.loads(out)["versions"]
    assert [(one["number"], one["current"]) for one in found] == [
        (1, False),
        (2, False),
        (3, True),
    ]
    assert found[2]["rolled_back_to"] == 1
    assert "roll-back to 1" in cli("experts", "versions", "mills")[1]
    code, out, _ = cli("experts", "rollback", "mills", "--to", "2", "--json")
    assert json.loads(out)["version"]["number"] == 4
    code, _, err = cli("experts", "rollback", "mills", "--to", "9")
    assert code == 2
    assert "older versions: 1, 2, 3" in err


def test_forgetting_is_planned_and_done(cli: Cli) -> None:
    train(cli)
    words = ["experts", "forget", "mills", "--passage", "Bosk-mill"]
    code, out, _ = cli(*words, "--dry-run")
    assert code == 0
    for line in ("passages that stay  3\n", "self-edits of it    1\n", "dry run"):
        assert line in out
    assert json.loads(cli(*words, "--dry-run", "--json")[1])["passages_left"] == 3
    assert [one.number for one in _versions()] == [1]
    code, out, err = cli(*words, "--keep-versions")
    assert code == 0
    assert "train mills" in err
    assert "versions that hold it  1\n" in out
    assert f"- the data file {Path('passages.jsonl').resolve()}\n" in out
    code, out, _ = cli(*words, "--json", "--quiet")
    assert code == 0
    assert json.loads(out)["removed_versions"] == [1]
    assert json.loads(out)["training"] is None
    code, _, err = cli(*words)
    assert code == 2
    assert "was not trained on a passage 'Bosk-mill'" in err
    assert cli(*words, "--dry-run", "--resume")[0] == 2


def _versions() -> Any:
    from aios.storage.expert_versions import ExpertVersions

    return ExpertVersions(FileExpertStore(ROOT, "scripted")).list("mills")


def test_an_interrupted_forgetting_says_how_to_go_on(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(cli)
    with monkeypatch.context() as patch:
        patch.setattr(interrupts.StopRequest, "__call__", lambda self: True)
        code, _, err = cli("experts", "forget", "mills", "--passage", "Bosk-mill")
    assert code == 130
    line = "aios experts forget mills --passage Bosk-mill --resume"
    assert f"go on with: {line}\n" in err
    code, out, _ = cli(*line.split()[1:], "--quiet")
    assert code == 0
    assert "forgotten         Bosk-mill\n" in out


# ------------------------------------------------------------ create and export


def test_an_exported_expert_is_created_again(cli: Cli, store: FileExpertStore) -> None:
    train(cli)
    code, out, _ = cli("experts", "export", "mills", "--output", "out")
    assert code == 0
    assert f"written     {Path('out') / 'mills'}" in out
    words = ["experts", "create", "twin", "--from", "out/mills", "--category", "places"]
    code, out, _ = cli(*words, "--goal", "g", "--parent", "mills")
    assert code == 0
    assert "adapter     rank 2, 1 modules, 4 parameters\n" in out
    assert "note: nothing in the folder says by digest" in out
    twin = store.require("twin")
    assert (twin.category, twin.goals, twin.parent_expert_id) == ("places", ("g",), "mills")
    weights = "adapter_model.safetensors"
    one, two = (store.folder(name) / weights for name in ("mills", "twin"))
    assert one.read_bytes() == two.read_bytes()
    code, _, err = cli(*words)
    assert code == 2
    assert "exists already" in err
    code, out, _ = cli("experts", "create", "third", "--from", "out/mills", "--json")
    assert json.loads(out)["expert"]["expert_id"] == "third"


def test_export_refuses_what_does_not_go_together(cli: Cli) -> None:
    train(cli)
    words = ["experts", "export", "mills", "--output", "out"]
    for more, said in (
        (["--format", "merged"], "has no weights"),
        (["--format", "merged", "--base-name", "x"], "--base-name is for --format peft"),
        (["--converter", "."], "--converter is for --format gguf-lora"),
        (["--format", "gguf"], "'gguf' is not one of"),
    ):
        code, _, err = cli(*words, *more)
        assert code in (1, 2)
        assert said in err
    assert not Path("out", "mills").exists()
    assert json.loads(cli(*words, "--base-name", "served", "--json")[1])["base_model"] == "served"


def test_a_hostile_folder_is_a_usage_error(cli: Cli, store: FileExpertStore) -> None:
    train(cli)
    hostile = Path("hostile")
    shutil.copytree(store.folder("mills"), hostile)
    (hostile / "link").symlink_to("/etc/passwd")
    code, _, err = cli("experts", "create", "x", "--from", str(hostile))
    assert code == 2
    assert "is a symlink, which is not followed" in err
    assert cli("experts", "create", "x", "--from", "nowhere")[0] == 2


def test_names_that_steer_a_terminal_are_made_harmless(cli: Cli, store: FileExpertStore) -> None:
    store.save(Expert("evil", "\x1b[2J\x07 name", description="\x1b]0;t\x07", goals=("\x1b[31m",)))
    store.save(replace(store.require("evil"), category="\x1b[1m"))
    for words in (["list"], ["show", "evil"]):
        out = cli("experts", *words)[1]
        assert "\x1b" not in out
        assert "evil" in out


def test_a_corrupt_registry_is_an_error_of_two_lines(cli: Cli, three: None) -> None:
    (ROOT / "registry.json").write_text("{")
    code, out, err = cli("experts", "list")
    assert (code, out) == (1, "")
    assert "is corrupt" in err
    assert len(err.splitlines()) == 2
