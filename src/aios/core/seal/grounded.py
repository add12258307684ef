"""Self-edits that are true by construction: blanks in the passage's own sentences.

Small models often write false self-edits, and false ones do harm (measured; see
experiments/seal_phase1_results.md). Here the answer comes first: a span of a sentence that is
worth asking for (`aios.core.seal.answer_spans`). The question is the sentence with that span left
out, so whatever is trained on stands in the passage. Nothing is sampled from the model.

Deviation from the SEAL paper: there the model writes freely, and only training on the result
tells good edits from bad ones.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from aios.core.data.splitting import split_sentences
from aios.core.protocols import LanguageModel
from aios.core.seal.answer_spans import AnswerSpan, find_answer_spans
from aios.core.seal.parsing import format_qa, parse_qa
from aios.core.seal.strategies import SelfEditStrategy
from aios.core.types import Completion, FinishReason, Passage, SamplingParams

BLANK = "____"
_SPANS_A_SENTENCE = 4
# Names, numbers and dates are asked for first: they are what questions most often ask.
_RANK = {"date": 0, "number": 0, "name": 0, "clause": 1, "phrase": 2}


class ClozeStrategy(SelfEditStrategy):
    """Fill-in-the-blank questions from a passage's sentences (``cloze``).

    The seed chooses which spans are asked for where a sentence has more than four, so several
    candidates of a passage differ in their blanks.
    """

    parser_version = 1

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

    def parse_output(
        self, completion: str, passage: Passage, *, finish_reason: FinishReason | None = None
    ) -> list[str]:
        """The question-answer pairs."""
        pairs = parse_qa(completion, finish_reason)
        return [format_qa(*pair) for pair in pairs if pair.question and pair.answer]


def cloze_items(text: str, seed: int, per_sentence: int = _SPANS_A_SENTENCE) -> list[str]:
    """Question-answer pairs, each a sentence of the text with one span left out.

    Args:
        text: The passage.
        seed: Chooses among the spans of a sentence.
        per_sentence: Most blanks made from one sentence.
    """
    rng = random.Random(seed)
    return [
        format_qa(sentence[: span.start] + BLANK + sentence[span.end :], sentence[span.start : span.end])
        for sentence in split_sentences(text)
        for span in _chosen(sentence, rng, per_sentence)
    ]


def _chosen(sentence: str, rng: random.Random, count: int) -> list[AnswerSpan]:
    spans = find_answer_spans(sentence)
    rng.shuffle(spans)
    return sorted(sorted(spans, key=lambda span: _RANK[span.kind])[:count])
