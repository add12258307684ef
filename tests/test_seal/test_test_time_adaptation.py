"""Adapting an expert to a conversation: what is learned, what is guarded, what stays as it was."""

from __future__ import annotations

import gc
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest

from aios.backends.scripted import Faults, ScriptedModel
from aios.backends.scripted_trials import ScriptedExpert, ScriptedTrialBench
from aios.core.errors import BackendError, OutOfMemoryError, RunInterrupted, UsageError
from aios.core.protocols import Emit, LanguageModel, ShouldStop, TemporaryExpert, ignore, never
from aios.core.seal import test_time_adaptation
from aios.core.seal.adaptation_guard import default_retention, mean_loss, turn_requests
from aios.core.seal.quality import FilterSettings
from aios.core.seal.self_edit_generator import SelfEditGenerator
from aios.core.seal.test_time_adaptation import (
    NOTHING_NEW,
    AdaptationSettings,
    TestTimeAdaptation,
)
from aios.core.trials import TrialJob, TrialMetrics, TrialOutcome
from aios.core.types import Score, ScoreRequest

Trained = tuple[TrialJob, TemporaryExpert, TrialMetrics]


class Bench(ScriptedTrialBench):
    """A scripted bench that notes its jobs and asks to stop before each step, as a real one."""

    def __init__(self, model: ScriptedModel, **settings: Any) -> None:
        super().__init__(model, **settings)
        self.jobs: list[TrialJob] = []
        self.made: list[weakref.ref[TemporaryExpert]] = []

    def train(
        self, jobs: Iterable[TrialJob], *, emit: Emit = ignore, should_stop: ShouldStop = never
    ) -> Iterator[Trained | TrialOutcome]:
        listed = list(jobs)
        self.jobs += listed
        for _ in range(sum(job.max_steps or 0 for job in listed)):
            if should_stop():
                raise RunInterrupted("stopped")
        for result in super().train(listed, emit=emit, should_stop=should_stop):
            if not isinstance(result, TrialOutcome):
                self.made.append(weakref.ref(result[1]))
            yield result


class Worse(ScriptedExpert):
    """An expert that scores some texts worse than it should."""

    worse: Callable[[ScoreRequest], bool]
    by: float

    def score(self, requests: Sequence[ScoreRequest]) -> list[Score]:
        found = super().score(requests)
        return [
            replace(s, logprob=s.logprob - self.by * s.tokens) if self.worse(r) else s
            for r, s in zip(requests, found, strict=True)
        ]


class HarmfulBench(Bench):
    """A bench whose experts score what `worse` says worse, by so many nats a token."""

    def __init__(
        self, model: ScriptedModel, worse: Callable[[ScoreRequest], bool], by: float
    ) -> None:
        super().__init__(model)
        self.worse, self.by = worse, by

    def train(
        self, jobs: Iterable[TrialJob], *, emit: Emit = ignore, should_stop: ShouldStop = never
    ) -> Iterator[Trained | TrialOutcome]:
        for result in super().train(jobs, emit=emit, should_stop=should_stop):
            assert not isinstance(result, TrialOutcome)
            job, made, metrics = result
            assert isinstance(made, ScriptedExpert)
            expert = Worse(self.model, made.memory, job.recipe, job.seed)
            expert.worse, expert.by = self.worse, self.by
            self.made.append(weakref.ref(expert))
            yield job, expert, metrics


def adaptation(
    model: ScriptedModel, bench: ScriptedTrialBench | None = None, **settings: Any
) -> TestTimeAdaptation:
    generator = SelfEditGenerator(
        model, strategy="cloze", num_edits=1, filter_settings=FilterSettings(min_length=4)
    )
    bench = bench or Bench(model)
    return TestTimeAdaptation(
        generator, AdaptationSettings(**settings), bench_for=lambda expert: bench
    )


