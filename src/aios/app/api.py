"""Short ways into the library for programs: a config and a model from plain arguments."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from aios.app import models, trials
from aios.core.config import loader
from aios.core.config.restem_schema import ExecutorKind
from aios.core.config.schemas import Config
from aios.core.protocols import Executor, LanguageModel

if TYPE_CHECKING:
    from aios.app.restem.job import ReSTEMReport


def load_config(*overrides: str, config_file: Path | str | None = None) -> Config:
    """The resolved config.

    Args:
        *overrides: Such as ``"seal.strategy=rewrite"``; they win over everything else.
        config_file: A YAML file over the defaults.

    Returns:
        The config, frozen and checked; sections are its attributes, e.g. ``config.seal.strategy``.

    Raises:
        ConfigError: Keys are wrong; the message lists all of them.
    """
    loaded = loader.load_config(
        config_file=Path(config_file) if config_file is not None else None,
        overrides=overrides,
        env=os.environ,
    )
    return loaded.config


def load_model(name: str | None = None, *, offline: bool = False) -> LanguageModel:
    """A base model, ready to write and score.

    Args:
        name: A listed model, a folder, a GGUF file, or a hub id; the config's by default.
        offline: Never touch the network.

    Returns:
        The model. It stays in memory as long as it is referred to.

    Raises:
        ConfigError: The name is empty, or a key of the user's config is wrong.
        ModelError: It is not known, missing or broken.
    """
    overrides = [f"model.name={json.dumps(name)}"] if name is not None else []  # always a text
    if offline:
        overrides.append("model.offline=true")
    return models.load_model(load_config(*overrides))


def open_executor(
    name: str | None = None, kind: ExecutorKind = "serial", *, workers: int | None = None
) -> Executor:
    """Where trials of self-edits are run: training temporary adapters, asking them questions.

    Args:
        name: The base model, as for `load_model`.
        kind: ``serial`` (this process), ``processes`` (workers on this machine) or ``ray``.
        workers: How many workers, for the last two; None: one for each GPU, or two.

    Returns:
        The executor, to be closed by its ``close`` at the end.

    Raises:
        ConfigError: As `load_model`.
        ModelError: As `load_model`.
        UsageError: An unknown kind; no adapter can be trained on the model; Ray is not installed.
    """
    overrides = [f"model.name={json.dumps(name)}"] if name is not None else []
    return trials.open_executor(load_config(*overrides), kind, workers=workers)


def optimize_generator(
    dataset: Path | str, output: Path | str | None = None, *overrides: str
) -> ReSTEMReport:
    """Improves the bundled or configured model's generator of self-edits by ReST-EM.

    The same as ``aios seal restem optimize``; see `app.restem.job.optimize` for all of it.

    Args:
        dataset: Passages with questions.
        output: Folder of the best generator; by default it stays in the run directory.
        *overrides: Settings such as ``"seal.restem_iterations=1"``.

    Returns:
        The state of its rounds, the best generator's folder, and where the report is.

    Raises:
        ConfigError: A setting is wrong.
        UsageError: The data cannot be used.
        BackendError: Writing or training failed; what is done is kept.
        StorageError: The run cannot be written.
    """
    from aios.app.restem.job import optimize

    return optimize(
        load_config(*overrides), Path(dataset), None if output is None else Path(output)
    )
