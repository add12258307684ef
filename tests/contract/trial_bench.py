"""What every `Executor`, and every `TrialBench` besides, must do.

Each check takes a workbench and raises where the promise is broken. Use:
``@pytest.mark.parametrize("check", EXECUTOR_CHECKS, ids=lambda c: c.__name__)`` (and
`BENCH_CHECKS` for benches) with a fixture that gives a `TrialWorkbench`.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count, islice
from pathlib import Path
from typing import Any

import pytest

from aios.core.data.probes import Probe, make_probes
from aios.core.errors import (
    AdapterMismatchError,
    BackendError,
    RunInterrupted,
    StorageError,
    UsageError,
)
from aios.core.events import Event, StageFinished, StageProgress, StageStarted, WorkFailed
from aios.core.protocols import (
    AdapterTrainer,
    Executor,
    LanguageModel,
    TemporaryExpert,
    TrialBench,
)
from aios.core.trials import Answered, TrialJob, TrialMetrics, TrialOutcome
from aios.core.types import GenerationRequest, LoraRecipe, Question, SamplingParams, TrainExample

TEXTS = (
    "The mill at Orvane was built in 1871.",
    "Its wheel turns twelve stones.",
    "The miller of Orvane was Ada Brandt.",
    "A flood took the old bridge in 1902.",
)
OTHER_TEXTS = ("The lighthouse of Sund has a red lamp.", "Its keeper rows to Sund on Fridays.")
QUESTIONS = make_probes(
    {
        "p": (
            Question("The mill at Orvane was built in", ("1871",)),
            Question("Its wheel turns", ("twelve stones",)),
            Question("The miller of Orvane was", ("Ada Brandt", "Brandt")),
        )
    },
    "{question}",
)
RECIPE = LoraRecipe(rank=4, alpha=8, learning_rate=1e-2, epochs=3, batch_size=2)
LOOK_AHEAD = 64  # jobs that an executor may pull before the first of them is ready


@dataclass(frozen=True)
class TrialWorkbench:
    """An executor and what is known of it.

    Attributes:
        executor: What is checked; a `TrialBench` for `BENCH_CHECKS`.
        base: The base model that it trains on, as a model of its own.
        folder: To write in.
        tolerance: Most by which a loss, or the log-probability of an answer (nats), may differ
            where the same job is run in other company.
        rounding: The same, between the executor and the base model's own `score`, or a file.
        scored: How many score requests the base model has been given, where that is known.
        seeds_matter: Whether another seed gives other numbers.
        trainer: Attaches what a bench exports.
    """

    executor: Executor
    base: LanguageModel
    folder: Path
    tolerance: float = 0.0
    rounding: float = 0.0
    scored: Callable[[], int] | None = None
    seeds_matter: bool = True
    trainer: AdapterTrainer | None = None

    @property
    def bench(self) -> TrialBench:
        """The executor as a bench."""
        assert isinstance(self.executor, TrialBench)
        return self.executor

    def job(self, id: str = "a", **changes: Any) -> TrialJob:
        """A short trial: four texts, three questions."""
        job = TrialJob(
            id=id,
            examples=tuple(TrainExample.whole(text, passage_id="p") for text in TEXTS),
            recipe=RECIPE,
            seed=1,
            questions=QUESTIONS,
        )
        return replace(job, **changes)

    def different_jobs(self) -> list[TrialJob]:
        """Four trials that differ in texts, lengths, budgets and questions."""
        other = tuple(TrainExample.whole(text, passage_id="q") for text in OTHER_TEXTS)
        return [
            self.job("a"),
            self.job("b", examples=other, recipe=replace(RECIPE, epochs=5), seed=2),
            self.job("c", examples=self.job().examples[:3], questions=QUESTIONS[1:], max_steps=5),
            self.job("d", examples=(*other, *self.job().examples), max_steps=1, questions=()),
        ]

    def too_long(self, id: str = "long") -> TrialJob:
        """A trial whose training fails."""
        text = TrainExample.whole("word " * 50, passage_id="p-17")
        return self.job(id, examples=(text,), recipe=replace(RECIPE, max_seq_len=20))

    def unanswerable(self, id: str = "unanswerable") -> TrialJob:
        """A trial whose scoring fails: the question does not fit the context."""
        words = "word " * (self.base.context_length + 1)
        return self.job(id, questions=make_probes({"p": (Question(words, ("1",)),)}, "{question}"))


def outcomes(bench: TrialWorkbench, jobs: Iterable[TrialJob]) -> dict[str, TrialOutcome]:
    """What comes of the jobs, by their ids; there must be one outcome a job."""
    listed = list(jobs)
    found = list(bench.executor.run(listed))
    assert sorted(o.job_id for o in found) == sorted(job.id for job in listed)
    return {outcome.job_id: outcome for outcome in found}


def outcome(bench: TrialWorkbench, job: TrialJob) -> TrialOutcome:
    return outcomes(bench, [job])[job.id]


def metrics_of(outcome: TrialOutcome) -> TrialMetrics:
    assert outcome.failure is None
    assert outcome.metrics is not None
    return outcome.metrics


def trained(
    bench: TrialWorkbench, *jobs: TrialJob
) -> dict[str, tuple[TemporaryExpert, TrialMetrics]]:
    """The experts of jobs that succeed, by the jobs' ids."""
    found = {}
    for result in bench.bench.train(jobs):
        assert not isinstance(result, TrialOutcome), result
        job, expert, metrics = result
        assert job in jobs
        found[job.id] = (expert, metrics)
    assert len(found) == len(jobs)
    return found


