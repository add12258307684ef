"""The nouns: frozen records that the layers pass to one another.

Ids are content hashes (first 16 hex digits of a SHA-256) unless the user gave one, so the same
passage or self-edit has the same id in every run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

FinishReason = Literal["stop", "length", "deadline"]


def content_hash(*parts: object) -> str:
    """Returns 16 hex digits that depend on the parts (JSON-serialisable) and their order."""
    text = json.dumps(parts, ensure_ascii=False, sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Question:
    """A question about a passage, used for validation only and never trained on.

    Attributes:
        question: The question's text.
        answers: Accepted answers, the first being the reference; at least one.
        category: What kind of fact it asks for (``name``, ``number``, …), or empty.
    """

    question: str
    answers: tuple[str, ...]
    category: str = ""


@dataclass(frozen=True, slots=True)
class Passage:
    """A text to learn, maybe with questions about it.

    Attributes:
        text: The text itself, stripped, never empty.
        id: The user's id or a content hash of title and text; unique in a dataset.
        title: Its title, or empty.
        questions: Questions about it.
        source: ``file:line`` (or record number) it was read from, for messages.
        completions: Self-edits that came with the file (SEAL-release JSON), unparsed.
    """

    text: str
    id: str
    title: str = ""
    questions: tuple[Question, ...] = ()
    source: str = ""
    completions: tuple[str, ...] = ()

    @classmethod
    def make(
        cls,
        text: str,
        *,
        id: str | None = None,
        title: str = "",
        questions: tuple[Question, ...] = (),
        source: str = "",
        completions: tuple[str, ...] = (),
    ) -> Passage:
        """Builds a passage; without `id` it gets a content hash of title and text."""
        text, title = text.strip(), title.strip()
        return cls(
            text=text,
            id=id if id is not None else content_hash("passage", title, text),
            title=title,
            questions=questions,
            source=source,
            completions=completions,
        )


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are drawn.

    Attributes:
        temperature: 0 for greedy decoding, else the softmax temperature.
        top_p: Nucleus mass in (0, 1].
        max_new_tokens: Most tokens of one completion.
        stop: Texts at which a completion ends; they are cut off.
    """

    temperature: float = 1.0
    top_p: float = 0.95
    max_new_tokens: int = 1024
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One prompt and the seeds of the completions wanted for it (one completion a seed).

    Attributes:
        prompt: The full text given to the model (chat template already applied).
        seeds: One seed a completion.
        sampling: How tokens are drawn.
        deadline_seconds: Time for each completion, its share where several are written at once;
            what is finished by then is kept and marked.
    """

    prompt: str
    seeds: tuple[int, ...]
    sampling: SamplingParams = SamplingParams()
    deadline_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Completion:
    """What the model wrote.

    Attributes:
        text: The text, without the prompt and the stop text.
        tokens: Tokens generated, the end token included.
        finish_reason: Why it ended.
        seed: The seed it was drawn with.
        line_losses: Mean loss (nats a token, at temperature 1 and before top-p) of each line of
            the text, as the model that wrote it saw it; empty where that is not known.
    """

    text: str
    tokens: int
    finish_reason: FinishReason
    seed: int
    line_losses: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """A text whose probability is asked for, given what stands before it.

    Attributes:
        prompt: The text before (may be empty).
        continuation: The text that is scored, including its leading space.
    """

    prompt: str
    continuation: str


@dataclass(frozen=True, slots=True)
class Score:
    """The log-probability of a continuation.

    Attributes:
        logprob: Sum of the natural-log probabilities of the continuation's tokens (nats).
        tokens: How many tokens that sum is over; at least 1.
        greedy: Whether every one of them is the model's most likely token.
    """

    logprob: float
    tokens: int
    greedy: bool

    @property
    def loss(self) -> float:
        """Mean negative log-likelihood per token (nats)."""
        return -self.logprob / self.tokens


@dataclass(frozen=True, slots=True)
class SelfEdit:
    """What the model wrote from a passage, parsed into texts to train on.

    Attributes:
        passage_id: The passage it was made from.
        strategy: Name of the strategy that made it.
        index: Its candidate number for that passage, from 0.
        items: The training texts (implications, rewrites, question-answer pairs, …).
        model: Name of the model that wrote it, with its adapter if there is one.
        seed: The seed it was drawn with.
        completion: The raw completion, for inspection.
        tokens: Tokens generated for it; 0 where no token was sampled.
        scores: Quality signals by name.
        line_losses: Those of its completion (`Completion.line_losses`); not kept in files.
    """

    passage_id: str
    strategy: str
    index: int
    items: tuple[str, ...]
    model: str = ""
    seed: int = 0
    completion: str = ""
    tokens: int = 0
    scores: Mapping[str, float] = field(default_factory=dict)
    line_losses: tuple[float, ...] = ()

    @property
    def text(self) -> str:
        """The items joined by newlines: the self-edit as one text."""
        return "\n".join(self.items)

    @property
    def id(self) -> str:
        """Content hash over everything but the scores."""
        return content_hash("self-edit", self.passage_id, self.strategy, self.index, self.items)


@dataclass(frozen=True, slots=True)
class Drop:
    """Something that was left out, and why. Never silent: it is counted and listed.

    Attributes:
        passage_id: The passage it came from.
        strategy: The strategy that made it.
        index: The candidate number.
        text: What was dropped.
        reason: One of the quality filter's reasons, e.g. ``too_short``.
        detail: The measured value and limit, e.g. ``7 tokens < 20``.
    """

    passage_id: str
    strategy: str
    index: int
    text: str
    reason: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Failure:
    """Work that was tried and failed. It has no number: it is not a reward of 0.

    Attributes:
        boundary: Where it was caught: ``generate``, ``parse``, ``train`` or ``score``.
        subject: What was worked on (a passage id, an arm's name, …).
        error: The error's message.
        retryable: Whether trying again may help.
    """

    boundary: str
    subject: str
    error: str
    retryable: bool = False


@dataclass(frozen=True, slots=True)
class TrainExample:
    """A text to train on and the parts of it that carry loss.

    Attributes:
        text: The whole text.
        loss_spans: Half-open character ranges that carry loss; the rest is context (label −100).
        source: ``passage`` or the strategy's name.
        passage_id: The passage it comes from.
    """

    text: str
    loss_spans: tuple[tuple[int, int], ...]
    source: str = "passage"
    passage_id: str = ""

    @classmethod
    def whole(cls, text: str, *, source: str = "passage", passage_id: str = "") -> TrainExample:
        """An example whose whole text carries loss."""
        return cls(text, ((0, len(text)),), source, passage_id)


@dataclass(frozen=True, slots=True)
class LoraRecipe:
    """How an adapter is trained (Hu et al. 2021, arXiv 2106.09685, for rank and alpha).

    Attributes:
        rank: LoRA rank r.
        alpha: LoRA scale numerator; the update is multiplied by alpha / rank.
        dropout: Dropout on the adapter's input, in [0, 1).
        learning_rate: Peak AdamW learning rate.
        epochs: Passes over the examples, where the job sets no budget of tokens or steps.
        batch_size: Examples per optimiser step.
        warmup_ratio: Share of the steps over which the rate rises linearly from 0.
        schedule: What the rate does after the warm-up.
        weight_decay: AdamW weight decay.
        grad_clip: Largest gradient norm; 0 for none.
        max_seq_len: Longest example in tokens; longer ones are refused before training.
    """

    rank: int = 32
    alpha: int = 64
    dropout: float = 0.0
    learning_rate: float = 1e-3
    epochs: int = 10
    batch_size: int = 8
    warmup_ratio: float = 0.0
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    weight_decay: float = 0.0
    grad_clip: float = 1.0
    max_seq_len: int = 1024

    def digest(self) -> str:
        """Content hash of the recipe."""
        return content_hash("recipe", asdict(self))


@dataclass(frozen=True, slots=True)
class AdapterRef:
    """A trained adapter on disk, in PEFT layout.

    Attributes:
        path: Its folder (`adapter_config.json`, `adapter_model.safetensors`).
        digest: SHA-256 of the safetensors file.
        base_digest: Digest of the base model that it was trained on.
    """

    path: Path
    digest: str
    base_digest: str


@dataclass(frozen=True, slots=True)
class Expert:
    """A trained expert as the registry lists it (contract section 2, AI-OS `registry.json`)."""

    expert_id: str
    name: str
    description: str = ""
    category: str = ""
    goals: tuple[str, ...] = ()
    created_at: str = ""
    last_trained: str = ""
    training_datasets: tuple[str, ...] = ()
    performance_metrics: Mapping[str, float] = field(default_factory=dict)
    total_activations: int = 0
    avg_routing_weight: float = 0.0
    is_active: bool = True
    is_frozen: bool = False
    parent_expert_id: str | None = None
    child_expert_ids: tuple[str, ...] = ()
    model_architecture: str = ""
    checkpoint_path: str = ""
    training_config: Mapping[str, object] = field(default_factory=dict)
