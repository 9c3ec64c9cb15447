"""The fakes do what they say: otherwise no test that leans on them means anything."""

from __future__ import annotations

import asyncio
import json
import socket
from pathlib import Path

import pytest

from tests.support.fakes import (
    RawClient,
    Received,
    Reply,
    ScriptedUpstream,
    completion,
    error,
    eventually,
    free_port,
    raw_request,
    recordings,
    recordings_or_skip,
    sse,
)

CHAT = "/v1/chat/completions"
HELLO = {"messages": [{"role": "user", "content": "hello"}]}


async def test_request_is_kept_as_it_came() -> None:
    async with ScriptedUpstream() as upstream, RawClient(upstream.port) as client:
        await client.post(CHAT + "?a=1", HELLO, [("X-Odd", "é"), ("x-odd", "2")])
        await client.head()
    [request] = upstream.requests
    assert (request.method, request.target) == ("POST", CHAT + "?a=1")
    assert request.messages == HELLO["messages"] and request.json == HELLO
    assert [pair for pair in request.headers if pair[0].lower() == "x-odd"] == [
        ("X-Odd", "é"),
        ("x-odd", "2"),
    ]
    assert request.header("X-ODD") == "é" and request.header("absent") is None
    assert upstream.base_url == f"http://127.0.0.1:{upstream.port}/v1"


async def test_default_script_counts_on_one_connection() -> None:
    async with ScriptedUpstream() as upstream, RawClient(upstream.port) as client:
        await client.post(CHAT, HELLO)
        assert (await client.head()).status == 200
        answer = json.loads(await client.body())
        assert answer["choices"][0]["message"]["content"] == "answer 1" and answer["usage"]
        await client.post(CHAT, HELLO | {"stream": True})
        assert (await client.head()).header("content-type") == "text/event-stream; charset=utf-8"
        text, done = _streamed(await client.body())
        assert (text, done, client.ended) == ("answer 2", True, "complete")
        await client.request("GET", "/v1/models")
        assert (await client.head()).status == 200 and b"answer 3" in await client.body()
        assert upstream.connections == 1
    assert upstream.connections == 0


def _streamed(body: bytes) -> tuple[str, bool]:
    """The text of a stream and whether it was terminated."""
    events = [part.removeprefix(b"data: ") for part in body.split(b"\n\n") if part]
    done = events[-1] == b"[DONE]"
    chunks = [json.loads(event) for event in events[: len(events) - done]]
    return "".join(c["choices"][0]["delta"].get("content", "") for c in chunks if c["choices"]), done


async def test_chunked_request_and_its_trailers() -> None:
    data = (
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
        b"4;x=1\r\nab\r\n\r\n2\r\ncd\r\n0\r\nX-T: 1\r\n\r\n"
    )
    async with ScriptedUpstream([completion("x")]) as upstream:
        answer = await raw_request(upstream.port, data)
    assert upstream.requests[0].body == b"ab\r\ncd"
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n") and b"Content-Length: " in answer


async def test_expect_is_answered_before_the_body() -> None:
    async with ScriptedUpstream() as upstream, RawClient(upstream.port) as client:
        await client.request("POST", CHAT, [("Expect", "100-continue"), ("Content-Length", "2")])
        assert (await client.head(interim=True)).status == 100
        assert upstream.requests == []
        await client.send(b"{}")
        assert (await client.head()).status == 200
    assert upstream.requests[0].body == b"{}"


async def test_head_passes_over_interim_answers() -> None:
    async with ScriptedUpstream() as upstream, RawClient(upstream.port) as client:
        await client.request("POST", CHAT, [("Expect", "100-continue")], b"{}")
        assert (await client.head()).status == 200
        assert client.raw.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n")


@pytest.mark.parametrize(
    ("framing", "end", "ended"),
    [
        ("chunked", "clean", "complete"),
        ("chunked", "fin", "eof"),
        ("chunked", "rst", "reset"),
        ("length", "clean", "complete"),
        ("length", "fin", "eof"),
        ("length", "rst", "reset"),
        ("close", "clean", "complete"),
        ("close", "rst", "reset"),
    ],
)
@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_every_end_is_seen_and_no_byte_lost(framing: str, end: str, ended: str, version: str) -> None:
    reply = Reply(pieces=[b"one", b"", b"two"], framing=framing, end=end)  # type: ignore[arg-type]
    async with ScriptedUpstream([reply]) as upstream, RawClient(upstream.port) as client:
        await client.request("GET", "/", version=version)  # type: ignore[arg-type]
        await client.head()
        assert client.framing == framing
        assert await client.body() == b"onetwo"
        assert client.ended == ended


