"""What an expert was made from, document by document.

Takes the data of a training; gives one `Document` a passage: the digest of its text, where it was
read, its self-edits with seeds and quality scores, and how well its questions are answered. Kept
as ``documents.jsonl`` in the expert's folder, so that one can ask later which experts hold a
passage, and train one again without it. Passages that were held back for validation are kept by
their digest alone.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from aios.core.files import encode_json, parse_json
from aios.core.training.auto_training_orchestrator import TrainingData
from aios.core.training.examples import passage_text
from aios.core.types import Passage, SelfEdit

DOCUMENTS_FILE = "documents.jsonl"
_HELD_OUT = "held_out"


@dataclass(frozen=True, slots=True)
class EditRecord:
    """A self-edit that an expert was trained on.

    Attributes:
        id: `SelfEdit.id`.
        strategy: The strategy that made it.
        edit: Its candidate number for the passage, from 0.
        items: Training texts in it.
        model: Who wrote it.
        seed: The seed it was drawn with.
        quality: Quality scores by name.
    """

    id: str
    strategy: str
    edit: int
    items: int
    model: str = ""
    seed: int = 0
    quality: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Document:
    """A passage that an expert was trained on.

    Attributes:
        id: The passage's id.
        digest: `text_digest` of title and text.
        source: ``file:line`` that it was read from.
        characters: Its length.
        questions: Questions about it; they were validated on, if anything was.
        examples: Training examples made of it, self-edits included.
        validation_loss_before: Mean loss of its questions (nats a token) without the expert.
        validation_loss: And with it; None where its questions were not validated on.
        self_edits: The self-edits of it that were trained on.
    """

    id: str
    digest: str
    source: str = ""
    characters: int = 0
    questions: int = 0
    examples: int = 0
    validation_loss_before: float | None = None
    validation_loss: float | None = None
    self_edits: tuple[EditRecord, ...] = ()

    def is_part_of(self, passage_id: str) -> bool:
        """Whether it is a passage, or a part ``<id>#<n>`` that a long one was split into."""
        head, _, number = self.id.rpartition("#")
        return self.id == passage_id or (head == passage_id and number.isdigit())


@dataclass(frozen=True, slots=True)
class Documents:
    """All that an expert was made from.

    Attributes:
        trained: What it was trained on, in order.
        held_out: Digests of the passages that it was validated on as texts.
        known: Whether it was recorded at all; False for experts of older versions.
    """

    trained: tuple[Document, ...] = ()
    held_out: frozenset[str] = frozenset()
    known: bool = True

    def of(self, passage_id: str) -> tuple[Document, ...]:
        """A passage, or its parts; empty where the expert was not trained on it."""
        return tuple(one for one in self.trained if one.is_part_of(passage_id))

    def hold(self, digests: Iterable[str]) -> bool:
        """Whether a passage of one of these digests is in it, trained on or held back."""
        mine = self.held_out.union(one.digest for one in self.trained)
        return any(digest in mine for digest in digests)


def text_digest(text: str) -> str:
    """SHA-256 of a text in UTF-8, as hex."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def passage_digest(passage: Passage) -> str:
    """`text_digest` of a passage as it is trained on, its title included."""
    return text_digest(passage_text(passage))


def documents_of(
    data: TrainingData,
    *,
    use_self_edits: bool,
    before: Mapping[str, float],
    after: Mapping[str, float],
) -> Documents:
    """The record of a training.

    Args:
        data: What was trained and validated on.
        use_self_edits: Whether self-edits were trained on.
        before: Mean loss of a passage's questions under the base model, by passage id.
        after: And under the expert.
    """
    edits: dict[str, list[SelfEdit]] = {}
    for edit in data.edits if use_self_edits else ():
        edits.setdefault(edit.passage_id, []).append(edit)
    counts: dict[str, int] = {}
    for example in data.augmented if use_self_edits else data.original:
        counts[example.passage_id] = counts.get(example.passage_id, 0) + 1
    trained = tuple(
        Document(
            id=passage.id,
            digest=passage_digest(passage),
            source=passage.source,
            characters=len(passage.text),
            questions=len(passage.questions),
            examples=counts.get(passage.id, 0),
            validation_loss_before=before.get(passage.id),
            validation_loss=after.get(passage.id),
            self_edits=tuple(map(_edit_record, edits.get(passage.id, ()))),
        )
        for passage in data.passages
    )
    held_out = frozenset[str]()
    if data.validation.kind == "passages":  # whole texts without a prompt, see `Validation`
        held_out = frozenset(text_digest(one.continuation) for one in data.validation.requests)
    return Documents(trained, held_out)


def _edit_record(edit: SelfEdit) -> EditRecord:
    scores = {name: float(score) for name, score in edit.scores.items() if math.isfinite(score)}
    return EditRecord(
        edit.id, edit.strategy, edit.index, len(edit.items), edit.model, edit.seed, scores
    )


def encode_documents(documents: Documents) -> bytes:
    """The record as JSON lines."""
    lines: list[object] = [asdict(one) for one in documents.trained]
    lines += [{_HELD_OUT: digest} for digest in sorted(documents.held_out)]
    return b"".join(encode_json(line) + b"\n" for line in lines)


def decode_documents(lines: Iterable[bytes]) -> Documents:
    """Reads what `encode_documents` gave.

    Raises:
        ValueError: A line is of another form; the message names it.
    """
    trained: list[Document] = []
    held_out: set[str] = set()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = parse_json(line)
            if isinstance(record, dict) and _HELD_OUT in record:
                held_out.add(_typed(record, _HELD_OUT, str, ""))
            else:
                trained.append(_document(record))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"line {number} is no record of a document ({error})") from error
    return Documents(tuple(trained), frozenset(held_out))


def _document(record: Any) -> Document:
    losses = {
        name: None if record.get(name) is None else _typed(record, name, float, 0.0)
        for name in ("validation_loss_before", "validation_loss")
    }
    return Document(
        id=str(record["id"]),
        digest=str(record["digest"]),
        source=_typed(record, "source", str, ""),
        characters=_typed(record, "characters", int, 0),
        questions=_typed(record, "questions", int, 0),
        examples=_typed(record, "examples", int, 0),
        validation_loss_before=losses["validation_loss_before"],
        validation_loss=losses["validation_loss"],
        self_edits=tuple(_edit(one) for one in _typed(record, "self_edits", list, [])),
    )


def _edit(record: Any) -> EditRecord:
    quality = _typed(record, "quality", dict, {})
    return EditRecord(
        id=str(record["id"]),
        strategy=str(record["strategy"]),
        edit=_typed(record, "edit", int, 0),
        items=_typed(record, "items", int, 0),
        model=_typed(record, "model", str, ""),
        seed=_typed(record, "seed", int, 0),
        quality={str(name): float(score) for name, score in quality.items()},
    )


def _typed(record: Mapping[str, Any], key: str, kind: type, default: Any) -> Any:
    value = record.get(key, default)
    if not isinstance(value, (int, float) if kind is float else kind) or isinstance(value, bool):
        raise TypeError(f"{key} is {value!r:.40}")
    return value


def mean_losses(passage_ids: Sequence[str], losses: Sequence[float]) -> dict[str, float]:
    """Mean of the losses of each passage's questions.

    Args:
        passage_ids: The passage of each question.
        losses: The loss of each, as many.
    """
    found: dict[str, list[float]] = {}
    for passage_id, loss in zip(passage_ids, losses, strict=True):
        found.setdefault(passage_id, []).append(loss)
    return {key: sum(values) / len(values) for key, values in found.items()}
