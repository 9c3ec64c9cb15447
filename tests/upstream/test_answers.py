"""How the answers of upstreams are read: to their end and no further, and what is no answer."""

from __future__ import annotations

import asyncio
import itertools
import time
from typing import NamedTuple

import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.errors import UpstreamUnreachable
from tests.support.raw_upstream import (
    CHUNKED,
    CHUNKS,
    CLOSE,
    CODED,
    HEAD_5,
    LENGTH,
    OK,
    Step,
    at_once,
    on_both_loops,
    read,
    talk,
    v1,
)

# Answers -----------------------------------------------------------------------------------


class Good(NamedTuple):
    """An answer, what its body is, and whether another request can follow it. `closes`: its body ends with it."""

    wire: bytes
    body: bytes
    kept: bool
    method: str = "GET"
    closes: bool = False


GOOD = {
    "length": Good(v1(LENGTH, b"hello"), b"hello", True),
    "length of none": Good(v1(b"Content-Length: 0\r\n"), b"", True),
    "length, close": Good(v1(LENGTH + CLOSE, b"hello"), b"hello", False),
    "chunked": Good(v1(CODED, CHUNKS + b"\r\n"), b"hello", True),
    "chunked, odd case": Good(v1(b"transfer-ENCODING: Chunked\r\n", CHUNKS + b"\r\n"), b"hello", True),
    "chunked, trailers": Good(v1(CODED, CHUNKS + b"X-T: 1\r\nX-U: 2\r\n\r\n"), b"hello", True),
    "chunked, close": Good(v1(CODED + CLOSE, CHUNKS + b"\r\n"), b"hello", False),
    "chunked, as streams are": Good(
        v1(CODED, b"2\r\nhe\r\n1\r\nl\r\n5\r\n0\r\n\r\n\r\n1\r\no\r\n0\r\n\r\n"), b"hel0\r\n\r\no", True
    ),
    "until the close": Good(v1(b"", b"hello"), b"hello", False, closes=True),
    "until the close, nothing": Good(v1(CLOSE), b"", False, closes=True),
    "interim heads": Good(
        v1(b"", status=b"100 Continue") + v1(b"Link: </a>\r\n", status=b"103 Early Hints") + v1(LENGTH, b"hello"),
        b"hello",
        True,
    ),
    "HEAD": Good(v1(b"Content-Length: 1234\r\n"), b"", True, "HEAD"),
    "HEAD, chunked": Good(v1(CODED), b"", True, "HEAD"),
    "204": Good(v1(b"", status=b"204 No Content"), b"", True),
    "304": Good(v1(b"Content-Length: 1234\r\n", status=b"304 Not Modified"), b"", True),
    "301": Good(v1(b"Location: /elsewhere\r\n" + LENGTH, b"hello", status=b"301 Moved"), b"hello", True),
    "1.0": Good(v1(LENGTH, b"hello", version=b"1.0"), b"hello", False),
    "1.0, keep-alive": Good(v1(LENGTH + b"Connection: keep-alive\r\n", b"hello", version=b"1.0"), b"hello", True),
    "no reason": Good(v1(LENGTH, b"hello", status=b"200"), b"hello", True),
    "odd status": Good(v1(LENGTH, b"hello", status=b"799 Odd"), b"hello", True),
    "gzip": Good(v1(LENGTH + b"Content-Encoding: gzip\r\n", b"hello"), b"hello", True),
}


@pytest.mark.parametrize("way", ["in one", "byte for byte"])
@pytest.mark.parametrize("name", GOOD)
@on_both_loops
async def test_an_answer_is_read_to_its_end_and_no_further(name: str, way: str) -> None:
    good = GOOD[name]
    steps: list[Step] = [good.wire]
    if way == "byte for byte":
        steps = [step for byte in good.wire for step in (bytes([byte]), 0.0005)]
    async with talk([*steps, *(["fin"] if good.closes else [])]) as it:
        status, body = await it.get(good.method)
        assert (status, body) == (int(good.wire.split(b"HTTP/")[-1][4:7]), good.body)
        assert await it.get() == (200, b"ok")
        assert [got.connection for got in it.upstream.got] == [0, 0 if good.kept else 1]


