"""A client that goes, at every moment of an answer and in every way: what is kept, what the upstream is told,
and that nothing of it stays behind."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web
from multidict import CIMultiDict

from proxy.context import tenants
from proxy.core.model import SessionKey
from proxy.server.app import build_app, build_runner
from tests.server.test_sessions_api import Held, asking, call, kept
from tests.support.fakes import RawClient, Received, Reply, ScriptedUpstream, completion, eventually, sse
from tests.support.serving import RunningProxy, Serve
from tests.turns.test_relay import SESSION, ask, assistant, user

SOAK = bool(os.environ.get("SOAK"))
EVENTS, ROUNDS = (40, 6) if SOAK else (20, 1)
SIDE_BY_SIDE = 20
WRITE = 0.2  # seconds for which a client may take nothing
WAYS = ("rst", "fin", "half-close", "silent")
PATH = "/v1/chat/completions"

WORDS = [f"w{n} " for n in range(EVENTS)]
PIECES = [*sse(*WORDS).pieces, b": behind the end\n\n"]
BEFORE_THE_HEAD, FINISHED, DONE = -1, EVENTS + 2, EVENTS + 3  # after how many pieces a client has left
FLOOD = [b": " + b"x" * 65536 + b"\n\n"] * 12  # more than a connection holds on the way, and no word of the answer


@asynccontextmanager
async def narrow(proxy: RunningProxy) -> AsyncIterator[int]:
    """The port of a second listener of the proxy's, whose connections hold little that nobody reads."""
    with socket.create_server(("127.0.0.1", 0), backlog=256) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 32768)
        runner = build_runner(build_app(proxy.runtime), proxy.runtime.config)
        await runner.setup()
        await web.SockSite(runner, listener).start()
        yield listener.getsockname()[1]
        await runner.cleanup()


def session_key(proxy: RunningProxy, session: str) -> SessionKey:
    return SessionKey(tenants.tenant(proxy.runtime.config, CIMultiDict(), proxy.runtime.secret), session)


def deserted(proxy: RunningProxy, session: str = "s1") -> bool:
    """Whether nobody listens to what is in flight, or nothing is."""
    turns = proxy.runtime.registry.turns(session_key(proxy, session))
    return all([turn.broadcast.abandoned for turn in turns])


def in_flight(proxy: RunningProxy, session: str = "s1") -> bool:
    return bool(proxy.runtime.registry.turns(session_key(proxy, session)))


# Every moment, every way -------------------------------------------------------------------


@dataclass
class Case:
    """A client that leaves after `at` pieces; the upstream waits there until it may go on."""

    at: int
    way: str
    policy: str
    round: int
    reached: asyncio.Event = field(default_factory=asyncio.Event)
    go: asyncio.Event = field(default_factory=asyncio.Event)
    upstream_ended: float | None = None

    @property
    def name(self) -> str:
        return f"{self.way} at {self.at}, {self.policy}, {self.round}"

    @property
    def cancels(self) -> bool:
        """Whether leaving cuts the answer. One that says that it is whole is never cut."""
        return self.policy == "cancel" and self.at < FINISHED

    @property
    def outcome(self) -> tuple[str, str] | None:
        """State and text of the turn that is recorded."""
        if not self.cancels:
            return "complete", "".join(WORDS)
        said = "".join(WORDS[: max(self.at - 1, 0)])  # the first piece brings the role alone
        return ("cut", said) if said else None

    async def answer(self) -> Reply:
        task = asyncio.current_task()
        assert task
        task.add_done_callback(self._note_end)
        flood = FLOOD if self.way == "silent" else []
        at = max(self.at, 0)
        if self.at == BEFORE_THE_HEAD and not flood:
            await self._wait()
        pieces = [*PIECES[:at], *flood, *PIECES[at:]]

        async def gate(index: int) -> None:
            if index == at + len(flood) and (self.at >= 0 or flood):
                await self._wait()

        return sse(pieces=pieces, gate=gate, headers=[("Content-Type", "text/event-stream"), ("Connection", "close")])

    async def _wait(self) -> None:
        self.reached.set()
        await self.go.wait()

    def _note_end(self, _: object) -> None:
        self.upstream_ended = time.monotonic()

    async def leave(self, client: RawClient) -> None:
        """Read up to the moment, and go."""
        if self.at >= 0:
            await client.head()
            before, got = b"".join(PIECES[: self.at]), b""
            while len(got) < len(before):
                got += await client.piece() or b""
            assert got.startswith(before)
        elif self.way != "silent":
            await asyncio.wait_for(self.reached.wait(), 10)
        if self.way == "rst":
            client.abort()
        elif self.way == "fin":
            client._sock.close()
        elif self.way == "half-close":
            client.half_close()


