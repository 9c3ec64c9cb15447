"""A client that comes back for an answer: the same bytes from the first one on, as one that never left."""

from __future__ import annotations

import asyncio
import os
import random
import time
from pathlib import Path
from typing import Any

import pytest

from proxy.stores.cache import CachedStore
from proxy.stores.sqlite.store import SQLiteStore
from tests.server.test_sessions_api import Held, asking, call, code
from tests.support.fakes import (
    Head,
    RawClient,
    Received,
    Reply,
    ScriptedUpstream,
    completion,
    error,
    event,
    eventually,
    settled,
    sse,
)
from tests.support.serving import RunningProxy, Serve
from tests.turns.test_client_gone import in_flight, narrow, orphaned
from tests.turns.test_relay import ask, user

STREAMS = 200 if os.environ.get("SOAK") else 20
SIDE_BY_SIDE = 10
PATH = "/v1/chat/completions"
STREAM = "/sessions/s1/stream"
TTL = 24 * 3600 * 1000


def whole(text: str) -> bytes:
    return b"".join(sse("re ", text).pieces)


# At random points --------------------------------------------------------------------------


def random_reply(chance: random.Random) -> Reply:
    """An answer of any size and speed: a stream or not, framed in one way or another."""
    framing = chance.choice(["chunked", "length", "close"])
    words = ["é" * chance.choice([1, 9, 300, 9000]) for _ in range(chance.randint(1, 30))]
    if chance.random() < 0.2:
        text = "".join(words)
        return completion(text, framing=framing)
    data = b"".join(sse(*words, framing=framing).pieces)
    marks = sorted(chance.choices(range(len(data)), k=chance.randint(1, 40)))
    pieces = [data[start:end] for start, end in zip([0, *marks], [*marks, len(data)], strict=True) if start < end]
    return sse(pieces=pieces, framing=framing, delay=chance.uniform(0, 0.01))


async def some(client: RawClient, count: int) -> bytes:
    """The next pieces of a body, at most `count`."""
    got = b""
    for _ in range(count):
        piece = await client.piece()
        if piece is None:
            break
        got += piece
    return got


async def one_stream(chance: random.Random, proxy: RunningProxy, session: str, expected: bytes) -> int:
    """A client that asks and stays, beside one that comes, leaves and comes back; how often it came."""
    path, came = f"/sessions/{session}/stream", 0
    async with RawClient(proxy.port) as stays:
        await stays.post(PATH, {"messages": [user(session)], "stream": True}, [("sessionId", session)])
        staying = asyncio.create_task(read(stays))
        await eventually(lambda: in_flight(proxy, session) or stays.ended)  # one in flight may be missed
        bodies: list[bytes] = []
        for last in (*[False] * chance.randint(1, 5), True):
            came += 1
            async with RawClient(proxy.port) as client:
                await client.request("GET", path)
                head = await client.head()
                body = await some(client, 10**6 if last else chance.randint(0, 12))
                bodies.append(body)
                assert head.status == 200 and expected.startswith(body)
                if last:
                    assert client.ended == "complete"
                elif chance.random() < 0.5:
                    client.abort()
        first, data = await staying
    assert data == expected == bodies[-1]
    assert first.header("content-type") == head.header("content-type")
    assert first.header("x-session-turn") == head.header("x-session-turn")
    assert stays.ended == "complete"
    return came


async def read(client: RawClient) -> tuple[Head, bytes]:
    return await client.head(), await client.body()


