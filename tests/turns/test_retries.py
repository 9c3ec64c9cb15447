"""Requests that come again: what is attached to, what is given once more, and what is a turn of its own."""

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
from tests.support.fakes import Ended, Head, RawClient, Reply, ScriptedUpstream, completion, error, eventually, sse
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


# While the first try runs ------------------------------------------------------------------


@both
@pytest.mark.parametrize("at", [0, 1], ids=["before the first piece", "in the answer"])
async def test_a_counted_retry_gets_the_answer_of_the_try_that_runs(serve: Serve, stream: bool, at: int) -> None:
    gate = Gate(at if stream else 0)
    async with ScriptedUpstream([gate(answer("Hello", stream)), completion("x")]) as upstream:
        proxy = await serve(upstream.base_url)
        first = asyncio.create_task(ask(proxy.port, "hi", stream=stream))
        await gate.reached.wait()
        second = asyncio.create_task(ask(proxy.port, "hi", stream=stream, **COUNTED))
        third = asyncio.create_task(ask(proxy.port, "hi", stream=stream, x_stainless_retry_count="2"))
        await arrival()
        gate.open()
        one, *others = [await first, await second, await third]
        assert one.told[::3] == (200, "complete") and one.told == others[0].told == others[1].told
        assert one["x-session-decision"] == "append"
        assert {other["x-session-decision"] for other in others} == {"retry"}
        assert {other["x-session-turn"] for other in others} == {one["x-session-turn"]}
        await ask(proxy.port, "next")
        assert upstream.requests[1].messages == [user("hi"), assistant("Hello"), user("next")]


@both
async def test_an_uncounted_retry_attaches_once_the_first_client_is_gone(serve: Serve, stream: bool) -> None:
    gate = Gate(1 if stream else 0)
    async with ScriptedUpstream([gate(answer("Hello", stream)), completion("x")]) as upstream:
        proxy = await serve(upstream.base_url)
        async with RawClient(proxy.port) as client:
            await send(client, "hi", stream=stream)
            await gate.reached.wait()
            await left(proxy, client)
        again = asyncio.create_task(ask(proxy.port, "hi", stream=stream))
        await arrival()
        gate.open()
        got = await again
        assert got.told == (200, got["content-type"], b"".join(answer("Hello", stream).pieces), "complete")
        assert got["x-session-decision"] == "retry"
        await ask(proxy.port, "next")
        assert [len(request.messages) for request in upstream.requests] == [1, 3]


async def test_an_equal_request_is_a_turn_of_its_own_while_the_first_client_listens(serve: Serve) -> None:
    gate = Gate()
    async with ScriptedUpstream([gate(completion("one")), completion("two")]) as upstream:
        proxy = await serve(upstream.base_url)
        first = asyncio.create_task(ask(proxy.port, "continue"))
        await gate.reached.wait()
        second = asyncio.create_task(ask(proxy.port, "continue"))
        await arrival()
        gate.open()
        assert b"one" in (await first).body and b"two" in (await second).body
        assert upstream.requests[1].messages == [user("continue"), assistant("one"), user("continue")]


async def test_another_body_is_no_retry_though_it_is_counted(serve: Serve) -> None:
    gate = Gate()
    async with ScriptedUpstream([gate(completion("one")), completion("two")]) as upstream:
        proxy = await serve(upstream.base_url)
        first = asyncio.create_task(ask(proxy.port, "a"))
        await gate.reached.wait()
        second = asyncio.create_task(ask(proxy.port, "b", **COUNTED))
        await arrival()
        gate.open()
        await first
        assert (await second)["x-session-decision"] == "append"
        assert len(upstream.requests) == 2


async def test_who_attached_gets_the_error_that_the_first_try_gets(serve: Serve) -> None:
    release = asyncio.Event()

    async def script(request: Any) -> Reply:
        await release.wait()
        return error(429, {"error": {"message": "slow down"}}, headers=[("Retry-After", "7")])

    async with ScriptedUpstream(script) as upstream:
        proxy = await serve(upstream.base_url)
        first = asyncio.create_task(ask(proxy.port, "hi"))
        await eventually(lambda: upstream.requests)
        second = asyncio.create_task(ask(proxy.port, "hi", **COUNTED))
        await arrival()
        release.set()
        assert (await first).told == (await second).told
        assert (await first).head.status == 429 and (await second)["retry-after"] == "7"
        assert len(upstream.requests) == 1


