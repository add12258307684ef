from __future__ import annotations

import errno
import json
import os
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from aios.app.edits import generate as generate_module
from aios.app.edits.cache import open_cache, warm_cache
from aios.app.edits.generate import dropped_path, generate_edits, preview_edits
from aios.app.edits.generation_plan import plan_generation
from aios.backends.scripted import Faults, ScriptedModel
from aios.core.config.schemas import Config
from aios.core.data.writers import read_edits
from aios.core.errors import (
    AIOSError,
    BackendError,
    DataError,
    RunInterrupted,
    StorageError,
    UnknownStrategyError,
    UsageError,
)
from aios.core.events import Event, Notice, PassageGenerated, RunFinished, StageProgress
from aios.core.files import locked
from aios.core.types import Drop
from aios.storage import journal
from aios.storage.event_log import read_events
from tests.test_app.scripted_jobs import (
    files_below,
    generate,
    kill_on_the_way,
    make_config,
    record,
    stop_after,
    write_passages,
)


@pytest.fixture
def passages(tmp_path: Path) -> Path:
    return write_passages(tmp_path / "passages.jsonl")


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "out" / "edits.jsonl"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The output of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    write_passages(folder / "passages.jsonl")
    report = generate(folder, resume=False)
    content: bytes = report.output.read_bytes()
    return content


WRITTEN = {"edits.jsonl", "edits.dropped.jsonl"}


def last_run(config: Config) -> Path:
    return max(
        (config.paths.artifacts / "runs").iterdir(), key=lambda path: path.stat().st_mtime_ns
    )


def end_of(run: Path) -> RunFinished:
    *_, (_, event) = read_events(run / "events.jsonl")
    assert isinstance(event, RunFinished)
    return event


def journal_of(output: Path) -> Path:
    return output.with_name(f".{output.name}.journal")


# ------------------------------------------------------------ a complete run


def test_every_passage_gets_its_edits_in_order(
    tmp_path: Path, passages: Path, output: Path
) -> None:
    report = generate_edits(make_config(tmp_path), passages, output)
    edits = list(read_edits(output))
    assert [edit.passage_id for edit in edits] == [record(n)["id"] for n in range(9)]
    assert all(len(edit.items) > 1 and edit.strategy == "implications" for edit in edits)
    assert (report.output, report.passages, report.edits) == (output, 9, len(edits))
    assert report.dropped == {"near_duplicate": 9}
    assert (report.generated, report.cached, report.reused) == (18, 0, 0)
    assert report.tokens > 18 * 30
    assert report.seconds > 0
    assert (report.strategy, report.strategy_source) == ("implications", "chosen by you")
    assert (report.rejected, report.rejects_path, report.failures) == (0, None, ())


def test_nothing_but_output_run_and_cache_is_left(
    tmp_path: Path, passages: Path, output: Path
) -> None:
    config = make_config(tmp_path)
    generate_edits(config, passages, output)
    assert files_below(output.parent) == WRITTEN
    assert end_of(last_run(config)).status == "done"
    assert len(list((tmp_path / "cache").glob("*.json"))) == 18


