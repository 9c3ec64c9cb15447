"""What tests of a session's age share."""

from __future__ import annotations

from proxy.core.model import (
    SessionKey,
    SessionState,
)
from tests.stores.conftest import DAY, Shelf

NEW, CONTINUED, EXPIRED = SessionState.NEW, SessionState.CONTINUED, SessionState.EXPIRED
WEEK = 7 * DAY


async def touch(shelf: Shelf, key: SessionKey, now: int) -> None:
    await shelf.store.touch(key, now)
    await shelf.store.ping()  # a touch may take a moment; what was asked for before a ping is done after it
