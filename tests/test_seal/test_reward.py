"""Rewards: better than the base model by more than noise, better than a number, or how much."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aios.backends.scripted import Faults, Memory, ScriptedModel
from aios.core.data.probes import Probe, make_probes
from aios.core.errors import BackendError, DataError, NonFiniteError, UsageError
from aios.core.evaluation.metrics import AnswerResult, summarize
from aios.core.protocols import LanguageModel
from aios.core.seal.held_out_answers import HeldOutAnswers, TimeLimit
from aios.core.seal.reliability import NoiseEstimate
from aios.core.seal.reward import (
    AccuracyReward,
    PerplexityReward,
    RewardFunction,
    Threshold,
    ValidationLossReward,
    reward_of_outcome,
)
from aios.core.trials import Answered, Reward, TrialOutcome
from aios.core.types import (
    Failure,
    GenerationRequest,
    Passage,
    Question,
    SamplingParams,
    Score,
    ScoreRequest,
)

QUESTIONS = (
    Question("What guards Otrar?", ("the old citadel",)),
    Question("Which river is near?", ("Syr Darya",)),
    Question("When was it sacked?", ("1219",)),
    Question("Who sacked it?", ("Genghis Khan",)),
    Question("What did it trade?", ("silk",)),
)
PASSAGE = Passage.make("Otrar was a town.", title="Otrar", questions=QUESTIONS)
PROBES = make_probes({PASSAGE.id: QUESTIONS})
TOKENS = (3, 2, 1, 2, 1)
FACTS = [f"Question: {q.question}\nAnswer: {q.answers[0]}" for q in QUESTIONS]


class CountingModel(ScriptedModel):
    """A scripted model that remembers the batches that it scored."""

    def __init__(self, *args: object, **kw: object) -> None:
        super().__init__(*args, **kw)  # type: ignore[arg-type]
        self.batches: list[int] = []

    def score(self, requests: Sequence[ScoreRequest]) -> list[Score]:
        self.batches.append(len(requests))
        return super().score(requests)


def scored(*logprobs: float, probes: Sequence[Probe] = PROBES) -> list[Answered]:
    """Answers with given log-probabilities of the whole reference answers."""
    rows = zip(probes, logprobs, TOKENS, strict=False)
    return [Answered(p.id, Score(x, n, False)) for p, x, n in rows]


def wrote(*texts: str | None, probes: Sequence[Probe] = PROBES) -> list[Answered]:
    rows = zip(probes, texts, TOKENS, strict=False)
    return [Answered(p.id, Score(-float(n), n, False), t) for p, t, n in rows]


RIGHT = tuple(q.answers[0] for q in QUESTIONS)
BEFORE = scored(-9, -8, -4, -6, -3)
BETTER = scored(-6, -6, -3, -4, -2)


def expert(times: int = 3, digest: str = "adapter", **kw: object) -> CountingModel:
    memory = Memory(dict.fromkeys(FACTS, times))
    return CountingModel(memory=memory, adapter_digest=digest, **kw)


def test_a_loss_is_weighted_by_tokens_as_reports_do_it() -> None:
    reward = ValidationLossReward().of(PROBES, BEFORE, BETTER, None)
    results = [
        AnswerResult.judge(p.id, p.passage_id, Question(p.question, p.answers), a.score, "")
        for p, a in zip(PROBES, BETTER, strict=True)
    ]
    assert reward.after == pytest.approx(summarize(results).loss)
    assert reward.after == pytest.approx(21 / 9)
    assert reward.before == pytest.approx(30 / 9)
    assert reward.improvement == pytest.approx(1.0)
    assert (reward.n, reward.grader, reward.kind) == (5, "logprob", "loss")


@pytest.mark.parametrize(
    ("reward", "threshold", "value"),
    [
        (ValidationLossReward(), 21 / 9 + 0.01, 1),
        (ValidationLossReward(), 21 / 9, 0),  # less than the threshold, not equal to it
        (PerplexityReward(), math.exp(21 / 9) + 0.01, 1),
        (PerplexityReward(), math.exp(21 / 9) - 0.01, 0),
        (ValidationLossReward(), 3, 1),
    ],
)
def test_a_number_is_a_bound_on_the_quantity_itself(
    reward: RewardFunction, threshold: float, value: float
) -> None:
    got = reward.of(PROBES, None, BETTER, threshold)
    assert float(got) == got.value == value
    assert got.threshold == threshold
    assert got.rule == "number"
    assert got.before is got.improvement is None
    assert reward.of(PROBES, BEFORE, BETTER, threshold).improvement is not None


@pytest.mark.parametrize(("threshold", "value"), [(0.4, 1), (0.41, 0), (0.0, 1), (1.0, 0)])
def test_an_accuracy_reaches_a_number_where_it_equals_it(threshold: float, value: float) -> None:
    answers = wrote(RIGHT[0], RIGHT[1], "no", "no", "")
    reward = AccuracyReward().of(PROBES, None, answers, threshold)
    assert reward.after == pytest.approx(0.4)
    assert reward.value == value


@pytest.mark.parametrize(
    ("reward", "before", "after", "improvement"),
    [
        (ValidationLossReward(), BEFORE, BETTER, 9 / 9),
        (ValidationLossReward(), BETTER, BEFORE, -9 / 9),
        (PerplexityReward(), BEFORE, BETTER, math.exp(30 / 9) - math.exp(21 / 9)),
        (AccuracyReward(), wrote("", "", "", "", ""), wrote(*RIGHT), 1.0),
        (AccuracyReward("contains"), wrote(*RIGHT), wrote("", *RIGHT[1:]), -0.2),
        (AccuracyReward("f1"), wrote(*RIGHT), wrote("old", *RIGHT[1:]), (2 / 3 - 1) / 5),
    ],
)
def test_without_a_threshold_the_value_is_the_improvement_and_more_is_better(
    reward: RewardFunction, before: list[Answered], after: list[Answered], improvement: float
) -> None:
    got = reward.of(PROBES, before, after, None)
    assert got.value == got.improvement == pytest.approx(improvement)
    assert got.threshold is None
    assert got.rule == "improvement"


def test_the_standard_error_is_that_of_paired_differences() -> None:
    before, after = [1.0, 0, 0, 0, 0], [1.0, 1, 0, 1, 0]
    texts = [[RIGHT[i] if x else "?" for i, x in enumerate(row)] for row in (before, after)]
    got = AccuracyReward().of(PROBES, wrote(*texts[0]), wrote(*texts[1]), None)
    differences = np.subtract(after, before)
    assert got.standard_error == pytest.approx(differences.std(ddof=1) / math.sqrt(5))


@pytest.mark.parametrize("kind", [ValidationLossReward, PerplexityReward])
def test_the_standard_error_of_a_ratio_is_what_resampling_says(
    kind: type[ValidationLossReward],
) -> None:
    rng = np.random.default_rng(0)
    n = 300
    probes = make_probes({"p": [Question(f"q {i}?", ("a",)) for i in range(n)]})
    tokens = rng.integers(1, 6, n)
    before = -tokens * rng.uniform(1, 3, n)
    after = before + tokens * rng.normal(0.2, 0.4, n)

    def answered(logprobs: np.ndarray) -> list[Answered]:
        rows = zip(probes, logprobs, tokens, strict=True)
        return [Answered(p.id, Score(float(x), int(t), False)) for p, x, t in rows]

    got = kind().of(probes, answered(before), answered(after), None)
    drawn = rng.multinomial(n, np.full(n, 1 / n), size=4000)
    losses = [(drawn @ -x) / (drawn @ tokens) for x in (before, after)]
    if kind is PerplexityReward:
        losses = [np.exp(x) for x in losses]
    assert got.standard_error == pytest.approx((losses[0] - losses[1]).std(), rel=0.1)


def test_auto_asks_for_more_than_the_noise_of_repeats() -> None:
    for sd, value in ((0.5, 1.0), (0.7, 0.0)):  # the improvement is 1.0
        got = ValidationLossReward(noise=NoiseEstimate(sd, 10, 3)).of(PROBES, BEFORE, BETTER)
        assert got.value == value
        assert got.threshold == pytest.approx(1.645 * sd)
        assert got.rule == "auto"
    strict = ValidationLossReward(noise=NoiseEstimate(0.5, 10, 3), z=3)
    assert strict.of(PROBES, BEFORE, BETTER).value == 0


def test_auto_without_repeats_uses_the_spread_over_questions() -> None:
    reward = ValidationLossReward()
    even = reward.of(PROBES, BEFORE, BETTER)
    assert even.value == 1
    assert even.standard_error is not None
    assert even.threshold == pytest.approx(1.645 * even.standard_error)
    uneven = reward.of(PROBES, BEFORE, scored(-9, -8, -4, -6, -0.1))
    assert uneven.improvement is not None
    assert uneven.improvement > 0
    assert uneven.value == 0  # one question out of five


def test_no_change_is_no_improvement_even_without_noise() -> None:
    for reward in (ValidationLossReward(), ValidationLossReward(noise=NoiseEstimate(0, 5, 2))):
        got = reward.of(PROBES, BEFORE, BEFORE)
        assert (got.value, got.improvement) == (0, 0)


def test_auto_lets_few_candidates_without_effect_pass() -> None:
    rng = np.random.default_rng(1)
    probes = make_probes({"p": [Question(f"q {i}?", ("a",)) for i in range(30)]})
    reward = ValidationLossReward()
    passed = 0.0
    for _ in range(400):
        rows = [
            [Answered(p.id, Score(float(x), 1, False)) for p, x in zip(probes, xs, strict=True)]
            for xs in -rng.uniform(0, 4, (2, 30))
        ]
        passed += float(reward.of(probes, rows[0], rows[1]))
    assert 0.02 < passed / 400 < 0.09


@given(
    st.lists(st.tuples(st.floats(-50, 0), st.floats(-50, 0)), min_size=2, max_size=5),
    st.floats(0, 3),
)
def test_exchanging_before_and_after_turns_the_sign(
    pairs: list[tuple[float, float]], z: float
) -> None:
    before, after = (scored(*column) for column in zip(*pairs, strict=True))
    probes = PROBES[: len(pairs)]
    reward = ValidationLossReward(z=z)
    there, back = (
        reward.of(probes, before, after, None),
        reward.of(probes, after, before, None),
    )
    assert there.value == pytest.approx(-back.value)
    assert there.standard_error == pytest.approx(back.standard_error)
    decided = [reward.of(probes, *sides) for sides in ((before, after), (after, before))]
    assert sum(float(one) for one in decided) <= 1


def test_one_question_gives_no_measure_of_noise() -> None:
    one, before, after = PROBES[:1], BEFORE[:1], BETTER[:1]
    with pytest.raises(DataError, match="single question"):
        ValidationLossReward().of(one, before, after)
    assert ValidationLossReward().of(one, before, after, None).standard_error is None
    noise = NoiseEstimate(0.1, 10, 3)
    assert ValidationLossReward(noise=noise).of(one, before, after).value == 1


def test_what_cannot_be_rewarded_is_refused() -> None:
    reward = ValidationLossReward()
    with pytest.raises(DataError, match="no questions"):
        reward.of((), [], [])
    with pytest.raises(UsageError, match="base model's answers"):
        reward.of(PROBES, None, BETTER)
    for wrong in (math.nan, math.inf, "often"):
        with pytest.raises(UsageError, match="no threshold"):
            reward.of(PROBES, BEFORE, BETTER, wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="not those"):
        reward.of(PROBES, BEFORE[::-1], BETTER)
    with pytest.raises(NonFiniteError, match=PROBES[2].id):
        reward.of(PROBES, BEFORE, scored(-1, -1, math.nan, -1, -1))
    with pytest.raises(NonFiniteError, match="perplexity"):
        PerplexityReward().of(PROBES, None, scored(-9e4, -1, -1, -1, -1), 10.0)


def test_a_grader_must_suit_the_quantity() -> None:
    assert AccuracyReward("judge", judge=ScriptedModel()).needs_text
    assert not ValidationLossReward().needs_text
    with pytest.raises(UsageError, match="no accuracy"):
        AccuracyReward("logprob")
    with pytest.raises(UsageError, match="no loss"):
        ValidationLossReward("exact")
    with pytest.raises(UsageError, match="unknown grader"):
        AccuracyReward("bleu")


def test_an_accuracy_may_be_a_judge_s() -> None:
    judge = ScriptedModel({"answer: a fort": ["yes"], "": ["no"]})
    reward = AccuracyReward("judge", judge=judge)
    before, after = wrote("x", "y", "z", "u", "v"), wrote("a fort", "y", "z", "u", "v")
    assert reward.of(PROBES, before, after, None).value == pytest.approx(0.2)
    assert len(judge.requests) == 6  # four answers are the same before and after


# ------------------------------------------------------------------ repeats


def repeats_of(reward: RewardFunction, *afters: Sequence[Answered]) -> list[Reward]:
    return [reward.of(PROBES, BEFORE, after, None) for after in afters]


def test_repeats_are_averaged_and_their_noise_shrinks() -> None:
    reward = ValidationLossReward(noise=NoiseEstimate(0.5, 10, 3))
    trials = repeats_of(reward, BETTER, BEFORE, BETTER, BEFORE)
    assert trials[1].value == 0
    got = reward.combine(trials)
    assert got.improvement == pytest.approx(0.5)
    assert got.threshold == pytest.approx(1.645 * 0.5 / 2)
    assert (got.value, got.repeats, got.n) == (1, 4, 5)
    assert reward.combine(trials, None).value == pytest.approx(0.5)
    assert reward.combine(trials, 2.9).value == 1
    nested = reward.combine([reward.combine(trials[:3]), trials[3]])
    assert nested.improvement == pytest.approx(0.5)
    assert nested.repeats == 4


def test_the_spread_over_questions_does_not_shrink_with_repeats() -> None:
    reward = ValidationLossReward()
    trials = repeats_of(reward, BETTER, BETTER, BETTER)
    assert reward.combine(trials).threshold == pytest.approx(reward.combine(trials[:1]).threshold)


def test_equal_accuracies_tie_whatever_the_rounding() -> None:
    accuracy = AccuracyReward(noise=NoiseEstimate(0.0, 5, 2))
    answers = [wrote(*RIGHT[:k], *["?"] * (5 - k)) for k in (1, 2, 3)]
    trials = [accuracy.of(PROBES, answers[1], after, None) for after in answers]
    assert accuracy.combine(trials).value == 0
    assert accuracy.combine(trials, 0.4).value == 1


def test_rewards_of_different_kinds_are_not_combined() -> None:
    with pytest.raises(UsageError, match="no rewards"):
        ValidationLossReward().combine([])
    mixed = repeats_of(ValidationLossReward(), BETTER) + repeats_of(PerplexityReward(), BETTER)
    with pytest.raises(ValueError, match="different kinds"):
        ValidationLossReward().combine(mixed)


# ------------------------------------------------------------------ outcomes of trials


def test_a_failed_trial_has_no_reward() -> None:
    failure = Failure("train", "c/repeat-0", "out of memory", True)
    outcome = TrialOutcome("c/repeat-0", failure=failure)
    assert reward_of_outcome(ValidationLossReward(), outcome, PROBES, BEFORE) is failure


def test_an_outcome_is_rewarded_by_its_answers() -> None:
    outcome = TrialOutcome("c/repeat-0", answers=tuple(BETTER))
    reward = ValidationLossReward()
    assert reward_of_outcome(reward, outcome, PROBES, BEFORE) == reward.of(PROBES, BEFORE, BETTER)


def test_what_cannot_be_judged_is_a_failure_and_not_a_reward_of_0() -> None:
    nan = TrialOutcome("c/repeat-1", answers=tuple(scored(-1, -1, math.nan, -1, -1)))
    failure = reward_of_outcome(ValidationLossReward(), nan, PROBES, BEFORE)
    assert isinstance(failure, Failure)
    assert (failure.boundary, failure.subject, failure.retryable) == ("score", "c/repeat-1", False)
    assert PROBES[2].id in failure.error
    judged = AccuracyReward("judge", judge=ScriptedModel({"": ["perhaps"]}))
    written = TrialOutcome("c/repeat-2", answers=tuple(wrote(*RIGHT)))
    failure = reward_of_outcome(judged, written, PROBES, wrote(*RIGHT))
    assert isinstance(failure, Failure)
    assert "perhaps" in failure.error
    single = TrialOutcome("c/repeat-3", answers=tuple(BETTER[:1]))
    failure = reward_of_outcome(ValidationLossReward(), single, PROBES[:1], BEFORE[:1])
    assert isinstance(failure, Failure)
    assert failure.boundary == "score"
    assert "single question" in failure.error


def test_a_mistake_of_the_caller_is_no_failure_of_the_trial() -> None:
    outcome = TrialOutcome("c/repeat-0", answers=tuple(BETTER))
    with pytest.raises(UsageError, match="written answer"):
        reward_of_outcome(AccuracyReward(), outcome, PROBES, BEFORE)
    with pytest.raises(ValueError, match="not those"):
        reward_of_outcome(ValidationLossReward(), outcome, PROBES[1:], BEFORE[1:])


# ------------------------------------------------------------------ asking models


def test_an_expert_that_has_learnt_the_answers_is_rewarded() -> None:
    for kind in (ValidationLossReward, PerplexityReward, AccuracyReward):
        reward = kind(baseline=ScriptedModel())
        got = reward.compute_reward(expert(), [PASSAGE])
        assert got.value == 1
        assert got.improvement is not None
        assert got.improvement > 0
        assert reward.compute_reward(ScriptedModel(), PROBES).value == 0


def test_passages_and_their_questions_give_the_same_reward() -> None:
    reward = ValidationLossReward(baseline=ScriptedModel())
    assert reward.compute_reward(expert(), [PASSAGE]) == reward.compute_reward(expert(), PROBES)


def test_the_batched_path_gives_what_asking_gives() -> None:
    base, trained = ScriptedModel(), expert()
    before, after = (
        [Answered(p.id, m.score([p.request])[0]) for p in PROBES] for m in (base, trained)
    )
    reward = ValidationLossReward(baseline=base)
    assert reward.compute_reward(trained, PROBES) == reward.of(PROBES, before, after)


def test_validation_is_one_batch_and_the_baseline_is_asked_once() -> None:
    base = CountingModel()
    reward = AccuracyReward(baseline=base)
    experts = [expert(digest=f"adapter-{i}") for i in range(3)]
    for one in experts:
        reward.compute_reward(one, PROBES)
        reward.compute_reward(one, PROBES)
    assert base.batches == [5]
    assert len(base.requests) == 5
    assert [one.batches for one in experts] == [[5]] * 3
    reward.compute_reward(base, PROBES[:2])
    assert base.batches == [5]


def test_only_new_questions_are_asked() -> None:
    base, one = CountingModel(), expert()
    reward = ValidationLossReward(baseline=base)
    reward.compute_reward(one, PROBES[:3])
    reward.compute_reward(one, PROBES)
    assert base.batches == one.batches == [3, 2]


def test_the_same_question_in_another_wording_is_another_question() -> None:
    base = CountingModel()
    reward = ValidationLossReward(baseline=base)
    reward.compute_reward(expert(), PROBES)
    other = make_probes({PASSAGE.id: QUESTIONS}, "Q: {question}\nA:")
    assert [p.id for p in other] == [p.id for p in PROBES]
    reward.compute_reward(expert(), other)
    assert base.batches == [5, 5]


def test_an_expert_in_memory_without_a_digest_is_asked_every_time() -> None:
    reward = ValidationLossReward(baseline=ScriptedModel())
    strong, weak = expert(5, digest=""), expert(1, digest="")
    first = reward.compute_reward(strong, PROBES, None)
    second = reward.compute_reward(weak, PROBES, None)
    assert first.value > second.value
    assert reward.compute_reward(strong, PROBES, None) == first
    assert strong.batches == [5, 5]


def test_kept_answers_are_bounded_and_those_used_last_stay() -> None:
    answers, model = HeldOutAnswers(kept=3), CountingModel()

    def ask(probes: Sequence[Probe]) -> list[Answered]:
        return answers.ask(model, probes, written=False, keep=True, limit=TimeLimit(None))

    everything = ask(PROBES)
    assert [one.probe_id for one in everything] == [p.id for p in PROBES]
    ask(PROBES[2:])
    assert model.batches == [5]
    ask(PROBES[2:3])
    ask(PROBES[:2])
    assert model.batches == [5, 2]
    assert ask([PROBES[2], PROBES[0], PROBES[2]]) == [everything[i] for i in (2, 0, 2)]
    assert model.batches == [5, 2]


def test_a_comparison_needs_a_baseline_and_a_number_does_not() -> None:
    one = expert()
    thresholds: tuple[Threshold, ...] = ("auto", None)
    for threshold in thresholds:
        with pytest.raises(UsageError, match="needs a base model") as caught:
            ValidationLossReward().compute_reward(one, PROBES, threshold)
        assert "baseline" in caught.value.remedy
    assert one.batches == []
    assert ValidationLossReward().compute_reward(one, PROBES, 100.0).value == 1


def test_passages_without_questions_cannot_reward() -> None:
    with pytest.raises(DataError, match="no questions"):
        ValidationLossReward(baseline=ScriptedModel()).compute_reward(
            expert(), [Passage.make("Otrar was a town.")]
        )


def test_a_model_that_fails_gives_an_error_and_no_reward() -> None:
    nan = expert(faults=Faults(nan_scores=True))
    with pytest.raises(NonFiniteError):
        ValidationLossReward(baseline=ScriptedModel()).compute_reward(nan, PROBES)


class SlowModel(CountingModel):
    """A scripted model that is asked for its answers' deadline, and whose time is not real."""

    def deadlines(self) -> set[float | None]:
        return {request.deadline_seconds for request in self.requests}