def conversation(*said: str) -> list[dict[str, str]]:
    """Turns: what the user says, and an answer to each."""
    messages = []
    for text in said:
        messages.append({"role": "user", "content": text})
        messages.append({"role": "assistant", "content": "I see, thank you for telling me."})
    return messages


RUFUS = conversation("My dog is called Rufus. He was born in 2019.", "What is he like?")
ASKED = [ScoreRequest("What is my dog called?", " called Rufus")]


def loss(model: LanguageModel, requests: Sequence[ScoreRequest] = ASKED) -> float:
    found = mean_loss(model, requests)
    assert found is not None
    return found


def test_it_learns_what_was_said_and_leaves_the_expert_as_it_was() -> None:
    model = ScriptedModel()
    before = loss(model)
    adapted, record = adaptation(model).adapt_to_context(model, RUFUS, 8)
    assert adapted is not model
    assert record.kept
    assert record.reason == ""
    assert loss(adapted) < before
    assert loss(model) == before
    assert model.memory.times == {}
    assert record.steps == 8
    assert record.new == len(record.passages) == 1
    assert record.examples_loss is not None
    assert record.examples_loss.rise < 0
    assert record.retention_loss is not None
    assert record.turns_loss is not None


def test_the_default_is_five_steps() -> None:
    model = ScriptedModel()
    bench = Bench(model)
    adaptation(model, bench).adapt_to_context(model, RUFUS)
    (job,) = bench.jobs
    assert job.max_steps == 5
    assert job.recipe.rank == 4
    assert job.recipe.learning_rate == 1e-3
    assert job.initial is None


def test_it_trains_on_passages_and_on_self_edits_at_most_so_many() -> None:
    model = ScriptedModel()
    bench = Bench(model)
    adaptation(model, bench).adapt_to_context(model, RUFUS)
    texts = [example.text for example in bench.jobs[0].examples]
    assert texts[0] == "My dog is called Rufus. He was born in 2019."
    assert "Question: My dog is called ____.\nAnswer: Rufus" in texts
    rooms = [f"Room {i} belongs to Ilse{i} Brandt since {1900 + i}." for i in range(9)]
    said = conversation(*rooms)
    adaptation(model, bench, max_passages=9, max_examples=5).adapt_to_context(model, said)
    assert len(bench.jobs[1].examples) == 5


def test_self_edits_can_be_turns_of_a_conversation() -> None:
    model = ScriptedModel()
    bench = Bench(model)
    adaptation(model, bench, as_turns=True).adapt_to_context(model, RUFUS)
    asked = next(e for e in bench.jobs[0].examples if e.source == "cloze")
    ((begin, end),) = asked.loss_spans
    assert "Answer:" not in asked.text
    assert asked.text[:begin].startswith("My dog is called ____.")
    assert asked.text[begin:end] == "Rufus"


def test_long_texts_make_smaller_steps() -> None:
    model = ScriptedModel()
    bench = Bench(model)
    long = "The list of Orvane holds " + ", ".join(f"Item{i}" for i in range(300)) + "."
    adaptation(model, bench, batch_size=64).adapt_to_context(model, conversation(long))
    job = bench.jobs[0]
    longest = max(model.count_tokens(example.text) for example in job.examples)
    assert job.recipe.batch_size == 384 // longest < 64


def test_an_adaptation_goes_on_from_the_one_before() -> None:
    model = ScriptedModel()
    bench = Bench(model)
    tta = adaptation(model, bench)
    first, one = tta.adapt_to_context(model, RUFUS)
    longer = [*RUFUS, *conversation("My sister Maren lives in Tolvik.")]
    second, two = tta.adapt_to_context(first, longer)
    assert bench.jobs[1].initial is first
    assert two.new == 1
    assert set(one.passages) < set(two.passages)  # what was learned is repeated
    assert loss(second) < loss(model)
    assert two.expert == one.expert == ""
    again, three = tta.adapt_to_context(second, longer)
    assert again is second
    assert three.reason == NOTHING_NEW
    assert len(bench.jobs) == 2


