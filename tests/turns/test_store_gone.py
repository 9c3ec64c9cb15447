"""A store that cannot be used: nothing is asked or lost for it, and what needs no memory goes on."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from proxy.core.history import Session
from proxy.core.model import SessionKey
from proxy.errors import StoreUnavailable
from proxy.stores.memory import MemoryStore
from tests.support.fakes import RawClient, ScriptedUpstream, eventually
from tests.support.serving import Serve


class Fragile(MemoryStore):
    """A store that fails at what is named."""

    def __init__(self) -> None:
        super().__init__(10**9)
        self.fails_at = ""

    def _try(self, name: str) -> None:
        if self.fails_at == name:
            raise StoreUnavailable("The disk is full. Free some of it.")

    async def load(self, key: SessionKey, now: int, in_use: bool = False) -> Session:
        self._try("load")
        return await super().load(key, now, in_use)

    async def touch(self, key: SessionKey, now: int) -> None:
        self._try("touch")
        await super().touch(key, now)

    async def ping(self) -> None:
        self._try("ping")


class Slow(MemoryStore):
    """A store that takes as long as it is told to note the second sign of life."""

    def __init__(self) -> None:
        super().__init__(10**9)
        self.touched, self.noted = 0, asyncio.Event()

    async def touch(self, key: SessionKey, now: int) -> None:
        self.touched += 1
        if self.touched == 2:
            await self.noted.wait()
        await super().touch(key, now)


async def asked(port: int, text: str, *headers: tuple[str, str]) -> tuple[int, Any]:
    async with RawClient(port) as client:
        body = {"messages": [{"role": "user", "content": text}]}
        await client.post("/v1/chat/completions", body, list(headers))
        return (await client.head()).status, json.loads(await client.body())


@pytest.mark.parametrize("fails_at", ["load", "touch"])
async def test_a_failing_store_refuses_a_turn_before_the_upstream_is_asked(serve: Serve, fails_at: str) -> None:
    store, session = Fragile(), ("x-session-id", "s")
    async with ScriptedUpstream() as upstream:
        proxy = await serve(upstream.base_url, store=store)
        await asked(proxy.port, "1", session)
        store.fails_at = fails_at
        status, answer = await asked(proxy.port, "2", session)
        assert (status, answer["error"]["code"]) == (503, "store_unavailable") and len(upstream.requests) == 1
        assert (await asked(proxy.port, "without a session"))[0] == 200
        store.fails_at = ""
        assert (await asked(proxy.port, "3", session))[0] == 200
        assert [each["content"] for each in upstream.requests[-1].messages] == ["1", "answer 1", "3"]
        assert not proxy.runtime.registry.in_use and not proxy.runtime.registry.in_flight


async def test_readyz_fails_while_the_store_cannot_write(serve: Serve) -> None:
    store = Fragile()
    proxy = await serve("http://127.0.0.1:1/v1", store=store)
    for store.fails_at, wanted in (("ping", 503), ("", 200)):
        async with RawClient(proxy.port) as client:
            await client.request("GET", "/readyz")
            assert (await client.head()).status == wanted


async def test_a_stop_behind_a_fault_takes_the_fault_from_nobody(serve: Serve) -> None:
    store = Slow()
    proxy = await serve("http://127.0.0.1:1/v1", store=store)
    asking = asyncio.create_task(asked(proxy.port, "1", ("x-session-id", "s")))
    await eventually(lambda: store.touched == 2)
    (key,) = proxy.runtime.registry.in_use
    (turn,) = proxy.runtime.registry.turns(key)
    turn.stop()
    store.noted.set()
    status, answer = await asking
    assert (status, answer["error"]["code"]) == (502, "upstream_unreachable")
