"""Writes one log line for each request when it has ended, and counts it in the metrics.

Each module on a request's way fills in the moments that it sees. The line never holds content or a credential;
tenant and session are hashes keyed by the secret of this database.
"""

from __future__ import annotations

import logging
import re
import time
from functools import lru_cache
from hashlib import blake2b
from typing import Any
from urllib.parse import quote

from msgspec import Struct

from proxy.context.runtime import Runtime
from proxy.core.model import SessionKey
from proxy.downstream.client_request import ClientRequest, RequestKey
from proxy.downstream.client_stream import ClientStream, HandlerResult

NAME = "x-request-id"
CHOSEN = "x-session-id"
GIVEN = re.compile(r"[0-9A-Za-z._:+/@-]{1,128}")  # an ID of a client's that is taken
_SESSION = re.compile(r"(/sessions/)[^/]*")
_ODD = re.compile(r"[^!#-<>-\[\]-~]+")  # what a line cannot take without quotes
_PATH, _METHOD = 200, 16  # characters that are shown
_WRONG = ("broken", "unkept")


class AccessRecord(Struct, gc=False):
    """Collects the fields of one request. Moments are monotonic seconds, 0 for one that has not come.

    `read`: the body was read. `asked`: the request was sent upstream. `ended`: the upstream's answer ended.
    `released`: its end was released to the client. `queue`: seconds in the queue. `size`: bytes of the body.
    """

    id: str
    begin: float
    is_given: bool = False  # the client named it
    route: str = "other"
    upstream: str = ""
    key: SessionKey | None = None
    chosen: str = ""  # the session ID that was preferred to another one, for the answer to say so
    decision: str = ""
    turn: str = ""
    outcome: str = ""
    fault: str = ""
    size: int = 0
    read: float = 0.0
    queue: float = 0.0
    asked: float = 0.0
    ended: float = 0.0
    released: float = 0.0

    @property
    def overhead(self) -> float | None:
        """Return the seconds that the proxy itself took: before it sent the request, and after the upstream's end."""
        if not self.asked:
            return None
        before = self.asked - (self.read or self.begin) - self.queue
        return max(0.0, before + (self.released - self.ended if self.released else 0.0))


KEY = RequestKey("line", AccessRecord)


def begin(request: ClientRequest, runtime: Runtime) -> AccessRecord:
    """Create the log record of a new request, with its request ID."""
    given = request.headers.get(NAME)
    if given is not None and GIVEN.fullmatch(given):
        access = AccessRecord(given, time.monotonic(), True)
    else:
        access = AccessRecord(runtime.request_id(), time.monotonic(), given is not None)
    request[KEY] = access
    return access


def of(request: ClientRequest) -> AccessRecord:
    """Return the log record of a request."""
    return request[KEY]


def finish(request: ClientRequest, runtime: Runtime, access: AccessRecord, answer: HandlerResult | None) -> None:
    """Count and log a request that has ended. `answer` is None if its client disconnected first."""
    now = time.monotonic()
    first: float | None = None
    status = size = 0
    gone, reset = answer is None, ""
    if isinstance(answer, ClientStream):
        status, size, gone, reset = answer.status, answer.size, answer.disconnected and not answer.why, answer.why
        first = answer.first - access.begin if answer.first else None
    elif answer is not None:
        status, body = answer.status, getattr(answer, "body", None)
        size = len(body) if isinstance(body, bytes) else 0
    total, overhead = now - access.begin, access.overhead
    runtime.counters.answered(access.route, access.upstream, status, total, first, overhead)
    if access.queue:
        runtime.counters.queue.add(access.queue)
    if access.fault:
        runtime.counters.rejected[access.fault] += 1
    if lines := runtime.log:
        level = _level(access, status)
        if level >= lines.level:
            lines.request(
                level, _fields(request, access, status, size, gone, reset, total, first, overhead, runtime.secret)
            )


def _level(access: AccessRecord, status: int) -> int:
    if access.route == "health" and status < 400:
        return logging.DEBUG  # somebody asks every few seconds
    return logging.WARNING if access.outcome in _WRONG or status >= 500 else logging.INFO


def _fields(
    request: ClientRequest,
    access: AccessRecord,
    status: int,
    size: int,
    gone: bool,
    reset: str,
    total: float,
    first: float | None,
    overhead: float | None,
    secret: bytes,
) -> dict[str, Any]:
    fields: dict[str, Any] = {"method": request.method[:_METHOD], "path": _shown(request.raw_path), "status": status}
    fields["request"] = access.id
    if key := access.key:
        fields["tenant"], fields["session"] = names(key, secret)
    if access.upstream:
        fields["upstream"] = _shown(access.upstream)
    if access.decision:
        fields["decision"] = access.decision
    if access.turn:
        fields["turn"] = access.turn
    if access.outcome:
        fields["outcome"] = access.outcome
    if access.fault:
        fields["error"] = access.fault
    if gone:
        fields["client"] = "gone"
    if reset:
        fields["reset"] = reset
    fields["in"], fields["out"] = access.size, size
    if access.queue:
        fields["queue_ms"] = _ms(access.queue)
    if first is not None:
        fields["first_ms"] = _ms(first)
    fields["total_ms"] = _ms(total)
    if overhead is not None:
        fields["overhead_ms"] = _ms(overhead)
    return fields


def _ms(seconds: float) -> float:
    return int(seconds * 100_000) / 100


@lru_cache(1024)
def _shown(target: str) -> str:
    """Return a path for the log, without its query, which may hold a key, and without a session ID."""
    path = _SESSION.sub(r"\1*", target.partition("?")[0])
    return _ODD.sub(lambda found: quote(found[0], errors="surrogateescape"), path[:_PATH])


@lru_cache(4096)
def names(key: SessionKey, secret: bytes) -> tuple[str, str]:
    """Return the hashes by which the log names a tenant and a session."""
    whose = key.tenant.hex()[:8]
    session = blake2b(key.tenant + key.id.encode(), key=secret[:64], person=b"log", digest_size=6)
    return whose, session.hexdigest()
