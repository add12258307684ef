"""The tables of the activity database, and how an older file becomes one of today.

`MIGRATIONS[n]` leads from version n (``PRAGMA user_version``) to n + 1; version 0 is an empty
file. A migration is never changed once it was released: a new one is added. Times are seconds
since 1970 (UTC).
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from aios.core.errors import StorageError

APPLICATION_ID = 0x41494F53  # "AIOS", in the file's header: no other program's database is touched

_FIRST = """
CREATE TABLE sessions (
    id TEXT PRIMARY KEY,
    created REAL NOT NULL,
    last_used REAL NOT NULL,
    model TEXT NOT NULL              -- asked for last
);
CREATE TABLE answers (
    id TEXT PRIMARY KEY,
    session TEXT REFERENCES sessions(id) ON DELETE SET NULL,
    time REAL NOT NULL,
    model TEXT NOT NULL,             -- asked for: base, auto, or an expert
    reason TEXT NOT NULL,            -- why these experts
    prompt_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL,
    seconds REAL NOT NULL,
    finish_reason TEXT NOT NULL,
    message TEXT,                    -- NULL unless texts are to be stored
    text TEXT
);
CREATE INDEX answers_by_time ON answers(time);
CREATE INDEX answers_by_session ON answers(session);
CREATE TABLE answer_experts (
    answer TEXT NOT NULL REFERENCES answers(id) ON DELETE CASCADE,
    expert TEXT NOT NULL,
    weight REAL NOT NULL,
    PRIMARY KEY (answer, expert)
) WITHOUT ROWID;
CREATE TABLE feedback (
    id INTEGER PRIMARY KEY,
    answer TEXT NOT NULL REFERENCES answers(id) ON DELETE CASCADE,
    time REAL NOT NULL,
    rating REAL CHECK (rating BETWEEN -1 AND 1),
    correction TEXT NOT NULL,
    comment TEXT NOT NULL,
    message TEXT NOT NULL            -- what the correction answers, where it was sent along
);
CREATE INDEX feedback_by_answer ON feedback(answer);
CREATE INDEX feedback_by_time ON feedback(time);
CREATE TABLE adaptations (
    id INTEGER PRIMARY KEY,
    session TEXT NOT NULL,
    expert TEXT NOT NULL,            -- empty: over the base model
    started REAL NOT NULL,
    seconds REAL NOT NULL,
    examples_before REAL, examples_after REAL,    -- losses, nats a token
    retention_before REAL, retention_after REAL,
    turns_before REAL, turns_after REAL,
    kept INTEGER NOT NULL,
    reason TEXT NOT NULL
);
CREATE INDEX adaptations_by_time ON adaptations(started);
CREATE INDEX adaptations_by_session ON adaptations(session);
-- Never pruned. `folded` is how much of `activations` and `weights` is in the registry file;
-- `intended`, `intended_weights` and `intended_number` are what a fold is about to put there.
CREATE TABLE expert_totals (
    expert TEXT PRIMARY KEY,
    activations INTEGER NOT NULL DEFAULT 0,
    weights REAL NOT NULL DEFAULT 0,
    folded INTEGER NOT NULL DEFAULT 0,
    folded_weights REAL NOT NULL DEFAULT 0,
    intended INTEGER, intended_weights REAL, intended_number INTEGER
) WITHOUT ROWID;
"""

MIGRATIONS: tuple[str, ...] = (_FIRST,)


def migrate(connection: sqlite3.Connection, path: Path) -> None:
    """Brings a database to today's version, whole or not at all; a second process waits.

    Raises:
        StorageError: It is of a later version, or another program's.
        sqlite3.Error: It cannot be read or written.
    """
    if _number(connection, "user_version") == len(MIGRATIONS):
        _require_ours(connection, path)
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        version = _number(connection, "user_version")  # another process may have been first
        if version > len(MIGRATIONS):
            raise StorageError(
                f"{path} is of version {version}; this program knows versions up to "
                f"{len(MIGRATIONS)}",
                "Use the newer program that wrote it, or move that file away to begin a new one.",
            )
        if version or connection.execute("SELECT 1 FROM sqlite_master").fetchone():
            _require_ours(connection, path)
        for script in MIGRATIONS[version:]:
            for statement in _statements(script):
                connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _require_ours(connection: sqlite3.Connection, path: Path) -> None:
    if _number(connection, "application_id") != APPLICATION_ID:
        raise StorageError(
            f"{path} is a database of another program", "Move it away, or choose another path."
        )


def _number(connection: sqlite3.Connection, pragma: str) -> int:
    return int(connection.execute(f"PRAGMA {pragma}").fetchone()[0])


def _statements(script: str) -> list[str]:
    """A script as single statements: `executescript` would commit before it begins."""
    statements, pending = [], ""
    for line in script.splitlines(keepends=True):
        pending += line
        if sqlite3.complete_statement(pending):
            statements.append(pending)
            pending = ""
    return statements
