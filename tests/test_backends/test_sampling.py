"""Drawing: tokens follow the softmax, only the nucleus is drawn, rows do not depend on others."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from aios.backends.sampling import Dice, Draw, Sampler
from aios.core.errors import NonFiniteError
from aios.core.types import SamplingParams

SIZE = 150  # no multiple of a block


def logits(rows: int = 16, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(rows, SIZE, generator=generator)).to(dtype)


def dice(
    *seeds: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    sampling: SamplingParams | None = None,
) -> list[Dice]:
    return [Dice.of(seed, sampling or SamplingParams(temperature, top_p)) for seed in seeds]


def drawn_counts(row: Tensor, times: int, temperature: float, top_p: float) -> Tensor:
    draws = Sampler().draw(row.expand(times, -1), dice(*range(times), **_as(temperature, top_p)))
    return torch.bincount(torch.tensor([d.token for d in draws]), minlength=SIZE).double()


def _as(temperature: float, top_p: float) -> dict[str, Any]:
    return {"temperature": temperature, "top_p": top_p}


def chi_square(drawn: Tensor, probabilities: Tensor) -> tuple[float, int]:
    """The statistic and its degrees of freedom; rare tokens are counted as one."""
    expected = probabilities * drawn.sum()
    common = expected >= 5
    groups = torch.cat([expected[common], expected[~common].sum()[None]])
    found = torch.cat([drawn[common], drawn[~common].sum()[None]])
    known = groups > 0
    statistic = ((found[known] - groups[known]) ** 2 / groups[known]).sum()
    return float(statistic), int(known.sum()) - 1


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.5])
def test_tokens_are_drawn_with_the_probabilities_of_the_softmax(temperature: float) -> None:
    row = logits(1)[0]
    drawn = drawn_counts(row, 6000, temperature, 1.0)
    statistic, freedom = chi_square(drawn, (row.double() / temperature).softmax(0))
    assert freedom > 20
    assert abs(statistic - freedom) < 4 * (2 * freedom) ** 0.5


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 0.5), (0.8, 0.9), (1.0, 0.05)])
def test_only_the_nucleus_is_drawn_with_its_own_proportions(
    temperature: float, top_p: float
) -> None:
    row = logits(1, seed=3)[0]
    drawn = drawn_counts(row, 6000, temperature, top_p)
    top, order = (row.double() / temperature).softmax(0).sort(descending=True)
    size = int((top.cumsum(0) < top_p).sum()) + 1  # the fewest tokens with so much of the mass
    nucleus = torch.zeros(SIZE, dtype=torch.double)
    nucleus[order[:size]] = top[:size] / top[:size].sum()
    assert drawn[nucleus == 0].sum() == 0
    statistic, freedom = chi_square(drawn, nucleus)
    assert statistic - freedom < 4 * (2 * max(freedom, 1)) ** 0.5


def test_temperature_0_and_a_tiny_nucleus_are_greedy() -> None:
    rows = logits()
    best = rows.argmax(dim=-1).tolist()
    for settings in (_as(0.0, 1.0), _as(1.5, 1e-6)):
        assert [d.token for d in Sampler().draw(rows, dice(*range(16), **settings))] == best


def test_the_logprob_is_that_of_temperature_1_without_top_p() -> None:
    rows = logits()
    for settings in (_as(0.0, 1.0), _as(0.7, 0.5), _as(1.0, 1.0), _as(1.6, 0.9)):
        for row, drawn in zip(
            rows, Sampler().draw(rows, dice(*range(16), **settings)), strict=True
        ):
            expected = float(row.double().log_softmax(0)[drawn.token])
            assert drawn.logprob == pytest.approx(expected, abs=1e-5)


def test_a_row_does_not_depend_on_the_others() -> None:
    rows = logits(32)
    sampler = Sampler()
    together = sampler.draw(rows, dice(*range(32), top_p=0.8))
    for other in (logits(32, seed=7), torch.zeros(32, SIZE)):
        other[5] = rows[5]
        mixed = dice(*range(40, 72), temperature=0.5)
        mixed[5] = Dice.of(5, SamplingParams(1.0, 0.8))
        assert sampler.draw(other, mixed)[5] == together[5]
    turned = sampler.draw(rows.flip(0), dice(*reversed(range(32)), top_p=0.8))
    assert turned[::-1] == together


def test_rows_beyond_the_dice_are_not_looked_at() -> None:
    rows = logits(16)
    expected = Sampler().draw(rows, dice(1, 2, 3))
    rows[3:] = math.nan
    assert Sampler().draw(rows, dice(1, 2, 3)) == expected


def test_settings_may_differ_from_row_to_row() -> None:
    rows = logits(16)
    settings = [SamplingParams(0.0), SamplingParams(0.7, 0.9), SamplingParams(1.0, 1.0)]
    mixed = Sampler().draw(rows, [Dice.of(n, s) for n, s in enumerate(settings)])
    for n, sampling in enumerate(settings):
        same = Sampler().draw(rows, dice(0, 1, 2, sampling=sampling))
        assert same[n] == mixed[n]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_half_precision_is_drawn_from_as_well(dtype: torch.dtype) -> None:
    draws = Sampler().draw(logits(dtype=dtype), dice(*range(16)))
    assert all(0 <= d.token < SIZE and d.logprob < 0 for d in draws)


def test_a_certain_token_is_always_drawn() -> None:
    rows = torch.full((16, SIZE), -torch.inf)
    rows[:, SIZE - 1] = 3.0
    assert Sampler().draw(rows, dice(*range(16))) == [Draw(SIZE - 1, 0.0)] * 16


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_are_an_error(value: float, temperature: float) -> None:
    rows = logits()
    rows[2, 7] = value
    with pytest.raises(NonFiniteError, match="not finite"):
        Sampler().draw(rows, dice(1, 2, 3, temperature=temperature))
