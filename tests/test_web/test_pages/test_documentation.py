"""What the documentation says of the pages: the policy, and a picture of each in both themes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from scripts.screenshots import MOST_BYTES, SHOTS, THEMES

from aios.web.pages.guarding import PAGE_POLICY

PAGE = Path(__file__).resolve().parents[3] / "docs" / "user_guide" / "SEAL_OVERVIEW.md"


def test_the_policy_in_the_documentation_is_the_one_of_the_pages() -> None:
    text = PAGE.read_text(encoding="utf-8")
    (shown,) = re.findall(r"```text\n(default-src.*?)\n```", text, re.DOTALL)
    assert " ".join(shown.split()) == PAGE_POLICY


@pytest.mark.parametrize("theme", THEMES)
def test_each_page_has_a_small_picture_that_the_documentation_shows(theme: str) -> None:
    text = PAGE.read_text(encoding="utf-8")
    for shot in SHOTS:
        file = PAGE.parent / "images" / f"web-{shot.name}-{theme}.png"
        assert f"(images/{file.name}#only-{theme})" in text
        assert 1000 < file.stat().st_size < MOST_BYTES, shot.name