class Starved:
    """For how many seconds the loop did not run because others had the machine: no fault of the proxy's."""

    seconds = 0.0

    async def watch(self) -> None:
        while True:
            begun = time.monotonic()
            await asyncio.sleep(0.02)
            late = time.monotonic() - begun - 0.02
            self.seconds += late if late > 0.02 else 0


async def one(case: Case, proxy: RunningProxy, port: int, starved: Starved) -> None:
    async with RawClient(port) as client:
        headers = [("sessionId", case.name), ("x-session-on-disconnect", case.policy)]
        await client.post(PATH, {"messages": [user(case.name)], "stream": True}, headers)
        await case.leave(client)
        left = time.monotonic() - starved.seconds
        if case.cancels or case.at == DONE:
            await eventually(lambda: case.upstream_ended)
            took = (case.upstream_ended or 0) - starved.seconds - left
            assert took < 1 + (WRITE if case.way == "silent" else 0)
        else:
            await eventually(lambda: in_flight(proxy, case.name) and deserted(proxy, case.name))
            assert not case.upstream_ended
            case.go.set()
        await eventually(lambda: not in_flight(proxy, case.name))
        if case.way == "half-close":
            await client.body()
            assert client.ended in ("reset", "eof")
    said = case.outcome
    assert await kept(port, case.name) == (
        [("user", case.name, said[0]), ("assistant", said[1], said[0])] if said else []
    )


def held_by_process() -> Counter[str]:
    """Tasks and file descriptors, now."""
    gc.collect()
    return Counter(tasks=len(asyncio.all_tasks()), descriptors=len(os.listdir("/proc/self/fd")))


@pytest.mark.timeout(600)
async def test_a_disconnect_at_any_moment_and_in_any_way_follows_the_policy(
    serve: Serve, capsys: pytest.CaptureFixture[str]
) -> None:
    rounds = range(ROUNDS)
    moments = range(BEFORE_THE_HEAD, DONE + 1)
    cases = [
        Case(at, way, policy, n) for n in rounds for at in moments for way in WAYS for policy in ("finish", "cancel")
    ]
    by_name = {case.name: case for case in cases}

    async def script(request: Received) -> Reply:
        return await by_name[request.messages[-1]["content"]].answer()

    begun, crowd, starved = time.monotonic(), asyncio.Semaphore(SIDE_BY_SIDE), Starved()

    async def in_the_crowd(case: Case, proxy: RunningProxy, port: int) -> None:
        async with crowd:
            try:
                await one(case, proxy, port, starved)
            except BaseException as error:
                error.add_note(case.name)
                raise

    async with ScriptedUpstream(script) as upstream:
        proxy = await serve(upstream.base_url, limits={"write_timeout": f"{WRITE:g}s"})
        async with narrow(proxy) as port:
            before = held_by_process()
            watching = asyncio.create_task(starved.watch())
            async with asyncio.TaskGroup() as group:
                for case in cases:
                    group.create_task(in_the_crowd(case, proxy, port))
            watching.cancel()
            await eventually(lambda: not proxy.runtime.registry.in_use and not proxy.runtime.registry.in_flight)
            await eventually(lambda: not upstream.connections)
            await eventually(lambda: held_by_process() <= before)
            assert len(upstream.requests) == len(cases)
    with capsys.disabled():
        print(f"\nclient gone: {len(cases)} times, nothing left behind, {time.monotonic() - begun:.0f} s")


# An orphan: how long it lives, and what ends it ---------------------------------------------


