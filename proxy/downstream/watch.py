"""Looks from time to time at what nobody tells: whether clients are still there, and take what they are given.

One timer for all: one for each request would cost a tenth of a request that is handed on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

LOOK = 0.25  # seconds between two looks


class Watch:
    """`every` gives the seconds between two looks, at most LOOK; `hurries` says whether clients are given no time any
    more."""

    def __init__(self, every: Callable[[], float] = lambda: LOOK, hurries: Callable[[], bool] = lambda: False) -> None:
        self._every, self.hurries = every, hurries
        self._looks: dict[Callable[[], None], None] = {}
        self._timer: asyncio.TimerHandle | None = None

    def add(self, look: Callable[[], None]) -> None:
        """Call `look` from time to time until it is taken out again; for the first time within the time of one look."""
        self._looks[look] = None
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._every(), self._tick)

    def remove(self, look: Callable[[], None]) -> None:
        self._looks.pop(look, None)

    def _tick(self) -> None:
        self._timer = None
        for look in list(self._looks):
            if look in self._looks:  # one may take another out
                look()
        if self._looks:
            self._timer = asyncio.get_running_loop().call_later(self._every(), self._tick)
