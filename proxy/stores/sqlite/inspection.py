"""Checks a database and counts what is in it.

Works on the connection of a snapshot, also while another process writes.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from proxy.errors import StoreUnavailable
from proxy.stores.sqlite import sql
from proxy.stores.sqlite.migration import steps
from proxy.stores.sqlite.rows import history_of, unpacked

MOST = 20  # problems of one kind that are listed
_BROKEN = {
    "turns of no session": "SELECT count(*) FROM turns WHERE session NOT IN (SELECT id FROM sessions)",
    "turns that follow none": """
        SELECT count(*) FROM turns t LEFT JOIN turns p ON p.id = t.parent AND p.session = t.session
        WHERE t.parent IS NOT NULL AND p.id IS NULL
    """,
    "sessions that stand at no turn": """
        SELECT count(*) FROM sessions s LEFT JOIN turns t ON t.id = s.tip AND t.session = s.id
        WHERE s.emptied = 0 AND t.id IS NULL
        AND NOT (s.tip IS NULL AND EXISTS (SELECT 1 FROM turns o WHERE o.session = s.id AND o.traits & 8))
    """,
    "kept answers of no turn": """
        SELECT count(*) FROM answers a LEFT JOIN turns t ON t.id = a.turn AND t.session = a.session
        WHERE t.id IS NULL
    """,
}


@dataclass(frozen=True)
class Stats:
    """Sizes in bytes, times in ms since the epoch; None where there is no session."""

    database: str
    schema: int
    size: int
    free: int
    log: int
    sessions: int
    expired: int
    turns: int
    cut: int
    answers: int
    oldest: int | None
    newest: int | None


def problems(connection: sqlite3.Connection, progress: Callable[[int, int], None]) -> list[str]:
    """What is wrong with a database, a line each. `progress` is told sessions read, and sessions in all."""
    refuse_older(connection)
    found = [str(line) for (line,) in connection.execute(f"PRAGMA integrity_check({MOST})") if line != "ok"]
    if found:
        return found  # what stands in damaged pages says nothing
    for what, statement in _BROKEN.items():
        (count,) = connection.execute(statement).fetchone()
        if count:
            found.append(f"{count} {what}")
    sessions = connection.execute("SELECT id, tip FROM sessions WHERE emptied = 0").fetchall()
    unreadable = []
    for number, (id, tip) in enumerate(sessions, 1):
        if not _is_readable(connection, id, tip):
            unreadable.append(id)
        progress(number, len(sessions))
    if unreadable:
        found.append(f"{len(unreadable)} sessions that cannot be read, number {', '.join(map(str, unreadable[:MOST]))}")
    return found


def _is_readable(connection: sqlite3.Connection, id: int, tip: int | None) -> bool:
    try:
        _ = history_of(tip, connection.execute(sql.TURNS, (id,))).path
        for (body,) in connection.execute("SELECT body FROM answers WHERE session = ?", (id,)):
            unpacked(body)
    except sqlite3.Error:
        raise
    except Exception:  # whatever a reader of broken bytes may raise
        return False
    return True


def stats(connection: sqlite3.Connection, database: Path) -> Stats:
    """Count sessions, turns and bytes of a database. Raises StoreUnavailable for an older schema."""
    schema = refuse_older(connection)

    def one(statement: str) -> tuple[int, ...]:
        return tuple(connection.execute(statement).fetchone())

    (pages,), (free,), (size,) = [one(f"PRAGMA {name}") for name in ("page_count", "freelist_count", "page_size")]
    log = database.with_name(database.name + "-wal")
    sessions, expired, oldest, newest = one(
        "SELECT count(*), coalesce(sum(emptied), 0), min(touched), max(touched) FROM sessions"
    )
    turns, cut = one("SELECT count(*), coalesce(sum(state = 'cut'), 0) FROM turns")
    (answers,) = one("SELECT count(*) FROM answers")
    return Stats(
        database=str(database),
        schema=schema,
        size=pages * size,
        free=free * size,
        log=log.stat().st_size if log.exists() else 0,
        sessions=sessions - expired,
        expired=expired,
        turns=turns,
        cut=cut,
        answers=answers,
        oldest=oldest,
        newest=newest,
    )


def seal(connection: sqlite3.Connection) -> bytes | None:
    """By which the database knows its secret; None where it has none yet."""
    found = connection.execute(sql.SEAL).fetchone()
    return bytes(found[0]) if found else None


def refuse_older(connection: sqlite3.Connection) -> int:
    """The schema of a database; StoreUnavailable where an earlier version of this program wrote it last."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version < (newest := len(steps())):
        raise StoreUnavailable(
            f"The database has schema {version}; this command needs {newest}. Start the proxy once to migrate it."
        )
    return int(version)


def idle(connection: sqlite3.Connection, before: int) -> int:
    """How many sessions were silent since `before`, in ms since the epoch."""
    (count,) = connection.execute(
        "SELECT count(*) FROM sessions WHERE touched < ? AND emptied = 0", (before,)
    ).fetchone()
    return int(count)
