"""What an A/B experiment is run on: passages, questions on two sides, self-edits, retention text.

Takes the input files and the config; gives `ABData`. What can be refused is refused by
`read_ab_input`, before a run is started; self-edits are made by `prepare_ab_data`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from aios.app.composition import Run, build_generator, cache_in_use
from aios.app.edits.generation_plan import ignore_reject, read_input
from aios.app.edits.journal import generation_fingerprint, journalled_edits
from aios.app.generators import writing_model
from aios.core.config.recipes import ResolvedRecipe
from aios.core.config.schemas import Config
from aios.core.data.probes import Probe
from aios.core.data.questions import attach_questions, read_questions
from aios.core.data.readers import read_passages
from aios.core.data.rejects import Reject
from aios.core.errors import DataError, UsageError
from aios.core.evaluation.ab_test import (
    NO_QUESTIONS,
    ABData,
    ABSettings,
    make_questions,
    retention_requests,
    split_experiment,
)
from aios.core.events import Notice
from aios.core.protocols import LanguageModel, ShouldStop
from aios.core.seal.passage_edits import PassageEdits
from aios.core.training.auto_training_orchestrator import refuse_leakage
from aios.core.training.examples import passage_examples
from aios.core.types import Passage, Question, ScoreRequest, TrainExample, content_hash

CONTROL_ARM = "passage+other-edits"
_MAX_RETENTION_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class ABInput:
    """What the files of an experiment hold.

    Attributes:
        path: The file of passages.
        questions: Questions from a file of their own, by passage id.
        retention: Unrelated text to score; may be empty.
    """

    path: Path
    questions: Mapping[str, Sequence[Question]]
    retention: tuple[ScoreRequest, ...]


@dataclass(frozen=True, slots=True)
class ABJob:
    """What every step of an experiment needs."""

    config: Config
    run: Run
    model: LanguageModel
    recipe: ResolvedRecipe
    settings: ABSettings
    should_stop: ShouldStop

    @property
    def needs_edits(self) -> bool:
        """Whether an arm trains on self-edits."""
        return any(arm.startswith("passage+") for arm in self.config.ab_test.arms)

    def refuse_leakage(self, examples: Sequence[TrainExample], probes: Sequence[Probe]) -> None:
        """Refuses a training that would see its questions.

        Raises:
            DataError: It would.
        """
        threshold = self.config.data.near_duplicate_threshold
        refuse_leakage(examples, [probe.question for probe in probes], threshold)


def read_ab_input(config: Config, input: Path, questions: Path | None) -> ABInput:
    """Reads the files once, before any work, and refuses what cannot be used.

    Raises:
        UsageError: A file cannot be read, or no passage has a question.
    """
    passages = tuple(read_passages(input, on_reject=ignore_reject))
    asked = read_questions(questions) if questions is not None else {}
    if not any(p.questions for p in attach_questions(passages, asked)):
        raise DataError(*NO_QUESTIONS)
    return ABInput(input, asked, read_retention(config.training.retention_file))


def read_retention(path: Path | None) -> tuple[ScoreRequest, ...]:
    """Unrelated text to score; nothing without a file.

    Raises:
        UsageError: The file cannot be read, is too large, or is not UTF-8.
    """
    if path is None:
        return ()
    try:
        with path.open("rb") as stream:
            data = stream.read(_MAX_RETENTION_BYTES + 1)
        if len(data) > _MAX_RETENTION_BYTES:
            raise UsageError(f"{path} is larger than 1 MiB", "a few pages of text are enough")
        return retention_requests(data.decode("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"cannot read training.retention_file {path}: {error}", "name a UTF-8 text file"
        ) from error


def prepare_ab_data(job: ABJob, given: ABInput) -> tuple[ABData, list[PassageEdits]]:
    """Splits passages and questions, and has the self-edits made.

    Returns:
        The data, and what generation gave for the passages that are learned.

    Raises:
        DataError: There are too few questions or edits, or training would see a question.
        RunInterrupted: `job.should_stop` said so; finished self-edits are kept.
    """
    passages, others = _split(job, given)
    selection, report = make_questions(passages, job.settings, job.config.seed)
    if not selection or not report:
        raise DataError(
            f"{len(selection)} questions to choose checkpoints on and {len(report)} to report on "
            "are too few",
            "give every passage at least two questions",
        )
    job.refuse_leakage(passage_examples(passages), (*selection, *report))
    results = _make_edits(job, (*passages, *others)) if job.needs_edits else []
    ours, theirs = results[: len(passages)], results[len(passages) :]
    data = ABData(
        passages=passages,
        selection=selection,
        report=report,
        edits=tuple(edit for result in ours for edit in result.kept),
        other_edits=tuple(edit for result in theirs for edit in result.kept),
        retention=given.retention,
    )
    if job.needs_edits:
        _require_edits(data, with_control=bool(others))
    return data, ours


def _split(job: ABJob, given: ABInput) -> tuple[tuple[Passage, ...], tuple[Passage, ...]]:
    """The passages that are learned, and those whose self-edits are the control."""
    config, run = job.config, job.run
    rejects: list[Reject] = []
    everything = tuple(read_input(config, given.path, job.model, rejects.append))
    if rejects:
        run.directory.add_rejects(*(asdict(reject) for reject in rejects))
        run.emit(Notice(f"{len(rejects)} records of {given.path} were left out", "warning"))
    passages, others = split_experiment(
        attach_questions(everything, given.questions),
        config.ab_test.max_passages,
        with_control=CONTROL_ARM in config.ab_test.arms,
    )
    if others:
        run.emit(
            Notice(
                f"{len(passages)} passages are learned; the self-edits of {len(others)} others "
                "are the control for format"
            )
        )
    return passages, others


def _make_edits(job: ABJob, passages: tuple[Passage, ...]) -> list[PassageEdits]:
    with (
        cache_in_use(job.config, job.run.emit) as cache,
        writing_model(job.config, job.model, emit=job.run.emit) as writes,
    ):
        generator = build_generator(job.config, writes, job.recipe, cache=cache, emit=job.run.emit)
        digest = content_hash([(p.id, p.title, p.text) for p in passages])
        fingerprint = generation_fingerprint(job.config, digest, generator)
        return journalled_edits(
            job.config, job.run, generator, passages, fingerprint, job.should_stop
        )


def _require_edits(data: ABData, *, with_control: bool) -> None:
    remedy = "look at the events of the run for the reasons, or choose another strategy"
    if not data.edits:
        raise DataError(
            "no self-edit was made that passed the quality filter, so there is nothing to compare",
            remedy,
        )
    if with_control and not data.other_edits:
        raise DataError(
            "no self-edit of the other passages passed the quality filter, so there is no control",
            f"{remedy}, or leave out the arm {CONTROL_ARM} (--arms)",
        )
