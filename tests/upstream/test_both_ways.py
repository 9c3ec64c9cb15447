"""Bodies that go both ways at a time: backpressure, and answers that come before their request has gone."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from proxy.errors import BadRequest
from tests.support.fakes import eventually, settled
from tests.support.raw_upstream import (
    CHUNKED,
    LENGTH,
    OK,
    Answer,
    Late,
    Pairs,
    Step,
    Upload,
    at_once,
    body_of,
    on_both_loops,
    read,
    talk,
    v1,
)


@on_both_loops
async def test_what_is_not_read_is_not_taken_from_the_upstream() -> None:
    piece, written = b"%x\r\n%b\r\n" % (2**16, b"x" * 2**16), 0
    size = 400 * 2**16

    async def pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal written
        with contextlib.suppress(EOFError, OSError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(CHUNKED)
            for _ in range(400):
                writer.write(piece)
                await writer.drain()
                written += 2**16
            writer.write(b"0\r\n\r\n")
            await reader.read()
        writer.close()

    server = await asyncio.start_server(pour, "127.0.0.1", 0)
    async with talk() as it, server:
        answer = await it.ask("GET", f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/", idle_timeout=0.2)
        await settled(lambda: written)
        assert written < size / 2  # the kernel holds some megabytes
        first = at_once(answer.piece())
        assert first and 2**17 < len(first) < 2**20
        assert len(first) + len(await read(answer)) == size == written
        answer.close()
        await it.client.close()


@on_both_loops
async def test_what_the_upstream_does_not_take_is_not_read_from_the_client() -> None:
    upload = Upload(*[b"x" * 2**16] * 400)
    parts = upload.total_bytes

    class Sip(Upload):
        async def readany(self) -> bytes:
            self.taken += 2**16
            if self.taken > parts:
                return b""
            return b"x" * 2**16

    go_on = asyncio.Event()
    async with talk() as it:
        body = Sip()

        async def sip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            head = await reader.readuntil(b"\r\n\r\n")
            await go_on.wait()
            got.append(await body_of(head, reader))
            writer.write(OK)
            await reader.read()
            writer.close()

        got: list[bytes] = []
        server = await asyncio.start_server(sip, "127.0.0.1", 0, limit=2**16)
        async with server:
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
            asking = asyncio.create_task(it.get("POST", url, [], body))
            await settled(lambda: body.taken)
            assert body.taken < parts / 2
            go_on.set()
            assert await asking == (200, b"ok")
            assert got[0].count(b"x") == parts
            await it.client.close()


EARLY = v1(LENGTH, b"large", status=b"413 Content Too Large")


@on_both_loops
async def test_a_connection_that_has_not_taken_all_of_a_body_takes_no_other() -> None:
    async def sip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(EARLY)
        await done.wait()
        writer.transport.abort()

    done = asyncio.Event()
    server = await asyncio.start_server(sip, "127.0.0.1", 0, limit=2**10)
    async with talk() as it, server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        for _ in range(2):
            assert await it.get("POST", url, [], b"x" * 2**24, response_timeout=1) == (413, b"large")
        done.set()
        await it.client.close()


@pytest.mark.parametrize("end", ["fin", 0.0])
@on_both_loops
async def test_an_answer_may_come_before_the_body_has_gone(end: Step) -> None:
    async with talk(Answer([EARLY, end], unread=True)) as it:
        body = Upload(b"x" * 100)
        assert await it.get("POST", "/", [], body) == (413, b"large")
        await it.is_closed()
        body.feed_data(b"y")
        await asyncio.sleep(0.02)
        assert body.taken == 100
        assert await it.get() == (200, b"ok")
        assert [got.connection for got in it.upstream.got] == [0, 1]


@on_both_loops
async def test_an_answer_may_be_read_while_the_body_goes_on() -> None:
    """And one that was answered before its body had gone is not followed by another request."""
    heard = asyncio.Event()
    async with talk(Answer([CHUNKED, b"2\r\nab\r\n", heard, b"2\r\ncd\r\n0\r\n\r\n"], unread=True)) as it:
        body = Upload(b"x")
        answer = await it.ask("POST", "/", [], body)
        assert await answer.piece() == b"ab"
        body.feed_data(b"y")
        await eventually(lambda: body.taken == 2)
        body.feed_eof()
        await asyncio.sleep(0.01)
        heard.set()
        assert await read(answer) == b"cd"
        answer.close()


@pytest.mark.parametrize("headers", [[], [("Content-Length", "10")]])
@pytest.mark.parametrize("answered", [False, True])
@on_both_loops
async def test_a_body_that_breaks_off_ends_the_connection(headers: Pairs, answered: bool) -> None:
    async with talk(Answer([CHUNKED, "hang"] if answered else ["hang"], unread=answered)) as it:
        body = Upload(b"hello")
        asking = asyncio.create_task(it.ask("POST", "/", headers, body))
        await eventually(lambda: body.taken and (asking.done() or not answered))
        body.set_exception(ConnectionResetError())
        with pytest.raises(BadRequest, match="broke off"):
            await (await asking).piece() if answered else await asking
        if answered:
            (await asking).close()
        await eventually(lambda: not it.upstream.open or answered)
        assert answered or not it.upstream.got  # never whole


@pytest.mark.parametrize("parts", [[b"hello", b"wor"], [b"hello", b"worlds"], [b"hello worlds"], []])
@on_both_loops
async def test_a_body_of_another_length_is_never_sent_whole(parts: list[bytes]) -> None:
    async with talk() as it:
        with pytest.raises(BadRequest, match="broke off"):
            await it.ask("POST", "/", [("Content-Length", "10")], Late(*parts))
        await it.is_closed()
        assert not it.upstream.got
        assert await it.get() == (200, b"ok")
