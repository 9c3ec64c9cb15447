"""The official SDK with its own retries: whatever dies on the way, no turn is there twice."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from tests.support.fakes import Received, Reply, ScriptedUpstream, completion, error, eventually, sse
from tests.support.process import Proxy

DEATHS = 100 if os.environ.get("SOAK") else 10
SIDE_BY_SIDE = 25  # sessions; the SDK waits about half a second before it tries again
UNCOUNTED = {"x-stainless-retry-count": "0"}  # the SDK leaves a header alone that its user has set
both = pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])


@dataclass
class Torn(Reply):
    """The first `size` bytes of another reply, and then its end."""

    whole: Reply | None = None
    size: int = 0

    def head(self) -> bytes:
        assert self.whole
        return bytes_of(self.whole)[: self.size]


def bytes_of(reply: Reply) -> bytes:
    """All that an upstream writes for a reply."""
    if reply.framing == "length":
        return reply.head() + b"".join(reply.pieces)
    return reply.head() + b"".join([b"%x\r\n%b\r\n" % (len(p), p) for p in reply.pieces]) + b"0\r\n\r\n"


def answer(text: str, stream: bool) -> Reply:
    said = f"re {text}, \u00fcber und \U0001f600"
    return sse(*said.partition(" ")) if stream else completion(said)


def client_of(
    proxy: Proxy, session: str, headers: dict[str, str] | None = None, timeout: float = 20.0
) -> openai.AsyncOpenAI:
    named = {"sessionId": session, **(headers or {})}
    return openai.AsyncOpenAI(base_url=proxy.base_url, api_key="k", default_headers=named, timeout=timeout)


async def said(client: openai.AsyncOpenAI, text: str, stream: bool) -> str:
    """One answer to a text, through the SDK."""
    asked: Any = {"model": "m", "messages": [{"role": "user", "content": text}], "stream": stream}
    answered: Any = await client.chat.completions.create(**asked)
    if not stream:
        return str(answered.choices[0].message.content)
    parts: AsyncIterator[Any] = answered
    return "".join([chunk.choices[0].delta.content or "" async for chunk in parts if chunk.choices])


async def insists(client: openai.AsyncOpenAI, text: str, stream: bool) -> str:
    """The same by a program that asks again where the SDK gives up, as it does in a stream that has begun."""
    for _ in range(5):
        try:
            return await said(client, text, stream)
        except (openai.APIError, httpx2.TransportError):
            pass
    raise AssertionError(f"no answer to {text!r}")


class Mortal:
    """An upstream that dies in its first answer to "death K": after K hundredths of the answer's bytes."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()

    def __call__(self, request: Received) -> Reply:
        text = request.messages[-1]["content"]
        whole = answer(text, request.json.get("stream") is True)
        self.asked[text] += 1
        if not text.startswith("death") or self.asked[text] > 1:
            return whole
        k = int(text.split()[1])
        size = (len(bytes_of(whole)) - 1) * k // 99
        return Torn(end="fin" if k % 2 else "rst", whole=whole, size=size)


async def one_death(proxy: Proxy, k: int, stream: bool, headers: dict[str, str]) -> None:
    """Three turns, the second of which dies after `k` hundredths."""
    async with client_of(proxy, f"death {k}", headers) as client:
        for text in (f"before {k}", f"death {k}", f"after {k}"):
            assert (await insists(client, text, stream)).startswith(f"re {text}, ")


@both
@pytest.mark.parametrize("headers", [{}, UNCOUNTED], ids=["counted", "uncounted"])
async def test_an_sdk_retry_after_a_broken_answer_stores_one_turn(
    tmp_path: Path, headers: dict[str, str], stream: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    begun, mortal, slots = time.monotonic(), Mortal(), asyncio.Semaphore(SIDE_BY_SIDE)
    deaths = [n * 99 // (DEATHS - 1) for n in range(DEATHS)]

    async def at(k: int) -> None:
        async with slots:
            await one_death(proxy, k, stream, headers)

    async with ScriptedUpstream(mortal) as upstream, Proxy(upstream.base_url, tmp_path) as proxy:
        async with asyncio.timeout(240), asyncio.TaskGroup() as group:
            for k in deaths:
                group.create_task(at(k))
        last = {request.messages[-1]["content"]: request.messages for request in upstream.requests}
        for k in deaths:
            history = [message["content"].partition(",")[0] for message in last[f"after {k}"]]
            texts = [f"before {k}", f"death {k}"]
            assert history == [part for text in texts for part in (text, f"re {text}")] + [f"after {k}"]
        assert "Traceback" not in proxy.log
    again = sum(mortal.asked[f"death {k}"] > 1 for k in deaths)
    with capsys.disabled():
        print(f"\n{len(deaths)} deaths, {again} asked again, 0 turns twice, {time.monotonic() - begun:.0f} s")
    assert again > len(deaths) // 2  # else they came too late to say anything


@both
async def test_continue_sent_twice_around_a_429_is_two_turns(tmp_path: Path, stream: bool) -> None:
    refused = error(429, {"error": {"message": "slow down"}}, headers=[("retry-after-ms", "20")])
    script = [answer("one", stream), refused, answer("two", stream), completion("x")]
    async with (
        ScriptedUpstream(script) as upstream,
        Proxy(upstream.base_url, tmp_path) as proxy,
        client_of(proxy, "s") as client,
    ):
        one, two = await said(client, "continue", stream), await said(client, "continue", stream)
        assert one.startswith("re one") and two.startswith("re two")
        await said(client, "next", False)
        assert [request.header("x-stainless-retry-count") for request in upstream.requests] == ["0", "0", "1", "0"]
        history = [message["content"] for message in upstream.requests[3].messages]
        assert history == ["continue", one, "continue", two, "next"]


@both
async def test_a_retry_attaches_to_the_running_first_try(tmp_path: Path, stream: bool) -> None:
    """The SDK loses patience after a second and tries again; the upstream needs longer."""
    release = asyncio.Event()

    async def script(request: Received) -> Reply:
        await release.wait()
        return answer("slow", request.json["stream"])

    async with (
        ScriptedUpstream(script) as upstream,
        Proxy(upstream.base_url, tmp_path) as proxy,
        client_of(proxy, "s", timeout=1.0) as client,
    ):
        asking = asyncio.create_task(said(client, "hi", stream))
        async with asyncio.timeout(10):
            await eventually(lambda: upstream.requests)
            await asyncio.sleep(1.9)
            release.set()
            text = await asking
        assert text.startswith("re slow") and len(upstream.requests) == 1
        await said(client, "next", False)
        assert [message["content"] for message in upstream.requests[1].messages] == ["hi", text, "next"]


async def test_one_idempotency_key_is_one_turn_for_two_calls(tmp_path: Path) -> None:
    async with (
        ScriptedUpstream() as upstream,
        Proxy(upstream.base_url, tmp_path) as proxy,
        client_of(proxy, "s") as client,
    ):
        asked: Any = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
        keyed = {"Idempotency-Key": "order 66"}
        one = await client.chat.completions.with_raw_response.create(**asked, extra_headers=keyed)
        await proxy.stop()
        await proxy.start()
        client.base_url = proxy.base_url
        two = await client.chat.completions.with_raw_response.create(**asked, extra_headers=keyed)
        assert one.content == two.content and two.headers["x-session-state"] == "replayed"
        with pytest.raises(openai.UnprocessableEntityError) as reused:
            await client.chat.completions.create(model="m", messages=[], extra_headers=keyed)
        assert reused.value.code == "idempotency_key_reused" and len(upstream.requests) == 1
