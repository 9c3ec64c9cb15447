"""Passing through where it is hard: odd targets, broken uploads, peers that stall, clients that leave.

What goes through in good weather stands in test_untouched.
"""

from __future__ import annotations

import asyncio
import socket

import pytest

from tests.support.fakes import RawClient, Reply, ScriptedUpstream, eventually
from tests.support.serving import Serve

CHUNKED = b"POST /v1/files HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
MUCH = 64 << 20


def answered(**more: object) -> Reply:
    return Reply(**{"headers": [("X-Own", "1")], "pieces": [b"ok"], "framing": "length"} | more)  # type: ignore[arg-type]


def listening() -> tuple[socket.socket, str]:
    """An upstream that the test plays by hand, and its base URL."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    return listener, f"http://127.0.0.1:{listener.getsockname()[1]}/v1"


@pytest.mark.parametrize(
    "target", ["/v1/x?", "/v1/x??", "/v1/x?a=#b", "/v1/x#f?a", "/v1/%zz", "/v1/a:b@c;d", '/v1/x?"<>{}|']
)
async def test_an_unusual_target_is_forwarded_byte_for_byte(serve: Serve, target: str) -> None:
    async with ScriptedUpstream([answered()]) as upstream:
        proxy = await serve(upstream.base_url)
        async with RawClient(proxy.port) as client:
            await client.request("GET", target)
            assert (await client.head()).status == 200
        assert upstream.requests[0].target == target


async def test_a_base_url_without_a_path_works(serve: Serve) -> None:
    async with ScriptedUpstream([answered()]) as upstream:
        proxy = await serve(f"http://127.0.0.1:{upstream.port}")
        async with RawClient(proxy.port) as client:
            await client.request("GET", "/v1?a=1")
            assert (await client.head()).status == 200
        assert upstream.requests[0].target == "/?a=1"


async def test_header_names_keep_their_letter_case(serve: Serve) -> None:
    async with ScriptedUpstream([answered(headers=[("x-LIKE-this", "1")])]) as upstream:
        proxy = await serve(upstream.base_url)
        async with RawClient(proxy.port) as client:
            await client.request("GET", "/v1/models", [("X-liKE-That", "1")])
            assert ("x-LIKE-this", "1") in (await client.head()).headers
        assert ("X-liKE-That", "1") in upstream.requests[0].headers


async def test_hop_by_hop_headers_are_removed_from_an_answer(serve: Serve) -> None:
    headers = [("Connection", "x-hop"), ("X-Hop", "1"), ("Keep-Alive", "timeout=5"), ("X-Own", "1")]
    async with ScriptedUpstream([answered(headers=headers)]) as upstream:
        proxy = await serve(upstream.base_url)
        async with RawClient(proxy.port) as client:
            await client.request("GET", "/v1/models")
            assert (await client.head()).headers == [("X-Own", "1"), ("Content-Length", "2")]


async def test_trailers_of_an_answer_are_dropped(serve: Serve) -> None:
    body = [b"2\r\nok\r\n0\r\nX-Trailer: 1\r\n\r\n"]
    reply = Reply(headers=[("Transfer-Encoding", "chunked")], pieces=body, framing="close")
    async with ScriptedUpstream([reply]) as upstream:
        proxy = await serve(upstream.base_url)
        async with RawClient(proxy.port) as client:
            await client.request("GET", "/v1/models")
            await client.head()
            assert await client.body() == b"ok" and client.ended == "complete"
    assert b"X-Trailer" not in client.raw


async def test_a_chunked_answer_reaches_a_client_of_http_1_0_whole(serve: Serve) -> None:
    """Each chunk comes alone, and might go on as it came."""
    async with ScriptedUpstream([answered(framing="chunked", pieces=[b"a", b"b", b"c"], delay=0.01)]) as upstream:
        proxy = await serve(upstream.base_url)
        async with RawClient(proxy.port) as client:
            await client.request("GET", "/v1/models", version="1.0")
            await client.head()
            assert (client.framing, await client.body(), client.ended) == ("close", b"abc", "complete")


async def test_the_head_arrives_before_the_first_piece_is_sent(serve: Serve) -> None:
    arrived = asyncio.Event()

    async def gate(index: int) -> None:
        await arrived.wait()

    async with ScriptedUpstream([answered(framing="chunked", gate=gate)]) as upstream:
        proxy = await serve(upstream.base_url)
        async with RawClient(proxy.port) as client:
            await client.request("GET", "/v1/models")
            assert (await client.head()).status == 200
            arrived.set()
            assert await client.body() == b"ok"


@pytest.mark.parametrize("way", ["fin", "reset", "bad chunk"])  # at the last aiohttp tells the handler nothing
async def test_a_broken_upload_never_looks_complete_upstream(serve: Serve, way: str) -> None:
    listener, base_url = listening()
    loop = asyncio.get_running_loop()
    proxy = await serve(base_url)
    async with RawClient(proxy.port) as client:
        await client.send(CHUNKED + b"5\r\nhello\r\n")
        upstream, _ = await loop.sock_accept(listener)
        with listener, upstream:
            received = b""
            while b"hello" not in received:
                received += await loop.sock_recv(upstream, 65536)
            if way == "bad chunk":
                await client.send(b"zz\r\n\r\n")
            client.half_close() if way == "fin" else client.abort()
            try:
                while data := await asyncio.wait_for(loop.sock_recv(upstream, 65536), 1):
                    received += data
            except ConnectionResetError:
                pass
    assert not received.endswith(b"0\r\n\r\n")


async def test_an_answer_before_the_end_of_the_upload_is_forwarded(serve: Serve) -> None:
    listener, base_url = listening()
    loop = asyncio.get_running_loop()
    proxy = await serve(base_url)
    async with RawClient(proxy.port) as client:
        await client.send(CHUNKED + b"5\r\nhello\r\n")
        upstream, _ = await loop.sock_accept(listener)
        with listener, upstream:
            await loop.sock_recv(upstream, 65536)
            await loop.sock_sendall(upstream, b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nbig")
            assert (await client.head()).status == 413
            assert await client.body() == b"big"


async def test_a_slow_upstream_slows_down_the_upload(serve: Serve) -> None:
    listener, base_url = listening()
    loop = asyncio.get_running_loop()
    proxy = await serve(base_url, shutdown={"drain": "100ms"})
    async with RawClient(proxy.port) as client:
        await client.request("POST", "/v1/files", [("Content-Length", str(MUCH))])
        upstream, _ = await loop.sock_accept(listener)
        with listener, upstream:
            assert await until_it_stalls(client) < MUCH // 2


async def until_it_stalls(client: RawClient) -> int:
    """How many bytes are taken before half a second passes without one."""
    taken = 0
    while taken < MUCH:
        try:
            await asyncio.wait_for(client.send(b"x" * 65536), 0.5)
        except TimeoutError:
            break
        taken += 65536
    return taken


async def test_a_slow_client_slows_down_the_answer(serve: Serve) -> None:
    sent = 0

    async def count(index: int) -> None:
        nonlocal sent
        sent = index

    pieces = [b"x" * 65536] * (MUCH // 65536)
    async with ScriptedUpstream([answered(pieces=pieces, framing="chunked", gate=count)]) as upstream:
        proxy = await serve(upstream.base_url, limits={"write_timeout": "500ms"})
        async with RawClient(proxy.port) as client:
            await client.request("GET", "/v1/files")
            await client.head()
            await eventually(lambda: upstream.connections == 0)  # who takes nothing for that long is gone
            assert 0 < sent < len(pieces) // 2
            await client.body()
    assert client.ended == "reset"


async def test_the_upstream_is_closed_within_a_second_of_a_silent_disconnect(serve: Serve) -> None:
    async with ScriptedUpstream([answered(framing="chunked", end="hang")]) as upstream:
        proxy = await serve(upstream.base_url)
        before = len(asyncio.all_tasks())
        async with RawClient(proxy.port) as client:
            await client.request("GET", "/v1/models")
            await client.head()
            await client.piece()
        await eventually(lambda: upstream.connections == 0, 1)
        await eventually(lambda: len(asyncio.all_tasks()) <= before, 1)


async def test_a_header_in_latin_1_keeps_its_bytes(serve: Serve) -> None:
    async with ScriptedUpstream([answered(headers=[("X-Name", "Andr\xe9")])]) as upstream:
        proxy = await serve(upstream.base_url)
        async with RawClient(proxy.port) as client:
            await client.request("GET", "/v1/models")
            await client.head()
    assert b"X-Name: Andr\xe9\r\n" in client.raw
