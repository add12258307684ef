"""Races between candidates, over an executor whose trials have known values and noise."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice

import pytest

from aios.backends.scripted_trials import build_scripted_bench
from aios.core.data.probes import Probe
from aios.core.errors import BackendError, RunInterrupted, UsageError
from aios.core.events import Event, StageProgress, WorkFailed
from aios.core.protocols import Emit, Executor, ShouldStop, ignore, never
from aios.core.seal.racing import EvenSchedule, RacingSchedule, Schedule, race
from aios.core.seal.trial_set import Candidate, PassageResult, PassageState, Standing, ranked
from aios.core.seeds import derive
from aios.core.trials import Answered, TrialJob, TrialMetrics, TrialOutcome
from aios.core.types import Failure, LoraRecipe, TrainExample

TEMPLATE = TrialJob(id="", examples=(), recipe=LoraRecipe(), seed=7)
Answer = Callable[[str, int, int], float | None]  # candidate id, repeat, seed -> value or failure


def candidate(passage: int, number: int) -> Candidate:
    text = f"fact {number} of passage {passage}"
    return Candidate(f"p{passage}c{number}", f"p{passage}", (TrainExample.whole(text),))


def field(passages: int, candidates: int = 5) -> list[tuple[str, list[Candidate]]]:
    return [(f"p{p}", [candidate(p, c) for c in range(candidates)]) for p in range(passages)]


class Banks(Executor):
    """Pulls `width` jobs, then gives their outcomes in an order drawn by `shuffle`."""

    def __init__(self, answer: Answer, width: int = 1, shuffle: int | None = None) -> None:
        self.answer, self.width = answer, width
        self.rng = None if shuffle is None else random.Random(shuffle)
        self.calls: list[list[list[str]]] = []  # job ids by call and bank
        self.jobs: list[TrialJob] = []

    def run(
        self, jobs: Iterable[TrialJob], *, emit: Emit = ignore, should_stop: ShouldStop = never
    ) -> Iterator[TrialOutcome]:
        stream = iter(jobs)
        self.calls.append([])
        while bank := list(islice(stream, self.width)):
            if should_stop():
                raise RunInterrupted("stopped")
            self.calls[-1].append([job.id for job in bank])
            self.jobs += bank
            if self.rng is not None:
                self.rng.shuffle(bank)
            yield from map(self.outcome, bank)

    def outcome(self, job: TrialJob) -> TrialOutcome:
        name, _, repeat = job.id.rpartition("/repeat-")
        number = self.answer(name, int(repeat), job.seed)
        if number is None:
            return TrialOutcome(job.id, failure=Failure("train", job.id, "out of luck"))
        return TrialOutcome(job.id, TrialMetrics((), 0, 0, 0.0, figures={"reward": number}))

    def baseline(
        self,
        questions: Sequence[Probe],
        *,
        write_answers: bool = False,
        max_answer_tokens: int = 16,
    ) -> list[Answered]:
        return []

    def close(self) -> None:
        pass

    @property
    def ids(self) -> list[str]:
        return [job.id for job in self.jobs]

    @property
    def banks(self) -> list[list[str]]:
        return [bank for call in self.calls for bank in call]


def reward(job: TrialJob, outcome: TrialOutcome) -> float:
    assert outcome.metrics is not None
    return outcome.metrics.figures["reward"]


def by_number(name: str, repeat: int, seed: int) -> float:
    """The candidate's number is its value: the last one is the best."""
    return float(name.rpartition("c")[2])


def noisy(sd: float) -> Answer:
    """True value of p<i>c<j> is drawn once, noise from the trial's seed."""

    def answer(name: str, repeat: int, seed: int) -> float:
        return truth(name) + random.Random(f"{name} {seed}").gauss(0, sd)

    return answer


def truth(name: str) -> float:
    return random.Random(name).gauss(0, 1)


def run(
    answer: Answer,
    schedule: Schedule,
    passages: int = 1,
    *,
    width: int = 1,
    shuffle: int | None = None,
    seed: int = 7,
) -> dict[str, PassageResult]:
    template = TrialJob(id="", examples=(), recipe=LoraRecipe(), seed=seed)
    results = race(
        field(passages), Banks(answer, width, shuffle), schedule, reward, template=template
    )
    return {result.passage_id: result for result in results}


