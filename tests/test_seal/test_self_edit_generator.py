from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aios.backends.scripted import Faults, ScriptedModel
from aios.core.errors import BackendError, UnknownStrategyError, UsageError
from aios.core.events import Dropped, Event, PassageGenerated, WorkFailed
from aios.core.seal.cache import SelfEditCache
from aios.core.seal.quality import FilterSettings
from aios.core.seal.self_edit_generator import (
    EditBatch,
    PassageEdits,
    SelfEditGenerator,
    batched,
    model_label,
)
from aios.core.seal.strategies import SelfEditStrategy
from aios.core.types import Completion, FinishReason, Passage, SamplingParams

ALL_KEPT = FilterSettings(enable_quality_filter=False, enable_deduplication=False)


def passage(number: int) -> Passage:
    text = (
        f"The mill of Arn {number} was built by Tove Lind in the year {1800 + number}. "
        f"Its wheel turns {number + 2} stones for the bakers of the valley."
    )
    return Passage.make(text, id=f"p{number}")


class Letters(SelfEditStrategy):
    """A strategy whose texts name passage and seed; passages in `bad` fail as often as told."""

    def __init__(self, *, bad: dict[str, int] | None = None, late: Sequence[str] = ()) -> None:
        super().__init__("letters")
        self.bad = dict(bad or {})
        self.late = late
        self.calls: list[list[tuple[str, tuple[int, ...]]]] = []

    def prompt_text(self, model: Any, passage: Passage) -> str:
        return f"letters of {passage.text}"

    def generate(
        self,
        model: Any,
        passages: Sequence[Passage],
        seeds: Sequence[tuple[int, ...]],
        sampling: SamplingParams,
        deadline_seconds: float | None = None,
    ) -> list[list[Completion]]:
        self.calls.append([(p.id, s) for p, s in zip(passages, seeds, strict=True)])
        self.asked_with = (sampling, deadline_seconds)
        for p in passages:
            if self.bad.get(p.id, 0) > 0:
                self.bad[p.id] -= 1
                raise BackendError(f"no letters for {p.id}", retryable=True)
        return [
            [self._letter(p, seed) for seed in of_passage]
            for p, of_passage in zip(passages, seeds, strict=True)
        ]

    def _letter(self, passage: Passage, seed: int) -> Completion:
        reason: FinishReason = "deadline" if passage.id in self.late else "stop"
        return Completion(f"{passage.id} has letter {seed}", 5, reason, seed)

    def parse_output(
        self, completion: str, passage: Passage, *, finish_reason: FinishReason | None = None
    ) -> list[str]:
        return [completion] if completion else []


def make(strategy: SelfEditStrategy | str = "letters", **options: Any) -> SelfEditGenerator:
    chosen = Letters() if strategy == "letters" else strategy
    defaults: dict[str, Any] = {"num_edits": 2, "filter_settings": ALL_KEPT, "batch_size": 3}
    model = options.pop("model", ScriptedModel())
    return SelfEditGenerator(model, strategy=chosen, **{**defaults, **options})


def texts(results: Sequence[PassageEdits]) -> list[list[str]]:
    return [[edit.text for edit in result.kept] for result in results]


def without_cost(result: PassageEdits) -> PassageEdits:
    return replace(result, cached=0, generated=0, tokens=0, seconds=0.0)


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
        (lambda g: make(num_edits=0), "num_edits is 0"),
        (lambda g: make(batch_size=0), "batch_size is 0"),
        (lambda g: make(max_length=0), "max_length is 0"),
        (lambda g: make(max_retries=-1), "max_retries is -1"),
        (lambda g: make(temperature=0.0), "temperature is 0.0"),
        (lambda g: make(temperature=2.5), "temperature is 2.5"),
        (lambda g: make(temperature=float("nan")), "temperature is nan"),
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
    assert (generator.strategy.name, generator.num_edits) == ("implications", 5)
    assert generator.sampling == SamplingParams(1.0, 0.95, 1024)
    assert generator.cache is None


