"""K adapters trained at once equal K trained one at a time: the equality that all else rests on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from aios.backends.adapter_training import TorchAdapterTrainer
from aios.backends.chunked_loss import weighted_cross_entropy
from aios.backends.encoding import Encoded
from aios.backends.packed_forward import output_head
from aios.backends.torch_lm import TorchLM
from aios.backends.trials.adapter_rows import InitialRows, peft_weights, row_of
from aios.backends.trials.bank_training import BankTrainer, Training
from aios.backends.trials.grouped_tokens import GroupedTokens
from aios.backends.trials.lora_bank import LoraBank
from aios.core.errors import ModelError
from aios.core.trainings import TrainingJob
from aios.core.trials import TrialJob
from aios.core.types import LoraRecipe, ScoreRequest
from tests.tiny_model import VOCABULARY, build_llama
from tests.trial_jobs import RECIPE, tiny_lm, trial

STEPS = 20


@pytest.fixture(scope="module")
def exact() -> TorchLM:
    """The tiny model in float64."""
    return tiny_lm(torch.float64)


def begin(lm: TorchLM, bank: LoraBank, job: TrialJob) -> Training:
    encoded = [lm.encode_request(ScoreRequest("", e.text)) for e in job.examples]
    return Training.begin(job, encoded, InitialRows(bank)(job.seed))


def train(
    lm: TorchLM, jobs: Sequence[TrialJob], *, together: bool, pass_tokens: int = 4096
) -> list[Training]:
    """Trains the jobs, all steps of all of them in one pass each, or one job after another."""
    recipe = jobs[0].recipe
    with lm.active() as model:
        bank = LoraBank(model, recipe.rank, recipe.alpha)
        trainer = BankTrainer(bank, pass_tokens)
        trainings = [begin(lm, bank, job) for job in jobs]
        with bank.installed():
            for members in [trainings] if together else [[t] for t in trainings]:
                while going := [t for t in members if not t.done]:
                    trainer.take(going)
    return trainings


def assert_same(found: Sequence[Training], expected: Sequence[Training], tolerance: float) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.job.id == other.job.id
        assert one.losses == pytest.approx(other.losses, abs=tolerance, rel=0)
        torch.testing.assert_close(one.row, other.row, atol=tolerance, rtol=0)


def jobs_of(count: int, **changes: object) -> list[TrialJob]:
    recipe = replace(RECIPE, **changes)  # type: ignore[arg-type]
    return [trial(i, examples=3 + i % 3, recipe=recipe, max_steps=STEPS) for i in range(count)]


def test_grouped_equals_one_by_one_over_20_steps_in_float64(exact: TorchLM) -> None:
    jobs = jobs_of(4)
    alone = train(exact, jobs, together=False)
    assert [len(t.losses) for t in alone] == [STEPS] * 4
    assert alone[0].losses[-1] < alone[0].losses[0]
    assert_same(train(exact, jobs, together=True), alone, 1e-10)


def test_grouped_equals_one_by_one_with_decay_schedule_and_clipping(exact: TorchLM) -> None:
    jobs = jobs_of(3, weight_decay=0.1, schedule="cosine", warmup_ratio=0.2, grad_clip=0.05)
    jobs[1] = replace(jobs[1], recipe=replace(jobs[1].recipe, learning_rate=3e-3, grad_clip=0))
    assert_same(train(exact, jobs, together=True), train(exact, jobs, together=False), 1e-10)


def test_trajectories_in_float32_follow_those_in_float64(exact: TorchLM) -> None:
    jobs = jobs_of(3)
    expected = train(exact, jobs, together=False)
    for found, wanted in zip(
        train(tiny_lm(torch.float32), jobs, together=True), expected, strict=True
    ):
        assert found.losses == pytest.approx(wanted.losses, rel=2e-3)


@pytest.mark.slow
def test_losses_in_bfloat16_are_spread_around_those_in_float64(exact: TorchLM) -> None:
    jobs = jobs_of(6)
    expected = train(exact, jobs, together=False)
    found = train(tiny_lm(torch.bfloat16), jobs, together=True)
    pairs = zip(found, expected, strict=True)
    offs = torch.tensor(
        [[a - b for a, b in zip(f.losses, e.losses, strict=True)] for f, e in pairs]
    )
    assert found[0].row.dtype == torch.float32
    assert offs.abs().max() < 0.3
    assert offs.mean().abs() < 0.03


def test_equals_the_trainer_of_experts_over_peft(exact: TorchLM, tmp_path: Path) -> None:
    lm = tiny_lm(torch.float64)
    job = trial(5, recipe=RECIPE)
    (training,) = train(lm, [job, trial(6)], together=True)[:1]
    fitted = TorchAdapterTrainer(lm).fit(
        TrainingJob(job.examples, job.recipe, job.seed, tmp_path / "peft")
    )
    expert = TorchAdapterTrainer(lm).attach(fitted.adapter)
    assert isinstance(expert, TorchLM)
    bank = LoraBank(lm.model.get_base_model(), RECIPE.rank, RECIPE.alpha)
    for name, weights in peft_weights(bank, training.row).items():
        module, _, kind = name.removeprefix("base_model.model.").rpartition(".lora_")
        parts = dict(expert.model.named_parameters())
        found = parts[f"base_model.model.{module}.lora_{kind[0]}.{expert.adapter}.weight"]
        torch.testing.assert_close(found.detach().float(), weights, atol=1e-6, rtol=0)


def test_order_of_groups_does_not_matter(exact: TorchLM) -> None:
    jobs = jobs_of(4)
    forwards = train(exact, jobs, together=True)
    backwards = train(exact, jobs[::-1], together=True)
    assert_same(backwards[::-1], forwards, 1e-10)


def test_a_group_less_does_not_matter(exact: TorchLM) -> None:
    jobs = jobs_of(4)
    whole = train(exact, jobs, together=True)
    assert_same(train(exact, jobs[:2] + jobs[3:], together=True), whole[:2] + whole[3:], 1e-10)


def test_early_end_of_other_groups_does_not_matter(exact: TorchLM) -> None:
    jobs = jobs_of(3)
    short = [jobs[0], replace(jobs[1], max_steps=3), replace(jobs[2], max_steps=7)]
    found = train(exact, short, together=True)
    assert [len(t.losses) for t in found] == [STEPS, 3, 7]
    assert_same(found[:1], train(exact, jobs[:1], together=False), 1e-10)


def test_padding_does_not_matter(exact: TorchLM, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = jobs_of(3)
    expected = train(exact, jobs, together=True)
    whole = GroupedTokens.of
    monkeypatch.setattr(GroupedTokens, "of", lambda g, d: whole(g, d, slack=1000.0))
    assert_same(train(exact, jobs, together=True), expected, 1e-10)


def test_a_batch_in_parts_has_the_same_gradient(exact: TorchLM) -> None:
    jobs = jobs_of(1, batch_size=4)
    expected = train(exact, jobs, together=False)
    assert_same(train(exact, jobs, together=False, pass_tokens=20), expected, 1e-10)


def test_a_training_that_takes_no_part_does_not_move(exact: TorchLM) -> None:
    with exact.active() as model:
        bank = LoraBank(model, RECIPE.rank, RECIPE.alpha)
        trainer = BankTrainer(bank, 4096)
        moving, still = (begin(exact, bank, job) for job in jobs_of(2))
        with bank.installed():
            trainer.take([moving, still])
            kept = still.row.clone()
            trainer.take([moving])
    assert torch.equal(still.row, kept)
    assert len(still.losses) == 1


def test_base_model_is_as_it_was(exact: TorchLM) -> None:
    before = {k: v.clone() for k, v in exact.model.state_dict().items()}
    forwards = [m.forward for m in exact.model.modules()]
    train(exact, jobs_of(2), together=True)
    for name, value in exact.model.state_dict().items():
        assert torch.equal(value, before[name])
    assert [m.forward for m in exact.model.modules()] == forwards
    assert not any(p.requires_grad for p in exact.model.parameters())


def _labels(rows: int) -> Tensor:
    return torch.randint(VOCABULARY, (rows,), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("rows", [1, 127, 128, 300])
def test_gradient_of_the_chunked_loss_is_that_of_the_plain_one(exact: TorchLM, rows: int) -> None:
    head = output_head(exact.model)
    generator = torch.Generator().manual_seed(2)
    hidden = torch.randn(rows, head.shape[1], generator=generator, dtype=head.dtype)
    weights = torch.rand(rows, generator=generator, dtype=head.dtype)
    ours, plain = (hidden.clone().requires_grad_() for _ in range(2))
    total, losses = weighted_cross_entropy(ours, head, _labels(rows), weights)
    total.backward()
    each = torch.nn.functional.cross_entropy(plain @ head.T, _labels(rows), reduction="none")
    (each * weights).sum().backward()
    torch.testing.assert_close(losses, each.detach(), atol=1e-10, rtol=0)
    torch.testing.assert_close(ours.grad, plain.grad, atol=1e-12, rtol=0)


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_gradients_of_any_groups_are_those_of_autograd(exact: TorchLM, data: st.DataObject) -> None:
    """Random groups, lengths, ranks and labels against plain autograd, one group at a time."""
    rank = data.draw(st.integers(1, 5), "rank")
    alpha = data.draw(st.integers(1, 16), "alpha")
    lengths = data.draw(
        st.lists(st.lists(st.integers(2, 9), min_size=1, max_size=3), min_size=1, max_size=4)
    )
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99), "seed"))
    groups = []
    for mine in lengths:
        made = []
        for length in mine:
            ids = torch.randint(VOCABULARY, (length,), generator=generator).tolist()
            first = int(torch.randint(1, length, (1,), generator=generator))
            made.append(Encoded(tuple(ids), (*[-100] * first, *ids[first:])))
        groups.append(made)
    with exact.active() as model:
        bank = LoraBank(model, rank, alpha)
        rows = [
            torch.randn(bank.length, generator=generator, dtype=torch.float64) * 0.1 for _ in groups
        ]
        bank.load(rows)
        gradient = bank.collect(len(groups))
        with bank.installed():
            tokens = GroupedTokens.of(groups, bank.device)
            hidden = bank.hidden_states(tokens)[tokens.predicting]
            ones = torch.ones(len(tokens.targets), dtype=torch.float64)
            loss, _ = weighted_cross_entropy(hidden, output_head(model), tokens.targets, ones)
            loss.backward()
        for group, row, found in zip(groups, rows, gradient, strict=True):
            torch.testing.assert_close(found, _by_autograd(bank, row, group), atol=1e-8, rtol=1e-6)


def _by_autograd(bank: LoraBank, row: Tensor, group: Sequence[Encoded]) -> Tensor:
    """The gradient of a group's summed loss by an adapter, from a model of its own."""
    model = build_llama().double()
    leaf = row.clone().requires_grad_()
    modules = dict(model.named_modules())
    for site in bank.sites:
        a, b = (m[0] for m in bank.views(leaf[None], site, 1))
        modules[site.name].register_forward_hook(
            lambda _, given, out, a=a, b=b: out + bank.scale * (given[0] @ a @ b)
        )
    total = torch.zeros((), dtype=torch.float64)
    for sequence in group:
        logits = model(input_ids=torch.tensor([sequence.ids])).logits[0, :-1]
        labels = torch.tensor(sequence.labels[1:])
        total = total + torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
    total.backward()
    assert leaf.grad is not None
    return leaf.grad


