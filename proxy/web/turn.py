"""A recorded turn in flight: ask the upstream, hand the answer on as it comes, keep it, and let the end go.

A task of its own: handlers come and go. What the bytes mean is decided in `core.exchange`, what of them
remains in `dialects`; how requests reach an upstream stands in `upstream`.
"""

from __future__ import annotations

import asyncio
import logging
import zlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from hashlib import sha256
from hmac import digest
from typing import cast

from proxy.core import headers
from proxy.core.exchange import Dialect, Exchange, Outcome, Verdict
from proxy.core.history import History, Session
from proxy.core.inflate import Inflate, inflater
from proxy.core.model import Ask, SessionKey, TurnState
from proxy.core.reconcile import Decision, Flight, Plan
from proxy.dialects import chat, profiles, sending
from proxy.dialects.sending import Form
from proxy.dialects.turns import turns_of
from proxy.errors import ProxyError, StoreUnavailable, UpstreamUnreachable
from proxy.web import caller
from proxy.web.listener import Listener
from proxy.web.live import Place
from proxy.web.runtime import Runtime
from proxy.web.target import Target
from proxy.web.upstream import Response

log = logging.getLogger("proxy.turn")
_NOT_SENT = ("host", "expect", "content-length", "content-encoding", "accept-encoding", *sorted(headers.OURS))
_REFUSALS = 3  # members that a request is stripped of, one after another
_ERROR_SIZE = 64 * 1024  # bytes of an error that are looked at


@dataclass(frozen=True)
class Call:
    """A request for a recorded turn, before anything is decided of it."""

    target: Target
    key: SessionKey
    ask: Ask
    pairs: headers.Pairs
    request: bytes  # the digest of its body
    recorded: bool


