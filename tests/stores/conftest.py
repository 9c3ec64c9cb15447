"""The stores under test, and small turns to put into them."""

from __future__ import annotations

import os
import resource
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from proxy.core.history import History, Session
from proxy.core.model import Answer, Message, SessionKey, SessionState, Turn
from proxy.stores.base import Store
from proxy.stores.cache import CachedStore
from proxy.stores.memory import MemoryStore
from proxy.stores.sqlite.store import SQLiteStore
from proxy.stores.sqlite.write_queue import PACE, Pace

TTL = 1000  # ms
DAY = 24 * 3600 * 1000
KINDS = ("memory", "sqlite", "warm")
A, B = SessionKey(b"tenant a", "s"), SessionKey(b"tenant b", "s")

Open = Callable[[], Awaitable[SQLiteStore]]


def turn(text: str = "hello", parent: Turn | None = None, **members: Any) -> Turn:
    """A turn behind another one, or the first of its session."""
    asked = (Message("user", b'{"role":"user","content":"%b"}' % text.encode()),)
    echo = Message("assistant", b'{"role":"assistant","content":"re %b"}' % text.encode())
    told = {"id": "turn_" + text, "system": None, "asked": asked, "reply": echo.raw, "rendered": echo}
    return Turn(**{**told, "parent": parent and parent.id, **members})


def turns(*texts: str) -> list[Turn]:
    """Turns each of which follows the one before."""
    made: list[Turn] = []
    for text in texts:
        made.append(turn(text, made[-1] if made else None))
    return made


def session(*turns: Turn) -> Session:
    """A session that stands at the last of these turns."""
    return Session(SessionState.CONTINUED, History(turns, turns[-1].id))


def answer(text: str = "hello") -> Answer:
    """What a client was given of a turn."""
    return Answer(200, "text/event-stream", b"data: %b\n\n" % text.encode())


async def opened(kind: str, path: Path) -> Store:
    if kind == "memory":
        return MemoryStore(TTL)
    store = await SQLiteStore.open(path, TTL)
    return CachedStore(store, TTL, 2**20) if kind == "warm" else store


@dataclass
class Shelf:
    """A store, and a way to see what it would say after a restart."""

    kind: str
    path: Path
    store: Store

    async def reopen(self) -> None:
        """A new process' view of the same database; what is in memory only has none and stays."""
        if self.kind != "memory":
            await self.store.close()
            self.store = await opened(self.kind, self.path)


@pytest.fixture(params=KINDS)
async def shelf(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Shelf]:
    path = tmp_path / "sessions.db"
    shelf = Shelf(request.param, path, await opened(request.param, path))
    yield shelf
    await shelf.store.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "sessions.db"


@pytest.fixture
async def sqlite(request: pytest.FixtureRequest, path: Path) -> AsyncIterator[SQLiteStore]:
    """With its usual pace, or as a `pace` mark says."""
    pace = request.node.get_closest_marker("pace")
    store = await SQLiteStore.open(path, TTL, Pace(**pace.kwargs) if pace else PACE)
    yield store
    await store.close()


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """No file of this process can grow beyond `size` bytes, by the kernel's own limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def careless_umask() -> Iterator[None]:
    """The least careful umask there is: modes must not depend on it."""
    before = os.umask(0)
    yield
    os.umask(before)
