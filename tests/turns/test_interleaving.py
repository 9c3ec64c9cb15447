"""Two clients on one session, interleaved as a program chooses: whatever they and the upstream do, the
history is a serial order of the turns that succeeded, and each turn was asked with what precedes it.

The requests are real ones on real sockets. The upstream stands where the proxy's HTTP client stands, so
that the program says when it speaks; the model foretells nothing and judges only what it saw.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import uvloop
from aiohttp import web
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from multidict import CIMultiDict, CIMultiDictProxy

from proxy.config.model import Config
from proxy.context.runtime import Runtime
from proxy.core.history import Session
from proxy.core.model import Answer, SessionKey, Turn, TurnState
from proxy.errors import UpstreamUnreachable
from proxy.server.app import build_app, build_runner
from proxy.stores.memory import MemoryStore
from proxy.upstream.client import Client, Response
from proxy.upstream.connection import Sink
from tests.support.fakes import RawClient, event

PROGRAMS = 2000
SETTLED = 20  # passes of the loop after which nothing moves by itself
Said = tuple[str, str]  # a message: role and content
READ_AT: ContextVar[int] = ContextVar("READ_AT", default=0)  # the tip, by number, that a request was read against


# What a program can do ---------------------------------------------------------------------


class Send(NamedTuple):
    """A client without a request in flight sends one. `list` carries the history, `edit` departs from
    it, `ahead` repeats what a turn in flight has said so far."""

    client: int
    how: str = "append"
    on_busy: str | None = None


class Leave(NamedTuple):
    client: int
    half: bool = False


class Upstream(NamedTuple):
    """One of the calls in flight goes on: says, finishes, ends, fails or breaks."""

    call: int
    does: str


class Stop(NamedTuple):
    """POST /sessions/ID/stop."""


CLIENTS = (0, 1)
STEPS: list[Send | Leave | Upstream | Stop] = [
    *[Send(n) for n in CLIENTS * 3],
    *[Upstream(n, does) for does in ("says", "ends") for n in CLIENTS * 3],
    *[Send(n, how) for how in ("list", "list", "edit", "ahead") for n in CLIENTS],
    *[Send(n, "append", busy) for busy in ("interrupt", "reject", "queue") for n in CLIENTS],
    *[Upstream(n, does) for does in ("finishes", "fails", "breaks") for n in CLIENTS],
    *[Leave(n, half) for half in (False, True) for n in CLIENTS],
    Stop(),
]
# Each step, and how many passes of the loop come before the next: none is a race, the most a pause.
Program = list[tuple[Send | Leave | Upstream | Stop, int]]
PROGRAM: st.SearchStrategy[Program] = st.lists(
    st.tuples(st.sampled_from(STEPS), st.sampled_from([SETTLED, SETTLED, 0, 1, 3, 7])), min_size=3, max_size=14
)


async def passes(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


# What a program saw ------------------------------------------------------------------------


@dataclass
class Asked:
    """A request as its client knows it."""

    text: str
    messages: list[Said]
    in_line: bool
    on_busy: str | None
    status: int = 0
    data: bytes = b""
    ended: str | None = None
    left: bool = False

    @property
    def code(self) -> str | None:
        """Of an error."""
        code: str | None = json.loads(self.data)["error"]["code"] if self.status != 200 else None
        return code

    @property
    def seen(self) -> str:
        """The text of the answer, as far as it came."""
        events = [json.loads(line[6:]) for line in self.data.split(b"\n\n") if line.startswith(b"data: {")]
        return "".join([chunk["choices"][0]["delta"].get("content", "") for chunk in events])


class Call:
    """A request as the upstream has it, and what it has answered: `said` and `status` are what the proxy took."""

    def __init__(self, asked: Asked, received: list[Said], read_at: int) -> None:
        self.asked, self.received, self.read_at = asked, received, read_at
        self.said, self.status = "", 0
        self.kept: Turn | None = None
        self.over = False  # it has ended, or the proxy has closed it
        self.told = False  # its end is on the way
        self._finished = self._begun = False
        self._script: asyncio.Queue[tuple[int | bytes | Exception | None, str]] = asyncio.Queue()

    def says(self, text: str = "+") -> None:
        if not self._begun:
            self._script.put_nowait((200, ""))
            self._begun, text = True, f"to {self.asked.text}:"
        chunk = {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]}
        self._script.put_nowait((event(chunk), text))

    def finishes(self) -> None:
        if not self._begun:
            self.says()
        if not self._finished:
            self._finished = True
            self._script.put_nowait((event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}), ""))

    def ends(self) -> None:
        self.finishes()
        self._end(b"data: [DONE]\n\n", None)

    def breaks(self) -> None:
        self._end(UpstreamUnreachable("The upstream broke off."))

    def fails(self) -> None:
        self.breaks() if self._begun else self._end(500, b'{"error":{"code":"upstream"}}', None)

    def _end(self, *last: int | bytes | Exception | None) -> None:
        self.told = True
        for step in last:
            self._script.put_nowait((step, ""))

    async def answer(self) -> Response:
        self.status = await self._next()
        return Playing(self, self.status, self._pieces())

    async def _pieces(self) -> AsyncIterator[bytes]:
        while (piece := await self._next()) is not None:
            yield piece

    async def _next(self) -> Any:
        step, text = await self._script.get()
        self.said += text
        self.over = self.over or step is None or isinstance(step, Exception)
        if isinstance(step, Exception):
            raise step
        return step


class Playing(Response):
    is_here, length = False, None

    def __init__(self, call: Call, status: int, pieces: AsyncIterator[bytes]) -> None:
        self._call, self.status, self._pieces = call, status, pieces
        self.headers = [("content-type", "text/event-stream" if status == 200 else "application/json")]
        self._named = CIMultiDictProxy(CIMultiDict(self.headers))

    def read_available(self) -> bytes:
        return b""

    async def piece(self) -> bytes:
        return await anext(self._pieces, b"")

    async def flow(self, take: Sink) -> bool:
        while piece := await self.piece():
            if not take(piece, b""):
                return True
        return False

    def close(self) -> None:
        self._call.over = True


@dataclass
class Story:
    """One session. `tips` are the histories it has had, the last one its present one."""

    session: str
    slow: int  # passes of the loop that the store takes
    tips: list[list[Said]] = field(default_factory=lambda: [[]])
    asked: dict[str, Asked] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    kept: list[Turn] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    last_in_line: int = 0  # the tip, by number, that the latest turn in line made

    def opened(self, received: list[Said], read_at: int) -> Call:
        call = Call(self.asked[received[-1][1]], received, read_at)
        if call.asked.in_line:
            if any([other.asked.in_line and not (other.over or other.kept) for other in self.calls]):
                self.faults.append(f"{call.asked.text} was asked beside another one in line")
            if read_at < self.last_in_line:
                self.faults.append(f"{call.asked.text} was read before the turn that it follows was kept")
        self.calls.append(call)
        return call

    def keep(self, turns: Sequence[Turn]) -> None:
        [turn] = turns
        self.kept.append(turn)
        text = said(turn.asked[-1].raw)[1]
        call = next(call for call in self.calls if call.asked.text == text)
        call.kept = turn
        self.tips.append([*self._before(call), call.received[-1], ("assistant", call.said)])
        if call.asked.in_line:
            self.last_in_line = len(self.tips) - 1

    def _before(self, call: Call) -> list[Said]:
        """The history that a turn is kept behind: what its client sent, and what others said meanwhile."""
        base, now, own = self.tips[call.read_at], self.tips[-1], call.received[:-1]
        if call.asked.in_line:
            return now
        if base[: len(own)] == own:
            own = [*own, *self._unseen(base, len(own), call.read_at)]
        grown = now[len(base) :]
        if not grown or now[: len(base)] != base or base[: len(call.received) - 1] != call.received[:-1]:
            return own
        begin = {self.asked[text].messages[0] for role, text in grown if role == "user"}
        return own if call.asked.messages[0] in begin else [*own, *grown]

    def _unseen(self, base: list[Said], size: int, read_at: int) -> list[Said]:
        """What of a history a list does not show, for another client said it: alone, behind what lists have shown."""
        order = {said(turn.asked[-1].raw): n for n, turn in enumerate(self.kept[:read_at])}
        on_line = [self.kept[order[message]] for message in base if message in order]
        lists = [turn for turn in on_line if turn.carries_history]
        shown = max([self.kept.index(turn) for turn in lists if not turn.is_spliced], default=-1)
        found = []
        for at in range(size, len(base), 2):
            turn = self.kept[order[base[at]]]
            if lists and at and not turn.carries_history and order[base[at]] > shown:
                found += base[at : at + 2]
        return found


def said(raw: bytes) -> Said:
    message = json.loads(raw)
    return message["role"], message["content"]


# What stands around the proxy --------------------------------------------------------------


class World:
    """The proxy on a socket, its store and its upstream: one for all programs, each on a session of its own."""

    story: Story

    def __init__(self) -> None:
        self.names = itertools.count(1)
        self.endings: Counter[str] = Counter()
        self.idle: list[Person] = []
        config = Config.model_validate({"upstreams": [{"base_url": "http://upstream"}]})
        ids = (f"turn_{n}" for n in itertools.count(1))
        self.runtime = Runtime(config, Watched(self), Voice(self), b"s" * 32, lambda: 0, lambda: next(ids))
        self.runtime.poller.hurries = lambda: True  # steps of the loop are what is counted here: a reset takes no time

    async def start(self) -> None:
        self.runner = build_runner(build_app(self.runtime), self.runtime.config)
        await self.runner.setup()
        await web.TCPSite(self.runner, "127.0.0.1", 0).start()
        self.port: int = self.runner.addresses[0][1]

    def person(self) -> Person:
        """One who has a connection already, if there is one: to connect takes as long as a turn."""
        return self.idle.pop() if self.idle else Person(self.port)

    async def close(self) -> None:
        for person in self.idle:
            await person.close()
        await self.runner.cleanup()


class Watched(MemoryStore):
    """Tells the story which histories there were, and which of them a request was read against."""

    def __init__(self, world: World) -> None:
        super().__init__(ttl=1)
        self._world = world

    async def load(self, key: SessionKey, now: int, in_use: bool = False) -> Session:
        session = await super().load(key, now, in_use)
        READ_AT.set(len(self._world.story.tips) - 1)
        await passes(self._world.story.slow)
        return session

    async def append(
        self, key: SessionKey, turns: Sequence[Turn], now: int, drop: Sequence[str] = (), answer: Answer | None = None
    ) -> None:
        await passes(self._world.story.slow)
        await super().append(key, turns, now, drop, answer)
        self._world.story.keep(turns)
        await passes(self._world.story.slow)


class Voice(Client):
    def __init__(self, world: World) -> None:
        self._world = world

    async def ask(self, method: str, url: str, headers: Any, body: Any, times: Any) -> Response:
        received = [(message["role"], message["content"]) for message in json.loads(b"".join(body))["messages"]]
        call = self._world.story.opened(received, READ_AT.get())
        try:
            return await call.answer()
        except BaseException:
            call.over = True
            raise


class Person:
    """A client: one request at a time, on a connection that it keeps as long as it can."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._raw: RawClient | None = None
        self._asked: Asked | None = None
        self._reading: asyncio.Task[None] | None = None
        self._left: list[RawClient] = []

    @property
    def waits(self) -> bool:
        return self._reading is not None and not self._reading.done()

    async def post(self, path: str, headers: list[tuple[str, str]], asked: Asked) -> None:
        if self._raw is None:
            self._raw = await RawClient(self._port).__aenter__()
        messages = [{"role": role, "content": content} for role, content in asked.messages]
        self._asked = asked
        await self._raw.post(path, {"messages": messages, "stream": True}, headers)
        self._reading = asyncio.create_task(self._read(self._raw, asked))

    async def _read(self, raw: RawClient, asked: Asked) -> None:
        with suppress(ConnectionError):
            asked.status = (await raw.head()).status
            asked.data = await raw.body()
        asked.ended = raw.ended
        if asked.ended != "complete":
            await self.close()

    async def leave(self, half: bool) -> None:
        if self._raw and self._asked and self._reading and self.waits:
            self._asked.left = True
            self._reading.cancel()
            await asyncio.wait([self._reading])
            with suppress(OSError):  # it may have been reset in the same moment
                self._raw.half_close() if half else self._raw.abort()
            self._left.append(self._raw)
            self._raw = None

    async def close(self) -> None:
        await self.forget()
        if self._raw:
            await self._raw.__aexit__()
        self._raw = None

    async def forget(self) -> None:
        """Close what was left half-closed."""
        for raw in self._left:
            await raw.__aexit__()
        self._left.clear()


