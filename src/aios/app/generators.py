"""Generators in use: self-edits are written by the base model with a generator's adapter on it.

Takes the config, whose ``seal.generator`` names a generator's folder, and the base model; gives
the model that writes. Experts are still trained on the base model: the adapter belongs to the
writing of self-edits alone. Which strategy a generator writes by is in `composition.recipe_for`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from aios.app.composition import build_prompts
from aios.app.models import load_trainer
from aios.core.config.schemas import Config
from aios.core.events import Notice
from aios.core.protocols import Emit, LanguageModel, ignore
from aios.core.seal.generator_card import GeneratorCard, prompts_digest
from aios.storage.generators import read_card, read_generator


def check_generator(config: Config) -> None:
    """Looks at the config's generator, if there is one, before a model is loaded for it.

    Raises:
        UsageError: The folder is no generator.
        StorageError: It is damaged.
    """
    if config.seal.generator is not None:
        read_generator(config.seal.generator)


def attach_generator(
    config: Config, model: LanguageModel, folder: Path, *, emit: Emit = ignore
) -> tuple[LanguageModel, GeneratorCard]:
    """A base model with a generator's adapter on it.

    Args:
        config: Its prompts are compared with those that the generator was trained with.
        model: The base model, which is not changed.
        folder: The generator's folder.
        emit: Told which generator writes, and warned where prompts differ.

    Raises:
        UsageError: The folder is no generator.
        StorageError: It is damaged.
        AdapterMismatchError: It was trained on another base model.
        ModelError: No adapter can be put on this kind of model.
    """
    adapter, card = read_generator(folder)
    attached = load_trainer(config, model).attach(adapter)
    emit(Notice(f"self-edits are written by the generator {folder} (round {card.round})"))
    if prompts_digest(build_prompts(config), card.strategies) != card.prompts_digest:
        emit(
            Notice(
                f"the generator {folder} was trained with other prompts than those in use; "
                "it may write no better than the base model",
                "warning",
            )
        )
    return attached, card


@contextmanager
def writing_model(
    config: Config, model: LanguageModel, *, emit: Emit = ignore
) -> Iterator[LanguageModel]:
    """The model that writes self-edits in a block: the base model, or the config's generator.

    The generator's adapter is freed at the end of the block.

    Args:
        config: The resolved config.
        model: The base model.
        emit: As `attach_generator`.

    Raises:
        UsageError: As `attach_generator`.
        StorageError: As `attach_generator`.
        ModelError: As `attach_generator`.
    """
    if config.seal.generator is None:
        yield model
        return
    attached, _ = attach_generator(config, model, config.seal.generator, emit=emit)
    try:
        yield attached
    finally:
        load_trainer(config, model).detach(attached)


def describe_generator(config: Config) -> dict[str, object] | None:
    """The config's generator as records of a run name it; None for the base model alone.

    Raises:
        UsageError: As `check_generator`.
        StorageError: As `check_generator`.
    """
    if config.seal.generator is None:
        return None
    card = read_card(config.seal.generator)
    return {
        "folder": str(config.seal.generator),
        "adapter_digest": card.adapter_digest,
        "round": card.round,
        "created_at": card.created_at,
    }
