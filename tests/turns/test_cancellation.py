"""A turn that is cancelled, or stopped, at each place where it waits: while it waits there, and just as what it
waits for is here. The history is as it was, or has the turn besides; and nothing of it is left behind.

Each sweep goes on until a turn ended before its strike came, so that no wait is left out.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pytest
from aiohttp import web
from multidict import CIMultiDict

from proxy.config.model import Config
from proxy.context import tenants
from proxy.context.in_flight import TurnRegistry
from proxy.context.runtime import Runtime
from proxy.core import sse as events
from proxy.core.model import Message, SessionKey, Turn, TurnState
from proxy.server.app import build_app, build_runner
from proxy.stores.base import Store
from proxy.stores.cache import CachedStore
from proxy.stores.sqlite.store import SQLiteStore
from proxy.upstream.client import Client
from tests.support.fakes import RawClient, Received, Reply, ScriptedUpstream, completion, eventually, sse
from tests.support.strict import problems

TTL = 24 * 3600 * 1000
PATH = "/v1/chat/completions"
PIECES = ["a", "b", "c"]
WHOLE = "".join(PIECES)


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


BEFORE = [user("before"), assistant("as it was")]
_ASKED, _SAID = [Message(message["role"], json.dumps(message).encode()) for message in BEFORE]


# The strike --------------------------------------------------------------------------------


class Struck:
    """Awaits `work`, and does `strike` at its wait number `at`, counted from 1. `late`: once what it waits for is
    here, and before it goes on."""

    def __init__(self, work: Awaitable[Any], at: int, strike: Callable[[], object], late: bool) -> None:
        self.done = False
        self._work, self._at, self._strike, self._late = work, at, strike, late

    def __await__(self) -> Generator[Any, Any, Any]:
        work = self._work.__await__()
        go_on: Callable[[], Any] = partial(next, work)
        for wait in itertools.count(1):
            try:
                awaited = go_on()
            except StopIteration as end:
                return end.value
            if wait == self._at:
                self.done = True
                self._act(awaited)
            try:
                go_on = partial(work.send, (yield awaited))
            except BaseException as error:
                go_on = partial(work.throw, error)
        return None

    def _act(self, awaited: asyncio.Future[Any] | None) -> None:
        if self._late and awaited is not None:
            awaited.add_done_callback(lambda _: self._strike())  # before the task's own, which makes it go on
        else:
            self._strike()


@dataclass
class Plan:
    """What the next turn, or the next handler, is struck by, and whether it was."""

    whom: Literal["turn", "handler"]
    how: Literal["cancel", "stop"] = "cancel"
    late: bool = False
    at: int | None = None  # None: nobody is
    struck: bool = False

    async def drive(self, work: Awaitable[Any], at: int, strike: Callable[[], object]) -> Any:
        struck = Struck(work, at, strike, self.late)
        try:
            return await struck
        finally:
            self.struck = self.struck or struck.done

    def take(self, whom: str) -> int | None:
        if whom != self.whom:
            return None
        at, self.at = self.at, None
        return at


class StruckLive(TurnRegistry[Any]):
    """Starts turns that are struck as planned; at 0 before their first step."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.plan = plan

    def start(self, work: Coroutine[Any, Any, None], over: Callable[[], None]) -> asyncio.Task[None]:
        at = self.plan.take("turn")
        if at is None:
            return super().start(work, over)
        task = super().start(self.plan.drive(work, at, lambda: self._strike(task)) if at else work, over)
        if at == 0:
            self.plan.struck = True
            self._strike(task)
        return task

    def _strike(self, task: asyncio.Task[None]) -> None:
        if self.plan.how == "cancel":
            task.cancel()
        for turns in list(self._turns.values()) if self.plan.how == "stop" else ():
            for turn in turns:
                turn.stop()

    @property
    def waiting(self) -> int:
        """How many stand in line behind a turn."""
        return sum(map(len, self._queues.values()))


# The proxy under it ------------------------------------------------------------------------