# The run of one program --------------------------------------------------------------------


class Run:
    def __init__(self, world: World, slow: int) -> None:
        self.world = world
        self.story = world.story = Story(f"s{next(world.names)}", slow)
        self.people = [world.person() for _ in CLIENTS]
        self.others: list[Person] = []
        self._headers = [("sessionId", self.story.session)]
        self._texts = itertools.count(1)

    async def play(self, program: Program) -> None:
        for step, pause in program:
            match step:
                case Send(client, how, on_busy):
                    await self._send(self.people[client], how, on_busy)
                case Leave(client, half):
                    await self.people[client].leave(half)
                case Upstream(number, does):
                    if calls := [call for call in self.story.calls if not (call.over or call.told)]:
                        getattr(calls[number % len(calls)], does)()
                case Stop():
                    path = f"/sessions/{self.story.session}/stop"
                    await self._other().post(path, [], Asked("", [], False, None))
            await passes(pause)
        await self._wait()
        await self._send(self._other(), "append", None)
        await self._wait()

    def _other(self) -> Person:
        self.others.append(self.world.person())
        return self.others[-1]

    async def _send(self, person: Person, how: str, on_busy: str | None) -> None:
        if person.waits:
            return
        text, before = f"u{next(self._texts)}", self._list(how)
        headers = [*self._headers, ("x-session-on-busy", on_busy)] if on_busy else self._headers
        asked = Asked(text, [*before, ("user", text)], not before, on_busy)
        self.story.asked[text] = asked
        await person.post("/v1/chat/completions", headers, asked)

    def _list(self, how: str) -> list[Said]:
        """What a client puts in front of its message."""
        tip = self.story.tips[-1]
        if how == "list":
            return tip
        if how == "edit":
            return tip[: max(2, len(tip) - 2)]
        for call in self.story.calls:
            if how == "ahead" and tip and call.said and not call.kept:
                return [*call.received, ("assistant", call.said)]
        return []

    async def _wait(self) -> None:
        """Let the upstream end whatever it was asked, until nobody waits for anything."""
        live = self.world.runtime.registry
        for _ in range(200):
            waiting = [person for person in (*self.people, *self.others) if person.waits]
            if not waiting and not live.in_use and not live.in_flight:
                return
            for call in self.story.calls:
                if not (call.over or call.told):
                    call.ends()
            await passes(SETTLED)
        raise AssertionError(f"it never ended: {live.in_use}")

    async def close(self) -> None:
        for person in (*self.people, *self.others):
            await person.leave(False)
            await person.forget()
            self.world.idle.append(person)


