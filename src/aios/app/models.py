"""Lists, fetches, describes and loads base models, as the config asks for.

Takes a `Config`; gives `ModelInfo` records for people and programs, or a model that is ready to
write and score. torch is imported only where a real model is loaded.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from aios.backends.model_files import hub
from aios.backends.model_files import store as model_store
from aios.backends.models import (
    ENDPOINT_PREFIX,
    KnownModel,
    ModelSource,
    installed_model,
    kind_of,
    known_models,
    resolve_model,
)
from aios.backends.scripted import SCRIPTED_NAME, ScriptedModel
from aios.core.config.recipes import recipe_name
from aios.core.config.schemas import Config
from aios.core.errors import ModelError
from aios.core.events import Notice
from aios.core.protocols import AdapterTrainer, Emit, LanguageModel, ignore

_TRUE = {"1", "true", "yes", "on"}


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What is known of a base model.

    Attributes:
        name: What to give as ``--model``.
        kind: ``bundled``, ``folder``, ``gguf``, ``hub``, ``scripted`` or ``endpoint``.
        source: Where it comes from, in words.
        installed: Whether it is on this machine and whole.
        path: Its folder, where it is on this machine.
        size_bytes: Bytes on disk, or to fetch where it is not here; None if not known.
        digest: Its digest, where it is on this machine.
        parameters: Numbers in the weights; None if not known.
        context_length: Most tokens of prompt and completion; None if not known.
        licence: SPDX id or the model card's word for it; empty where it is not known.
        recipe: The recipe that is used for it by default.
    """

    name: str
    kind: str
    source: str
    installed: bool
    path: Path | None
    size_bytes: int | None
    digest: str
    parameters: int | None
    context_length: int | None
    licence: str
    recipe: str


def is_offline(config: Config) -> bool:
    """Whether the network is forbidden, by the config or by ``HF_HUB_OFFLINE``."""
    return config.model.offline or os.environ.get("HF_HUB_OFFLINE", "").lower() in _TRUE


def models_folder(config: Config) -> Path:
    """Where fetched models are kept."""
    return model_store.models_folder(config.model.cache_dir)


def list_models(config: Config) -> list[ModelInfo]:
    """The known models, those that were used before, and the one that the config names."""
    names = [model.name for model in known_models()]
    names += [name for name in (*_used_before(config), config.model.name) if name not in names]
    found = []
    for name in dict.fromkeys(names):
        try:
            found.append(show_model(config, name))
        except ModelError:  # moved away or broken since; `models show` says why
            continue
    return found


def pull_model(config: Config, name: str, emit: Emit) -> ModelInfo:
    """Fetches a model, or checks the checksums of one that is here already.

    Raises:
        ModelError: It is not known, cannot be fetched, or is broken or refused.
        StorageError: The cache folder cannot be written.
    """
    source = resolve_model(
        name,
        cache_dir=config.model.cache_dir,
        offline=is_offline(config),
        emit=emit,
        refresh=not is_offline(config),
    )
    return _info(config, source)


def show_model(config: Config, name: str) -> ModelInfo:
    """What is known of a model; fetches nothing.

    Raises:
        ModelError: The name is not known, or names a folder that is broken or refused.
    """
    source = installed_model(name, cache_dir=config.model.cache_dir)
    if source is not None:
        return _info(config, source)
    known = {model.name: model for model in known_models()}.get(name)
    return _info_not_here(config, name, known)


def load_source(config: Config, emit: Emit = ignore) -> ModelSource:
    """The config's base model on this machine, fetched if need be; its weights are not loaded.

    Raises:
        ModelError: As `resolve_model`.
        StorageError: As `resolve_model`.
    """
    return resolve_model(
        config.model.name,
        cache_dir=config.model.cache_dir,
        offline=is_offline(config),
        emit=emit,
    )


def load_model(config: Config, *, emit: Emit = ignore) -> LanguageModel:
    """The config's base model, ready to write and score.

    Raises:
        ModelError: It is not known, missing, broken or refused.
        StorageError: The cache folder cannot be written.
    """
    if config.model.name == SCRIPTED_NAME:
        return ScriptedModel()
    if config.model.name.startswith(ENDPOINT_PREFIX):
        from aios.backends.openai_compat import EndpointModel

        return EndpointModel.connect(
            config.model.name, config.endpoint, offline=is_offline(config), emit=emit
        )
    source = load_source(config, emit)
    from aios.backends.torch_lm import TorchLM

    emit(Notice(f"base model {source.name}, from {source.path}"))
    settings = config.model
    return TorchLM.load(
        source, device=settings.device, dtype=settings.dtype, threads=settings.threads
    )


def load_trainer(config: Config, model: LanguageModel) -> AdapterTrainer:
    """The trainer that goes with a model from `load_model`.

    Raises:
        ModelError: Adapters cannot be trained on this kind of model.
    """
    if isinstance(model, ScriptedModel):
        from aios.backends.scripted_training import ScriptedTrainer

        return ScriptedTrainer(model)
    from aios.backends.adapter_training import TorchAdapterTrainer
    from aios.backends.torch_lm import TorchLM

    if not isinstance(model, TorchLM):
        raise ModelError(
            f"no adapter can be trained on {model.name}: its weights are not on this machine",
            f"set model.name ({config.model.name}) to a model that is loaded here",
        )
    return TorchAdapterTrainer(model)


def _used_before(config: Config) -> list[str]:
    """Names of folders, files and hub models that were used before and are still there."""
    names = []
    for record in model_store.models_used(config.model.cache_dir):
        name, path = record["name"], record["path"]
        if record["kind"] == "hub":
            names.append(name)
        elif Path(path).exists():
            names.append(path)
    return list(dict.fromkeys(names))


def _info(config: Config, source: ModelSource) -> ModelInfo:
    return ModelInfo(
        name=source.name,
        kind=source.kind,
        source=source.source,
        installed=True,
        path=source.path,
        size_bytes=source.size_bytes,
        digest=source.digest,
        parameters=source.parameters,
        context_length=source.context_length,
        licence=source.licence,
        recipe=recipe_name(config.recipes, source.name),
    )


def _info_not_here(config: Config, name: str, known: KnownModel | None) -> ModelInfo:
    kind = kind_of(name)
    source = "Hugging Face hub" if hub.parse_hub_id(name) else name
    if kind == "endpoint":
        source = config.endpoint.url
    return ModelInfo(
        name=name,
        kind=kind,
        source=known.source if known else source,
        installed=False,
        path=None,
        size_bytes=known.fetch_bytes if known else None,
        digest="",
        parameters=known.parameters if known else None,
        context_length=known.context_length if known else None,
        licence=known.licence if known else "",
        recipe=recipe_name(config.recipes, name),
    )
