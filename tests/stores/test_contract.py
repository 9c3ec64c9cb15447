"""What every store promises, on each of them."""

from __future__ import annotations

import asyncio
import itertools
import tempfile
from collections.abc import Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from proxy.core.model import History, Message, Session, SessionKey, SessionState, Turn
from tests.stores.conftest import DAY, KINDS, TTL, A, B, Shelf, opened, turn

NEW, CONTINUED, EXPIRED = SessionState.NEW, SessionState.CONTINUED, SessionState.EXPIRED
WEEK = 7 * DAY


def session(*turns: Turn) -> Session:
    return Session(CONTINUED, History(turns))


async def touch(shelf: Shelf, key: SessionKey, now: int) -> None:
    await shelf.store.touch(key, now)
    await shelf.store.ping()  # a touch may take a moment; what was asked for before a ping is done after it


async def test_a_session_nobody_has_written_to_is_new(shelf: Shelf) -> None:
    assert await shelf.store.load(A, 0) == Session(NEW, History())
    assert await shelf.store.load(A, 0) == Session(NEW, History())


async def test_turns_come_back_in_the_order_they_were_appended_in(shelf: Shelf) -> None:
    turns = [turn(str(n)) for n in range(20)]
    for n, one in enumerate(turns):
        await shelf.store.append(A, one, n)
        if n % 3 == 0:
            assert (await shelf.store.load(A, n)).history.turns == tuple(turns[: n + 1])
    await shelf.reopen()
    assert await shelf.store.load(A, 20) == session(*turns)


async def test_turns_go_on_in_order_after_a_restart(shelf: Shelf) -> None:
    await shelf.store.append(A, turn("1"), 0)
    await shelf.reopen()
    await shelf.store.append(A, turn("2"), 0)
    await shelf.reopen()
    assert await shelf.store.load(A, 0) == session(turn("1"), turn("2"))


ODD = {
    "every field": turn(
        system=b'{"role":"system","content":"be brief"},{"role":"developer","content":"x"}',
        model="m",
        finish_reason="stop",
        usage=b'{"total_tokens": 1e400}',
        started=1,
        ended=2,
    ),
    "roles": turn(
        asked=tuple(
            Message(role, b'{"role":%b}' % raw)
            for role, raw in [("", b"7"), ("tool", b'"tool"'), ('a"\n\0', b'"a\\"\\n\\u0000"'), ("ü", '"ü"'.encode())]
        )
    ),
    "lone surrogates": turn(
        asked=(
            Message("user", b'{"role":"user","content":"\\ud83d, ] }"}'),
            Message("\udcff", b'{"role":"\\udcff","content":"[1, 2"}'),
        ),
        reply=b'{"content":"\\ud800"}',
        echo=Message("assistant", b'{"role":"assistant","content":"\\ud800"}'),
    ),
    "spaces, numbers, twins": turn(asked=(Message("user", b'{ "role" : "user",\n"n":1.0e+2,"k":1, "k":2 }'),)),
    "a reply that is not sent on": turn(reply=b"null", echo=None),
    "nothing asked": turn(asked=()),
    "no UTF-8 in the reply": turn(reply=b"\xff\x00\xfe"),
    "a large body": turn(asked=(Message("user", b'{"role":"user","content":"' + b"x" * 5_000_000 + b'"}'),)),
    "deep": turn(asked=(Message("user", b'{"role":"user","content":' + b"[" * 500 + b"]" * 500 + b"}"),)),
}


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
async def test_nothing_changes_in_the_store(shelf: Shelf, odd: Turn) -> None:
    await shelf.store.append(A, odd, 0)
    await shelf.reopen()
    assert await shelf.store.load(A, 0) == session(odd)


async def test_names_that_are_not_unicode_fail_nobody(shelf: Shelf) -> None:
    odd = turn("odd", model="m\ud800", finish_reason="\udfff")
    await asyncio.gather(shelf.store.append(A, odd, 0), shelf.store.append(B, turn("b"), 0))
    await shelf.reopen()
    assert (await shelf.store.load(A, 0)).history.joined == odd.joined
    assert await shelf.store.load(B, 0) == session(turn("b"))


async def test_the_newest_system_prompt_is_remembered(shelf: Shelf) -> None:
    for text, system in [("1", b'{"role":"system","content":"a"}'), ("2", None), ("3", b'{"n":3}'), ("4", None)]:
        await shelf.store.append(A, turn(text, system=system), 0)
    await shelf.reopen()
    assert (await shelf.store.load(A, 0)).history.system == b'{"n":3}'


