"""``aios hrm-hf``, ``models``, ``config`` and ``doctor``."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from aios.cli.aios import run
from aios.cli.options import Common, load
from aios.core.errors import ConfigError
from aios.core.events import Evaluated

Capture = pytest.CaptureFixture[str]


def train(passages: Path, *more: str) -> list[str]:
    return ["hrm-hf", "train-expert", "--expert-id", "e1", "--dataset", str(passages), *more]


def test_train_expert_passes_everything(app: Any, passages: Path) -> None:
    words = ["--name", "Harbour master", "--description", "d", "--category", "c"]
    flags = "--goal g1 --goal g2 --seal-strategy rewrite --num-edits 3 --epochs 2 --rank 8"
    more = "--learning-rate 0.002 --alpha 16 --batch-size 4 --validation-split 0.5 --overwrite"
    assert run(train(passages, *words, *flags.split(), *more.split())) == 0
    name, args, kwargs = app.calls[-1]
    assert name == "train_expert"
    assert args[1:] == ("e1", passages)
    training, seal = app.config.training, app.config.seal
    assert (training.epochs, training.rank, training.alpha) == (2, 8, 16)
    assert (training.learning_rate, training.batch_size) == (0.002, 4)
    assert training.validation_fraction == 0.5
    assert (seal.strategy, seal.num_edits_per_passage) == ("rewrite", 3)
    assert kwargs["name"] == "Harbour master"
    assert (kwargs["description"], kwargs["category"]) == ("d", "c")
    assert kwargs["goals"] == ("g1", "g2")
    assert (kwargs["use_self_edits"], kwargs["overwrite"], kwargs["resume"]) == (True, True, False)


@pytest.mark.parametrize("off", [["--no-seal"], ["--set", "seal.enabled=false"]])
def test_self_edits_can_be_turned_off(off: list[str], app: Any, passages: Path) -> None:
    assert run(train(passages, *off)) == 0
    assert app.kwargs["use_self_edits"] is False


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--overwrite", "--resume"], "--overwrite and --resume contradict"),
        (["--no-seal", "--seal-strategy", "rewrite"], "--seal-strategy cannot be used with"),
        (["--no-seal", "--num-edits", "2"], "--num-edits cannot be used with --no-seal"),
        (["--no-seal", "--seal-generator", "g"], "--seal-generator cannot be used with --no-seal"),
        (["--no-seal", "--restem"], "--restem cannot be used with --no-seal"),
        (["--restem", "--seal-generator", "g"], "--restem and --seal-generator contradict"),
    ],
)
def test_contradicting_flags_are_wrong_usage(
    flags: list[str], said: str, app: Any, passages: Path, capsys: Capture
) -> None:
    assert run(train(passages, *flags)) == 2
    assert said in capsys.readouterr().err
    assert app.calls == []


def test_train_expert_reports_losses_statistics_and_places(
    app: Any, passages: Path, capsys: Capture, tmp_path: Path
) -> None:
    assert run(train(passages)) == 0
    out = capsys.readouterr().out
    assert "e1 (Harbours)" in out
    assert "4.000 before, 3.000 at best (-25.0 %)" in out
    assert "original, tokens    321\n" in out
    assert "growth              2.500\n" in out
    assert f"expert folder       {tmp_path / 'experts' / 'e1'}\n" in out
    assert out.endswith("note: two passages were split\n")
    assert run(train(passages, "--json")) == 0
    assert json.loads(capsys.readouterr().out)["result"]["best"]["validation_loss"] == 3.0


def test_seal_verbose_shows_the_curve(app: Any, passages: Path, capsys: Capture) -> None:
    app.during = lambda kwargs: kwargs["emit"](Evaluated("e1", 5, 1.0, 99, 3.0, 3.5, 1.0))
    assert run(train(passages, "--seal-verbose")) == 0
    assert "e1: step 5, epoch 1.00, 99 tokens, train 3.000, validation 3.500" in (
        capsys.readouterr().err
    )


def test_train_expert_dry_run_shows_recipe_and_plan(
    app: Any, passages: Path, capsys: Capture
) -> None:
    assert run(train(passages, "--dry-run", "--rank", "4")) == 0
    out = capsys.readouterr().out
    assert "rank 4," in out
    assert "to be generated" in out
    assert run(train(passages, "--dry-run", "--no-seal")) == 0
    assert "to be generated" not in capsys.readouterr().out
    assert run(train(passages, "--dry-run", "--json")) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["generation"]["candidates"] == 20
    assert document["estimate"]["basis"] == "3 earlier runs here"
    assert document["work"]["trainings"] == 2
    assert [kwargs["use_self_edits"] for _, _, kwargs in app.calls] == [True, False, True]
    assert {name for name, *_ in app.calls} == {"plan_expert"}


def test_train_expert_optimises_the_generator_on_request(
    app: Any, passages: Path, capsys: Capture
) -> None:
    assert run(train(passages)) == 0
    assert not app.kwargs["restem"]
    app.results["train_expert"] = replace(
        app.results["train_expert"],
        restem={"run": "runs/restem-1", "generator": "runs/restem-1/generator"},
    )
    assert run(train(passages, "--restem")) == 0
    assert app.kwargs["restem"]
    out = capsys.readouterr().out
    assert "ReST-EM run         runs/restem-1\n" in out
    assert "generator           runs/restem-1/generator\n" in out


@pytest.mark.parametrize("more", [["--restem"], ["--set", "seal.enable_rl_optimization=true"]])
def test_train_expert_dry_run_counts_what_restem_would_do(
    more: list[str], app: Any, passages: Path, capsys: Capture
) -> None:
    assert run(train(passages, "--dry-run", *more)) == 0
    out = capsys.readouterr().out
    assert "at most 2 rounds of 4 passages, 20 candidates, 43 trials" in out
    assert "ReST-EM comes before that: aios seal restem estimate" in out
    assert run(train(passages, "--dry-run", "--json", *more)) == 0
    assert json.loads(capsys.readouterr().out)["restem"]["rounds"] == 2
    if more == ["--restem"]:
        return
    assert run(train(passages, "--dry-run", "--no-seal", *more)) == 0
    assert "ReST-EM" not in capsys.readouterr().out


def test_train_expert_dry_run_names_the_strategy_of_the_generator(
    app: Any, passages: Path, capsys: Capture
) -> None:
    plan = app.results["plan_expert"]
    generation = replace(plan.generation, strategy="rewrite", strategy_source="generator gen")
    app.results["plan_expert"] = replace(plan, generation=generation)
    assert run(train(passages, "--dry-run", "--json", "--seal-generator", "gen")) == 0
    document = json.loads(capsys.readouterr().out)
    assert app.config.seal.generator == Path("gen")
    assert (document["recipe"]["strategy"], document["recipe"]["num_edits_per_passage"]) == (
        "rewrite",
        5,
    )
    assert document["recipe"]["sources"]["seal.strategy"] == "generator gen"


def test_models_list_says_what_is_here(app: Any, capsys: Capture) -> None:
    assert run(["models", "list"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert any(row.startswith("small") and "yes" in row and "269.0 MB" in row for row in rows)
    assert any(row.startswith("large") and "no" in row and "135 M" in row for row in rows)
    assert run(["models", "list", "--json"]) == 0
    models = json.loads(capsys.readouterr().out)["models"]
    assert [model["name"] for model in models] == ["small", "large"]


def test_models_pull_takes_the_config_s_model_by_default(app: Any, capsys: Capture) -> None:
    assert run(["models", "pull"]) == 0
    assert app.calls[-1][1][1] == app.config.model.name
    assert run(["models", "pull", "large"]) == 0
    assert app.calls[-1][1][1] == "large"
    assert "folder" in capsys.readouterr().out


def test_models_show_tells_how_to_get_a_missing_one(app: Any, capsys: Capture) -> None:
    assert run(["models", "show", "large"]) == 0
    assert "no; aios models pull large" in capsys.readouterr().out
    assert run(["models", "show", "large", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["installed"] is False


def test_config_show_is_a_config_file_that_loads_to_the_same(
    tmp_path: Path, capsys: Capture
) -> None:
    sets = ["--set", "seal.domain=a: #b", "--set", "training.rank=7"]
    assert run(["config", "show", *sets]) == 0
    out = capsys.readouterr().out
    file = tmp_path / "saved.yaml"
    file.write_text(out, encoding="utf-8")
    expected = load(Common(overrides=("seal.domain=a: #b", "training.rank=7"))).config
    assert load(Common(config_file=file)).config == expected


def test_config_show_tells_sources_and_what_the_recipe_gives(capsys: Capture) -> None:
    assert run(["config", "show", "training", "--set", "training.rank=7"]) == 0
    out = capsys.readouterr().out
    assert "rank: 7  # --set\n" in out
    assert "alpha: null  # default; in force: 64, from recipe " in out
    assert yaml.safe_load(out)["rank"] == 7


def test_config_show_of_one_key_is_its_value(capsys: Capture) -> None:
    assert run(["config", "show", "seal.temperature"]) == 0
    assert capsys.readouterr().out == "1.0  # default\n"
    assert run(["config", "show", "seal.temperature", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document == {"value": 1.0, "sources": {"seal.temperature": "default"}}


def test_an_unknown_key_gets_the_close_one(capsys: Capture) -> None:
    for command in ("show", "explain"):
        assert run(["config", command, "seal.temprature"]) == 2
        assert "did you mean seal.temperature?" in capsys.readouterr().err


def test_config_explain_a_key(capsys: Capture) -> None:
    assert run(["config", "explain", "seal.temperature", "--set", "seal.temperature=0.7"]) == 0
    out = capsys.readouterr().out
    for line in ("value    0.7", "source   --set", "allowed  number from 0.1 to 2"):
        assert line in out
    assert "default  1.0" in out
    assert "Softmax temperature" in out


def test_config_explain_names_the_recipe_behind_auto(capsys: Capture) -> None:
    strategy = load(Common()).config.recipes["smollm2-135m-instruct"].strategy
    assert run(["config", "explain", "seal.strategy"]) == 0
    assert f"auto, which is {strategy} by recipe smollm2" in capsys.readouterr().out
    assert run(["config", "explain", "seal.strategy", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["value"], document["in_force"]) == ("auto", strategy)


def test_config_explain_a_section_lists_its_keys(capsys: Capture) -> None:
    assert run(["config", "explain", "seal"]) == 0
    out = capsys.readouterr().out
    assert "How self-edits are made" in out
    assert "seal.temperature" in out


def test_config_schema_is_json(capsys: Capture) -> None:
    assert run(["config", "schema"]) == 0
    assert "seal" in json.loads(capsys.readouterr().out)["properties"]


def test_doctor_is_ready_where_nothing_fails(app: Any, capsys: Capture) -> None:
    from aios.app.machine.doctor import Check

    app.results["run_doctor"] = [
        Check("python", "ok", "3.11"),
        Check("gpu", "missing", "no GPU", "training runs on the CPU"),
        Check("memory", "warning", "3 GB free", "close other programs"),
    ]
    assert run(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "→ training runs on the CPU" in out
    assert out.endswith("\nready\n")


def test_doctor_fails_where_something_needed_fails(app: Any, capsys: Capture) -> None:
    from aios.app.machine.doctor import Check

    app.results["run_doctor"] = [Check("disk", "error", "read-only", "mount it writable")]
    assert run(["doctor"]) == 1
    assert "failed: disk" in capsys.readouterr().out
    assert run(["doctor", "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["ok"] is False
    assert document["checks"][0]["remedy"] == "mount it writable"


def test_doctor_looks_at_the_rest_in_spite_of_a_bad_config(app: Any, capsys: Capture) -> None:
    assert run(["doctor", "--set", "seal.temperature=9", "--json"]) == 2
    document = json.loads(capsys.readouterr().out)
    assert [(c["name"], c["status"]) for c in document["checks"]] == [
        ("config", "error"),
        ("python", "ok"),
    ]
    assert "seal.temperature" in document["checks"][0]["detail"]


def test_doctor_s_own_config_errors_are_not_swallowed_twice(app: Any, capsys: Capture) -> None:
    def during(kwargs: dict[str, Any]) -> None:
        raise ConfigError("broken inside")

    app.during = during
    assert run(["doctor"]) == 2
    assert "broken inside" in capsys.readouterr().err
