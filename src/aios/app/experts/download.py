"""An expert as a download: its adapter in PEFT layout, zipped while it is sent.

Takes an expert; gives the blocks of a zip file with ``adapter_config.json``,
``adapter_model.safetensors`` and ``README.md`` in a folder of the expert's id. Nothing is written
to disk, and no more than a block is in memory. Weights do not get smaller by compression, so they
are stored as they are.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from aios.app.experts.export import base_model_of, sound_adapter
from aios.app.experts.model_card import render_model_card
from aios.app.experts.registry import open_store
from aios.core.config.schemas import Config
from aios.core.files import encode_json
from aios.storage.expert_intake import CONFIG_NAME, WEIGHTS_NAME, plain_config, weights_of


@dataclass(frozen=True, slots=True)
class AdapterDownload:
    """An adapter on its way to somebody.

    Attributes:
        name: Of the zip file.
        blocks: Its content.
    """

    name: str
    blocks: Iterator[bytes]


def adapter_download(config: Config, expert_id: str) -> AdapterDownload:
    """An expert's adapter as a zip file.

    The weights are checked against the expert's card first, and again while they are sent: if
    they are replaced meanwhile, the zip ends before its directory and no program opens it.

    Args:
        config: The resolved config; the base model is found under its name or the expert's.
        expert_id: The expert.

    Raises:
        UnknownExpertError: There is no such expert.
        UsageError: The adapter is damaged.
        StorageError: It is not the one that its card names, is gone, or cannot be read.
    """
    store = open_store(config)
    expert = store.require(expert_id)
    adapter, facts = sound_adapter(store, expert_id)
    base = base_model_of(config, expert, adapter)
    base_name = expert.model_architecture  # a folder of this machine means nothing elsewhere
    if base is not None and base.kind == "hub":
        base_name = base.name.partition("@")[0]
    settings = encode_json(plain_config(facts.config, base_name), indent=2) + b"\n"
    card = render_model_card(expert, store.read_card(expert_id)).encode("utf-8", "replace")
    files = (
        (f"{expert_id}/README.md", len(card), (card,)),
        (f"{expert_id}/{CONFIG_NAME}", len(settings), (settings,)),
        (f"{expert_id}/{WEIGHTS_NAME}", facts.bytes, weights_of(adapter.path, facts)),
    )
    return AdapterDownload(f"{expert_id}.zip", zipped(files))


def zipped(files: Iterable[tuple[str, int, Iterable[bytes]]]) -> Iterator[bytes]:
    """A zip file of files given as name, size and blocks; itself in blocks."""
    sink = _Sink()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED) as archive:
        for name, size, blocks in files:
            info = zipfile.ZipInfo(name)
            info.external_attr = 0o644 << 16
            info.file_size = size
            with archive.open(info, "w") as entry:
                for block in blocks:
                    entry.write(block)
                    yield sink.take()
        # An error above leaves this block without a yield: the directory is never sent.
    yield sink.take()


class _Sink(io.RawIOBase):
    """Takes what is written, until it is taken away."""

    def __init__(self) -> None:
        super().__init__()
        self._kept: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        block = bytes(data)
        self._kept.append(block)
        return len(block)

    def take(self) -> bytes:
        """What was written since."""
        found = b"".join(self._kept)
        self._kept.clear()
        return found
