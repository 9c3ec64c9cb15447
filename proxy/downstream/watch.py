"""Looks from time to time at what nobody tells: whether clients are still there, and take what they are given.

One timer for all: one for each request would cost a tenth of a request that is handed on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

POLL_INTERVAL = 0.25  # seconds between two looks


class Poller:
    """`every` gives the seconds between two looks, at most LOOK; `hurries` says whether clients are given no time any
    more."""

    def __init__(
        self, every: Callable[[], float] = lambda: POLL_INTERVAL, hurries: Callable[[], bool] = lambda: False
    ) -> None:
        self._every, self.hurries = every, hurries
        self._polls: dict[Callable[[], None], None] = {}
        self._timer: asyncio.TimerHandle | None = None

    def add(self, poll: Callable[[], None]) -> None:
        """Call `poll` from time to time until it is taken out again; for the first time within the time of one look."""
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
