"""Settings that are changed on pages: checked as a whole, kept on disk, given to jobs."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from aios.app.jobs.commands import pull_job
from aios.app.jobs.store import JobStore
from aios.app.page_settings import FILE, PageSettings
from aios.app.settings_view import as_file, as_options, to_typed, view_settings
from aios.core.config.loader import BROWSER, dump, load_config, without_settings
from aios.core.errors import ConfigError, StorageError, UsageError


@pytest.fixture
def artifacts(tmp_path: Path) -> Path:
    return tmp_path / "artifacts"


def open_settings(
    artifacts: Path, *overrides: str, env: dict[str, str] | None = None
) -> PageSettings:
    given = (f"paths.artifacts={artifacts}", "model.name=scripted", *overrides)
    return PageSettings(overrides=given, env=env or {})


# ---------------------------------------------------------------- changing


def test_a_change_is_in_force_at_once_and_its_origin_is_told(artifacts: Path) -> None:
    settings = open_settings(artifacts)
    settings.change("seal.temperature", "0.5")
    assert settings.loaded().config.seal.temperature == 0.5
    assert settings.loaded().sources["seal.temperature"] == BROWSER
    assert settings.started.config.seal.temperature == 1.0


def test_a_change_beats_all_other_layers(artifacts: Path) -> None:
    env = {"AIOS_SEAL__TOP_P": "0.6"}
    settings = open_settings(artifacts, "seal.temperature=0.7", env=env)
    settings.change("seal.temperature", "0.5")
    settings.change("seal.top_p", "0.9")
    seal = settings.loaded().config.seal
    assert (seal.temperature, seal.top_p) == (0.5, 0.9)


def test_a_change_survives_a_restart(artifacts: Path) -> None:
    open_settings(artifacts).change("training.rank", "4")
    again = open_settings(artifacts)
    assert again.loaded().config.training.rank == 4
    assert again.changed() == {"training.rank": "4"}


def test_reset_takes_back_one_and_then_all(artifacts: Path) -> None:
    settings = open_settings(artifacts)
    for key, value in (("seal.top_p", "0.5"), ("seal.min_length", "3"), ("seed", "7")):
        settings.change(key, value)
    settings.reset("seal.top_p")
    assert settings.changed() == {"seal.min_length": "3", "seed": "7"}
    settings.reset()
    assert settings.changed() == {}
    assert settings.loaded().config == settings.started.config


def test_a_reset_of_what_was_never_changed_changes_nothing(artifacts: Path) -> None:
    settings = open_settings(artifacts)
    settings.change("seed", "7")
    settings.reset("seal.top_p")
    assert settings.changed() == {"seed": "7"}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seal.top_p", "3"),
        ("seal.top_p", "much"),
        ("seal.top_p", "[0.5"),
        ("model.dtype", "float8"),
        ("endpoint.url", "ftp://somewhere"),
        ("nothing.at_all", "1"),
        ("seal", "{top_p: 0.5}"),  # a section is no setting
        ("seal.top_p=0.5\nserve.host", "x"),
        (" seal.top_p", "0.5"),
        ("", "1"),
    ],
)
def test_what_is_wrong_is_refused_and_not_kept(artifacts: Path, key: str, value: str) -> None:
    settings = open_settings(artifacts)
    settings.change("seed", "7")
    with pytest.raises(ConfigError):
        settings.change(key, value)
    assert settings.changed() == {"seed": "7"}


@pytest.mark.parametrize(
    ("key", "value"),
    [("serve.host", "0.0.0.0"), ("paths.artifacts", "elsewhere"), ("serve.token_file", "null")],
)
def test_keys_of_the_server_cannot_be_changed(artifacts: Path, key: str, value: str) -> None:
    settings = open_settings(artifacts)
    with pytest.raises(UsageError, match="cannot be changed here"):
        settings.change(key, value)
    assert settings.changed() == {}


@pytest.mark.parametrize("key", ["serve", "paths", " serve.host", "serve.host ", "SERVE.host"])
def test_there_is_no_way_around_that(artifacts: Path, key: str) -> None:
    settings = open_settings(artifacts)
    with pytest.raises((ConfigError, UsageError)):
        settings.change(key, "{host: 0.0.0.0, artifacts: elsewhere}")
    assert settings.changed() == {}


def test_a_strategy_that_does_not_exist_is_refused(artifacts: Path) -> None:
    settings = open_settings(artifacts)
    with pytest.raises(UsageError, match="rewite"):
        settings.change("seal.strategy", "rewite")
    settings.change("seal.strategy", "rewrite:2,cloze:1")
    assert settings.loaded().config.seal.strategy == "rewrite:2,cloze:1"


def test_offline_of_the_environment_is_not_turned_off(artifacts: Path) -> None:
    settings = open_settings(artifacts, env={"AIOS_OFFLINE": "1"})
    with pytest.raises(ConfigError, match="AIOS_OFFLINE is set"):
        settings.change("model.offline", "false")


def test_a_refused_secret_is_not_repeated(artifacts: Path) -> None:
    settings = open_settings(artifacts)
    with pytest.raises(ConfigError) as caught:
        settings.change("endpoint.url", "https://me:hunter2@host/v1")
    assert "hunter2" not in str(caught.value)


# ---------------------------------------------------------------- at the same time, and broken


def test_two_servers_at_a_time_lose_no_change(artifacts: Path) -> None:
    keys = [f"restem.{name}" for name in ("patience", "repeats", "kept_per_passage")]
    keys += [f"adaptation.{name}" for name in ("every", "steps", "rank")]

    def change(key: str) -> None:
        open_settings(artifacts).change(key, "9")

    threads = [threading.Thread(target=change, args=(key,)) for key in keys]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert open_settings(artifacts).changed() == dict.fromkeys(keys, "9")


def test_a_change_by_another_process_is_seen(artifacts: Path) -> None:
    first, second = open_settings(artifacts), open_settings(artifacts)
    assert first.loaded().config.seed == 0
    second.change("seed", "7")
    assert first.loaded().config.seed == 7


@pytest.mark.parametrize("content", ["{", "[]", '"text"', "\0\0\0", '{"seed": NaN}'])
def test_a_corrupt_file_is_told_and_reset_mends_it(artifacts: Path, content: str) -> None:
    settings = open_settings(artifacts)
    settings.folder.mkdir(parents=True)
    (settings.folder / FILE).write_text(content, encoding="utf-8")
    with pytest.raises(StorageError, match="corrupt"):
        settings.loaded()
    with pytest.raises(StorageError, match="corrupt"):
        settings.change("seed", "7")
    settings.reset()
    assert settings.loaded().config == settings.started.config


def test_a_kept_value_that_no_longer_fits_is_told_with_its_origin(artifacts: Path) -> None:
    open_settings(artifacts).change("model.offline", "false")
    again = open_settings(artifacts, env={"AIOS_OFFLINE": "1"})
    with pytest.raises(ConfigError, match="changed in the browser"):
        again.loaded()
    again.reset("model.offline")
    assert again.loaded().config.model.offline


def test_strange_texts_come_back_as_they_were(artifacts: Path) -> None:
    settings = open_settings(artifacts)
    for text in ('<script>alert("x")</script>', "Zeile\nzwei: #3", "null"):
        settings.change("chat.system", text)
        assert open_settings(artifacts).loaded().config.chat.system == text


# ---------------------------------------------------------------- what jobs get


def test_jobs_get_the_settings_in_force_whatever_the_environment_says(
    artifacts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = {"AIOS_MODEL__NAME": "scripted", "AIOS_OFFLINE": "1"}
    for name, text in env.items():
        monkeypatch.setenv(name, text)
    settings = open_settings(artifacts, env=env)
    settings.change("model.name", "no-such-model-anywhere")
    jobs = JobStore(artifacts)
    request = replace(pull_job(artifacts, "unused"), arguments=("models", "show"))
    job = jobs.start(request, settings.loaded().config, wait=False)
    assert jobs.wait(job.id, 60).state == "failed"
    assert "no-such-model-anywhere" in jobs.log_tail(job.id)


def test_variables_that_set_keys_are_told_from_others() -> None:
    variables = {"AIOS_TRAINING__RANK": "64", "AIOS_SEED": "3", "AIOS_TOKEN": "t", "HOME": "/h"}
    assert without_settings(variables | {"AIOS_OFFLINE": "1"}) == {
        "AIOS_TOKEN": "t",
        "AIOS_OFFLINE": "1",
        "HOME": "/h",
    }


@pytest.mark.parametrize("name", ["", "--help", "-x", "a\nb"])
def test_a_model_is_not_fetched_by_what_reads_as_an_option(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="no model's name"):
        pull_job(tmp_path, name)


# ---------------------------------------------------------------- as people see them


def test_every_setting_is_shown_as_it_is_typed(artifacts: Path) -> None:
    settings = open_settings(artifacts)
    settings.change("chat.system", "  'quoted'\n")
    settings.change("seal.generator", '"null"')
    loaded = settings.loaded()
    view = view_settings(loaded)
    assert view.shown == view.total == len(loaded.sources)
    rows = [row for section in view.sections for row in section.rows]
    typed = {
        row.key: to_typed(row.key, row.items if row.control == "choices" else (row.text,))
        for row in rows
    }
    assert load_config(env={}, changes=typed).config == loaded.config


def test_all_words_of_a_query_are_looked_for(artifacts: Path) -> None:
    loaded = open_settings(artifacts, "seal.top_p=0.5").loaded()
    found = view_settings(loaded, query="NUCLEUS seal")
    assert [row.key for section in found.sections for row in section.rows] == ["seal.top_p"]
    assert view_settings(loaded, query="no such words").sections == ()


def test_changed_only_leaves_out_defaults(artifacts: Path) -> None:
    loaded = open_settings(artifacts, "seal.top_p=0.5").loaded()
    found = view_settings(loaded, changed_only=True)
    keys = {row.key for section in found.sections for row in section.rows}
    assert keys == {"seal.top_p", "model.name", "paths.artifacts"}


def test_controls_fit_what_settings_take(artifacts: Path) -> None:
    view = view_settings(open_settings(artifacts).loaded())
    rows = {row.key: row for section in view.sections for row in section.rows}
    wanted = {
        "seal.enabled": "switch",
        "features.enable_seal_self_edits": "switch",
        "model.dtype": "choice",
        "training.schedule": "choice",
        "routing.signals": "choices",
        "seed": "integer",
        "seal.top_p": "number",
        "restem.threshold": "text",  # auto or a number
        "restem.arms": "text",  # a list of any names
        "chat.system": "lines",
    }
    assert {key: rows[key].control for key in wanted} == wanted
    assert rows["model.dtype"].choices == ("auto", "float32", "bfloat16", "float16")
    assert rows["serve.host"].fixed
    assert rows["training.rank"].by_recipe.isdigit()


@pytest.mark.parametrize(
    ("key", "texts", "typed"),
    [
        ("seal.enabled", (), "false"),
        ("seal.enabled", ("true",), "true"),
        ("routing.signals", ("goals", "loss"), "goals, loss"),
        ("telemetry.trackers", (), "[]"),
        ("training.rank", ("",), "null"),
        ("chat.system", ("",), ""),
        ("chat.system", ("a\r\nb",), "a\nb"),
        ("no.such.key", ("x",), "x"),
    ],
)
def test_what_controls_send_is_read(key: str, texts: tuple[str, ...], typed: str) -> None:
    assert to_typed(key, texts) == typed


def test_settings_that_do_not_go_together_are_told(artifacts: Path) -> None:
    settings = open_settings(artifacts)
    settings.change("recipes.default.strategy", "rewrite:3,cloze:2")
    settings.change("seal.num_edits_per_passage", "7")
    view = view_settings(settings.loaded())
    assert "with the mix" in view.problem
    assert view.remedy


def test_the_file_holds_the_settings_in_force_but_no_secret(artifacts: Path) -> None:
    settings = open_settings(artifacts)
    settings.change("seal.top_p", "0.5")
    settings.change("endpoint.extra_body", '{"key": "hunter2"}')
    text = as_file(settings)
    assert "hunter2" not in text
    assert "endpoint.extra_body" in text
    target = artifacts / "config.yaml"
    target.write_text(text, encoding="utf-8")
    found = load_config(config_file=target, env={}).config
    settings.reset("endpoint.extra_body")
    assert dump(found) == dump(settings.loaded().config)


def test_options_can_be_pasted_into_a_shell() -> None:
    changed = {"chat.system": "it's; rm -rf /", "seed": "3", "endpoint.extra_body": "hunter2"}
    assert as_options(changed) == "--set 'chat.system=it'\"'\"'s; rm -rf /' --set seed=3"
    assert as_options({}) == ""


def test_the_file_of_changes_is_plain(artifacts: Path) -> None:
    settings = open_settings(artifacts)
    settings.change("seed", "7")
    found = json.loads((settings.folder / FILE).read_text(encoding="utf-8"))
    assert found == {"seed": "7"}