def test_rows_and_peft_tensors_are_the_same_weights(exact: TorchLM) -> None:
    with exact.active() as model:
        bank = LoraBank(model, 3, 6)
        row = torch.randn(bank.length, dtype=torch.float64).float().double()
        assert torch.equal(row_of(bank, peft_weights(bank, row)), row)


def test_trunk_layers_have_no_adapter(exact: TorchLM) -> None:
    with exact.active() as model:
        names = [site.name for site in LoraBank(model, 2, 4, trunk_layers=1).sites]
        everywhere = [site.name for site in LoraBank(model, 2, 4).sites]
    assert names == [name for name in everywhere if ".layers.1." in name]
    assert len(everywhere) == 14
    assert not any("lm_head" in name for name in everywhere)


def test_a_model_with_an_attention_of_its_own_is_refused(exact: TorchLM) -> None:
    model = build_llama()
    model._supports_attention_backend = False
    bank = LoraBank(model, 2, 4)
    with pytest.raises(ModelError, match="attention of their own"), bank.installed():
        pass


def test_recipes_of_any_rate_share_a_bank(exact: TorchLM) -> None:
    recipes = [LoraRecipe(4, 8, 0.0, rate, 2, size) for rate, size in ((1e-2, 1), (1e-3, 4))]
    jobs = [trial(i, recipe=recipe) for i, recipe in enumerate(recipes)]
    assert_same(train(exact, jobs, together=True), train(exact, jobs, together=False), 1e-10)
