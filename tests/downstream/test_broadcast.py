"""One answer and its listeners, alone: who gets what, who waits for whom, and what is forgotten."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import nullcontext
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.headers import Pairs
from proxy.downstream.broadcast import AHEAD, Broadcast
from proxy.downstream.client_stream import ClientStream
from proxy.errors import ProxyError, Stopped

HEADERS = [("Content-Type", "text/event-stream"), ("X-Session-Decision", "append")]


class Ear(ClientStream):
    """A listener that keeps what it is given, and while `stalled` does not come back from a write."""

    def __init__(self, stalled: bool = False) -> None:
        self.disconnected = self.closed = False
        self.stalled = stalled
        self.head: tuple[int, Pairs] | None = None
        self.status = 0
        self.pieces: list[bytes] = []
        self.ended = ""
        self._waits: asyncio.Future[None] | None = None

    @property
    def left(self) -> bool:
        return self.disconnected or self.closed

    def watched(self) -> Any:
        return nullcontext()  # the test says when it has gone

    @property
    def data(self) -> bytes:
        return b"".join(self.pieces)

    def begin(self, status: int, headers: Pairs, at_once: bool = True) -> None:
        assert self.head is None
        self.head, self.status = (status, headers), status

    def write_nowait(self, data: bytes, chunks: bytes = b"") -> bool:
        if not self.disconnected and self.head is not None:
            self.pieces.append(data)
        return self.disconnected or not self.stalled

    async def wait_writable(self) -> None:
        if self.stalled and not self.disconnected:
            self._waits = asyncio.get_running_loop().create_future()
            await self._waits

    def release_writer(self) -> None:
        if self._waits and not self._waits.done():
            self._waits.set_result(None)

    def take(self) -> None:
        """Take what there is, and from now on at once."""
        self.stalled = False
        self.release_writer()

    async def end(self) -> None:
        if not self.disconnected:
            assert not self.ended
            self.ended = "end"

    def reset_later(self, broke: float | None = None, why: str = "upstream") -> None:
        assert not self.ended
        self.disconnected, self.ended = True, "broken off"
        self.release_writer()

    def reset(self, why: str = "") -> None:
        assert not self.ended
        self.disconnected, self.ended = True, "reset"
        self.release_writer()

    def leave(self) -> None:
        """Its client has gone, and a write has told."""
        self.disconnected = True
        self.release_writer()


async def turns_of_the_loop() -> None:
    """Let every task come to where it waits."""
    for _ in range(30):
        await asyncio.sleep(0)


async def started(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    task = asyncio.create_task(work)
    await turns_of_the_loop()
    return task


async def begun(first: Ear, limit: int = 1 << 20) -> tuple[Broadcast, asyncio.Task[None]]:
    """A broadcast whose head is out, and the first listener's handler."""
    broadcast = Broadcast(first, limit)
    handler = await started(broadcast.attend())
    broadcast.begin(200, HEADERS)
    return broadcast, handler


async def test_a_single_listener_exerts_backpressure() -> None:
    first = Ear(stalled=True)
    broadcast, handler = await begun(first)
    writing = await started(broadcast.write(b"a"))
    assert not writing.done()
    first.take()
    await writing
    await broadcast.end()
    await handler
    assert (first.head, first.pieces, first.ended) == ((200, HEADERS), [b"a"], "end")
    assert broadcast.whole and broadcast.delivered


async def test_a_second_listener_releases_the_writer_from_the_first() -> None:
    first, second = Ear(stalled=True), Ear()
    broadcast, handler = await begun(first)
    writing = await started(broadcast.write(b"a"))
    following = await started(broadcast.resume(second))
    assert writing.done() and second.pieces == [b"a"]
    first.stalled = True
    for piece in (b"b", b"c"):
        await broadcast.write(piece)
    await broadcast.end()
    await asyncio.wait_for(following, 1)
    assert (second.data, second.ended, first.ended) == (b"abc", "end", "")
    first.take()
    await asyncio.wait_for(handler, 1)
    assert (first.pieces, first.ended) == ([b"a", b"b", b"c"], "end")