async def test_who_attached_is_told_when_the_upstream_never_answers(serve: Serve) -> None:
    hold = asyncio.Event()

    async def script(request: Any) -> Reply:
        await hold.wait()
        raise OSError("gone before the head")

    async with ScriptedUpstream(script) as upstream:
        proxy = await serve(upstream.base_url)
        first = asyncio.create_task(ask(proxy.port, "hi"))
        await eventually(lambda: upstream.requests)
        second = asyncio.create_task(ask(proxy.port, "hi", **COUNTED))
        await arrival()
        hold.set()
        assert (await first).head.status == (await second).head.status == 502
        assert (await first).body == (await second).body


# When it has ended -------------------------------------------------------------------------


async def undelivered(proxy: RunningProxy, gate: Gate, *asked: str, stream: bool, **headers: str) -> None:
    """A turn that is recorded whole though its client left before the end."""
    async with RawClient(proxy.port) as client:
        await send(client, *asked, stream=stream, **headers)
        await gate.reached.wait()
        await left(proxy, client)
    gate.open()
    await idle(proxy)


@both
async def test_what_no_client_has_seen_is_given_once_and_then_it_is_delivered(serve: Serve, stream: bool) -> None:
    gate = Gate(1 if stream else 0)
    first = gate(answer("Hello", stream))
    async with ScriptedUpstream([first, answer("Again", stream), completion("x")]) as upstream:
        proxy = await serve(upstream.base_url)
        await undelivered(proxy, gate, "hi", stream=stream)
        again = await ask(proxy.port, "hi", stream=stream)
        assert again.told == (200, first.headers[0][1], b"".join(first.pieces), "complete")
        assert (again["x-session-state"], again["x-session-decision"]) == ("replayed", "retry")
        assert len(upstream.requests) == 1
        third = await ask(proxy.port, "hi", stream=stream)
        assert third["x-session-decision"] == "append"
        assert upstream.requests[1].messages == [user("hi"), assistant("Hello"), user("hi")]


async def test_a_replay_that_was_not_read_may_be_had_again(serve: Serve) -> None:
    gate, text = Gate(1), "long " * 2_000_000  # more than sockets hold
    async with ScriptedUpstream([gate(sse("a", text))]) as upstream:
        proxy = await serve(upstream.base_url)
        await undelivered(proxy, gate, "hi", stream=True)
        async with RawClient(proxy.port) as client:
            await send(client, "hi", stream=True)
            assert (await client.head()).header("x-session-state") == "replayed"
            client.abort()
        await arrival()
        again = await ask(proxy.port, "hi", stream=True)
        assert again["x-session-state"] == "replayed" and again.body.endswith(b"data: [DONE]\n\n")
        assert len(upstream.requests) == 1


@both
async def test_what_was_attached_to_and_read_is_delivered(serve: Serve, stream: bool) -> None:
    gate = Gate(1 if stream else 0)
    async with ScriptedUpstream([gate(answer("Hello", stream)), answer("Again", stream)]) as upstream:
        proxy = await serve(upstream.base_url)
        async with RawClient(proxy.port) as client:
            await send(client, "hi", stream=stream)
            await gate.reached.wait()
            await left(proxy, client)
        attached = asyncio.create_task(ask(proxy.port, "hi", stream=stream))
        await arrival()
        gate.open()
        await attached
        await idle(proxy)
        assert (await ask(proxy.port, "hi", stream=stream))["x-session-decision"] == "append"
        assert len(upstream.requests[1].messages) == 3


@pytest.mark.parametrize("counted", [False, True])
async def test_a_cut_turn_is_run_again_from_its_parent(serve: Serve, counted: bool) -> None:
    cut = sse("Hel", done=False, finish=None, end="fin")
    async with ScriptedUpstream([completion("A"), cut, sse("Hel", "lo"), completion("x")]) as upstream:
        proxy = await serve(upstream.base_url)
        await ask(proxy.port, "a")
        assert (await ask(proxy.port, "b", stream=True)).ended == "reset"
        again = await ask(proxy.port, "b", stream=True, **(COUNTED if counted else {}))
        assert (again["x-session-decision"], again["x-session-state"]) == ("retry", "continued")
        assert again.ended == "complete"
        await ask(proxy.port, "c")
        before = [user("a"), assistant("A")]
        assert upstream.requests[2].messages == [*before, user("b")] == upstream.requests[1].messages
        assert upstream.requests[3].messages == [*before, user("b"), assistant("Hello"), user("c")]


