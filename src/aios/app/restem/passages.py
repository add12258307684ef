"""The passages of a ReST-EM job: those that are optimised on, those held out, those left out."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from aios.app.composition import Run
from aios.app.edits.generation_plan import read_input
from aios.app.restem.rounds import RunFacts
from aios.core.config.schemas import Config
from aios.core.data.rejects import Reject
from aios.core.data.splits import split_by_group
from aios.core.errors import DataError
from aios.core.events import Notice
from aios.core.protocols import LanguageModel
from aios.core.seal.generator_card import passage_hash
from aios.core.types import Passage, content_hash


@dataclass(frozen=True, slots=True)
class RestemData:
    """The passages of a run.

    Attributes:
        train: Passages that are optimised on.
        held_out: Passages that generators are compared on.
        without_questions: Passages that were left out, since nothing can be rewarded on them.
        rejects: Records of the file that could not be used.
    """

    train: tuple[Passage, ...]
    held_out: tuple[Passage, ...]
    without_questions: int = 0
    rejects: tuple[Reject, ...] = ()


def read_data(config: Config, dataset: Path, model: LanguageModel) -> RestemData:
    """Reads the passages and holds some of them out, whole near-duplicate groups at a time.

    Raises:
        DataError: The file cannot be used, or no passage has questions.
    """
    rejects: list[Reject] = []
    passages = list(read_input(config, dataset, model, rejects.append))
    asked = [passage for passage in passages if passage.questions]
    if not asked:
        raise DataError(
            f"no passage of {dataset} has questions, so no self-edit can be rewarded",
            "add questions to the passages",
        )
    fraction = config.restem.held_out_fraction
    train, held_out = split_by_group(
        asked, fraction, config.seed, threshold=config.data.near_duplicate_threshold
    )
    return RestemData(train, held_out, len(passages) - len(asked), tuple(rejects))


def facts_of(dataset: Path, data: RestemData) -> RunFacts:
    """What a run on a file's passages is on."""
    fingerprint = content_hash([[asdict(p) for p in part] for part in (data.train, data.held_out)])
    return RunFacts(
        str(dataset),
        tuple(p.id for p in data.train),
        tuple(p.id for p in data.held_out),
        fingerprint,
        tuple(map(passage_hash, data.train)),
    )


def tell_left_out(run: Run, data: RestemData, *, record: bool = True) -> None:
    """Says what of a file is left out.

    Args:
        run: The run.
        data: What was read.
        record: Keep the records that could not be used in the run's directory.

    Raises:
        StorageError: They cannot be kept.
    """
    if data.without_questions:
        run.emit(
            Notice(f"{data.without_questions} passages have no questions: left out", "warning")
        )
    if data.rejects:
        if record:
            run.directory.add_rejects(*(asdict(reject) for reject in data.rejects))
        run.emit(Notice(f"{len(data.rejects)} records could not be used", "warning"))
