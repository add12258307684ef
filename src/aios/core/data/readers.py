"""Passages from a file, whatever its format, one at a time.

Takes a path with one of the `READERS` endings and gives `Passage` records. What cannot be used
goes to `on_reject` with file, line and reason. All formats but ``.json`` are read record by record
with bounded memory; of what was read only 8-byte hashes of ids and texts are kept, to find
duplicates. Keys of a record: ``text`` (or ``context``, ``passage``), ``title``, ``id``,
``questions``, ``completions``; others are ignored.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from aios.core.data import lines
from aios.core.data.questions import (
    assign_questions,
    attach_questions,
    parse_questions,
    plain_text,
    read_questions,
)
from aios.core.data.rejects import PASSAGE_KEPT, REASONS, Reject, one_line
from aios.core.data.splitting import split_passage
from aios.core.data.structured_records import (
    COLUMNS,
    TEXT_KEYS,
    csv_records,
    import_parquet,
    json_records,
    jsonl_records,
    parquet_records,
    parse_json,
)
from aios.core.data.text_records import RawRecord, md_records, txt_records
from aios.core.errors import DataError, UsageError
from aios.core.types import Passage

__all__ = [
    "PASSAGE_KEPT",
    "READERS",
    "REASONS",
    "Reject",
    "attach_questions",
    "read_passages",
    "read_questions",
]

READERS: dict[str, Callable[[Path], Iterator[RawRecord | Reject]]] = {
    ".txt": txt_records,
    ".md": md_records,
    ".jsonl": jsonl_records,
    ".json": json_records,
    ".csv": csv_records,
    ".parquet": parquet_records,
}
"""The known endings, and what reads them."""

MAX_ID_LENGTH = 200
"""Longest id in characters."""


def read_passages(
    path: Path,
    *,
    on_reject: Callable[[Reject], None],
    count_tokens: Callable[[str], int] | None = None,
    max_tokens: int | None = None,
) -> Iterator[Passage]:
    """Reads passages one at a time.

    Args:
        path: A file with one of the endings in `READERS`.
        on_reject: Called with everything that is left out, as it is met. SQuAD v2 questions
            without an answer come as one reject for the whole file, at its end.
        count_tokens: Number of tokens of a text.
        max_tokens: Passages with more tokens are split on sentences into ``<id>#1``, ``<id>#2``,
            …: each question goes to the part that holds its answer, completions to the first.
            Nothing is split unless both are given.

    Returns:
        The passages, in the file's order, with unique ids. The path is checked at once; the
        errors of the file's content come while iterating.

    Raises:
        DataError: The file is missing, a folder, unreadable, empty, of an unknown ending, damaged
            as a whole, or holds no passage.
        UsageError: A Parquet file, and pyarrow is not installed; `max_tokens` is below 1.
    """
    if max_tokens is not None and max_tokens < 1:
        raise UsageError(f"max_tokens is {max_tokens}", "Give at least 1.")
    reader = _reader_for(path)
    budget = (count_tokens, max_tokens) if count_tokens and max_tokens else None
    return _Reading(path, on_reject, budget).passages(reader(path))


def _reader_for(path: Path) -> Callable[[Path], Iterator[RawRecord | Reject]]:
    remedy = f"Known endings: {', '.join(READERS)}."
    try:
        if path.is_dir():
            raise DataError(f"{path} is a folder", f"Give one file. {remedy}")
        size = path.stat().st_size
        regular = path.is_file()
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist", f"Check the path. {remedy}") from error
    except (OSError, ValueError) as error:
        reason = error if isinstance(error, OSError) else OSError(str(error))
        raise lines.unreadable(path, reason) from error
    ending = path.suffix.lower()
    if ending not in READERS:
        raise DataError(f"{path}: unknown ending {ending!r}", remedy)
    if regular and size == 0:
        raise DataError(f"{path} is empty", f"Give a file with passages. {remedy}")
    if ending == ".parquet":
        import_parquet(path)
    return READERS[ending]


class _Unusable(Exception):
    """A record that cannot become a passage."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


