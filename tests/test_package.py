"""What is packaged, and what is said of it: versions, contents, extras, citation, licences.

The built distributions themselves are checked, installed and run by ``make package``
(`scripts.check_package`).
"""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import trove_classifiers
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from scripts import check_package, licenses

import aios
from aios.app.data.examples import EXAMPLES

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def hatch() -> dict[str, Any]:
    """The tables ``[tool.hatch]`` of ``pyproject.toml``."""
    import importlib

    toml = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    found: dict[str, Any] = toml.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return dict(found["tool"]["hatch"])


@pytest.fixture(scope="module")
def citation() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    return found


# ------------------------------------------------------------------ version


def test_the_version_stands_in_one_place(hatch: dict[str, Any]) -> None:
    assert licenses.project()["dynamic"] == ["version"]
    assert ROOT / hatch["version"]["path"] == Path(aios.__file__)
    assert re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc)\d+)?", aios.__version__)


def test_the_changelog_and_the_citation_have_it(citation: dict[str, Any]) -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.search(r"^To become (\S+):|^## \[(\d\S*)\]", changelog, re.MULTILINE)
    assert newest is not None
    assert aios.__version__ == (newest[1] or newest[2])
    assert citation["version"] == aios.__version__


def test_the_module_is_the_program() -> None:
    line = [sys.executable, "-m", "aios", "--version"]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == (f"aios {aios.__version__}\n", "")


# ------------------------------------------------------------------ contents


def test_all_that_is_packaged_from_elsewhere_is_there(hatch: dict[str, Any]) -> None:
    targets = hatch["build"]["targets"]
    included = {to: source for source, to in targets["wheel"]["force-include"].items()}
    assert included == check_package.PACKAGED
    assert {f"aios/_examples/{name}" for name in EXAMPLES} < set(included)
    for source in (*included.values(), *(path[1:] for path in targets["sdist"]["include"])):
        assert (ROOT / source).exists(), source
    named = {path[1:].partition("/")[0] for path in targets["sdist"]["include"]}
    always = {"LICENSE", "README.md", "pyproject.toml"}
    assert {path.partition("/")[0] for path in check_package.IN_SDIST} <= named | always


def wheel_with(folder: Path, *, without: str = "", more: str = "") -> Path:
    """A wheel with all of the package's files but one, and one more."""
    sources = {
        f"aios/{path.relative_to(check_package.SOURCES).as_posix()}": path
        for path in check_package.SOURCES.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    } | {name: ROOT / source for name, source in check_package.PACKAGED.items()}
    wheel = folder / "aios.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, path in sources.items():
            if name != without:
                archive.write(path, name)
        if more:
            archive.writestr(more, "")
    return wheel


@pytest.mark.parametrize(
    "name", ["aios/py.typed", "aios/web/static/app.js", "aios/_config/default.yaml"]
)
def test_a_wheel_that_lacks_a_file_is_noticed(tmp_path: Path, name: str) -> None:
    with pytest.raises(check_package.PackageError, match=f"the wheel lacks .*{name}"):
        check_package.check_wheel(wheel_with(tmp_path, without=name))


def test_a_wheel_that_holds_more_is_noticed(tmp_path: Path) -> None:
    with pytest.raises(check_package.PackageError, match=r"has more: .*test_x\.py"):
        check_package.check_wheel(wheel_with(tmp_path, more="tests/test_x.py"))


# ------------------------------------------------------------------ metadata


def test_classifiers_are_known_and_name_the_pythons_that_are_supported() -> None:
    project = licenses.project()
    classifiers = project["classifiers"]
    assert classifiers == sorted(classifiers)
    assert set(classifiers) <= set(trove_classifiers.classifiers)
    wanted = SpecifierSet(project["requires-python"])
    named = {c.rpartition(" ")[2] for c in classifiers if re.search(r"Python :: 3\.\d+$", c)}
    assert named == {f"3.{minor}" for minor in range(20) if wanted.contains(f"3.{minor}.1")}


