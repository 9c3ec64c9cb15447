"""How the process ends: what runs may end, what does not end in time is cut and kept, who waits is told."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.fakes import RawClient, Received, Reply, ScriptedUpstream, completion, eventually, sse
from tests.support.process import Proxy

CHAT = "/v1/chat/completions"
SLOW = {"shutdown": {"drain": "20s"}}  # longer than the test takes: what ends sooner was not waited for
QUICK = {"shutdown": {"drain": "300ms"}}


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


async def send(client: RawClient, text: str, stream: bool = True, *, session: str) -> None:
    await client.post(CHAT, {"model": "m", "messages": [user(text)], "stream": stream}, [("sessionId", session)])


class Slow:
    """An upstream that stops after the first words of "slow ..." until it is let go; others it answers at once."""

    def __init__(self) -> None:
        self.go = asyncio.Event()

    async def __call__(self, request: Received) -> Reply:
        text = request.messages[-1]["content"]
        reply = sse("so ", "far", " and on") if request.json.get("stream") else completion("whole")
        if "mute" in text:
            await self.go.wait()
        if "slow" in text:
            reply.gate = self._wait
        return reply

    async def _wait(self, index: int) -> None:
        if index == 3:  # behind the role and two words
            await self.go.wait()


async def words(client: RawClient, last: bytes = b"far") -> None:
    """Read the head and the answer of `Slow` as far as it comes on its own."""
    assert (await client.head()).status == 200
    while last not in client.raw:
        await client.piece()


async def stopping(proxy: Proxy) -> asyncio.Task[int]:
    """The first signal, once it is felt; the task gives the exit code."""
    stopped = asyncio.create_task(proxy.stop())
    await eventually(lambda: "stopping: " in proxy.log)
    return stopped


async def remembered(proxy: Proxy, upstream: ScriptedUpstream, session: str) -> list[Any]:
    """The messages of the session's past that the upstream gets with its next request."""
    async with RawClient(proxy.port) as client:
        await send(client, "next", False, session=session)
        assert (await client.head()).status == 200
    messages = upstream.requests[-1].messages
    assert messages[-1] == user("next")
    return messages[:-1]


async def test_a_drain_completes_streams_and_accepts_no_connections(tmp_path: Path) -> None:
    slow = Slow()
    async with ScriptedUpstream(slow) as upstream, Proxy(upstream.base_url, tmp_path, SLOW) as proxy:
        async with RawClient(proxy.port) as client, RawClient(proxy.port) as mute, RawClient(proxy.port) as alive:
            await alive.request("GET", "/healthz")
            assert (await alive.head()).status == 200 and await alive.body()
            await send(client, "slow", session="s")
            await send(mute, "mute", False, session="t")
            await words(client)
            await eventually(lambda: len(upstream.requests) == 2)
            stopped = await stopping(proxy)
            with pytest.raises(ConnectionRefusedError):
                await RawClient(proxy.port).__aenter__()
            await send(alive, "late", False, session="u")  # on a connection that was open before
            refused = await alive.head()
            assert (refused.status, refused.header("retry-after")) == (503, "1")
            assert b"draining" in await alive.body()
            begun = time.monotonic()
            slow.go.set()
            assert (await client.body()).endswith(b"data: [DONE]\n\n") and client.ended == "complete"
            assert (await mute.head()).status == 200
            assert b"whole" in await mute.body() and mute.ended == "complete"
        assert await stopped == 0 and time.monotonic() - begun < 8
        await proxy.start()
        assert await remembered(proxy, upstream, "s") == [user("slow"), assistant("so far and on")]
        assert await remembered(proxy, upstream, "t") == [user("mute"), assistant("whole")]
        assert await remembered(proxy, upstream, "u") == []
        assert "Traceback" not in proxy.log


@pytest.mark.parametrize("again", [False, True], ids=["the limit is over", "a second signal"])
async def test_a_drain_records_unfinished_turns_as_interrupted(tmp_path: Path, again: bool) -> None:
    """A stream in the middle, one whose client has gone, one that has no head yet, and one that waits in line."""
    slow = Slow()
    async with (
        ScriptedUpstream(slow) as upstream,
        Proxy(upstream.base_url, tmp_path, SLOW if again else QUICK) as proxy,
        RawClient(proxy.port) as client,
        RawClient(proxy.port) as gone,
        RawClient(proxy.port) as mute,
        RawClient(proxy.port) as waits,
    ):
        await send(client, "slow", session="s")
        await send(gone, "slow, and alone", session="t")
        await send(mute, "mute", session="u")
        await words(client)
        await words(gone)
        await eventually(lambda: len(upstream.requests) == 3)
        await send(waits, "behind", session="s")
        gone.abort()
        await asyncio.sleep(0.05)
        stopped, begun = await stopping(proxy), time.monotonic()
        if again:
            os.kill(proxy.pid, signal.SIGTERM)
        for refused in (mute, waits):
            head = await refused.head()
            assert (head.status, head.header("retry-after")) == (503, "1")
            assert b"draining" in await refused.body()
        assert b"[DONE]" not in await client.body() and client.ended == "reset"
        assert await stopped == 0 and time.monotonic() - begun < 5
        assert ("a second signal" in proxy.log) == again
        await eventually(lambda: not upstream.connections)
        await proxy.start()
        assert await remembered(proxy, upstream, "s") == [user("slow"), assistant("so far")]
        assert await remembered(proxy, upstream, "t") == [user("slow, and alone"), assistant("so far")]
        assert await remembered(proxy, upstream, "u") == []
        assert "Traceback" not in proxy.log