def same_answers(first: Sequence[Answered], second: Sequence[Answered], tolerance: float) -> None:
    assert [a.probe_id for a in first] == [b.probe_id for b in second]
    for a, b in zip(first, second, strict=True):
        assert a.score.tokens == b.score.tokens
        assert a.score.logprob == pytest.approx(b.score.logprob, rel=0, abs=tolerance)


def same_metrics(first: TrialMetrics, second: TrialMetrics, tolerance: float) -> None:
    """Equality in all but the time."""
    assert first.losses == pytest.approx(second.losses, rel=0, abs=tolerance)
    assert (first.steps, first.tokens) == (second.steps, second.tokens)
    assert first.stopped_early == second.stopped_early


def same(first: TrialOutcome, second: TrialOutcome, tolerance: float) -> None:
    same_metrics(metrics_of(first), metrics_of(second), tolerance)
    same_answers(first.answers, second.answers, tolerance)


def logprob(answers: Sequence[Answered]) -> float:
    return math.fsum(answer.score.logprob for answer in answers)


def own_answers(model: LanguageModel, questions: Sequence[Probe] = QUESTIONS) -> list[Answered]:
    """What a model makes of questions, by its own `score`."""
    scores = model.score([question.request for question in questions])
    return [Answered(q.id, score) for q, score in zip(questions, scores, strict=True)]


def own_text(model: LanguageModel, prompt: str, most: int) -> str:
    """What a model answers: greedily, to the line's end."""
    sampling = SamplingParams(0.0, 1.0, most, ("\n",))
    return model.generate([GenerationRequest(prompt, (0,), sampling)])[0][0].text.strip()


# --- every executor


def satisfies_the_protocol(bench: TrialWorkbench) -> None:
    assert isinstance(bench.executor, Executor)


def gives_one_outcome_a_job(bench: TrialWorkbench) -> None:
    jobs = bench.different_jobs()
    found = outcomes(bench, jobs)
    for job in jobs:
        assert metrics_of(found[job.id]).losses
        assert [a.probe_id for a in found[job.id].answers] == [q.id for q in job.questions]
        for answer in found[job.id].answers:
            assert math.isfinite(answer.score.logprob)
            assert answer.score.logprob <= 0
            assert answer.score.tokens >= 1


def gives_nothing_for_no_jobs(bench: TrialWorkbench) -> None:
    assert list(bench.executor.run([])) == []
    assert list(bench.executor.run(iter(()))) == []


def training_on_a_text_makes_its_questions_likelier(bench: TrialWorkbench) -> None:
    before = bench.executor.baseline(QUESTIONS)
    after = outcome(bench, bench.job()).answers
    assert logprob(after) > logprob(before) + 0.1
    longer = outcome(bench, bench.job(recipe=replace(RECIPE, epochs=12))).answers
    assert logprob(longer) > logprob(after)


def training_lowers_the_loss(bench: TrialWorkbench) -> None:
    metrics = metrics_of(outcome(bench, bench.job(recipe=replace(RECIPE, epochs=10))))
    assert all(math.isfinite(loss) and loss > 0 for loss in metrics.losses)
    assert sum(metrics.losses[-2:]) < sum(metrics.losses[:2])