async def test_equal_ids_of_two_tenants_are_two_sessions(shelf: Shelf) -> None:
    keys = [
        A,
        B,
        SessionKey(b"", "tenant as"),
        SessionKey(A.tenant, "S"),
        SessionKey(b"\xff\0", "s"),
        SessionKey(b"", ""),
    ]
    await shelf.store.append(A, turn("secret"), 0)
    for key in keys[1:]:
        assert await shelf.store.load(key, 0) == Session(NEW, History())
    for n, key in enumerate(keys[1:]):
        await shelf.store.append(key, turn(str(n)), 0)
    await shelf.reopen()
    assert await shelf.store.load(A, 0) == session(turn("secret"))
    for n, key in enumerate(keys[1:]):
        assert await shelf.store.load(key, 0) == session(turn(str(n)))


async def test_sessions_written_at_once_do_not_mix(shelf: Shelf) -> None:
    keys = [SessionKey(b"t", str(n)) for n in range(50)]
    for part in "abc":
        await asyncio.gather(*[shelf.store.append(key, turn(part + key.id), 0) for key in keys])
    await shelf.reopen()
    for key in keys:
        assert await shelf.store.load(key, 0) == session(*[turn(part + key.id) for part in "abc"])


async def test_a_session_lives_through_its_ttl_to_the_millisecond(shelf: Shelf) -> None:
    await shelf.store.append(A, turn(), 5000)
    assert (await shelf.store.load(A, 5000 + TTL)).state is CONTINUED
    assert await shelf.store.load(A, 5000 + TTL + 1) == Session(EXPIRED, History())


async def test_reading_is_no_sign_of_life(shelf: Shelf) -> None:
    await shelf.store.append(A, turn(), 0)
    await shelf.reopen()
    assert (await shelf.store.load(A, TTL)).state is CONTINUED
    assert (await shelf.store.load(A, TTL + 1)).state is EXPIRED


async def test_a_clock_that_went_back_expires_nothing(shelf: Shelf) -> None:
    await shelf.store.append(A, turn(), 400 * DAY)
    assert await shelf.store.sweep(0, set(), 10) == 0
    assert await shelf.store.load(A, 0) == session(turn())


async def test_what_expired_stays_expired_when_the_clock_goes_back(shelf: Shelf) -> None:
    await shelf.store.append(A, turn(), 0)
    await shelf.store.load(A, TTL + 1)
    assert await shelf.store.load(A, 0) == Session(EXPIRED, History())


@pytest.mark.parametrize("sweep", [False, True])
async def test_expired_is_said_for_a_week(shelf: Shelf, sweep: bool) -> None:
    await shelf.store.append(A, turn(), 0)
    for now, state in [(TTL + 1, EXPIRED), (TTL + WEEK, EXPIRED), (TTL + WEEK + 1, NEW), (TTL + WEEK + 2, NEW)]:
        if sweep:
            await shelf.store.sweep(now, set(), 10)
        assert await shelf.store.load(A, now) == Session(state, History())
        await shelf.reopen()


async def test_a_touch_keeps_a_session_alive(shelf: Shelf) -> None:
    await shelf.store.append(A, turn(), 0)
    await touch(shelf, A, TTL)
    assert await shelf.store.sweep(TTL + 1, set(), 10) == 0
    assert (await shelf.store.load(A, 2 * TTL)).state is CONTINUED
    await shelf.reopen()
    assert (await shelf.store.load(A, 2 * TTL)).state is CONTINUED
    assert (await shelf.store.load(A, 2 * TTL + 1)).state is EXPIRED


async def test_a_touch_makes_no_session_and_brings_none_back(shelf: Shelf) -> None:
    await touch(shelf, A, 0)
    assert (await shelf.store.load(A, 0)).state is NEW
    await shelf.store.append(A, turn(), 0)
    await shelf.store.load(A, TTL + 1)
    await touch(shelf, A, TTL + 1)
    assert (await shelf.store.load(A, TTL + 1)).state is EXPIRED
    assert (await shelf.store.load(A, TTL + WEEK + 1)).state is NEW


async def test_an_expired_session_begins_afresh(shelf: Shelf) -> None:
    await shelf.store.append(A, turn("old", system=b'{"old":1}'), 0)
    assert (await shelf.store.load(A, TTL + 1)).state is EXPIRED
    await shelf.store.append(A, turn("young"), TTL + 1)
    assert await shelf.store.load(A, TTL + 1) == session(turn("young"))
    await shelf.reopen()
    assert await shelf.store.load(A, TTL + 1) == session(turn("young"))


async def test_a_swept_session_begins_afresh(shelf: Shelf) -> None:
    await shelf.store.append(A, turn("old"), 0)
    assert await shelf.store.sweep(TTL + 1, set(), 10) == 1
    await shelf.store.append(A, turn("young"), TTL + 1)
    assert await shelf.store.load(A, TTL + 1) == session(turn("young"))


async def test_a_turn_that_outlives_the_ttl_still_follows_its_history(shelf: Shelf) -> None:
    await shelf.store.append(A, turn("1"), 0)
    await shelf.store.load(A, TTL)
    await shelf.store.append(A, turn("2"), 5 * TTL)
    assert await shelf.store.load(A, 5 * TTL) == session(turn("1"), turn("2"))
    await shelf.reopen()
    assert await shelf.store.load(A, 5 * TTL) == session(turn("1"), turn("2"))