@pytest.mark.timeout(600)
async def test_a_client_that_resumes_at_any_point_reads_the_whole_answer(
    serve: Serve, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begun, crowd = time.monotonic(), asyncio.Semaphore(SIDE_BY_SIDE)
    replies = {f"s{n}": random_reply(random.Random(n)) for n in range(STREAMS)}
    store = CachedStore(await SQLiteStore.open(tmp_path / "sessions.db", TTL), TTL, 16 << 20)

    def script(request: Received) -> Reply:
        return replies[request.messages[-1]["content"]]

    async def in_the_crowd(n: int, proxy: RunningProxy) -> int:
        async with crowd:
            return await one_stream(random.Random(-n - 1), proxy, f"s{n}", b"".join(replies[f"s{n}"].pieces))

    async with ScriptedUpstream(script) as upstream:
        proxy = await serve(upstream.base_url, store=store)
        came = await asyncio.gather(*[in_the_crowd(n, proxy) for n in range(STREAMS)])
        assert len(upstream.requests) == STREAMS
    await store.close()
    with capsys.disabled():
        print(f"\nresume: {STREAMS} streams, {sum(came)} times come back, {time.monotonic() - begun:.0f} s")


# Before, during and after ------------------------------------------------------------------


async def test_a_client_that_resumes_before_the_head_waits_for_it(serve: Serve) -> None:
    go = asyncio.Event()

    async def script(request: Received) -> Reply:
        await go.wait()
        return sse("re ", "x")

    async with ScriptedUpstream(script) as upstream:
        proxy = await serve(upstream.base_url)
        first: Any = asyncio.create_task(ask(proxy.port, user("x"), stream=True))
        await eventually(lambda: upstream.requests)
        others = [asyncio.create_task(call(proxy.port, "GET", STREAM)) for _ in range(3)]
        await proxy.followed(4)
        go.set()
        asked = await first
        for head, body in await asyncio.gather(*others):
            assert (head.status, body) == (200, whole("x"))
            assert head.header("x-session-turn") == asked.answer.header("x-session-turn")
    assert (asked.answer.status, asked.data, asked.ended) == (200, whole("x"), "complete")


@pytest.mark.parametrize("what", ["an error of the upstream's", "too late", "stopped"])
async def test_every_follower_gets_the_error_of_the_first(serve: Serve, what: str) -> None:
    go = asyncio.Event()

    async def script(request: Received) -> Reply:
        await go.wait()
        return error(503, {"error": "busy"})

    async with ScriptedUpstream(script) as upstream:
        proxy = await serve(upstream.base_url, upstream={"response_timeout": "600ms"} if what == "too late" else {})
        first: Any = asyncio.create_task(ask(proxy.port, user("x"), stream=True))
        await eventually(lambda: upstream.requests)
        other = asyncio.create_task(call(proxy.port, "GET", STREAM))
        await proxy.followed(2)
        if what == "stopped":
            await call(proxy.port, "POST", "/sessions/s1/stop")
        elif what != "too late":
            go.set()
        head, body = await other
        asked = await first
        after, _ = await call(proxy.port, "GET", STREAM)
    assert head.status == asked.answer.status == {"too late": 504, "stopped": 409}.get(what, 503)
    assert body == asked.data
    assert after.status == 404


async def test_several_clients_follow_an_abandoned_turn_at_once(serve: Serve) -> None:
    held = Held(x=2)
    async with ScriptedUpstream(held) as upstream:
        proxy = await serve(upstream.base_url)
        await orphaned(held, proxy)
        tasks = [asyncio.create_task(call(proxy.port, "GET", STREAM)) for _ in range(8)]
        await proxy.followed(8)
        held.go["x"].set()
        bodies = [body for _, body in await asyncio.gather(*tasks)]
        assert len(upstream.requests) == 1
    assert bodies == [whole("x")] * 8


async def test_each_event_reaches_every_follower_before_the_next(serve: Serve) -> None:
    arrived = asyncio.Semaphore(0)

    async def gate(index: int) -> None:
        if index:
            for _ in range(3):
                await asyncio.wait_for(arrived.acquire(), 5)

    reply = sse("a", "b", "c", gate=gate)
    pieces = list(reply.pieces)

    async def listen(client: RawClient) -> None:
        await client.head()
        for piece in pieces:
            assert await client.piece() == piece
            arrived.release()
        assert await client.piece() is None and client.ended == "complete"

    async with ScriptedUpstream([reply]) as upstream:
        proxy = await serve(upstream.base_url)
        async with RawClient(proxy.port) as first, RawClient(proxy.port) as second, RawClient(proxy.port) as third:
            await first.post(PATH, {"messages": [user("x")], "stream": True}, [("sessionId", "s1")])
            await eventually(lambda: in_flight(proxy))
            for client in (second, third):
                await client.request("GET", STREAM)
            await asyncio.gather(*[listen(client) for client in (first, second, third)])


BIG = ["x" * 60000] * 40  # far more than a narrow connection and the bound between two listeners hold


@pytest.mark.parametrize("stalled", ["the first", "a second"])
async def test_a_stalled_follower_delays_nobody(serve: Serve, stalled: str) -> None:
    reply = sse(*BIG)
    expected = b"".join(reply.pieces)
    async with ScriptedUpstream([reply]) as upstream:
        proxy = await serve(upstream.base_url)
        async with narrow(proxy) as port, RawClient(port) as first, RawClient(port) as second:
            await first.post(PATH, {"messages": [user("x")], "stream": True}, [("sessionId", "s1")])
            await first.head()
            await asyncio.sleep(0.1)  # now the upstream is held up by the first, who reads nothing
            assert in_flight(proxy)
            await second.request("GET", STREAM)
            await second.head()
            slow, fast = (first, second) if stalled == "the first" else (second, first)
            async with asyncio.timeout(5):
                assert await fast.body() == expected and fast.ended == "complete"
            assert slow.ended is None
            async with asyncio.timeout(5):
                assert await slow.body() == expected and slow.ended == "complete"


async def test_a_follower_stalled_for_write_timeout_is_dropped(serve: Serve) -> None:
    reply = sse(*BIG)
    async with ScriptedUpstream([reply]) as upstream:
        proxy = await serve(upstream.base_url, limits={"write_timeout": "500ms"})
        async with narrow(proxy) as port, RawClient(port) as first, RawClient(proxy.port) as second:
            await first.post(PATH, {"messages": [user("x")], "stream": True}, [("sessionId", "s1")])
            await first.head()
            await second.request("GET", STREAM)
            assert (await second.head()).status == 200
            assert await second.body() == b"".join(reply.pieces)
            await asyncio.sleep(0.8)
            await first.body()
    assert (first.ended, second.ended) == ("reset", "complete")


async def test_the_upstream_is_read_at_the_pace_of_the_fastest_follower(serve: Serve) -> None:
    sent = 0

    async def gate(index: int) -> None:
        nonlocal sent
        sent = index

    reply = sse(*["x" * 60000] * 400, gate=gate)
    async with ScriptedUpstream([reply]) as upstream:
        proxy = await serve(upstream.base_url)
        async with narrow(proxy) as port, RawClient(port) as first, RawClient(port) as second:
            headers = [("sessionId", "s1"), ("x-session-on-disconnect", "cancel")]
            await first.post(PATH, {"messages": [user("x")], "stream": True}, headers)
            await first.head()
            await second.request("GET", STREAM)
            await second.head()
            await settled(lambda: sent)
            assert sent < 300  # of 24 MB


async def test_an_answer_too_long_to_be_kept_cannot_be_followed(serve: Serve) -> None:
    go = asyncio.Event()

    async def gate(index: int) -> None:
        if index == 2:
            await go.wait()

    reply = sse("x" * 3000, "y" * 3000, gate=gate)
    async with ScriptedUpstream([reply]) as upstream:
        proxy = await serve(upstream.base_url, limits={"recorded_reply": "4KiB"})
        async with RawClient(proxy.port) as first, RawClient(proxy.port) as second, RawClient(proxy.port) as late:
            await first.post(PATH, {"messages": [user("x")], "stream": True}, [("sessionId", "s1")])
            await eventually(lambda: in_flight(proxy))
            await second.request("GET", STREAM)
            assert (await second.head()).status == 200
            assert await some(second, 2) == b"".join(reply.pieces[:2])
            go.set()
            await second.body()
            await read(first)
            await eventually(lambda: not in_flight(proxy))
            await late.request("GET", STREAM)
            missing = await late.head()
    assert second.ended == first.ended == "reset"  # its end is never released, for nobody
    assert missing.status == 404


# After the end -------------------------------------------------------------------------------


@pytest.mark.parametrize("reply", [sse("re ", "x"), completion("re x"), sse("re ", "x", done=False, framing="close")])
async def test_the_last_answer_is_replayed_until_the_next_turn(serve: Serve, reply: Reply) -> None:
    reply.headers.append(("X-Request-Id", "r1"))
    async with ScriptedUpstream([reply, completion("second")]) as upstream:
        proxy = await serve(upstream.base_url)
        first: Any = await ask(proxy.port, user("x"))
        answers = [await call(proxy.port, "GET", STREAM) for _ in range(3)]
        await ask(proxy.port, user("y"))
        head, later = await call(proxy.port, "GET", STREAM)
        assert len(upstream.requests) == 2
    for again, body in answers:
        assert (again.status, body) == (200, first.data)
        assert again.header("content-type") == first.answer.header("content-type")
        assert again.header("x-session-turn") == "turn_1" and again.header("x-session-state") == "replayed"
    assert head.header("x-session-turn") == "turn_2" and b"second" in later


@pytest.mark.parametrize("cut", [False, True], ids=["complete", "cut"])
async def test_the_last_answer_survives_a_restart(serve: Serve, tmp_path: Path, cut: bool) -> None:
    store = await SQLiteStore.open(tmp_path / "sessions.db", TTL)
    reply = sse("re ", "x", done=not cut, end="rst" if cut else "clean", finish=None if cut else "stop")
    async with ScriptedUpstream([reply]) as upstream:
        proxy = await serve(upstream.base_url, store=store)
        first: Any = await ask(proxy.port, user("x"), stream=True)
        await store.close()
        reopened = await SQLiteStore.open(tmp_path / "sessions.db", TTL)
        proxy = await serve(upstream.base_url, store=reopened)
        async with RawClient(proxy.port) as client:
            await client.request("GET", STREAM)
            head, body = await read(client)
        await reopened.close()
    assert body == first.data == b"".join(reply.pieces)
    assert head.header("content-type") == first.answer.header("content-type")
    assert client.ended == first.ended == ("reset" if cut else "complete")


@pytest.mark.parametrize("when", ["in flight", "afterwards"])
async def test_an_interrupted_turn_replays_its_bytes_and_a_reset(serve: Serve, when: str) -> None:
    held = Held(x=2)
    async with ScriptedUpstream(held) as upstream:
        proxy = await serve(upstream.base_url)
        asked = await asking(held, proxy.port, "x")
        async with RawClient(proxy.port) as client:
            if when == "in flight":
                await client.request("GET", STREAM)
                await client.head()
            await call(proxy.port, "POST", "/sessions/s1/stop")
            if when == "afterwards":
                await client.request("GET", STREAM)
                await client.head()
            body = await client.body()
        await asked
    assert (body, client.ended) == (b"".join(sse("re ", "x").pieces[:2]), "reset")


async def test_bytes_after_the_terminator_are_forwarded_and_not_stored(serve: Serve) -> None:
    reply = sse("re ", "x")
    reply.pieces.append(event({"choices": [], "usage": {"cost": 1}}))
    async with ScriptedUpstream([reply]) as upstream:
        proxy = await serve(upstream.base_url)
        first: Any = await ask(proxy.port, user("x"), stream=True)
        _, again = await call(proxy.port, "GET", STREAM)
    assert first.data.startswith(again) and whole("x") == again


async def test_a_resume_while_the_next_turn_runs_follows_that_one(serve: Serve) -> None:
    held = Held(x=2)
    async with ScriptedUpstream(held) as upstream:
        proxy = await serve(upstream.base_url)
        await ask(proxy.port, user("1"), stream=True)
        asked = await asking(held, proxy.port, "x")
        listening = asyncio.create_task(call(proxy.port, "GET", STREAM))
        await proxy.followed(2)
        held.go["x"].set()
        head, body = await listening
        await asked
    assert (head.header("x-session-turn"), body) == ("turn_2", whole("x"))


async def test_a_resume_without_a_stored_answer_is_a_404(serve: Serve) -> None:
    async with ScriptedUpstream([error(500, {"error": "no"})]) as upstream:
        proxy = await serve(upstream.base_url)
        await ask(proxy.port, user("x"))
        head, body = await call(proxy.port, "GET", STREAM)
    assert (head.status, code(body)) == (404, "session_not_found")


async def test_a_slow_follower_that_keeps_reading_is_not_dropped(serve: Serve) -> None:
    reply = sse(*BIG)
    async with ScriptedUpstream([reply]) as upstream:
        proxy = await serve(upstream.base_url, limits={"write_timeout": "800ms"})
        first: Any = await ask(proxy.port, user("x"), stream=True)
        async with narrow(proxy) as port, RawClient(port) as slow:
            await slow.request("GET", STREAM)
            await slow.head()
            got, begun = b"", time.monotonic()
            while not slow.ended:
                got += await some(slow, 1)
                await asyncio.sleep(0.04)
    assert got == first.data and slow.ended == "complete"
    assert time.monotonic() - begun > 1.2  # the whole took it longer than it may take nothing


# Who has seen the end --------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("who", ["the first", "the other"])
async def test_an_end_that_one_follower_has_seen_is_delivered(serve: Serve, who: str, stream: bool) -> None:
    """An equal request behind it is a turn of its own; where nobody has seen the end it is a retry."""
    go = asyncio.Event()

    async def gate(index: int) -> None:
        if index == 1:
            await go.wait()

    data = (sse("a") if stream else completion("a", framing="chunked")).pieces
    pieces = [data[0][:20], data[0][20:], *data[1:]]
    headers = [("Content-Type", "text/event-stream" if stream else "application/json")]
    reply = Reply(headers=headers, pieces=pieces, gate=gate)
    async with ScriptedUpstream([reply, completion("b")]) as upstream:
        proxy = await serve(upstream.base_url)
        async with RawClient(proxy.port) as first, RawClient(proxy.port) as other:
            await first.post(PATH, {"model": "m", "messages": [user("continue")]}, [("sessionId", "s1")])
            await first.head()
            await other.request("GET", STREAM)
            await other.head()
            stays, leaves = (first, other) if who == "the first" else (other, first)
            leaves.abort()
            await proxy.followed(1)
            go.set()
            await stays.body()
            assert stays.ended == "complete"
        again: Any = await ask(proxy.port, user("continue"))
        assert len(upstream.requests) == 2
    assert again.answer.header("x-session-decision") == "append"


async def test_a_replayed_answer_counts_as_delivered(serve: Serve) -> None:
    held = Held(x=2)
    async with ScriptedUpstream(held) as upstream:
        proxy = await serve(upstream.base_url)
        await orphaned(held, proxy)
        held.go["x"].set()
        await eventually(lambda: not in_flight(proxy))
        await call(proxy.port, "GET", STREAM)
        again: Any = await ask(proxy.port, user("x"), stream=True)
        assert len(upstream.requests) == 2
    assert again.answer.header("x-session-decision") == "append"
