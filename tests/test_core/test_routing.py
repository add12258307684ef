from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from aios.core.config.serving_schemas import RoutingConfig
from aios.core.experts import routing_terms
from aios.core.experts.routing import Router, refers_back, weighted_messages
from aios.core.experts.routing_signals import (
    EmbeddingSignal,
    ExpertProfile,
    GoalSignal,
    LexicalSignal,
    LossSignal,
    Signal,
)

MOSS = ExpertProfile(
    "moss",
    "Mosses",
    "Knows plants",
    goals=("Answer questions about mosses and ferns",),
    passages=(
        ("m1", "Fennikin moss grows on slate roofs. The botanist Ilva Rune collected it in 1902."),
        ("m2", "Ferns spread by spores, which the wind carries far across the valley."),
    ),
)
TIDE = ExpertProfile(
    "tide",
    "Engines",
    "Knows machines driven by water",
    goals=("Explain tide engines and mills",),
    passages=(
        ("t1", "The Brellow tide engine was designed by the millwright Osanne Verrick in 1871."),
        ("t2", "Its floats of tarred larch drive a crank through bronze links at spring tides."),
    ),
)
BARE = ExpertProfile("bare", passages=(("b1", "Kessamere is a town on Lake Dorrin."),))
ALL = (MOSS, TIDE, BARE)


def router(
    profiles: Sequence[ExpertProfile] = ALL,
    signals: Sequence[Signal] | None = None,
    **settings: float,
) -> Router:
    chosen = [GoalSignal(), LexicalSignal()] if signals is None else signals
    return Router(profiles, chosen, RoutingConfig(**settings))  # type: ignore[arg-type]


def who(message: str, history: Sequence[str] = (), by: Router | None = None) -> tuple[str, ...]:
    return tuple(name for name, _ in (by or router()).route(message, history).chosen)


class Fixed:
    """A signal with given scores; None: it knows nothing."""

    name = "fixed"

    def __init__(self, **scores: float | None) -> None:
        self._scores = scores

    def scores(self, message: str, profiles: Sequence[ExpertProfile]) -> NDArray[np.float64]:
        found = [self._scores.get(p.expert_id, 0.0) for p in profiles]
        return np.asarray([np.nan if score is None else score for score in found])


# ------------------------------------------------------------------ who answers


@pytest.mark.parametrize(
    ("message", "expert"),
    [
        ("Who designed the Brellow tide engine?", "tide"),
        ("which botanist collected fennikin mosses", "moss"),
        ("Where is Kessamere?", "bare"),
    ],
)
def test_the_expert_that_was_trained_on_it_answers(message: str, expert: str) -> None:
    assert who(message) == (expert,)


@pytest.mark.parametrize(
    "message",
    [
        "",
        "   \n",
        "?!",
        "Hello, how are you?",
        "What is the capital of Australia?",
        "Write a Python function that reverses a list.",
        "How do I remove a red wine stain from a white shirt?",
        "💚" * 50,
        "x" * 100_000,
    ],
)
def test_nothing_answers_what_no_expert_is_for(message: str) -> None:
    routing = router().route(message)
    assert routing.chosen == ()
    assert routing.reason.startswith("none fits")


def test_without_an_active_expert_the_base_model_answers() -> None:
    assert router([]).route("Where is Kessamere?").reason == "there is no active expert"
    sleeping = ExpertProfile("bare", passages=BARE.passages, is_active=False)
    routing = router([sleeping]).route("Where is Kessamere?")
    assert (routing.chosen, dict(routing.scores)) == ((), {})


def test_the_reason_and_the_scores_say_why() -> None:
    routing = router().route("Who designed the Brellow tide engine?")
    assert routing.reason.startswith("by goals+lexical: tide ")
    assert set(routing.scores["tide"]) == {"goals", "lexical"}
    assert set(routing.scores["bare"]) == {"goals", "lexical"}  # its id counts as its name
    assert routing.totals["tide"] == pytest.approx(np.mean([*routing.scores["tide"].values()]))
    assert all(0 <= s <= 1 for scores in routing.scores.values() for s in scores.values())


def test_an_experts_goals_alone_can_choose_it() -> None:
    untold = ExpertProfile("ferns", goals=("Everything about ferns and orchids",))
    assert who("Tell me about orchids and ferns", by=router([TIDE, untold])) == ("ferns",)


