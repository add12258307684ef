"""Prepares training data on its own: reads, holds validation back, has self-edits written.

Takes a data file; gives the training examples with and without self-edits, and what validation
is to be done on. Validation is never trained on: questions belong to validation alone, and where
a file has none, passages are held back, whole near-duplicate groups at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from aios.core.config.recipes import ResolvedRecipe, resolve_recipe
from aios.core.config.schemas import Config
from aios.core.data.probes import make_probes
from aios.core.data.readers import read_passages
from aios.core.data.rejects import Reject
from aios.core.data.splits import check_leakage, split_by_group
from aios.core.errors import DataError
from aios.core.protocols import LanguageModel
from aios.core.seal.self_edit_generator import PassageEdits, SelfEditGenerator
from aios.core.training.examples import augmented_examples, passage_examples, passage_text
from aios.core.types import Drop, Failure, Passage, ScoreRequest, SelfEdit, TrainExample

Generate = Callable[[Sequence[Passage]], Iterable[PassageEdits]]


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


class AutoTrainingOrchestrator:
    """Prepares the data of an expert's training.

    Args:
        config: The whole config; its sections `seal`, `training`, `data` and `evaluation` count.
        model: Counts tokens and gives the recipe its name.
        generator: Writes self-edits; not needed without them.
        generate: How passages become edits, in place of `generator.generate`: a caller that
            journals wraps it.
    """

    def __init__(
        self,
        config: Config,
        *,
        model: LanguageModel,
        generator: SelfEditGenerator | None = None,
        generate: Generate | None = None,
    ) -> None:
        self.config = config
        self.model = model
        self.self_edit_generator = generator
        self._generate = generate or (generator.generate if generator else None)
        self.recipe: ResolvedRecipe = resolve_recipe(config, model.name)

    def prepare_training_data(
        self, dataset_path: Path | str, augment_with_self_edits: bool = True
    ) -> TrainingData:
        """Reads a file and prepares the data of a training.

        Args:
            dataset_path: A file of passages.
            augment_with_self_edits: Whether to add self-edits to the passages.

        Raises:
            DataError: The file cannot be used, or validation would leak into training.
        """
        rejects: list[Reject] = []
        everything = tuple(
            read_passages(
                Path(dataset_path),
                on_reject=rejects.append,
                count_tokens=self.model.count_tokens,
                max_tokens=self.config.data.max_passage_tokens,
            )
        )
        passages, validation = self._hold_back(everything)
        threshold = self.config.data.near_duplicate_threshold
        original = augmented = tuple(passage_examples(passages))
        refuse_leakage(original, validation.texts, threshold)
        edits: tuple[SelfEdit, ...] = ()
        results: list[PassageEdits] = []
        if augment_with_self_edits and self._generate and self.config.seal.enabled:
            results = list(self._generate(passages))
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
            rejects=tuple(rejects),
        )

    def _hold_back(self, passages: tuple[Passage, ...]) -> tuple[tuple[Passage, ...], Validation]:
        """Splits off what is validated on: questions, since they cost no text, or else passages."""
        questions = {p.id: p.questions for p in passages if p.questions}
        if questions:
            probes = make_probes(questions, self.config.evaluation.question_template)
            requests = tuple(probe.request for probe in probes)
            texts = tuple(probe.question for probe in probes)
            return passages, Validation("questions", requests, texts)
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
