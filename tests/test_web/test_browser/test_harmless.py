"""What other pages, foreign names and texts of models try does nothing."""

from __future__ import annotations

import http.server
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from aios.app.page_settings import FILE
from tests.test_web.test_browser.conftest import Opener, chromium
from tests.test_web.test_browser.running_site import BROWSER, RunningSite
from tests.test_web.test_browser.walking import walk

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = BROWSER
SCRIPT = (
    "<script>window.harmed = 1; alert(1)</script>"
    "<img src=/harm onerror='window.harmed = 1'>"
    "\"'><svg onload='window.harmed = 1'></svg>"
    "<a href=javascript:alert(1)>here</a><style>body{display:none}</style>"
    "<form action=/harm><button>Press</button></form>{{ 7 * 7 }}${7*7}"
)


@contextmanager
def another_site(html: str) -> Iterator[str]:
    """A page of another server on this machine; gives its address."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.end_headers()
            self.wfile.write(html.encode() if self.path == "/" else b"")

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_form_that_another_site_posts_does_nothing(own_demo: RunningSite, opened: Opener) -> None:
    page = opened(own_demo, "/settings")  # now the browser has the cookie
    code = page.locator('meta[name="code"]').get_attribute("content")
    fields = {"key": "seed", "value": "7", "code": code or ""}  # even where the code leaked
    inputs = "".join(f'<input name="{name}" value="{text}">' for name, text in fields.items())
    action = f"{own_demo.url}/settings/change"
    html = f'<form method="post" action="{action}">{inputs}<button>Win a prize</button></form>'
    with another_site(html) as address:
        tab = opened.another(page, own_demo, "/jobs")
        for pattern in (address, "403", "favicon"):
            opened.watch(tab).forgive(pattern)
        tab.goto(address)
        with tab.expect_navigation():
            tab.get_by_role("button").click()
        assert "page of another site" in tab.locator("body").inner_text()
    assert not (own_demo.artifacts / "web" / FILE).exists()


def test_a_script_of_another_site_can_neither_press_nor_read(
    own_demo: RunningSite, opened: Opener
) -> None:
    page = opened(own_demo, "/experts")
    script = """async (site) => {
      const body = new URLSearchParams({ id: "harbours" });
      const told = [];
      const credentials = "include";
      const pressing = { method: "POST", mode: "no-cors", credentials, body };
      for (const options of [pressing, { credentials }]) {
        const path = options.body ? "/experts/-/delete" : "/experts";
        await fetch(site + path, options).then(
          (answer) => told.push(answer.type), () => told.push("refused"));
      }
      const frame = document.createElement("iframe");
      frame.src = site + "/experts";
      document.body.append(frame);
      await new Promise((done) => (frame.onload = done));
      try { told.push(frame.contentDocument.title); } catch { told.push("refused"); }
      return told;
    }"""
    with another_site("<p>hello</p>") as address:
        tab = opened.another(page, own_demo, "/experts")
        for pattern in (address, "CORS", "ERR_", "403", "frame-ancestors"):
            opened.watch(tab).forgive(pattern)
        tab.goto(address)
        posted, read, framed = tab.evaluate(script, own_demo.url)
    assert posted in ("opaque", "refused")
    assert read == "refused"
    assert framed in ("refused", "")
    registry = json.loads((own_demo.artifacts / "experts" / "registry.json").read_text())
    assert "harbours" in json.dumps(registry)
    assert not list((own_demo.artifacts / "experts").glob("**/trash/*/harbours*"))


def test_a_name_that_was_bound_to_this_machine_sees_nothing(
    own_demo: RunningSite, browser: Browser
) -> None:
    arguments = ["--host-resolver-rules=MAP rebound.test 127.0.0.1"]
    arguments += ["--no-sandbox"] if os.geteuid() == 0 else []
    other = browser.browser_type.launch(executable_path=chromium(), args=arguments)
    try:
        page = other.new_page()
        answer = page.goto(f"http://rebound.test:{own_demo.port}/experts")
        assert answer is not None
        assert answer.status == 403
        assert "harbours" not in page.content()
    finally:
        other.close()
    for host in ("evil.example", f"evil.example:{own_demo.port}", "127.0.0.1.evil.example"):
        status, text = own_demo.ask("/experts", {"Host": host})
        assert status == 403
        assert "harbours" not in text


def test_scripts_in_passages_edits_names_and_questions_are_text(
    tmp_path: Path, opened: Opener, browser: Browser
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    towns = ("Oskerry", "Dunmery", "Kessamere")
    tell = "The bridge {0} of {1} was built by Osanne Verrick. {1} lies at the river {1}-water."
    ask = ("Who built {0} the bridge of {1}?", "At which river is {1}?")
    records = [
        {
            "id": town.lower(),
            "title": f"{SCRIPT} {town}",
            "text": tell.format(SCRIPT, town),
            "questions": [{"question": one.format(SCRIPT, town), "answer": town} for one in ask],
        }
        for town in towns
    ]
    file = data / "hostile.jsonl"
    file.write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    less = (
        "seal.num_edits_per_passage=2",
        "seal.enable_quality_filter=false",
        "training.max_tokens=200",
        "ab_test.seeds=1",
        "ab_test.budget_tokens=150",
    )
    with RunningSite(
        tmp_path,
        *less,
        "ab_test.budget_tokens=150",
        "seal.enable_quality_filter=false",
        data=(data,),
    ) as site:
        page = opened(site, "/")
        page.get_by_role("link", name="hostile.jsonl").click()
        for title in ("Measure whether self-edits help", "Write self-edits"):
            address = page.url
            page.get_by_role("button", name=f"Start: {title}").click()
            page.wait_for_url("**/jobs/*")
            page.goto(address)
        training = page.get_by_role("region", name="Train an expert")
        training.get_by_label("Name For people").fill(SCRIPT)
        training.get_by_role("button", name="Start: Train an expert").click()
        site.wait_for_job("train-expert", "done")
        page.goto("/goals")
        page.get_by_label("New goal").fill(f"Answer {SCRIPT}")
        page.get_by_role("button", name="Add goal").click()

        seen = 0
        for path in walk(page, each=2):
            page.wait_for_timeout(100)
            assert page.evaluate("window.harmed") is None, path
            assert page.locator("body").is_visible(), path
            seen += SCRIPT[:20] in page.content().replace("&lt;", "<").replace("&gt;", ">")
        assert seen >= 8
        harm = [url for url in opened.watch(page).requests if url.endswith("/harm")]
        assert harm == []


def test_a_chat_that_writes_html_shows_text(own_demo: RunningSite, opened: Opener) -> None:
    page = opened(own_demo, "/chat")
    page.get_by_label("Your message").fill(SCRIPT)
    page.get_by_role("button", name="Send").click()
    page.get_by_role("article").nth(1).wait_for()
    page.wait_for_timeout(300)
    assert page.evaluate("window.harmed") is None
    assert SCRIPT[:30] in page.get_by_role("article").first.inner_text()
