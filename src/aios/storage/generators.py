"""Folders of generators: an adapter in PEFT layout, with ``generator.json`` and ``README.md``.

A generator's folder may come from anyone, so it is read as hostile: sizes are bounded, symlinks
that lead out of it are refused, and the weights must be those that the card names.
"""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

import yaml

from aios.core.errors import AdapterMismatchError, StorageError, UsageError
from aios.core.files import (
    atomic_write_bytes,
    atomic_write_json,
    atomic_write_text,
    confined,
    guarded,
    read_bytes,
    read_json,
)
from aios.core.folders import atomic_folder, recover
from aios.core.seal.generator_card import GeneratorCard
from aios.core.types import AdapterRef

CARD_NAME = "generator.json"
_CONFIG_NAME = "adapter_config.json"
_WEIGHTS_NAME = "adapter_model.safetensors"
_README_NAME = "README.md"
_NAMES = frozenset((CARD_NAME, _CONFIG_NAME, _WEIGHTS_NAME, _README_NAME))
_MAX_CARD_BYTES = 1 << 20
_MAX_CONFIG_BYTES = 1 << 20
_MAX_WEIGHTS_BYTES = 8 << 30
_RESTORE = "restore the generator's folder from a copy, or train it again"


def write_generator(folder: Path, adapter: AdapterRef, card: GeneratorCard) -> AdapterRef:
    """Puts a generator's folder in place, whole or not at all; an older generator is replaced.

    Args:
        folder: Its folder; parents are made.
        adapter: The trained adapter, whose files are copied.
        card: Its card, of the same adapter and base model.

    Returns:
        The adapter in its new place.

    Raises:
        UsageError: The folder holds something else than a generator.
        AdapterMismatchError: The card is of another adapter or base model.
        StorageError: The adapter's files are not those that its digest names, the card holds
            what no card can, or the folder cannot be written.
    """
    if (card.adapter_digest, card.base_digest) != (adapter.digest, adapter.base_digest):
        raise AdapterMismatchError(
            f"the card for {folder} is of another adapter or base model than {adapter.path}",
            "write the card from the adapter that it goes with",
        )
    GeneratorCard.from_json(card.to_json())  # what is written can be read
    refuse_other_files(folder)
    config = read_bytes(adapter.path / _CONFIG_NAME, _MAX_CONFIG_BYTES)
    weights = read_bytes(adapter.path / _WEIGHTS_NAME, _MAX_WEIGHTS_BYTES)
    if hashlib.sha256(weights).hexdigest() != adapter.digest:
        raise StorageError(
            f"{adapter.path / _WEIGHTS_NAME} is not the file that was trained", "train it again"
        )
    with guarded("make", folder.parent):
        folder.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(folder) as building:
        atomic_write_bytes(building / _CONFIG_NAME, config)
        atomic_write_bytes(building / _WEIGHTS_NAME, weights)
        atomic_write_json(building / CARD_NAME, card.to_json())
        atomic_write_text(building / _README_NAME, render_generator_card(card))
    return AdapterRef(folder, adapter.digest, adapter.base_digest)


def read_card(folder: Path) -> GeneratorCard:
    """The card of a generator; the weights are not looked at.

    Raises:
        UsageError: The folder is no generator.
        StorageError: The card is damaged, too large, or of a newer form.
    """
    recover(folder)
    with guarded("read", folder):
        if not folder.is_dir():
            raise _no_generator(folder, "there is no such folder")
        path = confined(folder, CARD_NAME)
        if not path.exists():
            raise _no_generator(folder, f"it has no {CARD_NAME}")
    return GeneratorCard.from_json(read_json(path, _MAX_CARD_BYTES), where=str(path))


def read_generator(folder: Path) -> tuple[AdapterRef, GeneratorCard]:
    """A generator's adapter and card, checked against each other.

    Whether it fits a base model is checked where it is attached.

    Raises:
        UsageError: The folder is no generator, or a symlink leads out of it.
        StorageError: A file is missing, damaged or too large, or the weights are not those that
            the card names.
    """
    card = read_card(folder)
    read_json(confined(folder, _CONFIG_NAME), _MAX_CONFIG_BYTES)
    weights = confined(folder, _WEIGHTS_NAME)
    if _sha256(weights) != card.adapter_digest:
        raise StorageError(f"{weights} is not the file that {CARD_NAME} names", _RESTORE)
    return AdapterRef(folder, card.adapter_digest, card.base_digest), card


def render_generator_card(card: GeneratorCard) -> str:
    """The model card: Markdown, with the head that PEFT and the hub read."""
    head = yaml.safe_dump(
        {
            "base_model": card.base_model,
            "library_name": "peft",
            "tags": ["lora", "aios", "self-edits", "generator"],
        },
        sort_keys=False,
    )
    shares = ", ".join(f"{name} {share:.0%}" for name, share in card.strategies.items())
    threshold = "" if card.reward.threshold is None else f", margin {card.reward.threshold:.4g}"
    facts = {
        "base model": card.base_model,
        "base digest": f"`{card.base_digest}`",
        "strategies": shares,
        "round": card.round,
        "passages": card.passages,
        "reward": f"{card.reward.kind}, against {card.reward.baseline}{threshold}",
        "recipe": f"rank {card.recipe.rank}, alpha {card.recipe.alpha}, learning rate "
        f"{card.recipe.learning_rate:g}, {card.recipe.epochs} epochs",
        "made": f"{card.created_at}, AI-OS {card.aios_version}",
    }
    lines = [
        "# A generator of self-edits",
        "",
        "A LoRA adapter that has learned, by ReST-EM, to write self-edits of passages.",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {_cell(value)} |" for name, value in facts.items()),
        "",
        "| round | tried | rewarded | kept | held-out gain |",
        "|---|---|---|---|---|",
    ]
    for done in card.rounds:
        gain = "" if done.held_out is None else f"{done.held_out:.4f}"
        lines.append(f"| {done.number} | {done.tried} | {done.rewarded} | {done.kept} | {gain} |")
    lines += [
        "",
        "Write self-edits with it by `--seal-generator FOLDER`, on the base model named above; "
        f"`{CARD_NAME}` has the rest.",
    ]
    return f"---\n{head}---\n\n" + "\n".join(lines) + "\n"


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|")


def refuse_other_files(folder: Path) -> None:
    """Keeps a folder of someone's own from being replaced by a generator.

    Raises:
        UsageError: It holds something that is no part of a generator.
        StorageError: It is no folder, or cannot be read.
    """
    recover(folder)
    with guarded("list", folder):
        if not folder.exists():
            return
        others = sorted(path.name for path in folder.iterdir() if path.name not in _NAMES)
    if others:
        raise UsageError(
            f"{folder} holds {others[0]!r}, which is no part of a generator and would be lost",
            "name another folder for the generator",
        )


def _no_generator(folder: Path, reason: str) -> UsageError:
    return UsageError(
        f"{folder} is not a generator: {reason}",
        "name a folder that `aios seal restem optimize` has written",
    )


def _sha256(path: Path) -> str:
    """SHA-256 of a regular file of bounded size, read in blocks."""
    digest, size = hashlib.sha256(), 0
    with guarded("read", path):
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise StorageError(f"cannot read {path}: not a regular file", _RESTORE)
        with path.open("rb") as stream:
            while block := stream.read(1 << 20):
                size += len(block)
                if size > _MAX_WEIGHTS_BYTES:
                    raise StorageError(f"{path} is larger than 8 GiB", _RESTORE)
                digest.update(block)
    return digest.hexdigest()
