from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from aios.backends.scripted import Faults, ScriptedModel
from aios.core.config.schemas import Config
from aios.core.errors import DataError, UsageError
from aios.core.seal.passage_edits import PassageEdits
from aios.core.seal.quality import FilterSettings
from aios.core.seal.self_edit_generator import SelfEditGenerator
from aios.core.training.auto_training_orchestrator import (
    AutoTrainingOrchestrator,
    RestemExpert,
    TrainingData,
    refuse_leakage,
)
from aios.core.types import Passage, SelfEdit, TrainExample

NAMES = ("Arn", "Bosk", "Cald", "Dunmery", "Eskel", "Fennick")
TRADES = ("mill", "harbour", "bell tower", "salt works", "ferry", "orchard")


def text_about(name: str, trade: str, number: int) -> str:
    return (
        f"The {trade} of {name} was founded by Tove Lind-{name} in {1700 + 7 * number}. "
        f"Each spring {number + 3} wardens of {name} mend it with larch and pitch."
    )


def record(number: int, *, questions: bool) -> dict[str, object]:
    name, trade = NAMES[number], TRADES[number]
    asked = [{"question": f"Who founded the {trade} there?", "answer": f"Tove Lind-{name}"}]
    return {
        "id": name,
        "text": text_about(name, trade, number),
        "questions": asked if questions else [],
    }


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write(*records: object) -> Path:
        path = tmp_path / "data.jsonl"
        path.write_text("".join(f"{json.dumps(r)}\n" for r in records), encoding="utf-8")
        return path

    return write


def config(**sections: Any) -> Config:
    training = {"passage_copies": 1, **sections.pop("training", {})}
    seal = {"strategy": "cloze", "num_edits_per_passage": 1, **sections.pop("seal", {})}
    return Config.model_validate(
        {"model": {"name": "scripted"}, "seal": seal, "training": training, **sections}
    )


def prepare(
    path: Path, *, model: ScriptedModel | None = None, edits: bool = True, **sections: Any
) -> TrainingData:
    model = model or ScriptedModel()
    settings = config(**sections)
    generator = SelfEditGenerator(
        model,
        strategy=settings.seal.strategy,
        num_edits=1,
        filter_settings=FilterSettings(enable_quality_filter=False),
    )
    orchestrator = AutoTrainingOrchestrator(settings, model=model, generator=generator)
    return orchestrator.prepare_training_data(path, augment_with_self_edits=edits)


def test_questions_are_validated_on_and_every_passage_is_trained_on(write: Any) -> None:
    data = prepare(write(*(record(n, questions=n < 3) for n in range(5))))
    assert [p.id for p in data.passages] == list(NAMES[:5])
    assert data.validation.kind == "questions"
    assert len(data.validation.requests) == 3
    request = data.validation.requests[0]
    assert request.prompt == "Question: Who founded the mill there?\nAnswer:"
    assert request.continuation == " Tove Lind-Arn"
    assert data.validation.texts[0] == "Who founded the mill there?"


def test_the_question_template_is_the_configs(write: Any) -> None:
    data = prepare(
        write(record(0, questions=True)), evaluation={"question_template": "Q: {question} A:"}
    )
    assert data.validation.requests[0].prompt == "Q: Who founded the mill there? A:"


def test_without_questions_passages_are_held_back_and_get_no_self_edits(write: Any) -> None:
    data = prepare(
        write(*(record(n, questions=False) for n in range(6))),
        training={"validation_fraction": 0.34},
    )
    assert data.validation.kind == "passages"
    assert len(data.passages) == 4
    held_out = set(NAMES) - {p.id for p in data.passages}
    assert len(held_out) == len(data.validation.texts) == 2
    trained_on = " ".join(example.text for example in data.augmented)
    assert not any(name in trained_on for name in held_out)
    assert {edit.passage_id for edit in data.edits} <= {p.id for p in data.passages}
    assert all(request.prompt == "" for request in data.validation.requests)


def test_near_duplicates_are_on_one_side(write: Any) -> None:
    records = [record(n, questions=False) for n in range(4)]
    twins = [{"id": f"twin {r['id']}", "text": f"{r['text']} Truly."} for r in records]
    data = prepare(write(*records, *twins), training={"validation_fraction": 0.5})
    trained = {p.id.removeprefix("twin ") for p in data.passages}
    assert len(data.passages) == 2 * len(trained) == 4


@pytest.mark.parametrize(
    ("count", "fraction"), [(1, 0.2), (4, 0.0)], ids=["one passage", "no fraction"]
)
def test_nothing_is_validated_where_nothing_can_be_held_back(
    write: Any, count: int, fraction: float
) -> None:
    data = prepare(
        write(*(record(n, questions=False) for n in range(count))),
        training={"validation_fraction": fraction},
    )
    assert (data.validation.kind, data.validation.requests) == ("none", ())
    assert len(data.passages) == count