def chosen_truth(results: dict[str, PassageResult]) -> float:
    values = [truth(result.chosen.id) for result in results.values() if result.chosen]
    return sum(values) / len(values)


def test_a_repeat_has_the_candidates_id_and_a_seed_of_its_own() -> None:
    one = candidate(0, 3)
    jobs = [one.job(k, TEMPLATE) for k in range(3)]
    assert [job.id for job in jobs] == ["p0c3/repeat-0", "p0c3/repeat-1", "p0c3/repeat-2"]
    assert [job.seed for job in jobs] == [derive(7, "trial", "p0", k) for k in range(3)]
    assert jobs[0].examples == one.examples
    assert jobs[0].recipe == TEMPLATE.recipe


def test_an_even_schedule_gives_all_candidates_the_same() -> None:
    result = run(by_number, EvenSchedule(2))["p0"]
    assert result.trials == 10
    assert [standing.repeats for standing in result.standings] == [(0, 1)] * 5
    assert [standing.mean for standing in result.standings] == [0, 1, 2, 3, 4]
    assert result.chosen == candidate(0, 4)


@pytest.mark.parametrize(
    ("schedule", "trials", "finalists", "repeats"),
    [
        (RacingSchedule(), 7, 2, 2),
        (RacingSchedule(1, 2, 2), 9, 2, 3),
        (RacingSchedule(2, 1, 3), 13, 3, 3),
        (RacingSchedule(1, 1, 9), 10, 5, 2),
    ],
)
def test_a_racing_schedule_spends_its_repeats_on_the_finalists(
    schedule: RacingSchedule, trials: int, finalists: int, repeats: int
) -> None:
    result = run(by_number, schedule)["p0"]
    counts = [len(standing.values) for standing in result.standings]
    assert counts == [schedule.first] * (5 - finalists) + [repeats] * finalists
    assert result.trials == sum(counts) == trials


def test_a_planted_winner_is_found_however_noisy_the_others() -> None:
    def answer(name: str, repeat: int, seed: int) -> float:
        return 1000.0 * (name[-1] == "3") + random.Random(f"{name} {seed}").gauss(0, 30)

    for seed in range(20):
        result = run(answer, RacingSchedule(), seed=seed)["p0"]
        assert result.chosen == candidate(0, 3)


def test_racing_chooses_better_than_one_repeat_for_all_at_little_cost() -> None:
    picks = {
        schedule: run(noisy(1.0), schedule, passages=600, width=64)
        for schedule in (EvenSchedule(1), RacingSchedule(), EvenSchedule(2))
    }
    once, raced, twice = map(chosen_truth, picks.values())
    assert once < raced
    assert abs(raced - twice) < 0.05  # 3000 true values of sd 1, best of five is 1.16
    assert [sum(r.trials for r in results.values()) for results in picks.values()] == [
        3000,
        4200,
        6000,
    ]


@pytest.mark.parametrize("schedule", [EvenSchedule(2), RacingSchedule(1, 2, 2)])
@pytest.mark.parametrize(("width", "shuffle"), [(1, None), (4, 0), (7, 1), (10_000, 2)])
def test_results_do_not_depend_on_the_order_of_the_trials(
    schedule: Schedule, width: int, shuffle: int | None
) -> None:
    answer = noisy(1.0)

    def sometimes(name: str, repeat: int, seed: int) -> float | None:
        return (
            None
            if random.Random(f"{name} {seed} fails").random() < 0.3
            else answer(name, repeat, seed)
        )

    expected = run(sometimes, schedule, 12)
    assert any(result.failures for result in expected.values())
    assert run(sometimes, schedule, 12, width=width, shuffle=shuffle) == expected


def test_finished_passages_come_out_while_others_have_not_begun() -> None:
    begun: list[str] = []

    def passages() -> Iterator[tuple[str, list[Candidate]]]:
        for name, candidates in field(50):
            begun.append(name)
            yield name, candidates

    executor = Banks(by_number, width=10)
    results = race(passages(), executor, RacingSchedule(), reward, template=TEMPLATE)
    assert not begun
    first = next(results)
    assert first.passage_id == "p0"
    assert len(begun) <= 4
    assert sum(1 for _ in results) == 49


