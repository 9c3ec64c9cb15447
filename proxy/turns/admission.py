"""Admits a request for a recorded turn: reads it, decides how it is meant, queues it if necessary, starts the turn.

Decides on arrival, against the history and the turns in flight, and again after the queue, because the tip may have
moved. `turn_task` runs the turn; `core.matching` reads the lists.
"""

from __future__ import annotations

import logging
import time

from msgspec import Struct, structs

from proxy.context import request_log
from proxy.context.in_flight import QueueSlot
from proxy.context.routing import Target
from proxy.context.runtime import Runtime
from proxy.core.history import History, Session
from proxy.core.json_bytes import dumps
from proxy.core.matching.alignment import Alignment
from proxy.core.matching.reconcile import decide
from proxy.core.matching.retries import is_retry, retried
from proxy.core.model import Answer, SessionState, Turn, TurnState
from proxy.core.plan import Decision, Mode, Plan
from proxy.dialects.chat import fingerprints
from proxy.downstream.answers import json_answer
from proxy.downstream.broadcast import replay
from proxy.downstream.client_request import ClientRequest
from proxy.downstream.client_stream import CancelOnDisconnect, ClientStream, HandlerResult
from proxy.errors import IdempotencyKeyReused, Interrupted, SessionBusy, SessionNotFound, SessionQueueFull
from proxy.turns.attempts import Attempts
from proxy.turns.chat_request import Busy, ChatRequest, RequestOptions, read_chat_request, request_options
from proxy.turns.turn_task import GRACE, RecordedTurn

log = logging.getLogger("proxy.relay")


class Admission(Struct, frozen=True):
    """The decision on a request. A retry names its turn: `attached` if it is in flight, else `earlier`, with the stored
    `answer`."""

    session: Session
    plan: Plan
    attached: RecordedTurn | None = None
    earlier: Turn | None = None
    answer: Answer | None = None

    @property
    def is_answered(self) -> bool:
        """Whether the request is answered without the upstream."""
        return self.attached is not None or self.answer is not None


async def handle(request: ClientRequest, runtime: Runtime, target: Target, session_id: str) -> HandlerResult:
    """Answer a request for a recorded turn: run a turn, join the one it retries, or replay a stored answer."""
    options, chat = request_options(request, runtime), await read_chat_request(request, runtime, target, session_id)
    client = ClientStream(request, runtime.config, runtime.poller)
    admission = await _admit(runtime, chat, options)
    if options.must_exist and admission.session.state is not SessionState.CONTINUED:
        raise SessionNotFound("No such session. Leave x-session-must-exist out to begin one.")
    if options.dry_run:
        return _dry_run(runtime, chat, admission)
    slot: QueueSlot | None = None
    if chat.recorded and not admission.is_answered and not admission.plan.side:
        for turn in runtime.registry.turns(chat.key):
            if turn.id in admission.plan.demoted:
                turn.demote()
            elif admission.plan.alone and _is_abandoned(turn, chat):
                turn.stop(_interrupted())
        slot = runtime.registry.take_slot(chat.key)
    try:
        if chat.recorded and not (slot or admission.is_answered or admission.plan.alone):
            slot = await _wait_for_slot(request, runtime, chat, options.on_busy)
            admission = await _admit(runtime, chat, options)
        if admission.is_answered:
            if slot:
                slot.leave()
            return await _answer_retry(runtime, chat, client, admission)
        runtime.registry.refuse_when_draining()  # those that need no place, too
        turn = RecordedTurn(runtime, chat, admission.plan, admission.session, client, slot)
        chat.access.decision, chat.access.turn = admission.plan.decision, turn.id
    except BaseException:
        if slot:
            slot.leave()
        raise
    turn.start()
    await turn.broadcast.attend()
    turn.note_delivery()
    return client


def _is_abandoned(turn: RecordedTurn, chat: ChatRequest) -> bool:
    """Whether a turn in flight carries a list, has lost its client, and belongs to the software that sends this one.
    That client continues without the answer, which must not become the tip."""
    return turn.broadcast.abandoned and turn.plan.resends and turn.chat.client == chat.client


def _interrupted() -> Interrupted:
    return Interrupted(
        "Another request of this session interrupted this one, and nothing was recorded. Send it again if it is still"
        " wanted."
    )


async def _answer_retry(
    runtime: Runtime, chat: ChatRequest, client: ClientStream, admission: Admission
) -> HandlerResult:
    access, instead = chat.access, [("x-session-decision", Decision.RETRY.value)]
    access.decision = Decision.RETRY
    if access.chosen:
        instead.append((request_log.CHOSEN, access.chosen))
    if admission.attached:
        access.turn = admission.attached.id
        await admission.attached.broadcast.resume(client, instead)
        admission.attached.note_delivery()
    elif admission.earlier and admission.answer:
        access.turn = admission.earlier.id
        await replay(client, admission.earlier, admission.answer, [*instead, (request_log.NAME, access.id)])
        undelivered = runtime.registry.was_delivered(chat.key, admission.earlier.id) is False
        if undelivered and not client.disconnected:
            runtime.registry.delivered(chat.key, admission.earlier.id, True)
    return client


