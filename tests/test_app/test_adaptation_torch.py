"""Sessions' adapters on a real (tiny) model: isolation, files, harm, memory, and who waits."""

from __future__ import annotations

import gc
import hashlib
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from aios.app.chat.adaptation import SessionAdapters
from aios.backends.adapter_training import TorchAdapterTrainer
from aios.backends.serving.engine import TorchWriter
from aios.backends.torch_lm import TorchLM
from aios.backends.trials.bench import TorchTrialBench
from aios.core.protocols import LanguageModel
from aios.core.seal.adaptation_guard import default_retention, mean_loss
from aios.core.serving import Part, WriteRequest
from aios.core.types import (
    AdapterRef,
    GenerationRequest,
    SamplingParams,
    ScoreRequest,
    TrainExample,
)
from tests.test_app.lending_writer import LendingWriter
from tests.test_app.test_adaptation import config, note, own, said
from tests.trial_jobs import tiny_lm, trial

RUFUS = "My dog is called Rufus. He was born in Tolvik in 2019."
LOCKER = "My locker code is 4471. It is kept by Ilse Brandt."
ON_RUFUS = (ScoreRequest("", RUFUS),)
ON_LOCKER = (ScoreRequest("", LOCKER),)
LEARNS: dict[str, Any] = {"learning_rate": 1e-2, "steps": 6, "tolerance": 10.0}


@pytest.fixture
def lm() -> TorchLM:
    return tiny_lm(torch.float32)


@pytest.fixture
def expert(lm: TorchLM, tmp_path: Path) -> AdapterRef:
    ((_, trained, _),) = TorchTrialBench(lm).train([trial(1)])  # type: ignore[misc]
    reference: AdapterRef = trained.export(tmp_path / "expert")
    return reference


def loss(model: LanguageModel, requests: tuple[ScoreRequest, ...]) -> float:
    found = mean_loss(model, requests)
    assert found is not None
    return found


