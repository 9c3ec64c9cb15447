"""Sessions and turns in one SQLite file.

One connection in the world writes and checkpoints (see `lock.py`): a writer task takes what
waits in its queue and commits it in one transaction, WAL and `synchronous=FULL`, so a power
cut takes nothing that was acknowledged, and a group costs one fsync. Everybody else reads
through a connection that cannot write. Knows nothing of lines, dialects or HTTP.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import aiosqlite

from proxy.core.members import dumps, elements, loads
from proxy.core.model import History, Message, Session, SessionKey, SessionState, Turn, TurnState, fresh
from proxy.errors import StoreUnavailable
from proxy.stores.lock import Lock
from proxy.stores.rules import EXPIRED_KEPT, state_at

_PRAGMAS = (
    "PRAGMA journal_mode=WAL",
    "PRAGMA synchronous=FULL",  # NORMAL loses acknowledged commits at a power cut
    "PRAGMA secure_delete=ON",
)
_SESSION = "SELECT id, tip, touched, emptied FROM sessions WHERE tenant = ? AND session = ?"
_HISTORY = """
WITH RECURSIVE line (id, parent) AS (
    SELECT id, parent FROM turns WHERE id = :tip AND session = :session
    UNION ALL SELECT t.id, t.parent FROM turns t JOIN line ON t.id = line.parent
)
SELECT name, state, system, asked, roles, reply, echo, model, finish_reason, usage, started, ended
FROM turns WHERE id IN (SELECT id FROM line) ORDER BY id
"""
_APPEND = (
    "INSERT OR IGNORE INTO sessions (tenant, session, touched) VALUES (:tenant, :session, :touched)",
    """
INSERT INTO turns (id, session, parent, name, state, system, asked, roles, reply, echo, model, finish_reason,
                   usage, started, ended)
SELECT :turn, id, tip, :name, :state, :system, :asked, :roles, :reply, :echo, :model, :finish_reason,
       :usage, :started, :ended FROM sessions WHERE tenant = :tenant AND session = :session
