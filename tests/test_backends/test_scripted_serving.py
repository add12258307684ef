"""The scripted writer: who wrote a text can be seen, and it is slow, full or fails on demand."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from aios.backends.scripted import Faults, ScriptedModel
from aios.backends.scripted_serving import ScriptedWriter
from aios.core.errors import AdapterMismatchError, BackendError, QueueFullError
from aios.core.protocols import TemporaryExpert
from aios.core.serving import Part, Piece, Writer, WriteRequest
from aios.core.trials import TrialJob, TrialOutcome
from aios.core.types import AdapterRef, LoraRecipe, TrainExample

MODEL = ScriptedModel({"hello": ["good morning to you"]})


def named(name: str, model: ScriptedModel = MODEL) -> AdapterRef:
    return AdapterRef(Path("experts") / name, name, model.digest)


def write(writer: Writer, prompt: str = "hello", *parts: Part) -> str:
    return "".join(piece.text for piece in writer.submit(WriteRequest(prompt, parts)))


def temporary(model: ScriptedModel, text: str) -> TemporaryExpert:
    job = TrialJob("a", (TrainExample(text, ((0, len(text)),)),), LoraRecipe(rank=4), seed=1)
    (trained,) = model.trial_bench().train([job])
    assert not isinstance(trained, TrialOutcome)
    return trained[1]


def test_a_text_begins_with_the_names_of_its_adapters() -> None:
    with closing(ScriptedWriter(MODEL, read_adapters=False)) as writer:
        one, two = Part(named("physics")), Part(named("art"), 0.5)
        session = Part(temporary(MODEL, "The bell is new."))
        assert write(writer) == "good morning to you"
        assert write(writer, "hello", one) == "[physics] good morning to you"
        assert write(writer, "hello", one, two) == "[art*0.5 physics] good morning to you"
        assert write(writer, "hello", one, session) == "[physics+session] good morning to you"
        assert [len(request.parts) for request in writer.requests] == [0, 1, 2, 2]
    with closing(ScriptedWriter(MODEL, read_adapters=False, label=False)) as writer:
        assert write(writer, "hello", one) == "good morning to you"


def test_a_text_knows_what_its_adapters_have_learnt() -> None:
    model = ScriptedModel()
    learnt = temporary(model, "Question: Who rings the bell? Answer: Tove Lind")
    with closing(ScriptedWriter(model, label=False)) as writer:
        asked = "Question: Who rings the bell?"
        assert write(writer, asked) == "unknown"
        assert write(writer, asked, Part(learnt)) == "Tove Lind"


def test_names_alone_still_have_a_base_model() -> None:
    with closing(ScriptedWriter(MODEL, read_adapters=False)) as writer:
        other = named("physics", ScriptedModel(name="other"))
        with pytest.raises(AdapterMismatchError):
            write(writer, "hello", Part(other))


def test_a_step_is_as_slow_as_asked_whatever_the_number_of_texts() -> None:
    slept: list[float] = []
    with closing(ScriptedWriter(MODEL, seconds_per_token=0.5, sleep=slept.append)) as writer:
        with writer.between():  # all of them begin together
            writings = [writer.submit(WriteRequest("hello")) for _ in range(10)]
        assert all(len(list(writing)) == 4 for writing in writings)
    assert slept == [0.5] * 4


def test_it_fails_after_as_many_words_as_asked() -> None:
    with closing(ScriptedWriter(MODEL, fail_after=2, fail_on="fail")) as writer:
        assert write(writer) == "good morning to you"
        writing = writer.submit(WriteRequest("hello fail"))
        found: list[Piece] = []
        with pytest.raises(BackendError, match="script"):
            found.extend(writing)
        assert len(found) == 2
        writer.batch.fail_after = 0
        with pytest.raises(BackendError, match="script"):
            write(writer, "hello fail")
        writer.batch.fail_after = None
        assert write(writer, "hello fail") == "good morning to you"


def test_a_fault_of_the_model_ends_one_text() -> None:
    model = ScriptedModel({"hello": ["yes"]}, faults=Faults(fail_times=1))
    with closing(ScriptedWriter(model)) as writer:
        with pytest.raises(BackendError, match="script"):
            write(writer)
        assert write(writer) == "yes"


def test_it_is_full_while_asked() -> None:
    with closing(ScriptedWriter(MODEL, full=True)) as writer:
        with pytest.raises(QueueFullError):
            write(writer)
        writer.full = False
        assert write(writer) == "good morning to you"
