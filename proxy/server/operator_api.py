"""What the operator's commands ask of the process that writes, through the socket beside its database.

Whoever may open that socket may do it: there is no credential, and no tenant. Knows no upstream.
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
    """Answer on a bound socket until the block ends."""

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
            raise NotFound("An operator may POST to /purge?idle=MS, and to nothing else.")
        return json_answer(dumps(await _purge(runtime, request.query.get("idle", ""))))
    except ProxyError as fault:
        return error_answer(fault)


async def _purge(runtime: Runtime, idle: str) -> dict[str, object]:
    """Empty the sessions that were silent for longer than `idle`, a batch of them; the files forget with the last."""
    if not idle.isascii() or not idle.isdecimal() or len(idle) > 15:
        raise BadRequest("idle must be a number of milliseconds. Correct it.", param="idle")
    gone = await runtime.store.sweep(runtime.now(), runtime.registry.in_use, BATCH, int(idle))
    if gone < BATCH:
        await runtime.store.scrub()
    log.info("%d sessions purged", gone)
    return {"purged": gone, "has_more": gone == BATCH}
