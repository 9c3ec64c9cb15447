"""What only the store on disk promises: durability, groups, rights, faults and old files."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import struct
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from proxy.core.model import Message, SessionKey
from proxy.errors import StoreLocked, StoreUnavailable
from proxy.stores.secret import load_secret
from proxy.stores.sqlite import SQLiteStore, _steps
from tests.fakes import eventually
from tests.stores.conftest import TTL, A, B, full_disk, session, turn, turns

KEYS = [SessionKey(b"t", str(n)) for n in range(100)]


def wal(path: Path) -> Path:
    return path.with_name(path.name + "-wal")


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def look(path: Path, sql: str) -> list[Any]:
    """What a stranger reads from the database."""
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as connection:
        return connection.execute(sql).fetchall()


def change(path: Path, sql: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(sql)


def commits(path: Path) -> int:
    """Transactions in the WAL: frames that carry the size of the database are the last of theirs."""
    data = wal(path).read_bytes()
    page_size, salts = struct.unpack(">I", data[8:12])[0], data[16:24]
    frames = [data[at : at + 24] for at in range(32, len(data), 24 + page_size)]
    return sum(frame[4:8] != b"\0\0\0\0" and frame[8:16] == salts for frame in frames)


async def texts(store: SQLiteStore, key: SessionKey) -> list[str]:
    return [one.id.removeprefix("turn_") for one in (await store.load(key, 0)).history.turns]


# Durability ----------------------------------------------------------------------------------


async def test_what_waits_at_once_is_committed_together(path: Path, sqlite: SQLiteStore) -> None:
    before = commits(path)
    await asyncio.gather(*[sqlite.append(key, [turn(key.id)], 0) for key in KEYS])
    assert commits(path) - before == 1
    await sqlite.append(A, [turn()], 0)
    assert commits(path) - before == 2
    assert [await texts(sqlite, key) for key in KEYS] == [[key.id] for key in KEYS]


async def test_what_comes_during_a_commit_goes_into_the_next(path: Path, sqlite: SQLiteStore) -> None:
    async def client(key: SessionKey) -> None:
        for n in range(10):
            await sqlite.append(key, [turn(str(n))], 0)

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


# Faults --------------------------------------------------------------------------------------


async def test_a_full_disk_fails_those_who_wait_and_nobody_else(path: Path, sqlite: SQLiteStore) -> None:
    await sqlite.append(A, [turn("1")], 0)
    with full_disk(wal(path).stat().st_size):
        waiting = [sqlite.append(key, [turn(key.id)], 0) for key in (A, *KEYS)]
        failed = await asyncio.gather(*waiting, return_exceptions=True)
        assert await texts(sqlite, A) == ["1"]
        with pytest.raises(StoreUnavailable):
            await sqlite.ping()
    assert {type(error) for error in failed} == {StoreUnavailable}
    assert "Check the disk; nothing was recorded." in str(failed[0])
    await sqlite.append(A, [turn("2")], 0)
    await asyncio.gather(*[sqlite.append(key, [turn("late")], 0) for key in KEYS])
    assert await texts(sqlite, A) == ["1", "2"]
    assert [await texts(sqlite, key) for key in KEYS] == [["late"]] * len(KEYS)
    assert look(path, "PRAGMA integrity_check") == [("ok",)]


async def test_what_failed_is_not_there_after_a_restart(path: Path) -> None:
    store = await SQLiteStore.open(path, TTL)
    await store.append(A, [turn("1")], 0)
    with full_disk(wal(path).stat().st_size), pytest.raises(StoreUnavailable):
        await store.append(A, [turn("lost", model="m" * 100_000)], 0)
    await store.close()
    store = await SQLiteStore.open(path, TTL)
    assert await texts(store, A) == ["1"]
    await store.close()


async def test_turns_that_come_together_are_kept_together_or_not_at_all(path: Path, sqlite: SQLiteStore) -> None:
    one, two, three = turns("1", "2", "3")
    await sqlite.append(A, [one, two], 0)
    with pytest.raises(StoreUnavailable):
        await sqlite.append(A, [three, turn("1", three)], 0, ["turn_2"])  # a name that is there already
    assert await sqlite.load(A, 0) == session(one, two)
    await sqlite.append(A, [three], 0)
    assert await sqlite.load(A, 0) == session(one, two, three)
    assert look(path, "SELECT count(*) FROM turns") == [(3,)]


async def test_marks_that_are_not_of_every_message_are_taken_anew(sqlite: SQLiteStore) -> None:
    asked = (Message("user", b"1", bytes(16)), Message("user", b"2"))
    await sqlite.append(A, [turn(asked=asked)], 0)
    [one] = (await sqlite.load(A, 0)).history.turns
    assert [message.mark for message in one.asked] == [b"", b""]


async def test_what_was_learned_comes_with_the_next_commit(path: Path, sqlite: SQLiteStore) -> None:
    await sqlite.learn("host", "reasoning")
    await sqlite.learn("host", "reasoning")
    await sqlite.ping()
    assert look(path, "SELECT upstream, member FROM refusals") == [("host", "reasoning")]


async def test_a_touch_that_fails_fails_nobody(path: Path, sqlite: SQLiteStore) -> None:
    await sqlite.append(A, [turn("1")], 0)
    with full_disk(wal(path).stat().st_size):
        await sqlite.touch(A, 5)
        with pytest.raises(StoreUnavailable):
            await sqlite.ping()
    assert look(path, "SELECT touched FROM sessions") == [(0,)]


async def test_a_database_that_others_broke_is_an_answer_not_a_crash(path: Path, sqlite: SQLiteStore) -> None:
    await sqlite.append(A, [turn("1")], 0)
    change(path, "DROP TABLE turns")
    with pytest.raises(StoreUnavailable, match="no such table"):
        await sqlite.load(A, 0)
    with pytest.raises(StoreUnavailable, match="no such table"):
        await sqlite.append(A, [turn("2")], 0)


async def test_the_touch_of_a_group_comes_first(path: Path, sqlite: SQLiteStore) -> None:
    """Begin and end of a turn in one group, behind another's append: the end counts."""

    async def quick_turn() -> None:
        await sqlite.touch(A, 10)
        await sqlite.append(A, [turn("2")], 20)

    await sqlite.append(A, [turn("1")], 0)
    await asyncio.gather(sqlite.append(B, [turn("b")], 0), quick_turn())
    assert look(path, "SELECT touched FROM sessions ORDER BY touched") == [(0,), (20,)]


