"""Disks and threads that fail under the store on disk, and how writes are grouped: who is told, and what goes on."""

from __future__ import annotations

import asyncio
import random
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from proxy.core.learned import LIMIT_KEPT
from proxy.core.model import Answer, Message, ModelKey, SessionKey, Turn
from proxy.errors import StoreUnavailable
from proxy.stores.sqlite.rows import SMALL
from proxy.stores.sqlite.store import SQLiteStore
from tests.stores.conftest import TTL, A, B, full_disk, session, turn, turns
from tests.support.database import (
    KEYS,
    change,
    commits,
    look,
    start,
    texts,
    wal,
)


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