async def orphaned(held: Held, proxy: RunningProxy, text: str = "x", **headers: str) -> None:
    """A turn that has come to where its answer waits, and whose client has left."""
    async with RawClient(proxy.port) as client:
        pairs = [*SESSION, *[(name.replace("_", "-"), value) for name, value in headers.items()]]
        await client.post(PATH, {"model": "m", "messages": [user(text)], "stream": True}, pairs)
        await asyncio.wait_for(held.reached[text].wait(), 5)
        await client.head()
        client.abort()
    await eventually(lambda: deserted(proxy))


async def test_an_abandoned_turn_is_read_until_finish_limit(serve: Serve) -> None:
    held = Held(x=2)
    async with ScriptedUpstream(held) as upstream:
        proxy = await serve(upstream.base_url, sessions={"finish_limit": "500ms"})
        await orphaned(held, proxy)
        left = time.monotonic()
        await eventually(lambda: not in_flight(proxy))
        lived = time.monotonic() - left
        await eventually(lambda: not upstream.connections, 1)
        found = await kept(proxy.port)
    assert 0.4 < lived < 1.5
    assert found == [("user", "x", "cut"), ("assistant", "re ", "cut")]


async def test_finish_limit_bounds_an_abandoned_turn_with_a_finish_reason_too(serve: Serve) -> None:
    held = Held(x=4)
    async with ScriptedUpstream(held) as upstream:
        proxy = await serve(upstream.base_url, sessions={"finish_limit": "500ms"})
        await orphaned(held, proxy, x_session_on_disconnect="cancel")
        await eventually(lambda: not in_flight(proxy), 3)
        found = await kept(proxy.port)
    assert [content for _, content, _ in found] == ["x", "re x"]


async def test_an_abandoned_turn_without_a_head_ends_at_finish_limit_unrecorded(serve: Serve) -> None:
    async def script(request: Received) -> Reply:
        await asyncio.Event().wait()
        raise AssertionError

    async with ScriptedUpstream(script) as upstream:
        proxy = await serve(upstream.base_url, sessions={"finish_limit": "200ms"})
        async with RawClient(proxy.port) as client:
            await client.post(PATH, {"messages": [user("x")]}, SESSION)
            await eventually(lambda: upstream.requests)
            client.abort()
        await eventually(lambda: not in_flight(proxy) and not upstream.connections, 2)
        found = await kept(proxy.port)
    assert found == [] and not proxy.runtime.registry.in_use


async def test_a_client_that_resumes_suspends_finish_limit(serve: Serve) -> None:
    held = Held(x=2)
    async with ScriptedUpstream(held) as upstream:
        proxy = await serve(upstream.base_url, sessions={"finish_limit": "600ms"})
        await orphaned(held, proxy)
        await asyncio.sleep(0.3)  # it is known to be one
        back = asyncio.create_task(call(proxy.port, "GET", "/sessions/s1/stream"))
        await asyncio.sleep(1.2)
        held.go["x"].set()
        _, body = await back
        await eventually(lambda: not in_flight(proxy))
        found = await kept(proxy.port)
    assert body == b"".join(sse("re ", "x").pieces)
    assert found == [("user", "x", "complete"), ("assistant", "re x", "complete")]


async def test_finish_limit_starts_again_when_the_resumed_client_disconnects(serve: Serve) -> None:
    held = Held(x=2)
    async with ScriptedUpstream(held) as upstream:
        proxy = await serve(upstream.base_url, sessions={"finish_limit": "800ms"})
        await orphaned(held, proxy)
        await asyncio.sleep(0.3)  # it is known to be one
        async with RawClient(proxy.port) as back:
            await back.request("GET", "/sessions/s1/stream")
            await back.head()
            await asyncio.sleep(0.8)
            back.abort()
        await asyncio.sleep(0.4)
        assert in_flight(proxy)
        await eventually(lambda: not in_flight(proxy), 2)