@pytest.mark.parametrize("call", ["sweep", "load"])
async def test_a_sign_of_life_at_the_last_moment_saves_a_session(sqlite: SQLiteStore, call: str) -> None:
    await sqlite.append(A, [turn("1")], 0)
    now = TTL + 1
    looking = asyncio.create_task(sqlite.sweep(now, set(), 10) if call == "sweep" else sqlite.load(A, now))
    await asyncio.sleep(0)
    await sqlite.touch(A, now)  # asked for after they looked, and before what they found can be written
    await looking
    assert await sqlite.load(A, now) == session(turn("1"))


# Files from elsewhere ------------------------------------------------------------------------


async def test_an_empty_file_becomes_a_database(tmp_path: Path) -> None:
    path = tmp_path / "sessions.db"
    path.touch()
    await (await SQLiteStore.open(path, TTL)).close()
    tables = look(path, "SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name")
    assert {"pulse", "refusals", "sessions", "turns"} <= {name for (name,) in tables}
    assert look(path, "PRAGMA user_version") == [(len(_steps()),)]


async def test_a_database_without_branches_becomes_one_with_a_tree(tmp_path: Path) -> None:
    """What the first version wrote: turns by parent, without marks, layouts or forms."""
    path = tmp_path / "sessions.db"
    change(path, _steps()[0] + "PRAGMA user_version=1;")
    one, two = turns("1", "2")
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
    store = await SQLiteStore.open(path, TTL)
    assert await store.load(A, 0) == session(one, two)
    await store.append(A, [turn("3", two)], 0)
    assert await store.load(A, 0) == session(one, two, turn("3", two))
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
    await refused(path, f"The database has schema 7000; this program knows up to {len(_steps())}. Install a newer")
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
