"""The serving engine: each text as PEFT would write it alone, whatever else is in the batch."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from aios.backends.adapter_files import adapter_ref
from aios.backends.adapter_training import TorchAdapterTrainer
from aios.backends.decoding import Decoder
from aios.backends.serving.adapters import AdapterShelf
from aios.backends.serving.engine import TorchWriter
from aios.backends.serving.prefixes import BLOCK
from aios.backends.serving.text import TextStream, TokenBytes
from aios.backends.torch_lm import TorchLM
from aios.backends.trials.lora_bank import find_sites
from aios.core.errors import (
    AdapterMismatchError,
    BackendError,
    ModelError,
    NonFiniteError,
    OutOfMemoryError,
)
from aios.core.files import atomic_write_json, read_json
from aios.core.protocols import TemporaryExpert
from aios.core.serving import Part, WriteRequest, Writing, WrittenToken
from aios.core.trials import TrialJob, TrialOutcome
from aios.core.types import (
    AdapterRef,
    GenerationRequest,
    LoraRecipe,
    SamplingParams,
    TrainExample,
)
from tests.random_adapters import write_random_adapter
from tests.tiny_model import build_tokenizer

PROMPT = "The wheel of the mill turns"
GREEDY = SamplingParams(temperature=0.0, max_new_tokens=16)
WARM = SamplingParams(temperature=1.0, top_p=0.9, max_new_tokens=16)
ROUNDING = 1e-5  # nats
SECONDS = 20.0


@pytest.fixture
def writer(lm: TorchLM) -> Iterator[TorchWriter]:
    engine = TorchWriter(lm)
    yield engine
    engine.close()


@pytest.fixture
def adapters(lm: TorchLM, tmp_path: Path) -> list[AdapterRef]:
    """Adapters of different ranks; the first two have the same."""
    return [
        write_random_adapter(tmp_path / f"expert-{seed}", lm.digest, seed=seed, r=rank)
        for seed, rank in enumerate((4, 4, 8, 1))
    ]


def ask(prompt: str = PROMPT, *parts: Part, **changes: object) -> WriteRequest:
    request = WriteRequest(prompt, parts, GREEDY, top_logprobs=0)
    return replace(request, **changes)  # type: ignore[arg-type]


def read(writing: Writing) -> tuple[str, list[WrittenToken]]:
    pieces = list(writing)
    return "".join(p.text for p in pieces), [token for p in pieces for token in p.tokens]


def write(writer: TorchWriter, request: WriteRequest) -> tuple[str, list[WrittenToken]]:
    return read(writer.submit(request))


def generated(
    lm: TorchLM, prompt: str = PROMPT, like: SamplingParams = GREEDY, seed: int = 0
) -> str:
    return lm.generate([GenerationRequest(prompt, (seed,), like)])[0][0].text


@torch.inference_mode()
def peft_logprobs(lm: TorchLM, prompt: str, tokens: Sequence[WrittenToken]) -> list[float]:
    """What PEFT's own forward pass gives to the tokens that were written."""
    by_bytes = {TokenBytes(lm.tokenizer)(token): token for token in range(400)}
    ids = lm.tokenizer(prompt, add_special_tokens=False)["input_ids"]
    written = [by_bytes[token.token.data] for token in tokens]
    with lm.active() as model:
        logits = model(torch.tensor([[*ids, *written]])).logits[0]
    logprobs = logits[len(ids) - 1 : -1].log_softmax(-1)
    return [float(logprobs[i, token]) for i, token in enumerate(written)]


def assert_written_as(lm: TorchLM, prompt: str, written: tuple[str, list[WrittenToken]]) -> None:
    text, tokens = written
    assert text == generated(lm, prompt)
    assert [t.token.logprob for t in tokens] == pytest.approx(
        peft_logprobs(lm, prompt, tokens), abs=ROUNDING
    )


