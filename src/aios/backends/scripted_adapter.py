"""What a scripted adapter learns, and how it is kept on disk.

Shared by the scripted trainer and the scripted trial bench. Takes training examples and counts
how often each text was seen (`Memory`); gives losses on the way, and a folder in PEFT layout with
the counts in the safetensors file's metadata. Its weights mean nothing.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from aios.backends.scripted import Memory, ScriptedModel
from aios.core.errors import AdapterMismatchError, BackendError, StorageError
from aios.core.files import atomic_write_bytes, atomic_write_json, read_json
from aios.core.seeds import derive
from aios.core.types import AdapterRef, LoraRecipe, Score, ScoreRequest, TrainExample

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
_METADATA_KEY = "scripted"


def checked_lengths(
    model: ScriptedModel, examples: Sequence[TrainExample], recipe: LoraRecipe
) -> list[int]:
    """Tokens of each example.

    Raises:
        BackendError: There is nothing to train on, or an example is too long.
    """
    lengths = [model.count_tokens(example.text) for example in examples]
    if not any(loss_text(example).split() for example in examples):
        raise BackendError("there is nothing to train on", "give at least one example")
    limit = min(recipe.max_seq_len, model.context_length)
    for example, length in zip(examples, lengths, strict=True):
        if length > limit:
            raise BackendError(
                f"a training text of passage {example.passage_id or '?'} has {length} tokens;"
                f" the limit is {limit}",
                "lower data.max_passage_tokens or raise training.max_seq_len",
            )
    return lengths


def batch_indices(seed: int, examples: int, batch_size: int, step: int) -> list[int]:
    """The examples of a step (counted from 0): each epoch is a new order of them, by the seed."""
    epoch, position = divmod(step, math.ceil(examples / batch_size))
    order = list(range(examples))
    random.Random(derive(seed, "order", epoch)).shuffle(order)
    return order[position * batch_size : (position + 1) * batch_size]


def learn(model: ScriptedModel, seen: dict[str, int], example: TrainExample) -> Score | None:
    """Sees an example once more.

    Args:
        model: The base model.
        seen: How often each text was seen; the example is added.
        example: What is seen.

    Returns:
        Its score before; None where it has no word with loss.
    """
    text = loss_text(example)
    if not text.split():
        return None
    learner = model.with_memory(Memory(dict(seen)), "training")
    score = learner.score([ScoreRequest("", text)])[0]
    seen[text] = seen.get(text, 0) + 1
    return score


def loss_text(example: TrainExample) -> str:
    """The parts that carry loss; the whole text for question-answer pairs, which need both."""
    if "answer:" in example.text.lower():
        return example.text
    return " ".join(example.text[start:end] for start, end in example.loss_spans)


def adapter_bytes(seen: Mapping[str, int], recipe: LoraRecipe, seed: int) -> bytes:
    """The safetensors file of an adapter."""
    from safetensors.numpy import save

    noise = np.random.default_rng(derive(seed, "lora_A")).standard_normal((recipe.rank, 1))
    tensors = {
        "base_model.model.scripted.lora_A.weight": noise.astype(np.float32),
        "base_model.model.scripted.lora_B.weight": np.zeros((1, recipe.rank), np.float32),
    }
    data: bytes = save(tensors, metadata={_METADATA_KEY: json.dumps(dict(seen), sort_keys=True)})
    return data


def write_adapter(
    folder: Path, model: ScriptedModel, data: bytes, recipe: LoraRecipe
) -> AdapterRef:
    """Puts an adapter (`adapter_bytes`) into a folder in PEFT layout.

    Raises:
        StorageError: The folder cannot be written.
    """
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": model.name,
        "r": recipe.rank,
        "lora_alpha": recipe.alpha,
        "lora_dropout": recipe.dropout,
        "target_modules": ["scripted"],
    }
    atomic_write_json(folder / CONFIG_NAME, config)
    atomic_write_bytes(folder / WEIGHTS_NAME, data)
    return AdapterRef(folder, hashlib.sha256(data).hexdigest(), model.digest)


def initial_memory(adapter: AdapterRef, model: ScriptedModel, recipe: LoraRecipe) -> Memory:
    """What a training that starts from an adapter knows already.

    Raises:
        AdapterMismatchError: It is of another base model, rank or alpha.
        StorageError: It cannot be read, or is not the file that its digest names.
    """
    memory = checked_memory(adapter, model)
    config = read_json(adapter.path / CONFIG_NAME)
    found = (config.get("r"), config.get("lora_alpha")) if isinstance(config, dict) else None
    if found != (recipe.rank, recipe.alpha):
        raise AdapterMismatchError(
            f"the adapter {adapter.path} has another rank or alpha than rank {recipe.rank} and"
            f" alpha {recipe.alpha} of the training that is to start from it",
            "train with the same rank and alpha, or start from the base model",
        )
    return memory


def checked_memory(adapter: AdapterRef, model: ScriptedModel) -> Memory:
    """The memory of an adapter that is what its reference says.

    Raises:
        AdapterMismatchError: It was trained on another base model.
        StorageError: It cannot be read, or is not the file that its digest names.
    """
    if adapter.base_digest != model.digest:
        raise AdapterMismatchError(
            f"the adapter {adapter.path} was trained on another base model"
            f" ({adapter.base_digest[:12]}…) than {model.name} ({model.digest[:12]}…)",
            "use the base model that it was trained on, or train it again",
        )
    memory, digest = read_adapter(adapter.path / WEIGHTS_NAME)
    if digest != adapter.digest:
        raise StorageError(
            f"{adapter.path / WEIGHTS_NAME} is not the file that was trained",
            "train the expert again, or restore the file from a copy",
        )
    return memory


def read_adapter(path: Path) -> tuple[Memory, str]:
    """Memory and SHA-256 of an adapter file.

    Raises:
        StorageError: It cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        with safe_open(path, framework="np") as file:
            memory = json.loads((file.metadata() or {})[_METADATA_KEY])
        return Memory({str(text): int(times) for text, times in memory.items()}), digest
    except (OSError, SafetensorError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise StorageError(
            f"the adapter {path} cannot be read: {error}",
            "train the expert again, or restore the file from a copy",
        ) from error