class RecordedTurn:
    """One turn in flight. `run` ends when the answer has ended, one way or the other.

    Made of a call, how it was read, and the history it was read against. Raises BadRequest.
    """

    def __init__(
        self, runtime: Runtime, call: Call, plan: Plan, session: Session, listener: Listener, place: Place | None
    ) -> None:
        self.id = runtime.turn_id()
        self.plan = plan
        self._runtime, self._call, self._session = runtime, call, session
        self._listener, self._place = listener, place
        self._recorded = call.recorded and plan.decision is not Decision.ASIDE
        self._form = self._form_of(runtime.store.refusals.get(call.target.host, frozenset()))
        self._body, self._injected = sending.compose(call.ask, plan, session.history, self._form)
        self._exchange = Exchange(cast(Dialect, chat), runtime.config.limits.recorded_reply)
        self._settled = False

    @property
    def parent(self) -> str | None:
        return self.plan.parent

    @property
    def flight(self) -> Flight:
        """What another request is decided by."""
        ask = self._call.ask
        gone = self._listener.gone
        return Flight(self._call.request, self.plan.asked, ask.system, ask.tools, gone, self.plan.resends)

    async def run(self) -> None:
        runtime, key = self._runtime, self._call.key
        if self._recorded:
            runtime.live.enter(key, self)
        try:
            self._started = runtime.now()
            await runtime.store.touch(key, self._started)
            while await self._try():
                pass
        finally:
            if self._recorded:
                runtime.live.leave(key, self)
            self._leave()

    async def _try(self) -> bool:
        """Ask the upstream once; whether to ask again, without what it refused."""
        upstream, target = self._call.target.upstream, self._call.target
        opened = self._runtime.client.open("POST", target.url, self._upstream_headers(), self._body, upstream)
        async with opened as answer:
            pieces = answer.pieces()
            if answer.status in (400, 422) and (members := sending.sent_members(self._body)):
                seen = await _beginning(pieces, _ERROR_SIZE)
                if self._strip(profiles.refused(answer.status, b"".join(seen), members)):
                    return True
                pieces = _chained(seen, pieces)
            elif 200 <= answer.status < 300:
                for member in self._form.refused - self._known_refusals():
                    await self._runtime.store.learn(target.host, member)
            try:
                await self._relay(answer, pieces)
            finally:  # cut by a drain, or by a fault of ours: never a clean end
                if self._listener.response is not None and not self._settled:
                    self._listener.reset()
        return False

    def _known_refusals(self) -> frozenset[str]:
        return self._runtime.store.refusals.get(self._call.target.host, frozenset())

    def _strip(self, member: str | None) -> bool:
        """Leave a refused member out of the body; whether that changed it."""
        if member is None or len(self._form.refused - self._known_refusals()) >= _REFUSALS:
            return False
        before, self._form = self._body, self._form_of(self._form.refused | {member})
        self._body, self._injected = sending.compose(self._call.ask, self.plan, self._session.history, self._form)
        return self._body != before

    def _form_of(self, refused: frozenset[str]) -> Form:
        target = self._call.target
        return sending.form_of(target.upstream.profile, target.host, self._call.ask.model, refused)

    async def _relay(self, answer: Response, pieces: AsyncIterator[bytes]) -> None:
        encoding = inflating(answer) if 200 <= answer.status < 300 else None
        length = None if encoding else answer.length
        self._exchange.begin(answer.status, answer.get("content-type"), length)
        await self._listener.begin(answer.status, self._client_headers(answer, encoding is not None))
        clean = await self._pieces(plain(pieces, encoding)) and (encoding is None or encoding.eof)
        if not self._settled:
            await self._settle(clean)
        elif not clean:
            self._listener.reset()
        await self._listener.end()

    async def _pieces(self, pieces: AsyncIterator[bytes]) -> bool:
        """Hand pieces on until the end of the transfer; whether it ended as HTTP says."""
        try:
            async with asyncio.timeout(None) as bound:
                async for piece in pieces:
                    if out := self._exchange.receive(piece):
                        await self._listener.write(out)
                    if self._exchange.terminated and not self._settled:
                        await self._settle(True)
                    if self._listener.gone and (self._settled or not self._recorded):
                        return False  # nobody listens, and nothing is left to record
                    if self._listener.gone and bound.when() is None:
                        limit = self._runtime.config.sessions.finish_limit
                        bound.reschedule(asyncio.get_running_loop().time() + limit)
        except (ProxyError, TimeoutError, zlib.error):
            return False
        return True

    async def _settle(self, clean: bool) -> None:
        """The end of the answer is here: keep the turn, then let the end go; or break it off."""
        outcome = self._exchange.finish(clean)
        released = outcome.verdict in (Verdict.COMPLETE, Verdict.NOTHING)
        if self._recorded and outcome.verdict in (Verdict.COMPLETE, Verdict.CUT):
            try:
                await self._keep(outcome)
            except StoreUnavailable as error:
                log.error("turn %s is not kept, its end is not released: %s", self.id, error)
                released = False
        self._settled = True
        self._leave()
        if released:
            await self._listener.write(self._exchange.release())
        else:
            self._listener.reset()
        if self._recorded:
            self._runtime.live.delivered(self._call.key, self.id, released and not self._listener.gone)

    async def _keep(self, outcome: Outcome) -> None:
        runtime, key = self._runtime, self._call.key
        cut = outcome.verdict is Verdict.CUT
        turns = turns_of(
            self._call.ask,
            self.plan,
            outcome.reply,
            self._form,
            id=self.id,
            new_id=runtime.turn_id,
            remembered=self._session.history.system_of(self.plan.parent),
            request=self._call.request,
            state=TurnState.CUT if cut else TurnState.COMPLETE,
            started=self._started,
            ended=runtime.now(),
        )
        if cut and turns[-1].echo is None:
            return  # nothing was said before the break
        drop: list[str] = []
        if turns[0].layout is not None or turns[0].parent != self._session.history.tip:
            history: History = (await runtime.store.load(key, runtime.now(), in_use=True)).history
            drop = history.plus(*turns).spare(runtime.live.parents(key))
        await runtime.store.append(key, turns, runtime.now(), drop)

    def _leave(self) -> None:
        if self._place:
            self._place.leave()

    def _upstream_headers(self) -> headers.Pairs:
        upstream, names = self._call.target.upstream, self._runtime.config.sessions.headers
        without = _NOT_SENT if upstream.forward else (*_NOT_SENT, *[name.lower() for name in names])
        sent = caller.with_our_key(upstream, headers.end_to_end(self._call.pairs, without))
        if header := upstream.affinity.get("header"):
            sent.append((header, affinity(self._call.key, self._runtime.secret)))
        return [*sent, ("Accept-Encoding", "identity")]

    def _client_headers(self, answer: Response, inflated: bool) -> headers.Pairs:
        sent = headers.end_to_end(answer.headers, ("content-encoding", "content-length") if inflated else ())
        if not 200 <= answer.status < 300:
            return sent  # the upstream's own errors go through untouched
        return [
            *sent,
            ("x-session-state", self._session.state),
            ("x-session-turn", self.id),
            ("x-session-decision", self.plan.decision),
            ("x-session-injected", str(self._injected)),
            ("x-session-dropped", "0"),
        ]


def inflating(answer: Response) -> Inflate | None:
    """How to undo the answer's encoding: we asked for none, and cannot record what we cannot read."""
    try:
        return inflater(answer.get("content-encoding"))
    except ValueError as error:
        raise UpstreamUnreachable(
            f"The upstream compressed its answer as {error} although asked not to. Turn that off there."
        ) from error


async def plain(pieces: AsyncIterator[bytes], encoding: Inflate | None) -> AsyncIterator[bytes]:
    async for piece in pieces:
        if encoding is None:
            yield piece
            continue
        for part in encoding.feed(piece):
            yield part


async def _beginning(pieces: AsyncIterator[bytes], limit: int) -> list[bytes]:
    """The first pieces of a body, up to `limit` bytes or its end. A break is left for who reads on."""
    seen: list[bytes] = []
    while sum(map(len, seen)) < limit and (piece := await anext(pieces, None)) is not None:
        seen.append(piece)
    return seen


async def _chained(seen: list[bytes], pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    for piece in seen:
        yield piece
    async for piece in pieces:
        yield piece


def affinity(key: SessionKey, secret: bytes) -> str:
    """A session's name for upstream caches: a keyed hash, never the ID."""
    return digest(secret, b"affinity\0" + key.tenant + key.id.encode(), sha256).hex()[:32]
