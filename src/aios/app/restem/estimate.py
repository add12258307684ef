"""What a run of ReST-EM will cost, from a timed probe or from a GPU's data sheet.

Takes a config and a dataset, or only how many passages there would be; gives counts, an estimate
of time, memory and money, and advice for a budget. Nothing is kept.

On the machine at hand a few passages are really written, tried and trained on (`probe`).
For a GPU that is not at hand, no model is loaded: speeds are reckoned (`core.gpu_costs`), and
tokens are taken as four characters each. What is assumed, not counted or measured, is listed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from aios.app.models import load_model, show_model
from aios.app.restem.probe import Measured, probe_machine
from aios.app.restem.sizes import (
    CHARACTERS_PER_TOKEN,
    PassageCounts,
    approximate_tokens,
    count_dataset,
    imagine_passages,
    length_notes,
    with_lengths,
    workload_of,
)
from aios.backends.scripted import SCRIPTED_NAME
from aios.core.config.recipes import ResolvedRecipe, resolve_recipe
from aios.core.config.schemas import Config
from aios.core.errors import ModelError, StorageError, UsageError
from aios.core.files import read_json
from aios.core.gpu_costs import (
    GPU,
    HALF_BYTES,
    ModelShape,
    find_gpu,
    throughput_on,
    trial_memory,
)
from aios.core.protocols import Emit, LanguageModel, ignore
from aios.core.restem_advice import Advice, advise
from aios.core.restem_costs import Memory, RestemEstimate, Throughput, estimate
from aios.core.restem_workload import Span, Tokens, Workload

_MAX_CONFIG_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class RestemEstimateReport:
    """What a run will do and cost.

    Attributes:
        passages: Passages with questions.
        without_questions: Passages that cannot be used, having none.
        workload: What is to be done.
        trials: Trials, those of baselines included.
        tokens: By stage.
        estimate: Time, memory and money; None where neither a probe nor a GPU was asked for.
        advice: What to lower for the budget, in this order; None without a budget.
        fits: Whether the run, with the advice, is within the budget; None without one.
        assumptions: What was neither counted nor measured.
        probe_seconds: What the probe took; 0 without one.
    """

    passages: int
    without_questions: int
    workload: Workload
    trials: int
    tokens: Mapping[str, Tokens]
    estimate: RestemEstimate | None
    advice: tuple[Advice, ...] | None
    fits: bool | None
    assumptions: tuple[str, ...]
    probe_seconds: float = 0.0


def estimate_restem(
    config: Config,
    dataset: Path | None = None,
    *,
    passages: int | None = None,
    tokens_per_passage: int | None = None,
    gpu: str | None = None,
    price_per_hour: Span | None = None,
    probe: bool = True,
    budget_hours: float | None = None,
    budget_money: float | None = None,
    model_parameters: int | None = None,
    expert: bool = False,
    emit: Emit = ignore,
    model: LanguageModel | None = None,
    data: PassageCounts | None = None,
    throughput: Throughput | None = None,
) -> RestemEstimateReport:
    """What a run with this config will cost.

    Args:
        config: The resolved config.
        dataset: A file of passages with questions; or
        passages: how many there would be, each of
        tokens_per_passage: so many tokens.
        gpu: A GPU of `core.gpu_costs`, instead of the machine at hand.
        price_per_hour: Of the machine; without it there is no money in the estimate.
        probe: Time a few passages on the machine at hand. Not used with `gpu`.
        budget_hours: Most time, for advice.
        budget_money: Most money, for advice; needs a price.
        model_parameters: Numbers in the model's weights, where `gpu` is given and the model is
            not here.
        expert: Count the final expert too.
        emit: Told what is being timed.
        model: The base model that is probed; loaded from the config by default.
        data: The dataset as it was counted before, where it need not be read again.
        throughput: How fast the machine is, as it was measured before; counts where there is
            neither a probe nor a GPU.

    Raises:
        UsageError: The arguments contradict or are out of range, the GPU is not known, or no
            adapter can be trained on the model.
        DataError: No passage has questions.
        ModelError: The model cannot be loaded, or its size is not known.
        BackendError: The probe failed.
    """
    _check(dataset, passages, tokens_per_passage, budget_hours, budget_money, price_per_hour)
    card = find_gpu(gpu) if gpu is not None else None
    shape = None if card is None else _shape(config, model_parameters)
    timed = probe and card is None
    model = (model or load_model(config, emit=emit)) if timed else None
    recipe = resolve_recipe(config, config.model.name)
    count = model.count_tokens if model is not None else approximate_tokens
    if dataset is None:
        data = imagine_passages(passages or 0, tokens_per_passage or 0, count)
    elif data is None:
        data = count_dataset(config, dataset, count)
    work = workload_of(config, recipe, data, expert=expert)
    notes = [*data.assumptions, *_settings_notes(config)]

    measured = None if model is None else probe_machine(config, model, data.chosen, emit)
    if measured is not None and dataset is not None:
        work = with_lengths(config, work, recipe, measured, expert=expert)
    else:
        notes += _length_notes(work, characters=model is None and dataset is not None)
    if shape is not None:
        notes += _gpu_notes(config, shape)

    known, memory = _speed_and_memory(config, recipe, measured, card, shape)
    throughput = known or throughput
    found = None
    if throughput is not None:
        found = estimate(work, throughput, price_per_hour=price_per_hour, memory=memory)
    advice = _advice(config, work, throughput, budget_hours, budget_money, price_per_hour)
    return RestemEstimateReport(
        passages=data.passages,
        without_questions=data.without_questions,
        workload=work,
        trials=work.trials,
        tokens=work.tokens(),
        estimate=found,
        advice=advice,
        fits=None if advice is None else not advice or advice[-1].fits,
        assumptions=tuple(notes),
        probe_seconds=measured.seconds if measured is not None else 0.0,
    )


def _check(
    dataset: Path | None,
    passages: int | None,
    tokens: int | None,
    hours: float | None,
    money: float | None,
    price: Span | None,
) -> None:
    """Refuses arguments that contradict one another.

    Raises:
        UsageError: They do.
    """
    if (dataset is None) == (passages is None):
        raise UsageError(
            "give either a dataset or a number of passages", "--dataset FILE, or --passages N"
        )
    if passages is not None and (passages < 1 or not tokens or tokens < 1):
        raise UsageError(
            "a number of passages needs the length of one",
            "give --passages N and --tokens-per-passage T, both from 1",
        )
    for name, value in (("hours", hours), ("money", money)):
        if value is not None and not value > 0:
            raise UsageError(f"the budget of {name} is {value}", "give a number above 0")
    if money is not None and price is None:
        raise UsageError("a budget of money needs a price", "give --price-per-hour")


def _shape(config: Config, parameters: int | None) -> ModelShape:
    """The base model's shape: its own where it is here, else of the usual proportions.

    Raises:
        ModelError: Neither the model nor its number of parameters is known.
        UsageError: The number is not positive.
    """
    if parameters is not None:
        if parameters < 1:
            raise UsageError(
                f"the number of parameters is {parameters}", "give a number such as 7B or 135M"
            )
        return ModelShape.of_size(parameters)
    unknown = ModelError(
        f"it is not known how large {config.model.name} is",
        "give --model-parameters, such as 7B",
    )
    try:
        info = show_model(config, config.model.name)
    except ModelError as error:
        raise unknown from error
    if not info.parameters:
        raise unknown
    return _own_shape(info.path, info.parameters) or ModelShape.of_size(info.parameters)


def _own_shape(folder: Path | None, parameters: int) -> ModelShape | None:
    """What a model folder's configuration says; None where it is not here or says too little."""
    if folder is None or not folder.is_dir():
        return None
    try:
        found = read_json(folder / "config.json", _MAX_CONFIG_BYTES)
    except StorageError:
        return None
    return ModelShape.of_config(parameters, found) if isinstance(found, dict) else None


