from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aios.backends.scripted import Faults, ScriptedModel
from aios.core.errors import BackendError, UnknownStrategyError, UsageError
from aios.core.events import Dropped, Event, PassageGenerated, WorkFailed
from aios.core.seal.cache import SelfEditCache
from aios.core.seal.passage_edits import PassageEdits, Written
from aios.core.seal.quality import FilterSettings
from aios.core.seal.self_edit_generator import SelfEditGenerator, model_label
from aios.core.seal.strategies import SelfEditStrategy
from aios.core.types import FinishReason, GenerationRequest, Passage, SamplingParams
from tests.letters import Letters, Silent, passage
from tests.shuffled_model import ShuffledModel, whenever

ALL_KEPT = FilterSettings(enable_quality_filter=False, enable_deduplication=False)
DEFAULT_SAMPLING = SamplingParams(1.0, 0.95, 1024)


def make(strategy: SelfEditStrategy | str = "letters", **options: Any) -> SelfEditGenerator:
    chosen = Letters() if strategy == "letters" else strategy
    defaults: dict[str, Any] = {"num_edits": 2, "filter_settings": ALL_KEPT, "batch_size": 3}
    model = options.pop("model", None) or ShuffledModel()
    return SelfEditGenerator(model, strategy=chosen, **{**defaults, **options})


def texts(results: Sequence[PassageEdits]) -> list[list[str]]:
    return [[edit.text for edit in result.kept] for result in results]


def without_cost(result: PassageEdits) -> PassageEdits:
    return replace(result, cached=0, generated=0, tokens=0, seconds=0.0)


def by_number(stream: Iterator[Written]) -> list[Written]:
    return sorted(stream, key=lambda written: written.number)


@pytest.fixture
def cache(tmp_path: Path) -> SelfEditCache:
    return SelfEditCache(tmp_path / "cache", 10**9)


# ------------------------------------------------------------ the plan's interface


def test_one_passage_gives_the_texts_of_its_edits() -> None:
    generator = make()
    found = generator.generate_self_edits("A text about mills.")
    assert len(found) == 2
    assert all(" has letter " in text for text in found)
    assert found == generator.generate_self_edits(Passage.make("A text about mills."))


