"""Reads a request for a recorded turn: its body, the options in its headers, and the headers to forward.

Decides nothing and knows no history.
"""

from __future__ import annotations

import re
import time
from enum import StrEnum
from functools import lru_cache
from hashlib import blake2b, sha256
from hmac import digest

from msgspec import Struct

from proxy.context import request_log, tenants
from proxy.context.request_log import AccessRecord
from proxy.context.routing import Target
from proxy.context.runtime import Runtime
from proxy.core import headers
from proxy.core.json_bytes import with_default
from proxy.core.model import CLIENT, Ask, SessionKey
from proxy.core.plan import Mode
from proxy.dialects.chat import wire
from proxy.downstream.client_request import ClientRequest, read_body
from proxy.upstream.client import Response

_NOT_SENT = headers.OURS | {"host", "expect", "content-length", "content-encoding", "accept-encoding"}
_CODED = frozenset(["content-encoding", "content-length"])
_VERSION = re.compile(r"[\d.]+")


class Busy(StrEnum):
    """Selects what a request does while another one of its session runs: wait, fail, or interrupt it."""

    QUEUE = "queue"
    REJECT = "reject"
    INTERRUPT = "interrupt"


_MODES, _BUSY = {str(mode): mode for mode in Mode}, {str(busy): busy for busy in Busy}
_YES, _NO, _POLICIES = ("yes",), ("no",), ("finish", "cancel")


class RequestOptions(Struct, frozen=True, gc=False):
    """The options that a request sets by `x-session-*` headers."""

    mode: Mode
    on_busy: Busy
    must_exist: bool
    dry_run: bool
    counted: bool  # it says that it is a retry


class ChatRequest(Struct, frozen=True):
    """A chat request as it was read, before any decision."""

    target: Target
    key: SessionKey
    ask: Ask
    pairs: headers.Pairs
    request: bytes  # the digest of its body
    recorded: bool
    access: AccessRecord
    client: bytes = b""  # the fingerprint of the software that sent it
    idempotency_key: str | None = None
    finishes: bool = True  # a reply whose client has gone is read to its end


def request_options(request: ClientRequest, runtime: Runtime) -> RequestOptions:
    """Read the options of a request from its headers. Raises BadRequest for an unknown value."""
    sent, sessions = request.headers, runtime.config.sessions
    return RequestOptions(
        _MODES[headers.choice(sent, "x-session-mode", _MODES) or sessions.mode],
        _BUSY[headers.choice(sent, "x-session-on-busy", _BUSY) or sessions.on_busy],
        headers.choice(sent, "x-session-must-exist", _YES) is not None,
        headers.choice(sent, "x-session-dry-run", _YES) is not None,
        sent.get("x-stainless-retry-count", "0").strip() not in ("", "0"),
    )


async def read_chat_request(request: ClientRequest, runtime: Runtime, target: Target, session_id: str) -> ChatRequest:
    """Read a request with its body. Raises BadRequest, and what `read_body` raises."""
    config, pairs = runtime.config, list(request.headers.items())
    access = request_log.of(request)
    access.key = key = SessionKey(tenants.tenant(config, request.headers, runtime.secret), session_id)
    recorded = headers.choice(request.headers, "x-session-store", _NO) is None
    idempotency_key = headers.idempotency_key(request.headers)
    policy = headers.choice(request.headers, "x-session-on-disconnect", _POLICIES)
    body = await read_body(request, config.limits.request_body, config.limits.body_timeout)
    access.read, access.size = time.monotonic(), len(body)
    ask = _ask(request, body, runtime, target, key)
    return ChatRequest(
        target,
        key,
        ask,
        pairs,
        wire.digest_of(ask),
        recorded,
        access,
        software(request.headers.get("User-Agent", "")),
        idempotency_key,
        finishes=(policy or config.sessions.on_disconnect) == "finish",
    )


def _ask(request: ClientRequest, body: bytes, runtime: Runtime, target: Target, key: SessionKey) -> Ask:
    if member := target.upstream.affinity.get("body"):
        return wire.read(with_default(body, member, affinity(key, runtime.secret)))
    if "x-session-dry-run" in request.headers:
        return wire.read(body)  # it tells of every message
    cached = runtime.store.cached(key)
    return wire.read(body, cached.history.cache.seen if cached else None)


def upstream_headers(chat: ChatRequest, runtime: Runtime) -> headers.Pairs:
    """Build the headers to send upstream. They ask for an uncompressed answer, because the proxy reads it."""
    upstream, names = chat.target.upstream, runtime.config.sessions.headers
    without = _NOT_SENT if upstream.forward else _with_names(tuple(names))
    sent = tenants.with_our_key(upstream, headers.end_to_end(chat.pairs, without))
    if header := upstream.affinity.get("header"):
        sent.append((header, affinity(chat.key, runtime.secret)))
    if not chat.access.is_given:
        sent.append((request_log.NAME, chat.access.id))
    return [*sent, ("Accept-Encoding", "identity")]


def client_headers(answer: Response, chat: ChatRequest, inflated: bool) -> headers.Pairs:
    """Build the headers to send to the client, without Content-Encoding if the proxy decompressed the answer."""
    sent = headers.end_to_end(answer.headers, _CODED if inflated else frozenset())
    if chat.access.chosen:
        kept = [pair for pair in sent if pair[0].lower() != request_log.CHOSEN]
        sent = [*kept, (request_log.CHOSEN, chat.access.chosen)]
    return sent if answer.get(request_log.NAME) else [*sent, (request_log.NAME, chat.access.id)]


@lru_cache(1024)
def software(user_agent: str) -> bytes:
    """Fingerprint a client's software without its version, so that sessions survive an update."""
    name = _VERSION.sub("", user_agent).encode(errors="replace")
    return blake2b(name, digest_size=CLIENT).digest() if name else bytes(CLIENT)


def of_turn(state: str, turn: str, decision: str, injected: int, dropped: int) -> headers.Pairs:
    """Build the `x-session-*` headers that describe the turn."""
    return [
        ("x-session-state", state),
        ("x-session-turn", turn),
        ("x-session-decision", decision),
        ("x-session-injected", str(injected)),
        ("x-session-dropped", str(dropped)),
    ]


def not_recorded(reason: str) -> tuple[str, str]:
    """Build the header that says why a turn is not recorded."""
    return "x-session-recorded", f"no; reason={reason}"


@lru_cache(16)
def _with_names(names: tuple[str, ...]) -> frozenset[str]:
    return _NOT_SENT.union([name.lower() for name in names])


def affinity(key: SessionKey, secret: bytes) -> str:
    """Derive a session's name for upstream caches: a keyed hash, never the ID."""
    return digest(secret, b"affinity\0" + key.tenant + key.id.encode(), sha256).hex()[:32]