def test_an_answer_cut_off_by_the_time_limit_is_an_error_and_not_a_wrong_answer() -> None:
    slow: LanguageModel = SlowModel(faults=Faults(hang_seconds=60.0), sleep=lambda seconds: None)
    reward = AccuracyReward(timeout_seconds=10.0)
    with pytest.raises(BackendError, match=PROBES[0].id) as caught:
        reward.compute_reward(slow, PROBES, 0.5)
    assert caught.value.retryable
    assert "10.0 s" in caught.value.message


def test_the_time_limit_is_shared_by_the_answers() -> None:
    one = SlowModel()
    AccuracyReward(timeout_seconds=10.0).compute_reward(one, PROBES, 0.5)
    (deadline,) = one.deadlines()
    assert deadline == pytest.approx(2.0, abs=0.1)
    free = SlowModel()
    AccuracyReward().compute_reward(free, PROBES, 0.5)
    assert free.deadlines() == {None}


def test_a_time_limit_runs_out() -> None:
    now = iter([100.0, 103.0, 120.0])
    limit = TimeLimit(10.0, clock=lambda: next(now))
    assert limit.share(7) == pytest.approx(1.0)
    assert limit.share(7) == 0


def test_answers_that_were_finished_in_time_are_not_asked_for_again() -> None:
    class HalfSlow(CountingModel):
        def _wait(self, deadline: float | None, words: int) -> tuple[int, bool]:
            late = deadline is not None and len(self.requests) in (2, 4)
            return (0, True) if late else (words, False)

    model = HalfSlow({"": ["yes"]}, adapter_digest="adapter")
    reward = AccuracyReward(timeout_seconds=10.0)
    with pytest.raises(BackendError, match="2 of 5"):
        reward.compute_reward(model, PROBES, 0.5)
    assert reward.compute_reward(model, PROBES, 0.5).n == 5
    assert model.batches == [5, 2]


def test_repeats_have_a_before_where_each_of_them_has_one() -> None:
    reward = ValidationLossReward()
    one, other = repeats_of(reward, BETTER, BETTER)
    assert reward.combine([one, other]).before == one.before
    alone = reward.of(PROBES, None, BETTER, 2.9)
    assert alone.before is None
    assert reward.combine([alone, other], 2.9).before is None


def test_answers_are_written_greedily_to_the_end_of_the_line() -> None:
    asked: list[SamplingParams] = []

    class Noting(ScriptedModel):
        def generate(self, requests: Sequence[GenerationRequest]) -> Any:
            asked.extend(request.sampling for request in requests)
            return super().generate(requests)

    HeldOutAnswers(5).ask(Noting(), PROBES, written=True, keep=False, limit=TimeLimit(None))
    assert set(asked) == {SamplingParams(0.0, 1.0, 5, ("\n",))}