async def test_another_request_after_a_cut_turn_follows_it(serve: Serve) -> None:
    cut = sse("Hel", done=False, finish=None, end="fin")
    async with ScriptedUpstream([cut, completion("x")]) as upstream:
        proxy = await serve(upstream.base_url)
        await ask(proxy.port, "b", stream=True)
        await ask(proxy.port, "go on")
        assert upstream.requests[1].messages == [user("b"), assistant("Hel"), user("go on")]


FAILS: dict[str, Callable[[], Reply]] = {
    "429": lambda: error(429, {"error": {"message": "slow down"}}),
    "500": lambda: error(500, {"error": {"message": "no"}}),
    "dies in the head": lambda: Torn(raw=b"HTTP/1.1 200 OK\r\nContent-Ty", end="fin"),
    "dies before the text": lambda: sse(done=False, finish=None, end="rst"),
    "cut in the text": lambda: sse("Hel", done=False, finish=None, end="rst"),
    "cut at the end": lambda: sse("Hello", done=False, end="fin", framing="length"),
    "reports an error": lambda: failing(),
    "the client leaves": lambda: sse("Hel", "lo"),
    "the client leaves, then it is cut": lambda: sse("Hel", "lo", done=False, finish=None, end="rst"),
}


def failing() -> Reply:
    reply = sse("Hel", done=False, finish=None)
    reply.pieces.append(b'data: {"error": {"message": "overloaded", "code": 503}}\n\n')
    return reply


@dataclass
class Torn(Reply):
    """A reply of which these bytes come, and then its end."""

    raw: bytes = b""

    def head(self) -> bytes:
        return self.raw


async def one_try(proxy: RunningProxy, upstream: ScriptedUpstream, how: str, headers: dict[str, Any]) -> bool:
    """Ask for "continue" while the upstream, or the client, fails; whether the client has an answer."""
    upstream.script = [FAILS[how]()]
    async with RawClient(proxy.port) as client:
        if not how.startswith("the client leaves"):
            await send(client, "continue", stream=True, **headers)
            got = await received(client)
            return got.head.status == 200 and b"data: [DONE]" in got.body
        upstream.script[0].gate = (gate := Gate(2))._wait
        await send(client, "continue", stream=True, **headers)
        if (await client.head()).header("x-session-state") == "replayed":
            return b"data: [DONE]" in await client.body()
        await gate.reached.wait()
        await left(proxy, client)
    gate.open()
    await idle(proxy)
    return False


@pytest.mark.parametrize("counted", [False, True], ids=["uncounted", "counted"])
@pytest.mark.parametrize("keyed", [False, True], ids=["", "keyed"])
@pytest.mark.parametrize("before", [0, 1], ids=["first", "after an equal turn"])
async def test_whatever_becomes_of_its_tries_a_turn_is_there_once(
    serve: Serve, before: int, keyed: bool, counted: bool
) -> None:
    """Each pair of failures, one after the other, then a try that goes well."""
    asked = [user("continue"), assistant("Hello")]
    async with ScriptedUpstream() as upstream:
        proxy = await serve(upstream.base_url)
        for number, tries in enumerate(itertools.product(FAILS, repeat=2)):
            headers: dict[str, Any] = {"session": f"s{number}"}
            for n in range(before):
                upstream.script = [sse("Hello")]
                assert (await ask(proxy.port, "continue", stream=True, idempotency_key=f"before {n}", **headers)).body
            headers |= {"idempotency_key": "key"} if keyed else {}
            for n, how in enumerate(tries):
                count = {"x-stainless-retry-count": str(n)} if counted else {}
                if answered := await one_try(proxy, upstream, how, headers | count):
                    break
            if not answered:
                upstream.script = [sse("Hel", "lo")]
                count = {"x-stainless-retry-count": "2"} if counted else {}
                last = await ask(proxy.port, "continue", stream=True, **headers, **count)
                assert b"data: [DONE]" in last.body, tries
            upstream.script = [completion("x")]
            await ask(proxy.port, "next", session=headers["session"])
            assert upstream.requests[-1].messages == [*asked * (before + 1), user("next")], tries


