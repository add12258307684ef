"""What the documentation site needs beside mkdocs: its home, and pages from outside ``docs/``.

``docs/INDEX.md`` is served as ``index.html``. The accounts of experiments, the benchmarks and the
examples are pages of the repository, each beside what it describes; here they become pages of the
site too (`OUTSIDE`). Links to them are written as paths of the repository, as a reader of the files
needs them, and are turned into links of the site; so is a page's path in backticks. A file that is
no page of the site is named by its path.

mkdocs calls ``on_files`` and ``on_page_markdown``; see ``hooks`` in ``mkdocs.yml``.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
HOME = "INDEX.md"
# Pages outside docs/ by pattern, and the folder of the site that they are shown in.
OUTSIDE = {
    "experiments/*.md": "research/experiments",
    "benchmarks/README.md": "research",
    "examples/README.md": "user_guide",
    "examples/strategy-plugin/README.md": "user_guide",
}
# What a page of docs/ is, whole.
INCLUDED = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "development/SEAL_CONTRIBUTING.md",
}

# A block, a span of code, or a link: only the last two outside the first are changed.
_PARTS = re.compile(
    r"(?P<block>^( *)(`{3,}|~{3,})[^\n]*\n.*?^\2\3 *$)"
    r"|(?P<span>(?<![`\[])`(?P<path>[\w./-]+\.md)`(?![`\]]))"
    r"|(?P<code>`[^`\n]+`)"
    r"|(?<!!)\[(?P<text>(?:[^\[\]]|\[[^\]]*\])*)\]\((?P<target>[^)\s]+)\)",
    re.MULTILINE | re.DOTALL,
)


def outside_pages() -> dict[str, str]:
    """Where pages outside ``docs/`` are shown: path in the repository to path in the site."""
    found = {}
    for pattern, folder in OUTSIDE.items():
        for path in sorted(ROOT.glob(pattern)):
            name = path.parent.name if path.name == "README.md" else path.stem
            found[path.relative_to(ROOT).as_posix()] = f"{folder}/{name}.md"
    return found


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Serves the home page at the top, and adds the pages from outside ``docs/``."""
    home = files.get_file_from_path(HOME)
    assert home is not None, f"docs/{HOME} is gone"
    home.name = "index"
    home.dest_uri = "index.html"
    for source, shown in outside_pages().items():
        files.append(File.generated(config, shown, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns paths of the repository into links of the site."""
    shown = {**outside_pages(), **INCLUDED}
    sources = {site: source for source, site in shown.items()}
    source = sources.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    if source in INCLUDED:
        markdown = (ROOT / source).read_text(encoding="utf-8")
    return link(markdown, source, shown)


def link(markdown: str, source: str, shown: Mapping[str, str]) -> str:
    """A page's text with links that hold in the site.

    Args:
        markdown: The text.
        source: Path of the page in the repository, such as ``docs/QUICK_START.md``.
        shown: Pages from outside ``docs/``: path in the repository to path in the site.
    """
    here = posixpath.dirname(shown.get(source, source.removeprefix("docs/")))

    def site_path(path: str) -> str:
        """Where a file of the repository is in the site, seen from this page; empty if nowhere."""
        if path == source:
            return ""
        page = shown.get(path, path.removeprefix("docs/") if path.startswith("docs/") else "")
        return posixpath.relpath(page, here or ".") if page else ""

    def changed(match: re.Match[str]) -> str:
        if match["path"]:
            own = posixpath.normpath(posixpath.join(posixpath.dirname(source), match["path"]))
            for path in (match["path"], own):
                if (target := site_path(path)) and (ROOT / path).is_file():
                    return f"[{match['span']}]({target})"
        if not match["target"]:
            return match[0]
        parts = urlsplit(match["target"])
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), parts.path))
        stays = source.startswith("docs/") and path.startswith("docs/")
        if parts.scheme or not parts.path or stays:
            return match[0]
        anchor = f"#{parts.fragment}" if parts.fragment else ""
        if path == source:
            return f"[{match['text']}]({anchor or '#'})"
        if target := site_path(path):
            return f"[{match['text']}]({target}{anchor})"
        named = match["text"].strip("`") in (path, posixpath.basename(path))
        return f"`{path}`" if named else f"{match['text']} (`{path}`)"

    return _PARTS.sub(changed, markdown)
