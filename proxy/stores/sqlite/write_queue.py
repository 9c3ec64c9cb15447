"""Queues writes and commits them in groups: the statements of several callers as one transaction, in one call.

How a whole transaction goes through aiosqlite in one call: aiosqlite runs each method of a connection on the thread of
that connection. It has none that runs a function of ours there, so `BEGIN`, each statement and `COMMIT` would each be a
way to the thread and back. `executemany` hands on its two arguments without a look at them. So the store calls it with
the sentinel GROUP in place of SQL, and with the statements of a transaction in place of rows. On the thread our
subclass of the connection, `GroupCommitConnection`, knows the sentinel and runs the transaction. Any other SQL goes the
usual way. A thread and a connection of our own in place of aiosqlite gained nothing (decision 67).

Knows SQL by name only, no session, and not how long a caller may wait.
"""

from __future__ import annotations

import asyncio
import math
import sqlite3
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

from proxy.errors import StoreUnavailable
from proxy.stores.sqlite import sql
from proxy.stores.sqlite.rows import packed

GROUP = "a transaction of ours"  # the sentinel; no SQL
TOGETHER = 32  # turns in a statement
_PLACES = f"({', '.join('?' * len(sql.COLUMNS.split(',')))})"

Statement = tuple[str, Sequence[Any]]


class Pace(NamedTuple):
    """How long, in seconds, a write waits for others to share its transaction, and a deletion for readers that keep its
    content in the log."""

    gathering: float = 0.002  # turns behind a group, at most: about what a commit takes
    share: float = 0.03  # of the time that a turn took itself
    longest: float = 0.02  # a turn, at most
    touching: float = 1.0  # signs of life, beside turns
    emptying: float = 5.0


PACE = Pace()


@dataclass(slots=True)
class Write:
    """Statements that are committed together or not at all, and the future of their caller."""

    statements: list[Statement]
    done: asyncio.Future[bool]
    rewrite: int = 0  # the file is written anew where it has no more bytes
    truncate: bool = False  # then the log is emptied, and `done` says whether it could be

    settled: bool = False

    def settle(self, outcome: bool | StoreUnavailable) -> None:
        self.settled = True
        if self.done.done():  # with its caller, which is being cancelled
            return
        if isinstance(outcome, bool):
            self.done.set_result(outcome)
        else:
            self.done.set_exception(outcome)


class WriteQueue:
    """The writes that wait for the writer task. `add` wakes it at once, or after the seconds that a write may wait."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._writes: list[Write] = []
        self._called = asyncio.Event()
        self._due = math.inf
        self._alarm: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._writes)

    def add(self, write: Write, seconds: float = 0.0) -> None:
        """`seconds`: how long it may wait for others."""
        self._writes.append(write)
        if seconds <= 0:
            self.call()
        elif (due := self._loop.time() + seconds) < self._due:
            self._put_off(due)

    def call(self) -> None:
        """Wake the writer task."""
        self._called.set()

    async def take_all(self) -> list[Write]:
        """For the writer task: wait to be woken, and take all writes."""
        await self._called.wait()
        self._called.clear()
        self._put_off(math.inf)
        taken, self._writes = self._writes, []
        return taken

    def _put_off(self, due: float) -> None:
        if self._alarm:
            self._alarm.cancel()
        self._due = due
        self._alarm = self._loop.call_at(due, self.call) if due < math.inf else None


class GroupCommitConnection(sqlite3.Connection):
    """A connection that runs a whole transaction in one call of executemany: each hop to its thread costs as much as a
    row."""

    def executemany(self, statement: str, parameters: Any, /) -> sqlite3.Cursor:
        if statement != GROUP:
            return super().executemany(statement, parameters)
        if parameters.keys() == {sql.INSERT_TURN} and len(rows := parameters[sql.INSERT_TURN]) <= TOGETHER:
            return self._each(sql.INSERT_TURN, rows)  # a statement is a transaction
        try:
            self.execute("BEGIN IMMEDIATE")
            for each, rows in parameters.items():
                self._each(each, rows)
            return self.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):  # an I/O error has rolled it back already
                self.execute("ROLLBACK")
            raise

    def _each(self, statement: str, rows: Sequence[Any]) -> sqlite3.Cursor:
        if statement != sql.INSERT_TURN:
            return super().executemany(statement, rows)
        for at in range(0, len(rows), TOGETHER):
            some = rows[at : at + TOGETHER]
            done = self.execute(_arrivals(len(some)), packed(some))
        return done


@lru_cache(TOGETHER)
def _arrivals(rows: int) -> str:
    return sql.INSERT_TURN + ", ".join([_PLACES] * rows)


def merged(group: Iterable[Write]) -> dict[str, list[Any]]:
    """Equal statements of a group as one."""
    merged: dict[str, list[Any]] = {}
    for write in group:
        for each, rows in write.statements:
            merged.setdefault(each, []).extend(rows)
    return merged