async def test_a_sweep_is_bounded_and_takes_the_oldest_first(shelf: Shelf) -> None:
    keys = [SessionKey(b"t", str(n)) for n in range(5)]
    for age, key in enumerate(keys):
        await shelf.store.append(key, turn(), 10 - age)
    assert await shelf.store.sweep(TTL + 100, set(), 2) == 2
    back = 10  # a clock that went back shows which of them are left
    assert [(await shelf.store.load(key, back)).state for key in keys] == [CONTINUED] * 3 + [EXPIRED] * 2
    assert await shelf.store.sweep(TTL + 100, set(), 10) == 3
    assert await shelf.store.sweep(TTL + 100, set(), 10) == 0


async def test_a_sweep_leaves_alone_what_is_in_use(shelf: Shelf) -> None:
    keys = [SessionKey(b"t", str(n)) for n in range(5)]
    for key in keys:
        await shelf.store.append(key, turn(), 0)
    assert await shelf.store.sweep(TTL + 1, set(keys[:4]), 1) == 1
    assert await shelf.store.sweep(TTL + 1, set(keys[:4]), 10) == 0
    assert [(await shelf.store.load(key, 0)).state for key in keys] == [CONTINUED] * 4 + [EXPIRED]


# A walk through the whole of it ------------------------------------------------------------

KEYS = st.sampled_from([A, B, SessionKey(b"tenant a", "t")])
STEPS = st.sampled_from([0, 1, TTL - 1, TTL, TTL + 1, WEEK, WEEK + TTL + 1, -1, -TTL, -9 * DAY])


@dataclass
class Line:
    """A session as the model has it."""

    turns: list[Turn] = field(default_factory=list)
    touched: int = 0
    emptied: bool = False

    def empty(self) -> None:
        self.turns, self.emptied = [], True


class Walk(RuleBasedStateMachine):
    """Calls in any order, at any time, on a store and on a model that is obvious."""

    def __init__(self, kind: str, path: Path) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.shelf = Shelf(kind, path, self.run(opened(kind, path)))
        self.lines: dict[SessionKey, Line] = {}
        self.now = 10 * DAY
        self.names = itertools.count()

    def run(self, call: Coroutine[Any, Any, Any]) -> Any:
        return self.runner.run(call)

    def teardown(self) -> None:
        self.run(self.shelf.store.close())
        self.runner.close()

    @rule(step=STEPS)
    def wait(self, step: int) -> None:
        self.now += step

    @rule(key=KEYS)
    def load(self, key: SessionKey) -> None:
        line = self.lines.get(key)
        age = self.now - line.touched if line else 0
        state = CONTINUED
        if line is None or age > TTL + WEEK:
            state = NEW
        elif line.emptied or age > TTL:
            state = EXPIRED
        if line and state is not CONTINUED:
            line.empty()
        expected = Session(state, History(tuple(line.turns) if line else ()))
        assert self.run(self.shelf.store.load(key, self.now)) == expected

    @rule(key=KEYS, system=st.sampled_from([None, b'{"role":"system"}']), sent=st.booleans())
    def append(self, key: SessionKey, system: bytes | None, sent: bool) -> None:
        one = turn(str(next(self.names)), system=system, **({} if sent else {"echo": None}))
        line = self.lines.setdefault(key, Line())
        line.turns, line.touched, line.emptied = [*line.turns, one], self.now, False
        self.run(self.shelf.store.append(key, one, self.now))

    @rule(key=KEYS)
    def touch(self, key: SessionKey) -> None:
        if (line := self.lines.get(key)) and not line.emptied:
            line.touched = self.now
        self.run(touch(self.shelf, key, self.now))

    @rule(in_use=st.sets(KEYS, max_size=2))
    def sweep(self, in_use: set[SessionKey]) -> None:
        idle = [line for key, line in self.lines.items() if key not in in_use and not line.emptied]
        stale = [line for line in idle if self.now - line.touched > TTL]
        for line in stale:
            line.empty()
        old = self.now - TTL - WEEK
        self.lines = {k: line for k, line in self.lines.items() if not (line.emptied and line.touched < old)}
        assert self.run(self.shelf.store.sweep(self.now, in_use, 10)) == len(stale)

    @precondition(lambda self: self.shelf.kind != "memory")
    @rule()
    def reopen(self) -> None:
        self.run(self.shelf.reopen())


@pytest.mark.parametrize("kind", KINDS)
def test_any_order_of_calls_gives_what_the_model_says(kind: str, tmp_path: Path) -> None:
    def walk() -> Walk:
        return Walk(kind, Path(tempfile.mkdtemp(dir=tmp_path)) / "sessions.db")

    bounds = settings(
        max_examples=25, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck), database=None
    )
    run_state_machine_as_test(walk, settings=bounds)  # type: ignore[arg-type] # any callable will do
