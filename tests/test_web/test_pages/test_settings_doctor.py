"""The doctor's page: checks by a button, their result kept, what is wrong told first."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from aios.app.machine.doctor import Check
from aios.app.machine.doctor_report import Doctor
from aios.core.config.schemas import Config
from aios.core.errors import AIOSError, StorageError
from aios.web.pages import settings_doctor
from tests.test_web.visitor import Visitor

SCRIPT = '<script>alert("x")</script>'
CHECKS = [
    Check("python", "ok", "3.13"),
    Check("optional: web", "missing", SCRIPT, "pip install it"),
    Check("base model", "error", "gone", "fetch it"),
]


def wait_for(true: Callable[[], object]) -> None:
    end = time.monotonic() + 10
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


class HeldDoctor(Doctor):
    """A doctor who waits until it is let go, and fails where it is told to."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, self._checks)
        self.go = threading.Event()
        self.asked = 0
        self.error: AIOSError | None = None

    def _checks(self, load: Callable[[], Config]) -> tuple[list[Check], None]:
        self.asked += 1
        assert load().model.name == "scripted"
        assert self.go.wait(10)
        if self.error is not None:
            raise self.error
        return CHECKS, None


@pytest.fixture
def doctor(visitor: Visitor, monkeypatch: pytest.MonkeyPatch) -> Iterator[HeldDoctor]:
    held = HeldDoctor(visitor.settings.folder)
    monkeypatch.setattr(settings_doctor, "Doctor", lambda folder: held)
    yield held
    held.go.set()
    wait_for(lambda: held.begun is None)


def test_the_doctor_is_asked_by_a_button_and_the_page_does_not_wait(
    visitor: Visitor, doctor: HeldDoctor
) -> None:
    assert "No checks were made here yet" in visitor.look("/settings/doctor")
    assert doctor.asked == 0
    page = visitor.press("/settings/doctor/begin")
    assert "Checking, since" in page
    assert "disabled" in page
    assert "go on already" in visitor.press("/settings/doctor/begin")
    doctor.go.set()
    wait_for(lambda: doctor.begun is None)
    assert doctor.asked == 1
    page = visitor.look("/settings/doctor")
    assert "1 of 3 checks failed" in page
    assert "Checked <time" in page
    assert SCRIPT not in page
    assert "&lt;script&gt;" in page
    assert page.index("base model") < page.index("optional: web") < page.index(">python<")
    assert "pip install it" in page


def test_the_last_result_survives_a_restart(visitor: Visitor, doctor: HeldDoctor) -> None:
    doctor.go.set()
    visitor.press("/settings/doctor/begin")
    wait_for(lambda: doctor.begun is None)
    found = Doctor(visitor.settings.folder).last()
    assert found is not None
    assert list(found.checks) == CHECKS
    assert "base model" in visitor.look("/settings/doctor/result")


def test_a_doctor_who_cannot_keep_the_result_says_so(visitor: Visitor, doctor: HeldDoctor) -> None:
    doctor.error = StorageError("the disk is full", "Free some space.")
    doctor.go.set()
    visitor.press("/settings/doctor/begin")
    wait_for(lambda: doctor.begun is None)
    assert "the disk is full" in visitor.look("/settings/doctor")


@pytest.mark.parametrize(
    "content",
    ["{", "[]", '{"version": 1}', '{"version": 1, "time": "?", "seconds": 1, "checks": []}'],
)
def test_a_corrupt_result_is_no_result(visitor: Visitor, content: str) -> None:
    visitor.settings.folder.mkdir(parents=True, exist_ok=True)
    (visitor.settings.folder / "doctor.json").write_text(content, encoding="utf-8")
    assert "No checks were made here yet" in visitor.look("/settings/doctor")