def a_job_does_not_depend_on_the_others(bench: TrialWorkbench) -> None:
    jobs = bench.different_jobs()
    together = outcomes(bench, jobs)
    reverse = outcomes(bench, jobs[::-1])
    mixed = outcomes(bench, [bench.too_long("x"), *jobs[2:], bench.unanswerable("y"), *jobs[:2]])
    for job in jobs:
        same(together[job.id], reverse[job.id], bench.tolerance)
        same(together[job.id], mixed[job.id], bench.tolerance)
        same(together[job.id], outcome(bench, job), bench.tolerance)


def the_same_job_gives_the_same_numbers(bench: TrialWorkbench) -> None:
    found = outcomes(bench, [bench.job("a"), bench.job("b")])
    same(found["a"], found["b"], bench.tolerance)
    same(found["a"], outcome(bench, bench.job("a")), bench.tolerance)
    once, again = outcome(bench, bench.job("c")), outcome(bench, bench.job("c"))
    same(once, again, 0.0)


def another_seed_gives_other_numbers(bench: TrialWorkbench) -> None:
    found = outcomes(bench, [bench.job("a", seed=1), bench.job("b", seed=2)])
    if bench.seeds_matter:
        assert logprob(found["a"].answers) != logprob(found["b"].answers)
    assert metrics_of(found["a"]).steps == metrics_of(found["b"]).steps


def other_recipes_run_side_by_side(bench: TrialWorkbench) -> None:
    jobs = [
        bench.job("a", recipe=replace(RECIPE, rank=2, alpha=2)),
        bench.job("b", recipe=replace(RECIPE, learning_rate=1e-3, schedule="cosine")),
        bench.job("c", recipe=replace(RECIPE, batch_size=1, warmup_ratio=0.5, epochs=1)),
        bench.job("d", recipe=replace(RECIPE, grad_clip=0.0, weight_decay=0.1)),
    ]
    together = outcomes(bench, jobs)
    assert [metrics_of(together[i]).steps for i in "abcd"] == [6, 6, 4, 6]
    for job in jobs:
        same(together[job.id], outcome(bench, job), bench.tolerance)


def the_base_model_stays_as_it_is(bench: TrialWorkbench) -> None:
    requests = [question.request for question in QUESTIONS]
    before, text = bench.base.score(requests), own_text(bench.base, QUESTIONS[0].prompt, 6)
    digest = bench.base.digest
    outcomes(bench, [*bench.different_jobs(), bench.too_long(), bench.unanswerable()])
    outcome(bench, bench.job(write_answers=True, max_answer_tokens=2))
    assert bench.base.score(requests) == before
    assert own_text(bench.base, QUESTIONS[0].prompt, 6) == text
    assert (bench.base.digest, bench.base.adapter_digest) == (digest, "")


def the_baseline_is_the_base_models_own_score(bench: TrialWorkbench) -> None:
    for questions in (QUESTIONS, QUESTIONS[::-1], QUESTIONS[:1], ()):
        found = bench.executor.baseline(questions)
        same_answers(found, own_answers(bench.base, questions), bench.rounding)
        assert all(answer.text is None for answer in found)


def the_baseline_is_asked_once(bench: TrialWorkbench) -> None:
    first = bench.executor.baseline(QUESTIONS)
    before = bench.scored() if bench.scored is not None else 0
    outcome(bench, bench.job())
    assert bench.executor.baseline(QUESTIONS) == first
    assert bench.executor.baseline(QUESTIONS[:0:-1]) == first[:0:-1]
    assert bench.executor.baseline([QUESTIONS[0], QUESTIONS[0]]) == [first[0], first[0]]
    if bench.scored is not None:
        assert bench.scored() == before


def the_baseline_writes_answers_where_asked(bench: TrialWorkbench) -> None:
    scored = bench.executor.baseline(QUESTIONS)
    for most in (1, 4):
        written = bench.executor.baseline(QUESTIONS, write_answers=True, max_answer_tokens=most)
        assert [answer.score for answer in written] == [answer.score for answer in scored]
        expected = [own_text(bench.base, question.prompt, most) for question in QUESTIONS]
        assert [answer.text for answer in written] == expected
    assert bench.executor.baseline(QUESTIONS) == scored


