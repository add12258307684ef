"""Chooses the experts that answer a message, or none: then the base model answers alone.

Each active expert gets the mean of its signals (`aios.core.experts.routing_signals`). Those below
a threshold do not fit; of the others the best `top_k` answer together, weighted by a softmax of
their scores (as the mixtures of c-BTM, Gururangan et al. 2023, arXiv 2303.14177). One adapter
answers a whole text. Token by token routing inside the model, as Arrow (Ostapenko et al. 2024,
arXiv 2405.11157) or X-LoRA (Buehler and Buehler 2024, arXiv 2402.07148), needs no text about the
experts, but also has no answer for a message that fits none of them.

**Conversations.** "And who built it?" belongs to what was asked before. Earlier messages of the
user count by how much they say (`routing_terms.information`) times a decay for each message in
between; far less where the message at hand speaks for itself, so that a new subject is one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from aios.core.config.serving_schemas import RoutingConfig
from aios.core.data.near_duplicates import words
from aios.core.experts.routing_signals import ExpertProfile, Signal
from aios.core.experts.routing_terms import FloatArray, information

MAX_HISTORY = 4
DECAY = 0.7
OWN_SUBJECT = 0.05  # what history counts where the message does not refer to it
_MOST_INFORMATION = 4.0
_REFERS = frozenset(
    "it its itself he his him himself she her hers herself they them their theirs themselves this "
    "that these those there then one ones former latter also else more again too".split()
)
_GOES_ON = re.compile(
    r"\W*(?:and|but|or|so|why|how so|how come|what about|how about|what else|go on|continue)\b",
    re.IGNORECASE,
)
_REFERS_WITHIN = 12  # words; a longer message names its subject itself


@dataclass(frozen=True, slots=True)
class Routing:
    """Who answers a message, and why.

    Attributes:
        chosen: Experts with their weights, which add up to 1; the heaviest first. None: the base
            model answers alone.
        scores: Each active expert's score by signal, as far as the signal knows it.
        reason: Why these, in a line.
        totals: Each active expert's score that was compared with the threshold.
    """

    chosen: tuple[tuple[str, float], ...]
    scores: Mapping[str, Mapping[str, float]]
    reason: str
    totals: Mapping[str, float] = field(default_factory=dict)


class Router:
    """Chooses among experts. May be used by many threads.

    Args:
        profiles: The experts; those that are not active never answer.
        signals: What they are compared by.
        settings: Config section ``routing``; its `signals` names were resolved to `signals`.
    """

    def __init__(
        self,
        profiles: Sequence[ExpertProfile],
        signals: Sequence[Signal],
        settings: RoutingConfig,
    ) -> None:
        self.profiles = tuple(
            sorted((p for p in profiles if p.is_active), key=lambda p: p.expert_id)
        )
        self.signals = tuple(signals)
        self.settings = settings

    def route(self, message: str, history: Sequence[str] = ()) -> Routing:
        """Chooses the experts for a message.

        The same arguments give the same choice; equal scores are ordered by id.

        Args:
            message: What the user says.
            history: What the user said before, the oldest first; the last few count.

        Raises:
            BackendError: A signal that asks the model failed.
            ModelError: The embedding model is damaged.
        """
        if not self.profiles:
            return Routing((), {}, "there is no active expert")
        table = self._table(message, history)
        known = ~np.isnan(table)
        counts = known.sum(axis=0)
        totals = np.where(known, table, 0.0).sum(axis=0) / np.maximum(counts, 1)
        order = sorted(range(len(totals)), key=lambda n: (-totals[n], n))
        fits = [n for n in order if counts[n] and totals[n] >= self.settings.threshold]
        chosen = self._weighted(fits[: self.settings.top_k], totals)
        return Routing(
            chosen,
            {
                profile.expert_id: {
                    signal.name: float(table[row, n])
                    for row, signal in enumerate(self.signals)
                    if known[row, n]
                }
                for n, profile in enumerate(self.profiles)
            },
            self._reason(order, totals, chosen),
            {profile.expert_id: float(totals[n]) for n, profile in enumerate(self.profiles)},
        )

    def _table(self, message: str, history: Sequence[str]) -> FloatArray:
        """Scores of shape (signals, profiles), earlier messages included; NaN: not known."""
        weighted = [pair for pair in weighted_messages(message, history) if pair[1] > 0]
        weighted = weighted or [(message, 1.0)]
        total = sum(weight for _, weight in weighted)
        table = np.zeros((len(self.signals), len(self.profiles)))
        for text, weight in weighted:
            scores = np.stack([signal.scores(text, self.profiles) for signal in self.signals])
            table += scores * (weight / total)
        return table

    def _weighted(self, fits: Sequence[int], totals: FloatArray) -> tuple[tuple[str, float], ...]:
        if not fits:
            return ()
        scores = totals[list(fits)] / self.settings.temperature
        weights = np.exp(scores - scores.max())
        weights /= weights.sum()
        return tuple(
            (self.profiles[n].expert_id, float(weight))
            for n, weight in zip(fits, weights, strict=True)
        )

    def _reason(
        self, order: Sequence[int], totals: FloatArray, chosen: tuple[tuple[str, float], ...]
    ) -> str:
        names = "+".join(signal.name for signal in self.signals)

        def told(place: int) -> str:
            return f"{self.profiles[order[place]].expert_id} {totals[order[place]]:.2f}"

        if not chosen:
            return f"none fits by {names}: {told(0)} < {self.settings.threshold:g}"
        said = ", ".join(told(place) for place in range(len(chosen)))
        if len(order) > len(chosen):
            said += f"; next {told(len(chosen))}"
        return f"by {names}: {said}"


def weighted_messages(message: str, history: Sequence[str]) -> list[tuple[str, float]]:
    """A message and those before it, the latest first, with what each counts for a route.

    Args:
        message: What the user says now.
        history: What the user said before, the oldest first.
    """
    own = min(information(message), _MOST_INFORMATION)
    factor = 1.0 if refers_back(message) or own == 0 else OWN_SUBJECT
    weighted = [(message, own)]
    for text in reversed(history[-MAX_HISTORY:]):
        factor *= DECAY
        weighted.append((text, factor * min(information(text), _MOST_INFORMATION)))
    return weighted


def refers_back(message: str) -> bool:
    """Whether a message seems to take up what was said before (English)."""
    if _GOES_ON.match(message[:100]):
        return True
    found = words(message[:1000])
    return len(found) <= _REFERS_WITHIN and not _REFERS.isdisjoint(found)
