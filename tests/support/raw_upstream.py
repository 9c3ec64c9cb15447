"""An upstream that answers with the bytes of the test, and the client that speaks to it, on both loops."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, cast

import pytest
import uvloop
from aiohttp import StreamReader
from aiohttp.base_protocol import BaseProtocol

from proxy.upstream.client import Client, Response
from tests.support.fakes import eventually

Step = bytes | float | asyncio.Event | Literal["fin", "rst", "hang"]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
Pairs = list[tuple[str, str]]


LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


def on_both_loops(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Their transports differ. Nothing may be left behind: no task, and no fault that only a log would show."""

    async def body(**arguments: Any) -> None:
        faults: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context))
        async with asyncio.timeout(20):
            await test(**arguments)
            await eventually(lambda: len(asyncio.all_tasks()) == 1)
        assert not faults

    def run(loop: str, **arguments: Any) -> None:
        with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
            runner.run(body(**arguments))

    own = inspect.signature(test)
    parameter = inspect.Parameter("loop", inspect.Parameter.KEYWORD_ONLY, annotation=str)
    signature = own.replace(parameters=[*own.parameters.values(), parameter], return_annotation=None)
    run.__dict__.update(__signature__=signature, __name__=test.__name__, pytestmark=getattr(test, "pytestmark", []))
    marked: Callable[..., None] = pytest.mark.parametrize("loop", LOOPS)(run)
    return marked


# The upstream ------------------------------------------------------------------------------


class Got(NamedTuple):
    """A request, byte for byte, and on which connection, counted from 0."""

    connection: int
    head: bytes
    body: bytes

    @property
    def lines(self) -> list[bytes]:
        return self.head.split(b"\r\n")[:-2]


@dataclass
class Answer:
    """Bytes are sent, numbers slept, events waited for. `unread`: as soon as the head is here; what follows
    is no request."""

    steps: Sequence[Step]
    unread: bool = False


@dataclass
class Upstream:
    """Answers its requests in order, with OK once there are no answers left."""

    answers: list[Answer] = field(default_factory=list)
    got: list[Got] = field(default_factory=list)
    port: int = 0
    accepted: int = 0
    open: int = 0
    spoken: list[str | None] = field(default_factory=list)  # as TLS agreed

    def url(self, target: str = "/", scheme: str = "http", host: str = "127.0.0.1") -> str:
        return f"{scheme}://{host}:{self.port}{target}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number, self.accepted, self.open = self.accepted, self.accepted + 1, self.open + 1
        if secure := writer.get_extra_info("ssl_object"):
            self.spoken.append(secure.selected_alpn_protocol())
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                answer = self.answers.pop(0) if self.answers else Answer([OK])
                self.got.append(Got(number, head, b"" if answer.unread else await body_of(head, reader)))
                await self.play(answer.steps, reader, writer)
                if answer.unread:
                    await reader.read()
        except (EOFError, OSError, RuntimeError):  # the last one is what uvloop says of a transport that was closed
            pass
        finally:
            self.open -= 1
            writer.transport.abort()

    async def play(self, steps: Sequence[Step], reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for step in steps:
            if isinstance(step, bytes):
                writer.write(step)
                await writer.drain()
            elif isinstance(step, asyncio.Event):
                await step.wait()
            elif step == "hang":
                await reader.read()
                raise EOFError
            elif step == "fin":
                writer.write_eof() if writer.can_write_eof() else writer.close()
                await reader.read()
            elif step == "rst":
                linger = struct.pack("ii", 1, 0)
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                raise ConnectionResetError
            else:
                await asyncio.sleep(step)


async def body_of(head: bytes, reader: asyncio.StreamReader) -> bytes:
    """As it is on the wire."""
    names = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:-2])
    if b"transfer-encoding" not in names:
        return await reader.readexactly(int(names.get(b"content-length", b"0")))
    body = b""
    while not body.endswith(b"0\r\n\r\n"):
        size = await reader.readuntil(b"\r\n")
        body += size + await reader.readexactly(int(size, 16) + 2)
    return body


@dataclass
class Times:
    """In seconds."""

    connect_timeout: float = 5
    response_timeout: float = 5
    idle_timeout: float = 5


