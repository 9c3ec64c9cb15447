"""Caches sessions in memory in front of another store: the ones used last, bounded in bytes.

A cached session costs no read and no hop to a thread. It holds what is committed and nothing else: an entry changes
only after the inner store's append returned.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from collections.abc import Set as AbstractSet

from msgspec import Struct

from proxy.core.history import Session
from proxy.core.model import Answer, ModelKey, SessionKey, SessionState, Turn
from proxy.stores.base import Store, StoreStats
from proxy.stores.rules import is_expired

ENTRY_SIZE = 1024  # bytes an entry takes beside its turns, roughly


class _Entry(Struct):
    session: Session
    touched: int
    size: int

    def is_live(self, now: int, ttl: int) -> bool:
        """Whether the session still stands as it does here: a new one does until something is appended to it."""
        state = self.session.state
        return state is SessionState.NEW or (state is SessionState.CONTINUED and not is_expired(self.touched, now, ttl))

    def is_idle(self, now: int, ttl: int) -> bool:
        return self.session.state is not SessionState.CONTINUED or is_expired(self.touched, now, ttl)


class CachedStore:
    """A store that keeps the histories of warm sessions in memory, in front of another store."""

    def __init__(self, inner: Store, ttl: int, limit: int) -> None:
        """`ttl` in ms, as the inner store's; `limit` in bytes."""
        self._inner, self.learned = inner, inner.learned
        self._ttl = ttl
        self._limit = limit
        self._size = self._hits = self._misses = 0
        self._entries: OrderedDict[SessionKey, _Entry] = OrderedDict()
        self._reads: dict[SessionKey, set[object]] = {}  # under way, and still true

    async def learn(self, upstream: str, member: str) -> None:
        await self._inner.learn(upstream, member)

    async def learn_limit(self, of: ModelKey, tokens: int, now: int) -> None:
        await self._inner.learn_limit(of, tokens, now)

    def cached(self, key: SessionKey) -> Session | None:
        entry = self._entries.get(key)
        return entry.session if entry else None

    async def load(self, key: SessionKey, now: int, in_use: bool = False) -> Session:
        """With every turn whose append has returned, also while the session was read."""
        while True:
            entry = self._entries.get(key)
            if entry and (in_use or entry.is_live(now, self._ttl)):
                self._entries.move_to_end(key)
                self._hits += 1
                return entry.session
            self._drop(key)
            self._misses += 1
            session, current = await self._read(key, now, in_use)
            if current:
                self._keep(key, session, session.touched)
                return session

    async def _read(self, key: SessionKey, now: int, in_use: bool) -> tuple[Session, bool]:
        """A session of the inner store; and whether nothing was appended meanwhile, which the read may have missed."""
        read = object()
        self._reads.setdefault(key, set()).add(read)
        try:
            session = await self._inner.load(key, now, in_use)
            return session, read in self._reads.get(key, ())
        finally:
            reads = self._reads.get(key, set())
            reads.discard(read)
            if not reads:
                self._reads.pop(key, None)

    async def append(
        self,
        key: SessionKey,
        turns: Sequence[Turn],
        now: int,
        drop: Sequence[str] = (),
        answer: Answer | None = None,
    ) -> None:
        try:
            await self._inner.append(key, turns, now, drop, answer)
            self._reads.pop(key, None)
        except BaseException:  # cancelled or failed: whether it was committed only a read can tell
            self._reads.pop(key, None)
            self._drop(key)
            raise
        if entry := self._entries.get(key):  # else memory is short, or the session was not loaded through here
            history = entry.session.history.plus(*turns).without(drop)
            self._keep(key, Session(SessionState.CONTINUED, history), now)

    async def answer(self, key: SessionKey, turn: str) -> Answer | None:
        return await self._inner.answer(key, turn)

    async def delete(self, key: SessionKey) -> None:
        try:
            await self._inner.delete(key)
        finally:
            self._reads.pop(key, None)
            self._drop(key)

    async def touch(self, key: SessionKey, now: int) -> None:
        entry = self._entries.get(key)
        if entry and entry.session.state is SessionState.CONTINUED:
            entry.touched = now
        await self._inner.touch(key, now)

    async def sweep(self, now: int, in_use: AbstractSet[SessionKey], limit: int, idle: int | None = None) -> int:
        ttl = self._ttl if idle is None else idle
        for key in [k for k, e in self._entries.items() if k not in in_use and e.is_idle(now, ttl)]:
            self._drop(key)
        kept = set(self._entries)  # in use as well: a touch may have failed there
        try:
            return await self._inner.sweep(now, in_use | kept, limit, idle)
        finally:  # what was read meanwhile may be gone
            self._reads.clear()
            for key in self._entries.keys() - kept:
                self._drop(key)

    async def scrub(self) -> None:
        await self._inner.scrub()

    async def ping(self) -> None:
        await self._inner.ping()

    async def stats(self, now: int) -> StoreStats:
        inner = await self._inner.stats(now)
        return inner._replace(cached=len(self._entries), cached_size=self._size, hits=self._hits, misses=self._misses)

    async def close(self) -> None:
        self._entries.clear()
        await self._inner.close()

    def _keep(self, key: SessionKey, session: Session, touched: int) -> None:
        self._drop(key)
        size = ENTRY_SIZE + session.history.size
        if size > self._limit:
            return
        self._entries[key] = _Entry(session, touched, size)
        self._size += size
        while self._size > self._limit:
            self._drop(next(iter(self._entries)))

    def _drop(self, key: SessionKey) -> None:
        if entry := self._entries.pop(key, None):
            self._size -= entry.size
