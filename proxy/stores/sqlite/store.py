"""Stores sessions and turns in one SQLite file.

One connection writes and checkpoints (see `lock.py`). A writer task takes all that waits and commits it in one
transaction with WAL and `synchronous=FULL`: a power cut takes nothing that was acknowledged, and a group of turns costs
one fsync. All reads use a connection that cannot write. Knows no queue, dialect or HTTP.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import aiosqlite

from proxy.core.history import Session, fresh
from proxy.core.learned import LIMIT_KEPT, LearnedLimits
from proxy.core.model import Answer, ModelKey, SessionKey, SessionState, Turn
from proxy.errors import StoreUnavailable
from proxy.stores.base import StoreStats
from proxy.stores.rules import EXPIRED_KEPT, state_at
from proxy.stores.sqlite import sql
from proxy.stores.sqlite.files import no_space
from proxy.stores.sqlite.lock import Lock
from proxy.stores.sqlite.migration import migrate
from proxy.stores.sqlite.remedy import remedy, unavailable
from proxy.stores.sqlite.rows import history_of, row_of, unpacked
from proxy.stores.sqlite.snapshot import uri
from proxy.stores.sqlite.write_queue import (
    GROUP,
    PACE,
    GroupCommitConnection,
    Pace,
    Statement,
    Write,
    WriteQueue,
    merged,
)

_PRAGMAS = (
    "PRAGMA journal_mode=WAL",
    "PRAGMA synchronous=FULL",  # NORMAL loses acknowledged commits at a power cut
    "PRAGMA secure_delete=ON",
)
REWRITTEN = 16 << 20  # bytes up to which a database is written anew after a deletion: a fifth of a second
BUSY = 5000  # ms a commit waits for a stranger who locks the database


class SQLiteStore:
    """The store on disk: one connection writes, in groups, and another reads."""

    def __init__(
        self,
        opened: AsyncExitStack,
        writer: aiosqlite.Connection,
        reader: aiosqlite.Connection,
        path: Path,
        ttl: int,
        pace: Pace,
        turn_id: int,
        learned: LearnedLimits,
    ) -> None:
        self._opened, self._writer, self._reader = opened, writer, reader
        self._path, self._ttl, self._pace = path, ttl, pace
        self._turn_id = turn_id  # the newest; the one writer counts
        self.learned = learned
        self._queue = WriteQueue()
        self._touches: dict[SessionKey, int] = {}  # not written yet
        self._touched = 0.0  # when some were
        self._loop, self._closed = asyncio.get_running_loop(), False
        self._task = asyncio.create_task(self._run())

    @classmethod
    async def open(cls, path: Path, ttl: int, pace: Pace = PACE) -> SQLiteStore:
        """Open or make the database. Raises StoreLocked where another process writes to it, and
        StoreUnavailable with a sentence on what is wrong otherwise."""
        try:
            async with AsyncExitStack() as opening:
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                opening.callback(Lock(path).release)
                os.close(os.open(path, os.O_CREAT | os.O_CLOEXEC, 0o600))
                writing = aiosqlite.connect(path, isolation_level=None, factory=GroupCommitConnection)
                writer = await opening.enter_async_context(writing)
                for pragma in _PRAGMAS:
                    await writer.execute(pragma)
                await migrate(writer)
                for statement in sql.INSERT_TURN_SETUP:
                    await writer.execute(statement)
                [(newest,)] = await writer.execute_fetchall("SELECT max(id) FROM turns")
                reading = aiosqlite.connect(uri(path), uri=True, isolation_level=None)
                reader = await opening.enter_async_context(reading)
                await reader.execute("PRAGMA query_only=ON")
                refusals, limits = [await reader.execute_fetchall(each) for each in (sql.REFUSALS, sql.LIMITS)]
                learned = LearnedLimits(refusals, limits)
                return cls(opening.pop_all(), writer, reader, path, ttl, pace, newest or 0, learned)
        except OSError as error:
            raise StoreUnavailable(f"Cannot use {path}: {error.strerror}. {remedy(error)}") from error
        except sqlite3.Error as error:
            say = no_space(path) or remedy(error)
            raise StoreUnavailable(f"Cannot open the database {path}: {error}. {say}") from error

    @property
    def holds_turns(self) -> bool:
        return self._turn_id > 0

    async def seal(self, seal: bytes) -> bytes:
        """The stored seal of this database. `seal` is stored first where there is none, or no turn yet."""
        await self._write([(sql.SEALED if self.holds_turns else sql.RESEAL, [(seal,)])])
        return bytes((await self._read(sql.SEAL, ()))[0][0])

    def cached(self, key: SessionKey) -> Session | None:
        return None

    async def load(self, key: SessionKey, now: int, in_use: bool = False) -> Session:
        found = await self._read(sql.SESSION, (key.tenant, key.id))
        if not found:
            return fresh()
        id, tip, touched, emptied = found[0]
        touched = touched if emptied else self._touches.get(key, touched)
        state = state_at(touched if in_use else now, touched, bool(emptied), self._ttl)
        if state is SessionState.CONTINUED:
            return Session(state, history_of(tip, await self._read(sql.TURNS, (id,))), touched)
        if emptied:
            return fresh(state)
        await self._write([(each, [(id, touched)]) for each in (sql.EMPTY, sql.WIPE, sql.WIPE_ANSWERS)])
        return await self.load(key, now)

    async def append(
        self,
        key: SessionKey,
        turns: Sequence[Turn],
        now: int,
        drop: Sequence[str] = (),
        answer: Answer | None = None,
    ) -> None:
        last = len(turns)
        rows = [
            row_of(self._turn_id + n, key, turn, now, answer if n == last else None) for n, turn in enumerate(turns, 1)
        ]
        self._turn_id += last
        self._touches.pop(key, None)
        statements: list[Statement] = [(sql.INSERT_TURN, rows)]
        if drop:
            gone = [(name, key.tenant, key.id) for name in drop]
            statements += [(sql.DROP_ANSWERS, gone), (sql.DROP, gone)]
        # A sign of life that is not written yet is mostly of another turn, which began within `touching` and goes on.
        took = (turns[-1].ended - turns[-1].started) / 1000
        await self._write(statements, min(self._pace.longest, self._pace.share * took) if self._touches else 0.0)

    async def answer(self, key: SessionKey, turn: str) -> Answer | None:
        found = await self._read(sql.ANSWER, (turn, key.tenant, key.id))
        return Answer(found[0][0], found[0][1], unpacked(found[0][2])) if found else None

    async def delete(self, key: SessionKey) -> None:
        await self._write([(each, [(key.tenant, key.id)]) for each in sql.DELETE])
        await self.scrub()

    async def scrub(self, size: int = REWRITTEN) -> None:
        """Remove deleted content from the files; rewrites a database of up to `size` bytes. Raises StoreUnavailable."""
        await self._write([], rewrite=size)
        until = self._loop.time() + self._pace.emptying
        while not await self._write([], truncate=True):  # the log holds the content, too, until no reader is in the way
            if self._loop.time() >= until:
                raise StoreUnavailable("It is deleted, but a reader keeps its content in the log. Delete it again.")
            await asyncio.sleep(0.05)

    async def learn(self, upstream: str, member: str) -> None:
        self.learned.refusal(upstream, member)
        self._enqueue([(sql.LEARN, [(upstream, member)])]).done.add_done_callback(_retrieved)

    async def learn_limit(self, of: ModelKey, tokens: int, now: int) -> None:
        self.learned.limited(of, tokens, now)
        noted: list[Statement] = [(sql.EXPIRE_LIMITS, [(now - LIMIT_KEPT,)]), (sql.LIMIT, [(*of, tokens, now)])]
        self._enqueue(noted).done.add_done_callback(_retrieved)

    async def touch(self, key: SessionKey, now: int) -> None:
        self._touches[key] = now  # with the next commit: a transaction of its own would cost as much as the turn's

    async def sweep(self, now: int, in_use: AbstractSet[SessionKey], limit: int, idle: int | None = None) -> int:
        before = now - (self._ttl if idle is None else idle)
        stale = await self._read(sql.STALE, (before, limit + len(in_use)))
        used = in_use | self._touches.keys()
        gone = [(id, touched) for id, touched, *key in stale if SessionKey(*key) not in used][:limit]
        forgotten = now - self._ttl - EXPIRED_KEPT
        await self._write(
            [*[(each, gone) for each in (sql.EMPTY, sql.WIPE, sql.WIPE_ANSWERS)], (sql.FORGET, [(forgotten,)])]
        )
        return len(gone)

    async def ping(self) -> None:
        await self._write([(sql.HEARTBEAT, [()])])

    async def stats(self, now: int) -> StoreStats:
        [(sessions,)] = await self._read(sql.COUNT_SESSIONS, (now - self._ttl,))
        files = [self._path, self._path.with_name(self._path.name + "-wal")]
        return StoreStats(sessions, sum([file.stat().st_size for file in files if file.exists()]))

    async def close(self) -> None:
        """Commit what waits, then close."""
        if self._touches:
            self._enqueue([]).done.add_done_callback(_retrieved)
        self._closed = True
        self._queue.call()
        await self._task
        await self._opened.aclose()

    async def _read(self, statement: str, parameters: Any) -> list[Any]:
        try:
            # In one step: a cursor left open by a cancelled caller would hold all later reads at its snapshot.
            return list(await self._reader.execute_fetchall(statement, parameters))
        except sqlite3.Error as error:
            raise unavailable(error) from error

    def _enqueue(self, statements: list[Statement], wait: float = 0.0, **more: Any) -> Write:
        if self._closed:
            raise StoreUnavailable("The store is closed: the proxy is stopping. Try again in a moment.")
        write = Write(statements, self._loop.create_future(), **more)
        self._queue.add(write, wait)
        return write

    async def _write(self, statements: list[Statement], wait: float = 0.0, **more: Any) -> bool:
        """Write, and return only once that has succeeded or failed, also where the caller is cancelled. `wait`: the
        seconds that it may wait for others."""
        write = self._enqueue(statements, wait, **more)
        try:
            return await write.done
        except asyncio.CancelledError:
            if not write.settled:  # the future is cancelled with the caller, the commit goes on
                write.done = self._loop.create_future()
                write.done.add_done_callback(_retrieved)
                await asyncio.wait([write.done])
            raise

    async def _run(self) -> None:
        """Commit a single write at once. After a group, wait as long as it took, so that the next is a group, too."""
        while self._queue or not self._closed:
            group = await self._queue.take_all()
            begun = self._loop.time()
            if group:
                await self._commit(group)
            if len(group) > 1:
                await asyncio.sleep(min(self._pace.gathering, self._loop.time() - begun))

    async def _commit(self, group: list[Write]) -> None:
        statements = merged(group)
        touches = self._due_touches(bool(statements) and statements.keys() == {sql.INSERT_TURN})
        if touches:
            rows = [(now, key.tenant, key.id) for key, now in touches.items()]
            statements = {sql.TOUCH: rows, **statements}
        try:
            await self._writer.executemany(GROUP, statements)
            if limit := max([write.rewrite for write in group]):
                await self._rewritten(limit)
            truncated = any([write.truncate for write in group]) and await self._emptied()
        except Exception as error:
            self._touches = {**touches, **self._touches}
            for write in group:
                write.settle(unavailable(error))
        else:
            for write in group:
                write.settle(truncated)

    def _due_touches(self, may_wait: bool) -> dict[SessionKey, int]:
        """The signs of life to be written now: beside turns alone not each time, as most of them are of turns in
        flight, which will tell more."""
        now = self._loop.time()
        if may_wait and now - self._touched < self._pace.touching:
            return {}
        touches, self._touches, self._touched = self._touches, {}, now
        return touches

    async def _rewritten(self, limit: int) -> None:
        """SQLite leaves copies behind where it moves rows between pages, `secure_delete` or not. Only a new file is
        without them; in a large database everybody would wait too long for it."""
        asked = [self._writer.execute_fetchall(f"PRAGMA {name}") for name in ("page_count", "page_size")]
        [(pages,)], [(size,)] = [await each for each in asked]
        if pages * size <= limit:
            with suppress(sqlite3.Error):  # what is committed stands
                await self._writer.execute("VACUUM")

    async def _emptied(self) -> bool:
        """Whether the log could be emptied. Waits for no reader: every commit would wait with it."""
        busy = True
        await self._writer.execute("PRAGMA busy_timeout=0")
        with suppress(sqlite3.Error):  # what is committed stands
            [(busy, *_)] = await self._writer.execute_fetchall("PRAGMA wal_checkpoint(TRUNCATE)")
        await self._writer.execute(f"PRAGMA busy_timeout={BUSY}")
        return not busy


def _retrieved(done: asyncio.Future[bool]) -> None:
    done.exception()  # nobody waits for it
