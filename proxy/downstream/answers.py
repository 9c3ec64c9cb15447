"""Answers that the proxy gives itself: JSON, and errors in the shape of the API."""

from __future__ import annotations

from aiohttp import web

from proxy.core.json_bytes import dumps
from proxy.errors import ProxyError

_FRESH = {"Cache-Control": "no-store"}


def json_answer(body: bytes, status: int = 200) -> web.Response:
    """JSON that no cache keeps."""
    return web.Response(body=body, status=status, content_type="application/json", headers=_FRESH)


def error_answer(fault: ProxyError, status: int | None = None) -> web.Response:
    """An error, with what it says of another try. `status`: instead of its own."""
    response = json_answer(dumps(fault.body()), status or fault.status)
    if fault.delay is not None:
        response.headers["Retry-After"] = str(fault.delay)
    if fault.should_retry is not None:
        response.headers["x-should-retry"] = str(fault.should_retry).lower()
    return response
