"""The turns in flight: who stands in line for a session, and what must end before the process does.

The only part of the house that assumes it is alone. Knows nothing of HTTP or of messages.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from proxy.core.model import SessionKey
from proxy.errors import Draining, SessionBusy, SessionQueueFull


class Place:
    """A place in a session's line, held until `leave`: it ends with its turn, never with a socket."""

    def __init__(self, leave: Callable[[], None]) -> None:
        self._leave: Callable[[], None] | None = leave

    def leave(self) -> None:
        if leave := self._leave:
            self._leave = None
            leave()


class Live:
    """Lines by session, first in first out, and the tasks of the turns."""

    def __init__(self) -> None:
        self.draining = False
        self._lines: dict[SessionKey, deque[asyncio.Future[None]]] = {}
        self._turns: set[asyncio.Task[None]] = set()

    @property
    def in_use(self) -> set[SessionKey]:
        return set(self._lines)

    @property
    def turns(self) -> int:
        return len(self._turns)

    async def place(self, key: SessionKey, limit: int, timeout: float) -> Place:
        """Wait for the place of the session's next turn: at most `limit` wait, each `timeout` seconds.

        Raises SessionQueueFull, SessionBusy, Draining.
        """
        if self.draining:
            raise Draining("The proxy is being stopped. Send the request again in a moment.")
        line = self._lines.get(key)
        if line is None:
            self._lines[key] = deque()
            return Place(lambda: self._next(key))
        if len(line) >= limit:
            raise SessionQueueFull(f"{limit} requests wait for this session already. Send this one again later.")
        turn = asyncio.get_running_loop().create_future()
        line.append(turn)
        try:
            async with asyncio.timeout(timeout):
                await turn
        except BaseException as error:
            self._give_up(key, turn)
            if isinstance(error, TimeoutError):
                raise SessionBusy("The session's turns before this one took too long. Send it again later.") from None
            raise
        return Place(lambda: self._next(key))

    def start(self, turn: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run a turn as a task of its own."""
        task = asyncio.create_task(turn)
        self._turns.add(task)
        task.add_done_callback(self._turns.discard)
        return task

    async def drain(self, timeout: float) -> None:
        """Refuse new turns, let those in flight end within `timeout` seconds, then cut the rest."""
        self.draining = True
        if self._turns:
            await asyncio.wait(self._turns, timeout=timeout)
        for task in list(self._turns):
            task.cancel()
        await asyncio.gather(*self._turns, return_exceptions=True)

    def _next(self, key: SessionKey) -> None:
        line = self._lines[key]
        while line:
            turn = line.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        del self._lines[key]

    def _give_up(self, key: SessionKey, turn: asyncio.Future[None]) -> None:
        """Leave the line; where the place was given in the same moment, hand it on."""
        if turn.done() and not turn.cancelled():
            self._next(key)
        elif turn in (line := self._lines[key]):
            line.remove(turn)


@asynccontextmanager
async def held(place: Place | None) -> AsyncIterator[None]:
    """The place, given up on the way out at the latest."""
    try:
        yield
    finally:
        if place:
            place.leave()
