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

    def prompt_text(self, model: LanguageModel, passage: Passage) -> str:
        """The passage: nothing else determines the edits but the seed."""
        return f"{self.name}\n{passage.title}\n{passage.text}"

    def generate(
        self,
        model: LanguageModel,
        passages: Sequence[Passage],
        seeds: Sequence[tuple[int, ...]],
        sampling: SamplingParams,
        deadline_seconds: float | None = None,
    ) -> list[list[Completion]]:
        """Builds the questions; the model is not asked."""
        return [
            [Completion("\n".join(cloze_items(p.text, seed)), 0, "stop", seed) for seed in seeds_of]
            for p, seeds_of in zip(passages, seeds, strict=True)
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

    def generate(
        self,
        model: LanguageModel,
        passages: Sequence[Passage],
        seeds: Sequence[tuple[int, ...]],
        sampling: SamplingParams,
        deadline_seconds: float | None = None,
    ) -> list[list[Completion]]:
        """Has the model word the questions of each candidate, and keeps those it can answer."""
        return [
            [self._candidate(model, passage, seed, deadline_seconds) for seed in seeds_of]
            for passage, seeds_of in zip(passages, seeds, strict=True)
        ]

    def _candidate(
        self, model: LanguageModel, passage: Passage, seed: int, deadline_seconds: float | None
    ) -> Completion:
        wanted = [(s, s[span.start : span.end]) for s, span in _asked(passage.text, seed)]
        share = deadline_seconds / len(wanted) if deadline_seconds and wanted else None
        requests = [
            GenerationRequest(
                _ASK.format_map({"sentence": s, "answer": a}), (derive(seed, n),), _WORDING, share
            )
            for n, (s, a) in enumerate(wanted)
        ]
        worded = [completions[0] for completions in model.generate(requests)] if wanted else []
        pairs = [
            (question, answer)
            for completion, (_, answer) in zip(worded, wanted, strict=True)
            if (question := " ".join(completion.text.split())).endswith("?")
            and answer.lower() not in question.lower()
        ]
        text = "\n".join(format_qa(*pair) for pair in _found_again(model, passage, pairs))
        late = any(completion.finish_reason == "deadline" for completion in worded)
        tokens = sum(completion.tokens for completion in worded)
        return Completion(text, tokens, "deadline" if late else "stop", seed)


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