def answers_are_written_only_where_asked(bench: TrialWorkbench) -> None:
    jobs = [
        bench.job("silent"),
        bench.job("short", write_answers=True, max_answer_tokens=1),
        bench.job("long", write_answers=True, max_answer_tokens=6),
    ]
    found = outcomes(bench, jobs)
    assert [answer.text for answer in found["silent"].answers] == [None] * 3
    for name in ("short", "long"):
        same(found[name], found["silent"], bench.tolerance)
        for answer in found[name].answers:
            assert answer.text is not None
            assert "\n" not in answer.text
            assert answer.text == answer.text.strip()
    again = outcome(bench, jobs[2])
    assert [a.text for a in again.answers] == [a.text for a in found["long"].answers]


def a_job_without_questions_is_only_trained(bench: TrialWorkbench) -> None:
    silent = outcome(bench, bench.job(questions=(), write_answers=True))
    assert silent.answers == ()
    same_metrics(metrics_of(silent), metrics_of(outcome(bench, bench.job())), bench.tolerance)


def a_failed_training_stops_no_other(bench: TrialWorkbench) -> None:
    without_loss = TrainExample("The mill.", (), passage_id="p")
    jobs = [
        bench.job("a"),
        bench.too_long("long"),
        bench.job("no-loss", examples=(without_loss,)),
        bench.job("b"),
    ]
    found = outcomes(bench, jobs)
    same(found["a"], found["b"], bench.tolerance)
    for name in ("long", "no-loss"):
        failed = found[name]
        assert (failed.metrics, failed.answers) == (None, ())
        assert failed.failure is not None
        assert (failed.failure.boundary, failed.failure.subject) == ("train", name)
        assert failed.failure.error
        assert not failed.failure.retryable
    assert "p-17" in found["long"].failure.error  # type: ignore[union-attr]


def a_failed_scoring_stops_no_other(bench: TrialWorkbench) -> None:
    found = outcomes(bench, [bench.job("a"), bench.unanswerable("u"), bench.job("b")])
    same(found["a"], found["b"], bench.tolerance)
    failed = found["u"]
    assert (failed.metrics, failed.answers) == (None, ())
    assert failed.failure is not None
    assert (failed.failure.boundary, failed.failure.subject) == ("score", "u")
    assert failed.failure.error


def refuses_what_cannot_be_run(bench: TrialWorkbench) -> None:
    cases = [
        ([bench.job("same"), bench.job("same", seed=2)], "same"),
        ([bench.job("empty", examples=())], "empty"),
        ([bench.job("loose", recipe=replace(RECIPE, dropout=0.1))], "loose"),
    ]
    for jobs, name in cases:
        with pytest.raises(UsageError, match=name) as caught:
            list(bench.executor.run(jobs))
        assert caught.value.remedy
    outcomes(bench, [bench.job("same")])  # in a call of its own, an id may come again


def pulls_jobs_as_it_has_room_for_them(bench: TrialWorkbench) -> None:
    pulled = 0

    def endless() -> Iterator[TrialJob]:
        nonlocal pulled
        for pulled in count(1):
            yield bench.job(f"job-{pulled}", max_steps=1, questions=QUESTIONS[:1])

    running = bench.executor.run(endless())
    seen = []
    for result in islice(running, 5):
        seen.append(result.job_id)
        assert pulled <= len(seen) + LOOK_AHEAD
    assert len(set(seen)) == 5
    close = getattr(running, "close", None)
    if close is not None:
        close()
    outcomes(bench, [bench.job()])


def an_error_of_the_jobs_iterator_is_raised(bench: TrialWorkbench) -> None:
    class Fault(Exception):
        pass

    def faulty() -> Iterator[TrialJob]:
        yield bench.job("a")
        raise Fault

    with pytest.raises(Fault):
        list(bench.executor.run(faulty()))
    outcomes(bench, [bench.job("a")])


def stops_when_asked(bench: TrialWorkbench) -> None:
    expected = outcome(bench, bench.job("a"))
    with pytest.raises(RunInterrupted) as caught:
        list(bench.executor.run([bench.job()], should_stop=lambda: True))
    assert caught.value.remedy

    done: list[TrialOutcome] = []

    def endless() -> Iterator[TrialJob]:
        return (bench.job(f"job-{number}", max_steps=1) for number in count())

    with pytest.raises(RunInterrupted):
        for result in bench.executor.run(endless(), should_stop=lambda: len(done) >= 2):
            done.append(result)
    assert len(done) >= 2
    same(outcome(bench, bench.job("a")), expected, bench.tolerance)


