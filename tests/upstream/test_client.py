"""The client that speaks to upstreams, against one that answers with the bytes of the test, on both loops."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import itertools
import socket
import ssl
import struct
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import pytest
import uvloop
from aiohttp import StreamReader
from aiohttp.base_protocol import BaseProtocol
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.errors import BadRequest, UpstreamTimeout, UpstreamUnreachable
from proxy.upstream import dialing
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


# Requests ----------------------------------------------------------------------------------


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
FRAMING: list[tuple[str, Pairs, Any, list[bytes], bytes]] = [
    ("POST", [], b"hello", [b"Content-Length: 5"], b"hello"),
    ("POST", [], b"", [b"Content-Length: 0"], b""),
    ("POST", LENGTH_5, b"hello", [b"content-length: 5"], b"hello"),
    ("GET", [], None, [], b""),
    ("DELETE", [], None, [], b""),
    ("POST", [], None, [b"Content-Length: 0"], b""),
    ("PUT", [("Content-Length", "0")], None, [b"Content-Length: 0"], b""),
    ("POST", [], stream(b"he", b"llo"), [b"Transfer-Encoding: chunked"], b"5\r\nhello\r\n0\r\n\r\n"),
    ("POST", [], stream(), [b"Transfer-Encoding: chunked"], b"0\r\n\r\n"),
    ("POST", [], late(), [b"Transfer-Encoding: chunked"], b"0\r\n\r\n"),
    ("POST", [], late(b"he", b"llo"), [b"Transfer-Encoding: chunked"], b"2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"),
    ("POST", LENGTH_5, stream(b"he", b"llo"), [b"content-length: 5"], b"hello"),
    ("PATCH", LENGTH_5, late(b"he", b"llo"), [b"content-length: 5"], b"hello"),
    ("GET", LENGTH_5, late(b"he", b"llo"), [b"content-length: 5"], b"hello"),
]


@pytest.mark.parametrize(("method", "headers", "body", "lines", "wire"), FRAMING)
@on_both_loops
async def test_a_body_is_framed_once_and_nothing_else_is_added(
    method: str, headers: Pairs, body: Any, lines: list[bytes], wire: bytes
) -> None:
    async with talk() as it:
        assert await it.get(method, "/v1", headers, body() if callable(body) else body) == (200, b"ok")
        assert await it.get() == (200, b"ok")
        first, second = it.upstream.got
    host = b"Host: 127.0.0.1:%d" % it.upstream.port
    assert first.lines == [b"%b /v1 HTTP/1.1" % method.encode(), host, *lines] and first.body == wire
    assert second == (0, b"GET / HTTP/1.1\r\n%b\r\n\r\n" % host, b"")


@on_both_loops
async def test_headers_go_as_they_are() -> None:
    headers = [("X-One", "1"), ("HOST", "elsewhere.test"), ("x-ONE", "2"), ("X-One", ""), ("X-Grüße", "Grüße\udcff\t!")]
    async with talk() as it:
        await it.get("GET", "/", headers)
        [got] = it.upstream.got
    sent = [b"X-One: 1", b"HOST: elsewhere.test", b"x-ONE: 2", b"X-One: "]
    assert got.lines == [b"GET / HTTP/1.1", *sent, "X-Grüße: Grüße".encode() + b"\xff\t!"]


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ("", "/"),
        ("/", "/"),
        ("?", "/?"),
        ("?a=b", "/?a=b"),
        ("#a", "/#a"),
        ("//a//b/", "//a//b/"),
        ("/a%2Fb/../c?", "/a%2Fb/../c?"),
        ("/a?b=+%20&b#c?d", "/a?b=+%20&b#c?d"),
        ("/a:b@c://d", "/a:b@c://d"),
        ("/ü", "/ü"),
    ],
)
@on_both_loops
async def test_a_target_goes_as_it_is(given: str, sent: str) -> None:
    async with talk() as it:
        assert await it.get("GET", it.upstream.url(given)) == (200, b"ok")
        assert it.upstream.got[0].lines[0] == f"GET {sent} HTTP/1.1".encode()


REFUSED: list[tuple[str, Pairs, Any]] = [
    *[("/", [pair], None) for bad in "\r\n\0" for pair in ((f"X{bad}Y", "1"), ("X", f"a{bad}b"), ("X", bad))],
    *[(f"/a{bad}b", [], None) for bad in ["\r", "\n", "\0", " ", "\r\nX: y"]],
    ("/", [("X", "a\r\nY: b")], None),
    ("/", [("X", "\ud800")], None),
    ("/", [("Transfer-Encoding", "chunked")], b"hello"),
    ("/", [("Content-Length", "5"), ("content-length", "5")], b"hello"),
    *[("/", [("Content-Length", bad)], b"hello") for bad in ["4", "6", "+5", "5, 5", "\u0665", "", "-5", "0x5"]],
    ("/", LENGTH_5, None),
    ("/", LENGTH_5, stream(b"hell")),
]


@pytest.mark.parametrize(("target", "headers", "body"), REFUSED)
@on_both_loops
async def test_what_could_be_read_otherwise_is_not_sent(target: str, headers: Pairs, body: Any) -> None:
    async with talk() as it:
        with pytest.raises(BadRequest):
            await it.ask("POST", target, headers, body() if callable(body) else body)
        assert not it.upstream.accepted


@on_both_loops
@pytest.mark.parametrize("size", [0, 1, 70_000, 3_000_000])
async def test_the_pieces_of_a_body_arrive_in_order(size: int) -> None:
    pieces = [b"a", b"", b"b" * size, b"c", b"d" * size]
    async with talk([OK]) as it:
        assert await it.get("POST", "/", [], pieces) == (200, b"ok")
        assert it.upstream.got[0].body == b"".join(pieces)


@on_both_loops
async def test_large_bodies_arrive_whole_both_ways() -> None:
    body = bytes(range(256)) * 40_000
    answers = [b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)] * 3
    async with talk(*answers) as it:
        assert await it.get("POST", "/", [], body) == (200, body)
        assert await it.get("POST", "/", [], Upload(body[:99], body[99:], whole=True)) == (200, body)
        assert await it.get("POST", "/", [("Content-Length", str(len(body)))], late(body[:99], body[99:])()) == (
            200,
            body,
        )
        assert [got.body[-9:] for got in it.upstream.got] == [body[-9:], body[-2:] + b"\r\n0\r\n\r\n", body[-9:]]
        assert it.upstream.accepted == 1


# Answers -----------------------------------------------------------------------------------


class Good(NamedTuple):
    """An answer, what its body is, and whether another request can follow it. `closes`: its body ends with it."""

    wire: bytes
    body: bytes
    kept: bool
    method: str = "GET"
    closes: bool = False


def v1(lines: bytes, body: bytes = b"", version: bytes = b"1.1", status: bytes = b"200 OK") -> bytes:
    return b"HTTP/%b %b\r\n%b\r\n%b" % (version, status, lines, body)


LENGTH, CODED, CLOSE = b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n", b"Connection: close\r\n"
CHUNKS = b"2;ext=1\r\nhe\r\n3\r\nllo\r\n0\r\n"
GOOD = {
    "length": Good(v1(LENGTH, b"hello"), b"hello", True),
    "length of none": Good(v1(b"Content-Length: 0\r\n"), b"", True),
    "length, close": Good(v1(LENGTH + CLOSE, b"hello"), b"hello", False),
    "chunked": Good(v1(CODED, CHUNKS + b"\r\n"), b"hello", True),
    "chunked, odd case": Good(v1(b"transfer-ENCODING: Chunked\r\n", CHUNKS + b"\r\n"), b"hello", True),
    "chunked, trailers": Good(v1(CODED, CHUNKS + b"X-T: 1\r\nX-U: 2\r\n\r\n"), b"hello", True),
    "chunked, close": Good(v1(CODED + CLOSE, CHUNKS + b"\r\n"), b"hello", False),
    "chunked, as streams are": Good(
        v1(CODED, b"2\r\nhe\r\n1\r\nl\r\n5\r\n0\r\n\r\n\r\n1\r\no\r\n0\r\n\r\n"), b"hel0\r\n\r\no", True
    ),
    "until the close": Good(v1(b"", b"hello"), b"hello", False, closes=True),
    "until the close, nothing": Good(v1(CLOSE), b"", False, closes=True),
    "interim heads": Good(
        v1(b"", status=b"100 Continue") + v1(b"Link: </a>\r\n", status=b"103 Early Hints") + v1(LENGTH, b"hello"),
        b"hello",
        True,
    ),
    "HEAD": Good(v1(b"Content-Length: 1234\r\n"), b"", True, "HEAD"),
    "HEAD, chunked": Good(v1(CODED), b"", True, "HEAD"),
    "204": Good(v1(b"", status=b"204 No Content"), b"", True),
    "304": Good(v1(b"Content-Length: 1234\r\n", status=b"304 Not Modified"), b"", True),
    "301": Good(v1(b"Location: /elsewhere\r\n" + LENGTH, b"hello", status=b"301 Moved"), b"hello", True),
    "1.0": Good(v1(LENGTH, b"hello", version=b"1.0"), b"hello", False),
    "1.0, keep-alive": Good(v1(LENGTH + b"Connection: keep-alive\r\n", b"hello", version=b"1.0"), b"hello", True),
    "no reason": Good(v1(LENGTH, b"hello", status=b"200"), b"hello", True),
    "odd status": Good(v1(LENGTH, b"hello", status=b"799 Odd"), b"hello", True),
    "gzip": Good(v1(LENGTH + b"Content-Encoding: gzip\r\n", b"hello"), b"hello", True),
}


@pytest.mark.parametrize("way", ["in one", "byte for byte"])
@pytest.mark.parametrize("name", GOOD)
@on_both_loops
async def test_an_answer_is_read_to_its_end_and_no_further(name: str, way: str) -> None:
    good = GOOD[name]
    steps: list[Step] = [good.wire]
    if way == "byte for byte":
        steps = [step for byte in good.wire for step in (bytes([byte]), 0.0005)]
    async with talk([*steps, *(["fin"] if good.closes else [])]) as it:
        status, body = await it.get(good.method)
        assert (status, body) == (int(good.wire.split(b"HTTP/")[-1][4:7]), good.body)
        assert await it.get() == (200, b"ok")
        assert [got.connection for got in it.upstream.got] == [0, 0 if good.kept else 1]


@on_both_loops
async def test_all_headers_of_an_answer_are_given_as_they_are() -> None:
    lines = (
        b"Set-Cookie: a=1\r\nset-cookie: b=2\r\nX-Empty:\r\nX-Odd:  \xff caf\xe9 \t\r\nX-Utf: caf\xc3\xa9\tx\r\n"
        + LENGTH
    )
    async with talk(v1(lines, b"hello")) as it:
        answer = await it.ask()
        assert answer.headers == [
            ("Set-Cookie", "a=1"),
            ("set-cookie", "b=2"),
            ("X-Empty", ""),
            ("X-Odd", b"\xff caf\xe9".decode(errors="surrogateescape")),
            ("X-Utf", "café\tx"),
            ("Content-Length", "5"),
        ]
        assert (answer.get("set-cookie"), answer.get("x-none"), answer.length) == ("a=1", None, 5)
        assert await read(answer) == b"hello"
        answer.close()
        await it.get()
        assert b"ookie" not in it.upstream.got[1].head


@pytest.mark.parametrize(("line", "length"), [(b"Content-Length: 12\r\n", 12), (b"", None), (CODED, None)])
@on_both_loops
async def test_the_length_is_what_was_said(line: bytes, length: int | None) -> None:
    async with talk(v1(line)) as it:
        answer = await it.ask("HEAD")
        assert answer.length == length
        answer.close()


@settings(max_examples=40)
@given(st.data())
def test_however_the_bytes_come_the_answer_is_the_same(data: st.DataObject) -> None:
    good = data.draw(st.sampled_from([good for good in GOOD.values() if not good.closes]))
    cuts = sorted(data.draw(st.sets(st.integers(1, len(good.wire) - 1), max_size=6)))
    parts = [good.wire[start:end] for start, end in itertools.pairwise([0, *cuts, len(good.wire)])]

    async def run() -> None:
        async with talk([step for part in parts for step in (part, 0.0)]) as it:
            assert (await it.get(good.method))[1] == good.body
            await it.get()
            assert [got.connection for got in it.upstream.got] == [0, 0 if good.kept else 1]

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())


SPELLED = st.sampled_from([b"%x\r\n", b"%x\r\n", b"%x\r\n", b"%X\r\n", b"0%x\r\n", b"%x;ext=1\r\n", b"00000000%x\r\n"])
CARRIED = st.binary(min_size=1, max_size=9) | st.sampled_from([b"0\r\n\r\n", b"\r\n", b"1\r\nx\r\n", b"x" * 70_000])


@settings(max_examples=60)
@given(st.lists(st.tuples(SPELLED, CARRIED), min_size=1, max_size=8), st.data())
def test_however_chunks_are_written_and_come_they_carry_the_same(
    chunks: list[tuple[bytes, bytes]], data: st.DataObject
) -> None:
    """Some of them the parser never sees."""
    written = [size % len(piece) + piece + b"\r\n" for size, piece in chunks]
    wire = b"".join([CHUNKED, *written, b"0\r\n\r\n"])
    ends = list(itertools.accumulate(map(len, written), initial=len(CHUNKED)))
    cuts = data.draw(st.sets(st.sampled_from(ends) | st.integers(1, len(wire) - 1), max_size=8))
    parts = [wire[start:end] for start, end in itertools.pairwise([0, *sorted(cuts), len(wire)])]

    async def run() -> None:
        async with talk([step for part in parts for step in (part, 0.001)]) as it:
            assert await it.get() == (200, b"".join([piece for _, piece in chunks]))
            await it.get()
            assert [got.connection for got in it.upstream.got] == [0, 0]

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())


@pytest.mark.parametrize(
    "start",
    [
        [CHUNKED + b"9\r\nab"],
        [CHUNKED, b"9\r\nab"],
        [CHUNKED + b"1\r\n-\r\n9\r\nab"],
        [CHUNKED + b"1\r\n-\r\n", b"9\r\nab"],
        [CHUNKED, b"1\r\n-\r\n", b"9\r\nab"],
        [CHUNKED[:20], CHUNKED[20:] + b"9\r\nab"],
        [CHUNKED[:-2], b"\r\n9\r\nab"],
        [v1(b"", status=b"100 Continue") + CHUNKED + b"9\r\nab"],
    ],
)
@on_both_loops
async def test_what_looks_like_a_chunk_in_the_middle_of_one_is_none(start: list[bytes]) -> None:
    steps = [step for part in [*start, b"1\r\nx\r\n", b"c\r\n0\r\n\r\n"] for step in (part, 0.02)]
    async with talk(steps) as it:
        assert (await it.get())[1].lstrip(b"-") == b"ab1\r\nx\r\nc"


@on_both_loops
async def test_each_piece_is_given_as_it_comes() -> None:
    pieces = [b"data: a\n\n", b"d", b"ata: b", b"\n\n"]
    events = [asyncio.Event() for _ in pieces]
    steps: list[Step] = [CHUNKED]
    for piece, event in zip(pieces, events, strict=True):
        steps += [event, b"%x\r\n%b\r\n" % (len(piece), piece)]
    async with talk([*steps, b"0\r\n\r\n"]) as it:
        answer = await it.ask()
        for piece, event in zip(pieces, events, strict=True):
            event.set()
            assert await answer.piece() == piece
        assert await answer.piece() == b"" == await answer.piece()
        answer.close()


@on_both_loops
async def test_what_is_there_is_given_without_a_wait() -> None:
    async with talk(v1(CODED, CHUNKS + b"\r\n"), v1(CODED, CHUNKS)) as it:
        answer = await it.ask()
        assert [at_once(answer.piece()), at_once(answer.piece())] == [b"hello", b""]
        answer.close()
        answer = await it.ask()
        assert at_once(answer.piece()) == b"hello"
        assert at_once(answer.piece()) is None
        answer.close()


def at_once(work: Awaitable[bytes]) -> bytes | None:
    steps = work.__await__()
    try:
        next(steps)
    except StopIteration as end:
        return cast(bytes, end.value)
    with contextlib.suppress(asyncio.CancelledError):
        steps.throw(asyncio.CancelledError)
    return None


# What is no answer -------------------------------------------------------------------------

BAD_HEADS = {
    "no HTTP": b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
    "a request": b"GET / HTTP/1.1\r\n\r\n",
    "no version": b"HTTP/x 200 OK\r\n\r\n",
    "no status": b"HTTP/1.1 abc OK\r\n\r\n",
    "status below 100": v1(LENGTH, b"hello", status=b"099 Low"),
    "version 2": v1(LENGTH, b"hello", version=b"2.0"),
    "switched": v1(b"Upgrade: x\r\nConnection: upgrade\r\n", status=b"101 Switching Protocols"),
    "switched unasked": v1(b"", status=b"101 Switching Protocols"),
    "no colon": v1(b"X-A\r\n" + LENGTH, b"hello"),
    "space before colon": v1(b"X-A : b\r\n" + LENGTH, b"hello"),
    "NUL": v1(b"X-A: a\0b\r\n" + LENGTH, b"hello"),
    "bare CR": v1(b"X-A: a\rb\r\n" + LENGTH, b"hello"),
    "escape": v1(b"X-A: a\x1bb\r\n" + LENGTH, b"hello"),
    "delete": v1(b"X-A: a\x7fb\r\n" + LENGTH, b"hello"),
    "lengths differ": v1(LENGTH + b"Content-Length: 6\r\n", b"hello"),
    "length twice": v1(LENGTH + LENGTH, b"hello"),
    "length list": v1(b"Content-Length: 5, 5\r\n", b"hello"),
    "length signed": v1(b"Content-Length: +5\r\n", b"hello"),
    "length negative": v1(b"Content-Length: -5\r\n", b"hello"),
    "length hexadecimal": v1(b"Content-Length: 0x5\r\n", b"hello"),
    "length and chunked": v1(LENGTH + CODED, CHUNKS + b"\r\n"),
    "chunked and length": v1(CODED + LENGTH, CHUNKS + b"\r\n"),
    "gzip coding": v1(b"Transfer-Encoding: gzip\r\n", b"hello"),
    "gzip, chunked": v1(b"Transfer-Encoding: gzip, chunked\r\n", CHUNKS + b"\r\n"),
    "chunked twice": v1(CODED + CODED, CHUNKS + b"\r\n"),
    "chunked in 1.0": v1(CODED, CHUNKS + b"\r\n", version=b"1.0"),
    "long line": v1(b"X-A: %b\r\n" % (b"a" * 70_000)),
    "endless line": b"HTTP/1.1 200 OK\r\nX-A: " + b"a" * 200_000,
    "long reason": v1(LENGTH, b"hello", status=b"200 " + b"a" * 70_000),
    "many lines": v1(b"X-A: b\r\n" * 200 + LENGTH, b"hello"),
}


@pytest.mark.parametrize("name", BAD_HEADS)
@on_both_loops
async def test_what_is_no_head_of_an_answer_is_told_at_once(name: str) -> None:
    async with talk([BAD_HEADS[name], "hang"]) as it:
        start = time.monotonic()
        with pytest.raises(UpstreamUnreachable, match="no valid HTTP"):
            await it.ask()
        assert time.monotonic() - start < 1
        await it.is_closed()
        assert await it.get() == (200, b"ok") and it.upstream.accepted == 2


@on_both_loops
async def test_interim_heads_without_end_are_bounded() -> None:
    async with talk([v1(b"X-A: %b\r\n" % (b"a" * 5_000), status=b"100 Continue"), 0.001] * 20) as it:
        with pytest.raises(UpstreamUnreachable, match="no valid HTTP"):
            await it.ask()


BAD_BODIES = {
    "no size": b"zz\r\nab\r\n",
    "negative size": b"-1\r\nab\r\n",
    "size too large": b"fffffffffffffffff\r\nab\r\n",
    "no line end behind it": b"2\r\nabc\r\n",
    "an answer in the middle": OK,
}


@pytest.mark.parametrize("name", BAD_BODIES)
@pytest.mark.parametrize("apart", [False, True])
@on_both_loops
async def test_what_is_no_chunk_is_told_at_once_behind_what_came(name: str, apart: bool) -> None:
    first = [CHUNKED, 0.02, b"5\r\nhello\r\n"]
    async with talk([*first, *([0.02] if apart else []), BAD_BODIES[name], "hang"]) as it:
        answer = await it.ask()
        start, came = time.monotonic(), b""
        with pytest.raises(UpstreamUnreachable, match="broke off"):
            while piece := await answer.piece():
                came += piece
        assert came[:5] == b"hello" and came[5:] in (b"", b"ab") and time.monotonic() - start < 1
        await it.is_closed()
        with pytest.raises(UpstreamUnreachable):
            await answer.piece()
        answer.close()


HEAD_5 = v1(LENGTH)


@pytest.mark.parametrize("end", ["fin", "rst"])
@pytest.mark.parametrize(
    "start", [CHUNKED, CHUNKED + b"5\r\nhello\r\n", CHUNKED + b"5\r\nhe", HEAD_5, HEAD_5 + b"hell"]
)
@on_both_loops
async def test_a_body_that_is_cut_is_no_whole_one(start: bytes, end: Step) -> None:
    async with talk([start, 0.02, end]) as it:
        answer = await it.ask()
        with pytest.raises(UpstreamUnreachable, match="broke off"):
            await read(answer)
        answer.close()


@on_both_loops
async def test_a_body_until_the_close_is_cut_by_a_reset() -> None:
    async with talk([v1(b"", b"hello"), 0.02, "rst"]) as it:
        answer = await it.ask()
        assert await answer.piece() == b"hello"
        with pytest.raises(UpstreamUnreachable, match="broke off"):
            await answer.piece()
        answer.close()


@pytest.mark.parametrize("end", ["fin", "rst"])
@on_both_loops
async def test_a_head_that_is_cut_is_none(end: Step) -> None:
    head = HEAD_5
    async with talk(*[[head[:at], 0.002, end] for at in range(len(head))]) as it:
        for _ in head:
            with pytest.raises(UpstreamUnreachable, match="cannot be reached"):
                await it.ask()
        assert it.upstream.accepted == len(head)


@on_both_loops
async def test_what_cannot_be_reached() -> None:
    async with talk() as it:
        for url in (
            "http://127.0.0.1:1/",
            "http://nowhere.invalid/",
            "ftp://127.0.0.1/",
            "nonsense",
            "http://h:99999/",
        ):
            with pytest.raises(UpstreamUnreachable, match="cannot be reached"):
                await it.ask("GET", url) if "://" in url else await it.client.ask("GET", url, [], None, it.times)


# Connections that are kept -----------------------------------------------------------------


@on_both_loops
async def test_the_connection_used_last_is_used_first() -> None:
    async with talk() as it:
        answers = [await it.ask() for _ in range(3)]
        for answer in (answers[0], answers[2], answers[1]):
            await read(answer)
            answer.close()
            answer.close()
        for _ in range(2):
            await it.get()
        again = [await it.ask() for _ in range(4)]
        assert [got.connection for got in it.upstream.got] == [0, 1, 2, 1, 1, 1, 2, 0, 3]
        for answer in again:
            answer.close()


@on_both_loops
async def test_origins_do_not_share_connections() -> None:
    async with talk() as it, talk() as other:
        await it.get()
        assert await it.get("GET", other.upstream.url()) == (200, b"ok")
        assert await it.get("GET", it.upstream.url(host="localhost")) == (200, b"ok")
        await it.get()
        assert [got.connection for got in it.upstream.got] == [0, 1, 0] and other.upstream.accepted == 1
        await it.client.close()


@on_both_loops
async def test_a_connection_is_not_kept_for_longer_than_upstreams_keep_theirs() -> None:
    async with talk() as it:
        await it.get(response_timeout=900, idle_timeout=0.1)
        await asyncio.sleep(3.5)
        await it.get(response_timeout=900)
        await asyncio.sleep(3.5)
        assert it.upstream.open == 1
        await eventually(lambda: not it.upstream.open, 1)
        assert await it.get() == (200, b"ok") and it.upstream.accepted == 2


@pytest.mark.parametrize(
    "stray", [OK, b"H", b"\0", v1(b"", status=b"100 Continue"), b"HTTP/1.1 408 Timeout\r\n\r\n", v1(b"X: \0")[:-3]]
)
@pytest.mark.parametrize("delay", [0.0, 0.02])
@on_both_loops
async def test_what_nobody_asked_for_ends_the_connection(stray: bytes, delay: float) -> None:
    async with talk([OK[:-2], 0.02, b"ok" + stray] if not delay else [OK, delay, stray]) as it:
        assert await it.get() == (200, b"ok")
        await it.is_closed()
        assert await it.get() == (200, b"ok")
        assert [got.connection for got in it.upstream.got] == [0, 1]


@on_both_loops
async def test_any_beginning_of_another_answer_ends_the_connection() -> None:
    for at in range(1, len(OK)):
        async with talk([OK[:-2], 0.001, b"ok" + OK[:at]]) as it:
            assert await it.get() == (200, b"ok")
            assert await it.get() == (200, b"ok")
            assert [got.connection for got in it.upstream.got] == [0, 1]


@pytest.mark.parametrize("end", ["fin", "rst"])
@pytest.mark.parametrize("body", [None, b"hello", stream(b"hello")])
@on_both_loops
async def test_a_request_that_meets_a_dying_connection_is_sent_once_more(body: Any, end: Step) -> None:
    async with talk(OK, [end], OK) as it:
        await it.get()
        assert await it.get("POST", "/again", [], body() if callable(body) else body) == (200, b"ok")
        assert [got.connection for got in it.upstream.got] == [0, 0, 1]
        assert it.upstream.got[1][1:] == it.upstream.got[2][1:]


@pytest.mark.parametrize("end", ["fin", "rst"])
@on_both_loops
async def test_once_more_is_all(end: Step) -> None:
    async with talk(OK, OK, [0.02, end], [0.02, end], [0.02, end]) as it:
        first, second = await it.ask(), await it.ask()
        for answer in (first, second):
            await read(answer)
            answer.close()
        with pytest.raises(UpstreamUnreachable, match="cannot be reached"):
            await it.ask("POST", "/", [], b"hello")
        assert [got.connection for got in it.upstream.got] == [0, 1, 1, 2]


@pytest.mark.parametrize(
    ("answers", "body"),
    [
        ([[0.01, "fin"]], b"hello"),
        ([OK, [b"H", 0.02, "fin"]], b"hello"),
        ([OK, [b"H", 0.02, "rst"]], b"hello"),
        ([OK, [v1(b"", status=b"100 Continue"), 0.02, "fin"]], b"hello"),
        ([OK, ["fin"]], late(b"hello")),
    ],
)
@on_both_loops
async def test_a_request_that_may_have_been_heard_is_not_sent_again(answers: Any, body: Any) -> None:
    async with talk(*answers) as it:
        if len(answers) > 1:
            await it.get()
        with pytest.raises(UpstreamUnreachable):
            await it.ask("POST", "/", [], body() if callable(body) else body)
        await asyncio.sleep(0.05)
        assert len(it.upstream.got) == len(answers) and it.upstream.accepted == 1


@on_both_loops
async def test_a_request_that_is_answered_too_late_is_not_sent_again() -> None:
    async with talk(OK, ["hang"]) as it:
        await it.get()
        with pytest.raises(UpstreamTimeout):
            await it.ask("POST", "/", [], b"hello", response_timeout=0.1)
        assert it.upstream.accepted == 1


@on_both_loops
async def test_what_is_not_read_to_its_end_is_closed() -> None:
    async with talk([v1(CODED, CHUNKS)], OK, [CHUNKED, b"5\r\nhe", "hang"]) as it:
        answer = await it.ask()
        assert await answer.piece() == b"hello"  # the end is not here yet
        answer.close()
        await it.is_closed()
        answer = await it.ask()
        answer.close()
        await it.is_closed()
        answer = await it.ask()
        answer.close()
        with pytest.raises(UpstreamUnreachable):  # never a clean end
            await answer.piece()
        await it.is_closed()
        assert it.upstream.accepted == 3


@on_both_loops
async def test_a_client_that_is_closed_ends_all_and_begins_nothing() -> None:
    async with talk(OK, [CHUNKED, "hang"], ["hang"]) as it:
        await it.get()
        answer, asking = await it.ask(), asyncio.create_task(it.ask())
        await eventually(lambda: len(it.upstream.got) == 3)
        await it.client.close()
        for work in (answer.piece(), asking, it.ask()):
            with pytest.raises(UpstreamUnreachable):
                await work
        answer.close()
        await it.is_closed()


@on_both_loops
async def test_connections_can_be_bounded() -> None:
    async with talk(OK, [0.05, "rst"], ["hang"], connections=1) as it:
        answer = await it.ask()
        with pytest.raises(UpstreamTimeout, match="in time"):
            await it.ask(response_timeout=0.05)
        waiting = asyncio.create_task(it.ask())
        await asyncio.sleep(0.05)
        assert len(it.upstream.got) == 1
        await read(answer)
        answer.close()
        answer.close()
        with pytest.raises(UpstreamUnreachable):
            it.upstream.answers.insert(1, Answer(["rst"]))
            await waiting
        cancelled = asyncio.create_task(it.ask())
        await eventually(lambda: len(it.upstream.got) == 4)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        with pytest.raises(UpstreamUnreachable):
            await it.ask("GET", "http://127.0.0.1:1/")
        assert await it.get() == (200, b"ok")


# Time --------------------------------------------------------------------------------------


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


@pytest.mark.parametrize(("scheme", "full"), [("http", True), ("https", False)])
@on_both_loops
async def test_to_connect_takes_no_longer_than_it_may(scheme: str, full: bool) -> None:
    async with silent_port(full) as port, talk() as it:
        start = time.monotonic()
        with pytest.raises(UpstreamUnreachable, match="in time"):
            await it.ask("GET", f"{scheme}://127.0.0.1:{port}/", connect_timeout=0.2)
        assert 0.15 < time.monotonic() - start < 1


@pytest.mark.parametrize("before", [0, 1])
@pytest.mark.parametrize("steps", [["hang"], [v1(b"", status=b"100 Continue"), 0.1] * 9, [b"HTTP/1.1 200", "hang"]])
@on_both_loops
async def test_a_head_takes_no_longer_than_it_may(steps: Any, before: int) -> None:
    async with talk(*[OK] * before, steps) as it:
        for _ in range(before):  # timers of the time before do not count
            await it.get(response_timeout=900, idle_timeout=900)
        start = time.monotonic()
        with pytest.raises(UpstreamTimeout, match="in time"):
            await it.ask(response_timeout=0.3, idle_timeout=0.01)
        assert 0.25 < time.monotonic() - start < 0.8
        await it.is_closed()


@on_both_loops
async def test_pieces_may_be_as_far_apart_as_they_may() -> None:
    pieces = [b"2\r\nab\r\n", 0.1] * 4
    async with talk([CHUNKED, *pieces, "hang"]) as it:
        answer = await it.ask(response_timeout=0.2, idle_timeout=0.2)
        start, came = time.monotonic(), b""
        with pytest.raises(UpstreamTimeout, match="silent"):
            while True:
                came += await answer.piece()
        assert came == b"ab" * 4 and 0.45 < time.monotonic() - start < 1
        answer.close()
        await it.is_closed()


@on_both_loops
async def test_a_body_until_the_close_does_not_end_with_a_silence() -> None:
    async with talk([v1(b"", b"hello"), "hang"]) as it:
        answer = await it.ask(idle_timeout=0.1)
        assert await answer.piece() == b"hello"
        for _ in range(2):
            with pytest.raises(UpstreamTimeout, match="silent"):
                await answer.piece()
            await it.is_closed()
        answer.close()


@on_both_loops
async def test_framing_alone_is_no_piece() -> None:
    async with talk([CHUNKED + b"2;", *[b"x", 0.02] * 100, "hang"]) as it:
        answer = await it.ask(idle_timeout=0.1)
        start = time.monotonic()
        with pytest.raises(UpstreamTimeout, match="silent"):
            await answer.piece()
        assert time.monotonic() - start < 1
        answer.close()


@on_both_loops
async def test_each_piece_that_is_handed_on_has_its_own_time() -> None:
    given: list[bytes] = []

    def take(piece: bytes, _: bytes) -> bool:
        given.append(piece)
        return True

    async with talk([CHUNKED, *[0.1, b"1\r\nx\r\n"] * 5, 0.1, b"0\r\n\r\n"]) as it:
        answer = await it.ask(idle_timeout=0.25)
        assert not await answer.flow(take)
        answer.close()
    assert given == [b"x"] * 5


@on_both_loops
@pytest.mark.parametrize("at", [1, 2])
async def test_what_goes_wrong_with_a_piece_is_told_to_who_asked_for_it(at: int) -> None:
    given: list[bytes] = []

    def take(piece: bytes, _: bytes) -> bool:
        given.append(piece)
        return 1 // (at - len(given)) > 0

    async with talk([CHUNKED, *[0.05, b"1\r\nx\r\n"] * 5, "hang"]) as it:
        answer = await it.ask()
        with pytest.raises(ZeroDivisionError):
            await asyncio.wait_for(answer.flow(take), 5)
        answer.close()


@on_both_loops
async def test_framing_in_the_moment_of_the_timeout_does_not_undo_it() -> None:
    moment = asyncio.Event()
    async with talk([CHUNKED + b"2;", moment, b"x", "hang"]) as it:
        answer = await it.ask(idle_timeout=0.1)
        reading = asyncio.ensure_future(answer.piece())
        await asyncio.sleep(0.02)
        moment.set()
        await asyncio.sleep(0)  # the byte is on its way
        time.sleep(0.15)  # nothing else turns the loop, so that byte and timer meet in one pass
        with pytest.raises(UpstreamTimeout, match="silent"):
            await asyncio.wait_for(reading, 2)
        answer.close()


@on_both_loops
async def test_the_time_that_the_reader_takes_does_not_count() -> None:
    async with talk([CHUNKED, b"2\r\nab\r\n", 0.05, b"2\r\ncd\r\n", 0.35, b"0\r\n\r\n"]) as it:
        answer = await it.ask(response_timeout=0.2, idle_timeout=0.2)
        assert await answer.piece() == b"ab"
        await asyncio.sleep(0.3)
        assert await answer.piece() == b"cd"
        assert await answer.piece() == b""
        answer.close()
        assert await it.get() == (200, b"ok") and it.upstream.accepted == 1


@on_both_loops
async def test_the_wait_for_a_head_begins_when_the_request_is_sent() -> None:
    async with talk([0.15, OK]) as it:
        upload = Late(*[b"x"] * 5, delay=0.1)
        assert await it.get("POST", "/", [], upload, response_timeout=0.25) == (200, b"ok")
        with pytest.raises(UpstreamTimeout, match="in time"):
            await it.ask("POST", "/", [], Upload(b"x"), response_timeout=0.1)


@on_both_loops
async def test_many_pieces_take_few_timers() -> None:
    loop, timers = asyncio.get_running_loop(), 0
    if isinstance(loop, uvloop.Loop):
        return
    call_at = loop.call_at

    def counted(*arguments: Any, **more: Any) -> Any:
        nonlocal timers
        timers += 1
        return call_at(*arguments, **more)

    async with talk([CHUNKED, *[b"2\r\nab\r\n"] * 300, b"0\r\n\r\n"]) as it:
        loop.call_at = counted  # type: ignore[method-assign, assignment]
        assert await it.get(connect_timeout=900, response_timeout=900, idle_timeout=300) == (200, b"ab" * 300)
        for _ in range(50):
            await it.get(response_timeout=900, idle_timeout=300)
    assert timers < 20


# Both ways at a time -----------------------------------------------------------------------


@on_both_loops
async def test_what_is_not_read_is_not_taken_from_the_upstream() -> None:
    piece, written = b"%x\r\n%b\r\n" % (2**16, b"x" * 2**16), 0
    size = 400 * 2**16

    async def pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal written
        with contextlib.suppress(EOFError, OSError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(CHUNKED)
            for _ in range(400):
                writer.write(piece)
                await writer.drain()
                written += 2**16
            writer.write(b"0\r\n\r\n")
            await reader.read()
        writer.close()

    server = await asyncio.start_server(pour, "127.0.0.1", 0)
    async with talk() as it, server:
        answer = await it.ask("GET", f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/", idle_timeout=0.2)
        await settled(lambda: written)
        assert written < size / 2  # the kernel holds some megabytes
        first = at_once(answer.piece())
        assert first and 2**17 < len(first) < 2**20
        assert len(first) + len(await read(answer)) == size == written
        answer.close()
        await it.client.close()


async def settled(value: Callable[[], int]) -> None:
    """Wait until a number has stopped growing."""
    last = -1
    while last != value():
        last = value()
        await asyncio.sleep(0.1)


@on_both_loops
async def test_what_the_upstream_does_not_take_is_not_read_from_the_client() -> None:
    upload = Upload(*[b"x" * 2**16] * 400)
    parts = upload.total_bytes

    class Sip(Upload):
        async def readany(self) -> bytes:
            self.taken += 2**16
            if self.taken > parts:
                return b""
            return b"x" * 2**16

    go_on = asyncio.Event()
    async with talk() as it:
        body = Sip()

        async def sip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            head = await reader.readuntil(b"\r\n\r\n")
            await go_on.wait()
            got.append(await body_of(head, reader))
            writer.write(OK)
            await reader.read()
            writer.close()

        got: list[bytes] = []
        server = await asyncio.start_server(sip, "127.0.0.1", 0, limit=2**16)
        async with server:
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
            asking = asyncio.create_task(it.get("POST", url, [], body))
            await settled(lambda: body.taken)
            assert body.taken < parts / 2
            go_on.set()
            assert await asking == (200, b"ok")
            assert got[0].count(b"x") == parts
            await it.client.close()


EARLY = v1(LENGTH, b"large", status=b"413 Content Too Large")


@on_both_loops
async def test_a_connection_that_has_not_taken_all_of_a_body_takes_no_other() -> None:
    async def sip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(EARLY)
        await done.wait()
        writer.transport.abort()

    done = asyncio.Event()
    server = await asyncio.start_server(sip, "127.0.0.1", 0, limit=2**10)
    async with talk() as it, server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        for _ in range(2):
            assert await it.get("POST", url, [], b"x" * 2**24, response_timeout=1) == (413, b"large")
        done.set()
        await it.client.close()


@pytest.mark.parametrize("end", ["fin", 0.0])
@on_both_loops
async def test_an_answer_may_come_before_the_body_has_gone(end: Step) -> None:
    async with talk(Answer([EARLY, end], unread=True)) as it:
        body = Upload(b"x" * 100)
        assert await it.get("POST", "/", [], body) == (413, b"large")
        await it.is_closed()
        body.feed_data(b"y")
        await asyncio.sleep(0.02)
        assert body.taken == 100
        assert await it.get() == (200, b"ok")
        assert [got.connection for got in it.upstream.got] == [0, 1]


@on_both_loops
async def test_an_answer_may_be_read_while_the_body_goes_on() -> None:
    """And one that was answered before its body had gone is not followed by another request."""
    heard = asyncio.Event()
    async with talk(Answer([CHUNKED, b"2\r\nab\r\n", heard, b"2\r\ncd\r\n0\r\n\r\n"], unread=True)) as it:
        body = Upload(b"x")
        answer = await it.ask("POST", "/", [], body)
        assert await answer.piece() == b"ab"
        body.feed_data(b"y")
        await eventually(lambda: body.taken == 2)
        body.feed_eof()
        await asyncio.sleep(0.01)
        heard.set()
        assert await read(answer) == b"cd"
        answer.close()


@pytest.mark.parametrize("headers", [[], [("Content-Length", "10")]])
@pytest.mark.parametrize("answered", [False, True])
@on_both_loops
async def test_a_body_that_breaks_off_ends_the_connection(headers: Pairs, answered: bool) -> None:
    async with talk(Answer([CHUNKED, "hang"] if answered else ["hang"], unread=answered)) as it:
        body = Upload(b"hello")
        asking = asyncio.create_task(it.ask("POST", "/", headers, body))
        await eventually(lambda: body.taken and (asking.done() or not answered))
        body.set_exception(ConnectionResetError())
        with pytest.raises(BadRequest, match="broke off"):
            await (await asking).piece() if answered else await asking
        if answered:
            (await asking).close()
        await eventually(lambda: not it.upstream.open or answered)
        assert answered or not it.upstream.got  # never whole


@pytest.mark.parametrize("parts", [[b"hello", b"wor"], [b"hello", b"worlds"], [b"hello worlds"], []])
@on_both_loops
async def test_a_body_of_another_length_is_never_sent_whole(parts: list[bytes]) -> None:
    async with talk() as it:
        with pytest.raises(BadRequest, match="broke off"):
            await it.ask("POST", "/", [("Content-Length", "10")], Late(*parts))
        await it.is_closed()
        assert not it.upstream.got
        assert await it.get() == (200, b"ok")


# Cancellation ------------------------------------------------------------------------------


class Struck:
    """Awaits `work`, cancelled at its wait number `at`; `late`: once what it waits for is here."""

    def __init__(self, work: Awaitable[Any], at: int, late: bool) -> None:
        self.work, self.at, self.late, self.struck = work, at, late, False

    def __await__(self) -> Generator[Any, Any, Any]:
        task, steps = asyncio.current_task(), self.work.__await__()
        assert task
        for wait in itertools.count():
            try:
                awaited = next(steps)
            except StopIteration as end:
                return end.value
            if wait == self.at:
                self.struck = True
                if self.late and awaited is not None:
                    awaited.add_done_callback(lambda _: task.cancel())
                else:
                    task.cancel()
            try:
                yield awaited
            except BaseException as error:
                try:
                    steps.throw(error)
                except StopIteration as end:
                    return end.value
                raise
        return None


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("secure", [False, True])
@pytest.mark.parametrize("body", [b"hello", stream(b"hello", whole=False)])
@on_both_loops
async def test_a_request_cancelled_at_any_wait_leaves_nothing(
    late: bool, secure: bool, body: Any, trust: ssl.SSLContext
) -> None:
    slow: list[Step] = [b"HTTP/1.1 200 OK\r\n", 0.002, b"Content-Length: 4\r\n\r\n", 0.002, b"ab", 0.002, b"cd"]
    for at in itertools.count():
        async with talk(Answer(slow, unread=callable(body)), tls=trust if secure else None, connections=1) as it:
            url = it.upstream.url(scheme="https" if secure else "http", host="localhost" if secure else "127.0.0.1")
            struck = Struck(it.get("POST", url, [], body() if callable(body) else body), at, late)
            try:
                assert await struck == (200, b"abcd")
            except asyncio.CancelledError:
                asyncio.current_task().uncancel()  # type: ignore[union-attr]
                await it.is_closed()
            it.upstream.answers.clear()
            assert await it.get("GET", url) == (200, b"ok")  # there is room again
            assert it.upstream.accepted <= 2
        if not struck.struck:
            break
    assert at >= (5 if secure else 4)


# TLS and names -----------------------------------------------------------------------------


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for localhost and 127.0.0.1, with its key, that nobody has signed."""
    folder = tmp_path_factory.mktemp("tls")
    names = "subjectAltName=DNS:localhost,IP:127.0.0.1"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=upstream"]
    files = ["-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem"), "-addext", names]
    try:
        subprocess.run([*command, *files], check=True, capture_output=True)
    except OSError:
        pytest.skip("no openssl to make a certificate with")
    return folder


