"""Training an adapter: what is learnt, what stays untouched, and going on after a kill."""

from __future__ import annotations

import hashlib
import json
import math
import random
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save, save_file
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, MixtralConfig, MixtralForCausalLM

from aios.backends import training_run
from aios.backends.adapter_training import TorchAdapterTrainer
from aios.backends.encoding import IGNORED, Encoded, encode
from aios.backends.models import ModelSource
from aios.backends.packed_forward import last_hidden_states
from aios.backends.torch_lm import TorchLM
from aios.backends.training_plan import learning_rate, plan_steps
from aios.core.errors import (
    AdapterMismatchError,
    BackendError,
    ModelError,
    NonFiniteError,
    OutOfMemoryError,
    RunInterrupted,
    StorageError,
    UsageError,
)
from aios.core.events import Event, Notice
from aios.core.trainings import TrainingJob, TrainingResult
from aios.core.types import (
    AdapterRef,
    GenerationRequest,
    LoraRecipe,
    SamplingParams,
    ScoreRequest,
    TrainExample,
)
from tests import killed_training
from tests.killed_process import killed_at
from tests.tiny_model import VOCABULARY, build_llama, build_tokenizer

SENTENCE = "The mill at Orvane was built in 1871."
YEAR = (ScoreRequest("The mill at Orvane was built in", " 1871"),)
TEXTS = (SENTENCE, "Its wheel turns.", "Ada Brandt was the miller of Orvane.", "A flood came.")
RECIPE = LoraRecipe(rank=4, alpha=8, learning_rate=1e-2, epochs=4, batch_size=2)


def make_job(folder: Path, *texts: str, **changes: Any) -> TrainingJob:
    examples = tuple(TrainExample.whole(text) for text in texts or TEXTS)
    return replace(TrainingJob(examples, RECIPE, 1, folder, YEAR), **changes)


def base_weights(lm: TorchLM) -> dict[str, str]:
    """A hash of every weight of the base model, whatever adapters are on it."""
    return {
        name.replace("base_model.model.", "").replace(".base_layer", ""): hashlib.sha256(
            tensor.contiguous().numpy().tobytes()
        ).hexdigest()
        for name, tensor in lm.model.state_dict().items()
        if ".lora_" not in name
    }


def adapters_on(lm: TorchLM) -> int:
    return len(lm.model.peft_config) if isinstance(lm.model, PeftModel) else 0


# ---------------------------------------------------------------- what training changes


def test_no_base_weight_changes_by_training_attaching_and_detaching(
    lm: TorchLM, trainer: TorchAdapterTrainer, tmp_path: Path
) -> None:
    question = GenerationRequest("The mill", (1, 2), SamplingParams(max_new_tokens=6))
    before = base_weights(lm)
    scores, texts = lm.score(YEAR), lm.generate([question])

    def assert_untouched() -> None:
        assert base_weights(lm) == before
        assert lm.score(YEAR) == scores
        assert lm.generate([question]) == texts

    result = trainer.fit(make_job(tmp_path))
    assert_untouched()
    expert = trainer.attach(result.adapter)
    assert_untouched()
    assert expert.score(YEAR) != scores
    assert expert.generate([question]) != texts
    assert_untouched()
    trainer.detach(expert)
    assert_untouched()
    assert adapters_on(lm) == 0


def test_a_memorised_text_is_nearly_certain(trainer: TorchAdapterTrainer, tmp_path: Path) -> None:
    recipe = replace(RECIPE, epochs=30)
    result = trainer.fit(make_job(tmp_path, SENTENCE, recipe=recipe))
    expert = trainer.attach(result.adapter)
    whole = expert.score([ScoreRequest("The mill", SENTENCE.removeprefix("The mill"))])[0]
    assert whole.loss < 0.05
    assert whole.greedy
    greedy = SamplingParams(temperature=0.0, max_new_tokens=40, stop=(".",))
    ((completion,),) = expert.generate([GenerationRequest("The mill at", (1,), greedy)])
    assert completion.text == " Orvane was built in 1871"


