"""What memory may hold of a store, and that it never says more than the store would."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from proxy.core.model import History, Message, Session, SessionKey, SessionState, Turn
from proxy.errors import StoreUnavailable
from proxy.stores.memory import MemoryStore
from proxy.stores.sqlite import SQLiteStore
from proxy.stores.warm import WarmStore
from tests.stores.conftest import TTL, A, full_disk, turn

KEYS = [SessionKey(b"t", str(n)) for n in range(20)]


class Inner(MemoryStore):
    """A store that counts how often it is read, and whose appends can be held up or fail."""

    def __init__(self) -> None:
        super().__init__(TTL)
        self.loads: list[SessionKey] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.fails = False

    async def load(self, key: SessionKey, now: int) -> Session:
        self.loads.append(key)
        return await super().load(key, now)

    async def append(self, key: SessionKey, turn: Turn, now: int) -> None:
        await self.gate.wait()
        if self.fails:
            raise StoreUnavailable("broken")
        await super().append(key, turn, now)

    def reads(self) -> list[SessionKey]:
        reads, self.loads = self.loads, []
        return reads


@pytest.fixture
async def inner() -> Inner:
    return Inner()


def big(size: int) -> Turn:
    return turn(asked=(Message("user", b'"' + b"x" * size + b'"'),))


async def converse(warm: WarmStore, key: SessionKey, one: Turn, now: int = 0) -> None:
    """The calls of a recorded turn."""
    await warm.load(key, now)
    await warm.touch(key, now)
    await warm.append(key, one, now)


def session(*turns: Turn) -> Session:
    return Session(SessionState.CONTINUED, History(turns))


async def test_a_session_in_use_is_read_once(inner: Inner) -> None:
    warm = WarmStore(inner, TTL, 2**20)
    turns = [turn(str(n)) for n in range(5)]
    for one in turns:
        await converse(warm, A, one)
    assert await warm.load(A, TTL) == session(*turns)
    assert inner.reads() == [A]
    assert await inner.load(A, 0) == session(*turns)


async def test_a_session_that_was_stored_before_becomes_warm_with_its_first_turn(inner: Inner) -> None:
    await inner.append(A, turn("1"), 0)
    warm = WarmStore(inner, TTL, 2**20)
    await warm.load(A, 0)
    await warm.touch(A, 5)
    assert await warm.load(A, TTL + 5) == session(turn("1"))
    assert inner.reads() == [A]


async def test_memory_is_bounded_and_the_last_used_stay(inner: Inner) -> None:
    size = turn().size + 2 * 10_000 + 1024
    warm = WarmStore(inner, TTL, 5 * size)
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
    warm = WarmStore(inner, TTL, 10_000)
    await converse(warm, KEYS[0], turn("small"))
    await converse(warm, KEYS[1], big(10_000))
    inner.reads()
    assert await warm.load(KEYS[1], 0) == session(big(10_000))
    assert await warm.load(KEYS[0], 0) == session(turn("small"))
    assert inner.reads() == [KEYS[1]]


async def test_without_memory_it_still_works(inner: Inner) -> None:
    warm = WarmStore(inner, TTL, 0)
    await converse(warm, A, turn("1"))
    await converse(warm, A, turn("2"))
    assert await warm.load(A, 0) == session(turn("1"), turn("2"))


async def test_nothing_is_served_before_it_is_committed(inner: Inner) -> None:
    warm = WarmStore(inner, TTL, 2**20)
    await converse(warm, A, turn("1"))
    inner.gate.clear()
    append = asyncio.create_task(warm.append(A, turn("2"), 0))
    await asyncio.sleep(0)
    assert await warm.load(A, 0) == session(turn("1"))
    inner.gate.set()
    await append
    assert await warm.load(A, 0) == session(turn("1"), turn("2"))


async def test_after_a_failed_append_the_store_is_asked(inner: Inner) -> None:
    warm = WarmStore(inner, TTL, 2**20)
    await converse(warm, A, turn("1"))
    inner.fails = True
    with pytest.raises(StoreUnavailable):
        await warm.append(A, turn("2"), 0)
    inner.reads()
    assert await warm.load(A, 0) == session(turn("1"))
    assert inner.reads() == [A]


async def test_after_a_cancelled_append_the_store_is_asked(tmp_path: Path) -> None:
    warm = WarmStore(await SQLiteStore.open(tmp_path / "sessions.db", TTL), TTL, 2**20)
    await converse(warm, A, turn("1"))
    append = asyncio.create_task(warm.append(A, turn("2"), 0))
    await asyncio.sleep(0)
    append.cancel()
    with pytest.raises(asyncio.CancelledError):
        await append
    assert await warm.load(A, 0) == session(turn("1"), turn("2"))  # it was under way, and is kept
    await warm.close()


async def test_a_session_that_was_not_loaded_here_is_not_made_up(inner: Inner) -> None:
    await inner.append(A, turn("1"), 0)
    warm = WarmStore(inner, TTL, 2**20)
    await warm.append(A, turn("2"), 0)
    assert await warm.load(A, 0) == session(turn("1"), turn("2"))


async def test_a_touch_that_the_disk_lost_keeps_a_warm_session_whole(tmp_path: Path) -> None:
    path = tmp_path / "sessions.db"
    warm = WarmStore(await SQLiteStore.open(path, TTL), TTL, 2**20)
    await converse(warm, A, turn("1"))
    with full_disk(path.with_name("sessions.db-wal").stat().st_size):
        await warm.touch(A, TTL)
        with pytest.raises(StoreUnavailable):
            await warm.ping()
    assert await warm.sweep(TTL + 1, set(), 10) == 0
    await warm.append(A, turn("2"), TTL + 1)
    await warm.close()
    store = await SQLiteStore.open(path, TTL)
    assert await store.load(A, TTL + 1) == session(turn("1"), turn("2"))
    await store.close()


async def test_a_sweep_frees_memory(inner: Inner) -> None:
    warm = WarmStore(inner, TTL, 2**20)
    for key in KEYS:
        await converse(warm, key, turn())
    assert await warm.sweep(TTL + 1, {KEYS[0]}, 100) == len(KEYS) - 1
    assert list(warm._entries) == [KEYS[0]]
    await warm.close()
    assert not warm._entries
