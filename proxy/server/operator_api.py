"""Answers the operator's commands through the control socket beside the database.

File permissions of the socket are the only access control: no credential, no tenant. Knows no upstream.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web

from proxy.context.runtime import Runtime
from proxy.core.json_bytes import dumps
from proxy.downstream.answers import error_answer, json_answer
from proxy.errors import BadRequest, NotFound, ProxyError

log = logging.getLogger("proxy.operator")
BATCH = 100  # sessions; a batch is one short transaction


@asynccontextmanager
async def listening(runtime: Runtime, listener: socket.socket) -> AsyncIterator[None]:
    """Serve the control endpoints on a bound socket until the block ends."""

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        return await _answer(request, runtime)

    server = web.Server(handle, access_log=None)
    accepting = await asyncio.get_running_loop().create_unix_server(server, sock=listener)
    try:
        yield
    finally:
        accepting.close()
        await server.shutdown(1.0)


async def _answer(request: web.BaseRequest, runtime: Runtime) -> web.StreamResponse:
    try:
        if (request.method, request.path) != ("POST", "/purge"):
            raise NotFound("No such control endpoint. Use POST /purge?idle=MS.")
        return json_answer(dumps(await _purge(runtime, request.query.get("idle", ""))))
    except ProxyError as fault:
        return error_answer(fault)


async def _purge(runtime: Runtime, idle: str) -> dict[str, object]:
    """Delete one batch of sessions idle longer than `idle` ms. The last batch also scrubs the deleted bytes from
    disk."""
    if not idle.isascii() or not idle.isdecimal() or len(idle) > 15:
        raise BadRequest("idle must be a whole number of milliseconds. Correct it.", param="idle")
    gone = await runtime.store.sweep(runtime.now(), runtime.registry.in_use, BATCH, int(idle))
    if gone < BATCH:
        await runtime.store.scrub()
    log.info("%d sessions purged", gone)
    return {"purged": gone, "has_more": gone == BATCH}
