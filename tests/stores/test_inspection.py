"""A look tells what is wrong with a database, and what is in it, beside whoever writes to it."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from proxy.core.model import TurnState
from proxy.errors import StoreUnavailable
from proxy.stores.sqlite.inspection import Stats, idle, problems, stats
from proxy.stores.sqlite.migration import steps
from proxy.stores.sqlite.snapshot import snapshot
from proxy.stores.sqlite.store import SQLiteStore
from tests.stores.conftest import TTL, A, B, answer, turn, turns


def found(path: Path) -> list[str]:
    with snapshot(path) as connection:
        return problems(connection, lambda done, whole: None)


@pytest.fixture
async def filled(path: Path, sqlite: SQLiteStore) -> Path:
    await sqlite.append(A, turns("1", "2"), 10, answer=answer())
    await sqlite.append(B, [turn("3", state=TurnState.INTERRUPTED)], 20)
    return path


DAMAGE = {
    "1 turns of no session": "UPDATE turns SET session = 99, parent = NULL WHERE name = 'turn_3'",
    "1 turns that follow none": "UPDATE turns SET parent = 99 WHERE name = 'turn_1'",
    "1 sessions that stand at no turn": "UPDATE sessions SET tip = 99 WHERE id = 1",
    "1 kept answers of no turn": "UPDATE answers SET turn = 99",
    "1 sessions that cannot be read, number 2": "UPDATE turns SET asked = x'5b7b' WHERE name = 'turn_3'",
    "1 sessions that cannot be read, number 1": "UPDATE answers SET body = x'00'",
}


@pytest.mark.parametrize(("said", "damage"), DAMAGE.items(), ids=list(DAMAGE))
async def test_each_kind_of_damage_is_named(filled: Path, sqlite: SQLiteStore, said: str, damage: str) -> None:
    assert found(filled) == []
    await sqlite.close()
    with closing(sqlite3.connect(filled)) as connection:
        connection.execute(damage)
        connection.commit()
    assert said in found(filled)


async def test_damaged_pages_are_named(filled: Path, sqlite: SQLiteStore) -> None:
    await sqlite.close()
    with closing(sqlite3.connect(filled)) as connection:
        connection.execute("PRAGMA writable_schema=ON")
        connection.execute("UPDATE sqlite_schema SET rootpage = 3 WHERE name = 'turns_name'")
        connection.commit()
    try:
        assert found(filled)
    except StoreUnavailable as error:
        assert "restore a backup" in str(error)  # where the query itself meets them


async def test_it_is_told_how_far_the_look_is(filled: Path) -> None:
    seen = []
    with snapshot(filled) as connection:
        problems(connection, lambda done, whole: seen.append((done, whole)))
    assert seen == [(1, 2), (2, 2)]


async def test_it_counts_what_is_there(filled: Path, sqlite: SQLiteStore) -> None:
    with snapshot(filled) as connection:
        seen = stats(connection, filled)
        assert [idle(connection, before) for before in (10, 11, 20, 21)] == [0, 1, 1, 2]
    assert seen == Stats(
        database=str(filled),
        schema=len(steps()),
        size=seen.size,
        free=seen.free,
        log=filled.with_name("sessions.db-wal").stat().st_size,
        sessions=2,
        expired=0,
        turns=3,
        cut=1,
        answers=1,
        oldest=10,
        newest=20,
    )
    assert seen.size >= 4096 and seen.log > 0
    await sqlite.sweep(15 + TTL, set(), 10)
    with snapshot(filled) as connection:
        seen = stats(connection, filled)
    assert (seen.sessions, seen.expired, seen.turns) == (1, 1, 1)


async def test_an_empty_one_has_no_times(path: Path, sqlite: SQLiteStore) -> None:
    with snapshot(path) as connection:
        seen = stats(connection, path)
    assert (seen.sessions, seen.turns, seen.oldest, seen.newest) == (0, 0, None, None)


async def test_one_of_an_earlier_version_is_brought_on_first(path: Path) -> None:
    path.parent.mkdir()
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(f"{steps()[0]} PRAGMA user_version=1;")
    with pytest.raises(StoreUnavailable, match=f"has schema 1; this command needs {len(steps())}. Start the"):
        found(path)


async def test_what_is_seen_is_one_moment_and_a_look_writes_nothing(filled: Path, sqlite: SQLiteStore) -> None:
    with snapshot(filled) as connection:
        await sqlite.append(B, [turn("4", turn("3"))], 30)
        assert stats(connection, filled).turns == 3
        connection.execute("PRAGMA query_only=OFF")
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            connection.execute("DELETE FROM turns")
