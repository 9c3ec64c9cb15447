"""A request for a recorded turn: read it, decide how it is meant, wait in line where it must, start the turn.

Decided twice: on arrival, against the history and the turns in flight, and in its place again, for the tip
may have moved. The turn itself stands in `turn_task`; how lists are read, in `core.matching`.
"""

from __future__ import annotations

import logging
import time

from msgspec import Struct, structs

from proxy.context import request_log as lines
from proxy.context.in_flight import Place
from proxy.context.routing import Target
from proxy.context.runtime import Runtime
from proxy.core.history import History, Session
from proxy.core.json_bytes import dumps
from proxy.core.matching.alignment import Alignment
from proxy.core.matching.reconcile import decide
from proxy.core.matching.retries import is_retry, retried
from proxy.core.model import Answer, SessionState, Turn, TurnState
from proxy.core.plan import Decision, Mode, Plan
from proxy.dialects.chat import fingerprints as marks
from proxy.downstream.answers import json_answer
from proxy.downstream.broadcast import replay
from proxy.downstream.client_request import ClientRequest
from proxy.downstream.client_stream import Answered, Listener, WhileThere
from proxy.errors import IdempotencyKeyReused, Interrupted, SessionBusy, SessionNotFound, SessionQueueFull
from proxy.turns.attempts import Attempts
from proxy.turns.chat_request import Busy, Call, Wishes, read_call, wishes_of
from proxy.turns.turn_task import GRACE, RecordedTurn

log = logging.getLogger("proxy.relay")


class Reading(Struct, frozen=True):
    """A request held against its session: how it is meant, and where it tries a turn again, which: one in
    flight, or one that is kept, with the `answer` that its client was given."""

    session: Session
    plan: Plan
    attached: RecordedTurn | None = None
    again: Turn | None = None
    answer: Answer | None = None

    @property
    def is_answered(self) -> bool:
        """Whether the upstream need not be asked."""
        return self.attached is not None or self.answer is not None


async def handle(request: ClientRequest, runtime: Runtime, target: Target, session_id: str) -> Answered:
    wishes, call = wishes_of(request, runtime), await read_call(request, runtime, target, session_id)
    listener = Listener(request, runtime.config, runtime.watch)
    reading = await _read(runtime, call, wishes)
    if wishes.must_exist and reading.session.state is not SessionState.CONTINUED:
        raise SessionNotFound("There is no such session. Leave x-session-must-exist out to begin one.")
    if wishes.dry_run:
        return _dry_run(runtime, call, reading)
    place: Place | None = None
    if call.recorded and not reading.is_answered and not reading.plan.side:
        for turn in runtime.live.turns(call.key):
            if turn.id in reading.plan.demoted:
                turn.demote()
            elif reading.plan.alone and _is_left(turn, call):
                turn.stop(_interrupted())
        place = runtime.live.take(call.key)
    try:
        if call.recorded and not (place or reading.is_answered or reading.plan.alone):
            place = await _place(request, runtime, call, wishes.on_busy)
            reading = await _read(runtime, call, wishes)
        if reading.is_answered:
            if place:
                place.leave()
            return await _again(runtime, call, listener, reading)
        runtime.live.refuse_when_draining()  # those that need no place, too
        turn = RecordedTurn(runtime, call, reading.plan, reading.session, listener, place)
        call.line.decision, call.line.turn = reading.plan.decision, turn.id
    except BaseException:
        if place:
            place.leave()
        raise
    turn.start()
    await turn.broadcast.attend()
    turn.note_delivery()
    return listener


def _is_left(turn: RecordedTurn, call: Call) -> bool:
    """Whether a list in flight, that nobody listens to any more, is of the client that sends another one: it has gone
    on without that answer, which would be the latest where it ends last."""
    return turn.broadcast.deserted and turn.plan.resends and turn.call.client == call.client


def _interrupted() -> Interrupted:
    return Interrupted("Another request of the session interrupted this one. Nothing was recorded.")


async def _again(runtime: Runtime, call: Call, listener: Listener, reading: Reading) -> Answered:
    line, instead = call.line, [("x-session-decision", Decision.RETRY.value)]
    line.decision = Decision.RETRY
    if line.chosen:
        instead.append((lines.CHOSEN, line.chosen))
    if reading.attached:
        line.turn = reading.attached.id
        await reading.attached.broadcast.follow(listener, instead)
        reading.attached.note_delivery()
    elif reading.again and reading.answer:
        line.turn = reading.again.id
        await replay(listener, reading.again, reading.answer, [*instead, (lines.NAME, line.id)])
        undelivered = runtime.live.was_delivered(call.key, reading.again.id) is False
        if undelivered and not listener.gone:
            runtime.live.delivered(call.key, reading.again.id, True)
    return listener


async def _read(runtime: Runtime, call: Call, wishes: Wishes) -> Reading:
    """The session as it stands, and how the request is read against it and the turns in flight."""
    turns, session = await _standing(runtime, call)
    history = session.history
    flights = [turn.flight for turn in turns if not turn.plan.side]
    plan = decide(call.ask, history, marks, wishes.mode, flights, call.client)
    if call.recorded:
        if attached := _in_flight(call, turns, wishes.counted):
            return Reading(session, plan, attached=attached)
        last = history.last
        delivered = runtime.live.was_delivered(call.key, last.id) if last else None
        if again := _tried_before(runtime, call, history, wishes.counted, delivered):
            whole = again.state is TurnState.COMPLETE
            answer = await runtime.store.answer(call.key, again.id) if whole and not wishes.dry_run else None
            if answer or (turns, session) == await _standing(runtime, call):
                return Reading(session, retried(history, again, call.ask), again=again, answer=answer)
            return await _read(runtime, call, wishes)  # the session moved on while its answer was looked for
        if last and delivered is False and not turns and (once_more := _asked_again(call, history, last, wishes.mode)):
            return Reading(session, once_more)
    log.debug("%s: %s", plan.decision, plan.reason)
    return Reading(session, plan)


