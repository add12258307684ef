"""Mixes: several strategies for one passage, each with a number of self-edits.

Takes what users write, ``rewrite:2,self-qa:2,implications:1`` or a single name; gives the names
with their numbers, and the strategies behind them in the order written. The candidates of a
passage are numbered through all parts; within its part a candidate keeps the number, and so the
seed and the place in the cache, that it has when its strategy is used alone.

Deviation from the SEAL release, where a run has one prompt for all its self-edits.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from aios.core.errors import UsageError
from aios.core.seal.prompt_templates import AUTO
from aios.core.seal.prompts import PromptBuilder
from aios.core.seal.strategies import SelfEditStrategy, get_strategy

MAX_EDITS = 100  # self-edits of a passage; the limit of seal.num_edits_per_passage too

_EXAMPLE = "write names and numbers such as rewrite:2,self-qa:2"
_NAME = re.compile(r"[^\s:,=]+")
_COUNT = re.compile(r"[0-9]{1,9}")


@dataclass(frozen=True, slots=True)
class MixPart:
    """One strategy of a mix, or the only one.

    Attributes:
        strategy: The strategy.
        num_edits: Candidates that it makes for each passage.
        first_index: Index of the first of them among all candidates of a passage.
    """

    strategy: SelfEditStrategy
    num_edits: int
    first_index: int


def parse_mix(text: str) -> tuple[tuple[str, int | None], ...]:
    """Reads a mix, or a single strategy's name.

    Args:
        text: ``NAME``, ``NAME:COUNT`` or several of the latter with commas between; white space
            around names and counts does not matter.

    Returns:
        Names with their counts, in order. A single name without a count has None.

    Raises:
        UsageError: A part is empty, is no name with a whole number from 1, has no count in a mix,
            or is there twice; the counts add up to more than `MAX_EDITS`; ``auto`` is in a mix.
    """
    parts = text.split(",")
    found = tuple(_parse_part(part, text) for part in parts)
    names = [name for name, _ in found]
    if AUTO in names and found != ((AUTO, None),):
        raise UsageError(
            f"{AUTO} cannot be part of a mix, and takes no number: {text!r}",
            f"write {AUTO} alone, or the strategies that you want",
        )
    for name in names:
        if names.count(name) > 1:
            raise UsageError(
                f"{name} is more than once in the mix {text!r}",
                "name each strategy once, with the number of self-edits that you want of it",
            )
    if len(found) > 1 and None in (count for _, count in found):
        missing = next(name for name, count in found if count is None)
        whole = format_mix([(name, count or 1) for name, count in found])
        raise UsageError(f"{missing} has no number in the mix {text!r}", f"write {whole}")
    total = sum(count or 0 for _, count in found)
    if total > MAX_EDITS:
        raise UsageError(
            f"{text!r} asks for {total} self-edits of each passage", f"ask for at most {MAX_EDITS}"
        )
    return found


def _parse_part(part: str, text: str) -> tuple[str, int | None]:
    name, colon, count = (piece.strip() for piece in part.partition(":"))
    where = f" in {text!r}" if part != text else ""
    if not part.strip():
        raise UsageError(f"a strategy's name is missing{where or ': it is empty'}", _EXAMPLE)
    if not _NAME.fullmatch(name):
        raise UsageError(f"{part.strip()!r}{where} is not a strategy with a number", _EXAMPLE)
    if not colon:
        return name, None
    if not _COUNT.fullmatch(count) or int(count) == 0:
        raise UsageError(
            f"{part.strip()!r}{where}: {count!r} is not a number of self-edits",
            f"give a whole number from 1 to {MAX_EDITS}, such as {name}:2",
        )
    return name, int(count)


def format_mix(mix: Sequence[tuple[str, int | None]]) -> str:
    """The one spelling of a mix; for a single strategy its name, with or without a count.

    Args:
        mix: Names with counts, as `parse_mix` gives them.
    """
    if len(mix) == 1:
        return mix[0][0]
    return ",".join(name if count is None else f"{name}:{count}" for name, count in mix)


def mix_edits(text: str) -> int | None:
    """Self-edits of each passage that a mix asks for; None where the text leaves it open.

    Raises:
        UsageError: As `parse_mix`.
    """
    counts = [count for _, count in parse_mix(text) if count is not None]
    return sum(counts) if counts else None


def resolve_mix(
    text: str, num_edits: int, prompts: PromptBuilder | None = None
) -> tuple[MixPart, ...]:
    """Finds the strategies of a mix, or the single one.

    Args:
        text: A mix or a name, as `parse_mix` reads it.
        num_edits: Candidates for each passage where the text has no count; not used otherwise.
        prompts: Where prompts come from; the built-in ones by default.

    Raises:
        UnknownStrategyError: A strategy is not known; the message lists the known ones.
        UsageError: The text is no mix, or a strategy's package cannot be loaded.
    """
    parts = []
    first_index = 0
    for name, given in parse_mix(text):
        count = num_edits if given is None else given
        parts.append(MixPart(get_strategy(name, prompts), count, first_index))
        first_index += count
    return tuple(parts)


def describe_mix(parts: Sequence[MixPart]) -> str:
    """The mix as it would be written, for people and records; for one strategy its name."""
    return format_mix([(part.strategy.name, part.num_edits) for part in parts])
