"""What time does to sessions: they expire when nobody uses them, never under a turn, whatever the clock says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from proxy.stores.base import Store
from proxy.stores.cache import CachedStore
from proxy.stores.memory import MemoryStore
from proxy.stores.sqlite.store import SQLiteStore
from tests.support.fakes import RawClient, Reply, ScriptedUpstream, completion, error, eventually, sse
from tests.support.serving import RunningProxy, Serve
from tests.support.tries import Gate, Got, Torn, ask, assistant, idle, received, user

TTL = 60_000
HOUR, DAY = 3600 * 1000, 24 * 3600 * 1000
START = 1_700_000_000_000


class Clock:
    """A wall clock that stands still until it is set; ms since the epoch."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> int:
        return self.now


@pytest.fixture(params=["memory", "warm"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    """What a daemon keeps its sessions in, with and without a file."""
    made: Store = MemoryStore(TTL)
    if request.param == "warm":
        made = CachedStore(await SQLiteStore.open(tmp_path / "sessions.db", TTL), TTL, 1 << 20)
    yield made
    await made.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


async def sweep(proxy: RunningProxy) -> int:
    """As the daemon does it; how many sessions were emptied."""
    runtime = proxy.runtime
    return await runtime.store.sweep(runtime.now(), runtime.registry.in_use, 100)


async def call(port: int, method: str, path: str) -> Got:
    async with RawClient(port) as client:
        await client.request(method, path)
        return await received(client)


async def is_there(proxy: RunningProxy) -> bool:
    """Whether the session is there; to look at it is no sign of life."""
    return (await call(proxy.port, "GET", "/sessions/s")).head.status == 200


Started = tuple[RunningProxy, ScriptedUpstream]


@pytest.fixture
def begin(serve: Serve, store: Store, clock: Clock) -> Any:
    """`async with begin(replies) as (proxy, upstream)`, by the settable clock."""

    @asynccontextmanager
    async def start(script: Any = None, **sections: Any) -> AsyncIterator[Started]:
        async with ScriptedUpstream(script) as upstream:
            proxy = await serve(upstream.base_url, store=store, **sections)
            proxy.runtime.now = clock
            yield proxy, upstream

    return start


async def running(proxy: RunningProxy, gate: Gate, text: str, **more: Any) -> asyncio.Task[Got]:
    """A turn whose answer has begun and waits at its gate."""
    task = asyncio.create_task(ask(proxy.port, text, **more))
    await gate.reached.wait()
    return task


# Expiry ------------------------------------------------------------------------------------


@pytest.mark.parametrize("swept", [False, True])
async def test_a_session_lives_for_its_time_after_a_turn(begin: Any, clock: Clock, swept: bool) -> None:
    async with begin() as (proxy, upstream):
        await ask(proxy.port, "a")
        clock.now += TTL
        assert await sweep(proxy) == 0
        assert (await ask(proxy.port, "b"))["x-session-state"] == "continued"
        clock.now += TTL + 1
        if swept:
            assert await sweep(proxy) == 1
        assert not await is_there(proxy)
        assert (await ask(proxy.port, "c"))["x-session-state"] == "expired"
        assert upstream.requests[-1].messages == [user("c")]
        assert (await ask(proxy.port, "d"))["x-session-state"] == "continued"
        assert len(upstream.requests[-1].messages) == 3


@pytest.mark.parametrize("at", [0, 1], ids=["before the first piece", "in the answer"])
async def test_a_turn_follows_its_history_though_the_session_would_have_expired(
    begin: Any, clock: Clock, at: int
) -> None:
    gate = Gate(at)
    async with begin([completion("A"), gate(sse("B")), completion("C"), completion("D")]) as (proxy, upstream):
        await ask(proxy.port, "a")
        clock.now += TTL
        turn = await running(proxy, gate, "b", stream=True)
        clock.now += 2 * TTL
        assert await sweep(proxy) == 0 and await is_there(proxy)
        behind = asyncio.create_task(ask(proxy.port, "c"))
        await proxy.in_line()
        clock.now += 2 * TTL
        assert await sweep(proxy) == 0
        gate.open()
        assert b"B" in (await turn).body and (await behind)["x-session-state"] == "continued"
        assert [m["content"] for m in upstream.requests[-1].messages] == ["a", "A", "b", "B", "c"]


async def test_a_session_lives_for_its_time_after_the_end_of_a_long_turn(begin: Any, clock: Clock) -> None:
    gate = Gate(1)
    async with begin([gate(sse("A")), completion("x")]) as (proxy, _):
        turn = await running(proxy, gate, "a", stream=True)
        clock.now += 10 * TTL
        gate.open()
        await turn
        await idle(proxy)
        clock.now += TTL
        assert await sweep(proxy) == 0 and await is_there(proxy)
        clock.now += 1
        assert not await is_there(proxy)


@pytest.mark.parametrize(
    "how",
    [
        lambda: error(500, {"error": {"message": "no"}}),
        lambda: sse(done=False, finish=None, end="rst"),
        lambda: Reply(headers=[("Content-Type", "application/json")], pieces=[b'{"choices": [{'], end="fin"),
        lambda: Torn(raw=b"HTTP/1.1 200 OK\r\nConte", end="fin"),
    ],
    ids=["refused", "died without a word", "died in a body", "died in the head"],
)
async def test_a_turn_that_failed_late_is_a_sign_of_life_all_the_same(begin: Any, clock: Clock, how: Any) -> None:
    """What arrived while it ran waited behind it, and finds the history that was there when it came."""
    hold = asyncio.Event()

    async def script(request: Any) -> Reply:
        text = request.messages[-1]["content"]
        if text != "fails":
            return completion("re " + text)
        await hold.wait()
        reply: Reply = how()
        return reply

    async with begin(script) as (proxy, upstream):
        await ask(proxy.port, "a")
        clock.now += TTL
        turn = asyncio.create_task(ask(proxy.port, "fails", stream=True))
        await eventually(lambda: len(upstream.requests) == 2)
        clock.now += TTL
        behind = asyncio.create_task(ask(proxy.port, "b"))
        await proxy.in_line()
        clock.now += TTL
        hold.set()
        await turn
        assert (await behind)["x-session-state"] == "continued"
        assert [m["content"] for m in upstream.requests[-1].messages] == ["a", "re a", "b"]
        clock.now += TTL
        assert await is_there(proxy)


async def test_a_failed_turn_alone_keeps_a_session_alive_from_its_end_on(begin: Any, clock: Clock) -> None:
    hold = asyncio.Event()

    async def script(request: Any) -> Reply:
        if request.messages[-1]["content"] != "fails":
            return completion("A")
        await hold.wait()
        return error(500, {"error": {"message": "no"}})

    async with begin(script) as (proxy, upstream):
        await ask(proxy.port, "a")
        turn = asyncio.create_task(ask(proxy.port, "fails"))
        await eventually(lambda: len(upstream.requests) == 2)
        clock.now += 2 * TTL
        hold.set()
        assert (await turn).head.status == 500
        await idle(proxy)
        assert await sweep(proxy) == 0
        assert (await ask(proxy.port, "b"))["x-session-state"] == "continued"


async def test_an_expired_session_is_begun_anew_while_it_is_swept(begin: Any, clock: Clock) -> None:
    gate = Gate(1)
    async with begin([completion("A"), gate(sse("B")), completion("C")]) as (proxy, upstream):
        await ask(proxy.port, "a")
        clock.now += TTL + 1
        turn = await running(proxy, gate, "b", stream=True)
        clock.now += 8 * DAY  # the emptied row is forgotten, too
        assert await sweep(proxy) == 0
        gate.open()
        assert (await turn)["x-session-state"] == "expired"
        assert (await ask(proxy.port, "c"))["x-session-state"] == "continued"
        assert upstream.requests[-1].messages == [user("b"), assistant("B"), user("c")]


async def test_the_sweep_takes_what_nobody_uses_and_leaves_the_rest(begin: Any, clock: Clock) -> None:
    gate = Gate(1)
    async with begin([completion("A"), completion("B"), gate(sse("C"))]) as (proxy, _):
        await ask(proxy.port, "a", session="idle")
        await ask(proxy.port, "b", session="s")
        turn = await running(proxy, gate, "c", stream=True)
        clock.now += TTL + 1
        assert await sweep(proxy) == 1 and await sweep(proxy) == 0
        gate.open()
        await turn
        assert await is_there(proxy)


# The clock ---------------------------------------------------------------------------------

JUMPS = {"2 h on": [2 * HOUR], "2 h back": [-2 * HOUR], "30 days back": [-30 * DAY], "30 days on": [30 * DAY]}
JUMPS["there and back"] = [2 * HOUR, -2 * HOUR, 30 * DAY, -60 * DAY, 30 * DAY]


@pytest.mark.parametrize("jumps", JUMPS.values(), ids=JUMPS)
async def test_a_clock_that_jumps_in_a_stream_changes_nothing(begin: Any, clock: Clock, jumps: list[int]) -> None:
    async def jump(index: int) -> None:
        if 0 < index <= len(jumps):
            clock.now += jumps[index - 1]
            await sweep(proxy)

    reply = sse("B", "B", "B", "B", "B", delay=0.02)
    reply.gate = jump
    script = [completion("A"), reply, completion("C"), completion("D")]
    limits = {"write_timeout": "1s", "body_timeout": "1s"}
    timeouts = {"idle_timeout": "1s", "response_timeout": "1s", "connect_timeout": "1s"}
    async with begin(script, limits=limits, upstream=timeouts) as (proxy, upstream):
        await ask(proxy.port, "a")
        b = await ask(proxy.port, "b", stream=True)
        assert b.ended == "complete" and b.body == b"".join(reply.pieces)
        await sweep(proxy)
        await ask(proxy.port, "c")
        clock.now -= HOUR
        last = await ask(proxy.port, "d")
        assert last["x-session-state"] == "continued"
        said = [m["content"] for m in upstream.requests[-1].messages]
        assert said == ["a", "A", "b", "BBBBB", "c", "C", "d"]


@pytest.mark.parametrize("back", [HOUR, 30 * DAY, START])
async def test_a_clock_that_went_back_expires_nothing(begin: Any, clock: Clock, back: int) -> None:
    async with begin() as (proxy, _):
        await ask(proxy.port, "a")
        clock.now -= back
        assert await sweep(proxy) == 0
        assert (await ask(proxy.port, "b"))["x-session-state"] == "continued"
        clock.now += TTL
        assert await sweep(proxy) == 0 and await is_there(proxy)
        clock.now += 1
        assert not await is_there(proxy)


# Deletion ----------------------------------------------------------------------------------


async def test_a_deletion_stops_the_turn_and_who_waited_begins_anew(begin: Any) -> None:
    gate = Gate(2)
    async with begin([completion("A"), gate(sse("B", "more")), completion("C"), completion("D")]) as (proxy, upstream):
        await ask(proxy.port, "a")
        turn = await running(proxy, gate, "b", stream=True)
        deleting = asyncio.create_task(call(proxy.port, "DELETE", "/sessions/s"))
        assert (await turn).ended == "reset"
        assert (await deleting).head.status == 200
        assert not await is_there(proxy)
        assert (await ask(proxy.port, "c"))["x-session-state"] == "new"
        assert upstream.requests[-1].messages == [user("c")]


async def test_a_deletion_waits_behind_those_who_came_before_it(begin: Any) -> None:
    gate = Gate(2)
    async with begin([completion("A"), gate(sse("B", "more")), completion("C"), completion("D")]) as (proxy, upstream):
        await ask(proxy.port, "a")
        turn = await running(proxy, gate, "b", stream=True)
        before = asyncio.create_task(ask(proxy.port, "c"))
        await proxy.in_line()
        deleting = asyncio.create_task(call(proxy.port, "DELETE", "/sessions/s"))
        assert (await turn).ended == "reset"
        assert (await before)["x-session-state"] == "continued"
        assert (await deleting).head.status == 200
        assert [m["content"] for m in upstream.requests[2].messages] == ["a", "A", "b", "B", "c"]
        assert (await ask(proxy.port, "d"))["x-session-state"] == "new"
        assert upstream.requests[3].messages == [user("d")]


async def test_a_branch_that_began_while_a_deletion_waited_does_not_bring_anything_back(begin: Any) -> None:
    """A full list stands in no line: it must not outlive the session it belongs to."""
    first, second, beside = Gate(2), Gate(), Gate(1)
    script = [completion("A"), first(sse("B", "more")), second(completion("C")), beside(sse("E", "F")), completion("G")]
    async with begin(script) as (proxy, upstream):
        await ask(proxy.port, "a")
        turn = await running(proxy, first, "b", stream=True)
        before = asyncio.create_task(ask(proxy.port, "c"))
        await proxy.in_line()
        deleting = asyncio.create_task(call(proxy.port, "DELETE", "/sessions/s"))
        await second.reached.wait()
        await turn
        edit = (user("a"), assistant("A"), user("b, edited"))
        branch = asyncio.create_task(ask(proxy.port, *edit, stream=True))
        await beside.reached.wait()
        second.open()
        await before
        assert (await deleting).head.status == 200
        beside.open()
        await branch
        await idle(proxy)
        assert not await is_there(proxy)
        assert (await ask(proxy.port, "g"))["x-session-state"] == "new"
        assert upstream.requests[-1].messages == [user("g")]


async def test_what_is_given_again_is_gone_with_the_session(begin: Any, clock: Clock) -> None:
    """Neither a deletion nor expiry leaves an answer behind for an equal body or a key."""
    headers: dict[str, Any] = {"idempotency_key": "k", "x_stainless_retry_count": "1"}
    async with begin() as (proxy, upstream):
        await ask(proxy.port, "a", **headers)
        clock.now += TTL + 1
        await ask(proxy.port, "a", **headers)
        await call(proxy.port, "DELETE", "/sessions/s")
        again = await ask(proxy.port, "a", **headers)
        assert again["x-session-state"] == "new" and len(upstream.requests) == 3
        assert (await call(proxy.port, "GET", "/sessions/s/stream")).body == again.body
        clock.now += TTL + 1
        assert (await call(proxy.port, "GET", "/sessions/s/stream")).head.status == 404
