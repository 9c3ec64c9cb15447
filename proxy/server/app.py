"""Dispatches each request to its handler, and turns an error into an answer.

Decides by path and headers alone whether a request is passed through, recorded or answered by the proxy. Never reads
a body.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

from aiohttp import web

from proxy.config.model import Config
from proxy.context import request_log, tenants
from proxy.context.runtime import Runtime
from proxy.core import headers
from proxy.downstream import cors
from proxy.downstream.answers import error_answer
from proxy.downstream.client_stream import HandlerResult
from proxy.errors import Draining, NotFound, ProxyError
from proxy.foundation.http_internals import UNREADABLE, Request, request_factory, send_continue
from proxy.server import passthrough, sessions_api
from proxy.turns import admission

log = logging.getLogger("proxy.request")
Handler = Callable[[web.BaseRequest], Awaitable[HandlerResult]]


class App:
    """Handles every request. Replaces aiohttp's Application, which would search its routes first; there are none."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self.make_request = request_factory(type("BoundRequest", (_Request,), {"runtime": runtime}))

    async def __call__(self, request: web.BaseRequest) -> HandlerResult:
        if request.headers.get("Expect", "").lower() == "100-continue":
            await send_continue(request)
        return await _answer(request, self._runtime)


class _Request(Request):
    runtime: Runtime

    def finish(self, response: web.StreamResponse) -> None:
        """Complete the headers of the proxy's own answers, before aiohttp sends them. An Application has signals for
        this; tests/server/test_untouched.py pins the hook."""
        response.headers.pop("Server", None)
        access = self.get(request_log.KEY)  # none where aiohttp refuses what is no HTTP
        if access and (access.route != "passed" or access.fault):
            response.headers[request_log.NAME] = access.id
        if access and access.chosen:
            response.headers[request_log.CHOSEN] = access.chosen
        for name, value in cors.ours(self, self.runtime.config):
            response.headers.add(name, value)

    @property
    def keep_alive(self) -> bool:
        """Whether to keep the connection. While the process stops, the client's next request must reach the next
        one."""
        return bool(super().keep_alive) and not self.runtime.registry.leaving


def build_app(runtime: Runtime) -> App:
    """Build the handler of all requests. Call it in a running event loop."""
    return App(runtime)


def build_runner(app: App, config: Config, handler: Handler | None = None) -> web.ServerRunner:
    """Build the HTTP server with the settings that differ from aiohttp's defaults. `handler` may wrap the app."""
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
    """Return a logger for aiohttp that drops the bytes it could not parse: they may hold a key."""
    logger = logging.getLogger("proxy.http")
    logger.addFilter(_without_bytes)
    return logger


def _without_bytes(record: logging.LogRecord) -> bool:
    if record.exc_info and isinstance(record.exc_info[1], ConnectionError):
        return False  # a client that left is no error
    if record.exc_info and isinstance(record.exc_info[1], UNREADABLE):
        record.exc_info = None
        record.levelno, record.levelname = logging.WARNING, "WARNING"
    return True


async def _answer(request: web.BaseRequest, runtime: Runtime) -> HandlerResult:
    access = request_log.begin(request, runtime)
    response: HandlerResult | None = None
    try:
        response = await dispatch(request, runtime, access)
    except ProxyError as fault:
        access.fault, response = fault.code, _fault(request, fault)
    except ConnectionError:
        raise
    except Exception:
        log.exception("internal error in request %s; report the traceback below", access.id)
        own = ProxyError(f"Internal proxy error. Look for request {access.id} in the proxy's log.")
        access.fault, response = own.code, _fault(request, own)
    finally:
        request_log.finish(request, runtime, access, response)
    return response


async def dispatch(request: web.BaseRequest, runtime: Runtime, access: request_log.AccessRecord) -> HandlerResult:
    """Route a request to its handler and return the answer. Raises ProxyError for the caller's answer."""
    if request.path in ("/healthz", "/readyz"):
        access.route = "health"
        return await _health(request.path, runtime)
    headers.refuse_invalid_utf8(request.headers.items())
    if request.raw_path.startswith("/sessions/"):
        access.route = "sessions"
        return (
            cors.preflight(request)
            if cors.is_preflight(request, runtime.config)
            else await sessions_api.answer(request, runtime)
        )
    found = runtime.find(request.raw_path, request.method)
    if found is None:
        mounts = ", ".join(mount for upstream in runtime.config.upstreams for mount in upstream.mount)
        raise NotFound(f"No upstream is mounted at this path. Set the client's base URL to one of: {mounts}.")
    if cors.is_preflight(request, runtime.config):
        return cors.preflight(request)
    access.upstream = found.host
    tenants.admit(runtime.config, found.upstream, request.headers)
    access.route = "passed"
    if request.method == "GET" and request.headers.get("Upgrade", "").lower() == "websocket":
        return await passthrough.websocket(request, runtime, found)
    if request.method == "POST" and found.is_chat:
        session_id, was_chosen = tenants.session_id(runtime.config, request.headers)
        if session_id is not None:
            access.route = "recorded"
            if was_chosen:
                access.chosen = session_id
            if found.tidy:
                found = found._replace(url=found.tidy)
            if (shown := headers.placeholder(session_id)) is not None and runtime.noted.is_first(shown):
                _tell_of_placeholder(shown)
            return await admission.handle(request, runtime, found, session_id)
    return await passthrough.forward(request, runtime, found)


def _tell_of_placeholder(shown: str) -> None:
    """Warn, once for each text, of a session ID that is an unfilled template: such clients share one session."""
    log.warning(
        "a session ID %s is a template that was not filled in; all requests that send it with one key share a session:"
        " correct the client that sends it",
        f"with {shown[:80]!a}" if shown else "of blanks or quotes alone",
    )


async def _health(path: str, runtime: Runtime) -> web.Response:
    if path == "/readyz":
        if runtime.registry.draining:
            raise Draining("The proxy is stopping. Send the request again in a moment.")
        await runtime.store.ping()
    return web.Response(body=b'{"status":"ok"}', content_type="application/json")


def _fault(request: web.BaseRequest, fault: ProxyError) -> web.Response:
    response = error_answer(fault)
    if not request.content.is_eof():
        response.force_close()  # what is left of the body would be read as the next request
    return response
