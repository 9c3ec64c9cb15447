"""When sessions expire, on each store: to the millisecond, whatever the clock does, and never under a turn."""

from __future__ import annotations

import pytest

from proxy.core.history import History, Session
from proxy.core.model import (
    SessionKey,
)
from tests.stores.conftest import DAY, TTL, A, B, Shelf, session, turn, turns
from tests.support.touching import (
    CONTINUED,
    EXPIRED,
    NEW,
    WEEK,
    touch,
)


async def test_a_session_lives_through_its_ttl_to_the_millisecond(shelf: Shelf) -> None:
    await shelf.store.append(A, [turn()], 5000)
    assert (await shelf.store.load(A, 5000 + TTL)).state is CONTINUED
    assert await shelf.store.load(A, 5000 + TTL + 1) == Session(EXPIRED, History())


async def test_reading_is_no_sign_of_life(shelf: Shelf) -> None:
    await shelf.store.append(A, [turn()], 0)
    await shelf.reopen()
    assert (await shelf.store.load(A, TTL)).state is CONTINUED
    assert (await shelf.store.load(A, TTL + 1)).state is EXPIRED


async def test_a_clock_that_went_back_expires_nothing(shelf: Shelf) -> None:
    await shelf.store.append(A, [turn()], 400 * DAY)
    assert await shelf.store.sweep(0, set(), 10) == 0
    assert await shelf.store.load(A, 0) == session(turn())


async def test_what_expired_stays_expired_when_the_clock_goes_back(shelf: Shelf) -> None:
    await shelf.store.append(A, [turn()], 0)
    await shelf.store.load(A, TTL + 1)
    assert await shelf.store.load(A, 0) == Session(EXPIRED, History())


@pytest.mark.parametrize("sweep", [False, True])
async def test_expired_is_said_for_a_week(shelf: Shelf, sweep: bool) -> None:
    await shelf.store.append(A, [turn()], 0)
    for now, state in [(TTL + 1, EXPIRED), (TTL + WEEK, EXPIRED), (TTL + WEEK + 1, NEW), (TTL + WEEK + 2, NEW)]:
        if sweep:
            await shelf.store.sweep(now, set(), 10)
        assert await shelf.store.load(A, now) == Session(state, History())
        await shelf.reopen()


async def test_a_touch_keeps_a_session_alive(shelf: Shelf) -> None:
    await shelf.store.append(A, [turn()], 0)
    await touch(shelf, A, TTL)
    assert await shelf.store.sweep(TTL + 1, set(), 10) == 0
    assert (await shelf.store.load(A, 2 * TTL)).state is CONTINUED
    await shelf.reopen()
    assert (await shelf.store.load(A, 2 * TTL)).state is CONTINUED
    assert (await shelf.store.load(A, 2 * TTL + 1)).state is EXPIRED


async def test_a_touch_makes_no_session_and_brings_none_back(shelf: Shelf) -> None:
    await touch(shelf, A, 0)
    assert (await shelf.store.load(A, 0)).state is NEW
    await shelf.store.append(A, [turn()], 0)
    await shelf.store.load(A, TTL + 1)
    await touch(shelf, A, TTL + 1)
    assert (await shelf.store.load(A, TTL + 1)).state is EXPIRED
    assert (await shelf.store.load(A, TTL + WEEK + 1)).state is NEW


async def test_an_expired_session_begins_afresh(shelf: Shelf) -> None:
    await shelf.store.append(A, [turn("old", system=b'{"old":1}')], 0)
    assert (await shelf.store.load(A, TTL + 1)).state is EXPIRED
    await shelf.store.append(A, [turn("young")], TTL + 1)
    assert await shelf.store.load(A, TTL + 1) == session(turn("young"))
    await shelf.reopen()
    assert await shelf.store.load(A, TTL + 1) == session(turn("young"))


async def test_a_swept_session_begins_afresh(shelf: Shelf) -> None:
    await shelf.store.append(A, [turn("old")], 0)
    assert await shelf.store.sweep(TTL + 1, set(), 10) == 1
    await shelf.store.append(A, [turn("young")], TTL + 1)
    assert await shelf.store.load(A, TTL + 1) == session(turn("young"))


async def test_a_turn_that_outlives_the_ttl_still_follows_its_history(shelf: Shelf) -> None:
    one, two = turns("1", "2")
    await shelf.store.append(A, [one], 0)
    await shelf.store.load(A, TTL)
    await shelf.store.append(A, [two], 5 * TTL)
    assert await shelf.store.load(A, 5 * TTL) == session(one, two)
    await shelf.reopen()
    assert await shelf.store.load(A, 5 * TTL) == session(one, two)


async def test_a_session_in_use_does_not_expire(shelf: Shelf) -> None:
    await shelf.store.append(A, [turn()], 0)
    for _ in range(2):
        assert await shelf.store.load(A, TTL + WEEK, in_use=True) == session(turn())
        await shelf.reopen()
    assert await shelf.store.load(A, TTL) == session(turn())
    assert await shelf.store.load(A, TTL + 1) == Session(EXPIRED, History())
    assert await shelf.store.load(A, TTL + 1, in_use=True) == Session(EXPIRED, History())
    assert await shelf.store.load(B, 0, in_use=True) == Session(NEW, History())


async def test_a_purge_takes_what_was_silent_for_so_long_whatever_the_ttl(shelf: Shelf) -> None:
    for age, key in enumerate((A, B)):
        await shelf.store.append(key, [turn()], age)
    assert await shelf.store.sweep(100, set(), 10, 100) == 0
    assert await shelf.store.sweep(101, {A}, 10, 99) == 1
    assert [(await shelf.store.load(key, 101)).state for key in (A, B)] == [CONTINUED, EXPIRED]
    assert await shelf.store.sweep(9 * TTL, set(), 10, 10 * TTL) == 0
    await shelf.store.scrub()
    await shelf.reopen()
    assert [(await shelf.store.load(key, 101)).state for key in (A, B)] == [CONTINUED, EXPIRED]


async def test_a_sweep_is_bounded_and_takes_the_oldest_first(shelf: Shelf) -> None:
    keys = [SessionKey(b"t", str(n)) for n in range(5)]
    for age, key in enumerate(keys):
        await shelf.store.append(key, [turn()], 10 - age)
    assert await shelf.store.sweep(TTL + 100, set(), 2) == 2
    back = 10  # a clock that went back shows which of them are left
    assert [(await shelf.store.load(key, back)).state for key in keys] == [CONTINUED] * 3 + [EXPIRED] * 2
    assert await shelf.store.sweep(TTL + 100, set(), 10) == 3
    assert await shelf.store.sweep(TTL + 100, set(), 10) == 0


async def test_a_sweep_leaves_alone_what_is_in_use(shelf: Shelf) -> None:
    keys = [SessionKey(b"t", str(n)) for n in range(5)]
    for key in keys:
        await shelf.store.append(key, [turn()], 0)
    assert await shelf.store.sweep(TTL + 1, set(keys[:4]), 1) == 1
    assert await shelf.store.sweep(TTL + 1, set(keys[:4]), 10) == 0
    assert [(await shelf.store.load(key, 0)).state for key in keys] == [CONTINUED] * 4 + [EXPIRED]
