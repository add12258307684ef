"""What a model makes of held-out questions, each asked once.

Takes a `LanguageModel` and questions; gives `Answered` records in the order of the questions: the
reference answer's log-probability and, where wanted, a written answer. All questions of a call go
to the model in one batch. Answers are kept in memory, in a bounded number, so that a base model is
not asked the same again for every expert that it is compared with.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence

from aios.core.data.probes import Probe, make_probes
from aios.core.errors import BackendError
from aios.core.protocols import LanguageModel
from aios.core.trials import Answered
from aios.core.types import GenerationRequest, Passage, Question, SamplingParams, content_hash

KEPT_ANSWERS = 10_000

_Key = tuple[str, str, bool, str, str]  # digests, written, question, its prompt


class TimeLimit:
    """A limit in seconds that begins now; None for no limit."""

    def __init__(self, seconds: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds = seconds
        self._clock = clock
        self._began = clock()

    def share(self, parts: int) -> float | None:
        """An equal part of the time that is left; 0 where none is."""
        if self.seconds is None:
            return None
        return max(0.0, self.seconds - (self._clock() - self._began)) / parts


class HeldOutAnswers:
    """Asks models held-out questions and keeps what they made of them.

    Args:
        max_answer_tokens: Longest answer that is written.
        kept: Most answers kept; those used longest ago go first. 0: none.
    """

    def __init__(self, max_answer_tokens: int = 16, kept: int = KEPT_ANSWERS) -> None:
        self._sampling = SamplingParams(0.0, 1.0, max_answer_tokens, ("\n",))
        self._kept: OrderedDict[_Key, Answered] = OrderedDict()
        self._most = kept

    def ask(
        self,
        model: LanguageModel,
        probes: Sequence[Probe],
        *,
        written: bool,
        keep: bool,
        limit: TimeLimit,
    ) -> list[Answered]:
        """What a model makes of the questions, in order.

        Args:
            model: Whom to ask.
            probes: The questions; only those without a kept answer are put to the model.
            written: Whether it also writes an answer to each, greedily, to the line's end.
            keep: Whether its digests tell it from every other model, so that its answers can be
                kept and found again.
            limit: For writing; a batch that is being scored is not interrupted.

        Raises:
            BackendError: The model failed, or an answer was cut off by the limit (retryable; the
                answers that were finished are kept).
        """
        who = (model.digest, model.adapter_digest, written)
        keys = [(*who, p.id, content_hash(p.prompt, p.request.continuation)) for p in probes]
        known = {key: self._kept[key] for key in keys if keep and key in self._kept}
        missing = {k: p for k, p in zip(keys, probes, strict=True) if k not in known}
        late: list[str] = []
        if missing:
            asked = list(missing.values())
            scores = model.score([probe.request for probe in asked])
            texts = self._write(model, asked, limit) if written else [None] * len(asked)
            for (key, probe), score, text in zip(missing.items(), scores, texts, strict=True):
                if written and text is None:
                    late.append(probe.id)
                else:
                    known[key] = Answered(probe.id, score, text)
        if keep:
            self._remember(known)
        if late:
            raise BackendError(
                f"question {late[0]}: its answer was cut off, since the validation's"
                f" {limit.seconds} s were over ({len(late)} of {len(probes)} questions)",
                "Allow more time, ask for shorter answers, or reward by log-probability.",
                retryable=True,
            )
        return [known[key] for key in keys]

    def _write(
        self, model: LanguageModel, probes: Sequence[Probe], limit: TimeLimit
    ) -> list[str | None]:
        """Written answers; None for one that was cut off."""
        share = limit.share(len(probes))
        requests = [GenerationRequest(p.prompt, (0,), self._sampling, share) for p in probes]
        written = (completions[0] for completions in model.generate(requests))
        return [None if c.finish_reason == "deadline" else c.text.strip() for c in written]

    def _remember(self, answers: dict[_Key, Answered]) -> None:
        for key, answered in answers.items():
            self._kept[key] = answered
            self._kept.move_to_end(key)
        while len(self._kept) > self._most:
            self._kept.popitem(last=False)


def as_probes(dataset: Sequence[Probe] | Sequence[Passage]) -> tuple[Probe, ...]:
    """Questions as they are; those of passages made ready.

    Raises:
        DataError: A passage's question has no answer.
    """
    probes: list[Probe] = []
    questions: dict[str, list[Question]] = {}
    for one in dataset:
        if isinstance(one, Passage):
            questions.setdefault(one.id, []).extend(one.questions)
        else:
            probes.append(one)
    return (*probes, *make_probes(questions))
