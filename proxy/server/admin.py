"""The admin listener: what an operator's tools may ask, on an address of its own and with a token.

Knows no upstream and no session. What a scrape looks like stands in `metrics`.
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
    """The HTTP server of the admin listener."""

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        return await _answer(request, runtime, render)

    return web.ServerRunner(web.Server(handle, access_log=None), shutdown_timeout=1.0)


async def _answer(request: web.BaseRequest, runtime: Runtime, render: Render) -> web.StreamResponse:
    try:
        _admit(request, runtime)
        if request.path != "/metrics":
            raise NotFound("There is nothing at this path. The admin listener knows /metrics.")
        if request.method not in ("GET", "HEAD"):
            raise MethodNotAllowed("/metrics can be read. Use GET.")
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
        raise InvalidApiKey("This needs the token of the configuration. Send it as Authorization: Bearer TOKEN.")


async def _store_stats(runtime: Runtime) -> StoreStats | None:
    """A store that fails is something to be told, not to fail with."""
    try:
        return await runtime.store.stats(runtime.now())
    except StoreUnavailable:
        return None