async def test_a_cancel_policy_waits_while_another_client_follows(serve: Serve) -> None:
    held = Held(x=2)
    async with ScriptedUpstream(held) as upstream:
        proxy = await serve(upstream.base_url)
        asked = await asking(held, proxy.port, "x", headers=[("x-session-on-disconnect", "cancel")])
        async with RawClient(proxy.port) as other:
            await other.request("GET", "/sessions/s1/stream")
            await other.head()
            asked.cancel()
            await asyncio.sleep(0.6)
            assert in_flight(proxy)
        await eventually(lambda: not in_flight(proxy), 1)
        found = await kept(proxy.port)
    assert found == [("user", "x", "cut"), ("assistant", "re ", "cut")]


async def test_the_next_request_interrupts_an_abandoned_turn(serve: Serve) -> None:
    held = Held(x=2)
    async with ScriptedUpstream(held) as upstream:
        proxy = await serve(upstream.base_url)
        await orphaned(held, proxy)
        after: Any = await ask(proxy.port, user("next"))
        assert upstream.requests[1].messages == [user("x"), assistant("re "), user("next")]
        states = [state for _, _, state in await kept(proxy.port)]
    assert after.answer.header("x-session-decision") == "append"
    assert states == ["cut", "cut", "complete", "complete"]


@pytest.mark.parametrize(
    ("agent", "kept_last"), [("One/1.0", "re edited"), ("Other/1.0", "re second")], ids=["its own", "another's"]
)
async def test_the_next_list_of_its_client_interrupts_an_abandoned_turn(
    serve: Serve, agent: str, kept_last: str
) -> None:
    """Who stops an answer and edits the question sees the second answer last, however long the first would have
    taken. What another client asks beside it ends nothing."""
    held = Held(second=2)
    first = [user("first"), assistant("re first")]
    pairs = [*SESSION, ("User-Agent", "One/1.0")]
    async with ScriptedUpstream(held) as upstream:
        proxy = await serve(upstream.base_url)
        await ask(proxy.port, *first[:1], headers=pairs)
        async with RawClient(proxy.port) as client:
            await client.post(PATH, {"model": "m", "messages": [*first, user("second")], "stream": True}, pairs)
            await asyncio.wait_for(held.reached["second"].wait(), 5)
            client.abort()
        await eventually(lambda: deserted(proxy))
        await ask(proxy.port, *first, user("edited"), headers=[*SESSION, ("User-Agent", agent)])
        held.go["second"].set()
        await eventually(lambda: not in_flight(proxy))
        found = await kept(proxy.port)
    assert [content for _, content, _ in found][-1] == kept_last


async def test_the_next_request_waits_for_an_abandoned_turn_with_a_finish_reason(serve: Serve) -> None:
    held = Held(x=4)
    async with ScriptedUpstream(held) as upstream:
        proxy = await serve(upstream.base_url)
        await orphaned(held, proxy)
        waiting = asyncio.create_task(ask(proxy.port, user("next")))
        done, _ = await asyncio.wait([waiting], timeout=0.4)
        assert not done
        held.go["x"].set()
        await waiting
        assert upstream.requests[1].messages == [user("x"), assistant("re x"), user("next")]


async def test_an_abandoned_turn_that_never_ends_after_its_finish_reason_is_stopped_soon(serve: Serve) -> None:
    held = Held(x=4)
    async with ScriptedUpstream(held) as upstream:
        proxy = await serve(upstream.base_url)
        await orphaned(held, proxy)
        after: Any = await asyncio.wait_for(ask(proxy.port, user("next")), 5)
        assert after.answer.status == 200
        assert upstream.requests[1].messages == [user("x"), assistant("re x"), user("next")]


async def test_a_turn_abandoned_while_another_request_waits_is_interrupted(serve: Serve) -> None:
    held = Held(x=2)
    async with ScriptedUpstream(held) as upstream:
        proxy = await serve(upstream.base_url, sessions={"queue_timeout": "2s"})
        asked = await asking(held, proxy.port, "x")
        waiting = asyncio.create_task(ask(proxy.port, user("next")))
        await proxy.in_line()
        assert len(upstream.requests) == 1
        asked.cancel()
        after: Any = await asyncio.wait_for(waiting, 4)
        assert after.answer.status == 200
        assert upstream.requests[1].messages == [user("x"), assistant("re "), user("next")]


