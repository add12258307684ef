"""Counters on their way from the activity database into the registry file, exactly once.

The registry is another file, so that no transaction spans both. What is about to be written there
is therefore noted in the database first (`intend`), and confirmed afterwards (`settle`). Killed
in between, the next fold finds the note: if the registry has the noted figure, it was written,
else it was not. Figures are differences on top of what the registry says, so that a figure which
another program put there is kept.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping

from aios.storage.activity_records import Counter

Registered = Mapping[str, tuple[int, float]]


def intend(db: sqlite3.Connection, registered: Registered) -> dict[str, Counter]:
    """Notes what is about to be in the registry; in a transaction.

    Args:
        db: The database.
        registered: Activations and mean weight of each expert, as the registry has them.

    Returns:
        The new figures of those experts whose figures change.
    """
    changed = {}
    for row in db.execute("SELECT * FROM expert_totals").fetchall():
        expert, count, weights, folded, folded_weights, *noted = row
        if expert not in registered:
            continue
        before, mean = registered[expert]
        if noted[0] is not None and noted[2] == before:
            folded, folded_weights = noted[:2]  # the fold before was written
        number = before + count - folded
        db.execute(
            "UPDATE expert_totals SET folded = ?, folded_weights = ?, intended = ?,"
            " intended_weights = ?, intended_number = ? WHERE expert = ?",
            (folded, folded_weights, count, weights, number, expert),
        )
        if count > folded:
            changed[expert] = Counter(number, (before * mean + weights - folded_weights) / number)
    return changed


def settle(db: sqlite3.Connection, written: Mapping[str, int]) -> None:
    """Notes that the registry has the figures now; in a transaction.

    Args:
        db: The database.
        written: The activations that were written for each expert.
    """
    for expert, number in written.items():
        db.execute(
            "UPDATE expert_totals SET folded = intended, folded_weights = intended_weights"
            " WHERE expert = ? AND intended_number = ?",
            (expert, number),
        )
    db.execute(
        "UPDATE expert_totals SET intended = NULL, intended_weights = NULL, intended_number = NULL"
    )
