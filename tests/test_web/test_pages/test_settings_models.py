"""Models and strategies: which there are, which is in use, choosing and fetching."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from aios.app.model_choice import fetch_model, model_rows, pull_jobs
from aios.core.errors import UsageError
from tests.test_web.visitor import Visitor

SCRIPT = '<script>alert("x")</script>'


@pytest.fixture
def models(tmp_path: Path) -> Iterator[Visitor]:
    """A visitor whose models are kept in a folder of the test."""
    found = Visitor(tmp_path, f"model.cache_dir={tmp_path / 'models'}")
    yield found
    found.close()


def test_models_are_listed_with_where_they_are(models: Visitor) -> None:
    page = models.look("/settings/models")
    table = models.look("/settings/models/table")
    assert table in page
    assert "smollm2-135m-instruct" in table
    assert "not here" in table
    assert "Fetch smollm2-135m-instruct" in table
    assert "in use" in table.split(">scripted<")[1]


def test_a_model_is_chosen(models: Visitor) -> None:
    page = models.press("/settings/models/use", name="smollm2-135m-instruct")
    assert "the first job that needs it fetches it" in page
    assert models.settings.changed() == {"model.name": "smollm2-135m-instruct"}
    models.press("/settings/models/use", name="scripted")
    assert models.site.config.model.name == "scripted"


@pytest.mark.parametrize("name", ["", "no-such-model", "/nowhere/at/all", SCRIPT])
def test_a_model_that_is_not_known_is_not_chosen(models: Visitor, name: str) -> None:
    page = models.press("/settings/models/use", name=name, back="/settings/models")
    assert 'class="note-bar bad"' in page
    assert SCRIPT not in page
    assert models.settings.changed() == {}


def test_a_model_is_fetched_by_a_job(models: Visitor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIOS_OFFLINE", "1")  # of the job alone: nothing is fetched in a test
    page = models.press("/settings/models/fetch", name="smollm2-135m-instruct")
    assert "is being fetched" in page
    (job,) = pull_jobs(models.site.jobs)
    assert job.request.arguments == ("models", "pull", "smollm2-135m-instruct")
    assert job.request.title == "smollm2-135m-instruct"
    if job.live:
        (row,) = (row for row in model_rows(models.site.config, models.site.jobs) if row.job)
        assert row.info.name == "smollm2-135m-instruct"
    assert models.site.jobs.wait(job.id, 60).state == "failed"  # and says why
    assert "smollm2-135m-instruct" in models.site.jobs.log_tail(job.id)


@pytest.mark.parametrize("name", ["scripted", "endpoint:other", "--help", "", "no-such"])
def test_what_cannot_be_fetched_starts_no_job(models: Visitor, name: str) -> None:
    page = models.press("/settings/models/fetch", name=name, back="/settings/models")
    assert 'class="note-bar bad"' in page
    assert pull_jobs(models.site.jobs) == []


def test_offline_nothing_can_be_fetched(models: Visitor) -> None:
    models.settings.change("model.offline", "true")
    page = models.look("/settings/models")
    assert "The network is off" in page
    assert "Fetch" not in page.split("The network is off")[0]
    with pytest.raises(UsageError, match="network is off"):
        fetch_model(models.site.jobs, models.site.config, "smollm2-135m-instruct")


# ---------------------------------------------------------------- strategies


def test_strategies_are_listed_with_the_one_in_use(visitor: Visitor) -> None:
    page = visitor.look("/settings/strategies")
    assert "which is <strong" in page
    assert "implications-cot" in page
    assert "Use auto" not in page
    page = visitor.press("/settings/strategies/use", name="rewrite")
    assert visitor.site.config.seal.strategy == "rewrite"
    assert "Use auto" in page
    assert "Use rewrite" not in page
    page = visitor.press("/settings/strategies/use", name="auto")
    assert visitor.site.config.seal.strategy == "auto"


def test_a_mix_shows_its_parts(visitor: Visitor) -> None:
    visitor.settings.change("seal.strategy", "rewrite:2,cloze:1")
    page = visitor.look("/settings/strategies")
    assert page.count("</span> in use</span>") == 2
    assert "2 a passage" in page


@pytest.mark.parametrize("name", ["no-such", "", SCRIPT])
def test_a_strategy_that_does_not_exist_is_not_used(visitor: Visitor, name: str) -> None:
    page = visitor.press("/settings/strategies/use", name=name, back="/settings/strategies")
    assert 'class="note-bar bad"' in page
    assert SCRIPT not in page
    assert visitor.settings.changed() == {}
