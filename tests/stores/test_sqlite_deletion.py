"""What was deleted is in no file of the store on disk, and a deletion holds up nobody."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from proxy.core.history import fresh
from proxy.core.model import Answer, Message, SessionKey, SessionState
from proxy.errors import StoreUnavailable
from proxy.stores.sqlite.store import BUSY, SQLiteStore
from tests.stores.conftest import A, B, answer, full_disk, session, turn
from tests.support.database import (
    look,
    reader,
    texts,
    traces,
    wal,
)


async def fill(store: SQLiteStore, key: SessionKey, word: bytes, size: int = 0, count: int = 3) -> list[bytes]:
    """A session that says a word wherever it can, and the words it said: a different one in each place."""
    noise = random.Random(size).randbytes(size)  # as it is, compression leaves it
    said: list[bytes] = []

    def say() -> bytes:
        said.append(b"%b-%d-" % (word, len(said)))
        return said[-1]

    last = None
    for n in range(count):
        last = turn(
            f"{say().decode()}{n}",
            last,
            system=b'"%b"' % say(),
            asked=(Message(say().decode(), b'"%b%b"' % (say(), noise.hex().encode())),),
            reply=noise + say(),
            rendered=Message("assistant", say()),
            model=say().decode(),
            finish_reason=say().decode(),
            usage=say(),
            rendering_key=say().decode(),
            request=say(),
            idempotency_key=say().decode() if n == 1 else None,
        )
        await store.append(key, [last], 0, answer=Answer(200, say().decode(), noise + say()))
    return said


@pytest.mark.parametrize("size", [0, 40, 400, 4000, 40_000])
async def test_what_a_deleted_session_said_is_in_no_file(path: Path, sqlite: SQLiteStore, size: int) -> None:
    key = SessionKey(b"a tenant of its own", "a session of its own")
    await fill(sqlite, B, b"before", size)
    gone = [*await fill(sqlite, key, b"private", size), key.tenant, key.id.encode()]
    await fill(sqlite, A, b"after", size)
    others = [await sqlite.load(other, 0) for other in (A, B)]
    assert len(traces(path, *gone)) > 0.9 * len(gone)
    await sqlite.delete(key)
    assert traces(path, *gone) == []
    assert await sqlite.load(key, 0) == fresh()
    assert [await sqlite.load(other, 0) for other in (A, B)] == others
    assert wal(path).stat().st_size == 0
    for table in ("turns", "answers"):
        assert look(path, f"SELECT count(*) FROM {table} WHERE session NOT IN (SELECT id FROM sessions)") == [(0,)]


async def test_nor_after_many_other_sessions_came_and_went(path: Path, sqlite: SQLiteStore) -> None:
    chance = random.Random(10)
    said: dict[SessionKey, list[bytes]] = {}
    for n in range(200):
        key = SessionKey(b"t", str(chance.randrange(8)))
        if chance.random() < 0.15:
            await sqlite.delete(key)
            assert traces(path, *said.pop(key, [])) == []
        else:
            size = chance.choice([0, 100, 1000, 4000])
            said[key] = said.get(key, []) + await fill(sqlite, key, b"word %d" % n, size, 1)


async def test_what_was_swept_is_in_no_file_once_the_store_is_scrubbed(path: Path, sqlite: SQLiteStore) -> None:
    gone = await fill(sqlite, A, b"private", 4000)
    await sqlite.append(B, [turn()], 10)
    assert await sqlite.sweep(10, set(), 10, 5) == 1
    assert traces(path, *gone) != []
    await sqlite.scrub()
    assert traces(path, *gone) == []
    assert wal(path).stat().st_size == 0


async def test_a_large_database_is_written_anew_only_where_that_is_asked_for(path: Path, sqlite: SQLiteStore) -> None:
    await sqlite.append(A, [turn(reply=b"x" * 1_000_000)], 0)
    await sqlite.sweep(10, set(), 10, 5)
    await sqlite.scrub(1)
    assert path.stat().st_size > 1_000_000
    await sqlite.scrub(2_000_000)
    assert path.stat().st_size < 100_000


async def test_a_reader_in_the_way_delays_a_deletion_and_nobody_else(path: Path, sqlite: SQLiteStore) -> None:
    gone = await fill(sqlite, A, b"private")
    with reader(path):
        deletion = asyncio.create_task(sqlite.delete(A))
        async with asyncio.timeout(BUSY / 1000):  # what a single one would take that waits for the reader
            for n in range(20):
                await sqlite.append(B, [turn(str(n))], 0)
                await asyncio.sleep(0.01)
        assert not deletion.done()
        assert (await sqlite.load(A, 0)).state is SessionState.NEW
    await deletion
    assert traces(path, *gone) == []
    assert await texts(sqlite, B) == [str(n) for n in range(20)]


@pytest.mark.pace(emptying=0.15)
async def test_a_reader_that_stays_makes_a_deletion_say_what_is_left(path: Path, sqlite: SQLiteStore) -> None:
    gone = await fill(sqlite, A, b"private")
    with reader(path):
        for _ in range(2):
            with pytest.raises(StoreUnavailable, match="deleted, but a reader keeps its content in the log"):
                await sqlite.delete(A)
        assert (await sqlite.load(A, 0)).state is SessionState.NEW
        assert traces(path, *gone)
    await sqlite.delete(A)
    assert traces(path, *gone) == []


async def test_a_log_that_cannot_be_emptied_fails_no_commit_beside_it(path: Path, sqlite: SQLiteStore) -> None:
    one, two = turn("1", reply=b"x" * 900_000), turn("2", turn("1"), reply=b"x" * 300_000)
    await sqlite.append(A, [one], 0)
    await sqlite.delete(B)  # now the log is empty, and the database no larger than it has to be
    with full_disk(path.stat().st_size + 50_000):  # there the log has space for more, and the database has not
        _, emptied = await asyncio.gather(sqlite.append(A, [two], 0), sqlite._write([], truncate=True))
        assert not emptied
    assert await sqlite.load(A, 0) == session(one, two)
    await sqlite.delete(A)
    assert look(path, "PRAGMA integrity_check") == [("ok",)]


async def test_a_deletion_that_the_disk_refuses_changes_nothing(path: Path, sqlite: SQLiteStore) -> None:
    await sqlite.append(A, [turn("1")], 0, answer=answer())
    with full_disk(wal(path).stat().st_size), pytest.raises(StoreUnavailable, match="Check the disk"):
        await sqlite.delete(A)
    assert await sqlite.load(A, 0) == session(turn("1"))
    assert await sqlite.answer(A, "turn_1") == answer()


async def test_a_cancelled_deletion_is_settled_when_it_ends(path: Path, sqlite: SQLiteStore) -> None:
    await sqlite.append(A, [turn("1")], 0)
    deletion = asyncio.create_task(sqlite.delete(A))
    await asyncio.sleep(0)
    deletion.cancel()
    with pytest.raises(asyncio.CancelledError):
        await deletion
    assert look(path, "SELECT count(*) FROM sessions") == [(0,)]