def test_the_number_of_edits_and_the_seed_can_be_set_for_one_call() -> None:
    generator = make()
    usual = generator.generate_self_edits("A text.")
    more = generator.generate_self_edits("A text.", num_edits=4)
    other = generator.generate_self_edits("A text.", seed=9)
    assert more[:2] == usual
    assert len(more) == 4
    assert not set(other) & set(usual)
    assert (generator.num_edits, generator.seed) == (2, 0)
    assert generator.generate_self_edits("A text.") == usual


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda g: g.generate_self_edits("A text.", temperature=1.0), "unknown argument 'temper"),
        (lambda g: g.generate_self_edits("A text.", num_edits=0), "num_edits is 0"),
        (lambda g: g.generate_self_edits(" \n "), "the passage is empty"),
        (
            lambda g: make("rewrite:1,self-qa:2").generate_self_edits("A text.", num_edits=2),
            "the mix rewrite:1,self-qa:2 has its own numbers",
        ),
        (lambda g: make(num_edits=0), "num_edits is 0"),
        (lambda g: make(batch_size=0), "batch_size is 0"),
        (lambda g: make(max_length=0), "max_length is 0"),
        (lambda g: make(max_retries=-1), "max_retries is -1"),
        (lambda g: make(temperature=0.0), "temperature is 0.0"),
        (lambda g: make(temperature=2.5), "temperature is 2.5"),
        (lambda g: make(temperature=float("nan")), "temperature is nan"),
        (lambda g: make("rewrite:1,rewrite:2"), "more than once"),
        (lambda g: SelfEditGenerator(object()), "takes a LanguageModel"),  # type: ignore[arg-type]
    ],
)
def test_wrong_use_is_refused(call: Callable[[SelfEditGenerator], Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        call(make())


def test_a_tokenizer_is_refused_with_what_to_do_instead() -> None:
    with pytest.raises(UsageError, match=r"aios\.TorchLM\(model, tokenizer\)"):
        SelfEditGenerator(ScriptedModel(), object())


def test_an_unknown_strategy_is_refused_and_the_known_ones_listed() -> None:
    with pytest.raises(UnknownStrategyError, match="implications"):
        SelfEditGenerator(ScriptedModel(), strategy="inplications")


def test_the_defaults_are_those_of_the_plan() -> None:
    generator = SelfEditGenerator(ScriptedModel())
    assert (generator.strategy_name, generator.num_edits) == ("implications", 5)
    assert generator.sampling == DEFAULT_SAMPLING
    assert generator.cache is None


def test_a_failure_of_the_only_passage_is_raised() -> None:
    one = Passage.make("A text.", id="p")
    with pytest.raises(BackendError, match="no text for p ") as caught:
        make(model=ShuffledModel(fails=whenever("p "))).generate_self_edits(one)
    assert caught.value.retryable


def test_a_folder_for_the_cache_is_enough(tmp_path: Path) -> None:
    folder = tmp_path / "edits"
    first, second = ShuffledModel(), ShuffledModel()
    found = make(model=first, cache_dir=str(folder)).generate_self_edits("A text.")
    assert make(model=second, cache_dir=folder).generate_self_edits("A text.") == found
    assert (len(first.asked), second.asked) == (1, [])
    assert len(list(folder.glob("*.json"))) == 2


# ------------------------------------------------------------ order, streaming


@pytest.mark.parametrize("order", range(4))
def test_passages_come_out_in_order_whatever_order_they_are_finished_in(order: int) -> None:
    model = ShuffledModel(order, ahead=9)
    results = list(make(model=model).generate(passage(n) for n in range(30)))
    assert [result.passage.id for result in results] == [f"p{n}" for n in range(30)]
    assert texts(results) == texts(
        list(make(model=ShuffledModel(ahead=1)).generate(passage(n) for n in range(30)))
    )
    assert [edit.index for edit in results[0].kept] == [0, 1]


def test_passages_are_asked_for_together_with_the_settings_given() -> None:
    model = ShuffledModel()
    list(make(model=model).generate(passage(n) for n in range(7)))
    assert model.streams == 1
    assert model.width == 3 * 2
    assert [request.prompt.split()[0] for request in model.asked] == [f"p{n}" for n in range(7)]
    assert {len(request.seeds) for request in model.asked} == {2}
    assert {(request.sampling, request.deadline_seconds) for request in model.asked} == {
        (DEFAULT_SAMPLING, 30.0)
    }


@pytest.mark.parametrize("strategy", [Letters(), Silent()])
def test_an_endless_input_is_read_as_it_is_needed(strategy: SelfEditStrategy) -> None:
    read = 0

    def endless() -> Iterator[Passage]:
        nonlocal read
        while True:
            read += 1
            yield passage(read)

    results = make(strategy, model=ShuffledModel(ahead=1)).generate(endless())
    for wanted in range(1, 200):
        assert next(results).passage.id == f"p{wanted}"
        assert read <= wanted + 64


def test_no_passages_give_nothing() -> None:
    assert list(make().generate([])) == []
    assert list(make().stream([])) == []


def test_a_stream_holds_everything_once_with_its_number() -> None:
    found = list(make().stream(passage(n) for n in range(20)))
    assert sorted(written.number for written in found) == list(range(20))
    assert all(written.edits.passage.id == f"p{written.number}" for written in found)


def test_every_candidate_has_a_seed_of_its_own_that_follows_from_passage_and_number() -> None:
    model = ShuffledModel()
    list(make(model=model, batch_size=1).generate([passage(1), passage(2)]))
    first, second = (request.seeds for request in model.asked)
    assert len({*first, *second}) == 4
    again = ShuffledModel()
    list(make(model=again, batch_size=2).generate([passage(2), passage(1)]))
    assert [request.seeds for request in again.asked] == [second, first]


def test_a_passage_gives_the_same_whatever_ran_before() -> None:
    group = [passage(1), passage(2)]
    fresh = by_number(make().stream(group))
    used = make()
    list(used.generate(passage(n) for n in range(10)))
    again = by_number(used.stream(group))
    assert [written.edits.kept for written in again] == [written.edits.kept for written in fresh]
    assert [written.fresh for written in again] == [written.fresh for written in fresh]


def test_the_seed_changes_every_text() -> None:
    one = texts(list(make().generate([passage(1)])))
    other = texts(list(make(seed=1).generate([passage(1)])))
    assert not set(one[0]) & set(other[0])


def test_an_edit_says_where_it_comes_from() -> None:
    model = ScriptedModel({"letters": ["some letters"]}, name="tiny", adapter_digest="ab" * 32)
    (result,) = make(model=model).generate([passage(1)])
    edit = result.kept[1]
    assert (edit.passage_id, edit.strategy, edit.index) == ("p1", "letters", 1)
    assert edit.model == "tiny+abababababab" == model_label(model)
    assert edit.completion == "some letters"
    assert edit.tokens == 2
    assert (result.generated, result.cached, result.tokens, result.retries) == (2, 0, 4, 0)
    assert result.seconds > 0


# ------------------------------------------------------------ the cache


def test_a_second_run_takes_everything_from_the_cache(cache: SelfEditCache) -> None:
    passages = [passage(n) for n in range(4)]
    first, second = ShuffledModel(), ShuffledModel()
    made = list(make(model=first, cache=cache).generate(passages))
    found = list(make(model=second, cache=cache).generate(passages))
    assert [without_cost(r) for r in found] == [without_cost(r) for r in made]
    assert second.asked == []
    assert {(r.cached, r.generated, r.tokens) for r in found} == {(2, 0, 0)}
    assert {(r.cached, r.generated, r.tokens) for r in made} == {(0, 2, 10)}


def test_only_the_candidates_that_the_cache_lacks_are_made(cache: SelfEditCache) -> None:
    list(make(cache=cache).generate([passage(1)]))
    model = ShuffledModel()
    generator = make(model=model, cache=cache, num_edits=3)
    assert generator.count_cached(passage(1)) == 2
    (one, two) = generator.generate([passage(1), passage(2)])
    assert [len(request.seeds) for request in model.asked] == [1, 3]
    assert [edit.index for edit in one.kept] == [0, 1, 2]
    assert (one.cached, one.generated, two.generated) == (2, 1, 3)


def test_a_stream_writes_nothing_to_the_cache_until_it_is_remembered(cache: SelfEditCache) -> None:
    generator = make(cache=cache)
    (written,) = generator.stream([passage(1)])
    assert generator.count_cached(passage(1)) == 0
    generator.remember(written)
    assert generator.count_cached(passage(1)) == 2
    make().remember(written)  # without a cache there is nothing to do


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"temperature": 0.5},
        {"top_p": 0.5},
        {"max_length": 64},
        {"model": ScriptedModel(name="other")},
        {"model": ScriptedModel(name="shuffled", context_length=10**6, adapter_digest="cd" * 32)},
    ],
)
def test_whatever_changes_the_text_misses_the_cache(
    cache: SelfEditCache, change: dict[str, Any]
) -> None:
    list(make(cache=cache).generate([passage(1)]))
    assert make(cache=cache).count_cached(passage(1)) == 2
    assert make(cache=cache, **change).count_cached(passage(1)) == 0


