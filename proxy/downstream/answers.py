"""Builds the proxy's own answers: JSON, and errors in the shape of OpenAI's API."""

from __future__ import annotations

from aiohttp import web

from proxy.core.json_bytes import dumps
from proxy.errors import ProxyError

_FRESH = {"Cache-Control": "no-store"}


def json_answer(body: bytes, status: int = 200) -> web.Response:
    """Build a JSON answer that no cache stores."""
    return web.Response(body=body, status=status, content_type="application/json", headers=_FRESH)


def error_answer(fault: ProxyError, status: int | None = None) -> web.Response:
    """Build an error's answer with its retry headers. `status` overrides that of the error."""
    response = json_answer(dumps(fault.body()), status or fault.status)
    if fault.delay is not None:
        response.headers["Retry-After"] = str(fault.delay)
    if fault.should_retry is not None:
        response.headers["x-should-retry"] = str(fault.should_retry).lower()
    return response
