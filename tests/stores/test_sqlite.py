"""What only the store on disk promises: durability, groups, rights and old files."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
from contextlib import closing
from pathlib import Path

import pytest

from proxy.core.model import Answer, Message, SessionKey
from proxy.errors import StoreLocked, StoreUnavailable
from proxy.stores.secret import load_secret
from proxy.stores.sqlite.migration import steps
from proxy.stores.sqlite.store import SQLiteStore
from tests.stores.conftest import TTL, A, B, answer, session, turn, turns
from tests.support.database import (
    KEYS,
    change,
    commits,
    look,
    mode,
    start,
    texts,
    wal,
)
from tests.support.fakes import eventually

# Durability ----------------------------------------------------------------------------------


async def test_what_waits_at_once_is_committed_together(path: Path, sqlite: SQLiteStore) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as stranger:
        await sqlite.ping()
        before = commits(path)
        stranger.execute("BEGIN IMMEDIATE")  # the first one waits for the database, all others for the first
        appends = [await start(sqlite.append(key, [turn(key.id)], 0)) for key in KEYS]
        stranger.execute("ROLLBACK")
    await asyncio.gather(*appends)
    assert commits(path) - before <= 2
    await sqlite.append(A, [turn()], 0)
    assert commits(path) - before <= 3
    assert [await texts(sqlite, key) for key in KEYS] == [[key.id] for key in KEYS]


async def test_what_comes_during_a_commit_goes_into_the_next(path: Path, sqlite: SQLiteStore) -> None:
    async def client(key: SessionKey) -> None:
        for n in range(10):
            await sqlite.append(key, [turn(str(n))], 0)

    await sqlite.ping()
    before = commits(path)
    await asyncio.gather(*map(client, KEYS[:20]))
    assert 10 <= commits(path) - before <= 40
    assert await texts(sqlite, KEYS[7]) == [str(n) for n in range(10)]


async def test_an_append_is_on_disk_when_it_returns(path: Path, sqlite: SQLiteStore) -> None:
    await sqlite.append(A, [turn("1")], 0)
    assert look(path, "SELECT name FROM turns") == [("turn_1",)]


async def test_a_commit_survives_a_power_cut(sqlite: SQLiteStore) -> None:
    answers = {}
    for pragma in ("synchronous", "journal_mode", "secure_delete"):
        async with sqlite._writer.execute(f"PRAGMA {pragma}") as cursor:
            answers[pragma] = [tuple(row) for row in await cursor.fetchall()]
    assert answers == {"synchronous": [(2,)], "journal_mode": [("wal",)], "secure_delete": [(1,)]}


async def test_the_reader_cannot_write(sqlite: SQLiteStore) -> None:
    async with sqlite._reader.execute("PRAGMA query_only") as cursor:
        assert tuple(await cursor.fetchone() or ()) == (1,)
    await sqlite._reader.execute("PRAGMA query_only=OFF")
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        await sqlite._reader.execute("UPDATE pulse SET beat = 0")


async def test_a_ping_writes(path: Path, sqlite: SQLiteStore) -> None:
    await asyncio.gather(sqlite.ping(), sqlite.ping())
    assert look(path, "SELECT beat FROM pulse") == [(2,)]


async def test_closing_commits_what_waits_and_refuses_what_comes(path: Path) -> None:
    store = await SQLiteStore.open(path, TTL)
    waiting = asyncio.create_task(store.append(A, [turn("1")], 0))
    await asyncio.sleep(0)
    closing = asyncio.create_task(store.close())
    await asyncio.sleep(0)
    with pytest.raises(StoreUnavailable, match="closed"):
        await store.append(A, [turn("late")], 0)
    await waiting
    await closing
    assert not wal(path).exists()
    assert look(path, "SELECT name FROM turns") == [("turn_1",)]


async def test_a_cancelled_append_is_settled_when_it_ends(path: Path, sqlite: SQLiteStore) -> None:
    for n in range(20):
        append = asyncio.create_task(sqlite.append(A, [turn(str(n))], 0))
        await asyncio.sleep(0)
        append.cancel()
        with pytest.raises(asyncio.CancelledError):
            await append
        assert len(look(path, "SELECT name FROM turns")) == n + 1
    assert await texts(sqlite, A) == [str(n) for n in range(20)]


async def test_a_cancelled_read_holds_no_later_one_at_what_it_saw(path: Path, sqlite: SQLiteStore) -> None:
    await sqlite.append(A, [turn(str(n), asked=(Message("user", b'"%b"' % (b"x" * 9000)),)) for n in range(50)], 0)
    for n in range(40):
        read = asyncio.create_task(sqlite.load(A, 0) if n % 2 else sqlite.answer(A, "turn_1"))
        for _ in range(n // 4):
            await asyncio.sleep(0)
        read.cancel()
        await asyncio.gather(read, return_exceptions=True)
        await sqlite.append(B, [turn(str(n))], 0)
        assert await texts(sqlite, B) == [str(m) for m in range(n + 1)]
    await sqlite.delete(A)
    assert wal(path).stat().st_size == 0


# What clients were given ----------------------------------------------------------------------


async def test_answers_are_compressed(path: Path, sqlite: SQLiteStore) -> None:
    body = b'data: {"choices":[{"index":0,"delta":{"content":"word"}}]}\n\n' * 10_000
    await sqlite.append(A, [turn(idempotency_key="k")], 0, answer=Answer(200, None, body))
    [(kept, size)] = look(path, "SELECT count(*), max(length(body)) FROM answers")
    assert (kept, size < len(body) / 50) == (2, True)


@pytest.mark.parametrize("how", ["load", "sweep"])
async def test_no_answer_outlives_its_use(path: Path, sqlite: SQLiteStore, how: str) -> None:
    async def kept() -> int:
        return int(look(path, "SELECT count(*) FROM answers")[0][0])

    counts = []
    for n, key in enumerate([None, "k", None, None, "l"]):
        await sqlite.append(A, [turn(str(n), idempotency_key=key)], 0, answer=answer())
        counts.append(await kept())
    await sqlite.append(A, [turn("none")], 0, ["turn_1"])
    counts.append(await kept())
    await (sqlite.load(A, TTL + 1) if how == "load" else sqlite.sweep(TTL + 1, set(), 10))
    assert [*counts, await kept()] == [1, 2, 2, 2, 3, 1, 0]


async def test_an_append_that_fails_leaves_the_answers_as_they_were(sqlite: SQLiteStore) -> None:
    one, two = turn("1", idempotency_key="k"), turn("2", turn("1"))
    await sqlite.append(A, [one], 0, answer=answer("1"))
    await sqlite.append(A, [two], 0, answer=answer("2"))
    with pytest.raises(StoreUnavailable):
        await sqlite.append(A, [turn("1", two)], 0, ["turn_1"], answer("3"))  # a name that is there already
    assert [await sqlite.answer(A, one.id), await sqlite.answer(A, two.id)] == [answer("1"), answer("2")]


# Rights --------------------------------------------------------------------------------------


@pytest.mark.usefixtures("careless_umask")
async def test_nobody_else_can_read_what_is_kept(path: Path) -> None:
    store = await SQLiteStore.open(path, TTL)
    load_secret(path, bytes(32))
    await store.append(A, [turn()], 0)
    modes = {file.name.removeprefix(path.name): mode(file) for file in path.parent.iterdir()}
    assert modes == dict.fromkeys(["", "-wal", "-shm", ".lock", ".secret"], 0o600)
    assert mode(path.parent) == 0o700
    await store.close()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
async def test_a_folder_without_rights_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StoreUnavailable, match=r"Cannot use .*sessions\.db: Permission denied"):
        await SQLiteStore.open(tmp_path / "sessions.db", TTL)


@pytest.mark.parametrize("name", ["file/below/sessions.db", "folder"])
async def test_a_path_that_cannot_be_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(StoreUnavailable, match=f"Cannot use .*{name}.* directory"):
        await SQLiteStore.open(tmp_path / name, TTL)


async def test_any_name_will_do(tmp_path: Path) -> None:
    path = tmp_path / "50% a?b=c #1 ü&mode=memory.db"
    store = await SQLiteStore.open(path, TTL)
    await store.append(A, [turn("1")], 0)
    assert await texts(store, A) == ["1"]
    await store.close()
    assert path.stat().st_size


async def test_a_second_store_is_refused_until_the_first_is_closed(path: Path) -> None:
    first = await SQLiteStore.open(path, TTL)
    with pytest.raises(StoreLocked, match=str(os.getpid())):
        await SQLiteStore.open(path, TTL)
    await first.append(A, [turn("1")], 0)
    await first.close()
    second = await SQLiteStore.open(path, TTL)
    assert await texts(second, A) == ["1"]
    await second.close()


# Files from elsewhere ------------------------------------------------------------------------


async def test_an_empty_file_becomes_a_database(tmp_path: Path) -> None:
    path = tmp_path / "sessions.db"
    path.touch()
    await (await SQLiteStore.open(path, TTL)).close()
    tables = look(path, "SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name")
    assert {"pulse", "refusals", "sessions", "turns"} <= {name for (name,) in tables}
    assert look(path, "PRAGMA user_version") == [(len(steps()),)]


@pytest.mark.parametrize("version", [1, 2, 3])
async def test_a_database_of_any_earlier_version_goes_on(tmp_path: Path, version: int) -> None:
    """The first had turns by parent, without marks, layouts or forms; the second kept no answers, the third no
    windows."""
    path = tmp_path / "sessions.db"
    one, two = turns("1", "2")
    for number, step in enumerate(steps()[:version], 1):
        change(path, f"{step} PRAGMA user_version={number};")
    change(
        path,
        f"""
        INSERT INTO sessions (id, tenant, session, tip, touched) VALUES (5, x'{A.tenant.hex()}', 's', 8, 0);
        INSERT INTO turns (id, session, parent, name, state, asked, roles, reply, echo, started, ended) VALUES
        (7, 5, NULL, 'turn_1', 'complete', x'{(b"[" + one.asked[0].raw + b"]").hex()}', '["user"]',
         x'{one.reply.hex()}', x'{one.reply.hex()}', 0, 0),
        (8, 5, 7, 'turn_2', 'complete', x'{(b"[" + two.asked[0].raw + b"]").hex()}', '["user"]',
         x'{two.reply.hex()}', x'{two.reply.hex()}', 0, 0);
        """,
    )
    if version > 1:
        two = turn("2", one, layout=((0, 1), 1), rendering_key="host gpt", request=b"r", resends=True)
        change(path, "UPDATE turns SET layout='[[0,1],1]', form='host gpt', request=x'72', resends=1 WHERE id=8")
    store = await SQLiteStore.open(path, TTL)
    assert look(path, "PRAGMA user_version") == [(len(steps()),)]
    assert await store.load(A, 0) == session(one, two)
    assert await store.answer(A, two.id) is None
    three = turn("3", two, idempotency_key="k")
    await store.append(A, [three], 0, answer=answer())
    assert await store.load(A, 0) == session(one, two, three)
    assert await store.answer(A, three.id) == answer()
    await store.close()


async def refused(path: Path, sentence: str) -> None:
    """Opening fails with the sentence, and leaves neither lock nor thread behind."""
    before = threading.active_count()
    with pytest.raises(StoreUnavailable, match=sentence):
        await SQLiteStore.open(path, TTL)
    await eventually(lambda: threading.active_count() <= before)  # of the test before, one may still be ending
    with pytest.raises(StoreUnavailable, match=sentence):
        await SQLiteStore.open(path, TTL)


async def test_a_newer_schema_is_refused(path: Path) -> None:
    await (await SQLiteStore.open(path, TTL)).close()
    change(path, "PRAGMA user_version=7000")
    await refused(path, f"The database has schema 7000; this program knows up to {len(steps())}. Install a newer")
    assert look(path, "PRAGMA user_version") == [(7000,)]


async def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(b"not a database\n" * 100)
    await refused(path, r"Cannot open the database .*notes\.txt: file is not a database\.")
    assert path.read_bytes() == b"not a database\n" * 100


async def test_a_migration_that_fails_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "sessions.db"
    change(path, "CREATE TABLE pulse (other)")
    await refused(path, "table pulse already exists")
    assert look(path, "SELECT name FROM sqlite_schema") == [("pulse",)]
    assert look(path, "PRAGMA user_version") == [(0,)]


@pytest.mark.pace(touching=0.1)
async def test_a_touch_beside_turns_waits_a_moment_and_no_longer(path: Path, sqlite: SQLiteStore) -> None:
    await sqlite.append(A, [turn()], 0)
    await sqlite.append(B, [turn("2")], 0)
    await sqlite.touch(A, 10)
    await sqlite.append(B, [turn("3")], 1)
    assert look(path, "SELECT max(touched) FROM sessions") == [(1,)]
    await asyncio.sleep(0.15)
    await sqlite.append(B, [turn("4")], 2)
    assert look(path, "SELECT max(touched) FROM sessions") == [(10,)]
