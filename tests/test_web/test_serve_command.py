"""`aios serve` as a program: it becomes the server, says where it is, and stops when told to."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import ssl
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from aios.cli.aios import run
from aios.cli.commands import serve as command
from aios.core.config.loader import load_config
from aios.core.config.schemas import Config
from aios.web import __main__ as program
from tests.openai_server import LOOPBACK

pytestmark = [*LOOPBACK, pytest.mark.slow]

TOKEN = "a-token-of-more-than-16-characters"


def line(folder: Path, *arguments: str, verb: str = "serve") -> list[str]:
    """The command over the scripted model, on any free port."""
    settings = ("--port", "0", "--model", "scripted", "--set", f"paths.artifacts={folder}")
    return [sys.executable, "-m", "aios", verb, *settings, *arguments]


@contextmanager
def started(
    folder: Path, *arguments: str, verb: str = "serve"
) -> Iterator[tuple[subprocess.Popen[str], Any]]:
    """The running program and the JSON that it announces itself with."""
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    running = subprocess.Popen(line(folder, "--json", *arguments, verb=verb), cwd=folder, **pipes)
    try:
        assert running.stdout is not None
        announced = running.stdout.readline()
        assert announced, running.communicate()[1]
        yield running, json.loads(announced)
    finally:
        running.kill()
        running.communicate()


def get(url: str, **more: Any) -> Any:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    request = urllib.request.Request(url, headers=headers)
    with urllib.request.urlopen(request, timeout=20, **more) as response:
        return json.load(response)


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_until_a_signal(tmp_path: Path, stop: signal.Signals) -> None:
    (tmp_path / "fastapi.py").write_text("raise SystemExit('imported from the current folder')")
    with started(tmp_path) as (running, announced):
        assert announced["pid"] == running.pid  # one process: the command became the server
        assert announced["url"].startswith("http://127.0.0.1:")
        assert announced["models"] == ["auto", "base"]
        assert [model["id"] for model in get(f"{announced['url']}/models")["data"]]
        running.send_signal(stop)
        out, err = running.communicate(timeout=20)
        assert (running.returncode, out) == (0, "")
        assert "Traceback" not in err


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_the_pages_are_served_until_a_signal_too(tmp_path: Path, stop: signal.Signals) -> None:
    with started(tmp_path, verb="web") as (running, announced):
        assert announced["pid"] == running.pid
        running.send_signal(stop)
        out, err = running.communicate(timeout=20)
        assert (running.returncode, out, err) == (0, "", "")


def test_it_says_on_stderr_where_it_is(tmp_path: Path) -> None:
    running = subprocess.Popen(line(tmp_path), stderr=subprocess.PIPE, text=True)
    try:
        assert running.stderr is not None
        lines = iter(running.stderr.readline, "")
        shown = next(each for each in lines if each.startswith("serving"))
        assert "serving scripted with 0 experts at http://127.0.0.1:" in shown
    finally:
        running.kill()
        running.communicate()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes a certificate with openssl")
def test_it_serves_over_tls_with_a_token(tmp_path: Path) -> None:
    certificate, key, token = (tmp_path / name for name in ("cert.pem", "key.pem", "token"))
    made = ("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    names = ("-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2")
    files = ("-keyout", str(key), "-out", str(certificate))
    subprocess.run(["openssl", *made, *names, *files], check=True, capture_output=True)
    token.touch(0o600)
    token.write_text(TOKEN)
    options = ("--tls-certificate", str(certificate), "--tls-key", str(key))
    with started(tmp_path, *options, "--token-file", str(token)) as (_, announced):
        assert announced["url"].startswith("https://127.0.0.1:")
        trusting = ssl.create_default_context(cafile=str(certificate))
        assert len(get(f"{announced['url']}/models", context=trusting)["data"]) == 2


def test_beyond_loopback_without_a_token_it_does_not_start(tmp_path: Path) -> None:
    shown = subprocess.run(
        line(tmp_path, "--host", "0.0.0.0"), capture_output=True, text=True, check=False
    )
    assert shown.returncode == 2
    assert shown.stderr.startswith("error: 0.0.0.0:0 can be reached from other machines")
    assert "→ give --token-file or set AIOS_TOKEN" in shown.stderr


def test_a_missing_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "NEEDED", ("fastapi", "no_such_package"))
    assert run(["serve"]) == 2
    shown = capsys.readouterr().err
    assert "no_such_package" in shown
    assert "pip install 'aios[web]'" in shown


def test_the_config_survives_the_hand_over() -> None:
    config = load_config(env={}, overrides=["serve.port=0", "serve.token_file=~/token"]).config
    assert Config.model_validate(json.loads(config.model_dump_json())) == config


@pytest.mark.parametrize("text", ["", "{", "[]", '{"serve": {"port": "x"}}', '{"unknown": 1}'])
def test_a_config_that_is_none_is_an_error(
    text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    with pytest.raises(SystemExit) as stopped:
        program.main([])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith("error: the config on stdin is ")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    with pytest.raises(SystemExit):
        program.main(["--json"])
    assert json.loads(capsys.readouterr().out)["error"]["type"] == "ConfigError"


def test_the_server_has_the_environment_of_the_command(tmp_path: Path) -> None:
    environment = {**os.environ, "AIOS_TOKEN": "short"}
    shown = subprocess.run(
        line(tmp_path), capture_output=True, text=True, check=False, env=environment
    )
    assert shown.returncode == 2
    assert "the token in AIOS_TOKEN is shorter" in shown.stderr
