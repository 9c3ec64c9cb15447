"""A recorded turn in flight: ask the upstream, hand the answer on as it comes, keep it, and let the end go.

A task of its own: handlers come and go. What the bytes mean is decided in `core.exchange`, what of them
remains in `dialects`; how requests reach an upstream stands in `upstream`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import cast

from msgspec import structs

from proxy.context.in_flight import Place
from proxy.context.runtime import Runtime
from proxy.core import headers
from proxy.core.exchange import RECORDED, RELEASED, Dialect, Exchange
from proxy.core.history import Session
from proxy.core.inflate import Broken
from proxy.core.model import Answer
from proxy.core.plan import Flight, Plan
from proxy.core.usage import counts
from proxy.dialects.chat import wire as chat
from proxy.downstream.broadcast import Broadcast
from proxy.downstream.client_stream import Listener
from proxy.errors import Interrupted, ProxyError, Stopped, StoreUnavailable
from proxy.turns.attempts import Attempts
from proxy.turns.chat_request import Call, client_headers, not_recorded, of_turn, upstream_headers
from proxy.turns.record import Record
from proxy.upstream.body import Body
from proxy.upstream.client import Response

log = logging.getLogger("proxy.turn")
_CHAT = cast(Dialect, chat)
GRACE = 2.0  # seconds that a reply which has its finish_reason gets to end as its upstream ends it, once it is stopped


class RecordedTurn:
    """One turn in flight. `run` ends when the answer has ended, one way or the other.

    Made of a call, how it was read, and the history it was read against. Raises BadRequest.
    """

    def __init__(
        self, runtime: Runtime, call: Call, plan: Plan, session: Session, listener: Listener, place: Place | None
    ) -> None:
        limit = runtime.config.limits.recorded_reply
        self.id = runtime.turn_id()
        self.call = call
        self.plan = plan
        self.follows = place is not None  # it stands in line: the next turn waits for it
        self.broadcast = Broadcast(listener, limit)
        self.task: asyncio.Task[None] | None = None
        self._runtime, self._session, self._place = runtime, session, place
        self._recorded = call.recorded
        self._attempts = Attempts(runtime, call, plan, session.history)
        self.record = Record(runtime, call, session, self._attempts, self.id)
        self._exchange = Exchange(_CHAT, limit)
        self._cuttable = False  # a stop cancels the task
        self._settling = self._committing = self.kept = False
        self._noted: bool | None = None  # what was noted of its delivery
        self._stopped: ProxyError | None = None
        self._deadline: float | None = None

    @property
    def parent(self) -> str | None:
        return self.plan.parent

    @property
    def flight(self) -> Flight:
        ask, plan = self.call.ask, self.plan
        client, gone = plan.client if plan.carries else self.call.client, self.broadcast.deserted
        shown = plan.carries, plan.spliced
        return Flight(plan.asked, ask.system, ask.tools, plan.resends, self.id, client, gone, *shown, ask)

    def demote(self) -> None:
        """It turned out to be a side request: the chat that it was asked for is here, and takes its place."""
        if not self._settling:
            self.plan = structs.replace(self.plan, parent=None, layout=None, side=True)
            self.follows = False
            self._leave()

    def stop(self, fault: ProxyError | None = None, at_once: bool = False) -> None:
        """Cut the turn: what was said is kept. One whose reply has its finish_reason goes on to its end, unless
        `at_once`. `fault` is for clients that have been given nothing yet."""
        if not self._settling and (at_once or not self._exchange.has_finished):
            self._end(fault)

    def start(self) -> asyncio.Task[None]:
        """Begin; the task ends when the answer has ended."""
        if self._recorded:
            self._runtime.live.enter(self.call.key, self)
        self._runtime.watch.add(self._look)
        self.task = self._runtime.live.start(self._run(), self._over)
        return self.task

    def _over(self) -> None:
        # Not in the task itself: one that is cancelled before its first step runs no `finally`.
        self._runtime.watch.remove(self._look)
        if not self.broadcast.ended:
            self.broadcast.fail(self._stopped or ProxyError("The proxy failed at this request. Its log says why."))
        if self._recorded:
            self._runtime.live.leave(self.call.key, self)
        if self._committing and not self.plan.side:
            self._runtime.live.delivered(self.call.key, self.id, False)  # it may be in the history all the same
        self._leave()
        if self.kept and not self.plan.side:
            self._attempts.fit.kept()
        self._runtime.numbers.turns[self.plan.decision, self.call.line.outcome or "failed"] += 1

    async def _run(self) -> None:
        try:
            self._started = self._runtime.now()
            await self._runtime.store.touch(self.call.key, self._started)
            try:
                await self._answer()
            finally:
                if not self.kept:  # the end of a turn is a sign of life, whatever became of it
                    await self._runtime.store.touch(self.call.key, self._runtime.now())
        except ProxyError as fault:
            self.broadcast.fail(fault)
        except Exception:
            log.exception("a fault of the proxy's own")

    async def _answer(self) -> None:
        """Ask and relay, until a stop cuts it; what was cut is settled behind it."""
        self._cuttable = self._stopped is None
        try:
            while self._cuttable and await self._try():
                pass
        except asyncio.CancelledError:
            if self._stopped is None or (self.task and self.task.uncancel()):
                raise  # it was not, or not only, the stop
            self._cuttable = False
            if self.broadcast.status and not self._settling:
                await self._settle(False)
        finally:
            self._cuttable = False

    def _end(self, fault: ProxyError | None = None) -> None:
        if self._stopped is None:
            self.broadcast.why = "interrupt" if isinstance(fault, Interrupted) else "stop"
            self._stopped = fault or Stopped("The turn was stopped before its answer began. Nothing was recorded.")
            if self._cuttable and self.task:
                self.task.cancel()

    def _look(self) -> None:
        """Whether somebody listens: a client that leaves while nothing is written to it is told nowhere else."""
        self.broadcast.look()
        if not self.broadcast.deserted:
            self._deadline = None
        elif self._settling or not self._recorded or self.plan.side:
            self._end_unless_committing()  # nothing is left that anybody would look for
        else:
            if not self.call.finishes:
                self.stop()  # one that says that it is whole goes on, as one that is to finish
            now = time.monotonic()
            self._deadline = self._deadline or now + self._runtime.config.sessions.finish_limit
            if now >= self._deadline:
                self._end_unless_committing()

    def _end_unless_committing(self) -> None:
        if not self._committing:
            self._end()

    async def _try(self) -> bool:
        """Ask the upstream once; whether to ask again, for it refused what was sent."""
        runtime, target = self._runtime, self.call.target
        sent = upstream_headers(self.call, runtime)
        self.call.line.asked = self.call.line.asked or time.monotonic()
        answer = await runtime.client.ask("POST", target.url, sent, self._attempts.body, target.upstream)
        asked = [answer]
        try:
            body = Body(answer)
            if await self._attempts.refused(answer, body):
                return True
            await self._relay(answer, body, asked)
        finally:
            for each in asked:
                each.close()
        return False

    async def _relay(self, answer: Response, body: Body, asked: list[Response]) -> None:
        inflated = 200 <= answer.status < 300 and body.undo()
        self._said = status, kind = answer.status, answer.get("content-type")
        self._exchange.begin(status, kind, None if inflated else answer.length, body.unknown)
        self.broadcast.begin(answer.status, self._client_headers(answer, inflated), not answer.is_here)
        if self._streams(answer) and self._attempts.fit.looks_within:
            body = await self._opened(answer, body, asked)
        clean = await self._pieces(body) and body.is_whole
        if not self._settling:
            await self._settle(clean)
        if clean and not self.broadcast.ended:
            await self.broadcast.end()
            self.note_delivery()
        else:
            self.broadcast.fail()

    def _streams(self, answer: Response) -> bool:
        streams = self.call.ask.stream and answer.status == 200 and answer.length is None
        return streams and answer.get("content-encoding") is None

    async def _opened(self, answer: Response, body: Body, asked: list[Response]) -> Body:
        """The body of a stream, or of the one that comes in its place: where its first event says that the prompt is
        too long, less of it is sent. The client has the head, and sees nothing of that."""
        runtime, target = self._runtime, self.call.target
        while await self._attempts.refused_within(answer, body, self._hand_on):
            sent = upstream_headers(self.call, runtime)
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
                if exchange.terminated and not self._settling:
                    await self._settle(True)
                if broadcast.ended:
                    return False  # its end is not to be released
                if self._settling and broadcast.deserted:
                    return True  # nobody waits for what follows the end; who comes now gets what there is, whole
                await broadcast.room()
        except (ProxyError, Broken):
            return self.kept and exchange.ends_itself  # all that counts was given
        return True

    def _hand_on(self, piece: bytes, chunks: bytes) -> bool:
        """Whether the next piece may come without a look at what else is to be done."""
        broadcast = self.broadcast
        out = self._exchange.receive(piece)
        if out is piece:
            return broadcast.put(piece, chunks) and not (self._settling or broadcast.ended)
        goes_on = broadcast.put(out) if out else True
        return goes_on and not (self._settling or broadcast.ended or self._exchange.terminated)

    async def _settle(self, clean: bool) -> None:
        """The end of the answer is here: keep the turn, then let the end go; or break it off."""
        self._settling = self._committing = True
        line = self.call.line
        line.ended = time.monotonic()
        outcome = self._exchange.finish(clean)
        line.outcome = outcome.verdict.value
        released, fault = outcome.verdict in RELEASED, None
        if self._recorded and (reason := self._exchange.unrecorded):
            self._runtime.numbers.unrecorded[reason] += 1
            self.broadcast.tell(not_recorded(reason))
        try:
            if self._recorded and outcome.verdict in RECORDED:
                answer = Answer(*self._said, self._exchange.answer)
                self.kept = await self.record.keep(self.plan, outcome, self._started, answer)
        except StoreUnavailable as error:
            log.error("turn %s is not kept, its end is not released: %s", self.id, error)
            released, fault = False, error
            line.outcome, self.broadcast.why = "unkept", "store"
        self._committing = False
        self._leave()
        line.released = time.monotonic()
        if not released:
            self.broadcast.fail(fault, line.ended)
        elif held := self._exchange.release():
            await self.broadcast.write(held)
            self.broadcast.delivered = not self.broadcast.deserted
        self.note_delivery()
        if usage := outcome.reply.usage:
            self._runtime.numbers.used(counts(usage))

    def note_delivery(self) -> None:
        """For retries: whether a client has seen the end of what was kept. One who takes long tells nothing of
        a session whose next turn is kept already."""
        live, key, delivered = self._runtime.live, self.call.key, self.broadcast.delivered
        if self.kept and delivered is not self._noted and not self.plan.side:
            if self._noted is None or live.was_delivered(key, self.id) is not None:
                live.delivered(key, self.id, delivered)
            self._noted = delivered

    def _leave(self) -> None:
        if self._place:
            self._place.leave()

    def _client_headers(self, answer: Response, inflated: bool) -> headers.Pairs:
        if not 200 <= answer.status < 300:
            return headers.end_to_end(answer.headers)  # the upstream's own errors go through untouched
        told = self._session.state, self.id, self.plan.decision, self._attempts.injected, self._attempts.fit.dropped
        ours = of_turn(*told)
        if self._recorded and (reason := self._exchange.unrecorded):  # it is known from the head
            ours.append(not_recorded(reason))
        return client_headers(answer, self.call, inflated) + ours
