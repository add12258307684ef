"""The torch backend keeps the contracts, and so does the scripted trainer the second of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from aios.backends.adapter_training import TorchAdapterTrainer
from aios.backends.models import ModelSource
from aios.backends.scripted import ScriptedModel
from aios.backends.scripted_training import ScriptedTrainer
from aios.backends.torch_lm import TorchLM
from aios.core.protocols import LanguageModel
from tests.contract import adapter_trainer, language_model
from tests.contract.adapter_trainer import Workbench
from tests.tiny_model import build_tiny_model, source_of

pytestmark = pytest.mark.usefixtures("quick_disk")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    torch.set_num_threads(1)
    return source_of(build_tiny_model(tmp_path_factory.mktemp("tiny") / "model"))


@pytest.fixture
def lm(source: ModelSource) -> TorchLM:
    return TorchLM.load(source, device="cpu", dtype="float32", threads=1)


@pytest.mark.parametrize("check", language_model.CHECKS, ids=lambda c: c.__name__)
def test_the_torch_model_keeps_the_contract(
    check: Callable[[LanguageModel], None], lm: TorchLM
) -> None:
    check(lm)


@pytest.mark.slow
@pytest.mark.parametrize("check", adapter_trainer.CHECKS, ids=lambda c: c.__name__)
def test_the_torch_trainer_keeps_the_contract(
    check: Callable[[Workbench], None], lm: TorchLM, tmp_path: Path
) -> None:
    check(Workbench(TorchAdapterTrainer(lm), lm, tmp_path))


@pytest.mark.parametrize("check", adapter_trainer.CHECKS, ids=lambda c: c.__name__)
def test_the_scripted_trainer_keeps_the_contract(
    check: Callable[[Workbench], None], tmp_path: Path
) -> None:
    base = ScriptedModel()
    check(Workbench(ScriptedTrainer(base), base, tmp_path))