@pytest.mark.parametrize("strategy", ["cloze", "self-qa-grounded"])
def test_what_does_not_sample_with_them_is_found_whatever_the_settings(
    cache: SelfEditCache, strategy: str
) -> None:
    list(make(strategy, cache=cache).generate([passage(1)]))
    other = make(strategy, cache=cache, temperature=0.5, top_p=0.5, max_length=64)
    assert other.count_cached(passage(1)) == 2


def test_a_new_parser_misses_the_cache(cache: SelfEditCache) -> None:
    list(make(cache=cache).generate([passage(1)]))
    newer = Letters()
    newer.parser_version = 2
    assert make(newer, cache=cache).count_cached(passage(1)) == 0


def test_a_corrupt_entry_is_set_aside_and_made_again(tmp_path: Path) -> None:
    told: list[str] = []
    cache = SelfEditCache(tmp_path, 10**9, on_corrupt=lambda path, reason: told.append(path.name))
    (before,) = make(cache=cache).generate([passage(1)])
    entry = sorted(tmp_path.glob("*.json"))[0]
    entry.write_bytes(entry.read_bytes()[:-20] + b"spoiled by a disk }}")
    (after,) = make(cache=cache).generate([passage(1)])
    assert texts([after]) == texts([before])
    assert (after.cached, after.generated) == (1, 1)
    assert told == [entry.name]
    assert make(cache=cache).count_cached(passage(1)) == 2