def test_a_failure_of_the_only_passage_is_raised() -> None:
    one = Passage.make("A text.", id="p")
    with pytest.raises(BackendError, match="no letters for p") as caught:
        make(Letters(bad={"p": 9})).generate_self_edits(one)
    assert caught.value.retryable


def test_a_folder_for_the_cache_is_enough(tmp_path: Path) -> None:
    folder = tmp_path / "edits"
    first, second = Letters(), Letters()
    found = make(first, cache_dir=str(folder)).generate_self_edits("A text.")
    assert make(second, cache_dir=folder).generate_self_edits("A text.") == found
    assert (len(first.calls), second.calls) == (1, [])
    assert len(list(folder.glob("*.json"))) == 2


# ------------------------------------------------------------ batches, order, streaming


def test_passages_are_asked_for_in_batches_and_come_out_in_order() -> None:
    strategy = Letters()
    results = list(make(strategy).generate(passage(n) for n in range(7)))
    assert [result.passage.id for result in results] == [f"p{n}" for n in range(7)]
    assert [[name for name, _ in call] for call in strategy.calls] == [
        ["p0", "p1", "p2"],
        ["p3", "p4", "p5"],
        ["p6"],
    ]
    assert [edit.index for edit in results[0].kept] == [0, 1]
    assert strategy.asked_with == (SamplingParams(1.0, 0.95, 1024), 30.0)


