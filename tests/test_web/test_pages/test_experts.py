"""The experts' pages: what they show, and what each button does to the state on disk."""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aios.app.experts.registry import open_goals, open_store, open_trash, open_versions
from aios.app.experts.training import train_expert
from aios.core.types import Expert
from aios.storage.experts import FileExpertStore
from tests.test_app.scripted_experts import add_expert
from tests.test_app.scripted_jobs import make_config, write_passages
from tests.test_web.visitor import ADDRESS, Visitor

HOSTILE = '<script>alert("x")</script><img src=x onerror=alert(1)>'


@pytest.fixture(autouse=True)
def _quick(quick_jobs: None) -> None:
    """Files are not waited for."""


@pytest.fixture
def store(visitor: Visitor) -> FileExpertStore:
    return open_store(visitor.site.config)


@pytest.fixture
def three(store: FileExpertStore) -> None:
    """A parent, its child with a goal, and one that does not answer."""
    add_expert(store, "places", name="Places", category="geography", description="Knows places.")
    add_expert(
        store,
        "mills",
        name="The mills",
        category="buildings",
        goals=("Answer about mills",),
        total_activations=1234,
        avg_routing_weight=0.25,
    )
    add_expert(store, "tides", name="Tides", is_active=False)
    store.set_parent("mills", "places")


@pytest.fixture
def trained(visitor: Visitor, tmp_path: Path) -> Callable[..., Expert]:
    """Trains an expert as the command does."""

    def train(expert_id: str = "mills", *, passages: int = 4, overwrite: bool = False) -> Expert:
        data = write_passages(tmp_path / "passages.jsonl", passages)
        config = make_config(tmp_path, paths={"artifacts": visitor.artifacts})
        return train_expert(config, expert_id, data, overwrite=overwrite).expert

    return train


def rows(html: str) -> list[str]:
    return re.findall(r'<tr id="expert-([^"]+)"', html)


# ------------------------------------------------------------ table, search, tree


def test_without_experts_the_page_says_how_to_get_one(visitor: Visitor) -> None:
    html = visitor.look("/experts")
    assert "There are no experts yet." in html
    assert "Train one from a file of passages" in html
    assert not (visitor.artifacts / "experts").exists()
    assert "There are no experts yet." in visitor.look("/experts?view=tree")
    assert "There are no goals yet." in visitor.look("/goals")
    assert "The trash is empty." in visitor.look("/experts/-/trash")


def test_the_table_shows_what_is_known_and_the_tiles_count(visitor: Visitor, three: None) -> None:
    html = visitor.look("/experts")
    assert rows(html) == ["places", "mills", "tides"]
    for name, value in (
        ("Experts", "3"),
        ("Active", "2"),
        ("Frozen", "0"),
        ("Activations", "1,234"),
    ):
        assert f"<span>{name}</span><b>{value}</b>" in html
    assert '<td class="n">0.25</td>' in html
    assert "1 child" in html
    assert 'below <a class="text" href="/experts/places">Places</a>' in html


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("", ["places", "mills", "tides"]),
        ("q=MILL", ["mills"]),
        ("q=knows+places", ["places"]),
        ("q=nothing", []),
        ("status=inactive", ["tides"]),
        ("status=active", ["places", "mills"]),
        ("status=frozen", []),
        ("category=Geography", ["places"]),
        ("goal=answer+about+mills", ["mills"]),
        ("goal=m", ["mills"]),
        ("order=activations&down=1", ["mills", "places", "tides"]),
        ("down=1", ["tides", "mills", "places"]),
        ("order=status", ["places", "mills", "tides"]),
        ("order=nonsense&status=nonsense&page=nonsense", ["places", "mills", "tides"]),
        ("page=99", ["places", "mills", "tides"]),
    ],
)
def test_experts_are_searched_filtered_and_sorted(
    visitor: Visitor, three: None, query: str, found: list[str]
) -> None:
    open_goals(visitor.site.config).add("Answer about mills", "m")
    assert rows(visitor.look(f"/experts?{query}")) == found


