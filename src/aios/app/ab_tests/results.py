"""What a finished A/B experiment found, from its directory alone, as pages show it.

Takes a run's directory; gives its numbers, the parts of its report, and the change of every
question, to be searched and sorted. Nothing is computed here that the report does not compute: all
of it comes from ``metrics.json`` through the functions that the report is made with.

The file may come from anywhere: its size is bounded, and one that is not as this version writes it
is refused whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from aios.app.ab_tests import report_charts, report_html
from aios.app.ab_tests.report_charts import QuestionChange
from aios.app.charts.report_page import printable
from aios.app.kept import KeptByStamp, stamp_of
from aios.app.runs.checked_values import fits
from aios.core.errors import StorageError
from aios.core.evaluation.comparison import ArmRun
from aios.core.evaluation.document import SCHEMA_VERSION
from aios.core.evaluation.metrics import AnswerResult
from aios.core.files import read_json
from aios.core.trainings import CurvePoint

METRICS_FILE = "metrics.json"
SORTS = ("improved", "worsened", "passage")

_MOST_DOTS = 2000  # questions in the chart of changes
_REMEDY = "Its report.html may still be read. Look at the file, or run the experiment again."
_RUN_FIELDS = (
    "seed", "retention_loss", "best_step", "steps", "tokens", "train_seconds",
    "peak_memory_bytes", "examples",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ABResult:
    """What an experiment found.

    Attributes:
        document: The content of ``metrics.json``.
        summary: What the report says before its charts (`report_html.summary`).
        changes: The questions in the main pair of arms, the most improved first.
        charts: ``losses``, ``accuracies``, ``curves``, ``questions``; None where there is nothing
            to draw.
    """

    document: Mapping[str, Any]
    summary: Mapping[str, Any]
    changes: Sequence[QuestionChange]
    charts: Mapping[str, Markup | None]

    @property
    def info(self) -> Mapping[str, Any]:
        """The set-up."""
        found = self.document.get("info")
        return found if isinstance(found, Mapping) else {}


_RESULTS: KeptByStamp[ABResult] = KeptByStamp(4)
_DOCUMENTS: KeptByStamp[Mapping[str, Any]] = KeptByStamp(4)


def read_document(path: Path) -> Mapping[str, Any]:
    """The content of a run's ``metrics.json``.

    Raises:
        StorageError: It is missing, too large, corrupt, or of another version.
    """
    file = path / METRICS_FILE

    def read() -> Mapping[str, Any]:
        found = read_json(file)
        if not isinstance(found, dict) or found.get("schema_version") != SCHEMA_VERSION:
            raise StorageError(f"{file} was written by another version of aios", _REMEDY)
        return found

    return _DOCUMENTS.get(path, stamp_of(file), read)


def read_result(path: Path) -> ABResult:
    """What an experiment found.

    Args:
        path: The run's directory.

    Raises:
        StorageError: It is not finished, or its numbers cannot be read.
    """
    document = read_document(path)

    def make() -> ABResult:
        with as_written(path / METRICS_FILE):
            arm_runs(document, path)
            changes = report_charts.question_changes(document, {})
            dots = changes if len(changes) <= _MOST_DOTS else []
            charts = report_charts.charts(document, dots, printable)
            return ABResult(document, report_html.summary(document), changes, charts)

    return _RESULTS.get(path, stamp_of(path / METRICS_FILE), make)


def arm_runs(document: Mapping[str, Any], path: Path) -> dict[str, list[ArmRun]]:
    """The runs of each arm, as they were when the experiment compared them.

    Args:
        document: What `read_document` gave.
        path: The run's directory, for messages.

    Raises:
        StorageError: The document is not as this version writes it.
    """
    with as_written(path / METRICS_FILE):
        questions = document["questions"]
        arms = {
            name: [_arm_run(name, run, questions) for run in arm["runs"]]
            for name, arm in document["arms"].items()
        }
        if not all(fits(run, ArmRun) for runs in arms.values() for run in runs):
            raise TypeError("values of the wrong type")
        return arms


def _arm_run(name: str, run: Mapping[str, Any], questions: Mapping[str, Any]) -> ArmRun:
    return ArmRun(
        arm=name,
        results=tuple(_answer(result, questions) for result in run["results"]),
        curve=tuple(CurvePoint(**point) for point in run["curve"]),
        **{field: run[field] for field in _RUN_FIELDS},
    )


def _answer(result: Mapping[str, Any], questions: Mapping[str, Any]) -> AnswerResult:
    asked = questions[result["probe_id"]]
    return AnswerResult(
        probe_id=result["probe_id"],
        passage_id=asked["passage_id"],
        question=asked["question"],
        answers=tuple(asked["answers"]),
        logprob=result["logprob"],
        tokens=result["tokens"],
        greedy=result["greedy"],
        prediction=result["prediction"],
        exact=result["exact"],
        f1=result["f1"],
        contains=result["contains"],
        category=asked["category"],
    )


@contextmanager
def as_written(file: Path) -> Iterator[None]:
    """Refuses a file of numbers whose content the body cannot do with.

    Raises:
        StorageError: The body found it not as this version writes it.
    """
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, LookupError, ArithmeticError) as error:
        text = f"{file} is not as this version of aios writes it ({type(error).__name__})"
        raise StorageError(text, _REMEDY) from error


def find_changes(
    changes: Sequence[QuestionChange], text: str = "", sort: str = "improved"
) -> list[QuestionChange]:
    """The questions that hold a text, in an order.

    Args:
        changes: The questions, the most improved first.
        text: Looked for in passage, question, answer and what the arms wrote; in any case.
        sort: One of `SORTS`.
    """
    wanted = text.casefold()
    found = [one for one in changes if not wanted or _holds(one, wanted)]
    orders: dict[str, Callable[[QuestionChange], Any]] = {
        "worsened": lambda one: -one.change,
        "passage": lambda one: (one.passage, one.question),
    }
    return sorted(found, key=orders[sort]) if sort in orders else found


def _holds(change: QuestionChange, wanted: str) -> bool:
    texts = (
        change.passage,
        change.question,
        change.answer,
        change.control.prediction,
        change.treatment.prediction,
    )
    return any(wanted in text.casefold() for text in texts)