class _Reading:
    """One pass over a file: checks records, finds duplicates, counts rejects."""

    def __init__(
        self,
        path: Path,
        on_reject: Callable[[Reject], None],
        budget: tuple[Callable[[str], int], int] | None,
    ) -> None:
        self._path = path
        self._on_reject = on_reject
        self._budget = budget
        self._ids: dict[int, int] = {}
        self._texts: dict[int, int] = {}
        self._reasons: Counter[str] = Counter()
        self._unanswerable = 0
        self._first_unanswerable = 0

    def passages(self, records: Iterator[RawRecord | Reject]) -> Iterator[Passage]:
        found = 0
        for record in records:
            if isinstance(record, Reject):
                self._send(record)
                continue
            try:
                passage = self._passage(record)
            except _Unusable as problem:
                self._reject(record.line, problem.reason, problem.detail)
                continue
            for part in self._parts(passage, record.line):
                found += 1
                yield part
        if self._unanswerable:
            detail = f"{self._unanswerable} questions without an answer left out, the first here"
            self._reject(self._first_unanswerable, "unanswerable_question", detail)
        if not found:
            counts = ", ".join(f"{reason} {n}" for reason, n in self._reasons.most_common())
            raise DataError(
                f"{self._path} holds no passages" + (f" (rejected: {counts})" if counts else ""),
                f"A passage needs a text. Known endings: {', '.join(READERS)}; "
                f"keys: {', '.join(COLUMNS)}.",
            )

    def _send(self, reject: Reject) -> None:
        self._reasons[reject.reason] += 1
        self._on_reject(reject)

    def _reject(self, line: int, reason: str, detail: str) -> None:
        self._send(Reject(str(self._path), line, reason, detail))

    def _passage(self, record: RawRecord) -> Passage:
        """Checks a record; its duplicates are found here, so that a duplicate is not split."""
        fields = record.fields
        _check_finite(fields)
        text = _text(fields)
        title = _title(fields.get("title"))
        passage_id = _id(fields.get("id"))
        parsed = parse_questions(fields.get("questions"))
        passage = Passage.make(
            text,
            id=passage_id,
            title=title,
            questions=parsed.questions,
            source=f"{self._path}:{record.line}",
            completions=self._completions(record),
        )
        self._check_new(passage, record.line, explicit_id=passage_id is not None)
        for problem in parsed.problems:
            self._reject(record.line, "bad_questions", problem)
        if parsed.unanswerable:
            self._first_unanswerable = self._first_unanswerable or record.line
            self._unanswerable += parsed.unanswerable
        return passage

    def _check_new(self, passage: Passage, line: int, *, explicit_id: bool) -> None:
        id_key = _hash8(passage.id)
        text_key = _hash8(" ".join(passage.text.split()))
        if id_key in self._ids and (explicit_id or text_key not in self._texts):
            detail = f"id {passage.id!r} was used at {self._ids[id_key]}"
            raise _Unusable("duplicate_id", detail)
        if text_key in self._texts:
            lost = f"; its {len(passage.questions)} questions go too" if passage.questions else ""
            raise _Unusable("duplicate_text", f"same text as at {self._texts[text_key]}{lost}")
        self._ids[id_key] = self._texts[text_key] = line

    def _completions(self, record: RawRecord) -> tuple[str, ...]:
        value = record.fields.get("completions")
        if value is None or value == "":
            return ()
        if isinstance(value, str):  # a list as JSON, in a table's cell
            with suppress(ValueError):
                value = parse_json(value)
        if not isinstance(value, list):
            self._reject(record.line, "bad_completions", "'completions' is not a list")
            return ()
        good = tuple(c for c in value if isinstance(c, str) and c.strip() and lines.is_encodable(c))
        if len(good) < len(value):
            detail = f"{len(value) - len(good)} of {len(value)} are blank or no texts"
            self._reject(record.line, "bad_completions", detail)
        return good

    def _parts(self, passage: Passage, line: int) -> Iterator[Passage]:
        if self._budget is None:
            yield passage
            return
        count_tokens, max_tokens = self._budget
        texts = split_passage(passage.text, max_tokens, count_tokens)
        if len(texts) == 1:
            yield passage
            return
        questions = assign_questions(texts, passage.questions)
        for number, (text, asked) in enumerate(zip(texts, questions, strict=True), start=1):
            part_id = f"{passage.id}#{number}"
            if (key := _hash8(part_id)) in self._ids:
                detail = f"part id {part_id!r} was used at {self._ids[key]}"
                self._reject(line, "duplicate_id", detail)
                continue
            self._ids[key] = line
            yield Passage.make(
                text,
                id=part_id,
                title=passage.title,
                questions=asked,
                source=passage.source,
                completions=passage.completions if number == 1 else (),
            )


def _hash8(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def _check_finite(fields: Mapping[str, object]) -> None:
    for key in COLUMNS:
        value = fields.get(key)
        if isinstance(value, float) and not math.isfinite(value):
            raise _Unusable("non_finite", f"{key!r} is {value}")


def _text(fields: Mapping[str, object]) -> str:
    present = [(key, fields[key]) for key in TEXT_KEYS if fields.get(key) is not None]
    if not present:
        raise _Unusable("missing_text", f"none of {', '.join(map(repr, TEXT_KEYS))}")
    for key, value in present:
        if not isinstance(value, str):
            detail = f"{key!r} is {one_line(repr(value), 40)}"
            raise _Unusable("bad_text", detail)
        if not value.strip():
            continue
        if not lines.is_encodable(value):
            raise _Unusable("bad_encoding", f"{key!r} holds a lone surrogate")
        if len(value.encode()) > lines.MAX_RECORD_BYTES:
            detail = f"larger than {lines.MAX_RECORD_BYTES:,} bytes"
            raise _Unusable("too_long", detail)
        return value.replace("\r\n", "\n")
    raise _Unusable("empty_text", f"{present[0][0]!r} is blank")


def _title(value: object) -> str:
    if value is None or (isinstance(value, str) and not value.strip()):
        return ""
    try:
        return " ".join(plain_text(value).split())
    except ValueError as error:
        raise _Unusable("bad_title", f"'title': {error}") from error


def _id(value: object) -> str | None:
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    try:
        text = plain_text(value)
    except ValueError as error:
        raise _Unusable("bad_id", f"'id': {error}") from error
    if len(text) > MAX_ID_LENGTH or not text.isprintable():
        raise _Unusable(
            "bad_id", f"{one_line(text, 40)!r}: at most {MAX_ID_LENGTH} printable characters"
        )
    return text
