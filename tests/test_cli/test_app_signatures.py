"""The command line's fakes stand for real functions: the calls it makes fit their signatures."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import Any

import pytest

from aios.cli.aios import run

COMMANDS = {
    "aios.app.edits.generate:generate_edits": "seal generate --input {0} --output o.jsonl",
    "aios.app.edits.generation_plan:plan_generation": (
        "seal generate --input {0} --output o.jsonl --dry-run"
    ),
    "aios.app.edits.generate:preview_edits": "seal preview --input {0}",
    "aios.app.edits.cache:warm_cache": "seal cache warm --input {0}",
    "aios.app.ab_tests.job:run_ab_test": "seal ab-test --input {0}",
    "aios.app.costs.plans:plan_ab_test": "seal ab-test --input {0} --dry-run",
    "aios.app.costs.plans:plan_expert": (
        "hrm-hf train-expert --expert-id e1 --dataset {0} --dry-run"
    ),
    "aios.app.experts.training:train_expert": "hrm-hf train-expert --expert-id e1 --dataset {0}",
    "aios.app.restem.job:plan_restem": (
        "hrm-hf train-expert --expert-id e1 --dataset {0} --restem --dry-run"
    ),
    "aios.app.models:list_models": "models list",
    "aios.app.models:pull_model": "models pull",
    "aios.app.models:show_model": "models show",
    "aios.app.machine.doctor:run_doctor": "doctor",
}
MODULES = sorted({target.partition(":")[0] for target in COMMANDS})
# taken here, before the fixture puts fakes in their place
REAL = {name: importlib.import_module(name) for name in MODULES}
FUNCTIONS = {
    target: getattr(REAL[target.partition(":")[0]], target.partition(":")[2]) for target in COMMANDS
}


@pytest.mark.parametrize("target", COMMANDS)
def test_the_call_fits_the_real_function(target: str, app: Any, passages: Path) -> None:
    assert run(COMMANDS[target].format(passages).split()) == 0
    name, args, kwargs = app.calls[-1]
    assert name == target.partition(":")[2]
    inspect.signature(FUNCTIONS[target]).bind(*args, **kwargs)


@pytest.mark.parametrize(
    ("fake", "target"),
    [
        ("GenerateReport", "aios.app.edits.generate"),
        ("GeneratePlan", "aios.app.edits.generation_plan"),
        ("TrainingPlan", "aios.app.costs.plans"),
        ("WarmReport", "aios.app.edits.cache"),
        ("ExpertReport", "aios.app.experts.training"),
        ("RestemPlan", "aios.app.restem.job"),
        ("ABReport", "aios.app.ab_tests.job"),
        ("ModelInfo", "aios.app.models"),
    ],
)
def test_the_fake_has_the_fields_of_the_real_record(fake: str, target: str, app: Any) -> None:
    names = set(getattr(REAL[target], fake).__dataclass_fields__)
    made = {type(value).__name__: value for value in _records(app)}
    assert set(made[fake].__dataclass_fields__) == names


def _records(app: Any) -> list[Any]:
    records = [*app.results.values()]
    for value in app.results.values():
        records += value if isinstance(value, list) else []
    return records