def _speed_and_memory(
    config: Config,
    recipe: ResolvedRecipe,
    measured: Measured | None,
    gpu: GPU | None,
    shape: ModelShape | None,
) -> tuple[Throughput | None, Memory | None]:
    """Of this machine where it was timed, of a GPU where one is named; else not known."""
    if measured is not None:
        return measured.throughput, _memory_here(config, recipe)
    if gpu is not None and shape is not None:
        return _reckoned(config, recipe, gpu, shape), _memory_on(gpu, shape, recipe)
    return None, None


def _memory_here(config: Config, recipe: ResolvedRecipe) -> Memory | None:
    """Memory on this machine; None for a model without weights, or of an unknown shape."""
    if config.model.name == SCRIPTED_NAME:
        return None
    info = show_model(config, config.model.name)
    shape = _own_shape(info.path, info.parameters or 0)
    if shape is None or not info.parameters:
        return None
    from aios.backends.devices import choose_device, choose_dtype
    from aios.backends.trials.bank_memory import free_memory

    device = choose_device(config.model.device)
    number = choose_dtype(config.model.dtype, device).itemsize
    held = number * info.parameters  # the model is loaded: what it takes is free for it
    return trial_memory(
        shape,
        rank=recipe.lora.rank,
        number_bytes=number,
        on_gpu=device.type == "cuda",
        available_bytes=free_memory(device) + held,
    )


def _reckoned(config: Config, recipe: ResolvedRecipe, gpu: GPU, shape: ModelShape) -> Throughput:
    return throughput_on(
        gpu,
        shape,
        rank=recipe.lora.rank,
        sft_rank=recipe.generator.rank,
        width=config.seal.batch_size * config.seal.restem_candidates_per_passage,
    )


def _memory_on(gpu: GPU, shape: ModelShape, recipe: ResolvedRecipe) -> Memory:
    return trial_memory(
        shape,
        rank=recipe.lora.rank,
        number_bytes=HALF_BYTES,
        on_gpu=True,
        available_bytes=round(gpu.memory_gb * 1e9),
    )


def _advice(
    config: Config,
    work: Workload,
    throughput: Throughput | None,
    hours: float | None,
    money: float | None,
    price: Span | None,
) -> tuple[Advice, ...] | None:
    if hours is None and money is None:
        return None
    if throughput is None:
        raise UsageError(
            "nothing is known of the machine's speed, so nothing can be said about a budget",
            "leave --no-probe out, or name a GPU with --gpu",
        )
    seconds = None if hours is None else hours * 3600
    return tuple(
        advise(
            work,
            throughput,
            budget_seconds=seconds,
            budget_money=money,
            price_per_hour=price,
            least_repeats=2 if config.restem.threshold == "auto" else 1,
        )
    )


def _settings_notes(config: Config) -> list[str]:
    notes = ["each round has other passages until all have had their turn"]
    if config.restem.keep == "threshold":
        notes.append("how many self-edits pass the threshold: from those by chance to the most")
    return notes


def _length_notes(work: Workload, *, characters: bool) -> list[str]:
    """What is assumed of lengths; with `characters`, passages were not counted in tokens."""
    counted = [f"{CHARACTERS_PER_TOKEN} characters a token"] if characters else []
    return [*counted, *length_notes(work)]


def _gpu_notes(config: Config, shape: ModelShape) -> list[str]:
    notes = []
    if not shape.exact:
        notes.append(f"a model of the usual proportions: {shape.layers} layers of {shape.hidden}")
    if config.restem.reward == "accuracy":
        notes.append("the writing of answers, which this reward needs, is not counted")
    return notes
