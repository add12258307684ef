"""The experiment on routing: its labelled set, its figures, and its second stage on fakes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from experiments import routing, routing_answers, routing_set
from experiments.routing_set import DOMAINS, NEAR, build

from aios.backends.scripted import ScriptedModel
from aios.core.types import AdapterRef

pytestmark = pytest.mark.slow


def squad(passages: int = 4) -> list[dict[str, Any]]:
    """Passages of every article of the set, and of others, with words that only they have."""
    rows: list[dict[str, Any]] = []
    titles = [title for domain in DOMAINS.values() for title in domain.articles]
    for title in [*titles, *sorted(NEAR)[:4], *(f"Far away {n}" for n in range(6))]:
        for _ in range(passages):
            word = f"zq{len(rows)}x"
            rows.append(
                {
                    "title": title,
                    "context": f"The {word} stands in {title} and was painted {word}grey.",
                    "questions": [
                        {"question": f"Where does {word} stand?", "answer": title},
                        {"question": f"What colour has {word}?", "answer": f"{word}grey"},
                    ],
                    "completions": [],
                }
            )
    return rows


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> routing_set.RoutingSet:
    folder = tmp_path_factory.mktemp("routing")
    (folder / "data.json").write_text(json.dumps(squad()))
    spoken = {
        "everyday": [f"Please help me with my dinner plan {n}" for n in range(6)],
        "follow_ups": ["Why?", "And when was that?"],
        "rephrased": [
            {"question": f"Where does zq{n}x stand?", "text": f"zq{n}x is where"} for n in range(8)
        ],
    }
    (folder / "messages.json").write_text(json.dumps(spoken))
    return build(folder / "data.json", folder / "messages.json")


def test_the_parts_share_no_passage_and_no_article_out_of_domain(
    made: routing_set.RoutingSet,
) -> None:
    dev, test = made.of("dev"), made.of("test")
    assert {m.passage for m in dev}.isdisjoint(m.passage for m in test)
    outside = [{m.article for m in part if m.kind in ("near", "far")} for part in (dev, test)]
    assert outside[0].isdisjoint(outside[1])
    for part in (dev, test):
        assert {m.kind for m in part} == set(routing.KINDS)
        assert {m.expert for m in part if m.kind == "in"} == set(DOMAINS)


def test_the_messages_of_the_repository_are_enough() -> None:
    spoken = json.loads(routing_set.MESSAGES.read_text(encoding="utf-8"))
    assert len(set(spoken["everyday"])) >= 40
    assert len({row["text"] for row in spoken["rephrased"]}) == len(spoken["rephrased"])


def test_stage_one_measures_what_is_there(
    made: routing_set.RoutingSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routing, "open_embedder", lambda mode: None)
    report = routing.stage_one(made, "test")
    rows = {(tuple(r["signals"]), r["from"]): r for r in report["rows"]}
    assert set(rows) == {
        (names, which)
        for names in (("goals",), ("lexical",), ("goals", "lexical"))
        for which in ("chosen", "default")
    }
    assert rows[("lexical",), "chosen"]["accuracy"][0] > 0.95
    assert rows[("goals",), "chosen"]["accuracy"][0] < 0.9
    assert "| lexical |" in routing.table(report)


def test_figures_are_what_they_are_called() -> None:
    assert routing.auroc(np.array([3.0, 2.0]), np.array([1.0, 2.0])) == 0.875
    found = routing.wilson(np.array([True] * 8 + [False] * 2))
    assert (found["share"], found["n"]) == (0.8, 10)
    assert found["low"] == pytest.approx(0.490, abs=1e-3)
    assert found["high"] == pytest.approx(0.943, abs=1e-3)


def test_weights_of_a_mix_are_tenths_that_add_up() -> None:
    assert routing_answers.coarse((("a", 0.64), ("b", 0.36))) == (("a", 0.6), ("b", 0.4))
    assert routing_answers.coarse((("a", 0.99), ("b", 0.01))) == (("a", 0.9), ("b", 0.1))
    assert routing_answers.coarse((("a", 1.0),)) == (("a", 1.0),)
    assert routing_answers.coarse(()) == ()


def heavier(parts: Sequence[tuple[AdapterRef, float]], folder: Path) -> AdapterRef:
    """In place of a mix of scripted adapters, which have no weights to add."""
    return max(parts, key=lambda part: part[1])[0]


def test_stage_two_runs_and_goes_on_where_it_stopped(
    made: routing_set.RoutingSet, tmp_path: Path
) -> None:
    model = ScriptedModel()

    def run() -> str:
        return routing_answers.answers(
            made,
            tmp_path / "artifacts",
            experts=2,
            passages=4,
            results=tmp_path,
            overrides=["model.name=scripted", "seal.strategy=cloze"],
            model=model,
            mixer=heavier,
        )

    text = run()
    report = json.loads((tmp_path / "routing_answers.json").read_text())
    arms = report["groups"]["in domain"]
    assert list(report["experts"].values()) == [4, 4]
    assert arms["oracle"]["loss"] < arms["base"]["loss"]
    assert arms["oracle"]["loss"] <= arms["routed"]["loss"] < arms["base"]["loss"]
    assert report["groups"]["out of domain"]["routed"]["loss"] == pytest.approx(
        report["groups"]["out of domain"]["base"]["loss"]
    )
    assert "### in domain" in text
    rows, scored = (tmp_path / "routing_answers.jsonl").read_bytes(), model.scored
    assert run() == text
    assert (tmp_path / "routing_answers.jsonl").read_bytes() == rows
    assert model.scored == scored


def test_a_mixed_adapter_adds_the_weighted_updates(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file, save_file

    from aios.backends.adapter_files import adapter_ref

    names = ["base_model.model.m.q_proj.lora_A.weight", "base_model.model.m.q_proj.lora_B.weight"]
    generator = torch.Generator().manual_seed(0)
    parts, updates = [], []
    for number, weight in enumerate((0.7, 0.3)):
        folder = tmp_path / f"{number}"
        folder.mkdir()
        a = torch.randn(2, 5, generator=generator)
        b = torch.randn(3, 2, generator=generator)
        save_file(dict(zip(names, (a, b), strict=True)), folder / "adapter_model.safetensors")
        settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
        (folder / "adapter_config.json").write_text(json.dumps(settings))
        parts.append((adapter_ref(folder, "base"), weight))
        updates.append(weight * 2.0 * b @ a)
    mixed = routing_answers.mixed_adapter(parts, tmp_path / "mix")
    found = load_file(mixed.path / "adapter_model.safetensors")
    settings = json.loads((mixed.path / "adapter_config.json").read_text())
    scale = settings["lora_alpha"] / settings["r"]
    assert torch.allclose(scale * found[names[1]] @ found[names[0]], sum(updates), atol=1e-6)
