"""What training for a session needs: the model in slices, the experts below, settings and records.

Takes a `Writer`, adapter files and the config; gives what `app.chat.adaptation` trains with. The
model is borrowed for one step at a time, and experts are attached to it only as long as a session's
adapter is over them.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from types import TracebackType
from weakref import WeakSet

from aios.app.composition import build_generator, recipe_for
from aios.core.config.schemas import Config
from aios.core.errors import BackendError, RunInterrupted, UsageError
from aios.core.evaluation.ab_test import retention_requests
from aios.core.files import read_bytes
from aios.core.protocols import AdapterTrainer, LanguageModel, ShouldStop
from aios.core.seal.adaptation_guard import LossChange
from aios.core.seal.test_time_adaptation import (
    AdaptationRecord,
    AdaptationSettings,
    TestTimeAdaptation,
)
from aios.core.seal.test_time_training import Trainable, own_bench
from aios.core.serving import Writer
from aios.core.types import AdapterRef, ScoreRequest
from aios.storage import activity_records

_SHORTEST_EDIT = 4  # tokens: what is said in a conversation is short
_EDIT_TOKENS = 128  # of an edit that the model writes, at most
_EDIT_SECONDS = 2.0  # for it
_RETENTION_BYTES = 1 << 20
_RETENTION_CHARACTERS = 2_000  # of a file, that an adaptation stays quick


@dataclass(frozen=True, slots=True)
class Lesson:
    """An adaptation of a session, and the statements that it was trained on.

    The statements are kept in memory with the session, and nowhere else.

    Attributes:
        told: The adaptation as it is recorded.
        new: Statements that had not been learned before.
        repeated: Statements that had been, and were trained on again.
    """

    told: activity_records.AdaptationRecord
    new: tuple[str, ...]
    repeated: tuple[str, ...] = ()


class Slices:
    """The writer's model for the time of a block, given back to who writes again and again.

    Args:
        writer: Who lends it.
        unwanted: Whether the work is no longer wanted.

    Attributes:
        model: The base model.
    """

    def __init__(self, writer: Writer, unwanted: ShouldStop) -> None:
        self._writer, self._unwanted = writer, unwanted
        self._held = ExitStack()
        self.model = writer.model

    def __enter__(self) -> Slices:
        self._take()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._held.close()

    def give_way(self) -> bool:
        """Lets others write what waits; whether the work is no longer wanted (a `ShouldStop`)."""
        self._held.close()
        if self._unwanted():
            return True
        self._take()
        return self._unwanted()

    def _take(self) -> None:
        try:
            self.model = self._held.enter_context(self._writer.between())
        except BackendError as error:
            raise RunInterrupted(f"the model is no longer lent: {error.message}") from error


class AttachedExperts:
    """Experts that sessions' adapters are over: on the model as long as one of those lives.

    For the thread that trains, inside `Writer.between`.
    """

    def __init__(self, trainer: AdapterTrainer) -> None:
        self._trainer = trainer
        self._models: dict[str, LanguageModel] = {}
        self._users: dict[str, WeakSet[LanguageModel]] = {}

    def over(self, base: LanguageModel, adapter: AdapterRef | None) -> LanguageModel:
        """What a new adapter is trained over; experts that nobody uses any more are taken off.

        Raises:
            AdapterMismatchError: The expert is of another base model.
            StorageError: It cannot be read.
        """
        for digest in [d for d, users in self._users.items() if not users]:
            if adapter is None or digest != adapter.digest:
                self._take_off(digest)
        if adapter is None:
            return base
        if adapter.digest not in self._models:
            self._models[adapter.digest] = self._trainer.attach(adapter)
            self._users[adapter.digest] = WeakSet()
        return self._models[adapter.digest]

    def note_user(self, adapter: AdapterRef | None, adapted: LanguageModel) -> None:
        """A session's adapter is over an expert, which stays on the model while it lives."""
        if adapter is not None and adapted is not self._models[adapter.digest]:
            self._users[adapter.digest].add(adapted)

    def _take_off(self, digest: str) -> None:
        model = self._models.pop(digest)
        del self._users[digest]
        own_bench(model).close()
        self._trainer.detach(model)


def build_adaptation(config: Config, model: LanguageModel) -> TestTimeAdaptation:
    """What adapts experts to conversations, as the config's section ``adaptation`` says.

    Self-edits are written by the base model, are not cached (they are what somebody said), and
    may be shorter than those of passages in files. Where the strategy asks the model, it is asked
    for one short edit a passage, since answers wait meanwhile; a mix keeps its numbers.

    Raises:
        UsageError: A setting cannot be used, or no adapter can be trained on the model.
        StorageError: ``training.retention_file`` cannot be read.
    """
    if not isinstance(model, Trainable):
        raise UsageError(
            f"no adapter can be trained on {model.name}",
            "use a model whose weights are on this machine, or leave out test-time adaptation",
        )
    section = config.adaptation
    seal = config.seal.model_copy(
        update={
            "strategy": section.strategy,
            "generator": None,
            "num_edits_per_passage": None,
            "embedding_deduplication": "off",
            "min_length": min(config.seal.min_length, _SHORTEST_EDIT),
            "max_new_tokens": min(config.seal.max_new_tokens, _EDIT_TOKENS),
            "max_generation_time": min(config.seal.max_generation_time, _EDIT_SECONDS),
        }
    )
    config = config.model_copy(update={"seal": seal})
    recipe = replace(recipe_for(config, model), num_edits_per_passage=1)
    return TestTimeAdaptation(
        build_generator(config, model, recipe, cache=None),
        AdaptationSettings(
            rank=section.rank,
            alpha=section.alpha,
            learning_rate=section.learning_rate,
            max_passages=section.max_passages,
            max_examples=section.max_examples,
            tolerance=section.tolerance,
            loss_on=recipe.loss_on,
        ),
        retention=_retention(config),
        seed=config.seed,
    )


def _retention(config: Config) -> tuple[ScoreRequest, ...] | None:
    """The first paragraphs of the user's retention text; None without a file."""
    path = config.training.retention_file
    if path is None:
        return None
    try:
        text = read_bytes(path, _RETENTION_BYTES).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"cannot read training.retention_file {path}: {error}", "name a UTF-8 text file"
        ) from error
    return retention_requests(text[:_RETENTION_CHARACTERS])


def stored_record(
    session: str, expert_id: str, began: float, record: AdaptationRecord
) -> activity_records.AdaptationRecord:
    """An adaptation as the activity database has it.

    Args:
        session: The session's id.
        expert_id: The expert's, empty for the base model.
        began: When it began, in seconds since 1970.
        record: What came of it.
    """

    def both(change: LossChange | None) -> tuple[float | None, float | None]:
        return (change.before, change.after) if change is not None else (None, None)

    return activity_records.AdaptationRecord(
        session,
        expert_id,
        began,
        record.seconds,
        *both(record.examples_loss),
        *both(record.retention_loss),
        *both(record.turns_loss),
        record.kept,
        record.reason,
    )
