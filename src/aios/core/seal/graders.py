"""Graders: how good is what a model made of each held-out question?

Takes questions (`Probe`) and what a model made of them (`Answered`), in the same order; gives one
number a question, higher is better. Four graders look at nothing but text and numbers; `Judge`
asks another language model. Which model that is, and over which network, is not decided here.

SEAL (Zweiger et al. 2025, arXiv 2506.10943) grades knowledge with a judge, GPT-4.1, that says
whether the written answer is right. Deviation: the cheapest grade, the reference answer's mean
log-probability a token, needs one forward pass and no written answer, and is what rewards use
unless another is asked for. A judge's reply that is neither yes nor no is an error, not a 0.
"""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from collections.abc import Sequence
from typing import Protocol

from aios.core.data.probes import Probe
from aios.core.errors import BackendError, NonFiniteError, UsageError
from aios.core.evaluation.metrics import contains_answer, exact_match, f1
from aios.core.protocols import LanguageModel
from aios.core.seeds import derive
from aios.core.trials import Answered
from aios.core.types import GenerationRequest, SamplingParams

GRADERS = ("exact", "f1", "contains", "logprob", "judge")
KEPT_VERDICTS = 10_000

_JUDGE_PROMPT = """\
Decide whether a student's answer to a question means the same as a reference answer. Other \
wording and further true detail are fine. A different, missing or contradictory fact is not.

Question: {question}
Reference answer: {reference}
Student's answer: {answer}

Does the student's answer mean the same as the reference answer? Reply with one word, yes or no."""

_VERDICT = re.compile(r"\b(yes|no)\b", re.IGNORECASE)
_Triple = tuple[str, tuple[str, ...], str]  # question, accepted answers, written answer


class Grader(Protocol):
    """Grades what a model made of questions."""

    @property
    def name(self) -> str:
        """Its name, one of `GRADERS` or a third party's own."""
        ...

    @property
    def needs_text(self) -> bool:
        """Whether it reads the written answer, which the model must then be asked for."""
        ...

    def grade(self, probes: Sequence[Probe], answered: Sequence[Answered]) -> list[float]:
        """One grade a question, higher is better.

        Args:
            probes: The questions.
            answered: What the model made of each, in the same order.

        Raises:
            UsageError: A question has no written answer and the grader needs one.
            NonFiniteError: A grade is not a finite number; the message names the question.
            BackendError: The grader asks a model, and that failed.
            ValueError: The two sequences are not about the same questions.
        """
        ...


class ExactMatch:
    """1 where the written answer equals an accepted one after normalisation, else 0."""

    name = "exact"
    needs_text = True

    def grade(self, probes: Sequence[Probe], answered: Sequence[Answered]) -> list[float]:
        """0 or 1 a question (`metrics.exact_match`)."""
        return [float(exact_match(text, probe.answers)) for probe, text in _texts(probes, answered)]


class F1:
    """Token F1 of the written answer, best over the accepted ones, in [0, 1]."""

    name = "f1"
    needs_text = True

    def grade(self, probes: Sequence[Probe], answered: Sequence[Answered]) -> list[float]:
        """A number in [0, 1] a question (`metrics.f1`)."""
        return [f1(text, probe.answers) for probe, text in _texts(probes, answered)]


class Contains:
    """1 where an accepted answer stands in the written one as whole words, else 0."""

    name = "contains"
    needs_text = True

    def grade(self, probes: Sequence[Probe], answered: Sequence[Answered]) -> list[float]:
        """0 or 1 a question (`metrics.contains_answer`)."""
        return [
            float(contains_answer(text, probe.answers)) for probe, text in _texts(probes, answered)
        ]


class AnswerLogprob:
    """Mean log-probability a token of the reference answer (nats, at most 0); no text needed."""

    name = "logprob"
    needs_text = False

    def grade(self, probes: Sequence[Probe], answered: Sequence[Answered]) -> list[float]:
        """``logprob / tokens`` a question."""
        check_same_questions(probes, answered)
        for one in answered:
            if not math.isfinite(one.score.logprob):
                raise NonFiniteError(
                    f"question {one.probe_id}: its log-probability is {one.score.logprob}",
                    "the model or adapter holds NaN or infinite weights; train with a lower"
                    " learning rate",
                )
        return [-one.score.loss for one in answered]


