"""What a stranger sees of a database and the files beside it."""

from __future__ import annotations

import asyncio
import sqlite3
import struct
from collections.abc import Coroutine, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from proxy.core.model import SessionKey
from proxy.stores.sqlite.store import SQLiteStore

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


async def start(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """Begin it, and let it go so far that it would be on its way if it did not wait."""
    task = asyncio.create_task(work)
    for _ in range(20):
        await asyncio.sleep(0)
    return task