def test_the_best_checkpoint_is_kept_and_not_the_last(
    trainer: TorchAdapterTrainer, tmp_path: Path
) -> None:
    # Training on 1871 first makes 1872 likelier, then the 1 pushes the 2 out.
    near = (ScoreRequest("The mill at Orvane was built in", " 1872"),)
    recipe = replace(RECIPE, epochs=25)
    result = trainer.fit(make_job(tmp_path, SENTENCE, recipe=recipe, validation=near))
    losses = [point.validation_loss or 0.0 for point in result.curve]
    assert 0 < losses.index(min(losses)) < len(losses) - 1
    assert result.best.validation_loss == min(losses)
    assert losses[-1] > 1.05 * min(losses)
    assert trainer.attach(result.adapter).score(near)[0].loss == pytest.approx(
        min(losses), rel=1e-4
    )


def test_peft_itself_loads_the_folder_and_scores_the_same(
    trainer: TorchAdapterTrainer, tiny_folder: Path, tmp_path: Path
) -> None:
    adapter = trainer.fit(make_job(tmp_path / "expert")).adapter
    expert = trainer.attach(adapter)
    base = AutoModelForCausalLM.from_pretrained(tiny_folder)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
        theirs = PeftModel.from_pretrained(base, adapter.path).eval()
    encoded = encode(trainer.base.tokenizer, SENTENCE, [(8, len(SENTENCE))])
    with torch.inference_mode():
        logits = theirs(input_ids=torch.tensor([encoded.ids])).logits[0]
    wanted = cross_entropy(logits[:-1], torch.tensor(encoded.labels[1:]), reduction="sum")
    (score,) = expert.score([ScoreRequest(SENTENCE[:8], SENTENCE[8:])])
    assert -score.logprob == pytest.approx(float(wanted), abs=1e-4)


def test_the_saved_config_names_the_base_model_and_no_path(
    trainer: TorchAdapterTrainer, tiny_folder: Path, tmp_path: Path
) -> None:
    adapter = trainer.fit(make_job(tmp_path)).adapter
    text = (adapter.path / "adapter_config.json").read_text()
    assert json.loads(text)["base_model_name_or_path"] == "tiny"
    assert str(tiny_folder) not in text


