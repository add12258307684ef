"""The parts of the trials benchmarks that need no language model of size."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils.flop_counter import FlopCounterMode

from aios.backends.devices import release_memory
from aios.core.types import LoraRecipe
from tests.tiny_model import build_llama, build_tokenizer

ROOT = Path(__file__).parent.parent
BENCHMARKS = ROOT / "benchmarks"
EXAMPLES = ROOT / "examples" / "passages.jsonl"
MODULES = (
    "_generation_job",
    "_generation_table",
    "_results",
    "_trials_data",
    "_trials_flops",
    "_trials_job",
    "_trials_memory",
    "_trials_point",
    "_trials_report",
    "_trials_table",
    "trial_costs",
    "trials",
)


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a module of the benchmarks for one test."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for name in MODULES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module
    for name in MODULES:
        sys.modules.pop(name, None)


def words(text: str) -> int:
    return len(text.split())


def a_task(load: Any, lengths: tuple[tuple[int, ...], ...] = ((10, 20), (30,))) -> Any:
    """One passage whose candidates have texts of these lengths, two questions, two epochs."""
    data, job = load("_trials_data"), load("_trials_job")
    candidates = tuple(
        data.Candidate(f"p/{number}", ("text",) * len(each), each)
        for number, each in enumerate(lengths)
    )
    lesson = data.Lesson("p", candidates, ("even", "odd"))
    return job.Task((lesson,), LoraRecipe(rank=2, epochs=2, batch_size=1), 7)


# ---------------------------------------------------------------- data


def test_a_completion_becomes_titled_lines_and_the_passage_comes_last(load: Any) -> None:
    made = load("_trials_data").release_texts

    assert made("Hills", " They are old. ", "1. Old\n\n 2. Green \n---\n3. Far") == (
        "Hills\n1. Old",
        "Hills\n2. Green",
        "Hills\n3. Far",
        "Hills\nThey are old.",
    )


def test_only_a_line_that_introduces_a_list_is_dropped(load: Any) -> None:
    made = load("_trials_data").release_texts

    assert made("T", "P", "Sure, here they are:\n1. A\n2. B") == ("T\n1. A", "T\n2. B", "T\nP")
    assert made("T", "P", "A first thought\nA second") == (
        "T\nA first thought",
        "T\nA second",
        "T\nP",
    )
    assert made("T", "P", "") == ("T\nP",)


def test_lessons_of_the_release_have_its_candidates_and_questions(
    load: Any, tmp_path: Path
) -> None:
    record = {
        "title": "Hills",
        "context": "They are old.",
        "questions": [
            {"question": "How old?", "answer": "very"},
            {"question": "Who?", "answer": "x"},
        ],
        "completions": ["1. A b\n2. C", "1. D", "1. E"],
    }
    few = {**record, "title": "Lakes", "completions": ["1. A"]}
    path = tmp_path / "seal.json"
    path.write_text(json.dumps([record, few]), encoding="utf-8")

    lessons = load("_trials_data").read_lessons(path, EXAMPLES, 2, words)

    assert [len(lesson.candidates) for lesson in lessons] == [2]  # the second has too few
    first = lessons[0].candidates[0]
    assert first.texts == ("Hills\n1. A b", "Hills\n2. C", "Hills\nThey are old.")
    assert first.lengths == (4, 3, 4)
    assert first.tokens == 11
    assert [probe.answers for probe in lessons[0].questions] == [("very",), ("x",)]


def test_without_a_file_the_examples_have_candidates_that_differ(load: Any) -> None:
    lessons = load("_trials_data").read_lessons(None, EXAMPLES, 2, words)

    assert len(lessons) == 28
    assert all(len(lesson.questions) > 1 for lesson in lessons)
    assert all(c.texts[-1] in EXAMPLES.read_text("utf-8") for c in lessons[0].candidates)
    assert any(a.texts != b.texts for a, b in (lesson.candidates for lesson in lessons))


def test_rounds_have_other_lessons_and_runs_have_the_same(load: Any) -> None:
    choose = load("_trials_data").choose
    lessons = [SimpleNamespace(number=i) for i in range(9)]

    drawn = choose(lessons, 3, 2, seed=0)

    assert len({lesson.number for each in drawn for lesson in each}) == 6
    assert drawn == choose(lessons, 3, 2, seed=0)
    assert drawn != choose(lessons, 3, 2, seed=1)
    same = choose(lessons[:3], 3, 2, seed=0)
    assert same[0] == same[1] == same[2]
    with pytest.raises(ValueError, match="2 passages"):
        choose(lessons[:1], 1, 2, seed=0)


def test_padding_is_a_share_of_what_is_computed(load: Any) -> None:
    assert load("_trials_data").padding_share([512, 512], 2048) == 0.75


# ---------------------------------------------------------------- arithmetic


def counted(model: Any, length: int) -> int:
    """What torch counts for one training step on one text."""
    ids = torch.arange(1, length + 1)[None]
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, labels=ids).loss.backward()
    return int(counter.get_total_flops())


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # PEFT's
def test_the_formula_counts_what_torch_counts(load: Any) -> None:
    flops = load("_trials_flops")
    length, rank = 12, 4
    base = build_llama(attn_implementation="eager", num_hidden_layers=3)
    shape = flops.Shape.of(base.config)
    model = get_peft_model(
        base, LoraConfig(r=rank, target_modules="all-linear", task_type="CAUSAL_LM")
    )

    ours = flops.training_flops(shape, [length], [length], rank)

    # torch counts all of attention's square, not the causal half of it
    square = 3 * shape.layers * 2 * shape.attention * (2 * length**2 - length * (length + 1))
    assert counted(model, length) == ours + square


def test_texts_add_up_and_passes_repeat_them(load: Any) -> None:
    flops = load("_trials_flops")
    shape = flops.Shape.of(build_llama().config)
    one = flops.training_flops(shape, [5], [4], 2)
    other = flops.training_flops(shape, [9], [8], 2)

    assert flops.training_flops(shape, [5, 9], [4, 8], 2, passes=3) == 3 * (one + other)


def test_a_trunk_runs_forward_once_however_often_a_text_is_trained_on(load: Any) -> None:
    flops = load("_trials_flops")
    config = build_llama(num_hidden_layers=3).config
    whole, upper = flops.Shape.of(config), flops.Shape.of(build_llama(num_hidden_layers=1).config)
    assert flops.scoring_flops(whole, [6], [0]) == 3 * flops.scoring_flops(upper, [6], [0])

    with_trunk = flops.training_flops(whole, [6], [5], 2, passes=4, trunk_layers=2)
    above = flops.training_flops(upper, [6], [5], 2, passes=4)

    assert with_trunk == above + 2 * flops.scoring_flops(upper, [6], [0])


# ---------------------------------------------------------------- report


def test_rates_are_in_average_trials(load: Any) -> None:
    job, reports = load("_trials_job"), load("_trials_report")
    task = a_task(load)  # trials of 60 tokens on average, in 3 steps
    turn = job.Turn({"training": 4.0, "baseline": 1.0}, wall=8.0, finished=2, tokens=120, steps=6)
    padded = job.Turn({"training": 6.0}, steps=1)

    assert reports.training_rate(turn, task) == 0.5
    assert reports.whole_rate(turn, task) == 0.25
    assert reports.rest_seconds(turn, task) == 1.5
    assert reports.cached_rate(turn, task) == pytest.approx(2 / 7.5)
    assert reports.training_rate(padded, task) == pytest.approx(1 / 18)
    assert reports.decisions(turn, task) == pytest.approx(0.25 / 4)
    turn.chosen["p"] = "p/0"
    assert reports.decisions(turn, task) == 0.125


def test_padding_is_in_the_arithmetic_of_a_padded_trial_alone(load: Any) -> None:
    flops, reports = load("_trials_flops"), load("_trials_report")
    shape = flops.Shape.of(build_llama().config)
    task = a_task(load, ((16, 16), (16, 16)))

    real = reports.trial_flops(shape, task)

    assert reports.trial_flops(shape, task, padded=16) == real
    assert reports.trial_flops(shape, task, padded=64) > 4 * real
    assert real == flops.training_flops(shape, [16, 16], [15, 15], 2, passes=2)


def test_a_candidate_is_chosen_by_even_questions_and_measured_by_odd_ones(load: Any) -> None:
    job, reports = load("_trials_job"), load("_trials_report")
    lesson = a_task(load).lessons[0]
    trials = [
        job.Trial("p/0", "p", (-2.0, -2.0), (-1.0, -1.5)),
        job.Trial("p/1", "p", (-2.0, -2.0), (-1.5, 0.0)),
        job.Trial("q/0", "q", (-2.0, -2.0), (0.0, 0.0)),
    ]
    turn = job.Turn(trials=trials)

    assert reports.chosen_gain(turn, lesson) == 0.5
    assert reports.mean_gain(turn, lesson) == 1.0
    turn.chosen["p"] = "p/1"
    assert reports.chosen_gain(turn, lesson) == 2.0


def test_the_results_stand_between_their_markers_of_the_page(load: Any) -> None:
    table = load("_trials_table")
    spread = {"median": 2.0, "min": 1.5, "max": 2.5, "n": 3}
    document = {
        "date": "2026-01-02T03:04:05+00:00",
        "machine": {"cores": 2, "cpu": "a processor"},
        "versions": {"torch": "2"},
        "job": {
            "self-edits": "a file",
            "passages": 2,
            "candidates": 5,
            "rounds": 3,
            "epochs": 2,
            "tokens of a trial": 60,
            "steps of a trial": 3.0,
            "tokens of a text": 20.0,
        },
        "rows": [
            {"name": "padded", "metric": f"training{table._EXTRAPOLATED}", "unit": "x", **spread},
            {"name": "ours", "metric": "answers' gain, chosen candidate", "unit": "x", **spread},
            {"name": "machine", "metric": "products", "unit": "GFLOP/s", **spread},
        ],
        "ratios": {"ours, racing/padded (training: all)": spread},
    }

    text = table.trials_section(document)
    first, last = table.markers("trials")

    assert "| padded | ~ 2 (1.5 to 2.5) |" in text
    assert "| training: all | ours, racing | padded | **2 (1.5 to 2.5)** |" in text
    assert "| ours | chosen candidate | 2 (1.5 to 2.5) |" in text
    page = table.put(f"before {first} old {last} after", "trials", text)
    assert page.startswith("before ")
    assert " old " not in page
    with pytest.raises(ValueError, match="no <!--"):
        table.put("a page", "trials", text)


@pytest.mark.parametrize("name", ["trials", "trial_costs"])
def test_the_page_has_the_markers_once(load: Any, name: str) -> None:
    page = (BENCHMARKS / "README.md").read_text(encoding="utf-8")

    assert [page.count(marker) for marker in load("_trials_table").markers(name)] == [1, 1]


# ---------------------------------------------------------------- running


def test_a_contestant_runs_in_a_process_of_its_own_and_its_end_is_noticed(load: Any) -> None:
    host = load("_trials_job").Host("a dictionary", dict, known=5)
    try:
        assert host.ask("get", "known") == 5
        with pytest.raises(RuntimeError, match="a dictionary has ended while it was to pop"):
            host.ask("pop", "unknown")
    finally:
        host.close()


def test_memory_peaks_are_those_since_the_watch_was_started(load: Any) -> None:
    memory = load("_trials_memory")
    device = torch.device("cpu")
    block = torch.ones(2**24)  # 64 MiB, touched
    size = block.numel() * block.element_size()
    del block
    release_memory(device)  # what other tests have left, too

    before = memory.start_watch(device)
    quiet = memory.peak_memory(device) - before
    block = torch.ones(2**24)
    busy = memory.peak_memory(device) - before

    assert block[0] == 1
    assert busy >= 0.9 * size
    if sys.platform == "linux":
        assert quiet < size / 2


def test_synthetic_texts_have_the_tokens_that_were_asked_for(load: Any) -> None:
    point, tokenizer = load("_trials_point"), build_tokenizer()
    known = point.one_token_words(tokenizer)

    text = point.text_of(known, 40, seed=1)

    assert len(tokenizer(text)["input_ids"]) == 40
    assert text != point.text_of(known, 40, seed=2)


def test_the_curve_has_each_point_once_and_short_runs(load: Any) -> None:
    costs = load("trial_costs")
    points = costs.places(quick=False)

    assert len(points) == len(set(points)) == 15
    assert {p.groups for p in points if p.model == costs.MODEL} == set(costs.GROUPS)
    assert all(p.steps * p.groups * p.length <= 4096 for p in points)


def test_the_device_comes_from_the_environment_or_the_option(
    load: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DEVICE", raising=False)
    modules = [load("trials"), load("trial_costs")]

    assert [module.parse([]).device for module in modules] == ["auto", "auto"]
    monkeypatch.setenv("DEVICE", "cuda")
    assert [module.parse([]).device for module in modules] == ["cuda", "cuda"]
    assert [module.parse(["--device", "cpu"]).device for module in modules] == ["cpu", "cpu"]


@pytest.mark.parametrize("name", ["trials", "trial_costs"])
def test_wrong_options_end_the_program_at_once(name: str) -> None:
    options = {"trials": ["--rounds", "0"], "trial_costs": ["--repeats", "0"]}[name]
    command = [sys.executable, str(BENCHMARKS / f"{name}.py"), *options]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    assert ended.returncode == 2
    assert "give at least 1" in ended.stderr