def test_a_change_elsewhere_is_seen_at_once(
    visitor: Visitor, three: None, store: FileExpertStore
) -> None:
    assert "Old name" not in visitor.look("/experts")
    store.save(replace(store.require("tides"), name="Old name"))
    assert "Old name" in visitor.look("/experts")


def test_thousands_of_experts_come_in_pages(visitor: Visitor, store: FileExpertStore) -> None:
    with store.change() as registry:
        for number in range(3000):
            registry.put(Expert(f"e{number:04}", f"Expert {number:04}"))
    html = visitor.look("/experts?page=2")
    assert rows(html)[0] == "e0050"
    assert len(rows(html)) == 50
    assert "page 2 of 60" in html
    assert len(html) < 300_000
    assert len(visitor.look("/experts?view=tree")) < 200_000


def test_the_tree_shows_children_below_their_parents(visitor: Visitor, three: None) -> None:
    html = visitor.look("/experts?view=tree")
    places = html[html.index('id="branch-places"') : html.index('id="branch-tides"')]
    assert 'id="branch-mills"' in places
    assert "1 below" in places
    found = visitor.look("/experts?view=tree&q=mill")
    assert 'id="branch-places"' in found  # leads to it
    assert 'id="branch-tides"' not in found


# ------------------------------------------------------------ buttons of the table


def test_buttons_change_the_registry(visitor: Visitor, three: None, store: FileExpertStore) -> None:
    html = visitor.press("/experts/-/deactivate", id="places", back="/experts?q=place")
    assert "Places is inactive." in html
    assert rows(html) == ["places"]
    assert not store.require("places").is_active
    visitor.press("/experts/-/activate", id="places")
    assert store.require("places").is_active
    visitor.press("/experts/-/freeze", id="places")
    assert store.require("places").is_frozen
    visitor.press("/experts/-/unfreeze", id="places")
    assert not store.require("places").is_frozen


def test_a_deleted_expert_comes_back_by_undo(
    visitor: Visitor, three: None, store: FileExpertStore
) -> None:
    html = visitor.press("/experts/-/delete", id="mills", back="/experts")
    assert "The mills is in the trash." in html
    assert store.get("mills") is None
    entry = open_trash(visitor.site.config).list()[0].name
    assert 'action="/experts/-/restore"' in html
    assert f'name="entry" value="{entry}"' in html
    assert "The mills is back." in visitor.press("/experts/-/restore", entry=entry)
    assert store.require("mills").parent_expert_id == "places"
    assert open_trash(visitor.site.config).list() == ()


def test_several_are_changed_and_deleted_at_once(
    visitor: Visitor, three: None, store: FileExpertStore
) -> None:
    visitor.press("/experts/-/deactivate", id=["mills", "places"])
    assert not any(one.is_active for one in store.list())
    assert "no expert was chosen" in visitor.press("/experts/-/activate")
    store.set_frozen("tides", True)
    html = visitor.press("/experts/-/delete", id=["mills", "tides"])
    assert "The mills is in the trash. Not deleted:" in html
    assert [one.expert_id for one in store.list()] == ["places", "tides"]


def test_a_frozen_expert_refuses_what_changes_it(
    visitor: Visitor, three: None, store: FileExpertStore
) -> None:
    store.set_frozen("mills", True)
    before = store.require("mills")
    changes: tuple[tuple[str, dict[str, Any]], ...] = (
        ("delete", {}),
        ("set-parent", {"parent": "tides"}),
        ("clear-parent", {}),
        ("describe", {"name": "Other"}),
        ("rollback", {"to": "1"}),
        ("forget", {"passage": "x"}),
    )
    for path, fields in changes:
        html = visitor.press(f"/experts/-/{path}", id="mills", back="/experts", **fields)
        assert "is frozen" in html, path
        assert "unfreeze it first" in html
    assert store.require("mills") == before
    assert visitor.site.jobs.list() == []


