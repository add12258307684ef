"""Builds the source and the binary distribution, and uses them as somebody does who has no clone.

    python -m scripts.check_package               # build, look inside, install, run
    python -m scripts.check_package --no-install  # build and look inside: a few seconds

Leaves both in ``dist/``. The wheel is built from the source distribution. It is installed by pipx
into an environment of its own, with the versions of ``constraints.txt`` and without extras, and
run from an empty folder with an empty home. Needs the ``dev`` extra; installing needs a package
index or pip's cache.
"""

from __future__ import annotations

import argparse
import email.message
import email.parser
import json
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.request
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from scripts import licenses

import aios

ROOT = Path(__file__).resolve().parents[1]
DIST = ROOT / "dist"
CONSTRAINTS = ROOT / "constraints.txt"
SOURCES = ROOT / "src" / "aios"
PACKAGED = {  # in the wheel from elsewhere in the repository
    "aios/_config/default.yaml": "config/default.yaml",
    "aios/_examples/README.md": "examples/README.md",
    "aios/_examples/demo.yaml": "examples/demo.yaml",
    "aios/_examples/passages.jsonl": "examples/passages.jsonl",
    "aios/_examples/retention.txt": "examples/retention.txt",
}
IN_SDIST = (  # with these one can test and document what one has
    "CHANGELOG.md",
    "CITATION.cff",
    "CONTRIBUTING.md",
    "LICENSE",
    "Makefile",
    "README.md",
    "THIRD_PARTY_LICENSES.md",
    "constraints.txt",
    "mkdocs.yml",
    "pyproject.toml",
    "docs/QUICK_START.md",
    "examples/strategy-plugin/pyproject.toml",
    "tests/conftest.py",
)
LEFT_BEHIND = ("__pycache__", ".pyc", ".venv", ".git/", "artifacts/", ".coverage", ".pytest_cache")
MOST_WHEEL_BYTES = 4 * 2**20
_PURPOSE = "Build the source distribution and the wheel, install them, and use them."
SECONDS = 180  # for any one command of the installed program


class PackageError(Exception):
    """What was built or installed is not as it should be."""


def require(condition: object, message: str) -> None:
    """Raises `PackageError` unless the condition holds."""
    if not condition:
        raise PackageError(message)


@contextmanager
def step(name: str) -> Iterator[None]:
    """Says what is being done, and how long it took."""
    began = time.monotonic()
    yield
    print(f"   {name}: {time.monotonic() - began:.1f} s", flush=True)


# ---------------------------------------------------------------- building


def build() -> tuple[Path, Path]:
    """Builds both into ``dist/``; gives the source distribution and the wheel."""
    for old in [*DIST.glob("aios-*.tar.gz"), *DIST.glob("aios-*.whl")]:
        old.unlink()
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(DIST), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    require(done.returncode == 0, f"the build failed:\n{done.stdout}{done.stderr}")
    name = f"aios-{aios.__version__}"
    sdist, wheel = DIST / f"{name}.tar.gz", DIST / f"{name}-py3-none-any.whl"
    require(sdist.is_file() and wheel.is_file(), f"{DIST} has {sorted(os.listdir(DIST))}")
    return sdist, wheel


def check_wheel(wheel: Path) -> None:
    """The wheel holds the package with all its data, and nothing else."""
    wanted = {
        f"aios/{path.relative_to(SOURCES).as_posix()}"
        for path in SOURCES.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    } | set(PACKAGED)
    with zipfile.ZipFile(wheel) as archive:
        require(archive.testzip() is None, "the wheel is damaged")
        names = set(archive.namelist())
        inside = {name for name in names if ".dist-info/" not in name}
        require(not wanted - inside, f"the wheel lacks {sorted(wanted - inside)}")
        require(not inside - wanted, f"the wheel has more: {sorted(inside - wanted)}")
        for name, source in PACKAGED.items():
            same = archive.read(name) == (ROOT / source).read_bytes()
            require(same, f"{name} in the wheel is not {source}")
        info = f"aios-{aios.__version__}.dist-info"
        require(f"{info}/licenses/LICENSE" in names, "the wheel lacks the licence")
        points = archive.read(f"{info}/entry_points.txt").decode()
        require("aios = aios.cli.aios:main" in points, "the wheel has no command aios")
        check_metadata(_parsed(archive.read(f"{info}/METADATA")))
    size = wheel.stat().st_size
    require(size < MOST_WHEEL_BYTES, f"the wheel has {size:,} bytes")