def test_an_endless_input_is_read_batch_by_batch() -> None:
    read = 0

    def endless() -> Iterator[Passage]:
        nonlocal read
        while True:
            read += 1
            yield passage(read)

    results = make().generate(endless())
    for wanted in (1, 2, 3, 4):
        assert next(results).passage.id == f"p{wanted}"
        assert read == 3 * -(-wanted // 3)


def test_no_passages_give_nothing() -> None:
    assert list(make().generate([])) == []
    assert make().generate_batch([]) == EditBatch(())


def test_groups_hold_everything_once() -> None:
    passages = [passage(n) for n in range(5)]
    assert list(batched(passages, 2)) == [passages[:2], passages[2:4], passages[4:]]
    assert list(batched([], 2)) == []


def test_every_candidate_has_a_seed_of_its_own_that_follows_from_passage_and_number() -> None:
    strategy = Letters()
    list(make(strategy, batch_size=1).generate([passage(1), passage(2)]))
    (first,), (second,) = strategy.calls
    assert len({*first[1], *second[1]}) == 4
    again = Letters()
    list(make(again, batch_size=2).generate([passage(2), passage(1)]))
    assert sorted(again.calls[0]) == sorted([first, second])


def test_a_batch_gives_the_same_whatever_ran_before() -> None:
    group = [passage(1), passage(2)]
    fresh = make().generate_batch(group)
    used = make()
    list(used.generate(passage(n) for n in range(10)))
    assert texts(used.generate_batch(group).passages) == texts(fresh.passages)
    assert [key for key, _ in used.generate_batch(group).fresh] == [key for key, _ in fresh.fresh]


def test_the_seed_changes_every_text() -> None:
    one = texts(list(make().generate([passage(1)])))
    other = texts(list(make(seed=1).generate([passage(1)])))
    assert not set(one[0]) & set(other[0])


def test_an_edit_says_where_it_comes_from() -> None:
    model = ScriptedModel(name="tiny", adapter_digest="ab" * 32)
    (result,) = make(model=model).generate([passage(1)])
    edit = result.kept[1]
    assert (edit.passage_id, edit.strategy, edit.index) == ("p1", "letters", 1)
    assert edit.model == "tiny+abababababab" == model_label(model)
    assert edit.completion == f"p1 has letter {edit.seed}"
    assert edit.tokens == 5
    assert (result.generated, result.cached, result.tokens, result.retries) == (2, 0, 10, 0)
    assert result.seconds > 0


# ------------------------------------------------------------ the cache


def test_a_second_run_takes_everything_from_the_cache(cache: SelfEditCache) -> None:
    passages = [passage(n) for n in range(4)]
    first, second = Letters(), Letters()
    made = list(make(first, cache=cache).generate(passages))
    found = list(make(second, cache=cache).generate(passages))
    assert [without_cost(r) for r in found] == [without_cost(r) for r in made]
    assert second.calls == []
    assert {(r.cached, r.generated, r.tokens) for r in found} == {(2, 0, 0)}
    assert {(r.cached, r.generated, r.tokens) for r in made} == {(0, 2, 10)}


def test_only_the_candidates_that_the_cache_lacks_are_made(cache: SelfEditCache) -> None:
    list(make(cache=cache).generate([passage(1)]))
    strategy = Letters()
    generator = make(strategy, cache=cache, num_edits=3)
    assert generator.count_cached(passage(1)) == 2
    (one, two) = generator.generate([passage(1), passage(2)])
    assert [len(seeds) for _, seeds in strategy.calls[0]] == [1, 3]
    assert [edit.index for edit in one.kept] == [0, 1, 2]
    assert (one.cached, one.generated, two.generated) == (2, 1, 3)


def test_a_batch_alone_writes_nothing_until_it_is_remembered(cache: SelfEditCache) -> None:
    generator = make(cache=cache)
    batch = generator.generate_batch([passage(1)])
    assert generator.count_cached(passage(1)) == 0
    generator.remember(batch)
    assert generator.count_cached(passage(1)) == 2
    make().remember(batch)  # without a cache there is nothing to do


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"temperature": 0.5},
        {"top_p": 0.5},
        {"max_length": 64},
        {"model": ScriptedModel(name="other")},
        {"model": ScriptedModel(adapter_digest="cd" * 32)},
    ],
)
def test_whatever_changes_the_text_misses_the_cache(
    cache: SelfEditCache, change: dict[str, Any]
) -> None:
    list(make(cache=cache).generate([passage(1)]))
    assert make(cache=cache).count_cached(passage(1)) == 2
    assert make(cache=cache, **change).count_cached(passage(1)) == 0


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
    strategy = Letters()
    (after,) = make(strategy, cache=cache).generate([passage(1)])
    assert texts([after]) == texts([before])
    assert (after.cached, after.generated) == (1, 1)
    assert told == [entry.name]
    assert make(cache=cache).count_cached(passage(1)) == 2


def test_what_a_deadline_cut_off_is_marked_and_not_cached(cache: SelfEditCache) -> None:
    results = list(make(Letters(late=["p1"]), cache=cache).generate([passage(1), passage(2)]))
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
    results = list(make(Letters(bad={"p1": 99})).generate(passage(n) for n in range(5)))
    assert [result.passage.id for result in results] == [f"p{n}" for n in range(5)]
    failed = results[1]
    assert failed.kept == ()
    assert failed.failure is not None
    assert (failed.failure.boundary, failed.failure.subject) == ("generate", "p1")
    assert failed.failure.error == "no letters for p1"
    assert failed.failure.retryable
    assert failed.retries == 3
    assert all(len(result.kept) == 2 for result in results if result is not failed)


def test_passages_beside_a_failing_one_get_what_they_would_get_without_it(
    cache: SelfEditCache,
) -> None:
    alone = list(make().generate([passage(0), passage(2)]))
    beside = list(make(Letters(bad={"p1": 99}), cache=cache).generate(passage(n) for n in range(3)))
    assert texts([beside[0], beside[2]]) == texts(alone)
    assert (beside[0].retries, beside[2].retries) == (0, 0)
    assert make(cache=cache).count_cached(passage(0)) == 2


