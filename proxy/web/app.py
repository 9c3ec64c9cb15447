"""The dispatch of a request, and the one place where a fault becomes an answer.

Decides by path and headers alone: passed through, recorded, or ours. Knows nothing of bodies.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import http_exceptions, web

from proxy.config import Config
from proxy.core import headers
from proxy.core.members import dumps
from proxy.errors import Draining, NotFound, ProxyError
from proxy.web import api, caller, passthrough, relay
from proxy.web.listener import EXACT
from proxy.web.runtime import Runtime

log = logging.getLogger("proxy.request")
_EXPOSED = "x-session-state, x-session-turn, x-session-decision, x-session-injected, x-session-dropped"
Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class App:
    """Answers requests. aiohttp's own Application would look for a route first, and there is none to find."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.headers.get("Expect", "").lower() == "100-continue":
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.writer.output_size = 0  # nothing of the answer itself
        return await _answer(request, self._runtime)

    def make_request(self, message: Any, payload: Any, protocol: Any, writer: Any, task: Any) -> web.BaseRequest:
        """A request whose response's headers are finished by us."""
        request = _Request(message, payload, protocol, writer, task, asyncio.get_running_loop())
        request.runtime = self._runtime
        return request


class _Request(web.BaseRequest):
    runtime: Runtime

    async def _prepare_hook(self, response: web.StreamResponse) -> None:
        # What an Application has signals for; tests/web/test_untouched.py pins it.
        _finish_headers(self, response, self.runtime)


def build_app(runtime: Runtime) -> App:
    return App(runtime)


def build_runner(app: App, config: Config, handler: Handler | None = None) -> web.ServerRunner:
    """The HTTP server, with what must differ from aiohttp's defaults. `handler` may stand in front of the app."""
    server = web.Server(
        handler or app,
        request_factory=app.make_request,
        handler_cancellation=False,
        access_log=None,
        logger=_http_log(),
        auto_decompress=False,
        keepalive_timeout=config.limits.header_timeout,  # the one limit of an idle or half-sent head
        lingering_time=5.0,
    )
    return web.ServerRunner(server, shutdown_timeout=min(5.0, config.shutdown.drain))  # after the drain; waited twice


def _http_log() -> logging.Logger:
    """aiohttp's log without the bytes it could not parse: they may hold a key."""
    logger = logging.getLogger("proxy.http")
    logger.addFilter(_without_bytes)
    return logger


def _without_bytes(record: logging.LogRecord) -> bool:
    if record.exc_info and isinstance(record.exc_info[1], ConnectionError):
        return False  # a client that left is no error
    if record.exc_info and isinstance(record.exc_info[1], http_exceptions.HttpProcessingError):
        record.exc_info = None
        record.levelno, record.levelname = logging.WARNING, "WARNING"
    return True


async def _answer(request: web.BaseRequest, runtime: Runtime) -> web.StreamResponse:
    begun = time.monotonic()
    try:
        response = await dispatch(request, runtime)
    except ProxyError as fault:
        response = _fault(request, fault)
    except ConnectionError:
        raise
    except Exception:
        log.exception("a fault of the proxy's own")
        response = _fault(request, ProxyError("The proxy failed at this request. Its log says why."))
    if log.isEnabledFor(logging.INFO):
        path = request.raw_path.partition("?")[0]  # a query may hold a key
        log.info("%s %s %s %.1f ms", request.method, path, response.status, 1000 * (time.monotonic() - begun))
    return response


async def dispatch(request: web.BaseRequest, runtime: Runtime) -> web.StreamResponse:
    if request.path in ("/healthz", "/readyz"):
        return await _health(request.path, runtime)
    pairs = list(request.headers.items())
    headers.refuse_invalid_utf8(pairs)
    if request.raw_path.startswith("/sessions/"):
        return _preflight(request) if _is_preflight(request, runtime) else await api.answer(request, runtime)
    found = runtime.find(request.raw_path, request.method)
    if found is None:
        mounts = ", ".join(mount for upstream in runtime.config.upstreams for mount in upstream.mount)
        raise NotFound(f"Nothing is mounted at this path. Point the client's base URL at one of: {mounts}.")
    if _is_preflight(request, runtime):
        return _preflight(request)
    caller.admit(runtime.config, found.upstream, pairs)
    if request.method == "GET" and request.headers.get("Upgrade", "").lower() == "websocket":
        return await passthrough.websocket(request, runtime, found)
    if request.method == "POST" and found.is_chat:
        session_id = headers.session_id(pairs, runtime.config.sessions.headers)
        if session_id is not None:
            return await relay.handle(request, runtime, found, session_id)
    return await passthrough.forward(request, runtime, found)


async def _health(path: str, runtime: Runtime) -> web.Response:
    if path == "/readyz":
        if runtime.live.draining:
            raise Draining("The proxy is being stopped.")
        await runtime.store.ping()
    return web.Response(body=b'{"status":"ok"}', content_type="application/json")


def _fault(request: web.BaseRequest, fault: ProxyError) -> web.Response:
    response = web.Response(status=fault.status, body=dumps(fault.body()), content_type="application/json")
    response.headers["Cache-Control"] = "no-store"
    if fault.retry_after is not None:
        response.headers["Retry-After"] = f"{fault.retry_after:g}"
    if fault.should_retry is not None:
        response.headers["x-should-retry"] = str(fault.should_retry).lower()
    if not request.content.is_eof():
        response.force_close()  # what is left of the body would be read as the next request
    return response


def _allowed_origin(request: web.BaseRequest, runtime: Runtime) -> str | None:
    allowed = runtime.config.cors.allow_origins
    origin = request.headers.get("Origin")
    return origin if origin is not None and ("*" in allowed or origin in allowed) else None


def _is_preflight(request: web.BaseRequest, runtime: Runtime) -> bool:
    if request.method != "OPTIONS" or "Access-Control-Request-Method" not in request.headers:
        return False
    return _allowed_origin(request, runtime) is not None


def _preflight(request: web.BaseRequest) -> web.Response:
    response = web.Response(status=204)
    response.headers["Access-Control-Allow-Methods"] = request.headers["Access-Control-Request-Method"]
    if wanted := request.headers.get("Access-Control-Request-Headers"):
        response.headers["Access-Control-Allow-Headers"] = wanted
    response.headers["Access-Control-Max-Age"] = "600"
    return response


def _finish_headers(request: web.BaseRequest, response: web.StreamResponse, runtime: Runtime) -> None:
    """aiohttp adds Server, Date and Content-Type on its own; what an upstream did not send goes."""
    sent = response.get(EXACT, frozenset())
    for name in ("Server", "Date", "Content-Type"):
        if name.lower() not in sent and (EXACT in response or name == "Server"):
            response.headers.pop(name, None)
    if not runtime.config.cors.allow_origins:
        return
    for name in [name for name in response.headers if name.lower().startswith("access-control-")]:
        if EXACT in response:
            response.headers.popall(name, None)
    if origin := _allowed_origin(request, runtime):
        response.headers["Access-Control-Allow-Origin"] = origin
        response.headers["Access-Control-Expose-Headers"] = _EXPOSED
        response.headers.add("Vary", "Origin")
