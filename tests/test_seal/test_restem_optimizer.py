"""ReST-EM: what a round does, in a world where the truth is planted, and what can go wrong."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import Any

import pytest

from aios.backends.scripted_training import ScriptedTrainer
from aios.backends.scripted_trials import ScriptedTrialBench
from aios.core.errors import BackendError, DataError, RunInterrupted, UsageError
from aios.core.events import (
    CandidateTried,
    Event,
    Notice,
    RoundFinished,
    StageProgress,
    StageStarted,
)
from aios.core.protocols import Executor, LanguageModel, TrialBench
from aios.core.restem import HeldOut, ReSTEMState, RoundReport
from aios.core.seal.candidate_trials import TrialSettings
from aios.core.seal.quality import FilterSettings, QualityFilter
from aios.core.seal.restem_optimizer import ReSTEMOptimizer
from aios.core.seal.restem_rules import ReSTEMSettings, passages_of_round, why_stop
from aios.core.seal.restem_store import UnrecordedRounds
from aios.core.seal.reward import RewardFunction, ValidationLossReward
from aios.core.seal.self_edit_generator import SelfEditGenerator
from aios.core.seal.test_time_training import TTTTrainer
from aios.core.trials import Reward, TrialJob
from aios.core.types import LoraRecipe, Passage
from tests.planted_world import PlantedModel, helpful_share, is_helpful, planted_passages

UNFILTERED = FilterSettings(
    min_length=1,
    enable_deduplication=False,
    enable_quality_filter=False,
    enable_grounding=False,
)
QUICK = TrialSettings(trial_tokens=60, batch=4)
SETTINGS = ReSTEMSettings(trials=QUICK, recipe=LoraRecipe(epochs=2, batch_size=8), patience=0)


class ShuffledReward(ValidationLossReward):
    """A reward that has nothing to do with what was tried."""

    def __init__(self) -> None:
        super().__init__()
        self._rng = random.Random(0)

    def of(self, *given: Any, **named: Any) -> Reward:
        """The improvement of some other trial."""
        value = self._rng.gauss(0.0, 1.0)
        return replace(super().of(*given, **named), value=value, improvement=value, after=value)


def optimizer(
    *,
    settings: ReSTEMSettings = SETTINGS,
    reward: RewardFunction | None = None,
    rounds: int = 3,
    strategy: str = "implications",
    executor: Executor | None = None,
    fail: Callable[[TrialJob], BackendError | None] | None = None,
    emit: Callable[[Event], None] = lambda event: None,
    should_stop: Callable[[], bool] = lambda: False,
    batch_size: int = 20,
) -> ReSTEMOptimizer:
    """An optimiser in the planted world."""
    model = PlantedModel()
    generator = SelfEditGenerator(
        model, strategy=strategy, num_edits=1, filter_settings=UNFILTERED, batch_size=8
    )
    bench = ScriptedTrialBench(model, fail=fail)

    def bench_for(base: LanguageModel) -> TrialBench:
        return bench

    return ReSTEMOptimizer(
        generator,
        TTTTrainer(bench_for, recipe=LoraRecipe(batch_size=2), seed=0),
        reward or ValidationLossReward(),
        rounds,
        batch_size,
        trainer=ScriptedTrainer(model),
        executor=executor,
        settings=settings,
        emit=emit,
        should_stop=should_stop,
    )


def shares(store: UnrecordedRounds, rounds: int) -> list[float]:
    """Share of helpful candidates in each round."""
    return [helpful_share(store.kept[n, "candidates"]) for n in range(1, rounds + 1)]


def test_in_a_planted_world_the_share_of_helpful_self_edits_rises_above_90_percent(
    tmp_path: Path,
) -> None:
    store = UnrecordedRounds(tmp_path)
    state = optimizer(rounds=4).optimize(planted_passages(20), planted_passages(5, 20), store)
    found = shares(store, 4)
    assert found[0] < 0.4
    assert found[3] > 0.9  # what three rounds have taught
    assert state.stopped == "all 4 rounds are done"
    assert state.rounds[3].rewarded > state.rounds[1].rewarded
    held_out = [r.held_out.mean for r in state.rounds if r.held_out is not None]
    assert held_out[-1] > held_out[0]
    assert state.best > 0


@pytest.mark.slow
@pytest.mark.parametrize("keep", ["threshold", "best_of_k"])
def test_with_a_shuffled_reward_it_does_not(tmp_path: Path, keep: Any) -> None:
    store = UnrecordedRounds(tmp_path)
    settings = replace(SETTINGS, keep=keep, threshold=0.0)
    state = optimizer(rounds=4, reward=ShuffledReward(), settings=settings).optimize(
        planted_passages(20), (), store
    )
    assert state.next_round == 5
    assert max(shares(store, 4)) < 0.6


def test_only_what_was_rewarded_is_learned(tmp_path: Path) -> None:
    store = UnrecordedRounds(tmp_path)
    optimizer(rounds=1).optimize(planted_passages(20), (), store)
    kept = [c for p in store.kept[1, "candidates"] for c in p.candidates if c.kept]
    assert kept
    assert all(is_helpful(one.edit.text) and one.rewarded for one in kept)
    per_passage = [sum(c.kept for c in p.candidates) for p in store.kept[1, "candidates"]]
    assert max(per_passage) == 1


def test_a_kept_self_edit_that_is_too_long_to_learn_is_left_out_with_a_notice(
    tmp_path: Path,
) -> None:
    events: list[Event] = []
    short = replace(SETTINGS.recipe, max_seq_len=5)
    settings = replace(SETTINGS, recipe=short)
    state = optimizer(rounds=1, settings=settings, emit=events.append).optimize(
        planted_passages(6), (), UnrecordedRounds(tmp_path)
    )
    assert state.rounds[1].kept > 0
    assert state.rounds[1].generator == ""
    message = f"{state.rounds[1].kept} kept self-edits do not fit restem.sft_max_seq_len (5)"
    assert [e for e in events if isinstance(e, Notice)] == [Notice(message, "warning")]


def test_a_round_reports_what_it_did(tmp_path: Path) -> None:
    events: list[Event] = []
    store = UnrecordedRounds(tmp_path)
    state = optimizer(rounds=1, emit=events.append).optimize(
        planted_passages(6), planted_passages(3, 20), store
    )
    untrained, report = state.rounds
    assert (untrained.number, untrained.passages) == (0, 0)
    assert untrained.held_out is not None
    assert set(untrained.held_out.passages) == {"p20", "p21", "p22"}
    assert set(untrained.seconds) == {"held-out"}
    assert (report.number, report.passages, report.asked) == (1, 6, 30)
    assert report.tried == 30
    assert report.trials == 6 * (2 + 5 + 2)
    assert report.failed_trials == 0
    assert 0 < report.kept <= 6
    assert report.threshold is not None
    assert set(report.seconds) == {"propose", "try", "fit", "held-out"}
    assert report.sft["examples"] == report.kept
    tried = [event for event in events if isinstance(event, CandidateTried)]
    assert len([event for event in tried if not event.held_out]) == 30
    finished = [event for event in events if isinstance(event, RoundFinished)]
    assert [event.number for event in finished] == [0, 1]
    assert ReSTEMState.from_json(state.to_json()) == state


def fails_on(text: str) -> Callable[[TrialJob], BackendError | None]:
    """Trials that train on a text fail."""

    def fail(job: TrialJob) -> BackendError | None:
        found = any(text in example.text for example in job.examples)
        return BackendError("out of luck") if found else None

    return fail


def test_a_failed_trial_has_no_number_and_is_never_learned(tmp_path: Path) -> None:
    store = UnrecordedRounds(tmp_path)
    lucky = "keyword of Orvaane"
    state = optimizer(rounds=1, fail=fails_on(lucky)).optimize(planted_passages(10), (), store)
    failed = [
        one
        for passage in store.kept[1, "candidates"]
        for one in passage.candidates
        if lucky in one.edit.text
    ]
    assert failed
    assert all(one.reward is None and one.failures and not one.kept for one in failed)
    assert state.rounds[1].failed == len(failed)
    assert state.rounds[1].failed_trials >= len(failed)


def test_a_round_in_which_too_many_trials_fail_stops_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"trials failed, more than .*: out of luck") as caught:
        optimizer(fail=fails_on("Orv")).optimize(
            planted_passages(10), (), UnrecordedRounds(tmp_path)
        )
    assert "resume" in caught.value.remedy


def test_a_passage_whose_baseline_fails_has_no_reward(tmp_path: Path) -> None:
    def fail(job: TrialJob) -> BackendError | None:
        return BackendError("no baseline") if job.id.startswith("p3#baseline") else None

    store = UnrecordedRounds(tmp_path)
    optimizer(rounds=1, fail=fail).optimize(planted_passages(10), (), store)
    passage = next(p for p in store.kept[1, "candidates"] if p.passage_id == "p3")
    assert all(one.reward is None and one.failures for one in passage.candidates)
    assert not any(one.kept for one in passage.candidates)


def test_where_the_passage_alone_does_harm_the_untrained_model_is_to_be_beaten(
    tmp_path: Path,
) -> None:
    class Harmed(ValidationLossReward):
        """A loss that training on a passage alone makes worse than it was: 9 nats."""

        def of(self, questions: Any, before: Any, after: Any, threshold: Any = "auto") -> Reward:
            earned = super().of(questions, before, after, threshold)
            return replace(earned, after=9.0) if id(after) in harmed else earned

    made = optimizer(rounds=1, reward=Harmed())
    harmed: set[int] = set()
    run = made.trials.executor.run

    def recording(jobs: Any, **more: Any) -> Any:
        for outcome in run(jobs, **more):
            if "#baseline/" in outcome.job_id:
                harmed.add(id(outcome.answers))
            yield outcome

    made.trials.executor.run = recording  # type: ignore[method-assign]
    store = UnrecordedRounds(tmp_path)
    made.optimize(planted_passages(4), (), store)
    assert harmed
    assert len(store.kept[1, "candidates"]) == 4
    for passage in store.kept[1, "candidates"]:
        assert passage.baseline == passage.before


def test_rounds_stop_where_held_out_passages_gain_nothing_more(tmp_path: Path) -> None:
    settings = replace(SETTINGS, patience=1)
    state = optimizer(rounds=9, settings=settings).optimize(
        planted_passages(20), planted_passages(8, 20), UnrecordedRounds(tmp_path)
    )
    assert len(state.rounds) < 10
    assert state.stopped == f"the held-out passages gained nothing more after round {state.best}"
    means = [r.held_out.mean for r in state.rounds if r.held_out is not None]
    assert means[state.best] == max(means)


def test_where_nothing_is_good_enough_the_generator_stays(tmp_path: Path) -> None:
    settings = replace(SETTINGS, threshold=99.0)
    state = optimizer(settings=settings).optimize(
        planted_passages(5), (), UnrecordedRounds(tmp_path)
    )
    assert state.stopped == "no self-edit of round 1 was good enough to learn from"
    assert state.rounds[1].generator == ""


@pytest.mark.slow
def test_the_same_seed_gives_the_same_run_and_another_one_another(tmp_path: Path) -> None:
    def run(name: str, seed: int) -> list[RoundReport]:
        settings = replace(SETTINGS, seed=seed, trials=replace(QUICK, seed=seed))
        state = optimizer(rounds=2, settings=settings).optimize(
            planted_passages(6), planted_passages(3, 20), UnrecordedRounds(tmp_path / name)
        )
        return [replace(r, seconds={}, generator="", sft={}) for r in state.rounds]

    assert run("a", 1) == run("b", 1)
    assert run("c", 2) != run("a2", 1)


@pytest.mark.parametrize("init", ["base", "previous"])
def test_a_generator_is_trained_from_the_base_model_or_the_one_before(
    tmp_path: Path, init: Any
) -> None:
    made = optimizer(rounds=2, settings=replace(SETTINGS, init=init))
    jobs: list[Any] = []
    fit = made.trainer.fit

    def recording(job: Any, **more: Any) -> Any:
        jobs.append(job)
        return fit(job, **more)

    made.trainer.fit = recording  # type: ignore[method-assign]
    state = made.optimize(planted_passages(12), (), UnrecordedRounds(tmp_path))
    assert jobs[0].initial is None
    if init == "base":
        assert jobs[1].initial is None
    else:
        assert jobs[1].initial is not None
        assert jobs[1].initial.digest == state.rounds[1].digest


def test_it_stops_on_request_and_goes_on_with_the_same_numbers(tmp_path: Path) -> None:
    def run(store: UnrecordedRounds, should_stop: Callable[[], bool]) -> ReSTEMState:
        return optimizer(rounds=2, should_stop=should_stop).optimize(
            planted_passages(10), planted_passages(3, 20), store
        )

    def plain(state: ReSTEMState) -> list[Any]:
        return [replace(r, seconds={}, generator="", sft={}) for r in state.rounds]

    whole = run(UnrecordedRounds(tmp_path / "whole"), lambda: False)
    store, asked = UnrecordedRounds(tmp_path / "stopped"), 0

    def every_so_often() -> bool:
        nonlocal asked
        asked += 1
        return asked in (3, 40, 150, 400, 700)

    stops, state = 0, None
    while state is None:
        try:
            state = run(store, every_so_often)
        except RunInterrupted:
            stops += 1
    assert stops >= 3
    assert plain(state) == plain(whole)


def test_passages_without_questions_or_on_both_sides_are_refused(tmp_path: Path) -> None:
    passages = planted_passages(3)
    store = UnrecordedRounds(tmp_path)
    with pytest.raises(DataError, match="no questions"):
        optimizer().optimize([Passage.make("A text.", id="x")], (), store)
    with pytest.raises(DataError, match="optimised on and held out"):
        optimizer().optimize(passages, passages[:1], store)
    with pytest.raises(DataError, match="no passages"):
        optimizer().optimize([], (), store)


@pytest.mark.parametrize("number", ["rounds", "batch_size"])
def test_numbers_below_one_are_refused(number: str) -> None:
    with pytest.raises(UsageError, match="is 0"):
        optimizer(**{number: 0})  # type: ignore[arg-type]


def test_shares_follow_what_pays_and_stay_above_the_floor(tmp_path: Path) -> None:
    store = UnrecordedRounds(tmp_path)
    state = optimizer(strategy="implications:1,rewrite:1,self-qa:1", rounds=3).optimize(
        planted_passages(15), (), store
    )
    after: Sequence[float] = [state.shares[name] for name in ("implications", "rewrite", "self-qa")]
    assert sum(after) == pytest.approx(1)
    assert min(after) >= 0.3 / 3 - 1e-9
    assert after[0] == max(after)  # only there the planted model can write what helps


def seeds_of(made: ReSTEMOptimizer, monkeypatch: pytest.MonkeyPatch) -> tuple[list[int], list[int]]:
    """Seeds with which candidates are written, and with which generators are trained, noted."""
    written: list[int] = []
    fitted: list[int] = []
    with_plan, fit = made.generator.with_plan, made.trainer.fit

    def noted_plan(model: Any, seed: int, *more: Any) -> Any:
        written.append(seed)
        return with_plan(model, seed, *more)

    def noted_fit(job: Any, **more: Any) -> Any:
        fitted.append(job.seed)
        return fit(job, **more)

    monkeypatch.setattr(made.generator, "with_plan", noted_plan)
    monkeypatch.setattr(made.trainer, "fit", noted_fit)
    return written, fitted


def test_each_round_has_seeds_of_its_own_but_for_held_out_passages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(seed: int, folder: str) -> tuple[list[int], list[int]]:
        made = optimizer(rounds=2, settings=replace(SETTINGS, seed=seed))
        seeds = seeds_of(made, monkeypatch)
        store = UnrecordedRounds(tmp_path / folder)
        made.optimize(planted_passages(6), planted_passages(2, 20), store)
        return seeds

    (untrained, first, after_first, second, after_second), fitted = run(0, "a")
    assert untrained == after_first == after_second
    assert len({untrained, first, second, *fitted}) == 5
    others = {seed for seeds in run(1, "b") for seed in seeds}
    assert not {untrained, first, second, *fitted} & others


def test_a_round_shows_its_stages_with_what_they_count(tmp_path: Path) -> None:
    events: list[Event] = []
    optimizer(rounds=1, emit=events.append).optimize(
        planted_passages(6), planted_passages(3, 20), UnrecordedRounds(tmp_path)
    )
    started = [e for e in events if isinstance(e, StageStarted) and e.stage.startswith("round")]
    assert [(e.stage, e.total, e.unit) for e in started] == [
        ("round 0: held-out", 3, "passages"),
        ("round 1: write", 6, "passages"),
        ("round 1: try", 6, "passages"),
        ("round 1: held-out", 3, "passages"),
    ]
    for stage in started:
        done = [e.done for e in events if isinstance(e, StageProgress) and e.stage == stage.stage]
        assert done == sorted(done)
        assert done[-1] == stage.total


def test_it_is_told_once_a_round_where_the_quality_filter_left_little(tmp_path: Path) -> None:
    events: list[Event] = []
    made = optimizer(rounds=1, emit=events.append)
    strict = replace(UNFILTERED, enable_quality_filter=True, min_length=2000)
    made.generator.quality = QualityFilter(strict, made.base.count_tokens)
    made.optimize(planted_passages(4), planted_passages(2, 20), UnrecordedRounds(tmp_path))
    told = [event for event in events if isinstance(event, Notice)]
    assert [event.message.partition(";")[0] for event in told] == [
        "only 0 of 20 self-edits were left by the quality filter"
    ]


def test_the_passages_of_rounds_go_through_all_in_an_order_of_the_seed() -> None:
    passages = planted_passages(9)

    def rounds(seed: int) -> list[list[str]]:
        return [[p.id for p in passages_of_round(n, passages, 3, seed)] for n in (1, 2, 3, 4)]

    first, second, third, again = rounds(0)
    assert sorted(first + second + third) == sorted(p.id for p in passages)
    assert again == first
    assert rounds(0) == [first, second, third, again]
    assert len({str(rounds(seed)) for seed in range(5)}) == 5


def test_the_last_error_is_told_where_too_many_trials_fail(tmp_path: Path) -> None:
    count = 0

    def fail(job: TrialJob) -> BackendError | None:
        nonlocal count
        count += 1
        return BackendError(f"error {count}")

    made = optimizer(fail=fail)
    with pytest.raises(BackendError) as caught:
        made.optimize(planted_passages(10), (), UnrecordedRounds(tmp_path))
    failed = int(caught.value.message.partition(" of ")[0])
    assert failed > 2
    assert caught.value.message.endswith(f" the last: error {count}")


def test_it_is_made_as_the_plan_says() -> None:
    parameters = list(signature(ReSTEMOptimizer).parameters.values())[3:6]
    assert [(p.name, p.default) for p in parameters] == [
        ("num_iterations", 2),
        ("batch_size", 50),
        ("candidates_per_passage", 5),
    ]


def test_trials_are_recorded_by_round_and_part(tmp_path: Path) -> None:
    parts: list[str] = []

    class Noting(UnrecordedRounds):
        def records(self, stage: str) -> Any:
            parts.append(stage)
            return super().records(stage)

    optimizer(rounds=1).optimize(planted_passages(4), planted_passages(2, 20), Noting(tmp_path))
    assert [part for part in parts if part != "baselines"] == [
        "rounds/0/held_out",
        "rounds/1/candidates",
        "rounds/1/held_out",
    ]


@pytest.mark.parametrize(("patience", "stops"), [(0, False), (1, True), (2, True), (3, False)])
def test_it_stops_after_so_many_rounds_without_gain(patience: int, stops: bool) -> None:
    held_out = HeldOut({"h": 0.1}, {"h": 0.1}, 0.5)
    state = ReSTEMState((RoundReport(0), RoundReport(3, kept=1, held_out=held_out)))
    assert bool(why_stop(state, best=1, patience=patience, rounds=9)) is stops
