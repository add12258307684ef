"""A model that is lent for one completion at a time keeps the contract of models."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import pytest

from aios.app.edits.prompt_preview import TakingTurns
from aios.backends.scripted import ScriptedModel
from aios.core.protocols import LanguageModel
from tests.contract import language_model


@pytest.mark.parametrize("check", language_model.CHECKS, ids=lambda c: c.__name__)
def test_a_lent_model_keeps_the_contract(check: Callable[[LanguageModel], None]) -> None:
    model = ScriptedModel()
    check(TakingTurns(model, lambda: nullcontext(model)))