def test_a_failed_passage_is_tried_again_with_derived_seeds(cache: SelfEditCache) -> None:
    strategy = Letters(bad={"p1": 2})
    (result,) = make(strategy, cache=cache).generate([passage(1)])
    tried = [seeds for ((_, seeds),) in strategy.calls]
    assert len({seed for seeds in tried for seed in seeds}) == 6
    assert result.retries == 2
    assert [edit.seed for edit in result.kept] == list(tried[-1])
    again = Letters(bad={"p1": 2})
    list(make(again).generate([passage(1)]))
    assert again.calls == strategy.calls
    # what other seeds gave is not what the key asks for
    assert make(cache=cache).count_cached(passage(1)) == 0


def test_no_retries_means_one_try() -> None:
    strategy = Letters(bad={"p1": 99})
    (result,) = make(strategy, max_retries=0).generate([passage(1)])
    assert len(strategy.calls) == 1
    assert result.failure is not None
    assert result.retries == 0


def test_a_failing_batch_without_retries_is_still_tried_one_by_one() -> None:
    strategy = Letters(bad={"p1": 99})
    results = list(make(strategy, max_retries=0).generate(passage(n) for n in range(3)))
    assert [result.failure is None for result in results] == [True, False, True]
    assert len(strategy.calls) == 4


def test_candidates_in_the_cache_outlive_a_failure(cache: SelfEditCache) -> None:
    list(make(cache=cache).generate([passage(1)]))
    failing = make(Letters(bad={"p1": 99}), cache=cache, num_edits=3)
    (result,) = failing.generate([passage(1)])
    assert len(result.kept) == 2
    assert result.failure is not None
    assert (result.cached, result.generated) == (2, 0)


def test_a_prompt_that_does_not_fit_fails_its_passage_only() -> None:
    long = Passage.make("word " * 3000 + "end.", id="long")
    generator = SelfEditGenerator(ScriptedModel(), num_edits=1, filter_settings=ALL_KEPT)
    results = list(generator.generate([passage(1), long]))
    assert results[0].failure is None
    assert results[0].kept
    assert results[1].failure is not None
    assert "leaves no room" in results[1].failure.error


def test_a_bug_in_a_strategy_is_not_taken_for_a_failure() -> None:
    class Broken(Letters):
        def generate(self, *args: Any, **kwargs: Any) -> list[list[Completion]]:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(make(Broken()).generate([passage(1)]))


# ------------------------------------------------------------ the filter, events


def test_drops_are_counted_with_reasons() -> None:
    model = ScriptedModel({"Arn 1": ["1. Too short."], "Arn 2": ["Sure, here is a list:"]})
    settings = FilterSettings(min_length=5)
    generator = SelfEditGenerator(
        model, num_edits=2, filter_settings=settings, strategy="implications"
    )
    one, two, three = generator.generate([passage(1), passage(2), passage(3)])
    assert {drop.reason for drop in one.drops} <= {"too_short", "off_topic"}
    assert [drop.reason for drop in two.drops] == ["no_items", "no_items"]
    assert len(three.kept) + sum(d.reason.endswith("duplicate") for d in three.drops) == 2
    assert [drop.index for drop in two.drops] == [0, 1]


def test_events_tell_what_happened() -> None:
    events: list[Event] = []
    model = ScriptedModel({"Arn 2": ["Sure, here is a list:"], "Arn 3": ["x"]})
    strategy = Letters(bad={"p4": 99})
    generator = make("implications", model=model, emit=events.append, batch_size=1, num_edits=1)
    list(generator.generate([passage(1), passage(2)]))
    list(make(strategy, emit=events.append).generate([passage(4)]))
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
    assert failed == WorkFailed("generate", "p4", "no letters for p4", True)
    assert isinstance(third, PassageGenerated)
    assert (third.kept, third.generated, third.retries) == (0, 0, 3)


def test_prompt_tokens_are_those_of_the_prompt() -> None:
    generator = make()
    assert generator.count_prompt_tokens(passage(1)) == len(f"letters of {passage(1).text}".split())
