"""The admin listener where the store fails, and what a scrape says then."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from proxy.config.model import Config
from proxy.context.runtime import Runtime
from proxy.errors import StoreUnavailable
from proxy.observe import prometheus as metrics
from proxy.observe.counters import Counters
from proxy.server import admin
from proxy.stores.base import StoreStats
from proxy.stores.memory import MemoryStore
from tests.support.fakes import RawClient
from tests.support.serving import Serve


class Away(MemoryStore):
    async def stats(self, now: int) -> StoreStats:
        raise StoreUnavailable("The store cannot be used.")


async def scraped(runtime: Runtime, *tokens: str) -> list[tuple[int, bytes]]:
    rendered = metrics.Metrics(runtime.counters)

    def render(runtime: Runtime, store: StoreStats | None) -> tuple[bytes, str]:
        return rendered.render(metrics.Present(1, 2, 3, True, store)), metrics.CONTENT_TYPE

    runner = admin.build_runner(runtime, render)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    answers = []
    async with RawClient(runner.addresses[0][1]) as client:
        for token in tokens:
            change(runtime, token)
            await client.request("GET", "/metrics", [("Authorization", "Bearer first")])
            answers.append(((await client.head()).status, await client.body()))
    await runner.cleanup()
    return answers


def change(runtime: Runtime, token: str) -> None:
    """As a reload does."""
    sections: dict[str, Any] = {"admin": {"listen": "127.0.0.1:1", "token": token}}
    runtime.config = Config.model_validate(sections)


async def test_a_scrape_with_a_failing_store_shows_the_other_metrics(serve: Serve) -> None:
    proxy = await serve("http://127.0.0.1:1/v1", store=Away(1000))
    [(status, text)] = await scraped(proxy.runtime, "first")
    assert status == 200 and b"session_proxy_store_up 0.0" in text and b"session_proxy_sessions " not in text
    for said in (b"in_flight 1.0", b"waiting 2.0", b"draining 1.0"):
        assert b"session_proxy_" + said in text


async def test_a_reload_changes_the_admin_token(serve: Serve) -> None:
    proxy = await serve("http://127.0.0.1:1/v1")
    answers = await scraped(proxy.runtime, "first", "second", "first")
    assert [status for status, _ in answers] == [200, 401, 200]


def test_a_histogram_counts_up_to_each_bound() -> None:
    numbers = Counters()
    for seconds in (0.0005, 0.0004, 0.2, 60.0):
        numbers.commit.add(seconds)
    text = metrics.Metrics(numbers).render(metrics.Present(0, 0, 0, False, None)).decode()
    buckets = [line.rpartition(" ") for line in text.splitlines() if line.startswith("session_proxy_commit_seconds_b")]
    found = {name.split('"')[1]: float(count) for name, _, count in buckets}
    assert (found["0.00025"], found["0.0005"], found["0.1"], found["0.25"], found["+Inf"]) == (0, 2, 2, 3, 4)
    assert "session_proxy_commit_seconds_count 4.0" in text and "session_proxy_commit_seconds_sum 60.2009" in text