async def test_a_content_length_of_the_test_is_left_alone() -> None:
    reply = Reply(headers=[("content-length", "7")], pieces=[b"abc"], framing="length", end="fin")
    async with ScriptedUpstream([reply]) as upstream, RawClient(upstream.port) as client:
        await client.request("GET", "/")
        assert (await client.head()).headers == [("content-length", "7")]
        assert (await client.body(), client.ended) == (b"abc", "eof")


async def test_a_read_waits_no_longer_than_its_timeout() -> None:
    script = [Reply(end="hang")]
    async with ScriptedUpstream(script) as upstream, RawClient(upstream.port, timeout=0.05) as client:
        with pytest.raises(TimeoutError):
            await client.head()


async def test_pieces_are_chunks_even_when_read_at_once() -> None:
    async with ScriptedUpstream([sse("a", "b")]) as upstream, RawClient(upstream.port) as client:
        await client.request("GET", "/")
        await eventually(lambda: b"0\r\n\r\n" in _peek(client))
        await client.head()
        pieces = [await client.piece() for _ in range(6)]
    assert [piece and piece[:6] for piece in pieces] == [b"data: "] * 5 + [None]


async def _nothing_comes(client: RawClient) -> bool:
    """Whether no piece comes for a while."""
    try:
        await asyncio.wait_for(client.piece(), 0.05)
    except TimeoutError:
        return True
    return False


def _peek(client: RawClient) -> bytes:
    try:
        return client._sock.recv(65536, socket.MSG_PEEK)
    except BlockingIOError:
        return b""


async def test_gate_holds_each_piece_back() -> None:
    asked: list[int] = []
    go = asyncio.Semaphore(0)

    async def gate(index: int) -> None:
        asked.append(index)
        await go.acquire()

    script = [Reply(pieces=[b"one", b"two"], gate=gate)]
    async with ScriptedUpstream(script) as upstream, RawClient(upstream.port) as client:
        await client.request("GET", "/")
        await client.head()
        assert await _nothing_comes(client)
        go.release()
        assert await client.piece() == b"one"
        await eventually(lambda: asked == [0, 1])
        assert await _nothing_comes(client)
        go.release()
        assert (await client.piece(), await client.piece()) == (b"two", None)


async def test_delay_comes_before_each_piece() -> None:
    reply = Reply(pieces=[b"x", b"y"], delay=0.05)
    async with ScriptedUpstream([reply]) as upstream, RawClient(upstream.port) as client:
        began = asyncio.get_running_loop().time()
        await client.request("GET", "/")
        await client.head()
        assert await client.body() == b"xy"
        assert asyncio.get_running_loop().time() - began >= 0.09


async def test_a_wait_that_times_out_inside_a_chunk_loses_nothing() -> None:
    async def second(index: int) -> None:
        await go.wait() if index else None

    go = asyncio.Event()
    script = [Reply(headers=[("Transfer-Encoding", "chunked")], framing="close", gate=second)]
    script[0].pieces = [b"5\r\nhe", b"llo\r\n0\r\nX-T: 1\r\n\r\n"]
    async with ScriptedUpstream(script) as upstream, RawClient(upstream.port) as client:
        await client.request("GET", "/")
        await client.head()
        assert await _nothing_comes(client)
        go.set()
        assert (await client.piece(), await client.piece(), client.ended) == (b"hello", None, "complete")


async def test_hang_lasts_until_the_client_goes() -> None:
    script = [sse("a", end="hang")]
    async with ScriptedUpstream(script) as upstream, RawClient(upstream.port) as client:
        await client.request("GET", "/")
        await client.head()
        while await client.piece() != b"data: [DONE]\n\n":
            pass
        assert await _nothing_comes(client)
        assert upstream.connections == 1
        client.half_close()
        await eventually(lambda: upstream.connections == 0)


async def test_leaving_the_context_ends_what_hangs() -> None:
    upstream = ScriptedUpstream([sse("a", end="hang")])
    async with RawClient(upstream.port) as client:
        async with upstream:
            await client.request("GET", "/")
            await client.head()
        assert upstream.connections == 0
        await client.body()
        assert client.ended == "eof"