def test_the_trash_is_shown_restored_from_and_emptied(
    visitor: Visitor, three: None, store: FileExpertStore
) -> None:
    trash = open_trash(visitor.site.config)
    for one in ("mills", "tides", "places"):
        trash.delete(one)
    names = [one.name for one in trash.list()]
    html = visitor.look("/experts/-/trash")
    assert all(name in html for name in names)
    visitor.press("/experts/-/restore", entry=names[1], back="/experts/-/trash")
    assert [one.expert_id for one in store.list()] == ["tides"]
    assert "1 expert was removed" in visitor.press("/experts/-/purge", entry=names[0])
    assert [one.name for one in trash.list()] == [names[2]]
    assert "no expert was chosen" in visitor.press("/experts/-/purge", back="/experts/-/trash")
    visitor.press("/experts/-/purge", all="1")
    assert trash.list() == ()


def test_unknown_and_hostile_ids_are_told(visitor: Visitor, three: None) -> None:
    assert "there is no expert" in visitor.look("/experts/nothing", status=404)
    for hostile in ("../../etc", "nothing", "a/b", ".."):
        assert "note-bar bad" in visitor.press("/experts/-/delete", id=hostile, back="/experts")
        assert "note-bar bad" in visitor.press("/experts/-/restore", entry=hostile, back="/experts")
        assert "note-bar bad" in visitor.press("/experts/-/freeze", id=hostile, back="/experts")
    visitor.look("/experts/..%2f..%2fetc", status=404)


def test_hostile_texts_show_as_text(visitor: Visitor, store: FileExpertStore) -> None:
    add_expert(store, "bad", name=HOSTILE, description=HOSTILE, category=HOSTILE, goals=(HOSTILE,))
    with store.change() as registry:
        registry.put(Expert('"><script>', "Of another program", parent_expert_id=HOSTILE))
    open_goals(visitor.site.config).add(HOSTILE, "bad")
    (store.folder("bad") / "augmented.jsonl").write_text(
        json.dumps({"text": HOSTILE, "source": "implications", "passage_id": HOSTILE}) + "\n"
    )
    for path in (
        "/experts",
        "/experts?view=tree",
        "/experts?q=%3Cscript%3E",
        "/experts/bad",
        "/experts/bad/edit",
        "/experts/bad/texts",
        "/experts/bad/passages",
        "/experts/bad/versions",
        "/experts/-/new",
        "/goals",
    ):
        html = visitor.look(path)
        assert "<script>" not in html, path
        assert "<img src=x" not in html, path
    assert "&lt;script&gt;alert" in visitor.look("/experts/bad/texts")
    assert "<script>" not in visitor.press("/experts/-/delete", id="bad", back="/experts")
    assert "<script>" not in visitor.look("/experts/-/trash")


# ------------------------------------------------------------ an expert's pages


def test_a_trained_expert_is_shown_with_curve_passages_and_self_edits(
    visitor: Visitor, trained: Callable[..., Expert]
) -> None:
    trained()
    card = visitor.look("/experts/mills")
    assert 'aria-label="Learning curve"><svg' in card
    assert "95&nbsp;% interval" in card
    assert "4 passages the mean loss" in card
    assert 'href="/chat?model=mills"' in card
    passages = visitor.look("/experts/mills/passages")
    assert "Arn-mill" in passages
    assert "4 passages" in passages
    assert "1 passage of 4" in visitor.look("/experts/mills/passages?q=bosk")
    texts = visitor.look("/experts/mills/texts")
    assert "implications" in texts
    assert "Arn" in visitor.look("/experts/mills/texts?source=&passage=Arn-mill")
    assert "0 texts" in visitor.look("/experts/mills/texts?passage=none")
    edits = int(re.findall(r"data-count>(\d+) text", texts)[0])
    whole = int(
        re.findall(r"data-count>(\d+) text", visitor.look("/experts/mills/texts?source="))[0]
    )
    lines = (visitor.artifacts / "experts/mills/augmented.jsonl").read_text().splitlines()
    assert whole == len(lines)
    assert edits == sum(json.loads(line)["source"] != "passage" for line in lines)


def test_texts_come_in_pages(visitor: Visitor, three: None, store: FileExpertStore) -> None:
    lines = [
        json.dumps(
            {
                "text": f"Item {n}.",
                "source": "rewrite" if n % 2 else "passage",
                "passage_id": "p",
                "loss_spans": [[0, 8]],
            }
        )
        for n in range(120)
    ]
    (store.folder("mills") / "augmented.jsonl").write_text("\n".join([*lines, "no json", ""]))
    html = visitor.look("/experts/mills/texts?source=&page=2")
    assert "Item 25." in html
    assert "Item 24." not in html
    assert "page 2 of 5" in html
    assert "source=&amp;passage=&amp;page=3" in html
    assert "60 texts" in visitor.look("/experts/mills/texts?source=rewrite")


