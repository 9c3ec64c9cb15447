"""What the proxy hands on as it is: requests, answers and WebSockets, byte for byte and as they come."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator

import aiohttp
import pytest
from aiohttp import WSMsgType, web

from tests.support.fakes import RawClient, Reply, ScriptedUpstream, completion, eventually, sse
from tests.support.serving import Serve

PLAIN = [("Content-Type", "text/plain")]
UTF8 = "Grüße".encode().decode("latin-1")  # as the fakes write header bytes


def answered(text: bytes = b"ok", **more: object) -> Reply:
    return Reply(**{"headers": PLAIN, "pieces": [text], "framing": "length"} | more)  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
@pytest.mark.parametrize(
    "path", ["/models", "/files/a%2Fb", "//double//slash", "/x?q=%20a+b&q=&%F0", "/sp%20ace/", "/chat/completions"]
)
async def test_every_method_and_path_reaches_the_upstream_as_sent(serve: Serve, method: str, path: str) -> None:
    async with ScriptedUpstream([answered()]) as upstream:
        proxy = await serve(upstream.base_url)
        async with RawClient(proxy.port) as client:
            await client.request(method, "/v1" + path)
            assert (await client.head()).status == 200
            await client.body()
        (request,) = upstream.requests
    assert (request.method, request.target) == (method, "/v1" + path)


async def test_a_request_gains_no_header_and_loses_hop_by_hop_headers_alone(serve: Serve) -> None:
    sent = [("X-One", "1"), ("x-ONE", "2"), ("sessionId", "s"), ("Cookie", "a=b"), ("X-Utf", UTF8)]
    hop = [("Connection", "x-hop, keep-alive"), ("X-Hop", "1"), ("TE", "trailers"), ("Proxy-Authorization", "x")]
    async with ScriptedUpstream([answered()]) as upstream:
        proxy = await serve(upstream.base_url)
        async with RawClient(proxy.port) as client:
            await client.request("GET", "/v1/models", [*sent, *hop])
            await client.head()
        (request,) = upstream.requests
    received = [(name.lower(), value) for name, value in request.headers if name.lower() != "host"]
    assert received == [(name.lower(), value) for name, value in sent]
    assert request.header("host") == f"127.0.0.1:{upstream.port}"


async def test_an_answer_gains_no_header(serve: Serve) -> None:
    headers = [("Set-Cookie", "a=1"), ("Set-Cookie", "b=2"), ("X-Odd", UTF8), ("content-length", "0")]
    async with ScriptedUpstream([Reply(status=202, headers=headers, framing="length")]) as upstream:
        proxy = await serve(upstream.base_url)
        async with RawClient(proxy.port) as client:
            await client.request("GET", "/v1/models")
            head = await client.head()
    assert [(name.lower(), value) for name, value in head.headers] == [(n.lower(), v) for n, v in headers]


@pytest.mark.parametrize("status", [204, 304, 301, 307])
async def test_answers_without_a_body_and_redirects_are_forwarded(serve: Serve, status: int) -> None:
    reply = Reply(status=status, headers=[("Location", "http://127.0.0.1:1/")], framing="length")
    async with ScriptedUpstream([reply]) as upstream:
        proxy = await serve(upstream.base_url)
        async with RawClient(proxy.port) as client:
            await client.request("GET", "/v1/models")
            head = await client.head()
            assert await client.body() == b""
        assert len(upstream.requests) == 1
    assert (head.status, head.header("location")) == (status, "http://127.0.0.1:1/")


async def test_a_204_has_no_content_length(serve: Serve) -> None:
    """RFC 9110, section 8.6."""
    replies = [Reply(status=204, headers=[("Content-Length", "0"), ("X-One", "1")], framing="length"), answered()]
    async with ScriptedUpstream(replies) as upstream:
        proxy = await serve(upstream.base_url)
        async with RawClient(proxy.port) as client:
            await client.request("GET", "/v1/models")
            head = await client.head()
            assert await client.body() == b""
            assert [name.lower() for name, _ in head.headers] == ["x-one"]
            await client.request("GET", "/v1/models")
            assert (await client.head()).status == 200


async def test_an_answer_to_head_keeps_its_content_length(serve: Serve) -> None:
    replies = [answered(headers=[("Content-Length", "1234")], pieces=[]), answered()]
    async with ScriptedUpstream(replies) as upstream:
        proxy = await serve(upstream.base_url)
        async with RawClient(proxy.port) as client:
            await client.request("HEAD", "/v1/models")
            assert (await client.head()).header("content-length") == "1234"
            await client.request("GET", "/v1/models")
            assert (await client.head()).status == 200 and await client.body() == b"ok"


async def test_compressed_bodies_are_untouched_both_ways(serve: Serve) -> None:
    squeezed = gzip.compress(b"hello" * 100)
    headers = [("Content-Encoding", "gzip"), *PLAIN]
    async with ScriptedUpstream([answered(squeezed, headers=headers)]) as upstream:
        proxy = await serve(upstream.base_url)
        async with RawClient(proxy.port) as client:
            await client.request(
                "POST", "/v1/files", [("Content-Encoding", "gzip"), ("Accept-Encoding", "gzip")], squeezed
            )
            assert (await client.head()).header("content-encoding") == "gzip"
            assert await client.body() == squeezed
        (request,) = upstream.requests
    assert request.body == squeezed and request.header("accept-encoding") == "gzip"


@pytest.mark.parametrize("expect", [False, True])
async def test_a_chunked_upload_arrives_whole(serve: Serve, expect: bool) -> None:
    head = "POST /v1/files HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
    head += "Expect: 100-continue\r\n\r\n" if expect else "\r\n"
    async with ScriptedUpstream([answered()]) as upstream:
        proxy = await serve(upstream.base_url)
        async with RawClient(proxy.port) as client:
            await client.send(head.encode())
            if expect:
                assert (await client.head(interim=True)).status == 100
            await client.send(b"5\r\nhello\r\n6\r\n world\r\n0\r\nX-Trailer: 1\r\n\r\n")
            assert (await client.head()).status == 200
        (request,) = upstream.requests
    assert request.body == b"hello world" and request.header("x-trailer") is None
    assert request.header("expect") is None


async def test_each_piece_arrives_before_the_next_is_sent(serve: Serve) -> None:
    arrived = asyncio.Semaphore(0)

    async def gate(index: int) -> None:
        if index:
            await asyncio.wait_for(arrived.acquire(), 5)

    pieces = [b"data: [DONE]\n\n", b"a", b"\n\n", b"data: [DO"]
    async with ScriptedUpstream([answered(pieces=pieces, framing="chunked", gate=gate)]) as upstream:
        proxy = await serve(upstream.base_url)
        async with RawClient(proxy.port) as client:
            await client.post("/v1/chat/completions", {"messages": [], "stream": True})
            await client.head()
            for piece in pieces:
                assert await client.piece() == piece
                arrived.release()


async def test_a_chat_request_without_a_session_id_is_untouched(serve: Serve) -> None:
    body = b'{"messages": [] , "messages": 1, oops'
    async with ScriptedUpstream([completion("x")]) as upstream:
        proxy = await serve(upstream.base_url)
        async with RawClient(proxy.port) as client:
            await client.request("POST", "/v1/chat/completions", [("x-session-store", "no")], body)
            head = await client.head()
            await client.body()
        (request,) = upstream.requests
    assert request.body == body and request.header("x-session-store") == "no"
    assert not [name for name, _ in head.headers if name.lower().startswith("x-session")]


async def test_the_longest_mount_wins_and_each_upstream_has_its_own(serve: Serve) -> None:
    async with ScriptedUpstream() as near, ScriptedUpstream() as far:
        proxy = await serve(
            near.base_url, upstream={"mount": "/v1"}, more=[{"mount": "/v1/far", "base_url": far.base_url}]
        )
        async with aiohttp.ClientSession() as client:
            for path in ("/v1/far/chat/completions", "/v1/farther/chat/completions", "/v1/far"):
                async with client.post(proxy.url + path, json={"messages": []}) as answer:
                    assert answer.status == 200
        assert [request.target for request in far.requests] == ["/v1/chat/completions"] * 2
        assert [request.target for request in near.requests] == ["/v1/farther/chat/completions"]


BREAKS = [
    answered(b"abc", framing="chunked", end="fin"),
    answered(b"abc", framing="chunked", end="rst"),
    answered(b"abc", end="fin"),
    sse("a", end="hang"),
]


@pytest.mark.parametrize("reply", BREAKS)
@pytest.mark.parametrize("version", ["HTTP/1.1", "HTTP/1.0"])
async def test_a_broken_answer_ends_in_a_reset(serve: Serve, reply: Reply, version: str) -> None:
    async with ScriptedUpstream([reply]) as upstream:
        proxy = await serve(upstream.base_url, upstream={"idle_timeout": "200ms"})
        async with RawClient(proxy.port) as client:
            await client.send(f"GET /v1/models {version}\r\nHost: x\r\n\r\n".encode())
            await client.head()
            await client.body()
    assert client.ended == "reset"


async def test_the_upstream_is_closed_on_a_disconnect(serve: Serve) -> None:
    stream = answered(pieces=[b"x" * 100] * 500, framing="chunked", delay=0.01)
    async with ScriptedUpstream([stream]) as upstream:
        proxy = await serve(upstream.base_url)
        async with RawClient(proxy.port) as client:
            await client.request("GET", "/v1/models")
            await client.piece()
            client.abort()
        await eventually(lambda: upstream.connections == 0, 1)


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("/nowhere", 404),
        ("/v1x/models", 404),
        ("/v1/../admin", 400),
        ("/v1/%2e%2e/admin", 400),
        ("/v1/..%2fadmin", 400),
        ("http://elsewhere.test/v1/models", 400),
    ],
)
async def test_a_target_outside_of_the_mounts_is_refused(serve: Serve, target: str, status: int) -> None:
    async with ScriptedUpstream() as upstream:
        proxy = await serve(upstream.base_url)
        async with RawClient(proxy.port) as client:
            await client.request("GET", target)
            assert (await client.head()).status == status
            assert json.loads(await client.body())["error"]["message"]
        assert not upstream.requests


async def test_a_header_that_is_not_utf8_is_refused(serve: Serve) -> None:
    async with ScriptedUpstream() as upstream:
        proxy = await serve(upstream.base_url)
        async with RawClient(proxy.port) as client:
            await client.send(b"GET /v1/models HTTP/1.1\r\nHost: x\r\nX-Name: \xff\xfe\r\n\r\n")
            assert (await client.head()).status == 400
            assert b"Traceback" not in await client.body()
        assert not upstream.requests


async def test_an_unreachable_silent_or_malformed_upstream_has_its_own_error(serve: Serve) -> None:
    async def silent(request: object) -> Reply:
        await asyncio.sleep(5)
        return answered()

    garbage = Reply(headers=[("Content-Length", "x")], pieces=[b"a"], framing="close")
    for script, expected in ((silent, (504, "upstream_timeout")), ([garbage], (502, "upstream_unreachable"))):
        async with ScriptedUpstream(script) as upstream:
            proxy = await serve(upstream.base_url, upstream={"response_timeout": "200ms"})
            assert await refusal(proxy.port) == expected
    proxy = await serve("http://127.0.0.1:1/v1")
    assert await refusal(proxy.port) == (502, "upstream_unreachable")


async def refusal(port: int) -> tuple[int, str]:
    async with RawClient(port) as client:
        await client.request("GET", "/v1/models")
        status = (await client.head()).status
        return status, json.loads(await client.body())["error"]["code"]


async def test_the_proxys_key_replaces_the_callers_and_only_clients_may_use_it(serve: Serve) -> None:
    digest = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"  # of "test"
    clients = [{"name": "kitchen", "key_hashes": [digest]}]
    async with ScriptedUpstream() as upstream:
        proxy = await serve(upstream.base_url, upstream={"api_key": "ours"}, clients=clients)
        async with aiohttp.ClientSession() as client:
            seen = []
            for key in ("Bearer test", "Bearer other"):
                headers = {"Authorization": key, "sessionId": "s"}
                async with client.post(proxy.url + "/v1", json={"messages": []}, headers=headers) as answer:
                    seen.append((answer.status, "test" in await answer.text()))
        assert seen == [(200, False), (401, False)]
        assert [request.header("authorization") for request in upstream.requests] == ["Bearer ours"]


# Browsers -----------------------------------------------------------------------------------

ORIGIN = {"Origin": "https://app.test"}
PREFLIGHT = {**ORIGIN, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "sessionid, x-y"}


async def test_without_cors_settings_browsers_get_no_cors_headers(serve: Serve) -> None:
    own = [*PLAIN, ("Access-Control-Allow-Origin", "theirs")]
    async with ScriptedUpstream([answered(), answered(headers=own)]) as upstream:
        proxy = await serve(upstream.base_url)
        async with aiohttp.ClientSession() as client:
            async with client.options(proxy.url + "/v1/models", headers=PREFLIGHT) as answer:
                assert "Access-Control-Allow-Origin" not in answer.headers
            async with client.get(proxy.url + "/v1/models", headers=ORIGIN) as answer:
                assert answer.headers["Access-Control-Allow-Origin"] == "theirs"
        assert len(upstream.requests) == 2


async def test_an_allowed_origin_may_send_and_read_the_session_headers(serve: Serve) -> None:
    own = [("Content-Type", "application/json"), ("Access-Control-Allow-Origin", "theirs")]
    async with ScriptedUpstream([completion("a", headers=own)]) as upstream:
        proxy = await serve(upstream.base_url, cors={"allow_origins": ["https://app.test"]})
        async with aiohttp.ClientSession() as client:
            async with client.options(proxy.url + "/v1", headers=PREFLIGHT) as answer:
                assert answer.status == 204 and "sessionid" in answer.headers["Access-Control-Allow-Headers"]
                assert answer.headers["Access-Control-Allow-Origin"] == "https://app.test"
            headers = {**ORIGIN, "sessionId": "s"}
            async with client.post(proxy.url + "/v1", json={"messages": []}, headers=headers) as answer:
                assert answer.headers.getall("Access-Control-Allow-Origin") == ["https://app.test"]
                assert "x-session-state" in answer.headers["Access-Control-Expose-Headers"]
            async with client.get(proxy.url + "/nowhere", headers=ORIGIN) as answer:
                assert answer.status == 404 and "Access-Control-Allow-Origin" in answer.headers
            async with client.get(proxy.url + "/nowhere", headers={"Origin": "https://other.test"}) as answer:
                assert "Access-Control-Allow-Origin" not in answer.headers
        assert len(upstream.requests) == 1


# WebSocket ----------------------------------------------------------------------------------


@pytest.fixture
async def sockets() -> AsyncIterator[tuple[str, list[int | None]]]:
    """An upstream that echoes, closes with 4001 at "bye" and breaks off at "die"; the codes it was closed with."""
    codes: list[int | None] = []

    async def echo(request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse(protocols=["realtime"])
        await socket.prepare(request)
        async for message in socket:
            if message.data == "bye":
                await socket.close(code=4001, message=b"bye")
            elif message.data == "die":
                assert request.transport
                request.transport.abort()
            elif message.type is WSMsgType.TEXT:
                await socket.send_str(message.data)
            else:
                await socket.send_bytes(message.data)
        codes.append(socket.close_code)
        return socket

    app = web.Application()
    app.router.add_get("/v1/realtime", echo)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1", codes
    await runner.cleanup()


async def test_ten_thousand_websocket_messages_are_echoed(serve: Serve, sockets: tuple[str, list[int | None]]) -> None:
    proxy = await serve(sockets[0])
    async with aiohttp.ClientSession() as client, client.ws_connect(proxy.url + "/v1/realtime") as socket:
        for number in range(5000):
            await socket.send_str(f"text {number}")
            await socket.send_bytes(b"\x00\xff%d" % number)
            assert (await socket.receive()).data == f"text {number}"
            assert (await socket.receive()).data == b"\x00\xff%d" % number
        await socket.ping(b"still there?")
        await socket.send_bytes(b"x" * 3_000_000)
        assert len((await socket.receive()).data) == 3_000_000


async def test_close_codes_go_both_ways(serve: Serve, sockets: tuple[str, list[int | None]]) -> None:
    base_url, codes = sockets
    proxy = await serve(base_url)
    async with aiohttp.ClientSession() as client:
        async with client.ws_connect(proxy.url + "/v1/realtime", protocols=["other", "realtime"]) as socket:
            assert socket.protocol == "realtime"
            await socket.send_str("bye")
            message = await socket.receive()
            assert (message.type, message.data, message.extra) == (WSMsgType.CLOSE, 4001, "bye")
        async with client.ws_connect(proxy.url + "/v1/realtime") as socket:
            await socket.close(code=4002, message=b"enough")
        await eventually(lambda: len(codes) == 2)
    assert codes == [4001, 4002]


async def test_a_websocket_ends_when_its_upstream_dies_or_refuses(
    serve: Serve, sockets: tuple[str, list[int | None]]
) -> None:
    proxy = await serve(sockets[0])
    async with aiohttp.ClientSession() as client:
        async with client.ws_connect(proxy.url + "/v1/realtime") as socket:
            await socket.send_str("die")
            assert (await socket.receive()).type in (WSMsgType.CLOSE, WSMsgType.CLOSED)
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await client.ws_connect(proxy.url + "/v1/elsewhere")
    assert refused.value.status == 404


async def test_idle_timeout_does_not_bound_the_wait_for_the_head(serve: Serve) -> None:
    async def thinks(request: object) -> Reply:
        await asyncio.sleep(0.5)
        return answered()

    async with ScriptedUpstream(thinks) as upstream:
        proxy = await serve(upstream.base_url, upstream={"idle_timeout": "100ms", "response_timeout": "10s"})
        async with RawClient(proxy.port) as client:
            await client.request("GET", "/v1/models")
            assert (await client.head()).status == 200


async def test_the_upstream_is_closed_on_a_disconnect_before_the_head(serve: Serve) -> None:
    async def thinks(request: object) -> Reply:
        await asyncio.sleep(30)
        return answered()

    async with ScriptedUpstream(thinks) as upstream:
        proxy = await serve(upstream.base_url)
        async with RawClient(proxy.port) as client:
            await client.request("GET", "/v1/models")
            await eventually(lambda: upstream.requests)
        await eventually(lambda: upstream.connections == 0, 1)


async def test_malformed_request_bytes_are_not_logged(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    proxy = await serve("http://127.0.0.1:1/v1")
    async with RawClient(proxy.port) as client:
        await client.send(b"GET /v1 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer sk-canary\r\nbad header\x00\r\n\r\n")
        assert (await client.head()).status == 400
    assert "canary" not in caplog.text and "Traceback" not in caplog.text