@pytest.fixture
def trust(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """What the upstream speaks TLS with; the client trusts it."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate / "cert.pem"))
    return _server_side(certificate)


def _server_side(certificate: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
    context.set_alpn_protocols(["h2", "http/1.1"])
    return context


@on_both_loops
async def test_tls_names_the_host_and_the_protocol_and_is_kept(trust: ssl.SSLContext) -> None:
    seen: list[str | None] = []
    trust.sni_callback = lambda sock, name, context: seen.append(name)
    body = bytes(range(256)) * 4_000
    large = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    async with talk(large, v1(CODED, CHUNKS + b"\r\n"), OK, tls=trust) as it:
        url = it.upstream.url("/v1", "https", "localhost")
        assert await it.get("POST", url, [], body) == (200, body)
        assert await it.get("POST", url, [], Late(body)) == (200, b"hello")
        assert (
            it.upstream.got[0].body == body and it.upstream.got[0].lines[1] == b"Host: localhost:%d" % it.upstream.port
        )
        assert await it.get("GET", it.upstream.url("/v1", "https")) == (200, b"ok")
        assert [got.connection for got in it.upstream.got] == [0, 0, 1]
        assert seen == ["localhost", None] and it.upstream.spoken == ["http/1.1"] * 2


@on_both_loops
async def test_who_cannot_be_trusted_is_not_spoken_to(certificate: Path) -> None:
    async with talk(tls=_server_side(certificate)) as it:
        with pytest.raises(UpstreamUnreachable):
            await it.ask("GET", it.upstream.url("/", "https", "localhost"))
        assert not it.upstream.got


@on_both_loops
async def test_who_has_another_name_is_not_spoken_to(trust: ssl.SSLContext) -> None:
    async with talk(tls=trust) as it:
        with pytest.raises(UpstreamUnreachable):
            await it.ask("GET", it.upstream.url("/", "https", "127.0.0.2"))
        with pytest.raises(UpstreamUnreachable, match=r"no valid HTTP|cannot be reached"):
            await it.ask("GET", it.upstream.url())
        assert not it.upstream.got


@pytest.mark.parametrize("steps", [[CHUNKED, b"5\r\nhello\r\n", "rst"], [HEAD_5, b"he", "fin"], [CHUNKED, "hang"]])
@on_both_loops
async def test_a_break_under_tls_is_a_break(trust: ssl.SSLContext, steps: list[Step]) -> None:
    async with talk(steps, tls=trust) as it:
        answer = await it.ask("GET", it.upstream.url("/", "https"), idle_timeout=0.1)
        with pytest.raises((UpstreamUnreachable, UpstreamTimeout)):
            await read(answer)
        answer.close()
        await it.is_closed()


@on_both_loops
async def test_an_address_that_leads_nowhere_does_not_hold_up_the_next() -> None:
    async with silent_port(full=True) as nowhere, talk() as it:
        tasks, kind = len(asyncio.all_tasks()), (socket.AF_INET, socket.SOCK_STREAM, 0, "")
        refused, full, good = [(*kind, ("127.0.0.1", port)) for port in (1, nowhere, it.upstream.port)]
        for addresses, least in (
            ([refused, good], 0.0),
            ([full, good], 0.2),
            ([good, full], 0.0),
            ([full, refused, good], 0.2),
        ):
            start = time.monotonic()
            with await dialing.reach(addresses) as sock:
                assert sock.getpeername()[1] == it.upstream.port
            assert least <= time.monotonic() - start < least + 0.2
            await eventually(lambda: len(asyncio.all_tasks()) == tasks, 0.5)  # the others have been given up
        with pytest.raises(ConnectionRefusedError):
            await dialing.reach([refused, refused])
        unreachable = (*kind, ("255.255.255.255", 80))
        with pytest.raises(ConnectionRefusedError):  # of two reasons the last
            await dialing.reach([unreachable, refused])
        with await dialing.reach([unreachable, good]) as sock:
            assert sock.getpeername()[1] == it.upstream.port


@on_both_loops
async def test_a_connection_does_not_wait_to_fill_its_packets() -> None:
    async with talk() as it:
        place = dialing.Origin(False, "127.0.0.1", it.upstream.port, "")
        protocol = await dialing.connect(place, None, 5.0, Seen)
        assert protocol.without_delay
        protocol.transport.abort()
        await protocol.lost


class Seen(asyncio.Protocol):
    """A connection whose socket is looked at once it is made."""

    transport: asyncio.Transport
    without_delay = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.lost = asyncio.get_running_loop().create_future()
        sock = transport.get_extra_info("socket")
        self.without_delay = bool(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

    def connection_lost(self, error: Exception | None) -> None:
        self.lost.set_result(None)


@on_both_loops
async def test_nothing_in_the_environment_leads_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    async with talk() as it:
        assert await it.get() == (200, b"ok")
