"""Requests with an idempotency key: asked once, answered alike, whatever comes in between."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.support.fakes import Reply, ScriptedUpstream, completion, error, sse
from tests.support.serving import Serve
from tests.support.tries import (
    Gate,
    answer,
    arrival,
    ask,
    assistant,
    both,
    on_disk,
    undelivered,
    user,
)


@both
async def test_a_key_that_comes_again_gets_the_same_answer(serve: Serve, stream: bool) -> None:
    reply = answer("Hello", stream, status=203)
    async with ScriptedUpstream([reply, completion("x")]) as upstream:
        proxy = await serve(upstream.base_url)
        first = await ask(proxy.port, "hi", stream=stream, idempotency_key="k")
        assert first.told == (203, reply.headers[0][1], b"".join(reply.pieces), "complete")
        for _ in range(3):
            again = await ask(proxy.port, "hi", stream=stream, idempotency_key="k")
            assert again.told == first.told
            assert (again["x-session-state"], again["x-session-turn"]) == ("replayed", first["x-session-turn"])
        await ask(proxy.port, "next")
        assert [len(request.messages) for request in upstream.requests] == [1, 3]
        assert all(request.header("idempotency-key") is None for request in upstream.requests)


@pytest.mark.parametrize("at", range(1, len(b"data: [DONE]\n\n")))
async def test_an_end_in_two_pieces_is_replayed_as_it_came(serve: Serve, at: int) -> None:
    reply = sse("Hello")
    end = reply.pieces.pop()
    reply.pieces += [end[:at], end[at:]]
    reply.delay = 0.01
    async with ScriptedUpstream([reply]) as upstream:
        proxy = await serve(upstream.base_url)
        first = await ask(proxy.port, "hi", stream=True, idempotency_key="k")
        again = await ask(proxy.port, "hi", stream=True, idempotency_key="k")
        assert first.body.endswith(end) and again.body == first.body


@both
async def test_a_key_in_flight_attaches_though_nothing_is_counted(serve: Serve, stream: bool) -> None:
    gate = Gate(1 if stream else 0)
    async with ScriptedUpstream([gate(answer("Hello", stream))]) as upstream:
        proxy = await serve(upstream.base_url)
        first = asyncio.create_task(ask(proxy.port, "hi", stream=stream, idempotency_key="k"))
        await gate.reached.wait()
        second = asyncio.create_task(ask(proxy.port, "hi", stream=stream, idempotency_key="k"))
        reused = await ask(proxy.port, "other", stream=stream, idempotency_key="k")
        gate.open()
        assert (await first).told == (await second).told
        assert (await second)["x-session-decision"] == "retry"
        assert reused.head.status == 422 and b"idempotency_key_reused" in reused.body
        assert reused["x-should-retry"] == "false" and len(upstream.requests) == 1


async def test_a_key_that_waits_in_line_is_asked_once(serve: Serve) -> None:
    gate = Gate()
    async with ScriptedUpstream([gate(completion("one")), completion("two")]) as upstream:
        proxy = await serve(upstream.base_url)
        first = asyncio.create_task(ask(proxy.port, "a"))
        await gate.reached.wait()
        waiting = [asyncio.create_task(ask(proxy.port, "b", idempotency_key="k")) for _ in range(3)]
        await arrival()
        other = asyncio.create_task(ask(proxy.port, "c", idempotency_key="k"))
        await arrival()
        gate.open()
        await first
        assert len({(await one).told for one in waiting}) == 1
        assert (await other).head.status == 422
        assert len(upstream.requests) == 2


@pytest.mark.parametrize("cold", [False, True], ids=["warm", "cold"])
async def test_a_key_of_an_edit_that_comes_twice_at_once_is_asked_once(
    serve: Serve, tmp_path: Path, cold: bool
) -> None:
    release = asyncio.Event()
    async with (
        ScriptedUpstream([completion("A"), completion("B")]) as upstream,
        on_disk(serve, tmp_path, upstream.base_url) as (proxy, start),
    ):
        await ask(proxy.port, "a")
        await ask(proxy.port, user("a"), assistant("A"), "b")
        if cold:
            proxy = await start()

        async def script(request: Any) -> Reply:
            await release.wait()
            return completion("edited")

        upstream.script = script
        edit = [user("a"), assistant("A"), user("b, edited")]
        tries = [asyncio.create_task(ask(proxy.port, *edit, idempotency_key="k")) for _ in range(4)]
        await arrival()
        release.set()
        assert {(await one).head.status for one in tries} == {200}
        assert len(upstream.requests) == 3


@both
async def test_an_older_turn_is_given_again_and_the_tip_stays(serve: Serve, stream: bool) -> None:
    script = [answer("one", stream), completion("two"), completion("three"), completion("x")]
    async with ScriptedUpstream(script) as upstream:
        proxy = await serve(upstream.base_url)
        one = await ask(proxy.port, "a", stream=stream, idempotency_key="k1")
        two = await ask(proxy.port, "b", idempotency_key="k2")
        await ask(proxy.port, "c")
        assert (await ask(proxy.port, "a", stream=stream, idempotency_key="k1")).told == one.told
        assert (await ask(proxy.port, "b", idempotency_key="k2")).told == two.told
        assert (await ask(proxy.port, "c", idempotency_key="k2")).head.status == 422
        assert len(upstream.requests) == 3
        await ask(proxy.port, "d")
        assert [m["content"] for m in upstream.requests[3].messages] == ["a", "one", "b", "two", "c", "three", "d"]


async def test_an_older_turn_that_is_given_again_leaves_the_last_one_undelivered(serve: Serve) -> None:
    gate = Gate(1)
    async with ScriptedUpstream([completion("one"), gate(sse("two"))]) as upstream:
        proxy = await serve(upstream.base_url)
        await ask(proxy.port, "a", idempotency_key="k1")
        await undelivered(proxy, gate, "b", stream=True)
        await ask(proxy.port, "a", idempotency_key="k1")
        assert (await ask(proxy.port, "b", stream=True))["x-session-state"] == "replayed"
        assert len(upstream.requests) == 2


async def test_a_cut_turn_with_a_key_runs_again_and_its_whole_answer_is_given_from_then_on(serve: Serve) -> None:
    cut = sse("Hel", done=False, finish=None, end="rst")
    async with ScriptedUpstream([completion("A"), cut, sse("Hel", "lo"), completion("x")]) as upstream:
        proxy = await serve(upstream.base_url)
        await ask(proxy.port, "a")
        await ask(proxy.port, "b", stream=True, idempotency_key="k")
        whole = await ask(proxy.port, "b", stream=True, idempotency_key="k")
        assert (await ask(proxy.port, "b", stream=True, idempotency_key="k")).told == whole.told
        assert upstream.requests[1].messages == upstream.requests[2].messages and len(upstream.requests) == 3
        await ask(proxy.port, "c")
        assert [m["content"] for m in upstream.requests[3].messages] == ["a", "A", "b", "Hello", "c"]


async def test_a_key_whose_turn_failed_is_asked_again(serve: Serve) -> None:
    async with ScriptedUpstream([error(500, {"error": {"message": "no"}}), completion("yes")]) as upstream:
        proxy = await serve(upstream.base_url)
        assert (await ask(proxy.port, "a", idempotency_key="k")).head.status == 500
        assert b"yes" in (await ask(proxy.port, "a", idempotency_key="k")).body
        assert len(upstream.requests) == 2


@pytest.mark.parametrize(
    "other",
    [{"session": "t"}, {"authorization": "Bearer other"}, {"idempotency_key": "l"}],
    ids=["session", "tenant", "key"],
)
async def test_a_key_holds_for_one_tenant_and_session_alone(serve: Serve, other: dict[str, str]) -> None:
    async with ScriptedUpstream() as upstream:
        proxy = await serve(upstream.base_url)
        ours: dict[str, Any] = {"authorization": "Bearer k", "idempotency_key": "k"}
        first = await ask(proxy.port, "hi", **ours)
        second = await ask(proxy.port, "hi", **(ours | other))
        assert first.body != second.body and second["x-session-decision"] == "append"
        assert len(upstream.requests) == 2
        assert (await ask(proxy.port, "hi", **ours)).body == first.body


@pytest.mark.parametrize("key", ["", "x" * 256, "a\tb", "a\xc2\x85b", "\xc3\xa9" * 256])
async def test_a_key_that_cannot_be_one_is_refused(serve: Serve, key: str) -> None:
    async with ScriptedUpstream() as upstream:
        proxy = await serve(upstream.base_url)
        refused = await ask(proxy.port, "hi", idempotency_key=key)
        assert refused.head.status == 400 and b"Idempotency-Key" in refused.body
        assert not upstream.requests


@pytest.mark.parametrize("key", ["x", "x" * 255, "a b", "\xc3\xa9" * 255])
async def test_the_longest_key_is_one(serve: Serve, key: str) -> None:
    async with ScriptedUpstream() as upstream:
        proxy = await serve(upstream.base_url)
        first = await ask(proxy.port, "hi", idempotency_key=key)
        assert (await ask(proxy.port, "hi", idempotency_key=key)).told == first.told
        assert first.head.status == 200 and len(upstream.requests) == 1
