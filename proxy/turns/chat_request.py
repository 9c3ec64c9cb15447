"""A request for a recorded turn, as it comes: its body within its limits, what it asks of us, and what of its
headers goes on.

Decides nothing and knows no history.
"""

from __future__ import annotations

import asyncio
import re
import time
from enum import StrEnum
from functools import lru_cache
from hashlib import blake2b, sha256
from hmac import digest

from aiohttp import web
from msgspec import Struct

from proxy.context import request_log as lines
from proxy.context import tenants as caller
from proxy.context.request_log import Line
from proxy.context.routing import Target
from proxy.context.runtime import Runtime
from proxy.core import headers
from proxy.core.inflate import STEP, Broken, Coding, Unknown, inflater
from proxy.core.json_bytes import with_default
from proxy.core.model import CLIENT, Ask, SessionKey
from proxy.core.plan import Mode
from proxy.dialects.chat import wire as chat
from proxy.errors import BadRequest, RequestTimeout, RequestTooLarge, UnsupportedEncoding
from proxy.upstream.client import Response

_NOT_SENT = headers.OURS | {"host", "expect", "content-length", "content-encoding", "accept-encoding"}
_CODED = frozenset(["content-encoding", "content-length"])
_VERSION = re.compile(r"[\d.]+")
SEEN = "seen"  # among what is kept beside a history


class Busy(StrEnum):
    """What a turn does that would have to wait."""

    QUEUE = "queue"
    REJECT = "reject"
    INTERRUPT = "interrupt"


_MODES, _BUSY = {str(mode): mode for mode in Mode}, {str(busy): busy for busy in Busy}
_YES, _NO, _POLICIES = ("yes",), ("no",), ("finish", "cancel")


class Wishes(Struct, frozen=True, gc=False):
    """What a request asks of us by headers of ours."""

    mode: Mode
    on_busy: Busy
    must_exist: bool
    dry_run: bool
    counted: bool  # it says that it is a retry


class Call(Struct, frozen=True):
    """A request for a recorded turn, before anything is decided of it."""

    target: Target
    key: SessionKey
    ask: Ask
    pairs: headers.Pairs
    request: bytes  # the digest of its body
    recorded: bool
    line: Line
    client: bytes = b""  # the fingerprint of the software that sent it
    idempotency_key: str | None = None
    finishes: bool = True  # a reply whose client has gone is read to its end


def wishes_of(request: web.BaseRequest, runtime: Runtime) -> Wishes:
    sent, sessions = request.headers, runtime.config.sessions
    return Wishes(
        _MODES[headers.choice(sent, "x-session-mode", _MODES) or sessions.mode],
        _BUSY[headers.choice(sent, "x-session-on-busy", _BUSY) or sessions.on_busy],
        headers.choice(sent, "x-session-must-exist", _YES) is not None,
        headers.choice(sent, "x-session-dry-run", _YES) is not None,
        sent.get("x-stainless-retry-count", "0").strip() not in ("", "0"),
    )


async def read_call(request: web.BaseRequest, runtime: Runtime, target: Target, session_id: str) -> Call:
    config, pairs = runtime.config, list(request.headers.items())
    line = lines.of(request)
    line.key = key = SessionKey(caller.tenant(config, request.headers, runtime.secret), session_id)
    recorded = headers.choice(request.headers, "x-session-store", _NO) is None
    idempotency_key = headers.idempotency_key(request.headers)
    policy = headers.choice(request.headers, "x-session-on-disconnect", _POLICIES)
    body = await _body(request, config.limits.request_body, config.limits.body_timeout)
    line.read, line.size = time.monotonic(), len(body)
    ask = _ask(request, body, runtime, target, key)
    return Call(
        target,
        key,
        ask,
        pairs,
        chat.digest_of(ask),
        recorded,
        line,
        software(request.headers.get("User-Agent", "")),
        idempotency_key,
        finishes=(policy or config.sessions.on_disconnect) == "finish",
    )


def _ask(request: web.BaseRequest, body: bytes, runtime: Runtime, target: Target, key: SessionKey) -> Ask:
    if member := target.upstream.affinity.get("body"):
        return chat.read(with_default(body, member, affinity(key, runtime.secret)))
    if "x-session-dry-run" in request.headers:
        return chat.read(body)  # it tells of every message
    warm = runtime.store.warm(key)
    return chat.read(body, warm.history.forms.get(SEEN) if warm else None)


