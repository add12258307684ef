"""The bench beyond its contract: memory, mixed shapes, numbers that are none, trunk, answers."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from aios.app.models import load_model
from aios.backends.adapter_training import TorchAdapterTrainer
from aios.backends.encoding import Encoded
from aios.backends.torch_lm import TorchLM
from aios.backends.trials import bank_memory
from aios.backends.trials.bank_memory import activation_bytes, plan_memory
from aios.backends.trials.bank_training import BankTrainer, Training, choose_pass
from aios.backends.trials.bench import TorchTrialBench
from aios.backends.trials.examination import Examiner
from aios.backends.trials.lora_bank import LoraBank
from aios.core.config.schemas import Config
from aios.core.errors import UsageError
from aios.core.events import Event, Notice
from aios.core.trials import TrialJob, TrialOutcome
from aios.core.types import GenerationRequest, LoraRecipe, SamplingParams
from tests.tiny_model import build_llama
from tests.trial_jobs import RECIPE, questions, tiny_lm, trial


@pytest.fixture(scope="module")
def exact() -> TorchLM:
    return tiny_lm(torch.float64)


def outcomes(bench: TorchTrialBench, jobs: Sequence[TrialJob]) -> dict[str, TrialOutcome]:
    return {outcome.job_id: outcome for outcome in bench.run(jobs)}


def losses(outcome: TrialOutcome) -> tuple[float, ...]:
    assert outcome.metrics is not None
    return outcome.metrics.losses


def test_jobs_wait_for_room_and_all_are_done(exact: TorchLM) -> None:
    jobs = [trial(i, max_steps=1 + i % 3) for i in range(7)]
    found = outcomes(TorchTrialBench(exact, groups=2), jobs)
    assert [len(losses(found[job.id])) for job in jobs] == [1 + i % 3 for i in range(7)]
    everything = outcomes(TorchTrialBench(exact, groups=7), jobs)
    for job in jobs:
        assert losses(found[job.id]) == pytest.approx(losses(everything[job.id]), abs=1e-10)


def test_jobs_of_other_shapes_are_trained_too(exact: TorchLM) -> None:
    wide = replace(RECIPE, rank=8)
    jobs = [trial(0), trial(1, recipe=wide), trial(2), trial(3, trunk_layers=1)]
    found = outcomes(TorchTrialBench(exact), jobs)
    for job in jobs:
        (alone,) = TorchTrialBench(exact).run([job])
        assert losses(found[job.id]) == pytest.approx(losses(alone), abs=1e-10)


def test_out_of_memory_halves_the_groups_and_changes_no_number(
    exact: TorchLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [trial(i) for i in range(6)]
    expected = outcomes(TorchTrialBench(exact), jobs)
    take = BankTrainer.take
    calls = []

    def starved(self: BankTrainer, members: Sequence[Training]) -> None:
        calls.append(len(members))
        if len(members) > 2:
            self.bank.collect(len(members))
            raise torch.OutOfMemoryError("no memory left")
        take(self, members)

    monkeypatch.setattr(BankTrainer, "take", starved)
    events: list[Event] = []
    bench = TorchTrialBench(exact, groups=6)
    found = {o.job_id: o for o in bench.run(jobs, emit=events.append)}
    assert calls[0] > 2
    assert max(calls[3:]) <= 2
    warnings = [e.message for e in events if isinstance(e, Notice)]
    assert "going on with 3 trainings" in warnings[0]
    for job in jobs:
        assert losses(found[job.id]) == pytest.approx(losses(expected[job.id]), abs=1e-10)


def test_out_of_memory_with_one_training_is_its_failure(
    exact: TorchLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    def starved(self: BankTrainer, members: Sequence[Training]) -> None:
        raise torch.OutOfMemoryError("no memory left")

    monkeypatch.setattr(BankTrainer, "take", starved)
    found = outcomes(TorchTrialBench(exact), [trial(0), trial(1)])
    assert len(found) == 2
    for outcome in found.values():
        assert outcome.failure is not None
        assert outcome.failure.boundary == "train"
        assert outcome.failure.retryable
        assert "out of memory" in outcome.failure.error


def test_out_of_memory_while_asking_makes_passes_smaller(
    exact: TorchLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [trial(i, max_steps=1, write_answers=True) for i in range(3)]
    expected = outcomes(TorchTrialBench(exact), jobs)
    ask, limits = Examiner.ask, []

    def starved(self: Examiner, bank: LoraBank, *given: Any) -> Any:
        limits.append(given[-1])
        if given[-1] > 256:
            raise torch.OutOfMemoryError("no memory left")
        return ask(self, bank, *given)

    monkeypatch.setattr(Examiner, "ask", starved)
    found = outcomes(TorchTrialBench(exact, pass_tokens=1024), jobs)
    assert limits[:3] == [1024, 512, 256]
    for job in jobs:
        pairs = zip(found[job.id].answers, expected[job.id].answers, strict=True)
        for one, other in pairs:
            assert one.text == other.text
            assert one.score.logprob == pytest.approx(other.score.logprob, abs=1e-4)


def test_a_loss_that_is_not_finite_fails_its_trial_alone(exact: TorchLM) -> None:
    wild = replace(RECIPE, learning_rate=1e200, grad_clip=0.0, epochs=6)
    jobs = [trial(0), trial(1, recipe=wild), trial(2)]
    found = outcomes(TorchTrialBench(exact), jobs)
    failure = found["trial-1"].failure
    assert failure is not None
    assert "infinite or NaN" in failure.error
    assert found["trial-1"].answers == ()
    (alone,) = TorchTrialBench(exact).run([jobs[0]])
    assert losses(found["trial-0"]) == pytest.approx(losses(alone), abs=1e-10)


def test_a_text_too_long_fails_its_trial_alone(exact: TorchLM) -> None:
    short = replace(RECIPE, max_seq_len=16)
    found = outcomes(TorchTrialBench(exact), [trial(0, recipe=short), trial(1)])
    failure = found["trial-0"].failure
    assert failure is not None
    assert "the limit is 16" in failure.error
    assert found["trial-1"].failure is None


def test_answers_and_scores_are_those_of_the_expert(exact: TorchLM) -> None:
    job = trial(3, write_answers=True)
    other = trial(4, write_answers=True, max_answer_tokens=3)
    found = outcomes(TorchTrialBench(exact), [job, other])
    ((_, expert, metrics),) = TorchTrialBench(exact).train([job])  # type: ignore[misc]
    assert metrics.losses == pytest.approx(losses(found[job.id]), abs=1e-10)
    scores = expert.score([p.request for p in job.questions])
    greedy = SamplingParams(0.0, 1.0, 16, ("\n",))
    written = expert.generate([GenerationRequest(p.prompt, (0,), greedy) for p in job.questions])
    for answered, score, (completion,) in zip(found[job.id].answers, scores, written, strict=True):
        assert answered.score.logprob == pytest.approx(score.logprob, abs=1e-4)
        assert answered.score.tokens == score.tokens
        assert answered.text == completion.text.strip()
    assert all(answered.text is not None for answered in found[other.id].answers)


def test_exported_adapter_gives_the_same_output_when_peft_loads_it(
    exact: TorchLM, tmp_path: Path
) -> None:
    lm = tiny_lm(torch.float32)
    for trunk_layers in (0, 1):
        job = trial(1, trunk_layers=trunk_layers)
        ((_, expert, _),) = TorchTrialBench(lm).train([job])  # type: ignore[misc]
        reference = expert.export(tmp_path / str(trunk_layers))
        trainer = TorchAdapterTrainer(lm)
        loaded = trainer.attach(reference)
        requests = [p.request for p in questions()]
        for one, other in zip(expert.score(requests), loaded.score(requests), strict=True):
            assert one.logprob == pytest.approx(other.logprob, abs=1e-4)
        assert expert.score(requests) != lm.score(requests)
        trainer.detach(loaded)


def test_trains_over_an_expert_and_leaves_it_as_it_was(tmp_path: Path) -> None:
    lm = tiny_lm(torch.float32)
    ((_, first, _),) = TorchTrialBench(lm).train([trial(1)])  # type: ignore[misc]
    trainer = TorchAdapterTrainer(lm)
    parent = trainer.attach(first.export(tmp_path / "parent"))
    assert isinstance(parent, TorchLM)
    requests = [p.request for p in questions()]
    before = parent.score(requests)
    job = trial(2)
    ((_, child, metrics),) = TorchTrialBench(parent).train([job])  # type: ignore[misc]
    (over_base,) = TorchTrialBench(lm).run([job])
    assert metrics.losses[0] != pytest.approx(losses(over_base)[0], abs=1e-3)
    assert child.score(requests) != before
    assert parent.score(requests) == before
    with pytest.raises(UsageError, match="needs that expert"):
        child.export(tmp_path / "child")


def test_a_trunk_leaves_its_layers_alone_and_is_computed_once(
    exact: TorchLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = []
    layer = exact.model.model.layers[0]
    hook = layer.register_forward_pre_hook(lambda *_: passes.append(1))
    job = trial(2, trunk_layers=1, recipe=replace(RECIPE, epochs=4), questions=())
    try:
        (outcome,) = TorchTrialBench(exact).run([job])
    finally:
        hook.remove()
    assert len(losses(outcome)) == 8
    assert len(passes) <= 4  # two batches of the first epoch, and the check
    (whole,) = TorchTrialBench(exact).run([replace(job, trunk_layers=0)])
    assert losses(outcome)[0] == pytest.approx(losses(whole)[0], abs=1e-10)
    assert losses(outcome)[-1] != pytest.approx(losses(whole)[-1], abs=1e-6)


@pytest.mark.parametrize("layers", [2, 5])
def test_a_trunk_of_the_whole_model_is_refused(exact: TorchLM, layers: int) -> None:
    with pytest.raises(UsageError, match="trunk_layers"):
        list(TorchTrialBench(exact).run([trial(0, trunk_layers=layers)]))


def test_patience_ends_a_training_whose_loss_does_not_fall(exact: TorchLM) -> None:
    still = replace(RECIPE, learning_rate=1e-300, epochs=9)
    (outcome,) = TorchTrialBench(exact).run([trial(0, recipe=still, patience=2)])
    assert outcome.metrics is not None
    assert outcome.metrics.stopped_early
    assert outcome.metrics.steps == 6  # an epoch, and two that were no better


def test_plan_fits_the_memory_and_has_one_group_at_least(
    exact: TorchLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank = LoraBank(exact.model, 4, 8)
    plan = plan_memory(bank)
    assert plan.training_bytes == 3 * 8 * bank.length
    assert plan_memory(bank, groups=3).groups == 3
    for free in (10**4, 4 * 10**6, 10**7):
        monkeypatch.setattr(bank_memory, "free_memory", lambda device, free=free: free)
        fitted = plan_memory(bank, pass_tokens=16)
        taken = fitted.groups * fitted.training_bytes + fitted.pass_bytes
        assert fitted.groups == 1 or taken <= 0.8 * free
    assert fitted.groups > 1


def test_activations_grow_with_the_model() -> None:
    small, large = build_llama(), build_llama(num_hidden_layers=4, intermediate_size=256)
    assert activation_bytes(large, torch.float32) > activation_bytes(small, torch.float32)


def _waiting(sizes: Sequence[int], progress: Sequence[int]) -> list[Training]:
    """Trainings whose next batch has so many tokens, so many steps done."""
    made = []
    for number, (size, done) in enumerate(zip(sizes, progress, strict=True)):
        encoded = [Encoded((1,) * size, (1,) * size)]
        recipe = replace(RECIPE, batch_size=1, epochs=10)
        training = Training.begin(trial(number, recipe=recipe), encoded, torch.zeros(8))
        training.losses = [1.0] * done
        made.append(training)
    return made


def test_a_pass_takes_those_whose_batches_are_of_a_size() -> None:
    trainings = _waiting([100, 10, 101, 11, 99, 12], [0] * 6)
    chosen = choose_pass(trainings, 10_000, 10)
    assert sorted(t.next_tokens() for t in chosen) == [99, 100, 101]


def test_a_pass_has_no_more_tokens_and_groups_than_it_may() -> None:
    trainings = _waiting([50] * 8, [0] * 8)
    assert len(choose_pass(trainings, 10_000, 3)) == 3
    assert len(choose_pass(trainings, 220, 8)) == 4
    assert len(choose_pass(trainings[:1], 1, 8)) == 1


def test_among_equals_a_pass_takes_the_least_advanced() -> None:
    trainings = _waiting([50] * 4, [5, 0, 7, 1])
    assert set(choose_pass(trainings, 100, 8)) == {trainings[1], trainings[3]}


def test_memory_of_a_trial_is_freed_without_the_garbage_collector(exact: TorchLM) -> None:
    rows: list[weakref.ref[torch.Tensor]] = []
    begin = Training.begin

    def watched(job: TrialJob, encoded: Sequence[Encoded], row: torch.Tensor) -> Training:
        training = begin(job, encoded, row)
        moments = training.optimizer.state[training.row]
        rows.extend(weakref.ref(t) for t in (row, moments["exp_avg"], moments["exp_avg_sq"]))
        return training

    bench = TorchTrialBench(exact, groups=2)
    gc.disable()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Training, "begin", watched)
            for _ in bench.run([trial(i, max_steps=2) for i in range(5)]):
                pass
        assert len(rows) == 15
        assert not any(ref() is not None for ref in rows)
    finally:
        gc.enable()


def test_an_adapter_whose_answers_are_not_finite_fails_alone(exact: TorchLM) -> None:
    """The last step of a training may be the one that goes too far: no loss tells."""
    wild = replace(RECIPE, learning_rate=1e200, grad_clip=0.0)
    jobs = [
        trial(0, write_answers=True),
        trial(1, recipe=wild, max_steps=1, write_answers=True),
        trial(2, write_answers=True, max_steps=1),
    ]
    found = outcomes(TorchTrialBench(exact), jobs)
    failure = found["trial-1"].failure
    assert failure is not None
    assert failure.boundary == "score"
    assert "not finite" in failure.error
    for job in (jobs[0], jobs[2]):
        (alone,) = TorchTrialBench(exact).run([job])
        assert [a.text for a in found[job.id].answers] == [a.text for a in alone.answers]


def test_two_runs_of_a_bench_may_take_turns(exact: TorchLM) -> None:
    bench = TorchTrialBench(exact, groups=2)
    first = bench.run([trial(i) for i in range(3)])
    begun = next(first)
    other = outcomes(bench, [trial(9)])
    found = {begun.job_id: begun, **{o.job_id: o for o in first}}
    assert set(other) == {"trial-9"}
    for number in range(3):
        (alone,) = TorchTrialBench(exact).run([trial(number)])
        assert losses(found[alone.job_id]) == pytest.approx(losses(alone), abs=1e-10)


@pytest.mark.model
def test_the_bundled_model_learns_together_as_alone(models_folder: Path) -> None:
    """In the base's own dtype: rounding apart, and every base weight as it was."""
    lm = load_model(Config.model_validate({"model": {"cache_dir": models_folder}}))
    assert isinstance(lm, TorchLM)
    before = {name: value.clone() for name, value in lm.model.state_dict().items()}
    recipe = LoraRecipe(rank=8, alpha=16, learning_rate=1e-3, epochs=4, batch_size=2)
    jobs = [trial(number, recipe=recipe, write_answers=True) for number in range(3)]
    bench = TorchTrialBench(lm)
    together = outcomes(bench, jobs)
    known = bench.baseline(jobs[0].questions)
    for job in jobs:
        (alone,) = TorchTrialBench(lm).run([job])
        assert losses(together[job.id]) == pytest.approx(losses(alone), abs=0.1)
        assert losses(alone)[-1] < losses(alone)[0] - 0.5
        for one, other in zip(together[job.id].answers, alone.answers, strict=True):
            assert one.score.loss == pytest.approx(other.score.loss, abs=0.5)
            assert one.text is not None
    assert [a.score.tokens for a in known] == [a.score.tokens for a in together["trial-0"].answers]
    assert all(torch.equal(value, before[name]) for name, value in lm.model.state_dict().items())
