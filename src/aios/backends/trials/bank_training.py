"""Training many adapters at once: which of them meet in a pass, and what a pass does.

Each adapter's training is its own: its own order of batches (`training_plan`), its own AdamW with
its own step count, learning rate and clipping. What they share is the forward and backward pass.
A *pass* takes the next batch of several trainings whose batches have about as many tokens, so that
little is padded; a training that takes no part in it
does not move (a step with a zero gradient would: AdamW has momentum). A training that is done
makes room for another at once.

The loss of a pass is ``Σ_g mean over g's own label tokens``, never a mean over the batch, so a
training's gradient is what it would be alone (SEAL's inner loop, arXiv 2506.10943, section 3.1,
trains them one by one; its release pads to 2048 tokens and lets padding carry loss).
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from aios.backends.chunked_loss import weighted_cross_entropy
from aios.backends.encoding import Encoded, fill_rows
from aios.backends.packed_forward import output_head
from aios.backends.training_plan import StepPlan, learning_rate, plan_steps
from aios.backends.trials.grouped_tokens import GroupedTokens
from aios.backends.trials.lora_bank import LoraBank
from aios.backends.trials.trunk import TrunkCache
from aios.core.errors import BackendError, NonFiniteError
from aios.core.trainings import TrainingJob
from aios.core.trials import TrialJob, TrialMetrics

_PASS_COST = 256  # of a pass whatever its size, in tokens
_PADDING_COST = 0.3  # of a place of the adapters' grid that is padding, in tokens


@dataclass(eq=False, slots=True)
class Training:
    """One adapter's training and where it stands.

    Attributes:
        job: What is trained.
        encoded: Its examples.
        plan: All its steps.
        row: Its weights, ``[P]``, at least float32.
        optimizer: Its AdamW.
        losses: Loss of each step so far.
        seconds: Its share of the time of its passes.
        error: Why it cannot go on.
        stopped_early: Whether patience ran out.
    """

    job: TrialJob
    encoded: Sequence[Encoded]
    plan: StepPlan
    row: Tensor
    optimizer: torch.optim.AdamW
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0
    error: BackendError | None = None
    stopped_early: bool = False

    @classmethod
    def begin(cls, job: TrialJob, encoded: Sequence[Encoded], row: Tensor) -> Training:
        """A training at its first step, with all the memory that it will need.

        Args:
            job: What is trained.
            encoded: Its examples as tokens.
            row: The weights that it begins with; they are changed in place.

        Raises:
            UsageError: Epochs, batch size or steps are not positive.
        """
        as_training = TrainingJob(
            job.examples, job.recipe, job.seed, Path(), max_steps=job.max_steps
        )
        optimizer = torch.optim.AdamW(
            [row],
            lr=job.recipe.learning_rate,
            weight_decay=job.recipe.weight_decay,
            fused=row.device.type != "mps",
        )
        optimizer.state[row] = {
            "step": torch.zeros((), dtype=torch.float32, device=row.device),
            "exp_avg": torch.zeros_like(row),
            "exp_avg_sq": torch.zeros_like(row),
        }
        return cls(job, encoded, plan_steps(encoded, as_training), row, optimizer)

    @property
    def done(self) -> bool:
        """Whether no step is left to do."""
        left = len(self.losses) < len(self.plan.batches)
        return self.error is not None or self.stopped_early or not left

    @property
    def progress(self) -> float:
        """Share of the steps done."""
        return len(self.losses) / len(self.plan.batches)

    def batch(self) -> list[int]:
        """The examples (indices) of the next step."""
        return list(self.plan.batches[len(self.losses)])

    def next_tokens(self) -> int:
        """Tokens of the next step."""
        return sum(len(self.encoded[i].ids) for i in self.batch())

    def metrics(self) -> TrialMetrics:
        """How the training went."""
        steps = len(self.losses)
        tokens = self.plan.tokens[steps - 1] if steps else 0
        return TrialMetrics(tuple(self.losses), steps, tokens, self.seconds, self.stopped_early)

    def end(self) -> None:
        """Frees the moments at once: torch's optimisers are freed by the garbage collector only."""
        self.optimizer.state.clear()
        self.optimizer.param_groups.clear()

    def step(self, gradient: Tensor, loss: float, norm: float) -> None:
        """One step of AdamW.

        Args:
            gradient: ``[P]``; clipped in place.
            loss: The step's loss.
            norm: The gradient's Euclidean norm.
        """
        recipe = self.job.recipe
        if not math.isfinite(loss + norm):
            self.error = NonFiniteError(
                f"the loss of trial {self.job.id} became infinite or NaN at step "
                f"{len(self.losses) + 1}",
                "lower training.learning_rate",
            )
            return
        if recipe.grad_clip and norm > recipe.grad_clip:
            gradient.mul_(recipe.grad_clip / (norm + 1e-6))
        rate = learning_rate(recipe, len(self.losses), len(self.plan.batches))
        self.optimizer.param_groups[0]["lr"] = rate
        self.row.grad = gradient
        self.optimizer.step()
        self.row.grad = None
        self.losses.append(loss)
        self.stopped_early = not self.done and self._plateau()

    def _plateau(self) -> bool:
        """Whether the last `patience` passes over the examples have not lowered the loss."""
        every, patience = self.plan.steps_per_epoch, self.job.patience
        if not patience or len(self.losses) % every:
            return False
        epochs = [math.fsum(self.losses[i : i + every]) for i in range(0, len(self.losses), every)]
        return len(epochs) > patience and min(epochs[-patience:]) >= min(epochs[:-patience])