def test_what_the_filter_left_out_is_listed_beside_the_output(
    tmp_path: Path, passages: Path, output: Path
) -> None:
    config = make_config(tmp_path)
    generate_edits(config, passages, output)
    path = output.with_name("edits.dropped.jsonl")
    assert dropped_path(output) == path
    drops = [Drop(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [drop.passage_id for drop in drops] == [record(n)["id"] for n in range(9)]
    assert {(drop.strategy, drop.index, drop.reason) for drop in drops} == {
        ("implications", 1, "near_duplicate")
    }
    assert all(drop.text and drop.detail for drop in drops)
    # what an earlier output was made from says nothing of this one
    generate_edits(make_config(tmp_path, seal={"enable_deduplication": False}), passages, output)
    assert path.read_bytes() == b""


def test_a_second_run_takes_all_from_the_cache_and_writes_the_same(
    tmp_path: Path, passages: Path, output: Path
) -> None:
    config = make_config(tmp_path)
    generate_edits(config, passages, output)
    first = output.read_bytes()
    model = ScriptedModel()
    report = generate_edits(config, passages, output, model=model)
    assert output.read_bytes() == first
    assert (report.cached, report.generated, report.tokens) == (18, 0, 0)
    assert model.requests == []
    stats = open_cache(config).stats()
    assert stats.hit_rate == 0.5


def test_without_a_cache_none_is_made(tmp_path: Path, passages: Path, output: Path) -> None:
    config = make_config(tmp_path, seal={"enable_cache": False})
    assert generate_edits(config, passages, output).edits == 9
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("name", "format", "first"),
    [
        ("edits.txt", None, b""),
        ("edits.jsonl", None, b'{"text":'),
        ("edits.jsonl", "messages", b'{"messages":'),
        ("edits.parquet", None, b"PAR1"),
    ],
)
def test_the_ending_or_the_format_says_how(
    tmp_path: Path, passages: Path, name: str, format: str | None, first: bytes
) -> None:
    output = tmp_path / "out" / name
    report = generate_edits(make_config(tmp_path), passages, output, output_format=format)
    assert report.edits == 9
    assert output.read_bytes().startswith(first)
    assert output.stat().st_size > 500


def test_progress_is_shown_in_passages(tmp_path: Path, passages: Path, output: Path) -> None:
    events: list[Event] = []
    generate_edits(make_config(tmp_path), passages, output, emit=events.append)
    done = [event.done for event in events if isinstance(event, StageProgress)]
    assert done == list(range(1, 10))
    assert sum(isinstance(event, PassageGenerated) for event in events) == 9
    assert isinstance(events[-1], RunFinished)


def test_a_broken_display_does_not_stop_a_run(tmp_path: Path, passages: Path, output: Path) -> None:
    def broken(event: Event) -> None:
        raise ValueError("no terminal")

    assert generate_edits(make_config(tmp_path), passages, output, emit=broken).edits == 9


def test_the_default_strategy_is_that_of_the_recipe(
    tmp_path: Path, passages: Path, output: Path
) -> None:
    config = make_config(tmp_path, seal={"strategy": "auto", "num_edits_per_passage": None})
    report = generate_edits(config, passages, output)
    assert report.strategy == "implications"
    assert report.strategy_source.startswith("recipes.default: ")
    assert report.generated == 9 * 5


def test_records_that_cannot_be_used_are_listed_beside_the_output(
    tmp_path: Path, output: Path
) -> None:
    rows = [record(0), {"text": " "}, record(0), {"id": "none"}, record(1)]
    data = tmp_path / "mixed.jsonl"
    lines = [json.dumps(row) for row in rows]
    data.write_text("\n".join([*lines, "{broken"]) + "\n", encoding="utf-8")
    report = generate_edits(make_config(tmp_path), data, output)
    assert (report.passages, report.rejected) == (2, 4)
    assert report.rejects_path == output.with_name("edits.rejects.jsonl")
    listed = [json.loads(line) for line in report.rejects_path.read_text().splitlines()]
    assert [(r["line"], r["reason"]) for r in listed] == [
        (2, "empty_text"),
        (3, "duplicate_id"),
        (4, "missing_text"),
        (6, "bad_json"),
    ]
    good = write_passages(tmp_path / "good.jsonl")
    assert generate_edits(make_config(tmp_path), good, output).rejects_path is None
    assert files_below(output.parent) == WRITTEN


def test_a_dead_backend_ends_the_run_and_costs_nothing_finished(
    tmp_path: Path, output: Path
) -> None:
    data = write_passages(tmp_path / "many.jsonl", 40)
    config = make_config(tmp_path)
    dying = ScriptedModel(faults=Faults(fail_times=99, fail_on="harbour"))  # passages 12 to 23
    assert len(generate_edits(config, data, output, model=dying).failures) == 12
    output.unlink()
    dead = ScriptedModel(faults=Faults(fail_times=999))
    changed = make_config(tmp_path, seed=1)
    with pytest.raises(BackendError, match="20 passages in a row"):
        generate_edits(changed, data, output, model=dead)
    assert not output.exists()
    assert end_of(last_run(changed)).status == "failed"
    report = generate_edits(changed, data, output, resume="always")
    assert (report.failures, report.edits, report.reused) == ((), 40, 0)


def test_a_failing_passage_is_reported_and_the_rest_is_written(
    tmp_path: Path, passages: Path, output: Path
) -> None:
    model = ScriptedModel(faults=Faults(fail_times=99, fail_on="of Bosk"))
    report = generate_edits(make_config(tmp_path), passages, output, model=model)
    assert [failure.subject for failure in report.failures] == ["Bosk-mill"]
    assert report.edits == 8
    # only what failed is generated again
    again = generate_edits(make_config(tmp_path), passages, output)
    assert (again.edits, again.generated, again.cached) == (9, 2, 16)


# ------------------------------------------------------------ wrong use, before any work


def _missing(folder: Path) -> Path:
    return folder / "nowhere.jsonl"


def _folder(folder: Path) -> Path:
    (folder / "data.jsonl").mkdir()
    return folder / "data.jsonl"


def _written(name: str, content: bytes) -> Any:
    def write(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return write


@pytest.mark.parametrize(
    ("make_input", "message"),
    [
        (_missing, "does not exist"),
        (_folder, "is a folder"),
        (_written("data.jsonl", b""), "is empty"),
        (_written("data.docx", b"text"), "unknown ending '.docx'"),
        (_written("data.jsonl", b'{"text": ""}\n'), "holds no passages"),
        (_written("data.json", b"{"), "not valid JSON"),
        (_written("data.txt", b"\xff\xfea\x00"), "is UTF-16 text"),
    ],
)
def test_an_input_that_cannot_be_used_is_refused_and_nothing_written(
    tmp_path: Path, output: Path, make_input: Any, message: str
) -> None:
    data = make_input(tmp_path)
    before = files_below(tmp_path)
    with pytest.raises(DataError, match=message) as caught:
        generate_edits(make_config(tmp_path), data, output)
    assert caught.value.exit_code == 2
    assert caught.value.remedy
    assert files_below(tmp_path) == before


@pytest.mark.parametrize(
    ("name", "format", "message"),
    [
        ("edits.docx", None, "unknown ending"),
        ("edits", None, "unknown ending"),
        ("edits.jsonl", "yaml", "unknown format"),
        ("edits.txt", "messages", "is written to a .jsonl file"),
    ],
)
def test_an_output_that_cannot_be_written_is_refused(
    tmp_path: Path, passages: Path, name: str, format: str | None, message: str
) -> None:
    before = files_below(tmp_path)
    with pytest.raises(UsageError, match=message):
        generate_edits(make_config(tmp_path), passages, tmp_path / name, output_format=format)
    assert files_below(tmp_path) == before


def test_a_folder_as_output_is_refused(tmp_path: Path, passages: Path) -> None:
    (tmp_path / "dir.jsonl").mkdir()
    with pytest.raises(UsageError, match="is a folder"):
        generate_edits(make_config(tmp_path), passages, tmp_path / "dir.jsonl")


def test_the_input_is_never_the_output(tmp_path: Path, passages: Path) -> None:
    before = passages.read_bytes()
    link = tmp_path / "link.jsonl"
    link.symlink_to(passages)
    for output in (passages, link):
        with pytest.raises(UsageError, match="is the input itself"):
            generate_edits(make_config(tmp_path), passages, output)
    assert passages.read_bytes() == before


@pytest.mark.parametrize("name", ["edits.dropped.jsonl", "edits.rejects.jsonl"])
def test_the_input_is_never_a_file_beside_the_output(tmp_path: Path, name: str) -> None:
    data = write_passages(tmp_path / name)
    before = data.read_bytes()
    with pytest.raises(UsageError, match="is the input itself"):
        generate_edits(make_config(tmp_path), data, tmp_path / "edits.txt")
    assert data.read_bytes() == before


@pytest.mark.parametrize(
    ("seal", "error", "message"),
    [
        ({"strategy": "inplications"}, UnknownStrategyError, "unknown strategy 'inplications'"),
        ({"prompts_file": Path("nowhere.yaml")}, UsageError, "nowhere.yaml"),
    ],
)
def test_a_config_that_cannot_be_used_leaves_no_output_and_no_journal(
    tmp_path: Path,
    passages: Path,
    output: Path,
    seal: dict[str, Any],
    error: type[UsageError],
    message: str,
) -> None:
    config = make_config(tmp_path, seal=seal)
    with pytest.raises(error, match=message):
        generate_edits(config, passages, output)
    assert not output.parent.exists()


def test_a_place_that_cannot_be_written_is_found_out_before_any_generation(
    tmp_path: Path, passages: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    model = ScriptedModel()
    with pytest.raises(StorageError, match="cannot"):
        generate_edits(
            make_config(tmp_path), passages, tmp_path / "file" / "edits.jsonl", model=model
        )
    assert model.requests == []


# ------------------------------------------------------------ stopping and going on


@pytest.mark.parametrize("stops", [(0,), (1,), (8,), (1, 2, 3), (4, 0, 5)])
def test_a_run_stopped_on_the_way_ends_with_the_same_output(
    tmp_path: Path, passages: Path, output: Path, whole: bytes, stops: tuple[int, ...]
) -> None:
    config = make_config(tmp_path)
    done = 0
    for calls in stops:
        done = max(done, calls)  # it is asked before passages that are done, too
        with pytest.raises(RunInterrupted, match="finished passages are kept"):
            generate_edits(config, passages, output, should_stop=stop_after(calls))
        assert not output.exists()
        assert end_of(last_run(config)).status == "interrupted"
    events: list[Event] = []
    report = generate_edits(config, passages, output, resume="always", emit=events.append)
    assert output.read_bytes() == whole
    assert report.reused == done
    assert report.passages == 9
    assert report.edits == 9
    assert report.dropped == {"near_duplicate": 9}
    assert report.generated == 18 - 2 * report.reused
    assert files_below(output.parent) == WRITTEN
    if done:
        assert Notice(f"resuming: {done} passages are already done") in events


def test_a_stop_after_the_last_passage_loses_nothing(
    tmp_path: Path, passages: Path, output: Path, whole: bytes
) -> None:
    generate_edits(make_config(tmp_path), passages, output, should_stop=stop_after(9))
    assert output.read_bytes() == whole


def test_an_old_output_stays_until_the_new_one_is_whole(
    tmp_path: Path, passages: Path, output: Path
) -> None:
    output.parent.mkdir()
    for path in (output, dropped_path(output)):
        path.write_text("old\n")
    with pytest.raises(RunInterrupted):
        generate_edits(make_config(tmp_path), passages, output, should_stop=stop_after(2))
    assert output.read_text() == dropped_path(output).read_text() == "old\n"


def test_going_on_without_an_interrupted_run_is_refused_where_it_must(
    tmp_path: Path, passages: Path, output: Path
) -> None:
    with pytest.raises(UsageError, match="no interrupted run") as caught:
        generate_edits(make_config(tmp_path), passages, output, resume="always")
    assert "if-possible" in caught.value.remedy
    assert generate_edits(make_config(tmp_path), passages, output).reused == 0


def test_starting_over_forgets_the_journal(
    tmp_path: Path, passages: Path, output: Path, whole: bytes
) -> None:
    config = make_config(tmp_path)
    with pytest.raises(RunInterrupted):
        generate_edits(config, passages, output, should_stop=stop_after(2))
    report = generate_edits(config, passages, output, resume="never")
    assert report.reused == 0
    assert report.cached == 4
    assert output.read_bytes() == whole


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"seed": 1}, "seed: 0 then, 1 now"),
        ({"seal": {"temperature": 0.5}}, 'sampling: {"temperature": 1.0'),
        ({"seal": {"num_edits_per_passage": 3}}, "edits per passage: 2 then, 3 now"),
        ({"seal": {"min_length": 6}}, 'filter: {"min_length": 5'),
        ({"seal": {"strategy": "rewrite"}}, 'strategy: "implications" then, "rewrite" now'),
        ({"seal": {"domain": "mills"}}, 'domain: "" then, "mills" now'),
        ({"data": {"max_passage_tokens": 99}}, "passage tokens: 512 then, 99 now"),
    ],
)
@pytest.mark.parametrize("resume", ["always", "if-possible"])
def test_other_settings_than_before_are_refused_and_named(
    tmp_path: Path,
    passages: Path,
    output: Path,
    resume: generate_module.Resume,
    change: dict[str, Any],
    difference: str,
) -> None:
    with pytest.raises(RunInterrupted):
        generate_edits(make_config(tmp_path), passages, output, should_stop=stop_after(2))
    journal = journal_of(output).read_bytes()
    with pytest.raises(UsageError) as caught:
        generate_edits(make_config(tmp_path, **change), passages, output, resume=resume)
    assert difference in caught.value.message
    assert caught.value.message.count(" then, ") == 1
    assert journal_of(output).read_bytes() == journal
    assert not output.exists()


