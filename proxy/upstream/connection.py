"""One connection to an upstream: a request goes out, its answer comes in, and then perhaps another one.

What the bytes of an answer mean says aiohttp's parser. How long is waited, when a connection is broken and when it
may carry another request is said here. Knows nothing of URLs, of headers to send, or of which connections there are.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import cast

from aiohttp import StreamReader

from proxy.core.chunks import LAST, chunk
from proxy.errors import BadRequest, ProxyError, UpstreamTimeout, UpstreamUnreachable
from proxy.foundation import http_internals as internals
from proxy.upstream.deadline import Deadline
from proxy.upstream.dialing import CLOSED, LATE
from proxy.upstream.request_writer import Request
from proxy.upstream.response_parser import is_valid, unchunked

_HIGH = 128 * 1024  # bytes of an answer that may lie unread before no more are taken
_JOIN = 64 * 1024  # bytes of a request up to which its pieces are copied into one
# Given a piece, and the chunks in which it came where it is plainly written ones; whether more is wanted.
Sink = Callable[[bytes, bytes], bool]

_NO_HTTP = "The upstream's answer is no valid HTTP. Look at what runs there, and at http or https in base_url."
BROKEN = "The upstream broke off its answer."
_SILENT = "The upstream fell silent in the middle of its answer."


class Connection(asyncio.Protocol):
    """`ask`, then `piece` until it gives no more, then `rest`; `abort` at any time. `lost` is done once it is."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.lost: asyncio.Future[None] = self._loop.create_future()
        self.answered = False  # a byte has come since the last request
        self._transport: asyncio.Transport | None = None
        self._parser: internals.HttpResponseParser | None = None  # while there is a request
        self._message: internals.RawResponseMessage | None = None
        self._body = internals.NO_BODY
        self._fault: ProxyError | None = None
        self._head_size = self._taken = 0
        self._paused = self._stopped = False
        self._between = False  # two chunks: all that came of the body are whole ones
        self._sink: Sink | None = None  # while a piece may go on at once
        self._idle = 0.0
        self._sending: asyncio.Task[None] | None = None  # until all of the request has gone
        self._waiter: asyncio.Future[None] | None = None
        self._room: asyncio.Future[None] | None = None  # while the upstream takes no more
        self._deadline = Deadline(self._loop, self._late)

    # One exchange

    async def ask(self, request: Request, seconds: float) -> internals.RawResponseMessage:
        """Send a request; the head of its answer, waited for so long. Raises UpstreamUnreachable, UpstreamTimeout, and
        BadRequest where its body breaks off. Whatever is raised, a cancellation too, closes the connection."""
        self._begin(request, seconds)
        while self._message is None:
            if self._fault:
                raise self._fault
            await self._wait()
        return self._message

    async def piece(self, idle: float) -> bytes:
        """What has come of the body since the last piece, waited for `idle` seconds; nothing at its end. Raises as
        `ask` does, once all that came has been given."""
        pieces: list[bytes] = []

        def sink(piece: bytes, _: bytes) -> bool:
            pieces.append(piece)
            return False

        await self.flow(idle, sink)
        return b"".join(pieces)

    async def flow(self, idle: float, sink: Sink) -> bool:
        """Give what comes of the body to `sink`, each piece within `idle` seconds, until that returns False; or return
        False at the end. Raises as `ask` does, once all that came has been given.

        While nothing is in the way a piece goes from the socket to `sink` in one step: to wake a task for each would
        cost a third of what there is to do for it."""
        waits = False
        while True:
            if data := self.read_available():
                waits = False
                if not sink(data, b""):
                    return True
            elif self._body.is_eof():
                return False
            elif self._fault:
                raise self._fault
            else:
                self._idle, self._sink = idle, sink
                if not waits:  # framing alone is no sign of life
                    self._deadline.expect(idle)
                waits = True
                try:
                    await self._wait()
                finally:
                    self._sink, stopped, self._stopped = None, self._stopped, False
                if stopped:
                    return True

    def read_available(self) -> bytes:
        """What has come of the body since the last piece, perhaps nothing."""
        data = self._body.read_nowait()
        self._taken += len(data)
        if self._paused and data:
            self._paused = False
            if transport := self._open:
                transport.resume_reading()
        return data

    def rest(self, idle: float) -> bool:
        """End an exchange. Whether the connection can carry another one; it then closes by itself after `idle`
        seconds, or when something comes. Else it is closed."""
        parser, transport, self._parser = self._parser, self._open, None
        whole = self._message and not self._message.should_close and self._body.at_eof()
        sent = transport and not self._sending and not transport.get_write_buffer_size()
        if not (whole and sent and parser) or internals.holds_more(parser):
            self.abort()
            return False
        self._body = internals.NO_BODY
        self._deadline.expect(idle)
        return True

    def abort(self) -> None:
        """Close at once, whatever is on its way."""
        self._stop()
        if transport := self._transport:
            self._transport = None  # what the loop still says of it is no end of an answer
            transport.abort()

    def _stop(self) -> None:
        if self._sending:
            self._sending.cancel()
        self._deadline.end()

    @property
    def is_answered(self) -> bool:
        """Whether all of an answer has come."""
        return self._message is not None and self._body.is_eof()

    @property
    def is_open(self) -> bool:
        return self._open is not None

    @property
    def _open(self) -> asyncio.Transport | None:
        transport = self._transport
        return None if transport is None or transport.is_closing() else transport

    # The request

    def _begin(self, request: Request, seconds: float) -> None:
        self._parser = internals.response_parser(self._loop, request.is_head)
        self._message, self._fault = None, None
        self._head_size = self._taken = 0
        self.answered = self._between = False
        if not (transport := self._open):
            self._fault = UpstreamUnreachable(CLOSED)
            return
        pieces = [request.head, *request.body]
        if request.size <= _JOIN:
            transport.write(b"".join(pieces))
        else:
            transport.writelines(pieces)
        self._deadline.expect(seconds)
        if request.stream:
            self._sending = self._loop.create_task(self._send(request.stream, request.length, seconds))

    async def _send(self, stream: StreamReader, left: int | None, seconds: float) -> None:
        """The rest of a body, as it comes and as fast as the upstream takes it."""
        try:
            while left != 0 and (data := await stream.readany()):
                if left is not None and (left := left - len(data)) < 0:
                    break
                await self._write(chunk(data) if left is None else data, seconds)
            if left:  # the upstream would wait for the rest, or read on in what is no body
                raise ValueError("the body is not as long as was said")
            if left is None:
                await self._write(LAST, seconds)
            self._sending = None
        except Exception as error:
            self._sending = None
            self._fail(BadRequest("The body of the request broke off before its end. Send all of it."), error)

    async def _write(self, data: bytes, seconds: float) -> None:
        """Once it is written, the wait for the head begins anew."""
        if transport := self._open:
            transport.write(data)
        if self._message is None:
            self._deadline.expect(seconds)
        if self._room:
            await self._room

    def pause_writing(self) -> None:
        self._room = self._loop.create_future()

    def resume_writing(self) -> None:
        if self._room and not self._room.done():
            self._room.set_result(None)
        self._room = None

    # The answer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if not (self._parser and self._transport):  # nobody asked: it may not become the answer to what is asked next
            self.abort()
            return
        carried = unchunked(data) if self._between else None
        if carried and self._sink:
            self._push(self._sink, carried, data)
            return
        first, self.answered, self._between = not self.answered, True, carried is not None
        try:
            messages, _, _ = self._parser.feed_data(data)
            for message, body in messages:
                self._take(message, body)
                self._between = first and message.chunked and unchunked(data.partition(b"\r\n\r\n")[2]) is not None
        except Exception as error:
            self._fail(UpstreamUnreachable(BROKEN if self._message else _NO_HTTP), error)
            return
        if self._message is None:
            self._head_size += len(data)
            if self._head_size > internals.HEAD:
                self._fail(UpstreamUnreachable(_NO_HTTP))
        elif internals.received(self._body) - self._taken > _HIGH and not self._paused and (transport := self._open):
            self._paused = True
            transport.pause_reading()
        if self._sink and (come := self.read_available()):
            self._push(self._sink, come, b"")
            if not self._body.is_eof():
                return
        self._wake()

    def _push(self, sink: Sink, data: bytes, chunks: bytes) -> None:
        """Give what has come to who waits for it, and wake him where it takes no more."""
        self._deadline.due = self._loop.time() + self._idle
        try:
            if not sink(data, chunks):
                self._stopped = True
                self._wake()
        except Exception as error:
            if self._waiter and not self._waiter.done():
                self._waiter.set_exception(error)

    def _take(self, message: internals.RawResponseMessage, body: StreamReader) -> None:
        """Raises ValueError for what is no head of an answer to what was asked."""
        if self._message or not is_valid(message):
            raise ValueError("not the head of an answer to what was asked")
        if message.code >= 200:
            self._message, self._body = message, body

    def connection_lost(self, error: Exception | None) -> None:
        if self._transport and self._parser and error is None:
            with suppress(Exception):  # where it was not the end, it is not
                self._parser.feed_eof()
        self._transport = None
        self._stop()
        self._fault = self._fault or UpstreamUnreachable(BROKEN if self._message else CLOSED)
        self._wake()
        self.lost.set_result(None)

    # Waiting

    async def _wait(self) -> None:
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        except BaseException:
            self.abort()
            raise
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter and not self._waiter.done():
            self._waiter.set_result(None)

    def _fail(self, fault: ProxyError, cause: Exception | None = None) -> None:
        fault.__cause__ = cause
        self._fault = self._fault or fault
        self.abort()
        self._wake()

    def _late(self) -> None:
        if self._parser is None:  # at rest
            self.abort()
        elif self._waiter and self._waiter.done():  # woken in the same moment, perhaps by framing: look again after it
            self._deadline.expect(0)
        elif self._waiter:
            self._fail(UpstreamTimeout(_SILENT if self._message else LATE))