async def test_abort_is_a_reset_and_half_close_is_not() -> None:
    async def seen_by(leave: str) -> bytes | type[Exception]:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            async with RawClient(listener.getsockname()[1]) as client:
                peer, _ = listener.accept()
                with peer:
                    getattr(client, leave)()
                    try:
                        return peer.recv(1)
                    except ConnectionResetError as fault:
                        return type(fault)

    assert await seen_by("abort") is ConnectionResetError
    assert await seen_by("half_close") == b""


async def test_script_may_be_a_function_plain_or_async() -> None:
    async def later(request: Received) -> Reply:
        return error(429, {"error": {"message": request.target}}, headers=[("Retry-After", "1")])

    def now(request: Received) -> Reply:
        return error(499, b"as it is")

    async with ScriptedUpstream(later) as upstream, RawClient(upstream.port) as client:
        await client.request("GET", "/here")
        head = await client.head()
        assert (head.status, head.header("retry-after")) == (429, "1")
        assert json.loads(await client.body()) == {"error": {"message": "/here"}}
        upstream.script = now
        await client.request("GET", "/there")
        assert (await client.head()).status == 499 and await client.body() == b"as it is"


async def test_a_used_up_script_is_a_fault_of_the_test() -> None:
    with pytest.raises(AssertionError, match="no reply left in the script for request 1"):
        async with ScriptedUpstream([]) as upstream, RawClient(upstream.port) as client:
            await client.request("GET", "/")
            with pytest.raises(ConnectionError):
                await client.head()
            assert client.ended == "eof"


async def test_an_ambiguous_request_is_a_fault() -> None:
    data = b"POST / HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    with pytest.raises(AssertionError, match="both"):
        async with ScriptedUpstream() as upstream:
            assert await raw_request(upstream.port, data) == b""


async def test_an_answer_to_head_has_no_body() -> None:
    async with ScriptedUpstream([completion("x"), sse("y")]) as upstream, RawClient(upstream.port) as client:
        for _ in range(2):
            await client.request("HEAD", "/")
            await client.head()
            assert (await client.body(), client.framing, client.ended) == (b"", "none", "complete")


async def test_raw_request_stops_at_one_whole_answer() -> None:
    async with ScriptedUpstream([sse("a"), Reply(pieces=[b"x"], end="rst")]) as upstream:
        answer = await raw_request(upstream.port, b"GET / HTTP/1.1\r\n\r\n", read_until_close=False)
        assert answer.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
        with pytest.raises(ConnectionResetError):
            await raw_request(upstream.port, b"GET / HTTP/1.1\r\n\r\n")


def test_sse_says_what_it_was_told() -> None:
    usage = {"total_tokens": 7}
    whole = b"".join(sse("a", {"content": "b"}, usage=usage).pieces)
    assert _streamed(whole) == ("ab", True)
    assert b'"finish_reason": "stop"' in whole and b'"choices": [], "usage": {"total_tokens": 7}' in whole
    cut = b"".join(sse("a", done=False, finish=None).pieces)
    assert _streamed(cut) == ("a", False) and b'"stop"' not in cut


def test_completion_can_carry_more_than_text() -> None:
    calls = [{"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    answer = json.loads(completion(None, message={"tool_calls": calls}, finish="tool_calls").pieces[0])
    [choice] = answer["choices"]
    assert choice["message"] == {"role": "assistant", "content": None, "tool_calls": calls}
    assert choice["finish_reason"] == "tool_calls"


def test_recordings_are_read_as_they_lie() -> None:
    found = recordings_or_skip()
    assert len(found) == len({recording.id for recording in found}) > 50
    assert [(r.group, r.turn) for r in found] == sorted((r.group, r.turn) for r in found)
    assert any(recording.request is None for recording in found)
    cut = [recording for recording in found if recording.pieces is not None]
    assert cut and all(sum(r.pieces or []) == len(r.response) for r in cut)
    assert {recording.meta["endpoint"] for recording in recordings("messages")} == {"messages"}


def test_absent_recordings_skip_with_a_reason(tmp_path: Path) -> None:
    assert recordings("chat", tmp_path) == []
    with pytest.raises(pytest.skip.Exception, match=str(tmp_path / "chat")):
        recordings_or_skip("chat", tmp_path)


def test_free_port_is_free() -> None:
    port = free_port()
    with socket.socket() as sock:
        assert sock.connect_ex(("127.0.0.1", port)) != 0
    socket.create_server(("127.0.0.1", port)).close()
