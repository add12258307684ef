from __future__ import annotations

from typing import Any

import pytest

from aios.app.trials import gradient_alignment, open_executor
from aios.backends.scripted import ScriptedModel
from aios.core.config.schemas import Config
from aios.core.errors import UsageError
from aios.core.trials import TrialJob
from aios.core.types import LoraRecipe, TrainExample

CONFIG = Config.model_validate({"model": {"name": "scripted"}})


@pytest.mark.parametrize("kind", ["serial", "processes"])
def test_an_executor_runs_trials_on_the_configs_model(kind: Any) -> None:
    executor = open_executor(CONFIG, kind, workers=2, bank=1)
    example = TrainExample.whole("The mill was built in 1871.")
    jobs = [TrialJob(f"j{i}", (example,), LoraRecipe(epochs=1), i) for i in range(3)]
    try:
        found = {outcome.job_id: outcome.failure for outcome in executor.run(jobs)}
    finally:
        executor.close()
    assert found == {"j0": None, "j1": None, "j2": None}


def test_an_unknown_executor_is_an_error_that_lists_the_known_ones() -> None:
    kind: Any = "cloud"
    with pytest.raises(UsageError, match="unknown executor 'cloud'") as caught:
        open_executor(CONFIG, kind)
    assert "serial, processes, ray" in caught.value.remedy


def test_a_model_without_weights_here_gives_no_gradients() -> None:
    with pytest.raises(UsageError, match="gives no gradients"):
        gradient_alignment(ScriptedModel(), [], [], LoraRecipe())