def test_what_a_deadline_cut_off_is_marked_and_not_cached(cache: SelfEditCache) -> None:
    model = ShuffledModel(late="p1 ")
    results = list(make(model=model, cache=cache).generate([passage(1), passage(2)]))
    assert [edit.scores.get("cut_by_deadline") for edit in results[0].kept] == [1.0, 1.0]
    assert all("cut_by_deadline" not in edit.scores for edit in results[1].kept)
    counter = make(cache=cache)
    assert (counter.count_cached(passage(1)), counter.count_cached(passage(2))) == (0, 2)


def test_a_slow_model_keeps_what_it_has_by_the_deadline(cache: SelfEditCache) -> None:
    slow = ScriptedModel(faults=Faults(hang_seconds=2.0), sleep=lambda seconds: None)
    generator = SelfEditGenerator(
        slow, num_edits=1, cache=cache, deadline_seconds=1.0, filter_settings=ALL_KEPT
    )
    (result,) = generator.generate([passage(1)])
    (edit,) = result.kept
    assert 0 < edit.tokens < 20
    assert edit.scores["cut_by_deadline"] == 1.0
    assert not list(cache.folder.glob("*.json"))


# ------------------------------------------------------------ failures


def test_one_failing_passage_does_not_stop_the_others() -> None:
    model = ShuffledModel(fails=whenever("p1 "))
    results = list(make(model=model).generate(passage(n) for n in range(5)))
    assert [result.passage.id for result in results] == [f"p{n}" for n in range(5)]
    failed = results[1]
    assert failed.kept == ()
    assert failed.failure is not None
    assert (failed.failure.boundary, failed.failure.subject) == ("generate", "p1")
    assert failed.failure.error == "no text for p1 "
    assert failed.failure.retryable
    assert failed.retries == 3
    assert all(len(result.kept) == 2 for result in results if result is not failed)


@pytest.mark.parametrize("how", ["fails", "breaks"])
def test_passages_beside_a_failing_one_get_what_they_would_get_without_it(
    cache: SelfEditCache, how: str
) -> None:
    alone = list(make().generate([passage(0), passage(2)]))
    model = ShuffledModel(**{how: whenever("p1 ")})  # type: ignore[arg-type]
    beside = list(make(model=model, cache=cache).generate(passage(n) for n in range(3)))
    assert texts([beside[0], beside[2]]) == texts(alone)
    assert (beside[0].retries, beside[2].retries) == (0, 0)
    assert make(cache=cache).count_cached(passage(0)) == 2


def test_a_failed_passage_is_tried_again_with_derived_seeds(cache: SelfEditCache) -> None:
    model = ShuffledModel(fails=whenever("p1 ", times=2))
    (result,) = make(model=model, cache=cache).generate([passage(1)])
    tried = [request.seeds for request in model.asked]
    assert len({seed for seeds in tried for seed in seeds}) == 6
    assert result.retries == 2
    assert [edit.seed for edit in result.kept] == list(tried[-1])
    again = ShuffledModel(fails=whenever("p1 ", times=2))
    list(make(model=again).generate([passage(1)]))
    assert again.asked == model.asked
    # what other seeds gave is not what the key asks for
    assert make(cache=cache).count_cached(passage(1)) == 0


def test_no_retries_means_one_try() -> None:
    model = ShuffledModel(fails=whenever("p1 "))
    (result,) = make(model=model, max_retries=0).generate([passage(1)])
    assert len(model.asked) == 1
    assert result.failure is not None
    assert result.retries == 0


def test_candidates_in_the_cache_outlive_a_failure(cache: SelfEditCache) -> None:
    list(make(cache=cache).generate([passage(1)]))
    failing = make(model=ShuffledModel(fails=whenever("p1 ")), cache=cache, num_edits=3)
    (result,) = failing.generate([passage(1)])
    assert len(result.kept) == 2
    assert result.failure is not None
    assert (result.cached, result.generated) == (2, 0)


def test_a_prompt_that_does_not_fit_fails_its_passage_only() -> None:
    long = Passage.make("word " * 3000 + "end.", id="long")
    generator = SelfEditGenerator(ScriptedModel(), num_edits=1, filter_settings=ALL_KEPT)
    results = list(generator.generate([passage(1), long, passage(2)]))
    assert results[0].failure is results[2].failure is None
    assert results[0].kept
    assert results[2].kept
    assert results[1].failure is not None
    assert "leaves no room" in results[1].failure.error


