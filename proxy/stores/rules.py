"""What every store means by expired. Pure: no I/O, no clock."""

from __future__ import annotations

EXPIRED_KEPT = 7 * 24 * 3600 * 1000  # ms an emptied session is remembered as expired


def is_expired(touched: int, now: int, ttl: int) -> bool:
    """Silent for longer than `ttl` (ms). A clock that went back never expires anything."""
    return now - touched > ttl