async def _admit(runtime: Runtime, chat: ChatRequest, options: RequestOptions) -> Admission:
    """Load the session, and decide what the request means against it and the turns in flight."""
    turns, session = await _snapshot(runtime, chat)
    history = session.history
    flights = [turn.flight for turn in turns if not turn.plan.side]
    plan = decide(chat.ask, history, fingerprints, options.mode, flights, chat.client)
    if chat.recorded:
        if attached := _retried_in_flight(chat, turns, options.counted):
            return Admission(session, plan, attached=attached)
        last = history.last
        delivered = runtime.registry.was_delivered(chat.key, last.id) if last else None
        if earlier := _retried_turn(runtime, chat, history, options.counted, delivered):
            whole = earlier.state is TurnState.COMPLETE
            answer = await runtime.store.answer(chat.key, earlier.id) if whole and not options.dry_run else None
            if answer or (turns, session) == await _snapshot(runtime, chat):
                return Admission(session, retried(history, earlier, chat.ask), earlier=earlier, answer=answer)
            return await _admit(runtime, chat, options)  # the session moved on while its answer was looked for
        if (
            last
            and delivered is False
            and not turns
            and (once_more := _retried_with_another_prompt(chat, history, last, options.mode))
        ):
            return Admission(session, once_more)
    log.debug("%s: %s", plan.decision, plan.reason)
    return Admission(session, plan)


async def _snapshot(runtime: Runtime, chat: ChatRequest) -> tuple[list[RecordedTurn], Session]:
    """Return the turns in flight and the session of one moment: a turn may begin or end during a load."""
    while True:
        turns: list[RecordedTurn] = runtime.registry.turns(chat.key)
        session = await runtime.store.load(chat.key, runtime.now(), in_use=bool(turns))
        if turns == runtime.registry.turns(chat.key):
            return turns, session


def _retried_in_flight(chat: ChatRequest, turns: list[RecordedTurn], counted: bool) -> RecordedTurn | None:
    """Find the turn in flight that a request retries."""
    for turn in turns:
        equal = turn.chat.request == chat.request
        if chat.idempotency_key is not None and turn.chat.idempotency_key == chat.idempotency_key:
            if not equal:
                raise _reused()
            return turn
        keys = (chat.idempotency_key, turn.chat.idempotency_key)
        if equal and keys == (None, None) and (turn.broadcast.abandoned or counted):
            return turn
    return None


def _retried_turn(
    runtime: Runtime, chat: ChatRequest, history: History, counted: bool, delivered: bool | None
) -> Turn | None:
    """Find the turn of the history that a request retries. `delivered`: whether the end of the last was delivered."""
    if chat.idempotency_key is not None:
        for turn in reversed(history.turns):
            if turn.idempotency_key == chat.idempotency_key:
                if turn.request != chat.request:
                    raise _reused()
                return turn
        return None
    last = history.last
    if last and is_retry(chat.request, last, counted, delivered):
        return last
    if last and last.request == chat.request:
        # It is a turn of its own; should it fail and be counted when it comes again, that is not a retry of the last.
        runtime.registry.delivered(chat.key, last.id, True)
    return None


def _retried_with_another_prompt(chat: ChatRequest, history: History, last: Turn, mode: Mode) -> Plan | None:
    """Return a plan that runs the undelivered `last` turn again, if the request differs from it in the system prompt
    alone, such as one with a clock in it."""
    if not last.asked:
        return None
    plan = decide(chat.ask, history.before(last), fingerprints, mode, (), chat.client)
    alignment = Alignment(plan.asked, fingerprints)
    same = len(plan.asked) == len(last.asked) and alignment.begins(0, last.asked)
    if plan.side or not same or (plan.parent, plan.layout) != (last.parent, last.layout):
        return None
    return structs.replace(plan, decision=Decision.RETRY, reason="the last turn, whose end nobody saw, asked again")


def _reused() -> IdempotencyKeyReused:
    return IdempotencyKeyReused(
        "This Idempotency-Key was already used with a different body. Send the same body, or choose another key.",
        param="Idempotency-Key",
    )


async def _wait_for_slot(request: ClientRequest, runtime: Runtime, chat: ChatRequest, on_busy: Busy) -> QueueSlot:
    """Wait for the session's queue slot. Turns without a client are stopped for it, except one with the same body,
    whose client may come back. A turn that has its finish_reason gets a moment to end."""
    sessions, registry = runtime.config.sessions, runtime.registry
    if on_busy is Busy.REJECT:
        raise SessionBusy(
            "Another request of this session is running. Send this one when it has ended, or set x-session-on-busy:"
            " queue."
        )

    patient = time.monotonic() + GRACE

    def interrupt(interrupts: bool = False) -> None:
        for turn in registry.turns(chat.key):
            orphaned = turn.broadcast.abandoned and turn.chat.request != chat.request
            if turn.follows and (interrupts or orphaned):
                turn.stop(_interrupted(), at_once=time.monotonic() > patient)

    interrupt(on_busy is Busy.INTERRUPT)
    waits: float | None = time.monotonic()
    try:
        async with CancelOnDisconnect(request, runtime.poller, interrupt):
            slot: QueueSlot = await registry.wait_for_slot(chat.key, sessions.queue_limit, sessions.queue_timeout)
    except SessionQueueFull:
        waits = None  # it was not let in
        raise
    finally:
        chat.access.queue = 0.0 if waits is None else time.monotonic() - waits
    return slot


def _dry_run(runtime: Runtime, chat: ChatRequest, admission: Admission) -> HandlerResult:
    """Answer a dry run: the exact body that would be sent, and the origin of each message."""
    plan = admission.plan
    first = Attempts(runtime, chat, plan, admission.session.history, probes=False)
    dropped = first.fit.dropped
    sources: list[dict[str, str]] = []
    if plan.system is not None:
        sources.append({"from": "request" if chat.ask.system is not None else "history", "role": "system"})
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
