"""Fakes of the app's functions, recorded calls, and a home of its own for every test."""

from __future__ import annotations

import sys
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from aios.app.costs.forecast import Forecast
from aios.app.machine import doctor
from aios.core.estimates import Estimate
from aios.core.evaluation.comparison import ArmRun, available_pairs, compare
from aios.core.evaluation.document import metrics_document
from aios.core.evaluation.metrics import AnswerResult
from aios.core.restem_workload import Span
from aios.core.seal.cache import SelfEditCache
from aios.core.seal.passage_edits import PassageEdits
from aios.core.telemetry import TelemetrySummary
from aios.core.training_costs import TrainingEstimate
from aios.core.training_work import ArmWork, TrainingWork
from aios.core.trainings import CurvePoint, TrainingResult
from aios.core.types import AdapterRef, Drop, Expert, Failure, Passage, SelfEdit


@dataclass(frozen=True)
class GenerateReport:
    """The shape of `aios.app.edits.generate.GenerateReport`."""

    output: Path
    passages: int = 4
    edits: int = 6
    dropped: dict[str, int] = field(default_factory=lambda: {"duplicate": 1, "too_short": 3})
    rejected: int = 1
    failures: tuple[Failure, ...] = ()
    cached: int = 2
    generated: int = 6
    tokens: int = 1234
    seconds: float = 12.0
    reused: int = 0
    rejects_path: Path | None = Path("edits.rejects.jsonl")
    strategy: str = "cloze"
    strategy_source: str = "recipe recipes.default"
    estimate: Estimate | None = None
    telemetry: TelemetrySummary | None = None


@dataclass(frozen=True)
class GeneratePlan:
    """The shape of `aios.app.edits.generation_plan.GeneratePlan`."""

    passages: int = 4
    rejected: int = 0
    candidates: int = 20
    cached: int = 5
    prompt_tokens: int = 900
    max_new_tokens: int = 15360
    strategy: str = "implications"
    strategy_source: str = "--set"
    estimate: Estimate | None = None


@dataclass(frozen=True)
class TrainingPlan:
    """The shape of `aios.app.costs.plans.TrainingPlan`."""

    generation: GeneratePlan
    forecast: Forecast


@dataclass(frozen=True)
class WarmReport:
    """The shape of `aios.app.edits.cache.WarmReport`."""

    folder: Path = Path("artifacts") / "seal_cache"
    passages: int = 4
    rejected: int = 1
    rejects_path: Path | None = Path("rejects.jsonl")
    failures: tuple[Failure, ...] = ()
    cached: int = 2
    generated: int = 6
    stored: int = 5
    tokens: int = 1234
    seconds: float = 12.0
    strategy: str = "cloze"
    strategy_source: str = "recipe recipes.default"


@dataclass(frozen=True)
class ExpertReport:
    """The shape of `aios.app.experts.training.ExpertReport`."""

    expert: Expert
    folder: Path
    run_dir: Path
    result: TrainingResult
    dataset_stats: dict[str, Any]
    notes: tuple[str, ...] = ()
    restem: dict[str, Any] | None = None


@dataclass(frozen=True)
class RestemPlan:
    """The shape of `aios.app.restem.job.RestemPlan`."""

    passages: int = 4
    held_out: int = 1
    without_questions: int = 0
    rejected: int = 0
    arms: tuple[str, ...] = ("implications",)
    rounds: int = 2
    passages_per_round: int = 4
    candidates: int = 20
    trials: int = 36
    held_out_trials: int = 7


@dataclass(frozen=True)
class ABReport:
    """The shape of `aios.app.ab_tests.job.ABReport`."""

    run_dir: Path
    report_html: Path
    metrics_json: Path
    metrics: dict[str, Any]


@dataclass(frozen=True)
class ModelInfo:
    """The shape of `aios.app.models.ModelInfo`."""

    name: str
    installed: bool
    path: Path | None = None
    size_bytes: int | None = None
    digest: str | None = None
    kind: str = "bundled"
    source: str = "package x"
    parameters: int | None = 134_515_008
    context_length: int | None = 8192
    licence: str | None = "apache-2.0"
    recipe: str | None = "recipes.default"


@dataclass
class FakeApp:
    """What the app's functions were called with, and what they do.

    Attributes:
        calls: ``(function, args, kwargs)`` in order.
        during: Called inside each function with its keyword arguments, e.g. to emit or to raise.
        results: What each function returns, by its name.
    """

    calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)
    during: Callable[[dict[str, Any]], None] = lambda kwargs: None
    results: dict[str, Any] = field(default_factory=dict)

    def function(self, name: str) -> Callable[..., Any]:
        """A fake of the app function of that name."""

        def fake(*args: Any, **kwargs: Any) -> Any:
            self.calls.append((name, args, kwargs))
            self.during(kwargs)
            return self.results[name]

        return fake

    @property
    def config(self) -> Any:
        """The config of the last call."""
        return self.calls[-1][1][0]

    @property
    def kwargs(self) -> dict[str, Any]:
        """The keyword arguments of the last call."""
        return self.calls[-1][2]


FUNCTIONS = {
    "aios.app.edits.generate": ("generate_edits", "preview_edits"),
    "aios.app.edits.generation_plan": ("plan_generation",),
    "aios.app.costs.plans": ("plan_ab_test", "plan_expert"),
    "aios.app.restem.job": ("plan_restem",),
    "aios.app.experts.training": ("train_expert",),
    "aios.app.ab_tests.job": ("run_ab_test",),
    "aios.app.edits.cache": ("warm_cache",),
    "aios.app.models": ("list_models", "pull_model", "show_model"),
}


