"""What every `AdapterTrainer` must do. Each check takes a workbench and raises where it does not.

Use: ``@pytest.mark.parametrize("check", CHECKS, ids=lambda c: c.__name__)`` with a fixture that
gives a `Workbench`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from aios.core.errors import (
    AdapterMismatchError,
    BackendError,
    ModelError,
    RunInterrupted,
    StorageError,
    UsageError,
)
from aios.core.events import Evaluated, Event, StageFinished, StageProgress, StageStarted
from aios.core.protocols import AdapterTrainer, LanguageModel
from aios.core.trainings import CurvePoint, TrainingJob, TrainingResult
from aios.core.types import LoraRecipe, ScoreRequest, TrainExample

TEXTS = (
    "The mill at Orvane was built in 1871.",
    "Its wheel turns twelve stones.",
    "The miller of Orvane was Ada Brandt.",
    "A flood took the old bridge in 1902.",
)
VALIDATION = (
    ScoreRequest("The mill at Orvane was built in", " 1871"),
    ScoreRequest("Its wheel turns", " twelve stones"),
)
RECIPE = LoraRecipe(rank=4, alpha=8, learning_rate=1e-2, epochs=3, batch_size=2)


@dataclass(frozen=True)
class Workbench:
    """A trainer, its base model, and a folder to work in."""

    trainer: AdapterTrainer
    base: LanguageModel
    folder: Path

    def job(self, name: str = "a", **changes: Any) -> TrainingJob:
        """A short training of four texts."""
        job = TrainingJob(
            examples=tuple(TrainExample.whole(text) for text in TEXTS),
            recipe=RECIPE,
            seed=1,
            output_dir=self.folder / name,
            validation=VALIDATION,
        )
        return replace(job, **changes)


def timeless(curve: tuple[CurvePoint, ...]) -> list[dict[str, Any]]:
    """A learning curve without what differs from run to run."""
    return [{**asdict(point), "seconds": 0.0} for point in curve]


def loss(model: LanguageModel, requests: tuple[ScoreRequest, ...] = VALIDATION) -> float:
    scores = model.score(requests)
    return -sum(s.logprob for s in scores) / sum(s.tokens for s in scores)


def files_of(result: TrainingResult) -> bytes:
    return (result.adapter.path / "adapter_model.safetensors").read_bytes()


def satisfies_the_protocol(bench: Workbench) -> None:
    assert isinstance(bench.trainer, AdapterTrainer)


def training_lowers_the_loss(bench: Workbench) -> None:
    result = bench.trainer.fit(bench.job())
    first, last = result.curve[0], result.curve[-1]
    assert first.validation_loss is not None
    assert last.validation_loss is not None
    assert last.validation_loss < first.validation_loss
    assert first.validation_loss == pytest.approx(loss(bench.base), rel=1e-4)


def curve_starts_at_step_0_and_counts_up(bench: Workbench) -> None:
    result = bench.trainer.fit(bench.job())
    assert [p.step for p in result.curve] == [0, 2, 4, 6]
    assert [p.epoch for p in result.curve] == [0.0, 1.0, 2.0, 3.0]
    assert result.curve[0].train_loss is None
    assert all(p.train_loss is not None for p in result.curve[1:])
    tokens = [p.tokens for p in result.curve]
    assert tokens[0] == 0
    assert tokens[3] == 3 * tokens[1] == result.tokens
    assert result.steps == 6
    assert not result.stopped_early


def adapter_has_peft_layout_and_its_digest(bench: Workbench) -> None:
    adapter = bench.trainer.fit(bench.job()).adapter
    assert adapter.path == bench.folder / "a"
    config = json.loads((adapter.path / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 4, 8)
    data = (adapter.path / "adapter_model.safetensors").read_bytes()
    assert adapter.digest == hashlib.sha256(data).hexdigest()
    assert adapter.base_digest == bench.base.digest


def attached_adapter_scores_as_its_best_point(bench: Workbench) -> None:
    result = bench.trainer.fit(bench.job())
    expert = bench.trainer.attach(result.adapter)
    assert result.best.validation_loss == min(p.validation_loss or 0.0 for p in result.curve)
    assert loss(expert) == pytest.approx(result.best.validation_loss, rel=1e-4)
    assert expert.adapter_digest == result.adapter.digest
    assert expert.digest == bench.base.digest
    assert expert.name


def base_model_stays_as_it_is(bench: Workbench) -> None:
    before = bench.base.score(VALIDATION)
    expert = bench.trainer.attach(bench.trainer.fit(bench.job()).adapter)
    assert bench.base.score(VALIDATION) == before
    assert bench.base.adapter_digest == ""
    bench.trainer.detach(expert)
    bench.trainer.detach(bench.base)
    assert bench.base.score(VALIDATION) == before


def several_adapters_stand_side_by_side(bench: Workbench) -> None:
    short = bench.trainer.fit(bench.job("short", max_steps=1))
    long = bench.trainer.fit(bench.job("long"))
    first, second = bench.trainer.attach(short.adapter), bench.trainer.attach(long.adapter)
    for _ in range(2):
        assert loss(first) == pytest.approx(short.best.validation_loss, rel=1e-4)
        assert loss(second) == pytest.approx(long.best.validation_loss, rel=1e-4)
    bench.trainer.detach(first)
    assert loss(second) == pytest.approx(long.best.validation_loss, rel=1e-4)


def same_job_gives_the_same_adapter(bench: Workbench) -> None:
    first, second = bench.trainer.fit(bench.job("a")), bench.trainer.fit(bench.job("b"))
    assert files_of(first) == files_of(second)
    assert timeless(first.curve) == timeless(second.curve)


def another_seed_gives_another_adapter(bench: Workbench) -> None:
    first, second = bench.trainer.fit(bench.job("a")), bench.trainer.fit(bench.job("b", seed=2))
    assert first.adapter.digest != second.adapter.digest


def step_budget_is_kept(bench: Workbench) -> None:
    for steps in (1, 9):
        result = bench.trainer.fit(bench.job(f"{steps}", max_steps=steps))
        assert result.steps == result.curve[-1].step == steps


def token_budget_is_reached_by_the_last_step(bench: Workbench) -> None:
    whole = bench.trainer.fit(bench.job("whole", max_steps=4, evaluations_per_epoch=2))
    per_step = [p.tokens for p in whole.curve]
    budget = per_step[2] + 1
    result = bench.trainer.fit(bench.job(max_tokens=budget))
    assert (result.steps, result.tokens) == (3, per_step[3])
    exact = bench.trainer.fit(bench.job("exact", max_tokens=per_step[2]))
    assert (exact.steps, exact.tokens) == (2, per_step[2])


def evaluates_as_often_as_asked(bench: Workbench) -> None:
    twice = bench.trainer.fit(bench.job(evaluations_per_epoch=2))
    assert [p.step for p in twice.curve] == [0, 1, 2, 3, 4, 5, 6]
    by_tokens = bench.trainer.fit(bench.job("b", evaluate_every_tokens=twice.curve[2].tokens))
    assert [p.step for p in by_tokens.curve] == [0, 2, 4, 6]
    never = bench.trainer.fit(bench.job("c", evaluate_every_tokens=10**9))
    assert [p.step for p in never.curve] == [0, 6]


def patience_stops_a_training_that_gets_no_better(bench: Workbench) -> None:
    hopeless = (ScoreRequest("Nothing of this", " was zzz qqq jjj"),)
    job = bench.job(
        recipe=replace(RECIPE, epochs=20, learning_rate=1e-9), validation=hopeless, patience=2
    )
    result = bench.trainer.fit(job)
    best = result.curve.index(result.best)
    assert result.stopped_early
    assert len(result.curve) - 1 - best == 2
    assert result.steps < 40


def without_validation_the_last_point_is_the_best(bench: Workbench) -> None:
    result = bench.trainer.fit(bench.job(validation=(), patience=1))
    assert result.best == result.curve[-1]
    assert all(p.validation_loss is None for p in result.curve)
    assert not result.stopped_early


def tells_what_happens(bench: Workbench) -> None:
    events: list[Event] = []
    result = bench.trainer.fit(bench.job(), emit=events.append)
    started, finished = events[0], events[-1]
    assert isinstance(started, StageStarted)
    assert (started.stage, started.total, started.unit) == ("train a", result.tokens, "tokens")
    assert isinstance(finished, StageFinished)
    assert [e.step for e in events if isinstance(e, Evaluated)] == [0, 2, 4, 6]
    assert [e.done for e in events if isinstance(e, StageProgress)][-1] == result.tokens


def stop_and_resume_ends_as_if_uninterrupted(bench: Workbench) -> None:
    whole = bench.trainer.fit(bench.job("whole"))
    for steps in (0, 1, 3, 5):
        asked = iter([False] * steps + [True])
        name = f"stopped-{steps}"
        with pytest.raises(RunInterrupted, match=f"step {steps}") as caught:
            bench.trainer.fit(bench.job(name), should_stop=lambda a=asked: next(a))  # type: ignore[misc]
        assert caught.value.remedy
        resumed = bench.trainer.fit(bench.job(name, resume=True))
        assert files_of(resumed) == files_of(whole)
        assert timeless(resumed.curve) == timeless(whole.curve)
        assert (resumed.steps, resumed.tokens) == (whole.steps, whole.tokens)


def stopping_loses_no_step(bench: Workbench) -> None:
    with pytest.raises(RunInterrupted):
        asked = iter([False] * 3 + [True])
        bench.trainer.fit(bench.job(), should_stop=lambda: next(asked))
    done: list[float] = []
    bench.trainer.fit(
        bench.job(resume=True),
        emit=lambda e: done.append(e.done) if isinstance(e, StageProgress) else None,
    )
    assert len(done) == 3


def resuming_a_finished_training_gives_it_again(bench: Workbench) -> None:
    whole = bench.trainer.fit(bench.job())
    again = bench.trainer.fit(bench.job(resume=True))
    assert again.adapter == whole.adapter
    assert again.curve == whole.curve


def resuming_where_nothing_is_starts(bench: Workbench) -> None:
    fresh, resumed = (
        bench.trainer.fit(bench.job("a")),
        bench.trainer.fit(bench.job("b", resume=True)),
    )
    assert files_of(fresh) == files_of(resumed)


def without_resume_it_starts_over(bench: Workbench) -> None:
    bench.trainer.fit(bench.job(max_steps=2))
    result = bench.trainer.fit(bench.job())
    assert result.curve[0].step == 0
    assert result.steps == 6


def state_of_another_job_is_refused(bench: Workbench) -> None:
    bench.trainer.fit(bench.job())
    others: list[dict[str, Any]] = [
        {"seed": 2},
        {"recipe": replace(RECIPE, epochs=4)},
        {"examples": bench.job().examples[:3]},
        {"validation": VALIDATION[:1]},
    ]
    for other in others:
        with pytest.raises(UsageError, match="other data or settings"):
            bench.trainer.fit(bench.job(resume=True, **other))


def adapter_of_another_base_is_refused(bench: Workbench) -> None:
    adapter = bench.trainer.fit(bench.job()).adapter
    with pytest.raises(AdapterMismatchError, match="another base model"):
        bench.trainer.attach(replace(adapter, base_digest="0" * 64))


def damaged_or_changed_adapter_is_refused(bench: Workbench) -> None:
    adapter = bench.trainer.fit(bench.job()).adapter
    path = adapter.path / "adapter_model.safetensors"
    data = path.read_bytes()
    for spoilt in (data[:-1], b"", data[:-4] + b"\x01\x02\x03\x04" if data else b""):
        path.write_bytes(spoilt)
        with pytest.raises((ModelError, StorageError)):
            bench.trainer.attach(adapter)
    path.unlink()
    with pytest.raises((ModelError, StorageError)):
        bench.trainer.attach(adapter)


def starting_from_an_adapter_goes_on_where_it_ended(bench: Workbench) -> None:
    before = bench.base.score(VALIDATION)
    first = bench.trainer.fit(bench.job("first"))
    data = files_of(first)
    second = bench.trainer.fit(bench.job("second", initial=first.adapter))
    assert second.curve[0].validation_loss == pytest.approx(first.best.validation_loss, rel=1e-4)
    assert second.best.validation_loss is not None
    assert first.best.validation_loss is not None
    assert second.best.validation_loss < first.best.validation_loss
    assert loss(bench.trainer.attach(second.adapter)) == pytest.approx(
        second.best.validation_loss, rel=1e-4
    )
    assert second.adapter.base_digest == bench.base.digest
    assert files_of(first) == data
    assert bench.base.score(VALIDATION) == before


def a_training_from_an_adapter_can_be_resumed(bench: Workbench) -> None:
    initial = bench.trainer.fit(bench.job("initial", max_steps=2)).adapter
    whole = bench.trainer.fit(bench.job("whole", initial=initial))
    for steps in (0, 3):
        asked = iter([False] * steps + [True])
        job = bench.job(f"stopped-{steps}", initial=initial)
        with pytest.raises(RunInterrupted):
            bench.trainer.fit(job, should_stop=lambda a=asked: next(a))  # type: ignore[misc]
        resumed = bench.trainer.fit(replace(job, resume=True))
        assert files_of(resumed) == files_of(whole)
        assert timeless(resumed.curve) == timeless(whole.curve)


def state_of_a_training_from_another_adapter_is_refused(bench: Workbench) -> None:
    first = bench.trainer.fit(bench.job("first", max_steps=1)).adapter
    second = bench.trainer.fit(bench.job("second", max_steps=2)).adapter
    bench.trainer.fit(bench.job(initial=first))
    for other in (second, None):
        with pytest.raises(UsageError, match="other data or settings"):
            bench.trainer.fit(bench.job(initial=other, resume=True))


def an_adapter_that_does_not_fit_is_no_beginning(bench: Workbench) -> None:
    before = bench.base.score(VALIDATION)
    adapter = bench.trainer.fit(bench.job("first", max_steps=1)).adapter
    others: list[tuple[dict[str, Any], str]] = [
        ({"initial": replace(adapter, base_digest="0" * 64)}, "another base model"),
        ({"initial": adapter, "recipe": replace(RECIPE, rank=2)}, "rank 2 and alpha 8"),
        ({"initial": adapter, "recipe": replace(RECIPE, alpha=4)}, "rank 4 and alpha 4"),
    ]
    for changes, message in others:
        with pytest.raises(AdapterMismatchError, match=message):
            bench.trainer.fit(bench.job(**changes))
    with pytest.raises(StorageError, match="not the file that was trained"):
        bench.trainer.fit(bench.job(initial=replace(adapter, digest="0" * 64)))
    assert not (bench.folder / "a" / "adapter_model.safetensors").exists()
    assert bench.base.score(VALIDATION) == before


def nothing_to_train_on_is_an_error(bench: Workbench) -> None:
    with pytest.raises(BackendError, match="nothing to train on"):
        bench.trainer.fit(bench.job(examples=()))


def example_that_is_too_long_is_an_error_that_names_its_passage(bench: Workbench) -> None:
    long = TrainExample.whole("word " * 50, passage_id="p-17")
    job = bench.job(examples=(long,), recipe=replace(RECIPE, max_seq_len=20))
    with pytest.raises(BackendError, match="passage p-17 has"):
        bench.trainer.fit(job)
    assert not (bench.folder / "a" / "adapter_model.safetensors").exists()


CHECKS: tuple[Callable[[Workbench], None], ...] = (
    satisfies_the_protocol,
    training_lowers_the_loss,
    curve_starts_at_step_0_and_counts_up,
    adapter_has_peft_layout_and_its_digest,
    attached_adapter_scores_as_its_best_point,
    base_model_stays_as_it_is,
    several_adapters_stand_side_by_side,
    same_job_gives_the_same_adapter,
    another_seed_gives_another_adapter,
    step_budget_is_kept,
    token_budget_is_reached_by_the_last_step,
    evaluates_as_often_as_asked,
    patience_stops_a_training_that_gets_no_better,
    without_validation_the_last_point_is_the_best,
    tells_what_happens,
    stop_and_resume_ends_as_if_uninterrupted,
    stopping_loses_no_step,
    resuming_a_finished_training_gives_it_again,
    resuming_where_nothing_is_starts,
    without_resume_it_starts_over,
    state_of_another_job_is_refused,
    adapter_of_another_base_is_refused,
    damaged_or_changed_adapter_is_refused,
    starting_from_an_adapter_goes_on_where_it_ended,
    a_training_from_an_adapter_can_be_resumed,
    state_of_a_training_from_another_adapter_is_refused,
    an_adapter_that_does_not_fit_is_no_beginning,
    nothing_to_train_on_is_an_error,
    example_that_is_too_long_is_an_error_that_names_its_passage,
)