async def test_a_drain_refuses_full_lists_too(tmp_path: Path) -> None:
    slow = Slow()
    async with (
        ScriptedUpstream(slow) as upstream,
        Proxy(upstream.base_url, tmp_path, SLOW) as proxy,
        RawClient(proxy.port) as client,
        RawClient(proxy.port) as alive,
    ):
        await send(alive, "a", False, session="s")
        assert (await alive.head()).status == 200 and await alive.body()
        await send(client, "slow", session="s")
        await words(client)
        stopped = await stopping(proxy)
        edit = [user("a"), assistant("whole"), user("edited")]
        await alive.post(CHAT, {"model": "m", "messages": edit}, [("sessionId", "s")])
        assert (await alive.head()).status == 503 and b"draining" in await alive.body()
        slow.go.set()
        assert (await client.body()).endswith(b"data: [DONE]\n\n") and client.ended == "complete"
        assert await stopped == 0 and len(upstream.requests) == 2


async def test_a_drain_waits_for_its_limit(tmp_path: Path) -> None:
    slow = Slow()
    async with (
        ScriptedUpstream(slow) as upstream,
        Proxy(upstream.base_url, tmp_path, {"shutdown": {"drain": "1s"}}) as proxy,
        RawClient(proxy.port) as client,
    ):
        await send(client, "slow", session="s")
        await words(client)
        begun = time.monotonic()
        stopped = await stopping(proxy)
        await client.body()
        assert client.ended == "reset" and 1.0 <= time.monotonic() - begun < 3
        assert await stopped == 0


async def test_a_drain_refuses_queued_requests_at_once_and_lets_the_running_turn_end(tmp_path: Path) -> None:
    slow = Slow()
    async with (
        ScriptedUpstream(slow) as upstream,
        Proxy(upstream.base_url, tmp_path, SLOW) as proxy,
        RawClient(proxy.port) as client,
        RawClient(proxy.port) as waits,
    ):
        await send(client, "slow", session="s")
        await words(client)
        await send(waits, "behind", session="s")
        await asyncio.sleep(0.05)
        stopped = await stopping(proxy)
        slow.go.set()
        assert (await client.body()).endswith(b"data: [DONE]\n\n") and client.ended == "complete"
        assert (await waits.head()).status == 503 and b"draining" in await waits.body()
        assert await stopped == 0
        await proxy.start()
        assert await remembered(proxy, upstream, "s") == [user("slow"), assistant("so far and on")]


async def test_a_drain_keeps_all_text_of_a_turn_with_a_finish_reason(tmp_path: Path) -> None:
    """The upstream said that it was done, but never ended the stream: a stop waits, but not for ever."""
    async with (
        ScriptedUpstream([sse("all of it", done=False, end="hang"), completion("x")]) as upstream,
        Proxy(upstream.base_url, tmp_path, QUICK) as proxy,
        RawClient(proxy.port) as client,
    ):
        await send(client, "hi", session="s")
        await words(client, b'"stop"')
        begun = time.monotonic()
        stopped = await stopping(proxy)
        await client.body()
        assert client.ended == "reset"
        assert await stopped == 0 and time.monotonic() - begun < 15
        await proxy.start()
        assert await remembered(proxy, upstream, "s") == [user("hi"), assistant("all of it")]


async def test_a_drain_with_nothing_in_flight_ends_at_once(tmp_path: Path) -> None:
    async with (
        ScriptedUpstream() as upstream,
        Proxy(upstream.base_url, tmp_path, SLOW) as proxy,
        RawClient(proxy.port) as client,  # it keeps its connection
    ):
        await send(client, "hi", False, session="s")
        assert (await client.head()).status == 200 and await client.body()
        begun = time.monotonic()
        assert await proxy.stop() == 0 and time.monotonic() - begun < 3
