"""Serves metrics to an operator's tools, on an address of its own and with a token.

Knows no upstream and no session; `observe/prometheus.py` renders the metrics.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable

from aiohttp import web

from proxy.context.runtime import Runtime
from proxy.core.headers import bare_key
from proxy.downstream.answers import error_answer
from proxy.errors import InvalidApiKey, MethodNotAllowed, NotFound, ProxyError, StoreUnavailable
from proxy.stores.base import StoreStats

Render = Callable[[Runtime, StoreStats | None], tuple[bytes, str]]  # the text of a scrape, and its content type


def build_runner(runtime: Runtime, render: Render) -> web.ServerRunner:
    """Build the HTTP server of the admin listener."""

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        return await _answer(request, runtime, render)

    return web.ServerRunner(web.Server(handle, access_log=None), shutdown_timeout=1.0)


async def _answer(request: web.BaseRequest, runtime: Runtime, render: Render) -> web.StreamResponse:
    try:
        _admit(request, runtime)
        if request.path != "/metrics":
            raise NotFound("No such path. The admin listener serves only /metrics.")
        if request.method not in ("GET", "HEAD"):
            raise MethodNotAllowed("/metrics is read-only. Use GET.")
        body, content_type = render(runtime, await _store_stats(runtime))
        response = web.Response(body=body, headers={"Content-Type": content_type})
    except ProxyError as fault:
        response = error_answer(fault)
        if isinstance(fault, InvalidApiKey):
            response.headers["WWW-Authenticate"] = "Bearer"
    response.headers["Cache-Control"] = "no-store"
    return response


def _admit(request: web.BaseRequest, runtime: Runtime) -> None:
    token = runtime.config.admin.token  # a reload may have changed it
    sent = bare_key(request.headers.get("Authorization", "")).encode(errors="surrogateescape")
    if token is None or not hmac.compare_digest(sent, token.get_secret_value().encode()):
        raise InvalidApiKey("The admin token is missing or wrong. Send admin.token as Authorization: Bearer TOKEN.")


async def _store_stats(runtime: Runtime) -> StoreStats | None:
    """Return the figures of the store, or None while it is unavailable: the scrape must still succeed."""
    try:
        return await runtime.store.stats(runtime.now())
    except StoreUnavailable:
        return None