@pytest.fixture(autouse=True)
def _own_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    for name in ("HF_HUB_OFFLINE", "AIOS_OFFLINE", "NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def passages(tmp_path: Path) -> Path:
    """A file of passages; its content does not matter to the fakes."""
    path = tmp_path / "passages.txt"
    path.write_text("The lighthouse of Orrin was built in 1821.\n", encoding="utf-8")
    return path


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeApp:
    """The app layer, faked: its functions record their calls."""
    fake = FakeApp()
    for module_name, functions in FUNCTIONS.items():
        module = ModuleType(module_name)
        for name in functions:
            setattr(module, name, fake.function(name))
        monkeypatch.setitem(sys.modules, module_name, module)
    monkeypatch.setattr(doctor, "run_doctor", fake.function("run_doctor"))
    sys.modules["aios.app.edits.cache"].open_cache = (  # type: ignore[attr-defined]
        lambda config: SelfEditCache(config.seal.cache_dir, 10**9)
    )
    fake.results = {
        "generate_edits": GenerateReport(tmp_path / "edits.jsonl"),
        "plan_generation": GeneratePlan(),
        "plan_ab_test": TrainingPlan(GeneratePlan(), _forecast("passage", "passage+edits")),
        "plan_expert": TrainingPlan(GeneratePlan(), _forecast("")),
        "preview_edits": [_previewed()],
        "plan_restem": RestemPlan(),
        "train_expert": _expert_report(tmp_path),
        "run_ab_test": _ab_report(tmp_path),
        "warm_cache": WarmReport(),
        "list_models": [_model("small", True), _model("large", False)],
        "pull_model": _model("small", True),
        "show_model": _model("large", False),
        "run_doctor": [doctor.Check("python", "ok", "3.11"), doctor.Check("config", "ok", "")],
    }
    return fake


def _forecast(*arms: str) -> Forecast:
    """Two trainings an arm; all of it takes 60 to 90 s, and more memory than is free."""
    rows = tuple(ArmWork(arm, 2, Span(800.0, 900.0, 1000.0), Span.exactly(50), 6) for arm in arms)
    seconds = Span(60.0, 70.0, 90.0)
    found = TrainingEstimate(seconds, {"training": seconds}, dict.fromkeys(arms, seconds))
    work = TrainingWork(Span.exactly(20), rows)
    return Forecast(work, found, "3 earlier runs here", "", 3 * 10**9, False, 2 * 10**9, 1)


def _previewed() -> PassageEdits:
    passage = Passage.make("The lighthouse\nof Orrin.", id="p1", title="Orrin")
    kept = SelfEdit("p1", "rewrite", 0, ("Orrin has a lighthouse.", "evil \x1b[2J text"))
    drop = Drop("p1", "rewrite", 1, "It is so.", "too_short", "4 tokens < 20")
    return PassageEdits(passage, (kept,), (drop,))


def _expert_report(folder: Path) -> ExpertReport:
    points = tuple(
        CurvePoint(step, step / 10, step * 100, None, loss, float(step))
        for step, loss in ((0, 4.0), (10, 3.0), (20, 3.2))
    )
    adapter = AdapterRef(folder / "experts" / "e1", "ab" * 32, "cd" * 32)
    result = TrainingResult(adapter, points, points[1], 20, 2000, 21.0, 5 * 10**8)
    stats = {"original": {"passages": 4, "tokens": 321}, "growth": 2.5}
    expert = Expert("e1", "Harbours")
    return ExpertReport(
        expert, adapter.path, folder / "runs" / "r1", result, stats, ("two passages were split",)
    )


@pytest.fixture
def metrics() -> dict[str, Any]:
    """A metrics document as the evaluation makes it."""
    return _ab_metrics()


def _ab_metrics() -> dict[str, Any]:
    return deepcopy(_metrics_document())


@cache
def _metrics_document(seeds: int = 2) -> dict[str, Any]:
    """A real metrics document of three arms over four questions about two passages."""

    def run(arm: str, seed: int, logprob: float, tokens: int) -> ArmRun:
        results = tuple(
            AnswerResult(
                probe_id=f"q{i}",
                passage_id=f"p{i % 2}",
                question="Where?",
                answers=("Orrin",),
                category="name",
                logprob=logprob - 0.1 * i - 0.01 * seed,
                tokens=2,
                greedy=False,
                prediction="Orrin" if arm == "passage+edits" else "here",
                exact=arm == "passage+edits",
                f1=1.0 if arm == "passage+edits" else 0.0,
                contains=arm == "passage+edits",
            )
            for i in range(4)
        )
        return ArmRun(
            arm, seed, results, 3.0 if arm == "base" else 3.3, (), 5, 10, tokens, 65.0, 10**9, 8
        )

    arms = {
        "base": [run("base", 0, -8.0, 0)],
        "passage": [run("passage", s, -7.0, 6000) for s in range(seeds)],
        "passage+edits": [run("passage+edits", s, -5.0, 6000) for s in range(seeds)],
    }
    return metrics_document(arms, compare(arms, available_pairs(arms)))


def _ab_report(folder: Path) -> ABReport:
    run = folder / "results"
    run.mkdir()
    metrics_json = run / "metrics.json"
    metrics_json.write_text('{"verdict": "fake"}', encoding="utf-8")
    return ABReport(run, run / "report.html", metrics_json, _ab_metrics())


def _model(name: str, installed: bool) -> ModelInfo:
    if not installed:
        return ModelInfo(name, installed=False)
    return ModelInfo(name, True, Path("models") / name, 269_000_000, "ab" * 32)