def test_self_edits_come_after_the_passages(write: Any) -> None:
    data = prepare(write(record(0, questions=True), record(1, questions=True)))
    assert [example.text for example in data.original] == [
        text_about(NAMES[n], TRADES[n], n) for n in range(2)
    ]
    assert data.augmented[:2] == data.original
    items = [item for edit in data.edits for item in edit.items]
    assert [example.text for example in data.augmented[2:]] == items
    assert len(items) > 4
    assert {example.source for example in data.augmented[2:]} == {"cloze"}


def test_copies_and_loss_follow_the_recipe(write: Any) -> None:
    data = prepare(
        write(record(0, questions=True)), training={"passage_copies": 3, "loss_on": "answer"}
    )
    assert [example.source for example in data.augmented[:4]] == ["passage"] * 3 + ["cloze"]
    start, end = data.augmented[3].loss_spans[0]
    assert data.augmented[3].text[:start].endswith("\nAnswer:")
    assert end == len(data.augmented[3].text)
    assert len(data.original) == 1


@pytest.mark.parametrize(
    "options",
    [
        {"edits": False},
        {"seal": {"enabled": False}},
        {"edits": False, "training": {"passage_copies": 0}},
        {"seal": {"enabled": False}, "training": {"passage_copies": 0}},
    ],
)
def test_without_self_edits_the_augmented_data_are_the_passages(
    write: Any, options: dict[str, Any]
) -> None:
    data = prepare(write(record(0, questions=True)), **options)
    assert data.augmented == data.original
    assert len(data.original) == 1
    assert (data.edits, data.drops, data.failures) == ((), (), ())


def test_an_orchestrator_without_a_generator_prepares_passages_alone(write: Any) -> None:
    orchestrator = AutoTrainingOrchestrator(config(), model=ScriptedModel())
    data = orchestrator.prepare_training_data(str(write(record(0, questions=True))))
    assert data.augmented == data.original


def test_a_failed_generation_costs_the_edits_and_not_the_passage(write: Any) -> None:
    faulty = ScriptedModel(faults=Faults(fail_times=99, fail_on="Bosk"))
    data = prepare(
        write(*(record(n, questions=True) for n in range(3))),
        model=faulty,
        seal={"strategy": "implications"},
        training={"passage_copies": 0},
    )
    (failure,) = data.failures
    assert (failure.boundary, failure.subject) == ("generate", "Bosk")
    assert {edit.passage_id for edit in data.edits} == {"Arn", "Cald"}
    assert [e.passage_id for e in data.augmented if e.source == "passage"] == ["Bosk"]


def test_drops_are_handed_on_with_their_reasons(write: Any) -> None:
    model = ScriptedModel({"Arn": ["Sure, here is a list:"]})
    data = prepare(
        write(record(0, questions=True), record(1, questions=True)),
        model=model,
        seal={"strategy": "implications"},
    )
    assert [(drop.passage_id, drop.reason) for drop in data.drops] == [("Arn", "no_items")]


def test_rejects_are_listed_and_the_rest_is_used(write: Any) -> None:
    data = prepare(write(record(0, questions=True), {"id": "Arn", "text": "Twice."}, {"no": 1}))
    assert [reject.reason for reject in data.rejects] == ["duplicate_id", "missing_text"]
    assert [p.id for p in data.passages] == ["Arn"]


def test_long_passages_are_split(write: Any) -> None:
    long = " ".join(text_about(NAMES[n], TRADES[n], n) for n in range(6))
    data = prepare(write({"id": "long", "text": long}), data={"max_passage_tokens": 40})
    assert all(p.id.startswith("long#") for p in data.passages)
    assert len(data.passages) + len(data.validation.requests) > 3


def test_a_caller_may_make_the_edits_itself(write: Any) -> None:
    seen: list[str] = []

    def generate(passages: Sequence[Passage]) -> list[PassageEdits]:
        seen.extend(p.id for p in passages)
        item = ("A fact of mine.",)
        return [PassageEdits(p, (SelfEdit(p.id, "mine", 0, item),)) for p in passages]

    orchestrator = AutoTrainingOrchestrator(config(), model=ScriptedModel(), generate=generate)
    data = orchestrator.prepare_training_data(write(record(0, questions=True)))
    assert seen == ["Arn"]
    assert data.augmented[-1].text == "A fact of mine."


# ------------------------------------------------------------ leakage


def test_a_question_that_stands_in_a_passage_is_refused_before_any_generation(write: Any) -> None:
    leaky = record(0, questions=True)
    leaky["text"] = f"{leaky['text']} Who founded the mill there? Nobody asks."
    model = ScriptedModel()
    with pytest.raises(DataError, match="leaks into training") as caught:
        prepare(write(leaky), model=model, seal={"strategy": "implications"})
    assert "Who founded the mill there?" in caught.value.message
    assert caught.value.remedy
    assert model.requests == []


def test_a_self_edit_that_asks_the_very_question_is_refused(write: Any) -> None:
    def generate(passages: Sequence[Passage]) -> list[PassageEdits]:
        item = "Question: Who founded the mill there?\nAnswer: Tove Lind-Arn"
        return [PassageEdits(p, (SelfEdit(p.id, "self-qa", 0, (item,)),)) for p in passages]

    orchestrator = AutoTrainingOrchestrator(config(), model=ScriptedModel(), generate=generate)
    with pytest.raises(DataError, match="leaks into training"):
        orchestrator.prepare_training_data(write(record(0, questions=True)))