def test_an_expert_of_elsewhere_is_shown_as_far_as_it_is_known(
    visitor: Visitor, three: None
) -> None:
    assert "Nothing was validated" in visitor.look("/experts/mills")
    assert "not recorded which passages" in visitor.look("/experts/mills/passages")
    assert "not kept here" in visitor.look("/experts/mills/texts")


def test_goals_and_place_are_changed_on_the_card(
    visitor: Visitor, three: None, store: FileExpertStore
) -> None:
    open_goals(visitor.site.config).add("Know the sea", "sea")
    card = "/experts/mills"
    visitor.press("/experts/-/link", id="mills", goal="sea", back=card)
    assert store.require("mills").goals == ("Answer about mills", "Know the sea")
    html = visitor.press("/experts/-/unlink", id="mills", goal="sea", back=card)
    assert 'action="/experts/-/link"' in html  # the undo
    visitor.press("/experts/-/unlink", id="mills", goal="Answer about mills", back=card)
    assert store.require("mills").goals == ()
    visitor.press("/experts/-/set-parent", id="mills", parent="tides", back=card)
    assert store.require("mills").parent_expert_id == "tides"
    assert store.require("tides").child_expert_ids == ("mills",)
    assert "cannot be the parent" in visitor.press(
        "/experts/-/set-parent", id="tides", parent="mills", back="/experts/tides"
    )
    visitor.press("/experts/-/clear-parent", id="mills", back=card)
    assert store.require("mills").parent_expert_id is None
    assert "no parent was chosen" in visitor.press("/experts/-/set-parent", id="mills", back=card)


def test_what_people_read_is_edited(visitor: Visitor, three: None, store: FileExpertStore) -> None:
    fields: dict[str, Any] = {"name": "Mills", "description": "All\nmills.", "category": "old"}
    assert "was changed" in visitor.press("/experts/-/describe", id="mills", **fields)
    found = store.require("mills")
    assert (found.name, found.description, found.category) == ("Mills", "All\nmills.", "old")
    assert "too long" in visitor.press(
        "/experts/-/describe", id="mills", name="x" * 201, back="/experts/mills/edit"
    )
    assert store.require("mills") == found


def test_an_older_version_is_rolled_back_to(
    visitor: Visitor, trained: Callable[..., Expert]
) -> None:
    trained()
    trained(passages=5, overwrite=True)
    html = visitor.look("/experts/mills/versions")
    assert 'aria-label="Roll back to version 1"' in html
    assert "in use again, as version 3" in visitor.press("/experts/-/rollback", id="mills", to="1")
    versions = open_versions(visitor.site.config).list("mills")
    assert [one.rolled_back_to for one in versions] == [None, None, 1]
    back = "/experts/mills/versions"
    assert "no version" in visitor.press("/experts/-/rollback", id="mills", to="x", back=back)
    assert "no older version 9" in visitor.press(
        "/experts/-/rollback", id="mills", to="9", back=back
    )


def test_the_adapter_is_downloaded_as_it_is_on_disk(
    visitor: Visitor, trained: Callable[..., Expert]
) -> None:
    trained()
    answer = visitor.client.get("/experts/mills/adapter.zip")
    assert answer.status_code == 200
    assert answer.headers["content-disposition"] == 'attachment; filename="mills.zip"'
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.testzip() is None
        assert sorted(archive.namelist()) == [
            "mills/README.md",
            "mills/adapter_config.json",
            "mills/adapter_model.safetensors",
        ]
        weights = archive.read("mills/adapter_model.safetensors")
    assert weights == (visitor.artifacts / "experts/mills/adapter_model.safetensors").read_bytes()
    (visitor.artifacts / "experts/mills/adapter_model.safetensors").write_bytes(weights[:-1])
    visitor.look("/experts/mills/adapter.zip", status=400)


