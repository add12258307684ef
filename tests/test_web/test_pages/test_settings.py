"""The pages of the settings: every button, told on disk; what is wrong is told at its field."""

from __future__ import annotations

import html
import re
from pathlib import Path

import pytest

from aios.app.page_settings import FILE, PageSettings
from aios.core.config.loader import load_config
from aios.web.pages.assembly import create_site
from aios.web.pages.guarding import Sessions
from tests.test_web.visitor import Visitor

SCRIPT = '<script>alert("x")</script>'


def row_of(page: str, key: str) -> str:
    """The HTML of one setting."""
    found = re.search(
        rf'<div class="setting[^>]*id="key-{re.escape(key)}">.*?\n</div>\n</div>', page, re.S
    )
    assert found is not None, f"{key} is not on the page"
    return found[0]


# ---------------------------------------------------------------- looking


def test_every_setting_is_there_with_meaning_origin_and_default(visitor: Visitor) -> None:
    page = visitor.look("/settings")
    loaded = visitor.settings.loaded()
    for key in loaded.sources:
        assert f'id="key-{key}"' in page
    row = row_of(page, "seal.top_p")
    assert "Nucleus mass tokens are drawn from." in row
    assert "number above 0 up to 1 · default" in row
    assert "(SEAL release)" in row
    assert 'type="number"' in row
    assert 'value="0.95"' in row
    assert "--set" in row_of(page, "model.name")  # where the server was started with it


def test_the_servers_own_settings_have_no_field(visitor: Visitor) -> None:
    row = row_of(visitor.look("/settings"), "serve.host")
    assert "127.0.0.1" in row
    assert "<form" not in row


def test_controls_show_the_values_in_force(visitor: Visitor) -> None:
    page = visitor.look("/settings")
    assert 'role="switch"' in row_of(page, "seal.enabled")
    assert " checked" in row_of(page, "seal.enabled")
    assert " checked" not in row_of(page, "model.offline")
    assert "<option selected>auto</option>" in row_of(page, "model.dtype")
    signals = row_of(page, "routing.signals")
    assert signals.count(" checked") == 2
    assert "by recipe default" in row_of(page, "training.rank")


def test_search_and_changed_only(visitor: Visitor) -> None:
    visitor.settings.change("seal.top_p", "0.5")
    found = visitor.look("/settings?q=nucleus")
    assert 'id="key-seal.top_p"' in found
    assert 'id="key-seal.temperature"' not in found
    assert "2 of " in found  # of seal and of chat
    changed = visitor.look("/settings?changed=1")
    assert 'id="key-seal.top_p"' in changed
    assert 'id="key-chat.top_p"' not in changed
    nothing = visitor.look("/settings", status=200)
    assert "No setting fits" not in nothing
    assert "No setting fits" in visitor.look("/settings?q=zzzz")


def test_a_hostile_search_shows_as_text(visitor: Visitor) -> None:
    page = visitor.look(f"/settings?q={SCRIPT}&changed=1")
    assert SCRIPT not in page
    assert html.escape(SCRIPT).replace("&#x27;", "'") not in page
    assert "&lt;script&gt;" in page


# ---------------------------------------------------------------- changing


def test_save_keeps_a_value_and_comes_back_to_its_place(visitor: Visitor) -> None:
    back = "/settings?q=seal#key-seal.top_p"
    answer = visitor.client.post(
        "/settings/change",
        data={"code": visitor.code(), "key": "seal.top_p", "value": "0.5", "back": back},
        headers={"Origin": "http://localhost"},
        follow_redirects=False,
    )
    assert answer.status_code == 303
    assert re.fullmatch(
        r"/settings\?q=seal&note=[\w-]+#key-seal\.top_p", answer.headers["location"]
    )
    page = visitor.look(answer.headers["location"])
    assert "seal.top_p was changed." in page
    assert "changed in the browser" in row_of(page, "seal.top_p")
    assert visitor.settings.changed() == {"seal.top_p": "0.5"}
    assert visitor.site.config.seal.top_p == 0.5


@pytest.mark.parametrize(
    ("key", "sent", "kept"),
    [
        ("seal.enabled", [], False),
        ("model.dtype", ["float32"], "float32"),
        ("routing.signals", ["lexical", "loss"], ("lexical", "loss")),
        ("training.rank", ["4"], 4),
        ("chat.system", ["Be brief.\r\nBe kind."], "Be brief.\nBe kind."),
    ],
)
def test_every_kind_of_control_is_saved(
    visitor: Visitor, key: str, sent: list[str], kept: object
) -> None:
    visitor.press("/settings/change", key=key, value=sent)
    section, name = key.split(".")
    assert getattr(getattr(visitor.site.config, section), name) == kept


def test_an_emptied_field_is_no_value(visitor: Visitor) -> None:
    visitor.settings.change("training.rank", "4")
    visitor.press("/settings/change", key="training.rank", value="")
    assert visitor.site.config.training.rank is None