def test_a_dead_backend_ends_it_after_what_was_written() -> None:
    model = ShuffledModel(breaks=whenever("p1", retryable=True), ahead=1)  # p1 and p10 to p19
    texts_seen = list(make(model=model, max_retries=0).generate(passage(n) for n in range(30)))
    assert sum(result.failure is not None for result in texts_seen) == 11
    given: list[PassageEdits] = []
    with pytest.raises(BackendError, match="20 passages in a row"):
        for result in make(model=ShuffledModel(breaks=whenever("letters"))).generate(
            passage(n) for n in range(300)
        ):
            given.append(result)
    assert len(given) == 20


# ------------------------------------------------------------ a mix


def test_the_candidates_of_a_mix_are_numbered_through_and_named_by_their_strategy() -> None:
    generator = make("rewrite:2,implications:1,cloze:2", model=ScriptedModel())
    assert (generator.strategy_name, generator.num_edits) == ("rewrite:2,implications:1,cloze:2", 5)
    (result,) = generator.generate([passage(1)])
    assert [(edit.strategy, edit.index) for edit in result.kept] == [
        ("rewrite", 0),
        ("rewrite", 1),
        ("implications", 2),
        ("cloze", 3),
        ("cloze", 4),
    ]
    assert result.generated == 5
    assert len({edit.seed for edit in result.kept}) == 5


def test_a_mix_gives_and_caches_what_its_strategies_give_alone(cache: SelfEditCache) -> None:
    alone = make("implications", model=ScriptedModel(), cache=cache, num_edits=2)
    (by_itself,) = alone.generate([passage(1)])
    mix = make("cloze:1,implications:3", model=ScriptedModel(), cache=cache)
    assert mix.count_cached(passage(1)) == 2
    (result,) = mix.generate([passage(1)])
    assert (result.cached, result.generated) == (2, 2)
    assert [edit.text for edit in result.kept[1:3]] == [edit.text for edit in by_itself.kept]
    assert [edit.seed for edit in result.kept[1:3]] == [edit.seed for edit in by_itself.kept]
    assert (
        make("implications", model=ScriptedModel(), cache=cache, num_edits=3).count_cached(
            passage(1)
        )
        == 3
    )


def test_a_failing_part_of_a_mix_leaves_the_edits_of_the_others(cache: SelfEditCache) -> None:
    model = ScriptedModel(faults=Faults(fail_times=99, fail_on="ewrit"))
    generator = make("cloze:1,rewrite:2,implications:2", model=model, cache=cache)
    (result,) = generator.generate([passage(1)])
    assert [(edit.strategy, edit.index) for edit in result.kept] == [
        ("cloze", 0),
        ("implications", 3),
        ("implications", 4),
    ]
    assert result.failure is not None
    assert result.failure.boundary == "generate"
    assert (result.generated, result.cached) == (3, 0)
    (again,) = make(
        "cloze:1,rewrite:2,implications:2", model=ScriptedModel(), cache=cache
    ).generate([passage(1)])
    assert (again.failure, again.generated, again.cached) == (None, 2, 3)


# ------------------------------------------------------------ strategies that are broken


class Unreadable(Letters):
    """A strategy of another package, whose parser fails on a passage."""

    def parse_output(
        self, completion: str, passage: Passage, *, finish_reason: FinishReason | None = None
    ) -> list[str]:
        if passage.id == "p1":
            raise KeyError("answer")
        return super().parse_output(completion, passage, finish_reason=finish_reason)


def test_a_plug_in_that_cannot_read_an_answer_fails_that_passage_and_is_named() -> None:
    events: list[Event] = []
    generator = make(Unreadable(), emit=events.append)
    results = list(generator.generate(passage(n) for n in range(4)))
    assert [len(result.kept) for result in results] == [2, 0, 2, 2]
    failure = results[1].failure
    assert failure is not None
    assert (failure.boundary, failure.subject, failure.retryable) == ("parse", "p1", True)
    assert f"{__name__}.Unreadable.parse_output" in failure.error
    assert "'letters' of another package" in failure.error
    assert "KeyError: 'answer'" in failure.error
    assert [event.subject for event in events if isinstance(event, WorkFailed)] == ["p1"]


