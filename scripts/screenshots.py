"""Pictures of the pages of ``aios web``, light and dark, for the documentation.

    python -m scripts.screenshots
    python -m scripts.screenshots --artifacts work/artifacts --model smollm2-135m-instruct
    python -m scripts.screenshots --page home --page chat

Without a folder of artifacts one is filled with the scripted model by
``scripts/demo_artifacts.py``. Needs Chromium, found by name (``AIOS_CHROMIUM`` names another), and
the package playwright.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scripts.demo_artifacts import make_demo
from scripts.small_png import indexed_png

from aios.app.jobs.own_program import command_of

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from playwright.sync_api import Browser, Page

ROOT = Path(__file__).resolve().parents[1]
PICTURES = ROOT / "docs" / "user_guide" / "images"
NAMES = ("chromium", "chromium-browser", "google-chrome")
THEMES = ("light", "dark")
SIZE = (1280, 800)
MOST_BYTES = 150_000
CHAT = ("chat.temperature=0", "chat.max_new_tokens=48")
QUESTION = "Who designed the Brellow tide engine?"
_PIXELS = """async (text) => {
  const file = await (await fetch(`data:image/png;base64,${text}`)).blob();
  const image = await createImageBitmap(file);
  const canvas = new OffscreenCanvas(image.width, image.height).getContext("2d");
  canvas.drawImage(image, 0, 0);
  const { data } = canvas.getImageData(0, 0, image.width, image.height);
  let pixels = "";
  for (let at = 0; at < data.length; at += 8192) {
    pixels += String.fromCharCode(...data.subarray(at, at + 8192));
  }
  return btoa(pixels);
}"""


@dataclass(frozen=True)
class Shot:
    """A picture.

    Attributes:
        name: What it is called.
        path: The page.
        choose: Selectors of lists that the first, second, … entry is chosen of.
        press: Selectors of links and buttons that are pressed there, one after the other.
        after: Selector of what is waited for then; empty: nothing is.
        top: Selector of what is scrolled to the top; empty: nothing is.
        ask: Asks a question in the chat first.
    """

    name: str
    path: str
    choose: tuple[str, ...] = ()
    press: tuple[str, ...] = ()
    after: str = ""
    top: str = ""
    ask: bool = False


SHOTS = (
    Shot("home", "/"),
    Shot("file", "/", press=("a[href^='/files/']:has-text('passages.jsonl')",)),
    Shot("job", "/jobs", press=("a[href^='/jobs/train-expert-harbours']",)),
    Shot("experts", "/experts"),
    Shot("tree", "/experts?view=tree"),
    Shot("expert", "/experts/harbours"),
    Shot("edits", "/edits", press=("a[href*='/edits/generate-']",), top="#found"),
    Shot("strategies", "/edits", press=("a[href*='/edits/generate-']", ".tabs a >> nth=1")),
    Shot("ab-test", "/ab-tests", press=("main tbody a[href^='/ab-tests/']",)),
    Shot("restem", "/restem"),
    Shot("restem-run", "/restem", press=("main tbody a[href^='/restem/']",)),
    Shot("chat", "/chat?model=harbours", ask=True),
    Shot("settings", "/settings"),
    Shot(
        "compare",
        "/runs/compare",
        choose=("select[name=a]", "select[name=b]"),
        press=("main form button.primary",),
    ),
    Shot("doctor", "/settings/doctor", press=("main form button",), after="main table"),
)


@contextmanager
def serving(artifacts: Path, model: str) -> Iterator[str]:
    """A server of a folder of artifacts; gives its address."""
    given = (
        f"model.name={model}",
        f"paths.artifacts={artifacts.name}",
        "chat.temperature=0",
        "chat.max_new_tokens=48",
    )
    arguments = ["web", "--port", "0", "--json", "--quiet"]
    arguments += [part for text in given for part in ("--set", text)]
    process = subprocess.Popen(
        command_of("aios.__main__", arguments),
        cwd=artifacts.parent,  # so that no path of this machine is in a picture
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        yield str(json.loads(process.stdout.readline())["url"])
    finally:
        process.terminate()
        process.wait(30)


def take(browser: Browser, url: str, shot: Shot, theme: str, folder: Path) -> Path:
    """Takes a picture of a page."""
    width, height = SIZE
    context = browser.new_context(
        base_url=url,
        viewport={"width": width, "height": height},
        color_scheme="dark" if theme == "dark" else "light",
        locale="en-GB",
        timezone_id="UTC",
        reduced_motion="reduce",
    )
    page = context.new_page()
    page.goto(shot.path)
    for number, selector in enumerate(shot.choose, 1):
        page.locator(selector).select_option(index=number)
    for selector in shot.press:
        page.locator(selector).first.click()
        page.wait_for_load_state()
    if shot.after:
        page.locator(shot.after).first.wait_for(timeout=60_000)
    if shot.ask:
        ask(page)
    if shot.top:
        page.locator(shot.top).first.evaluate("(it) => it.scrollIntoView(true)")
    page.wait_for_timeout(700)
    file = folder / f"web-{shot.name}-{theme}.png"
    file.write_bytes(indexed_png(pixels_of(browser, page.screenshot())))
    context.close()
    return file


def ask(page: Page) -> None:
    """Asks the question, and waits for the answer."""
    page.get_by_label("Your message").fill(QUESTION)
    page.get_by_role("button", name="Send").click()
    page.get_by_role("button", name="Good: answer 1").wait_for(timeout=120_000)
    page.locator("#message").blur()


def pixels_of(browser: Browser, png: bytes) -> NDArray[np.uint8]:
    """A picture's pixels, (height, width, 3); the browser reads the file."""
    page = browser.new_page()
    text: str = page.evaluate(_PIXELS, base64.b64encode(png).decode())
    page.close()
    width, height = SIZE
    found = np.frombuffer(base64.b64decode(text), np.uint8).reshape(height, width, 4)
    return found[:, :, :3]


def take_all(artifacts: Path, model: str, shots: Sequence[Shot], folder: Path) -> list[Path]:
    """Takes the pictures of a folder of artifacts; gives the files."""
    from playwright.sync_api import sync_playwright

    program = os.environ.get("AIOS_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        raise SystemExit(f"no web browser: none of {', '.join(NAMES)} is there; see AIOS_CHROMIUM")
    folder.mkdir(parents=True, exist_ok=True)
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright, serving(artifacts, model) as url:
        browser = playwright.chromium.launch(executable_path=program, args=arguments)
        return [take(browser, url, shot, theme, folder) for shot in shots for theme in THEMES]


def main() -> None:
    """Takes the pictures that the command line asks for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--artifacts", type=Path, help="a folder that is filled already")
    parser.add_argument("--model", default="scripted")
    parser.add_argument("--out", type=Path, default=PICTURES)
    parser.add_argument("--page", action="append", choices=[shot.name for shot in SHOTS])
    chosen = parser.parse_args()
    shots = [shot for shot in SHOTS if chosen.page is None or shot.name in chosen.page]
    with tempfile.TemporaryDirectory() as made:
        artifacts = chosen.artifacts or Path(made) / "artifacts"
        if chosen.artifacts is None:
            make_demo(artifacts)
        for file in take_all(artifacts.absolute(), chosen.model, shots, chosen.out):
            size = file.stat().st_size
            large = "  LARGE" if size > MOST_BYTES else ""
            print(f"{file.name}: {size / 1024:.0f} KiB{large}", file=sys.stderr)


if __name__ == "__main__":
    main()
