"""Whom a browser lets see an answer: the origins that the configuration allows, whatever an upstream thinks of them."""

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
    """Whether it is a browser's question that is ours to answer."""
    if request.method != "OPTIONS" or "Access-Control-Request-Method" not in request.headers:
        return False
    return _allowed_origin(request, config) is not None


def preflight(request: web.BaseRequest) -> web.Response:
    response = web.Response(status=204)
    response.headers["Access-Control-Allow-Methods"] = request.headers["Access-Control-Request-Method"]
    if wanted := request.headers.get("Access-Control-Request-Headers"):
        response.headers["Access-Control-Allow-Headers"] = wanted
    response.headers["Access-Control-Max-Age"] = "600"
    return response


def with_ours(request: web.BaseRequest, config: Config, headers: Pairs) -> Pairs:
    """An upstream's headers with ours in place of its own, where any origin is allowed."""
    if not config.cors.allow_origins:
        return headers
    kept = [(name, value) for name, value in headers if not name.lower().startswith("access-control-")]
    return [*kept, *ours(request, config)]


def ours(request: web.BaseRequest, config: Config) -> Pairs:
    """What an answer says to a browser whose origin is allowed."""
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
