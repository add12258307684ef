"""Tuning of ReST-EM: it finds what was planted, shares work, prunes, and survives a kill."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aios.app.restem import job as restem
from aios.app.restem import results as restem_results
from aios.app.restem.job import plan_restem
from aios.app.restem.tuning import trial as restem_tune_trial
from aios.app.restem.tuning.job import TuneReport, tune
from aios.app.restem.tuning.plan import plan_tuning
from aios.app.restem.tuning.space import (
    Space,
    choose_space,
    set_lines,
    settings_of_parameters,
    space_of,
    with_parameters,
    yaml_text,
)
from aios.app.restem.tuning.study import TrialRecord, TuneStudy
from aios.backends.scripted_training import ScriptedTrainer
from aios.backends.scripted_trials import ScriptedTrialBench
from aios.core.config.loader import load_config
from aios.core.config.recipes import resolve_recipe
from aios.core.config.schemas import Config
from aios.core.errors import (
    AIOSError,
    BackendError,
    DataError,
    RunInterrupted,
    StorageError,
    UsageError,
)
from aios.core.events import Event, Notice
from aios.core.protocols import LanguageModel
from aios.core.trainings import TrainingJob, TrainingResult
from aios.core.trials import TrialJob
from aios.core.types import TrainExample
from aios.storage import runs
from tests.killed_process import Tell, killed_at
from tests.planted_generators import planted_config, write_planted
from tests.planted_world import PlantedModel, planted_passages
from tests.test_app.scripted_jobs import pause_in_writes

GOOD, FEEBLE, HARMFUL = 3e-4, 1e-4, 1e-3
EPOCHS = (1, 3)
RATES = Space("rates", {"learning_rate": (FEEBLE, GOOD, HARMFUL), "trial_epochs": (1,)})
RANKS = Space("ranks", {"rank": (2, 4, 8), "trial_epochs": (1,)})
GRID = Space(
    "grid", {"learning_rate": (FEEBLE, GOOD, HARMFUL), "rank": (2, 4), "trial_epochs": EPOCHS}
)
EXAMPLE = "Write.\n\nImplications:\n1. {}"


class Killed(BaseException):
    """The process ends here."""


class RatedTrainer(ScriptedTrainer):
    """A trainer to which the learning rate matters: one teaches, one does nothing, one harms."""

    fits = 0
    kill_at: int | None = None
    break_at: frozenset[int] = frozenset()

    def fit(self, job: TrainingJob, **more: Any) -> TrainingResult:
        type(self).fits += 1
        if type(self).fits == type(self).kill_at:
            raise Killed
        if type(self).fits in type(self).break_at:
            raise BackendError("the loss is NaN")
        texts = {FEEBLE: "Nothing.", HARMFUL: "People like the weather."}
        if (text := texts.get(job.recipe.learning_rate)) is not None:
            lesson = TrainExample.whole(EXAMPLE.format(text))
            job = replace(job, examples=(lesson,) * len(job.examples))
        return super().fit(job, **more)


class CountingModel(PlantedModel):
    """Counts the trials of self-edits that are really run."""

    jobs = 0

    def trial_bench(self) -> Any:
        def count(job: TrialJob) -> None:
            CountingModel.jobs += 1

        if self._bench is None:
            self._bench = ScriptedTrialBench(self, fail=count)
        return self._bench


@pytest.fixture(autouse=True)
def _rated(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_trainer(config: Config, model: LanguageModel) -> RatedTrainer:
        assert isinstance(model, PlantedModel)
        return RatedTrainer(model)

    monkeypatch.setattr(restem, "load_trainer", load_trainer)
    monkeypatch.setattr(restem_results, "render_restem_report", lambda *given: "")  # not ours
    RatedTrainer.fits, RatedTrainer.kill_at, RatedTrainer.break_at = 0, None, frozenset()
    CountingModel.jobs = 0


def config_of(folder: Path, **restem_settings: Any) -> Config:
    settings = {"held_out_fraction": 0.35, "trial_batch": 2, "threshold": 0.0, **restem_settings}
    seal = {"restem_batch_size": 8, "restem_candidates_per_passage": 3}
    return planted_config(folder, restem=settings, seal=seal)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_planted(tmp_path / "passages.jsonl", planted_passages(18))


@pytest.fixture
def run(tmp_path: Path, data: Path) -> Callable[..., TuneReport]:
    def run(output: str = "tuning", **options: Any) -> TuneReport:
        config = options.pop("config", None) or config_of(tmp_path)
        options = {"space": RATES, "trials": 3, "model": CountingModel(), **options}
        return tune(config, data, output=tmp_path / output, **options)

    return run


def values(report: TuneReport) -> list[Any]:
    return [(t.number, t.parameters, t.state, t.value, t.note) for t in report.trials]


# ------------------------------------------------------------ what it finds


def test_it_finds_the_planted_setting_and_says_how_to_use_it(
    run: Callable[..., TuneReport],
) -> None:
    report = run()
    assert report.best is not None
    assert report.best.parameters["learning_rate"] == GOOD
    by_rate = {t.parameters["learning_rate"]: t for t in report.trials}
    assert len(by_rate) == 3
    assert report.best.value == pytest.approx(
        sum(report.best.held_out.values()) / len(report.best.held_out)
    )
    assert "restem.sft_learning_rate=0.0003" in report.set_lines
    assert report.best_yaml is not None
    loaded = load_config(config_file=report.best_yaml, env={}).config
    assert loaded.restem.sft_learning_rate == GOOD
    assert loaded.restem.trial_tokens is None
    assert loaded.training.epochs == 1


def test_numbers_trials_and_page_are_written(run: Callable[..., TuneReport]) -> None:
    report = run(space=GRID, trials=8)
    document = json.loads(report.tuning_json.read_text(encoding="utf-8"))
    lines = (report.folder / "trials.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["number"] for line in lines] == list(range(1, 9))
    assert document["best"]["number"] == report.best.number if report.best else False
    assert document["untrained"] is not None
    page = report.report_html.read_text(encoding="utf-8")
    assert page.count("<svg") == 2
    assert 'id="importance-chart-title"' in page
    assert 'id="history-chart-title"' in page
    assert "<script" not in page
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org", "")
    assert "restem.sft_learning_rate=0.0003" in page
    assert document["verdict"] in page.replace("&#39;", "'")


@pytest.mark.slow
def test_all_of_a_small_space_is_tried_once(run: Callable[..., TuneReport]) -> None:
    space = Space("thresholds", {"learning_rate": (FEEBLE, GOOD), "threshold": ("auto", 50.0)})
    report = run(space=space, trials=99)
    seen = [tuple(trial.parameters.values()) for trial in report.trials]
    assert sorted(seen, key=str) == sorted((tuple(one.values()) for one in space.grid()), key=str)
    assert report.best is not None
    assert report.best.parameters == {"learning_rate": GOOD, "threshold": "auto"}
    choices = report.document["by_choice"]["learning_rate"]
    assert [choice["trials"] for choice in choices] == [2, 2]


def test_with_three_trials_there_is_no_importance_but_a_page(
    run: Callable[..., TuneReport],
) -> None:
    report = run()
    assert report.importance == {}
    page = report.report_html.read_text(encoding="utf-8")
    assert "at least four complete trials" in page


def test_values_are_measured_with_the_trials_of_the_config(
    tmp_path: Path, run: Callable[..., TuneReport]
) -> None:
    """Trials that are longer are not better for that."""
    space = Space("epochs", {"trial_epochs": (1, 3)})
    config = config_of(tmp_path, threshold=50.0)  # nothing is learned: all generators are alike
    report = run(config=config, space=space, trials=2)
    first, second = report.trials
    assert first.value == second.value
    assert first.rounds != second.rounds
    assert first.value == pytest.approx(report.document["untrained"])


# ------------------------------------------------------------ what is shared


@pytest.mark.slow
def test_trials_of_the_same_e_step_share_it(
    tmp_path: Path, run: Callable[..., TuneReport], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(tmp_path, sft_learning_rate=GOOD)
    shared = run("shared", config=config, space=RANKS)
    spent = CountingModel.jobs
    assert [t.state for t in shared.trials] == ["complete"] * 3
    assert [t.reused > 0 for t in shared.trials] == [False, True, True]
    assert shared.trials[1].trials > shared.trials[1].reused

    CountingModel.jobs = 0
    monkeypatch.setattr(restem_tune_trial, "_shares", lambda record: False)
    alone = run("alone", config=config, space=RANKS)
    assert [(t.parameters, t.value) for t in alone.trials] == [
        (t.parameters, t.value) for t in shared.trials
    ]
    # Round 0 and the E-step of round 1 are run once, not three times.
    assert CountingModel.jobs - spent == shared.trials[1].reused + shared.trials[2].reused
    assert spent < 0.65 * CountingModel.jobs


@pytest.mark.slow
def test_trials_of_another_length_have_an_e_step_of_their_own(
    run: Callable[..., TuneReport],
) -> None:
    space = Space("both", {"learning_rate": (FEEBLE, GOOD), "trial_epochs": EPOCHS})
    report = run(space=space, trials=4)
    fresh = {t.parameters["trial_epochs"] for t in report.trials if not t.reused}
    assert fresh == set(EPOCHS)
    assert sum(not t.reused for t in report.trials) == 2


# ------------------------------------------------------------ pruning and failures


def test_a_trial_that_is_clearly_worse_is_stopped(
    tmp_path: Path, run: Callable[..., TuneReport]
) -> None:
    space = Space("rates", {"learning_rate": (GOOD, HARMFUL), "rank": (2, 4), "trial_epochs": (1,)})
    report = run(config=config_of(tmp_path, trial_batch=1), space=space, trials=4)
    by_rate = {
        rate: [t for t in report.trials if t.parameters["learning_rate"] == rate]
        for rate in (GOOD, HARMFUL)
    }
    assert [t.state for t in by_rate[GOOD]] == ["complete"] * 2
    pruned = [t for t in by_rate[HARMFUL] if t.state == "pruned"]
    assert pruned
    assert pruned[0].value is None
    assert pruned[0].note == f"worse than trial {min(t.number for t in by_rate[GOOD])}"
    assert 4 <= len(pruned[0].rounds[0]) <= 6  # held-out passages that it was examined on
    run_dir = report.folder / "runs" / f"trial-{pruned[0].number:04d}"
    assert not (run_dir / "yardstick").exists()
    assert "pruned" in report.report_html.read_text(encoding="utf-8")


def test_a_failed_trial_is_kept_as_one_and_the_search_goes_on(
    run: Callable[..., TuneReport],
) -> None:
    RatedTrainer.break_at = frozenset({1})
    report = run()
    failed = report.trials[0]
    assert (failed.state, failed.value, failed.note) == ("failed", None, "the loss is NaN")
    assert [t.state for t in report.trials[1:]] == ["complete", "complete"]
    assert report.trials[1].reused == 0  # nothing is taken from a run that failed


def test_three_failures_in_a_row_stop_the_search(
    tmp_path: Path, run: Callable[..., TuneReport]
) -> None:
    RatedTrainer.break_at = frozenset({1, 2, 3})
    with pytest.raises(BackendError, match=r"3 trials in a row failed.*the loss is NaN"):
        run(space=GRID, trials=9)
    document = json.loads((tmp_path / "tuning" / "tuning.json").read_text(encoding="utf-8"))
    assert document["best"] is None
    assert "No trial is complete" in document["verdict"]


# ------------------------------------------------------------ kills and resuming


@pytest.mark.slow
def test_a_killed_tuning_goes_on_without_repeating_what_is_done(
    run: Callable[..., TuneReport],
) -> None:
    options: dict[str, Any] = {"space": GRID, "trials": 6}
    whole = run("whole", **options)
    jobs, fits = CountingModel.jobs, RatedTrainer.fits
    CountingModel.jobs = RatedTrainer.fits = 0
    for stop in (2, 4):
        RatedTrainer.kill_at = stop
        with pytest.raises(Killed):
            run("killed", resume=True, **options)
    RatedTrainer.kill_at = None
    resumed = run("killed", resume=True, **options)
    assert values(resumed) == values(whole)
    assert CountingModel.jobs == jobs  # no trial of a self-edit twice
    assert RatedTrainer.fits == fits + 2  # but the two trainings that were killed
    again = run("killed", resume=True, **options)
    assert values(again) == values(whole)
    assert CountingModel.jobs == jobs


def tune_ranks(folder: Path, output: str, tell: Tell) -> TuneReport:
    """A tuning whose process tells of each event."""
    config = config_of(folder, sft_learning_rate=GOOD)
    return tune(
        config,
        folder / "passages.jsonl",
        output=folder / output,
        space=RANKS,
        trials=3,
        resume=True,
        emit=lambda event: tell(),
        model=PlantedModel(),
    )


def work_on_ranks(folder: Path, tell: Tell) -> None:
    pause_in_writes(0.0005)
    runs.git_revision = lambda folder: None
    tune_ranks(folder, "killed", tell)


@pytest.mark.slow
@pytest.mark.usefixtures("process_server")
def test_a_process_that_is_killed_anywhere_leaves_a_tuning_that_goes_on(
    tmp_path: Path, data: Path
) -> None:
    rng = random.Random(7)
    events: list[None] = []
    whole = tune_ranks(tmp_path, "whole", lambda: events.append(None))
    for _ in range(2):
        event = rng.randint(1, len(events) // 3)
        assert killed_at(event, rng.random() * 0.02, work_on_ranks, tmp_path)
    assert values(tune_ranks(tmp_path, "killed", lambda: None)) == values(whole)


def test_half_a_line_and_a_stale_lock_in_the_study_do_no_harm(
    tmp_path: Path, run: Callable[..., TuneReport]
) -> None:
    first = run(trials=1)
    journal = tmp_path / "tuning" / "study.journal"
    with journal.open("ab") as stream:
        stream.write(b'{"op_code":4,"wor')
    journal.with_name("study.journal.lock").touch()
    more = run(trials=2, resume=True)
    assert values(more)[:1] == values(first)
    assert len(more.trials) == 2


@pytest.mark.slow
def test_more_trials_may_be_asked_for_later(run: Callable[..., TuneReport]) -> None:
    run(space=GRID, trials=2)
    assert [t.number for t in run(space=GRID, trials=5, resume=True).trials] == [1, 2, 3, 4, 5]


def test_a_damaged_study_is_a_clear_error(tmp_path: Path, run: Callable[..., TuneReport]) -> None:
    run(trials=1)
    (tmp_path / "tuning" / "study.journal").write_bytes(b"{}\n[1]\nnonsense\n")
    with pytest.raises(StorageError, match=r"study\.journal is damaged"):
        run(trials=2, resume=True)


def test_a_tuning_of_something_else_is_refused(
    tmp_path: Path, run: Callable[..., TuneReport]
) -> None:
    run(trials=1)
    with pytest.raises(UsageError, match="exists already"):
        run(trials=1)
    with pytest.raises(UsageError, match="another search space"):
        run(trials=1, space=GRID, resume=True)
    with pytest.raises(UsageError, match=r"another seal\.restem_iterations"):
        run(trials=1, rounds=2, resume=True)


def test_a_stop_leaves_a_report_and_can_be_resumed(run: Callable[..., TuneReport]) -> None:
    asked = False

    def emit(event: Event) -> None:
        nonlocal asked
        asked = asked or (isinstance(event, Notice) and event.message.startswith("trial 2 of"))

    with pytest.raises(RunInterrupted):
        run(emit=emit, should_stop=lambda: asked)
    report = run(resume=True)
    assert [t.state != "running" for t in report.trials] == [True, True, True]


def test_when_time_is_up_what_is_done_is_reported(run: Callable[..., TuneReport]) -> None:
    report = run(timeout_seconds=1e-9)
    assert report.best is None
    assert report.settings == {}
    assert report.best_yaml is None
    assert "Time was up" in report.document["notes"][0]
    assert run(resume=True).best is not None


# ------------------------------------------------------------ rounds, confirmation


def test_a_trial_may_have_several_rounds(run: Callable[..., TuneReport]) -> None:
    report = run(trials=1, rounds=2, space=Space("one", {"learning_rate": (GOOD,)}))
    assert report.best is not None
    assert len(report.best.rounds) in (1, 2)
    assert report.best.value == pytest.approx(
        sum(report.best.rounds[-1].values()) / len(report.best.rounds[-1])
    )  # with the config's own trials a run's numbers are taken as they are


@pytest.mark.slow
def test_the_best_is_repeated_beside_the_present_settings(
    tmp_path: Path, run: Callable[..., TuneReport]
) -> None:
    config = config_of(tmp_path, sft_learning_rate=HARMFUL)
    report = run(config=config, confirm=2)
    rows = report.document["confirmation"]
    assert [row["seed"] for row in rows] == [1, 2]
    assert sum(row["best"] for row in rows) > sum(row["present"] for row in rows)
    assert "With 2 other seeds it gains" in report.document["verdict"]
    fits = RatedTrainer.fits
    assert run(config=config, confirm=2, resume=True).document["confirmation"] == rows
    assert RatedTrainer.fits == fits


# ------------------------------------------------------------ suggestions, spaces, plan


def test_suggestions_follow_from_the_seed_alone(tmp_path: Path) -> None:
    def suggestions(name: str, seed: int, reopened: bool) -> list[Any]:
        path, found = tmp_path / f"{name}.journal", []
        study = TuneStudy(path, space_of("small", "loss"), seed)
        for number in range(12):
            if reopened:
                study = TuneStudy(path, space_of("small", "loss"), seed)
            begun = study.begin(20)
            assert begun is not None
            assert begun.number == number + 1
            record = replace(
                next(r for r in study.records() if r.number == begun.number),
                state="complete",
                value=float(begun.parameters["rank"]),
            )
            study.end(begun, record)
            found.append(begun.parameters)
        return found

    first = suggestions("a", 0, False)
    assert suggestions("b", 0, True) == first
    assert suggestions("c", 1, False) != first


def filled(path: Path, space: Space, value: Callable[[Any], float], trials: int) -> TuneStudy:
    """A study of made-up values."""
    study = TuneStudy(path, space, 0)
    for _ in range(trials):
        begun = study.begin(trials)
        assert begun is not None
        record = TrialRecord(begun.number, begun.parameters, "complete", value(begun.parameters))
        study.end(begun, record)
    return study


def test_the_parameter_that_decides_is_the_important_one(tmp_path: Path) -> None:
    noise = random.Random(0)

    def value(parameters: Any) -> float:
        return float(parameters["rank"] == 16) + 0.1 * noise.random()

    study = filled(tmp_path / "study", space_of("plan", "loss"), value, 30)
    importance = study.importance()
    assert importance.keys() == study.space.choices.keys()
    assert sum(importance.values()) == pytest.approx(1.0)
    assert max(importance, key=lambda name: importance[name]) == "rank"
    assert importance["rank"] > 0.4


def test_where_all_trials_are_alike_no_parameter_is_important(tmp_path: Path) -> None:
    assert filled(tmp_path / "study", RATES, lambda _: 1.0, 3).importance() == {}
    assert filled(tmp_path / "other", space_of("plan", "loss"), lambda _: 1.0, 6).importance() == {}


def test_the_sampler_comes_to_prefer_what_is_good(tmp_path: Path) -> None:
    def value(parameters: Any) -> float:
        return float(parameters["rank"] == 16) + float(parameters["trial_epochs"] == 10)

    study = filled(tmp_path / "study", space_of("small", "loss"), value, 30)
    late = [record.value or 0.0 for record in study.records()[10:]]
    assert sum(late) / len(late) > 1.0  # by chance it would be 7/12


def test_a_trial_that_was_begun_is_begun_again_with_its_number(tmp_path: Path) -> None:
    first = TuneStudy(tmp_path / "study", RATES, 0).begin(9)
    for _ in range(2):
        again = TuneStudy(tmp_path / "study", RATES, 0).begin(9)
        assert first is not None
        assert again is not None
        assert (again.number, again.parameters) == (first.number, first.parameters)
    assert len(TuneStudy(tmp_path / "study", RATES, 0).records()) == 1


@pytest.mark.parametrize(
    ("model", "name"), [("smollm2-135m-instruct", "small"), ("some/model-7b", "plan")]
)
def test_the_space_follows_from_the_recipe(model: str, name: str) -> None:
    config = Config()
    chosen = choose_space(config, resolve_recipe(config, model))
    assert chosen.name == name
    assert (1e-5 in chosen.choices["learning_rate"]) == (name == "plan")
    assert chosen.why
    other = choose_space(config, resolve_recipe(config, model), "plan")
    assert (other.name, other.why) == ("plan", "chosen by you")


def test_the_plans_grid_is_the_plans() -> None:
    assert space_of("plan", "loss").choices == {
        "learning_rate": (1e-5, 3e-5, 1e-4),
        "threshold": ("auto", 0.0, 0.1),
        "rank": (8, 16, 32),
        "trial_epochs": (3, 5, 10),
    }
    with pytest.raises(UsageError, match="no search space"):
        space_of("vast", "loss")


@pytest.mark.parametrize("parameters", space_of("plan", "loss").grid()[::20])
def test_settings_can_be_loaded_as_options_and_as_a_file(
    tmp_path: Path, parameters: dict[str, Any]
) -> None:
    settings = settings_of_parameters(Config(), parameters)
    by_options = load_config(overrides=set_lines(settings), env={}).config
    file = tmp_path / "best.yaml"
    file.write_text(yaml_text(settings, "Two\nlines"), encoding="utf-8")
    by_file = load_config(config_file=file, env={}).config
    assert by_options == by_file == with_parameters(load_config(env={}).config, parameters)
    assert by_file.restem.sft_alpha == 2 * parameters["rank"]


def test_the_plan_counts_what_is_shared(tmp_path: Path, data: Path) -> None:
    plan = plan_tuning(config_of(tmp_path), data, trials=10, model=PlantedModel())
    assert plan.space.name == "plan"
    assert (plan.trials, plan.combinations) == (10, 81)
    one = plan_restem(config_of(tmp_path), data, model=PlantedModel())
    saved = (10 - 3) * (one.trials + one.held_out_trials)  # ten trials, three E-steps
    assert plan.edit_trials_unshared - plan.edit_trials == saved
    assert not (tmp_path / "tuning").exists()


# ------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trials": 0}, "trials is 0"),
        ({"rounds": 0}, "rounds is 0"),
        ({"confirm": -1}, "confirm is -1"),
        ({"timeout_seconds": 0.0}, "timeout is 0"),
        ({"space": "vast"}, "no search space"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(
    tmp_path: Path, run: Callable[..., TuneReport], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(AIOSError, match=message):
        run(**options)
    assert not (tmp_path / "tuning").exists()


def test_without_held_out_passages_nothing_can_be_compared(
    tmp_path: Path, run: Callable[..., TuneReport]
) -> None:
    with pytest.raises(DataError, match="held out"):
        run(config=config_of(tmp_path, held_out_fraction=0.0))
    assert not (tmp_path / "tuning").exists()


def test_without_optuna_the_remedy_is_named(
    run: Callable[..., TuneReport], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(UsageError, match="Optuna") as caught:
        run()
    assert "aios[tune]" in caught.value.remedy