@on_both_loops
async def test_all_headers_of_an_answer_are_given_as_they_are() -> None:
    lines = (
        b"Set-Cookie: a=1\r\nset-cookie: b=2\r\nX-Empty:\r\nX-Odd:  \xff caf\xe9 \t\r\nX-Utf: caf\xc3\xa9\tx\r\n"
        + LENGTH
    )
    async with talk(v1(lines, b"hello")) as it:
        answer = await it.ask()
        assert answer.headers == [
            ("Set-Cookie", "a=1"),
            ("set-cookie", "b=2"),
            ("X-Empty", ""),
            ("X-Odd", b"\xff caf\xe9".decode(errors="surrogateescape")),
            ("X-Utf", "café\tx"),
            ("Content-Length", "5"),
        ]
        assert (answer.get("set-cookie"), answer.get("x-none"), answer.length) == ("a=1", None, 5)
        assert await read(answer) == b"hello"
        answer.close()
        await it.get()
        assert b"ookie" not in it.upstream.got[1].head


@pytest.mark.parametrize(("line", "length"), [(b"Content-Length: 12\r\n", 12), (b"", None), (CODED, None)])
@on_both_loops
async def test_the_length_is_what_was_said(line: bytes, length: int | None) -> None:
    async with talk(v1(line)) as it:
        answer = await it.ask("HEAD")
        assert answer.length == length
        answer.close()


@settings(max_examples=40)
@given(st.data())
def test_however_the_bytes_come_the_answer_is_the_same(data: st.DataObject) -> None:
    good = data.draw(st.sampled_from([good for good in GOOD.values() if not good.closes]))
    cuts = sorted(data.draw(st.sets(st.integers(1, len(good.wire) - 1), max_size=6)))
    parts = [good.wire[start:end] for start, end in itertools.pairwise([0, *cuts, len(good.wire)])]

    async def run() -> None:
        async with talk([step for part in parts for step in (part, 0.0)]) as it:
            assert (await it.get(good.method))[1] == good.body
            await it.get()
            assert [got.connection for got in it.upstream.got] == [0, 0 if good.kept else 1]

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())


SPELLED = st.sampled_from([b"%x\r\n", b"%x\r\n", b"%x\r\n", b"%X\r\n", b"0%x\r\n", b"%x;ext=1\r\n", b"00000000%x\r\n"])
CARRIED = st.binary(min_size=1, max_size=9) | st.sampled_from([b"0\r\n\r\n", b"\r\n", b"1\r\nx\r\n", b"x" * 70_000])


@settings(max_examples=60)
@given(st.lists(st.tuples(SPELLED, CARRIED), min_size=1, max_size=8), st.data())
def test_however_chunks_are_written_and_come_they_carry_the_same(
    chunks: list[tuple[bytes, bytes]], data: st.DataObject
) -> None:
    """Some of them the parser never sees."""
    written = [size % len(piece) + piece + b"\r\n" for size, piece in chunks]
    wire = b"".join([CHUNKED, *written, b"0\r\n\r\n"])
    ends = list(itertools.accumulate(map(len, written), initial=len(CHUNKED)))
    cuts = data.draw(st.sets(st.sampled_from(ends) | st.integers(1, len(wire) - 1), max_size=8))
    parts = [wire[start:end] for start, end in itertools.pairwise([0, *sorted(cuts), len(wire)])]

    async def run() -> None:
        async with talk([step for part in parts for step in (part, 0.001)]) as it:
            assert await it.get() == (200, b"".join([piece for _, piece in chunks]))
            await it.get()
            assert [got.connection for got in it.upstream.got] == [0, 0]

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())


