"""One client that listens to an answer: writes to it as it comes, notices when it is gone,
and ends it so that a broken answer never looks like a whole one. Knows nothing of sessions.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from types import TracebackType

from aiohttp import web

from proxy.core.headers import Pairs

# Marks a response that has these headers (lower case) and no others.
EXACT: web.ResponseKey[frozenset[str]] = web.ResponseKey("exact", frozenset)
LOOK = 0.25  # seconds between two looks at whether a client is still there


class Listener:
    """`begin`, `write` per piece, then `end` or `reset`. After `gone` every call does nothing.

    `timeout` in seconds: a client that takes nothing for that long is gone, once `look` is called.
    """

    def __init__(self, request: web.BaseRequest, timeout: float) -> None:
        self.gone = False
        self.response: web.StreamResponse | None = None
        self._request = request
        self._timeout = timeout
        self._loop = asyncio.get_running_loop()
        self._waits_since: float | None = None

    @property
    def left(self) -> bool:
        """Whether the client has gone, also where nothing was written to it since."""
        transport = self._request.transport
        return self.gone or transport is None or transport.is_closing()

    def watched(self) -> WhileThere:
        """For whoever writes and has no looks of its own: cut off once the client has gone."""
        return WhileThere(self._request, self.look, min(LOOK, self._timeout))

    def look(self) -> None:
        """Give up a client that takes nothing. Called from time to time: a timer for each piece would cost more
        than the piece."""
        if self._waits_since is not None and self._loop.time() - self._waits_since > self._timeout:
            self.reset()

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
        self._waits_since = self._loop.time()
        try:
            await self.response.write(data)
        except ConnectionError:
            self.reset()
        finally:
            self._waits_since = None

    def let_go(self) -> None:
        """Let who writes go on without waiting until this client has taken what was written. Not by a
        cancellation: aiohttp would give the cancelled future to who waits next."""
        protocol = self._request.protocol
        if protocol.writing_paused:
            protocol.resume_writing()
            protocol.pause_writing()

    async def end(self) -> None:
        if self.gone or self.response is None:
            return
        self._waits_since = self._loop.time()
        try:
            await self.response.write_eof()
        except ConnectionError:
            self.reset()
        finally:
            self._waits_since = None

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


def given(listener: Listener) -> web.StreamResponse:
    """What the handler of a listener returns. One that went before the head has been given nothing."""
    if listener.response is None:
        raise ConnectionResetError("The client has gone.")
    return listener.response


class WhileThere:
    """`async with`: cut the block off with a ConnectionResetError once the client has gone. aiohttp tells that
    only to a handler that reads or writes, and an upstream may think for minutes. Calls `look` each time that the
    client was still there."""

    def __init__(self, request: web.BaseRequest, look: Callable[[], None], every: float = LOOK) -> None:
        self._request, self._look_too, self._every = request, look, every
        self._bound = asyncio.timeout(None)

    async def __aenter__(self) -> None:
        await self._bound.__aenter__()
        self._timer = asyncio.get_running_loop().call_later(self._every, self._look)

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        transport = self._request.transport
        if transport is None or transport.is_closing():
            self._bound.reschedule(loop.time())
            return
        self._look_too()
        self._timer = loop.call_later(self._every, self._look)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        try:
            await self._bound.__aexit__(kind, error, trace)
        except TimeoutError:
            raise ConnectionResetError("The client has gone.") from None
