"""How a connection ends whose answer broke off: after what the client was given, and never later than it should."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from proxy.config.model import Config
from proxy.context.runtime import Runtime
from proxy.downstream.client_stream import ClientStream
from proxy.downstream.parting import LONGEST, QUIET, DelayedReset, ResetTimer
from proxy.downstream.watch import Poller
from proxy.server.app import build_app, build_runner
from proxy.stores.memory import MemoryStore
from proxy.upstream.client import Client
from tests.support.fakes import RawClient, Received, Reply, ScriptedUpstream, eventually, sse
from tests.support.serving import Serve

SLACK = 0.1  # seconds that a busy machine may add to a bound
SESSION = [("x-session-id", "s")]
SMALL = 4096  # a receive buffer, of which Linux makes twice as much
MUCH = 100_000  # more than that holds, and less than the proxy's own side takes


# The clock


@given(
    broke=st.floats(0, 1e6),
    looks=st.lists(st.tuples(st.floats(0, 0.05), st.booleans()), min_size=1, max_size=30),
)
def test_the_reset_timer_runs_from_the_last_sent_byte_and_is_bounded(
    broke: float, looks: list[tuple[float, bool]]
) -> None:
    moment, now, empty = ResetTimer(broke), broke, None
    for later, unsent in looks:
        now += later
        empty = None if unsent else (now if empty is None else empty)
        left = moment.left(now, unsent)
        over = now - broke >= LONGEST or (empty is not None and now - empty >= QUIET)
        assert (left <= 1e-9) is over or abs(left) < 1e-9  # the same, but for how floats are rounded
        assert left <= LONGEST + 1e-9 and (unsent or left <= QUIET + 1e-9)
        if over:
            break


@pytest.mark.parametrize(
    ("looks", "left"),
    [
        ([(0, True)], LONGEST),
        ([(0, False)], QUIET),
        ([(0, True), (30, False)], QUIET),
        ([(0, False), (15, True), (30, False)], QUIET),  # something went out behind it, as TLS may do
        ([(0, False), (15, False)], 0.005),
        ([(0, True), (90, False)], 0.01),
        ([(0, True), (100, True)], 0),
        ([(110, False)], -0.01),  # it took that long to keep the turn
    ],
)
def test_the_reset_timer_tells_the_remaining_seconds(looks: list[tuple[int, bool]], left: float) -> None:
    moment = ResetTimer(7.0)
    given = [moment.left(7.0 + ms / 1000, unsent) for ms, unsent in looks]
    assert given[-1] == pytest.approx(left)


# Clients that see when


class SlowClient(RawClient):
    """A client that takes in little unless it reads, and knows without reading whether its connection was reset."""

    async def __aenter__(self) -> SlowClient:
        self._sock = socket.socket()
        self._sock.setblocking(False)
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL)
        await asyncio.get_running_loop().sock_connect(self._sock, ("127.0.0.1", self.port))
        return self

    @property
    def is_reset(self) -> bool:
        return self._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == 7  # TCP_CLOSE

    async def until_reset(self) -> float:
        """When that was (monotonic)."""
        await eventually(lambda: self.is_reset)
        return time.monotonic()


async def asked(client: RawClient, recorded: bool, text: str = "x") -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": text}], "stream": True}
    await client.post("/v1/chat/completions", body, SESSION if recorded else ())


class Break:
    """An upstream's answer that breaks in the instant of its last bytes; `at` is when (monotonic)."""

    def __init__(self, size: int, end: str = "fin") -> None:
        self.at = 0.0
        text = sse("x" * size, done=False, finish=None)
        pieces = [b"".join(text.pieces), b""]
        self.reply = Reply(headers=text.headers, pieces=pieces, end=end, gate=self._note)  # type: ignore[arg-type]

    async def _note(self, index: int) -> None:
        self.at = time.monotonic()


BOTH = pytest.mark.parametrize("recorded", [True, False], ids=["recorded", "passed"])


@BOTH
async def test_the_reset_comes_shortly_after_the_last_byte_was_acknowledged(serve: Serve, recorded: bool) -> None:
    breaks = Break(MUCH)
    async with ScriptedUpstream([breaks.reply]) as upstream:
        proxy = await serve(upstream.base_url)
        async with SlowClient(proxy.port) as client:
            await asked(client, recorded)
            await eventually(lambda: breaks.at)
            before = time.monotonic()  # most of the answer can only be taken from here on
            await client.head()
            assert len(await client.body()) > MUCH
            reset = time.monotonic()
    assert client.ended == "reset"
    assert before + QUIET <= reset <= breaks.at + LONGEST + SLACK