def attach(lm: TorchLM, adapter: AdapterRef) -> TorchLM:
    attached = TorchAdapterTrainer(lm).attach(adapter)
    assert isinstance(attached, TorchLM)
    return attached


def temporary(base: TorchLM, seed: int = 1, rank: int = 4) -> TemporaryExpert:
    example = TrainExample("The mill has twelve stones.", ((0, 27),))
    recipe = LoraRecipe(rank=rank, alpha=8, learning_rate=0.05, epochs=6)
    (trained,) = base.trial_bench().train([TrialJob("a", (example,), recipe, seed)])
    assert not isinstance(trained, TrialOutcome)
    return trained[1]


# ------------------------------------------------------------ as PEFT writes


def test_an_expert_writes_as_with_peft(
    lm: TorchLM, writer: TorchWriter, adapters: list[AdapterRef]
) -> None:
    texts = set()
    for adapter in adapters:
        written = write(writer, ask(PROMPT, Part(adapter)))
        assert_written_as(attach(lm, adapter), PROMPT, written)
        texts.add(written[0])
    assert len(texts) == len(adapters)
    assert_written_as(lm, PROMPT, write(writer, ask()))


@pytest.mark.parametrize(
    "config",
    [
        {"target_modules": ["q_proj", "v_proj"]},
        {"use_rslora": True},
        {"rank_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 6}, "alpha_pattern": {"v_proj": 3}},
    ],
    ids=["some-layers", "rslora", "patterns"],
)
def test_other_adapters_write_as_with_peft(
    lm: TorchLM, writer: TorchWriter, tmp_path: Path, config: dict[str, Any]
) -> None:
    adapter = write_random_adapter(tmp_path / "other", lm.digest, **config)
    written = write(writer, ask(PROMPT, Part(adapter)))
    assert_written_as(attach(lm, adapter), PROMPT, written)


@pytest.mark.parametrize("numbers", [(0, 1), (0, 2), (0, 1, 2)], ids=str)
def test_a_mix_writes_as_with_peft_weighted_adapters(
    lm: TorchLM, writer: TorchWriter, adapters: list[AdapterRef], numbers: tuple[int, ...]
) -> None:
    weights = [0.7, 0.4, 0.2][: len(numbers)]
    attached = [attach(lm, adapters[i]) for i in numbers]
    lm.model.add_weighted_adapter(
        [view.adapter for view in attached], weights, "mix", combination_type="cat"
    )
    parts = [Part(adapters[i], w) for i, w in zip(numbers, weights, strict=True)]
    others = [writer.submit(ask("It", Part(adapter))) for adapter in adapters]
    assert_written_as(lm.view("mix", "mix"), PROMPT, write(writer, ask(PROMPT, *parts)))
    for other in others:
        read(other)


def test_parts_of_one_adapter_add_up(writer: TorchWriter, adapters: list[AdapterRef]) -> None:
    whole = write(writer, ask(PROMPT, Part(adapters[0])))
    halves = write(writer, ask(PROMPT, Part(adapters[0], 0.5), Part(adapters[0], 0.5)))
    assert halves == whole
    assert write(writer, ask(PROMPT, Part(adapters[0], 0.0))) == write(writer, ask())


def test_a_temporary_expert_over_the_base_writes_as_it_does_alone(
    lm: TorchLM, writer: TorchWriter
) -> None:
    expert = temporary(lm)
    assert isinstance(expert, TorchLM)
    assert_written_as(expert, PROMPT, write(writer, ask(PROMPT, Part(expert))))


def test_a_temporary_expert_over_an_expert_brings_it_along(
    lm: TorchLM, writer: TorchWriter, adapters: list[AdapterRef]
) -> None:
    attached = attach(lm, adapters[0])
    expert = temporary(attached)
    assert isinstance(expert, TorchLM)
    written = write(writer, ask(PROMPT, Part(expert)))
    assert_written_as(expert, PROMPT, written)
    assert written[0] not in (generated(attached), generated(lm))


def test_a_temporary_expert_whose_expert_is_gone_says_so(
    lm: TorchLM, writer: TorchWriter, adapters: list[AdapterRef]
) -> None:
    attached = attach(lm, adapters[0])
    expert = temporary(attached)
    TorchAdapterTrainer(lm).detach(attached)
    with pytest.raises(BackendError, match="taken off"):
        write(writer, ask(PROMPT, Part(expert)))
    assert write(writer, ask())[0] == generated(lm)


def test_adapters_that_peft_has_on_the_model_change_nothing(
    lm: TorchLM, writer: TorchWriter, adapters: list[AdapterRef]
) -> None:
    before = write(writer, ask())
    attached = attach(lm, adapters[0])
    assert write(writer, ask()) == before
    with writer.between():
        assert generated(attached) != before[0]
    assert write(writer, ask()) == before


# ------------------------------------------------------------ whatever else is in the batch


def test_what_else_is_written_changes_no_number(
    lm: TorchLM, writer: TorchWriter, adapters: list[AdapterRef]
) -> None:
    session = temporary(lm, rank=2)
    mixes: list[tuple[Part, ...]] = [
        (),
        *((Part(adapter),) for adapter in adapters),
        (Part(adapters[0], 0.5), Part(adapters[1], 0.5)),
        (Part(adapters[1]), Part(adapters[2], 0.3)),
        (Part(adapters[0]), Part(session)),
    ]
    prompts = [PROMPT, "It", "A long prompt about the mill and its stones. " * 4]
    requests = [
        ask(prompt, *parts, sampling=sampling, seed=number)
        for number, parts in enumerate(mixes)
        for prompt in prompts
        for sampling in (GREEDY, WARM)
    ]
    alone = [write(writer, request) for request in requests]
    together = [writer.submit(request) for request in requests]
    assert [read(writing) for writing in together] == alone


def test_neither_weights_nor_modules_stay_changed(
    lm: TorchLM, writer: TorchWriter, adapters: list[AdapterRef]
) -> None:
    before = {name: tensor.clone() for name, tensor in lm.model.state_dict().items()}
    for adapter in adapters:
        write(writer, ask(PROMPT, Part(adapter)))
    assert all(torch.equal(before[n], t) for n, t in lm.model.state_dict().items())
    assert not any("forward" in vars(site.module) for site in find_sites(lm.model, 1))


def test_a_long_prompt_is_read_between_the_tokens_of_others(
    lm: TorchLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    for name in ("read_on", "step"):
        real = getattr(Decoder, name)

        def spy(*args: Any, name: str = name, real: Callable[..., Any] = real) -> Any:
            events.append(name)
            return real(*args)

        monkeypatch.setattr(Decoder, name, spy)
    writer = TorchWriter(lm, max_concurrent=2)
    first = writer.submit(ask(sampling=replace(GREEDY, max_new_tokens=100)))
    next(iter(first))
    second = writer.submit(ask("a" * 200, sampling=replace(GREEDY, max_new_tokens=4)))
    read(second)
    first.cancel()
    writer.close()
    blocks = [i for i, event in enumerate(events) if event == "read_on"][-4:]
    assert [b - a for a, b in pairwise(blocks)] == [2, 2, 2]
    assert blocks[0] > 2


# ------------------------------------------------------------ beginnings of prompts


@pytest.fixture
def tokens_read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens of prompts have been read, call by call."""
    counts: list[int] = []
    real = Decoder.read_on

    def read_on(decoder: Decoder, prompt: Any, end: int) -> torch.Tensor:
        counts.append(end - prompt.read)
        return real(decoder, prompt, end)

    monkeypatch.setattr(Decoder, "read_on", read_on)
    return counts


LONG = "a" * (2 * BLOCK + 10)


def test_the_next_turn_reads_only_what_is_new(writer: TorchWriter, tokens_read: list[int]) -> None:
    fresh = write(writer, ask(LONG + "b" * 70))
    tokens_read.clear()
    write(writer, ask(LONG))
    assert sum(tokens_read) == 10
    tokens_read.clear()
    assert write(writer, ask(LONG + "b" * 70)) == fresh
    assert sum(tokens_read) == 80 - BLOCK


def test_no_beginning_is_shared_between_adapters(
    lm: TorchLM, writer: TorchWriter, adapters: list[AdapterRef], tokens_read: list[int]
) -> None:
    for adapter in adapters[:2]:
        tokens_read.clear()
        written = write(writer, ask(LONG, Part(adapter)))
        assert sum(tokens_read) == len(LONG)
        assert_written_as(attach(lm, adapter), LONG, written)
    tokens_read.clear()
    write(writer, ask(LONG, Part(adapters[0], 0.5)))
    assert sum(tokens_read) == len(LONG)


def test_memory_for_beginnings_is_bounded(lm: TorchLM, tokens_read: list[int]) -> None:
    writer = TorchWriter(lm, max_prefix_bytes=0)
    first = write(writer, ask(LONG))
    tokens_read.clear()
    assert write(writer, ask(LONG)) == first
    assert sum(tokens_read) == len(LONG)
    writer.close()


# ------------------------------------------------------------ adapters in memory


def test_adapters_are_kept_up_to_a_limit_and_those_in_use_beyond(
    lm: TorchLM, adapters: list[AdapterRef]
) -> None:
    shelf = AdapterShelf(lm, 0)
    mixes = [shelf.take([Part(adapter)]) for adapter in adapters[:2]]
    assert shelf.bytes == sum(mix.members[0][0].bytes for mix in mixes) > 0
    shelf.put_back(mixes[0])
    assert shelf.bytes == mixes[1].members[0][0].bytes
    shelf.put_back(mixes[1])
    assert shelf.bytes == 0


def test_the_least_recently_used_adapter_goes_first(
    lm: TorchLM, adapters: list[AdapterRef]
) -> None:
    probe = AdapterShelf(lm, 0)
    one = probe.take([Part(adapters[0])]).members[0][0].bytes
    shelf = AdapterShelf(lm, 2 * one)
    taken = []
    for number in (0, 1, 0):
        mix = shelf.take([Part(adapters[number])])
        taken.append(mix.members[0][0])
        shelf.put_back(mix)
    assert taken[0] is taken[2]
    other = write_random_adapter(adapters[0].path.parent / "other", lm.digest, seed=9)
    shelf.put_back(shelf.take([Part(other)]))
    assert shelf.take([Part(adapters[0])]).members[0][0] is taken[0]
    assert shelf.take([Part(adapters[1])]).members[0][0] is not taken[1]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"use_dora": True}, ModelError, "use_dora"),
        ({"bias": "all"}, ModelError, "bias"),
        ({"modules_to_save": ["lm_head"]}, ModelError, "modules_to_save"),
        ({"peft_type": "IA3"}, ModelError, "LoRA"),
        ({"r": 8}, AdapterMismatchError, "does not fit"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_adapters_of_another_kind_are_refused(
    writer: TorchWriter,
    adapters: list[AdapterRef],
    change: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    path = adapters[0].path / "adapter_config.json"
    config = read_json(path)
    assert isinstance(config, dict)
    atomic_write_json(path, {**config, **change})
    with pytest.raises(error, match=message):
        writer.submit(ask(PROMPT, Part(adapters[0])))


def test_an_adapter_of_the_output_layer_is_refused(
    lm: TorchLM, writer: TorchWriter, tmp_path: Path
) -> None:
    folder = write_random_adapter(tmp_path / "head", lm.digest).path
    weights = load_file(folder / "adapter_model.safetensors")
    weights["base_model.model.lm_head.lora_A.weight"] = torch.zeros(4, 64)
    save_file(weights, folder / "adapter_model.safetensors")
    adapter = adapter_ref(folder, lm.digest)
    with pytest.raises(AdapterMismatchError, match="lm_head"):
        writer.submit(ask(PROMPT, Part(adapter)))


def test_an_adapter_that_is_not_finite_is_refused(
    lm: TorchLM, writer: TorchWriter, tmp_path: Path
) -> None:
    adapter = write_random_adapter(tmp_path / "nan", lm.digest, scale=float("nan"))
    with pytest.raises(ModelError, match="not finite"):
        writer.submit(ask(PROMPT, Part(adapter)))


# ------------------------------------------------------------ what goes wrong


def test_numbers_that_overflow_end_their_own_text_alone(
    lm: TorchLM, writer: TorchWriter, adapters: list[AdapterRef], tmp_path: Path
) -> None:
    broken = write_random_adapter(tmp_path / "broken", lm.digest, scale=1e18)
    requests = [ask(LONG, Part(adapter)) for adapter in adapters] + [ask(PROMPT)]
    alone = [write(writer, request) for request in requests]
    for _ in range(2):  # nor does it leave anything behind in the places that it had
        writings = [writer.submit(request) for request in requests[:2]]
        with pytest.raises(NonFiniteError):
            read(writer.submit(ask(LONG + LONG[:90], Part(broken))))
        writings += [writer.submit(request) for request in requests[2:]]
        assert [read(writing) for writing in writings] == alone


def test_a_row_that_becomes_infinite_in_a_step_ends_alone(
    writer: TorchWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = write(writer, ask())
    real = Decoder.step

    def step(decoder: Decoder, tokens: Sequence[int]) -> torch.Tensor:
        logits = real(decoder, tokens)
        for row, slot in enumerate(decoder.slots):
            if len(slot.prompt.tokens) < 3 and slot.written == 5:
                logits[row] = torch.nan
        return logits

    monkeypatch.setattr(Decoder, "step", step)
    good = [writer.submit(ask()) for _ in range(2)]
    bad = writer.submit(ask("It"))
    with pytest.raises(NonFiniteError):
        read(bad)
    assert [read(writing) for writing in good] == [alone] * 2


def test_without_memory_the_youngest_make_room_for_the_others(
    writer: TorchWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = write(writer, ask())
    real = Decoder.step

    def step(decoder: Decoder, tokens: Sequence[int]) -> torch.Tensor:
        if len(tokens) > 2:
            raise torch.OutOfMemoryError("no memory")
        return real(decoder, tokens)

    monkeypatch.setattr(Decoder, "step", step)
    writings = [writer.submit(ask()) for _ in range(4)]
    outcomes: list[object] = []
    for writing in writings:
        try:
            outcomes.append(read(writing))
        except OutOfMemoryError as error:
            outcomes.append(error.remedy)
    assert outcomes[0] == alone
    for outcome in outcomes:
        assert outcome == alone or "serve.max_concurrent" in str(outcome)
    assert any(outcome != alone for outcome in outcomes)
    monkeypatch.undo()
    assert write(writer, ask()) == alone


def test_without_memory_for_a_prompt_that_text_fails(
    writer: TorchWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = write(writer, ask())
    real = Decoder.read_on

    def read_on(decoder: Decoder, prompt: Any, end: int) -> torch.Tensor:
        if len(prompt.tokens) > 100:
            raise torch.OutOfMemoryError("no memory")
        return real(decoder, prompt, end)

    monkeypatch.setattr(Decoder, "read_on", read_on)
    good, bad = writer.submit(ask()), writer.submit(ask(LONG))
    with pytest.raises(OutOfMemoryError):
        read(bad)
    assert read(good) == alone


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_bug_is_told_to_everybody(lm: TorchLM, monkeypatch: pytest.MonkeyPatch) -> None:
    both_wait = threading.Event()

    def step(decoder: Decoder, tokens: Sequence[int]) -> torch.Tensor:
        both_wait.wait(60)
        raise ZeroDivisionError

    writer = TorchWriter(lm, max_concurrent=1)
    monkeypatch.setattr(Decoder, "step", step)
    writings = [writer.submit(ask()) for _ in range(2)]
    both_wait.set()
    for writing in writings:
        with pytest.raises(RuntimeError, match="bug") as told:
            read(writing)
        assert isinstance(told.value.__cause__, ZeroDivisionError)
    with pytest.raises(RuntimeError, match="bug"):
        writer.submit(ask())
    with pytest.raises(RuntimeError, match="bug"), writer.between():
        pass
    writer.close()
    assert not any(thread.name == "serving" for thread in threading.enumerate())


def test_training_between_texts_changes_none_of_them(
    lm: TorchLM, writer: TorchWriter, adapters: list[AdapterRef]
) -> None:
    request = ask(PROMPT, Part(adapters[0]))
    before = write(writer, request)
    with writer.between() as model:
        assert isinstance(model, TorchLM)
        temporary(model)
    assert write(writer, request) == before


# ------------------------------------------------------------ text


def metaspace_tokenizer() -> PreTrainedTokenizerFast:
    """As Llama 2's: spaces in the tokens, bytes where there is no token."""
    words = ["▁the", "▁mill", "s", "▁", "é", "x"]
    vocabulary = {f"<0x{byte:02X}>": byte for byte in range(256)}
    vocabulary |= {word: 256 + i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


TOKENIZERS = {"bytes": build_tokenizer(), "metaspace": metaspace_tokenizer()}


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_pieces_are_the_text_of_all_tokens(kind: str) -> None:
    tokenizer, draw = TOKENIZERS[kind], random.Random(0)
    for _ in range(100):
        if kind == "bytes":  # whatever they are
            tokens = [draw.randrange(len(tokenizer)) for _ in range(draw.randrange(1, 30))]
        else:  # one wrong byte changes the text of all bytes before it, here: only right ones
            words = [[256], [257], [258], [259], [260], *(list(c.encode()) for c in "é€🙂")]
            tokens = [t for _ in range(draw.randrange(1, 12)) for t in draw.choice(words)]
        whole = tokenizer.decode(
            tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        stream = TextStream(tokenizer, ())
        assert "".join([*map(stream.add, tokens), stream.finish()]) == whole
        assert stream.known == len(whole)


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_character_of_several_tokens_comes_whole(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]
    tokens = {"bytes": [], "metaspace": list("€uro🙂".encode())}[kind] or tokenizer("€uro🙂")[
        "input_ids"
    ]
    stream = TextStream(tokenizer, ())
    pieces = [stream.add(token) for token in tokens]
    assert "".join(pieces) == "€uro🙂"
    assert not any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize("stop", [("twelve",), ("lve st", "mill"), ("s t", "es"), ("zz", "")])
def test_stop_texts_end_a_text_where_they_begin(stop: tuple[str, ...]) -> None:
    tokenizer = TOKENIZERS["bytes"]
    text = "The mill has twelve stones."
    stream = TextStream(tokenizer, stop)
    given = ""
    for token in tokenizer(text)["input_ids"]:
        given += stream.add(token)
        if stream.stopped:
            break
    given += stream.finish()
    cuts = [text.find(s) for s in stop if s and s in text]
    assert given == text[: min(cuts)] if cuts else text
    assert stream.stopped == bool(cuts)
    assert stream.known == len(given)


def test_bytes_of_tokens_are_those_of_the_text() -> None:
    for tokenizer in TOKENIZERS.values():
        named = TokenBytes(tokenizer)
        assert named(len(tokenizer) + 5) == b""
    named = TokenBytes(TOKENIZERS["bytes"])
    tokens = TOKENIZERS["bytes"]("€uro 🙂 the mill")["input_ids"]
    assert b"".join(map(named, tokens)).decode() == "€uro 🙂 the mill"
    assert named(2) == b"<|im_end|>"
    named = TokenBytes(TOKENIZERS["metaspace"])
    assert [named(t) for t in (0xE2, 256, 258)] == [b"\xe2", b" the", b"s"]
