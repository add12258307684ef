"""Tokens carry loss exactly where asked, and rows hold examples side by side without padding."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from aios.backends.encoding import IGNORED, Encoded, encode, encode_prompt, fill_rows, pack
from aios.core.errors import BackendError
from tests.tiny_model import build_opening_tokenizer, build_tokenizer

CPU = torch.device("cpu")
TOKENIZER = build_tokenizer()
TRIMMING = build_tokenizer()
TRIMMING.backend_tokenizer.post_processor = processors.ByteLevel(
    add_prefix_space=False, trim_offsets=True
)
TEXT = "The mill at Orvane was built in 1871."


def labelled(tokenizer: PreTrainedTokenizerFast, text: str, *spans: tuple[int, int]) -> str:
    """The text of the tokens that carry loss."""
    labels = encode(tokenizer, text, spans).labels
    return str(tokenizer.decode([label for label in labels if label != IGNORED]))


def test_only_the_span_carries_loss() -> None:
    begin = TEXT.index(" 1871")
    assert labelled(TOKENIZER, TEXT, (begin, begin + 5)) == " 1871"


def test_each_of_several_spans_carries_loss() -> None:
    spans = [(TEXT.index(" mill"), TEXT.index(" at")), (TEXT.index(" built"), TEXT.index(" in"))]
    assert labelled(TOKENIZER, TEXT, *spans) == " mill built"


def test_the_first_token_never_carries_loss() -> None:
    encoded = encode(TOKENIZER, TEXT, [(0, len(TEXT))])
    assert encoded.labels[0] == IGNORED
    assert encoded.labels[1:] == encoded.ids[1:]
    assert encoded.label_count == len(encoded.ids) - 1


def test_without_spans_nothing_carries_loss() -> None:
    assert encode(TOKENIZER, TEXT, []).label_count == 0
    assert encode(TOKENIZER, TEXT, [(5, 5)]).label_count == 0


def test_an_empty_text_has_no_tokens() -> None:
    assert encode(TOKENIZER, "", [(0, 0)]) == Encoded((), ())


def test_a_token_that_is_only_partly_in_the_span_carries_loss() -> None:
    at = TEXT.index("mill")
    assert labelled(TOKENIZER, TEXT, (at + 2, at + 3)) == "ill"


def test_all_tokens_of_a_character_of_several_bytes_carry_loss() -> None:
    text = "ab 😀 cd"
    assert labelled(TOKENIZER, text, (3, 4)) == "😀"


texts = st.text(st.sampled_from("ab1  .\n\té😀"), max_size=40)


@given(text=texts, spans=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=3))
def test_a_token_carries_loss_if_a_character_of_it_is_in_a_span(
    text: str, spans: list[tuple[int, int]]
) -> None:
    encoded = encode(TOKENIZER, text, spans)
    batch = TOKENIZER(text, return_offsets_mapping=True, add_special_tokens=False)
    wanted = {at for start, stop in spans for at in range(start, stop)}
    for i, (begin, end) in enumerate(batch["offset_mapping"]):
        inside = i > 0 and not wanted.isdisjoint(range(begin, end))
        assert encoded.labels[i] == (encoded.ids[i] if inside else IGNORED)


@given(text=texts, start=st.integers(0, 39), length=st.integers(1, 5))
def test_tokenizers_that_leave_white_space_out_of_their_ranges_make_no_difference(
    text: str, start: int, length: int
) -> None:
    span = (start, start + length)
    assert encode(TOKENIZER, text, [span]) == encode(TRIMMING, text, [span])


def test_the_beginning_token_is_added_once_and_no_other() -> None:
    tokenizer, plain = build_opening_tokenizer(), encode(TOKENIZER, TEXT, [(0, len(TEXT))])
    encoded = encode(tokenizer, TEXT, [(0, len(TEXT))])
    assert encoded.ids == (0, *plain.ids)
    assert encoded.labels == (IGNORED, *plain.ids)
    assert encode(tokenizer, "<|endoftext|>" + TEXT, []).ids == encoded.ids
    assert encode_prompt(tokenizer, TEXT) == list(encoded.ids)
    assert encode_prompt(TOKENIZER, TEXT) == list(plain.ids)


def test_a_lone_surrogate_is_refused() -> None:
    with pytest.raises(BackendError, match="cannot be tokenised"):
        encode(TOKENIZER, "half \ud83d of it", [(0, 3)])


def test_the_alphabet_of_the_tokenizer_holds_every_byte() -> None:
    assert set(pre_tokenizers.ByteLevel.alphabet()) <= set(TOKENIZER.get_vocab())


examples = st.lists(
    st.lists(st.tuples(st.integers(0, 300), st.booleans()), min_size=1, max_size=12).map(
        lambda pairs: Encoded(
            tuple(i for i, _ in pairs),
            tuple(i if carries and at else IGNORED for at, (i, carries) in enumerate(pairs)),
        )
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=40)
@given(examples)
def test_a_row_holds_exactly_the_tokens_of_its_examples(members: list[Encoded]) -> None:
    row = pack(members, CPU)
    assert row.ids.tolist() == [[i for e in members for i in e.ids]]
    assert row.positions.tolist() == [[p for e in members for p in range(len(e.ids))]]


@settings(max_examples=40)
@given(examples)
def test_a_row_predicts_each_label_from_the_token_before_it(members: list[Encoded]) -> None:
    row = pack(members, CPU)
    wanted = []
    start = 0
    for owner, example in enumerate(members):
        for i, label in enumerate(example.labels):
            if label != IGNORED:
                wanted.append((start + i - 1, label, owner))
        start += len(example.ids)
    found = zip(row.predicting.tolist(), row.targets.tolist(), row.owner.tolist(), strict=True)
    assert list(found) == wanted


@given(st.lists(st.integers(1, 700), max_size=30), st.integers(0, 512))
def test_rows_keep_the_order_and_the_limit_and_are_as_full_as_can_be(
    lengths: list[int], limit: int
) -> None:
    rows = list(fill_rows(lengths, limit))
    assert [i for row in rows for i in row] == list(range(len(lengths)))
    sums = [sum(lengths[i] for i in row) for row in rows]
    for row, filled in zip(rows, sums, strict=True):
        assert filled <= limit or len(row) == 1
    for filled, after in zip(sums, rows[1:], strict=False):
        assert filled + lengths[after[0]] > limit
