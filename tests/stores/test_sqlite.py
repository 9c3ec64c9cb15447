"""What only the store on disk promises: durability, groups, rights, faults and old files."""

from __future__ import annotations

import asyncio
import os
import random
import sqlite3
import struct
import threading
from collections.abc import Coroutine, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from proxy.core.history import fresh
from proxy.core.learned import LIMIT_KEPT
from proxy.core.model import Answer, Message, ModelKey, SessionKey, SessionState, Turn
from proxy.errors import StoreLocked, StoreUnavailable
from proxy.stores.secret import load_secret
from proxy.stores.sqlite.migration import steps
from proxy.stores.sqlite.rows import SMALL
from proxy.stores.sqlite.store import BUSY, SQLiteStore
from tests.stores.conftest import TTL, A, B, answer, full_disk, session, turn, turns
from tests.support.fakes import eventually

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


@contextmanager
def reader(path: Path) -> Iterator[None]:
    """A stranger who reads all the time, and holds the log at what it saw first."""
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, isolation_level=None)) as connection:
        connection.execute("BEGIN")
        connection.execute("SELECT name FROM turns").fetchall()
        yield


def traces(path: Path, *words: bytes) -> list[bytes]:
    """Which of these words stand in any file beside the database."""
    data = b"".join([file.read_bytes() for file in path.parent.iterdir()])
    return [word for word in words if word in data]


async def texts(store: SQLiteStore, key: SessionKey) -> list[str]:
    return [one.id.removeprefix("turn_") for one in (await store.load(key, 0)).history.turns]


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


# Deletion -------------------------------------------------------------------------------------


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


async def test_fingerprints_that_are_not_of_every_message_are_taken_anew(sqlite: SQLiteStore) -> None:
    asked = (Message("user", b"1", bytes(16)), Message("user", b"2"))
    await sqlite.append(A, [turn(asked=asked)], 0)
    [one] = (await sqlite.load(A, 0)).history.turns
    assert [message.fingerprint for message in one.asked] == [b"", b""]


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


async def test_old_limits_go_from_the_file_too(path: Path, sqlite: SQLiteStore) -> None:
    await sqlite.learn_limit(ModelKey(b"t", "host", "old"), 4096, 0)
    await sqlite.ping()
    await sqlite.learn_limit(ModelKey(b"t", "host", "new"), 8192, LIMIT_KEPT + 1)
    await sqlite.ping()
    assert look(path, "SELECT model, tokens FROM limits") == [("new", 8192)]


async def test_the_touch_of_a_group_comes_first(path: Path, sqlite: SQLiteStore) -> None:
    """Begin and end of a turn in one group, behind another's append: the end counts."""

    async def quick_turn() -> None:
        await sqlite.touch(A, 10)
        await sqlite.append(A, [turn("2")], 20)

    await sqlite.append(A, [turn("1")], 0)
    await asyncio.gather(sqlite.append(B, [turn("b")], 0), quick_turn())
    assert look(path, "SELECT touched FROM sessions ORDER BY touched") == [(0,), (20,)]


def lasted(text: str, seconds: float) -> Turn:
    return turn(text, started=1_000, ended=1_000 + int(seconds * 1000))


async def start(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """Begin it, and let it go so far that it would be on its way if it did not wait."""
    task = asyncio.create_task(work)
    for _ in range(20):
        await asyncio.sleep(0)
    return task


@pytest.mark.parametrize(("before", "groups"), [(2, 2), (1, 3)])
@pytest.mark.pace(gathering=60)
async def test_behind_a_group_the_next_one_gathers_as_long_as_that_took(
    path: Path, sqlite: SQLiteStore, before: int, groups: int
) -> None:
    await sqlite.ping()
    known = commits(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as stranger:
        stranger.execute("BEGIN IMMEDIATE")
        waiting = [asyncio.create_task(sqlite.append(key, [turn(key.id)], 0)) for key in KEYS[:before]]
        await asyncio.sleep(0.3)
        stranger.execute("ROLLBACK")
    await asyncio.gather(*waiting)
    next_one = await start(sqlite.append(KEYS[8], [turn("8")], 0))
    await asyncio.gather(next_one, sqlite.append(KEYS[9], [turn("9")], 0))
    assert commits(path) - known == groups


@pytest.mark.parametrize("last", [0, 3600])
@pytest.mark.pace(longest=60)
async def test_a_turn_that_took_long_is_written_with_those_under_way(
    path: Path, sqlite: SQLiteStore, last: int
) -> None:
    await sqlite.ping()
    known = commits(path)
    await sqlite.touch(B, 0)
    one = await start(sqlite.append(A, [lasted("1", 3600)], 0))
    await asyncio.gather(one, sqlite.append(B, [lasted("2", last)], 0))
    assert commits(path) == known + 1


@pytest.mark.pace(longest=60)
async def test_a_single_write_is_committed_at_once(sqlite: SQLiteStore) -> None:
    await sqlite.touch(A, 0)
    async with asyncio.timeout(5):
        await sqlite.append(A, [lasted("1", 3600)], 0)


@pytest.mark.parametrize(
    "which",
    [
        pytest.param("longest", marks=pytest.mark.pace(share=0.03, longest=0.05)),
        pytest.param("share", marks=pytest.mark.pace(share=0.0001, longest=60)),
    ],
)
async def test_a_write_waits_no_longer_than_its_share_of_the_turns_time(sqlite: SQLiteStore, which: str) -> None:
    async with asyncio.timeout(5):
        for text in "12":
            await sqlite.touch(B, 0)
            await sqlite.append(A, [lasted(text, 600)], 0)


@pytest.mark.pace(longest=60)
async def test_the_write_with_the_shortest_wait_commits_the_others_with_it(path: Path, sqlite: SQLiteStore) -> None:
    await sqlite.ping()
    known = commits(path)
    await sqlite.touch(B, 0)
    async with asyncio.timeout(5):
        await asyncio.gather(*[sqlite.append(SessionKey(b"t", str(n)), [lasted("x", n)], 0) for n in (3600, 2, 1800)])
    assert commits(path) == known + 1


@pytest.mark.parametrize("call", ["sweep", "load"])
async def test_a_sign_of_life_at_the_last_moment_saves_a_session(sqlite: SQLiteStore, call: str) -> None:
    await sqlite.append(A, [turn("1")], 0)
    now = TTL + 1
    looking = asyncio.create_task(sqlite.sweep(now, set(), 10) if call == "sweep" else sqlite.load(A, now))
    await asyncio.sleep(0)
    await sqlite.touch(A, now)  # asked for after they looked, and before what they found can be written
    await looking
    assert await sqlite.load(A, now) == session(turn("1"))


@pytest.mark.parametrize("size", [0, 1, 512, SMALL, SMALL + 1, 200_000])
@pytest.mark.parametrize("of", [b"data: lorem ipsum ", random.Random(1).randbytes(1000)])
async def test_an_answer_comes_back_as_it_was(sqlite: SQLiteStore, size: int, of: bytes) -> None:
    body = (of * (size // len(of) + 1))[:size]
    one = turn("1")
    await sqlite.append(A, [one], 0, answer=Answer(200, "text/plain", body))
    assert await sqlite.answer(A, one.id) == Answer(200, "text/plain", body)


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