async def test_a_retry_attaches_to_its_abandoned_turn(serve: Serve) -> None:
    held = Held(x=2)
    async with ScriptedUpstream(held) as upstream:
        proxy = await serve(upstream.base_url)
        await orphaned(held, proxy)
        again = asyncio.create_task(ask(proxy.port, user("x"), stream=True))
        await eventually(lambda: not deserted(proxy))
        held.go["x"].set()
        whole: Any = await again
        assert len(upstream.requests) == 1
    assert (whole.data, whole.ended) == (b"".join(sse("re ", "x").pieces), "complete")
    assert whole.answer.header("x-session-decision") == "retry"


async def test_a_retry_before_the_disconnect_is_noticed_gets_the_answer(serve: Serve) -> None:
    held = Held(x=2)
    async with ScriptedUpstream(held) as upstream:
        proxy = await serve(upstream.base_url)
        asked = await asking(held, proxy.port, "x")
        again = asyncio.create_task(ask(proxy.port, user("x"), stream=True))  # uncounted: it may be another "x"
        await proxy.in_line()
        asked.cancel()
        await proxy.abandoned()
        held.go["x"].set()
        whole: Any = await again
        assert len(upstream.requests) == 1
    assert (whole.data, whole.ended) == (b"".join(sse("re ", "x").pieces), "complete")
    assert whole.answer.header("x-session-decision") == "retry"


@pytest.mark.parametrize("route", ["beside", "store-no"])
async def test_an_unrecorded_turn_ends_with_its_client(serve: Serve, route: str) -> None:
    held = Held(x=2)
    async with ScriptedUpstream(held) as upstream:
        proxy = await serve(upstream.base_url)
        await ask(proxy.port, user("1"))
        await ask(proxy.port, user("1"), assistant("re 1"), user("2"))  # a client that resends
        headers = [("x-session-store", "no")] if route == "store-no" else []
        before = [] if headers else [{"role": "system", "content": "Name this chat."}]
        asked = await asking(held, proxy.port, "x", *before, headers=headers)
        asked.cancel()
        await eventually(lambda: not proxy.runtime.registry.in_flight, 1)
        found = await kept(proxy.port)
    assert [content for _, content, _ in found] == ["1", "re 1", "2", "re 2"]


# A body that is no stream --------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["finish", "cancel"])
@pytest.mark.parametrize("way", ["rst", "fin", "half-close"])
@pytest.mark.parametrize("at", ["before the head", "in the body", "at the end"])
async def test_a_disconnect_from_a_non_streamed_answer_follows_the_policy(
    serve: Serve, at: str, way: str, policy: str
) -> None:
    go = asyncio.Event()
    whole = completion("re x").pieces[0]
    cuts = {"before the head": (b"", whole), "in the body": (whole[:50], whole[50:]), "at the end": (whole, b"")}
    first, rest = cuts[at]

    async def script(request: Received) -> Reply:
        async def gate(index: int) -> None:
            if index:
                await go.wait()

        if at == "before the head":
            await go.wait()
        length = [("Content-Type", "application/json"), ("Content-Length", str(len(whole)))]
        return completion("", pieces=[piece for piece in (first, rest) if piece], headers=length, gate=gate)

    async with ScriptedUpstream(script) as upstream:
        proxy = await serve(upstream.base_url, sessions={"on_disconnect": policy})
        async with RawClient(proxy.port) as client:
            await client.post(PATH, {"messages": [user("x")]}, SESSION)
            await eventually(lambda: upstream.requests)
            if at != "before the head":
                await client.head()
                got = b""
                while len(got) < len(first):
                    got += await client.piece() or b""
            {"rst": client.abort, "fin": client._sock.close, "half-close": client.half_close}[way]()
            await eventually(lambda: deserted(proxy))
            if policy == "cancel" and at != "at the end":
                await eventually(lambda: not upstream.connections, 1)
            go.set()
            await eventually(lambda: not in_flight(proxy))
        found = await kept(proxy.port)
    cut = policy == "cancel" and at != "at the end"
    assert found == ([] if cut else [("user", "x", "complete"), ("assistant", "re x", "complete")])
