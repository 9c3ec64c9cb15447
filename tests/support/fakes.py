"""What the tests share: an upstream that plays a script, a client that sees every byte, recordings.

Both ends work on bare sockets, without aiohttp and without asyncio's streams (which
drop what was read when a reset follows), so that a test chooses each byte and each
way to end, and sees what really came. Nothing here knows the proxy.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import random
import socket
import struct
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import pytest

Headers = list[tuple[str, str]]
Pairs = Iterable[tuple[str, str]]
Ended = Literal["complete", "eof", "reset"]

RECORDINGS = Path(__file__).resolve().parents[3] / "shared" / "recordings"


# The upstream ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Received:
    """One request as it came off the socket; the body is decoded from its framing."""

    method: str
    target: str
    headers: Headers
    body: bytes

    def header(self, name: str) -> str | None:
        """The first header of that name, in any letter case."""
        return _header(self.headers, name)

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    @property
    def messages(self) -> list[Any]:
        """The messages of a chat request."""
        messages: list[Any] = self.json["messages"]
        return messages


@dataclass
class Reply:
    """What the upstream answers, piece by piece, and how it ends.

    Each piece is a write of its own (and a chunk of its own when chunked), `delay` seconds
    after the one before, once `gate(index)` has returned. `end`: "clean"; "fin" closes
    without the terminator; "rst" resets; "hang" waits until the client goes. With framing
    "length" an end that is not clean promises one byte more than it sends. Content-Length
    is left alone where `headers` has it.
    """

    status: int = 200
    headers: Headers = field(default_factory=list)
    pieces: list[bytes] = field(default_factory=list)
    framing: Literal["chunked", "length", "close"] = "chunked"
    end: Literal["clean", "fin", "rst", "hang"] = "clean"
    delay: float = 0.0
    gate: Callable[[int], Awaitable[None]] | None = None

    def head(self) -> bytes:
        """The status line and the headers, with those that the framing needs."""
        headers = list(self.headers)
        if self.framing == "chunked":
            headers.append(("Transfer-Encoding", "chunked"))
        elif self.framing == "close":
            headers.append(("Connection", "close"))
        elif _header(headers, "content-length") is None:
            length = sum(map(len, self.pieces)) + (self.end != "clean")
            headers.append(("Content-Length", str(length)))
        reason = HTTPStatus(self.status).phrase if self.status in set(HTTPStatus) else "Unknown"
        return _head(f"HTTP/1.1 {self.status} {reason}", headers)


Script = Callable[[Received], Reply | Awaitable[Reply]] | list[Reply]


class ScriptedUpstream:
    """An upstream on 127.0.0.1 that keeps each request in `requests` and plays `script`.

    The script is a function of the request (plain or async) or a list of replies, used up
    from the front; without one, request N is answered with "answer N". A script that fails
    and a request that is not valid HTTP are faults: leaving the context raises the first.
    A client that closes its side counts as gone, whatever it still would have read.
    """

    def __init__(self, script: Script | None = None) -> None:
        self.script = script
        self.requests: list[Received] = []
        self.faults: list[Exception] = []
        self._conversations: set[asyncio.Task[None]] = set()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]

    @property
    def base_url(self) -> str:
        """The URL to mount."""
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return len(self._conversations)

    async def __aenter__(self) -> ScriptedUpstream:
        self._accepting = asyncio.create_task(self._accept())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await _cancelled(self._accepting, *self._conversations)
        self._listener.close()
        if self.faults and error is None:
            raise self.faults[0]

    async def _accept(self) -> None:
        while True:
            sock, _ = await asyncio.get_running_loop().sock_accept(self._listener)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            task = asyncio.create_task(self._connection(sock))
            self._conversations.add(task)
            # Not in the task itself: one that is cancelled before its first step runs no `finally`.
            task.add_done_callback(partial(self._close, sock))

    def _close(self, sock: socket.socket, task: asyncio.Task[None]) -> None:
        sock.close()
        self._conversations.discard(task)

    async def _connection(self, sock: socket.socket) -> None:
        """Serve until a reply ends the connection or the client goes, whichever comes first."""
        reader = asyncio.StreamReader(limit=2**20)
        tasks = asyncio.create_task(self._serve(reader, sock)), asyncio.create_task(_feed(reader, sock))
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await _cancelled(*tasks)

    async def _serve(self, reader: asyncio.StreamReader, sock: socket.socket) -> None:
        try:
            while True:
                request = await _read_request(reader, sock)
                self.requests.append(request)
                reply = self._next_reply(request)
                reply = await reply if inspect.isawaitable(reply) else reply
                await _play(reply, request.method, sock)
                if reply.end == "rst":
                    _reset_on_close(sock)
                last = (request.header("connection") or "").lower() == "close"
                if last or reply.end != "clean" or reply.framing == "close":
                    return
        except (EOFError, OSError):
            pass  # the client has gone
        except Exception as fault:
            self.faults.append(fault)

    def _next_reply(self, request: Received) -> Reply | Awaitable[Reply]:
        if callable(self.script):
            return self.script(request)
        if self.script is None:
            text = f"answer {len(self.requests)}"
            streams = bool(request.body) and request.json.get("stream") is True
            return sse(*text.partition(" ")) if streams else completion(text)
        assert self.script, f"no reply left in the script for request {len(self.requests)}"
        return self.script.pop(0)


async def _feed(reader: asyncio.StreamReader, sock: socket.socket) -> None:
    with suppress(OSError):
        while data := await asyncio.get_running_loop().sock_recv(sock, 65536):
            reader.feed_data(data)
    reader.feed_eof()


async def _read_request(reader: asyncio.StreamReader, sock: socket.socket) -> Received:
    start, headers = _parse_head(await reader.readuntil(b"\r\n\r\n"))
    method, target, _ = start.split(" ")
    if (_header(headers, "expect") or "").lower() == "100-continue":
        await asyncio.get_running_loop().sock_sendall(sock, b"HTTP/1.1 100 Continue\r\n\r\n")
    length = _header(headers, "content-length")
    if _header(headers, "transfer-encoding") is None:
        return Received(method, target, headers, await reader.readexactly(int(length or 0)))
    assert length is None, "both Transfer-Encoding and Content-Length: two readers may disagree on the end"
    return Received(method, target, headers, await _read_chunked(reader))


async def _read_chunked(reader: asyncio.StreamReader) -> bytes:
    body = b""
    while size := int((await reader.readuntil(b"\r\n")).partition(b";")[0], 16):
        body += await reader.readexactly(size)
        assert await reader.readexactly(2) == b"\r\n", "a chunk is longer than its size"
    while await reader.readuntil(b"\r\n") != b"\r\n":
        pass  # trailers
    return body


async def _play(reply: Reply, method: str, sock: socket.socket) -> None:
    """Write a reply; for "hang" never return."""
    send = asyncio.get_running_loop().sock_sendall
    await send(sock, reply.head())
    bodiless = method == "HEAD" or reply.status in (204, 304)
    for index, piece in enumerate([] if bodiless else reply.pieces):
        if reply.gate:
            await reply.gate(index)
        await asyncio.sleep(reply.delay)
        chunked = reply.framing == "chunked" and piece  # an empty chunk would be the terminator
        await send(sock, b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
    if reply.end == "hang":
        await asyncio.Event().wait()
    if reply.end == "clean" and reply.framing == "chunked" and not bodiless:
        await send(sock, b"0\r\n\r\n")


# Replies -----------------------------------------------------------------------------------


def sse(
    *deltas: str | dict[str, Any],
    done: bool = True,
    finish: str | None = "stop",
    usage: dict[str, Any] | None = None,
    **reply: Any,
) -> Reply:
    """A stream of chat.completion.chunk events, one piece each; text becomes a content delta."""
    parts = [{"content": delta} if isinstance(delta, str) else delta for delta in deltas]
    chunks = [_choice(delta=delta) for delta in [{"role": "assistant", "content": ""}, *parts]]
    if finish is not None:
        chunks.append(_choice(delta={}, finish_reason=finish))
    if usage is not None:
        chunks.append({"choices": [], "usage": usage})
    pieces = [event({**_ANSWER, "object": "chat.completion.chunk", **chunk}) for chunk in chunks]
    pieces += [b"data: [DONE]\n\n"] if done else []
    return _reply("text/event-stream; charset=utf-8", pieces, reply)


def completion(
    text: str | None,
    *,
    message: dict[str, Any] | None = None,
    finish: str | None = "stop",
    usage: dict[str, Any] | None = None,
    **reply: Any,
) -> Reply:
    """A chat.completion in one piece; `message` adds to the assistant's message (tool_calls and so on)."""
    said = {"role": "assistant", "content": text} | (message or {})
    counted = usage or {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    choice = _choice(message=said, finish_reason=finish)
    body = {**_ANSWER, "object": "chat.completion", **choice, "usage": counted}
    return _reply("application/json", [json.dumps(body).encode()], {"framing": "length"} | reply)


def error(status: int, body: object, **reply: Any) -> Reply:
    """An error of the upstream's own; bytes go out as they are, anything else as JSON."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return _reply("application/json", [data], {"status": status, "framing": "length"} | reply)


def event(value: object) -> bytes:
    """One SSE event."""
    return b"data: " + json.dumps(value).encode() + b"\n\n"


_ANSWER = {"id": "chatcmpl-fake", "created": 1700000000, "model": "fake-1"}


def _choice(**members: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "finish_reason": None} | members]}


def _reply(content_type: str, pieces: list[bytes], chosen: dict[str, Any]) -> Reply:
    """A reply in which what the test chose goes before the defaults."""
    members: dict[str, Any] = {"headers": [("Content-Type", content_type)], "pieces": pieces}
    return Reply(**members | chosen)


# The client --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Head:
    """The status line and headers of an answer."""

    version: str
    status: int
    headers: Headers

    def header(self, name: str) -> str | None:
        """The first header of that name, in any letter case."""
        return _header(self.headers, name)


class RawClient:
    """A client on one connection that sees how an answer comes and how it ends.

    `raw` is all that came, `framing` how the body is delimited, and once it is over `ended`
    says how: "complete", "eof" (a FIN came first) or "reset". A body that only the close
    delimits is complete at the FIN. Waits at most `timeout` seconds for the next bytes.
    """

    def __init__(self, port: int, *, timeout: float = 10.0) -> None:
        self.port, self.timeout = port, timeout
        self.raw = bytearray()
        self.framing: Literal["none", "chunked", "length", "close"] = "none"
        self.ended: Ended | None = None
        self._buffer = bytearray()
        self._left = 0
        self._method = ""

    async def __aenter__(self) -> RawClient:
        self._sock = socket.socket()
        self._sock.setblocking(False)
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            await asyncio.get_running_loop().sock_connect(self._sock, ("127.0.0.1", self.port))
        except BaseException:
            self._sock.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self._sock.close()

    async def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        await asyncio.get_running_loop().sock_sendall(self._sock, data)

    async def request(
        self,
        method: str,
        target: str,
        headers: Pairs = (),
        body: bytes = b"",
        *,
        version: Literal["1.0", "1.1"] = "1.1",
    ) -> None:
        """Send a request; Host, and Content-Length for a body, are added where not given."""
        lines = list(headers)
        if _header(lines, "host") is None:
            lines.insert(0, ("Host", f"127.0.0.1:{self.port}"))
        framed = {"content-length", "transfer-encoding"} & {name.lower() for name, _ in lines}
        if body and not framed:
            lines.append(("Content-Length", str(len(body))))
        self._method, self.ended = method, None
        await self.send(_head(f"{method} {target} HTTP/{version}", lines) + body)

    async def post(self, target: str, value: object, headers: Pairs = (), **more: Any) -> None:
        """Send a POST whose body is `value` as JSON."""
        lines = [*headers, ("Content-Type", "application/json")]
        await self.request("POST", target, lines, json.dumps(value).encode(), **more)

    async def head(self, *, interim: bool = False) -> Head:
        """The next head; 1xx heads are passed over unless `interim`. ConnectionError when none comes."""
        while True:
            start, headers = _parse_head(self._take(await self._find(b"\r\n\r\n")))
            version, status = start.split(" ", 2)[:2]
            head = Head(version, int(status), headers)
            if interim or head.status == 101 or head.status >= 200:
                self._begin_body(head)
                return head

    async def piece(self) -> bytes | None:
        """The next piece of the body, None at the end: a whole chunk when chunked, else what one read gives.

        A wait that is cancelled or timed out loses nothing: the next call goes on from there.
        """
        if self.ended:
            return None
        try:
            return await (self._chunk() if self.framing == "chunked" else self._read())
        except ConnectionError:
            if self.framing == "close" and self.ended == "eof":
                self.ended = "complete"
            return None

    async def body(self) -> bytes:
        """The rest of the body; `ended` says whether it is whole."""
        pieces = b""
        while (piece := await self.piece()) is not None:
            pieces += piece
        return pieces

    def half_close(self) -> None:
        """Send FIN; answers can still be read."""
        self._sock.shutdown(socket.SHUT_WR)

    def abort(self) -> None:
        """Go with a reset."""
        _reset_on_close(self._sock)
        self._sock.close()

    def _begin_body(self, head: Head) -> None:
        length = head.header("content-length")
        self._left = int(length or 0)
        if self._method == "HEAD" or head.status < 200 or head.status in (204, 304):
            self.framing, self._left = "none", 0
        elif (head.header("transfer-encoding") or "").lower() == "chunked":
            self.framing = "chunked"
        else:
            self.framing = "close" if length is None else "length"
        if self.framing in ("none", "length") and not self._left and head.status >= 200:
            self.ended = "complete"

    async def _read(self) -> bytes:
        if not self._buffer:
            await self._fill()
        size = self._left if self.framing == "length" else len(self._buffer)
        piece = self._take(min(size, len(self._buffer)))
        self._left -= len(piece)
        if self.framing == "length" and not self._left:
            self.ended = "complete"
        return piece

    async def _chunk(self) -> bytes | None:
        end = await self._find(b"\r\n")
        size = int(self._buffer[:end].partition(b";")[0], 16)
        if size == 0:
            while (line_end := await self._find(b"\r\n", end)) > end + 2:
                end = line_end  # a trailer
            self._take(line_end)
            self.ended = "complete"
            return None
        while len(self._buffer) < end + size + 2:
            await self._fill()
        framed = self._take(end + size + 2)
        assert framed.endswith(b"\r\n"), "a chunk is longer than its size"
        return framed[end:-2]

    async def _find(self, mark: bytes, start: int = 0) -> int:
        """Where in the buffer the next mark ends; nothing is taken."""
        while (place := self._buffer.find(mark, start)) < 0:
            await self._fill()
        return place + len(mark)

    async def _fill(self) -> None:
        """One read; ConnectionError at the end."""
        async with asyncio.timeout(self.timeout):
            try:
                data = await asyncio.get_running_loop().sock_recv(self._sock, 65536)
            except ConnectionResetError:
                self.ended = "reset"
                raise
        if not data:
            self.ended = "eof"
            raise ConnectionError("the connection was closed")
        self.raw += data
        self._buffer += data

    def _take(self, size: int) -> bytes:
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken


async def raw_request(port: int, data: bytes, *, read_until_close: bool = True) -> bytes:
    """Send bytes and return the bytes that come: until the close, or else one whole answer."""
    async with RawClient(port) as client:
        await client.send(data)
        client._method = data.partition(b" ")[0].decode("latin-1")
        if read_until_close:
            with suppress(ConnectionError):
                while True:
                    await client._fill()
            if client.ended == "reset":
                raise ConnectionResetError(f"reset after {bytes(client.raw)!r}")
        else:
            await client.head()
            await client.body()
        return bytes(client.raw)


# Recordings --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recording:
    """A recorded exchange with a real upstream; `pieces` are the sizes of its network reads, where known."""

    id: str
    group: str
    turn: int
    meta: dict[str, Any]
    request: bytes | None
    response: bytes
    pieces: list[int] | None


def recordings(endpoint: str = "chat", root: Path = RECORDINGS) -> list[Recording]:
    """All recordings of an endpoint, ordered by group and turn; none where the folder is absent."""
    return [_recording(path.parent) for path in sorted((root / endpoint).glob("*/*/meta.json"))]


def recordings_or_skip(endpoint: str = "chat", root: Path = RECORDINGS) -> list[Recording]:
    """The recordings of an endpoint; skips the test where there are none."""
    return recordings(endpoint, root) or pytest.skip(f"no recorded traffic in {root / endpoint}")


def _recording(folder: Path) -> Recording:
    meta = json.loads((folder / "meta.json").read_bytes())
    request = (folder / "request.json").read_bytes()
    sizes = folder / "chunks.json"
    return Recording(
        id=meta["id"],
        group=meta["group"],
        turn=meta["turn"],
        meta=meta,
        request=None if request.strip() == b"null" else request,
        response=(folder / meta["response_file"]).read_bytes(),
        pieces=json.loads(sizes.read_bytes()) if sizes.exists() else None,
    )


# Small things ------------------------------------------------------------------------------


def free_port() -> int:
    """A port of 127.0.0.1 on which nothing listens now. One below those that Linux gives to whoever asks for any: until
    it is used, another test's connection could take one of these."""
    while True:
        port = random.SystemRandom().randrange(10_000, 32_768)  # not the seeded one, which all workers share
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


async def eventually(check: Callable[[], object], timeout: float = 5.0) -> None:
    """Wait until `check()` is true; TimeoutError when it never is."""
    async with asyncio.timeout(timeout):
        while not check():
            await asyncio.sleep(0.002)


async def settled(value: Callable[[], int]) -> None:
    """Wait until a number has stopped growing."""
    last = -1
    while last != value():
        last = value()
        await asyncio.sleep(0.1)


async def _cancelled(*tasks: asyncio.Task[None]) -> None:
    """End tasks, and wait until they have let go of their sockets."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _reset_on_close(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _head(start: str, headers: Headers) -> bytes:
    lines = [start, *(f"{name}: {value}" for name, value in headers)]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def _parse_head(data: bytes) -> tuple[str, Headers]:
    start, *lines = data.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
    pairs = (line.split(":", 1) for line in lines)
    return start, [(name, value.strip(" \t")) for name, value in pairs]


def _header(headers: Headers, name: str) -> str | None:
    return next((value for key, value in headers if key.lower() == name.lower()), None)