@both
@pytest.mark.parametrize("restart", [False, True], ids=["", "restart"])
async def test_continue_twice_with_a_429_in_between_is_two_turns(
    serve: Serve, tmp_path: Path, restart: bool, stream: bool
) -> None:
    refused = error(429, {"error": {"message": "slow down"}})
    script = [answer("one", stream), refused, answer("two", stream), completion("x")]
    async with (
        ScriptedUpstream(script) as upstream,
        on_disk(serve, tmp_path, upstream.base_url) as (proxy, start),
    ):
        one = await ask(proxy.port, "continue", stream=stream)
        if restart:
            proxy = await start()
        assert (await ask(proxy.port, "continue", stream=stream)).head.status == 429
        two = await ask(proxy.port, "continue", stream=stream, **COUNTED)
        assert two["x-session-state"] == "continued" and one.body != two.body
        await ask(proxy.port, "next")
        said = [user("continue"), assistant("one"), user("continue"), assistant("two"), user("next")]
        assert upstream.requests[-1].messages == said


# After a restart ---------------------------------------------------------------------------


@both
@pytest.mark.parametrize("counted", [False, True])
async def test_after_a_restart_only_a_count_tells_a_retry(
    serve: Serve, tmp_path: Path, counted: bool, stream: bool
) -> None:
    async with (
        ScriptedUpstream([answer("Hello", stream), answer("Again", stream)]) as upstream,
        on_disk(serve, tmp_path, upstream.base_url) as (proxy, start),
    ):
        first = await ask(proxy.port, "hi", stream=stream)
        again = await ask((await start()).port, "hi", stream=stream, **(COUNTED if counted else {}))
        if counted:
            assert again.told == first.told and again["x-session-turn"] == first["x-session-turn"]
            assert again["x-session-state"] == "replayed" and len(upstream.requests) == 1
        else:
            assert again["x-session-decision"] == "append"
            assert upstream.requests[1].messages == [user("hi"), assistant("Hello"), user("hi")]


@pytest.mark.parametrize("counted", [False, True])
async def test_a_cut_turn_after_a_restart(serve: Serve, tmp_path: Path, counted: bool) -> None:
    cut = sse("Hel", done=False, finish=None, end="fin")
    async with (
        ScriptedUpstream([cut, completion("Hello")]) as upstream,
        on_disk(serve, tmp_path, upstream.base_url) as (proxy, start),
    ):
        await ask(proxy.port, "hi", stream=True)
        await ask((await start()).port, "hi", stream=True, **(COUNTED if counted else {}))
        followed = [user("hi")] if counted else [user("hi"), assistant("Hel"), user("hi")]
        assert upstream.requests[1].messages == followed


@both
async def test_keys_survive_a_restart(serve: Serve, tmp_path: Path, stream: bool) -> None:
    cut = sse("Hel", done=False, finish=None, end="fin")
    script = [answer("one", stream), completion("two"), cut, completion("whole"), completion("x")]
    async with (
        ScriptedUpstream(script) as upstream,
        on_disk(serve, tmp_path, upstream.base_url) as (proxy, start),
    ):
        one = await ask(proxy.port, "a", stream=stream, idempotency_key="k1")
        await ask(proxy.port, "b")
        await ask(proxy.port, "c", stream=True, idempotency_key="k3")
        proxy = await start()
        again = await ask(proxy.port, "a", stream=stream, idempotency_key="k1")
        assert again.told == one.told and again["x-session-state"] == "replayed"
        assert (await ask(proxy.port, "A", idempotency_key="k1")).head.status == 422
        assert len(upstream.requests) == 3
        await ask(proxy.port, "c", stream=True, idempotency_key="k3")
        assert upstream.requests[3].messages == upstream.requests[2].messages
        await ask(proxy.port, "d")
        said = [m["content"] for m in upstream.requests[4].messages]
        assert said == ["a", "one", "b", "two", "c", "whole", "d"]


# Keys --------------------------------------------------------------------------------------


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
