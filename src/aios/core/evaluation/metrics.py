"""Metrics of answers to held-out questions.

Takes a model's score of the reference answer and the text that it wrote; gives, per question,
loss, exact match, token F1 and contains-answer, and their summary over questions.

Exact match and F1 follow the SQuAD evaluation (Rajpurkar et al. 2016, arXiv 1606.05250): an
answer is lower-cased, punctuation and the articles *a*, *an*, *the* are removed, white space is
folded, and the best value over the accepted answers counts. Deviations, none of which changes a
number on plain English ASCII text:

* Unicode punctuation (curly quotes, long dashes) is removed like its ASCII kin, and text is
  brought to Unicode form NFKC first.
* An answer of which normalisation leaves nothing (``"A"``, ``"#"``) is compared lower-cased with
  its articles and punctuation, so that an empty prediction is never right.
"""

from __future__ import annotations

import math
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from aios.core.errors import NonFiniteError, UsageError
from aios.core.types import Question, Score

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")


@dataclass(frozen=True, slots=True)
class AnswerResult:
    """How a model did on one question.

    Attributes:
        probe_id: Id of the question, the same in every arm and seed.
        passage_id: The passage that it is about; questions of a passage form a cluster.
        question: The question's text.
        answers: Accepted answers, the first being the reference that was scored.
        logprob: Sum of the natural-log probabilities of the reference answer's tokens.
        tokens: Tokens of the reference answer; at least 1.
        greedy: Whether the reference answer is what greedy decoding would write.
        prediction: What the model wrote.
        exact: Whether the prediction is an accepted answer after normalisation.
        f1: Token F1 of the prediction in [0, 1], best over the accepted answers.
        contains: Whether an accepted answer stands in the prediction as whole words.
        category: What kind of fact is asked for, or empty.
    """

    probe_id: str
    passage_id: str
    question: str
    answers: tuple[str, ...]
    logprob: float
    tokens: int
    greedy: bool
    prediction: str
    exact: bool
    f1: float
    contains: bool
    category: str = ""

    @classmethod
    def judge(
        cls, probe_id: str, passage_id: str, question: Question, score: Score, prediction: str
    ) -> AnswerResult:
        """Judges a prediction and a score of the reference answer.

        Args:
            probe_id: Id of the question.
            passage_id: Id of its passage.
            question: The question with its accepted answers.
            score: The model's score of the first answer.
            prediction: What the model wrote for the question.

        Raises:
            NonFiniteError: The score is NaN or infinite; the message names the probe.
        """
        _check_finite(probe_id, score.logprob)
        return cls(
            probe_id=probe_id,
            passage_id=passage_id,
            question=question.question,
            answers=question.answers,
            logprob=score.logprob,
            tokens=score.tokens,
            greedy=score.greedy,
            prediction=prediction,
            exact=exact_match(prediction, question.answers),
            f1=f1(prediction, question.answers),
            contains=contains_answer(prediction, question.answers),
            category=question.category,
        )

    @property
    def loss(self) -> float:
        """Mean negative log-likelihood per answer token (nats)."""
        return -self.logprob / self.tokens


@dataclass(frozen=True, slots=True)
class MetricSummary:
    """Metrics over the questions of one run.

    Attributes:
        loss: Negative log-likelihood of all answer tokens over their number (nats per token).
        perplexity: ``exp(loss)``.
        exact: Share of exact matches, in [0, 1].
        f1: Mean token F1, in [0, 1].
        contains: Share of predictions that contain an accepted answer, in [0, 1].
        greedy: Share of reference answers that greedy decoding would write, in [0, 1].
        n: Number of questions.
    """

    loss: float
    perplexity: float
    exact: float
    f1: float
    contains: float
    greedy: float
    n: int


def normalize_answer(text: str) -> str:
    """Lower-cases and drops punctuation, articles and surplus space (see the module's head)."""
    folded = unicodedata.normalize("NFKC", text).lower()
    plain = "".join(character for character in folded if not _is_punctuation(character))
    words = _ARTICLES.sub(" ", plain).split()
    return " ".join(words or folded.split())


def exact_match(prediction: str, answers: Sequence[str]) -> bool:
    """Whether the prediction equals one of the answers after normalisation."""
    normal = normalize_answer(prediction)
    return any(normal == normalize_answer(answer) for answer in answers)


def f1(prediction: str, answers: Sequence[str]) -> float:
    """Harmonic mean of token precision and recall, best over the answers, in [0, 1]."""
    return max((_f1_of_one(prediction, answer) for answer in answers), default=0.0)


def contains_answer(prediction: str, answers: Sequence[str]) -> bool:
    """Whether the words of an answer stand in the prediction, in order and next to each other.

    ``12`` is not contained in ``1912``, nor ``art`` in ``heart``.
    """
    padded = f" {normalize_answer(prediction)} "
    normals = (normalize_answer(answer) for answer in answers)
    return any(normal and f" {normal} " in padded for normal in normals)


def perplexity(loss: float) -> float:
    """``exp(loss)`` of a loss in nats per token.

    Raises:
        NonFiniteError: The loss is not a number, or too large for its perplexity to be one.
    """
    try:
        value = math.exp(loss)
    except OverflowError:
        value = math.inf
    if not math.isfinite(value):
        raise NonFiniteError(
            f"a loss of {loss} has no finite perplexity",
            "lower the learning rate, or look at the model's weights for NaN",
        )
    return value


def summarize(results: Sequence[AnswerResult]) -> MetricSummary:
    """Summarises the questions of one run.

    Args:
        results: One result a question; at least one.

    Raises:
        NonFiniteError: A log-probability is NaN or infinite; the message names the probe.
        UsageError: There is no result.
    """
    if not results:
        raise UsageError("there are no questions to report on", "give passages with questions")
    for result in results:
        _check_finite(result.probe_id, result.logprob)
    n = len(results)
    loss = -math.fsum(r.logprob for r in results) / sum(r.tokens for r in results)
    return MetricSummary(
        loss=loss,
        perplexity=perplexity(loss),
        exact=sum(r.exact for r in results) / n,
        f1=math.fsum(r.f1 for r in results) / n,
        contains=sum(r.contains for r in results) / n,
        greedy=sum(r.greedy for r in results) / n,
        n=n,
    )


def _f1_of_one(prediction: str, answer: str) -> float:
    predicted, wanted = normalize_answer(prediction).split(), normalize_answer(answer).split()
    shared = sum((Counter(predicted) & Counter(wanted)).values())
    if shared == 0:
        return 0.0
    precision, recall = shared / len(predicted), shared / len(wanted)
    return 2 * precision * recall / (precision + recall)


def _is_punctuation(character: str) -> bool:
    return character in string.punctuation or unicodedata.category(character).startswith("P")


def _check_finite(probe_id: str, logprob: float) -> None:
    if not math.isfinite(logprob):
        raise NonFiniteError(
            f"question {probe_id}: its log-probability is {logprob}",
            "the model or adapter holds NaN or infinite weights; train with a lower learning rate",
        )
