from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aios.core.seal.cache import SelfEditCache
from aios.core.types import Completion
from tests.test_web.visitor import Visitor


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def visitor(tmp_path: Path, folder: Path) -> Iterator[Visitor]:
    found = Visitor(tmp_path, f"seal.cache_dir={folder}")
    yield found
    found.close()


def fill(folder: Path, entries: int = 3) -> None:
    with SelfEditCache(folder, 10**9) as cache:
        for number in range(entries):
            completion = Completion("A text. " * 50, 100, "stop", number)
            cache.put(f"{number:064x}", completion, strategy="<i>rewrite", model="m")
        cache.get("0" * 64)
        cache.get("f" * 64)


def entries(folder: Path) -> int:
    return sum(len(path.stem) == 64 for path in folder.glob("*.json"))


def test_an_empty_cache_says_how_it_fills(visitor: Visitor, folder: Path) -> None:
    html = visitor.look("/cache")
    assert "The cache is empty" in html
    assert "aios seal cache warm" in html
    assert not folder.exists()


def test_what_the_cache_holds_is_shown_and_follows_it(visitor: Visitor, folder: Path) -> None:
    fill(folder)
    html = visitor.look("/cache")
    assert "<b>3</b>" in html
    assert "of 2 look-ups" in html
    assert "&lt;i&gt;rewrite" in html
    assert "<i>rewrite" not in html
    fill(folder, 5)
    html = visitor.look("/cache")
    assert "<b>5</b>" in html
    assert "of 4 look-ups" in html


def test_the_cache_is_pruned_to_a_size(visitor: Visitor, folder: Path) -> None:
    fill(folder)
    size = max(path.stat().st_size for path in folder.glob("*.json"))
    html = visitor.press("/cache/prune", max_size=f"{2 * size}B", back="/cache")
    assert "1 self-edits were removed" in html
    assert entries(folder) == 2


def test_the_cache_is_pruned_by_age(visitor: Visitor, folder: Path) -> None:
    fill(folder)
    assert "0 self-edits were removed" in visitor.press("/cache/prune", older_than="30")
    assert "3 self-edits were removed" in visitor.press("/cache/prune", older_than="0")
    assert entries(folder) == 0


@pytest.mark.parametrize(
    "fields", [{}, {"max_size": "much"}, {"older_than": "-1"}, {"older_than": "1e400"}]
)
def test_a_pruning_that_says_nothing_or_nonsense_removes_nothing(
    visitor: Visitor, folder: Path, fields: dict[str, Any]
) -> None:
    fill(folder)
    assert 'class="note-bar bad"' in visitor.press("/cache/prune", back="/cache", **fields)
    assert entries(folder) == 3


def test_the_cache_is_cleared_after_a_question(visitor: Visitor, folder: Path) -> None:
    fill(folder)
    (folder / "notes.txt").write_text("mine")
    assert 'data-confirm="Delete all 3 cached self-edits' in visitor.look("/cache")
    asked = visitor.press("/cache/clear", confirm="Delete all 3?", back="/cache", set_aside="yes")
    assert "Are you sure?" in asked
    assert "Delete all 3?" in asked
    assert '<input type="hidden" name="set_aside" value="yes">' in asked
    assert '<a class="button" href="/cache">Cancel</a>' in asked
    assert entries(folder) == 3
    sent = dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', asked))
    assert sent.pop("sure") == "1"
    assert "confirm" not in sent
    assert "3 self-edits were removed" in visitor.press("/cache/clear", sure="1", **sent)
    assert entries(folder) == 0
    assert (folder / "notes.txt").exists()


def test_a_question_without_a_script_is_text_and_leads_to_no_other_site(visitor: Visitor) -> None:
    asked = visitor.press(
        "/cache/clear", confirm="<script>alert(1)</script>", back="//evil.example", x='"><b>'
    )
    assert "<script>alert" not in asked
    assert "evil.example" not in asked.partition('class="button" href="')[2].partition(">")[0]
    assert '"><b>' not in asked


def test_corrupt_files_are_cleared_when_that_is_asked_for(visitor: Visitor, folder: Path) -> None:
    fill(folder)
    (folder / f"{0:064x}.json").write_text("{")
    with SelfEditCache(folder, 10**9) as cache:
        assert cache.get(f"{0:064x}") is None
    assert "Set aside as corrupt" in visitor.look("/cache")
    visitor.press("/cache/clear")
    assert len(list((folder / "corrupt").iterdir())) == 1
    assert "1 corrupt files were removed" in visitor.press("/cache/clear", set_aside="yes")
    assert not (folder / "corrupt").exists()