def choose_pass(trainings: Sequence[Training], tokens: int, groups: int) -> list[Training]:
    """The trainings that take the next step together: those that waste the least.

    They are neighbours in the order of their batches' tokens, since the grid has a line as long as
    the longest batch for each. A pass costs something whatever its size, a token costs one, and a
    place of padding a part of that; the trainings with the most tokens for their cost are chosen,
    among equals the least advanced. One whose batch is unusual waits until others come to
    theirs, or nothing else is left.

    Args:
        trainings: Those that are not done; at least one.
        tokens: Most tokens of a pass; one batch that is larger goes alone.
        groups: Most trainings of a pass.
    """
    order = sorted(trainings, key=lambda t: (t.next_tokens(), t.progress))
    sizes = [t.next_tokens() for t in order]
    best, chosen = (-1.0, 0.0), order[-1:]
    for last in range(len(order)):
        total, advanced = 0, 0.0
        for first in range(last, max(-1, last - groups), -1):
            total += sizes[first]
            advanced += order[first].progress
            members = last + 1 - first
            if total > tokens and members > 1:
                break
            padding = members * sizes[last] - total
            value = total / (_PASS_COST + total + _PADDING_COST * padding)
            if (value, -advanced / members) > best:
                best, chosen = (value, -advanced / members), order[first : last + 1]
    return chosen


class BankTrainer:
    """Takes passes with the adapters of a bank; needs the bank to be installed.

    Args:
        bank: The bank.
        pass_tokens: Most tokens of a pass.
        trunk: Keeps the activations below the adapters, where the lowest layers have none.
    """

    def __init__(self, bank: LoraBank, pass_tokens: int, trunk: TrunkCache | None = None) -> None:
        self.bank, self.pass_tokens, self.trunk = bank, pass_tokens, trunk
        self.head = output_head(bank.model)

    def take(self, members: Sequence[Training]) -> None:
        """One step of each of the trainings.

        Raises:
            RuntimeError: Out of memory, as torch raises it; no training has moved then.
        """
        began = time.perf_counter()
        batches = [[t.encoded[i] for i in t.batch()] for t in members]
        gradients, losses = self.gradient([t.row for t in members], batches)
        norms = torch.linalg.vector_norm(gradients, dim=1)
        found = torch.stack([losses, norms]).cpu().tolist()
        tokens = [t.next_tokens() for t in members]
        for training, gradient, loss, norm in zip(members, gradients, *found, strict=True):
            training.step(gradient, loss, norm)
        seconds = time.perf_counter() - began
        for training, share in zip(members, tokens, strict=True):
            training.seconds += seconds * share / sum(tokens)

    def gradient(
        self, rows: Sequence[Tensor], batches: Sequence[Sequence[Encoded]]
    ) -> tuple[Tensor, Tensor]:
        """Loss and gradient of each adapter on its batch.

        Args:
            rows: The adapters' weights, each ``[P]``.
            batches: For each adapter its sequences. Those of a single adapter may be more than a
                pass holds.

        Returns:
            The gradients ``[G, P]``, which the next call overwrites, and the losses ``[G]``.
        """
        gradients = self.bank.collect(len(rows))
        self.bank.load(rows)
        labels = [sum(e.label_count for e in batch) for batch in batches]
        if len(rows) > 1:
            return gradients, self._backward(batches, labels)
        losses = torch.zeros(1, dtype=self.bank.exact, device=self.bank.device)
        for part in fill_rows((len(e.ids) for e in batches[0]), self.pass_tokens):
            losses += self._backward([[batches[0][i] for i in part]], labels)
        return gradients, losses

    def _backward(self, batches: Sequence[Sequence[Encoded]], labels: Sequence[int]) -> Tensor:
        """Adds the gradients of these batches; gives each group's part of its loss, ``[G]``.

        Args:
            batches: For each group its sequences.
            labels: For each group the label tokens of its whole step.
        """
        tokens = GroupedTokens.of(batches, self.bank.device)
        states = None if self.trunk is None else self.trunk.states(batches)
        hidden = self.bank.hidden_states(tokens, states=states)[tokens.predicting]
        group = _group_of_labels(batches, tokens)
        shares = torch.tensor([1 / n for n in labels], dtype=self.bank.exact).to(self.bank.device)
        weights = shares[group]
        loss, each = weighted_cross_entropy(hidden, self.head, tokens.targets, weights)
        loss.backward()
        return torch.zeros_like(shares).index_add_(0, group, each * weights)


def _group_of_labels(batches: Sequence[Sequence[Encoded]], tokens: GroupedTokens) -> Tensor:
    """The group of each token that is to be predicted, ``[L]``."""
    of_sequence = [group for group, batch in enumerate(batches) for _ in batch]
    group: Tensor = torch.tensor(of_sequence, device=tokens.owner.device)[tokens.owner]
    return group