@dataclass
class Struckable:
    """A proxy whose turns and handlers can be struck, and the upstream behind it."""

    port: int
    runtime: Runtime
    live: StruckLive
    upstream: ScriptedUpstream
    tasks: int = 0

    def key(self, session: str) -> SessionKey:
        return SessionKey(tenants.tenant(self.runtime.config, CIMultiDict(), self.runtime.secret), session)

    async def begin(self, session: str) -> None:
        old = Turn(id=f"old_{session}", system=None, asked=(_ASKED,), reply=_SAID.raw, rendered=_SAID)
        await self.runtime.store.append(self.key(session), [old], self.runtime.now())

    async def turns(self, session: str) -> list[tuple[TurnState, str]]:
        """What the session has gained: of each turn its state and the text of its reply."""
        history = (await self.runtime.store.load(self.key(session), self.runtime.now())).history
        return [(turn.state, json.loads(turn.reply)["content"]) for turn in history.turns[1:]]

    async def is_idle(self) -> None:
        """Wait until nothing is left but one connection to the upstream."""
        await eventually(lambda: not self.live.in_use and not self.live.in_flight and self.upstream.connections <= 1)
        used = 3 * (1 - self.upstream.connections)  # tasks that the fake has for a connection
        await eventually(lambda: len(asyncio.all_tasks()) <= self.tasks - used)


def answer(request: Received) -> Reply:
    if request.messages[-1] != user("x"):
        return completion("fine")
    return sse(*PIECES, delay=0.001) if request.json.get("stream") else completion(WHOLE, delay=0.001)


class SlowDisk(SQLiteStore):
    """A commit takes long enough for what would not wait for it to be seen."""

    async def _commit(self, group: list[Any]) -> None:
        await asyncio.sleep(0.01)
        await super()._commit(group)


