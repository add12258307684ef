"""Runs what a page shows, from top to bottom, as a reader would: commands, code, and servers.

``aios`` lines and ``python`` blocks are run in this process. A server is a process of its own; it
is there for what follows on the page, whose requests to the default address go to it.
"""

from __future__ import annotations

import http.client
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from aios.cli.aios import run
from tests.pages import Block, ShellLine, shell_lines

DEFAULT_ADDRESS = "127.0.0.1:8000"
RUN_KINDS = ("aios", "server", "curl", "shell")
MESSAGE = b"What is a lighthouse for?\n"  # for a command that reads one from stdin
_ANSWER_ID = re.compile(r"chatcmpl-\w+…")  # a page's example of one
_SECONDS = 60


def is_run(block: Block) -> bool:
    """Whether a block holds something that is run."""
    if block.reason:
        return False
    return block.language == "python" or any(line.kind in RUN_KINDS for line in shell_lines(block))


class PageRunner:
    """Runs the blocks of a page in the current folder; use it in a ``with`` block.

    Args:
        capsys: Of the test.
        monkeypatch: Of the test.
        address: Where requests to a server's default address go before a server is started; empty
            for nowhere.
    """

    def __init__(
        self,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
        address: str = "",
    ) -> None:
        self._capsys, self._monkeypatch = capsys, monkeypatch
        self._address = address
        self._namespace: dict[str, Any] = {"__name__": "__main__"}
        self._server: subprocess.Popen[str] | None = None
        self._answer_id = ""

    def __enter__(self) -> PageRunner:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._stop_server()
        elif self._server is not None:
            self._server.kill()
            self._server.communicate()

    def run(self, block: Block, where: str) -> None:
        """Runs a block.

        Args:
            block: The block; one with a reason not to be run is left out.
            where: For messages.
        """
        if block.file:
            Path(block.file).write_text(block.code, encoding="utf-8")
        if block.reason:
            return
        if block.language == "python":
            code = self._readdressed(block.code)
            exec(compile(code, where, "exec"), self._namespace)
        for line in shell_lines(block):
            self._run_line(line, f"{where}: {line.text}")

    def _run_line(self, line: ShellLine, where: str) -> None:
        words = [self._readdressed(word) for word in line.words]
        if line.kind == "aios":
            with self._monkeypatch.context() as patched:
                for name, value in line.variables.items():
                    patched.setenv(name, value)
                patched.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(MESSAGE)))
                code = run(words[1:])
            said = self._capsys.readouterr()
            assert code == 0, f"{where}: {said.err}{said.out}"
        elif line.kind == "server":
            self._start_server(words, where)
        elif line.kind == "curl":
            self._request(words, where)
        elif line.kind == "shell":
            _run_in_shell(line.text, where)

    def _readdressed(self, text: str) -> str:
        return text.replace(DEFAULT_ADDRESS, self._address or DEFAULT_ADDRESS)

    def _start_server(self, words: list[str], where: str) -> None:
        """Starts it at any free port, and waits until it answers."""
        self._stop_server()
        expanded = [os.path.expanduser(word) for word in words[1:]]
        self._server = subprocess.Popen(
            [sys.executable, "-m", "aios", *expanded, "--port", "0", "--json"],
            env={**os.environ, "BROWSER": "true"},  # --open opens nothing
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._server.stdout is not None
        announced = self._server.stdout.readline()
        assert announced, f"{where}: {self._server.communicate()[1]}"
        self._address = urlsplit(json.loads(announced)["url"]).netloc
        status, _ = self._ask("GET", "/health")
        assert status == 200, where

    def _stop_server(self) -> None:
        """Stops it as Ctrl-C does; it ends without complaint."""
        if self._server is None:
            return
        self._server.send_signal(signal.SIGINT)
        _, said = self._server.communicate(timeout=_SECONDS)
        assert self._server.returncode == 0, said
        assert "Traceback" not in said
        self._server = None

    def _ask(
        self, method: str, path: str, body: str | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, bytes]:
        with closing(http.client.HTTPConnection(self._address, timeout=_SECONDS)) as connection:
            data = None if body is None else body.encode()
            connection.request(method, path, data, headers or {})
            answer = connection.getresponse()
            return answer.status, answer.read()

    def _request(self, words: list[str], where: str) -> None:
        """What curl would do, as far as pages use it: a URL, ``-H`` and ``-d``."""
        url, body, headers = "", None, {}
        rest = iter(words[1:])
        for word in rest:
            if word == "-H":
                name, _, value = next(rest).partition(": ")
                headers[name] = value
            elif word == "-d":
                body = _ANSWER_ID.sub(self._answer_id, next(rest))
            else:
                assert not word.startswith("-"), f"{where}: {word} is not known here"
                url = word
        parts = urlsplit(url)
        assert parts.netloc == self._address, f"{where}: no server was started for it"
        status, answer = self._ask("GET" if body is None else "POST", parts.path, body, headers)
        assert status == 200, f"{where}: {answer.decode()}"
        if answer.startswith(b"{"):
            self._answer_id = json.loads(answer).get("id", self._answer_id)


def _run_in_shell(text: str, where: str) -> None:
    """Runs a line with pipes and the like, where ``aios`` and ``python`` are this environment's."""
    python = shlex.quote(sys.executable)
    functions = f'aios() {{ {python} -m aios "$@"; }}; python() {{ {python} "$@"; }}; '
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", functions + text],
        capture_output=True,
        text=True,
        timeout=_SECONDS,
    )
    assert done.returncode == 0, f"{where}: {done.stderr}"
