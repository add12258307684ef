"""Help texts as golden files: a change of what users read shows in a review.

Write them anew with ``AIOS_UPDATE_GOLDEN=1 pytest tests/test_cli/test_help.py``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from aios.cli.aios import cli, run

GOLDEN = Path(__file__).parents[1] / "golden" / "cli"
UPDATE = os.environ.get("AIOS_UPDATE_GOLDEN") == "1"


def _paths(group: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield path
    if isinstance(group, click.Group):
        ctx = click.Context(group)
        for name in group.list_commands(ctx):
            command = group.get_command(ctx, name)
            assert command is not None
            yield from _paths(command, (*path, name))


PATHS = list(_paths(cli))


def _file(path: tuple[str, ...]) -> Path:
    return GOLDEN / f"{'_'.join(('aios', *path))}.txt"


@pytest.mark.parametrize("path", PATHS, ids=" ".join)
def test_help_is_as_in_the_golden_file(
    path: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*path, "--help"]) == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    if UPDATE:
        GOLDEN.mkdir(parents=True, exist_ok=True)
        _file(path).write_text(shown, encoding="utf-8")
    assert shown == _file(path).read_text(encoding="utf-8")


def test_no_golden_file_is_left_of_a_command_that_is_gone() -> None:
    assert {file.name for file in GOLDEN.glob("*.txt")} == {_file(path).name for path in PATHS}