""",
    "UPDATE sessions SET tip = :turn, touched = :touched, emptied = 0 WHERE tenant = :tenant AND session = :session",
)
_TOUCH = "UPDATE sessions SET touched = ? WHERE tenant = ? AND session = ? AND emptied = 0"
# What was read before a write is waited for may have changed since: only the session that was seen goes.
_EMPTY = "UPDATE sessions SET tip = NULL, emptied = 1 WHERE id = ? AND touched = ?"
_WIPE = "DELETE FROM turns WHERE session IN (SELECT id FROM sessions WHERE id = ? AND touched = ? AND emptied = 1)"
_STALE = "SELECT id, touched, tenant, session FROM sessions WHERE touched < ? AND emptied = 0 ORDER BY touched LIMIT ?"
_FORGET = "DELETE FROM sessions WHERE emptied = 1 AND touched < ?"
_BEAT = "UPDATE pulse SET beat = beat + 1"

Statement = tuple[str, list[Any]]


@dataclass(slots=True)
class _Write:
    """Statements that stand or fall together, and who waits for them."""

    statements: list[Statement]
    done: asyncio.Future[None]


class SQLiteStore:
    def __init__(
        self,
        opened: AsyncExitStack,
        writer: aiosqlite.Connection,
        reader: aiosqlite.Connection,
        ttl: int,
        turn_id: int,
    ) -> None:
        self._opened = opened
        self._writer = writer
        self._reader = reader
        self._ttl = ttl
        self._turn_id = turn_id  # the newest; the one writer counts
        self._queue: asyncio.Queue[_Write | None] = asyncio.Queue()
        self._closed = False
        self._task = asyncio.create_task(self._run())

    @classmethod
    async def open(cls, path: Path, ttl: int) -> SQLiteStore:
        """Open or make the database. Raises StoreLocked where another process writes to it, and
        StoreUnavailable with a sentence on what is wrong otherwise."""
        try:
            async with AsyncExitStack() as opening:
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                opening.callback(Lock(path).release)
                os.close(os.open(path, os.O_CREAT | os.O_CLOEXEC, 0o600))
                writer = await opening.enter_async_context(aiosqlite.connect(path, isolation_level=None))
                for pragma in _PRAGMAS:
                    await writer.execute(pragma)
                await migrate(writer)
                (newest,) = await _one(writer, "SELECT max(id) FROM turns")
                uri = f"file:{_quoted(path)}?mode=ro"
                reader = await opening.enter_async_context(aiosqlite.connect(uri, uri=True, isolation_level=None))
                await reader.execute("PRAGMA query_only=ON")
                return cls(opening.pop_all(), writer, reader, ttl, newest or 0)
        except OSError as error:
            raise StoreUnavailable(f"Cannot use {path}: {error.strerror}. Check the folder and its rights.") from error
        except sqlite3.Error as error:
            raise StoreUnavailable(f"Cannot open the database {path}: {error}.") from error

    @property
    def holds_turns(self) -> bool:
        return self._turn_id > 0

    async def load(self, key: SessionKey, now: int) -> Session:
        found = await self._read(_SESSION, (key.tenant, key.id))
        if not found:
            return fresh()
        id, tip, touched, emptied = found[0]
        state = state_at(now, touched, bool(emptied), self._ttl)
        if state is SessionState.CONTINUED:
            turns = await self._read(_HISTORY, {"tip": tip, "session": id})
            return Session(state, History(tuple([_turn(row) for row in turns])))
        if emptied:
            return fresh(state)
        await self._write([(_EMPTY, [(id, touched)]), (_WIPE, [(id, touched)])])
        return await self.load(key, now)

    async def append(self, key: SessionKey, turn: Turn, now: int) -> None:
        self._turn_id += 1
        row = _row(self._turn_id, key, turn, now)
        await self._write([(sql, [row]) for sql in _APPEND])

    async def touch(self, key: SessionKey, now: int) -> None:
        self._enqueue([(_TOUCH, [(now, key.tenant, key.id)])])

    async def sweep(self, now: int, in_use: AbstractSet[SessionKey], limit: int) -> int:
        stale = await self._read(_STALE, (now - self._ttl, limit + len(in_use)))
        gone = [(id, touched) for id, touched, *key in stale if SessionKey(*key) not in in_use][:limit]
        await self._write([(_EMPTY, gone), (_WIPE, gone), (_FORGET, [(now - self._ttl - EXPIRED_KEPT,)])])
        return len(gone)

    async def ping(self) -> None:
        await self._write([(_BEAT, [()])])

    async def close(self) -> None:
        """Commit what waits, then close."""
        self._closed = True
        self._queue.put_nowait(None)
        await self._task
        await self._opened.aclose()

    async def _read(self, sql: str, parameters: Any) -> list[Any]:
        try:
            async with self._reader.execute(sql, parameters) as cursor:
                return list(await cursor.fetchall())
        except sqlite3.Error as error:
            raise _unavailable(error) from error

    def _enqueue(self, statements: list[Statement]) -> asyncio.Future[None]:
        if self._closed:
            raise StoreUnavailable("The store is closed.")
        write = _Write(statements, asyncio.get_running_loop().create_future())
        write.done.add_done_callback(_retrieved)
        self._queue.put_nowait(write)
        return write.done

    async def _write(self, statements: list[Statement]) -> None:
        """Whether it is written is settled on return, also where the caller is cancelled."""
        done = self._enqueue(statements)
        try:
            await asyncio.shield(done)
        except asyncio.CancelledError:
            await asyncio.wait([done])
            raise

    async def _run(self) -> None:
        write = await self._queue.get()
        while write:
            group = [write]
            while not self._queue.empty() and (write := self._queue.get_nowait()):
                group.append(write)
            await self._commit(group)
            write = write and await self._queue.get()

    async def _commit(self, group: list[_Write]) -> None:
        try:
            await self._writer.execute("BEGIN IMMEDIATE")
            for sql, rows in _merged(group):
                await self._writer.executemany(sql, rows)
            await self._writer.execute("COMMIT")
        except Exception as error:
            with suppress(sqlite3.Error):  # an I/O error has rolled it back already
                await self._writer.execute("ROLLBACK")
            for write in group:
                write.done.set_exception(_unavailable(error))
        else:
            for write in group:
                write.done.set_result(None)


async def migrate(connection: aiosqlite.Connection) -> None:
    """Bring a database to the newest schema, one numbered file per transaction; refuse a newer one."""
    (version,) = await _one(connection, "PRAGMA user_version")
    steps = _steps()
    if version > len(steps):
        raise StoreUnavailable(
            f"The database has schema {version}; this program knows up to {len(steps)}. Install a newer version."
        )
    for number in range(version + 1, len(steps) + 1):
        script = f"BEGIN IMMEDIATE;\n{steps[number - 1]}\nPRAGMA user_version={number};\nCOMMIT;"
        await connection.executescript(script)


def _steps() -> list[str]:
    folder = resources.files("proxy.stores") / "schema" / "sqlite"
    return [file.read_text() for file in sorted(folder.iterdir(), key=lambda file: file.name) if file.name[0].isdigit()]


async def _one(connection: aiosqlite.Connection, sql: str) -> Any:
    async with connection.execute(sql) as cursor:
        return await cursor.fetchone()


def _merged(group: Iterable[_Write]) -> Iterable[Statement]:
    """Equal statements of a group as one executemany. Two writes of one session share a group only
    where nobody waited for the first: a touch, which belongs before all others."""
    merged: dict[str, list[Any]] = {}
    for write in group:
        for sql, rows in write.statements:
            merged.setdefault(sql, []).extend(rows)
    return sorted(merged.items(), key=lambda statement: statement[0] != _TOUCH)


def _row(id: int, key: SessionKey, turn: Turn, now: int) -> dict[str, Any]:
    return {
        "tenant": key.tenant,
        "session": key.id,
        "touched": now,
        "turn": id,
        "name": turn.id,
        "state": turn.state,
        "system": turn.system,
        "asked": b"[" + b",".join([message.raw for message in turn.asked]) + b"]",
        "roles": dumps([message.role for message in turn.asked]).decode(),
        "reply": turn.reply,
        "echo": turn.echo.raw if turn.echo else None,
        "model": _text(turn.model),
        "finish_reason": _text(turn.finish_reason),
        "usage": turn.usage,
        "started": turn.started,
        "ended": turn.ended,
    }


def _text(value: str | None) -> str | None:
    """Text as SQLite takes it. A lone surrogate has no UTF-8, and would fail the whole group."""
    return value and value.encode(errors="backslashreplace").decode()


def _turn(row: Any) -> Turn:
    name, state, system, asked, roles, reply, echo, model, finish_reason, usage, started, ended = row
    raws = [bytes(raw) for raw in elements(asked)]
    return Turn(
        id=name,
        system=system,
        asked=tuple([Message(role, raw) for role, raw in zip(loads(roles.encode()), raws, strict=True)]),
        reply=reply,
        echo=Message("assistant", echo) if echo is not None else None,
        state=TurnState(state),
        model=model,
        finish_reason=finish_reason,
        usage=usage,
        started=started,
        ended=ended,
    )


def _quoted(path: Path) -> str:
    """A path as SQLite's URIs want it."""
    return str(path).replace("%", "%25").replace("?", "%3f").replace("#", "%23")


def _retrieved(done: asyncio.Future[None]) -> None:
    done.exception()  # nobody may be waiting for a touch


def _unavailable(error: BaseException) -> StoreUnavailable:
    return StoreUnavailable(f"The store cannot be used: {error}. Check the disk; nothing was recorded.")