def check_metadata(metadata: email.message.Message) -> None:
    """The metadata is what package indexes need."""
    require(metadata["Version"] == aios.__version__, f"version {metadata['Version']}")
    require(metadata["License-Expression"] == "MIT", "no licence expression")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    require(metadata["Description-Content-Type"] == "text/markdown", "the README has no type")
    described = metadata.get_payload(decode=True)
    assert isinstance(described, bytes)
    require(described.decode().strip() == readme.strip(), "its description is not the README")


def check_sdist(sdist: Path) -> None:
    """The source distribution can be built, tested and documented, and holds no leftovers."""
    with tarfile.open(sdist) as archive:
        names = {"/".join(PurePosixPath(name).parts[1:]) for name in archive.getnames()}
    lacking = [name for name in (*IN_SDIST, *PACKAGED.values()) if name not in names]
    require(not lacking, f"the source distribution lacks {lacking}")
    left = [name for name in names if any(part in f"{name}/" for part in LEFT_BEHIND)]
    require(not left, f"the source distribution has leftovers: {left[:5]}")


def _parsed(data: bytes) -> email.message.Message:
    return email.parser.BytesParser().parsebytes(data)


# ---------------------------------------------------------------- installing


@dataclass(frozen=True)
class Installed:
    """The program, installed by pipx.

    Attributes:
        root: pipx's home, where nothing else is.
        here: An empty folder to run in.
        home: An empty home.
    """

    root: Path
    here: Path
    home: Path

    @property
    def aios(self) -> Path:
        """The command that pipx puts on the user's path."""
        return self.root / "bin" / "aios"

    @property
    def python(self) -> Path:
        """The interpreter of the environment."""
        return self.root / "venvs" / "aios" / "bin" / "python"

    def pipx(self, *arguments: str) -> None:
        """Runs pipx; its pip sees the user's configuration and cache."""
        env = os.environ | {
            "PIPX_HOME": str(self.root),
            "PIPX_BIN_DIR": str(self.root / "bin"),
            "PIPX_MAN_DIR": str(self.root / "man"),
            "PIPX_DEFAULT_BACKEND": "pip",
            "PIP_CONSTRAINT": str(CONSTRAINTS),
        }
        command = [sys.executable, "-m", "pipx", *arguments]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        require(done.returncode == 0, f"{' '.join(command)}:\n{done.stdout}{done.stderr}")

    @property
    def env(self) -> dict[str, str]:
        """What the program is run with: nothing of ours."""
        return {"HOME": str(self.home), "LANG": "C.UTF-8", "PATH": "/usr/bin:/bin"}

    def run(self, *command: str | Path, code: int = 0) -> subprocess.CompletedProcess[str]:
        """Runs a command and requires its exit code."""
        done = subprocess.run(
            [str(word) for word in command],
            cwd=self.here,
            env=self.env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=SECONDS,
        )
        shown = f"{' '.join(map(str, command))}: exit code {done.returncode}"
        require(done.returncode == code, f"{shown}\n{done.stdout}{done.stderr}")
        return done


@contextmanager
def clean_environment(wheel: Path) -> Iterator[Installed]:
    """The wheel in an environment of its own, with nothing but what it asks for."""
    with tempfile.TemporaryDirectory(prefix="aios-package-") as scratch:
        installed = Installed(*(Path(scratch) / name for name in ("pipx", "here", "home")))
        installed.here.mkdir()
        installed.home.mkdir()
        with step("pipx install, no extras"):
            installed.pipx("install", "--quiet", str(wheel))
        yield installed


def check_core(installed: Installed) -> None:
    """Everything that needs no extra works."""
    program = installed.aios
    said = installed.run(program, "--version").stdout
    require(said == f"aios {aios.__version__}\n", f"aios --version: {said!r}")
    helped = installed.run(installed.python, "-m", "aios", "--help").stdout
    require(helped.startswith("Usage: aios "), "python -m aios --help")
    doctor = installed.run(program, "doctor", "--json", "--set", "model.name=scripted").stdout
    wrong = [check for check in json.loads(doctor)["checks"] if check["status"] == "fail"]
    require(not wrong, f"aios doctor: {wrong}")
    require("_aios_completion" in installed.run(program, "completion", "bash").stdout, "completion")
    installed.run(program, "examples", "copy")
    scripted = ("--input", "examples/passages.jsonl", "--model", "scripted")
    preview = ("seal", "preview", "--num-samples", "2", "--json")
    shown = installed.run(program, *preview, *scripted).stdout
    require(len(json.loads(shown)["passages"]) == 2, f"aios seal preview: {shown[:200]}")
    test = ("seal", "ab-test", "--config", "examples/demo.yaml", "--output", "ab", "--seeds", "1")
    installed.run(program, *test, *scripted)
    comparison = json.loads((installed.here / "ab" / "metrics.json").read_text("utf-8"))
    require(comparison["comparison"]["verdict"], "the A/B test has no verdict")
    require((installed.here / "ab" / "report.html").stat().st_size > 1000, "no report.html")
    for command in ("web", "serve"):
        refused = installed.run(program, command, code=2).stderr
        require("aios[web]" in refused, f"aios {command} does not name its extra: {refused}")