def test_finalists_run_before_the_passages_that_have_not_begun() -> None:
    executor = Banks(by_number, width=5)
    list(race(field(3), executor, RacingSchedule(), reward, template=TEMPLATE))
    assert executor.banks[1][:2] == ["p0c4/repeat-1", "p0c3/repeat-1"]


def test_banks_are_full_until_no_passage_is_left_to_begin() -> None:
    executor = Banks(noisy(1.0), width=16, shuffle=0)
    list(race(field(60), executor, RacingSchedule(), reward, template=TEMPLATE))
    sizes = [len(bank) for bank in executor.banks]
    assert sum(sizes) == 420
    assert [size for size in sizes[:-2] if size < 16] == []
    assert len(executor.calls) <= 2


def test_an_executor_that_takes_all_jobs_at_once_gets_the_finalists_in_a_second_call() -> None:
    executor = Banks(by_number, width=10_000)
    results = list(race(field(8), executor, RacingSchedule(), reward, template=TEMPLATE))
    assert [len(bank) for bank in executor.banks] == [40, 16]
    assert len(results) == 8


def test_a_failed_trial_is_tried_once_more_as_a_new_repeat() -> None:
    def answer(name: str, repeat: int, seed: int) -> float | None:
        return None if (name, repeat) == ("p0c4", 0) else by_number(name, repeat, seed)

    executor = Banks(answer)
    (result,) = race(field(1), executor, RacingSchedule(), reward, template=TEMPLATE)
    winner = result.standings[4]
    assert winner.repeats == (1, 2)  # 1 is the retry, 2 the finalist's
    assert winner.values == (4.0, 4.0)
    assert [failure.subject for failure in result.failures] == ["p0c4/repeat-0"]
    assert result.trials == 8 == len(set(executor.ids))
    assert len({job.seed for job in executor.jobs if job.id.startswith("p0c4/")}) == 3


def test_a_candidate_that_only_failed_is_listed_and_has_no_number() -> None:
    def answer(name: str, repeat: int, seed: int) -> float | None:
        return None if name == "p0c2" else by_number(name, repeat, seed) - 100

    executor = Banks(answer)
    (result,) = race(field(1), executor, RacingSchedule(), reward, template=TEMPLATE)
    broken = result.standings[2]
    assert (broken.mean, broken.values) == (None, ())
    assert len(broken.failures) == 2  # the trial and its only retry
    assert result.trials == 8
    assert result.chosen == candidate(0, 4)  # at -96, and not the one that failed


def test_a_passage_whose_trials_all_fail_has_no_choice_and_gets_no_finalists() -> None:
    result = run(lambda name, repeat, seed: None, RacingSchedule())["p0"]
    assert result.chosen is None
    assert result.trials == len(result.failures) == 10


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_a_failure(bad: float) -> None:
    def answer(name: str, repeat: int, seed: int) -> float:
        return bad if (name, repeat) == ("p0c4", 0) else by_number(name, repeat, seed)

    seen: list[Event] = []
    (result,) = race(
        field(1), Banks(answer), EvenSchedule(1), reward, template=TEMPLATE, emit=seen.append
    )
    (failure,) = result.failures
    assert (failure.boundary, failure.subject) == ("score", "p0c4/repeat-0")
    assert result.chosen == candidate(0, 4)
    (told,) = [event for event in seen if isinstance(event, WorkFailed)]
    assert (told.boundary, told.subject, told.error) == (
        "score",
        "p0c4/repeat-0",
        f"its value is {bad}",
    )


def test_progress_is_told_by_passages() -> None:
    seen: list[Event] = []
    list(
        race(
            field(3),
            Banks(by_number),
            EvenSchedule(1),
            reward,
            template=TEMPLATE,
            emit=seen.append,
        )
    )
    assert [event.done for event in seen if isinstance(event, StageProgress)] == [1, 2, 3]


def test_an_interruption_passes_on_after_the_finished_passages() -> None:
    finished: list[str] = []

    def stop() -> bool:
        return len(finished) >= 3

    with pytest.raises(RunInterrupted):
        for result in race(
            field(9),
            Banks(by_number, width=4),
            RacingSchedule(),
            reward,
            template=TEMPLATE,
            should_stop=stop,
        ):
            finished.append(result.passage_id)
    assert 3 <= len(finished) < 9


