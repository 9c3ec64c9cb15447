"""What memory may hold of a store, and that it never says more than the store would."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from proxy.core.history import History, Session, fresh
from proxy.core.model import Message, SessionKey, SessionState, Turn
from proxy.errors import StoreUnavailable
from proxy.stores.cache import CachedStore
from proxy.stores.memory import MemoryStore
from proxy.stores.sqlite.store import SQLiteStore
from tests.stores.conftest import TTL, A, B, answer, full_disk, session, turn, turns

KEYS = [SessionKey(b"t", str(n)) for n in range(20)]


class Inner(MemoryStore):
    """A store that counts how often it is read, and whose reads and appends can be held up or fail."""

    def __init__(self) -> None:
        super().__init__(TTL)
        self.loads: list[SessionKey] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.answers = asyncio.Event()  # what was read is told
        self.answers.set()
        self.fails = False
        self.emptied = asyncio.Event()  # after a deletion, the log
        self.emptied.set()

    async def load(self, key: SessionKey, now: int, in_use: bool = False) -> Session:
        self.loads.append(key)
        session = await super().load(key, now, in_use)
        await self.answers.wait()
        return session

    async def append(self, key: SessionKey, turns: Sequence[Turn], now: int, *more: Any) -> None:
        await self.gate.wait()
        if self.fails:
            raise StoreUnavailable("broken")
        await super().append(key, turns, now, *more)

    async def sweep(self, *arguments: Any) -> int:
        await self.gate.wait()
        return await super().sweep(*arguments)

    async def delete(self, key: SessionKey) -> None:
        await super().delete(key)
        await self.emptied.wait()
        if self.fails:
            raise StoreUnavailable("a reader is in the way")

    def reads(self) -> list[SessionKey]:
        reads, self.loads = self.loads, []
        return reads


@pytest.fixture
async def inner() -> Inner:
    return Inner()


async def test_it_counts_cached_sessions_hits_and_misses(inner: Inner) -> None:
    store = CachedStore(inner, TTL, 10_000)
    await store.append(A, [turn()], 0)
    for _ in range(3):
        await store.load(A, 0, in_use=True)
    told = await store.stats(0)
    assert (told.sessions, told.cached, told.hits, told.misses) == (1, 1, 2, 1)
    assert 1024 < told.cached_size < 10_000


def big(size: int) -> Turn:
    return turn(asked=(Message("user", b'"' + b"x" * size + b'"'),))


async def converse(warm: CachedStore, key: SessionKey, one: Turn, now: int = 0) -> None:
    """The calls of a recorded turn."""
    await warm.load(key, now)
    await warm.touch(key, now)
    await warm.append(key, [one], now)


ONE, TWO, THREE = turns("1", "2", "3")


async def test_a_session_in_use_is_read_once(inner: Inner) -> None:
    warm = CachedStore(inner, TTL, 2**20)
    line = turns(*"12345")
    for one in line:
        await converse(warm, A, one)
    assert await warm.load(A, TTL) == session(*line)
    assert inner.reads() == [A]
    assert await inner.load(A, 0) == session(*line)


async def test_a_session_that_was_stored_before_becomes_warm_with_its_first_turn(inner: Inner) -> None:
    await inner.append(A, [ONE], 0)
    warm = CachedStore(inner, TTL, 2**20)
    await warm.load(A, 0)
    await warm.touch(A, 5)
    assert await warm.load(A, TTL + 5) == session(ONE)
    assert inner.reads() == [A]


async def test_a_cached_session_is_given_without_a_read(inner: Inner) -> None:
    store = CachedStore(inner, TTL, 10_000)
    assert store.cached(A) is None
    known = await store.load(A, 0)
    assert store.cached(A) is known and store.cached(B) is None
    await store.append(A, [turn("1")], 0)
    assert store.cached(A) == session(turn("1")) and inner.reads() == [A]
    await store.delete(A)
    assert store.cached(A) is None


async def test_memory_is_bounded_and_the_last_used_stay(inner: Inner) -> None:
    size = turn().size + 2 * 10_000 + 1024
    warm = CachedStore(inner, TTL, 5 * size)
    for key in KEYS:
        await converse(warm, key, big(10_000))
        await warm.load(KEYS[0], 0)
    inner.reads()
    for key in [KEYS[0], *KEYS[-3:]]:
        await warm.load(key, 0)
    assert inner.reads() == []
    for key in KEYS[1:-4]:
        assert await warm.load(key, 0) == session(big(10_000))
    assert inner.reads() == KEYS[1:-4]
    assert 0 < warm._size <= 5 * size
    assert warm._size == sum(entry.size for entry in warm._entries.values())


async def test_a_session_larger_than_the_memory_drives_nobody_out(inner: Inner) -> None:
    warm = CachedStore(inner, TTL, 10_000)
    await converse(warm, KEYS[0], turn("small"))
    await converse(warm, KEYS[1], big(10_000))
    inner.reads()
    assert await warm.load(KEYS[1], 0) == session(big(10_000))
    assert await warm.load(KEYS[0], 0) == session(turn("small"))
    assert inner.reads() == [KEYS[1]]


async def test_without_memory_it_still_works(inner: Inner) -> None:
    warm = CachedStore(inner, TTL, 0)
    await converse(warm, A, ONE)
    await converse(warm, A, TWO)
    assert await warm.load(A, 0) == session(ONE, TWO)


async def test_nothing_is_served_before_it_is_committed(inner: Inner) -> None:
    warm = CachedStore(inner, TTL, 2**20)
    await converse(warm, A, ONE)
    inner.gate.clear()
    append = asyncio.create_task(warm.append(A, [TWO], 0))
    await asyncio.sleep(0)
    assert await warm.load(A, 0) == session(ONE)
    inner.gate.set()
    await append
    assert await warm.load(A, 0) == session(ONE, TWO)


async def test_after_a_failed_append_the_store_is_asked(inner: Inner) -> None:
    warm = CachedStore(inner, TTL, 2**20)
    await converse(warm, A, ONE)
    inner.fails = True
    with pytest.raises(StoreUnavailable):
        await warm.append(A, [TWO], 0)
    inner.reads()
    assert await warm.load(A, 0) == session(ONE)
    assert inner.reads() == [A]


async def test_after_a_cancelled_append_the_store_is_asked(tmp_path: Path) -> None:
    warm = CachedStore(await SQLiteStore.open(tmp_path / "sessions.db", TTL), TTL, 2**20)
    await converse(warm, A, ONE)
    append = asyncio.create_task(warm.append(A, [TWO], 0))
    await asyncio.sleep(0)
    append.cancel()
    with pytest.raises(asyncio.CancelledError):
        await append
    assert await warm.load(A, 0) == session(ONE, TWO)  # it was under way, and is kept
    await warm.close()


@pytest.mark.parametrize("fails", [False, True])
async def test_what_was_read_while_a_turn_was_appended_is_read_again(inner: Inner, fails: bool) -> None:
    await inner.append(A, [ONE], 0)
    await inner.append(B, [ONE], 0)
    warm = CachedStore(inner, TTL, 2**20)
    inner.answers.clear()
    readings = [asyncio.create_task(warm.load(key, 0)) for key in (A, A, B)]
    await asyncio.sleep(0)
    inner.fails = fails
    [failed] = await asyncio.gather(warm.append(A, [TWO], 0), return_exceptions=True)
    assert isinstance(failed, StoreUnavailable) is fails
    inner.answers.set()
    now = session(ONE) if fails else session(ONE, TWO)
    assert await asyncio.gather(*readings) == [now, now, session(ONE)]
    inner.reads()
    for _ in range(2):
        assert await warm.load(A, 0, in_use=True) == now
        assert await warm.load(B, 0, in_use=True) == session(ONE)
    assert inner.reads() == []


async def test_a_read_that_begins_after_an_append_is_kept_beside_one_that_began_before(inner: Inner) -> None:
    await inner.append(A, [ONE], 0)
    warm = CachedStore(inner, TTL, 2**20)
    inner.answers.clear()
    before = asyncio.create_task(warm.load(A, 0))
    await asyncio.sleep(0)
    await warm.append(A, [TWO], 0)
    after = asyncio.create_task(warm.load(A, 0))
    await asyncio.sleep(0)
    inner.answers.set()
    assert (await before, await after) == (session(ONE, TWO), session(ONE, TWO))
    inner.reads()
    assert await warm.load(A, 0, in_use=True) == session(ONE, TWO)
    assert inner.reads() == []


async def test_a_read_that_fails_leaves_nothing_behind(inner: Inner) -> None:
    warm = CachedStore(inner, TTL, 2**20)
    inner.answers.clear()
    reading = asyncio.create_task(warm.load(A, 0))
    await asyncio.sleep(0)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert not warm._reads


async def test_a_session_in_use_is_served_from_memory_however_late_it_is(inner: Inner) -> None:
    warm = CachedStore(inner, TTL, 2**20)
    await converse(warm, A, ONE)
    inner.reads()
    assert await warm.load(A, 9 * TTL, in_use=True) == session(ONE)
    assert inner.reads() == []
    await warm.load(A, 9 * TTL)
    assert inner.reads() == [A]


async def test_what_is_dropped_is_dropped_from_memory(inner: Inner) -> None:
    warm = CachedStore(inner, TTL, 2**20)
    await converse(warm, A, ONE)
    await converse(warm, A, TWO)
    other = turn("other", ONE)
    before = warm._size
    await warm.append(A, [other], 0, ["turn_2"])
    inner.reads()
    assert await warm.load(A, 0) == session(ONE, other) == await inner.load(A, 0)
    assert inner.reads() == [A]  # the one just above
    assert warm._size == before - TWO.size + other.size


async def test_a_session_that_was_not_loaded_here_is_not_made_up(inner: Inner) -> None:
    await inner.append(A, [ONE], 0)
    warm = CachedStore(inner, TTL, 2**20)
    await warm.append(A, [TWO], 0)
    assert await warm.load(A, 0) == session(ONE, TWO)


async def test_a_touch_that_the_disk_lost_keeps_a_warm_session_whole(tmp_path: Path) -> None:
    path = tmp_path / "sessions.db"
    warm = CachedStore(await SQLiteStore.open(path, TTL), TTL, 2**20)
    await converse(warm, A, ONE)
    with full_disk(path.with_name("sessions.db-wal").stat().st_size):
        await warm.touch(A, TTL)
        with pytest.raises(StoreUnavailable):
            await warm.ping()
    assert await warm.sweep(TTL + 1, set(), 10) == 0
    await warm.append(A, [TWO], TTL + 1)
    await warm.close()
    store = await SQLiteStore.open(path, TTL)
    assert await store.load(A, TTL + 1) == session(ONE, TWO)
    await store.close()


async def test_a_deletion_frees_memory_of_that_session_alone(inner: Inner) -> None:
    warm = CachedStore(inner, TTL, 2**20)
    for key in (A, B):
        await converse(warm, key, ONE)
    before = warm._size
    await warm.delete(A)
    assert warm._size == before / 2
    inner.reads()
    assert await warm.load(B, 0) == session(ONE)
    assert inner.reads() == []
    assert await warm.load(A, 0) == fresh()


@pytest.mark.parametrize("how", ["fails", "is cancelled"])
async def test_after_a_deletion_that_did_not_end_well_the_store_is_asked(inner: Inner, how: str) -> None:
    warm = CachedStore(inner, TTL, 2**20)
    await converse(warm, A, ONE)
    inner.emptied.clear()
    deletion = asyncio.create_task(warm.delete(A))
    await asyncio.sleep(0)
    if how == "fails":
        inner.fails = True
        inner.emptied.set()
    else:
        deletion.cancel()
    with pytest.raises((StoreUnavailable, asyncio.CancelledError)):
        await deletion
    assert await warm.load(A, 0) == fresh()


@pytest.mark.parametrize("read_first", [False, True])
async def test_what_was_read_beside_a_deletion_is_read_again(inner: Inner, read_first: bool) -> None:
    await inner.append(A, [ONE], 0)
    warm = CachedStore(inner, TTL, 2**20)
    inner.answers.clear()
    inner.emptied.clear()
    reading = asyncio.create_task(warm.load(A, 0)) if read_first else None
    await asyncio.sleep(0)
    deletion = asyncio.create_task(warm.delete(A))
    await asyncio.sleep(0)
    reading = reading or asyncio.create_task(warm.load(A, 0))
    await asyncio.sleep(0)
    inner.emptied.set()
    await deletion
    inner.answers.set()
    assert await reading == fresh()
    assert await warm.load(A, 0, in_use=True) == fresh()


@pytest.mark.parametrize("kept_before", [False, True])
async def test_an_append_beside_a_deletion_brings_nothing_back(inner: Inner, kept_before: bool) -> None:
    """Whichever comes first below: what memory says is what the store says."""
    warm = CachedStore(inner, TTL, 2**20)
    await converse(warm, A, ONE)
    (inner.emptied if kept_before else inner.gate).clear()
    deletion = asyncio.create_task(warm.delete(A))
    await asyncio.sleep(0)
    append = asyncio.create_task(warm.append(A, [TWO], 0))
    await asyncio.sleep(0)
    inner.emptied.set()
    await deletion
    inner.gate.set()
    await append
    assert await warm.load(A, 0, in_use=True) == await inner.load(A, 0) == session(TWO)


async def test_answers_are_those_of_the_store_behind(inner: Inner) -> None:
    warm = CachedStore(inner, TTL, 2**20)
    await warm.append(A, [ONE], 0, answer=answer())
    assert await warm.answer(A, ONE.id) == await inner.answer(A, ONE.id) == answer()


async def test_a_sweep_frees_memory(inner: Inner) -> None:
    warm = CachedStore(inner, TTL, 2**20)
    for key in KEYS:
        await converse(warm, key, turn())
    assert await warm.sweep(TTL + 1, {KEYS[0]}, 100) == len(KEYS) - 1
    assert list(warm._entries) == [KEYS[0]]
    await warm.close()
    assert not warm._entries


@pytest.mark.parametrize("late", [False, True])
async def test_what_is_read_while_a_purge_goes_on_is_read_again(inner: Inner, late: bool) -> None:
    """Whether the read ends before the purge or after it."""
    warm = CachedStore(inner, TTL, 2**20)
    await inner.append(A, [ONE], 0)
    inner.gate.clear()
    purge = asyncio.create_task(warm.sweep(10, set(), 10, 5))
    await asyncio.sleep(0)
    if late:
        inner.answers.clear()
    read = asyncio.create_task(warm.load(A, 10))
    await asyncio.sleep(0)
    inner.gate.set()
    assert await purge == 1
    inner.answers.set()
    assert (await read).state is (SessionState.EXPIRED if late else SessionState.CONTINUED)
    assert await warm.load(A, 10) == Session(SessionState.EXPIRED, History())