def test_without_a_statement_nothing_is_done() -> None:
    model = ScriptedModel()
    bench = Bench(model)
    said = conversation("Hello there!", "What is the capital of Peru?")
    adapted, record = adaptation(model, bench).adapt_to_context(model, said)
    assert adapted is model
    assert not record.kept
    assert record.reason == NOTHING_NEW
    assert bench.jobs == []


def test_what_is_excluded_is_not_learned() -> None:
    model = ScriptedModel()
    tta = adaptation(model)
    _, record = tta.adapt_to_context(model, RUFUS)
    adapted, other = tta.adapt_to_context(model, RUFUS, exclude=record.passages)
    assert adapted is model
    assert other.reason == NOTHING_NEW


@pytest.mark.parametrize(
    ("worse", "where"),
    [
        (lambda request: "Water freezes" in request.continuation, "unrelated text"),
        (lambda request: "I see" in request.continuation, "the last turns"),
    ],
)
def test_a_harmful_adaptation_is_dropped(worse: Callable[[ScoreRequest], bool], where: str) -> None:
    model = ScriptedModel()
    bench = HarmfulBench(model, worse, by=0.5)
    adapted, record = adaptation(model, bench).adapt_to_context(model, RUFUS)
    assert adapted is model
    assert not record.kept
    assert where in record.reason
    assert "limit 0.02" in record.reason
    made = bench.made[-1]()
    assert made is None or not is_alive(made)


def is_alive(expert: TemporaryExpert) -> bool:
    try:
        expert.score(ASKED)
    except BackendError:
        return False
    return True


def test_a_rise_within_the_tolerance_is_accepted_but_does_not_add_up() -> None:
    model = ScriptedModel()

    def unrelated(request: ScoreRequest) -> bool:
        return request in default_retention()

    bench = HarmfulBench(model, unrelated, by=0.015)
    tta = adaptation(model, bench)
    first, record = tta.adapt_to_context(model, RUFUS)
    assert record.kept
    bench.by = 0.03  # 0.015 above the adapter before, 0.03 above the expert
    second, record = tta.adapt_to_context(first, [*RUFUS, *conversation("I live in Tolvik.")])
    assert not record.kept
    assert second is first
    assert record.retention_loss is not None
    assert record.retention_loss.rise == pytest.approx(0.03)


def test_a_tolerance_may_be_larger() -> None:
    model = ScriptedModel()
    bench = HarmfulBench(model, lambda request: True, by=0.5)
    _, record = adaptation(model, bench, tolerance=1.0).adapt_to_context(model, RUFUS)
    assert record.kept


def test_a_training_that_fails_leaves_the_adapter_before() -> None:
    model = ScriptedModel()
    errors: list[BackendError | None] = [None, OutOfMemoryError("no memory left")]
    bench = Bench(model, fail=lambda job: errors.pop(0))
    tta = adaptation(model, bench)
    first, _ = tta.adapt_to_context(model, RUFUS)
    second, record = tta.adapt_to_context(first, [*RUFUS, *conversation("I live in Tolvik.")])
    assert second is first
    assert not record.kept
    assert "no memory left" in record.reason
    assert loss(first) < loss(model)


def test_a_loss_that_is_no_number_drops_it() -> None:
    model = ScriptedModel(faults=Faults(nan_scores=True))
    adapted, record = adaptation(model).adapt_to_context(model, RUFUS)
    assert adapted is model
    assert "NaN" in record.reason


def test_it_stops_when_asked_and_keeps_nothing() -> None:
    model = ScriptedModel()
    bench = Bench(model)
    calls = 0

    def stop() -> bool:
        nonlocal calls
        calls += 1
        return calls > 6

    with pytest.raises(RunInterrupted):
        adaptation(model, bench).adapt_to_context(model, RUFUS, 8, should_stop=stop)
    assert not any(made() is not None for made in bench.made)


