"""Somebody who visits the pages without a browser: looks at pages, presses buttons of forms."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from aios.app.chat.assistant import open_assistant
from aios.app.page_settings import PageSettings
from aios.web.pages.assembly import create_site
from aios.web.pages.guarding import Sessions
from aios.web.pages.site import LateAssistant, Site

ADDRESS = "http://localhost"
_CODE = re.compile(r'<meta name="code" content="([0-9a-f]+)">')


class Visitor:
    """A visitor of a site on the scripted model, whose artifacts are in a folder of the test.

    Args:
        folder: The test's.
        overrides: More settings.
        token: The server's; None: there is none.
        data: Folders whose files can be chosen.
    """

    def __init__(
        self,
        folder: Path,
        *overrides: str,
        token: str | None = None,
        data: tuple[Path, ...] = (),
    ) -> None:
        self.artifacts = folder / "artifacts"
        own = (f"paths.artifacts={self.artifacts}", f"seal.cache_dir={folder / 'seal_cache'}")
        given = ("model.name=scripted", *own, *overrides)
        self.settings = PageSettings(overrides=given, env={})
        self.assistant = LateAssistant(lambda: open_assistant(self.settings.loaded().config))
        self.site = Site(self.settings, self.assistant, data)
        sessions = Sessions.make(b"secret of a test", token, 80, secure=False)
        self.client = TestClient(
            create_site(self.site, sessions, token=token),
            base_url=ADDRESS,
            follow_redirects=True,
            headers={"Accept": "text/html"},
        )

    def look(self, path: str, *, status: int = 200) -> str:
        """The HTML of a page."""
        answer = self.client.get(path)
        assert answer.status_code == status, (answer.status_code, answer.text[:2000])
        return answer.text

    def code(self) -> str:
        """The code that forms carry."""
        found = _CODE.search(self.look("/jobs"))
        assert found is not None
        return found[1]

    def press(self, path: str, *, status: int = 200, files: Any = None, **fields: Any) -> str:
        """Posts a form as a page's button does; gives the page that is shown then."""
        data = {"code": self.code(), **fields}
        answer = self.client.post(path, data=data, files=files, headers={"Origin": ADDRESS})
        assert answer.status_code == status, (answer.status_code, answer.text[:2000])
        return answer.text

    def close(self) -> None:
        """Ends it, and the jobs that it began."""
        for job in self.site.jobs.list():
            if job.live:
                self.site.jobs.stop(job.id, at_once=True)
        self.client.close()
        self.assistant.close()
