"""How long an upstream may take: to connect, to its head, and between two pieces."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
import uvloop

from proxy.errors import UpstreamTimeout, UpstreamUnreachable
from tests.support.raw_upstream import (
    CHUNKED,
    OK,
    Late,
    Upload,
    on_both_loops,
    silent_port,
    talk,
    v1,
)


@pytest.mark.parametrize(("scheme", "full"), [("http", True), ("https", False)])
@on_both_loops
async def test_to_connect_takes_no_longer_than_it_may(scheme: str, full: bool) -> None:
    async with silent_port(full) as port, talk() as it:
        start = time.monotonic()
        with pytest.raises(UpstreamUnreachable, match="in time"):
            await it.ask("GET", f"{scheme}://127.0.0.1:{port}/", connect_timeout=0.2)
        assert 0.15 < time.monotonic() - start < 1


@pytest.mark.parametrize("before", [0, 1])
@pytest.mark.parametrize("steps", [["hang"], [v1(b"", status=b"100 Continue"), 0.1] * 9, [b"HTTP/1.1 200", "hang"]])
@on_both_loops
async def test_a_head_takes_no_longer_than_it_may(steps: Any, before: int) -> None:
    async with talk(*[OK] * before, steps) as it:
        for _ in range(before):  # timers of the time before do not count
            await it.get(response_timeout=900, idle_timeout=900)
        start = time.monotonic()
        with pytest.raises(UpstreamTimeout, match="in time"):
            await it.ask(response_timeout=0.3, idle_timeout=0.01)
        assert 0.25 < time.monotonic() - start < 0.8
        await it.is_closed()


@on_both_loops
async def test_pieces_may_be_as_far_apart_as_they_may() -> None:
    pieces = [b"2\r\nab\r\n", 0.1] * 4
    async with talk([CHUNKED, *pieces, "hang"]) as it:
        answer = await it.ask(response_timeout=0.2, idle_timeout=0.2)
        start, came = time.monotonic(), b""
        with pytest.raises(UpstreamTimeout, match="silent"):
            while True:
                came += await answer.piece()
        assert came == b"ab" * 4 and 0.45 < time.monotonic() - start < 1
        answer.close()
        await it.is_closed()


@on_both_loops
async def test_a_body_until_the_close_does_not_end_with_a_silence() -> None:
    async with talk([v1(b"", b"hello"), "hang"]) as it:
        answer = await it.ask(idle_timeout=0.1)
        assert await answer.piece() == b"hello"
        for _ in range(2):
            with pytest.raises(UpstreamTimeout, match="silent"):
                await answer.piece()
            await it.is_closed()
        answer.close()


@on_both_loops
async def test_framing_alone_is_no_piece() -> None:
    async with talk([CHUNKED + b"2;", *[b"x", 0.02] * 100, "hang"]) as it:
        answer = await it.ask(idle_timeout=0.1)
        start = time.monotonic()
        with pytest.raises(UpstreamTimeout, match="silent"):
            await answer.piece()
        assert time.monotonic() - start < 1
        answer.close()


@on_both_loops
async def test_each_piece_that_is_handed_on_has_its_own_time() -> None:
    given: list[bytes] = []

    def take(piece: bytes, _: bytes) -> bool:
        given.append(piece)
        return True

    async with talk([CHUNKED, *[0.1, b"1\r\nx\r\n"] * 5, 0.1, b"0\r\n\r\n"]) as it:
        answer = await it.ask(idle_timeout=0.25)
        assert not await answer.flow(take)
        answer.close()
    assert given == [b"x"] * 5


@on_both_loops
@pytest.mark.parametrize("at", [1, 2])
async def test_what_goes_wrong_with_a_piece_is_told_to_who_asked_for_it(at: int) -> None:
    given: list[bytes] = []

    def take(piece: bytes, _: bytes) -> bool:
        given.append(piece)
        return 1 // (at - len(given)) > 0

    async with talk([CHUNKED, *[0.05, b"1\r\nx\r\n"] * 5, "hang"]) as it:
        answer = await it.ask()
        with pytest.raises(ZeroDivisionError):
            await asyncio.wait_for(answer.flow(take), 5)
        answer.close()


@on_both_loops
async def test_framing_in_the_moment_of_the_timeout_does_not_undo_it() -> None:
    moment = asyncio.Event()
    async with talk([CHUNKED + b"2;", moment, b"x", "hang"]) as it:
        answer = await it.ask(idle_timeout=0.1)
        reading = asyncio.ensure_future(answer.piece())
        await asyncio.sleep(0.02)
        moment.set()
        await asyncio.sleep(0)  # the byte is on its way
        time.sleep(0.15)  # nothing else turns the loop, so that byte and timer meet in one pass
        with pytest.raises(UpstreamTimeout, match="silent"):
            await asyncio.wait_for(reading, 2)
        answer.close()


@on_both_loops
async def test_the_time_that_the_reader_takes_does_not_count() -> None:
    async with talk([CHUNKED, b"2\r\nab\r\n", 0.05, b"2\r\ncd\r\n", 0.35, b"0\r\n\r\n"]) as it:
        answer = await it.ask(response_timeout=0.2, idle_timeout=0.2)
        assert await answer.piece() == b"ab"
        await asyncio.sleep(0.3)
        assert await answer.piece() == b"cd"
        assert await answer.piece() == b""
        answer.close()
        assert await it.get() == (200, b"ok") and it.upstream.accepted == 1


@on_both_loops
async def test_the_wait_for_a_head_begins_when_the_request_is_sent() -> None:
    async with talk([0.15, OK]) as it:
        upload = Late(*[b"x"] * 5, delay=0.1)
        assert await it.get("POST", "/", [], upload, response_timeout=0.25) == (200, b"ok")
        with pytest.raises(UpstreamTimeout, match="in time"):
            await it.ask("POST", "/", [], Upload(b"x"), response_timeout=0.1)


@on_both_loops
async def test_many_pieces_take_few_timers() -> None:
    loop, timers = asyncio.get_running_loop(), 0
    if isinstance(loop, uvloop.Loop):
        return
    call_at = loop.call_at

    def counted(*arguments: Any, **more: Any) -> Any:
        nonlocal timers
        timers += 1
        return call_at(*arguments, **more)

    async with talk([CHUNKED, *[b"2\r\nab\r\n"] * 300, b"0\r\n\r\n"]) as it:
        loop.call_at = counted  # type: ignore[method-assign, assignment]
        assert await it.get(connect_timeout=900, response_timeout=900, idle_timeout=300) == (200, b"ab" * 300)
        for _ in range(50):
            await it.get(response_timeout=900, idle_timeout=300)
    assert timers < 20
