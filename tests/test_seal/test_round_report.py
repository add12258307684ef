"""What a round came to: nothing is counted twice, and a failure is no number."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from aios.core.events import CandidateTried
from aios.core.restem import HeldOut, ReSTEMState, RoundReport, Tried, TriedPassage
from aios.core.seal.candidate_trials import decide
from aios.core.seal.passage_edits import PassageEdits
from aios.core.seal.restem_rules import best_round
from aios.core.seal.reward import ValidationLossReward
from aios.core.seal.round_report import (
    Measured,
    Proposed,
    candidate_event,
    describe_round,
    few_left,
    held_out_of,
    round_report,
)
from aios.core.seal.trial_batch import Work
from aios.core.trainings import CurvePoint, TrainingResult
from aios.core.trials import Reward
from aios.core.types import AdapterRef, Drop, Failure, Passage, SelfEdit

LOST = Failure("train", "x", "out of luck")


def edit(passage: str, index: int, strategy: str = "rewrite", tokens: int = 10) -> SelfEdit:
    return SelfEdit(passage, strategy, index, (f"Edit {index} of {passage}.",), tokens=tokens)


def tried(passage: str, index: int, *improvements: float, strategy: str = "rewrite") -> Tried:
    """A candidate; without an improvement all of its trials failed."""
    if not improvements:
        return Tried(edit(passage, index, strategy), None, failures=(LOST,))
    mean = sum(improvements) / len(improvements)
    reward = Reward(
        float(mean > 0.1), 2.0, 2.0 - mean, 2, "logprob", 0.1, 0.1, "loss", "number", mean,
        len(improvements),
    )  # fmt: skip
    return Tried(edit(passage, index, strategy), reward, improvements, mean / 2, 300)


def passage_of(name: str, *candidates: Tried, asked: int = 0, unwritten: int = 0) -> TriedPassage:
    spent = sum(len(one.improvements) + len(one.failures) for one in candidates)
    failed = sum(len(one.failures) for one in candidates)
    asked = asked or len(candidates)
    return TriedPassage(name, candidates, asked, spent + 2, failed, 2.5, 2.0, unwritten)


# ------------------------------------------------------------ held-out passages


def test_a_candidate_that_was_filtered_away_counts_as_the_baseline() -> None:
    found = held_out_of([passage_of("a", tried("a", 0, 0.3), asked=3)])
    assert found.passages == {"a": pytest.approx(0.1)}
    assert found.accuracy == {"a": pytest.approx(0.05)}
    assert found.rewarded == pytest.approx(1 / 3)


def test_a_candidate_whose_trials_failed_is_left_out() -> None:
    found = held_out_of([passage_of("a", tried("a", 0, 0.3), tried("a", 1), asked=3)])
    assert found.passages == {"a": pytest.approx(0.15)}
    assert found.rewarded == pytest.approx(1 / 2)


def test_a_candidate_that_could_not_be_written_is_left_out() -> None:
    found = held_out_of([passage_of("a", tried("a", 0, 0.3), asked=3, unwritten=2)])
    assert found.passages == {"a": pytest.approx(0.3)}
    assert found.rewarded == 1.0


def test_a_passage_of_failures_alone_has_no_number() -> None:
    found = held_out_of(
        [
            passage_of("a", tried("a", 0), tried("a", 1)),
            passage_of("b", asked=3, unwritten=3),
            passage_of("c", asked=3),  # all of it was filtered away: the baseline itself
            passage_of("d", tried("d", 0, -0.2)),
        ]
    )
    assert found.passages == {"c": 0.0, "d": pytest.approx(-0.2)}
    assert found.mean == pytest.approx(-0.1)
    assert found.rewarded == 0.0


def test_without_a_passage_there_is_nothing_to_divide_by() -> None:
    assert held_out_of([]) == HeldOut({}, {}, 0.0)
    assert HeldOut({}, {}, 0.0).mean == 0.0


def state_of(*means: float | None) -> ReSTEMState:
    """A state whose rounds have these means on held-out passages; None: all of them failed."""
    reports = [
        RoundReport(n, held_out=HeldOut({} if mean is None else {"h": mean}, {}, 0.0))
        for n, mean in enumerate(means)
    ]
    return ReSTEMState(tuple(reports))


@pytest.mark.parametrize(
    ("means", "best"),
    [
        ((0.1, 0.2, 0.15), 1),
        ((0.1, 0.1), 0),  # no gain is no reason to change
        ((-0.2, None), 0),  # what failed is not an improvement of 0
        ((-0.2, None, -0.1), 2),
        ((None, None), 1),
    ],
)
def test_the_best_round_is_best_by_what_was_measured(
    means: tuple[float | None, ...], best: int
) -> None:
    assert best_round(state_of(*means)) == best


def test_without_held_out_passages_the_last_round_is_the_best() -> None:
    assert best_round(ReSTEMState((RoundReport(0), RoundReport(1), RoundReport(2)))) == 2


# ------------------------------------------------------------ counts


def edits_of(
    name: str,
    kept: int,
    dropped: tuple[int, ...] = (),
    *,
    failure: Failure | None = None,
    tokens: int = 10,
) -> PassageEdits:
    drops = tuple(Drop(name, "rewrite", index, "…", "too_short") for index in dropped)
    return PassageEdits(
        Passage.make(f"Text of {name}.", id=name),
        tuple(edit(name, index) for index in range(kept)),
        drops,
        failure,
        generated=kept + len(set(dropped)),
        tokens=tokens,
    )


def proposed(*results: PassageEdits, asked: int = 4) -> Proposed:
    return Proposed(results, {result.passage.id: {"rewrite": asked} for result in results})


@pytest.mark.parametrize(
    ("result", "unwritten"),
    [
        (edits_of("a", 4), 0),
        (edits_of("a", 2, (2, 3)), 0),
        (edits_of("a", 2, (0, 0, 2), failure=LOST), 1),  # 0 has lost items and is there
        (edits_of("a", 0, failure=LOST), 4),
        (edits_of("a", 4, failure=LOST), 0),
    ],
)
def test_what_could_not_be_written_is_what_is_neither_kept_nor_dropped(
    result: PassageEdits, unwritten: int
) -> None:
    assert proposed(result).unwritten(result) == unwritten


def test_a_candidate_that_was_written_and_could_not_be_read_has_failed_and_is_not_filtered() -> (
    None
):
    unread = replace(edits_of("a", 1, failure=Failure("parse", "a", "?", True)), generated=4)
    assert proposed(unread).unwritten(unread) == 3


def test_what_holds_no_text_is_not_tried() -> None:
    result = edits_of("a", 2, failure=LOST)
    blank = SelfEdit("a", "rewrite", 9, ("  ",))
    (work,) = proposed(replace(result, kept=(*result.kept, blank))).works()
    assert work.edits == result.kept
    assert (work.passage, work.asked, work.unwritten) == (result.passage, 4, 1)


def measured(number: int = 1) -> Measured:
    """12 asked for: 6 tried, 1 failed in trials, 3 filtered, 2 not written."""
    results = (
        edits_of("a", 3, (3,)),
        edits_of("b", 2, (2, 3), tokens=30),
        edits_of("c", 2, failure=LOST, tokens=5),
    )
    kept = replace(tried("a", 2, 0.4, 0.2), kept=True)
    given = proposed(*results)
    passages = [
        passage_of("a", tried("a", 0, 0.1), tried("a", 1), kept, asked=4),
        passage_of("b", tried("b", 0, -0.1), tried("b", 1, 0.2, 0.0), asked=4),
        passage_of("c", tried("c", 0, 0.3), tried("c", 1, 0.0), asked=4, unwritten=2),
    ]
    _, reliability = decide(passages, ValidationLossReward(), 0.1)
    point = CurvePoint(0, 0.0, 0, None, None, 0.0)
    losses = (3.0, 9.0, 2.0)
    curve = (point, *(replace(point, train_loss=loss) for loss in losses))
    adapter = AdapterRef(Path("nowhere"), "d" * 64, "b" * 64)
    fitted = TrainingResult(adapter, curve, curve[-1], 7, 70, 1.5, 0)
    return Measured(
        number,
        given,
        passages,
        reliability,
        fitted,
        HeldOut({"h": 0.25}, {"h": 0.1}, 0.5),
        {"rewrite": 1.0},
        {"rewrite": 1.0},
        {result.passage.id: result.passage for result in results},
        {"try": 1.0},
    )


def test_what_was_asked_for_was_tried_or_filtered_or_failed() -> None:
    report = round_report(measured())
    assert (report.asked, report.tried, report.filtered, report.failed) == (12, 6, 3, 3)
    assert report.asked == report.tried + report.filtered + report.failed
    assert (report.passages, report.rewarded, report.kept) == (3, 2, 1)
    assert (report.trials, report.failed_trials) == (9 + 6, 1)
    assert report.tokens == 10 + 30 + 5
    assert report.train_tokens == 8 * 300
    assert report.improvements == pytest.approx((0.1, 0.3, -0.1, 0.1, 0.3, 0.0))
    assert report.improvement == pytest.approx(0.7 / 6)
    assert report.accuracy_gain == pytest.approx(0.35 / 6)
    assert report.threshold == 0.1
    given = measured().reliability
    assert given is not None
    assert report.reliability == given.describe() != ""
    assert report.sft == {
        "examples": 1.0, "tokens": 70.0, "steps": 7.0, "seconds": 1.5,
        "loss_first": 3.0, "loss_last": 2.0,
    }  # fmt: skip
    assert report.arms["rewrite"].asked == 12
    assert report.arms["rewrite"].tried == 6
    assert report.diversity is not None
    assert report.noise is not None
    assert (report.generator, report.digest) == ("", "")


def test_a_round_without_a_candidate_has_no_numbers() -> None:
    empty = Measured(
        1, proposed(edits_of("a", 0, (0, 1, 2, 3))), [passage_of("a", asked=4)], None, None, None,
        {"rewrite": 1.0}, {"rewrite": 1.0}, {},
    )  # fmt: skip
    report = round_report(empty)
    assert (report.asked, report.tried, report.filtered, report.failed) == (4, 0, 4, 0)
    assert report.improvement is report.accuracy_gain is report.threshold is None
    assert report.diversity is None
    assert (report.reliability, report.sft, report.improvements) == ("", {}, ())
    assert describe_round(report) == "0 of 0 self-edits rewarded, 0 kept"


def test_a_round_is_told_in_a_line() -> None:
    report = round_report(measured())
    line = "2 of 6 self-edits rewarded, 1 kept; mean improvement +0.117; held-out +0.250"
    assert describe_round(report) == line
    assert describe_round(replace(report, number=0)) == "held-out +0.250"
    assert describe_round(RoundReport(0)) == "not examined: no passage is held out"


def test_a_candidate_is_told_with_its_trials() -> None:
    one = tried("a", 2, 0.4, 0.2)
    told = candidate_event(3, True, passage_of("a", one), one)
    assert told.improvement == pytest.approx(0.3)
    assert told == CandidateTried(3, True, "a", "rewrite", 2, 2, told.improvement)
    assert candidate_event(3, False, passage_of("a"), tried("a", 1)).improvement is None


# ------------------------------------------------------------ advice


def works_of(asked: int, left: int) -> list[Work]:
    passage = Passage.make("Some text.", id="p")
    return [Work(passage, tuple(edit("p", n) for n in range(left)), asked)]


def test_where_the_filter_leaves_little_a_lower_temperature_is_advised() -> None:
    notice = few_left(works_of(asked=8, left=1), temperature=1.0)
    assert notice is not None
    assert notice.level == "warning"
    assert notice.message == (
        "only 1 of 8 self-edits were left by the quality filter; at a lower temperature "
        "(seal.temperature, now 1) more are"
    )


def test_a_temperature_that_is_low_is_not_advised_to_be_lower() -> None:
    notice = few_left(works_of(asked=8, left=1), temperature=0.5)
    assert notice is not None
    assert "temperature" not in notice.message


def test_where_the_filter_leaves_enough_nothing_is_said() -> None:
    assert few_left(works_of(asked=8, left=2), temperature=1.0) is None
