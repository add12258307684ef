"""The documentation site: its home, pages from outside ``docs/``, and links between them."""

from __future__ import annotations

from pathlib import Path

import pytest
from mkdocs.config import load_config
from mkdocs.structure.files import File, Files
from scripts import mkdocs_hooks as hooks

ROOT = Path(__file__).resolve().parents[1]
SHOWN = {
    "experiments/racing.md": "research/experiments/racing.md",
    "benchmarks/README.md": "research/benchmarks.md",
    "CONTRIBUTING.md": "development/SEAL_CONTRIBUTING.md",
}


@pytest.mark.parametrize(
    ("source", "text", "linked"),
    [
        # pages of docs/ leave docs/
        (
            "docs/user_guide/TRIALS.md",
            "[a](../../experiments/racing.md#b) [c](AB_TESTS.md)",
            "[a](../research/experiments/racing.md#b) [c](AB_TESTS.md)",
        ),
        # a page's path in backticks is a link
        (
            "docs/INDEX.md",
            "see `experiments/racing.md`",
            "see [`experiments/racing.md`](research/experiments/racing.md)",
        ),
        (
            "CONTRIBUTING.md",
            "in `docs/QUICK_START.md`",
            "in [`docs/QUICK_START.md`](../QUICK_START.md)",
        ),
        # but not its own, one that is no page, one that is a link already, or code
        ("experiments/racing.md", "here, `racing.md`", "here, `racing.md`"),
        ("docs/INDEX.md", "`gone.md` and `prompts.yaml`", "`gone.md` and `prompts.yaml`"),
        (
            "docs/INDEX.md",
            "[`experiments/racing.md`](../experiments/racing.md)",
            "[`experiments/racing.md`](research/experiments/racing.md)",
        ),
        (
            "docs/INDEX.md",
            "```text\n[a](../experiments/racing.md)\n```\n`[b](../experiments/racing.md)`",
            "```text\n[a](../experiments/racing.md)\n```\n`[b](../experiments/racing.md)`",
        ),
        # pages from outside
        (
            "benchmarks/README.md",
            "[a](../experiments/racing.md) [b](README.md) [c](#d)",
            "[a](experiments/racing.md) [b](#) [c](#d)",
        ),
        (
            "experiments/racing.md",
            "[config.yaml](results/config.yaml) and [numbers](results/a.json)",
            "`experiments/results/config.yaml` and numbers (`experiments/results/a.json`)",
        ),
        ("experiments/racing.md", "[x](https://arxiv.org/abs/1)", "[x](https://arxiv.org/abs/1)"),
    ],
)
def test_paths_of_the_repository_become_links_of_the_site(
    source: str, text: str, linked: str
) -> None:
    assert hooks.link(text, source, SHOWN) == linked


def test_the_home_page_is_at_the_top_and_pages_from_outside_are_there(tmp_path: Path) -> None:
    config = load_config(
        str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path), plugins=[], theme="mkdocs"
    )
    home = File(hooks.HOME, str(ROOT / "docs"), str(tmp_path), use_directory_urls=False)
    files = config.plugins.on_files(Files([home]), config=config)
    assert (home.name, home.dest_uri, home.url) == ("index", "index.html", "index.html")
    for source in ("experiments/racing.md", "benchmarks/README.md", "examples/README.md"):
        shown = files.get_file_from_path(hooks.outside_pages()[source])
        assert shown is not None
        assert shown.content_string == (ROOT / source).read_text(encoding="utf-8")


def test_names_of_pages_differ_by_more_than_capitals() -> None:
    names = [str(path.relative_to(ROOT)).lower() for path in (ROOT / "docs").rglob("*.md")]
    names += [f"docs/{page}".lower() for page in hooks.outside_pages().values()]
    assert len(names) == len(set(names))
    assert (ROOT / "docs" / "INDEX.md").is_file()