@BOTH
async def test_a_client_that_reads_nothing_is_reset_too(serve: Serve, recorded: bool) -> None:
    breaks = Break(MUCH)
    async with ScriptedUpstream([breaks.reply]) as upstream:
        proxy = await serve(upstream.base_url)
        async with SlowClient(proxy.port) as client:
            await asked(client, recorded)
            reset = await client.until_reset()
    assert breaks.at + LONGEST - 0.01 <= reset <= breaks.at + LONGEST + SLACK


@BOTH
async def test_a_fast_client_is_reset_before_the_longest_delay(serve: Serve, recorded: bool) -> None:
    waits = []
    for _ in range(5):  # the best of them: a busy machine may be late
        breaks = Break(10)
        async with ScriptedUpstream([breaks.reply]) as upstream:
            proxy = await serve(upstream.base_url)
            async with RawClient(proxy.port) as client:
                await asked(client, recorded)
                await client.head()
                await client.body()
                waits.append(time.monotonic() - breaks.at)
    assert QUIET <= min(waits) < LONGEST / 2


async def test_queue_slot_and_upstream_are_freed_before_the_reset(serve: Serve) -> None:
    """The session's next request is with the upstream while the client of the one that broke is still connected."""
    connected: list[bool] = []
    clients: list[SlowClient] = []
    hung = Break(MUCH, "hang")

    def script(request: Received) -> Reply:
        if len(upstream.requests) == 1:
            return hung.reply
        connected.append(not clients[0].is_reset)
        connected.append(upstream.connections == 1)  # this one's; that of the first is closed
        return sse("next")

    async with ScriptedUpstream(script) as upstream:
        proxy = await serve(upstream.base_url, upstream={"idle_timeout": "300ms"})
        async with SlowClient(proxy.port) as first, RawClient(proxy.port) as second:
            clients.append(first)
            await asked(first, True)
            await eventually(lambda: hung.at)
            await asked(second, True, "next")
            assert (await second.head()).status == 200
            await second.body()
            assert connected == [True, True] and second.ended == "complete"
            await first.until_reset()
            assert not proxy.runtime.registry.in_flight and not proxy.runtime.registry.in_use


@BOTH
async def test_a_request_is_no_longer_in_flight_before_its_reset(serve: Serve, recorded: bool) -> None:
    breaks = Break(MUCH)
    async with ScriptedUpstream([breaks.reply]) as upstream:
        proxy = await serve(upstream.base_url)
        async with SlowClient(proxy.port) as client:
            await asked(client, recorded)
            await eventually(lambda: breaks.at)
            await eventually(lambda: not proxy.runtime.registry.in_flight)
            assert not client.is_reset
            await client.until_reset()


async def test_followers_and_replays_get_the_delay_before_the_reset_too(serve: Serve) -> None:
    breaks = Break(MUCH, "hang")
    async with ScriptedUpstream([breaks.reply]) as upstream:
        proxy = await serve(upstream.base_url, upstream={"idle_timeout": "300ms"})
        async with RawClient(proxy.port) as first, SlowClient(proxy.port) as second, SlowClient(proxy.port) as late:
            await asked(first, True)
            await eventually(lambda: breaks.at)
            await second.request("GET", "/sessions/s/stream")
            await first.head()
            await first.body()
            broke = time.monotonic() - QUIET  # at the latest
            assert await second.until_reset() >= broke + LONGEST - QUIET - 0.01
            asks = time.monotonic()
            await late.request("GET", "/sessions/s/stream")
            assert asks + LONGEST - 0.01 <= await late.until_reset() <= asks + LONGEST + SLACK
    assert first.ended == "reset"


# No moment


@BOTH
async def test_a_drain_resets_without_a_delay(serve: Serve, recorded: bool) -> None:
    breaks = Break(MUCH, "hang")
    async with ScriptedUpstream([breaks.reply]) as upstream:
        proxy = await serve(upstream.base_url)
        async with SlowClient(proxy.port) as client:
            await asked(client, recorded)
            await eventually(lambda: breaks.at)
            await client.head()
            await proxy.runtime.registry.drain(0.05)
            drained = time.monotonic()
            assert await client.until_reset() < drained + LONGEST / 2


