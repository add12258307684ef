"""What a message and an expert have in common: four interchangeable signals.

A signal takes a message and the experts' profiles; gives one score an expert in [0, 1], at about
the same scale for all: 0.5 where it is as likely as not that the expert fits. NaN says that the
signal knows nothing of that expert (no goals, no passages, …), and is left out of its mean.

What each follows:

- `LexicalSignal`: experts are found again by the words of what they were trained on, as clusters
  by tf-idf in c-BTM (Gururangan et al. 2023, arXiv 2303.14177). Deviation: the nearest passage
  counts and not the cluster's centre, for an expert has few passages.
- `EmbeddingSignal`: adapters found again by sentence embeddings of training samples, as
  LoraRetriever (Zhao et al. 2024, arXiv 2402.09997). Deviations: the nearest sample and not the
  mean of samples; the embedder is not trained for it.
- `LossSignal`: the expert to which a text is least surprising, as the posterior over experts in
  DEMix (Gururangan et al. 2021, arXiv 2108.05036). Deviation: relative to the base model, so that
  no expert fits a text that all find as surprising as the base model does.
- `GoalSignal` is ours: what people wrote that the expert is for.

The numbers that bring raw values to one scale were chosen on the development part of a labelled
set (``experiments/routing.md``).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from aios.core.experts.routing_terms import MAX_CHARACTERS, FloatArray, TermIndex
from aios.core.seal.quality_duplicates import Embedder, Vectors

Loss = Callable[["str | None", str], float]
"""Mean loss (nats a token) of a text under an expert, by id, or the base model (None)."""

# raw values that become 0 and 1
_GOALS = (0.0, 0.7)
_LEXICAL = (0.1, 0.6)
_EMBEDDINGS = (0.15, 0.6)
_LOSS = (0.0, 0.2)

_KEPT_LOSSES = 1024

_Index = TypeVar("_Index")


@dataclass(frozen=True, slots=True)
class ExpertProfile:
    """What is known of an expert before it is asked.

    Attributes:
        expert_id: Its id.
        name: Its name for people.
        description: What it knows.
        category: A word that experts are grouped by.
        goals: What it is for, as texts.
        passages: Ids and texts of passages that it was trained on.
        performance: Its measured performance.
        is_active: Whether it may answer.
        revision: Another text after each training, so that what was learnt of it is asked anew.
    """

    expert_id: str
    name: str = ""
    description: str = ""
    category: str = ""
    goals: tuple[str, ...] = ()
    passages: tuple[tuple[str, str], ...] = ()
    performance: Mapping[str, float] = field(default_factory=dict)
    is_active: bool = True
    revision: str = ""

    def about(self) -> tuple[str, ...]:
        """What people wrote about it: name, description, category and goals."""
        name = self.name
        if name in ("", self.expert_id):  # nobody gave it one, but the id may say something
            name = self.expert_id.replace("-", " ").replace("_", " ")
        parts = (name, self.description, self.category, *self.goals)
        return tuple(part for part in parts if part.strip())


class Signal(Protocol):
    """Compares a message with experts. May be used by many threads."""

    @property
    def name(self) -> str:
        """Its name in the config."""
        ...

    def scores(self, message: str, profiles: Sequence[ExpertProfile]) -> FloatArray:
        """One score an expert in [0, 1], shape (profiles,); NaN where it knows nothing."""
        ...


class _Indexed(Generic[_Index]):
    """What a signal makes of profiles, kept while it is asked about the same ones."""

    def __init__(self, make: Callable[[Sequence[ExpertProfile]], _Index]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._last: tuple[tuple[ExpertProfile, ...], _Index] | None = None

    def of(self, profiles: Sequence[ExpertProfile]) -> _Index:
        """The index of these profiles."""
        with self._lock:  # two threads do not make the same index
            if self._last is None or not _same(self._last[0], profiles):
                self._last = (tuple(profiles), self._make(profiles))
            return self._last[1]


class GoalSignal:
    """The share of a message that stands in what people wrote about an expert."""

    name = "goals"

    def __init__(self) -> None:
        self._index = _Indexed(lambda ps: TermIndex([[" \n".join(p.about())] for p in ps]))

    def scores(self, message: str, profiles: Sequence[ExpertProfile]) -> FloatArray:
        """See `Signal`; NaN for an expert that nothing was written about."""
        raw = self._index.of(profiles).coverage(message)
        raw[[not profile.about() for profile in profiles]] = np.nan
        return scaled(raw, *_GOALS)


class LexicalSignal:
    """The share of a message that stands in the nearest passage an expert was trained on."""

    name = "lexical"

    def __init__(self) -> None:
        self._index = _Indexed(lambda ps: TermIndex([[text for _, text in p.passages] for p in ps]))

    def scores(self, message: str, profiles: Sequence[ExpertProfile]) -> FloatArray:
        """See `Signal`; NaN for an expert whose passages are not known."""
        index = self._index.of(profiles)
        raw = _best(index.coverage(message), index.owners, len(profiles))
        return scaled(raw, *_LEXICAL)


class EmbeddingSignal:
    """The cosine similarity of a message to the nearest passage an expert was trained on.

    Args:
        embedder: Embeds texts.
    """

    name = "embeddings"

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder
        self._known: dict[str, Vectors] = {}
        self._index = _Indexed(self._embed)

    def scores(self, message: str, profiles: Sequence[ExpertProfile]) -> FloatArray:
        """See `Signal`; NaN for an expert whose passages are not known.

        Raises:
            ModelError: The embedder's files are damaged.
        """
        vectors, owners = self._index.of(profiles)
        if not len(vectors):
            return np.full(len(profiles), np.nan)
        cosines = vectors @ self._embedder([message[:MAX_CHARACTERS]])[0]
        return scaled(_best(cosines.astype(np.float64), owners, len(profiles)), *_EMBEDDINGS)

    def _embed(self, profiles: Sequence[ExpertProfile]) -> tuple[Vectors, NDArray[np.intp]]:
        """A vector for each passage; those of texts that were there before are kept."""
        texts = [text for profile in profiles for _, text in profile.passages]
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        known = self._known | (dict(zip(new, self._embedder(new), strict=True)) if new else {})
        self._known = {text: known[text] for text in texts}
        owners = [n for n, profile in enumerate(profiles) for _ in profile.passages]
        vectors = [self._known[text] for text in texts]
        stacked: Vectors = np.stack(vectors) if vectors else np.zeros((0, 1), dtype=np.float32)
        return stacked, np.asarray(owners, dtype=np.intp)


class LossSignal:
    """How much less surprising a message is to an expert than to the base model.

    The share of the base model's loss that the expert takes away. It costs a pass over each new
    message for each expert and one more; losses of earlier messages are kept while the experts
    stay the same.

    Args:
        loss: Scores texts.
    """

    name = "loss"

    def __init__(self, loss: Loss) -> None:
        self._kept = _Indexed(lambda ps: lru_cache(maxsize=_KEPT_LOSSES)(loss))

    def scores(self, message: str, profiles: Sequence[ExpertProfile]) -> FloatArray:
        """See `Signal`.

        Raises:
            BackendError: A loss cannot be had.
        """
        loss = self._kept.of(profiles)
        text = message[:MAX_CHARACTERS].strip()
        base = loss(None, text) if text else 0.0
        if not base > 0:
            return np.full(len(profiles), np.nan)
        losses = np.asarray([loss(profile.expert_id, text) for profile in profiles])
        return scaled((base - losses) / base, *_LOSS)


def _same(known: Sequence[ExpertProfile], profiles: Sequence[ExpertProfile]) -> bool:
    return len(known) == len(profiles) and all(a is b for a, b in zip(known, profiles, strict=True))


def scaled(raw: FloatArray, low: float, high: float) -> FloatArray:
    """Raw values on a line from 0 at `low` to 1 at `high`, cut off there; NaN stays."""
    values: FloatArray = np.clip((raw - low) / (high - low), 0.0, 1.0)
    return values


def _best(values: FloatArray, owners: NDArray[np.intp], experts: int) -> FloatArray:
    """The largest value of each expert's passages; NaN for an expert without any."""
    best = np.full(experts, -np.inf)
    np.maximum.at(best, owners, values)
    best[best == -np.inf] = np.nan
    return best