def test_what_a_signal_does_not_know_is_left_out_of_the_mean() -> None:
    silent = router([MOSS, TIDE], [Fixed(moss=0.8, tide=0.7), Fixed(moss=None, tide=0.1)])
    routing = silent.route("anything")
    assert routing.totals == pytest.approx({"moss": 0.8, "tide": 0.4})
    assert routing.scores["moss"] == {"fixed": 0.8}


def test_an_expert_of_which_nothing_is_known_never_answers() -> None:
    routing = router([MOSS], [Fixed(moss=None)], threshold=0.0).route("anything")
    assert routing.chosen == ()


def test_the_threshold_decides_what_fits() -> None:
    signals = [Fixed(moss=0.5, tide=0.3)]
    assert who("x", by=router([MOSS, TIDE], signals, threshold=0.5)) == ("moss",)
    assert who("x", by=router([MOSS, TIDE], signals, threshold=0.51)) == ()


def test_the_best_answer_together_with_softmax_weights() -> None:
    signals = [Fixed(moss=0.8, tide=0.7, bare=0.6)]
    routing = router(ALL, signals, top_k=2, temperature=0.1).route("x")
    names, weights = zip(*routing.chosen, strict=True)
    assert names == ("moss", "tide")
    assert weights == pytest.approx((1 / (1 + math.exp(-1)), 1 / (1 + math.exp(1))))
    assert sum(weights) == pytest.approx(1)


def test_only_those_that_fit_answer_together() -> None:
    routing = router(ALL, [Fixed(moss=0.8, tide=0.1)], top_k=3).route("x")
    assert routing.chosen == (("moss", 1.0),)


def test_a_small_temperature_does_not_overflow() -> None:
    routing = router(ALL, [Fixed(moss=1.0, tide=0.3)], top_k=2, temperature=1e-6).route("x")
    assert routing.chosen[0] == ("moss", 1.0)


def test_equal_scores_are_ordered_by_id_whatever_the_order_of_the_profiles() -> None:
    signals = [Fixed(moss=0.5, tide=0.5, bare=0.5)]
    for profiles in (ALL, ALL[::-1]):
        assert who("x", by=router(profiles, signals, top_k=2)) == ("bare", "moss")


def test_the_same_question_gets_the_same_answer_from_many_threads() -> None:
    shared = router()
    with ThreadPoolExecutor(8) as pool:
        messages = ["Where is Kessamere?", "Fennikin moss?"] * 32
        answers = list(pool.map(lambda message: who(message, by=shared), messages))
    assert answers == [("bare",), ("moss",)] * 32


# ------------------------------------------------------------------ conversations


@pytest.mark.parametrize(
    "message",
    ["And who built it?", "Why?", "When was that?", "What about its weight?", "Tell me more"],
)
def test_a_follow_up_stays_with_the_expert(message: str) -> None:
    assert who(message) == ()
    assert who(message, ["Who designed the Brellow tide engine?"]) == ("tide",)


def test_a_follow_up_of_a_follow_up_stays_too() -> None:
    history = ["Who designed the Brellow tide engine?", "And when was that?"]
    assert who("Why?", history) == ("tide",)


def test_a_new_subject_is_one() -> None:
    history = ["Who designed the Brellow tide engine?"]
    assert who("Which botanist collected Fennikin moss?", history) == ("moss",)
    assert who("Write a short poem about autumn rain.", history) == ()


def test_only_the_last_messages_count() -> None:
    history = ["Who designed the Brellow tide engine?", *["Write a poem about autumn rain."] * 4]
    assert who("Why?", history) == ()


def test_what_refers_back_is_recognised() -> None:
    assert refers_back("And who built it?")
    assert refers_back("what about the others")
    assert not refers_back("Who designed the Brellow tide engine?")
    assert not refers_back("it " + "word " * 20)


def test_messages_count_by_what_they_say_and_how_long_ago_it_was() -> None:
    first, second = "Brellow tide engine floats", "And why?"
    (now, own), (before, less), (oldest, least) = weighted_messages("Why?", [first, second])
    assert (now, own) == ("Why?", 0.0)
    assert (before, less) == (second, 0.0)
    assert oldest == first
    assert 0 < least < routing_terms.information(first)