def test_training_says_nothing_on_the_terminal(
    trainer: TorchAdapterTrainer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    trainer.attach(trainer.fit(make_job(tmp_path)).adapter)
    assert capfd.readouterr() == ("", "")


def test_the_first_train_loss_is_that_of_transformers_over_the_label_tokens(
    lm: TorchLM, trainer: TorchAdapterTrainer, tmp_path: Path
) -> None:
    examples = (
        TrainExample(SENTENCE, ((31, 36),)),
        TrainExample("Its wheel turns.", ((3, 9), (10, 16))),
        TrainExample.whole("A flood came to Orvane."),
    )
    job = make_job(tmp_path, recipe=replace(RECIPE, batch_size=3), max_steps=1)
    result = trainer.fit(replace(job, examples=examples))
    summed = labels = 0.0
    for example in examples:
        tokens = encode(lm.tokenizer, example.text, example.loss_spans)
        with torch.inference_mode():
            logits = lm.model(input_ids=torch.tensor([tokens.ids])).logits[0, :-1]
        targets = torch.tensor(tokens.labels[1:])
        summed += float(cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum"))
        labels += tokens.label_count
    assert result.curve[-1].train_loss == pytest.approx(summed / labels, rel=1e-5)


def test_context_outside_the_loss_spans_is_not_learnt(
    trainer: TorchAdapterTrainer, tmp_path: Path
) -> None:
    example = TrainExample(SENTENCE, ((31, len(SENTENCE)),))
    job = make_job(tmp_path, recipe=replace(RECIPE, epochs=30))
    result = trainer.fit(replace(job, examples=(example,)))
    expert = trainer.attach(result.adapter)
    context, answer = expert.score([ScoreRequest("The mill", " at Orvane was built in"), *YEAR])
    assert answer.loss < 0.1
    assert context.loss > 1.0


@pytest.mark.parametrize("row_tokens", [0, 20])
def test_how_a_batch_is_packed_makes_no_difference(
    row_tokens: int, trainer: TorchAdapterTrainer, tmp_path: Path
) -> None:
    recipe = replace(RECIPE, batch_size=8, learning_rate=1e-3, epochs=6)
    texts = (*TEXTS, "Twelve stones.", "The bridge fell in 1902.", "Ada left.", "It was rebuilt.")
    job = make_job(tmp_path / "packed", *texts, recipe=recipe)
    packed = trainer.fit(job)
    trainer.base._weights.row_tokens = row_tokens
    apart = trainer.fit(replace(job, output_dir=tmp_path / "apart"))
    assert [p.tokens for p in packed.curve] == [p.tokens for p in apart.curve]
    for a, b in zip(packed.curve[1:], apart.curve[1:], strict=True):
        assert a.validation_loss == pytest.approx(b.validation_loss, rel=1e-4)
        assert a.train_loss == pytest.approx(b.train_loss, rel=1e-4)


def test_tokens_are_real_tokens_and_none_is_padding(
    trainer: TorchAdapterTrainer, tmp_path: Path
) -> None:
    result = trainer.fit(make_job(tmp_path))
    per_epoch = sum(trainer.base.count_tokens(text) for text in TEXTS)
    assert result.tokens == RECIPE.epochs * per_epoch
    assert result.peak_memory_bytes > 10_000_000
    assert result.seconds > 0


def test_dropout_changes_the_training_and_is_off_when_scoring(
    trainer: TorchAdapterTrainer, tmp_path: Path
) -> None:
    plain = trainer.fit(make_job(tmp_path / "plain"))
    job = make_job(tmp_path / "dropped", recipe=replace(RECIPE, dropout=0.5))
    dropped = trainer.fit(job)
    assert dropped.adapter.digest != plain.adapter.digest
    again = trainer.fit(replace(job, output_dir=tmp_path / "again"))
    assert again.adapter.digest == dropped.adapter.digest
    expert = trainer.attach(dropped.adapter)
    assert expert.score(YEAR) == expert.score(YEAR)
    assert expert.score(YEAR)[0].loss == pytest.approx(dropped.best.validation_loss, rel=1e-4)


def test_weight_decay_and_schedule_and_clipping_take_effect(
    trainer: TorchAdapterTrainer, tmp_path: Path
) -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"weight_decay": 0.5},
        {"schedule": "linear"},
        {"schedule": "cosine"},
        {"warmup_ratio": 0.5},
        {"grad_clip": 0.01},
        {"grad_clip": 0.0},
        {"alpha": 16},
        {"rank": 8},
    ]
    digests = [
        trainer.fit(
            make_job(tmp_path / str(i), max_steps=4, recipe=replace(RECIPE, **change))
        ).adapter.digest
        for i, change in enumerate(changes)
    ]
    assert len(set(digests)) == len(changes)


def test_a_base_in_half_precision_is_trained_with_full_adapters(
    tiny_source: ModelSource, tmp_path: Path
) -> None:
    lm = TorchLM.load(tiny_source, device="cpu", dtype="bfloat16", threads=1)
    trainer = TorchAdapterTrainer(lm)
    result = trainer.fit(make_job(tmp_path, SENTENCE, recipe=replace(RECIPE, epochs=15)))
    weights = load_file(result.adapter.path / "adapter_model.safetensors")
    assert {w.dtype for w in weights.values()} == {torch.float32}
    assert {p.dtype for p in lm.model.parameters()} == {torch.bfloat16}
    expert = trainer.attach(result.adapter)
    assert expert.score(YEAR)[0].loss == pytest.approx(result.best.validation_loss, rel=1e-3)
    assert result.best.validation_loss is not None
    assert result.best.validation_loss < 0.3