@pytest.mark.parametrize("parsed", [None, "text", [1, 2], iter("ab")])
def test_a_plug_in_that_reads_something_else_than_texts_is_named_too(parsed: Any) -> None:
    class Odd(Letters):
        def parse_output(self, *args: object, **kwargs: object) -> list[str]:
            found: list[str] = parsed
            return found

    (result,) = make(Odd()).generate([passage(1)])
    assert result.failure is not None
    assert result.failure.boundary == "parse"
    assert "Odd.parse_output: TypeError" in result.failure.error


def test_a_plug_in_that_reads_nothing_at_all_ends_the_run(cache: SelfEditCache) -> None:
    class Blind(Letters):
        def parse_output(self, *args: object, **kwargs: object) -> list[str]:
            raise ValueError("cannot read")

    given = 0
    with pytest.raises(UsageError, match="20 passages in a row could not be read") as caught:
        for _ in make(Blind(), cache=cache).generate(passage(n) for n in range(300)):
            given += 1
    assert "Blind.parse_output" in caught.value.message
    assert 0 < given <= 20
    assert make(cache=cache).count_cached(passage(0)) == 2


def test_a_plug_in_without_a_prompt_for_a_passage_fails_that_passage_only() -> None:
    class Broken(Letters):
        def prompt_text(self, model: Any, passage: Passage) -> str:
            if passage.id == "p1":
                raise LookupError("no prompt")
            return super().prompt_text(model, passage)

    results = list(make(Broken()).generate(passage(n) for n in range(3)))
    assert [len(result.kept) for result in results] == [2, 0, 2]
    assert results[1].failure is not None
    assert "Broken.prompt_text: LookupError: no prompt" in results[1].failure.error


def test_what_a_plug_in_cannot_read_does_not_hide_that_generation_failed() -> None:
    fails = whenever("p1 Arn")

    class Half(Unreadable):
        def prompt_text(self, model: Any, passage: Passage) -> str:
            return f"{passage.id} Arn"

    generator = make("cloze:1", model=ShuffledModel(fails=fails))
    parts = (*make(Half()).parts, *make(Unreadable("other")).parts)
    generator.parts = parts
    (result,) = generator.generate([passage(1)])
    assert result.failure is not None
    assert (result.failure.boundary, result.failure.retryable) == ("generate", True)