def test_how_many_are_written_at_once_may_change(
    tmp_path: Path, passages: Path, output: Path, whole: bytes
) -> None:
    with pytest.raises(RunInterrupted):
        generate_edits(make_config(tmp_path), passages, output, should_stop=stop_after(2))
    config = make_config(tmp_path, seal={"batch_size": 3})
    assert generate_edits(config, passages, output).reused == 2
    assert output.read_bytes() == whole


def test_another_input_or_model_than_before_is_refused(
    tmp_path: Path, passages: Path, output: Path
) -> None:
    config = make_config(tmp_path)
    with pytest.raises(RunInterrupted):
        generate_edits(config, passages, output, should_stop=stop_after(2))
    with pytest.raises(UsageError, match="model: "):
        generate_edits(config, passages, output, model=ScriptedModel(knows=["mill"]))
    write_passages(passages, 10)
    with pytest.raises(UsageError, match="input: "):
        generate_edits(config, passages, output)


def test_a_journal_of_another_form_is_refused_and_can_be_left_behind(
    tmp_path: Path, passages: Path, output: Path, whole: bytes
) -> None:
    config = make_config(tmp_path)
    with pytest.raises(RunInterrupted):
        generate_edits(config, passages, output, should_stop=stop_after(2))
    journal_of(output).write_bytes(b"no journal\n")
    with pytest.raises(StorageError, match="not a journal"):
        generate_edits(config, passages, output)
    generate_edits(config, passages, output, resume="never")
    assert output.read_bytes() == whole


