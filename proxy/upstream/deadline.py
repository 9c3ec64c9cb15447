"""How long something is waited for, where much is waited for: one timer, which looks again when it is early."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

_TICK = 0.001  # seconds by which a timer may come early


class Deadline:
    """`expect` again and again; `late` is called once the time that was last given has passed. Each piece of a stream
    would else make a timer and cancel it. `due` is when that is; it may be put off."""

    def __init__(self, loop: asyncio.AbstractEventLoop, late: Callable[[], None]) -> None:
        self._loop, self._late = loop, late
        self.due = self._look_at = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def expect(self, seconds: float) -> None:
        """Something is to come within that time."""
        self.due = self._loop.time() + seconds
        if self._timer is None or self.due < self._look_at:
            self._look_later()

    def end(self) -> None:
        """Nothing is waited for any more."""
        if self._timer:
            self._timer.cancel()
            self._timer = None

    def _look_later(self) -> None:
        if self._timer:
            self._timer.cancel()
        self._look_at = self.due
        self._timer = self._loop.call_at(self.due, self._look)

    def _look(self) -> None:
        self._timer = None
        if self._loop.time() < self.due - _TICK:
            self._look_later()
        else:
            self._late()
