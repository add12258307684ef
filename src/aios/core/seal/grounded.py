"""Self-edits whose answers stand in the passage: the answer comes first, then its question.

Small models often write false self-edits, and false ones do harm (measured; see
experiments/seal_phase1_results.md). Here the answer is a span of a sentence that is worth asking
for (`aios.core.seal.answer_spans`). In ``cloze`` the question is the sentence with that span left
out: true by construction, nothing is sampled. In ``self-qa-grounded`` the model words the
question, and must then find the answer again with the passage in view (a round trip; Alberti et
al. 2019, arXiv 1906.05416), else the pair is left out.

Deviation from the SEAL paper: there the model writes freely, and only training on the result
tells good edits from bad ones.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence

from aios.core.data.splitting import split_sentences
from aios.core.protocols import LanguageModel
from aios.core.seal.answer_spans import AnswerSpan, find_answer_spans
from aios.core.seal.parsing import format_qa
from aios.core.seal.strategies import SelfEditStrategy
from aios.core.seeds import derive
from aios.core.types import (
    Completion,
    FinishReason,
    GenerationRequest,
    Passage,
    SamplingParams,
    ScoreRequest,
)

BLANK = "____"
_SPANS_A_SENTENCE = 4
# Names, numbers and dates are asked for first: they are what questions most often ask.
_RANK = {"date": 0, "number": 0, "name": 0, "clause": 1, "phrase": 2}
_NEXT_PAIR = re.compile(r"\n(?=Question: )")


class AnswerFirstStrategy(SelfEditStrategy):
    """Base of the strategies whose completions are question-answer pairs put together here."""

    parser_version = 1
    samples = False  # the wording's settings are its own
    learnable = False  # no single answer of the model holds them
    taught_as = "self-qa"

    def parse_output(
        self, completion: str, passage: Passage, *, finish_reason: FinishReason | None = None
    ) -> list[str]:
        """The pairs, word for word; equal ones once."""
        return list(dict.fromkeys(_NEXT_PAIR.split(completion))) if completion else []


class ClozeStrategy(AnswerFirstStrategy):
    """Fill-in-the-blank questions from a passage's sentences (``cloze``).

    The seed chooses which spans are asked for where a sentence has more than four, so several
    candidates of a passage differ in their blanks.
    """

    writes = False

    def prompt_text(self, model: LanguageModel, passage: Passage) -> str:
        """The passage: nothing else determines the edits but the seed."""
        return f"{self.name}\n{passage.title}\n{passage.text}"

    def requests(
        self,
        model: LanguageModel,
        passage: Passage,
        seeds: Sequence[int],
        sampling: SamplingParams,
        deadline_seconds: float | None = None,
    ) -> list[GenerationRequest]:
        """Nothing: the model is not asked."""
        return []

    def assemble(
        self,
        model: LanguageModel,
        passage: Passage,
        seeds: Sequence[int],
        answers: Sequence[Sequence[Completion]],
    ) -> list[Completion]:
        """Builds the questions."""
        return [
            Completion("\n".join(cloze_items(passage.text, seed)), 0, "stop", seed)
            for seed in seeds
        ]


_ASK = """\
For each sentence and answer, write the question.

Sentence: The lighthouse of Arnholt was built in 1842 by Per Lindqvist for the fishing guild.
Answer: Per Lindqvist
Question: Who built the lighthouse of Arnholt?

Sentence: Cardel cheese is washed with salt water so that its rind stays soft.
Answer: its rind stays soft
Question: Why is Cardel cheese washed with salt water?

Sentence: The bridge over the Teal is 240 metres long and rests on nine pillars.
Answer: 240 metres
Question: How long is the bridge over the Teal?