def check_packages(installed: Installed) -> None:
    """What was installed fits together, and all of it is on the list of licences."""
    installed.run(installed.python, "-m", "pip", "check")
    listed = installed.run(installed.python, "-m", "pip", "list", "--format", "json").stdout
    names = {licenses.canonical(one["name"]) for one in json.loads(listed)}
    missing = names - set(licenses.read_list()) - {"aios", "pip", "setuptools"}
    require(not missing, f"not in {licenses.PAGE.name}: {sorted(missing)}")


# ---------------------------------------------------------------- serving


def check_servers(installed: Installed) -> None:
    """`aios serve` answers a request of the OpenAI API, `aios web` shows its pages."""

    def talk(url: str) -> None:
        question = {"model": "base", "messages": [{"role": "user", "content": "Hello"}]}
        answer = _asked(f"{url}/chat/completions", question | {"max_tokens": 8})
        require(json.loads(answer)["choices"], f"aios serve: {answer[:200]}")

    def look(url: str) -> None:
        require("<h1" in _asked(f"{url}/"), "aios web shows no page")
        require("passages.jsonl" in _asked(f"{url}/files"), "aios web does not offer the examples")
        require("{" in _asked(f"{url}/static/app.css"), "aios web has no style")

    uses: Mapping[str, Callable[[str], None]] = {"serve": talk, "web": look}
    for command, use in uses.items():
        with _serving(installed, command) as url:
            use(url)


@contextmanager
def _serving(installed: Installed, command: str) -> Iterator[str]:
    """A server of the installed program; gives its address, and stops it."""
    line = [str(installed.aios), command, "--model", "scripted", "--port", "0", "--json"]
    with subprocess.Popen(
        line, cwd=installed.here, env=installed.env, stdout=subprocess.PIPE, text=True
    ) as process:
        watchdog = _kill_after(process, SECONDS)
        try:
            assert process.stdout is not None
            first = process.stdout.readline()
            require(first.startswith("{") and "url" in json.loads(first), f"{command}: {first!r}")
            yield str(json.loads(first)["url"])
            process.send_signal(signal.SIGTERM)
            require(process.wait(SECONDS) == 0, f"aios {command} ended with {process.returncode}")
        finally:
            process.kill()
            watchdog.cancel()


def _kill_after(process: subprocess.Popen[str], seconds: float) -> Any:
    import threading

    timer = threading.Timer(seconds, process.kill)
    timer.daemon = True
    timer.start()
    return timer


def _asked(url: str, document: object = None) -> str:
    """The answer of a server on this machine, without any proxy."""
    body = None if document is None else json.dumps(document).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=60) as answer:
        return str(answer.read().decode())


# ---------------------------------------------------------------- all of it


def check_installed(sdist: Path, wheel: Path) -> None:
    """Installs the wheel, its ``web`` extra and the source distribution, and uses them."""
    with clean_environment(wheel) as installed:
        with step("commands without extras"):
            check_core(installed)
        with step("pip install aios[web]"):
            installed.pipx("runpip", "aios", "install", "--quiet", f"aios[web] @ {wheel.as_uri()}")
        with step("aios serve, aios web"):
            check_servers(installed)
        check_packages(installed)
        with step("the source distribution"):
            again = ("--quiet", "--no-deps", "--force-reinstall", str(sdist))
            installed.pipx("runpip", "aios", "install", *again)
            said = installed.run(installed.aios, "--version").stdout
            require(said == f"aios {aios.__version__}\n", f"from the source: {said!r}")
            installed.run(installed.aios, "config", "show", "seal.strategy")


def main(argv: Sequence[str] | None = None) -> int:
    """Does it; the exit code tells how it went."""
    parser = argparse.ArgumentParser(prog="check_package", description=_PURPOSE)
    parser.add_argument("--no-install", action="store_true", help="build and look inside only")
    options = parser.parse_args(argv)
    try:
        with step("sdist, and wheel of it"):
            sdist, wheel = build()
            check_sdist(sdist)
            check_wheel(wheel)
        if not options.no_install:
            check_installed(sdist, wheel)
    except PackageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for path in (sdist, wheel):
        print(f"{path.relative_to(ROOT)}  {path.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
