"""Does training on a text pull where the answers are? The angle between two gradients.

A cheap forecast of a trial's outcome: the gradient of a candidate's loss by a fresh adapter,
compared with the gradient of the reference answers' loss by the same adapter. A positive cosine
says that one small step on the candidate lowers the answers' loss, to first order. (Influence by
gradients: Pruthi et al. 2020, TracIn, arXiv 2002.08484; for the choice of training data of
language models: Xia et al. 2024, LESS, arXiv 2402.04333.) B begins at 0, so only B has a gradient.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from aios.backends.encoding import Encoded, encode
from aios.backends.torch_lm import TorchLM
from aios.backends.trials.adapter_rows import InitialRows
from aios.backends.trials.bank_training import BankTrainer
from aios.backends.trials.lora_bank import LoraBank
from aios.core.data.probes import Probe
from aios.core.types import LoraRecipe, TrainExample


def gradient_alignment(
    model: TorchLM,
    candidates: Sequence[Sequence[TrainExample]],
    questions: Sequence[Probe],
    recipe: LoraRecipe,
    seed: int,
    *,
    pass_tokens: int = 1024,
) -> list[float]:
    """Cosine between each candidate's gradient and that of the questions' answers.

    Args:
        model: The base model.
        candidates: Examples of each candidate.
        questions: Whose reference answers count; at least one.
        recipe: Rank and alpha of the adapter.
        seed: Seed of its weights.
        pass_tokens: Most tokens of a pass.

    Returns:
        Numbers in [−1, 1], one a candidate.

    Raises:
        BackendError: A text cannot be encoded.
    """
    answers = [model.encode_request(probe.request) for probe in questions]
    texts = [
        [encode(model.tokenizer, example.text, example.loss_spans) for example in examples]
        for examples in candidates
    ]
    with model.active() as module:
        bank = LoraBank(module, recipe.rank, recipe.alpha)
        row = InitialRows(bank)(seed)
        trainer = BankTrainer(bank, pass_tokens)
        with bank.installed():
            wanted = _gradient(trainer, row, answers)
            return [
                float(torch.cosine_similarity(wanted, _gradient(trainer, row, mine), dim=0))
                for mine in texts
            ]


def _gradient(trainer: BankTrainer, row: Tensor, texts: Sequence[Encoded]) -> Tensor:
    """The gradient of the mean loss of all label tokens, ``[P]``."""
    return trainer.gradient([row], [texts])[0][0].clone()
