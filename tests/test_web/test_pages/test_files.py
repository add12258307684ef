from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aios.app.jobs.records import Job
from aios.core.config.loader import load_config
from tests.test_app.planted_costs import plant_run
from tests.test_app.test_jobs.job_requests import slot_taken
from tests.test_web.visitor import Visitor

SCRIPT = "<script>alert('x')</script>"


def records(*, questions: bool = True, count: int = 4) -> bytes:
    found: list[dict[str, Any]] = []
    for n in range(count):
        asked = [{"question": f"Who {i} {SCRIPT}?", "answer": f"a{n}{i}"} for i in range(2)]
        text = f"Mill {n} at Orvane has a0 and a1 {SCRIPT} beside the river."
        found.append({"title": f"Mill {n} {SCRIPT}", "text": text})
        if questions:
            found[-1]["questions"] = asked
    return "\n".join(map(json.dumps, found)).encode()


@pytest.fixture
def busy(visitor: Visitor) -> Iterator[Visitor]:
    """A visitor whose jobs wait: another has its turn."""
    with slot_taken(visitor.site.jobs):
        yield visitor
        for job in visitor.site.jobs.list():
            if job.live:
                visitor.site.jobs.stop(job.id, at_once=True)
                visitor.site.jobs.wait(job.id, 5)


def upload(visitor: Visitor, name: str = "mills.jsonl", content: bytes = b"") -> tuple[str, str]:
    page = visitor.press("/files/upload", files={"file": (name, content or records())})
    found = re.search(r"/files/(upload-[0-9a-f-]+)", page)
    assert found is not None, html.unescape(page)
    return found[1], page


def only_job(visitor: Visitor) -> Job:
    (job,) = visitor.site.jobs.list()
    return job


def test_an_upload_is_kept_and_shown_with_its_passages(visitor: Visitor) -> None:
    file_id, page = upload(visitor)
    (kept,) = (visitor.artifacts / "uploads" / file_id).iterdir()
    assert kept.read_bytes() == records()
    assert "mills.jsonl was uploaded" in page
    assert "Start: Measure whether self-edits help" in page
    assert html.escape(SCRIPT, quote=False) in page.replace("&#39;", "'")
    assert SCRIPT not in page
    assert "mills.jsonl" in visitor.look("/files")
    assert f"/files/{file_id}" in visitor.look("/")


@pytest.mark.parametrize(("name", "words"), [("a.exe", "cannot be read"), ("a.txt", "is empty")])
def test_an_upload_that_cannot_be_used_is_refused(visitor: Visitor, name: str, words: str) -> None:
    page = visitor.press("/files/upload", back="/", files={"file": (name, b"")})
    assert words in page
    assert not list((visitor.artifacts / "uploads").glob("*/*"))


def test_an_upload_without_a_file_is_told(visitor: Visitor) -> None:
    assert "no file was chosen" in visitor.press("/files/upload", back="/files")


