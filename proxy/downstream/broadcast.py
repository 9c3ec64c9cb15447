"""Writes one answer to every client that reads it; each gets all of it, from the first byte.

A single client is written to directly, and its backpressure slows down the upstream. Once a second one comes, each
reads at its own pace, so that a stalled client blocks nobody. Knows nothing of sessions or of what the bytes mean.
"""

from __future__ import annotations

import asyncio

from proxy.core.headers import Pairs
from proxy.core.model import Answer, Turn, TurnState
from proxy.downstream.client_stream import ClientStream
from proxy.errors import ProxyError

_SLICE = 64 * 1024  # bytes of an answer that is given again, at a time
AHEAD = 256 * 1024  # bytes that may be kept ahead of the listener that has taken most


class Broadcast:
    """A turn calls `begin`, then `write_nowait` per piece, and `wait_writable` where that returns False, then `end`;
    or `fail` at any time. `limit` bounds the bytes kept for clients that come later; beyond it none can join."""

    def __init__(self, first: ClientStream, limit: int) -> None:
        self.status, self.headers = 0, Pairs()
        self.fault: ProxyError | None = None
        self.why = "upstream"  # whose doing it is where it ends before its end
        self.ended = self.whole = False
        self.delivered = False  # some client has been given the end
        self._first: ClientStream | None = first
        self._followers: dict[ClientStream, int] = {}  # and how many bytes each has taken
        self._pieces: list[bytes] | None = []
        self._size, self._limit = 0, limit
        self._news: asyncio.Future[None] | None = None
        self._alone: asyncio.Future[ClientStream | None] = (
            asyncio.get_running_loop().create_future()
        )  # done when `first` need not wait any more

    @property
    def abandoned(self) -> bool:
        """Whether every client has disconnected."""
        first = self._first is not None and not self._first.left
        return not first and all([follower.left for follower in self._followers])

    def poll(self) -> None:
        """Reset the first client if it has stalled; see ClientStream.poll."""
        if self._first is not None:
            self._first.poll()

    def begin(self, status: int, headers: Pairs, at_once: bool = True) -> None:
        self.status, self.headers = status, headers
        self._tell()
        if self._first is not None:
            self._first.begin(status, headers, at_once)

    def tell(self, header: tuple[str, str]) -> None:
        """Add a header for the clients that were not sent the head yet."""
        if header not in self.headers:
            self.headers = [*self.headers, header]
            if self._first is not None and self._first.take_back():
                self._first.begin(self.status, self.headers, False)

    def write_nowait(self, piece: bytes, chunks: bytes = b"") -> bool:
        """Write a piece without waiting. Return whether more may be written at once. `chunks`: see ClientStream.put."""
        if self._pieces is not None:
            self._size += len(piece)
            if self._size > self._limit:
                self._pieces = None
            else:
                self._pieces.append(piece)
        if self._news is not None:
            self._tell()
        return self._first.write_nowait(piece, chunks) if self._first is not None else self._is_writable

    async def wait_writable(self) -> None:
        """Wait until more may be written (backpressure)."""
        if self._first is not None:
            await self._first.wait_writable()
        while self._first is None and not self._is_writable:
            await self._changed()

    async def write(self, piece: bytes) -> None:
        """Write a piece, and wait for room if necessary."""
        if not self.write_nowait(piece):
            await self.wait_writable()

    @property
    def _is_writable(self) -> bool:
        """Whether at least one client keeps up with the answer."""
        return not self._followers or self._size - max(self._followers.values()) <= AHEAD

    async def end(self) -> None:
        """Release the end of the answer to every client."""
        self.ended = self.whole = True
        self._tell()
        if self._first is not None:
            await self._first.end()
            self.delivered = not self._first.disconnected
        self._release()

    def fail(self, fault: ProxyError | None = None, broke: float | None = None) -> None:
        """End an incomplete answer: with `fault` if nothing was sent yet, else with a reset. `broke`: see
        ClientStream.reset_later."""
        if self.ended:
            return
        self.ended, self.fault = True, fault
        if self._first is not None and self.status:
            if fault and self._first.take_back():
                self.status = 0
            else:
                self._first.reset_later(broke, self.why)
        self._tell()
        self._release()

    async def attend(self) -> None:
        """Wait, in the first client's handler, until its answer has ended. Raises the error if no head was sent."""
        first = await self._alone
        if first is not None:
            await self._follow(first, self._followers[first])
        elif self.fault and not self.status:
            raise self.fault

    async def resume(self, client: ClientStream, instead: Pairs = ()) -> None:  # type: ignore[assignment]
        """Send the whole answer to a client that comes later; the headers `instead` replace those of the same name.
        Raises the error if no head was sent."""
        if self._pieces is None:
            client.reset("limit")
            return
        if self._first is not None and not self.ended:  # from now on nobody waits for anybody
            first, self._first = self._first, None
            self._followers[first] = self._size
            first.release_writer()
            if not self._alone.done():  # else the first one's handler is being cancelled
                self._alone.set_result(first)
        self._followers[client] = 0
        await self._follow(client, 0, instead)

    async def _follow(self, client: ClientStream, taken: int, instead: Pairs = ()) -> None:  # type: ignore[assignment]
        try:
            async with client.watched():
                await self._give(client, taken, instead)
        finally:
            del self._followers[client]
            self._tell()

    async def _give(self, client: ClientStream, taken: int, instead: Pairs) -> None:
        if not client.status:  # the first, too, where another came before the head
            await self._head(client, instead)
        at = self._piece_at(taken)
        while not client.disconnected:
            if self._pieces is None:
                client.reset_later(why="limit")
            elif at < len(self._pieces):
                piece = self._pieces[at]
                await client.write(piece)
                at += 1
                self._followers[client] += len(piece)
                self._tell()
            elif self.ended:
                await client.end() if self.whole else client.reset_later(why=self.why)
                self.delivered = self.delivered or (self.whole and not client.disconnected)
                return
            else:
                await self._changed()

    async def _head(self, client: ClientStream, instead: Pairs) -> None:
        while not self.status and not self.ended:
            await self._changed()
        if self.status:
            names = {name for name, _ in instead}
            kept = [pair for pair in self.headers if pair[0].lower() not in names]
            client.begin(self.status, [*kept, *instead])
        elif self.fault:
            raise self.fault

    def _piece_at(self, taken: int) -> int:
        at = size = 0
        while self._pieces is not None and size < taken:
            size += len(self._pieces[at])
            at += 1
        return at

    async def _changed(self) -> None:
        if self._news is None:
            self._news = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._news)

    def _tell(self) -> None:
        if self._news is not None:
            self._news.set_result(None)
            self._news = None

    def _release(self) -> None:
        if not self._alone.done():
            self._alone.set_result(None)


async def replay(client: ClientStream, turn: Turn, answer: Answer, ours: Pairs = ()) -> None:  # type: ignore[assignment]
    """Replay a stored answer to a client. An interrupted one breaks off where it was interrupted."""
    whole = turn.state is TurnState.COMPLETE
    sent = [("Content-Type", answer.content_type)] if answer.content_type is not None else []
    sent += [("Content-Length", str(len(answer.body)))] if whole else []
    sent += [("x-session-state", "replayed"), ("x-session-turn", turn.id), *ours]
    async with client.watched():
        client.begin(answer.status, [*sent, ("x-session-injected", "0"), ("x-session-dropped", "0")])
        for at in range(0, len(answer.body), _SLICE):  # a client may be slow, but has to take each in time
            await client.write(answer.body[at : at + _SLICE])
        await client.end() if whole else client.reset_later()
