"""Bodies that are not as they should be, both ways: an answer that came whole reaches its client whole, and what a
client's library reads of it is in the history; a request in an encoding is read."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import brotli
import pytest
import zstandard

from tests.support.fakes import RawClient, Received, Reply, ScriptedUpstream, completion, sse
from tests.support.serving import RunningProxy, Serve
from tests.support.strict import problems
from tests.support.talk import assistant, user

GOOD = completion("hello").pieces[0]
ODD: dict[str, tuple[str, bytes, str | None, str | None]] = {  # content type, body, what is recorded, why nothing is
    "[DONE] behind the JSON": ("text/event-stream", GOOD + b"\n\ndata: [DONE]\n\n", None, "unreadable"),
    "NaN": ("application/json", GOOD.replace(b'"finish', b'"logprobs": NaN, "finish'), "hello", None),
    "a byte order mark": ("application/json", b"\xef\xbb\xbf" + GOOD, "hello", None),
    "bytes that are no UTF-8": ("application/json", GOOD.replace(b"hello", b"hel\xff"), "hel\ufffd", None),
    "UTF-16": ("application/json", GOOD.decode().encode("utf-16"), "hello", None),
    "a raw tab": ("application/json", GOOD.replace(b"hello", b"hel\tlo"), None, "unreadable"),
    "lines of JSON": ("application/x-ndjson", b'{"message":{"content":"a"}}\n{"done":true}\n', None, "unreadable"),
    "a page": ("text/html", b"<html>hello</html>", None, "unreadable"),
    "an error": ("application/json", b'{"error":{"message":"overloaded"}}', None, "error"),
    "a list of models": ("application/json", b'{"object":"list","data":[]}', None, "empty"),
    "plain text": ("text/plain", b"hello there", "hello there", None),
    "plain text that says it is JSON": ("application/json", b"hello there", "hello there", None),
    "a picture": ("image/png", b"\x89PNG\r\n\x1a\n\0\0", None, None),
    "events that are no JSON": ("text/event-stream", b"data: hello\n\ndata: there\n\n", None, None),
}


@dataclass
class AtOnce(Reply):
    """Its head and its body come in one write."""

    def head(self) -> bytes:
        body = b"".join(self.pieces)
        if self.framing == "chunked":
            body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
        head, self.pieces, self.framing = super().head(), [], "length"
        return head + body


def at_once(kind: str, body: bytes, framing: Any = "length", headers: Any = ()) -> AtOnce:
    return AtOnce(headers=[("Content-Type", kind), *headers], pieces=[body], framing=framing)


async def ask(proxy: RunningProxy, text: str, body: bytes | None = None, **headers: str) -> Any:
    sent = body if body is not None else json.dumps({"model": "m", "messages": [user(text)]}).encode()
    async with RawClient(proxy.port) as client:
        pairs = [("sessionId", "s"), *[(name.replace("_", "-"), value) for name, value in headers.items()]]
        await client.request("POST", "/v1/chat/completions", pairs, sent)
        client.answer = await client.head()  # type: ignore[attr-defined]
        client.data = await client.body()  # type: ignore[attr-defined]
    return client


def said(request: Received) -> list[Any]:
    """What the history has of the turn before."""
    assert problems(request.body, "openai") == []
    return request.messages[:-1]


@pytest.mark.parametrize("framing", ["length", "chunked"])
@pytest.mark.parametrize("name", ODD)
async def test_a_200_that_came_whole_reaches_its_client_whole(serve: Serve, name: str, framing: str) -> None:
    kind, body, recorded, reason = ODD[name]
    async with ScriptedUpstream([at_once(kind, body, framing), completion("b")]) as upstream:
        proxy = await serve(upstream.base_url)
        odd = await ask(proxy, "x")
        await ask(proxy, "y")
        assert said(upstream.requests[1]) == ([user("x"), assistant(recorded)] if recorded else [])
    assert (odd.answer.status, odd.data, odd.ended) == (200, body, "complete")
    told = odd.answer.header("x-session-recorded")
    if framing == "length":  # else the head goes out with the first piece
        assert told == (f"no; reason={reason}" if reason else None)
    counted = proxy.runtime.counters.unrecorded
    assert sum(counted.values()) == (recorded is None)
    assert reason is None or counted == {reason: 1}


async def test_a_plain_text_answer_is_recorded_as_interrupted(serve: Serve) -> None:
    async with ScriptedUpstream([at_once("text/plain", b"hello")]) as upstream:
        proxy = await serve(upstream.base_url)
        await ask(proxy, "x")
        async with RawClient(proxy.port) as client:
            await client.request("GET", "/sessions/s/messages", [])
            await client.head()
            messages = json.loads(await client.body())
    assert "cut" in json.dumps(messages)
    assert list(proxy.runtime.counters.turns) == [("append", "unmarked")]


ENCODINGS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "x-gzip": lambda body: gzip.compress(body[:50]) + gzip.compress(body[50:]),
    "deflate": zlib.compress,
    "Deflate": lambda body: zlib.compress(body)[2:-4],
    "br": brotli.compress,
    "zstd": zstandard.compress,
    "identity, gzip": gzip.compress,
    "deflate, gzip": lambda body: gzip.compress(zlib.compress(body)),
}


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_compressed_answer_is_decompressed(serve: Serve, encoding: str, stream: bool) -> None:
    reply = sse("hel", "lo") if stream else completion("hello")
    plain = b"".join(reply.pieces)
    packed = ENCODINGS[encoding](plain)
    reply.headers.append(("Content-Encoding", encoding))
    reply.pieces = [packed[:30], packed[30:]]
    async with ScriptedUpstream([reply, completion("b")]) as upstream:
        proxy = await serve(upstream.base_url)
        first = await ask(proxy, "x")
        await ask(proxy, "y")
        assert said(upstream.requests[1]) == [user("x"), assistant("hello")]
    assert (first.data, first.ended) == (plain, "complete")
    assert first.answer.header("content-encoding") is None and first.answer.header("x-session-recorded") is None


@pytest.mark.parametrize("encoding", ["utf-8", "none", "identity", "", "UTF-8, identity", "null"])
async def test_the_encoding_identity_is_ignored(serve: Serve, encoding: str) -> None:
    body = json.dumps({"model": "m", "messages": [user("x")]}).encode()
    reply = completion("hello", headers=[("Content-Type", "application/json"), ("Content-Encoding", encoding)])
    async with ScriptedUpstream([reply, completion("b")]) as upstream:
        proxy = await serve(upstream.base_url)
        first = await ask(proxy, "x", body, Content_Encoding=encoding)
        await ask(proxy, "y")
        assert upstream.requests[0].body == body and upstream.requests[0].header("content-encoding") is None
        assert said(upstream.requests[1]) == [user("x"), assistant("hello")]
    assert (first.answer.status, first.data) == (200, reply.pieces[0])


@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
async def test_an_answer_in_an_unknown_encoding_is_forwarded_and_not_recorded(serve: Serve, framing: Any) -> None:
    packed = b"\x1f\x9d\x90" + bytes(range(200))
    reply = completion("x", pieces=[packed[:9], packed[9:]], framing=framing)
    reply.headers.append(("Content-Encoding", "compress"))
    async with ScriptedUpstream([reply, completion("b")]) as upstream:
        proxy = await serve(upstream.base_url)
        first = await ask(proxy, "x")
        await ask(proxy, "y")
        assert said(upstream.requests[1]) == []
    assert (first.answer.status, first.data) == (200, packed)
    assert first.answer.header("content-encoding") == "compress"
    assert first.answer.header("x-session-recorded") == "no; reason=encoding"
    assert proxy.runtime.counters.unrecorded == {"encoding": 1}


async def test_an_empty_body_is_complete_in_any_encoding(serve: Serve) -> None:
    reply = completion("x", pieces=[], headers=[("Content-Encoding", "gzip")])
    async with ScriptedUpstream([reply]) as upstream:
        proxy = await serve(upstream.base_url)
        first = await ask(proxy, "x")
    assert (first.answer.status, first.data, first.ended) == (200, b"", "complete")


async def test_a_broken_answer_in_an_unknown_encoding_ends_in_a_reset(serve: Serve) -> None:
    reply = completion("x", end="rst", headers=[("Content-Encoding", "compress")])
    async with ScriptedUpstream([reply, completion("b")]) as upstream:
        proxy = await serve(upstream.base_url)
        first = await ask(proxy, "x")
    assert first.ended == "reset" and not proxy.runtime.counters.unrecorded


async def test_an_unrecorded_request_gets_no_recorded_header(serve: Serve) -> None:
    async with ScriptedUpstream([at_once("text/html", b"<html>")]) as upstream:
        proxy = await serve(upstream.base_url)
        page = await ask(proxy, "x", x_session_store="no")
    assert page.answer.header("x-session-recorded") is None and not proxy.runtime.counters.unrecorded


@pytest.mark.parametrize("encoding", ENCODINGS)
async def test_a_compressed_request_is_forwarded_decompressed(serve: Serve, encoding: str) -> None:
    body = json.dumps({"model": "m", "messages": [user("x" * 3000)]}).encode()
    async with ScriptedUpstream() as upstream:
        proxy = await serve(upstream.base_url, limits={"request_body": "4KiB"})
        answer = await ask(proxy, "", ENCODINGS[encoding](body), Content_Encoding=encoding)
        await ask(proxy, "y")
        assert upstream.requests[0].body == body
        assert upstream.requests[0].header("content-encoding") is None
        assert said(upstream.requests[1]) == [user("x" * 3000), assistant("answer 1")]
    assert answer.answer.status == 200


async def test_a_chunked_request_may_be_compressed(serve: Serve) -> None:
    packed = gzip.compress(json.dumps({"model": "m", "messages": [user("x")]}).encode())
    async with ScriptedUpstream() as upstream:
        proxy = await serve(upstream.base_url)
        async with RawClient(proxy.port) as client:
            head = (
                b"POST /v1 HTTP/1.1\r\nHost: x\r\nsessionId: s\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n"
            )
            await client.send(head % len(packed) + packed[:5])
            await client.send(packed[5:])
            assert (await client.head()).status == 200
            await client.body()
        assert upstream.requests[0].messages == [user("x")]


@pytest.mark.parametrize("encoding", ["gzip", "br", "zstd", "deflate, gzip"])
async def test_a_decompression_bomb_is_refused_early(serve: Serve, encoding: str) -> None:
    bomb = ENCODINGS[encoding](b" " * 50_000_000)
    async with ScriptedUpstream() as upstream:
        proxy = await serve(upstream.base_url, limits={"request_body": "64KiB"})
        answer = await ask(proxy, "", bomb, Content_Encoding=encoding)
        assert not upstream.requests
    assert (answer.answer.status, json.loads(answer.data)["error"]["code"]) == (413, "request_too_large")


HALF = '"hi \\ud83d"'


@pytest.mark.parametrize("end", ["clean", "rst"])
async def test_a_lone_surrogate_in_a_reply_is_replaced_before_it_goes_back(serve: Serve, end: Any) -> None:
    chunk = b'data: {"choices":[{"index":0,"delta":{"content":"hi \\ud83d","reasoning_content":"\\ude00"}%b}]}\n\n'
    reply = sse(done=False, finish=None, pieces=[chunk % b"", chunk % b',"finish_reason":"length"'], end=end)
    async with ScriptedUpstream([reply, completion("b"), completion("c")]) as upstream:
        proxy = await serve(upstream.base_url)
        await ask(proxy, "x")
        for text in ("y", "z"):
            await ask(proxy, text)
        for request in upstream.requests[1:]:
            request.body.decode()
            json.dumps(request.messages, ensure_ascii=False).encode()  # raises for half a character
            assert request.messages[1]["content"] == "hi \ufffdhi \ufffd"


async def test_a_lone_surrogate_in_tool_arguments_is_replaced(serve: Serve) -> None:
    function = {"name": "look", "arguments": '{"at":"\\ud83d"}'}
    calls = {"tool_calls": [{"id": "c", "type": "function", "function": function}]}
    reply = completion(None, message=calls, finish="tool_calls")
    result = {"role": "tool", "tool_call_id": "c", "content": "there"}
    async with ScriptedUpstream([reply, completion("b")]) as upstream:
        proxy = await serve(upstream.base_url)
        await ask(proxy, "x")
        await ask(proxy, "", json.dumps({"model": "m", "messages": [result]}).encode())
        [call] = upstream.requests[1].messages[1]["tool_calls"]
    json.loads(call["function"]["arguments"])["at"].encode()
    assert call["function"]["arguments"] == '{"at":"\\ufffd"}'


async def test_a_reply_resent_with_a_lone_surrogate_is_recognised(serve: Serve) -> None:
    reply = completion(
        "hi \ud83d", pieces=[b'{"choices":[{"message":{"role":"assistant","content":%b}}]}' % HALF.encode()]
    )
    async with ScriptedUpstream([reply, completion("b")]) as upstream:
        proxy = await serve(upstream.base_url)
        await ask(proxy, "x")
        again = [user("x"), assistant("hi \ud83d"), user("y")]
        answer = await ask(proxy, "", json.dumps({"model": "m", "messages": again}).encode())
        assert upstream.requests[1].messages == [user("x"), assistant("hi \ufffd"), user("y")]
    assert answer.answer.header("x-session-decision") == "resend"