def test_a_spoiled_line_of_the_journal_is_made_again(
    tmp_path: Path, passages: Path, output: Path, whole: bytes
) -> None:
    config = make_config(tmp_path)
    with pytest.raises(RunInterrupted):
        generate_edits(config, passages, output, should_stop=stop_after(3))
    lines = journal_of(output).read_bytes().splitlines(keepends=True)
    lines[2] = lines[2].replace(b"Bosk", b"Busk")
    journal_of(output).write_bytes(b"".join(lines))
    report = generate_edits(config, passages, output)
    assert output.read_bytes() == whole
    assert report.reused == 2


def test_a_record_from_another_version_is_named(
    tmp_path: Path, passages: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from aios.app.edits import journal as edit_journal

    config = make_config(tmp_path)
    monkeypatch.setattr(edit_journal, "encode_result", lambda result: {"kept": []})
    with pytest.raises(RunInterrupted):
        generate_edits(config, passages, output, should_stop=stop_after(1))
    monkeypatch.undo()
    with pytest.raises(StorageError, match="record of passage Arn-mill is of another form"):
        generate_edits(config, passages, output)


def test_two_runs_for_one_output_do_not_meet(
    tmp_path: Path, passages: Path, output: Path, whole: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "locked", lambda path, timeout: locked(path, timeout=0.05))
    config = make_config(tmp_path)
    met: list[str] = []

    def second(event: Event) -> None:
        if isinstance(event, StageProgress) and not met:
            with pytest.raises(StorageError) as caught:
                generate_edits(config, passages, output)
            met.append(caught.value.message)

    generate_edits(config, passages, output, emit=second)
    assert "another process" in met[0]
    assert output.read_bytes() == whole


# ------------------------------------------------------------ a disk that fails


def fail_after(monkeypatch: pytest.MonkeyPatch, calls: int, number: int) -> None:
    """Lets the file layer write so many times, and then no more."""
    write, left = os.write, calls

    def failing(fd: int, data: Any) -> int:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(number, "No space left on device")
        return int(write(fd, data))

    monkeypatch.setattr(os, "write", failing)


@pytest.mark.parametrize("calls", [0, 1, 2, 5, 9, 14, 22, 30])
def test_a_full_disk_ends_in_one_clear_error_and_costs_nothing_finished(
    tmp_path: Path,
    passages: Path,
    output: Path,
    whole: bytes,
    monkeypatch: pytest.MonkeyPatch,
    calls: int,
) -> None:
    config = make_config(tmp_path)
    with monkeypatch.context() as patch:
        fail_after(patch, calls, errno.ENOSPC)
        with pytest.raises(StorageError, match="disk full") as caught:
            generate_edits(config, passages, output)
    assert "Free some space" in caught.value.remedy
    assert not output.exists()
    assert files_below(output.parent) <= {".edits.jsonl.journal", "..edits.jsonl.journal.lock"}
    generate_edits(config, passages, output)
    assert output.read_bytes() == whole


def test_a_disk_that_fills_with_the_output_keeps_the_journal(
    tmp_path: Path,
    passages: Path,
    output: Path,
    whole: bytes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from aios.core.data import writers

    def full(self: Any, edit: Any, passage: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    config = make_config(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(writers._RowWriter, "write", full)
        with pytest.raises(StorageError, match=r"cannot write .*edits.jsonl: disk full"):
            generate_edits(config, passages, output)
    assert not output.exists()
    report = generate_edits(config, passages, output, resume="always")
    assert report.reused == 1
    assert output.read_bytes() == whole


def test_a_cache_that_cannot_be_written_is_told_once_and_stops_nothing(
    tmp_path: Path, passages: Path, output: Path, whole: bytes
) -> None:
    (tmp_path / "cache").write_text("in the way")
    events: list[Event] = []
    report = generate_edits(make_config(tmp_path), passages, output, emit=events.append)
    assert output.read_bytes() == whole
    assert report.generated == 18
    (warning,) = [e for e in events if isinstance(e, Notice) and e.level == "warning"]
    assert warning.message.startswith("Self-edit cache: cannot ")


def test_a_corrupt_cache_entry_is_told_and_made_again(
    tmp_path: Path, passages: Path, output: Path, whole: bytes
) -> None:
    config = make_config(tmp_path)
    generate_edits(config, passages, output)
    entry = sorted((tmp_path / "cache").glob("*.json"))[0]
    entry.write_bytes(b"{}")
    events: list[Event] = []
    report = generate_edits(config, passages, output, emit=events.append)
    assert (report.cached, report.generated) == (17, 1)
    assert output.read_bytes() == whole
    assert any(isinstance(e, Notice) and "corrupt" in e.message for e in events)


def test_what_killed_runs_left_of_an_output_is_removed(
    tmp_path: Path, passages: Path, output: Path
) -> None:
    output.parent.mkdir()
    ours = ("edits.jsonl", "edits.dropped.jsonl", "edits.rejects.jsonl", ".edits.jsonl.journal")
    for name in (*ours, "other.jsonl"):
        output.with_name(f".{name}.{'0' * 16}.tmp").write_text("half a li")
    generate_edits(make_config(tmp_path), passages, output)
    assert files_below(output.parent) == {*WRITTEN, f".other.jsonl.{'0' * 16}.tmp"}


# ------------------------------------------------------------ kill -9


@pytest.mark.usefixtures("process_server")
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_run_killed_again_and_again_ends_with_the_same_output(
    tmp_path: Path, whole: bytes, seed: int
) -> None:
    folder = tmp_path / "killed"
    write_passages(folder / "passages.jsonl")
    output = folder / "out" / "edits.jsonl"
    rng = random.Random(seed)
    kills = [kill_on_the_way("generate", folder, rng, resume=True, within=14) for _ in range(4)]
    assert sum(kills) >= 3
    report = generate(folder, resume=True)
    assert output.read_bytes() == whole
    assert files_below(output.parent) == WRITTEN
    assert report.passages == 9
    # the cache can be used: it lacks at most the passage in hand at each kill; nothing is broken
    again = generate(folder, resume=False)
    assert again.cached + again.generated == 18
    assert again.generated <= 2 * sum(kills)
    assert not (folder / "cache" / "corrupt").exists()
    assert output.read_bytes() == whole
    assert generate(folder, resume=False).cached == 18


# ------------------------------------------------------------ plan, preview, warm


def test_a_plan_counts_and_writes_nothing(tmp_path: Path, passages: Path, output: Path) -> None:
    config = make_config(tmp_path)
    before = files_below(tmp_path)
    plan = plan_generation(config, passages)
    assert files_below(tmp_path) == before
    assert (plan.passages, plan.rejected, plan.candidates, plan.cached) == (9, 0, 18, 0)
    assert plan.max_new_tokens == 18 * 1024
    assert plan.prompt_tokens > 9 * 50
    assert (plan.strategy, plan.strategy_source) == ("implications", "chosen by you")
    generate_edits(config, write_passages(tmp_path / "some.jsonl", 4), output)
    before = files_below(tmp_path)
    hits = open_cache(config).stats().hits
    plan = plan_generation(config, passages)
    assert (plan.cached, plan.max_new_tokens) == (8, 10 * 1024)
    assert files_below(tmp_path) == before
    assert open_cache(config).stats().hits == hits


def test_a_plan_needs_no_cache(tmp_path: Path, passages: Path) -> None:
    config = make_config(tmp_path, seal={"enable_cache": False})
    assert plan_generation(config, passages).cached == 0


def test_a_preview_shows_the_first_passages_and_saves_nothing(
    tmp_path: Path, passages: Path
) -> None:
    before = files_below(tmp_path)
    previews = preview_edits(make_config(tmp_path), passages, 2)
    assert [p.passage.id for p in previews] == ["Arn-mill", "Bosk-mill"]
    assert all(p.kept and p.drops for p in previews)
    assert files_below(tmp_path) == before
    assert len(preview_edits(make_config(tmp_path), passages, 99)) == 9
    with pytest.raises(DataError):
        preview_edits(make_config(tmp_path), tmp_path / "nowhere.txt", 2)


def test_a_warmed_cache_serves_the_next_run(tmp_path: Path, passages: Path, output: Path) -> None:
    config = make_config(tmp_path)
    assert warm_cache(config, passages).generated == 18
    assert not output.exists()
    assert generate_edits(config, passages, output).cached == 18


def test_a_cache_that_is_off_cannot_be_warmed(tmp_path: Path, passages: Path) -> None:
    config = make_config(tmp_path, seal={"enable_cache": False})
    before = files_below(tmp_path)
    with pytest.raises(UsageError, match="switched off"):
        warm_cache(config, passages)
    assert files_below(tmp_path) == before


# ------------------------------------------------------------ the record of a run


def test_an_error_is_not_hidden_by_a_record_that_cannot_be_written(
    tmp_path: Path, passages: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Bug(Exception):
        pass

    class Broken(ScriptedModel):
        def stream(self, requests: Any, *, width: int | None = None) -> Any:
            fail_after(monkeypatch, 0, errno.ENOSPC)
            raise Bug

    with pytest.raises(Bug):
        generate_edits(make_config(tmp_path), passages, output, model=Broken())


@pytest.mark.parametrize(
    ("error", "status", "summary"),
    [
        (AIOSError("it went wrong", "do this"), "failed", "it went wrong"),
        (RunInterrupted("stopped"), "interrupted", "stopped"),
        (KeyboardInterrupt(), "interrupted", "KeyboardInterrupt"),
        (ZeroDivisionError("a bug"), "failed", "ZeroDivisionError"),
    ],
)
def test_the_end_of_a_run_is_recorded_however_it_ends(
    tmp_path: Path, passages: Path, output: Path, error: BaseException, status: str, summary: str
) -> None:
    class Ending(ScriptedModel):
        def stream(self, requests: Any, *, width: int | None = None) -> Any:
            raise error

    config = make_config(tmp_path)
    with pytest.raises(type(error)):
        generate_edits(config, passages, output, model=Ending())
    end = end_of(last_run(config))
    assert (end.status, end.summary) == (status, summary)
    counts = Counter(type(e).__name__ for _, e in read_events(last_run(config) / "events.jsonl"))
    assert counts["RunStarted"] == counts["RunFinished"] == 1


def test_edits_that_repeat_an_earlier_passage_are_dropped_where_asked(
    tmp_path: Path, output: Path
) -> None:
    data = tmp_path / "twice.jsonl"
    text = "The mill at Orvane was built in 1871. It turns {} heavy stones."
    rows = [{"id": n, "text": text.format(n)} for n in ("twelve", "nine or twelve")]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for across, kept in (("passage", 2), ("file", 1)):
        seal = {"strategy": "implications", "num_edits_per_passage": 1, "min_length": 1}
        model = ScriptedModel({"Orvane": ["1. The mill at Orvane turns twelve heavy stones."]})
        report = generate_edits(
            make_config(tmp_path, seal={**seal, "deduplicate_across": across}),
            data,
            output,
            resume="never",
            model=model,
        )
        assert report.edits == kept
        assert report.dropped.get("duplicate", 0) == 2 - kept
        assert report.telemetry is not None
        assert report.telemetry.dropped_by_reason.get("duplicate", 0) == 2 - kept
