"""What a comparison of two runs is made of: settings, rows of results, blocks of rows."""

from __future__ import annotations

from dataclasses import dataclass

from markupsafe import Markup

from aios.app.runs.listing import RunEntry

NAMES = ("first run", "second run")
NO_VALUE = "–"


@dataclass(frozen=True, slots=True)
class Setting:
    """A setting that differs; the values as text, a dash where there is none."""

    name: str
    first: str
    second: str

    @property
    def in_both(self) -> bool:
        """Whether both runs have the setting at all."""
        return NO_VALUE not in (self.first, self.second)


@dataclass(frozen=True, slots=True)
class Row:
    """A measure of an arm, or of a round: both values, and their difference if it means one.

    Attributes:
        name: What is measured.
        first: The first run's.
        second: The second's.
        change: Second − first; empty where it is not given.
        interval: Its 95 % interval; empty where there is none.
        verdict: Whether the second is better; empty without an interval.
        tone: ``good``, ``bad`` or ``even``.
    """

    name: str
    first: str
    second: str
    change: str = ""
    interval: str = ""
    verdict: str = ""
    tone: str = "even"


@dataclass(frozen=True, slots=True)
class Block:
    """An arm, or the rounds of ReST-EM: what is compared of it, and its learning curves."""

    name: str
    meaning: str
    rows: tuple[Row, ...]
    chart: Markup | None = None


@dataclass(frozen=True, slots=True)
class RunComparison:
    """Two runs beside each other.

    Attributes:
        runs: The first and the second.
        problem: Why they cannot be compared; empty where they can.
        basis: What differences are over, in a sentence; empty without any.
        settings: Settings that differ.
        blocks: Results beside each other.
        only: Arms that one run alone has, in a sentence each.
    """

    runs: tuple[RunEntry, RunEntry]
    problem: str
    basis: str = ""
    settings: tuple[Setting, ...] = ()
    blocks: tuple[Block, ...] = ()
    only: tuple[str, ...] = ()
