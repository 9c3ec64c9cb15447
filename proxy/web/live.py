"""What is in flight: who stands in line for a session, and what must end before the process does.

The only part of the house that assumes it is alone. Knows nothing of HTTP or of messages.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from proxy.core.model import SessionKey
from proxy.core.reconcile import Flight
from proxy.errors import Draining, SessionBusy, SessionQueueFull

REMEMBERED = 10_000  # sessions whose last answer nobody took


class InFlight(Protocol):
    """A turn whose answer has not ended."""

    @property
    def parent(self) -> str | None:
        """The turn it will follow."""

    @property
    def flight(self) -> Flight: ...


class Place:
    """A place in a session's line, held until `leave`: it ends with its turn, never with a socket."""

    def __init__(self, leave: Callable[[], None]) -> None:
        self._leave: Callable[[], None] | None = leave

    def leave(self) -> None:
        if leave := self._leave:
            self._leave = None
            leave()


class Live:
    """Lines by session, first in first out, and the tasks that a stop waits for."""

    def __init__(self) -> None:
        self.draining = False
        self._lines: dict[SessionKey, deque[asyncio.Future[None]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._turns: dict[SessionKey, list[InFlight]] = {}
        self._undelivered: OrderedDict[SessionKey, str] = OrderedDict()

    @property
    def in_use(self) -> set[SessionKey]:
        return self._lines.keys() | self._turns.keys()

    def turns(self, key: SessionKey) -> list[InFlight]:
        """The turns of a session that are in flight, in the order of their start."""
        return list(self._turns.get(key, ()))

    def parents(self, key: SessionKey) -> list[str]:
        """The turns that those in flight will follow."""
        return [turn.parent for turn in self.turns(key) if turn.parent is not None]

    def enter(self, key: SessionKey, turn: InFlight) -> None:
        self._turns.setdefault(key, []).append(turn)

    def leave(self, key: SessionKey, turn: InFlight) -> None:
        self._turns[key].remove(turn)
        if not self._turns[key]:
            del self._turns[key]

    def delivered(self, key: SessionKey, id: str, whole: bool) -> None:
        """Note whether a client has seen the end of a session's latest turn."""
        self._undelivered.pop(key, None)
        if not whole:
            self._undelivered[key] = id
            if len(self._undelivered) > REMEMBERED:
                self._undelivered.popitem(last=False)

    def undelivered(self, key: SessionKey) -> str | None:
        """The ID of the session's latest turn where no client has seen its end."""
        return self._undelivered.get(key)

    @property
    def in_flight(self) -> int:
        """Turns and pass-throughs whose answer has not ended."""
        return len(self._tasks)

    async def place(self, key: SessionKey, limit: int, timeout: float) -> Place:
        """Wait for the place of the session's next turn: at most `limit` wait, each `timeout` seconds.

        Raises SessionQueueFull, SessionBusy, Draining.
        """
        self._refuse_when_draining()
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
        place = Place(lambda: self._next(key))
        try:
            self._refuse_when_draining()  # it waited when the drain began, which does not wait for it
        except Draining:
            place.leave()
            raise
        return place

    def start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run a turn or a pass-through as a task of its own, which a drain waits for or cuts."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def drain(self, timeout: float) -> None:
        """Refuse new turns, let what is in flight end within `timeout` seconds, then cut the rest."""
        self.draining = True
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _refuse_when_draining(self) -> None:
        if self.draining:
            raise Draining("The proxy is being stopped. Send the request again in a moment.")

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
