"""What incremental decoding keeps: keys and values of prompts, and of their completions.

A prompt's keys and values are kept once, whatever the number of completions written from it, and
those of the tokens written since once a completion. Places and lengths grow by half; lengths are
multiples of `LENGTHS`, filled with zeros, which change no sum. A place that is given up is taken
by another, so nothing is padded to the longest.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

LENGTHS = 64

Block = dict[int, tuple[Tensor, Tensor]]
"""Each layer's keys ``[heads, d, length]`` and values ``[heads, length, d]`` of some tokens."""


@dataclass(eq=False, slots=True)
class Prompt:
    """A prompt that has been read.

    Attributes:
        tokens: Its tokens.
        slot: Where its keys and values are.
        rows: Completions that are, or will be, written from it.
        read: How many of its tokens have been read.
    """

    tokens: tuple[int, ...]
    slot: int
    rows: int
    read: int = 0


@dataclass(eq=False, slots=True)
class Slot:
    """A completion's place in the batch; `written` tokens of it have been read."""

    prompt: Prompt
    written: int = 0


@dataclass(slots=True)
class LayerCache:
    """Keys ``[places, heads, d, length]`` and values ``[places, heads, length, d]`` of a layer."""

    keys: Tensor
    values: Tensor

    @classmethod
    def make(cls, places: int, length: int, key: Tensor, value: Tensor) -> LayerCache:
        """Zeros, for keys and values like these (``[1, heads, length, d]``)."""
        heads = key.shape[1]
        return cls(
            key.new_zeros(places, heads, key.shape[-1], length),
            value.new_zeros(places, heads, length, value.shape[-1]),
        )

    def grow(self, places: int, length: int) -> None:
        """Makes room, keeping what is there."""
        old_places, heads, width, old_length = self.keys.shape
        if places <= old_places and length <= old_length:
            return  # memory ran out in a later layer the last time
        keys = self.keys.new_zeros(places, heads, width, length)
        keys[:old_places, :, :, :old_length] = self.keys
        values = self.values.new_zeros(places, heads, length, self.values.shape[-1])
        values[:old_places, :, :old_length] = self.values
        self.keys, self.values = keys, values

    def move(self, source: int, target: int, length: int) -> None:
        """Copies the first `length` tokens of a place to another."""
        self.keys[target, :, :, :length] = self.keys[source, :, :, :length]
        self.values[target, :, :length] = self.values[source, :, :length]


@dataclass(slots=True)
class KeyValueCache:
    """The layers' keys and values for one sort of place: prompts, or completions."""

    places: int
    length: int
    layers: dict[int, LayerCache] = field(default_factory=dict)

    def layer(self, index: int, key: Tensor, value: Tensor) -> LayerCache:
        """A layer's cache; made for keys and values like these where it is not there yet."""
        if index not in self.layers:
            self.layers[index] = LayerCache.make(self.places, self.length, key, value)
        return self.layers[index]

    def reserve(self, places: int, length: int) -> None:
        """Makes room for so many places of so many tokens."""
        if places <= self.places and length <= self.length:
            return
        new_places, new_length = self.places, self.length
        if places > new_places:
            new_places = max(places, new_places + new_places // 2)
        if length > new_length:
            new_length = padded(max(length, new_length + new_length // 2))
        for layer in self.layers.values():
            layer.grow(new_places, new_length)
        self.places, self.length = new_places, new_length

    def move(self, source: int, target: int, length: int) -> None:
        """Copies the first `length` tokens of a place to another, in all layers."""
        if source != target:
            for layer in self.layers.values():
                layer.move(source, target, length)

    def wipe(self, place: int) -> None:
        """Puts zeros into a place, in all layers."""
        for layer in self.layers.values():
            layer.keys[place].zero_()
            layer.values[place].zero_()

    def copy_out(self, place: int, start: int, end: int) -> Block:
        """A copy of some tokens of a place."""
        return {
            index: (
                layer.keys[place, :, :, start:end].clone(),
                layer.values[place, :, start:end].clone(),
            )
            for index, layer in self.layers.items()
        }

    def copy_in(self, place: int, start: int, block: Block) -> int:
        """Puts a copy into a place, from a token on; where it ends there."""
        end = start
        for index, (keys, values) in block.items():
            layer = self.layer(index, keys[None].transpose(2, 3), values[None])
            end = start + keys.shape[2]
            layer.keys[place, :, :, start:end] = keys
            layer.values[place, :, start:end] = values
        return end

    @property
    def bytes(self) -> int:
        """Memory that it takes."""
        return sum(
            t.numel() * t.element_size() for x in self.layers.values() for t in (x.keys, x.values)
        )


def padded(length: int, multiple: int = LENGTHS) -> int:
    """The next multiple."""
    return -(-length // multiple) * multiple
