"""Queues requests per session, and tracks the turns and tasks that must end before the process does.

This module relies on being the only process of its database. Knows nothing of HTTP or of messages.
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
_DRAINING = "The proxy is stopping. Send the request again in a moment."
CUTTING = 5.0  # seconds that turns have to record what was said when a drain cuts them


class Overtaken(Protocol):
    """Is told when another turn of its session is committed first."""

    overtaken: bool


class InFlight(Protocol):
    """A turn whose answer has not ended."""

    id: str

    @property
    def record(self) -> Overtaken:
        """The record to mark when another turn of the session is committed meanwhile."""

    @property
    def parent(self) -> str | None:
        """The ID of the turn that it will follow."""

    def stop(self, fault: ProxyError | None = None, at_once: bool = False) -> None:
        """Stop the turn and record what came. Clients that were sent nothing yet get `fault`. A turn about to end by
        itself may do so, unless `at_once`."""


TurnT = TypeVar("TurnT", bound=InFlight)


class QueueSlot:
    """A slot in a session's queue, held until `leave`: it ends with its turn, never with a socket."""

    def __init__(self, leave: Callable[[], None]) -> None:
        self._leave: Callable[[], None] | None = leave

    def leave(self) -> None:
        if leave := self._leave:
            self._leave = None
            leave()


class TurnRegistry(Generic[TurnT]):
    """Keeps a first-in-first-out queue per session, and the tasks that a drain waits for."""

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
        """Return the turns of a session in flight, in the order of their start."""
        return list(self._turns.get(key, ()))

    def parents(self, key: SessionKey) -> list[str]:
        """Return the IDs of the turns that those in flight will follow."""
        return [turn.parent for turn in self.turns(key) if turn.parent is not None]

    def enter(self, key: SessionKey, turn: TurnT) -> None:
        self._turns.setdefault(key, []).append(turn)

    def leave(self, key: SessionKey, turn: TurnT) -> None:
        self._turns[key].remove(turn)
        if not self._turns[key]:
            del self._turns[key]

    def begin_commit(self, key: SessionKey) -> bool:
        """Claim the commit of a session; return whether it was free. Commits run one after another, so that each sees
        the tip of the one before. On True call `end_commit` later; on False await `commit_ended` and try again."""
        if key in self._commits:
            return False
        self._commits[key] = None  # a future only where somebody waits, which is rare
        return True

    async def commit_ended(self, key: SessionKey) -> None:
        """Wait until the running commit has ended."""
        if key in self._commits:
            waiter = self._commits[key]
            if waiter is None:
                waiter = self._commits[key] = asyncio.get_running_loop().create_future()
            await asyncio.wait([waiter])

    def end_commit(self, key: SessionKey, kept: str | None) -> None:
        """Release the commit. `kept` is the new tip, if there is one; the session's other turns in flight are marked as
        overtaken."""
        if kept is not None:
            for turn in self._turns.get(key, ()):
                turn.record.overtaken = turn.record.overtaken or turn.id != kept
        if waiter := self._commits.pop(key):
            waiter.set_result(None)

    def delivered(self, key: SessionKey, id: str, whole: bool) -> None:
        """Note whether the end of a session's latest turn was delivered."""
        self._delivered.pop(key, None)
        self._delivered[key] = (id, whole)
        if len(self._delivered) > REMEMBERED:
            self._delivered.popitem(last=False)

    def was_delivered(self, key: SessionKey, id: str) -> bool | None:
        """Return whether the end of this turn was delivered; None if that is unknown."""
        latest, whole = self._delivered.get(key, ("", False))
        return whole if latest == id else None

    def take_slot(self, key: SessionKey) -> QueueSlot | None:
        """Take the session's queue slot if it is free; return None if another request holds it."""
        if key in self._queues:
            return None
        self._queues[key] = deque()
        return QueueSlot(lambda: self._next(key))

    @property
    def in_flight(self) -> int:
        """Count the turns and pass-throughs whose answer has not ended."""
        return len(self._tasks)

    @property
    def waiting(self) -> int:
        """Count the requests that wait in queues."""
        return sum([len(queue) for queue in self._queues.values()])

    async def wait_for_slot(self, key: SessionKey, limit: int, timeout: float) -> QueueSlot:
        """Wait for the session's queue slot: at most `limit` requests wait, each at most `timeout` seconds.

        Raises SessionQueueFull, SessionBusy, Draining.
        """
        self.refuse_when_draining()
        if slot := self.take_slot(key):
            return slot
        queue = self._queues[key]
        if len(queue) >= limit:
            raise SessionQueueFull(
                f"Too many requests are queued for this session (limit {limit}). Send this one later."
            )
        turn = asyncio.get_running_loop().create_future()
        queue.append(turn)
        try:
            async with asyncio.timeout(timeout):
                await turn
        except BaseException as error:
            self._give_up(key, turn)
            if isinstance(error, TimeoutError):
                raise SessionBusy(
                    "Timed out waiting for the session's earlier requests. Send it again later."
                ) from None
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
        """Register the current task, so that a drain waits for it or cancels it."""
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            yield
        finally:
            self._tasks.discard(task)

    def start(self, work: Coroutine[Any, Any, None], over: Callable[[], None]) -> asyncio.Task[None]:
        """Run a turn as a task that a drain waits for or cancels; call `over` when it has ended."""
        task = asyncio.get_running_loop().create_task(work)

        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            over()

        self._tasks.add(task)
        task.add_done_callback(ended)
        return task

    async def drain(self, timeout: float) -> None:
        """Refuse new turns and wait `timeout` seconds for those in flight. Then stop the remaining turns, so that they
        are recorded as interrupted, and cancel all other tasks."""
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
        """Raise Draining once a drain has begun."""
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
        """Leave the queue. If the slot was granted in the same moment, pass it to the next request."""
        if turn.done() and not turn.cancelled():
            self._next(key)
        elif turn in (queue := self._queues[key]):
            queue.remove(turn)
