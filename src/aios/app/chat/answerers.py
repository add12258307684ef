"""Who can answer, and who does: the base model, its experts, and the router between them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from aios.app.chat.answering import Routed
from aios.app.chat.offered_experts import AUTO, BASE, Offer, OfferedExperts, created_at
from aios.core.experts.routing import Routing
from aios.core.types import AdapterRef

Chosen = tuple[tuple[str, AdapterRef], ...]
_ASKED_FOR = "asked for"


@dataclass(frozen=True, slots=True)
class ServedModel:
    """Something that answers.

    Attributes:
        id: What to ask for.
        kind: The base model alone, one expert over it, or the router's choice.
        description: A line for people.
        created: When it was made (Unix time); 0 where that is not known.
    """

    id: str
    kind: Literal["base", "expert", "auto"]
    description: str
    created: int = 0


class Routes(Protocol):
    """What chooses experts: `core.experts.routing.Router`."""

    def route(self, message: str, history: Sequence[str] = ()) -> Routing:
        """Who answers a message of the user, after earlier ones."""
        ...


class Answerers:
    """The base model and its experts, by the names that they are asked for. For many threads.

    Args:
        model_name: The base model's name, which stands for it as ``base`` does.
        experts: Who is there.
        open_routes: Makes a router over the experts of an offer.
    """

    def __init__(
        self, model_name: str, experts: OfferedExperts, open_routes: Callable[[Offer], Routes]
    ) -> None:
        self._model_name = model_name
        self._experts = experts
        self._open_routes = open_routes
        self._lock = threading.Lock()
        self._routes: tuple[Offer, Routes] | None = None

    def models(self) -> tuple[ServedModel, ...]:
        """Everything that can be asked for: ``auto``, ``base``, and the experts that answer.

        Where the base model is a folder or file, its own name alone is shown: this list leaves the
        machine.
        """
        name = _without_folder(self._model_name)
        return (
            ServedModel(AUTO, "auto", f"experts over {name}, chosen for each message"),
            ServedModel(BASE, "base", name),
            *(
                ServedModel(e.expert_id, "expert", e.description or e.name, created_at(e))
                for e in self._experts.now().experts
            ),
        )

    def check(self, model: str) -> None:
        """Whether this name can be asked for now.

        Raises:
            UsageError: The expert is not active, damaged, or not of this base model.
            UnknownExpertError: There is no such expert; the remedy names close ones.
        """
        if model != AUTO:
            self._asked_for(model, self._experts.now())

    def who(self, model: str, question: str, history: tuple[str, ...]) -> tuple[Routed, Chosen]:
        """Who answers a question, and with which adapters.

        Args:
            model: What is asked for.
            question: What the user says; `auto` goes by it.
            history: What the user said before, the oldest first.

        Raises:
            UsageError: As `check`.
            UnknownExpertError: As `check`.
            AIOSError: The router cannot choose; see `core.experts.routing.Router.route`.
        """
        offer = self._experts.now()
        if model != AUTO:
            return self._asked_for(model, offer)
        if not offer.experts:
            return Routed((), "there is no expert for this model"), ()
        found = self._routes_of(offer).route(question, history)
        chosen = tuple((expert_id, offer.adapter(expert_id)) for expert_id, _ in found.chosen)
        return Routed(found.chosen, found.reason), chosen

    def _asked_for(self, model: str, offer: Offer) -> tuple[Routed, Chosen]:
        if model == BASE or (model == self._model_name and model not in offer.adapters):
            return Routed((), _ASKED_FOR), ()
        return Routed(((model, 1.0),), _ASKED_FOR), ((model, offer.adapter(model)),)

    def _routes_of(self, offer: Offer) -> Routes:
        """The router over an offer's experts, made when it is first needed."""
        with self._lock:
            if self._routes is None or self._routes[0] is not offer:
                self._routes = (offer, self._open_routes(offer))
            return self._routes[1]


def _without_folder(name: str) -> str:
    """A model's name without the folder that it is in; ids of the hub and the like stay whole."""
    outside = name.startswith((".", "~")) or Path(name).is_absolute()
    return Path(name).name or name if outside else name
