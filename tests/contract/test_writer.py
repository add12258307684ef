"""What every `core.serving.Writer` must do, on the scripted one and on the torch engine."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from aios.core.errors import (
    AdapterMismatchError,
    BackendError,
    QueueFullError,
    StorageError,
)
from aios.core.protocols import TrialBench
from aios.core.serving import Ending, Part, Writer, WriteRequest, Writing
from aios.core.trials import TrialJob, TrialOutcome
from aios.core.types import (
    AdapterRef,
    GenerationRequest,
    LoraRecipe,
    SamplingParams,
    TrainExample,
)

GREEDY = SamplingParams(temperature=0.0, max_new_tokens=12)
LONG = SamplingParams(temperature=0.0, max_new_tokens=200)
PROMPT = "The mill at Orvane was built"
OTHER = "It has a red lamp"
SECONDS = 20.0  # nothing here takes so long, but where it hangs


@dataclass
class Bench:
    """A writer, how another is opened, and adapters for it."""

    writer: Writer
    open: Callable[..., Writer]
    experts: tuple[AdapterRef, AdapterRef]
    trials: TrialBench
    long: str  # a prompt that is answered with many tokens


def scripted_bench(folder: Path) -> Iterator[Bench]:
    from aios.backends.scripted import ScriptedModel
    from aios.backends.scripted_adapter import adapter_bytes, write_adapter
    from aios.backends.scripted_serving import ScriptedWriter

    model = ScriptedModel(
        {
            "Orvane": ["in the year 1871 , and has stood there since then , they say today"],
            "tell": ["and so on " * 100],
        }
    )
    recipe = LoraRecipe(rank=4, alpha=8)
    experts = tuple(
        write_adapter(folder / name, model, adapter_bytes({name: 1}, recipe, 1), recipe)
        for name in ("art", "physics")
    )

    def open_writer(**options: int) -> Writer:
        return ScriptedWriter(model, seconds_per_token=0.002, **options)  # type: ignore[arg-type]

    with closing(open_writer()) as writer:
        yield Bench(writer, open_writer, experts, model.trial_bench(), "tell me")  # type: ignore[arg-type]


def torch_bench(folder: Path) -> Iterator[Bench]:
    import torch

    from aios.backends.serving.engine import TorchWriter
    from aios.backends.torch_lm import TorchLM
    from tests.random_adapters import write_random_adapter
    from tests.tiny_model import build_llama, build_tokenizer

    torch.set_num_threads(1)
    # It never draws its end token, so that texts are as long as they may be.
    tokenizer = build_tokenizer(eos_token="<|endoftext|>")
    lm = TorchLM(build_llama(eos_token_id=None), tokenizer, name="tiny", digest="d" * 64)
    experts = tuple(
        write_random_adapter(folder / name, lm.digest, seed=seed)
        for seed, name in enumerate(("art", "physics"))
    )

    def open_writer(**options: int) -> Writer:
        return TorchWriter(lm, **options)

    with closing(open_writer()) as writer:
        yield Bench(writer, open_writer, experts, lm.trial_bench(), "The mill")  # type: ignore[arg-type]


@pytest.fixture(scope="module", params=["scripted", "torch"])
def bench(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Bench]:
    make = {"scripted": scripted_bench, "torch": torch_bench}[request.param]
    yield from make(tmp_path_factory.mktemp(request.param))


def ask(prompt: str = PROMPT, *parts: Part, **changes: object) -> WriteRequest:
    return replace(WriteRequest(prompt, parts, GREEDY), **changes)  # type: ignore[arg-type]


def read(writing: Writing) -> tuple[str, Ending]:
    text = "".join(piece.text for piece in writing)
    assert writing.ending is not None
    return text, writing.ending


def write(writer: Writer, request: WriteRequest) -> str:
    return read(writer.submit(request))[0]


def wait_until(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.001)


def begun(bench: Bench, writer: Writer) -> Writing:
    """A long text of which the first piece has been taken."""
    writing = writer.submit(ask(bench.long, sampling=LONG))
    assert next(iter(writing)).text
    return writing


def test_the_base_model_writes_what_it_generates(bench: Bench) -> None:
    (wanted,) = bench.writer.model.generate([GenerationRequest(PROMPT, (0,), GREEDY)])
    text, ending = read(bench.writer.submit(ask()))
    assert text == wanted[0].text
    assert (ending.reason, ending.completion_tokens) == ("length", wanted[0].tokens)
    assert ending.prompt_tokens == bench.writer.model.count_tokens(PROMPT)
    assert 0 <= ending.seconds_to_first <= ending.seconds < SECONDS


def test_a_text_has_no_ending_before_its_last_piece_was_taken(bench: Bench) -> None:
    writing = bench.writer.submit(ask())
    pieces = iter(writing)
    assert {writing.ending for _ in pieces} == {None}
    assert writing.ending is not None
    assert list(writing) == []


def test_each_adapter_and_each_mix_writes_a_text_of_its_own(bench: Bench) -> None:
    one, two = bench.experts
    requests = [
        ask(PROMPT),
        ask(PROMPT, Part(one)),
        ask(PROMPT, Part(two)),
        ask(PROMPT, Part(one, 0.5), Part(two, 0.5)),
    ]
    alone = [write(bench.writer, request) for request in requests]
    assert len(set(alone)) == len(requests)
    together = [bench.writer.submit(request) for request in requests]
    assert [read(writing)[0] for writing in together] == alone


def test_a_seed_writes_the_same_text_whatever_else_is_written(bench: Bench) -> None:
    warm = ask(PROMPT, Part(bench.experts[0]), sampling=SamplingParams(max_new_tokens=12), seed=5)
    alone = write(bench.writer, warm)
    others = [bench.writer.submit(ask(OTHER, Part(bench.experts[i % 2]))) for i in range(7)]
    assert write(bench.writer, warm) == alone
    for writing in others:
        read(writing)


def train(bench: Bench) -> object:
    example = TrainExample("The mill has twelve stones.", ((0, 27),))
    recipe = LoraRecipe(rank=4, alpha=8, learning_rate=0.05, epochs=8)
    job = TrialJob("a", (example,), recipe, seed=1)
    (trained,) = bench.trials.train([job])
    assert not isinstance(trained, TrialOutcome)
    return trained[1]


def test_a_temporary_expert_writes_until_it_is_released(bench: Bench) -> None:
    expert = train(bench)
    part = Part(expert)  # type: ignore[arg-type]
    own = write(bench.writer, ask(PROMPT, part))
    assert own != write(bench.writer, ask())
    writing = bench.writer.submit(ask(PROMPT, part))
    expert.release()  # type: ignore[attr-defined]
    assert read(writing)[0] == own  # what was submitted is written to its end
    with pytest.raises(BackendError, match="released"):
        bench.writer.submit(ask(PROMPT, part))


def test_an_adapter_of_another_base_model_is_refused(bench: Bench) -> None:
    other = replace(bench.experts[0], base_digest="e" * 64)
    with pytest.raises(AdapterMismatchError, match="another base model"):
        bench.writer.submit(ask(PROMPT, Part(other)))


def test_an_adapter_that_cannot_be_read_is_refused(bench: Bench, tmp_path: Path) -> None:
    missing = replace(bench.experts[0], path=tmp_path / "none", digest="f" * 64)
    with pytest.raises(StorageError):
        bench.writer.submit(ask(PROMPT, Part(missing)))
    changed = replace(bench.experts[0], digest="0" * 64)
    with pytest.raises(StorageError, match="not the file"):
        bench.writer.submit(ask(PROMPT, Part(changed)))


def test_a_prompt_without_room_is_refused(bench: Bench) -> None:
    with pytest.raises(BackendError, match="empty"):
        bench.writer.submit(ask(""))
    with pytest.raises(BackendError, match="the context holds"):
        bench.writer.submit(ask("word " * 5000))


def test_a_stop_text_is_cut_off_and_never_shown_in_part(bench: Bench) -> None:
    whole = write(bench.writer, ask())
    stop = whole[len(whole) // 2 :][:4]
    sampling = replace(GREEDY, stop=(stop,))
    (wanted,) = bench.writer.model.generate([GenerationRequest(PROMPT, (0,), sampling)])
    writing = bench.writer.submit(ask(sampling=sampling, top_logprobs=0))
    pieces = list(writing)
    text = "".join(piece.text for piece in pieces)
    assert text == wanted[0].text == whole[: whole.index(stop)]
    assert writing.ending is not None
    assert writing.ending.reason == "stop"


def test_log_probabilities_come_where_they_are_asked_for(bench: Bench) -> None:
    plain = list(bench.writer.submit(ask()))
    assert not any(piece.tokens for piece in plain)
    writing = bench.writer.submit(ask(top_logprobs=3))
    tokens = [token for piece in writing for token in piece.tokens]
    assert writing.ending is not None
    assert len(tokens) == writing.ending.completion_tokens
    text = b"".join(token.token.data for token in tokens).decode(errors="replace")
    assert text == "".join(piece.text for piece in plain)
    for token in tokens:
        assert len(token.top) == 3
        assert token.token == token.top[0]  # written greedily
        values = [likely.logprob for likely in token.top]
        assert values == sorted(values, reverse=True)
        assert max(values) <= 0
    bare = [t for piece in bench.writer.submit(ask(top_logprobs=0)) for t in piece.tokens]
    assert [t.token for t in bare] == [t.token for t in tokens]
    assert not any(t.top for t in bare)


def test_a_cancelled_text_ends_and_frees_its_place(bench: Bench) -> None:
    with closing(bench.open(max_concurrent=1, max_waiting=1)) as writer:
        first = begun(bench, writer)
        second = writer.submit(ask(OTHER))
        assert (writer.load().writing, writer.load().waiting) == (1, 1)
        first.cancel()
        _, ending = read(first)
        assert ending.reason == "cancelled"
        assert ending.completion_tokens < 200
        assert read(second)[1].reason in ("length", "stop")
        assert (writer.load().writing, writer.load().waiting) == (0, 0)


def test_a_text_that_waits_can_be_cancelled(bench: Bench) -> None:
    with closing(bench.open(max_concurrent=1)) as writer:
        first = begun(bench, writer)
        second = writer.submit(ask(OTHER))
        second.cancel()
        text, ending = read(second)
        assert (text, ending.reason, ending.completion_tokens) == ("", "cancelled", 0)
        first.cancel()


def test_a_text_ends_in_time_with_what_is_written(bench: Bench) -> None:
    whole = write(bench.writer, ask(bench.long, sampling=LONG))
    with closing(bench.open(max_concurrent=1)) as writer:
        writing = writer.submit(ask(bench.long, sampling=LONG, timeout_seconds=0.05))
        late = writer.submit(ask(OTHER, timeout_seconds=0.0))
        text, ending = read(writing)
        assert ending.reason == "timeout"
        assert whole.startswith(text.rstrip("\ufffd"))
        assert ending.completion_tokens < 200
        assert read(late)[1].reason == "timeout"


def test_more_than_may_wait_are_refused(bench: Bench) -> None:
    with closing(bench.open(max_concurrent=1, max_waiting=2)) as writer:
        first = begun(bench, writer)
        waiting = [writer.submit(ask(OTHER)) for _ in range(2)]
        with pytest.raises(QueueFullError) as refused:
            writer.submit(ask(OTHER))
        assert refused.value.retry_after > 0
        assert refused.value.retryable
        first.cancel()
        assert all(read(writing)[1].reason in ("length", "stop") for writing in waiting)


def test_texts_begin_in_the_order_of_submission(bench: Bench) -> None:
    with closing(bench.open(max_concurrent=1)) as writer:
        writings = [writer.submit(ask(OTHER)) for _ in range(3)]
        endings = [read(writing)[1] for writing in writings]
        firsts = [ending.seconds_to_first for ending in endings]
        assert firsts == sorted(firsts)


def test_nothing_is_written_between(bench: Bench) -> None:
    with closing(bench.open()) as writer:
        writing = begun(bench, writer)
        inside, leave = threading.Event(), threading.Event()
        loads = []

        def block() -> None:
            with writer.between() as model:
                loads.append(writer.load())
                inside.set()
                assert leave.wait(SECONDS)
                model.generate([GenerationRequest(PROMPT, (0,), GREEDY)])

        thread = threading.Thread(target=block)
        thread.start()
        assert not inside.wait(0.02)  # a text is being written
        writing.cancel()
        assert inside.wait(SECONDS)
        assert (loads[0].writing, loads[0].waiting) == (0, 0)
        held = writer.submit(ask())
        in_time = writer.submit(ask(timeout_seconds=0.01))
        assert read(in_time)[1].reason == "timeout"  # even while the model is lent
        assert (writer.load().writing, writer.load().waiting) == (0, 1)
        leave.set()
        assert read(held)[0] == write(bench.writer, ask())
        thread.join(SECONDS)
        assert not thread.is_alive()


def test_an_error_between_gives_the_model_back(bench: Bench) -> None:
    with pytest.raises(ZeroDivisionError), bench.writer.between():
        raise ZeroDivisionError
    assert write(bench.writer, ask())


def test_between_must_not_be_nested(bench: Bench) -> None:
    with (
        bench.writer.between(),
        pytest.raises(RuntimeError, match="nested"),
        bench.writer.between(),
    ):
        pass
    assert write(bench.writer, ask())


def test_closing_ends_all_texts_and_the_thread(bench: Bench) -> None:
    threads = threading.active_count()
    writer = bench.open(max_concurrent=1)
    first = begun(bench, writer)
    second = writer.submit(ask(OTHER))
    writer.close()
    writer.close()
    assert read(first)[1].reason == "cancelled"
    assert read(second)[1].reason == "cancelled"
    assert threading.active_count() == threads
    with pytest.raises(BackendError, match="closed"):
        writer.submit(ask())
    with pytest.raises(BackendError, match="closed"), writer.between():
        pass


def test_many_threads_get_each_their_own_text(bench: Bench) -> None:
    parts: list[tuple[Part, ...]] = [(), *((Part(expert),) for expert in bench.experts)]
    requests = [ask(p, *part) for p in (PROMPT, OTHER) for part in parts]
    wanted = [write(bench.writer, request) for request in requests]
    found: dict[int, list[str]] = {}

    def client(number: int) -> None:
        mine = [(number + i) % len(requests) for i in range(3)]
        found[number] = [write(bench.writer, requests[i]) for i in mine]

    threads = [threading.Thread(target=client, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    assert found == {n: [wanted[(n + i) % len(requests)] for i in range(3)] for n in range(12)}
    assert bench.writer.load().writing == 0
