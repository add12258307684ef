"""Beginnings of prompts that have been read, kept for the next prompt that begins so.

Takes and gives keys and values of *blocks* of `BLOCK` tokens. A block belongs to what wrote it
(the mix of adapters) and to all tokens before it, which a chain of hashes stands for (vLLM's
prefix caching). Prompts are read in the same blocks, so a block has the same numbers whether it
is read or taken from here.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Hashable, Sequence

from aios.backends.decoding_cache import LENGTHS, Block

BLOCK = LENGTHS  # tokens


class PrefixCache:
    """Blocks of prompts; the least recently used go first.

    Args:
        max_bytes: Most memory for them.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._blocks: OrderedDict[str, tuple[Block, int]] = OrderedDict()
        self.bytes = 0

    def names(self, mix: Hashable, tokens: Sequence[int]) -> list[str]:
        """The names of a prompt's whole blocks, in order.

        The last token is in none of them: it has to be read for what follows it.
        """
        state = hashlib.sha256(repr(mix).encode())
        names = []
        for end in range(BLOCK, len(tokens), BLOCK):
            state.update(array("q", tokens[end - BLOCK : end]).tobytes())
            names.append(state.hexdigest())
        return names

    def find(self, names: Sequence[str]) -> list[Block]:
        """The blocks that are there, up to the first that is not."""
        found = []
        for name in names:
            if name not in self._blocks:
                break
            found.append(self._blocks[name][0])
        for name in reversed(names[: len(found)]):  # a block goes before those that it is on
            self._blocks.move_to_end(name)
        return found

    def keep(self, name: str, block: Block) -> None:
        """Keeps a block."""
        size = sum(t.numel() * t.element_size() for pair in block.values() for t in pair)
        if name in self._blocks or size > self._max_bytes:
            return
        self._blocks[name] = block, size
        self.bytes += size
        while self.bytes > self._max_bytes:
            _, (_, size) = self._blocks.popitem(last=False)
            self.bytes -= size

    def clear(self) -> None:
        """Forgets all."""
        self._blocks.clear()
        self.bytes = 0
