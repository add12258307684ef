"""What a ReST-EM run costs: counts by hand, ranges, monotony, GPUs, advice, estimate and actual."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aios.core.errors import UsageError
from aios.core.gpu_costs import (
    CPU_TRAININGS,
    GPUS,
    SHARE_OF_PEAK,
    ModelShape,
    find_gpu,
    throughput_on,
    trial_memory,
)
from aios.core.restem import RoundReport
from aios.core.restem_advice import LEAST_CANDIDATES, advise
from aios.core.restem_costs import STAGES, Throughput, compare_with_actual, estimate
from aios.core.restem_workload import Span, Tokens, Workload

ONE = Span.exactly(1.0)
SPEED = Throughput(
    write=Span(80.0, 100.0, 120.0),
    train=Span(300.0, 350.0, 400.0),
    score=Span(500.0, 700.0, 900.0),
    fit=Span(200.0, 300.0, 400.0),
    read=None,
    source="a test",
)
PLAN = Workload(
    passages=10,
    rounds=2,
    candidates=5,
    pool=15,
    held_out=4,
    held_out_candidates=3,
    repeats=2,
    racing=True,
    baseline_repeats=2,
    prompts=2,
    prompt_tokens=250.0,
    edit_tokens=Span(80.0, 120.0, 200.0),
    passage_tokens=150.0,
    trial_tokens=1500.0,
    questions=4.0,
    question_tokens=25.0,
    kept=Span(0.2, 0.6, 1.0),
    sft_epochs=2,
)
# SmolLM2-135M, whose adapter of rank 32 is known to have 9,768,960 numbers.
SMALL = {
    "hidden_size": 576,
    "num_hidden_layers": 30,
    "intermediate_size": 1536,
    "vocab_size": 49152,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
}

counts = st.integers(1, 40)
workloads = st.builds(
    Workload,
    passages=counts,
    rounds=st.integers(1, 6),
    candidates=st.integers(1, 12),
    pool=counts,
    held_out=st.integers(0, 20),
    held_out_candidates=st.integers(1, 6),
    repeats=st.integers(1, 5),
    racing=st.booleans(),
    baseline_repeats=st.integers(0, 3),
    keeps_baselines=st.booleans(),
    prompts=st.integers(1, 6),
    prompt_tokens=st.floats(0, 500),
    edit_tokens=st.builds(
        lambda low, more, most: Span(low, low + more, low + more + most),
        *[st.floats(0, 300)] * 3,
    ),
    passage_tokens=st.floats(1, 500),
    trial_tokens=st.one_of(st.none(), st.floats(1, 5000)),
    trial_epochs=st.integers(1, 10),
    questions=st.floats(0, 10),
    question_tokens=st.floats(0, 50),
    kept=st.builds(lambda low, more: Span(low, low + more, low + 2 * more), *[st.floats(0, 1)] * 2),
    sft_epochs=st.integers(1, 4),
)


def cost(work: Workload) -> Span:
    return estimate(work, SPEED).seconds


# ---------------------------------------------------------------- counting


def test_trials_are_counted_as_the_schedules_run_them() -> None:
    assert PLAN.trials_of(5) == 7  # five, and one more for the best two
    assert replace(PLAN, racing=False).trials_of(5) == 10
    assert replace(PLAN, repeats=4).trials_of(5) == 5 + 2 * 3
    assert PLAN.trials_of(1) == 2
    in_rounds, held_out = 2 * 10 * 7, 3 * 4 * (3 + 2)
    baselines = (15 + 4) * 2  # of 20 visits 5 are of passages that have been before
    assert PLAN.trials == in_rounds + held_out + baselines


def test_a_baseline_that_is_not_kept_is_trained_at_every_visit() -> None:
    anew = replace(PLAN, keeps_baselines=False)
    assert anew.trials - PLAN.trials == 2 * ((20 - 15) + (3 - 1) * 4)


def test_tokens_by_stage_are_those_of_the_formulas() -> None:
    found = PLAN.tokens()
    assert found["propose"] == Tokens(read=20 * 2 * 250, written=20 * 5 * 120)
    tried = found["try"]
    assert tried.trained == (20 * 7 + 15 * 2) * 1500
    assert tried.scored == (20 * 7 + 15 * 2 + 15) * 4 * 25
    assert found["fit"].fitted == pytest.approx(20 * 0.6 * 2 * (250 + 120))
    assert found["held-out"].written == 12 * 3 * 120
    assert found["held-out"].trained == (12 * 5 + 4 * 2) * 1500
    assert found["expert"] == Tokens()


def test_without_a_budget_of_tokens_trials_grow_with_the_self_edit_and_baselines_do_not() -> None:
    by_epochs = replace(PLAN, trial_tokens=None, trial_epochs=3)
    assert by_epochs.trial_size() == 3 * (150 + 120)
    assert by_epochs.tokens()["try"].trained == 20 * 7 * 3 * 270 + 15 * 2 * 3 * 150


def test_seconds_are_tokens_over_speed() -> None:
    found = estimate(PLAN, SPEED)
    assert found.stages["propose"].seconds.middle == 12_000 / 100
    assert found.stages["propose"].seconds.low == 20 * 5 * 80 / 120
    assert found.stages["propose"].seconds.high == 20 * 5 * 200 / 80
    middles = [found.stages[stage].seconds.middle for stage in STAGES]
    assert found.seconds.middle == pytest.approx(sum(middles))
    assert found.money is None


def test_prompts_cost_where_reading_has_a_speed_of_its_own() -> None:
    reading = replace(SPEED, read=Span.exactly(1000.0))
    more = estimate(PLAN, reading).stages["propose"].seconds.middle
    assert more == 120 + 10_000 / 1000


def test_money_is_time_at_the_price_end_by_end() -> None:
    found = estimate(PLAN, SPEED, price_per_hour=Span(1.0, 1.5, 2.0))
    assert found.money is not None
    assert found.money.low == pytest.approx(found.seconds.low / 3600)
    assert found.money.high == pytest.approx(2 * found.seconds.high / 3600)


# ---------------------------------------------------------------- what must hold for any run


@given(workloads)
def test_the_range_contains_the_middle(work: Workload) -> None:
    found = estimate(work, SPEED, price_per_hour=Span(0.5, 1.0, 1.0))
    assert found.money is not None
    for span in (found.seconds, found.money, *(s.seconds for s in found.stages.values())):
        assert 0 <= span.low <= span.middle <= span.high < math.inf


@given(workloads, st.sampled_from(["passages", "candidates", "rounds", "held_out", "repeats"]))
def test_more_of_anything_never_costs_less(work: Workload, name: str) -> None:
    less, more = cost(work), cost(replace(work, **{name: getattr(work, name) + 1}))
    for end in ("low", "middle", "high"):
        assert getattr(more, end) >= getattr(less, end) * (1 - 1e-12)


@given(workloads)
def test_racing_never_costs_more_than_even_repeats(work: Workload) -> None:
    racing, even = replace(work, racing=True), replace(work, racing=False)
    assert racing.trials <= even.trials
    assert cost(racing).high <= cost(even).high * (1 + 1e-12)


@given(workloads)
def test_keeping_baselines_never_costs_more(work: Workload) -> None:
    kept, anew = replace(work, keeps_baselines=True), replace(work, keeps_baselines=False)
    assert cost(kept).middle <= cost(anew).middle * (1 + 1e-12)


@given(workloads, st.floats(0.001, 1.5))
def test_advice_lowers_the_cost_step_by_step_and_says_whether_it_is_enough(
    work: Workload, share: float
) -> None:
    budget = cost(work).middle * share
    if not budget:
        return
    advice = advise(work, SPEED, budget_seconds=budget)
    if share >= 1:
        assert advice == []
        return
    before = cost(work).middle
    for one in advice:
        assert one.estimate.seconds.middle <= before * (1 + 1e-12)
        assert one.fits == (one.estimate.seconds.middle <= budget)
        before = one.estimate.seconds.middle
    assert not any(one.fits for one in advice[:-1])


# ---------------------------------------------------------------- spans


def test_speeds_come_from_timed_pieces_with_a_range() -> None:
    found = Span.of_rate([(100, 1.0), (100, 1.1), (100, 0.9), (0, 1.0)])
    assert found.middle == pytest.approx(100, rel=0.01)
    assert found.low < 95
    assert found.high > 105
    even = Span.of_rate([(50, 1.0)] * 4)
    assert even.high / even.low == pytest.approx(1.21)  # at least a tenth either way
    alone = Span.of_rate([(50, 1.0)])
    assert alone.high / alone.low == pytest.approx(4)


@pytest.mark.parametrize("pieces", [[], [(0, 1.0)], [(5, 0.0)]])
def test_no_speed_comes_from_nothing(pieces: list[tuple[float, float]]) -> None:
    with pytest.raises(ValueError, match="nothing was measured"):
        Span.of_rate(pieces)


@pytest.mark.parametrize("ends", [(2.0, 1.0, 3.0), (1.0, 3.0, 2.0), (-1.0, 0.0, 1.0)])
def test_a_span_is_in_order(ends: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError, match="not in order"):
        Span(*ends)


def test_a_speed_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="the speed train"):
        replace(SPEED, train=Span(0.0, 1.0, 1.0))


# ---------------------------------------------------------------- advice


def test_advice_begins_with_what_costs_least_quality() -> None:
    plain = replace(PLAN, racing=False, repeats=3)
    racing = replace(plain, racing=True)
    (one,) = advise(plain, SPEED, budget_seconds=cost(racing).middle)
    assert (one.setting, one.before, one.after) == ("restem.racing", False, True)
    assert one.fits
    assert not one.surely
    assert "racing.md" in one.why


def test_advice_goes_no_further_than_the_budget_asks_for() -> None:
    two_fewer = replace(PLAN, repeats=1, baseline_repeats=1, candidates=3)
    advice = advise(PLAN, SPEED, budget_seconds=cost(two_fewer).middle)
    assert [(one.setting, one.after) for one in advice] == [
        ("restem.repeats", 1),
        ("seal.restem_candidates_per_passage", 3),
    ]


def test_repeats_that_the_threshold_needs_are_left_alone() -> None:
    plan = replace(PLAN, repeats=3)
    advice = advise(plan, SPEED, budget_seconds=1.0, least_repeats=2)
    assert (advice[0].setting, advice[0].after) == ("restem.repeats", 2)
    assert advise(PLAN, SPEED, budget_seconds=1.0, least_repeats=2)[0].setting != "restem.repeats"


def test_advice_for_too_small_a_budget_lowers_everything_and_says_that_it_does_not_fit() -> None:
    advice = advise(replace(PLAN, passages=40, pool=60, racing=False), SPEED, budget_seconds=1.0)
    assert [one.setting.rpartition(".")[2] for one in advice] == [
        "racing",
        "repeats",
        "restem_candidates_per_passage",
        "trial_tokens",
        "held_out_fraction",
        "restem_iterations",
    ]
    assert not any(one.fits for one in advice)
    least = advice[-1].estimate.workload
    assert (least.candidates, least.rounds, least.repeats) == (LEAST_CANDIDATES, 1, 1)
    assert least.trial_tokens is not None
    assert least.trial_tokens >= 150 + 120  # passage and self-edit at least once


def test_a_budget_of_money_needs_a_price() -> None:
    price = Span.exactly(3600.0)  # a second costs 1
    advice = advise(PLAN, SPEED, budget_money=cost(PLAN).middle / 2, price_per_hour=price)
    assert advice[-1].fits
    with pytest.raises(ValueError, match="needs a price"):
        advise(PLAN, SPEED, budget_money=1.0)
    with pytest.raises(ValueError, match="no budget"):
        advise(PLAN, SPEED)


# ---------------------------------------------------------------- GPUs


def test_the_shape_of_a_known_model_gives_its_adapter() -> None:
    shape = ModelShape.of_config(134_515_008, SMALL)
    assert shape is not None
    assert shape.exact
    assert shape.adapter_parameters(32) == 9_768_960


def test_a_model_of_which_only_the_size_is_known_gets_the_usual_proportions() -> None:
    shape = ModelShape.of_size(7_000_000_000)
    assert not shape.exact
    assert 30 <= shape.layers <= 36
    assert 3800 <= shape.hidden <= 4600
    assert ModelShape.of_size(1).layers == 1


@pytest.mark.parametrize(
    "config",
    [
        {},
        {**SMALL, "hidden_size": "576"},
        {**SMALL, "vocab_size": -1},
        {**SMALL, "n_head": 1} | {"num_attention_heads": True},
    ],
)
def test_a_configuration_that_says_too_little_or_nonsense_gives_no_shape(
    config: dict[str, Any],
) -> None:
    found = ModelShape.of_config(1, config)
    assert found is None or found.attention == found.hidden  # the other spelling of heads


@pytest.mark.parametrize("name", GPUS)
def test_every_gpu_has_its_source_and_sensible_figures(name: str) -> None:
    gpu = GPUS[name]
    assert find_gpu(name.lower().replace("-", " ")) is gpu
    assert "20" in gpu.source
    shape = ModelShape.of_size(1_000_000_000)
    speed = throughput_on(gpu, shape, rank=32, sft_rank=64, width=20)
    assert speed.train.high / speed.train.low == pytest.approx(SHARE_OF_PEAK.high / 0.10)
    assert speed.train.high * 4e9 < gpu.peak_tflops * 1e12
    assert speed.score.middle > speed.train.middle > speed.fit.middle
    assert speed.write.high < speed.score.high


def test_an_unknown_gpu_is_refused_with_the_names_of_the_known() -> None:
    with pytest.raises(UsageError, match="X900") as caught:
        find_gpu("X900")
    assert "A100-80GB" in caught.value.remedy


def test_writing_is_bound_by_launches_for_a_small_model_and_by_memory_for_a_large_one() -> None:
    gpu = find_gpu("A100-80GB")
    small = ModelShape.of_config(134_515_008, SMALL)
    large = ModelShape.of_size(70_000_000_000)
    assert small is not None
    slow = throughput_on(gpu, small, rank=32, sft_rank=64, width=20).write
    assert slow.middle == pytest.approx(20 / (30 * 0.0003))
    weights = 2 * (large.parameters + large.adapter_parameters(64))
    found = throughput_on(gpu, large, rank=32, sft_rank=64, width=20).write
    assert found.middle == pytest.approx(20 / (weights / (0.4 * 2039e9)))


def test_memory_follows_the_bank_and_keeps_fewer_trainings_where_there_is_less() -> None:
    from aios.backends.trials import bank_memory
    from aios.core import gpu_costs

    assert bank_memory._GROUPS["cuda"] == gpu_costs.GPU_TRAININGS
    assert bank_memory._PASS_TOKENS["cuda"] == gpu_costs.GPU_PASS_TOKENS
    assert (bank_memory._CPU_GROUPS, bank_memory._CPU_PASS_TOKENS) == (
        CPU_TRAININGS,
        gpu_costs.CPU_PASS_TOKENS,
    )
    assert bank_memory._SHARE == gpu_costs.MEMORY_SHARE
    shape = ModelShape.of_config(134_515_008, SMALL)
    assert shape is not None
    free = trial_memory(shape, rank=32, number_bytes=2, on_gpu=False)
    assert free.trainings == CPU_TRAININGS
    assert free.training_bytes == 12 * 9_768_960
    assert free.fits is None
    tight = trial_memory(shape, rank=32, number_bytes=2, on_gpu=False, available_bytes=2 * 10**9)
    assert 1 <= tight.trainings < CPU_TRAININGS
    assert tight.fits
    none = trial_memory(shape, rank=32, number_bytes=2, on_gpu=False, available_bytes=10**8)
    assert (none.trainings, none.fits) == (1, False)
    large = ModelShape.of_size(7 * 10**9)
    shorter = trial_memory(large, rank=32, number_bytes=2, on_gpu=True, available_bytes=80 * 10**9)
    assert shorter.fits
    assert shorter.pass_tokens < gpu_costs.GPU_PASS_TOKENS


# ---------------------------------------------------------------- beside actual


def test_the_estimate_stands_beside_what_the_rounds_took() -> None:
    found = estimate(PLAN, SPEED)
    took = {stage: found.stages[stage].seconds.middle / 2 for stage in ("propose", "try", "fit")}
    held_out = found.stages["held-out"].seconds.high * 2 / 3
    rounds = [
        RoundReport(0, seconds={"held-out": held_out}),
        *(
            RoundReport(
                n,
                trials=80,
                tokens=7000,
                sft={"tokens": 4000.0},
                seconds={**took, "held-out": held_out},
            )
            for n in (1, 2)
        ),
    ]
    rows = {row.name: row for row in compare_with_actual(found, rounds)}
    assert rows["propose"].within
    assert rows["try"].within
    assert not rows["held-out"].within  # twice the upper end
    assert rows["trials"].actual == 160
    assert rows["trials"].estimated == Span.exactly(20 * 7 + 15 * 2)  # held-out ones left out
    assert (rows["written"].estimated.middle, rows["written"].actual) == (20 * 5 * 120, 14_000)
    assert rows["fitted"].actual == 8000
    assert rows["fitted"].within
    assert rows["all"].actual == pytest.approx(2 * sum(took.values()) + 3 * held_out)
    assert "expert" not in rows


def test_a_run_that_ended_early_is_compared_with_as_many_rounds() -> None:
    found = estimate(PLAN, SPEED)
    early = compare_with_actual(found, [RoundReport(0), RoundReport(1)])
    rows = {row.name: row for row in early}
    once = estimate(replace(PLAN, rounds=1), SPEED)
    assert rows["propose"].estimated == once.stages["propose"].seconds
    assert rows["all"].estimated == once.seconds
