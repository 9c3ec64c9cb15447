"""A store that keeps nothing beyond the process: for `store: {path: "memory:"}` and for tests.

Single-threaded by construction: no method awaits between reading and writing.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from proxy.core.model import History, Session, SessionKey, SessionState, Turn, fresh
from proxy.stores.rules import EXPIRED_KEPT, is_expired


@dataclass
class _Row:
    history: History
    touched: int
    emptied: bool = False


class MemoryStore:
    def __init__(self, ttl: int) -> None:
        """`ttl` in ms: the silence after which a session expires."""
        self._ttl = ttl
        self._rows: dict[SessionKey, _Row] = {}

    async def load(self, key: SessionKey, now: int) -> Session:
        row = self._rows.get(key)
        if row is None:
            return fresh()
        if row.emptied or is_expired(row.touched, now, self._ttl):
            row.history, row.emptied = History(), True
            return fresh(SessionState.EXPIRED)
        return Session(SessionState.CONTINUED, row.history)

    async def append(self, key: SessionKey, turn: Turn, now: int) -> None:
        row = self._rows.get(key)
        history = row.history if row else History()
        self._rows[key] = _Row(history.plus(turn), now)

    async def touch(self, key: SessionKey, now: int) -> None:
        if (row := self._rows.get(key)) and not row.emptied:
            row.touched = now

    async def sweep(self, now: int, in_use: AbstractSet[SessionKey], limit: int) -> int:
        old = [(k, r) for k, r in self._rows.items() if k not in in_use and is_expired(r.touched, now, self._ttl)]
        for key, row in [(k, r) for k, r in old if r.emptied]:
            if is_expired(row.touched, now, self._ttl + EXPIRED_KEPT):
                del self._rows[key]
        full = [row for _, row in old if not row.emptied][:limit]
        for row in full:
            row.history, row.emptied = History(), True
        return len(full)

    async def ping(self) -> None: ...

    async def close(self) -> None: ...
