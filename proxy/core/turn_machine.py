"""The recorded turn as a state machine: events in, commands out. Pure; the task in `turns/turn_task.py` executes.

Theory of operation. A turn asks its upstream and hands each piece of the answer on at once; no event is fed for a
piece. The end of the answer is held until the turn is committed, then it is released. What ends a turn is one of
three: the upstream ends its answer or breaks it off; a stop (the stop API, a drain, the session's next request); or
every client has left. While a commit runs nothing ends a turn: what is on disk may be the truth already. A turn that
is stopped in the stream is cancelled first and settled behind that, so that what came is recorded as interrupted.

A pair of phase and event that is not in the table changes nothing.

| phase | event | commands | next phase |
|---|---|---|---|
| starting | started | ask | asking |
| starting | stop, left | | closed |
| starting | fault | fail | closed |
| asking | head | begin | streaming |
| asking | stop, left | cancel | closed |
| asking | fault | fail | closed |
| streaming | end to keep | commit | committing |
| streaming | end | leave queue, release | released |
| streaming | break to keep | commit | interrupting |
| streaming | break | leave queue, reset | closed |
| streaming | stop, left | cancel | stopping |
| streaming | fault | fail | closed |
| stopping | break to keep | commit | interrupting |
| stopping | break | leave queue, reset | closed |
| committing | committed | leave queue, release | released |
| committing | commit failed | leave queue, fail | closed |
| committing | over | leave queue, note unseen, fail | closed |
| interrupting | committed | leave queue, reset | closed |
| interrupting | commit failed | leave queue, fail | closed |
| interrupting | over | leave queue, note unseen, fail | closed |
| released | transfer ended | end | closed |
| released | transfer broken | reset | closed |
| released | left | cancel | closed |
| closed | fault | fail | closed |
| any other | over | leave queue, fail | closed |
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum

from proxy.core.exchange import RECORDED, RELEASED, Verdict


class Phase(StrEnum):
    STARTING = "starting"  # its sign of life is written to the store
    ASKING = "asking"  # before the upstream's head
    STREAMING = "streaming"  # the head is handed on, and pieces as they come
    STOPPING = "stopping"  # it was cancelled in the stream; what came is to be settled
    COMMITTING = "committing"  # the end is here and held
    INTERRUPTING = "interrupting"  # what came before a break is being committed
    RELEASED = "released"  # the end may go; what follows it is handed on
    CLOSED = "closed"


class Event(StrEnum):
    STARTED = "started"
    HEAD = "head"
    END_TO_KEEP = "end to keep"  # the answer has ended, and its reply is recorded
    END = "end"  # it has ended, and nothing of it is recorded
    BREAK_TO_KEEP = "break to keep"  # it broke off, or was stopped; what came is recorded as interrupted
    BREAK = "break"  # the same, with nothing to record
    COMMITTED = "committed"
    COMMIT_FAILED = "commit failed"
    TRANSFER_ENDED = "transfer ended"  # all bytes behind the end are here
    TRANSFER_BROKEN = "transfer broken"
    STOP = "stop"
    LEFT = "left"  # no client reads, and none is waited for any longer
    FAULT = "fault"  # the upstream or the store could not be used
    OVER = "over"  # the task has ended, however that came about


class Command(StrEnum):
    ASK = "ask"
    BEGIN = "begin"  # status and headers, to every client
    COMMIT = "commit"
    LEAVE_QUEUE = "leave queue"  # the session's next turn may begin
    RELEASE = "release"  # what was held of the end
    END = "end"  # a clean end of the transfer
    RESET = "reset"  # an end that looks like none
    FAIL = "fail"  # an error where nothing is sent yet, else a reset; nothing where the answer has ended
    CANCEL = "cancel"  # the task, wherever it waits
    NOTE_UNSEEN = "note unseen"  # for retries: the turn may be on disk, and no client has seen its end


Commands = tuple[Command, ...]
ASK, BEGIN, COMMIT, LEAVE_QUEUE, RELEASE, END, RESET, FAIL, CANCEL, NOTE_UNSEEN = Command
_STOPS = (Event.STOP, Event.LEFT)
_OVER = (Phase.CLOSED, (LEAVE_QUEUE, FAIL))
_UNSEEN = (Phase.CLOSED, (LEAVE_QUEUE, NOTE_UNSEEN, FAIL))
_FAILED = (Phase.CLOSED, (FAIL,))
_COMMIT_FAILED = (Phase.CLOSED, (LEAVE_QUEUE, FAIL))
_BROKEN = {
    Event.BREAK_TO_KEEP: (Phase.INTERRUPTING, (COMMIT,)),
    Event.BREAK: (Phase.CLOSED, (LEAVE_QUEUE, RESET)),
}

# As in the head of this module, row by row.
TABLE: dict[Phase, dict[Event, tuple[Phase, Commands]]] = {
    Phase.STARTING: {
        Event.STARTED: (Phase.ASKING, (ASK,)),
        **dict.fromkeys(_STOPS, (Phase.CLOSED, ())),
        Event.FAULT: _FAILED,
        Event.OVER: _OVER,
    },
    Phase.ASKING: {
        Event.HEAD: (Phase.STREAMING, (BEGIN,)),
        **dict.fromkeys(_STOPS, (Phase.CLOSED, (CANCEL,))),
        Event.FAULT: _FAILED,
        Event.OVER: _OVER,
    },
    Phase.STREAMING: {
        Event.END_TO_KEEP: (Phase.COMMITTING, (COMMIT,)),
        Event.END: (Phase.RELEASED, (LEAVE_QUEUE, RELEASE)),
        **_BROKEN,
        **dict.fromkeys(_STOPS, (Phase.STOPPING, (CANCEL,))),
        Event.FAULT: _FAILED,
        Event.OVER: _OVER,
    },
    Phase.STOPPING: {**_BROKEN, Event.OVER: _OVER},
    Phase.COMMITTING: {
        Event.COMMITTED: (Phase.RELEASED, (LEAVE_QUEUE, RELEASE)),
        Event.COMMIT_FAILED: _COMMIT_FAILED,
        Event.OVER: _UNSEEN,
    },
    Phase.INTERRUPTING: {
        Event.COMMITTED: (Phase.CLOSED, (LEAVE_QUEUE, RESET)),
        Event.COMMIT_FAILED: _COMMIT_FAILED,
        Event.OVER: _UNSEEN,
    },
    Phase.RELEASED: {
        Event.TRANSFER_ENDED: (Phase.CLOSED, (END,)),
        Event.TRANSFER_BROKEN: (Phase.CLOSED, (RESET,)),
        Event.LEFT: (Phase.CLOSED, (CANCEL,)),
        Event.OVER: _OVER,
    },
    Phase.CLOSED: {Event.FAULT: _FAILED, Event.OVER: _OVER},
}


class TurnMachine:
    """One turn. `may_return`: a client that has left may come back for it. `finishes`: its answer is read to its end
    for a client that has left, for `limit` seconds at most."""

    __slots__ = ("_deadline", "_finishes", "_limit", "has_end", "may_return", "phase")

    def __init__(self, may_return: bool, finishes: bool, limit: float) -> None:
        self.phase = Phase.STARTING
        self.has_end = False  # of the answer, whole or broken
        self.may_return = may_return
        self._finishes, self._limit = finishes, limit
        self._deadline: float | None = None

    def feed(self, event: Event) -> Commands:
        """Enter the phase that follows an event. Returns the commands to execute, in order: none where the phase
        ignores the event."""
        if row := TABLE[self.phase].get(event):
            self.phase, commands = row
            return commands
        return ()

    def end(self, verdict: Verdict, recorded: bool) -> Commands:
        """The commands at the end of the answer, by the exchange's verdict. `recorded`: the turn may be committed."""
        self.has_end = True
        keeps = recorded and verdict in RECORDED
        if verdict in RELEASED:
            return self.feed(Event.END_TO_KEEP if keeps else Event.END)
        return self.feed(Event.BREAK_TO_KEEP if keeps else Event.BREAK)

    def stop(self, finished: Callable[[], bool], at_once: bool = False) -> Commands:
        """The commands to stop the turn. A reply that has its finish_reason (`finished`, which costs a fold) goes on
        to its end, unless `at_once`."""
        may_end = not self.has_end and (at_once or not finished())
        return self.feed(Event.STOP) if may_end else ()

    def watch(self, abandoned: bool, now: float, finished: Callable[[], bool]) -> Commands:
        """The commands after a poll of the clients at `now`, in seconds. `abandoned`: all have disconnected."""
        if not abandoned:
            self._deadline = None
            return ()
        if self.has_end or not self.may_return:
            return self.feed(Event.LEFT)  # nothing is left that anybody would come back for
        self._deadline = self._deadline or now + self._limit
        if now >= self._deadline:
            return self.feed(Event.LEFT)
        return () if self._finishes else self.stop(finished)
