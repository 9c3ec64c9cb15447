"""Clients that note which turns they saw end, to be held against what is kept after a disaster.

Knows nothing of how the disaster comes, nor of how the proxy stores: what is kept is what the
upstream receives with a session's next request.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.support.fakes import RawClient, Received, Reply, ScriptedUpstream, completion, sse


def script(request: Received) -> Reply:
    """An answer that says which turn it answers, framed in one way after another."""
    text = request.messages[-1]["content"]
    if request.json.get("stream"):
        return sse("re ", text)
    return completion("re " + text, framing="chunked" if text.endswith("2") else "length")


@dataclass
class Client:
    """One at work in a session of its own: request after request, until the proxy is gone or refuses."""

    session: str
    sent: list[str] = field(default_factory=list)
    acknowledged: list[str] = field(default_factory=list)
    began: asyncio.Event = field(default_factory=asyncio.Event)

    async def work(self, port: int) -> None:
        """Turn after turn on one connection; returns at the first that does not end well."""
        try:
            async with RawClient(port) as client:
                while True:
                    await self._turn(client)
        except ConnectionError:
            pass

    async def remembered(self, port: int, upstream: ScriptedUpstream) -> list[str]:
        """What the user said, as the upstream receives it with one turn more; that one is the last."""
        async with RawClient(port) as client:
            await self._turn(client)
        *history, latest = upstream.requests[-1].messages
        return [*said(history), latest["content"]]

    def lost(self, kept: list[str]) -> set[str]:
        """The acknowledged turns that are not kept; what is must be what was sent, in order, nothing twice."""
        assert kept == [text for text in self.sent if text in set(kept)]
        assert len(kept) <= len(self.acknowledged) + 1  # the one in flight may be kept or not
        return set(self.acknowledged) - set(kept)

    async def _turn(self, client: RawClient) -> None:
        """ConnectionError where the turn does not end well."""
        n = len(self.sent)
        self.sent.append(text := f"{self.session} turn {n}")
        body = {"model": "m", "stream": n % 2 == 0, "messages": [{"role": "user", "content": text}]}
        await client.post("/v1/chat/completions", body, [("sessionId", self.session)])
        self.began.set()
        head = await client.head()
        answer = await client.body()
        if head.status == 503:  # the store is gone, and the proxy knows it
            raise ConnectionError
        assert head.status == 200, f"{head.status} {answer!r}"
        # `[DONE]` alone is the promise already, whatever becomes of the connection behind it
        if b"data: [DONE]" in answer if body["stream"] else client.ended == "complete":
            self.acknowledged.append(text)
        if client.ended != "complete":
            raise ConnectionError


def said(messages: list[dict[str, Any]]) -> list[str]:
    """The user's texts of a history in which each is followed by the answer to it."""
    asked, answers = messages[::2], messages[1::2]
    assert [m["role"] for m in messages] == ["user", "assistant"] * len(asked)
    assert [m["content"] for m in answers] == ["re " + m["content"] for m in asked]
    return [m["content"] for m in asked]


@asynccontextmanager
async def at_work(clients: Sequence[Client], port: int, moment: float) -> AsyncIterator[None]:
    """The block is the disaster: it begins `moment` seconds after all clients have, and each must notice it."""
    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        tasks = [group.create_task(client.work(port)) for client in clients]
        for client in clients:
            await client.began.wait()
        await asyncio.sleep(moment)
        assert not any(task.done() for task in tasks), "a client ended before the disaster"
        yield


async def lost(clients: Sequence[Client], port: int, upstream: ScriptedUpstream) -> set[str]:
    """The acknowledged turns of all sessions that are not kept."""
    gone: set[str] = set()
    for client in clients:
        gone |= client.lost(await client.remembered(port, upstream))
    return gone
