"""The work of a ReST-EM run, from its config and dataset: what is counted, and what is assumed.

Takes a config and a file of passages, or only their number and length; gives a
`core.restem_workload.Workload`. What cannot be counted beforehand is assumed in a wide range: how
long self-edits are (until a probe has measured it), and how many of them are kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

from aios.app.edits.generation_plan import ignore_reject
from aios.app.restem.probe import PROBED, Measured, question_tokens
from aios.app.restem.settings import arms_of
from aios.core.config.recipes import ResolvedRecipe
from aios.core.config.schemas import Config
from aios.core.data.probes import make_probes
from aios.core.data.readers import read_passages
from aios.core.errors import DataError
from aios.core.estimates import spread_indices
from aios.core.restem_workload import Span, Workload
from aios.core.types import Passage, Question

CHARACTERS_PER_TOKEN = 4  # of English text, in round numbers
_INSTRUCTION_TOKENS = 100  # of a prompt, beside the passage
_QUESTIONS, _QUESTION_TOKENS = 5, 24  # of a passage without any; those of SQuAD are like that
_CHANCE = 0.05  # that a self-edit without effect passes ``threshold: auto``
_SENTENCE = "The old mill at Orvane was built in 1871 by the river and is kept by two wardens. "


@dataclass(frozen=True, slots=True)
class PassageCounts:
    """The passages, counted.

    Attributes:
        passages: Passages with questions.
        without_questions: The others, which cannot be used.
        passage_tokens: Tokens of a passage.
        questions: Questions of a passage.
        question_tokens: Tokens of a question with its prompt and answer.
        chosen: Passages to probe.
        assumptions: What was not counted.
    """

    passages: int
    without_questions: int
    passage_tokens: float
    questions: float
    question_tokens: float
    chosen: tuple[Passage, ...]
    assumptions: tuple[str, ...] = ()


def approximate_tokens(text: str) -> int:
    """Tokens of an English text, about, where there is no tokenizer."""
    return -(-len(text) // CHARACTERS_PER_TOKEN)


def count_dataset(config: Config, path: Path, count: Callable[[str], int]) -> PassageCounts:
    """Counts a dataset, and chooses passages to probe.

    Raises:
        DataError: It cannot be read, or no passage has questions.
    """
    limit = config.data.max_passage_tokens
    all_of_them = list(
        read_passages(path, on_reject=ignore_reject, count_tokens=count, max_tokens=limit)
    )
    usable = [passage for passage in all_of_them if passage.questions]
    if not usable:
        raise DataError(
            f"no passage of {path} has questions, so no self-edit can be rewarded",
            "add questions to the file",
        )
    probes = make_probes(
        {passage.id: passage.questions for passage in usable}, config.evaluation.question_template
    )
    return PassageCounts(
        passages=len(usable),
        without_questions=len(all_of_them) - len(usable),
        passage_tokens=fmean(count(passage.text) for passage in usable),
        questions=len(probes) / len(usable),
        question_tokens=fmean(question_tokens(count, probe) for probe in probes),
        chosen=tuple(usable[index] for index in spread_indices(len(usable), PROBED)),
    )


def imagine_passages(passages: int, tokens: int, count: Callable[[str], int]) -> PassageCounts:
    """Passages that nobody has given: counted as asked, timed with a stand-in text."""
    text = _SENTENCE * max(1, round(tokens / count(_SENTENCE)))
    asked = tuple(
        Question(f"When was mill number {n} at Orvane built?", ("1871",)) for n in range(_QUESTIONS)
    )
    chosen = tuple(
        Passage.make(f"{text}{i}.", id=f"stand-in-{i}", questions=asked)
        for i in range(min(passages, PROBED))
    )
    note = f"{_QUESTIONS} questions a passage of {_QUESTION_TOKENS} tokens each"
    return PassageCounts(passages, 0, tokens, _QUESTIONS, _QUESTION_TOKENS, chosen, (note,))


def workload_of(
    config: Config, recipe: ResolvedRecipe, data: PassageCounts, *, expert: bool
) -> Workload:
    """What the config asks for; lengths of self-edits are assumed, from half a passage to two."""
    settings, seal = config.restem, config.seal
    held_out = round(settings.held_out_fraction * data.passages)
    if settings.held_out_fraction and data.passages > 1:
        held_out = min(max(1, held_out), data.passages - 1)
    pool = data.passages - held_out
    arms = arms_of(config, recipe)
    candidates = seal.restem_candidates_per_passage
    tokens = data.passage_tokens
    work = Workload(
        passages=min(seal.restem_batch_size, pool),
        rounds=seal.restem_iterations,
        candidates=candidates,
        pool=pool,
        held_out=held_out,
        held_out_candidates=settings.held_out_candidates,
        repeats=settings.repeats,
        racing=settings.racing,
        baseline_repeats=settings.repeats if settings.baseline == "passage" else 0,
        prompts=len(arms),
        prompt_tokens=tokens + _INSTRUCTION_TOKENS,
        edit_tokens=Span(0.5 * tokens, tokens, min(2 * tokens, max(seal.max_new_tokens, tokens))),
        passage_tokens=tokens,
        trial_tokens=None if settings.trial_tokens is None else float(settings.trial_tokens),
        trial_epochs=recipe.lora.epochs,
        questions=data.questions,
        question_tokens=data.question_tokens,
        kept=_kept(config),
        sft_epochs=recipe.generator.epochs,
    )
    return _with_expert(work, recipe) if expert else work


def _kept(config: Config) -> Span:
    """Self-edits of a passage that are learned from.

    At most what the config allows; under ``threshold`` at least the share that passes without any
    effect. The middle is between the two.
    """
    candidates = config.seal.restem_candidates_per_passage
    most = float(min(config.restem.kept_per_passage, candidates))
    if config.restem.keep == "best_of_k":
        return Span.exactly(most)
    least = min(most, 1 - (1 - _CHANCE) ** candidates)
    return Span(least, (least + most) / 2, most)


def _with_expert(work: Workload, recipe: ResolvedRecipe) -> Workload:
    """The workload with a final expert on all passages of the pool."""
    written = work.edit_tokens.times(work.pool * recipe.num_edits_per_passage)
    texts = work.pool * recipe.passage_copies * work.passage_tokens
    most = recipe.max_tokens or float("inf")
    ends = (written.low, written.middle, written.high)
    trained = (min(most, recipe.lora.epochs * (texts + end)) for end in ends)
    return replace(work, expert_written=written, expert_tokens=Span(*trained))


def with_lengths(
    config: Config, work: Workload, recipe: ResolvedRecipe, measured: Measured, *, expert: bool
) -> Workload:
    """The workload with the lengths that were measured."""
    most = max(config.seal.max_new_tokens, measured.edit_tokens.middle)
    edit = measured.edit_tokens
    work = replace(
        work,
        edit_tokens=Span(edit.low, edit.middle, min(edit.high, most)),
        prompt_tokens=measured.prompt_tokens,
        prompts=measured.prompts,
    )
    return _with_expert(work, recipe) if expert else work


def length_notes(work: Workload) -> list[str]:
    """What was assumed about lengths."""
    edit = work.edit_tokens
    return [
        f"self-edits of {edit.low:.0f} to {edit.high:.0f} tokens (half a passage to two)",
        f"prompts of {work.prompt_tokens:.0f} tokens",
    ]
