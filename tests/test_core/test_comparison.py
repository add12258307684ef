"""Comparison of arms, the sentence of verdict, and the document of numbers."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from aios.core.errors import NonFiniteError, UsageError
from aios.core.evaluation.comparison import (
    METRICS,
    ArmRun,
    Comparison,
    ComparisonSettings,
    available_pairs,
    compare,
)
from aios.core.evaluation.document import metrics_document, verdict_sentence
from aios.core.evaluation.metrics import AnswerResult
from aios.core.trainings import CurvePoint

FAST = ComparisonSettings(samples=400)
Arms = dict[str, list[ArmRun]]


def run(arm: str, loss: float, seed: int = 0, right: float = 0.0, passages: int = 20) -> ArmRun:
    """A run on 3 questions a passage whose losses scatter around `loss`."""
    rng = np.random.default_rng(11)  # the same questions are hard in every arm
    results = []
    for number in range(passages * 3):
        logprob = -2 * (loss + rng.normal(0, 0.3) + 0.02 * seed)
        correct = bool(rng.random() < right)
        results.append(
            AnswerResult(
                probe_id=f"q{number}",
                passage_id=f"p{number // 3}",
                question=f"Question {number}?",
                answers=("yes",),
                logprob=float(logprob),
                tokens=2,
                greedy=correct,
                prediction="yes" if correct else "no",
                exact=correct,
                f1=float(correct),
                contains=correct,
            )
        )
    curve = (CurvePoint(0, 0.0, 0, None, 4.0, 0.0), CurvePoint(10, 1.0, 500, 3.0, loss, 2.0))
    return ArmRun(arm, seed, tuple(results), 3.0 + loss / 10, curve, 10, 10, 500, 2.0, 10**9, 60)


def arms(edits: float = 2.7, other: float = 3.3) -> Arms:
    return {
        "passage+edits": [run("passage+edits", edits, s, 0.3) for s in range(3)],
        "base": [run("base", 4.1)],
        "passage": [run("passage", 3.3, s) for s in range(3)],
        "passage+other-edits": [run("passage+other-edits", other, s) for s in range(3)],
    }


def compared(data: Arms) -> list[Comparison]:
    return compare(data, available_pairs(data), FAST)


def test_pairs_start_with_the_main_one_then_the_control_then_base() -> None:
    assert available_pairs(arms()) == [
        ("passage+edits", "passage"),
        ("passage+edits", "passage+other-edits"),
        ("passage", "base"),
        ("passage+edits", "base"),
        ("passage+other-edits", "base"),
    ]
    assert available_pairs({"base": [], "in-context": [], "mine": []}) == [
        ("in-context", "base"),
        ("mine", "base"),
    ]


def test_every_metric_is_compared_for_every_pair() -> None:
    data = arms()
    found = compared(data)
    assert len(found) == 5 * len(METRICS)
    main = found[0]
    assert (main.treatment, main.control, main.metric) == (
        "passage+edits",
        "passage",
        "validation_loss",
    )
    assert main.relative_change == pytest.approx(
        main.treatment_value / main.control_value - 1, abs=1e-12
    )
    assert main.ci95 is not None
    assert main.relative_change is not None
    assert main.ci95[0] <= main.relative_change <= main.ci95[1] < 0
    assert (main.n, main.passages, main.seeds, main.verdict) == (60, 20, 3, "better")


def test_the_main_comparison_has_the_keys_that_are_promised() -> None:
    record = compared(arms())[0].to_dict()
    promised = {"treatment", "control", "metric", "relative_change", "ci95", "n", "seeds"}
    assert promised | {"verdict"} <= set(record)
    assert isinstance(record["ci95"], list)


def test_perplexity_changes_by_the_exponent_of_the_loss_difference() -> None:
    found = {c.metric: c for c in compared(arms())[: len(METRICS)]}
    loss, ppl = found["validation_loss"], found["perplexity"]
    assert ppl.control_value == pytest.approx(math.exp(loss.control_value))
    assert ppl.relative_change == pytest.approx(math.expm1(loss.change))
    assert ppl.ci95 is not None
    assert ppl.relative_change is not None
    assert ppl.ci95[0] < ppl.relative_change < ppl.ci95[1]


def test_accuracies_change_absolutely_even_from_zero() -> None:
    found = {c.metric: c for c in compared(arms())[: len(METRICS)]}
    exact = found["exact_match"]
    assert (exact.control_value, exact.relative_change, exact.scale) == (0.0, None, "absolute")
    assert exact.change == pytest.approx(exact.treatment_value)
    assert exact.verdict == "better"
    assert exact.mcnemar is not None
    assert exact.mcnemar.b == round(exact.treatment_value * 60)
    assert exact.mcnemar.p_value < 0.01
    assert found["f1"].mcnemar is None


def test_the_order_of_results_in_a_run_does_not_matter() -> None:
    data = arms()
    shuffled = dict(data)
    shuffled["passage"] = [
        ArmRun("passage", r.seed, tuple(reversed(r.results))) for r in data["passage"]
    ]
    assert compared(data)[0] == compared(shuffled)[0]


def test_a_pair_without_its_arm_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="in-context"):
        compare(arms(), [("in-context", "base")])


def test_runs_on_other_questions_are_refused() -> None:
    data = arms()
    data["passage"][1] = run("passage", 3.0, 1, passages=19)
    with pytest.raises(ValueError, match="passage, seed 1"):
        compared(data)
    data["passage"][1] = ArmRun("passage", 1, data["passage"][0].results[:-1] * 2)
    with pytest.raises(ValueError, match="passage, seed 1"):
        metrics_document(data, [])


def test_a_result_that_is_no_number_names_its_probe() -> None:
    data = arms()
    bad = AnswerResult("q0", "p0", "?", ("x",), math.nan, 1, False, "", False, 0.0, False)
    data["base"] = [ArmRun("base", 0, (bad, *data["base"][0].results[1:]))]
    with pytest.raises(NonFiniteError, match="q0"):
        compared(data)


def test_verdict_better_says_size_interval_n_seeds_and_control() -> None:
    sentence = verdict_sentence(compared(arms()))
    assert sentence.startswith(
        "Better: training on the passages and self-edits of them gave a validation loss "
    )
    for part in (" % lower than training on the passages alone", "95 % interval", "60 questions"):
        assert part in sentence
    assert "20 passages, 3 seeds" in sentence
    assert sentence.endswith("so it is not the format alone.")


def test_verdict_warns_where_edits_of_other_passages_do_as_well() -> None:
    sentence = verdict_sentence(compared(arms(2.7, 2.7)))
    assert sentence.startswith("Better")
    assert sentence.endswith("so the format alone may explain the gain.")


def test_verdict_worse() -> None:
    found = compared(arms(3.9))
    assert found[0].verdict == "worse"
    sentence = verdict_sentence(found)
    assert sentence.startswith("Worse")
    assert " % higher than training on the passages alone" in sentence
    assert "% higher; 60 questions" in sentence


def test_verdict_no_difference() -> None:
    found = compared(arms(3.3))
    assert found[0].verdict == "no difference found"
    sentence = verdict_sentence(found)
    assert sentence.startswith("No difference found")
    assert "lower to" in sentence


def test_verdict_with_one_passage_does_not_pretend() -> None:
    data = {a: [run(a, 3.0, passages=1)] for a in ("passage", "passage+edits")}
    found = compared(data)
    assert found[0].ci95 is None
    assert found[0].to_dict()["ci95"] is None
    assert verdict_sentence(found).startswith("Too few passages to tell")
    assert "1 passage, 1 seed" in verdict_sentence(found)


def test_verdict_without_the_main_pair_or_any_pair() -> None:
    data = {"base": [run("base", 4.0)], "mine": [run("mine", 3.0)]}
    assert "arm mine gave" in verdict_sentence(compared(data))
    assert "no training" in verdict_sentence(compared(data))
    alone = {"base": [run("base", 4.0)]}
    assert compared(alone) == []
    assert verdict_sentence([]).startswith("Nothing was compared")
    assert metrics_document(alone, [])["comparison"] is None


def test_the_document_is_json_with_every_run_and_question() -> None:
    data = arms()
    document = metrics_document(data, compared(data), info={"model": "tiny"})
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert list(document["arms"]) == ["base", "passage", "passage+edits", "passage+other-edits"]
    assert document["comparison"]["metric"] == "validation_loss"
    assert document["info"] == {"model": "tiny"}
    assert len(document["questions"]) == 60
    arm = document["arms"]["passage+edits"]
    assert arm["seeds"] == [0, 1, 2]
    assert [len(r["results"]) for r in arm["runs"]] == [60, 60, 60]
    assert arm["runs"][0]["curve"][1]["validation_loss"] == 2.7
    assert arm["summary"]["validation_loss"]["sd"] == pytest.approx(0.02)
    losses = [r["summary"]["validation_loss"] for r in arm["runs"]]
    assert arm["summary"]["validation_loss"]["mean"] == pytest.approx(sum(losses) / 3)


def test_retention_is_told_against_base_and_may_be_missing() -> None:
    data = arms()
    document = metrics_document(data, [])
    retention = document["arms"]["passage"]["retention"]
    assert retention["change_vs_base"] == pytest.approx(3.33 - 3.41)
    assert retention["relative_change_vs_base"] == pytest.approx(3.33 / 3.41 - 1)
    data["base"] = [ArmRun("base", 0, data["base"][0].results)]
    document = metrics_document(data, [])
    assert document["arms"]["base"]["retention"] is None
    assert document["arms"]["passage"]["retention"]["change_vs_base"] is None


def test_no_questions_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="no questions"):
        metrics_document({"base": [ArmRun("base", 0, ())]}, [])
