"""Decides when a session is expired or forgotten, the same for every store. Pure, no clock."""

from __future__ import annotations

from proxy.core.model import SessionState

EXPIRED_KEPT = 7 * 24 * 3600 * 1000  # ms a session is remembered as expired


def is_expired(touched: int, now: int, ttl: int) -> bool:
    """Silent for longer than `ttl` (ms). A clock that went back never expires anything."""
    return now - touched > ttl


def is_forgotten(touched: int, now: int, ttl: int) -> bool:
    """Whether a session expired so long ago that its name is deleted too. All times are in ms."""
    return is_expired(touched, now, ttl + EXPIRED_KEPT)


def state_at(now: int, touched: int, emptied: bool, ttl: int) -> SessionState:
    """Return the state of a stored session, whether or not a sweep has seen it."""
    if is_forgotten(touched, now, ttl):
        return SessionState.NEW
    return SessionState.EXPIRED if emptied or is_expired(touched, now, ttl) else SessionState.CONTINUED