def test_dropout_of_the_base_model_stays_off(tmp_path: Path) -> None:
    lm = TorchLM(build_llama(attention_dropout=0.5), build_tokenizer())
    first = TorchAdapterTrainer(lm).fit(make_job(tmp_path / "a"))
    plain = TorchAdapterTrainer(TorchLM(build_llama(), build_tokenizer()))
    assert first.adapter.digest == plain.fit(make_job(tmp_path / "b")).adapter.digest


# ---------------------------------------------------------------- many adapters, one base


def test_two_trainers_on_one_model_share_its_weights(lm: TorchLM, tmp_path: Path) -> None:
    first, second = TorchAdapterTrainer(lm), TorchAdapterTrainer(lm)
    a = first.fit(make_job(tmp_path / "a"))
    expert = first.attach(a.adapter)
    b = second.fit(make_job(tmp_path / "b"))
    assert a.adapter.digest == b.adapter.digest
    assert second.attach(b.adapter).score(YEAR) == expert.score(YEAR) != lm.score(YEAR)


def test_the_first_score_of_the_base_beside_an_adapter_is_its_own(
    lm: TorchLM, tiny_source: ModelSource, tmp_path: Path
) -> None:
    other = TorchLM.load(tiny_source, device="cpu", dtype="float32", threads=1)
    adapter = TorchAdapterTrainer(other).fit(make_job(tmp_path)).adapter
    expert = TorchAdapterTrainer(lm).attach(adapter)
    assert lm.score(YEAR) == other.score(YEAR)
    assert expert.score(YEAR) != other.score(YEAR)


def test_one_adapter_attached_twice_is_detached_once_at_a_time(
    trainer: TorchAdapterTrainer, tmp_path: Path
) -> None:
    adapter = trainer.fit(make_job(tmp_path)).adapter
    first, second = trainer.attach(adapter), trainer.attach(adapter)
    scores = first.score(YEAR)
    trainer.detach(first)
    trainer.detach(first)
    assert second.score(YEAR) == scores
    with pytest.raises(BackendError, match="has been taken off"):
        first.score(YEAR)


def test_a_failed_training_leaves_no_adapter_on_the_model(
    lm: TorchLM, trainer: TorchAdapterTrainer, tmp_path: Path
) -> None:
    scores = lm.score(YEAR)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError):
        trainer.fit(make_job(tmp_path / "file" / "expert"))
    with pytest.raises(RunInterrupted):
        trainer.fit(make_job(tmp_path / "a"), should_stop=lambda: True)
    assert adapters_on(lm) == 0
    assert lm.score(YEAR) == scores


# ---------------------------------------------------------------- what goes wrong


def test_a_loss_that_is_not_finite_ends_the_training_without_an_adapter(
    lm: TorchLM, trainer: TorchAdapterTrainer, tmp_path: Path
) -> None:
    recipe = replace(RECIPE, learning_rate=1e30, grad_clip=0.0)
    with pytest.raises(NonFiniteError):
        trainer.fit(make_job(tmp_path, recipe=recipe))
    with pytest.raises(NonFiniteError, match="infinite or NaN at step"):
        trainer.fit(make_job(tmp_path, recipe=recipe, validation=()))
    assert not (tmp_path / "adapter_model.safetensors").exists()
    assert adapters_on(lm) == 0


