"""An upstream that breaks at any byte of its answer, in each way that one can: what was there before stays,
what was said is kept as far as it came, and nothing that was cut looks whole.

The gate tries every tenth byte in each shape, SOAK all of them.
"""

from __future__ import annotations

import asyncio
import json
import os
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import pytest
from multidict import CIMultiDict

from proxy.context import tenants
from proxy.core.model import Message, SessionKey, Turn, TurnState
from tests.support.fakes import RawClient, Received, Reply, ScriptedUpstream, completion, eventually, sse
from tests.support.serving import RunningProxy, Serve
from tests.support.strict import problems

STEP = 1 if os.environ.get("SOAK") else 10
LANES = 4  # cases at a time, each with a proxy and an upstream of its own
PATH = "/v1/chat/completions"
COMPLETE, INTERRUPTED = TurnState.COMPLETE, TurnState.INTERRUPTED


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


BEFORE = [user("before"), assistant("as it was")]
_ASKED, _SAID = [Message(message["role"], json.dumps(message).encode()) for message in BEFORE]
OLD = Turn(id="turn_old", system=None, asked=(_ASKED,), reply=_SAID.raw, rendered=_SAID)


# What is said ------------------------------------------------------------------------------


class Kept(NamedTuple):
    """What the history gains, told by the text of the reply and whether it calls its tools."""

    state: TurnState
    text: str
    calls: bool


@dataclass(frozen=True)
class Body:
    """The body of a whole answer. `grown` are the offsets at which an event is all there, and its text; from
    `finished` on the finish_reason is, from `done` on the terminator."""

    data: bytes
    stream: bool
    grown: list[tuple[int, str]] = field(default_factory=list)
    finished: int = 0
    done: int = 2**31

    def gives(self, at: int, whole: bool, fails: bool) -> Kept | None:
        """What remains of the first `at` bytes where the transfer ended so, with an error in it or without."""
        text = "".join([text for end, text in self.grown if end <= at])
        finished = at >= self.finished
        if at >= self.done or (finished and whole and not fails):
            return Kept(COMPLETE, text, True)
        return Kept(INTERRUPTED, text, finished) if text and not fails else None


def _stream() -> Body:
    """40 events, with what splits badly: characters of two to four bytes, escapes, both line ends, calls in pieces."""
    texts = ["", "Grü", "ß", "e", " 👋", "🏽", " 日本", "\n", '"', "\u2028", "e\u0301", *[f" {n}é" for n in range(14)]]
    chunks: list[tuple[str, Any]] = [(text, {"delta": {"content": text}}) for text in texts]
    for index in range(2):
        begun = {"index": index, "id": f"call_{index}", "type": "function", "function": {"name": f"look_{index}"}}
        pieces = ['{"city"', ':"Kö', "ln", '"}']
        calls = [begun, *[{"index": index, "function": {"arguments": piece}} for piece in pieces]]
        chunks += [("", {"delta": {"tool_calls": [call]}}) for call in calls]
    chunks.append(("", {"delta": {}, "finish_reason": "tool_calls"}))
    data, grown, finished = b": hold on\r\n\r\n", [], 0
    for number, (text, choice) in enumerate(chunks):
        value = json.dumps({"choices": [choice]}, ensure_ascii=number % 5 == 4, separators=(",", ":"))
        data += (b"data:" if number % 3 else b"data: ") + value.encode()
        grown.append((len(data), text))
        finished = len(data)
        data += b"\r\n\r\n" if number % 2 else b"\n\n"
    data += b'event: usage\ndata: {"choices":[],"usage":{"total_tokens":9}}\n\n: bye\n\n'
    done = len(data) + len(b"data: [DONE]")
    return Body(data + b"data: [DONE]\n\n", True, grown, finished, done)


def _json() -> Body:
    call = {"id": "call_0", "type": "function", "function": {"name": "look", "arguments": '{"city":"Köln"}'}}
    message = {"role": "assistant", "content": "Grüße 👋", "tool_calls": [call]}
    choice = {"index": 0, "message": message, "finish_reason": "tool_calls"}
    data = json.dumps({"choices": [choice]}, ensure_ascii=False, indent=1).encode()
    return Body(data, False, [(len(data), message["content"])], len(data))  # type: ignore[list-item]


STREAM, JSON = _stream(), _json()


# How it breaks -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Shape:
    """How an answer ends behind some bytes of its body: `tail` comes then, as it is on the wire, and brings `said`.

    `whole`: the transfer ends as HTTP says. `closed`: the connection is of no more use. Not `exact`: the client
    may miss bytes before the break, and the head with them.
    """

    end: Literal["clean", "fin", "rst", "hang"]
    framing: Literal["chunked", "length", "close"] = "chunked"
    tail: bytes = b""
    said: bytes = b""
    short: int = 0  # by how many bytes the last chunk is
    whole: bool = False
    closed: bool = True
    exact: bool = True