@dataclass
class Talk:
    """A client, the upstream it speaks to, and how patient it is."""

    client: Client
    upstream: Upstream
    times: Times = field(default_factory=Times)

    async def ask(
        self, method: str = "GET", target: str = "/", headers: Pairs | None = None, body: Any = None, **times: float
    ) -> Response:
        url = target if "://" in target else self.upstream.url(target)
        content = [body] if isinstance(body, bytes) else body
        return await self.client.ask(method, url, headers or [], content, replace(self.times, **times))

    async def is_closed(self) -> None:
        """Wait for the upstream to see that it is, in less time than connections are kept."""
        await eventually(lambda: not self.upstream.open, 2)

    async def get(self, *arguments: Any, **more: Any) -> tuple[int, bytes]:
        """The status and the body of an answer, read to its end."""
        answer = await self.ask(*arguments, **more)
        try:
            return answer.status, await read(answer)
        finally:
            answer.close()


async def read(answer: Response) -> bytes:
    pieces: list[bytes] = []
    while piece := await answer.piece():
        pieces.append(piece)
    return b"".join(pieces)


@asynccontextmanager
async def talk(
    *answers: Answer | Sequence[Any] | bytes, connections: int = 0, tls: ssl.SSLContext | None = None
) -> AsyncIterator[Talk]:
    steps = [
        answer if isinstance(answer, Answer) else Answer([answer] if isinstance(answer, bytes) else answer)
        for answer in answers
    ]
    upstream, client = Upstream(steps), Client(connections)
    server = await asyncio.start_server(upstream.serve, "127.0.0.1", 0, ssl=tls, limit=2**20)
    upstream.port = server.sockets[0].getsockname()[1]
    try:
        yield Talk(client, upstream)
    finally:
        await client.close()
        server.close()
        await eventually(lambda: not upstream.open)


# Bodies of requests -------------------------------------------------------------------------


class Upload(StreamReader):
    """A body that comes as the test feeds it; `taken` counts what was read."""

    def __init__(self, *parts: bytes, whole: bool = False) -> None:
        loop = asyncio.get_running_loop()
        super().__init__(_Flow(loop), 2**28, loop=loop)
        self.taken = 0
        for part in parts:
            self.feed_data(part)
        if whole:
            self.feed_eof()

    async def readany(self) -> bytes:
        data = await super().readany()
        self.taken += len(data)
        return data


class _Flow(BaseProtocol):
    def resume_reading(self, resume_parser: bool = True) -> None:
        """Nothing was paused."""

    @property
    def connected(self) -> bool:
        return True


def stream(*parts: bytes, whole: bool = True) -> Callable[[], Upload]:
    return lambda: Upload(*parts, whole=whole)


class Late(Upload):
    """A body whose parts come one after another, once its request has begun."""

    def __init__(self, *parts: bytes, delay: float = 0.005) -> None:
        super().__init__()
        self.parts, self.delay = list(parts), delay

    async def readany(self) -> bytes:
        await asyncio.sleep(self.delay)
        self.feed_data(self.parts.pop(0)) if self.parts else self.feed_eof()
        return await super().readany()


def late(*parts: bytes) -> Callable[[], Upload]:
    return lambda: Late(*parts)


LENGTH_5: Pairs = [("content-length", "5")]


# Bytes of answers ---------------------------------------------------------------------------


def v1(lines: bytes, body: bytes = b"", version: bytes = b"1.1", status: bytes = b"200 OK") -> bytes:
    return b"HTTP/%b %b\r\n%b\r\n%b" % (version, status, lines, body)


LENGTH, CODED, CLOSE = b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n", b"Connection: close\r\n"
CHUNKS = b"2;ext=1\r\nhe\r\n3\r\nllo\r\n0\r\n"
HEAD_5 = v1(LENGTH)


# Small things ------------------------------------------------------------------------------


def at_once(work: Awaitable[bytes]) -> bytes | None:
    steps = work.__await__()
    try:
        next(steps)
    except StopIteration as end:
        return cast(bytes, end.value)
    with contextlib.suppress(asyncio.CancelledError):
        steps.throw(asyncio.CancelledError)
    return None


@asynccontextmanager
async def silent_port(full: bool) -> AsyncIterator[int]:
    """A port that takes connections and says nothing; or, if full, one that does not even take them."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0 if full else 8)
        for _ in range(4 if full else 0):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        await asyncio.sleep(0.01)
        yield listener.getsockname()[1]
