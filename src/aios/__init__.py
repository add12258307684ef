"""AI-OS SEAL: a language model writes its own training data, learns from it, and proves it.

The public names below are loaded when they are first used, so that ``import aios`` is cheap and
torch is only imported where a model is.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_EXPORTS = {
    "AIOSError": "aios.core.errors",
    "AccuracyReward": "aios.core.seal.reward",
    "AutoTrainingOrchestrator": "aios.core.training.auto_training_orchestrator",
    "Config": "aios.core.config.schemas",
    "Passage": "aios.core.types",
    "PerplexityReward": "aios.core.seal.reward",
    "PromptBuilder": "aios.core.seal.prompts",
    "Question": "aios.core.types",
    "ReSTEMOptimizer": "aios.core.seal.restem_optimizer",
    "SelfEdit": "aios.core.types",
    "SelfEditGenerator": "aios.core.seal.self_edit_generator",
    "SelfEditStrategy": "aios.core.seal.strategies",
    "TTTTrainer": "aios.core.seal.test_time_training",
    "TestTimeAdaptation": "aios.core.seal.test_time_adaptation",
    "TorchLM": "aios.backends.torch_lm",
    "ValidationLossReward": "aios.core.seal.reward",
    "create_expert": "aios.app.experts.creation",
    "export_expert": "aios.app.experts.export",
    "forget": "aios.app.experts.forgetting",
    "generate_edits": "aios.app.edits.generate",
    "get_strategy": "aios.core.seal.strategies",
    "list_experts": "aios.app.experts.registry",
    "load_config": "aios.app.api",
    "load_model": "aios.app.api",
    "open_assistant": "aios.app.chat.assistant",
    "open_executor": "aios.app.api",
    "optimize_generator": "aios.app.api",
    "race": "aios.core.seal.racing",
    "read_passages": "aios.core.data.readers",
    "run_ab_test": "aios.app.ab_tests.job",
    "train_expert": "aios.app.experts.training",
}

__all__ = ["__version__", *sorted(_EXPORTS)]  # noqa: PLE0604

if TYPE_CHECKING:
    from aios.app.ab_tests.job import run_ab_test as run_ab_test
    from aios.app.api import load_config as load_config
    from aios.app.api import load_model as load_model
    from aios.app.api import open_executor as open_executor
    from aios.app.api import optimize_generator as optimize_generator
    from aios.app.chat.assistant import open_assistant as open_assistant
    from aios.app.edits.generate import generate_edits as generate_edits
    from aios.app.experts.creation import create_expert as create_expert
    from aios.app.experts.export import export_expert as export_expert
    from aios.app.experts.forgetting import forget as forget
    from aios.app.experts.registry import list_experts as list_experts
    from aios.app.experts.training import train_expert as train_expert
    from aios.backends.torch_lm import TorchLM as TorchLM
    from aios.core.config.schemas import Config as Config
    from aios.core.data.readers import read_passages as read_passages
    from aios.core.errors import AIOSError as AIOSError
    from aios.core.seal.prompts import PromptBuilder as PromptBuilder
    from aios.core.seal.racing import race as race
    from aios.core.seal.restem_optimizer import ReSTEMOptimizer as ReSTEMOptimizer
    from aios.core.seal.reward import AccuracyReward as AccuracyReward
    from aios.core.seal.reward import PerplexityReward as PerplexityReward
    from aios.core.seal.reward import ValidationLossReward as ValidationLossReward
    from aios.core.seal.self_edit_generator import SelfEditGenerator as SelfEditGenerator
    from aios.core.seal.strategies import SelfEditStrategy as SelfEditStrategy
    from aios.core.seal.strategies import get_strategy as get_strategy
    from aios.core.seal.test_time_adaptation import TestTimeAdaptation as TestTimeAdaptation
    from aios.core.seal.test_time_training import TTTTrainer as TTTTrainer
    from aios.core.training.auto_training_orchestrator import (
        AutoTrainingOrchestrator as AutoTrainingOrchestrator,
    )
    from aios.core.types import Passage as Passage
    from aios.core.types import Question as Question
    from aios.core.types import SelfEdit as SelfEdit


def __getattr__(name: str) -> Any:
    """Loads a public name on first use."""
    if name not in _EXPORTS:
        raise AttributeError(f"module 'aios' has no attribute {name!r}")
    value = getattr(importlib.import_module(_EXPORTS[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