def _chunk(data: bytes, short: int = 0) -> bytes:
    return b"%x\r\n%b%b" % (len(data) + short, data, b"" if short else b"\r\n")


_LAST = b"0\r\n\r\n"
_STRAY = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 14\r\n\r\n{"stray":true}'
_ERROR = b'\n\ndata: {"error":{"message":"the model died","code":502}}\n\n'
_LINE = b'\n\nerror: {"code":500,"message":"the model died"}\n\n'

SHAPES = {
    "FIN between chunks": Shape("fin"),
    "FIN inside a chunk": Shape("fin", short=1),
    "reset": Shape("rst", exact=False),
    "silence": Shape("hang"),
    "bad chunk size": Shape("hang", tail=b"zz\r\nab\r\n", exact=False),
    "clean end too early": Shape("clean", tail=_LAST, whole=True, closed=False),
    "close-delimited, FIN": Shape("fin", framing="close", whole=True),
    "short of its length": Shape("fin", framing="length"),
    "garbage behind the end": Shape("hang", tail=_LAST + b"\0\r\n\r\n", whole=True, exact=False),
    "another answer behind the end": Shape("clean", tail=_LAST + _STRAY, whole=True, closed=False),
    "error event, clean end": Shape("clean", tail=_chunk(_ERROR) + _LAST, said=_ERROR, whole=True, closed=False),
    "error line, clean end": Shape("clean", tail=_chunk(_LINE) + _LAST, said=_LINE, whole=True, closed=False),
}
TRANSPORTS = [name for name, shape in SHAPES.items() if not shape.said]


@dataclass
class Wire(Reply):
    """A reply whose head and pieces are on the wire as the test spells them."""

    start: bytes = b""

    def head(self) -> bytes:
        return self.start


def broken(body: Body, at: int, shape: Shape) -> Wire:
    """An answer of which `at` bytes come, in three pieces, before it ends in a shape."""
    framing = {"chunked": b"Transfer-Encoding: chunked", "length": b"Content-Length: %d" % (len(body.data) + 1)}
    kind = b"text/event-stream" if body.stream else b"application/json"
    start = b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\n%b\r\n\r\n" % (kind, framing.get(shape.framing, b"X-A: b"))
    edges = sorted({0, at * 37 % (at + 1), max(0, at - 11), at})
    pieces = [body.data[here:there] for here, there in pairwise(edges)]
    if shape.framing == "chunked":
        pieces = [_chunk(piece) for piece in pieces]
        if shape.short:
            pieces[-1:] = [_chunk(body.data[edges[-2] : at] if at else b"", shape.short)]
    return Wire(pieces=[*pieces, shape.tail], framing="length", end=shape.end, start=start)


# What is seen ------------------------------------------------------------------------------


class Seen(NamedTuple):
    """What a client got: no status where nothing came."""

    status: int | None
    data: bytes
    ended: str | None


async def ask(port: int, session: str, text: str, stream: bool = False) -> Seen:
    async with RawClient(port) as client:
        await client.post(PATH, {"messages": [user(text)], "stream": stream}, [("x-session-id", session)])
        try:
            status = (await client.head()).status
        except ConnectionError:
            return Seen(None, b"", client.ended)
        return Seen(status, await client.body(), client.ended)


def kept_of(request: Received) -> Kept | None:
    """What the request that follows a break carried of it; all else in it is as it must be."""
    old, rest, last = request.messages[:2], request.messages[2:-1], request.messages[-1]
    assert old == BEFORE and last == user("y") and problems(request.body, "openai") == []
    if not rest:
        return None
    asked, said, *results = rest
    calls = said.get("tool_calls", [])
    assert asked == user("x") and said["role"] == "assistant"
    assert [result["tool_call_id"] for result in results] == [call["id"] for call in calls]
    assert all([json.loads(call["function"]["arguments"]) == {"city": "Köln"} for call in calls])
    return Kept(COMPLETE, said["content"], bool(calls))  # of its state nothing is sent


async def try_case(proxy: RunningProxy, upstream: ScriptedUpstream, body: Body, at: int, shape: Shape) -> None:
    runtime = proxy.runtime
    key = SessionKey(tenants.tenant(runtime.config, CIMultiDict(), runtime.secret), str(at))
    await runtime.store.append(key, [OLD], runtime.now())
    upstream.requests.clear()
    upstream.script = [broken(body, at, shape), completion("fine")]
    seen = await ask(proxy.port, key.id, "x", body.stream)
    if shape.closed:
        await eventually(lambda: not upstream.connections)
    await eventually(lambda: not runtime.registry.in_use and not runtime.registry.in_flight)
    turns = (await runtime.store.load(key, runtime.now())).history.turns[1:]
    after = await ask(proxy.port, key.id, "y")
    assert (after.status, after.ended) == (200, "complete")
    sent = kept_of(upstream.requests[-1])
    kept = sent and sent._replace(state=turns[0].state)
    assert len(turns) == (1 if kept else 0) and len(upstream.requests) == 2
    await eventually(lambda: upstream.connections == 1)
    judge(body, at, shape, seen, kept)