def test_it_can_be_stopped_after_the_training_too() -> None:
    model = ScriptedModel()
    bench = Bench(model)
    asked = 0

    def count() -> bool:
        nonlocal asked
        asked += 1
        return False

    adaptation(model, bench).adapt_to_context(model, RUFUS, should_stop=count)
    last = asked

    def stop() -> bool:
        nonlocal asked
        asked += 1
        return asked == last

    asked = 0
    with pytest.raises(RunInterrupted):
        adaptation(model, bench).adapt_to_context(model, RUFUS, should_stop=stop)


def test_time_in_which_it_gave_way_is_not_counted() -> None:
    model = ScriptedModel()
    times = 0

    def give_way() -> bool:
        nonlocal times
        times += 1
        time.sleep(0.02)
        return False

    began = time.monotonic()
    _, record = adaptation(model).adapt_to_context(model, RUFUS, should_stop=give_way)
    assert times > 8
    assert 0 < record.seconds <= time.monotonic() - began - 0.02 * times


def test_an_adapted_expert_is_forgotten_with_its_last_user() -> None:
    model = ScriptedModel()
    bench = Bench(model)
    tta = adaptation(model, bench)
    adapted, _ = tta.adapt_to_context(model, RUFUS)
    del adapted
    bench.jobs.clear()
    gc.collect()
    assert bench.made[0]() is None
    assert len(tta._origins) == 0


def test_the_loss_of_the_expert_is_taken_once() -> None:
    model = ScriptedModel()
    tta = adaptation(model)
    tta.adapt_to_context(model, RUFUS)
    once = model.scored
    tta.adapt_to_context(model, conversation("I live in Tolvik."))
    assert model.scored - once < once  # without the unrelated text


@pytest.mark.parametrize(
    "wrong", [{"rank": 0}, {"learning_rate": 0.0}, {"tolerance": -1.0}, {"max_passages": 0}]
)
def test_settings_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        adaptation(ScriptedModel(), **wrong)


def test_steps_below_one_are_refused() -> None:
    model = ScriptedModel()
    with pytest.raises(UsageError, match="adaptation_steps"):
        adaptation(model).adapt_to_context(model, RUFUS, 0)


def test_by_default_the_models_own_bench_trains() -> None:
    model = ScriptedModel()
    tta = TestTimeAdaptation(SelfEditGenerator(model, strategy="cloze", num_edits=1))
    adapted, record = tta.adapt_to_context(model, RUFUS)
    assert record.kept
    assert loss(adapted) < loss(model)


# ------------------------------------------------------------ the guard's texts


def test_the_last_answers_are_looked_at_given_what_stood_before() -> None:
    model = ScriptedModel()
    said = [
        {"role": "system", "content": "Be brief."},
        *conversation("My dog is called Rufus.", "And he is old.", "What now?"),
    ]
    requests = turn_requests(said, model)
    assert [r.continuation for r in requests] == ["I see, thank you for telling me."] * 2
    assert requests[1].prompt.endswith("What now?")
    assert "Rufus" not in requests[1].prompt


def test_without_an_answer_it_is_the_last_message() -> None:
    model = ScriptedModel()
    said = [{"role": "user", "content": "I live in Tolvik."}]
    assert turn_requests(said, model) == (ScoreRequest("", "I live in Tolvik."),)
    assert turn_requests([], model) == ()


def test_turns_are_cut_to_a_size_that_is_quick_to_score() -> None:
    model = ScriptedModel()
    said = conversation("word " * 5000, "word " * 5000)
    said[-1]["content"] = "word " * 5000
    requests = turn_requests(said, model)
    assert requests
    for request in requests:
        assert 0 < len(request.prompt) <= 700
        assert len(request.continuation) <= 240


def test_losses_are_taken_in_small_slices() -> None:
    model = ScriptedModel()
    requests = [ScoreRequest("", "word " * 100) for _ in range(6)]
    breaks: list[int] = []
    whole = mean_loss(model, requests, lambda: breaks.append(model.scored))
    assert breaks == [0, 2, 4]
    assert whole == pytest.approx(loss(model, requests[:1]))
    assert mean_loss(model, []) is None