async def _body(request: web.BaseRequest, limit: int, timeout: float) -> bytes:
    named = request.headers.get("Content-Encoding")
    try:
        coding = None if named is None else inflater(",".join(request.headers.getall("Content-Encoding")))
    except Unknown as error:
        raise UnsupportedEncoding(
            f"A request body in the encoding {str(error)!r} cannot be read here. Send it as gzip, or as it is, without"
            " Content-Encoding."
        ) from None
    if (request.content_length or 0) > limit:
        raise _too_large(limit)
    if request.content.is_eof():  # it came with the head
        body = request.content.read_nowait()
        if len(body) > limit:
            raise _too_large(limit)
    else:
        body = await _come(request, limit, timeout)
    return await _undone(coding, body, limit) if coding else body


async def _undone(coding: Coding, body: bytes, limit: int) -> bytes:
    """The plain form of an encoded body, within the limit; others have their turn while it is made."""
    pieces, size = [], 0
    try:
        for at in range(0, len(body), STEP):
            for piece in coding.feed(body[at : at + STEP]):
                pieces.append(piece)
                if (size := size + len(piece)) > limit:
                    raise _too_large(limit)
                await asyncio.sleep(0)
            await asyncio.sleep(0)
    except Broken as error:
        raise UnsupportedEncoding(
            "The request body is not in the encoding that its Content-Encoding names. Encode it so, or leave the header"
            " out."
        ) from error
    if not coding.eof:
        raise BadRequest("The encoded request body ends too early. Send all of it.")
    return b"".join(pieces)


async def _come(request: web.BaseRequest, limit: int, timeout: float) -> bytes:
    pieces, size = [], 0
    try:
        async with asyncio.timeout(timeout):
            async for piece in request.content.iter_any():
                pieces.append(piece)
                if (size := size + len(piece)) > limit:
                    raise _too_large(limit)
    except TimeoutError:
        raise RequestTimeout(f"The request body did not come within {timeout:g} seconds. Send it again.") from None
    except (web.RequestPayloadError, ConnectionError) as error:
        raise BadRequest("The request was cut short. Send it again.") from error
    return b"".join(pieces)


def _too_large(limit: int) -> RequestTooLarge:
    return RequestTooLarge(f"The request body is over {limit} bytes. Send a smaller one.")


def upstream_headers(call: Call, runtime: Runtime) -> headers.Pairs:
    """What goes upstream with the call; the answer is to come as it is, to be read on its way."""
    upstream, names = call.target.upstream, runtime.config.sessions.headers
    without = _NOT_SENT if upstream.forward else _with_names(tuple(names))
    sent = caller.with_our_key(upstream, headers.end_to_end(call.pairs, without))
    if header := upstream.affinity.get("header"):
        sent.append((header, affinity(call.key, runtime.secret)))
    if not call.line.is_given:
        sent.append((lines.NAME, call.line.id))
    return [*sent, ("Accept-Encoding", "identity")]


def client_headers(answer: Response, call: Call, inflated: bool) -> headers.Pairs:
    """What of an answer's headers goes to the client: without its encoding, where that was undone."""
    sent = headers.end_to_end(answer.headers, _CODED if inflated else frozenset())
    if call.line.chosen:
        kept = [pair for pair in sent if pair[0].lower() != lines.CHOSEN]
        sent = [*kept, (lines.CHOSEN, call.line.chosen)]
    return sent if answer.get(lines.NAME) else [*sent, (lines.NAME, call.line.id)]


@lru_cache(1024)
def software(user_agent: str) -> bytes:
    """The fingerprint of a client's software, whatever its version: who updates it goes on with its sessions."""
    name = _VERSION.sub("", user_agent).encode(errors="replace")
    return blake2b(name, digest_size=CLIENT).digest() if name else bytes(CLIENT)


def of_turn(state: str, turn: str, decision: str, injected: int, dropped: int) -> headers.Pairs:
    """What an answer says of its turn."""
    return [
        ("x-session-state", state),
        ("x-session-turn", turn),
        ("x-session-decision", decision),
        ("x-session-injected", str(injected)),
        ("x-session-dropped", str(dropped)),
    ]


def not_recorded(reason: str) -> tuple[str, str]:
    """What an answer says whose turn is not in the history."""
    return "x-session-recorded", f"no; reason={reason}"


@lru_cache(16)
def _with_names(names: tuple[str, ...]) -> frozenset[str]:
    return _NOT_SENT.union([name.lower() for name in names])


def affinity(key: SessionKey, secret: bytes) -> str:
    """A session's name for upstream caches: a keyed hash, never the ID."""
    return digest(secret, b"affinity\0" + key.tenant + key.id.encode(), sha256).hex()[:32]
