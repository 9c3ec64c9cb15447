"""A client that tries again, an upstream that is held, and a proxy that restarts."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from proxy.stores.cache import CachedStore
from proxy.stores.sqlite.store import SQLiteStore
from tests.support.fakes import Ended, Head, RawClient, Reply, completion, eventually, sse
from tests.support.serving import RunningProxy, Serve

TTL = 24 * 3600 * 1000
CHAT = "/v1/chat/completions"
COUNTED: dict[str, Any] = {"x-stainless-retry-count": "1"}
both = pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])


@dataclass(frozen=True)
class Got:
    """An answer as a client got it."""

    head: Head
    body: bytes
    ended: Ended | None

    def __getitem__(self, name: str) -> str | None:
        return self.head.header(name)

    @property
    def told(self) -> tuple[int, str | None, bytes, Ended | None]:
        """What a client goes by."""
        return self.head.status, self["content-type"], self.body, self.ended


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


async def send(client: RawClient, *asked: Any, stream: bool = False, session: str = "s", **headers: str) -> None:
    messages = [user(one) if isinstance(one, str) else one for one in asked]
    pairs = [("sessionId", session), *((name.replace("_", "-"), value) for name, value in headers.items())]
    await client.post(CHAT, {"model": "m", "messages": messages, "stream": stream}, pairs)


async def received(client: RawClient) -> Got:
    head = await client.head()
    body = await client.body()
    return Got(head, body, client.ended)


async def ask(port: int, *asked: Any, stream: bool = False, session: str = "s", **headers: str) -> Got:
    """Send one chat request of `asked`, texts or messages, and read its answer to the end."""
    async with RawClient(port) as client:
        await send(client, *asked, stream=stream, session=session, **headers)
        return await received(client)


def answer(text: str, stream: bool, **more: Any) -> Reply:
    return sse(text[:2], text[2:], **more) if stream else completion(text, **more)


class Gate:
    """Holds a reply back before its piece `at` until it is opened."""

    def __init__(self, at: int = 0) -> None:
        self.at, self.reached, self._opened = at, asyncio.Event(), asyncio.Event()

    def __call__(self, reply: Reply) -> Reply:
        reply.gate = self._wait
        return reply

    async def _wait(self, index: int) -> None:
        if index >= self.at:
            self.reached.set()
            await self._opened.wait()

    def open(self) -> None:
        self._opened.set()


async def left(proxy: RunningProxy, client: RawClient) -> None:
    """Leave, and return once the proxy has noticed."""
    client.abort()
    turns = [turn for key in proxy.runtime.registry.in_use for turn in proxy.runtime.registry.turns(key)]
    await eventually(lambda: all(turn.broadcast.abandoned for turn in turns))


async def arrival() -> None:
    """Long enough for a request to reach its turn or its place: all run on this loop, which may be starved."""
    for _ in range(25):
        await asyncio.sleep(0.002)


async def idle(proxy: RunningProxy) -> None:
    await eventually(lambda: not proxy.runtime.registry.in_use and not proxy.runtime.registry.in_flight)


Restart = Callable[[], Any]


@asynccontextmanager
async def on_disk(serve: Serve, folder: Path, base_url: str) -> AsyncIterator[tuple[RunningProxy, Restart]]:
    """A proxy whose sessions lie in a file, and how to start another one that goes on with them."""
    names = itertools.count(1)
    stores: list[CachedStore] = []

    async def start() -> RunningProxy:
        for store in stores[-1:]:
            await store.close()
        stores.append(CachedStore(await SQLiteStore.open(folder / "sessions.db", TTL), TTL, 1 << 20))
        proxy = await serve(base_url, store=stores[-1])
        proxy.runtime.turn_id = lambda: f"turn_{next(names)}"
        return proxy

    try:
        yield await start(), start
    finally:
        await stores[-1].close()


async def undelivered(proxy: RunningProxy, gate: Gate, *asked: str, stream: bool, **headers: str) -> None:
    """A turn that is recorded whole though its client left before the end."""
    async with RawClient(proxy.port) as client:
        await send(client, *asked, stream=stream, **headers)
        await gate.reached.wait()
        await left(proxy, client)
    gate.open()
    await idle(proxy)


@dataclass
class Torn(Reply):
    """A reply of which these bytes come, and then its end."""

    raw: bytes = b""

    def head(self) -> bytes:
        return self.raw
