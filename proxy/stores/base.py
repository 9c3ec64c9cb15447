"""What the rest of the house sees of a store.

A store keeps turns and says what a session's history is. It does not know what the
messages mean, who waits in line, or what time it is: time is an argument, in ms since the
epoch.
"""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import NamedTuple, Protocol

from proxy.core.history import Session
from proxy.core.learned import LearnedLimits
from proxy.core.model import Answer, ModelKey, SessionKey, Turn


class StoreStats(NamedTuple):
    """How much there is: sessions that were heard of within the TTL; bytes of the files; sessions that are warm, the
    bytes they take, and how many loads were from them and how many were not."""

    sessions: int = 0
    size: int = 0
    cached: int = 0
    cached_size: int = 0
    hits: int = 0
    misses: int = 0


class Store(Protocol):
    """Every method raises StoreUnavailable where the disk or the database fails.

    The caller orders the calls of one session; calls of different sessions run side by side.
    """

    @property
    def learned(self) -> LearnedLimits:
        """What is known of upstreams; it is only read."""

    async def learn(self, upstream: str, member: str) -> None:
        """Note a member that an upstream refuses; not durable at once."""

    async def learn_limit(self, of: ModelKey, tokens: int, now: int) -> None:
        """Note how many tokens a model takes; not durable at once."""

    def cached(self, key: SessionKey) -> Session | None:
        """The session as it is in memory, perhaps of an earlier moment; None where it is not."""

    async def load(self, key: SessionKey, now: int, in_use: bool = False) -> Session:
        """The session at `now`: new, continued, or expired (then its history is empty). One `in_use`
        does not expire."""

    async def append(
        self,
        key: SessionKey,
        turns: Sequence[Turn],
        now: int,
        drop: Sequence[str] = (),
        answer: Answer | None = None,
    ) -> None:
        """Add turns, each after its parent; the last is the new tip, and `answer` what its client is given.
        Turns of the IDs in `drop` go. Durable on return, all or nothing: it survives a power cut."""

    async def answer(self, key: SessionKey, turn: str) -> Answer | None:
        """What a client was given of a turn: kept of the last one, and of those with an idempotency key."""

    async def delete(self, key: SessionKey) -> None:
        """Remove a session and its content, from the files as well."""

    async def touch(self, key: SessionKey, now: int) -> None:
        """Note a sign of life of a session that exists; not durable at once."""

    async def sweep(self, now: int, in_use: AbstractSet[SessionKey], limit: int, idle: int | None = None) -> int:
        """Empty up to `limit` expired sessions that nobody uses; the number emptied. With `idle` those that were
        silent for longer than so many ms."""

    async def scrub(self) -> None:
        """Leave no copy in the files of what was deleted or swept, as far as that takes a moment only."""

    async def ping(self) -> None:
        """Write something, durably."""

    async def stats(self, now: int) -> StoreStats:
        """How much there is at `now`."""

    async def close(self) -> None: ...
