"""Questions as scoring requests: what is the probability of the answer after the question?

Takes questions by passage id and gives `Probe` records, each with the `ScoreRequest` for its first
answer and the prompt from which an answer can be generated.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from aios.core.errors import DataError, UsageError
from aios.core.types import Question, ScoreRequest, content_hash

QUESTION_TEMPLATE = "Question: {question}\nAnswer:"
_FIELD = re.compile(r"\{(\w*)\}")


@dataclass(frozen=True, slots=True)
class Probe:
    """A question ready to be put to a model.

    Attributes:
        id: Content hash of passage id, question and answers; unique within `make_probes`.
        passage_id: The passage that the question is about.
        question: The question's text.
        answers: Accepted answers, the first being the one that is scored.
        prompt: What the model is given.
        request: The prompt with the first answer as continuation.
        category: What kind of fact it asks for, or empty.
    """

    id: str
    passage_id: str
    question: str
    answers: tuple[str, ...]
    prompt: str
    request: ScoreRequest
    category: str = ""


def make_probes(
    passages_questions: Mapping[str, Sequence[Question]],
    template: str = QUESTION_TEMPLATE,
    *,
    contexts: Mapping[str, str] | None = None,
) -> tuple[Probe, ...]:
    """Turns questions into probes, in order; an equal question about a passage counts once.

    Args:
        passages_questions: Questions by passage id.
        template: The prompt with ``{question}`` in it. Where it ends in white space, the answer
            follows at once; else after one space.
        contexts: Texts by passage id for ``{context}`` in the template (questions with the
            passage in view); without them that field is unknown.

    Returns:
        The probes.

    Raises:
        UsageError: The template lacks ``{question}`` or has another field.
        DataError: A question has no answer, or its passage no context.
    """
    known = {"question"} if contexts is None else {"question", "context"}
    fields = set(_FIELD.findall(template))
    if "question" not in fields or fields - known:
        raise UsageError(
            f"question template {template!r} has the fields {sorted(fields)}",
            f"It needs {{question}}; known fields: {', '.join(sorted(known))}.",
        )
    probes: dict[str, Probe] = {}
    for passage_id, questions in passages_questions.items():
        values = {}
        if "context" in fields and contexts is not None:
            if passage_id not in contexts:
                raise DataError(f"no context for passage {passage_id!r}")
            values["context"] = contexts[passage_id]
        for question in questions:
            probe = _probe(passage_id, question, template, values)
            probes.setdefault(probe.id, probe)
    return tuple(probes.values())


def _probe(passage_id: str, question: Question, template: str, values: Mapping[str, str]) -> Probe:
    if not question.answers or not question.answers[0].strip():
        raise DataError(
            f"question {question.question!r} about passage {passage_id!r} has no answer",
            "Give every question at least one answer.",
        )
    filled = {**values, "question": question.question.strip()}
    prompt = _FIELD.sub(lambda match: filled[match.group(1)], template)
    answer = question.answers[0].strip()
    space = "" if not prompt or prompt[-1].isspace() else " "
    return Probe(
        id=content_hash("probe", passage_id, question.question, question.answers),
        passage_id=passage_id,
        question=question.question,
        answers=question.answers,
        prompt=prompt,
        request=ScoreRequest(prompt, space + answer),
        category=question.category,
    )
