"""What adapters in a bank make of questions: log-probabilities of the answers, and answers.

Takes adapters as rows of weights and the questions that each is asked; all of them are asked in
one batch. An answer is written greedily to the end of its line, as in the A/B test.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from torch import Tensor

from aios.backends.encoding import Encoded, encode_prompt
from aios.backends.torch_lm import TorchLM
from aios.backends.trials.bank_decoding import answer_groups
from aios.backends.trials.bank_scoring import score_groups
from aios.backends.trials.lora_bank import LoraBank
from aios.core.data.probes import Probe
from aios.core.errors import BackendError, NonFiniteError
from aios.core.trials import Answered
from aios.core.types import Score


class Examiner:
    """Asks questions of adapters over a base model.

    Args:
        base: The base model.
    """

    def __init__(self, base: TorchLM) -> None:
        self._base = base
        self._breaks: dict[int, bool] = {}

    def ask(
        self,
        bank: LoraBank,
        rows: Sequence[Tensor],
        questions: Sequence[Sequence[Probe]],
        lengths: Sequence[int | None],
        pass_tokens: int,
    ) -> list[list[Answered] | BackendError]:
        """What each adapter makes of its questions, or why there is no number.

        Args:
            bank: The bank; must be installed.
            rows: The adapters, each ``[P]``.
            questions: For each adapter its questions; may be empty.
            lengths: For each adapter the most tokens of a written answer; None: none is written.
            pass_tokens: Most tokens of a pass.
        """
        encoded = [self._encoded(mine) for mine in questions]
        asked = [i for i, mine in enumerate(encoded) if not isinstance(mine, BackendError)]
        texts = [mine for mine in encoded if not isinstance(mine, BackendError)]
        adapters = [rows[i] for i in asked]
        probes = [questions[i] for i in asked]
        scores = score_groups(bank, adapters, texts, pass_tokens)
        limits = [lengths[i] for i in asked]
        written = self._written(bank, adapters, probes, limits, pass_tokens)
        found = iter(_checked(*each) for each in zip(probes, scores, written, strict=True))
        return [mine if isinstance(mine, BackendError) else next(found) for mine in encoded]

    def _encoded(self, questions: Sequence[Probe]) -> list[Encoded] | BackendError:
        """The questions as tokens, or what is wrong with one of them."""
        try:
            return [self._base.encode_request(probe.request) for probe in questions]
        except BackendError as error:
            return error

    def _written(
        self,
        bank: LoraBank,
        rows: Sequence[Tensor],
        questions: Sequence[Sequence[Probe]],
        lengths: Sequence[int | None],
        pass_tokens: int,
    ) -> list[list[str | None] | None]:
        """The answers of each adapter: None for each question where none are written.

        None in place of them all where the adapter's numbers are not finite.
        """
        texts: list[list[str | None] | None] = [[None] * len(mine) for mine in questions]
        wanted = [g for g, length in enumerate(lengths) if length is not None]
        prompts = {
            g: [encode_prompt(self._base.tokenizer, p.prompt) for p in questions[g]] for g in wanted
        }
        for groups in _batches(prompts, pass_tokens):
            answers = answer_groups(
                bank,
                [rows[g] for g in groups],
                [prompts[g] for g in groups],
                max_tokens=[lengths[g] or 0 for g in groups],
                end_tokens=self._base.end_tokens(),
                is_last=self._breaks_line,
            )
            for g, mine in zip(groups, answers, strict=True):
                texts[g] = None if mine is None else [self._text(tokens) for tokens in mine]
        return texts

    def _text(self, tokens: Sequence[int]) -> str:
        text: str = self._base.tokenizer.decode(tokens, skip_special_tokens=True)
        return text.partition("\n")[0].strip()

    def _breaks_line(self, token: int) -> bool:
        if token not in self._breaks:
            self._breaks[token] = "\n" in self._base.tokenizer.decode([token])
        return self._breaks[token]


def _checked(
    questions: Sequence[Probe], scores: Sequence[Score], texts: Sequence[str | None] | None
) -> list[Answered] | BackendError:
    for probe, score in zip(questions, scores, strict=True):
        if not math.isfinite(score.logprob):
            return NonFiniteError(
                f"the log-probability of the answer to {probe.question!r} is not finite",
                "lower training.learning_rate",
            )
    if texts is None:
        return NonFiniteError(
            "a logit of a written answer is not finite", "lower training.learning_rate"
        )
    return [
        Answered(probe.id, score, text)
        for probe, score, text in zip(questions, scores, texts, strict=True)
    ]


def _batches(prompts: dict[int, list[list[int]]], limit: int) -> Iterator[list[int]]:
    """Groups whose prompts are read together: at most `limit` tokens, or one group."""
    batch: list[int] = []
    filled = 0
    for group, mine in prompts.items():
        tokens = sum(map(len, mine))
        if batch and filled + tokens > limit:
            yield batch
            batch, filled = [], 0
        batch.append(group)
        filled += tokens
    if batch:
        yield batch