# The rule ----------------------------------------------------------------------------------


def check(story: Story, store: Session) -> Iterator[str]:
    """Judge what was seen; gives how each request ended."""
    assert not story.faults
    calls = {call.asked.text: call for call in story.calls}
    assert len(calls) == len(story.calls), "a request went upstream twice"
    assert len({turn.id for turn in story.kept}) == len(story.kept) == len([c for c in calls.values() if c.kept])
    assert [said(entry.message.raw) for entry in store.history.path] == story.tips[-1]
    for call in calls.values():
        carries_history = len(call.asked.messages) > 1
        assert call.received == ([] if carries_history else story.tips[call.read_at]) + call.asked.messages
        assert (call.kept is not None) == bool(call.said), "what was said is kept, and nothing else"
        assert call.kept is None or said(call.kept.reply) == ("assistant", call.said)
    for asked in story.asked.values():
        yield judged(asked, calls.get(asked.text))


def judged(asked: Asked, call: Call | None) -> str:
    """How a request ended: what its client saw is what was kept."""
    kept = call.kept if call else None
    if asked.left:
        return "left" if kept is None else f"left, {kept.state}"
    if asked.status == 200:
        assert call and call.said.startswith(asked.seen)
        whole = asked.ended == "complete"
        assert whole == asked.data.endswith(b"data: [DONE]\n\n")
        if whole:
            assert kept and kept.state is TurnState.COMPLETE and asked.seen == call.said
            return "complete"
        assert kept is None or kept.state is TurnState.INTERRUPTED
        return "cut" if kept else "cut, silent"
    assert kept is None
    if asked.ended == "reset":
        assert call and asked.status == call.status == 500
        return "error, cut"  # a stop came while the upstream's error was on its way
    assert asked.ended == "complete"
    told = asked.status, asked.code
    if told == (409, "session_busy"):
        assert asked.on_busy == "reject" and call is None
    elif told != (409, "turn_stopped"):
        assert call and told == {500: (500, "upstream"), 0: (502, "upstream_unreachable")}[call.status]
    return str(asked.code)


ENDINGS = {
    *("complete", "cut", "left", "left, complete", "left, cut"),
    *("session_busy", "turn_stopped", "upstream", "upstream_unreachable"),
}


@contextmanager
def world_on(runner: asyncio.Runner) -> Iterator[World]:
    world = World()
    runner.run(world.start())
    try:
        yield world
    finally:
        runner.run(world.close())


def test_the_history_is_a_serial_order_of_the_turns_that_succeeded() -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner, world_on(runner) as world:

        @settings(max_examples=PROGRAMS, suppress_health_check=list(HealthCheck))
        @given(PROGRAM, st.sampled_from([0, 1, 4]))
        def run(program: Program, slow: int) -> None:
            runner.run(one(program, slow))

        async def one(program: Program, slow: int) -> None:
            played = Run(world, slow)
            try:
                await played.play(program)
            finally:
                await played.close()
            key = SessionKey(b"", played.story.session)
            key = next(known for known in world.runtime.store._rows if known.id == key.id)  # type: ignore[attr-defined]
            world.endings.update(check(played.story, await world.runtime.store.load(key, 0)))

        run()
    assert {ending for ending in ENDINGS if world.endings[ending] >= PROGRAMS // 100} == ENDINGS, world.endings