class Turned(ScriptedModel):
    """A model whose chat template names the roles."""

    def format_chat(self, messages: Any) -> str:
        return "".join(f"<{m['role']}>{m['content']}" for m in messages) + "<assistant>"


def test_turns_keep_their_roles() -> None:
    (request,) = turn_requests(RUFUS[:2], Turned())
    assert request.prompt == f"<user>{RUFUS[0]['content']}<assistant>"
    model = Turned()
    bench = Bench(model)
    adaptation(model, bench, as_turns=True).adapt_to_context(model, RUFUS)
    asked = next(e for e in bench.jobs[0].examples if e.source == "cloze")
    assert asked.text == "<user>My dog is called ____.<assistant>Rufus"


def test_one_step_is_enough() -> None:
    model = ScriptedModel()
    _, record = adaptation(model).adapt_to_context(model, RUFUS, 1)
    assert record.steps == 1


def test_the_record_counts_what_was_trained_and_nothing_where_nothing_was() -> None:
    model = ScriptedModel()
    bench = Bench(model)
    tta = adaptation(model, bench)
    adapted, record = tta.adapt_to_context(model, RUFUS, 3)
    assert record.examples == len(bench.jobs[0].examples)
    assert (record.steps, record.tokens > 0) == (3, True)
    _, nothing = tta.adapt_to_context(adapted, RUFUS)
    assert (nothing.reason, nothing.kept) == (NOTHING_NEW, False)
    assert (nothing.examples, nothing.steps, nothing.tokens, nothing.seconds) == (0, 0, 0, 0.0)


def test_the_seed_of_a_training_follows_from_the_seed_and_the_passages() -> None:
    def seed(of: int, *said: str) -> int:
        model = ScriptedModel()
        bench = Bench(model)
        generator = adaptation(model)._generator
        tta = TestTimeAdaptation(generator, bench_for=lambda expert: bench, seed=of)
        tta.adapt_to_context(model, conversation(*said))
        return bench.jobs[0].seed

    dog, cat = "My dog is called Rufus.", "My cat is called Mimi."
    assert seed(1, dog) == seed(1, dog)
    assert len({seed(1, dog), seed(2, dog), seed(1, cat)}) == 3


def test_losses_of_only_so_many_experts_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(test_time_adaptation, "_KNOWN_LOSSES", 2)
    models = [ScriptedModel(name=name) for name in ("a", "b", "c")]
    assert len({model.digest for model in models}) == 3
    tta = adaptation(models[0])
    for model in models:
        tta.adapt_to_context(model, RUFUS)
    assert [key[0] for key in tta._known_losses] == [model.digest for model in models[1:]]


def test_the_first_answer_is_one_of_the_last_turns() -> None:
    said = [*RUFUS[:2], {"role": "user", "content": "What is he like?"}]
    (request,) = turn_requests(said, ScriptedModel())
    assert request.continuation == RUFUS[1]["content"]


def test_what_is_new_is_learned_before_what_was_learned() -> None:
    model = ScriptedModel()
    tta = adaptation(model, max_passages=1)
    telling = "Ada Brandt built the mill of Orvane in 1871 with 4 wheels."
    adapted, first = tta.adapt_to_context(model, conversation(telling))
    _, second = tta.adapt_to_context(adapted, conversation(telling, "My dog is called Rufus."))
    assert second.new == 1
    assert first.passages != second.passages


def test_settings_reach_the_training() -> None:
    model = ScriptedModel()
    bench = Bench(model)
    tta = adaptation(model, bench, rank=2, alpha=6, learning_rate=0.25)
    tta.adapt_to_context(model, RUFUS)
    recipe = bench.jobs[0].recipe
    assert (recipe.rank, recipe.alpha, recipe.learning_rate, recipe.epochs) == (2, 6, 0.25, 1)
