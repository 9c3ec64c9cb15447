"""Writes CORS headers: a browser may read answers from the configured origins, whatever the upstream allows."""

from __future__ import annotations

from aiohttp import web

from proxy.config.model import Config
from proxy.core.headers import Pairs

_EXPOSED = (
    "x-session-state, x-session-turn, x-session-decision, x-session-injected, x-session-dropped, x-session-recorded,"
    " x-session-id,"
    " x-request-id"
)


def is_preflight(request: web.BaseRequest, config: Config) -> bool:
    """Whether a request is a CORS preflight that the proxy answers itself."""
    if request.method != "OPTIONS" or "Access-Control-Request-Method" not in request.headers:
        return False
    return _allowed_origin(request, config) is not None


def preflight(request: web.BaseRequest) -> web.Response:
    """Answer a preflight: 204 with the method and headers that the browser asked for."""
    response = web.Response(status=204)
    response.headers["Access-Control-Allow-Methods"] = request.headers["Access-Control-Request-Method"]
    if wanted := request.headers.get("Access-Control-Request-Headers"):
        response.headers["Access-Control-Allow-Headers"] = wanted
    response.headers["Access-Control-Max-Age"] = "600"
    return response


def with_ours(request: web.BaseRequest, config: Config, headers: Pairs) -> Pairs:
    """Replace an upstream's CORS headers by the proxy's, if the configuration allows any origin."""
    if not config.cors.allow_origins:
        return headers
    kept = [(name, value) for name, value in headers if not name.lower().startswith("access-control-")]
    return [*kept, *ours(request, config)]


def ours(request: web.BaseRequest, config: Config) -> Pairs:
    """Return the CORS headers for a request from an allowed origin; none for others."""
    origin = _allowed_origin(request, config)
    if origin is None:
        return []
    return [
        ("Access-Control-Allow-Origin", origin),
        ("Access-Control-Expose-Headers", _EXPOSED),
        ("Vary", "Origin"),
    ]


def _allowed_origin(request: web.BaseRequest, config: Config) -> str | None:
    allowed = config.cors.allow_origins
    origin = request.headers.get("Origin") if allowed else None
    return origin if origin is not None and ("*" in allowed or origin in allowed) else None
