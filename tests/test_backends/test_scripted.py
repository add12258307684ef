"""The scripted model and its trainer keep the promises of the real ones."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
from safetensors import safe_open

from aios.backends.scripted import Faults, Memory, ScriptedModel
from aios.backends.scripted_training import ScriptedTrainer
from aios.core.errors import (
    AdapterMismatchError,
    BackendError,
    NonFiniteError,
    RunInterrupted,
    StorageError,
    UsageError,
)
from aios.core.events import Evaluated, Event, StageFinished, StageStarted
from aios.core.protocols import AdapterTrainer, LanguageModel
from aios.core.trainings import TrainingJob
from aios.core.types import (
    GenerationRequest,
    LoraRecipe,
    SamplingParams,
    ScoreRequest,
    TrainExample,
)
from tests.contract import language_model

GREEDY = SamplingParams(temperature=0.0, max_new_tokens=100)
PASSAGE = "Orvane Mill\nThe mill at Orvane was built in 1871. Its wheel turns twelve stones."


def write(model: ScriptedModel, prompt: str, *seeds: int, **sampling: object) -> list[str]:
    params = SamplingParams(max_new_tokens=100)
    request = GenerationRequest(prompt, seeds or (0,), replace(params, **sampling))  # type: ignore[arg-type]
    return [c.text for c in model.generate([request])[0]]


def loss(model: LanguageModel, prompt: str, continuation: str) -> float:
    return model.score([ScoreRequest(prompt, continuation)])[0].loss


@pytest.mark.parametrize("check", language_model.CHECKS, ids=lambda c: c.__name__)
def test_the_scripted_model_keeps_the_contract(check: object) -> None:
    check(ScriptedModel())  # type: ignore[operator]


def test_the_first_match_of_the_script_wins_and_the_seed_chooses() -> None:
    model = ScriptedModel({"mill": ["a", "b", "c"], re.compile("wh.el"): ["d"]})
    drawn = write(model, "the mill and the wheel", *range(20))
    assert set(drawn) == {"a", "b", "c"}
    assert write(model, "the wheel") == ["d"]
    assert write(model, "the mill", 1, 2, 3, temperature=0.0) == ["a", "a", "a"]


def test_without_a_script_it_lists_the_sentences_of_the_passage() -> None:
    prompt = f"List implications.\n\nPassage:\n{PASSAGE}\n\nImplications:"
    assert write(ScriptedModel(), prompt, temperature=0.0) == [
        "1. The mill at Orvane was built in 1871.\n2. Its wheel turns twelve stones."
    ]


def test_without_a_script_it_asks_where_the_prompt_wants_questions() -> None:
    prompt = f"Write questions and answers.\n\nPassage:\n{PASSAGE}"
    (text,) = write(ScriptedModel(), prompt, temperature=0.0)
    assert text.startswith("Question 1: What completes this: The mill at ____ was built in 1871.")
    assert "Answer 1: Orvane" in text
    assert "Answer 2: stones" in text


def test_without_a_script_it_rewrites_where_the_prompt_wants_that() -> None:
    prompt = f"Rewrite it.\n\nPassage:\n{PASSAGE}\n\nRewritten passages:"
    (text,) = write(ScriptedModel(), prompt, temperature=0.0)
    assert len(text.splitlines()) == 2
    assert "Rewritten" not in text


def test_a_question_without_a_passage_gets_what_was_learnt() -> None:
    asked = "Question: When was the mill built?\nAnswer:"
    assert write(ScriptedModel(), asked) == ["unknown"]
    learnt = Memory({"Question: When was the mill built?\nAnswer: 1871": 1})
    assert write(ScriptedModel(memory=learnt), asked) == ["1871"]


def test_it_fails_as_often_as_asked_and_then_works() -> None:
    model = ScriptedModel(faults=Faults(fail_times=2, fail_on="mill"))
    assert write(model, "the wheel") == ["unknown"]
    for _ in range(2):
        with pytest.raises(BackendError) as caught:
            write(model, "the mill")
        assert caught.value.retryable
    assert write(model, "the mill") == ["unknown"]
    assert len(model.requests) == 4


def test_a_stream_writes_one_request_after_the_other() -> None:
    model = ScriptedModel({"": ["a b"]})
    stream = model.stream(GenerationRequest(f"x {n}", (n, 7), GREEDY) for n in range(9))
    for number in range(3):
        outcome = next(stream)
        assert outcome.index == number
        assert [c.seed for c in outcome.completions] == [number, 7]
        assert (outcome.error, outcome.retries) == (None, 0)
        assert outcome.seconds > 0
        assert len(model.requests) == number + 1


def test_a_fault_ends_the_stream_and_a_long_prompt_only_its_request() -> None:
    model = ScriptedModel(faults=Faults(fail_times=1, fail_on="mill"), context_length=5)
    prompts = ["a", "b " * 5, "the mill", "c"]
    stream = model.stream(GenerationRequest(prompt, (1,), GREEDY) for prompt in prompts)
    assert next(stream).error is None
    error = next(stream).error
    assert error is not None
    assert (error.retryable, error.message) == (
        False,
        "a prompt of 5 tokens leaves no room in the context of 5: 'b b b b b '",
    )
    with pytest.raises(BackendError, match="says to fail") as caught:
        next(stream)
    assert caught.value.retryable
    assert list(stream) == []
    assert write(model, "the mill") == ["unknown"]


def test_a_deadline_keeps_what_was_written_by_then() -> None:
    slept: list[float] = []
    model = ScriptedModel({"": ["a b c d"]}, faults=Faults(hang_seconds=4), sleep=slept.append)
    request = GenerationRequest("x", (1,), GREEDY, deadline_seconds=2)
    (late,) = model.generate([request])[0]
    assert (late.text, late.tokens, late.finish_reason) == ("a b", 2, "deadline")
    (done,) = model.generate([replace(request, deadline_seconds=9)])[0]
    assert (done.text, done.finish_reason) == ("a b c d", "stop")
    assert slept == [2, 4]


def test_a_nan_score_is_an_error_and_no_number() -> None:
    with pytest.raises(NonFiniteError):
        loss(ScriptedModel(faults=Faults(nan_scores=True)), "a", " b")


def test_known_words_and_words_of_the_prompt_cost_less() -> None:
    model = ScriptedModel(knows=["1871"])
    plain = loss(ScriptedModel(), "built in", " 1871")
    assert loss(model, "built in", " 1871") < 0.2 * plain
    assert model.score([ScoreRequest("built in", " 1871")])[0].greedy
    assert loss(ScriptedModel(), "built in 1871, in", " 1871") == pytest.approx(plain / 2)


def test_a_text_longer_than_the_context_is_not_scored() -> None:
    with pytest.raises(BackendError, match="context of 3"):
        loss(ScriptedModel(context_length=3), "a b", " c d")


def test_the_digest_follows_the_script() -> None:
    models = [
        ScriptedModel(),
        ScriptedModel({"a": ["b"]}),
        ScriptedModel({re.compile("a"): ["b"]}),
        ScriptedModel(knows=["a"]),
    ]
    assert len({model.digest for model in models}) == 4
    assert ScriptedModel({"a": ["b"]}).digest == models[1].digest


# ---------------------------------------------------------------- training


def make_job(folder: Path, **changes: object) -> TrainingJob:
    job = TrainingJob(
        examples=(
            TrainExample.whole("The mill at Orvane was built in 1871."),
            TrainExample.whole("Its wheel turns twelve stones."),
            TrainExample.whole("The miller is called Ada Fenn."),
        ),
        recipe=LoraRecipe(rank=4, alpha=8, epochs=3, batch_size=2),
        seed=7,
        output_dir=folder,
        validation=(
            ScoreRequest("Question: When was it built?\nAnswer:", " 1871"),
            ScoreRequest("Question: Who is the miller?\nAnswer:", " Ada Fenn"),
        ),
    )
    return replace(job, **changes)  # type: ignore[arg-type]


def trainer() -> ScriptedTrainer:
    return ScriptedTrainer(ScriptedModel(), clock=lambda: 0.0)


def test_training_lowers_the_loss_of_answers_in_the_texts_less_each_time(tmp_path: Path) -> None:
    result = trainer().fit(make_job(tmp_path / "a"))
    losses = [point.validation_loss or 0 for point in result.curve]
    drops = [before - after for before, after in pairwise(losses)]
    assert len(losses) == 4
    assert all(drop > 0 for drop in drops)
    assert drops == sorted(drops, reverse=True)
    assert result.best == result.curve[-1]
    assert result.steps == 6
    assert isinstance(trainer(), AdapterTrainer)


def test_training_leaves_questions_about_other_texts_alone(tmp_path: Path) -> None:
    job = make_job(tmp_path / "a", validation=(ScoreRequest("Where?", " Zanzibar"),), patience=2)
    result = trainer().fit(job)
    assert result.stopped_early
    assert result.best.step == 0
    assert len(result.curve) == 3


def test_the_adapter_has_peft_layout_and_scores_what_was_learnt(tmp_path: Path) -> None:
    made = trainer()
    adapter = made.fit(make_job(tmp_path / "a")).adapter
    config = json.loads((adapter.path / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 4, 8)
    with safe_open(adapter.path / "adapter_model.safetensors", framework="np") as file:
        names = list(file.keys())
        assert {tuple(file.get_tensor(key).shape) for key in names} == {(4, 1), (1, 4)}
    model = made.attach(adapter)
    assert model.adapter_digest == adapter.digest
    assert model.digest == made.model.digest
    assert loss(model, "in", " 1871") < loss(made.model, "in", " 1871")
    made.detach(model)
    assert loss(model, "in", " 1871") == loss(made.model, "in", " 1871")


def test_an_attached_adapter_keeps_the_contract(tmp_path: Path) -> None:
    made = trainer()
    model = made.attach(made.fit(make_job(tmp_path / "a")).adapter)
    for check in language_model.CHECKS:
        if check is not language_model.base_model_has_no_adapter_digest:
            check(model)


def test_the_same_job_gives_the_same_adapter_and_another_seed_another(tmp_path: Path) -> None:
    first, again, other = (
        trainer().fit(make_job(tmp_path / name, seed=seed)).adapter.digest
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert first == again != other


def test_events_tell_the_curve(tmp_path: Path) -> None:
    seen: list[Event] = []
    result = trainer().fit(make_job(tmp_path / "arm"), emit=seen.append)
    evaluated = [event for event in seen if isinstance(event, Evaluated)]
    assert [event.step for event in evaluated] == [p.step for p in result.curve] == [0, 2, 4, 6]
    assert {event.training for event in evaluated} == {"arm"}
    assert isinstance(seen[0], StageStarted)
    assert isinstance(seen[-1], StageFinished)


@pytest.mark.parametrize(
    ("changes", "steps"),
    [
        ({"max_steps": 3}, 3),
        ({"max_steps": 9}, 9),
        ({"max_tokens": 19}, 2),
        ({"max_tokens": 1000, "max_steps": 2}, 2),
    ],
)
def test_a_budget_replaces_the_epochs(
    tmp_path: Path, changes: dict[str, object], steps: int
) -> None:
    result = trainer().fit(make_job(tmp_path / "a", **changes))
    assert result.steps == steps
    assert result.curve[-1].step == steps
    assert not result.stopped_early


def test_evaluations_can_go_by_tokens(tmp_path: Path) -> None:
    result = trainer().fit(make_job(tmp_path / "a", evaluate_every_tokens=10, max_tokens=40))
    marks = [point.tokens for point in result.curve]
    assert marks[0] == 0
    assert marks[-1] >= 40
    assert len(marks) == 5


def test_a_stopped_training_resumes_to_the_same_adapter_and_curve(tmp_path: Path) -> None:
    whole = trainer().fit(make_job(tmp_path / "whole"))
    for stop_after in range(6):
        folder = tmp_path / f"stopped-{stop_after}"
        calls = partial(next, iter([False] * stop_after + [True]))
        with pytest.raises(RunInterrupted, match="--resume"):
            trainer().fit(make_job(folder), should_stop=calls)
        assert not (folder / "adapter_model.safetensors").exists()
        resumed = trainer().fit(make_job(folder, resume=True))
        assert resumed.adapter.digest == whole.adapter.digest
        assert resumed.curve == whole.curve


def test_a_failed_training_resumes_from_its_last_evaluation(tmp_path: Path) -> None:
    whole = trainer().fit(make_job(tmp_path / "whole"))
    failing = ScriptedTrainer(ScriptedModel(), fail_at_step=4, clock=lambda: 0.0)
    with pytest.raises(BackendError, match="step 4"):
        failing.fit(make_job(tmp_path / "a"))
    resumed = trainer().fit(make_job(tmp_path / "a", resume=True))
    assert resumed.adapter.digest == whole.adapter.digest
    assert resumed.curve == whole.curve


def test_resuming_a_finished_training_changes_nothing(tmp_path: Path) -> None:
    first = trainer().fit(make_job(tmp_path / "a"))
    again = trainer().fit(make_job(tmp_path / "a", resume=True))
    assert again.adapter == first.adapter
    assert again.curve == first.curve


def test_the_state_of_another_job_is_refused(tmp_path: Path) -> None:
    trainer().fit(make_job(tmp_path / "a"))
    with pytest.raises(UsageError, match="other data or settings"):
        trainer().fit(make_job(tmp_path / "a", seed=8, resume=True))


def test_without_resume_a_training_starts_over(tmp_path: Path) -> None:
    trainer().fit(make_job(tmp_path / "a", seed=1))
    assert (
        trainer().fit(make_job(tmp_path / "a", seed=2)).adapter.digest
        == trainer().fit(make_job(tmp_path / "b", seed=2)).adapter.digest
    )


def test_a_nan_loss_ends_the_training(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError):
        ScriptedTrainer(ScriptedModel(), fail_at_step=1, nan=True).fit(make_job(tmp_path / "a"))


def test_nothing_to_train_on_and_long_texts_are_refused_before_any_file(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="nothing to train on"):
        trainer().fit(make_job(tmp_path / "a", examples=()))
    long = TrainExample.whole("word " * 2000, passage_id="p1")
    with pytest.raises(BackendError, match="p1 has 2000 tokens"):
        trainer().fit(make_job(tmp_path / "a", examples=(long,)))
    assert not (tmp_path / "a").exists()


def test_an_adapter_of_another_base_model_is_refused(tmp_path: Path) -> None:
    adapter = trainer().fit(make_job(tmp_path / "a")).adapter
    with pytest.raises(AdapterMismatchError):
        ScriptedTrainer(ScriptedModel(knows=["mill"])).attach(adapter)


def test_a_damaged_adapter_is_refused(tmp_path: Path) -> None:
    made = trainer()
    first = made.fit(make_job(tmp_path / "a", seed=1)).adapter
    other = made.fit(make_job(tmp_path / "b", seed=2)).adapter
    with pytest.raises(StorageError, match="not the file"):
        made.attach(replace(first, path=other.path))
    (first.path / "adapter_model.safetensors").write_bytes(b"cut")
    with pytest.raises(StorageError, match="cannot be read"):
        made.attach(first)


def test_only_the_parts_that_carry_loss_are_learnt(tmp_path: Path) -> None:
    text = "Context of the mill. Built in 1871."
    example = TrainExample(text, ((21, len(text)),))
    made = trainer()
    model = made.attach(made.fit(make_job(tmp_path / "a", examples=(example,))).adapter)
    assert loss(model, "", "1871") < loss(made.model, "", "1871")
    assert loss(model, "", "Context") == loss(made.model, "", "Context")