def patience_ends_a_training_that_gets_no_better(bench: TrialWorkbench) -> None:
    stuck = replace(RECIPE, epochs=400, batch_size=len(TEXTS), learning_rate=1e-12)
    jobs = [
        bench.job("stuck", recipe=stuck, patience=2),
        bench.job("a"),
        bench.job("patient", recipe=replace(RECIPE, learning_rate=1e-12, epochs=4), patience=0),
    ]
    found = outcomes(bench, jobs)
    metrics = metrics_of(found["stuck"])  # a pass is a step
    assert metrics.stopped_early
    assert len(metrics.losses) == metrics.steps < 400
    for end in range(1, metrics.steps + 1):
        losses = metrics.losses[:end]
        waited = len(losses) - 1 - losses.index(min(losses))
        assert waited < 2 if end < metrics.steps else waited == 2
    assert not metrics_of(found["patient"]).stopped_early
    assert metrics_of(found["patient"]).steps == 8
    same(found["a"], outcome(bench, bench.job("a")), bench.tolerance)


def patience_leaves_a_training_that_gets_better(bench: TrialWorkbench) -> None:
    metrics = metrics_of(outcome(bench, bench.job(patience=2)))
    assert (metrics.steps, metrics.stopped_early) == (6, False)
    same_metrics(metrics, metrics_of(outcome(bench, bench.job())), bench.tolerance)


def step_budget_is_kept(bench: TrialWorkbench) -> None:
    jobs = [bench.job(f"{steps}", max_steps=steps) for steps in (1, 5, 9)]
    jobs += [bench.job("odd", examples=bench.job().examples[:3])]
    found = outcomes(bench, jobs)
    for name, steps in (("1", 1), ("5", 5), ("9", 9), ("odd", 6)):
        metrics = metrics_of(found[name])
        assert metrics.steps == len(metrics.losses) == steps
        assert not metrics.stopped_early


def counts_tokens_and_time(bench: TrialWorkbench) -> None:
    jobs = [bench.job(f"{n}", recipe=replace(RECIPE, epochs=n)) for n in (1, 2, 3)]
    found = {name: metrics_of(result) for name, result in outcomes(bench, jobs).items()}
    once = found["1"].tokens
    assert once >= len(TEXTS)
    assert (found["2"].tokens, found["3"].tokens) == (2 * once, 3 * once)
    assert all(metrics.seconds >= 0 for metrics in found.values())


def tells_what_happens(bench: TrialWorkbench) -> None:
    events: list[Event] = []
    jobs = [bench.job("a"), bench.too_long("long"), bench.unanswerable("u"), bench.job("b")]
    found = list(bench.executor.run(jobs, emit=events.append))
    check_events(events, 4, found)
    events = []
    list(bench.executor.run(iter(jobs[:1]), emit=events.append))
    check_events(events, 0, [])


def check_events(events: Sequence[Event], total: int, found: Sequence[object]) -> None:
    """A stage named ``trials`` from its start to its end, with every failure in between."""
    started, finished = events[0], events[-1]
    assert isinstance(started, StageStarted)
    assert (started.stage, started.total, started.unit) == ("trials", total, "trials")
    assert isinstance(finished, StageFinished)
    assert finished.stage == "trials"
    assert finished.seconds >= 0
    done = [e.done for e in events if isinstance(e, StageProgress) and e.stage == "trials"]
    assert done == sorted(done)
    assert done[-1] == (len(found) or 1)
    failures = [o.failure for o in found if isinstance(o, TrialOutcome) and o.failure is not None]
    told = [e for e in events if isinstance(e, WorkFailed)]
    assert {(e.boundary, e.subject, e.error, e.retryable) for e in told} == {
        (f.boundary, f.subject, f.error, f.retryable) for f in failures
    }
    assert len(told) == len(failures)


def may_be_closed_twice(bench: TrialWorkbench) -> None:
    outcomes(bench, [bench.job()])
    bench.executor.close()
    bench.executor.close()


# --- every bench


def satisfies_the_protocol_of_benches(bench: TrialWorkbench) -> None:
    assert isinstance(bench.executor, TrialBench)


