"""Trials of candidates: what is compared with what, what it costs, and what a stop leaves."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest

from aios.backends.scripted import ScriptedModel
from aios.backends.scripted_trials import ScriptedTrialBench
from aios.core.data.probes import Probe
from aios.core.errors import BackendError, RunInterrupted, StorageError
from aios.core.events import Event, WorkFailed
from aios.core.files import encode_json
from aios.core.protocols import Emit, ShouldStop, ignore, never
from aios.core.restem import Tried, TriedPassage, tried_from_json, tried_to_json
from aios.core.seal.candidate_trials import CandidateTrials, TrialSettings, decide
from aios.core.seal.restem_store import MemoryRecords
from aios.core.seal.reward import (
    AccuracyReward,
    PerplexityReward,
    RewardFunction,
    ValidationLossReward,
)
from aios.core.seal.test_time_training import TTTTrainer
from aios.core.seal.trial_batch import Work
from aios.core.trials import Answered, Reward, TrialJob, TrialMetrics, TrialOutcome
from aios.core.types import Failure, LoraRecipe, Passage, Question, Score, SelfEdit

Loss = Callable[[TrialJob], float | None]  # of each answer's token after training; None: it fails
SETTINGS = TrialSettings(trial_tokens=100, batch=2, seed=7)
RECIPE = LoraRecipe(batch_size=2)
UNTRAINED = 3.0  # nats a token


class PaperBench:
    """An executor whose trials come to what a function says, in an order that `shuffle` draws."""

    def __init__(self, loss: Loss, *, shuffle: int | None = None) -> None:
        self.loss = loss
        self.jobs: list[TrialJob] = []
        self.asked: list[tuple[bool, int]] = []
        self.untrained = UNTRAINED
        self._rng = None if shuffle is None else random.Random(shuffle)

    def run(
        self, jobs: Iterable[TrialJob], *, emit: Emit = ignore, should_stop: ShouldStop = never
    ) -> Iterator[TrialOutcome]:
        taken = list(jobs)
        if self._rng is not None:
            self._rng.shuffle(taken)
        for job in taken:
            if should_stop():
                raise RunInterrupted("stopped")
            self.jobs.append(job)
            yield self._outcome(job)

    def _outcome(self, job: TrialJob) -> TrialOutcome:
        loss = self.loss(job)
        if loss is None:
            return TrialOutcome(job.id, failure=Failure("train", job.id, "out of luck", True))
        text = "yes" if job.write_answers and loss < 1 else "no"
        tokens = 100 + job.seed % 10  # another order of the examples is another number of tokens
        return TrialOutcome(
            job.id, TrialMetrics((1.0,), 1, tokens, 0.0), tuple(answers(job.questions, loss, text))
        )

    def baseline(
        self,
        questions: Sequence[Probe],
        *,
        write_answers: bool = False,
        max_answer_tokens: int = 16,
    ) -> list[Answered]:
        self.asked.append((write_answers, max_answer_tokens))
        return answers(questions, self.untrained, "no" if write_answers else None)

    def close(self) -> None:
        pass


def answers(questions: Sequence[Probe], loss: float, text: str | None) -> list[Answered]:
    return [Answered(q.id, Score(-loss, 1, loss < 1), text) for q in questions]


def works(passages: int, candidates: int = 3, *, first: int = 0) -> list[Work]:
    return [work(n, candidates) for n in range(first, first + passages)]


def work(number: int, candidates: int = 3, *, asked: int | None = None) -> Work:
    passage = Passage.make(
        f"The mill number {number} stands by the water.",
        id=f"p{number}",
        questions=(Question("Where?", ("yes",)), Question("Who?", ("yes",))),
    )
    edits = tuple(
        SelfEdit(passage.id, "rewrite", k, (f"Fact {k} of {number}.", "More. " * (k + 1)))
        for k in range(candidates)
    )
    return Work(passage, edits, candidates if asked is None else asked)


def name_of(job: TrialJob) -> tuple[str, str, int]:
    """Passage, candidate or ``baseline``, and repeat of a job."""
    candidate, _, repeat = job.id.rpartition("/repeat-")
    passage, _, number = candidate.rpartition("#")
    return passage, number, int(repeat)


def by_candidate(job: TrialJob) -> float:
    """The more, the better; trials differ a little by their seeds."""
    _, number, repeat = name_of(job)
    noise = 0.01 * repeat
    return 2.0 + noise if number == "baseline" else 1.9 - 0.1 * int(number) + noise * 2


def trials(
    bench: Any,
    settings: TrialSettings = SETTINGS,
    reward: RewardFunction | None = None,
    recipe: LoraRecipe = RECIPE,
) -> CandidateTrials:
    trainer = TTTTrainer(lambda model: bench, recipe=recipe)
    return CandidateTrials(
        bench, trainer, reward or ValidationLossReward(), lambda text: len(text.split()), settings
    )


def run(
    bench: Any,
    given: Sequence[Work],
    settings: TrialSettings = SETTINGS,
    *,
    reward: RewardFunction | None = None,
    recipe: LoraRecipe = RECIPE,
    records: Any = None,
    baselines: Any = None,
    **more: Any,
) -> list[TriedPassage]:
    kept = MemoryRecords() if records is None else records
    known = MemoryRecords() if baselines is None else baselines
    return list(trials(bench, settings, reward, recipe).run(given, kept, known, **more))


# ------------------------------------------------------------ what is compared


def test_the_kth_trials_of_a_passage_have_the_same_seed() -> None:
    bench = PaperBench(by_candidate)
    run(bench, works(3), replace(SETTINGS, racing=False, repeats=3))
    seeds: dict[tuple[str, int], set[int]] = {}
    for job in bench.jobs:
        passage, _, repeat = name_of(job)
        seeds.setdefault((passage, repeat), set()).add(job.seed)
    assert len(bench.jobs) == 3 * (3 + 3 * 3)
    assert len(seeds) == 9
    assert all(len(found) == 1 for found in seeds.values())
    assert len({seed for found in seeds.values() for seed in found}) == 9


def test_another_seed_of_the_run_is_another_seed_of_every_trial() -> None:
    benches = [PaperBench(by_candidate), PaperBench(by_candidate)]
    for number, bench in enumerate(benches):
        run(bench, works(1), replace(SETTINGS, seed=number))
    first, second = ({job.id: job.seed for job in bench.jobs} for bench in benches)
    assert first.keys() == second.keys()
    assert not [name for name in first if first[name] == second[name]]


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_all_trials_of_a_passage_are_trained_on_as_many_tokens(batch_size: int) -> None:
    bench = ScriptedTrialBench(ScriptedModel())
    spent: list[int] = []

    class Counting(PaperBench):
        def _outcome(self, job: TrialJob) -> TrialOutcome:
            (outcome,) = bench.run([job])
            assert outcome.metrics is not None
            spent.append(outcome.metrics.tokens)
            return outcome

    (passage,) = run(
        Counting(by_candidate),
        [many_items(0)],
        replace(SETTINGS, trial_tokens=1500),
        recipe=LoraRecipe(batch_size=batch_size),
    )
    largest_step = batch_size * 12
    assert len(spent) == 2 + 4 + 2
    assert all(abs(tokens - 1500) <= 2 * largest_step for tokens in spent)
    assert all(abs(one.train_tokens - 1500) <= 2 * largest_step for one in passage.candidates)


def many_items(number: int) -> Work:
    """A passage and edits of 1, 3, 9 and 10 items: passes of whole and of broken batches."""
    given = work(number, 4)
    edits = [
        replace(edit, items=tuple(f"Fact {k} of this edit of the mill." for k in range(count)))
        for edit, count in zip(given.edits, (1, 3, 9, 10), strict=True)
    ]
    return replace(given, edits=tuple(edits))


def test_a_trial_has_at_least_one_step_and_without_a_budget_the_recipe_s_epochs() -> None:
    for tokens, steps in ((1, 1), (None, None)):
        bench = PaperBench(by_candidate)
        run(bench, works(1), replace(SETTINGS, trial_tokens=tokens))
        assert {job.max_steps for job in bench.jobs} == {steps}


def test_the_baseline_is_trained_on_the_passage_alone_and_a_candidate_on_both() -> None:
    bench = PaperBench(by_candidate)
    given = work(0, 1)
    run(bench, [given])
    texts = {name_of(job)[1]: [e.text for e in job.examples] for job in bench.jobs}
    assert texts == {
        "baseline": [given.passage.text],
        "0": [given.passage.text, *given.edits[0].items],
    }


def test_an_improvement_is_over_the_baseline_with_the_same_seed() -> None:
    bench = PaperBench(by_candidate)
    (passage,) = run(bench, works(1))
    assert passage.before == UNTRAINED
    assert passage.baseline == pytest.approx(2.005)
    assert [one.improvements for one in passage.candidates] == [
        pytest.approx((0.1,)),
        pytest.approx((0.2, 0.19)),  # 2.01 - (1.8 + 0.02)
        pytest.approx((0.3, 0.29)),
    ]
    assert passage.candidates[1].improvement == pytest.approx(0.195)
    reward = passage.candidates[1].reward
    assert reward is not None
    assert (reward.kind, reward.rule, reward.n, reward.repeats) == ("loss", "improvement", 2, 2)
    assert reward.before == pytest.approx(2.005)
    assert reward.after == pytest.approx(1.81)
    assert reward.value == reward.improvement == pytest.approx(0.195)
    assert reward.threshold is None


def test_with_the_base_as_baseline_nothing_is_trained_for_it() -> None:
    bench = PaperBench(by_candidate)
    (passage,) = run(bench, works(1), replace(SETTINGS, baseline="base"))
    assert "baseline" not in {name_of(job)[1] for job in bench.jobs}
    assert passage.trials == len(bench.jobs) == 3 + 2
    assert passage.baseline == passage.before == UNTRAINED
    assert passage.candidates[0].improvements == pytest.approx((1.1,))


def test_accuracy_gain_is_the_share_of_reference_answers_that_became_the_likeliest() -> None:
    bench = PaperBench(lambda job: 0.5 if name_of(job)[1] == "1" else 2.0)
    (passage,) = run(bench, works(1))
    assert [one.accuracy_gain for one in passage.candidates] == [0.0, 1.0, 0.0]
    bench.untrained = 0.5
    (passage,) = run(bench, works(1))
    assert [one.accuracy_gain for one in passage.candidates] == [-1.0, 0.0, -1.0]


def test_the_accuracy_reward_has_answers_written() -> None:
    bench = PaperBench(lambda job: 0.5 if name_of(job)[1] == "1" else 2.0)
    reward = AccuracyReward(max_answer_tokens=5)
    settings = replace(SETTINGS, max_answer_tokens=5)
    (passage,) = run(bench, works(1), settings, reward=reward)
    assert {(job.write_answers, job.max_answer_tokens) for job in bench.jobs} == {(True, 5)}
    assert bench.asked == [(True, 5)]
    assert [one.improvement for one in passage.candidates] == [0.0, 1.0, 0.0]
    kinds = {one.reward.kind for one in passage.candidates if one.reward is not None}
    assert kinds == {"accuracy"}
    loss = PaperBench(by_candidate)
    run(loss, works(1))
    assert {job.write_answers for job in loss.jobs} == {False}
    assert loss.asked == [(False, 16)]


# ------------------------------------------------------------ what it costs


@pytest.mark.parametrize(
    ("racing", "repeats", "spent"),
    [
        (True, 2, [1, 1, 1, 2, 2]),
        (True, 3, [1, 1, 1, 3, 3]),
        (True, 1, [1, 1, 1, 1, 1]),
        (False, 2, [2, 2, 2, 2, 2]),
    ],
)
def test_racing_gives_further_repeats_to_the_two_best(
    racing: bool, repeats: int, spent: list[int]
) -> None:
    bench = PaperBench(by_candidate)
    settings = replace(SETTINGS, racing=racing, repeats=repeats)
    (passage,) = run(bench, works(1, 5), settings)
    assert [len(one.improvements) for one in passage.candidates] == spent
    of_each = Counter(name_of(job)[1] for job in bench.jobs)
    assert of_each["baseline"] == repeats
    assert [of_each[str(k)] for k in range(5)] == spent
    assert passage.trials == len(bench.jobs) == repeats + sum(spent)


def test_a_baseline_is_trained_once_and_met_again_by_later_rounds() -> None:
    bench, baselines = PaperBench(by_candidate), MemoryRecords()
    first = run(bench, works(2), baselines=baselines)
    spent = len(bench.jobs)
    again = run(bench, works(2), baselines=baselines)
    names = [name_of(job)[1] for job in bench.jobs]
    assert names.count("baseline") == 4
    assert len(bench.jobs) - spent == spent - 4
    assert [p.trials for p in first] == [7, 7]
    assert [p.trials for p in again] == [5, 5]
    assert [p.candidates for p in again] == [p.candidates for p in first]
    assert [p.baseline for p in again] == [p.baseline for p in first]


def test_a_baseline_that_failed_is_tried_again_in_the_next_round_and_then_kept() -> None:
    lost = True

    def loss(job: TrialJob) -> float | None:
        return None if lost and job.id.endswith("baseline/repeat-1") else by_candidate(job)

    bench, baselines = PaperBench(loss), MemoryRecords()
    (first,) = run(bench, works(1), baselines=baselines)
    assert (first.trials, first.failed_trials) == (7, 1)
    lost = False
    counts = []
    for _ in range(2):
        (passage,) = run(bench, works(1), baselines=baselines)
        counts.append((passage.trials, passage.failed_trials))
    assert counts == [(6, 0), (5, 0)]


def test_a_passage_without_a_self_edit_costs_no_trial() -> None:
    bench = PaperBench(by_candidate)
    given = [work(0, 0, asked=3), work(1, 2)]
    none, some = run(bench, given)
    assert {name_of(job)[0] for job in bench.jobs} == {"p1"}
    assert (none.candidates, none.trials, none.asked) == ((), 0, 3)
    assert none.baseline == none.before == UNTRAINED
    assert some.trials == 2 + 2 + 2
    assert run(PaperBench(by_candidate), given[:1])[0].trials == 0


# ------------------------------------------------------------ order and place


@pytest.mark.parametrize("shuffle", range(5))
def test_the_order_in_which_trials_are_ready_changes_nothing(shuffle: int) -> None:
    def loss(job: TrialJob) -> float | None:
        passage, number, repeat = name_of(job)
        unlucky = {("p0", "1", 0), ("p1", "baseline", 0), ("p2", "0", 0), ("p2", "0", 1)}
        return None if (passage, number, repeat) in unlucky else by_candidate(job)

    settings = replace(SETTINGS, racing=False, repeats=3, batch=3)
    whole = run(PaperBench(loss), works(3), settings)
    assert run(PaperBench(loss, shuffle=shuffle), works(3), settings) == whole
    assert whole[0].failed_trials == 1
    assert len(whole[0].candidates[1].improvements) == 3  # a new try with another seed


def test_a_new_try_whose_repeat_has_no_baseline_is_compared_with_the_first() -> None:
    def loss(job: TrialJob) -> float | None:
        _, number, repeat = name_of(job)
        return None if (number, repeat) == ("1", 0) else by_candidate(job)

    (passage,) = run(PaperBench(loss), works(1, 2), replace(SETTINGS, racing=False))
    # repeats 1 and 2 of candidate 1, after 0 has failed; 2 has no baseline of its own
    assert passage.candidates[1].improvements == pytest.approx((2.01 - 1.82, 2.0 - 1.84))


# ------------------------------------------------------------ records


def test_a_batch_is_recorded_as_a_whole_and_not_run_again() -> None:
    given = works(5)
    whole = run(PaperBench(by_candidate), given)
    records, baselines = MemoryRecords(), MemoryRecords()
    stopped = PaperBench(by_candidate)
    asked = 0

    def in_the_second_batch() -> bool:
        nonlocal asked
        asked += 1
        return len(stopped.jobs) == 7 * 2 + 5

    with pytest.raises(RunInterrupted):
        run(
            stopped,
            given,
            records=records,
            baselines=baselines,
            should_stop=in_the_second_batch,
        )
    assert asked
    again = PaperBench(by_candidate)
    assert run(again, given, records=records, baselines=baselines) == whole
    assert {name_of(job)[0] for job in again.jobs} == {"p2", "p3", "p4"}
    nothing = PaperBench(by_candidate)
    assert run(nothing, given, records=records, baselines=baselines) == whole
    assert nothing.jobs == []


def test_a_kill_between_the_records_of_a_batch_and_of_its_baselines_loses_neither() -> None:
    class Torn(MemoryRecords):
        def append(self, key: str, value: object) -> None:
            if key == "p1":
                raise KeyboardInterrupt
            super().append(key, value)

    records = MemoryRecords()
    torn = Torn()
    with pytest.raises(KeyboardInterrupt):
        run(PaperBench(by_candidate), works(2), records=records, baselines=torn)
    bench, baselines = PaperBench(by_candidate), MemoryRecords()
    run(bench, works(2), records=records, baselines=baselines)
    assert bench.jobs == []
    assert baselines.get("p0") is not None
    assert baselines.get("p1") is not None


def test_what_is_recorded_survives_json() -> None:
    def loss(job: TrialJob) -> float | None:
        return None if name_of(job)[1] == "1" else by_candidate(job)

    class Strict(MemoryRecords):
        def append(self, key: str, value: object) -> None:
            super().append(key, json.loads(encode_json(value)))

    records, baselines = Strict(), Strict()
    whole = run(PaperBench(loss), works(3), records=records, baselines=baselines)
    assert run(PaperBench(loss), works(3), records=records, baselines=baselines) == whole
    assert whole[0].candidates[1].reward is None
    assert whole[0].candidates[1].failures
    for passage in whole:
        assert tried_from_json(json.loads(encode_json(tried_to_json(passage)))) == passage


def test_the_losses_of_a_completion_s_lines_are_not_kept() -> None:
    given = work(0, 1)
    edit = replace(given.edits[0], line_losses=(1.5, 2.5))
    (passage,) = run(PaperBench(by_candidate), [replace(given, edits=(edit,))])
    read = tried_from_json(json.loads(encode_json(tried_to_json(passage))))
    assert read.candidates[0].edit == given.edits[0]


def recorded(value: object) -> MemoryRecords:
    records = MemoryRecords()
    records.append("0:p0", value)
    return records


def a_record(**changes: Any) -> dict[str, Any]:
    (passage,) = run(PaperBench(by_candidate), works(1))
    return {**json.loads(encode_json(tried_to_json(passage))), **changes}


@pytest.mark.parametrize(
    "value",
    [
        5,
        [],
        "text",
        {"passages": []},
        {"passages": [{}], "baselines": {}},
        {"passages": 7, "baselines": {}},
        {"passages": [a_record(more=1)], "baselines": {}},
        {"passages": [a_record(candidates=[1])], "baselines": {}},
        {"passages": [a_record(candidates=[{"edit": None}])], "baselines": {}},
        {"passages": [a_record()], "baselines": []} | {"baselines": [1]},
        {"passages": [a_record()], "baselines": {"p0": 3}},
    ],
    ids=range(11),
)
def test_a_record_of_another_form_is_refused(value: object) -> None:
    with pytest.raises(StorageError, match="of another form") as caught:
        run(PaperBench(by_candidate), works(1), records=recorded(value))
    assert caught.value.remedy


@pytest.mark.parametrize("value", [3, "x", {"0": 5}, {"x": []}, {"0": [{"probe_id": "q"}]}])
def test_a_record_of_baselines_of_another_form_is_refused(value: object) -> None:
    baselines = MemoryRecords()
    baselines.append("p0", value)
    with pytest.raises(StorageError, match="record of baselines is of another form"):
        run(PaperBench(by_candidate), works(1), baselines=baselines)


def test_a_record_of_other_passages_is_refused() -> None:
    value = {"passages": [a_record(passage_id="other")], "baselines": {}}
    with pytest.raises(StorageError, match="of other passages"):
        run(PaperBench(by_candidate), works(1), records=recorded(value))


# ------------------------------------------------------------ failures


def test_a_score_that_is_no_number_is_a_failure_and_nothing_else() -> None:
    events: list[Event] = []

    def loss(job: TrialJob) -> float:
        return math.nan if name_of(job)[1] == "0" else by_candidate(job)

    (passage,) = run(PaperBench(loss), works(1), emit=events.append)
    broken, *others = passage.candidates
    assert broken.reward is None
    assert broken.improvement is None
    assert not broken.rewarded
    assert [f.boundary for f in broken.failures] == ["score", "score"]
    assert all(one.improvement is not None for one in others)
    assert passage.failed_trials == 2
    assert len([e for e in events if isinstance(e, WorkFailed)]) == 2
    encode_json(tried_to_json(passage))


@pytest.mark.parametrize("reward", [ValidationLossReward(), PerplexityReward()])
def test_a_baseline_whose_score_is_no_number_is_a_failure(reward: RewardFunction) -> None:
    events: list[Event] = []
    broken = math.nan if reward.kind == "loss" else 5000.0  # its perplexity is none

    def loss(job: TrialJob) -> float:
        return broken if job.id == "p0#baseline/repeat-0" else by_candidate(job)

    (passage,) = run(PaperBench(loss), works(1), reward=reward, emit=events.append)
    assert passage.failed_trials == 1
    assert math.isfinite(passage.baseline)
    assert all(one.improvement is not None for one in passage.candidates)
    (told,) = [e for e in events if isinstance(e, WorkFailed)]
    assert (told.boundary, told.subject, told.retryable) == ("score", "p0#baseline/repeat-0", False)
    assert ("nan" if reward.kind == "loss" else "finite perplexity") in told.error


def test_without_any_baseline_no_candidate_of_the_passage_has_a_number() -> None:
    def loss(job: TrialJob) -> float | None:
        return None if job.id.startswith("p0#baseline") else by_candidate(job)

    lost, other = run(PaperBench(loss), works(2))
    assert all(one.reward is None and len(one.failures) == 2 for one in lost.candidates)
    assert (lost.trials, lost.failed_trials) == (2, 2)
    assert lost.baseline == lost.before
    assert all(one.reward is not None for one in other.candidates)


def test_questions_that_cannot_be_put_name_their_passage() -> None:
    bench = ScriptedTrialBench(ScriptedModel(context_length=30))
    long = Question("Where " * 50, ("here",))
    given = work(3)
    given = replace(given, passage=replace(given.passage, questions=(long,)))
    with pytest.raises(BackendError, match=r"passage p3 .* do not fit the context") as caught:
        run(bench, [given])
    assert caught.value.remedy


def fails_for(*passages: str) -> Loss:
    def loss(job: TrialJob) -> float | None:
        passage, number, _ = name_of(job)
        return None if passage in passages and number != "baseline" else by_candidate(job)

    return loss


def test_failures_that_are_few_enough_are_recorded_with_their_batch() -> None:
    records, baselines = MemoryRecords(), MemoryRecords()
    given, settings = works(6), replace(SETTINGS, batch=1)
    first = run(PaperBench(fails_for("p4")), given, settings, records=records, baselines=baselines)
    assert all(one.reward is None for one in first[4].candidates)
    lucky = PaperBench(by_candidate)
    assert run(lucky, given, settings, records=records, baselines=baselines) == first
    assert lucky.jobs == []


def test_a_round_in_which_too_many_fail_stops_and_goes_on_when_the_reason_is_gone() -> None:
    records, baselines = MemoryRecords(), MemoryRecords()
    given, settings = works(4), replace(SETTINGS, batch=1)
    broken = PaperBench(fails_for("p1", "p2", "p3"))
    tried: list[TriedPassage] = []
    with pytest.raises(BackendError, match=r"12 of 23 trials failed.*\(0.5\).*out of luck"):
        tried.extend(
            trials(broken, settings).run(given, records, baselines)  # p0: 0 of 7; then 6 of 8
        )
    with pytest.raises(BackendError, match="trials failed"):  # while the reason is there
        run(PaperBench(fails_for("p2", "p3")), given, settings, records=records)
    repaired = PaperBench(by_candidate)
    found = run(repaired, given, settings, records=records, baselines=baselines)
    assert len(found) == 4
    assert {name_of(job)[0] for job in repaired.jobs} == {"p2", "p3"}  # what was done is done


def test_a_small_round_in_which_every_trial_fails_stops_with_the_reason() -> None:
    records = MemoryRecords()
    with pytest.raises(BackendError, match=r"2 of 2 trials failed.*out of luck") as caught:
        run(PaperBench(lambda job: None), works(1, 1), records=records)
    assert "resume" in caught.value.remedy
    assert run(PaperBench(by_candidate), works(1, 1), records=records)[0].candidates[0].reward


def test_where_all_trials_may_fail_the_round_goes_on_without_a_number() -> None:
    settings = replace(SETTINGS, max_failed_share=1.0)
    found = run(PaperBench(lambda job: None), works(6), settings)
    assert all(one.reward is None for passage in found for one in passage.candidates)


# ------------------------------------------------------------ decisions


def passage_with(*improvements: tuple[float, ...], error: float | None = 0.1) -> TriedPassage:
    tried = []
    for index, values in enumerate(improvements):
        edit = SelfEdit("p", "rewrite", index, (f"Edit {index}.",))
        mean = sum(values) / len(values) if values else 0.0
        reward = Reward(
            mean,
            2.0,
            2.0 - mean,
            2,
            "logprob",
            None,
            error,
            "loss",
            "improvement",
            mean,
            len(values),
        )
        tried.append(Tried(edit, reward if values else None, values))
    return TriedPassage("p", tuple(tried), len(tried), 9, 0, 2.5, 2.0)


def rewards(passage: TriedPassage) -> list[Any]:
    found = [one.reward for one in passage.candidates]
    return [None if one is None else (one.value, one.threshold) for one in found]


def test_a_number_is_a_margin_that_the_mean_improvement_must_exceed() -> None:
    given = passage_with((0.05, 0.15), (0.1,), (0.2,), (-0.3,), ())
    ((judged,), reliability) = decide([given], ValidationLossReward(), 0.1)
    assert rewards(judged) == [(0.0, 0.1), (0.0, 0.1), (1.0, 0.1), (0.0, 0.1), None]
    assert reliability is not None
    rules = {one.reward.rule for one in judged.candidates if one.reward is not None}
    assert rules == {"number"}
    ((judged,), _) = decide([given], ValidationLossReward(), 0)
    assert [found and found[0] for found in rewards(judged)] == [1.0, 1.0, 1.0, 0.0, None]


def test_auto_is_the_noise_that_the_repeats_show() -> None:
    noise = math.sqrt(0.02)  # of (0.1, 0.3): squares 0.02 over one degree of freedom
    z = ValidationLossReward().z
    given = passage_with((0.1, 0.3), (0.2,), (0.3,))
    ((judged,), reliability) = decide([given], ValidationLossReward(), "auto")
    assert rewards(judged) == [
        (1.0, pytest.approx(z * noise / math.sqrt(2))),
        (0.0, pytest.approx(z * noise)),
        (1.0, pytest.approx(z * noise)),
    ]
    assert reliability is not None
    assert reliability.noise is not None
    assert reliability.noise.sd == pytest.approx(noise)


def test_auto_without_repeats_is_the_standard_error_over_the_questions() -> None:
    given = passage_with((0.1,), (0.2,), error=0.1)
    ((judged,), _) = decide([given], ValidationLossReward(), "auto")
    assert rewards(judged) == [(0.0, pytest.approx(0.1645)), (1.0, pytest.approx(0.1645))]


def test_auto_without_any_measure_of_noise_rewards_nothing() -> None:
    given = passage_with((9.0,), error=None)  # a single question, a single trial
    ((judged,), _) = decide([given], ValidationLossReward(), "auto")
    assert rewards(judged) == [(0.0, None)]


def test_where_all_has_failed_there_is_nothing_to_decide() -> None:
    given = passage_with((), ())
    assert decide([given], ValidationLossReward(), "auto") == ([given], None)
    assert decide([], ValidationLossReward(), 0.1) == ([], None)


def test_many_failures_do_not_stop_a_small_round_in_which_something_was_measured() -> None:
    bench = PaperBench(lambda job: by_candidate(job) if name_of(job)[0] == "p0" else None)
    found = run(bench, works(4, 1), replace(SETTINGS, batch=1))
    assert [p.candidates[0].reward is not None for p in found] == [True, False, False, False]
    failed = sum(passage.failed_trials for passage in found)
    assert failed > SETTINGS.max_failed_share * sum(passage.trials for passage in found)


def test_the_losses_of_each_trial_are_kept() -> None:
    for one in run(PaperBench(by_candidate), works(1))[0].candidates:
        assert one.losses == ((1.0,),) * len(one.improvements)


def test_written_answers_to_a_baseline_are_kept_for_later_rounds() -> None:
    def loss(job: TrialJob) -> float:
        return 0.5 if name_of(job)[1] in ("baseline", "1") else 2.0

    baselines = MemoryRecords()
    first = run(PaperBench(loss), works(1), reward=AccuracyReward(), baselines=baselines)
    again = PaperBench(loss)
    assert run(again, works(1), reward=AccuracyReward(), baselines=baselines)[0].candidates == (
        first[0].candidates
    )
    assert "baseline" not in {name_of(job)[1] for job in again.jobs}
    assert [one.improvement for one in first[0].candidates] == [-1.0, 0.0, -1.0]


def test_baselines_are_not_trained_where_it_is_to_stop() -> None:
    bench = PaperBench(by_candidate)
    with pytest.raises(RunInterrupted):
        run(bench, works(1), should_stop=lambda: True)
    assert bench.jobs == []


def test_a_passage_may_have_an_id_that_looks_like_a_trials() -> None:
    given = work(0)
    odd = "p0#1/repeat-0"
    edits = tuple(replace(edit, passage_id=odd) for edit in given.edits)
    passage = replace(given.passage, id=odd)
    usual = run(PaperBench(by_candidate), [given], replace(SETTINGS, seed=1))
    found = run(PaperBench(by_candidate), [Work(passage, edits, 3)], replace(SETTINGS, seed=1))
    assert [c.improvements for c in found[0].candidates] == [
        c.improvements for c in usual[0].candidates
    ]


def test_what_could_not_be_written_is_counted_with_its_passage() -> None:
    given = replace(work(0, asked=5), unwritten=2)
    (passage,) = run(PaperBench(by_candidate), [given])
    assert (passage.asked, passage.unwritten) == (5, 2)


@pytest.mark.parametrize("retryable", [True, False])
def test_an_error_of_the_untrained_model_stays_one_that_may_go_away_or_not(retryable: bool) -> None:
    class Deaf(PaperBench):
        def baseline(self, *given: Any, **named: Any) -> list[Answered]:
            raise BackendError("busy", retryable=retryable)

    with pytest.raises(BackendError, match=r"passage p0 .*busy") as caught:
        run(Deaf(by_candidate), works(1))
    assert caught.value.retryable is retryable
    assert "leave the passage out" in caught.value.remedy