def test_an_upload_that_is_too_large_is_refused_before_it_is_kept(
    visitor: Visitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aios.web.pages.assembly.MOST_UPLOAD_BYTES", 1000)
    visitor.press("/files/upload", status=413, files={"file": ("a.txt", b"x" * 5000)})
    assert not (visitor.artifacts / "uploads").exists()


def test_an_upload_is_deleted(visitor: Visitor) -> None:
    file_id, _ = upload(visitor)
    assert "mills.jsonl was deleted" in visitor.press(f"/files/{file_id}/delete")
    assert not (visitor.artifacts / "uploads" / file_id).exists()
    visitor.look(f"/files/{file_id}", status=404)


def test_the_ab_test_is_started_with_what_was_chosen(busy: Visitor) -> None:
    file_id, _ = upload(busy)
    page = busy.press(
        f"/files/{file_id}/start", kind="ab-test", seeds="5", strategy="rewrite", max_passages="3"
    )
    job = only_job(busy)
    assert "The job was started" in page
    assert f"/jobs/{job.id}/panel" in page
    assert (job.request.kind, job.state) == ("ab-test", "waiting")
    assert job.request.input is not None
    assert job.request.input.read_bytes() == records()
    config = load_config(config_file=job.path / "config.yaml", env={}).config
    assert (config.ab_test.seeds, config.ab_test.max_passages) == (5, 3)
    assert config.seal.strategy == "rewrite"
    assert busy.site.config.ab_test.seeds == 3  # chosen for once

    assert "a job is reading" in busy.press(f"/files/{file_id}/delete", back="/files")
    assert job.request.input.exists()


@pytest.mark.parametrize(
    ("kind", "fields", "words"),
    [
        ("generate", {"strategy": "auto", "edits": "2"}, "seal generate"),
        ("restem", {"rounds": "1", "passages": "3", "candidates": "2"}, "seal restem optimize"),
        (
            "train-expert",
            {"expert_id": "mills", "name": SCRIPT, "edits_too": "yes", "strategy": "auto"},
            "hrm-hf train-expert --expert-id mills",
        ),
        ("train-expert", {"expert_id": "mills", "strategy": "auto"}, "--no-seal"),
    ],
)
def test_the_other_jobs_are_started(
    busy: Visitor, kind: str, fields: dict[str, Any], words: str
) -> None:
    file_id, _ = upload(busy)
    page = busy.press(f"/files/{file_id}/start", kind=kind, **fields)
    assert only_job(busy).request.kind == kind
    assert words in " ".join(only_job(busy).request.arguments)
    assert SCRIPT not in page


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"kind": "ab-test", "seeds": "0"}, "ab_test.seeds"),
        ({"kind": "ab-test", "seeds": "many"}, "ab_test.seeds"),
        ({"kind": "ab-test", "strategy": "nonsense"}, "nonsense"),
        ({"kind": "ab-test", "seeds": "{a: [", "strategy": "auto"}, "ab_test.seeds"),
        ({"kind": "rm -rf"}, "no job that can be started"),
        ({"kind": "train-expert", "expert_id": "../x"}, "not a valid expert id"),
        ({"kind": "train-expert", "expert_id": ""}, "needs an id"),
        ({"kind": "train-expert", "expert_id": "auto"}, "not a valid expert id"),
    ],
)
def test_a_wrong_choice_is_told_and_starts_nothing(
    visitor: Visitor, fields: dict[str, Any], words: str
) -> None:
    file_id, _ = upload(visitor)
    page = visitor.press(f"/files/{file_id}/start", back=f"/files/{file_id}", **fields)
    assert words in html.unescape(page)
    assert visitor.site.jobs.list() == []


def test_a_file_without_questions_says_so_and_offers_what_works(busy: Visitor) -> None:
    file_id, page = upload(busy, "plain.txt", b"One text.\n\nAnother text.\n")
    assert page.count("No passage of this file has questions") == 2
    assert "Start: Measure" not in page
    assert "Start: Improve" not in page
    assert "Start: Write self-edits" in page
    assert "Start: Train an expert" in page
    refused = busy.press(f"/files/{file_id}/start", kind="ab-test", back=f"/files/{file_id}")
    assert "nothing can be examined" in refused
    assert busy.site.jobs.list() == []


def test_a_file_that_holds_nothing_says_why(visitor: Visitor) -> None:
    _, page = upload(visitor, "bad.jsonl", f'{SCRIPT}\n{{"text": 5}}\n'.encode())
    assert "This file cannot be used" in page
    assert "the line is not valid JSON" in page
    assert "Start:" not in page
    assert SCRIPT not in page
    assert str(visitor.artifacts) not in page


def test_the_same_expert_is_not_trained_twice(busy: Visitor) -> None:
    file_id, _ = upload(busy)
    fields: dict[str, Any] = {"kind": "train-expert", "expert_id": "mills", "edits_too": "yes"}
    busy.press(f"/files/{file_id}/start", **fields)
    page = busy.press(f"/files/{file_id}/start", back="/", **fields)
    assert "is being trained" in page
    assert len(busy.site.jobs.list()) == 1


def test_files_of_given_folders_are_chosen_by_id(tmp_path: Path) -> None:
    folder = tmp_path / "given"
    folder.mkdir()
    (folder / "mills.jsonl").write_bytes(records())
    visitor = Visitor(tmp_path, data=(folder,))
    try:
        page = visitor.look("/files")
        (file_id,) = re.findall(r'/files/(file-[0-9a-f]+)">mills\.jsonl', page)
        assert "Passages" in visitor.look(f"/files/{file_id}")
        refused = visitor.press(f"/files/{file_id}/delete", back="/files")
        assert "was not uploaded here" in refused
        assert (folder / "mills.jsonl").exists()
    finally:
        visitor.close()


