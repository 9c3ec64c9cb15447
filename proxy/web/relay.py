"""A request for a recorded turn: read it, decide how it is meant, wait in line where it must, start the turn.

Decided twice: on arrival, against the history and the turns in flight, and in its place again, for the tip
may have moved. The turn itself stands in `turn`; how lists are read, in `core.reconcile`.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from hashlib import blake2b

from aiohttp import web

from proxy.core import headers
from proxy.core.history import History, Session
from proxy.core.members import dumps, with_default
from proxy.core.model import Ask, SessionKey, SessionState
from proxy.core.reconcile import Mode, Plan, decide, is_retry, retried
from proxy.dialects import chat, marks, sending
from proxy.errors import BadRequest, RequestTimeout, RequestTooLarge, SessionNotFound, UnsupportedEncoding
from proxy.web import caller
from proxy.web.listener import Listener
from proxy.web.live import Place
from proxy.web.runtime import Runtime
from proxy.web.target import Target
from proxy.web.turn import Call, RecordedTurn, affinity

log = logging.getLogger("proxy.relay")


@dataclass(frozen=True)
class Wishes:
    """What a request asks of us by headers of ours."""

    mode: Mode
    recorded: bool
    must_exist: bool
    dry_run: bool
    counted: bool  # it says that it is a retry

    @classmethod
    def of(cls, request: web.Request, runtime: Runtime) -> Wishes:
        sent, sessions = request.headers, runtime.config.sessions
        return cls(
            Mode(headers.choice(sent, "x-session-mode", [*Mode]) or sessions.mode),
            headers.choice(sent, "x-session-store", ["no"]) is None,
            headers.choice(sent, "x-session-must-exist", ["yes"]) is not None,
            headers.choice(sent, "x-session-dry-run", ["yes"]) is not None,
            sent.get("x-stainless-retry-count", "0") not in ("", "0"),
        )


async def handle(request: web.Request, runtime: Runtime, target: Target, session_id: str) -> web.StreamResponse:
    limits = runtime.config.limits
    wishes = Wishes.of(request, runtime)
    pairs = list(request.headers.items())
    key = SessionKey(caller.tenant(runtime.config, pairs, runtime.secret), session_id)
    body = await _body(request, limits.request_body, limits.body_timeout)
    call = Call(target, key, _read(body, runtime, target, key), pairs, digest(body), wishes.recorded)
    session, plan = await _decide(runtime, call, wishes)
    if wishes.must_exist and session.state is not SessionState.CONTINUED:
        raise SessionNotFound("There is no such session. Leave x-session-must-exist out to begin one.")
    if wishes.dry_run:
        return _dry_run(call, plan, session.history, runtime)
    place = None
    if wishes.recorded and not plan.alone:
        place = await _place(request, runtime, key)
    try:
        if place:
            session, plan = await _decide(runtime, call, wishes)
        listener = Listener(request, limits.write_timeout)
        turn = RecordedTurn(runtime, call, plan, session, listener, place)
    except BaseException:
        if place:
            place.leave()
        raise
    await asyncio.shield(runtime.live.start(turn.run()))
    assert listener.response is not None
    return listener.response


async def _decide(runtime: Runtime, call: Call, wishes: Wishes) -> tuple[Session, Plan]:
    """The session as it stands, and how the request is read against it and the turns in flight."""
    turns = runtime.live.turns(call.key)
    session = await runtime.store.load(call.key, runtime.now(), in_use=bool(turns))
    flights = [turn.flight for turn in turns]
    history = session.history
    undelivered = runtime.live.undelivered(call.key)
    if call.recorded and is_retry(call.request, history, flights, wishes.counted, undelivered):
        assert history.last is not None  # issue of the next step: attach to a turn in flight
        plan = retried(history, history.last)
    else:
        plan = decide(call.ask, history, marks, wishes.mode, flights)
    log.debug("%s: %s", plan.decision, plan.reason)
    return session, plan


async def _place(request: web.Request, runtime: Runtime, key: SessionKey) -> Place:
    sessions = runtime.config.sessions
    place = await runtime.live.place(key, sessions.queue_limit, sessions.queue_timeout)
    if request.transport is None or request.transport.is_closing():
        place.leave()
        raise BadRequest("The client left before its turn came.")
    return place


def digest(body: bytes) -> bytes:
    """By which a body is recognised when it comes again; 16 bytes."""
    return blake2b(body, digest_size=16).digest()


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


def _dry_run(call: Call, plan: Plan, history: History, runtime: Runtime) -> web.Response:
    """What `x-session-dry-run` answers: the exact body, and where each of its messages came from."""
    target = call.target
    refused = runtime.store.refusals.get(target.host, frozenset())
    form = sending.form_of(target.upstream.profile, target.host, call.ask.model, refused)
    body, injected = sending.compose(call.ask, plan, history, form)
    sources: list[dict[str, str]] = []
    if plan.system is not None:
        sources.append({"from": "request" if call.ask.system is not None else "history", "role": "system"})
    for entry, theirs in plan.sent:
        if entry:
            sources.append({"from": "history", "turn": entry.turn.id, "role": entry.message.role})
        elif theirs:
            sources.append({"from": "request", "role": theirs.role})
    told = {"decision": plan.decision, "reason": plan.reason, "injected": injected}
    return web.Response(
        body=dumps({**told, "messages": sources, "body": body.decode(errors="replace")}),
        content_type="application/json",
    )
