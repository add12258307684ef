"""Made-up runs that have measured this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from aios.app.composition import recipe_named
from aios.app.costs.records import keep_costs, manner_of
from aios.core.config.schemas import Config
from aios.core.training_costs import RunCosts


def plant_run(config: Config, name: str = "planted", folder: str = "runs", **changes: Any) -> Path:
    """A finished run: 2 s a self-edit, 0.01 s a token, 0.02 s scored, 0.5 s a question."""
    run = config.paths.artifacts / folder / name
    run.mkdir(parents=True)
    manner = manner_of(config, recipe_named(config, config.model.name))
    values: dict[str, Any] = {
        "written": ((10.0, 20.0),) * 4,
        "trained": ((1000.0, 10.0),) * 4,
        "scored": ((100.0, 2.0),) * 4,
        "answered": ((10.0, 5.0),) * 4,
        "once_seconds": 8.0,
        "peak_memory_bytes": 10**9,
        "characters_per_token": 5.0,
        "edit_tokens": (1.0,) * 4,
        "edit_items": (4.0,) * 4,
    }
    keep_costs(run, RunCosts(manner, **{**values, **changes}))
    return run
