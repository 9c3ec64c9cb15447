"""A recorded turn: read the request, wait in line, put the history in front, hand the answer on
as it comes, and keep the end back until the turn is kept.

The turn is a task of its own; the handler only waits for it. What the bytes mean is decided
in `core.exchange`; how requests reach an upstream stands in `upstream`.
"""

from __future__ import annotations

import asyncio
import logging
import zlib
from collections.abc import AsyncIterator
from hashlib import sha256
from hmac import digest
from typing import cast

from aiohttp import web

from proxy.core import headers
from proxy.core.exchange import Dialect, Exchange, Verdict
from proxy.core.inflate import Inflate, inflater
from proxy.core.members import dumps, with_default
from proxy.core.model import Ask, History, Reply, Session, SessionKey, SessionState, Turn
from proxy.dialects import chat
from proxy.errors import (
    BadRequest,
    ProxyError,
    RequestTimeout,
    RequestTooLarge,
    SessionNotFound,
    StoreUnavailable,
    UnsupportedEncoding,
    UpstreamUnreachable,
)
from proxy.web import caller
from proxy.web.listener import Listener
from proxy.web.live import Place, held
from proxy.web.runtime import Runtime
from proxy.web.target import Target
from proxy.web.upstream import Response

log = logging.getLogger("proxy.relay")
_NOT_SENT = ("host", "expect", "content-length", "content-encoding", "accept-encoding", *sorted(headers.OURS))


async def handle(request: web.Request, runtime: Runtime, target: Target, session_id: str) -> web.StreamResponse:
    limits, sessions = runtime.config.limits, runtime.config.sessions
    recorded = not headers.flag(request.headers, "x-session-store", word="no")
    must_exist = headers.flag(request.headers, "x-session-must-exist", word="yes")
    dry_run = headers.flag(request.headers, "x-session-dry-run", word="yes")
    key = SessionKey(caller.tenant(runtime.config, list(request.headers.items()), runtime.secret), session_id)
    ask = _read(await _body(request, limits.request_body, limits.body_timeout), runtime, target, key)
    place = None
    if recorded and not dry_run:
        place = await runtime.live.place(key, sessions.queue_limit, sessions.queue_timeout)
    listener = Listener(request, limits.write_timeout)
    turn = RecordedTurn(runtime, target, key, ask, listener, place if recorded else None)
    if place and (request.transport is None or request.transport.is_closing()):
        place.leave()
        raise BadRequest("The client left before its turn came.")
    session = await turn.load(must_exist)
    if dry_run:
        return _plan(ask, session.history, Exchange(cast(Dialect, chat), ask, session.history, 0))
    await asyncio.shield(runtime.live.start(turn.run(session, list(request.headers.items()))))
    assert listener.response is not None
    return listener.response


