"""Where trials are run: in this process, in worker processes, or on a Ray cluster.

Takes a config, or a model that is loaded; gives a `core.protocols.Executor`. torch and ray are
imported only where they are used.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import get_args

from aios.app.models import load_model
from aios.backends.executors.environment import WorkerSpec
from aios.core.config.restem_schema import ExecutorKind
from aios.core.config.schemas import Config
from aios.core.data.probes import Probe
from aios.core.errors import UsageError
from aios.core.protocols import Executor, LanguageModel, TrialBench
from aios.core.seal.test_time_training import own_bench
from aios.core.types import LoraRecipe, TrainExample

KINDS: tuple[ExecutorKind, ...] = get_args(ExecutorKind)


def build_bench(config: Config) -> TrialBench:
    """Loads the config's base model and gives its bench; what a worker is started with.

    Raises:
        ModelError: As `load_model`.
        UsageError: No adapter can be trained on the model.
    """
    return own_bench(load_model(config))


def open_executor(
    config: Config,
    kind: ExecutorKind = "serial",
    *,
    workers: int | None = None,
    gpus: Sequence[int] | None = None,
    bank: int = 16,
    address: str | None = None,
) -> Executor:
    """An executor over the config's base model; close it when the trials are done.

    Args:
        config: Names the model, device and dtype.
        kind: ``serial``: this process; ``processes``: workers on this machine; ``ray``: workers on
            a Ray cluster (needs the extra ``ray``).
        workers: How many workers; not used by ``serial``. None: one for each GPU of this machine
            (unless the config names another device), or two.
        gpus: One worker for each of these GPUs, in place of `workers`; under ``ray``, one GPU a
            worker, whichever Ray gives it.
        bank: Trials that are handed to a worker at a time.
        address: A running Ray cluster's address; None starts an instance on this machine.

    Raises:
        UsageError: An unknown kind, or a number that is not positive; Ray is not installed.
        ModelError: The model cannot be loaded (``serial``; workers say it with their first trial).
    """
    if kind not in KINDS:
        raise UsageError(f"unknown executor {kind!r}", f"use one of {', '.join(KINDS)}")
    if kind == "serial":
        return build_bench(config)
    if workers is None and gpus is None:
        from aios.backends.devices import gpu_count

        gpus = range(gpu_count(config.model.device))
    workers = 2 if workers is None else workers
    factory = partial(build_bench, config)
    if kind == "processes":
        from aios.backends.executors.processes import ProcessExecutor

        specs = [WorkerSpec(gpu=gpu) for gpu in gpus] if gpus else [WorkerSpec()] * workers
        return ProcessExecutor(factory, specs, bank=bank)
    from aios.backends.executors.ray_cluster import RayExecutor

    return RayExecutor(
        factory,
        workers=len(gpus) if gpus else workers,
        bank=bank,
        num_gpus_per_worker=1 if gpus else 0,
        address=address,
    )


def gradient_alignment(
    model: LanguageModel,
    candidates: Sequence[Sequence[TrainExample]],
    questions: Sequence[Probe],
    recipe: LoraRecipe,
    seed: int = 0,
) -> list[float]:
    """Cosine between the gradients of candidates and of the answers to questions, in [−1, 1].

    A cheap forecast of which candidate would teach the answers: see
    `backends.trials.gradient_alignment`.

    Args:
        model: A base model whose weights are on this machine.
        candidates: The examples of each candidate.
        questions: Whose reference answers count.
        recipe: Rank and alpha of the adapter that gradients are taken by.
        seed: Seed of the adapter.

    Raises:
        UsageError: The model's weights are not on this machine.
        BackendError: A text cannot be encoded.
    """
    from aios.backends.torch_lm import TorchLM
    from aios.backends.trials import gradient_alignment as alignment

    if not isinstance(model, TorchLM):
        raise UsageError(f"{model.name} gives no gradients", "use a model that is loaded here")
    return alignment.gradient_alignment(model, candidates, questions, recipe, seed)
