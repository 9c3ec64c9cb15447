"""Recorded turns through the real application, on real sockets: what the upstream receives, what the
client receives and when, and what is kept."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import Sequence
from typing import Any

import pytest

from proxy.core.model import SessionKey, Turn
from proxy.errors import StoreUnavailable
from proxy.stores.memory import MemoryStore
from tests.support.fakes import RawClient, Reply, ScriptedUpstream, completion, error, eventually, sse
from tests.support.serving import Serve

SESSION = [("sessionId", "s1")]


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


async def ask(
    port: int, *messages: Any, session: str | None = "s1", path: str = "/v1/chat/completions", **more: Any
) -> RawClient:
    """Send one chat request and read its answer to the end."""
    headers = [("sessionId", session)] if session is not None else []
    headers += more.pop("headers", [])
    async with RawClient(port) as client:
        await client.post(path, {"model": "m", "messages": list(messages), **more}, headers)
        client.answer = await client.head()  # type: ignore[attr-defined]
        client.data = await client.body()  # type: ignore[attr-defined]
    return client


def header(client: Any, name: str) -> str | None:
    value: str | None = client.answer.header(name)
    return value


@pytest.mark.parametrize("stream", [False, True])
async def test_the_second_request_carries_the_first_turn(serve: Serve, stream: bool) -> None:
    async with ScriptedUpstream([sse("Hel", "lo") if stream else completion("Hello"), completion("Alice")]) as upstream:
        proxy = await serve(upstream.base_url)
        first = await ask(proxy.port, user("I am Alice"), stream=stream)
        second = await ask(proxy.port, user("Who am I?"))
        assert upstream.requests[0].messages == [user("I am Alice")]
        assert upstream.requests[1].messages == [user("I am Alice"), assistant("Hello"), user("Who am I?")]
    assert (header(first, "x-session-state"), header(first, "x-session-injected")) == ("new", "0")
    assert (header(second, "x-session-state"), header(second, "x-session-injected")) == ("continued", "2")
    assert header(second, "x-session-decision") == "append"
    assert header(first, "x-session-turn") != header(second, "x-session-turn")


@pytest.mark.parametrize("name", ["sessionId", "SESSIONID", "session-id", "X-Session-Id", "session_id"])
@pytest.mark.parametrize(
    "path", ["/v1", "/v1/", "/api/publicLLM", "/v1/openai/deployments/d/chat/completions?api-version=1"]
)
async def test_every_header_name_and_path_of_a_recorded_turn(serve: Serve, name: str, path: str) -> None:
    async with ScriptedUpstream() as upstream:
        proxy = await serve(upstream.base_url)
        for text in ("a", "b"):
            await ask(proxy.port, user(text), session=None, headers=[(name, "s")], path=path)
        target = path.removeprefix("/v1").removeprefix("/api/publicLLM").rstrip("/") or "/chat/completions"
        assert [request.target for request in upstream.requests] == ["/v1" + target] * 2
        assert len(upstream.requests[1].messages) == 3
        assert all(
            upstream.requests[1].header(sent) is None
            for sent in ("sessionid", "session-id", "x-session-id", "session_id")
        )


async def test_other_request_members_reach_the_upstream_byte_for_byte(serve: Serve) -> None:
    numbers = b'{ "temperature" : 1.0,"big":1e400, "id": 123456789012345678901234567890,\n'
    before = numbers + b'"esc":"\\u00e9\\ud83d\\/", "messages" :'
    after = b', "tools":[ {"x": 1.50} ] ,"z":{"b":1,"a":2}}\n'
    async with ScriptedUpstream() as upstream:
        proxy = await serve(upstream.base_url)
        await ask(proxy.port, user("first"))
        async with RawClient(proxy.port) as client:
            await client.request(
                "POST", "/v1/chat/completions", SESSION, before + b' [ {"content": "\\u0061", "role":"user"} ]' + after
            )
            await client.head()
            await client.body()
        sent = upstream.requests[1].body
    assert sent.startswith(before) and sent.endswith(after)
    assert b'{"content": "\\u0061", "role":"user"}' in sent


async def test_the_newest_system_prompt_replaces_the_remembered_one(serve: Serve) -> None:
    old, new = {"role": "system", "content": "old"}, {"role": "developer", "content": "new"}
    async with ScriptedUpstream() as upstream:
        proxy = await serve(upstream.base_url)
        await ask(proxy.port, old, user("1"))
        await ask(proxy.port, user("2"))
        await ask(proxy.port, new, user("3"))
        await ask(proxy.port, user("4"))
        leading = [request.messages[0] for request in upstream.requests]
        others = [message for request in upstream.requests for message in request.messages[1:]]
    assert leading == [old, old, new, new]
    assert not [message for message in others if message["role"] in ("system", "developer")]


async def test_the_same_session_id_under_another_key_is_another_session(serve: Serve) -> None:
    async with ScriptedUpstream() as upstream:
        proxy = await serve(upstream.base_url)
        await ask(proxy.port, user("secret"), headers=[("Authorization", "Bearer a")])
        foreign = await ask(proxy.port, user("hello"), headers=[("Authorization", "Bearer b")])
        assert upstream.requests[1].messages == [user("hello")]
    assert header(foreign, "x-session-state") == "new"


async def test_each_event_reaches_the_client_before_the_upstream_sends_the_next(serve: Serve) -> None:
    arrived = asyncio.Semaphore(0)

    async def gate(index: int) -> None:
        if index:
            await asyncio.wait_for(arrived.acquire(), 5)

    reply = sse("a", "b", "c")
    pieces, reply.gate = list(reply.pieces), gate
    async with ScriptedUpstream([reply]) as upstream:
        proxy = await serve(upstream.base_url)
        async with RawClient(proxy.port) as client:
            await client.post("/v1/chat/completions", {"messages": [user("x")], "stream": True}, SESSION)
            await client.head()
            for piece in pieces:
                assert await client.piece() == piece
                arrived.release()
            assert await client.piece() is None


class GatedStore(MemoryStore):
    """A store whose disk takes as long, or fails, as the test wants."""

    def __init__(self, ttl: int) -> None:
        super().__init__(ttl)
        self.reached, self.go, self.fails = asyncio.Event(), asyncio.Event(), False

    async def append(self, key: SessionKey, turns: Sequence[Turn], now: int, *more: Any) -> None:
        self.reached.set()
        await self.go.wait()
        if self.fails:
            raise StoreUnavailable("the disk is full")
        await super().append(key, turns, now, *more)


WAYS: list[tuple[Reply, bytes]] = [
    (sse("a"), b"data: [DONE]\n\n"),
    (sse("a", done=False), b""),
    (sse("a", done=False, framing="length"), b"\n"),
    (sse("a", framing="close"), b"data: [DONE]\n\n"),
    (completion("a", framing="chunked"), b""),
    (completion("a", framing="close"), b""),
]


@pytest.mark.parametrize(("reply", "held"), WAYS)
async def test_the_end_of_an_answer_is_held_for_the_commit_alone(serve: Serve, reply: Reply, held: bytes) -> None:
    store = GatedStore(10**9)
    whole = b"".join(reply.pieces)
    async with ScriptedUpstream([reply]) as upstream:
        proxy = await serve(upstream.base_url, store=store)
        async with RawClient(proxy.port) as client:
            await client.post("/v1/chat/completions", {"messages": [user("x")]}, SESSION)
            await client.head()
            got = b""
            while len(got) < len(whole) - len(held):
                got += await client.piece() or b""
            await asyncio.wait_for(store.reached.wait(), 5)
            assert got == whole[: len(whole) - len(held)] and client.ended is None
            store.go.set()
            assert got + await client.body() == whole and client.ended == "complete"


async def test_an_answer_in_one_piece_is_held_whole(serve: Serve) -> None:
    store = GatedStore(10**9)
    async with ScriptedUpstream([completion("a")]) as upstream:
        proxy = await serve(upstream.base_url, store=store)
        asking = asyncio.create_task(ask(proxy.port, user("x")))
        await asyncio.wait_for(store.reached.wait(), 5)
        await asyncio.sleep(0.05)
        assert not asking.done()
        store.go.set()
        assert (await asking).ended == "complete"


async def test_a_failed_commit_turns_a_held_answer_into_an_error(serve: Serve) -> None:
    store = GatedStore(10**9)
    store.fails = True
    store.go.set()
    async with ScriptedUpstream([completion("a"), completion("b")]) as upstream:
        proxy = await serve(upstream.base_url, store=store)
        failed = await ask(proxy.port, user("x"))
        store.fails = False
        assert (await ask(proxy.port, user("y"))).ended == "complete"
        assert upstream.requests[1].messages == [user("y")]
    assert (failed.answer.status, failed.ended) == (503, "complete")  # type: ignore[attr-defined]
    assert json.loads(failed.data)["error"]["code"] == "store_unavailable"  # type: ignore[attr-defined]


@pytest.mark.parametrize(("reply", "held"), WAYS)
async def test_after_a_failed_commit_the_end_is_never_sent(serve: Serve, reply: Reply, held: bytes) -> None:
    store = GatedStore(10**9)
    store.fails = True
    store.go.set()
    async with ScriptedUpstream([reply, completion("b")]) as upstream:
        proxy = await serve(upstream.base_url, store=store)
        broken = await ask(proxy.port, user("x"))
        store.fails = False
        await ask(proxy.port, user("y"))
        assert upstream.requests[1].messages == [user("y")]
    assert broken.ended == "reset"


@pytest.mark.parametrize(
    "reply",
    [
        error(
            429,
            {"error": {"message": "slow down"}},
            headers=[("Retry-After", "3"), ("Content-Type", "application/json")],
        ),
        error(200, {"error": {"message": "no"}}),
        error(502, b"<html>bad gateway</html>"),
        sse("a", done=False, finish=None, end="clean", pieces=[b'data: {"error":{"message":"no"}}\n\n']),
    ],
)
async def test_an_upstream_error_is_forwarded_unchanged_and_not_recorded(serve: Serve, reply: Reply) -> None:
    async with ScriptedUpstream([reply, completion("b")]) as upstream:
        proxy = await serve(upstream.base_url)
        failed: Any = await ask(proxy.port, user("x"))
        await ask(proxy.port, user("y"))
        assert upstream.requests[1].messages == [user("y")]
    assert failed.ended == "complete" and failed.data == b"".join(reply.pieces)
    assert failed.answer.status == reply.status
    if reply.status != 200:
        assert not [name for name, _ in failed.answer.headers if name.lower().startswith("x-session")]


BREAKS = [  # and what of each is kept, as a cut turn
    (sse("a", "b", done=False, finish=None), "ab"),  # a clean end without a sign of it
    (sse("a", "b", done=False, finish=None, framing="close"), "ab"),
    (sse("a", "b", done=False, end="fin"), "ab"),
    (sse("a", "b", done=False, end="rst"), "ab"),
    (sse(done=False, finish=None, end="fin"), None),
    (sse("a", pieces=[b'data: {"choi'], end="rst"), None),
    (completion("a", end="fin"), "a"),
    (completion("a", pieces=[b'{"choices":[{"mess'], end="rst", framing="chunked"), None),
    (completion("a", pieces=[b'{"choices":[{"mess'], framing="close"), None),
]


@pytest.mark.parametrize(("reply", "kept"), BREAKS)
@pytest.mark.parametrize("version", ["HTTP/1.1", "HTTP/1.0"])
async def test_a_broken_answer_ends_in_a_reset_and_is_recorded_as_interrupted(
    serve: Serve, reply: Reply, kept: str | None, version: str
) -> None:
    body = json.dumps({"messages": [user("x")]}).encode()
    async with ScriptedUpstream([reply, completion("b")]) as upstream:
        proxy = await serve(upstream.base_url)
        async with RawClient(proxy.port) as client:
            head = f"POST /v1 {version}\r\nHost: x\r\nsessionId: s1\r\nContent-Length: {len(body)}\r\n\r\n"
            await client.send(head.encode() + body)
            await client.head()
            await client.body()
        await ask(proxy.port, user("y"))
        before = [user("x"), assistant(kept)] if kept else []
        assert upstream.requests[1].messages == [*before, user("y")]
    assert client.ended == "reset"


async def test_an_answer_is_recorded_although_its_client_disconnected(serve: Serve) -> None:
    leave = asyncio.Event()

    async def gate(index: int) -> None:
        if index == 2:
            await leave.wait()

    async with ScriptedUpstream([sse("a", "b", "c", gate=gate), completion("d")]) as upstream:
        proxy = await serve(upstream.base_url)
        async with RawClient(proxy.port) as client:
            await client.post("/v1/chat/completions", {"messages": [user("x")], "stream": True}, SESSION)
            await client.head()
            await client.piece()
            client.abort()
        leave.set()
        await ask(proxy.port, user("y"))
        assert upstream.requests[1].messages == [user("x"), assistant("abc"), user("y")]


async def test_turns_of_one_session_run_in_order_of_arrival(serve: Serve) -> None:
    async with ScriptedUpstream() as upstream:
        proxy = await serve(upstream.base_url)
        await asyncio.gather(*[ask(proxy.port, user(str(n))) for n in range(8)])
        counts = [len(request.messages) for request in upstream.requests]
    assert counts == [1, 3, 5, 7, 9, 11, 13, 15]


async def test_a_full_queue_and_a_long_wait_are_refused(serve: Serve) -> None:
    hold = asyncio.Event()

    async def gate(index: int) -> None:
        await hold.wait()

    async with ScriptedUpstream([completion("a", gate=gate), completion("b")]) as upstream:
        proxy = await serve(upstream.base_url, sessions={"queue_limit": 1, "queue_timeout": "200ms"})
        first = asyncio.create_task(ask(proxy.port, user("1")))
        await eventually(lambda: upstream.requests)
        second = asyncio.create_task(ask(proxy.port, user("2")))
        await proxy.in_line()
        full: Any = await ask(proxy.port, user("3"))
        busy: Any = await second
        hold.set()
        await first
    assert (full.answer.status, json.loads(full.data)["error"]["code"]) == (429, "session_queue_full")
    assert (busy.answer.status, json.loads(busy.data)["error"]["code"]) == (409, "session_busy")
    assert full.answer.header("retry-after") and busy.answer.header("retry-after")


async def test_store_no_uses_the_history_and_records_nothing(serve: Serve) -> None:
    async with ScriptedUpstream() as upstream:
        proxy = await serve(upstream.base_url)
        await ask(proxy.port, user("1"))
        await ask(proxy.port, user("title?"), headers=[("x-session-store", "no")])
        await ask(proxy.port, user("2"))
        assert [len(request.messages) for request in upstream.requests] == [1, 3, 3]
        assert upstream.requests[1].header("x-session-store") is None


async def test_must_exist_answers_404_for_a_new_session(serve: Serve) -> None:
    async with ScriptedUpstream() as upstream:
        proxy = await serve(upstream.base_url)
        missing: Any = await ask(proxy.port, user("1"), headers=[("x-session-must-exist", "yes")])
        await ask(proxy.port, user("1"))
        found: Any = await ask(proxy.port, user("2"), headers=[("x-session-must-exist", "yes")])
        assert len(upstream.requests) == 2
    assert (missing.answer.status, json.loads(missing.data)["error"]["code"]) == (404, "session_not_found")
    assert found.answer.status == 200


async def test_a_dry_run_answers_the_body_that_would_be_sent(serve: Serve) -> None:
    async with ScriptedUpstream() as upstream:
        proxy = await serve(upstream.base_url)
        await ask(proxy.port, {"role": "system", "content": "S"}, user("1"))
        dry: Any = await ask(proxy.port, user("2"), headers=[("x-session-dry-run", "yes")])
        await ask(proxy.port, user("2"))
        plan = json.loads(dry.data)
        assert plan["body"].encode() == upstream.requests[1].body
        assert len(upstream.requests) == 2
    assert [message["from"] for message in plan["messages"]] == ["history", "history", "history", "request"]
    assert plan["injected"] == 3


async def test_affinity_is_a_keyed_hash_and_never_the_id(serve: Serve) -> None:
    async with ScriptedUpstream() as upstream:
        by_header = await serve(upstream.base_url, upstream={"affinity": {"header": "x-session-affinity"}})
        by_body = await serve(upstream.base_url, upstream={"affinity": {"body": "prompt_cache_key"}})
        await ask(by_header.port, user("1"))
        await ask(by_body.port, user("1"))
        await ask(by_body.port, user("2"), prompt_cache_key="mine")
        value, member, own = upstream.requests
    assert value.header("x-session-affinity") == member.json["prompt_cache_key"] != "s1"
    assert own.json["prompt_cache_key"] == "mine"


def squeezed(body: bytes) -> bytes:
    return gzip.compress(body, mtime=0)  # a time in it would be in the test's name


BAD: list[tuple[bytes, list[tuple[str, str]], int, str]] = [
    (b"{", SESSION, 400, "invalid_request"),
    (b"[]", SESSION, 400, "invalid_request"),
    (b'{"model":"m"}', SESSION, 400, "invalid_request"),
    (b'{"messages":"hi"}', SESSION, 400, "invalid_request"),
    (b'{"messages":[],"messages":[]}', SESSION, 400, "invalid_request"),
    (b'{"messages":[]}', [("sessionId", "a"), ("x-session-id", "b")], 400, "conflicting_session_id"),
    (b'{"messages":[]}', [("sessionId", "")], 400, "invalid_session_id"),
    (b'{"messages":[]}', [("sessionId", "x" * 257)], 400, "invalid_session_id"),
    (b'{"messages":[]}', [*SESSION, ("Content-Encoding", "gzip")], 415, "unsupported_encoding"),
    (b'{"messages":[]}', [*SESSION, ("Content-Encoding", "compress")], 415, "unsupported_encoding"),
    (squeezed(b'{"messages":[]}')[:-1], [*SESSION, ("Content-Encoding", "gzip")], 400, "invalid_request"),
    (squeezed(b"{"), [*SESSION, ("Content-Encoding", "gzip")], 400, "invalid_request"),
    (
        squeezed(b" " * 5000 + b'{"messages":[]}'),
        [*SESSION, ("Content-Encoding", "gzip")],
        413,
        "request_too_large",
    ),
    (squeezed(b" " * 1_000_000), [*SESSION, ("Content-Encoding", "gzip, gzip")], 415, "unsupported_encoding"),
    (squeezed(b"") * 30, [*SESSION, ("Content-Encoding", "gzip")], 400, "invalid_request"),
    (b'{"messages":[]}', [*SESSION, ("x-session-store", "maybe")], 400, "invalid_request"),
    (b'{"messages":["' + b"x" * 5000 + b'"]}', SESSION, 413, "request_too_large"),
]


@pytest.mark.parametrize(("body", "headers", "status", "code"), BAD)
async def test_bad_input_gets_a_clear_error_and_records_nothing(
    serve: Serve, body: bytes, headers: list[tuple[str, str]], status: int, code: str
) -> None:
    async with ScriptedUpstream() as upstream:
        proxy = await serve(upstream.base_url, limits={"request_body": "4KiB"})
        async with RawClient(proxy.port) as client:
            await client.request("POST", "/v1/chat/completions", headers, body)
            answer = await client.head()
            document = json.loads(await client.body())
        assert not upstream.requests
        after: Any = await ask(proxy.port, user("works"))
    assert (answer.status, document["error"]["code"]) == (status, code)
    assert set(document["error"]) == {"message", "type", "param", "code"} and "Traceback" not in str(document)
    assert header(after, "x-session-state") == "new"


async def test_a_request_body_has_a_deadline(serve: Serve) -> None:
    async with ScriptedUpstream() as upstream:
        proxy = await serve(upstream.base_url, limits={"body_timeout": "100ms"})
        async with RawClient(proxy.port) as client:
            await client.send(b"POST /v1 HTTP/1.1\r\nHost: x\r\nsessionId: s1\r\nContent-Length: 99\r\n\r\n{")
            answer = await client.head()
            assert answer.status == 408
    assert not upstream.requests


@pytest.mark.parametrize("leave", [RawClient.half_close, RawClient.abort])
async def test_a_truncated_request_records_nothing_and_frees_its_queue_slot(serve: Serve, leave: Any) -> None:
    async with ScriptedUpstream() as upstream:
        proxy = await serve(upstream.base_url)
        async with RawClient(proxy.port) as client:
            await client.send(b"POST /v1 HTTP/1.1\r\nHost: x\r\nsessionId: s1\r\nContent-Length: 99\r\n\r\n{")
            leave(client)
        after: Any = await ask(proxy.port, user("works"))
        assert len(upstream.requests) == 1
    assert header(after, "x-session-state") == "new" and not proxy.runtime.registry.in_use


async def test_an_answer_over_the_limit_is_forwarded_without_its_end(serve: Serve) -> None:
    async with ScriptedUpstream([sse("x" * 5000), completion("b")]) as upstream:
        proxy = await serve(upstream.base_url, limits={"recorded_reply": "4KiB"})
        big: Any = await ask(proxy.port, user("x"), stream=True)
        await ask(proxy.port, user("y"))
        assert upstream.requests[1].messages == [user("y")]
    assert big.ended == "reset" and b"[DONE]" not in big.data


async def test_an_unasked_compressed_answer_is_decompressed(serve: Serve) -> None:
    plain = b"".join(sse("Hello").pieces)
    squeezed = gzip.compress(plain)
    reply = sse(
        pieces=[squeezed[:20], squeezed[20:]],
        headers=[("Content-Type", "text/event-stream"), ("Content-Encoding", "gzip")],
    )
    async with ScriptedUpstream([reply, completion("b")]) as upstream:
        proxy = await serve(upstream.base_url)
        first: Any = await ask(proxy.port, user("x"), headers=[("Accept-Encoding", "gzip")])
        await ask(proxy.port, user("y"))
        assert upstream.requests[0].header("accept-encoding") == "identity"
        assert upstream.requests[1].messages == [user("x"), assistant("Hello"), user("y")]
    assert first.data == plain and first.answer.header("content-encoding") is None


async def test_a_client_that_stops_reading_is_dropped_and_its_turn_recorded(serve: Serve) -> None:
    reply = sse(*["x" * 60000 for _ in range(200)])
    async with ScriptedUpstream([reply, completion("b")]) as upstream:
        proxy = await serve(upstream.base_url, limits={"write_timeout": "200ms"})
        async with RawClient(proxy.port) as client:
            await client.post("/v1/chat/completions", {"messages": [user("x")], "stream": True}, SESSION)
            await client.head()
            await eventually(lambda: not proxy.runtime.registry.in_flight)
            second: Any = await ask(proxy.port, user("y"))
        assert second.answer.status == 200
        assert len(upstream.requests[1].messages[1]["content"]) == 200 * 60000


async def test_a_drain_refuses_new_turns_and_interrupts_unfinished_ones(serve: Serve) -> None:
    async with ScriptedUpstream([sse("a", end="hang", done=False)]) as upstream:
        proxy = await serve(upstream.base_url)
        async with RawClient(proxy.port) as client:
            await client.post("/v1/chat/completions", {"messages": [user("x")], "stream": True}, SESSION)
            await client.head()
            draining = asyncio.create_task(proxy.runtime.registry.drain(0.2))
            await eventually(lambda: proxy.runtime.registry.draining)
            refused: Any = await ask(proxy.port, user("y"))
            await client.body()
            await draining
    assert refused.answer.status == 503 and client.ended == "reset"
    assert proxy.runtime.registry.in_flight == 0 and not proxy.runtime.registry.in_use


async def test_a_drain_refuses_queued_requests(serve: Serve) -> None:
    hold = asyncio.Event()

    async def gate(index: int) -> None:
        await hold.wait()

    async with ScriptedUpstream([completion("a", gate=gate)]) as upstream:
        proxy = await serve(upstream.base_url)
        first = asyncio.create_task(ask(proxy.port, user("1")))
        await eventually(lambda: upstream.requests)
        waiting = [asyncio.create_task(ask(proxy.port, user(str(n)))) for n in (2, 3)]
        await proxy.in_line(2)
        draining = asyncio.create_task(proxy.runtime.registry.drain(5))
        await asyncio.sleep(0)
        hold.set()
        done: Any = await first
        refused: list[Any] = await asyncio.gather(*waiting)
        await draining
        assert len(upstream.requests) == 1
    assert done.answer.status == 200 and [client.answer.status for client in refused] == [503, 503]
    assert not proxy.runtime.registry.in_use
