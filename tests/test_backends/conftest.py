"""A tiny real model for the tests of the torch backend; torch is imported where it is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from aios.backends.adapter_training import TorchAdapterTrainer
    from aios.backends.models import ModelSource
    from aios.backends.torch_lm import TorchLM


@pytest.fixture(autouse=True)
def _quick_disk(quick_disk: None) -> None:
    """Checkpoints are written by the hundred here."""


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch

    from tests.tiny_model import build_tiny_model

    torch.set_num_threads(1)
    return build_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def tiny_source(tiny_folder: Path) -> ModelSource:
    from tests.tiny_model import source_of

    return source_of(tiny_folder)


@pytest.fixture
def lm(tiny_source: ModelSource) -> TorchLM:
    """The tiny model, freshly loaded in float32."""
    from aios.backends.torch_lm import TorchLM

    return TorchLM.load(tiny_source, device="cpu", dtype="float32", threads=1)


@pytest.fixture
def trainer(lm: TorchLM) -> TorchAdapterTrainer:
    from aios.backends.adapter_training import TorchAdapterTrainer

    return TorchAdapterTrainer(lm)