def judge(body: Body, at: int, shape: Shape, seen: Seen, kept: Kept | None) -> None:
    """What the client saw and what is kept, against what the upstream sent."""
    came = body.data[:at] + shape.said
    expected = body.gives(at, shape.whole, bool(shape.said))
    if shape.exact:
        assert kept == expected
    else:
        assert kept in [body.gives(n, shape.whole, False) for n in range(at + 1)]
        if seen.status == 502:  # the break was read with the head
            assert kept is None and at == 0
            return
    assert came.startswith(seen.data)
    if seen.ended != "complete":
        assert seen.ended == "reset"
        assert b"[DONE]" not in seen.data or (kept and kept.state is COMPLETE)
        assert not (shape.whole and (shape.said or (expected and expected.state is COMPLETE)))
        return
    # The end is seen of what is kept whole, of an upstream's own error, and of an answer without a byte.
    # What breaks behind an end that was given is no matter.
    assert seen.data == came and (shape.whole or b"data: [DONE]" in came)
    assert (kept and kept.state is COMPLETE) or shape.said or at == 0


async def sweep(serve: Serve, body: Body, shape: Shape, first: int) -> None:
    """Cut a body in one shape at every `STEP`th byte."""
    cases = list(range(first % STEP, len(body.data) + 1, STEP))

    async def lane(cases: list[int]) -> None:
        async with ScriptedUpstream() as upstream:
            idle = "50ms" if shape.end == "hang" else "10s"
            proxy = await serve(upstream.base_url, upstream={"idle_timeout": idle})
            for at in cases:
                await try_case(proxy, upstream, body, at, shape)

    lanes = 3 * LANES if shape.end == "hang" else LANES  # those wait
    await asyncio.gather(*[lane(cases[number::lanes]) for number in range(lanes)])


@pytest.mark.parametrize("name", SHAPES)
async def test_a_stream_broken_at_any_byte_never_looks_whole(serve: Serve, name: str) -> None:
    await sweep(serve, STREAM, SHAPES[name], 3 * list(SHAPES).index(name))


@pytest.mark.parametrize("name", TRANSPORTS)
async def test_a_json_body_broken_at_any_byte_never_looks_whole(serve: Serve, name: str) -> None:
    await sweep(serve, JSON, SHAPES[name], 3 * list(SHAPES).index(name))


@pytest.mark.parametrize("end", ["fin", "rst"])
async def test_a_head_broken_at_any_byte_is_a_502(serve: Serve, end: Any) -> None:
    start = broken(STREAM, 0, SHAPES["silence"]).start
    async with ScriptedUpstream() as upstream:
        proxy = await serve(upstream.base_url)
        for at in range(len(start)):
            upstream.script = [Wire(start=start[:at], framing="length", end=end), completion("fine")]
            seen = await ask(proxy.port, str(at), "x", True)
            assert (seen.status, seen.ended) == (502, "complete")
            await eventually(lambda: not upstream.connections)
            assert (await ask(proxy.port, str(at), "y")).status == 200
            assert upstream.requests[-1].messages == [user("y")]


@pytest.mark.parametrize("at", [40, 2100, len(STREAM.data)])
async def test_a_broken_framing_is_noticed_at_once(serve: Serve, at: int) -> None:
    """aiohttp's parser closes the connection then, and tells nobody who reads."""
    async with ScriptedUpstream([broken(STREAM, at, SHAPES["bad chunk size"])]) as upstream:
        proxy = await serve(upstream.base_url, upstream={"idle_timeout": "10s"})
        async with asyncio.timeout(1):
            seen = await ask(proxy.port, "s", "x", True)
    assert seen.ended == ("complete" if b"data: [DONE]" in STREAM.data[:at] else "reset")


# What follows the end ----------------------------------------------------------------------


async def test_a_stray_answer_on_an_idle_connection_reaches_nobody(serve: Serve) -> None:
    """It lies on an idle connection: as some fronts do with a 408, or an upstream that answers twice."""
    async with ScriptedUpstream() as upstream:
        stray = broken(JSON, len(JSON.data), Shape("clean", tail=_LAST))
        stray.pieces, stray.delay = [*stray.pieces, _STRAY], 0.01
        upstream.script = [stray, completion("fine")]
        proxy = await serve(upstream.base_url)
        assert (await ask(proxy.port, "a", "x")).data == JSON.data
        await eventually(lambda: not upstream.connections)
        seen = await ask(proxy.port, "b", "y")
        assert b"fine" in seen.data and b"stray" not in seen.data
        assert [request.messages[-1] for request in upstream.requests] == [user("x"), user("y")]


