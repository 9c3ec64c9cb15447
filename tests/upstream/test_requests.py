"""What a request to an upstream is on the wire: its target, headers and body, and what is not sent."""

from __future__ import annotations

from typing import Any

import pytest

from proxy.errors import BadRequest
from tests.support.raw_upstream import (
    LENGTH_5,
    OK,
    Pairs,
    Upload,
    late,
    on_both_loops,
    stream,
    talk,
)

FRAMING: list[tuple[str, Pairs, Any, list[bytes], bytes]] = [
    ("POST", [], b"hello", [b"Content-Length: 5"], b"hello"),
    ("POST", [], b"", [b"Content-Length: 0"], b""),
    ("POST", LENGTH_5, b"hello", [b"content-length: 5"], b"hello"),
    ("GET", [], None, [], b""),
    ("DELETE", [], None, [], b""),
    ("POST", [], None, [b"Content-Length: 0"], b""),
    ("PUT", [("Content-Length", "0")], None, [b"Content-Length: 0"], b""),
    ("POST", [], stream(b"he", b"llo"), [b"Transfer-Encoding: chunked"], b"5\r\nhello\r\n0\r\n\r\n"),
    ("POST", [], stream(), [b"Transfer-Encoding: chunked"], b"0\r\n\r\n"),
    ("POST", [], late(), [b"Transfer-Encoding: chunked"], b"0\r\n\r\n"),
    ("POST", [], late(b"he", b"llo"), [b"Transfer-Encoding: chunked"], b"2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"),
    ("POST", LENGTH_5, stream(b"he", b"llo"), [b"content-length: 5"], b"hello"),
    ("PATCH", LENGTH_5, late(b"he", b"llo"), [b"content-length: 5"], b"hello"),
    ("GET", LENGTH_5, late(b"he", b"llo"), [b"content-length: 5"], b"hello"),
]


@pytest.mark.parametrize(("method", "headers", "body", "lines", "wire"), FRAMING)
@on_both_loops
async def test_a_body_is_framed_once_and_nothing_else_is_added(
    method: str, headers: Pairs, body: Any, lines: list[bytes], wire: bytes
) -> None:
    async with talk() as it:
        assert await it.get(method, "/v1", headers, body() if callable(body) else body) == (200, b"ok")
        assert await it.get() == (200, b"ok")
        first, second = it.upstream.got
    host = b"Host: 127.0.0.1:%d" % it.upstream.port
    assert first.lines == [b"%b /v1 HTTP/1.1" % method.encode(), host, *lines] and first.body == wire
    assert second == (0, b"GET / HTTP/1.1\r\n%b\r\n\r\n" % host, b"")


@on_both_loops
async def test_headers_go_as_they_are() -> None:
    headers = [("X-One", "1"), ("HOST", "elsewhere.test"), ("x-ONE", "2"), ("X-One", ""), ("X-Grüße", "Grüße\udcff\t!")]
    async with talk() as it:
        await it.get("GET", "/", headers)
        [got] = it.upstream.got
    sent = [b"X-One: 1", b"HOST: elsewhere.test", b"x-ONE: 2", b"X-One: "]
    assert got.lines == [b"GET / HTTP/1.1", *sent, "X-Grüße: Grüße".encode() + b"\xff\t!"]


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ("", "/"),
        ("/", "/"),
        ("?", "/?"),
        ("?a=b", "/?a=b"),
        ("#a", "/#a"),
        ("//a//b/", "//a//b/"),
        ("/a%2Fb/../c?", "/a%2Fb/../c?"),
        ("/a?b=+%20&b#c?d", "/a?b=+%20&b#c?d"),
        ("/a:b@c://d", "/a:b@c://d"),
        ("/ü", "/ü"),
    ],
)
@on_both_loops
async def test_a_target_goes_as_it_is(given: str, sent: str) -> None:
    async with talk() as it:
        assert await it.get("GET", it.upstream.url(given)) == (200, b"ok")
        assert it.upstream.got[0].lines[0] == f"GET {sent} HTTP/1.1".encode()


REFUSED: list[tuple[str, Pairs, Any]] = [
    *[("/", [pair], None) for bad in "\r\n\0" for pair in ((f"X{bad}Y", "1"), ("X", f"a{bad}b"), ("X", bad))],
    *[(f"/a{bad}b", [], None) for bad in ["\r", "\n", "\0", " ", "\r\nX: y"]],
    ("/", [("X", "a\r\nY: b")], None),
    ("/", [("X", "\ud800")], None),
    ("/", [("Transfer-Encoding", "chunked")], b"hello"),
    ("/", [("Content-Length", "5"), ("content-length", "5")], b"hello"),
    *[("/", [("Content-Length", bad)], b"hello") for bad in ["4", "6", "+5", "5, 5", "\u0665", "", "-5", "0x5"]],
    ("/", LENGTH_5, None),
    ("/", LENGTH_5, stream(b"hell")),
]


@pytest.mark.parametrize(("target", "headers", "body"), REFUSED)
@on_both_loops
async def test_what_could_be_read_otherwise_is_not_sent(target: str, headers: Pairs, body: Any) -> None:
    async with talk() as it:
        with pytest.raises(BadRequest):
            await it.ask("POST", target, headers, body() if callable(body) else body)
        assert not it.upstream.accepted


@on_both_loops
@pytest.mark.parametrize("size", [0, 1, 70_000, 3_000_000])
async def test_the_pieces_of_a_body_arrive_in_order(size: int) -> None:
    pieces = [b"a", b"", b"b" * size, b"c", b"d" * size]
    async with talk([OK]) as it:
        assert await it.get("POST", "/", [], pieces) == (200, b"ok")
        assert it.upstream.got[0].body == b"".join(pieces)


@on_both_loops
async def test_large_bodies_arrive_whole_both_ways() -> None:
    body = bytes(range(256)) * 40_000
    answers = [b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)] * 3
    async with talk(*answers) as it:
        assert await it.get("POST", "/", [], body) == (200, body)
        assert await it.get("POST", "/", [], Upload(body[:99], body[99:], whole=True)) == (200, body)
        assert await it.get("POST", "/", [("Content-Length", str(len(body)))], late(body[:99], body[99:])()) == (
            200,
            body,
        )
        assert [got.body[-9:] for got in it.upstream.got] == [body[-9:], body[-2:] + b"\r\n0\r\n\r\n", body[-9:]]
        assert it.upstream.accepted == 1
