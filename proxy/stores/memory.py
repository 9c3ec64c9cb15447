"""Keeps sessions in memory for as long as the process lives: for `store: {path: "memory:"}` and for tests.

No method awaits between reading and writing, so none needs a lock.
"""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from proxy.core.history import History, Session, fresh
from proxy.core.learned import LearnedLimits
from proxy.core.model import Answer, ModelKey, SessionKey, SessionState, Turn
from proxy.stores.base import StoreStats
from proxy.stores.rules import is_expired, is_forgotten, state_at


@dataclass
class _Row:
    history: History
    touched: int
    emptied: bool = False
    answers: dict[str, Answer] = field(default_factory=dict)

    def empty(self) -> None:
        self.history, self.answers, self.emptied = History(), {}, True


class MemoryStore:
    """A store without a disk, for `store.path: memory:`."""

    def __init__(self, ttl: int) -> None:
        """`ttl` in ms: the silence after which a session expires."""
        self._ttl = ttl
        self._rows: dict[SessionKey, _Row] = {}
        self.learned = LearnedLimits()

    async def learn(self, upstream: str, member: str) -> None:
        self.learned.refusal(upstream, member)

    async def learn_limit(self, of: ModelKey, tokens: int, now: int) -> None:
        self.learned.limited(of, tokens, now)

    def cached(self, key: SessionKey) -> Session | None:
        row = self._rows.get(key)
        return Session(SessionState.CONTINUED, row.history, row.touched) if row else None

    async def load(self, key: SessionKey, now: int, in_use: bool = False) -> Session:
        row = self._rows.get(key)
        if row is None:
            return fresh()
        state = state_at(row.touched if in_use else now, row.touched, row.emptied, self._ttl)
        if state is not SessionState.CONTINUED:
            row.empty()
        return Session(state, row.history, row.touched)

    async def append(
        self,
        key: SessionKey,
        turns: Sequence[Turn],
        now: int,
        drop: Sequence[str] = (),
        answer: Answer | None = None,
    ) -> None:
        row = self._rows.get(key)
        history = (row.history if row else History()).plus(*turns).without(drop)
        keyed = {turn.id for turn in history.turns if turn.idempotency_key}
        beside = turns[-1].is_side_request
        if beside and history.tip is not None:
            keyed.add(history.tip)
        answers = {id: kept for id, kept in (row.answers if row else {}).items() if id in keyed}
        if answer and (not beside or turns[-1].id in keyed):
            answers[turns[-1].id] = answer
        self._rows[key] = _Row(history, now, answers=answers)

    async def answer(self, key: SessionKey, turn: str) -> Answer | None:
        row = self._rows.get(key)
        return row.answers.get(turn) if row else None

    async def delete(self, key: SessionKey) -> None:
        self._rows.pop(key, None)

    async def touch(self, key: SessionKey, now: int) -> None:
        if (row := self._rows.get(key)) and not row.emptied:
            row.touched = now

    async def sweep(self, now: int, in_use: AbstractSet[SessionKey], limit: int, idle: int | None = None) -> int:
        stale = [
            row
            for key, row in self._rows.items()
            if not row.emptied
            and key not in in_use
            and is_expired(row.touched, now, self._ttl if idle is None else idle)
        ]
        gone = sorted(stale, key=lambda row: row.touched)[:limit]
        for row in gone:
            row.empty()
        forgotten = [k for k, row in self._rows.items() if row.emptied and is_forgotten(row.touched, now, self._ttl)]
        for key in forgotten:
            del self._rows[key]
        return len(gone)

    async def scrub(self) -> None: ...

    async def ping(self) -> None: ...

    async def stats(self, now: int) -> StoreStats:
        return StoreStats(sum([not is_expired(row.touched, now, self._ttl) for row in self._rows.values()]))

    async def close(self) -> None: ...