@pytest.mark.parametrize("file_id", ["nothing", "..%2f..%2fetc", "upload-20260101-000000-abcdef"])
def test_an_unknown_file_is_told(visitor: Visitor, file_id: str) -> None:
    visitor.look(f"/files/{file_id}", status=404)


def test_a_job_that_the_file_had_is_told_with_its_time(visitor: Visitor) -> None:
    file_id, _ = upload(visitor)
    visitor.press(f"/files/{file_id}/start", kind="generate", strategy="auto", edits="")
    done = visitor.site.jobs.wait(only_job(visitor).id, 30)
    assert done.state == "done", visitor.site.jobs.log_tail(done.id)
    assert "Self-edits took" in visitor.look(f"/files/{file_id}")
    page = visitor.look(f"/jobs/{done.id}")
    assert f'href="/edits/{done.id}"' in page
    assert "self-edits of 4 passages were kept" in page
    assert "1 stage is finished" in page
    home = visitor.look("/")
    assert "self-edits of 4 passages were kept" in home


def test_the_writing_is_timed_when_asked(visitor: Visitor) -> None:
    file_id, page = upload(visitor)
    assert "Time the writing" in page
    page = visitor.press(f"/files/{file_id}/time", what="writing")
    assert "being timed" in page
    again = visitor.press(f"/files/{file_id}/time", what="restem", back=f"/files/{file_id}")
    assert "another file is being timed" in again
    for _ in range(600):
        panel = visitor.look(f"/files/{file_id}/estimate")
        if "being timed" not in panel:
            break
    assert "going by" in panel, html.unescape(panel)
    assert "cannot be timed" in visitor.press(f"/files/{file_id}/time", what="x", back="/files")
    assert visitor.site.jobs.list() == []


def timed(visitor: Visitor, file_id: str, what: str) -> str:
    """What the panel says once something was timed."""
    assert "being timed" in visitor.press(f"/files/{file_id}/time", what=what)
    for _ in range(600):
        panel = visitor.look(f"/files/{file_id}/estimate")
        if "being timed" not in panel:
            break
    return html.unescape(panel)


def test_without_an_earlier_run_the_page_says_so_and_offers_to_measure(visitor: Visitor) -> None:
    _, page = upload(visitor)
    assert page.count("no earlier run here has measured it") == 2
    assert page.count('<a href="#how-long">see below</a>') == 4
    assert "Time the A/B test" in page
    assert "Time the training" in page


def test_a_time_without_the_writing_says_so_and_offers_to_measure(visitor: Visitor) -> None:
    plant_run(visitor.site.config, written=())
    _, page = upload(visitor)
    assert "writing the self-edits that are not in the cache" in page
    assert "from 1 earlier run here" in page
    assert "Time the A/B test" in page
    assert "see below" not in page.partition("Other jobs")[0]


def test_time_and_memory_are_told_from_earlier_runs(visitor: Visitor) -> None:
    plant_run(visitor.site.config, "first")
    plant_run(visitor.site.config, "second", folder="seal_experiments")
    broken = plant_run(visitor.site.config, "broken")
    (broken / "costs.json").write_text(SCRIPT, encoding="utf-8")
    _, page = upload(visitor)
    assert page.count("from 2 earlier runs here; 1 damaged record of a run was left out") == 4
    assert "each seed about" in page
    assert "memory at the peak: about" in page
    assert "will not fit" not in page
    assert "Time the A/B test" not in page
    assert "Time the writing" in page
    assert SCRIPT not in page


def test_a_training_that_needs_more_memory_than_is_free_is_warned_of(visitor: Visitor) -> None:
    plant_run(visitor.site.config, peak_memory_bytes=10**14)
    _, page = upload(visitor)
    assert "That will not fit." in page
    assert "Start: Measure whether self-edits help" in page  # memory may be free by then


@pytest.mark.parametrize("what", ["ab-test", "train-expert"])
def test_an_ab_test_and_a_training_are_timed_when_asked(visitor: Visitor, what: str) -> None:
    file_id, _ = upload(visitor)
    panel = timed(visitor, file_id, what)
    assert "going by a timed probe" in panel, panel
    assert "memory at the peak: at least" in panel
    assert visitor.site.jobs.list() == []
    assert not list(visitor.artifacts.glob("*/*/costs.json"))
