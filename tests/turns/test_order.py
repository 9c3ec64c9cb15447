"""Many turns, one after another and side by side: each upstream request holds the turns before it."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import aiohttp
import pytest

from proxy.core.history import Session
from proxy.core.model import Answer, SessionKey
from proxy.stores.cache import CachedStore
from proxy.stores.memory import MemoryStore
from proxy.stores.sqlite.store import SQLiteStore
from tests.support.fakes import ScriptedUpstream
from tests.support.serving import Serve

TTL = 24 * 3600 * 1000
ROUNDS = 200 if os.environ.get("SOAK") else 20


async def turns(client: aiohttp.ClientSession, url: str, session: str, count: int) -> list[str]:
    """`count` turns without a pause; the messages that the session should hold then."""
    expected: list[str] = []
    for number in range(count):
        text = f"{session}:{number}"
        body = {"messages": [{"role": "user", "content": text}], "stream": number % 3 == 0}
        async with client.post(url, json=body, headers={"sessionId": session}) as answer:
            data = await answer.read()
        assert answer.status == 200 and data
        expected.append(text)
    return expected


def sent_by_session(upstream: ScriptedUpstream) -> dict[str, list[list[str]]]:
    """What the upstream received, by session: of each request the contents of its user messages."""
    found: dict[str, list[list[str]]] = {}
    for request in upstream.requests:
        asked = [message["content"] for message in request.messages if message["role"] == "user"]
        assert [message["role"] for message in request.messages] == ["user", "assistant"] * (len(asked) - 1) + ["user"]
        found.setdefault(asked[-1].partition(":")[0], []).append(asked)
    return found


@pytest.mark.parametrize(("sessions", "count"), [(1, 1000), (200, 5)], ids=["one-session", "side-by-side"])
async def test_each_request_contains_exactly_the_earlier_turns(
    serve: Serve, tmp_path: Path, sessions: int, count: int
) -> None:
    store = CachedStore(await SQLiteStore.open(tmp_path / "sessions.db", TTL), TTL, 16 << 20)
    async with (
        ScriptedUpstream() as upstream,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=32)) as client,
    ):
        proxy = await serve(upstream.base_url, store=store)
        work = [turns(client, f"{proxy.url}/v1/chat/completions", f"s{n}", count) for n in range(sessions)]
        expected = await asyncio.gather(*work)
        received = sent_by_session(upstream)
    for number, texts in enumerate(expected):
        assert received[f"s{number}"] == [texts[: n + 1] for n in range(count)]
    await store.close()


@pytest.mark.parametrize(
    ("rounds", "sessions", "count"), [(ROUNDS, 1, 64), (1, 200, 8)], ids=["one-session", "side-by-side"]
)
async def test_requests_at_once_are_a_serial_order_of_turns(
    serve: Serve, tmp_path: Path, rounds: int, sessions: int, count: int
) -> None:
    store = CachedStore(await SQLiteStore.open(tmp_path / "sessions.db", TTL), TTL, 16 << 20)
    async with (
        ScriptedUpstream() as upstream,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as client,
    ):
        proxy = await serve(upstream.base_url, store=store, sessions={"queue_limit": count})
        for number in range(rounds):
            names = [f"r{number}s{n}" for n in range(sessions)]
            upstream.requests.clear()
            await asyncio.gather(*[one(client, proxy.url, name, n) for n in range(count) for name in names])
            received = sent_by_session(upstream)
            for name in names:
                order = received[name][-1]
                assert received[name] == [order[: n + 1] for n in range(count)]
                assert sorted(order) == sorted([f"{name}:{n}" for n in range(count)])
                assert await kept(client, proxy.url, name, count) == order
    assert not proxy.runtime.registry.in_use
    await store.close()


async def one(client: aiohttp.ClientSession, url: str, session: str, number: int, retry: int = 0) -> None:
    """One turn, whose answer is read to its end."""
    body = {"messages": [{"role": "user", "content": f"{session}:{number}"}], "stream": number % 3 == 0}
    sent = {"sessionId": session, "x-stainless-retry-count": str(retry)}
    async with client.post(f"{url}/v1/chat/completions", json=body, headers=sent) as answer:
        assert answer.status == 200 and await answer.read()


async def kept(client: aiohttp.ClientSession, url: str, session: str, turns: int) -> list[str]:
    """What the session holds of what it was asked."""
    async with client.get(f"{url}/sessions/{session}/messages?limit={2 * turns + 1}") as answer:
        page = await answer.json()
    assert [entry["message"]["role"] for entry in page["data"]] == ["user", "assistant"] * turns
    return [entry["message"]["content"] for entry in page["data"][::2]]


class SlowReads(MemoryStore):
    """A store that tells what it read when the test says so."""

    def __init__(self) -> None:
        super().__init__(TTL)
        self.slow = False
        self.read: asyncio.Queue[asyncio.Event] = asyncio.Queue()

    async def load(self, key: SessionKey, now: int, in_use: bool = False) -> Session:
        session = await super().load(key, now, in_use)
        if self.slow:
            await self._told()
        return session

    async def answer(self, key: SessionKey, turn: str) -> Answer | None:
        if self.slow:
            await self._told()
        return await super().answer(key, turn)

    async def _told(self) -> None:
        told = asyncio.Event()
        self.read.put_nowait(told)
        await told.wait()


@pytest.mark.parametrize("memory", [16 << 20, 0])
async def test_turns_that_run_while_a_request_loads_its_session_come_before_it(serve: Serve, memory: int) -> None:
    store = SlowReads()
    async with ScriptedUpstream() as upstream, aiohttp.ClientSession() as client:
        proxy = await serve(upstream.base_url, store=CachedStore(store, TTL, memory))
        store.slow = True
        late = asyncio.create_task(one(client, proxy.url, "s", 9))
        reading = await store.read.get()
        store.slow = False
        for earlier in range(3):
            await one(client, proxy.url, "s", earlier)
        reading.set()
        await late
        assert sent_by_session(upstream)["s"][-1] == ["s:0", "s:1", "s:2", "s:9"]
        assert await kept(client, proxy.url, "s", 4) == ["s:0", "s:1", "s:2", "s:9"]


async def test_a_turn_committed_while_a_retry_loads_its_answer_stays_in_the_history(serve: Serve) -> None:
    store = SlowReads()
    async with ScriptedUpstream() as upstream, aiohttp.ClientSession() as client:
        await one(client, (await serve(upstream.base_url, store=store)).url, "s", 0)
        proxy = await serve(upstream.base_url, store=CachedStore(store, TTL, 16 << 20))  # knows of no delivery
        proxy.runtime.turn_id()  # the other proxy's
        store.slow = True
        late = asyncio.create_task(one(client, proxy.url, "s", 0, retry=1))
        (await store.read.get()).set()
        looking = await store.read.get()  # for the answer
        store.slow = False
        await one(client, proxy.url, "s", 1)
        looking.set()
        await late
        assert await kept(client, proxy.url, "s", 3) == ["s:0", "s:1", "s:0"]
