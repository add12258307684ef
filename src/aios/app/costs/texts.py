"""How much text an A/B test or an expert's training has to do with, counted before it starts.

Takes the passages of a file and a measure of texts; gives `core.training_work.TextSizes`. With the
model's own tokenizer as the measure these are tokens; with ``len``, which needs no model, they are
characters. Passages and questions are divided as the job itself divides them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from aios.app.data.preview import MOST_JSON_BYTES, MOST_PASSAGES
from aios.core.config.schemas import Config
from aios.core.data.probes import Probe, make_probes
from aios.core.data.questions import attach_questions
from aios.core.data.readers import read_passages
from aios.core.data.rejects import Reject
from aios.core.errors import DataError
from aios.core.evaluation.ab_test import ABSettings, make_questions, split_experiment
from aios.core.training.examples import passage_examples, passage_text
from aios.core.training_work import TextSizes
from aios.core.types import Passage, Question, ScoreRequest

CONTROL_ARM = "passage+other-edits"
MOST_SECONDS = 4.0  # of a look without a model
_LOOK_EVERY = 64

Measure = Callable[[str], int]


@dataclass(frozen=True, slots=True)
class CountedTexts:
    """The texts of a job.

    Attributes:
        sizes: How much there is; `written` is still empty.
        writing: Passages that self-edits are written of.
        passages: Those that are trained on.
    """

    sizes: TextSizes
    writing: int
    passages: tuple[Passage, ...]


def look_at_passages(path: Path, most_characters: int) -> tuple[Passage, ...] | None:
    """The passages of a file, in bounded time; None where there are more than can be looked at.

    Args:
        path: The file.
        most_characters: Longer passages are split.

    Raises:
        DataError: It cannot be read.
    """
    if path.suffix.lower() == ".json" and path.stat().st_size > MOST_JSON_BYTES:
        return None
    end = time.monotonic() + MOST_SECONDS
    found: list[Passage] = []
    for passage in read_passages(
        path, on_reject=_ignore, count_tokens=len, max_tokens=most_characters
    ):
        found.append(passage)
        late = len(found) % _LOOK_EVERY == 0 and time.monotonic() > end
        if late or len(found) > MOST_PASSAGES:
            return None
    return tuple(found)


def _ignore(reject: Reject) -> None:
    """Rejects are listed by the job."""


def count_ab_texts(
    config: Config,
    settings: ABSettings,
    passages: Sequence[Passage],
    measure: Measure,
    *,
    questions: Mapping[str, Sequence[Question]] | None = None,
    retention: Sequence[ScoreRequest] = (),
) -> CountedTexts:
    """The texts of an A/B test.

    Args:
        config: The resolved config.
        settings: How the test is run.
        passages: All passages of the file.
        measure: The length of a text.
        questions: Questions from a file of their own, by passage id.
        retention: Unrelated text.

    Raises:
        DataError: The file cannot be used for a test.
    """
    learned, others = split_experiment(
        attach_questions(passages, questions or {}),
        config.ab_test.max_passages,
        with_control=CONTROL_ARM in config.ab_test.arms,
    )
    selection, report = make_questions(learned, settings, config.seed)
    texts = {one.id: measure(one.text) for one in learned} if report else {}
    sizes = TextSizes(
        passages=len(learned),
        tokens=sum(measure(example.text) for example in passage_examples(learned)),
        validation_tokens=_asked(selection, measure),
        questions=len(report),
        context_tokens=_asked(report, measure) + sum(texts[probe.passage_id] for probe in report),
        retention_tokens=_scored(retention, measure),
    )
    writes = any(arm.startswith("passage+") for arm in config.ab_test.arms)
    return CountedTexts(sizes, (len(learned) + len(others)) * writes, learned)


def count_expert_texts(
    config: Config, passages: Sequence[Passage], measure: Measure, *, use_self_edits: bool
) -> CountedTexts:
    """The texts of an expert's training; takes what `count_ab_texts` does.

    Where nobody asks questions, passages are held back: they are counted as that share of all.

    Raises:
        DataError: There is no passage.
    """
    if not passages:
        raise DataError("there is no passage", "choose another file")
    tokens = sum(measure(passage_text(passage)) for passage in passages)
    asked = {passage.id: passage.questions for passage in passages if passage.questions}
    trained, validation = len(passages), 0.0
    if asked:
        probes = make_probes(asked, config.evaluation.question_template)
        validation = _asked(probes, measure)
    elif len(passages) > 1 and config.training.validation_fraction:
        share = config.training.validation_fraction * len(passages)
        held_back = min(max(1, round(share)), len(passages) - 1)
        trained -= held_back
        validation = tokens * held_back / len(passages)
    sizes = TextSizes(trained, tokens * trained / len(passages), validation_tokens=validation)
    return CountedTexts(sizes, trained * use_self_edits, tuple(passages))


def _asked(probes: Iterable[Probe], measure: Measure) -> int:
    return _scored((probe.request for probe in probes), measure)


def _scored(requests: Iterable[ScoreRequest], measure: Measure) -> int:
    return sum(measure(one.prompt) + measure(one.continuation) for one in requests)