@pytest.fixture(params=[1, 2**24], ids=["cold", "warm"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    """With room in memory, or with none: then all that is seen is what the disk has."""
    store = CachedStore(await SlowDisk.open(tmp_path / "sessions.db", TTL), TTL, request.param)
    yield store
    await store.close()


async def served(stack: AsyncExitStack, store: Store, plan: Plan) -> Struckable:
    """Put together as the daemon does, but for the strike."""
    upstream = await stack.enter_async_context(ScriptedUpstream(answer))
    config = Config.model_validate({"upstreams": [{"base_url": upstream.base_url}]})
    names, live = itertools.count(1), StruckLive(plan)
    clock, turn_id = lambda: time.time_ns() // 1_000_000, lambda: f"turn_{next(names)}"
    runtime = Runtime(config, store, Client(), b"s" * 32, clock, turn_id, live)
    app = build_app(runtime)

    async def struck(request: web.BaseRequest) -> Any:
        task, at = asyncio.current_task(), plan.take("handler")
        assert task
        return await (app(request) if at is None else plan.drive(app(request), at, task.cancel))

    runner = build_runner(app, config, struck)
    await runner.setup()
    stack.push_async_callback(runtime.client.close)
    stack.push_async_callback(runner.cleanup)
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    proxy = Struckable(runner.addresses[0][1], runtime, live, upstream)
    assert (await ask(proxy.port, "warm", "y")).ended == "complete"
    await eventually(lambda: not live.in_flight)
    proxy.tasks = len(asyncio.all_tasks())
    return proxy


class Seen(NamedTuple):
    """What a client got: no status where nothing came."""

    status: int | None
    data: bytes
    ended: str | None

    @property
    def text(self) -> str:
        """What a client has read of a stream."""
        chunks = [json.loads(event.data) for event in events.events(self.data) if event.data.endswith(b"}")]
        return "".join([chunk["choices"][0]["delta"].get("content", "") for chunk in chunks if "choices" in chunk])


async def ask(port: int, session: str, text: str, stream: bool = False) -> Seen:
    async with RawClient(port, timeout=3) as client:
        await client.post(PATH, {"messages": [user(text)], "stream": stream}, [("x-session-id", session)])
        try:
            status = (await client.head()).status
        except ConnectionError:
            return Seen(None, b"", client.ended)
        return Seen(status, await client.body(), client.ended)


# The sweeps --------------------------------------------------------------------------------


async def struck_turn(proxy: Struckable, at: int, stream: bool) -> tuple[Seen, tuple[TurnState, str] | None]:
    """One turn, struck; what its client saw, and what is kept of it. All that holds always holds here, too."""
    session = f"s{at}"
    await proxy.begin(session)
    proxy.live.plan.at, proxy.live.plan.struck = at, False
    seen = await ask(proxy.port, session, "x", stream)
    await proxy.is_idle()
    kept = await proxy.turns(session)
    after = await ask(proxy.port, session, "y")
    assert (after.status, after.ended) == (200, "complete")
    said = [message for _, text in kept for message in (user("x"), assistant(text))]
    assert proxy.upstream.requests[-1].messages == [*BEFORE, *said, user("y")]
    assert problems(proxy.upstream.requests[-1].body, "openai") == []
    await proxy.is_idle()
    assert len(kept) <= 1 and await proxy.turns(session) == [*kept, (TurnState.COMPLETE, "fine")]
    turn = kept[0] if kept else None
    if seen.status == 200 and (seen.ended == "complete" or b"[DONE]" in seen.data):
        assert turn == (TurnState.COMPLETE, WHOLE)
    return seen, turn


async def sweep(store: Store, plan: Plan, stream: bool, first: int, judge: Callable[[Seen, Any], None]) -> int:
    """Strike one turn after another, each a wait later; the number of waits."""
    async with AsyncExitStack() as stack:
        proxy = await served(stack, store, plan)
        for at in itertools.count(first):
            seen, kept = await struck_turn(proxy, at, stream)
            if not plan.struck:
                assert (seen.status, seen.ended, kept) == (200, "complete", (TurnState.COMPLETE, WHOLE))
                return at - 1
            judge(seen, kept)
    return 0


@pytest.mark.parametrize("late", [False, True], ids=["while-it-waits", "as-it-goes-on"])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_turn_cancelled_at_each_await_is_recorded_whole_or_not_at_all(
    store: Store, stream: bool, late: bool
) -> None:
    """As the last resort of a drain does."""

    def judge(seen: Seen, kept: tuple[TurnState, str] | None) -> None:
        assert kept in (None, (TurnState.COMPLETE, WHOLE))
        assert seen.ended == ("complete" if seen.status == 500 else "reset") or kept
        assert seen.status != 500 or not kept

    assert await sweep(store, Plan("turn", late=late), stream, 0, judge) >= 3


@pytest.mark.parametrize("late", [False, True], ids=["while-it-waits", "as-it-goes-on"])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_turn_stopped_at_each_await_records_what_its_client_saw(store: Store, stream: bool, late: bool) -> None:
    def judge(seen: Seen, kept: tuple[TurnState, str] | None) -> None:
        if seen.status == 409:
            assert kept is None and json.loads(seen.data)["error"]["code"] == "turn_stopped"
        elif kept is None:
            assert seen.ended == "reset" and not (stream and seen.text)
        else:
            state, text = kept
            assert text == WHOLE if state is TurnState.COMPLETE else WHOLE.startswith(text)
            assert seen.ended == ("complete" if state is TurnState.COMPLETE else "reset")
            assert not stream or text.startswith(seen.text)  # all that the client saw is kept

    assert await sweep(store, Plan("turn", "stop", late), stream, 0, judge) >= 3


@pytest.mark.parametrize("late", [False, True], ids=["while-it-waits", "as-it-goes-on"])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_handler_cancelled_at_each_await_leaves_its_turn_consistent(
    store: Store, stream: bool, late: bool
) -> None:
    """As the clean-up of the server does. A turn that had begun goes on to its end."""

    def judge(seen: Seen, kept: tuple[TurnState, str] | None) -> None:
        assert kept in (None, (TurnState.COMPLETE, WHOLE))
        assert seen.status is None or kept

    assert await sweep(store, Plan("handler", late=late), stream, 1, judge) >= 3


@pytest.mark.parametrize("late", [False, True], ids=["while-it-waits", "as-it-goes-on"])
async def test_a_queued_handler_cancelled_at_each_await_leaves_the_queue(store: Store, late: bool) -> None:
    async with AsyncExitStack() as stack:
        plan = Plan("handler", late=late)
        proxy = await served(stack, store, plan)
        for at in itertools.count(1):
            hold = asyncio.Event()
            proxy.upstream.script = partial(_held, hold)
            await proxy.begin(session := f"s{at}")
            first = asyncio.create_task(ask(proxy.port, session, "x"))
            asked = len(proxy.upstream.requests) + 1
            await eventually(lambda asked=asked: len(proxy.upstream.requests) == asked)  # type: ignore[misc]
            plan.at, plan.struck = at, False
            second = asyncio.create_task(ask(proxy.port, session, "q"))
            await eventually(lambda: proxy.live.waiting or plan.struck)
            await asyncio.sleep(0.01)
            hold.set()
            seen, queued = await asyncio.gather(first, second)
            await proxy.is_idle()
            kept = await proxy.turns(session)
            assert seen.ended == "complete" and kept[0] == (TurnState.COMPLETE, WHOLE)
            assert kept[1:] in ([], [(TurnState.COMPLETE, "fine")])
            assert queued.ended != "complete" or len(kept) == 2
            assert (await ask(proxy.port, session, "y")).status == 200
            assert len(proxy.upstream.requests[-1].messages) == 2 + 2 * len(kept) + 1
            await proxy.is_idle()
            if not plan.struck:
                break
        assert len(kept) == 2 and at > 2


async def _held(hold: asyncio.Event, request: Received) -> Reply:
    if request.messages[-1] == user("x"):
        await hold.wait()
    return answer(request)