def test_a_wrong_value_is_told_at_its_field_which_keeps_it(visitor: Visitor) -> None:
    page = visitor.press("/settings/change", status=400, key="seal.top_p", value="3")
    row = row_of(page, "seal.top_p")
    assert "must be number above 0 up to 1" in row
    assert 'value="3"' in row
    assert 'aria-invalid="true"' in row
    assert "set-seal.top_p-wrong" in row.split("aria-describedby=")[1][:40]
    assert page.count('aria-invalid="true"') == 1
    assert visitor.settings.changed() == {}


def test_a_hostile_value_shows_as_text(visitor: Visitor) -> None:
    page = visitor.press("/settings/change", status=400, key="seal.top_p", value=SCRIPT)
    assert SCRIPT not in page
    visitor.press("/settings/change", key="chat.system", value=f"</textarea>{SCRIPT}")
    page = visitor.look("/settings")
    assert SCRIPT not in page
    assert "&lt;/textarea&gt;" in page


def test_a_refused_value_that_may_be_secret_is_not_echoed(visitor: Visitor) -> None:
    for key in ("endpoint.url", "endpoint.api_key_env", "endpoint.extra_body"):
        page = visitor.press("/settings/change", status=400, key=key, value="x://me:hunter2@host")
        assert "hunter2" not in page
        assert 'aria-invalid="true"' in row_of(page, key)


def test_a_kept_value_that_may_be_secret_is_shown_nowhere(visitor: Visitor) -> None:
    visitor.press("/settings/change", key="endpoint.extra_body", value='{"key": "hunter2"}')
    assert visitor.site.config.endpoint.extra_fields == {"key": "hunter2"}
    for path in ("/settings", "/settings?q=hunter2", "/settings/config.yaml"):
        assert 'key": "hunter2"' not in html.unescape(visitor.look(path))
    assert "not shown" in row_of(visitor.look("/settings"), "endpoint.extra_body")


@pytest.mark.parametrize("key", ["serve.host", "serve", "no.such", "", SCRIPT])
def test_what_is_no_setting_changes_nothing(visitor: Visitor, key: str) -> None:
    page = visitor.press("/settings/change", status=400, key=key, value="1")
    assert SCRIPT not in page
    assert visitor.settings.changed() == {}


def test_the_address_of_a_refused_change_leads_back(visitor: Visitor) -> None:
    assert "<h1>Settings</h1>" in visitor.look("/settings/change")


def test_reset_takes_back_one_setting(visitor: Visitor) -> None:
    visitor.settings.change("seal.top_p", "0.5")
    visitor.settings.change("seed", "7")
    page = visitor.press("/settings/reset", key="seal.top_p", back="/settings")
    assert "seal.top_p was reset." in page
    assert visitor.settings.changed() == {"seed": "7"}
    assert "Reset seed" in page
    assert "Reset seal.top_p" not in page


def test_reset_all_is_asked_for_and_takes_back_everything(visitor: Visitor) -> None:
    assert "Reset all" not in visitor.look("/settings")
    visitor.settings.change("seed", "7")
    page = visitor.look("/settings")
    assert "Reset all" in page
    assert "data-confirm" in page
    visitor.press("/settings/reset-all")
    assert visitor.settings.changed() == {}


def test_the_command_line_is_told_how_to_do_the_same(visitor: Visitor, tmp_path: Path) -> None:
    assert "Nothing was changed here so far" in visitor.look("/settings")
    visitor.settings.change("seal.top_p", "0.5")
    assert "aios COMMAND --set seal.top_p=0.5" in visitor.look("/settings")
    answer = visitor.client.get("/settings/config.yaml")
    assert answer.headers["content-disposition"] == 'attachment; filename="config.yaml"'
    (tmp_path / "config.yaml").write_text(answer.text, encoding="utf-8")
    assert load_config(config_file=tmp_path / "config.yaml", env={}).config == visitor.site.config


# ---------------------------------------------------------------- broken changes


def test_a_corrupt_file_of_changes_can_be_reset_on_the_page(visitor: Visitor) -> None:
    file = visitor.settings.folder / FILE
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("{", encoding="utf-8")
    page = visitor.look("/settings")
    assert "is corrupt" in page
    assert "Reset all" in page
    visitor.press("/settings/reset-all")
    assert "is corrupt" not in visitor.look("/settings")


def test_the_server_starts_with_a_kept_value_that_no_longer_fits(tmp_path: Path) -> None:
    first = Visitor(tmp_path)
    first.settings.change("model.offline", "false")
    first.close()
    again = Visitor(tmp_path)
    given = ("model.name=scripted", f"paths.artifacts={again.artifacts}")
    again.site.settings = PageSettings(overrides=given, env={"AIOS_OFFLINE": "1"})
    create_site(again.site, Sessions.make(b"", None, 80, secure=False), token=None)
    page = again.look("/settings")
    assert "model.offline = false (changed in the browser)" in page
    again.look("/settings/models", status=400)
    again.press("/settings/reset", key="model.offline", back="/settings")
    assert "cannot be used" not in again.look("/settings")
    again.close()
