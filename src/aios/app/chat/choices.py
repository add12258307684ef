"""Who can be asked in a conversation, whether the model is loaded yet or not.

Takes the config, and the assistant where one is open. Before the model is loaded, nobody knows
which experts fit it, so all active ones are offered; afterwards the assistant says who answers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aios.app.chat.answerers import ServedModel
from aios.app.chat.offered_experts import AUTO, BASE, created_at
from aios.app.experts.registry import list_experts, open_store
from aios.core.config.schemas import Config
from aios.core.errors import UsageError
from aios.core.experts.registry import ExpertFilter

if TYPE_CHECKING:
    from aios.app.chat.assistant import Assistant


def chat_choices(config: Config, assistant: Assistant | None = None) -> tuple[ServedModel, ...]:
    """Everything that can be asked for: ``auto``, ``base``, and the experts.

    Args:
        config: The resolved config.
        assistant: The open assistant; None: the model is not loaded.

    Raises:
        StorageError: The registry cannot be read.
    """
    if assistant is not None:
        return assistant.models()
    active = list_experts(config, ExpertFilter(active=True))
    return (
        ServedModel(AUTO, "auto", "experts, chosen for each message"),
        ServedModel(BASE, "base", "the base model alone"),
        *(
            ServedModel(e.expert_id, "expert", e.description or e.name, created_at(e))
            for e in active
            if e.expert_id not in (AUTO, BASE)
        ),
    )


def check_choice(config: Config, model: str, assistant: Assistant | None = None) -> None:
    """Whether this name can be asked for now, as far as that is known.

    Args:
        config: The resolved config.
        model: ``auto``, ``base``, or an expert's id.
        assistant: The open assistant; None: the model is not loaded.

    Raises:
        UsageError: The expert is not active, or does not fit the model.
        UnknownExpertError: There is no such expert; the remedy names close ones.
        StorageError: The registry cannot be read.
    """
    if assistant is not None:
        assistant.check_model(model)
    elif model not in (AUTO, BASE) and not open_store(config).require(model).is_active:
        raise UsageError(
            f"expert {model} is not active", f"activate it: aios experts activate {model}"
        )