def hashes(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


def test_two_sessions_that_adapt_at_once_never_see_each_others_facts(lm: TorchLM) -> None:
    before = loss(lm, ON_RUFUS), loss(lm, ON_LOCKER)
    writer = LendingWriter(lm)
    adapters = SessionAdapters(writer, config(**LEARNS))
    with writer.between():  # both wait, and begin together
        adapters.note_turn("a", (), said(RUFUS))
        adapters.note_turn("b", (), said(LOCKER))
    assert adapters.wait(60)
    a, b = own(adapters, "a"), own(adapters, "b")
    assert loss(a, ON_RUFUS) < before[0] - 0.5
    assert loss(b, ON_LOCKER) < before[1] - 0.5
    assert loss(b, ON_RUFUS) > loss(a, ON_RUFUS) + 0.3
    assert loss(a, ON_LOCKER) > loss(b, ON_LOCKER) + 0.3
    assert (loss(lm, ON_RUFUS), loss(lm, ON_LOCKER)) == before
    alone = SessionAdapters(writer, config(**LEARNS))
    note(alone, "b", LOCKER)
    assert own(alone, "b").adapter_digest == b.adapter_digest  # as if there were no other
    adapters.close()
    alone.close()


def test_over_an_expert_its_files_and_losses_stay_as_they_were(
    lm: TorchLM, expert: AdapterRef
) -> None:
    before = hashes(expert.path)
    trainer = TorchAdapterTrainer(lm)
    attached = trainer.attach(expert)
    untouched = loss(attached, ON_RUFUS), loss(lm, ON_RUFUS)
    adapters = SessionAdapters(LendingWriter(lm), config(**LEARNS))
    for text in (RUFUS, LOCKER):
        note(adapters, "a", RUFUS, text, chosen=[("e", expert)])
    assert loss(own(adapters, "a", Part(expert)), ON_RUFUS) < untouched[0] - 0.5
    assert (loss(attached, ON_RUFUS), loss(lm, ON_RUFUS)) == untouched
    assert hashes(expert.path) == before
    assert sorted(p.name for p in expert.path.parent.iterdir()) == ["expert"]
    adapters.close()


def test_a_harmful_adaptation_is_dropped_and_the_one_before_stays(
    lm: TorchLM, tmp_path: Path
) -> None:
    """Over an expert that knows the unrelated text, so that there is something to lose."""
    known = tuple(TrainExample.whole(r.continuation) for r in default_retention())
    job = replace(trial(1), examples=known, questions=(), max_steps=60)
    ((_, trained, _),) = TorchTrialBench(lm).train([job])  # type: ignore[misc]
    expert = trained.export(tmp_path / "expert")
    adapters = SessionAdapters(LendingWriter(lm), config(learning_rate=1e-7))
    note(adapters, "a", RUFUS, chosen=[("e", expert)])
    gentle = own(adapters, "a", Part(expert))
    wild = adapters._adaptation
    wild.settings = replace(wild.settings, learning_rate=1.0)
    note(adapters, "a", RUFUS, LOCKER, chosen=[("e", expert)])
    assert own(adapters, "a", Part(expert)) is gentle
    kept, dropped = adapters.history("a")
    assert kept.kept
    assert not dropped.kept
    assert "unrelated text rose by" in dropped.reason
    assert adapters.undo("a")
    assert adapters.parts("a", [Part(expert)]) == (Part(expert),)
    assert loss(gentle, ON_RUFUS) > 0  # an answer that has it may still be written
    adapters.close()


def test_an_answer_waits_for_one_slice_at_most(lm: TorchLM) -> None:
    writer = LendingWriter(lm)
    adapters = SessionAdapters(writer, config(**{**LEARNS, "steps": 12}))
    asked: list[threading.Thread] = []

    def ask_in_the_middle(number: int) -> None:
        if number in (2, 9, 14):  # while it is scored, and while it is trained
            answer = threading.Thread(target=writer.submit, args=(WriteRequest("Hi"),))
            asked.append(answer)
            answer.start()
            writer.wait_for_a_text()

    writer.on_slice = ask_in_the_middle
    note(adapters, "a", RUFUS)
    for thread in asked:
        thread.join(10)
    assert writer.written == [2, 9, 14]  # before the next slice began
    assert writer.slices > 12 + 4  # a step a slice, and the losses
    own(adapters, "a")
    adapters.close()


def tensor_bytes() -> int:
    """Memory of all tensors that are alive."""
    gc.collect()
    found = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
        for t in gc.get_objects()
        if isinstance(t, torch.Tensor)
    }
    return sum(found.values())


@pytest.mark.slow
def test_memory_stays_flat_over_many_adaptations(lm: TorchLM, expert: AdapterRef) -> None:
    adapters = SessionAdapters(LendingWriter(lm), config(**{**LEARNS, "steps": 1}, max_sessions=2))
    sizes = []
    for number in range(20):
        text = f"My friend number {number} is called Name{number}."
        chosen = [("e", expert)] if number % 2 else []
        note(adapters, f"session-{number % 3}", text, chosen=chosen)
        sizes.append(tensor_bytes())
    assert all(adapters.history(f"session-{i}") for i in (18 % 3, 19 % 3))
    assert max(sizes[8:]) <= max(sizes[:8])
    adapters.close()


def test_the_engine_writes_with_a_sessions_adapter_as_the_adapted_model_would(
    lm: TorchLM, expert: AdapterRef
) -> None:
    writer = TorchWriter(lm)
    adapters = SessionAdapters(writer, config(**{**LEARNS, "learning_rate": 5e-2}))
    greedy = SamplingParams(0.0, 1.0, 12)
    prompt = lm.format_chat([{"role": "user", "content": "What is my dog called?"}])
    asked = GenerationRequest(prompt, (0,), greedy)
    try:
        for chosen, parts in (([], ()), ([("e", expert)], (Part(expert),))):
            note(adapters, "a", RUFUS, chosen=chosen)
            adapted = own(adapters, "a", *parts)
            with writer.between():
                wanted = adapted.generate([asked])[0][0].text
            for used, same in ((adapters.parts("a", parts), True), (parts, False)):
                text = writer.submit(WriteRequest(prompt, parts=used, sampling=greedy))
                assert ("".join(piece.text for piece in text) == wanted) is same
    finally:
        adapters.close()
        writer.close()
