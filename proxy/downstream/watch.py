"""Polls for client disconnects and stalled readers, which asyncio does not report.

All requests share one timer: one each would cost a tenth of a pass-through.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

POLL_INTERVAL = 0.25  # seconds between two polls, at most


class Poller:
    """`every` returns the seconds between two polls; `hurries` returns True once the process drains."""

    def __init__(
        self, every: Callable[[], float] = lambda: POLL_INTERVAL, hurries: Callable[[], bool] = lambda: False
    ) -> None:
        self._every, self.hurries = every, hurries
        self._polls: dict[Callable[[], None], None] = {}
        self._timer: asyncio.TimerHandle | None = None

    def add(self, poll: Callable[[], None]) -> None:
        """Call `poll` periodically until it is removed; first within one interval."""
        self._polls[poll] = None
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._every(), self._tick)

    def remove(self, poll: Callable[[], None]) -> None:
        self._polls.pop(poll, None)

    def _tick(self) -> None:
        self._timer = None
        for poll in list(self._polls):
            if poll in self._polls:  # one may take another out
                poll()
        if self._polls:
            self._timer = asyncio.get_running_loop().call_later(self._every(), self._tick)
