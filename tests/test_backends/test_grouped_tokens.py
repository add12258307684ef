from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aios.backends.encoding import IGNORED, Encoded
from aios.backends.trials.grouped_tokens import GroupedTokens

CPU = torch.device("cpu")
LENGTHS = st.lists(st.lists(st.integers(1, 12), min_size=1, max_size=4), min_size=1, max_size=5)


def sequences(lengths: list[list[int]]) -> list[list[Encoded]]:
    counter = iter(range(1, 10_000))
    made = []
    for group in lengths:
        ids = [tuple(next(counter) for _ in range(n)) for n in group]
        made.append([Encoded(i, (IGNORED, *i[1:])) for i in ids])
    return made


@given(LENGTHS)
def test_row_holds_all_tokens_in_order_and_nothing_else(lengths: list[list[int]]) -> None:
    groups = sequences(lengths)
    tokens = GroupedTokens.of(groups, CPU)
    flat = [i for group in groups for s in group for i in s.ids]
    assert tokens.ids[0].tolist() == flat
    assert tokens.positions[0].tolist() == [p for g in groups for s in g for p in range(len(s.ids))]
    labels = [i for group in groups for s in group for i in s.ids[1:]]
    assert tokens.targets.tolist() == labels
    assert tokens.ids[0][tokens.predicting + 1].tolist() == labels


@given(LENGTHS)
def test_grid_has_one_line_a_group(lengths: list[list[int]]) -> None:
    groups = sequences(lengths)
    tokens = GroupedTokens.of(groups, CPU)
    row = tokens.ids[0]
    grid = row if tokens.grid is None else row[tokens.grid.index]
    lines = grid.view(len(groups), -1).clone()
    if tokens.grid is not None:
        lines.view(-1)[tokens.grid.padding] = 0
        assert torch.equal(grid[tokens.grid.inverse], row)
    for line, group in zip(lines.tolist(), groups, strict=True):
        mine = [i for s in group for i in s.ids]
        assert line == mine + [0] * (len(line) - len(mine))


@given(LENGTHS, st.sampled_from([1.0, 1.5, 4.0]))
def test_buckets_hold_each_sequence_once_with_padding_at_its_right(
    lengths: list[list[int]], slack: float
) -> None:
    groups = sequences(lengths)
    tokens = GroupedTokens.of(groups, CPU, slack=slack)
    row = tokens.ids[0]
    laid = row.clone() if tokens.unpacked is None else row[tokens.unpacked.index]
    if tokens.unpacked is not None:
        laid[tokens.unpacked.padding] = 0
    found = []
    start = 0
    for count, longest in tokens.buckets:
        for line in laid[start : start + count * longest].view(count, longest).tolist():
            real = [i for i in line if i]
            assert line == real + [0] * (longest - len(real))
            assert len(real) * slack >= longest
            found.append(tuple(real))
        start += count * longest
    assert start == len(laid)
    assert sorted(found) == sorted(s.ids for group in groups for s in group)


def test_nothing_is_moved_where_all_lengths_are_equal() -> None:
    tokens = GroupedTokens.of(sequences([[5, 5], [5, 5]]), CPU)
    assert tokens.grid is None
    assert tokens.unpacked is None
    assert tokens.buckets == ((4, 5),)


@pytest.mark.parametrize("lengths", [[[7], [3]], [[2, 9], [4]]])
def test_tokens_counts_no_padding(lengths: list[list[int]]) -> None:
    assert GroupedTokens.of(sequences(lengths), CPU).tokens == sum(map(sum, lengths))


def test_padding_repeats_a_token_of_its_own_group() -> None:
    groups = sequences([[2], [5, 3], [4]])
    tokens = GroupedTokens.of(groups, CPU)
    assert tokens.grid is not None
    lines = tokens.ids[0][tokens.grid.index].view(3, -1).tolist()
    for line, group in zip(lines, groups, strict=True):
        assert set(line) == {i for s in group for i in s.ids}
    assert tokens.unpacked is not None
    start = 0
    laid = tokens.ids[0][tokens.unpacked.index]
    for count, longest in tokens.buckets:
        for line in laid[start : start + count * longest].view(count, longest).tolist():
            assert any(set(line) == set(s.ids) for group in groups for s in group)
        start += count * longest