def test_forgetting_a_passage_starts_a_job_of_the_command(
    visitor: Visitor, trained: Callable[..., Expert], monkeypatch: pytest.MonkeyPatch
) -> None:
    trained()
    monkeypatch.setattr(type(visitor.site.jobs), "_launch", lambda *args, **more: None)
    html = visitor.look("/experts/mills/forget?passage=Arn-mill")
    assert "Train again without it" in html
    assert "there is no passage" in visitor.look("/experts/mills/forget?passage=x", status=404)
    assert "there is no passage" in visitor.press("/experts/-/forget", id="mills", passage="x")
    visitor.press("/experts/-/forget", id="mills", passage="Arn-mill", keep_versions="1")
    job = visitor.site.jobs.list()[0]
    assert job.request.kind == "forget"
    assert job.request.arguments == (
        *("experts", "forget", "mills", "--passage=Arn-mill", "--keep-versions"),
    )
    assert job.request.resume[-1] == "--resume"


# ------------------------------------------------------------ making one


def test_an_adapters_folder_becomes_an_expert(
    visitor: Visitor, tmp_path: Path, trained: Callable[..., Expert], store: FileExpertStore
) -> None:
    trained("source")
    assert 'href="/"' in visitor.look("/experts/-/new")
    html = visitor.press(
        "/experts/-/create",
        folder=str(store.folder("source")),
        id="copy",
        name="Copy",
        category="c",
        goals="One goal\n\nAnother",
        parent="source",
    )
    assert "Copy was made" in html
    found = store.require("copy")
    assert (found.name, found.goals, found.parent_expert_id) == (
        "Copy",
        ("One goal", "Another"),
        "source",
    )
    back = "/experts/-/new"
    for folder in ("", str(tmp_path / "no"), "~nobody-of-this-name/x", "a\0b"):
        html = visitor.press("/experts/-/create", back=back, folder=folder, id="x")
        assert "note-bar bad" in html
    assert "exists already" in visitor.press(
        "/experts/-/create", folder=str(store.folder("source")), id="copy", back=back
    )


def test_with_a_token_no_folder_can_be_named(tmp_path: Path) -> None:
    visitor = Visitor(tmp_path, token="secret-of-a-test-0123456789")
    try:
        visitor.client.post(
            "/login", data={"token": "secret-of-a-test-0123456789"}, headers={"Origin": ADDRESS}
        )
        assert 'name="folder"' not in visitor.look("/experts/-/new")
        html = visitor.press("/experts/-/create", folder="/etc", id="x", back="/experts/-/new")
        assert "cannot be named from elsewhere" in html
    finally:
        visitor.close()


# ------------------------------------------------------------ goals


def test_goals_are_added_linked_and_removed(
    visitor: Visitor, three: None, store: FileExpertStore
) -> None:
    goals = open_goals(visitor.site.config)
    assert "was added" in visitor.press("/goals/add", text="Know the  sea", id="")
    assert "was added" in visitor.press("/goals/add", text="Answer about mills", id="m")
    assert [(one.id, one.text) for one in goals.list()] == [
        ("know-the-sea", "Know the sea"),
        ("m", "Answer about mills"),
    ]
    assert "already" in visitor.press("/goals/add", text="know the SEA", back="/goals")
    html = visitor.look("/goals")
    assert 'aria-label="Unlink mills from m"' in html
    assert "2 goals, 1 served by no expert" in html
    visitor.press("/experts/-/link", id="tides", goal="know-the-sea", back="/goals")
    assert store.require("tides").goals == ("Know the sea",)
    visitor.press("/experts/-/unlink", id="tides", goal="know-the-sea", back="/goals")
    assert store.require("tides").goals == ()
    assert "1 expert serves it no more" in visitor.press("/goals/remove", goal="m", back="/goals")
    assert store.require("mills").goals == ()
    assert [one.id for one in goals.list()] == ["know-the-sea"]
    assert "note-bar bad" in visitor.press("/goals/remove", goal="nothing", back="/goals")


def test_the_tiles_are_a_live_part(visitor: Visitor, three: None) -> None:
    html = visitor.look("/experts")
    assert html.count("data-live=") == 1
    assert "<b>3</b>" in visitor.look("/experts/-/tiles")