class Judge:
    """1 where another language model says that the written answer means the same, else 0.

    Each different triple of question, accepted answers and written answer is asked once, greedily,
    all of a call in one batch; the last `KEPT_VERDICTS` verdicts are kept. An empty answer is 0
    without being asked about.

    Args:
        model: The judge. It should be a better model than the one it judges.
        max_new_tokens: Longest reply.
    """

    name = "judge"
    needs_text = True

    def __init__(self, model: LanguageModel, *, max_new_tokens: int = 8) -> None:
        self.model = model
        self.sampling = SamplingParams(0.0, 1.0, max_new_tokens)
        self._verdicts: OrderedDict[_Triple, float] = OrderedDict()

    def grade(self, probes: Sequence[Probe], answered: Sequence[Answered]) -> list[float]:
        """0 or 1 a question.

        Raises:
            BackendError: The judge failed, or its reply about a question is neither yes nor no.
            UsageError: A question has no written answer.
        """
        triples = [(p.question, p.answers, text.strip()) for p, text in _texts(probes, answered)]
        verdicts = {triple: 0.0 for triple in triples if not triple[2]}
        for triple in triples:
            if triple in self._verdicts:
                self._verdicts.move_to_end(triple)
                verdicts[triple] = self._verdicts[triple]
        ids: dict[_Triple, str] = {}
        for triple, probe in zip(triples, probes, strict=True):
            if triple not in verdicts:
                ids.setdefault(triple, probe.id)
        if ids:
            verdicts |= self._ask(ids)
        return [verdicts[triple] for triple in triples]

    def _ask(self, ids: dict[_Triple, str]) -> dict[_Triple, float]:
        """The verdicts on some triples, given with the id of a question for messages."""
        asked = list(ids)
        requests = [
            GenerationRequest(self._prompt(triple), (derive(0, "judge"),), self.sampling)
            for triple in asked
        ]
        verdicts = {}
        for triple, completions in zip(asked, self.model.generate(requests), strict=True):
            verdicts[triple] = self._read(completions[0].text, ids[triple])
            self._verdicts[triple] = verdicts[triple]
        while len(self._verdicts) > KEPT_VERDICTS:
            self._verdicts.popitem(last=False)
        return verdicts

    def _prompt(self, triple: _Triple) -> str:
        text = _JUDGE_PROMPT.format(
            question=_one_line(triple[0]),
            reference=" (or) ".join(_one_line(answer) for answer in triple[1]),
            answer=_one_line(triple[2]),
        )
        return self.model.format_chat([{"role": "user", "content": text}])

    def _read(self, reply: str, probe_id: str) -> float:
        found = {word.lower() for word in _VERDICT.findall(reply)}
        if len(found) != 1 or not re.match(r"\W*(?:yes|no)\b", reply, re.IGNORECASE):
            raise BackendError(
                f"question {probe_id}: the judge {self.model.name} replied {reply[:80]!r},"
                " neither yes nor no",
                "use a judge that follows instructions, or another grader"
                f" ({', '.join(name for name in GRADERS if name != 'judge')})",
            )
        return float(found == {"yes"})


def get_grader(name: str, judge: LanguageModel | None = None) -> Grader:
    """The grader of a name.

    Args:
        name: One of `GRADERS`.
        judge: The model that ``judge`` asks.

    Raises:
        UsageError: The name is not known, or ``judge`` has no model.
    """
    plain: dict[str, type[ExactMatch | F1 | Contains | AnswerLogprob]] = {
        "exact": ExactMatch,
        "f1": F1,
        "contains": Contains,
        "logprob": AnswerLogprob,
    }
    if name in plain:
        return plain[name]()
    if name != "judge":
        raise UsageError(f"unknown grader {name!r}", f"Known: {', '.join(GRADERS)}.")
    if judge is None:
        raise UsageError("the grader 'judge' needs a model to ask", "Name a model as the judge.")
    return Judge(judge)


def check_same_questions(probes: Sequence[Probe], answered: Sequence[Answered]) -> None:
    """Checks that answers are those of the questions, in their order.

    Raises:
        ValueError: They are not.
    """
    if [probe.id for probe in probes] != [one.probe_id for one in answered]:
        raise ValueError(f"{len(answered)} answers are not those of the {len(probes)} questions")


def _texts(probes: Sequence[Probe], answered: Sequence[Answered]) -> list[tuple[Probe, str]]:
    """Each question with its written answer."""
    check_same_questions(probes, answered)
    texts = []
    for probe, one in zip(probes, answered, strict=True):
        if one.text is None:
            raise UsageError(
                f"question {probe.id} has no written answer",
                "Have the model write answers (write_answers), or grade by logprob.",
            )
        texts.append((probe, one.text))
    return texts


def _one_line(text: str) -> str:
    """White space folded, so that an answer cannot pass for another part of the prompt."""
    return " ".join(text.split())