def trains_an_expert_for_each_job(bench: TrialWorkbench) -> None:
    jobs = bench.different_jobs()
    found = trained(bench, *jobs)
    for job in jobs:
        expert, metrics = found[job.id]
        assert isinstance(expert, TemporaryExpert)
        assert expert.digest == bench.base.digest
        assert expert.adapter_digest
        assert expert.context_length == bench.base.context_length
        assert expert.count_tokens(TEXTS[0]) == bench.base.count_tokens(TEXTS[0])
        same_metrics(metrics, metrics_of(outcome(bench, job)), bench.tolerance)
    assert len({expert.adapter_digest for expert, _ in found.values()}) == len(jobs)
    assert list(bench.bench.train([])) == []


def an_expert_answers_as_its_trial_did(bench: TrialWorkbench) -> None:
    jobs = [
        bench.job("long", write_answers=True, max_answer_tokens=6),
        bench.job("short", write_answers=True, max_answer_tokens=1, seed=2),
        *bench.different_jobs()[1:3],
    ]
    found = trained(bench, *jobs)
    for job in jobs:
        expert, answers = found[job.id][0], outcome(bench, job).answers
        same_answers(own_answers(expert, job.questions), answers, bench.rounding)
        if job.write_answers:
            texts = [own_text(expert, q.prompt, job.max_answer_tokens) for q in job.questions]
            assert [answer.text for answer in answers] == texts


def experts_stand_side_by_side(bench: TrialWorkbench) -> None:
    before = own_answers(bench.base)
    found = trained(bench, bench.job("short", max_steps=1), bench.job("long"))
    short, long = found["short"][0], found["long"][0]
    first, second = own_answers(short), own_answers(long)
    assert logprob(before) != logprob(first) != logprob(second)
    outcomes(bench, bench.different_jobs())
    assert own_answers(short) == first
    assert own_answers(bench.base) == before
    short.release()
    same_answers(own_answers(long), second, bench.tolerance)
    assert own_answers(bench.base) == before


def a_released_expert_cannot_be_used(bench: TrialWorkbench) -> None:
    before = own_answers(bench.base)
    expert, _ = trained(bench, bench.job())["a"]
    expert.release()
    expert.release()
    uses: list[Callable[[], object]] = [
        lambda: expert.score([QUESTIONS[0].request]),
        lambda: own_text(expert, QUESTIONS[0].prompt, 2),
        lambda: list(expert.stream([GenerationRequest("The mill", (1,), SamplingParams())])),
        lambda: expert.export(bench.folder / "released"),
    ]
    for use in uses:
        with pytest.raises(BackendError, match="released") as caught:
            use()
        assert caught.value.remedy
    assert not (bench.folder / "released").exists()
    assert own_answers(bench.base) == before
    outcomes(bench, [bench.job()])


def an_exported_adapter_is_the_expert(bench: TrialWorkbench) -> None:
    assert bench.trainer is not None
    found = trained(bench, bench.job("a"), bench.job("b", recipe=replace(RECIPE, rank=2)))
    for name, rank in (("a", 4), ("b", 2)):
        expert = found[name][0]
        adapter = expert.export(bench.folder / name)
        assert adapter.path == bench.folder / name
        assert adapter.base_digest == bench.base.digest
        config = json.loads((adapter.path / "adapter_config.json").read_text())
        assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", rank, 8)
        data = (adapter.path / "adapter_model.safetensors").read_bytes()
        assert adapter.digest == hashlib.sha256(data).hexdigest()
        expected = own_answers(expert)
        expert.release()
        attached = bench.trainer.attach(adapter)
        assert attached.adapter_digest == adapter.digest
        same_answers(own_answers(attached), expected, bench.rounding)
        bench.trainer.detach(attached)


def what_cannot_be_exported_is_an_error(bench: TrialWorkbench) -> None:
    expert, _ = trained(bench, bench.job())["a"]
    (bench.folder / "file").write_text("in the way")
    with pytest.raises(StorageError):
        expert.export(bench.folder / "file")
    assert (bench.folder / "file").read_text() == "in the way"
    assert expert.export(bench.folder / "other").path.is_dir()


