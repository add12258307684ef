"""Generators in use: they write the self-edits, and experts are trained on the base model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from aios.app import generators as job_module
from aios.app.ab_tests.job import run_ab_test
from aios.app.composition import describe_strategy, recipe_for
from aios.app.edits.cache import warm_cache
from aios.app.edits.generate import generate_edits, preview_edits
from aios.app.edits.generation_plan import plan_generation
from aios.app.experts.training import train_expert
from aios.app.generators import attach_generator, describe_generator, writing_model
from aios.backends.scripted import ScriptedModel
from aios.core.config.schemas import Config
from aios.core.errors import AdapterMismatchError, RunInterrupted, StorageError, UsageError
from aios.core.events import Event, Notice
from aios.core.types import AdapterRef
from tests.generator_folders import scripted_generator
from tests.test_app.scripted_jobs import make_config, write_passages


@pytest.fixture
def adapter(tmp_path: Path) -> AdapterRef:
    return scripted_generator(tmp_path / "gen")


@pytest.fixture
def config(tmp_path: Path, adapter: AdapterRef) -> Config:
    return make_config(tmp_path, seal={"generator": adapter.path})


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_passages(tmp_path / "passages.jsonl", 6)


def notices(events: list[Event], level: str = "info") -> list[str]:
    return [e.message for e in events if isinstance(e, Notice) and e.level == level]


def rows(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def with_strategy(config: Config, strategy: str, **seal: Any) -> Config:
    changes = {"strategy": strategy, **seal}
    return config.model_copy(update={"seal": config.seal.model_copy(update=changes)})


# ------------------------------------------------------------ attaching


def test_the_adapter_is_on_the_model_in_the_block_and_off_it_after(
    config: Config, adapter: AdapterRef
) -> None:
    base = ScriptedModel()
    events: list[Event] = []
    with writing_model(config, base, emit=events.append) as writes:
        assert (writes.digest, writes.adapter_digest) == (base.digest, adapter.digest)
        assert isinstance(writes, ScriptedModel)
        assert writes.memory.times
    assert not writes.memory.times
    assert base.adapter_digest == ""
    assert notices(events) == [f"self-edits are written by the generator {adapter.path} (round 2)"]
    assert notices(events, "warning") == []


def test_without_a_generator_the_base_model_writes(tmp_path: Path) -> None:
    base, events = ScriptedModel(), list[Event]()
    with writing_model(make_config(tmp_path), base, emit=events.append) as writes:
        assert writes is base
    assert events == []


def test_other_prompts_than_those_it_was_trained_with_are_warned_of(
    config: Config, adapter: AdapterRef, tmp_path: Path
) -> None:
    file = tmp_path / "prompts.yaml"
    file.write_text("rewrite:\n  template: 'Say it otherwise: {passage}'\n", encoding="utf-8")
    events: list[Event] = []
    changed = with_strategy(config, "auto", prompts_file=file)
    attach_generator(changed, ScriptedModel(), adapter.path, emit=events.append)
    (warning,) = notices(events, "warning")
    assert "other prompts" in warning
    assert str(adapter.path) in warning


def test_a_generator_of_another_base_model_is_refused(config: Config, adapter: AdapterRef) -> None:
    with pytest.raises(AdapterMismatchError, match="another base model"):
        attach_generator(config, ScriptedModel(name="other"), adapter.path)


@pytest.mark.parametrize("job", ["generate", "preview", "plan", "warm", "expert", "ab-test"])
def test_a_folder_that_is_no_generator_is_refused_before_anything_is_done(
    job: str, tmp_path: Path, data: Path
) -> None:
    config = make_config(tmp_path, seal={"generator": tmp_path / "nothing"})
    jobs: dict[str, Any] = {
        "generate": lambda: generate_edits(config, data, tmp_path / "edits.jsonl"),
        "preview": lambda: preview_edits(config, data, 1),
        "plan": lambda: plan_generation(config, data),
        "warm": lambda: warm_cache(config, data),
        "expert": lambda: train_expert(config, "mills", data),
        "ab-test": lambda: run_ab_test(config, data),
    }
    with pytest.raises(UsageError, match="is not a generator"):
        jobs[job]()
    assert not config.paths.artifacts.exists()
    assert not (tmp_path / "edits.jsonl").exists()


def test_a_damaged_generator_is_refused_before_anything_is_done(
    config: Config, adapter: AdapterRef, data: Path, tmp_path: Path
) -> None:
    (adapter.path / "adapter_model.safetensors").write_bytes(b"?")
    with pytest.raises(StorageError, match="not the file"):
        generate_edits(config, data, tmp_path / "edits.jsonl")
    assert not config.paths.artifacts.exists()


# ------------------------------------------------------------ the strategy


def test_with_auto_the_strategy_is_the_largest_share_of_the_card(
    config: Config, adapter: AdapterRef
) -> None:
    recipe = recipe_for(with_strategy(config, "auto"), ScriptedModel())
    assert (recipe.strategy, recipe.num_edits_per_passage) == ("rewrite", 2)
    assert describe_strategy(recipe) == f"generator {adapter.path}"
    assert recipe.sources["seal.num_edits_per_passage"] == "user"


def test_without_a_number_of_edits_that_of_the_recipe_is_taken(config: Config) -> None:
    free = with_strategy(config, "auto", num_edits_per_passage=None)
    recipe = recipe_for(free, ScriptedModel())
    wanted = config.recipes["default"].num_edits_per_passage
    assert recipe.num_edits_per_passage == wanted
    assert recipe.lora == recipe_for(config, ScriptedModel()).lora


def test_a_strategy_that_the_user_has_chosen_is_kept(config: Config) -> None:
    recipe = recipe_for(config, ScriptedModel())
    assert recipe.strategy == "implications"
    assert describe_strategy(recipe) == "chosen by you"


# ------------------------------------------------------------ jobs


def test_generated_edits_are_the_generators(
    config: Config, adapter: AdapterRef, data: Path, tmp_path: Path
) -> None:
    base = ScriptedModel()
    output = tmp_path / "edits.jsonl"
    auto = with_strategy(config, "auto")
    report = generate_edits(auto, data, output, model=base)
    assert (report.strategy, report.strategy_source) == ("rewrite", f"generator {adapter.path}")
    assert {row["model"] for row in rows(output)} == {f"scripted+{adapter.digest[:12]}"}
    assert base.requests == []  # a model of its own has written
    again = generate_edits(auto, data, tmp_path / "again.jsonl", model=base)
    assert (again.generated, again.cached) == (0, report.generated)


def test_the_base_models_edits_are_not_taken_for_the_generators(
    config: Config, data: Path, tmp_path: Path
) -> None:
    plain = with_strategy(config, "implications", generator=None)
    first = generate_edits(plain, data, tmp_path / "a.jsonl")
    second = generate_edits(config, data, tmp_path / "b.jsonl")
    assert (second.cached, second.generated) == (0, first.generated)


def test_a_journal_of_the_base_model_is_not_gone_on_with(
    config: Config, data: Path, tmp_path: Path
) -> None:
    output = tmp_path / "edits.jsonl"
    plain = with_strategy(config, "implications", generator=None)
    asked = iter([False, False, True])
    with pytest.raises(RunInterrupted):
        generate_edits(plain, data, output, should_stop=lambda: next(asked, True))
    with pytest.raises(UsageError, match="adapter"):
        generate_edits(config, data, output, resume="always")


def test_preview_plan_and_cache_use_the_generator(
    config: Config, adapter: AdapterRef, data: Path
) -> None:
    warmed = warm_cache(config, data)
    assert plan_generation(config, data).cached == warmed.stored > 0
    without = with_strategy(config, "implications", generator=None)
    assert plan_generation(without, data).cached == 0
    auto = plan_generation(with_strategy(config, "auto"), data, probe=True)
    assert (auto.strategy, auto.strategy_source) == ("rewrite", f"generator {adapter.path}")
    assert auto.estimate is not None
    (shown,) = preview_edits(config, data, 1)
    assert {edit.model for edit in shown.kept} == {f"scripted+{adapter.digest[:12]}"}


def test_an_expert_is_trained_on_the_base_model_and_its_card_names_the_generator(
    config: Config, adapter: AdapterRef, data: Path
) -> None:
    base = ScriptedModel()
    report = train_expert(with_strategy(config, "auto"), "mills", data, model=base)
    assert report.result.adapter.base_digest == base.digest
    card = json.loads((report.folder / "expert.json").read_text())
    assert card["base_digest"] == base.digest
    assert card["generator"] == {
        "folder": str(adapter.path),
        "adapter_digest": adapter.digest,
        "round": 2,
        "created_at": "2026-01-02T03:04:05+00:00",
    }
    assert (card["strategy"], card["strategy_source"]) == ("rewrite", f"generator {adapter.path}")
    readme = (report.folder / "README.md").read_text(encoding="utf-8")
    assert f"| self-edits written by | generator `{adapter.digest[:12]}`, round 2 |" in readme


def test_an_expert_without_self_edits_needs_no_generator(
    tmp_path: Path, data: Path, config: Config
) -> None:
    missing = with_strategy(config, "auto", generator=tmp_path / "nothing")
    report = train_expert(missing, "mills", data, use_self_edits=False)
    card = json.loads((report.folder / "expert.json").read_text())
    assert card["generator"] is None
    without = train_expert(with_strategy(config, "rewrite", generator=None), "inns", data)
    assert json.loads((without.folder / "expert.json").read_text())["generator"] is None
    assert "written by" not in (without.folder / "README.md").read_text(encoding="utf-8")


def test_an_ab_test_names_the_generator_and_examines_the_base_model(
    config: Config, adapter: AdapterRef, data: Path
) -> None:
    base = ScriptedModel()
    report = run_ab_test(with_strategy(config, "auto"), data, model=base)
    info = report.metrics["info"]
    assert (info["generator"], info["generator_digest"]) == (str(adapter.path), adapter.digest)
    assert info["strategy_source"] == f"generator {adapter.path}"
    assert info["model_digest"] == base.digest
    assert adapter.digest[:12] in report.report_html.read_text(encoding="utf-8")
    plain = run_ab_test(with_strategy(config, "rewrite", generator=None), data, model=base)
    assert "generator" not in plain.metrics["info"]


def test_describing_reads_no_weights(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_module, "read_generator", None)
    known = describe_generator(config)
    assert known is not None
    assert known["round"] == 2
    assert describe_generator(with_strategy(config, "auto", generator=None)) is None


def test_two_generators_write_under_their_own_names(config: Config, tmp_path: Path) -> None:
    model = ScriptedModel(knows=("mill",))
    other = scripted_generator(tmp_path / "other", model)
    with pytest.raises(AdapterMismatchError):
        attach_generator(config, ScriptedModel(), other.path)
    attached, card = attach_generator(config, model, other.path)
    assert attached.adapter_digest == card.adapter_digest == other.digest
