"""Calls in any order, at any time, on each store and on a model that is obvious."""

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

from proxy.core.history import History, Session
from proxy.core.model import (
    CARRIES,
    SIDE,
    TOOLS,
    Answer,
    Layout,
    SessionKey,
    Turn,
)
from tests.stores.conftest import DAY, KINDS, TTL, A, B, Shelf, answer, opened, turn
from tests.support.touching import (
    CONTINUED,
    EXPIRED,
    NEW,
    WEEK,
    touch,
)

KEYS = st.sampled_from([A, B, SessionKey(b"tenant a", "t")])
STEPS = st.sampled_from([0, 1, TTL - 1, TTL, TTL + 1, WEEK, WEEK + TTL + 1, -1, -TTL, -9 * DAY])


@dataclass
class AccessRecord:
    """A session as the model has it."""

    turns: list[Turn] = field(default_factory=list)
    tip: str | None = None
    touched: int = 0
    emptied: bool = False
    answers: dict[str, Answer] = field(default_factory=dict)

    def empty(self) -> None:
        self.turns, self.tip, self.emptied, self.answers = [], None, True, {}

    def leaves(self, *kept: str | None) -> list[str]:
        """Turns that nobody follows, but for some."""
        followed = {one.parent for one in self.turns} | {*kept}
        return [one.id for one in self.turns if one.id not in followed]


class Walk(RuleBasedStateMachine):
    """Calls in any order, at any time, on a store and on a model that is obvious."""

    def __init__(self, kind: str, path: Path) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.shelf = Shelf(kind, path, self.run(opened(kind, path)))
        self.lines: dict[SessionKey, AccessRecord] = {}
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
        expected = Session(state, History(tuple(line.turns), line.tip) if line else History())
        loaded = self.run(self.shelf.store.load(key, self.now))
        assert loaded == expected
        # Also where the history in memory has grown turn by turn.
        assert loaded.history.path == expected.history.path
        assert (loaded.history.system, loaded.history.size) == (expected.history.system, expected.history.size)
        assert loaded.history.carriers == expected.history.carriers
        assert (loaded.history.side_requests, loaded.history.has_silent) == (
            expected.history.side_requests,
            expected.history.has_silent,
        )

    @rule(
        key=KEYS,
        parent=st.none() | st.integers(0, 5),
        count=st.sampled_from([1, 1, 1, 3]),
        layout=st.sampled_from([None, None, (), ((0, 2), 1), (1, (1, 3))]),
        system=st.sampled_from([None, b"", b'{"role":"system"}']),
        sent=st.booleans(),
        drop=st.sets(st.integers(0, 5), max_size=2),
        idempotency_key=st.sampled_from([None, None, "k"]),
        answered=st.booleans(),
        side=st.sampled_from([False, False, True]),
    )
    def append(
        self,
        key: SessionKey,
        parent: int | None,
        count: int,
        layout: Layout | None,
        system: bytes | None,
        sent: bool,
        drop: set[int],
        idempotency_key: str | None,
        answered: bool,
        side: bool,
    ) -> None:
        """At the tip, or so many turns before the newest; more than one turn, as adoption makes them; or beside."""
        line = self.lines.setdefault(key, AccessRecord())
        last = next((one for one in line.turns if one.id == line.tip), None)
        if parent is not None:
            last = line.turns[-1 - parent] if parent < len(line.turns) else None
        gone = [id for n, id in enumerate(line.leaves(last.id if last else None, line.tip)) if n in drop]
        added: list[Turn] = []
        traits = SIDE | TOOLS if side else CARRIES
        for _ in range(1 if side else count):
            told: dict[str, Any] = {"system": system, "layout": layout, "idempotency_key": idempotency_key}
            told |= {"client": b"software", "traits": traits}
            last = turn(str(next(self.names)), last, **told, **({} if sent else {"rendered": None}))
            added.append(last)
        line.turns = [one for one in [*line.turns, *added] if one.id not in gone]
        line.tip, line.touched, line.emptied = line.tip if side else added[-1].id, self.now, False
        keyed = {one.id for one in line.turns if one.idempotency_key} | ({line.tip} if side else set())
        line.answers = {id: kept for id, kept in line.answers.items() if id in keyed}
        given = answer(added[-1].id) if answered else None
        if given and (not side or idempotency_key):
            line.answers[added[-1].id] = given
        self.run(self.shelf.store.append(key, added, self.now, gone, given))

    @rule(key=KEYS)
    def see_the_answers(self, key: SessionKey) -> None:
        """Of every turn there ever was."""
        names = [f"turn_{n}" for n in range(next(self.names))]
        found = {name: self.run(self.shelf.store.answer(key, name)) for name in names}
        line = self.lines.get(key)
        assert {name: kept for name, kept in found.items() if kept} == (line.answers if line else {})

    @rule(key=KEYS)
    def delete(self, key: SessionKey) -> None:
        self.lines.pop(key, None)
        self.run(self.shelf.store.delete(key))

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
