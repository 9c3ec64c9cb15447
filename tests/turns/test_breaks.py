"""What was cut never looks whole: as users run it, behind nginx, and when we are stopped ourselves."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.acceptance.test_nginx import Nginx, nginx
from tests.support.fakes import RawClient, Reply, ScriptedUpstream, completion, sse
from tests.support.process import Proxy
from tests.support.serving import Serve

__all__ = ["nginx"]

INTERRUPTED = {
    "FIN inside a chunked body": Reply(pieces=[b"a", b"b"], end="fin", delay=0.02),
    "reset": Reply(pieces=[b"a", b"b"], end="rst", delay=0.02),
    "short of its length": Reply(pieces=[b"a", b"b"], end="fin", framing="length", delay=0.02),
    "silence": Reply(pieces=[b"a", b"b"], end="hang"),
}
MESSAGES = {"messages": [{"role": "user", "content": "x"}], "stream": True}
IDLE = {"idle_timeout": "200ms"}


async def ended(port: int, session: str | None = None, version: str = "1.1") -> tuple[int, str | None]:
    async with RawClient(port) as client:
        headers = [("x-session-id", session)] if session else []
        await client.post("/v1/chat/completions", MESSAGES, headers, version=version)
        status = (await client.head()).status
        await client.body()
    return status, client.ended


@pytest.mark.parametrize("reply", INTERRUPTED.values(), ids=list(INTERRUPTED))
async def test_a_broken_pass_through_is_an_error_behind_nginx(serve: Serve, nginx: Nginx, reply: Reply) -> None:
    async with ScriptedUpstream([reply, completion("fine")]) as upstream:
        proxy = await serve(upstream.base_url, upstream=IDLE)
        await nginx.start(proxy.port)
        status, end = await ended(nginx.port)
        assert status >= 500 or end in ("eof", "reset")
        assert await ended(nginx.port) == (200, "complete")


async def test_a_broken_answer_resets_an_http_1_0_client(tmp_path: Path) -> None:
    """uvloop has sockets and transports of its own."""
    cut = [INTERRUPTED["FIN inside a chunked body"], INTERRUPTED["reset"], INTERRUPTED["short of its length"]]
    replies = [*cut, sse("a", "b", done=False, end="fin", delay=0.02), completion("fine")]
    async with ScriptedUpstream(replies) as upstream, Proxy(upstream.base_url, tmp_path) as proxy:
        for _ in cut:
            assert await ended(proxy.port, version="1.0") == (200, "reset")
        assert await ended(proxy.port, "s", version="1.0") == (200, "reset")
        assert await ended(proxy.port, "s", version="1.0") == (200, "complete")
        assert upstream.requests[-1].messages == MESSAGES["messages"]


async def test_a_stopped_answer_ends_in_a_reset(tmp_path: Path) -> None:
    settings = {"shutdown": {"drain": "100ms"}}
    async with (
        ScriptedUpstream([Reply(pieces=[b"a"], end="hang")]) as upstream,
        Proxy(upstream.base_url, tmp_path, settings) as proxy,
        RawClient(proxy.port) as client,
    ):
        await client.request("GET", "/v1/models", version="1.0")
        await client.head()
        assert await client.piece() == b"a"
        stop = asyncio.create_task(proxy.stop())
        await client.body()
        await stop
    assert client.ended == "reset"