@pytest.mark.parametrize(
    "start",
    [
        [CHUNKED + b"9\r\nab"],
        [CHUNKED, b"9\r\nab"],
        [CHUNKED + b"1\r\n-\r\n9\r\nab"],
        [CHUNKED + b"1\r\n-\r\n", b"9\r\nab"],
        [CHUNKED, b"1\r\n-\r\n", b"9\r\nab"],
        [CHUNKED[:20], CHUNKED[20:] + b"9\r\nab"],
        [CHUNKED[:-2], b"\r\n9\r\nab"],
        [v1(b"", status=b"100 Continue") + CHUNKED + b"9\r\nab"],
    ],
)
@on_both_loops
async def test_what_looks_like_a_chunk_in_the_middle_of_one_is_none(start: list[bytes]) -> None:
    steps = [step for part in [*start, b"1\r\nx\r\n", b"c\r\n0\r\n\r\n"] for step in (part, 0.02)]
    async with talk(steps) as it:
        assert (await it.get())[1].lstrip(b"-") == b"ab1\r\nx\r\nc"


@on_both_loops
async def test_each_piece_is_given_as_it_comes() -> None:
    pieces = [b"data: a\n\n", b"d", b"ata: b", b"\n\n"]
    events = [asyncio.Event() for _ in pieces]
    steps: list[Step] = [CHUNKED]
    for piece, event in zip(pieces, events, strict=True):
        steps += [event, b"%x\r\n%b\r\n" % (len(piece), piece)]
    async with talk([*steps, b"0\r\n\r\n"]) as it:
        answer = await it.ask()
        for piece, event in zip(pieces, events, strict=True):
            event.set()
            assert await answer.piece() == piece
        assert await answer.piece() == b"" == await answer.piece()
        answer.close()


@on_both_loops
async def test_what_is_there_is_given_without_a_wait() -> None:
    async with talk(v1(CODED, CHUNKS + b"\r\n"), v1(CODED, CHUNKS)) as it:
        answer = await it.ask()
        assert [at_once(answer.piece()), at_once(answer.piece())] == [b"hello", b""]
        answer.close()
        answer = await it.ask()
        assert at_once(answer.piece()) == b"hello"
        assert at_once(answer.piece()) is None
        answer.close()


# What is no answer -------------------------------------------------------------------------

BAD_HEADS = {
    "no HTTP": b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
    "a request": b"GET / HTTP/1.1\r\n\r\n",
    "no version": b"HTTP/x 200 OK\r\n\r\n",
    "no status": b"HTTP/1.1 abc OK\r\n\r\n",
    "status below 100": v1(LENGTH, b"hello", status=b"099 Low"),
    "version 2": v1(LENGTH, b"hello", version=b"2.0"),
    "switched": v1(b"Upgrade: x\r\nConnection: upgrade\r\n", status=b"101 Switching Protocols"),
    "switched unasked": v1(b"", status=b"101 Switching Protocols"),
    "no colon": v1(b"X-A\r\n" + LENGTH, b"hello"),
    "space before colon": v1(b"X-A : b\r\n" + LENGTH, b"hello"),
    "NUL": v1(b"X-A: a\0b\r\n" + LENGTH, b"hello"),
    "bare CR": v1(b"X-A: a\rb\r\n" + LENGTH, b"hello"),
    "escape": v1(b"X-A: a\x1bb\r\n" + LENGTH, b"hello"),
    "delete": v1(b"X-A: a\x7fb\r\n" + LENGTH, b"hello"),
    "lengths differ": v1(LENGTH + b"Content-Length: 6\r\n", b"hello"),
    "length twice": v1(LENGTH + LENGTH, b"hello"),
    "length list": v1(b"Content-Length: 5, 5\r\n", b"hello"),
    "length signed": v1(b"Content-Length: +5\r\n", b"hello"),
    "length negative": v1(b"Content-Length: -5\r\n", b"hello"),
    "length hexadecimal": v1(b"Content-Length: 0x5\r\n", b"hello"),
    "length and chunked": v1(LENGTH + CODED, CHUNKS + b"\r\n"),
    "chunked and length": v1(CODED + LENGTH, CHUNKS + b"\r\n"),
    "gzip coding": v1(b"Transfer-Encoding: gzip\r\n", b"hello"),
    "gzip, chunked": v1(b"Transfer-Encoding: gzip, chunked\r\n", CHUNKS + b"\r\n"),
    "chunked twice": v1(CODED + CODED, CHUNKS + b"\r\n"),
    "chunked in 1.0": v1(CODED, CHUNKS + b"\r\n", version=b"1.0"),
    "long line": v1(b"X-A: %b\r\n" % (b"a" * 70_000)),
    "endless line": b"HTTP/1.1 200 OK\r\nX-A: " + b"a" * 200_000,
    "long reason": v1(LENGTH, b"hello", status=b"200 " + b"a" * 70_000),
    "many lines": v1(b"X-A: b\r\n" * 200 + LENGTH, b"hello"),
}


