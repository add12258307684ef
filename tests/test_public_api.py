"""What a program may import from ``aios``: the list that the API documentation describes."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import aios

PUBLIC = """
    AIOSError AccuracyReward AutoTrainingOrchestrator Config Passage PerplexityReward
    PromptBuilder Question ReSTEMOptimizer SelfEdit SelfEditGenerator SelfEditStrategy TTTTrainer
    TestTimeAdaptation TorchLM ValidationLossReward create_expert export_expert forget
    generate_edits get_strategy list_experts load_config load_model open_assistant open_executor
    optimize_generator race read_passages run_ab_test train_expert
""".split()
HEAVY = {"torch", "transformers", "peft", "numpy", "pydantic", "yaml", "click", "rich"}


def modules_after(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter has loaded after some code."""
    shown = f"{code}\nimport json, sys\njson.dump([m for m in sys.modules], sys.stdout)"
    done = subprocess.run([sys.executable, "-c", shown], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in json.loads(done.stdout)}


def test_the_public_names_are_the_documented_ones() -> None:
    assert aios.__all__ == ["__version__", *PUBLIC]
    assert dir(aios) == sorted(aios.__all__)


@pytest.mark.parametrize("name", [name for name in PUBLIC if name != "TorchLM"])
def test_every_public_name_can_be_imported(name: str) -> None:
    value = getattr(aios, name)
    assert value is getattr(sys.modules[aios._EXPORTS[name]], name)
    assert value.__doc__
    assert vars(aios)[name] is value  # found at once the next time


@pytest.mark.slow
def test_the_model_class_can_be_imported() -> None:
    assert "torch" in modules_after("from aios import TorchLM; TorchLM.load")


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse(Path(aios.__file__).read_text(encoding="utf-8"))
    imported = {
        alias.asname: f"{node.module}:{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname
    }
    assert imported == {name: f"{module}:{name}" for name, module in aios._EXPORTS.items()}


def test_importing_the_package_is_cheap() -> None:
    assert modules_after("import aios; aios.__all__; aios.__version__").isdisjoint(HEAVY)


def test_core_names_need_no_model_library() -> None:
    names = ", ".join(name for name in PUBLIC if name != "TorchLM")
    loaded = modules_after(f"from aios import {names}")
    assert loaded.isdisjoint({"torch", "transformers", "peft"})


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'aios' has no attribute 'Sael'"):
        _ = aios.Sael
    with pytest.raises(ImportError):
        from aios import Sael  # noqa: F401


def test_the_version_is_that_of_the_package() -> None:
    from importlib import metadata

    assert aios.__version__ == metadata.version("aios")


# ------------------------------------------------------------ the short ways in


def test_a_config_from_overrides_and_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("seed: 5\nseal: {temperature: 0.5}\n")
    config = aios.load_config("seal.strategy=rewrite", "seal.temperature=0.7", config_file=path)
    assert (config.seed, config.seal.strategy, config.seal.temperature) == (5, "rewrite", 0.7)
    assert aios.load_config(config_file=str(path)).seal.temperature == 0.5


def test_the_environment_counts_in_a_config(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIOS_SEED", "8")
    assert aios.load_config().seed == 8


def test_bad_overrides_are_one_error() -> None:
    with pytest.raises(aios.AIOSError) as caught:
        aios.load_config("seal.temperature=hot", "sael.strategy=x")
    assert "seal.temperature" in str(caught.value)
    assert "sael.strategy" in str(caught.value)


def test_a_model_by_its_name_or_the_configs(monkeypatch: pytest.MonkeyPatch) -> None:
    assert aios.load_model("scripted").name == "scripted"
    monkeypatch.setenv("AIOS_MODEL__NAME", "scripted")
    assert aios.load_model().name == "scripted"


@pytest.mark.parametrize("name", ["123", "null", "a: b", "true", "[x]"])
def test_a_name_that_looks_like_something_else_is_a_name_all_the_same(name: str) -> None:
    with pytest.raises(aios.AIOSError) as caught:
        aios.load_model(name, offline=True)
    assert name in str(caught.value)


def test_a_user_who_is_offline_stays_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from aios.app import models

    seen: list[bool] = []
    monkeypatch.setattr(models, "load_model", lambda config: seen.append(config.model.offline))
    aios.load_model("scripted")
    aios.load_model("scripted", offline=True)
    monkeypatch.setenv("AIOS_MODEL__OFFLINE", "true")
    aios.load_model("scripted")
    assert seen == [False, True, True]


def test_the_library_does_the_job_in_a_few_lines(tmp_path: Path) -> None:
    generator = aios.SelfEditGenerator(aios.load_model("scripted"), strategy="cloze", num_edits=1)
    text = (
        "The Brellow engine was built in 1871 by Osanne Verrick. It lifts 9,200 litres of water "
        "a minute because of two larch floats, each of 38 tonnes."
    )
    (edit,) = generator.generate_self_edits(text)
    assert "Question: The Brellow engine was built in ____ by Osanne Verrick." in edit
    assert "Answer: 1871" in edit
