"""WebSockets where a side does not do its part. Echo and close codes stand in test_untouched."""

from __future__ import annotations

import asyncio
import json

import pytest
from aiohttp import web

from tests.support.fakes import RawClient, Received, Reply, ScriptedUpstream, eventually
from tests.support.serving import Serve

UPGRADE = [("Connection", "upgrade"), ("Upgrade", "websocket"), ("Sec-WebSocket-Version", "13")]
HANDSHAKE = [*UPGRADE, ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==")]


async def refused(port: int, headers: list[tuple[str, str]]) -> tuple[int, str]:
    async with RawClient(port) as client:
        await client.request("GET", "/v1/realtime", headers)
        status = (await client.head()).status
        return status, json.loads(await client.body())["error"]["code"]


async def silent(request: Received) -> Reply:
    return await asyncio.Future()


async def test_an_incomplete_websocket_handshake_is_a_400(serve: Serve) -> None:
    async with ScriptedUpstream() as upstream:
        proxy = await serve(upstream.base_url)
        assert await refused(proxy.port, UPGRADE) == (400, "invalid_request")
        assert not upstream.requests


async def test_a_websocket_handshake_has_a_deadline(serve: Serve) -> None:
    async with ScriptedUpstream(silent) as upstream:
        proxy = await serve(upstream.base_url, upstream={"response_timeout": "200ms"})
        assert await refused(proxy.port, HANDSHAKE) == (504, "upstream_timeout")


async def test_a_websocket_to_an_unreachable_upstream_is_a_502(serve: Serve) -> None:
    proxy = await serve("http://127.0.0.1:1/v1")
    assert await refused(proxy.port, HANDSHAKE) == (502, "upstream_unreachable")


@pytest.mark.parametrize(("theirs", "ours"), [(401, 401), (307, 307), (503, 503), (200, 502), (101, 502)])
async def test_a_refused_websocket_keeps_its_status(serve: Serve, theirs: int, ours: int) -> None:
    async with ScriptedUpstream([Reply(status=theirs, framing="length")]) as upstream:
        proxy = await serve(upstream.base_url)
        assert (await refused(proxy.port, HANDSHAKE))[0] == ours


async def test_an_upgrade_without_get_is_an_ordinary_request(serve: Serve) -> None:
    async with ScriptedUpstream() as upstream:
        proxy = await serve(upstream.base_url)
        async with RawClient(proxy.port) as client:
            await client.request("POST", "/v1/chat/completions", HANDSHAKE)
            assert (await client.head()).status == 200
        (request,) = upstream.requests
    assert (request.method, request.header("upgrade")) == ("POST", None)


async def test_a_broken_client_websocket_ends_the_upstreams(serve: Serve) -> None:
    codes: list[int | None] = []

    async def keep(request: web.Request) -> web.StreamResponse:
        ours = web.WebSocketResponse()
        await ours.prepare(request)
        await ours.send_str("ready")
        async for _ in ours:
            pass
        codes.append(ours.close_code)
        return ours

    app = web.Application()
    app.router.add_get("/v1/realtime", keep)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    proxy = await serve(f"http://127.0.0.1:{runner.addresses[0][1]}/v1")
    async with RawClient(proxy.port) as client:
        await client.request("GET", "/v1/realtime", HANDSHAKE)
        head = await client.head()
        client.abort()
    await eventually(lambda: codes, 1)
    await runner.cleanup()
    assert codes == [1001]
    assert head.status == 101 and head.header("server") is None
