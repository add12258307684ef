"""``aios web`` as a process of its own, which tests may kill and start again where it was.

Tests that use it need ``pytestmark = BROWSER``.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

import pytest

from aios.app.jobs.own_program import command_of
from aios.app.jobs.records import Job
from aios.app.jobs.store import JobStore
from tests.openai_server import LOOPBACK

BROWSER = [pytest.mark.browser, *LOOPBACK, pytest.mark.timeout(600)]
_START_SECONDS = 90.0


class RunningSite:
    """A server of pages in a process of its own; use it in a ``with`` block.

    Args:
        folder: The test's: the artifacts, and what the server says, are in it.
        overrides: Settings, as ``key=value``; the model is the scripted one unless they say else.
        data: Folders whose files can be chosen.
        seconds_per_token: How slowly the scripted model answers in the chat.
    """

    def __init__(
        self,
        folder: Path,
        *overrides: str,
        data: tuple[Path, ...] = (),
        seconds_per_token: float = 0.0,
    ) -> None:
        self.folder = folder
        self.artifacts = folder / "artifacts"
        self.jobs = JobStore(self.artifacts)
        self.port = 0
        self._settings = ("model.name=scripted", f"paths.artifacts={self.artifacts}", *overrides)
        self._data = data
        self._seconds_per_token = seconds_per_token
        self._process: subprocess.Popen[str] | None = None

    @property
    def url(self) -> str:
        """Where the pages are."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Starts the server; a second time on the port of the first."""
        assert self._process is None
        with open(self.folder / "server.log", "a", encoding="utf-8") as log:
            self._process = subprocess.Popen(
                self._command(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, "HOME": str(self.folder)},
                text=True,
            )
        assert self._process.stdout is not None
        said = self._process.stdout.readline()
        assert said, self.said()
        document = json.loads(said)
        assert "url" in document, document
        self.port = int(document["url"].rpartition(":")[2])

    def _command(self) -> list[str]:
        arguments = ["web", "--port", str(self.port), "--json"]
        arguments += [part for place in self._data for part in ("--data", str(place))]
        arguments += [part for text in self._settings for part in ("--set", text)]
        if self._seconds_per_token:
            slow = str(Path(__file__).with_name("slow_site.py"))
            return [sys.executable, slow, str(self._seconds_per_token), *arguments]
        return command_of("aios.__main__", arguments)

    def kill(self) -> None:
        """Ends the server as a crash does; jobs go on."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """Asks the server to stop; its exit code."""
        return self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> int:
        process, self._process = self._process, None
        assert process is not None
        process.send_signal(number)
        code = process.wait(30)
        assert process.stdout is not None
        process.stdout.close()
        return code

    def said(self) -> str:
        """What the server has said."""
        return (self.folder / "server.log").read_text(encoding="utf-8")

    def __enter__(self) -> RunningSite:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        for job in self.jobs.list():
            if job.live:
                self.jobs.stop(job.id, at_once=True)
        if self._process is not None:
            self.kill()

    def ask(self, path: str, headers: Mapping[str, str] | None = None) -> tuple[int, str]:
        """A request without a browser: status and text."""
        request = urllib.request.Request(self.url + path, headers=dict(headers or {}))
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def wait_for_job(self, kind: str, *states: str, seconds: float = 120.0) -> Job:
        """The newest job of a kind, once its state is one of those."""
        end = time.monotonic() + seconds
        while True:
            found = [job for job in self.jobs.list() if job.request.kind == kind]
            if found and found[0].state in states:
                return found[0]
            told = [(job.id, job.state, self.jobs.log_tail(job.id)) for job in found]
            assert time.monotonic() < end, told
            time.sleep(0.1)


def say(text: str) -> None:
    """Tells a number that was measured; ``pytest -s`` shows it."""
    sys.stdout.write(f"\n{text}\n")