def test_the_message_shows_the_first_leaks_and_counts_the_others() -> None:
    texts = [f"Why is the number {n} odd?" for n in range(5)]
    with pytest.raises(DataError, match=r"and 2 more\)") as caught:
        refuse_leakage([TrainExample.whole(text) for text in texts], texts, 0.8)
    assert caught.value.message.count("equals training text") == 3
    refuse_leakage([TrainExample.whole("Something else altogether.")], texts, 0.8)


# ------------------------------------------------------------ bad input


@pytest.mark.parametrize("content", ["", '{"text": " "}\n'])
def test_a_file_without_passages_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(DataError):
        prepare(path)


def test_one_group_of_near_duplicates_cannot_be_split(write: Any) -> None:
    base = text_about("Arn", "mill", 0)
    with pytest.raises(DataError, match="near-duplicate group"):
        prepare(write({"text": base}, {"text": f"{base} Truly."}))


# ------------------------------------------------------------ with ReST-EM


class Work:
    """Fakes of what optimises a generator and trains an expert; they note what they were given."""

    def __init__(self) -> None:
        self.optimised: list[str] = []
        self.written: list[str] = []
        self.fitted: list[TrainingData] = []

    def optimize(self, passages: Sequence[Passage]) -> Any:
        self.optimised = [passage.id for passage in passages]
        return self.write

    def write(self, passages: Sequence[Passage]) -> list[PassageEdits]:
        self.written = [passage.id for passage in passages]
        return [
            PassageEdits(p, (SelfEdit(p.id, "cloze", 0, (f"{p.id} has wardens.",)),))
            for p in passages
        ]

    def fit(self, expert_id: str, data: TrainingData) -> Any:
        self.fitted.append(data)
        return f"trained {expert_id}"


def with_restem(path: Path, work: Work, split: float = 0.34) -> RestemExpert:
    orchestrator = AutoTrainingOrchestrator(
        config(), model=ScriptedModel(), optimize=work.optimize, fit=work.fit
    )
    return orchestrator.train_expert_with_restem("mills", path, split)


def test_with_restem_nothing_is_validated_on_that_the_generator_was_optimised_on(
    write: Any,
) -> None:
    work = Work()
    made = with_restem(write(*(record(n, questions=True) for n in range(6))), work)
    assert len(made.optimised_on) == 4
    assert len(made.validated_on) == 2
    assert list(made.optimised_on) == work.optimised
    assert set(made.optimised_on) | set(made.validated_on) == set(NAMES)
    asked = {request.continuation.strip() for request in made.data.validation.requests}
    assert asked == {f"Tove Lind-{name}" for name in made.validated_on}
    assert made.data.validation.kind == "questions"


def test_with_restem_the_expert_is_trained_on_all_passages_and_their_self_edits(
    write: Any,
) -> None:
    work = Work()
    path = write(*(record(n, questions=n < 5) for n in range(6)))
    made = with_restem(path, work)
    assert str(made.trained) == "trained mills"
    (data,) = work.fitted
    assert made.data is data
    assert work.written == list(NAMES)
    assert {example.passage_id for example in data.augmented} == set(NAMES)
    assert {example.source for example in data.augmented} == {"passage", "cloze"}
    assert NAMES[5] not in (*made.optimised_on, *made.validated_on)


def test_with_restem_and_no_validation_all_questions_are_optimised_on(write: Any) -> None:
    work = Work()
    made = with_restem(write(*(record(n, questions=True) for n in range(3))), work, split=0)
    assert len(work.optimised) == 3
    assert made.validated_on == ()
    assert made.data.validation.kind == "none"


def test_restem_needs_questions_a_share_below_one_and_what_does_the_work(write: Any) -> None:
    plain = write(*(record(n, questions=False) for n in range(3)))
    work = Work()
    with pytest.raises(DataError, match="no self-edit can be rewarded"):
        with_restem(plain, work)
    with pytest.raises(UsageError, match="fraction is 1"):
        with_restem(write(*(record(n, questions=True) for n in range(3))), work, split=1.0)
    orchestrator = AutoTrainingOrchestrator(config(), model=ScriptedModel())
    with pytest.raises(UsageError, match="nothing that optimises") as caught:
        orchestrator.train_expert_with_restem("mills", plain)
    assert "restem=True" in caught.value.remedy
    assert work.optimised == []


def test_with_restem_leakage_is_refused_before_any_work(write: Any) -> None:
    records = [record(n, questions=True) for n in range(3)]
    for one, name in zip(records, NAMES, strict=False):
        question = f"Who founded the mill of {name} in the very first place?"
        one["questions"] = [{"question": question, "answer": f"Tove Lind-{name}"}]
        one["text"] = f"{one['text']} {question} Nobody asks."
    work = Work()
    with pytest.raises(DataError, match="leaks into training"):
        with_restem(write(*records), work)
    assert work.optimised == []