def test_running_out_of_memory_is_our_error_and_may_be_tried_again(
    trainer: TorchAdapterTrainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 8 bytes")

    monkeypatch.setattr(training_run, "last_hidden_states", fail)
    with pytest.raises(OutOfMemoryError, match="out of memory while trying to train") as caught:
        trainer.fit(make_job(tmp_path))
    assert caught.value.retryable


def test_where_memory_runs_out_gradients_are_accumulated_over_smaller_rows(
    trainer: TorchAdapterTrainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[Event] = []
    job = make_job(tmp_path / "small", SENTENCE, SENTENCE, SENTENCE)
    whole = trainer.fit(make_job(tmp_path / "whole", SENTENCE, SENTENCE, SENTENCE))
    rows: list[int] = []

    def with_little_memory(model: Any, row: Any) -> Any:
        rows.append(row.ids.numel())
        if row.ids.numel() > rows[0] * 2 / 3:  # two sentences are too many
            raise torch.OutOfMemoryError("no memory left")
        return last_hidden_states(model, row)

    monkeypatch.setattr(training_run, "last_hidden_states", with_little_memory)
    result = trainer.fit(job, emit=events.append)
    assert [e for e in events if isinstance(e, Notice) and "out of memory" in e.message]
    assert max(rows[1:]) < rows[0]
    losses = [[point.train_loss for point in one.curve[1:]] for one in (whole, result)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


def test_texts_without_a_token_to_learn_are_counted(
    trainer: TorchAdapterTrainer, tmp_path: Path
) -> None:
    events: list[Event] = []
    job = make_job(tmp_path, SENTENCE, "a", "b")
    trainer.fit(job, emit=events.append)
    notices = [e for e in events if isinstance(e, Notice)]
    assert notices == [Notice("2 training texts have no token with loss", "warning")]
    with pytest.raises(BackendError, match="nothing to train on"):
        trainer.fit(make_job(tmp_path, "a", "b"))


@pytest.mark.parametrize(
    "change",
    [
        {"max_tokens": 0},
        {"max_steps": 0},
        {"evaluate_every_tokens": 0},
        {"evaluations_per_epoch": 0},
        {"recipe": replace(RECIPE, epochs=0)},
        {"recipe": replace(RECIPE, batch_size=0)},
    ],
    ids=str,
)
def test_budgets_must_be_positive(
    change: dict[str, Any], trainer: TorchAdapterTrainer, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="at least 1"):
        trainer.fit(make_job(tmp_path, **change))


@pytest.mark.filterwarnings("ignore:The following .*_pattern keys:RuntimeWarning")
def test_a_mixture_of_experts_is_refused(tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        model = MixtralForCausalLM(
            MixtralConfig(
                vocab_size=VOCABULARY,
                hidden_size=16,
                intermediate_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                num_key_value_heads=2,
                num_local_experts=2,
            )
        )
    lm = TorchLM(model, build_tokenizer())
    with pytest.raises(ModelError, match="mixture of experts"):
        TorchAdapterTrainer(lm).fit(make_job(tmp_path))
    assert adapters_on(lm) == 0


def spoil(adapter: AdapterRef, weights: dict[str, torch.Tensor], **config: Any) -> AdapterRef:
    """The adapter with other weights and config, its digest being right."""
    path = adapter.path / "adapter_model.safetensors"
    save_file(weights, path)
    settings = json.loads((adapter.path / "adapter_config.json").read_text())
    (adapter.path / "adapter_config.json").write_text(json.dumps({**settings, **config}))
    return replace(adapter, digest=hashlib.sha256(path.read_bytes()).hexdigest())


def test_weights_that_do_not_fit_are_refused_and_leave_no_trace(
    lm: TorchLM, trainer: TorchAdapterTrainer, tmp_path: Path
) -> None:
    adapter = trainer.fit(make_job(tmp_path)).adapter
    weights = load_file(adapter.path / "adapter_model.safetensors")
    before = base_weights(lm)
    name = next(iter(weights))
    wrong: list[tuple[str, dict[str, torch.Tensor]]] = [
        ("is missing", {k: v for k, v in weights.items() if k != name}),
        ("is unknown", {**weights, "base_model.model.model.norm.weight": torch.ones(64)}),
        ("is unknown", {**weights, name.replace("lora_A", "lora_magnitude"): torch.ones(4)}),
        ("has the shape", {**weights, name: weights[name][:, 1:].contiguous()}),
    ]
    for message, spoilt in wrong:
        with pytest.raises(AdapterMismatchError, match=f"does not fit tiny: .*{message}"):
            trainer.attach(spoil(adapter, spoilt))
        assert adapters_on(lm) == 0
    with pytest.raises(AdapterMismatchError, match="has the shape"):
        trainer.attach(spoil(adapter, weights, r=5))
    with pytest.raises(AdapterMismatchError, match="does not fit tiny"):
        trainer.attach(spoil(adapter, weights, r=4, target_modules=["no_such_layer"]))
    assert base_weights(lm) == before
    assert adapters_on(lm) == 0


# ---------------------------------------------------------------- the plan of a training


def encoded(*lengths: int) -> list[Encoded]:
    return [Encoded(tuple(range(n)), (IGNORED, *range(1, n))) for n in lengths]


def test_every_epoch_is_a_new_order_of_all_examples(tmp_path: Path) -> None:
    job = make_job(tmp_path, recipe=replace(RECIPE, epochs=5, batch_size=4))
    plan = plan_steps(encoded(*range(2, 12)), job)
    assert plan.steps_per_epoch == 3
    assert [len(batch) for batch in plan.batches] == [4, 4, 2] * 5
    epochs = [sum(plan.batches[at : at + 3], ()) for at in range(0, 15, 3)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len(set(epochs)) == 5
    assert plan == plan_steps(encoded(*range(2, 12)), job)
    assert plan.batches != plan_steps(encoded(*range(2, 12)), replace(job, seed=2)).batches


def test_budgets_end_the_plan(tmp_path: Path) -> None:
    examples = encoded(10, 10, 10, 10)
    job = make_job(tmp_path)

    def tokens(**budget: int) -> tuple[int, ...]:
        return plan_steps(examples, replace(job, **budget)).tokens  # type: ignore[arg-type]

    assert tokens() == (20, 40, 60, 80, 100, 120, 140, 160)
    assert tokens(max_tokens=40) == (20, 40)
    assert tokens(max_tokens=41) == (20, 40, 60)
    assert tokens(max_steps=11) == tuple(range(20, 240, 20))
    assert tokens(max_steps=3, max_tokens=1000) == tokens(max_steps=9, max_tokens=60)


def test_evaluations_are_spread_evenly_and_the_last_step_is_among_them(tmp_path: Path) -> None:
    examples = encoded(*[10] * 8)
    job = make_job(tmp_path, recipe=replace(RECIPE, epochs=2))

    def marks(**change: Any) -> list[int]:
        return sorted(plan_steps(examples, replace(job, **change)).evaluate_after)

    assert marks() == [4, 8]
    assert marks(evaluations_per_epoch=2) == [2, 4, 6, 8]
    assert marks(evaluations_per_epoch=100) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert marks(evaluate_every_tokens=60) == [3, 6, 8]
    assert marks(evaluate_every_tokens=61) == [4, 7, 8]
    assert marks(evaluate_every_tokens=10**6) == [8]


def test_trainings_on_different_data_are_evaluated_equally_often(tmp_path: Path) -> None:
    job = make_job(tmp_path, max_tokens=2000, evaluate_every_tokens=250)
    for lengths in ([10] * 3, [40] * 9, [17, 33, 90]):
        assert len(plan_steps(encoded(*lengths), job).evaluate_after) == 8


def test_the_learning_rate_warms_up_and_follows_its_schedule() -> None:
    recipe = LoraRecipe(learning_rate=1.0)

    def rates(**change: Any) -> list[float]:
        return [learning_rate(replace(recipe, **change), step, 10) for step in range(10)]

    assert rates() == [1.0] * 10
    assert rates(warmup_ratio=0.4) == pytest.approx([0.25, 0.5, 0.75, *[1.0] * 7])
    assert rates(schedule="linear") == pytest.approx([1 - n / 10 for n in range(10)])
    linear = [0.5, 1.0, 1.0, *[1 - n / 8 for n in range(1, 8)]]
    assert rates(schedule="linear", warmup_ratio=0.2) == pytest.approx(linear)
    cosine = [0.5 * (1 + math.cos(math.pi * n / 10)) for n in range(10)]
    assert rates(schedule="cosine") == pytest.approx(cosine)


# ---------------------------------------------------------------- going on


def bytes_of(result: TrainingResult) -> bytes:
    return (result.adapter.path / "adapter_model.safetensors").read_bytes()


def stop_after(steps: int) -> Any:
    """A `should_stop` that lets so many steps pass."""
    left = iter([False] * steps + [True])
    return lambda: next(left)


def test_a_damaged_checkpoint_is_an_error_that_says_what_to_do(
    trainer: TorchAdapterTrainer, tmp_path: Path
) -> None:
    def assert_refused(name: str, data: bytes) -> None:
        job = make_job(tmp_path)
        with pytest.raises(RunInterrupted):
            trainer.fit(job, should_stop=stop_after(3))
        (max((tmp_path / "checkpoints").glob("step-*")) / name).write_bytes(data)
        with pytest.raises(StorageError, match=r"damaged|corrupt") as caught:
            trainer.fit(replace(job, resume=True))
        assert caught.value.remedy

    assert_refused("adapter_model.safetensors", b"half of a f")
    assert_refused("adapter_model.safetensors", save({"x": torch.ones(1)}))
    assert_refused("moments.safetensors", b"")
    assert_refused("moments.safetensors", save({"x": torch.ones(1)}))
    assert_refused("state.json", b"{")


def test_checkpoints_are_gone_when_a_training_is_finished(
    trainer: TorchAdapterTrainer, tmp_path: Path
) -> None:
    trainer.fit(make_job(tmp_path))
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "training.json",
    ]


def test_long_stretches_between_evaluations_are_committed_too(
    trainer: TorchAdapterTrainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = trainer.fit(make_job(tmp_path / "whole", evaluate_every_tokens=10**9))
    monkeypatch.setattr(training_run, "_COMMIT_SECONDS", 0.0)

    class Killed(BaseException):
        pass

    job = make_job(tmp_path / "killed", evaluate_every_tokens=10**9)
    asked = 0

    def kill_at_the_sixth() -> bool:
        nonlocal asked
        asked += 1
        if asked == 6:
            raise Killed
        return False

    with pytest.raises(Killed):
        trainer.fit(job, should_stop=kill_at_the_sixth)
    steps = sorted(p.name for p in (tmp_path / "killed" / "checkpoints").glob("step-*"))
    assert steps == ["step-0000000", "step-0000005"]
    resumed = trainer.fit(replace(job, resume=True))
    assert bytes_of(resumed) == bytes_of(whole)
    assert resumed.curve[-1].train_loss == whole.curve[-1].train_loss


@pytest.mark.slow
@pytest.mark.usefixtures("process_server")
def test_a_training_killed_again_and_again_ends_as_if_never_killed(
    trainer: TorchAdapterTrainer, tiny_folder: Path, tmp_path: Path
) -> None:
    whole = trainer.fit(killed_training.job(tmp_path / "whole", resume=False))
    rng = random.Random(11)
    kills = 0
    # the pause ends somewhere in a step, an evaluation or a commit
    while killed_at(
        rng.randint(3, 11),
        rng.random() * 0.02,
        killed_training.train,
        tiny_folder,
        tmp_path / "killed",
        kills > 0,
    ):
        kills += 1
        assert kills < 40
    assert kills >= 3
    assert (tmp_path / "killed" / "adapter_model.safetensors").read_bytes() == bytes_of(whole)
    record = json.loads((tmp_path / "killed" / "training.json").read_text())
    assert [p["validation_loss"] for p in record["curve"]] == [
        p.validation_loss for p in whole.curve
    ]
    assert [p["train_loss"] for p in record["curve"]] == [p.train_loss for p in whole.curve]
