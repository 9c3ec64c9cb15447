"""Defines the protocol that every store implements.

A store keeps turns and gives a session's history. It does not know what messages mean or who waits in a queue. It has
no clock: times are arguments, in ms since the epoch.
"""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import NamedTuple, Protocol

from proxy.core.history import Session
from proxy.core.learned import LearnedLimits
from proxy.core.model import Answer, ModelKey, SessionKey, Turn


class StoreStats(NamedTuple):
    """Counts of a store: `sessions` used within the TTL, `size` of the files in bytes; `cached` sessions in the cache,
    `cached_size` in bytes, and how many loads hit or missed it."""

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
        """The limits learned of upstreams. Read only."""

    async def learn(self, upstream: str, member: str) -> None:
        """Note a member that an upstream refuses; not durable at once."""

    async def learn_limit(self, of: ModelKey, tokens: int, now: int) -> None:
        """Note how many tokens a model takes; not durable at once."""

    def cached(self, key: SessionKey) -> Session | None:
        """The session as the cache has it, perhaps not the latest; None where it is not cached."""

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
        """The answer that a client was given for a turn. Kept for the last turn, and those with an idempotency key."""

    async def delete(self, key: SessionKey) -> None:
        """Remove a session and its content, from the files as well."""

    async def touch(self, key: SessionKey, now: int) -> None:
        """Note that a session was used, if it exists; not durable at once."""

    async def sweep(self, now: int, in_use: AbstractSet[SessionKey], limit: int, idle: int | None = None) -> int:
        """Delete the content of up to `limit` expired sessions that are not in use; return their number. With `idle`:
        of sessions that were not used for so many ms."""

    async def scrub(self) -> None:
        """Remove the copies of deleted content that the files still hold, as far as that takes a moment only."""

    async def ping(self) -> None:
        """Check that the store can write durably."""

    async def stats(self, now: int) -> StoreStats:
        """The counts at `now`."""

    async def close(self) -> None: ...
