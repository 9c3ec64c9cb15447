"""What is in flight: who stands in line for a session, and what must end before the process does.

The only part of the house that assumes it is alone. Knows nothing of HTTP or of messages.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, Generic, Protocol, TypeVar

from proxy.core.model import SessionKey
from proxy.errors import Draining, ProxyError, SessionBusy, SessionQueueFull

REMEMBERED = 5_000  # sessions of which it is known whether a client has seen the last answer: a retry comes soon
_DRAINING = "The proxy is being stopped. Send the request again in a moment."
CUTTING = 5.0  # seconds that turns have to record what was said when a drain cuts them


class Overtaken(Protocol):
    overtaken: bool


class InFlight(Protocol):
    """A turn whose answer has not ended."""

    id: str

    @property
    def record(self) -> Overtaken:
        """Told when another turn of the session was kept meanwhile."""

    @property
    def parent(self) -> str | None:
        """The turn it will follow."""

    def stop(self, fault: ProxyError | None = None, at_once: bool = False) -> None:
        """Cut it; what was said is kept. `fault` is for clients that have been given nothing yet.
        One that is about to end by itself may, unless `at_once`."""


TurnT = TypeVar("TurnT", bound=InFlight)


class QueueSlot:
    """A place in a session's line, held until `leave`: it ends with its turn, never with a socket."""

    def __init__(self, leave: Callable[[], None]) -> None:
        self._leave: Callable[[], None] | None = leave

    def leave(self) -> None:
        if leave := self._leave:
            self._leave = None
            leave()


class TurnRegistry(Generic[TurnT]):
    """Lines by session, first in first out, and the tasks that a stop waits for."""

    def __init__(self) -> None:
        self.leaving = False  # no connection is kept for another request
        self.draining = False
        self._queues: dict[SessionKey, deque[asyncio.Future[None]]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._turns: dict[SessionKey, list[TurnT]] = {}
        self._commits: dict[SessionKey, asyncio.Future[None] | None] = {}
        self._delivered: OrderedDict[SessionKey, tuple[str, bool]] = OrderedDict()

    @property
    def in_use(self) -> set[SessionKey]:
        return self._queues.keys() | self._turns.keys()

    def turns(self, key: SessionKey) -> list[TurnT]:
        """The turns of a session that are in flight, in the order of their start."""
        return list(self._turns.get(key, ()))

    def parents(self, key: SessionKey) -> list[str]:
        """The turns that those in flight will follow."""
        return [turn.parent for turn in self.turns(key) if turn.parent is not None]

    def enter(self, key: SessionKey, turn: TurnT) -> None:
        self._turns.setdefault(key, []).append(turn)

    def leave(self, key: SessionKey, turn: TurnT) -> None:
        self._turns[key].remove(turn)
        if not self._turns[key]:
            del self._turns[key]

    def begin_commit(self, key: SessionKey) -> bool:
        """Whether a commit of a session may begin: one after another, so that each sees the tip that the one before
        has left. Who may not waits for `commit_ended` and asks again; who may calls `end_commit`."""
        if key in self._commits:
            return False
        self._commits[key] = None  # a future only where somebody waits, which is rare
        return True

    async def commit_ended(self, key: SessionKey) -> None:
        """Wait until the commit under way has ended."""
        if key in self._commits:
            waiter = self._commits[key]
            if waiter is None:
                waiter = self._commits[key] = asyncio.get_running_loop().create_future()
            await asyncio.wait([waiter])

    def end_commit(self, key: SessionKey, kept: str | None) -> None:
        """`kept`: the turn that stands at the tip now, which the others of the session that are in flight are told."""
        if kept is not None:
            for turn in self._turns.get(key, ()):
                turn.record.overtaken = turn.record.overtaken or turn.id != kept
        if waiter := self._commits.pop(key):
            waiter.set_result(None)

    def delivered(self, key: SessionKey, id: str, whole: bool) -> None:
        """Note whether a client has seen the end of a session's latest turn."""
        self._delivered.pop(key, None)
        self._delivered[key] = (id, whole)
        if len(self._delivered) > REMEMBERED:
            self._delivered.popitem(last=False)

    def was_delivered(self, key: SessionKey, id: str) -> bool | None:
        """Whether a client has seen the end of this turn; None where nobody knows."""
        latest, whole = self._delivered.get(key, ("", False))
        return whole if latest == id else None

    def take_slot(self, key: SessionKey) -> QueueSlot | None:
        """The place of the session's next turn, where nobody has it."""
        if key in self._queues:
            return None
        self._queues[key] = deque()
        return QueueSlot(lambda: self._next(key))

    @property
    def in_flight(self) -> int:
        """Turns and pass-throughs whose answer has not ended."""
        return len(self._tasks)

    @property
    def waiting(self) -> int:
        """Requests that stand in line."""
        return sum([len(queue) for queue in self._queues.values()])

    async def wait_for_slot(self, key: SessionKey, limit: int, timeout: float) -> QueueSlot:
        """Wait for the place of the session's next turn: at most `limit` wait, each `timeout` seconds.

        Raises SessionQueueFull, SessionBusy, Draining.
        """
        self.refuse_when_draining()
        if slot := self.take_slot(key):
            return slot
        queue = self._queues[key]
        if len(queue) >= limit:
            raise SessionQueueFull(f"{limit} requests wait for this session already. Send this one again later.")
        turn = asyncio.get_running_loop().create_future()
        queue.append(turn)
        try:
            async with asyncio.timeout(timeout):
                await turn
        except BaseException as error:
            self._give_up(key, turn)
            if isinstance(error, TimeoutError):
                raise SessionBusy("The session's turns before this one took too long. Send it again later.") from None
            raise
        slot = QueueSlot(lambda: self._next(key))
        try:
            self.refuse_when_draining()  # it waited when the drain began, which does not wait for it
        except Draining:
            slot.leave()
            raise
        return slot

    @contextmanager
    def joined(self) -> Iterator[None]:
        """The running task as one that a drain waits for or cuts."""
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            yield
        finally:
            self._tasks.discard(task)

    def start(self, work: Coroutine[Any, Any, None], over: Callable[[], None]) -> asyncio.Task[None]:
        """Run a turn as a task of its own, which a drain waits for or cuts; `over` is called when it has ended."""
        task = asyncio.get_running_loop().create_task(work)

        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            over()

        self._tasks.add(task)
        task.add_done_callback(ended)
        return task

    async def drain(self, timeout: float) -> None:
        """Refuse new turns, let what is in flight end within `timeout` seconds, cut the turns that have not,
        so that they are recorded as cut, and end the rest."""
        self.draining = True
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout)
        for turn in [turn for turns in self._turns.values() for turn in turns]:
            turn.stop(Draining(_DRAINING), at_once=True)
        while self._turns and self._tasks:
            done, _ = await asyncio.wait(self._tasks, timeout=CUTTING, return_when=asyncio.FIRST_COMPLETED)
            if not done:
                break
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def refuse_when_draining(self) -> None:
        """Raises Draining once a drain has begun."""
        if self.draining:
            raise Draining(_DRAINING)

    def _next(self, key: SessionKey) -> None:
        queue = self._queues[key]
        while queue:
            turn = queue.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        del self._queues[key]

    def _give_up(self, key: SessionKey, turn: asyncio.Future[None]) -> None:
        """Leave the line; where the place was given in the same moment, hand it on."""
        if turn.done() and not turn.cancelled():
            self._next(key)
        elif turn in (queue := self._queues[key]):
            queue.remove(turn)
