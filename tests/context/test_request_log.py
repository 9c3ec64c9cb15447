"""What is known of a request at its end: its ID, its moments, and what is counted of it."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import pytest

from proxy.errors import StoreUnavailable
from proxy.observe.log import LogHandler
from proxy.stores.memory import MemoryStore
from tests.support.fakes import (
    RawClient,
    Received,
    Reply,
    ScriptedUpstream,
    completion,
    error,
    eventually,
    raw_request,
    sse,
)
from tests.support.serving import RunningProxy, Serve
from tests.support.talk import ask, tell, user

NAME = "x-request-id"


class Logged:
    """A proxy that writes its log into a pipe."""

    def __init__(self, proxy: RunningProxy, level: str = "info") -> None:
        self._read, self._write = os.pipe()
        proxy.runtime.log = LogHandler(self._write, level, "json", journal=False)

    async def lines(self, count: int = 1) -> list[dict[str, Any]]:
        """The next lines, once there are so many."""
        said = b""
        while said.count(b"\n") < count:
            said += await asyncio.to_thread(os.read, self._read, 1 << 16)
        return [json.loads(line) for line in said.splitlines()]

    async def path(self) -> dict[str, Any]:
        [line] = await self.lines()
        return line


@pytest.mark.parametrize("given", [None, "mine-1", "two words"])
async def test_a_request_id_is_accepted_or_created_and_sent_both_ways(serve: Serve, given: str | None) -> None:
    sent = [("X-Request-ID", given)] if given else []
    async with ScriptedUpstream() as upstream:
        proxy = await serve(upstream.base_url)
        logged = Logged(proxy)
        answer = await ask(proxy.port, [user("1")], headers=sent)
        [request] = upstream.requests
    assert request.header(NAME) == (given or "req_1")
    id = given if given == "mine-1" else "req_1"
    assert answer.head.header(NAME) == id == (await logged.path())["request"]


async def test_the_upstreams_request_id_reaches_the_client(serve: Serve) -> None:
    async with ScriptedUpstream([completion("1", headers=[("X-Request-Id", "theirs")])]) as upstream:
        proxy = await serve(upstream.base_url)
        logged = Logged(proxy)
        answer = await ask(proxy.port, [user("1")])
    assert [value for name, value in answer.head.headers if name.lower() == NAME] == ["theirs"]
    assert (await logged.path())["request"] == "req_1"


async def test_a_pass_through_gains_no_request_id(serve: Serve) -> None:
    async with ScriptedUpstream([completion("1"), completion("2")]) as upstream:
        proxy = await serve(upstream.base_url)
        async with RawClient(proxy.port) as client:
            for sent in ([], [(NAME, "mine")]):
                await client.request("GET", "/v1/models", sent)
                assert (await client.head()).header(NAME) is None
                await client.body()
        assert [request.header(NAME) for request in upstream.requests] == [None, "mine"]


@pytest.mark.parametrize("path", ["/healthz", "/nowhere", "/sessions/none", "/v1/../x"])
async def test_the_proxys_own_answers_carry_the_request_id(serve: Serve, path: str) -> None:
    proxy = await serve("http://127.0.0.1:1/v1")
    async with RawClient(proxy.port) as client:
        await client.request("GET", path)
        assert (await client.head()).header(NAME) == "req_1"


async def test_the_log_line_of_a_recorded_turn_has_every_field(serve: Serve) -> None:
    usage = {"prompt_tokens": 7, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 4}}
    slow = sse("a", "b", usage=usage, delay=0.02)
    async with ScriptedUpstream([slow]) as upstream:
        proxy = await serve(upstream.base_url)
        logged = Logged(proxy)
        body = json.dumps({"model": "m", "messages": [user("1")], "stream": True}).encode()
        answer = await tell(proxy.port, body)
    line = await logged.path()
    assert line["upstream"] == f"127.0.0.1:{upstream.port}" and answer.whole
    for name, pattern in (("tenant", "[0-9a-f]{8}"), ("session", "[0-9a-f]{12}")):
        assert re.fullmatch(pattern, line[name])
    assert (line["method"], line["path"], line["status"]) == ("POST", "/v1/chat/completions", 200)
    assert (line["decision"], line["outcome"], line["turn"]) == ("append", "complete", "turn_1")
    assert (line["in"], line["out"]) == (len(body), len(answer.data))
    assert 0 < line["overhead_ms"] < 50 and line["overhead_ms"] + 80 < line["total_ms"]
    assert 0 < line["first_ms"] < line["total_ms"] and "queue_ms" not in line
    numbers = proxy.runtime.counters
    assert numbers.turns == {("append", "complete"): 1} and sum(numbers.commit.counts) == 1
    assert (numbers.prompt, numbers.cached, numbers.completion) == (7, 4, 3)
    assert numbers.requests == {("recorded", line["upstream"], 2): 1}
    assert sum(numbers.overhead["recorded"].counts) == sum(numbers.first["recorded"].counts) == 1


async def test_a_session_has_one_hash_in_the_log_for_each_tenant(serve: Serve) -> None:
    async with ScriptedUpstream() as upstream:
        proxy = await serve(upstream.base_url)
        logged = Logged(proxy)
        for session, key in (("a", "1"), ("a", "1"), ("b", "1"), ("a", "2")):
            await ask(proxy.port, [user("1")], session=session, headers=[("Authorization", key)])
    lines = await logged.lines(4)
    first, again, other, foreign = [(line["tenant"], line["session"]) for line in lines]
    assert first == again and first[0] == other[0] != foreign[0]
    assert len({first[1], other[1], foreign[1]}) == 3


async def test_queue_time_is_logged_and_not_part_of_overhead(serve: Serve) -> None:
    held = asyncio.Event()

    async def script(request: Received) -> Reply:
        if request.messages[-1] == user("1"):
            await held.wait()
        return completion("said")

    async with ScriptedUpstream(script) as upstream:
        proxy = await serve(upstream.base_url)
        logged = Logged(proxy)
        first = asyncio.create_task(ask(proxy.port, [user("1")]))
        await eventually(lambda: upstream.requests)
        second = asyncio.create_task(ask(proxy.port, [user("2")]))
        await eventually(lambda: proxy.runtime.registry.waiting)
        await asyncio.sleep(0.1)
        held.set()
        await asyncio.gather(first, second)
    lines = {line["turn"]: line for line in await logged.lines(2)}
    assert "queue_ms" not in lines["turn_1"]
    assert 90 < lines["turn_2"]["queue_ms"] <= lines["turn_2"]["total_ms"] and lines["turn_2"]["overhead_ms"] < 50
    assert sum(proxy.runtime.counters.queue.counts) == 1 and proxy.runtime.registry.waiting == 0


class Fails(MemoryStore):
    async def append(self, *_: Any, **__: Any) -> None:
        raise StoreUnavailable("The store is gone.")


@pytest.mark.parametrize(
    ("reply", "outcome", "status"),
    [
        (sse("a", end="rst"), "cut", 200),
        (error(429, {"error": {}}), "nothing", 429),
        (Reply(headers=[("Content-Type", "text/event-stream")], pieces=[b"data: {"]), "broken", 200),
    ],
)
async def test_the_log_line_names_the_outcome_of_a_turn(serve: Serve, reply: Reply, outcome: str, status: int) -> None:
    if outcome == "cut":
        reply.pieces = reply.pieces[:2]
    async with ScriptedUpstream([reply]) as upstream:
        proxy = await serve(upstream.base_url)
        logged = Logged(proxy)
        await ask(proxy.port, [user("1")], stream=True)
        line = await logged.path()
        await eventually(lambda: proxy.runtime.counters.turns)
    assert (line["outcome"], line["status"]) == (outcome, status)
    assert line.get("reset") == (None if outcome == "nothing" else "upstream") and "client" not in line
    assert line["level"] == ("warning" if outcome == "broken" else "info")
    assert proxy.runtime.counters.turns == {("append", outcome): 1}


async def test_unkept_and_failed_turns_are_warnings(serve: Serve) -> None:
    async with ScriptedUpstream() as upstream:
        proxy = await serve(upstream.base_url, store=Fails(1000))
        logged = Logged(proxy)
        await ask(proxy.port, [user("1")])
        line = await logged.path()
    assert (line["level"], line["outcome"]) == ("warning", "unkept")
    await ask(proxy.port, [user("1")])
    line = await logged.path()
    assert (line["level"], line["status"], line["error"]) == ("warning", 502, "upstream_unreachable")
    numbers = proxy.runtime.counters
    assert numbers.turns == {("append", "unkept"): 1, ("append", "failed"): 1}
    assert numbers.rejected["upstream_unreachable"] == 1


@pytest.mark.parametrize("body", [b"{", b"data: {}"])
async def test_a_pass_through_broken_by_the_upstream_is_not_logged_as_client_gone(serve: Serve, body: bytes) -> None:
    async with ScriptedUpstream([Reply(pieces=[body], end="rst")]) as upstream:
        proxy = await serve(upstream.base_url)
        logged = Logged(proxy)
        async with RawClient(proxy.port) as client:
            await client.request("GET", "/v1/models")
            await client.head()
            await client.body()
        line = await logged.path()
    assert line["reset"] == "upstream" and "client" not in line


@pytest.mark.parametrize("why", ["stop", "interrupt"])
async def test_the_log_line_names_who_ended_an_answer(serve: Serve, why: str) -> None:
    said = sse("well", end="hang")
    said.pieces = said.pieces[:2]
    async with ScriptedUpstream([said, completion("2")]) as upstream:
        proxy = await serve(upstream.base_url)
        logged = Logged(proxy)
        async with RawClient(proxy.port) as client:
            body = b'{"model":"m","messages":[{"role":"user","content":"1"}],"stream":true}'
            await client.request("POST", "/v1/chat/completions", [("sessionId", "s1")], body)
            assert (await client.head()).status == 200
            if why == "interrupt":
                await ask(proxy.port, [user("2")], headers=[("x-session-on-busy", "interrupt")])
            else:
                await raw_request(
                    proxy.port, b"POST /sessions/s1/stop HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
                )
            await client.body()
        lines = {line.get("turn"): line for line in await logged.lines(2)}
    assert lines["turn_1"]["reset"] == why and "client" not in lines["turn_1"]


async def test_an_upstream_5xx_is_a_warning(serve: Serve) -> None:
    async with ScriptedUpstream([error(500, {"error": "x"}), error(499, {"error": "x"})]) as upstream:
        proxy = await serve(upstream.base_url)
        logged = Logged(proxy)
        for level in ("warning", "info"):
            await ask(proxy.port, [user("1")])
            assert (await logged.path())["level"] == level


async def test_a_request_refused_by_a_full_queue_logs_no_queue_time(serve: Serve) -> None:
    async with ScriptedUpstream([completion("1", end="hang", pieces=[])]) as upstream:
        proxy = await serve(upstream.base_url, sessions={"queue_limit": 1})
        logged = Logged(proxy)

        def waits(number: int) -> bool:
            return proxy.runtime.registry.waiting == number and len(upstream.requests) == 1

        async with RawClient(proxy.port) as first, RawClient(proxy.port) as second:
            for number, client in enumerate((first, second)):
                body = b'{"model":"m","messages":[{"role":"user","content":"%d"}]}' % number
                await client.request("POST", "/v1/chat/completions", [("sessionId", "s1")], body)
                await eventually(partial(waits, number))
            refused = await ask(proxy.port, [user("3")])
            line = await logged.path()
            assert (refused.status, refused.error["code"]) == (429, "session_queue_full")
            assert "queue_ms" not in line and sum(proxy.runtime.counters.queue.counts) == 0


async def test_a_disconnect_is_logged_as_client_gone(serve: Serve) -> None:
    hangs = completion("1", end="hang", pieces=[])
    async with ScriptedUpstream([hangs]) as upstream:
        proxy = await serve(upstream.base_url)
        logged = Logged(proxy)
        async with RawClient(proxy.port) as client:
            await client.request("GET", "/v1/models")
            await eventually(lambda: upstream.requests)
        line = await logged.path()
    assert line["client"] == "gone" and line["path"] == "/v1/models"


@pytest.mark.parametrize(("level", "count"), [("debug", 1), ("info", 0)])
async def test_health_checks_are_logged_at_debug(serve: Serve, level: str, count: int) -> None:
    proxy = await serve("http://127.0.0.1:1/v1")
    logged = Logged(proxy, level)
    async with RawClient(proxy.port) as client:
        for path in ("/healthz", "/nowhere"):
            await client.request("GET", path)
            await client.head()
            await client.body()
    said = [line["path"] for line in await logged.lines(1 + count)]
    assert said == [*["/healthz"] * count, "/nowhere"]


async def test_logged_paths_hide_session_ids_and_queries(serve: Serve) -> None:
    proxy = await serve("http://127.0.0.1:1/v1")
    logged = Logged(proxy)
    async with RawClient(proxy.port) as client:
        for path in ("/sessions/canary/messages?after=canary", '/no"w=here?key=canary', "/x/sessions/canary"):
            await client.request("GET", path)
            await client.head()
            await client.body()
    lines = await logged.lines(3)
    assert [line["path"] for line in lines] == ["/sessions/*/messages", "/no%22w%3Dhere", "/x/sessions/*"]
    assert "session" in lines[0] and "canary" not in json.dumps(lines)


async def test_unknown_paths_models_and_sessions_add_no_counter(serve: Serve) -> None:
    async with ScriptedUpstream() as upstream:
        proxy = await serve(upstream.base_url)
        numbers = proxy.runtime.counters

        async def some(name: str) -> None:
            await ask(proxy.port, [user(name)], session=name, model=name, headers=[("Authorization", name)])
            async with RawClient(proxy.port) as client:
                for method, path in (("GET", f"/{name}"), ("PATCH", f"/v1/{name}"), ("GET", f"/sessions/{name}")):
                    await client.request(method, path, [(NAME, name)], b"{}" if "v1" in path else b"")
                    await client.head()
                    await client.body()

        def names() -> int:
            counted = (numbers.requests, numbers.turns, numbers.rejected)
            return sum([len(each) for each in (*counted, numbers.total, numbers.first, numbers.overhead)])

        await some("a")
        before = names()
        for number in range(20):
            await some(f"b{number}")
        assert names() == before and sum(numbers.requests.values()) == 84


@pytest.fixture(autouse=True)
async def level() -> AsyncIterator[None]:
    """What a log of these tests has set."""
    proxy = logging.getLogger("proxy")
    before = proxy.level
    yield
    proxy.setLevel(before)
