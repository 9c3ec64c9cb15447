"""A recorded turn in flight: asks the upstream, hands the answer on as it comes, commits the turn, releases the end.

A task of its own, because handlers end when their clients disconnect. What happens when is decided by
`core.turn_machine`, and executed here; what the bytes mean is decided by `core.exchange`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import cast

from msgspec import structs

from proxy.context.in_flight import QueueSlot
from proxy.context.runtime import Runtime
from proxy.core import headers, turn_machine
from proxy.core.exchange import Dialect, Exchange
from proxy.core.history import Session
from proxy.core.inflate import Broken
from proxy.core.model import Answer
from proxy.core.plan import Flight, Plan
from proxy.core.turn_machine import Commands, Event, Phase, TurnMachine
from proxy.core.usage import counts
from proxy.dialects.chat import wire
from proxy.downstream.broadcast import Broadcast
from proxy.downstream.client_stream import ClientStream
from proxy.errors import Interrupted, ProxyError, Stopped, StoreUnavailable
from proxy.turns.attempts import Attempts
from proxy.turns.chat_request import ChatRequest, client_headers, not_recorded, of_turn, upstream_headers
from proxy.turns.record import Record
from proxy.upstream.body import Body
from proxy.upstream.client import Response

log = logging.getLogger("proxy.turn")
_CHAT = cast(Dialect, wire)
GRACE = 2.0  # seconds that a reply which has its finish_reason gets to end as its upstream ends it, once it is stopped


class RecordedTurn:
    """Runs one turn. `start` begins it; its task ends when the answer has ended, one way or the other.

    `plan` says how the request `chat` is read against the history of `session`; `slot` is its place in the queue, None
    where it needs none. Raises BadRequest and ContextTooLong.
    """

    def __init__(
        self,
        runtime: Runtime,
        chat: ChatRequest,
        plan: Plan,
        session: Session,
        client: ClientStream,
        slot: QueueSlot | None,
    ) -> None:
        limit = runtime.config.limits.recorded_reply
        self.id = runtime.turn_id()
        self.chat = chat
        self.plan = plan
        self.follows = slot is not None  # the session's next turn waits for it
        self.broadcast = Broadcast(client, limit)
        self.task: asyncio.Task[None] | None = None
        self._runtime, self._session, self._slot = runtime, session, slot
        self._recorded = chat.recorded
        self._attempts = Attempts(runtime, chat, plan, session.history)
        self.record = Record(runtime, chat, session, self._attempts, self.id)
        self._exchange = Exchange(_CHAT, limit)
        sessions = runtime.config.sessions
        self._machine = TurnMachine(chat.recorded and not plan.side, chat.finishes, sessions.finish_limit)
        self.committed = False
        self._noted: bool | None = None  # what was noted of its delivery
        self._stopped: ProxyError | None = None

    @property
    def parent(self) -> str | None:
        return self.plan.parent

    @property
    def flight(self) -> Flight:
        ask, plan = self.chat.ask, self.plan
        client, gone = plan.client if plan.carries_history else self.chat.client, self.broadcast.abandoned
        shown = plan.carries_history, plan.spliced
        return Flight(plan.asked, ask.system, ask.tools, plan.resends, self.id, client, gone, *shown, ask)

    def demote(self) -> None:
        """Turn this turn into a side request, because the main chat's request has arrived. Leaves the session's queue.
        Does nothing once the answer has ended."""
        if not self._machine.has_end:
            self.plan = structs.replace(self.plan, parent=None, layout=None, side=True)
            self._machine.may_return = self.follows = False
            self._do((turn_machine.LEAVE_QUEUE,))

    def stop(self, fault: ProxyError | None = None, at_once: bool = False) -> None:
        """End the turn; what came is recorded. One whose reply has its finish_reason goes on to its end, unless
        `at_once`. `fault` is for clients that have been given nothing yet."""
        phase = self._machine.phase
        self._end(phase, self._machine.stop(lambda: self._exchange.has_finished, at_once), fault)

    def _poll(self) -> None:
        """Look at the clients: one that leaves while nothing is written to it is told nowhere else."""
        self.broadcast.poll()
        phase, finished = self._machine.phase, lambda: self._exchange.has_finished
        self._end(phase, self._machine.watch(self.broadcast.abandoned, time.monotonic(), finished))

    def _end(self, phase: Phase, commands: Commands, fault: ProxyError | None = None) -> None:
        if self._machine.phase is not phase:
            self.broadcast.why = "interrupt" if isinstance(fault, Interrupted) else "stop"
            self._stopped = fault or Stopped("The turn was stopped before its answer began. Nothing was recorded.")
        if turn_machine.CANCEL in commands and self.task:
            self.task.cancel()

    def start(self) -> asyncio.Task[None]:
        """Begin; the task ends when the answer has ended."""
        if self._recorded:
            self._runtime.registry.enter(self.chat.key, self)
        self._runtime.poller.add(self._poll)
        self.task = self._runtime.registry.start(self._run(), self._over)
        return self.task

    def _over(self) -> None:
        # Not in the task itself: one that is cancelled before its first step runs no `finally`.
        self._runtime.poller.remove(self._poll)
        self._do(self._machine.feed(Event.OVER))
        if self._recorded:
            self._runtime.registry.leave(self.chat.key, self)
        if self.committed and not self.plan.side:
            self._attempts.fit.committed()
        self._runtime.counters.turns[self.plan.decision, self.chat.access.outcome or "failed"] += 1

    async def _run(self) -> None:
        """Ask and relay, until a stop cancels that; what came by then is settled."""
        machine, store, key = self._machine, self._runtime.store, self.chat.key
        try:
            self._started = self._runtime.now()
            await store.touch(key, self._started)
            try:
                if turn_machine.ASK in machine.feed(Event.STARTED):
                    while await self._try():
                        pass
            except asyncio.CancelledError:
                if self._stopped is None or (self.task and self.task.uncancel()):
                    raise  # it was not, or not only, the stop
                if machine.phase is Phase.STOPPING:
                    await self._settle(False)
            except ProxyError as fault:
                self._do(machine.feed(Event.FAULT), fault)  # before the wait below, in which a stop may come
            finally:
                if not self.committed:  # the end of a turn is a sign of life, whatever became of it
                    await store.touch(key, self._runtime.now())
        except ProxyError as fault:
            self._do(machine.feed(Event.FAULT), fault)
        except Exception:
            log.exception("internal error in request %s; report the traceback below", self.chat.access.id)

    def _do(self, commands: Commands, fault: ProxyError | None = None, broke: float | None = None) -> None:
        """What needs no wait. `fault` and `broke` as Broadcast's; without a fault FAIL takes that of the stop."""
        for command in commands:
            if command is turn_machine.LEAVE_QUEUE:
                if slot := self._slot:
                    self._slot = None
                    slot.leave()
            elif command is turn_machine.RESET:
                self.broadcast.fail(None, broke)
            elif command is turn_machine.FAIL and not self.broadcast.ended:
                id = self.chat.access.id
                told = fault or self._stopped or ProxyError(f"Internal proxy error. Look for {id} in the proxy's log.")
                self.broadcast.fail(told, broke)
            elif command is turn_machine.NOTE_UNSEEN and not self.plan.side:
                self._runtime.registry.delivered(self.chat.key, self.id, False)  # it may be in the history all the same

    async def _try(self) -> bool:
        """Ask the upstream once, and relay its answer; whether to ask again, for it refused what was sent."""
        runtime, target = self._runtime, self.chat.target
        sent = upstream_headers(self.chat, runtime)
        self.chat.access.asked = self.chat.access.asked or time.monotonic()
        answer = await runtime.client.ask("POST", target.url, sent, self._attempts.body, target.upstream)
        asked = [answer]
        try:
            body = Body(answer)
            if await self._attempts.refused(answer, body):
                return True
            if turn_machine.BEGIN in self._machine.feed(Event.HEAD):
                self._begin(answer, body)
            if self.chat.ask.stream and self._streams(answer) and self._attempts.fit.looks_within:
                body = await self._opened(answer, body, asked)
            clean = await self._pieces(body) and body.is_whole
            if not self._machine.has_end:
                await self._settle(clean)
            commands = self._machine.feed(Event.TRANSFER_ENDED if clean else Event.TRANSFER_BROKEN)
            if turn_machine.END in commands:
                await self.broadcast.end()
                self.note_delivery()
            else:
                self._do(commands)
        finally:
            for each in asked:
                each.close()
        return False

    def _begin(self, answer: Response, body: Body) -> None:
        """Hand the head on, with our headers; the upstream's own errors go through untouched."""
        self._said = status, kind = answer.status, answer.get("content-type")
        succeeds = 200 <= status < 300
        inflated = succeeds and body.undo()
        self._exchange.begin(status, kind, None if inflated else answer.length, body.unknown)
        if succeeds:
            told = self._session.state, self.id, self.plan.decision, self._attempts.injected, self._attempts.fit.dropped
            ours = of_turn(*told)
            if self._recorded and (reason := self._exchange.unrecorded):  # it is known from the head
                ours.append(not_recorded(reason))
            shown = client_headers(answer, self.chat, inflated) + ours
        else:
            shown = headers.end_to_end(answer.headers)
        self.broadcast.begin(status, shown, not answer.is_here)

    def _streams(self, answer: Response) -> bool:
        """Whether an answer to a request for a stream is one."""
        return answer.status == 200 and answer.length is None and answer.get("content-encoding") is None

    async def _opened(self, answer: Response, body: Body, asked: list[Response]) -> Body:
        """The body of a stream, or of the one that comes in its place: where its first event says that the prompt is
        too long, less of it is sent. The client has the head, and sees nothing of that."""
        runtime, target = self._runtime, self.chat.target
        while await self._attempts.refused_within(answer, body, self._hand_on):
            sent = upstream_headers(self.chat, runtime)
            try:
                again = await runtime.client.ask("POST", target.url, sent, self._attempts.body, target.upstream)
            except ProxyError:
                break  # the first answer's error stands
            asked.append(again)
            if not self._streams(again):
                break
            answer, body = again, Body(again)
        return body

    async def _pieces(self, body: Body) -> bool:
        """Hand pieces on until the end of the transfer; whether it ended as HTTP says."""
        exchange, broadcast = self._exchange, self.broadcast
        try:
            while await body.flow(self._hand_on):
                if exchange.terminated and not self._machine.has_end:
                    await self._settle(True)
                if broadcast.ended:
                    return False  # its end is not to be released
                if self._machine.has_end and broadcast.abandoned:
                    return True  # nobody waits for what follows the end; who comes now gets what there is, whole
                await broadcast.wait_writable()
        except (ProxyError, Broken):
            return self.committed and exchange.ends_itself  # all that counts was given
        return True

    def _hand_on(self, piece: bytes, chunks: bytes) -> bool:
        """Whether the next piece may come without a look at what else is to be done."""
        broadcast = self.broadcast
        out = self._exchange.receive(piece)
        if out is piece:
            return broadcast.write_nowait(piece, chunks) and not (self._machine.has_end or broadcast.ended)
        goes_on = broadcast.write_nowait(out) if out else True
        return goes_on and not (self._machine.has_end or broadcast.ended or self._exchange.terminated)

    async def _settle(self, clean: bool) -> None:
        """The end of the answer is here, or it broke off: commit the turn, and release the end or reset."""
        access = self.chat.access
        access.ended = time.monotonic()
        outcome, fault = self._exchange.finish(clean), None
        access.outcome = outcome.verdict.value
        if self._recorded and (reason := self._exchange.unrecorded):
            self._runtime.counters.unrecorded[reason] += 1
            self.broadcast.tell(not_recorded(reason))
        commands = self._machine.end(outcome.verdict, self._recorded)
        if turn_machine.COMMIT in commands:
            try:
                answer = Answer(*self._said, self._exchange.answer)
                self.committed = await self.record.commit(self.plan, outcome, self._started, answer)
            except StoreUnavailable as error:
                log.error("turn %s could not be committed, and the end of its answer is held: %s", self.id, error)
                fault, access.outcome, self.broadcast.why = error, "unkept", "store"
            commands = self._machine.feed(Event.COMMIT_FAILED if fault else Event.COMMITTED)
        access.released = time.monotonic()
        self._do(commands, fault, access.ended)
        if turn_machine.RELEASE in commands and (held := self._exchange.release()):
            await self.broadcast.write(held)
            self.broadcast.delivered = not self.broadcast.abandoned
        self.note_delivery()
        if usage := outcome.reply.usage:
            self._runtime.counters.used(counts(usage))

    def note_delivery(self) -> None:
        """For retries: whether a client has seen the end of what was kept. One who takes long tells nothing of
        a session whose next turn is kept already."""
        registry, key, delivered = self._runtime.registry, self.chat.key, self.broadcast.delivered
        if self.committed and delivered is not self._noted and not self.plan.side:
            if self._noted is None or registry.was_delivered(key, self.id) is not None:
                registry.delivered(key, self.id, delivered)
            self._noted = delivered
