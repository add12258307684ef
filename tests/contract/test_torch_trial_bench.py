"""The torch trial bench keeps the contract of benches; its experts keep that of models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from aios.backends.adapter_training import TorchAdapterTrainer
from aios.backends.torch_lm import TorchLM
from aios.backends.trials.bench import TorchTrialBench
from aios.core.protocols import LanguageModel
from tests.contract import language_model, trial_bench
from tests.contract.trial_bench import TrialWorkbench, trained
from tests.tiny_model import build_llama, build_tokenizer

# Adam turns the rounding of a float32 gradient into steps of a part of its learning rate.
TOLERANCE = {"float32": 5e-3, "float64": 1e-9}
ROUNDING = 5e-4  # log-softmax and files are in float32
IN_DOUBLE = (
    trial_bench.a_job_does_not_depend_on_the_others,
    trial_bench.the_same_job_gives_the_same_numbers,
    trial_bench.other_recipes_run_side_by_side,
    trial_bench.answers_are_written_only_where_asked,
    trial_bench.patience_ends_a_training_that_gets_no_better,
    trial_bench.an_expert_answers_as_its_trial_did,
    trial_bench.experts_stand_side_by_side,
)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def tiny(dtype: str) -> TorchLM:
    model = build_llama().to(getattr(torch, dtype))
    return TorchLM(model, build_tokenizer(), name="tiny", digest="d" * 64)


def workbench(folder: Path, dtype: str = "float32", groups: int | None = None) -> TrialWorkbench:
    base = tiny(dtype)
    return TrialWorkbench(
        executor=TorchTrialBench(base, groups=groups),
        base=base,
        folder=folder,
        tolerance=TOLERANCE[dtype],
        rounding=ROUNDING,
        trainer=TorchAdapterTrainer(base),
    )


@pytest.mark.parametrize("check", trial_bench.CHECKS, ids=lambda c: c.__name__)
def test_the_torch_bench_keeps_the_contract(
    check: Callable[[TrialWorkbench], None], tmp_path: Path
) -> None:
    check(workbench(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("check", IN_DOUBLE, ids=lambda c: c.__name__)
def test_in_double_precision_the_others_change_nothing(
    check: Callable[[TrialWorkbench], None], tmp_path: Path
) -> None:
    check(workbench(tmp_path, "float64"))


@pytest.mark.slow
@pytest.mark.parametrize("check", IN_DOUBLE, ids=lambda c: c.__name__)
def test_nor_does_the_number_of_trainings_at_a_time(
    check: Callable[[TrialWorkbench], None], tmp_path: Path
) -> None:
    check(workbench(tmp_path, "float64", groups=2))


@pytest.fixture(scope="module")
def expert(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    bench = workbench(tmp_path_factory.mktemp("expert"))
    return trained(bench, bench.job(max_steps=2))["a"][0]


@pytest.mark.parametrize(
    "check",
    [c for c in language_model.CHECKS if c is not language_model.base_model_has_no_adapter_digest],
    ids=lambda c: c.__name__,
)
def test_a_temporary_expert_keeps_the_contract_of_models(
    check: Callable[[LanguageModel], None], expert: LanguageModel
) -> None:
    check(expert)
