"""Forwards requests that are not recorded turns, and WebSockets, unchanged in both directions. Knows no session."""

from __future__ import annotations

import asyncio
import time

import aiohttp
from aiohttp import web

from proxy.context import request_log
from proxy.context.routing import Target
from proxy.context.runtime import Runtime
from proxy.context.tenants import with_our_key
from proxy.core.headers import Pairs, end_to_end
from proxy.downstream.answers import error_answer
from proxy.downstream.client_stream import ClientStream, HandlerResult
from proxy.errors import BadRequest, ProxyError, UpstreamUnreachable

CLOSING = 5.0  # seconds a WebSocket's other side has to answer a close
# Expect was answered at this hop; Host is the upstream's.
_NOT_SENT = frozenset(["host", "expect"])
_HANDSHAKE = frozenset(
    [
        "host",
        "sec-websocket-key",
        "sec-websocket-version",
        "sec-websocket-extensions",
        "sec-websocket-protocol",
    ]
)
_NOT_REFUSED = frozenset(["content-length", "content-encoding", "content-type"])


async def forward(request: web.BaseRequest, runtime: Runtime, target: Target) -> HandlerResult:
    """Forward one request and its answer; stream both bodies with backpressure.

    A drain waits for it or cancels it: aiohttp's own clean-up would close the connection before the
    handler could reset it.
    """
    client = ClientStream(request, runtime.config, runtime.poller)
    with runtime.registry.joined():
        await _hand_on(request, runtime, target, client)
    return client


async def _hand_on(request: web.BaseRequest, runtime: Runtime, target: Target, client: ClientStream) -> None:
    headers = with_our_key(target.upstream, end_to_end(request.headers.items(), _NOT_SENT))
    body = request.content if request.can_read_body else None
    access = request_log.of(request)
    access.size = request.content_length or 0
    async with client.watched():
        access.asked = time.monotonic()
        answer = await runtime.client.ask(request.method, target.url, headers, body, target.upstream)
        try:
            client.begin(answer.status, end_to_end(answer.headers), not answer.is_here)
            while await answer.flow(client.write_nowait):
                await client.wait_writable()
                if client.disconnected:
                    break
            await client.end()
        except ProxyError:
            client.reset_later()
        except BaseException:  # a stop of ours, or a fault, for which an error would be written behind what is out
            client.reset("stop")
            raise
        finally:
            answer.close()


async def websocket(request: web.BaseRequest, runtime: Runtime, target: Target) -> web.StreamResponse:
    """Relay a WebSocket: messages, pings and close codes in both directions, one message at a time."""
    headers = with_our_key(target.upstream, end_to_end(request.headers.items(), _HANDSHAKE))
    protocols = [name.strip() for name in request.headers.get("Sec-WebSocket-Protocol", "").split(",") if name.strip()]
    if not web.WebSocketResponse().can_prepare(request):
        raise BadRequest("The WebSocket handshake is incomplete. Send the headers that RFC 6455 requires.")
    try:
        upstream = await runtime.client.websocket(target.url, headers, protocols, target.upstream)
    except aiohttp.WSServerHandshakeError as refusal:
        return _refused(refusal)
    chosen = [upstream.protocol] if upstream.protocol else []
    client = web.WebSocketResponse(protocols=chosen, autoclose=False, autoping=False, max_msg_size=0)
    try:
        await client.prepare(request)
        await _converse(client, upstream)
    finally:  # where neither side gave a code: a side that broke off ends the other
        await upstream.close(code=aiohttp.WSCloseCode.GOING_AWAY)
        if client.prepared:
            await client.close(code=aiohttp.WSCloseCode.GOING_AWAY)
    return client


_Socket = web.WebSocketResponse | aiohttp.ClientWebSocketResponse
_NO_CODE = (0, 1005, 1006, 1015)  # what a peer that gave no code is reported as; not to be sent


async def _converse(client: _Socket, upstream: _Socket) -> None:
    """Relay both directions until one side ends, then give the other time to answer the close."""
    pumps = [asyncio.create_task(_pump(client, upstream)), asyncio.create_task(_pump(upstream, client))]
    try:
        done, _ = await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        if any(pump.exception() is None and pump.result() for pump in done):
            await asyncio.wait(pumps, timeout=CLOSING)
    finally:
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)


async def _pump(source: _Socket, sink: _Socket) -> bool:
    """Relay the messages of `source`, and its close code, until it ends. Return whether it closed in order."""
    while True:
        message = await source.receive()
        if message.type is aiohttp.WSMsgType.TEXT:
            await sink.send_str(message.data)
        elif message.type is aiohttp.WSMsgType.BINARY:
            await sink.send_bytes(message.data)
        elif message.type is aiohttp.WSMsgType.PING:
            await sink.ping(message.data)
        elif message.type is aiohttp.WSMsgType.PONG:
            await sink.pong(message.data)
        elif message.type is aiohttp.WSMsgType.CLOSE:
            code = message.data if message.data not in _NO_CODE else aiohttp.WSCloseCode.OK
            reason = (message.extra or "").encode()
            await source.close(code=code, message=reason)
            await sink.close(code=code, message=reason)
            return True
        else:  # the connection broke, or the other pump is closing it
            return False


def _refused(refusal: aiohttp.WSServerHandshakeError) -> web.Response:
    """Build the answer to a refused handshake: the upstream's status and headers, with a body of the proxy's, because
    the client library drops the upstream's."""
    headers: Pairs = end_to_end((refusal.headers or {}).items(), _NOT_REFUSED)
    fault = UpstreamUnreachable("The upstream refused the WebSocket. Check the path and the credential.")
    response = error_answer(fault, refusal.status if refusal.status >= 300 else None)
    for name, value in headers:
        response.headers.add(name, value)
    return response
