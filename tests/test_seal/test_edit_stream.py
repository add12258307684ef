"""Streams of passages, over a model that finishes them in whatever order it likes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import count, islice

import pytest

from aios.backends.scripted import ScriptedModel
from aios.core.errors import BackendError
from aios.core.protocols import LanguageModel
from aios.core.seal.edit_stream import (
    GIVE_UP_AFTER,
    EditStream,
    PartWork,
    PassageWork,
    StreamSettings,
    candidate_seeds,
)
from aios.core.seal.strategies import SelfEditStrategy
from aios.core.seal.strategy_mix import MixPart
from aios.core.streaming import Generated
from aios.core.types import Completion, GenerationRequest, Passage, SamplingParams
from tests.letters import Letters, Silent, Syllables, passage
from tests.shuffled_model import ShuffledModel, whenever

SETTINGS = StreamSettings(SamplingParams(), 30.0, max_retries=3, width=8, seed=0)
NO_RETRIES = StreamSettings(SamplingParams(), 30.0, max_retries=0, width=8, seed=0)
ONE = (MixPart(Letters(), 2, 0),)
MIX = (MixPart(Letters(), 2, 0), MixPart(Syllables(), 2, 2), MixPart(Silent(), 1, 4))


def work(number: int, parts: Sequence[MixPart] = ONE) -> PassageWork:
    return PassageWork(
        number,
        passage(number),
        [
            PartWork(part, [f"{number}-{part.strategy.name}-{n}" for n in range(part.num_edits)])
            for part in parts
        ],
    )


def cached(number: int) -> PassageWork:
    done = work(number)
    (part,) = done.parts
    part.found = {n: Completion("known", 1, "stop", n) for n in range(part.part.num_edits)}
    part.cached = len(part.found)
    return done


def write(
    model: LanguageModel,
    works: Iterable[PassageWork],
    settings: StreamSettings = SETTINGS,
) -> Iterator[PassageWork]:
    return EditStream(model, settings).run(iter(works))


def in_order(works: Iterable[PassageWork]) -> list[PassageWork]:
    found = sorted(works, key=lambda one: one.number)
    assert [one.number for one in found] == list(range(len(found)))  # each of them once
    return found


def texts(done: PassageWork) -> list[str]:
    return [completion.text for part in done.parts for _, completion in part.in_order()]


def of_sequence(n: int, parts: Sequence[MixPart]) -> list[list[str]]:
    """What a model writes that takes one request after the other."""
    model = ShuffledModel(ahead=1)
    return [texts(done) for done in in_order(write(model, (work(i, parts) for i in range(n))))]


# ------------------------------------------------------------ order and completeness


@pytest.mark.parametrize("ahead", [1, 2, 5, 40])
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("parts", [ONE, MIX, MIX[::-1], MIX[1:2], MIX[2:]])
def test_every_passage_is_given_back_once_and_whole(
    seed: int, ahead: int, parts: Sequence[MixPart]
) -> None:
    model = ShuffledModel(seed, ahead)
    found = in_order(write(model, (work(n, parts) for n in range(12))))
    assert [texts(done) for done in found] == of_sequence(12, parts)
    assert all(len(texts(done)) == sum(part.num_edits for part in parts) for done in found)
    assert all(part.complete for done in found for part in done.parts)
    assert all((done.failure, done.retries) == (None, 0) for done in found)
    assert model.streams <= 1
    assert model.width in (8, None)


def test_passages_are_given_back_as_they_are_finished() -> None:
    numbers = [done.number for done in write(ShuffledModel(3, ahead=8), map(work, range(30)))]
    assert numbers != sorted(numbers)
    assert sorted(numbers) == list(range(30))


def test_a_slow_passage_holds_up_no_other() -> None:
    model = ShuffledModel(holds="p2 ")
    assert [done.number for done in write(model, map(work, range(50)))][-1] == 2


def test_no_passages_need_no_model() -> None:
    model = ShuffledModel()
    assert list(write(model, [])) == []
    assert model.streams == 0


def test_tokens_seconds_and_what_belongs_into_the_cache_are_counted_once() -> None:
    for done in write(ShuffledModel(1), (work(n, MIX) for n in range(5))):
        assert [sum(part.new_tokens) for part in done.parts] == [10, 30, 0]
        assert [part.fresh for part in done.parts] == [[0, 1], [0, 1], [0]]
        assert done.seconds == 0.5 * (1 + 6)
    sequential = write(ScriptedModel(), (work(n, MIX) for n in range(5)))
    for done in sequential:
        assert [part.fresh for part in done.parts] == [[0, 1], [0, 1], [0]]


def test_what_the_backend_has_asked_again_counts_as_a_retry() -> None:
    class Patient(ShuffledModel):
        def _outcome(self, index: int, request: GenerationRequest) -> Generated:
            return Generated(index, super()._outcome(index, request).completions, retries=2)

    (done,) = write(Patient(), [work(1)])
    assert (done.retries, done.failure) == (2, None)


def test_what_a_deadline_cut_off_does_not_belong_into_the_cache() -> None:
    found = in_order(write(ShuffledModel(late="p1 "), map(work, range(3))))
    assert [len(done.parts[0].fresh) for done in found] == [2, 0, 2]
    assert [len(texts(done)) for done in found] == [2, 2, 2]


# ------------------------------------------------------------ how far ahead it reads


@pytest.mark.parametrize("make", [work, cached, lambda n: work(n, MIX[2:])])
def test_an_endless_input_is_read_as_it_is_needed(make: object) -> None:
    read = 0

    def endless() -> Iterator[PassageWork]:
        nonlocal read
        for read in count():
            yield make(read)  # type: ignore[operator]

    model = ShuffledModel(ahead=4)
    for given, _ in enumerate(islice(write(model, endless()), 500)):
        assert read - given <= 64
    assert model.most <= 4


def test_known_passages_among_others_are_given_back_meanwhile() -> None:
    works = (work(n) if n % 100 == 50 else cached(n) for n in range(1000))
    model = ShuffledModel()
    waiting = 0
    for given, done in enumerate(write(model, works)):
        waiting = max(waiting, abs(done.number - given))
    assert waiting <= 200
    assert len(model.asked) == 10


def test_what_the_cache_has_is_not_asked_for() -> None:
    half = work(1)
    half.parts[0].found = {1: Completion("known", 1, "stop", 7)}
    model = ShuffledModel()
    (done,) = write(model, [half])
    (request,) = model.asked
    assert request.seeds == (candidate_seeds(0, ONE[0], passage(1), 0)[0],)
    assert [n for n, _ in done.parts[0].in_order()] == [0, 1]
    assert done.parts[0].fresh == [0]


# ------------------------------------------------------------ a request that fails


def test_a_failing_request_is_tried_again_with_other_seeds() -> None:
    model = ShuffledModel(fails=whenever("p1 ", times=2))
    found = in_order(write(model, map(work, range(4))))
    tried = [request.seeds for request in model.asked if request.prompt.startswith("p1 ")]
    assert tried == [tuple(candidate_seeds(0, ONE[0], passage(1), attempt)) for attempt in range(3)]
    assert len({seed for seeds in tried for seed in seeds}) == 6
    assert [done.retries for done in found] == [0, 2, 0, 0]
    assert found[1].failure is None
    assert [c.seed for _, c in found[1].parts[0].in_order()] == list(tried[-1])
    # what other seeds gave is not what the key asks for
    assert [len(done.parts[0].fresh) for done in found] == [2, 0, 2, 2]
    assert found[1].seconds == 0.25 + 0.25 + 0.5


def test_a_request_that_goes_on_failing_fails_its_passage_alone() -> None:
    model = ShuffledModel(fails=whenever("p1 "))
    found = in_order(write(model, map(work, range(4))))
    failure = found[1].failure
    assert failure is not None
    assert (failure.boundary, failure.subject) == ("generate", "p1")
    assert (failure.error, failure.retryable) == ("no text for p1 ", True)
    assert (found[1].retries, texts(found[1])) == (3, [])
    assert [texts(found[n]) for n in (0, 2, 3)] == [of_sequence(4, ONE)[n] for n in (0, 2, 3)]


def test_what_cannot_succeed_is_not_tried_again() -> None:
    model = ShuffledModel(fails=whenever("p1 ", retryable=False))
    found = in_order(write(model, map(work, range(4))))
    failure = found[1].failure
    assert failure is not None
    assert not failure.retryable
    assert found[1].retries == 0
    assert len(model.asked) == 4


def test_no_retries_means_one_try() -> None:
    model = ShuffledModel(fails=whenever("p1 "))
    (done,) = write(model, [work(1)], NO_RETRIES)
    assert (len(model.asked), done.retries) == (1, 0)
    assert done.failure is not None


def test_one_of_many_requests_fails_a_candidate_and_the_others_are_waited_for() -> None:
    model = ShuffledModel(fails=whenever(" 2", times=1))
    (done,) = write(model, [PassageWork(0, passage(5), work(5, MIX[1:2]).parts)])
    assert (done.retries, done.failure, len(model.asked)) == (1, None, 12)
    assert done.parts[0].fresh == []


def test_a_failure_to_ask_or_to_put_together_is_one_too() -> None:
    class Deaf(Letters):
        def requests(self, *args: object, **kwargs: object) -> list[GenerationRequest]:
            raise BackendError("cannot ask", retryable=False)

    class Clumsy(Letters):
        def assemble(self, *args: object, **kwargs: object) -> list[Completion]:
            raise BackendError("cannot score", retryable=True)

    model = ShuffledModel()
    for strategy, asked, retries in ((Deaf(), 0, 0), (Clumsy(), 4, 3)):
        model.asked.clear()
        (done,) = write(model, [work(0, (MixPart(strategy, 2, 0),))])
        assert done.failure is not None
        assert done.failure.error.startswith("cannot ")
        assert (len(model.asked), done.retries) == (asked, retries)


def test_a_plug_in_that_fails_to_ask_or_to_put_together_fails_its_passage_and_is_named() -> None:
    class Deaf(Letters):
        def requests(self, *args: object, **kwargs: object) -> list[GenerationRequest]:
            raise ZeroDivisionError

    class Clumsy(Letters):
        def assemble(self, *args: object, **kwargs: object) -> list[Completion]:
            raise KeyError("x")

    class Forgetful(Letters):
        def assemble(self, *args: object, **kwargs: object) -> list[Completion]:
            return []

    kinds: tuple[tuple[type[Letters], str], ...] = (
        (Deaf, "Deaf.requests: ZeroDivisionError"),
        (Clumsy, "Clumsy.assemble: KeyError"),
        (Forgetful, "Forgetful.assemble: ValueError"),
    )
    for kind, message in kinds:
        for done in write(ShuffledModel(), (work(n, (MixPart(kind(), 2, 0),)) for n in range(30))):
            assert done.failure is not None
            assert message in done.failure.error
            assert (done.failure.retryable, done.retries) == (False, 0)


def test_a_bug_in_the_model_is_not_taken_for_a_failure() -> None:
    class Broken(ShuffledModel):
        def _outcome(self, index: int, request: GenerationRequest) -> Generated:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(write(Broken(), [work(1)]))


# ------------------------------------------------------------ a stream that breaks


@pytest.mark.parametrize("parts", [ONE, MIX, MIX[::-1], MIX[1:]])
@pytest.mark.parametrize("ahead", [1, 3, 20])
def test_a_stream_that_breaks_once_costs_nothing_wherever_it_breaks(
    ahead: int, parts: Sequence[MixPart]
) -> None:
    class Breaking(ShuffledModel):
        left = 0

        def _breaks_now(self, request: GenerationRequest) -> BackendError | None:
            self.left -= 1
            return BackendError("broken pipe", retryable=True) if self.left == 0 else None

    whole = of_sequence(5, parts)
    unbroken = ShuffledModel(ahead=ahead)
    list(write(unbroken, (work(n, parts) for n in range(5))))
    for broken_at in range(1, len(unbroken.asked) + 1):
        model = Breaking(seed=broken_at, ahead=ahead)
        model.left = broken_at
        model._breaks = model._breaks_now
        found = in_order(write(model, (work(n, parts) for n in range(5))))
        assert len(found) == 5
        assert all(done.failure is None for done in found)
        if ahead > 1 and len(unbroken.asked) > broken_at > 1:
            # what was beside it has been tried again with its own seeds
            assert (
                sum(texts(done) != of_whole for done, of_whole in zip(found, whole, strict=True))
                <= 1
            )


def test_passages_beside_one_that_breaks_the_stream_get_what_they_would_get_without_it() -> None:
    model = ShuffledModel(breaks=whenever("p3 "))
    found = in_order(write(model, map(work, range(6))))
    whole = of_sequence(6, ONE)
    assert [done.number for done in found] == [0, 1, 2, 3, 4, 5]
    for done in found:
        if done.number == 3:
            assert done.failure is not None
            assert (done.failure.error, done.failure.retryable) == ("no text for p3 ", True)
            assert (done.retries, texts(done)) == (3, [])
        else:
            assert (texts(done), done.retries) == (whole[done.number], 0)
            assert done.parts[0].fresh == [0, 1]


def test_without_retries_what_was_in_flight_is_still_tried_alone() -> None:
    model = ShuffledModel(breaks=whenever("p2 "))
    found = in_order(write(model, map(work, range(4)), NO_RETRIES))
    assert [done.failure is None for done in found] == [True, True, False, True]


def test_alone_in_a_stream_it_is_tried_again_with_other_seeds_at_once() -> None:
    model = ShuffledModel(breaks=whenever("p1 ", times=1))
    (done,) = write(model, [work(1)])
    first, second = (request.seeds for request in model.asked)
    assert not set(first) & set(second)
    assert (done.retries, done.failure, done.parts[0].fresh) == (1, None, [])


def test_a_break_that_trying_again_cannot_mend_fails_at_once_but_may_when_the_run_goes_on() -> None:
    model = ShuffledModel(breaks=whenever("p1 ", retryable=False))
    found = in_order(write(model, map(work, range(3))))
    tries = sum(request.prompt.startswith("p1 ") for request in model.asked)
    assert tries == 2  # with the others, and alone
    failure = found[1].failure
    assert failure is not None
    assert failure.retryable
    assert found[0].failure is found[2].failure is None


@pytest.mark.parametrize("ahead", [1, 4])
def test_a_model_that_gives_no_outcome_loses_no_passage(ahead: int) -> None:
    class Forgetful(ShuffledModel):
        def stream(
            self, requests: Iterable[GenerationRequest], *, width: int | None = None
        ) -> Iterator[Generated]:
            for outcome in super().stream(requests, width=width):
                if not self.asked[-1].prompt.startswith("p2 ") or self.streams > 2:
                    yield outcome

    found = in_order(write(Forgetful(ahead=ahead), map(work, range(5))))
    assert len(found) == 5
    assert all(done.failure is None for done in found)


# ------------------------------------------------------------ a backend that is dead


@pytest.mark.parametrize("parts", [ONE, MIX])
@pytest.mark.parametrize("how", ["fails", "breaks"])
def test_many_failing_passages_in_a_row_end_the_stream_and_are_given_back_first(
    how: str, parts: Sequence[MixPart]
) -> None:
    # passages 0 to 4 can be written
    class Dying(ShuffledModel):
        def _dead(self, request: GenerationRequest) -> BackendError | None:
            if int(request.prompt.split()[0][1:]) < 5:
                return None
            return BackendError("connection refused", "start the server", retryable=True)

    model = Dying()
    setattr(model, f"_{how}", model._dead)
    read = 0

    def endless() -> Iterator[PassageWork]:
        nonlocal read
        for read in count():
            yield work(read, parts)

    given: list[PassageWork] = []
    with pytest.raises(BackendError, match="20 passages in a row could not be written") as caught:
        given.extend(write(model, endless()))
    assert "connection refused" in caught.value.message
    assert caught.value.remedy == "start the server"
    assert {done.number for done in given if done.failure is None} == set(range(5))
    failed = [done for done in given if done.failure is not None]
    assert GIVE_UP_AFTER <= len(failed) <= GIVE_UP_AFTER + 5
    assert all(done.failure.retryable for done in failed)  # type: ignore[union-attr]
    assert read < 60


def test_a_success_now_and_then_keeps_the_stream_going() -> None:
    def every_tenth(request: GenerationRequest) -> BackendError | None:
        number = int(request.prompt.split()[0][1:])
        return None if number % 10 == 0 else BackendError("busy", retryable=True)

    model = ShuffledModel(fails=every_tenth, ahead=1)
    found = in_order(write(model, map(work, range(100)), NO_RETRIES))
    assert sum(done.failure is None for done in found) == 10


def test_known_passages_in_between_do_not_hide_a_dead_backend() -> None:
    works = (cached(n) if n % 2 else work(n) for n in count())
    with pytest.raises(BackendError, match="in a row"):
        for done in write(ShuffledModel(fails=whenever("p")), works, NO_RETRIES):
            assert done.number < 200


def test_passages_that_cannot_be_written_do_not_make_a_backend_dead() -> None:
    model = ShuffledModel(fails=whenever("p", retryable=False))
    assert len(list(write(model, map(work, range(50))))) == 50


# ------------------------------------------------------------ where passages come from


@pytest.mark.parametrize("error", [BackendError("no tokenizer"), ValueError("a bug")])
def test_an_error_of_the_input_is_raised_and_never_ends_it_silently(error: Exception) -> None:
    def works() -> Iterator[PassageWork]:
        yield from map(work, range(7))
        raise error

    given: list[PassageWork] = []
    with pytest.raises(type(error), match=str(error)):
        given.extend(write(ShuffledModel(), works()))
    if isinstance(error, BackendError):  # what was begun is finished first
        assert len(in_order(given)) == 7


# ------------------------------------------------------------ mixes


def test_a_failing_part_leaves_what_the_others_wrote() -> None:
    model = ShuffledModel(fails=whenever("p1 letters", retryable=False))
    found = in_order(write(model, (work(n, MIX) for n in range(3))))
    whole = of_sequence(3, MIX)
    assert texts(found[1]) == whole[1][2:]
    assert found[1].failure is not None
    assert found[1].parts[1].fresh == [0, 1]
    assert (texts(found[0]), texts(found[2])) == (whole[0], whole[2])


def test_of_two_failures_the_one_that_may_go_away_is_told() -> None:
    def fails(request: GenerationRequest) -> BackendError | None:
        retryable = "syllables" in request.prompt
        return BackendError("busy" if retryable else "too long", retryable=retryable)

    for parts in (MIX, MIX[::-1]):
        (done,) = write(ShuffledModel(ahead=1, fails=fails), [work(0, parts)], NO_RETRIES)
        assert done.failure is not None
        assert (done.failure.error, done.failure.retryable) == ("busy", True)


def test_a_part_has_the_seeds_that_its_strategy_has_alone() -> None:
    letters: SelfEditStrategy = Letters()
    one: Passage = passage(3)
    alone = candidate_seeds(5, MixPart(letters, 2, 0), one, 0)
    assert candidate_seeds(5, MixPart(letters, 4, 7), one, 0)[:2] == alone
    assert candidate_seeds(5, MixPart(letters, 2, 0), one, 1) != alone
    assert candidate_seeds(6, MixPart(letters, 2, 0), one, 0) != alone
    assert candidate_seeds(5, MixPart(Syllables(), 2, 0), one, 0) != alone