def a_failed_training_is_an_outcome(bench: TrialWorkbench) -> None:
    events: list[Event] = []
    jobs = [bench.job("a"), bench.too_long("long"), bench.job("b")]
    found = list(bench.bench.train(jobs, emit=events.append))
    (failed,) = (result for result in found if isinstance(result, TrialOutcome))
    assert failed.job_id == "long"
    assert failed.failure is not None
    assert (failed.failure.boundary, failed.failure.subject) == ("train", "long")
    assert {r[0].id for r in found if not isinstance(r, TrialOutcome)} == {"a", "b"}
    check_events(events, 3, found)


def training_asks_no_question(bench: TrialWorkbench) -> None:
    expert, _ = trained(bench, bench.unanswerable("u"))["u"]
    assert logprob(own_answers(expert)) > logprob(own_answers(bench.base))


def training_refuses_stops_and_pulls_as_trials_do(bench: TrialWorkbench) -> None:
    for jobs in (
        [bench.job("same"), bench.job("same")],
        [bench.job(examples=())],
        [bench.job(recipe=replace(RECIPE, dropout=0.1))],
    ):
        with pytest.raises(UsageError):
            list(bench.bench.train(jobs))
    with pytest.raises(RunInterrupted):
        list(bench.bench.train([bench.job()], should_stop=lambda: True))
    endless = (bench.job(f"job-{number}", max_steps=1) for number in count())
    running = bench.bench.train(endless)
    assert len(list(islice(running, 3))) == 3


def training_goes_on_from_an_expert(bench: TrialWorkbench) -> None:
    first = bench.job("first", questions=())
    (expert, before) = trained(bench, first)["first"]
    asked = [question.request for question in QUESTIONS]
    scores = expert.score(asked)
    (further, after) = trained(bench, replace(first, id="further", initial=expert))["further"]
    assert after.losses[0] < before.losses[0]
    assert after.losses[-1] < before.losses[-1]
    assert expert.score(asked) == scores
    assert further.adapter_digest != expert.adapter_digest
    expert.release()
    assert further.score(asked) != scores
    further.release()


def training_refuses_to_go_on_from_another_shape(bench: TrialWorkbench) -> None:
    (expert, _) = trained(bench, bench.job("first", questions=()))["first"]
    wider = replace(RECIPE, rank=2 * RECIPE.rank)
    with pytest.raises(AdapterMismatchError, match="another shape"):
        list(bench.bench.train([bench.job("further", recipe=wider, initial=expert)]))
    expert.release()


EXECUTOR_CHECKS: tuple[Callable[[TrialWorkbench], None], ...] = (
    satisfies_the_protocol,
    gives_one_outcome_a_job,
    gives_nothing_for_no_jobs,
    training_on_a_text_makes_its_questions_likelier,
    training_lowers_the_loss,
    a_job_does_not_depend_on_the_others,
    the_same_job_gives_the_same_numbers,
    another_seed_gives_other_numbers,
    other_recipes_run_side_by_side,
    the_base_model_stays_as_it_is,
    the_baseline_is_the_base_models_own_score,
    the_baseline_is_asked_once,
    the_baseline_writes_answers_where_asked,
    answers_are_written_only_where_asked,
    a_job_without_questions_is_only_trained,
    a_failed_training_stops_no_other,
    a_failed_scoring_stops_no_other,
    refuses_what_cannot_be_run,
    pulls_jobs_as_it_has_room_for_them,
    an_error_of_the_jobs_iterator_is_raised,
    stops_when_asked,
    patience_ends_a_training_that_gets_no_better,
    patience_leaves_a_training_that_gets_better,
    step_budget_is_kept,
    counts_tokens_and_time,
    tells_what_happens,
    may_be_closed_twice,
)
BENCH_CHECKS: tuple[Callable[[TrialWorkbench], None], ...] = (
    satisfies_the_protocol_of_benches,
    trains_an_expert_for_each_job,
    an_expert_answers_as_its_trial_did,
    experts_stand_side_by_side,
    a_released_expert_cannot_be_used,
    an_exported_adapter_is_the_expert,
    what_cannot_be_exported_is_an_error,
    a_failed_training_is_an_outcome,
    training_asks_no_question,
    training_refuses_stops_and_pulls_as_trials_do,
    training_goes_on_from_an_expert,
    training_refuses_to_go_on_from_another_shape,
)
CHECKS = (*EXECUTOR_CHECKS, *BENCH_CHECKS)
