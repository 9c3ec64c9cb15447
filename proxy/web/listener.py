"""One client that listens to an answer: writes to it as it comes, notices when it is gone,
and ends it so that a broken answer never looks like a whole one. Knows nothing of sessions.
"""

from __future__ import annotations

import asyncio
import socket
import struct

from aiohttp import web

from proxy.core.headers import Pairs

# Marks a response that has these headers (lower case) and no others.
EXACT: web.ResponseKey[frozenset[str]] = web.ResponseKey("exact", frozenset)


class Listener:
    """`begin`, `write` per piece, then `end` or `reset`. After `gone` every call does nothing.

    `timeout` in seconds: a client that takes nothing for that long is gone.
    """

    def __init__(self, request: web.Request, timeout: float) -> None:
        self.gone = False
        self.response: web.StreamResponse | None = None
        self._request = request
        self._timeout = timeout

    async def begin(self, status: int, headers: Pairs) -> None:
        response = web.StreamResponse(status=status)
        response[EXACT] = frozenset(name.lower() for name, _ in headers)
        for name, value in headers:
            response.headers.add(name, value)
        self.response = response
        try:
            await response.prepare(self._request)
        except ConnectionError:
            self.gone = True

    async def write(self, data: bytes) -> None:
        if self.gone or self.response is None:
            return
        try:
            async with asyncio.timeout(self._timeout):
                await self.response.write(data)
        except (ConnectionError, TimeoutError):
            self.reset()

    async def end(self) -> None:
        if self.gone or self.response is None:
            return
        try:
            async with asyncio.timeout(self._timeout):
                await self.response.write_eof()
        except (ConnectionError, TimeoutError):
            self.reset()

    def reset(self) -> None:
        """End with a TCP reset. A mere close would look like success to an HTTP/1.0 client, such
        as stock nginx, for which the end of the connection is the end of the body."""
        self.gone = True
        transport = self._request.transport
        if transport is None:
            return
        connection = transport.get_extra_info("socket")
        if connection is not None and connection.family in (socket.AF_INET, socket.AF_INET6):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
