"""Prepares training data on its own: reads, holds validation back, has self-edits written.

Takes a data file; gives the training examples with and without self-edits, and what validation
is to be done on. Validation is never trained on: questions belong to validation alone, and where
a file has none, passages are held back, whole near-duplicate groups at a time.

With ReST-EM (`AutoTrainingOrchestrator.train_expert_with_restem`) the generator of self-edits is
optimised first, and that needs questions too. So passages are split: it is optimised on the
questions of one side, and the expert is validated on those of the other, which nothing was chosen
by. The expert is trained on the texts of both, since it can only know what it has read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from aios.core.config.recipes import ResolvedRecipe, resolve_recipe
from aios.core.config.schemas import Config
from aios.core.data.probes import make_probes
from aios.core.data.readers import read_passages
from aios.core.data.rejects import Reject
from aios.core.data.splits import check_leakage, split_by_group
from aios.core.errors import DataError, UsageError
from aios.core.protocols import LanguageModel
from aios.core.seal.passage_edits import PassageEdits
from aios.core.seal.self_edit_generator import SelfEditGenerator
from aios.core.training.examples import augmented_examples, passage_examples, passage_text
from aios.core.types import Drop, Failure, Passage, ScoreRequest, SelfEdit, TrainExample

if TYPE_CHECKING:
    from aios.core.training.expert_trainer import TrainedExpert  # which needs this module

Generate = Callable[[Sequence[Passage]], Iterable[PassageEdits]]
Optimize = Callable[[Sequence[Passage]], Generate]
Fit = Callable[[str, "TrainingData"], "TrainedExpert"]


@dataclass(frozen=True, slots=True)
class Validation:
    """What a training is validated on.

    Attributes:
        kind: ``questions``, ``passages`` or ``none``.
        requests: What is scored.
        texts: The texts behind it, for the leakage check.
    """

    kind: str
    requests: tuple[ScoreRequest, ...]
    texts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TrainingData:
    """What `AutoTrainingOrchestrator.prepare_training_data` gives.

    Attributes:
        passages: The passages to train on.
        original: Examples of the passages alone.
        augmented: Examples of passages and self-edits; equals `original` without self-edits.
        edits: The self-edits.
        drops: What the quality filter dropped.
        failures: Passages without self-edits, since generation failed.
        validation: What to validate on.
        rejects: Input records that could not be used.
    """

    passages: tuple[Passage, ...]
    original: tuple[TrainExample, ...]
    augmented: tuple[TrainExample, ...]
    edits: tuple[SelfEdit, ...]
    drops: tuple[Drop, ...]
    failures: tuple[Failure, ...]
    validation: Validation
    rejects: tuple[Reject, ...]


@dataclass(frozen=True, slots=True)
class RestemExpert:
    """What `AutoTrainingOrchestrator.train_expert_with_restem` gives.

    Attributes:
        expert_id: The expert's id.
        data: What it was trained on, and what it was validated on.
        optimised_on: Ids of the passages that the generator was optimised on.
        validated_on: Ids of the passages whose questions it was validated on.
        trained: The training's result.
    """

    expert_id: str
    data: TrainingData
    optimised_on: tuple[str, ...]
    validated_on: tuple[str, ...]
    trained: TrainedExpert


class AutoTrainingOrchestrator:
    """Prepares the data of an expert's training.

    Args:
        config: The whole config; its sections `seal`, `training`, `data` and `evaluation` count.
        model: Counts tokens and gives the recipe its name.
        generator: Writes self-edits; not needed without them.
        generate: How passages become edits, in place of `generator.generate`: a caller that
            journals wraps it.
        optimize: Improves the generator by ReST-EM on passages with questions, and gives how
            passages become edits with the best one; needed by `train_expert_with_restem`.
        fit: Trains the expert of an id on data; needed by `train_expert_with_restem`.
    """

    def __init__(
        self,
        config: Config,
        *,
        model: LanguageModel,
        generator: SelfEditGenerator | None = None,
        generate: Generate | None = None,
        optimize: Optimize | None = None,
        fit: Fit | None = None,
    ) -> None:
        self.config = config
        self.model = model
        self.self_edit_generator = generator
        self._generate = generate or (generator.generate if generator else None)
        self._optimize, self._fit = optimize, fit
        self.recipe: ResolvedRecipe = resolve_recipe(config, model.name)

    def prepare_training_data(
        self, dataset_path: Path | str, augment_with_self_edits: bool = True
    ) -> TrainingData:
        """Reads a file and prepares the data of a training.

        Args:
            dataset_path: A file of passages.
            augment_with_self_edits: Whether to add self-edits to the passages.

        Returns:
            Examples with and without self-edits, what to validate on, and what was left out.

        Raises:
            DataError: The file cannot be used, or validation would leak into training.
        """
        everything, rejects = self._read(Path(dataset_path))
        passages, validation = self._hold_back(everything)
        writes = augment_with_self_edits and self.config.seal.enabled
        return self._augment(passages, validation, rejects, self._generate if writes else None)

    def train_expert_with_restem(
        self, expert_id: str, dataset_path: Path | str, validation_split: float = 0.2
    ) -> RestemExpert:
        """Optimises the generator by ReST-EM, has the best one write, and trains an expert.

        Args:
            expert_id: The expert's id.
            dataset_path: A file of passages with questions.
            validation_split: Share of the passages with questions that the generator is not
                optimised on, in [0, 1); the expert is validated on their questions.

        Returns:
            The training's result, and what generator and expert learned from.

        Raises:
            UsageError: There is nothing to optimise or train with, or the share is out of range.
            DataError: The file cannot be used, no passage has questions, or validation would leak
                into training.
        """
        if self._optimize is None or self._fit is None:
            raise UsageError(
                "this orchestrator has nothing that optimises a generator or trains an expert",
                "call aios.train_expert(…, restem=True), or give it `optimize` and `fit`",
            )
        passages, rejects = self._read(Path(dataset_path))
        asked = [passage for passage in passages if passage.questions]
        if not asked:
            raise DataError(
                f"no passage of {dataset_path} has questions, so no self-edit can be rewarded",
                "add questions to the passages, or train without ReST-EM",
            )
        threshold = self.config.data.near_duplicate_threshold
        optimised, held_out = split_by_group(
            asked, validation_split, self.config.seed, threshold=threshold
        )
        validation = self._questions_of(held_out)
        refuse_leakage(passage_examples(passages), validation.texts, threshold)
        generate = self._optimize(optimised)
        data = self._augment(passages, validation, rejects, generate)
        return RestemExpert(
            expert_id,
            data,
            optimised_on=tuple(passage.id for passage in optimised),
            validated_on=tuple(passage.id for passage in held_out),
            trained=self._fit(expert_id, data),
        )

    def _read(self, path: Path) -> tuple[tuple[Passage, ...], tuple[Reject, ...]]:
        rejects: list[Reject] = []
        passages = tuple(
            read_passages(
                path,
                on_reject=rejects.append,
                count_tokens=self.model.count_tokens,
                max_tokens=self.config.data.max_passage_tokens,
            )
        )
        return passages, tuple(rejects)

    def _augment(
        self,
        passages: tuple[Passage, ...],
        validation: Validation,
        rejects: tuple[Reject, ...],
        generate: Generate | None,
    ) -> TrainingData:
        """The passages as training data, with self-edits if there is what makes them.

        Raises:
            DataError: Validation would leak into training.
        """
        threshold = self.config.data.near_duplicate_threshold
        original = augmented = tuple(passage_examples(passages))
        refuse_leakage(original, validation.texts, threshold)
        edits: tuple[SelfEdit, ...] = ()
        results: list[PassageEdits] = []
        if generate is not None:
            results = list(generate(passages))
            edits = tuple(edit for r in results for edit in r.kept)
            augmented = augmented_examples(
                passages,
                edits,
                passage_copies=self.recipe.passage_copies,
                loss_on=self.recipe.loss_on,
            )
            refuse_leakage(augmented, validation.texts, threshold)
        return TrainingData(
            passages=passages,
            original=original,
            augmented=augmented,
            edits=edits,
            drops=tuple(drop for r in results for drop in r.drops),
            failures=tuple(r.failure for r in results if r.failure is not None),
            validation=validation,
            rejects=rejects,
        )

    def _hold_back(self, passages: tuple[Passage, ...]) -> tuple[tuple[Passage, ...], Validation]:
        """Splits off what is validated on: questions, since they cost no text, or else passages."""
        validation = self._questions_of(passages)
        if validation.requests:
            return passages, validation
        fraction = self.config.training.validation_fraction
        if fraction == 0 or len(passages) < 2:
            return passages, Validation("none", ())
        train, held_out = split_by_group(
            passages,
            fraction,
            self.config.seed,
            threshold=self.config.data.near_duplicate_threshold,
        )
        requests = tuple(ScoreRequest("", passage_text(p)) for p in held_out)
        return train, Validation("passages", requests, tuple(p.text for p in held_out))

    def _questions_of(self, passages: Sequence[Passage]) -> Validation:
        """Validation on the questions of passages; on nothing where they have none."""
        questions = {p.id: p.questions for p in passages if p.questions}
        if not questions:
            return Validation("none", ())
        probes = make_probes(questions, self.config.evaluation.question_template)
        requests = tuple(probe.request for probe in probes)
        return Validation("questions", requests, tuple(probe.question for probe in probes))


def refuse_leakage(
    examples: Iterable[TrainExample], validation_texts: Sequence[str], threshold: float
) -> None:
    """Refuses a training that would see what it is validated on.

    Raises:
        DataError: It would; the message shows the first cases.
    """
    leaks = check_leakage((e.text for e in examples), validation_texts, threshold)
    if leaks:
        more = f" (and {len(leaks) - 3} more)" if len(leaks) > 3 else ""
        raise DataError(
            f"validation leaks into training: {'; '.join(leaks[:3])}{more}",
            "remove those questions or passages from the data",
        )
