"""The body of an upstream's answer on its way: a beginning that is looked at first, an undone encoding."""

from __future__ import annotations

from collections.abc import Iterator

from proxy.core.inflate import Broken, Coding, Unknown, inflater
from proxy.upstream.client import Response
from proxy.upstream.connection import Sink


class Body:
    """`beginning` if need be, then `flow` until there is no more. An encoding is undone once `undo` was called, unless
    it is `unknown`."""

    def __init__(self, answer: Response) -> None:
        self._answer = answer
        self._looked_at: list[bytes] = []
        self._encoding: Coding | None = None
        self.unknown = self._began = False
        self._parts: Iterator[bytes] = iter(())
        self._is_here = False  # all of it was looked at

    async def beginning(self, limit: int) -> bytes:
        """What the first pieces say, up to `limit` bytes or the end; they come again. A break is left for who reads on.
        An encoding is undone where it can be."""
        size, whole = sum(map(len, self._looked_at)), self._answer.length
        while size < limit and size != whole and (piece := self._answer.read_available() or await self._answer.piece()):
            self._looked_at.append(piece)
            size += len(piece)
        self._is_here = size == whole
        return self._read(b"".join(self._looked_at), limit)

    def _read(self, raw: bytes, limit: int) -> bytes:
        try:
            encoding, plain = self._named(), b""
            for part in encoding.feed(raw) if encoding else [raw]:
                plain += part
                if len(plain) >= limit:
                    break
            return plain
        except (Unknown, Broken):
            return raw

    def _named(self) -> Coding | None:
        """The undoing of the encoding that the answer names. Raises Unknown."""
        if self._answer.get("content-encoding") is None:
            return None
        every = [value for name, value in self._answer.headers if name.lower() == "content-encoding"]
        return inflater(",".join(every))

    def available(self) -> bytes:
        """The bytes that have come so far, with their encoding, without waiting. They come again."""
        if piece := self._answer.read_available():
            self._looked_at.append(piece)
        self._is_here = sum(map(len, self._looked_at)) == self._answer.length
        return b"".join(self._looked_at)

    async def peek(self) -> bytes:
        """The next piece as it came; it comes again. Empty at the end."""
        if not self._looked_at and (piece := self._answer.read_available() or await self._answer.piece()):
            self._looked_at.append(piece)
        return self._looked_at[0] if self._looked_at else b""

    async def more(self) -> bool:
        """Read on, as part of what was looked at; False at the end."""
        piece = self._answer.read_available() or await self._answer.piece()
        self._looked_at[-1] += piece
        return bool(piece)

    def undo(self) -> bool:
        """Undo the answer's encoding, where it has one: we asked for none, and cannot record what we cannot read."""
        try:
            self._encoding = self._named()
        except Unknown:
            self.unknown = True
        return self._encoding is not None

    @property
    def is_whole(self) -> bool:
        """Whether the encoding came to its end; there is none of nothing."""
        return self._encoding is None or self._encoding.eof or not self._began

    async def _piece(self) -> bytes:
        """The next piece; empty at the end."""
        if self._encoding is None:
            return self._looked_at.pop(0) if self._looked_at else await self._answer.piece()
        while not (part := next(self._parts, b"")):
            raw = self._looked_at.pop(0) if self._looked_at else await self._answer.piece()
            if not raw:
                return b""
            self._began = True
            self._parts = self._encoding.feed(raw)
        return part

    async def flow(self, sink: Sink) -> bool:
        """Give pieces to `sink`, as `Response.flow`, which may as well raise Broken."""
        while self._looked_at or self._encoding:
            piece = await self._piece()
            if not piece:
                return False
            if not sink(piece, b""):
                return True
        return not self._is_here and await self._answer.flow(sink)
