"""Times a few passages of ReST-EM on the machine at hand; nothing is kept.

Takes a config, a loaded model and some passages with questions; gives tokens a second for writing,
trials, scoring and the M-step, each with a range, and how long self-edits are. The very engines of
a run are timed: the generator, the model's own trial bench, the adapter trainer.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice
from pathlib import Path
from statistics import fmean

from aios.app.composition import build_generator, recipe_for
from aios.app.models import load_trainer
from aios.app.restem.settings import arms_of, settings_of
from aios.app.restem.trials import trial_recipe
from aios.core.config.recipes import ResolvedRecipe
from aios.core.config.schemas import Config
from aios.core.data.probes import Probe, make_probes
from aios.core.errors import BackendError
from aios.core.events import Notice
from aios.core.protocols import Emit, LanguageModel, TrialBench, ignore
from aios.core.restem_costs import Throughput
from aios.core.restem_workload import Span
from aios.core.seal.passage_edits import Fresh, Written
from aios.core.seal.self_edit_generator import SelfEditGenerator
from aios.core.seal.strategy_mix import format_mix
from aios.core.seal.test_time_training import own_bench
from aios.core.seeds import derive
from aios.core.training.examples import edit_examples, passage_examples
from aios.core.trainings import TrainingJob
from aios.core.trials import TrialJob, TrialMetrics
from aios.core.types import Passage, TrainExample

PROBED = 4  # passages
_REPEATS = 3  # of each timing; from fewer an interval says nothing
_JOBS = 8  # trials at a time
_TRIAL_TOKENS = 256  # of a probed trial; one step at least
_FIT_EXAMPLES = 2  # in a step
_MOST_CANDIDATES = 20  # of a passage
_LEAST_SECONDS = 1e-9


@dataclass(frozen=True, slots=True)
class Measured:
    """What a probe found.

    Attributes:
        throughput: Tokens a second.
        edit_tokens: Tokens written for a self-edit.
        prompt_tokens: Tokens of a prompt.
        prompts: Prompts of a passage.
        seconds: What the probe took.
    """

    throughput: Throughput
    edit_tokens: Span
    prompt_tokens: float
    prompts: int
    seconds: float


def probe_machine(
    config: Config, model: LanguageModel, passages: Sequence[Passage], emit: Emit = ignore
) -> Measured:
    """Times writing, trials, scoring and fitting on a few passages.

    Args:
        config: The resolved config.
        model: The base model, loaded.
        passages: With questions; at most `PROBED` are used.
        emit: Told what is being timed.

    Raises:
        UsageError: No adapter can be trained on the model, or nothing can be learned under
            ``restem.arms``.
        BackendError: Writing or training failed.
    """
    began = time.monotonic()
    bench = own_bench(model)
    recipe = recipe_for(config, model)
    passages = passages[:PROBED]
    emit(Notice(f"timing {len(passages)} passages for an estimate: writing"))
    generator = _generator(config, model, recipe)
    written, write, edit_tokens = _time_writing(generator, passages)
    emit(Notice("timing trials"))
    train, score = _time_trials(config, model, bench, recipe, written)
    emit(Notice("timing the training of a generator"))
    fit = _time_fits(config, model, generator, written)
    count = len(generator.parts)
    prompt_tokens = fmean(generator.count_prompt_tokens(passage) for passage in passages) / count
    source = (
        f"{len(passages)} passages, {_REPEATS} rounds of trials and {_REPEATS} trainings timed on "
        "this machine"
    )
    throughput = Throughput(write, train, score, fit, None, source)
    return Measured(throughput, edit_tokens, prompt_tokens, count, time.monotonic() - began)


def _generator(config: Config, model: LanguageModel, recipe: ResolvedRecipe) -> SelfEditGenerator:
    """The generator of a round: its candidates divided equally among the strategies."""
    count = min(config.seal.restem_candidates_per_passage, _MOST_CANDIDATES)
    names = arms_of(config, recipe)[:count]
    each, rest = divmod(count, len(names))
    mix = format_mix([(name, each + (i < rest)) for i, name in enumerate(names)])
    recipe = replace(recipe, strategy=mix, num_edits_per_passage=count)
    return build_generator(config, model, recipe, cache=None)


def time_writing(
    generator: SelfEditGenerator, passages: Sequence[Passage]
) -> list[tuple[Written, float]]:
    """What is written of passages, with the seconds of each.

    Several are in flight at once, so their times are scaled to add up to the wall time.
    """
    began = time.perf_counter()
    written = list(generator.stream(passages))
    wall = time.perf_counter() - began
    together = sum(one.edits.seconds for one in written)
    return [
        (one, one.edits.seconds * wall / together if together else wall / len(written))
        for one in written
    ]


def _time_writing(
    generator: SelfEditGenerator, passages: Sequence[Passage]
) -> tuple[list[Written], Span, Span]:
    """What was written, tokens a second, and tokens of a self-edit."""
    timed = time_writing(generator, passages)
    written = [one for one, _ in timed]
    done = [(one.edits, seconds) for one, seconds in timed if one.edits.tokens]
    if not done:
        reason = next((w.edits.failure.error for w in written if w.edits.failure), "no tokens")
        raise BackendError(
            f"nothing was written for {len(passages)} passages: {reason}",
            "see what is written by: aios seal preview",
        )
    speed = _rate([(edits.tokens, seconds) for edits, seconds in done])
    lengths = [edits.tokens / max(1, edits.generated) for edits, _ in done]
    return written, speed, Span.of_mean(lengths)


def _time_trials(
    config: Config,
    model: LanguageModel,
    bench: TrialBench,
    recipe: ResolvedRecipe,
    written: Sequence[Written],
) -> tuple[Span, Span]:
    """Tokens a second of training and of scoring, the latter with all else of a trial."""
    jobs = _trial_jobs(config, model, recipe, written)
    probes = [probe for job in jobs for probe in job.questions]
    asked = sum(question_tokens(model.count_tokens, probe) for probe in probes)
    list(_outcomes(bench, jobs[:1], 0))  # what is done once: memory is taken, kernels are chosen
    trained: list[tuple[float, float]] = []
    scored: list[tuple[float, float]] = []
    for repeat in range(1, _REPEATS + 1):
        began = time.perf_counter()
        metrics = list(_outcomes(bench, jobs, repeat))
        wall = time.perf_counter() - began
        seconds = sum(one.seconds for one in metrics)
        trained.append((sum(one.tokens for one in metrics), seconds))
        scored.append((asked, wall - seconds))
    return _rate(trained), _rate(scored)


def _trial_jobs(
    config: Config, model: LanguageModel, recipe: ResolvedRecipe, written: Sequence[Written]
) -> list[TrialJob]:
    """Short trials as a run has them: passage and what was kept, and the passage's questions."""
    jobs = []
    for number, one in enumerate(islice(cycle(written), _JOBS)):
        passage = one.edits.passage
        edits = one.edits.kept
        chosen = [edits[number // len(written) % len(edits)]] if edits else []
        copies = recipe.passage_copies or int(not chosen)
        examples = (*passage_examples([passage], copies), *edit_examples(chosen, recipe.loss_on))
        size = min(recipe.lora.batch_size, len(examples))
        a_step = size * fmean(model.count_tokens(example.text) for example in examples)
        jobs.append(
            TrialJob(
                f"{passage.id}#{number}",
                examples,
                replace(trial_recipe(recipe), batch_size=size),
                config.seed,
                make_probes({passage.id: passage.questions}, config.evaluation.question_template),
                write_answers=config.restem.reward == "accuracy",
                max_answer_tokens=config.evaluation.max_answer_tokens,
                max_steps=max(1, round(_TRIAL_TOKENS / max(a_step, 1))),
            )
        )
    return jobs


def _outcomes(bench: TrialBench, jobs: Sequence[TrialJob], repeat: int) -> Iterator[TrialMetrics]:
    """Runs the trials with other seeds.

    Raises:
        BackendError: One failed.
    """
    again = [
        replace(job, id=f"{job.id}/{repeat}", seed=derive(job.seed, "estimate", repeat))
        for job in jobs
    ]
    for outcome in bench.run(again):
        if outcome.failure is not None or outcome.metrics is None:
            error = outcome.failure.error if outcome.failure else "it has no metrics"
            raise BackendError(f"a probed trial failed: {error}")
        yield outcome.metrics


def _time_fits(
    config: Config,
    model: LanguageModel,
    generator: SelfEditGenerator,
    written: Sequence[Written],
) -> Span:
    """Tokens a second of the M-step: one step from prompt to completion, some times over."""
    strategies = {part.strategy.name: part.strategy for part in generator.parts}
    examples = [
        _example(strategies[fresh.strategy].prompt_text(model, one.edits.passage), fresh, one)
        for one in written
        for fresh in one.fresh
        if fresh.strategy in strategies and fresh.completion.text.strip()
    ][:_FIT_EXAMPLES]
    if not examples:
        raise BackendError(
            "what was written for the probed passages is empty",
            "see what is written by: aios seal preview",
        )
    recipe = replace(
        settings_of(config, recipe_for(config, model)).recipe,
        epochs=1,
        batch_size=len(examples),
        max_seq_len=model.context_length,
    )
    trainer = load_trainer(config, model)
    pieces = []
    with tempfile.TemporaryDirectory(prefix="aios-estimate-") as folder:
        for repeat in range(_REPEATS + 1):
            place = Path(folder) / str(repeat)
            seed = derive(config.seed, "estimate", "fit", repeat)
            result = trainer.fit(TrainingJob(tuple(examples), recipe, seed, place, max_steps=1))
            pieces.append((result.tokens, result.seconds))
    return _rate(pieces[1:])  # the first one chose kernels


def _example(prompt: str, fresh: Fresh, written: Written) -> TrainExample:
    """A completion with its prompt, the loss on the completion."""
    text = prompt + fresh.completion.text
    span = ((len(prompt), len(text)),)
    return TrainExample(text, span, fresh.strategy, written.edits.passage.id)


def question_tokens(count_tokens: Callable[[str], int], probe: Probe) -> int:
    """Tokens of a question with its prompt and answer."""
    return count_tokens(probe.prompt) + count_tokens(probe.request.continuation)


def _rate(pieces: Sequence[tuple[float, float]]) -> Span:
    """Tokens a second; a clock too coarse for a piece counts as its least step."""
    return Span.of_rate([(tokens, max(seconds, _LEAST_SECONDS)) for tokens, seconds in pieces])