Sentence: {sentence}
Answer: {answer}
Question:"""
_WORDING = SamplingParams(temperature=0.3, top_p=0.9, max_new_tokens=40, stop=("\n",))
_FOUND_AGAIN = 1.5  # nats a token: the answer's loss with the passage in view, at most


class GroundedQAStrategy(AnswerFirstStrategy):
    """Questions that the model words for answers in the passage (``self-qa-grounded``)."""

    def prompt_text(self, model: LanguageModel, passage: Passage) -> str:
        """Prompt and passage; the sentences and answers follow from the seed."""
        return f"{self.name}\n{_ASK}\n{passage.title}\n{passage.text}"

    def requests(
        self,
        model: LanguageModel,
        passage: Passage,
        seeds: Sequence[int],
        sampling: SamplingParams,
        deadline_seconds: float | None = None,
    ) -> list[GenerationRequest]:
        """The wordings wanted for each candidate, a request each; they share the deadline."""
        requests = []
        for seed in seeds:
            wanted = _wanted(passage, seed)
            share = deadline_seconds / len(wanted) if deadline_seconds and wanted else None
            requests += [
                GenerationRequest(
                    _ASK.format_map({"sentence": sentence, "answer": answer}),
                    (derive(seed, n),),
                    _WORDING,
                    share,
                )
                for n, (sentence, answer) in enumerate(wanted)
            ]
        return requests

    def assemble(
        self,
        model: LanguageModel,
        passage: Passage,
        seeds: Sequence[int],
        answers: Sequence[Sequence[Completion]],
    ) -> list[Completion]:
        """Keeps of each candidate the questions that the model can answer."""
        worded = iter(answers)
        return [
            self._candidate(model, passage, seed, [(w, next(worded)[0]) for w in wanted])
            for seed in seeds
            for wanted in [_wanted(passage, seed)]
        ]

    def _candidate(
        self,
        model: LanguageModel,
        passage: Passage,
        seed: int,
        worded: Sequence[tuple[tuple[str, str], Completion]],
    ) -> Completion:
        pairs = [
            (question, answer)
            for (_, answer), completion in worded
            if (question := " ".join(completion.text.split())).endswith("?")
            and answer.lower() not in question.lower()
        ]
        text = "\n".join(format_qa(*pair) for pair in _found_again(model, passage, pairs))
        late = any(completion.finish_reason == "deadline" for _, completion in worded)
        tokens = sum(completion.tokens for _, completion in worded)
        return Completion(text, tokens, "deadline" if late else "stop", seed)


def _wanted(passage: Passage, seed: int) -> list[tuple[str, str]]:
    """Sentences and the answers that are asked for in them."""
    return [(s, s[span.start : span.end]) for s, span in _asked(passage.text, seed)]


def _found_again(
    model: LanguageModel, passage: Passage, pairs: Sequence[tuple[str, str]]
) -> list[tuple[str, str]]:
    """The pairs whose answer the model gives when it has passage and question in view."""
    if not pairs:
        return []
    requests = [
        ScoreRequest(f"{passage.text}\n\nQuestion: {question}\nAnswer:", f" {answer}")
        for question, answer in pairs
    ]
    scores = model.score(requests)
    return [
        pair
        for pair, score in zip(pairs, scores, strict=True)
        if score.greedy or score.loss <= _FOUND_AGAIN
    ]


def _asked(
    text: str, seed: int, per_sentence: int = _SPANS_A_SENTENCE
) -> Iterator[tuple[str, AnswerSpan]]:
    """The sentences of a text with the spans that are asked for, in order."""
    rng = random.Random(seed)
    for sentence in split_sentences(text):
        for span in _chosen(sentence, rng, per_sentence):
            yield sentence, span


def cloze_items(text: str, seed: int, per_sentence: int = _SPANS_A_SENTENCE) -> list[str]:
    """Question-answer pairs, each a sentence of the text with one span left out.

    Args:
        text: The passage.
        seed: Chooses among the spans of a sentence.
        per_sentence: Most blanks made from one sentence.
    """
    return [
        format_qa(s[: span.start] + BLANK + s[span.end :], s[span.start : span.end])
        for s, span in _asked(text, seed, per_sentence)
    ]


def _chosen(sentence: str, rng: random.Random, count: int) -> list[AnswerSpan]:
    spans = find_answer_spans(sentence)
    rng.shuffle(spans)
    return sorted(sorted(spans, key=lambda span: _RANK[span.kind])[:count])
