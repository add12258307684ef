from __future__ import annotations

from tests.test_web.visitor import Visitor


def test_without_jobs_the_page_says_where_to_begin(visitor: Visitor) -> None:
    assert "No job was started yet" in visitor.look("/jobs")


def test_a_job_that_is_not_there_is_told(visitor: Visitor) -> None:
    assert "there is no job" in visitor.look("/jobs/nothing", status=404)
    assert "there is no job" in visitor.press("/jobs/nothing/stop", back="/jobs")