def test_extras_are_those_of_the_installation_page_and_all_is_all_but_the_trackers() -> None:
    extras = licenses.project()["optional-dependencies"]
    page = (ROOT / "docs" / "INSTALL.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `([a-z]+)` \|", page, re.MULTILINE)) == set(extras)
    trackers = {"mlflow", "tensorboard", "trackio", "wandb"}
    for_users = set(extras) - {"all", "dev", "docs", "mutation"}
    assert Requirement(extras["all"][0]).extras == for_users - trackers == set(licenses.EXTRAS)


def test_what_the_packages_of_the_installation_need_is_pinned() -> None:
    project, pins = licenses.project(), licenses.pins()
    for name in ("all", "dev", "docs"):
        for one in map(Requirement, project["optional-dependencies"][name]):
            assert one.name == "aios" or licenses.canonical(one.name) in pins, one


# ------------------------------------------------------------------ citation


def test_the_citation_has_what_the_format_requires(citation: dict[str, Any]) -> None:
    assert citation["cff-version"] == "1.2.0"
    assert {"authors", "message", "title"} <= set(citation)
    assert citation["type"] == "software"
    assert citation["license"] == licenses.project()["license"]
    assert citation["keywords"] == list(dict.fromkeys(citation["keywords"]))
    assert set(citation["keywords"]) == set(licenses.project()["keywords"])
    for author in (
        *citation["authors"],
        *(a for r in citation["references"] for a in r["authors"]),
    ):
        assert set(author) in ({"name"}, {"family-names", "given-names"})
        assert all(isinstance(text, str) and text for text in author.values())


def test_the_citation_names_the_paper(citation: dict[str, Any]) -> None:
    (paper,) = [one for one in citation["references"] if "SEAL" in one["scope"]]
    assert {"authors", "title", "type"} <= set(paper)
    assert paper["url"] == licenses.project()["urls"]["Paper"]
    assert paper["title"] == "Self-Adapting Language Models"


# ------------------------------------------------------------------ licences


def test_the_list_of_licences_is_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    assert licenses.main(["--check"]) == 0, capsys.readouterr().err


def test_every_package_that_is_needed_is_listed_with_its_pinned_version() -> None:
    listed, pins = licenses.read_list(), licenses.pins()
    assert set(licenses.needed()) | licenses.gpu_packages() == set(listed)
    assert {name: row.version for name, row in listed.items()} == {
        name: pins[name] for name in listed
    }
    for one in map(Requirement, licenses.project()["dependencies"]):
        assert listed[licenses.canonical(one.name)].needed_for == licenses.CORE


def test_only_the_drivers_of_gpus_have_a_licence_of_another_kind() -> None:
    others = {name for name, row in licenses.read_list().items() if not licenses.fits(row.licence)}
    assert others
    assert others <= {
        name for name in licenses.gpu_packages() if name.startswith(("nvidia", "cuda"))
    }


def test_a_licence_that_does_not_fit_is_noticed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = licenses.licence_of
    monkeypatch.setattr(
        licenses, "licence_of", lambda name: "GPL-3.0-only" if name == "rich" else right(name)
    )
    assert licenses.main(["--check"]) == 1
    assert "'rich'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("licence", "answer"),
    [
        ("MIT", True),
        ("Apache-2.0 AND (MIT)", True),
        ("GPL-3.0-only OR MIT", True),
        ("MIT AND LGPL-3.0-only", False),
        ("", False),
    ],
)
def test_an_expression_fits_if_all_parts_of_one_choice_do(licence: str, answer: bool) -> None:
    assert licenses.fits(licence) is answer


def test_a_statement_that_is_not_understood_asks_to_be_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(licenses, "SPDX", {})
    with pytest.raises(LookupError, match="accelerate states its licence as 'Apache'"):
        licenses.licence_of("accelerate")


def test_a_package_without_a_pin_is_noticed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = licenses.pins()
    monkeypatch.setattr(licenses, "pins", lambda: {n: v for n, v in right.items() if n != "rich"})
    assert licenses.main(["--check"]) == 1
    assert "rich is needed" in capsys.readouterr().err
