"""Builds what an assistant is made of, as the config says: writer, records, sessions' adapters."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING

from aios.app.chat.answer_records import AnswerRecords
from aios.app.chat.offered_experts import Offer, damaged_experts
from aios.app.chat.routing import ProfileReader, activity_path, open_signals
from aios.app.models import load_model, load_trainer
from aios.backends.scripted import ScriptedModel
from aios.core.config.schemas import Config
from aios.core.errors import ModelError, StorageError
from aios.core.events import Event, Notice
from aios.core.experts.routing import Router
from aios.core.experts.routing_signals import Loss
from aios.core.protocols import Emit
from aios.core.serving import Writer
from aios.core.types import ScoreRequest
from aios.storage.activity import ActivityStore
from aios.storage.experts import FileExpertStore, fold_counters

if TYPE_CHECKING:
    from aios.app.chat.adaptation import SessionAdapters

EXPERTS_FOLDER = "experts"


def one_at_a_time(emit: Emit) -> Emit:
    """An `Emit` that many threads may call."""
    lock = threading.Lock()

    def locked(event: Event) -> None:
        with lock:
            emit(event)

    return locked


def open_store(config: Config) -> FileExpertStore:
    """The registry of experts."""
    return FileExpertStore(config.paths.artifacts / EXPERTS_FOLDER, config.model.name)


def open_writer(config: Config, emit: Emit) -> Writer:
    """Loads the base model, and opens what writes with it for many at once.

    Raises:
        ModelError: It is not known, missing or broken, or its weights are not on this machine.
        StorageError: The cache folder cannot be written.
    """
    serve = config.serve
    model = load_model(config, emit=emit)
    if isinstance(model, ScriptedModel):
        from aios.backends.scripted_serving import ScriptedWriter

        return ScriptedWriter(
            model, max_concurrent=serve.max_concurrent, max_waiting=serve.max_waiting
        )
    from aios.backends.serving.engine import TorchWriter
    from aios.backends.torch_lm import TorchLM

    if not isinstance(model, TorchLM):
        raise ModelError(
            f"experts cannot answer over {model.name}: its weights are not on this machine",
            f"set model.name ({config.model.name}) to a model that is loaded here",
        )
    return TorchWriter(model, max_concurrent=serve.max_concurrent, max_waiting=serve.max_waiting)


def open_records(
    config: Config, store: FileExpertStore, emit: Emit
) -> tuple[AnswerRecords, ActivityStore] | None:
    """The record of answers; None, with a warning, where it cannot be opened."""
    try:
        activity = ActivityStore(activity_path(config))
    except StorageError as error:
        text = f"answers are not recorded: {error.message} {error.remedy}".strip()
        emit(Notice(text, "warning"))
        return None
    return AnswerRecords(activity, lambda: fold(store, activity), emit), activity


def open_adapters(
    config: Config, writer: Writer, activity: ActivityStore | None, emit: Emit
) -> SessionAdapters | None:
    """The sessions' own adapters; None where the model cannot be trained here.

    Raises:
        UsageError: A setting of adaptation cannot be used.
        StorageError: ``training.retention_file`` cannot be read.
    """
    from aios.app.chat.adaptation import SessionAdapters
    from aios.core.seal.test_time_training import Trainable

    if not isinstance(writer.model, Trainable):
        return None
    return SessionAdapters(writer, config, activity, emit)


def open_routes(
    config: Config, store: FileExpertStore, writer: Writer, emit: Emit
) -> Callable[[Offer], Router]:
    """What makes a router over the experts of an offer; signals and what was read are kept.

    Raises:
        UsageError: None of ``routing.signals`` can be had here.
    """
    by_loss = "loss" in config.routing.signals
    loss = _expert_loss(config, store, writer, emit) if by_loss else None
    signals = open_signals(config, loss=loss, emit=emit)
    reader = ProfileReader(store, emit)
    return lambda offer: Router(reader.profiles(offer.experts), signals, config.routing)


def _expert_loss(config: Config, store: FileExpertStore, writer: Writer, emit: Emit) -> Loss | None:
    """The loss of a text under an expert; None where the model cannot have one on it.

    The expert is put on the model for each text, while nothing is written: slow, and on a busy
    server slower.
    """
    try:
        trainer = load_trainer(config, writer.model)
    except ModelError:
        return None

    def loss(expert_id: str | None, text: str) -> float:
        with ExitStack() as held:
            model = held.enter_context(writer.between())
            if expert_id is not None:
                try:
                    model = trainer.attach(store.adapter(expert_id))
                except (ModelError, StorageError) as error:  # names files, so it is told here alone
                    emit(Notice(f"expert {expert_id} cannot be asked: {error.message}", "warning"))
                    raise damaged_experts([expert_id]) from error
                held.callback(trainer.detach, model)
            (score,) = model.score([ScoreRequest("", text)])
        return score.loss

    return loss


def fold(store: FileExpertStore, activity: ActivityStore) -> None:
    """Takes the counters of the database of answers into the registry.

    Raises:
        StorageError: One of them cannot be read or written.
    """

    def registered() -> dict[str, tuple[int, float]]:
        return {e.expert_id: (e.total_activations, e.avg_routing_weight) for e in store.list()}

    with activity.fold(registered) as changed:
        if changed:
            fold_counters(store, changed)