async def _standing(runtime: Runtime, call: Call) -> tuple[list[RecordedTurn], Session]:
    """The turns in flight and the session, of one moment: a turn may begin or end while a session is loaded."""
    while True:
        turns: list[RecordedTurn] = runtime.live.turns(call.key)
        session = await runtime.store.load(call.key, runtime.now(), in_use=bool(turns))
        if turns == runtime.live.turns(call.key):
            return turns, session


def _in_flight(call: Call, turns: list[RecordedTurn], counted: bool) -> RecordedTurn | None:
    """The turn in flight that a request tries again."""
    for turn in turns:
        equal = turn.call.request == call.request
        if call.idempotency_key is not None and turn.call.idempotency_key == call.idempotency_key:
            if not equal:
                raise _reused()
            return turn
        keys = (call.idempotency_key, turn.call.idempotency_key)
        if equal and keys == (None, None) and (turn.broadcast.deserted or counted):
            return turn
    return None


def _tried_before(runtime: Runtime, call: Call, history: History, counted: bool, delivered: bool | None) -> Turn | None:
    """The turn of the history that a request tries again; `delivered`: whether a client saw the end of the last."""
    if call.idempotency_key is not None:
        for turn in reversed(history.turns):
            if turn.idempotency_key == call.idempotency_key:
                if turn.request != call.request:
                    raise _reused()
                return turn
        return None
    last = history.last
    if last and is_retry(call.request, last, counted, delivered):
        return last
    if last and last.request == call.request:
        # It is a turn of its own; should it fail and be counted when it comes again, that is not a retry of the last.
        runtime.live.delivered(call.key, last.id, True)
    return None


def _asked_again(call: Call, history: History, last: Turn, mode: Mode) -> Plan | None:
    """The plan of the `last` turn, whose client gave up before it saw the end, where it asks the same under another
    system prompt: one with a clock in it. It is run again from where it began."""
    if not last.asked:
        return None
    plan = decide(call.ask, history.before(last), marks, mode, (), call.client)
    alignment = Alignment(plan.asked, marks)
    same = len(plan.asked) == len(last.asked) and alignment.begins(0, last.asked)
    if plan.side or not same or (plan.parent, plan.layout) != (last.parent, last.layout):
        return None
    return structs.replace(plan, decision=Decision.RETRY, reason="the last turn, whose end nobody saw, asked again")


def _reused() -> IdempotencyKeyReused:
    return IdempotencyKeyReused(
        "This Idempotency-Key came with another body before. Send the same body, or choose another key.",
        param="Idempotency-Key",
    )


async def _place(request: ClientRequest, runtime: Runtime, call: Call, on_busy: Busy) -> Place:
    """The place in a line that is not free now. Turns that nobody listens to any more are cut for it, but not
    one with the same body: its client may come back for it. One that has its finish_reason has a moment to end."""
    sessions, live = runtime.config.sessions, runtime.live
    if on_busy is Busy.REJECT:
        raise SessionBusy("A turn of this session is in flight. Send this one when it has ended, or let it queue.")

    patient = time.monotonic() + GRACE

    def look(interrupts: bool = False) -> None:
        for turn in live.turns(call.key):
            orphaned = turn.broadcast.deserted and turn.call.request != call.request
            if turn.follows and (interrupts or orphaned):
                turn.stop(_interrupted(), at_once=time.monotonic() > patient)

    look(on_busy is Busy.INTERRUPT)
    waits: float | None = time.monotonic()
    try:
        async with WhileThere(request, runtime.watch, look):
            place: Place = await live.place(call.key, sessions.queue_limit, sessions.queue_timeout)
    except SessionQueueFull:
        waits = None  # it was not let in
        raise
    finally:
        call.line.queue = 0.0 if waits is None else time.monotonic() - waits
    return place


def _dry_run(runtime: Runtime, call: Call, reading: Reading) -> Answered:
    """What `x-session-dry-run` answers: the exact body, and where each of its messages came from."""
    plan = reading.plan
    first = Attempts(runtime, call, plan, reading.session.history, probes=False)
    dropped = first.fit.dropped
    sources: list[dict[str, str]] = []
    if plan.system is not None:
        sources.append({"from": "request" if call.ask.system is not None else "history", "role": "system"})
    rest = plan.sent[dropped:]
    if first.fit.window.summary is not None:
        sources.append({"from": "summary", "role": "user"})
        behind = [entry.message if entry else theirs for entry, theirs in rest[:1]]
        if any([message and message.role == "user" for message in behind]):  # which never follows another
            sources.append({"from": "proxy", "role": "assistant"})
    for entry, theirs in rest:
        if entry:
            sources.append({"from": "history", "turn": entry.turn.id, "role": entry.message.role})
        elif theirs:
            sources.append({"from": "request", "role": theirs.role})
    told = {"decision": plan.decision, "reason": plan.reason, "injected": first.injected, "dropped": dropped}
    return json_answer(dumps({**told, "messages": sources, "body": b"".join(first.body).decode(errors="replace")}))