def test_nothing_is_run_if_it_is_to_stop_at_once() -> None:
    executor = Banks(by_number)
    with pytest.raises(RunInterrupted):
        next(
            race(
                field(1),
                executor,
                EvenSchedule(1),
                reward,
                template=TEMPLATE,
                should_stop=lambda: True,
            )
        )
    assert not executor.calls


class Loses(Banks):
    """Gives no outcome for its second job."""

    def run(
        self, jobs: Iterable[TrialJob], *, emit: Emit = ignore, should_stop: ShouldStop = never
    ) -> Iterator[TrialOutcome]:
        for number, outcome in enumerate(super().run(jobs)):
            if number != 1:
                yield outcome


class Idle(Banks):
    """Takes no job."""

    def run(
        self, jobs: Iterable[TrialJob], *, emit: Emit = ignore, should_stop: ShouldStop = never
    ) -> Iterator[TrialOutcome]:
        return iter(())


@pytest.mark.parametrize(("kind", "lost"), [(Loses, 1), (Idle, 0)])
def test_an_executor_that_ends_before_its_jobs_is_an_error(kind: type[Banks], lost: int) -> None:
    with pytest.raises(BackendError, match=f"with {lost} jobs"):
        list(race(field(2), kind(by_number), EvenSchedule(1), reward, template=TEMPLATE))


def test_two_candidates_with_one_id_are_refused() -> None:
    twice = [("p0", [candidate(0, 1), candidate(0, 1)])]
    with pytest.raises(UsageError, match="p0c1"):
        list(race(twice, Banks(by_number), EvenSchedule(1), reward, template=TEMPLATE))


def test_a_candidate_of_another_passage_is_refused() -> None:
    with pytest.raises(UsageError, match="passage p1"):
        list(
            race(
                [("p0", [candidate(1, 0)])],
                Banks(by_number),
                EvenSchedule(1),
                reward,
                template=TEMPLATE,
            )
        )


def test_a_passage_without_candidates_has_a_result_without_a_choice() -> None:
    passages: list[tuple[str, list[Candidate]]] = [("empty", []), *field(1), ("last", [])]
    results = list(race(passages, Banks(by_number), RacingSchedule(), reward, template=TEMPLATE))
    assert {r.passage_id: r.trials for r in results} == {"empty": 0, "p0": 7, "last": 0}
    assert {r.passage_id for r in results if r.chosen is None} == {"empty", "last"}


def test_no_passages_give_no_results() -> None:
    assert not list(race([], Banks(by_number), EvenSchedule(1), reward, template=TEMPLATE))


def standing(number: int, *values: float) -> Standing:
    return Standing(candidate(0, number), tuple(range(len(values))), values)


def test_ties_go_to_more_values_then_to_the_first() -> None:
    standings = [standing(0), standing(1, 0.4), standing(2, 0.1, 0.7), standing(3, 0.7, 0.1)]
    assert [one.candidate for one in ranked(standings)] == [candidate(0, n) for n in (2, 3, 1)]


def test_a_tie_at_the_border_keeps_the_cost() -> None:
    standings = tuple(standing(number, 1.0) for number in range(5))
    more = RacingSchedule(1, 1, 2).next(PassageState("p0", 1, standings))
    assert more == [(candidate(0, 0), 1), (candidate(0, 1), 1)]


@pytest.mark.parametrize(
    "make",
    [
        lambda: EvenSchedule(0),
        lambda: RacingSchedule(first=0),
        lambda: RacingSchedule(more=0),
        lambda: RacingSchedule(finalists=-1),
    ],
)
def test_a_schedule_without_repeats_is_refused(make: Callable[[], Schedule]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        make()


def test_a_race_runs_on_a_trial_bench() -> None:
    def loss(job: TrialJob, outcome: TrialOutcome) -> float:
        assert outcome.metrics is not None
        return -outcome.metrics.losses[-1]

    with_bench = build_scripted_bench(groups=3)
    results = list(race(field(4), with_bench, RacingSchedule(), loss, template=TEMPLATE))
    assert [result.trials for result in results] == [7] * 4
    assert not any(result.failures for result in results)