async def test_an_upstream_that_hangs_after_its_terminator_delays_nobody(serve: Serve) -> None:
    async with ScriptedUpstream([sse("all", end="hang"), completion("fine")]) as upstream:
        proxy = await serve(upstream.base_url)
        async with RawClient(proxy.port) as client:
            await client.post(PATH, {"messages": [user("x")], "stream": True}, [("x-session-id", "s")])
            await client.head()
            data = b""
            while b"[DONE]" not in data:
                data += await client.piece() or b""
            assert (await ask(proxy.port, "s", "y")).status == 200
            assert upstream.requests[1].messages == [user("x"), assistant("all"), user("y")]
            assert client.ended is None and upstream.connections == 2
        await eventually(lambda: upstream.connections == 1 and not proxy.runtime.registry.in_flight, 1)


async def test_an_upstream_that_hangs_after_its_terminator_is_closed_at_idle_timeout(serve: Serve) -> None:
    async with ScriptedUpstream([sse("all", end="hang"), completion("fine")]) as upstream:
        proxy = await serve(upstream.base_url, upstream={"idle_timeout": "100ms"})
        seen = await ask(proxy.port, "s", "x", True)
        assert seen.data.endswith(b"data: [DONE]\n\n") and seen.ended == "complete"
        await eventually(lambda: not upstream.connections)
        await ask(proxy.port, "s", "y")
        assert upstream.requests[1].messages == [user("x"), assistant("all"), user("y")]


LATE = [b": cost 0.01\n\n", b'data: {"choices":[{"delta":{"content":" late"}}]}\n\n', b"data: [DONE]\n\n", b"\n" * 3]


@pytest.mark.parametrize("delay", [0, 0.02])
@pytest.mark.parametrize("late", LATE)
async def test_bytes_after_the_terminator_are_forwarded_and_not_stored(serve: Serve, late: bytes, delay: float) -> None:
    reply = sse("all", delay=delay)
    reply.pieces.append(late)
    whole = b"".join(reply.pieces)
    async with ScriptedUpstream([reply, completion("fine")]) as upstream:
        proxy = await serve(upstream.base_url)
        seen = await ask(proxy.port, "s", "x", True)
        await ask(proxy.port, "s", "y")
        assert upstream.requests[1].messages == [user("x"), assistant("all"), user("y")]
    assert (seen.data, seen.ended) == (whole, "complete")


@pytest.mark.parametrize("end", ["fin", "rst", "hang"])
async def test_a_break_after_the_finish_reason_records_all_text_as_interrupted(serve: Serve, end: Any) -> None:
    async with ScriptedUpstream([sse("al", "l", done=False, end=end), completion("fine")]) as upstream:
        proxy = await serve(upstream.base_url, upstream={"idle_timeout": "100ms"})
        seen = await ask(proxy.port, "s", "x", True)
        await eventually(lambda: not upstream.connections)
        after = await ask(proxy.port, "s", "y")
        assert upstream.requests[1].messages == [user("x"), assistant("all"), user("y")]
        key = SessionKey(tenants.tenant(proxy.runtime.config, CIMultiDict(), b"s" * 32), "s")
        turns = (await proxy.runtime.store.load(key, proxy.runtime.now())).history.turns
    assert [turn.state for turn in turns] == [INTERRUPTED, COMPLETE]
    assert seen.ended == "reset" and after.status == 200


@pytest.mark.parametrize("framing", ["chunked", "length", "close"])
@pytest.mark.parametrize("make", [sse, completion])
@pytest.mark.parametrize("over", [0, 1])
async def test_a_reply_over_the_limit_is_forwarded_without_its_end(
    serve: Serve, make: Any, framing: Any, over: int
) -> None:
    reply = make("x" * 4096, framing=framing)
    size = sum(map(len, reply.pieces))
    async with ScriptedUpstream([reply, completion("fine")]) as upstream:
        proxy = await serve(upstream.base_url, limits={"recorded_reply": f"{size - over}B"})
        seen = await ask(proxy.port, "s", "x", make is sse)
        await eventually(lambda: not proxy.runtime.registry.in_use)
        await ask(proxy.port, "s", "y")
        kept = [] if over else [user("x"), assistant("x" * 4096)]
        assert upstream.requests[1].messages == [*kept, user("y")]
    assert seen.ended == ("reset" if over else "complete")
    assert b"".join(reply.pieces).startswith(seen.data)
    if over and make is sse:
        assert b"[DONE]" not in seen.data