@pytest.mark.parametrize("method", ["requests", "assemble", "parse_output"])
def test_a_bug_in_a_strategy_of_ours_is_not_taken_for_a_failure(
    monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    from aios.core.seal.strategies import ImplicationsStrategy

    def broken(*args: object, **kwargs: object) -> Any:
        raise KeyError("a bug")

    monkeypatch.setattr(ImplicationsStrategy, method, broken)
    with pytest.raises(KeyError, match="a bug"):
        list(make("implications", model=ScriptedModel()).generate([passage(1)]))


# ------------------------------------------------------------ the filter, events


def test_drops_are_counted_with_reasons() -> None:
    model = ScriptedModel({"Arn 1": ["1. Too short."], "Arn 2": ["Sure, here is a list:"]})
    settings = FilterSettings(min_length=5)
    generator = SelfEditGenerator(
        model, num_edits=2, filter_settings=settings, strategy="implications"
    )
    one, two, three = generator.generate([passage(1), passage(2), passage(3)])
    assert {drop.reason for drop in one.drops} <= {"too_short", "off_topic", "fragment"}
    assert [drop.reason for drop in two.drops] == ["no_items", "no_items"]
    assert len(three.kept) + sum(d.reason.endswith("duplicate") for d in three.drops) == 2
    assert [drop.index for drop in two.drops] == [0, 1]


def test_events_tell_what_happened() -> None:
    events: list[Event] = []
    model = ScriptedModel({"Arn 2": ["Sure, here is a list:"], "Arn 3": ["x"]})
    generator = make("implications", model=model, emit=events.append, batch_size=1, num_edits=1)
    list(generator.generate([passage(1), passage(2)]))
    failing = ShuffledModel(fails=whenever("p4 "))
    list(make(model=failing, emit=events.append).generate([passage(4)]))
    assert [type(event) for event in events] == [
        PassageGenerated,
        Dropped,
        PassageGenerated,
        WorkFailed,
        PassageGenerated,
    ]
    first, drop, second, failed, third = events
    assert isinstance(first, PassageGenerated)
    assert (first.passage_id, first.kept, first.dropped, first.generated) == ("p1", 1, 0, 1)
    assert first.tokens > 0
    assert first.seconds > 0
    assert drop == Dropped("p2", "implications", 0, "no_items", drop.detail)  # type: ignore[union-attr]
    assert isinstance(second, PassageGenerated)
    assert (second.kept, second.dropped) == (0, 1)
    assert failed == WorkFailed("generate", "p4", "no text for p4 ", True)
    assert isinstance(third, PassageGenerated)
    assert (third.kept, third.generated, third.retries) == (0, 0, 3)
    assert third.seconds == 4 * 0.25  # what failed has taken its time too


def test_events_come_passage_by_passage_as_they_are_finished() -> None:
    events: list[Event] = []
    list(make(model=ShuffledModel(2), emit=events.append).stream(passage(n) for n in range(20)))
    order = [event.passage_id for event in events if isinstance(event, PassageGenerated)]
    assert sorted(order) == sorted(f"p{n}" for n in range(20))
    assert order != [f"p{n}" for n in range(20)]


def test_prompt_tokens_are_those_of_the_prompts() -> None:
    prompt = Letters().prompt_text(ScriptedModel(), passage(1))
    assert make().count_prompt_tokens(passage(1)) == len(prompt.split())
    of_mix = make("rewrite:1,self-qa:4").count_prompt_tokens(passage(1))
    assert of_mix == sum(make(s).count_prompt_tokens(passage(1)) for s in ("rewrite", "self-qa"))


# ------------------------------------------------------------ everything at once


@pytest.mark.parametrize("seed", range(6))
def test_faults_of_all_kinds_leave_the_other_passages_as_they_were(
    tmp_path: Path, seed: int
) -> None:
    rng = random.Random(seed)
    whole = texts(list(make().generate(passage(n) for n in range(40))))
    bad = {f"p{n} " for n in rng.sample(range(40), 6)}

    def sometimes(request: GenerationRequest) -> BackendError | None:
        if any(request.prompt.startswith(name) for name in bad):
            return BackendError("no", retryable=rng.random() < 0.8)
        return None

    def rarely(request: GenerationRequest) -> BackendError | None:
        return sometimes(request) if rng.random() < 0.3 else None

    cache = SelfEditCache(tmp_path / "cache", 10**9)
    for n in rng.sample(range(40), 10):
        list(make(cache=cache).generate([passage(n)]))
    model = ShuffledModel(seed, ahead=rng.randint(1, 20), fails=sometimes, breaks=rarely)
    results = list(make(model=model, cache=cache).generate(passage(n) for n in range(40)))
    assert [result.passage.id for result in results] == [f"p{n}" for n in range(40)]
    for number, (result, expected) in enumerate(zip(texts(results), whole, strict=True)):
        if f"p{number} " not in bad:
            assert result == expected
            assert results[number].failure is None


def test_the_seed_of_the_generator_holds_unless_another_is_given() -> None:
    texts = [make("rewrite", seed=seed).generate_self_edits("A text.") for seed in (7, 7, 8)]
    assert texts[0] == texts[1] != texts[2]
    assert make("rewrite", seed=8).generate_self_edits("A text.", seed=7) == texts[0]


def test_an_edit_has_the_losses_of_its_lines() -> None:
    class Measuring(ShuffledModel):
        def stream(self, *given: Any, **named: Any) -> Any:
            for one in super().stream(*given, **named):
                found = [replace(c, line_losses=(0.5,)) for c in one.completions]
                yield replace(one, completions=tuple(found))

    (result,) = make(model=Measuring()).generate([passage(1)])
    assert result.kept
    assert [edit.line_losses for edit in result.kept] == [(0.5,)] * len(result.kept)


def test_another_text_or_prompt_of_a_passage_misses_the_cache(cache: SelfEditCache) -> None:
    known = passage(1)
    list(make(cache=cache).generate([known]))
    assert make(cache=cache).count_cached(known) == 2
    changed = Passage.make(f"{known.text} It burnt down.", id=known.id)
    assert make(cache=cache).count_cached(changed) == 0
    (result,) = make(cache=cache).generate([changed])
    assert (result.cached, result.generated) == (0, 2)


@pytest.mark.parametrize("temperature", [0.1, 2.0])
def test_the_least_and_the_largest_temperature_are_allowed(temperature: float) -> None:
    assert make(temperature=temperature).sampling.temperature == temperature
