"""Two generators of self-edits on the same passages, as a job: which one writes better ones?

Takes two generators (or the untrained model and one) and a file of passages with questions; gives
a run directory with what each wrote, what the trials of that said, and the numbers with their
intervals. Both get the same strategies, seeds and trials; a passage's baseline is trained once for
both. Every candidate is tried equally often (no racing): repeats that go to the better candidates
alone would lower the mean of a generator whose candidates differ more.

The directory holds, besides what every run has: ``plan.json`` (what the results follow from),
``seed-<n>/`` with journals and, at the end, the candidates of each generator
(``baseline.jsonl``, ``optimized.jsonl``), and ``metrics.json``. A run that was stopped or killed
goes on from the journals; it may be given more seeds than before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from aios.app.composition import (
    Run,
    build_prompts,
    recipe_for,
    recipe_named,
    started_run,
    watched,
)
from aios.app.edits.generation_plan import check_input
from aios.app.models import load_model
from aios.app.restem.comparing.results import (
    SIDES,
    Examined,
    Side,
    comparison_document,
)
from aios.app.restem.comparing.trials import KIND, ComparisonJob, Examination
from aios.app.restem.kept_plan import keep_plan, plan_of
from aios.app.restem.passages import RestemData, facts_of, read_data, tell_left_out
from aios.app.restem.settings import arms_of
from aios.app.restem.trials import executor_of
from aios.core.config.schemas import Config
from aios.core.errors import UsageError
from aios.core.events import Notice
from aios.core.files import atomic_write_bytes, encode_json, parse_json, valid_id
from aios.core.protocols import Emit, LanguageModel, ShouldStop, ignore, never
from aios.core.seal.generator_card import GeneratorCard, passage_hash
from aios.core.seal.prompt_templates import AUTO
from aios.core.seal.strategies import get_strategy
from aios.core.types import Passage
from aios.storage.generators import read_generator


@dataclass(frozen=True, slots=True)
class ComparisonReport:
    """What a comparison gave.

    Attributes:
        run_dir: The run directory.
        metrics_json: All numbers.
        metrics: The content of that file (`restem_compare_results.comparison_document`).
        notes: What a person should know.
    """

    run_dir: Path
    metrics_json: Path
    metrics: dict[str, Any]
    notes: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        """One plain sentence."""
        return str(self.metrics["verdict"])


@dataclass(frozen=True, slots=True)
class ComparisonPlan:
    """What a comparison would do.

    Attributes:
        passages: Passages with questions.
        without_questions: Passages that are left out.
        rejected: Records that could not be used.
        arms: Strategies.
        seeds: How often each generator writes for each passage.
        candidates: Self-edits that are tried, of both generators.
        trials: Trials of these and of the baselines.
        notes: What a person should know.
    """

    passages: int
    without_questions: int
    rejected: int
    arms: tuple[str, ...]
    seeds: int
    candidates: int
    trials: int
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Generator:
    """One of the two: its folder and card; None for the untrained model."""

    folder: Path | None
    card: GeneratorCard | None

    @property
    def label(self) -> str:
        """Its name in sentences."""
        return "the untrained model" if self.folder is None else f"the generator {self.folder}"


_Pair = Mapping[Side, _Generator]


def compare_generators(
    config: Config,
    baseline: Path | None,
    optimized: Path,
    dataset: Path,
    *,
    seeds: int = 1,
    candidates: int | None = None,
    output: Path | None = None,
    resume: bool = False,
    emit: Emit = ignore,
    should_stop: ShouldStop = never,
    model: LanguageModel | None = None,
) -> ComparisonReport:
    """Compares what two generators' self-edits are worth.

    With ``restem.arms: auto`` the strategies are those that the generators were optimised under,
    as far as the model writes something there.

    Args:
        config: The resolved config; `restem`, `seal`, `training`, `data`, `evaluation` count.
        baseline: Folder of the generator to compare with; None for the untrained model.
        optimized: Folder of the other generator.
        dataset: Passages with questions; best those that neither was optimised on.
        seeds: How often each writes for each passage, with seeds that both have in common.
        candidates: Self-edits of a passage and seed; by default `restem.held_out_candidates`.
        output: The run directory; by default a new one below ``<artifacts>/runs``.
        resume: Go on with the run in `output`.
        emit: Shows events.
        should_stop: Asked between and during trials.
        model: The base model; loaded from the config by default.

    Raises:
        UsageError: A folder is no generator, data or config cannot be used, or the run is on
            other data or settings.
        AdapterMismatchError: A generator is of another base model.
        BackendError: Writing failed, or too many trials did; what is done is kept.
        StorageError: A generator is damaged, or the run cannot be written.
        RunInterrupted: `should_stop` said so; the run can be resumed.
    """
    if resume and (output is None or not (output / "run.json").exists()):
        raise UsageError(
            f"there is no comparison to go on with in {output}", "give the folder of its run"
        )
    config, pair = _set_up(config, baseline, optimized, dataset, seeds, candidates)
    with started_run(config, KIND, emit, path=output, resume=resume) as run:
        model = model or load_model(config, emit=run.emit)
        recipe = recipe_for(config, model)
        data = read_data(config, dataset, model)
        facts = facts_of(dataset, data)
        keep_plan(run, {**_digests(pair), **plan_of(facts, config, model, recipe)})
        overlap = {side: _optimised_on(pair[side], data.train) for side in SIDES}
        notes = _notes(data, pair, overlap)
        _tell(run, data, notes)
        job = ComparisonJob(config, run, model, recipe, data.train, facts, seeds)
        found = _examine(job, pair, should_stop)
        metrics = comparison_document(
            found,
            {side: one.label for side, one in pair.items()},
            overlap,
            _info(job, pair, dataset),
            samples=config.evaluation.bootstrap_samples,
        )
        return _finish(run, metrics, notes)


def plan_comparison(
    config: Config,
    baseline: Path | None,
    optimized: Path,
    dataset: Path,
    *,
    seeds: int = 1,
    candidates: int | None = None,
    model: LanguageModel | None = None,
    emit: Emit = ignore,
) -> ComparisonPlan:
    """Reads the data and counts the work of a comparison; nothing is written.

    Args:
        config: As `compare_generators`.
        baseline: As `compare_generators`.
        optimized: As `compare_generators`.
        dataset: As `compare_generators`.
        seeds: As `compare_generators`.
        candidates: As `compare_generators`.
        model: As `compare_generators`.
        emit: Shows notices.

    Raises:
        UsageError: Generators, data or config cannot be used.
        StorageError: A generator is damaged.
    """
    config, pair = _set_up(config, baseline, optimized, dataset, seeds, candidates)
    model = model or load_model(config, emit=emit)
    data = read_data(config, dataset, model)
    restem, passages = config.restem, len(data.train)
    written = passages * seeds * restem.held_out_candidates * len(SIDES)
    alone = passages * seeds if restem.baseline == "passage" else 0
    overlap = {side: _optimised_on(pair[side], data.train) for side in SIDES}
    return ComparisonPlan(
        passages=passages,
        without_questions=data.without_questions,
        rejected=len(data.rejects),
        arms=restem.arms,
        seeds=seeds,
        candidates=written,
        trials=(written + alone) * restem.repeats,
        notes=_notes(data, pair, overlap),
    )


def find_comparison(config: Config, given: str) -> Path:
    """The folder of a comparison: a path, or the name of a run in the artifacts."""
    named = config.paths.artifacts / "runs" / given
    if valid_id(given) and (named / "run.json").exists():
        return named
    return Path(given).expanduser()


# ------------------------------------------------------------ set-up


def _set_up(
    config: Config,
    baseline: Path | None,
    optimized: Path,
    dataset: Path,
    seeds: int,
    candidates: int | None,
) -> tuple[Config, _Pair]:
    """The config as a comparison has it, and the two generators; the dataset is looked through.

    Raises:
        UsageError: A number is below 1, the dataset cannot be used, a folder is no generator, or
            its strategies cannot be used.
        StorageError: A generator is damaged.
    """
    config = _prepared(config, seeds, candidates)
    check_input(dataset)
    pair: _Pair = {"baseline": _generator(baseline), "optimized": _generator(optimized)}
    return _with_arms(config, pair), pair


def _prepared(config: Config, seeds: int, candidates: int | None) -> Config:
    """The config with what a comparison decides itself: see the module's head.

    Raises:
        UsageError: A number is below 1.
    """
    for name, value in (("seeds", seeds), ("candidates", candidates)):
        if value is not None and value < 1:
            raise UsageError(f"{name} is {value}", "give at least 1")
    restem: dict[str, Any] = {"racing": False, "held_out_fraction": 0.0}
    if candidates is not None:
        restem["held_out_candidates"] = candidates
    return config.model_copy(
        update={
            "restem": config.restem.model_copy(update=restem),
            "seal": config.seal.model_copy(update={"generator": None}),
        }
    )


def _generator(folder: Path | None) -> _Generator:
    return _Generator(folder, None if folder is None else read_generator(folder)[1])


def _digests(pair: _Pair) -> dict[str, str | None]:
    return {
        side: None if one.card is None else one.card.adapter_digest for side, one in pair.items()
    }


def _with_arms(config: Config, pair: _Pair) -> Config:
    """The config with strategies by name in place of ``auto``: see `compare_generators`.

    Raises:
        UsageError: A strategy is not known, or the model writes nothing under any of them.
    """
    if config.restem.arms != (AUTO,):
        arms_of(config, recipe_named(config, config.model.name))  # refuses
        return config
    prompts = build_prompts(config)
    names = dict.fromkeys(
        name for one in pair.values() if one.card is not None for name in one.card.strategies
    )
    learnable = [name for name in names if get_strategy(name, prompts).learnable]
    restem = config.restem.model_copy(update={"arms": tuple(learnable or names)})
    return config.model_copy(update={"restem": restem})


def _optimised_on(generator: _Generator, passages: Sequence[Passage]) -> frozenset[str]:
    """Ids of the passages that a generator was optimised on, told by their texts."""
    known = frozenset(generator.card.passage_ids if generator.card else ())
    return frozenset(passage.id for passage in passages if passage_hash(passage) in known)


def _notes(
    data: RestemData, pair: _Pair, overlap: Mapping[Side, frozenset[str]]
) -> tuple[str, ...]:
    notes = []
    for side, one in pair.items():
        if overlap[side]:
            notes.append(
                f"{one.label} was optimised on {len(overlap[side])} of the {len(data.train)} "
                "passages, which flatters it: compare on other passages"
            )
        elif one.card is not None and len(one.card.passage_ids) < one.card.passages:
            notes.append(
                f"{one.label} does not name all passages that it was optimised on; see to it that "
                "none of them is among these"
            )
    return tuple(notes)


def _tell(run: Run, data: RestemData, notes: Sequence[str]) -> None:
    tell_left_out(run, data)
    for note in notes:
        run.emit(Notice(note, "warning"))


def _examine(
    job: ComparisonJob, pair: _Pair, should_stop: ShouldStop
) -> dict[Side, list[Examined]]:
    """Both generators, once a seed: all is written first, then all is tried."""
    with (
        watched(job.config, job.run, KIND, should_stop) as watch,
        executor_of(job.config, job.model) as executor,
    ):
        examination = Examination(job, executor, watch.emit, watch.should_stop)
        written = {side: examination.write(side, one.folder) for side, one in pair.items()}
        return examination.try_all(written)


def _info(job: ComparisonJob, pair: _Pair, dataset: Path) -> dict[str, Any]:
    """What the numbers follow from, and where they were made."""
    restem = job.config.restem
    return {
        "model": job.model.name,
        "generators": {
            side: None
            if one.card is None
            else {
                "folder": str(one.folder),
                "adapter_digest": one.card.adapter_digest,
                "round": one.card.round,
            }
            for side, one in pair.items()
        },
        "arms": ", ".join(job.recipe.generator.arms),
        "candidates": restem.held_out_candidates,
        "repeats": restem.repeats,
        "trial_tokens": restem.trial_tokens,
        "recipe": asdict(job.recipe.lora),
        "recipe_source": f"{job.recipe.name}: {job.recipe.measured}",
        "dataset": str(dataset),
        "passages": len(job.passages),
        "seeds": job.seeds,
        "seed": job.config.seed,
        "reward": restem.reward,
        "baseline": restem.baseline,
    }


def _finish(run: Run, metrics: Mapping[str, Any], notes: tuple[str, ...]) -> ComparisonReport:
    path = run.directory.path / "metrics.json"
    numbers = encode_json({**metrics, "notes": notes}, indent=2) + b"\n"
    atomic_write_bytes(path, numbers)
    run.directory.commit_state({"finished": True, "verdict": metrics["verdict"]})
    return ComparisonReport(run.directory.path, path, parse_json(numbers), notes)
