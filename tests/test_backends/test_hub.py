"""Models from the hub: what is asked for, what is used again, what is told when it fails."""

from __future__ import annotations

from pathlib import Path

import pytest

from aios.backends.model_files import hub
from aios.backends.models import installed_model
from aios.core.errors import ModelError
from tests.test_backends.tiny_models import get, write_folder


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


class FakeHub:
    """Stands for `huggingface_hub.snapshot_download`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.here = False
        self.error: Exception | None = None
        self.calls: list[dict[str, object]] = []

    def __call__(self, repo: str, **options: object) -> str:
        from huggingface_hub.errors import LocalEntryNotFoundError

        self.calls.append({"repo": repo, **options})
        if options["local_files_only"]:
            if not self.here:
                raise LocalEntryNotFoundError("not here")
        elif self.error is not None:
            raise self.error
        self.here = True
        return str(self.folder)


@pytest.fixture
def fake_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    fake = FakeHub(write_folder(tmp_path / "snapshot"))
    monkeypatch.setattr("huggingface_hub.snapshot_download", fake)
    return fake


def test_a_hub_model_is_fetched_once_and_only_its_safe_files(
    fake_hub: FakeHub, cache: Path
) -> None:
    source = get("owner/name@v1", cache)
    assert (source.kind, source.path) == ("hub", fake_hub.folder)
    fetched = fake_hub.calls[-1]
    assert (fetched["repo"], fetched["revision"]) == ("owner/name", "v1")
    patterns = fetched["allow_patterns"]
    assert isinstance(patterns, list)
    assert "config.json" in patterns
    assert not any(".bin" in p or ".py" in p or p == "*" for p in patterns)
    assert get("owner/name@v1", cache) == source
    assert [call["local_files_only"] for call in fake_hub.calls] == [True, False, True]


def test_offline_a_hub_model_is_only_looked_for_on_this_machine(
    fake_hub: FakeHub, cache: Path
) -> None:
    with pytest.raises(ModelError) as caught:
        get("owner/name", cache, offline=True)
    assert "aios models pull owner/name" in caught.value.remedy
    fake_hub.here = True
    assert get("owner/name", cache, offline=True).kind == "hub"
    assert all(call["local_files_only"] for call in fake_hub.calls)


def test_a_refresh_asks_the_hub_again(fake_hub: FakeHub, cache: Path) -> None:
    fake_hub.here = True
    get("owner/name", cache, refresh=True)
    assert [call["local_files_only"] for call in fake_hub.calls] == [False]


def test_a_half_fetched_hub_model_is_fetched_again(fake_hub: FakeHub, cache: Path) -> None:
    fake_hub.here = True
    weights = fake_hub.folder / "model.safetensors"
    weights.unlink()
    assert installed_model("owner/name", cache_dir=cache) is None
    with pytest.raises(ModelError, match=r"no \*\.safetensors"):
        get("owner/name", cache)
    assert fake_hub.calls[-1]["local_files_only"] is False


def hub_error(kind: str) -> Exception:
    from huggingface_hub import errors

    cls = getattr(errors, kind)
    error: Exception = cls.__new__(cls)
    Exception.__init__(error, f"{kind} happened\nand more")
    return error


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("RepositoryNotFoundError", "the hub has no model owner/name"),
        ("RevisionNotFoundError", "the hub has no model owner/name"),
        ("GatedRepoError", "accepted its terms"),
        ("LocalEntryNotFoundError", "could not be fetched from the hub"),
        ("HFValidationError", "could not be fetched from the hub"),
    ],
)
def test_what_the_hub_answers_is_told_clearly(
    fake_hub: FakeHub, cache: Path, kind: str, message: str
) -> None:
    fake_hub.error = hub_error(kind)
    with pytest.raises(ModelError, match=message) as caught:
        get("owner/name", cache)
    assert caught.value.remedy
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("name", ["owner", "a/b/c", "../x", "a/..", "a b/c", "owner/name@a b"])
def test_other_texts_are_no_hub_ids(name: str) -> None:
    assert hub.parse_hub_id(name) is None