@pytest.mark.parametrize("name", BAD_HEADS)
@on_both_loops
async def test_what_is_no_head_of_an_answer_is_told_at_once(name: str) -> None:
    async with talk([BAD_HEADS[name], "hang"]) as it:
        start = time.monotonic()
        with pytest.raises(UpstreamUnreachable, match="no valid HTTP"):
            await it.ask()
        assert time.monotonic() - start < 1
        await it.is_closed()
        assert await it.get() == (200, b"ok") and it.upstream.accepted == 2


@on_both_loops
async def test_interim_heads_without_end_are_bounded() -> None:
    async with talk([v1(b"X-A: %b\r\n" % (b"a" * 5_000), status=b"100 Continue"), 0.001] * 20) as it:
        with pytest.raises(UpstreamUnreachable, match="no valid HTTP"):
            await it.ask()


BAD_BODIES = {
    "no size": b"zz\r\nab\r\n",
    "negative size": b"-1\r\nab\r\n",
    "size too large": b"fffffffffffffffff\r\nab\r\n",
    "no line end behind it": b"2\r\nabc\r\n",
    "an answer in the middle": OK,
}


@pytest.mark.parametrize("name", BAD_BODIES)
@pytest.mark.parametrize("apart", [False, True])
@on_both_loops
async def test_what_is_no_chunk_is_told_at_once_behind_what_came(name: str, apart: bool) -> None:
    first = [CHUNKED, 0.02, b"5\r\nhello\r\n"]
    async with talk([*first, *([0.02] if apart else []), BAD_BODIES[name], "hang"]) as it:
        answer = await it.ask()
        start, came = time.monotonic(), b""
        with pytest.raises(UpstreamUnreachable, match="broke off"):
            while piece := await answer.piece():
                came += piece
        assert came[:5] == b"hello" and came[5:] in (b"", b"ab") and time.monotonic() - start < 1
        await it.is_closed()
        with pytest.raises(UpstreamUnreachable):
            await answer.piece()
        answer.close()


@pytest.mark.parametrize("end", ["fin", "rst"])
@pytest.mark.parametrize(
    "start", [CHUNKED, CHUNKED + b"5\r\nhello\r\n", CHUNKED + b"5\r\nhe", HEAD_5, HEAD_5 + b"hell"]
)
@on_both_loops
async def test_a_body_that_is_cut_is_no_whole_one(start: bytes, end: Step) -> None:
    async with talk([start, 0.02, end]) as it:
        answer = await it.ask()
        with pytest.raises(UpstreamUnreachable, match="broke off"):
            await read(answer)
        answer.close()


@on_both_loops
async def test_a_body_until_the_close_is_cut_by_a_reset() -> None:
    async with talk([v1(b"", b"hello"), 0.02, "rst"]) as it:
        answer = await it.ask()
        assert await answer.piece() == b"hello"
        with pytest.raises(UpstreamUnreachable, match="broke off"):
            await answer.piece()
        answer.close()


@pytest.mark.parametrize("end", ["fin", "rst"])
@on_both_loops
async def test_a_head_that_is_cut_is_none(end: Step) -> None:
    head = HEAD_5
    async with talk(*[[head[:at], 0.002, end] for at in range(len(head))]) as it:
        for _ in head:
            with pytest.raises(UpstreamUnreachable, match="cannot be reached"):
                await it.ask()
        assert it.upstream.accepted == len(head)


@on_both_loops
async def test_what_cannot_be_reached() -> None:
    async with talk() as it:
        for url in (
            "http://127.0.0.1:1/",
            "http://nowhere.invalid/",
            "ftp://127.0.0.1/",
            "nonsense",
            "http://h:99999/",
        ):
            with pytest.raises(UpstreamUnreachable, match="cannot be reached"):
                await it.ask("GET", url) if "://" in url else await it.client.ask("GET", url, [], None, it.times)