# ------------------------------------------------------------------ signals


def test_words_are_compared_without_their_endings() -> None:
    assert routing_terms.terms("The mosses were running, and cities") == ("moss", "run", "city")
    assert routing_terms.terms("the and of it") == ()


def test_a_word_of_all_experts_says_little() -> None:
    texts = [["zorb alpha"], ["zorb beta"], ["zorb gamma"]]
    index = routing_terms.TermIndex(texts)
    common, own = index.coverage("zorb"), index.coverage("alpha")
    assert 0 < common[0] < own[0] / 2
    assert own[1] == own[2] == 0


def test_a_long_message_counts_by_its_beginning_and_end() -> None:
    message = "moss " + "filler " * 10_000 + "tide"
    assert {"moss", "tide"} <= set(routing_terms.terms(message))


def test_the_nearest_passage_counts_and_not_how_many_there_are() -> None:
    many = ExpertProfile(
        "many", passages=tuple((f"{n}", f"text {n} of no matter") for n in range(50))
    )
    signal = LexicalSignal()
    alone = signal.scores("Fennikin moss on slate roofs", [MOSS])[0]
    more = ExpertProfile("more", passages=(*MOSS.passages, *many.passages))
    assert signal.scores("Fennikin moss on slate roofs", [more])[0] == pytest.approx(alone)


def test_signals_say_nan_where_they_know_nothing() -> None:
    nothing = ExpertProfile("")
    assert np.isnan(GoalSignal().scores("x", [nothing])).all()
    assert np.isnan(LexicalSignal().scores("x", [nothing])).all()
    assert np.isnan(EmbeddingSignal(embedder()).scores("x", [nothing])).all()


def embedder(
    calls: list[str] | None = None,
) -> Callable[[Sequence[str]], NDArray[np.float32]]:
    """Texts about moss point one way, about water another, others a third."""

    def embed(texts: Sequence[str]) -> NDArray[np.float32]:
        if calls is not None:
            calls.extend(texts)
        rows = [
            [float("moss" in t.lower()), float("tide" in t.lower() or "wave" in t.lower()), 0.01]
            for t in texts
        ]
        matrix = np.asarray(rows, dtype=np.float32)
        unit: NDArray[np.float32] = matrix / np.linalg.norm(matrix, axis=1, keepdims=True)
        return unit

    return embed


def test_embeddings_find_what_has_no_word_in_common() -> None:
    scores = EmbeddingSignal(embedder()).scores("waves", [MOSS, TIDE])
    assert scores[1] == 1.0
    assert scores[0] < 0.1


def test_a_passage_is_embedded_once() -> None:
    calls: list[str] = []
    signal = EmbeddingSignal(embedder(calls))
    signal.scores("waves", [MOSS])
    signal.scores("waves", [MOSS])
    signal.scores("waves", [MOSS, TIDE])
    texts = [text for profile in (MOSS, TIDE) for _, text in profile.passages]
    assert [call for call in calls if call != "waves"] == texts


def test_the_loss_is_compared_with_the_base_models() -> None:
    losses = {None: 4.0, "moss": 4.2, "tide": 3.6}
    asked: list[tuple[str | None, str]] = []

    def loss(expert: str | None, text: str) -> float:
        asked.append((expert, text))
        return losses[expert]

    signal = LossSignal(loss)
    scores = signal.scores("a question", [MOSS, TIDE])
    assert scores == pytest.approx([0.0, 0.5])
    signal.scores("a question", [MOSS, TIDE])
    assert len(asked) == 3  # losses are kept
    losses["tide"] = 3.2
    trained = replace(TIDE, revision="later")
    assert signal.scores("a question", [MOSS, trained]) == pytest.approx([0.0, 1.0])
    assert np.isnan(signal.scores(" ", [MOSS, TIDE])).all()


def test_changed_profiles_are_indexed_again() -> None:
    signal = LexicalSignal()
    before = signal.scores("orchids", [MOSS])[0]
    changed = ExpertProfile("moss", passages=(("m", "orchids"),))
    assert before == 0
    assert signal.scores("orchids", [changed])[0] > 0