async def test_the_writer_stays_within_a_bound_of_the_fastest_listener() -> None:
    first, second = Ear(stalled=True), Ear(stalled=True)
    broadcast, handler = await begun(first)
    following = await started(broadcast.resume(second))
    pieces = [bytes([n]) * (AHEAD // 4) for n in range(12)]
    written: list[bytes] = []

    async def write() -> None:
        for piece in pieces:
            await broadcast.write(piece)
            written.append(piece)

    writing = await started(write())
    assert len(written) == 4  # the fifth waits: both lie behind by more than the bound
    second.take()
    await asyncio.wait_for(writing, 1)
    await broadcast.end()
    await asyncio.wait_for(following, 1)
    first.take()
    await asyncio.wait_for(handler, 1)
    assert first.data == second.data == b"".join(pieces)


@pytest.mark.parametrize("how", ["leave", "cancelled"])
async def test_the_writer_waits_for_nobody_once_all_listeners_left(how: str) -> None:
    first, second = Ear(stalled=True), Ear(stalled=True)
    broadcast, handler = await begun(first)
    following = await started(broadcast.resume(second))
    writing = await started(broadcast.write(b"x" * (2 * AHEAD)))
    assert not writing.done() and not broadcast.abandoned
    for ear, task in ((first, handler), (second, following)):
        ear.leave() if how == "leave" else task.cancel()
    await asyncio.wait_for(writing, 1)
    await asyncio.wait([handler, following], timeout=1)
    assert broadcast.abandoned
    await broadcast.end()
    assert not broadcast.delivered


async def test_a_broadcast_is_deserted_once_all_listeners_left() -> None:
    first, second = Ear(), Ear()
    broadcast, handler = await begun(first)
    assert not broadcast.abandoned
    first.closed = True
    assert broadcast.abandoned
    following = await started(broadcast.resume(second))
    assert not broadcast.abandoned
    second.closed = True
    assert broadcast.abandoned
    broadcast.fail()
    await asyncio.gather(handler, following)


async def test_a_follower_gets_its_own_headers_in_place_of_the_originals() -> None:
    late = Ear()
    broadcast, handler = await begun(Ear())
    await broadcast.end()
    await broadcast.resume(late, [("x-session-decision", "retry")])
    await handler
    assert late.head == (200, [HEADERS[0], ("x-session-decision", "retry")])
    assert late.ended == "end"


async def test_a_follower_before_the_head_waits_for_it() -> None:
    first, early = Ear(), Ear()
    broadcast = Broadcast(first, 100)
    handler, following = await started(broadcast.attend()), await started(broadcast.resume(early))
    assert early.head is None
    broadcast.begin(200, HEADERS)
    await broadcast.write(b"a")
    await broadcast.end()
    await asyncio.gather(handler, following)
    assert first.head == early.head == (200, HEADERS)
    assert first.ended == early.ended == "end"
    assert first.data == early.data == b"a"


@pytest.mark.parametrize("joined", [True, False])
async def test_an_error_before_the_head_is_raised_for_every_listener(joined: bool) -> None:
    broadcast = Broadcast(Ear(), 100)
    handler = await started(broadcast.attend())
    tasks = [handler, *([await started(broadcast.resume(Ear()))] if joined else [])]
    broadcast.fail(Stopped("stopped"))
    told = await asyncio.gather(*tasks, broadcast.resume(Ear()), return_exceptions=True)
    late = told.pop()
    assert isinstance(late, Stopped)
    # the first's own handler is told too, whether or not it has become one among several
    assert [type(fault) for fault in told] == [Stopped] * len(told)


async def test_a_failure_before_the_head_without_an_error_is_a_reset() -> None:
    late = Ear()
    broadcast = Broadcast(Ear(), 100)
    broadcast.fail()
    await broadcast.resume(late)
    assert (late.head, late.ended) == (None, "broken off")


async def test_a_failure_after_the_head_resets_every_listener_after_its_bytes() -> None:
    first, second, late = Ear(), Ear(), Ear()
    broadcast, handler = await begun(first)
    following = await started(broadcast.resume(second))
    await broadcast.write(b"a")
    broadcast.fail(ProxyError("too late to say so"))
    await asyncio.gather(handler, following, broadcast.resume(late))
    assert {(ear.data, ear.ended) for ear in (first, second, late)} == {(b"a", "broken off")}
    assert not broadcast.delivered and not broadcast.whole


async def test_a_single_listener_is_reset_at_once_and_a_failure_after_the_end_is_ignored() -> None:
    broken, whole = Ear(), Ear()
    one, handler = await begun(broken)
    one.fail()
    other, handler2 = await begun(whole)
    await other.end()
    other.fail()
    await asyncio.gather(handler, handler2)
    assert (broken.ended, whole.ended) == ("broken off", "end")


async def test_over_the_limit_nobody_can_follow() -> None:
    first, late = Ear(), Ear()
    broadcast, handler = await begun(first, limit=3)
    for piece in (b"ab", b"c", b"d"):
        await broadcast.write(piece)
    await broadcast.resume(late)
    await broadcast.write(b"e")
    await broadcast.end()
    await handler
    assert (late.pieces, late.ended) == ([], "reset")
    assert (first.data, first.ended) == (b"abcde", "end")  # one alone needs nothing that is kept


async def test_a_follower_is_reset_when_the_limit_is_passed() -> None:
    first, second = Ear(), Ear()
    broadcast, handler = await begun(first, limit=3)
    following = await started(broadcast.resume(second))
    await broadcast.write(b"abc")
    await turns_of_the_loop()
    await broadcast.write(b"d")
    await asyncio.wait_for(asyncio.gather(handler, following), 1)
    assert (second.data, second.ended) == (b"abc", "broken off")
    assert first.ended == "broken off" and broadcast.abandoned


STEP = st.one_of(
    st.tuples(st.just("write"), st.integers(1, AHEAD)),
    st.tuples(st.just("follow"), st.booleans()),
    st.tuples(st.sampled_from(["stall", "take", "leave"]), st.integers(0, 5)),
)


async def played(steps: list[tuple[str, int]], ending: str) -> None:
    """A writer that never looks at who listens, listeners that come, stall, and leave in between."""
    ears = [Ear()]
    broadcast, handler = await begun(ears[0], limit=1 << 30)
    handlers, queue = [handler], asyncio.Queue[bytes | None]()

    async def write() -> None:
        while (piece := await queue.get()) is not None:
            await broadcast.write(piece)
        await broadcast.end() if ending == "end" else broadcast.fail()

    writing, whole = asyncio.create_task(write()), b""
    for at, (step, value) in enumerate(steps):
        if step == "write":
            whole += (piece := bytes([at % 256]) * value)
            queue.put_nowait(piece)
        elif step == "follow":
            ears.append(Ear(stalled=bool(value)))
            handlers.append(asyncio.create_task(broadcast.resume(ears[-1])))
        elif value < len(ears):
            {"stall": lambda ear: setattr(ear, "stalled", True), "take": Ear.take, "leave": Ear.leave}[step](
                ears[value]
            )
        await turns_of_the_loop()
    queue.put_nowait(None)
    for ear in ears:
        ear.take()
    await asyncio.wait_for(asyncio.gather(writing, *handlers), 5)
    for ear in ears:
        assert whole.startswith(ear.data)
        if ear.ended:
            assert (ear.data, ear.ended) == (whole, ending) and ear.head
        else:
            assert ear.disconnected
    assert broadcast.delivered == (ending == "end" and any([ear.ended for ear in ears]))


@given(st.lists(STEP, max_size=25), st.sampled_from(["end", "broken off"]))
def test_every_listener_gets_every_byte_once_and_the_same_end(steps: list[tuple[str, int]], ending: str) -> None:
    asyncio.run(played(steps, ending))
