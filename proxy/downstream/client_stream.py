"""Writes an answer to one client's socket, notices its disconnect, and resets the connection of a broken answer, so
that it never looks complete. Knows nothing of sessions.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from aiohttp import web

from proxy.config.model import Config
from proxy.core.chunks import LAST, chunk
from proxy.core.headers import Pairs
from proxy.downstream import cors
from proxy.downstream.head import framed
from proxy.downstream.parting import DelayedReset, harden
from proxy.downstream.watch import Poller
from proxy.foundation.http_internals import connection_of, drained, let_drained, note_begun


class ClientStream(web.StreamResponse):
    """Call `begin`, then `write_nowait` for each piece and `wait_writable` where that returns False, then `end`,
    `reset_later` or `reset`. Once `disconnected` is set every call does nothing. Handlers return this object to aiohttp
    as their response.

    `poll` resets a client that has read nothing for `limits.write_timeout`.
    """

    status = 0  # of the head that was written
    keep_alive = False  # once the head says so

    def __init__(self, request: web.BaseRequest, config: Config, watch: Poller) -> None:
        # Without StreamResponse.__init__: the headers and the status that it makes cost 0.3 us, as much again as all
        # else here, and what would read them is overridden (decision 18).
        self.disconnected = False
        self.why = (
            ""  # where it was ended before its end, and not by the client: upstream, stop, interrupt, store, limit
        )
        self.size, self.first = 0, 0.0  # bytes of the body that were given, and when the head went (monotonic)
        self._request, self._connection, self._config = request, connection_of(request), config
        self._watch, self._timeout = watch, config.limits.write_timeout
        self._waits_since: float | None = None
        self._delayed_reset: DelayedReset | None = None
        self._head = b""  # not written yet
        self._in_chunks = self._bodiless = False

    @property
    def left(self) -> bool:
        """Whether the client has disconnected, even if nothing was written since."""
        transport = self._connection.transport
        return self.disconnected or transport is None or transport.is_closing()

    def watched(self) -> CancelOnDisconnect:
        """Return a context that cancels its block on a disconnect, for callers that do not poll themselves."""
        return CancelOnDisconnect(self._request, self._watch, self.poll)

    def poll(self) -> None:
        """Reset a client that has stalled. The watch calls this periodically: a timer for each piece would cost more
        than the piece."""
        if self._waits_since is not None and time.monotonic() - self._waits_since > self._timeout:
            self.reset()

    def begin(self, status: int, headers: Pairs, at_once: bool = True) -> None:
        """Write the head. Without `at_once` it waits for the first piece, and both go out in one write."""
        request = self._request
        shown = cors.with_ours(request, self._config, headers)
        head = framed(request.version, request.method, status, shown, request.keep_alive)
        self.status, self.keep_alive = status, head.keeps
        self._in_chunks, self._bodiless = head.chunked, head.bodiless
        self._head = head.raw
        if at_once:
            self._write(b"")

    def write_nowait(self, data: bytes, chunks: bytes = b"") -> bool:
        """Write data without waiting. Return whether the client takes more at once. `chunks`: the same data in HTTP
        chunks, if it came so."""
        if self.status and data and not self._bodiless:
            self.size += len(data)
            self._write((chunks or chunk(data)) if self._in_chunks else data)
        return self.disconnected or not self._connection.writing_paused

    async def wait_writable(self) -> None:
        """Wait until the client has read most of what was written (backpressure)."""
        if self.disconnected or not self._connection.writing_paused:
            return
        self._waits_since = time.monotonic()
        try:
            await drained(self._request)
        except ConnectionError:
            self.reset()
        finally:
            self._waits_since = None

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Write data, and wait for room if necessary."""
        if not self.write_nowait(bytes(data)):
            await self.wait_writable()

    def take_back(self) -> bool:
        """Withdraw the head if it was not written yet. Return whether it was withdrawn."""
        if not self._head:
            return False
        self._head, self.status = b"", 0
        return True

    def _write(self, data: bytes) -> None:
        """Write directly to the transport: aiohttp's own response costs as much per piece as the piece."""
        if self._head:
            data, self._head = self._head + data, b""
            self.first = time.monotonic()
            note_begun(self._request, len(data))
        transport = self._connection.transport
        if transport is None or transport.is_closing():
            self.reset()
        elif data and not self.disconnected:
            transport.write(data)

    def release_writer(self) -> None:
        """Release a writer that waits in `wait_writable`. A cancellation would not do: aiohttp would give the cancelled
        future to the next waiter."""
        let_drained(self._connection)

    async def end(self) -> None:
        if self.disconnected or not self.status:
            return
        self._write(LAST if self._in_chunks else b"")
        await self.wait_writable()

    def reset_later(self, broke: float | None = None, why: str = "upstream") -> None:
        """Reset the connection of an incomplete answer, after a moment in which the client can read what it was sent.
        Does not wait for that: `disconnected` is set at once. `broke`: when the answer broke (monotonic); now, if left
        out."""
        transport = self._connection.transport
        if not self.left and transport is not None:
            self.why = why
            self._delayed_reset = DelayedReset(transport, broke or time.monotonic(), self._watch.hurries)
        self.disconnected = True

    def reset(self, why: str = "") -> None:
        """Reset the connection at once (TCP RST). A mere close looks like success to an HTTP/1.0 client such as stock
        nginx, for which the end of the connection is the end of the body."""
        if not self.left:
            self.why = self.why or why
        self.disconnected = True
        transport = self._connection.transport
        if transport is not None:
            harden(transport)
            transport.abort()

    # What aiohttp does with a response that a handler returns

    async def prepare(self, request: web.BaseRequest) -> None:
        """Called by aiohttp to send the head, which `begin` has done. Raises on a disconnect, so that aiohttp closes
        the connection."""
        if self._delayed_reset:
            await self._delayed_reset.over
        if self.disconnected or not self.status:
            raise ConnectionResetError("The client has gone.")

    async def write_eof(self, data: bytes = b"") -> None:
        """Called by aiohttp to send the end, which `end` has done."""


HandlerResult = web.StreamResponse  # what a handler returns


class CancelOnDisconnect:
    """Cancels an `async with` block with ConnectionResetError when the client disconnects. aiohttp reports that only to
    a handler that reads or writes, and an upstream may think for minutes. While the client is connected it calls `poll`
    each time."""

    def __init__(self, request: web.BaseRequest, watch: Poller, poll: Callable[[], None]) -> None:
        self._request, self._watch, self._still_there = request, watch, poll
        self._task: asyncio.Task[Any] | None = None
        self._disconnected = False

    async def __aenter__(self) -> None:
        self._task = asyncio.current_task()
        self._watch.add(self._poll)

    def _poll(self) -> None:
        transport = self._request.transport
        if transport is not None and not transport.is_closing():
            self._still_there()
        elif self._task:
            self._disconnected = True
            self._watch.remove(self._poll)
            self._task.cancel()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._watch.remove(self._poll)
        alone = self._disconnected and self._task is not None and not self._task.uncancel()
        if alone and kind is asyncio.CancelledError:  # by nobody else
            raise ConnectionResetError("The client has gone.") from None