@BOTH
async def test_a_drain_ends_running_reset_delays(serve: Serve, recorded: bool) -> None:
    breaks = Break(MUCH)
    async with ScriptedUpstream([breaks.reply]) as upstream:
        proxy = await serve(upstream.base_url)
        async with SlowClient(proxy.port) as client:
            await asked(client, recorded)
            await eventually(lambda: breaks.at)
            await eventually(lambda: not proxy.runtime.registry.in_flight)
            assert not client.is_reset
            await proxy.runtime.registry.drain(0.05)
            assert await client.until_reset() < breaks.at + LONGEST - 0.01


@asynccontextmanager
async def handled(handler: Any) -> AsyncIterator[int]:
    """The port of a server whose requests all go to `handler`."""
    config = Config.model_validate({"upstreams": [{"base_url": "http://127.0.0.1:1/v1"}]})
    runtime = Runtime(config, MemoryStore(1000), Client(), b"s" * 32, lambda: 0, lambda: "t")
    runner = build_runner(build_app(runtime), config, handler)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


LIMITS = {"upstreams": [{"base_url": "http://127.0.0.1:1/v1"}], "limits": {"write_timeout": "50ms"}}
TEXT = [("Content-Type", "text/plain")]


async def test_a_client_over_write_timeout_is_reset_without_a_delay() -> None:
    closed: list[bool] = []

    async def handler(request: web.BaseRequest) -> ClientStream:
        client = ClientStream(request, Config.model_validate(LIMITS), Poller())
        transport = request.transport
        assert transport
        client.begin(200, TEXT)
        while client.write_nowait(b"x" * 65536):
            pass
        waits = asyncio.create_task(client.wait_writable())
        await eventually(lambda: closed.append(transport.is_closing()) or client.poll() or client.disconnected)  # type: ignore[func-returns-value]
        closed.append(transport.is_closing())
        await waits
        return client

    async with handled(handler) as port, SlowClient(port) as client:
        await client.request("GET", "/")
        await client.until_reset()
    assert closed[-2:] == [False, True]


@pytest.mark.parametrize("hurries", [True, False])
async def test_a_hurried_reset_closes_at_once(hurries: bool) -> None:
    closed: list[bool] = []

    async def handler(request: web.BaseRequest) -> ClientStream:
        client = ClientStream(request, Config.model_validate(LIMITS), Poller(hurries=lambda: hurries))
        client.begin(200, TEXT)
        client.write_nowait(b"x")
        client.reset_later()
        assert request.transport and client.disconnected
        closed.append(request.transport.is_closing())
        client.reset_later()  # says nothing new
        return client

    async with handled(handler) as port, RawClient(port) as client:
        await client.request("GET", "/")
        await client.head()
        assert await client.body() == b"x"
        assert client.ended == "reset"
    assert closed == [hurries]


async def test_closing_the_connection_during_the_delay_resets_it() -> None:
    """To a client of HTTP/1.0 a mere close would be the end of a whole answer."""

    async def handler(request: web.BaseRequest) -> ClientStream:
        client = ClientStream(request, Config.model_validate(LIMITS), Poller())
        client.begin(200, TEXT)
        client.write_nowait(b"x")
        client.reset_later()
        assert request.transport
        request.transport.close()
        return client

    async with handled(handler) as port, RawClient(port) as client:
        await client.request("GET", "/", version="1.0")
        await client.head()
        await client.body()
    assert client.ended == "reset"


async def test_a_disconnect_ends_the_reset_delay() -> None:
    over: list[float] = []

    async def handler(request: web.BaseRequest) -> ClientStream:
        client = ClientStream(request, Config.model_validate(LIMITS), Poller())
        client.begin(200, TEXT)
        client.write_nowait(b"x" * MUCH)
        transport: Any = request.transport
        broke = time.monotonic() + 60
        await asyncio.wait_for(DelayedReset(transport, broke, lambda: False).over, 5)
        over.append(broke)
        return client

    async with handled(handler) as port:
        async with SlowClient(port) as client:
            await client.request("GET", "/")
            await client.head()
            client.abort()
        await eventually(lambda: over)
