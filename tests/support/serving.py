"""The real application on a real socket, put together as the daemon does."""

from __future__ import annotations

import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import pytest
from aiohttp import web

from proxy.config.model import Config
from proxy.context.runtime import Runtime
from proxy.server.app import build_app, build_runner
from proxy.stores.base import Store
from proxy.stores.memory import MemoryStore
from proxy.upstream.client import Client
from tests.support.fakes import eventually

Serve = Callable[..., Awaitable["RunningProxy"]]


@dataclass
class RunningProxy:
    port: int
    runtime: Runtime

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def in_line(self, count: int = 1) -> None:
        """Until so many requests wait in the queues of their sessions."""
        await eventually(lambda: self.runtime.registry.waiting == count)

    async def followed(self, count: int) -> None:
        """Until so many clients read what is kept of turns in flight: all that are there, once a second one is."""
        registry = self.runtime.registry

        def there() -> int:
            turns = [turn for key in registry.in_use for turn in registry.turns(key)]
            return sum([not client.left for turn in turns for client in turn.broadcast._followers])

        await eventually(lambda: there() == count)

    async def abandoned(self) -> None:
        """Until nobody listens to any turn in flight."""
        registry = self.runtime.registry
        await eventually(
            lambda: all([turn.broadcast.abandoned for key in registry.in_use for turn in registry.turns(key)])
        )


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """`await serve(base_url, store=…, upstream={…}, more=[…], limits={…}, …)`: a proxy that ends with the test."""
    async with AsyncExitStack() as stack:

        async def start(
            base_url: str,
            *,
            store: Store | None = None,
            upstream: dict[str, Any] | None = None,
            more: Sequence[dict[str, Any]] = (),
            **sections: Any,
        ) -> RunningProxy:
            upstreams = [{"base_url": base_url, **(upstream or {})}, *more]
            config = Config.model_validate({"upstreams": upstreams, **sections})
            names = itertools.count(1)
            runtime = Runtime(
                config,
                store or MemoryStore(24 * 3600 * 1000),
                Client(),
                b"s" * 32,
                lambda: time.time_ns() // 1_000_000,
                lambda: f"turn_{next(names)}",
            )
            runner = build_runner(build_app(runtime), config)
            await runner.setup()
            stack.push_async_callback(runtime.client.close)
            stack.push_async_callback(runner.cleanup)
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            return RunningProxy(runner.addresses[0][1], runtime)

        yield start