class RecordedTurn:
    """One turn in flight. `run` ends when the answer has ended, one way or the other."""

    def __init__(
        self,
        runtime: Runtime,
        target: Target,
        key: SessionKey,
        ask: Ask,
        listener: Listener,
        place: Place | None,
    ) -> None:
        self._runtime = runtime
        self._target = target
        self._key = key
        self._ask = ask
        self._listener = listener
        self._place = place
        self._id = runtime.turn_id()
        self._settled = False

    async def load(self, must_exist: bool) -> Session:
        """The session as it stands, now that its turn has come."""
        try:
            session = await self._runtime.store.load(self._key, self._runtime.now())
            if must_exist and session.state is not SessionState.CONTINUED:
                raise SessionNotFound("There is no such session. Leave x-session-must-exist out to begin one.")
        except BaseException:
            self._leave()
            raise
        return session

    async def run(self, session: Session, pairs: headers.Pairs) -> None:
        runtime, limits = self._runtime, self._runtime.config.limits
        async with held(self._place):
            self._session = session
            self._started = runtime.now()
            self._exchange = Exchange(cast(Dialect, chat), self._ask, session.history, limits.recorded_reply)
            await runtime.store.touch(self._key, self._started)
            async with runtime.client.open(
                "POST", self._target.url, self._upstream_headers(pairs), self._exchange.body, self._target.upstream
            ) as answer:
                try:
                    await self._relay(answer)
                finally:  # cut by a drain, or by a fault of ours: never a clean end
                    if self._listener.response is not None and not self._settled:
                        self._listener.reset()

    async def _relay(self, answer: Response) -> None:
        encoding = inflating(answer) if 200 <= answer.status < 300 else None
        length = None if encoding else answer.length
        self._exchange.begin(answer.status, answer.get("content-type"), length)
        await self._listener.begin(answer.status, self._client_headers(answer, encoding is not None))
        clean = await self._pieces(answer, encoding)
        if not self._settled:
            await self._settle(clean)
        elif not clean:
            self._listener.reset()
        await self._listener.end()

    async def _pieces(self, answer: Response, encoding: Inflate | None) -> bool:
        """Hand pieces on until the end of the transfer; whether it ended as HTTP says."""
        try:
            async with asyncio.timeout(None) as bound:
                async for piece in plain(answer, encoding):
                    if out := self._exchange.receive(piece):
                        await self._listener.write(out)
                    if self._exchange.terminated and not self._settled:
                        await self._settle(True)
                    if self._listener.gone and (self._settled or self._place is None):
                        return False  # nobody listens, and nothing is left to record
                    if self._listener.gone and bound.when() is None:
                        limit = self._runtime.config.sessions.finish_limit
                        bound.reschedule(asyncio.get_running_loop().time() + limit)
        except (ProxyError, TimeoutError, zlib.error):
            return False
        return encoding is None or encoding.eof

    async def _settle(self, clean: bool) -> None:
        """The end of the answer is here: keep the turn, then let the end go; or break it off."""
        outcome = self._exchange.finish(clean)
        verdict = outcome.verdict
        if verdict is Verdict.COMPLETE and self._place is not None:
            try:
                await self._runtime.store.append(self._key, self._turn(outcome.reply), self._runtime.now())
            except StoreUnavailable as error:
                log.error("turn %s is not kept, its end is not released: %s", self._id, error)
                verdict = Verdict.BROKEN
        self._settled = True
        self._leave()
        if verdict is Verdict.BROKEN:
            self._listener.reset()
        else:
            await self._listener.write(self._exchange.release())

    def _leave(self) -> None:
        if self._place:
            self._place.leave()

    def _turn(self, reply: Reply) -> Turn:
        own = self._ask.system
        return Turn(
            id=self._id,
            system=own if own != self._session.history.system else None,
            asked=self._ask.messages,
            reply=reply.message or b"null",
            echo=reply.echo,
            model=reply.model or self._ask.model,
            finish_reason=reply.finish_reason,
            usage=reply.usage,
            started=self._started,
            ended=self._runtime.now(),
        )

    def _upstream_headers(self, pairs: headers.Pairs) -> headers.Pairs:
        upstream, names = self._target.upstream, self._runtime.config.sessions.headers
        without = _NOT_SENT if upstream.forward else (*_NOT_SENT, *[name.lower() for name in names])
        sent = caller.with_our_key(upstream, headers.end_to_end(pairs, without))
        if header := upstream.affinity.get("header"):
            sent.append((header, affinity(self._key, self._runtime.secret)))
        return [*sent, ("Accept-Encoding", "identity")]

    def _client_headers(self, answer: Response, inflated: bool) -> headers.Pairs:
        sent = headers.end_to_end(answer.headers, ("content-encoding", "content-length") if inflated else ())
        if not 200 <= answer.status < 300:
            return sent  # the upstream's own errors go through untouched
        return [
            *sent,
            ("x-session-state", self._session.state),
            ("x-session-turn", self._id),
            ("x-session-decision", "append"),
            ("x-session-injected", str(self._exchange.injected)),
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


async def plain(answer: Response, encoding: Inflate | None) -> AsyncIterator[bytes]:
    async for piece in answer.pieces():
        if encoding is None:
            yield piece
            continue
        for part in encoding.feed(piece):
            yield part


def affinity(key: SessionKey, secret: bytes) -> str:
    """A session's name for upstream caches: a keyed hash, never the ID."""
    return digest(secret, b"affinity\0" + key.tenant + key.id.encode(), sha256).hex()[:32]


async def _body(request: web.Request, limit: int, timeout: float) -> bytes:
    if request.headers.get("Content-Encoding", "identity").strip().lower() != "identity":
        raise UnsupportedEncoding("A compressed request body cannot be read. Send it without Content-Encoding.")
    too_large = RequestTooLarge(f"The request body is over {limit} bytes. Send a smaller one.")
    if (request.content_length or 0) > limit:
        raise too_large
    pieces, size = [], 0
    try:
        async with asyncio.timeout(timeout):
            async for piece in request.content.iter_any():
                pieces.append(piece)
                if (size := size + len(piece)) > limit:
                    raise too_large
    except TimeoutError:
        raise RequestTimeout(f"The request body did not come within {timeout:g} seconds. Send it again.") from None
    except (web.RequestPayloadError, ConnectionError) as error:
        raise BadRequest("The request was cut short. Send it again.") from error
    return b"".join(pieces)


def _read(body: bytes, runtime: Runtime, target: Target, key: SessionKey) -> Ask:
    ask = chat.read(body)
    if member := target.upstream.affinity.get("body"):
        ask = chat.read(with_default(body, member, affinity(key, runtime.secret)))
    return ask


def _plan(ask: Ask, history: History, exchange: Exchange) -> web.Response:
    """What `x-session-dry-run` answers: the exact body, and where each of its messages came from."""
    sources: list[dict[str, str]] = []
    if ask.system is None and history.system is not None:
        sources.append({"from": "system"})
    for turn in history.turns:
        sources += [{"from": "history", "turn": turn.id, "role": message.role} for message in turn.sent]
    own = [{"from": "request", "role": message.role} for message in ask.messages]
    if ask.system is not None:
        sources.insert(0, {"from": "request", "role": "system"})
    plan = {
        "body": exchange.body.decode(errors="replace"),
        "injected": exchange.injected,
        "messages": sources + own,
    }
    return web.Response(body=dumps(plan), content_type="application/json")
