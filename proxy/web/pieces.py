"""The pieces of an upstream's answer on their way: undone encodings, and a beginning that is looked at first."""

from __future__ import annotations

from collections.abc import AsyncIterator

from proxy.core.inflate import Inflate, inflater
from proxy.errors import UpstreamUnreachable
from proxy.web.upstream import Response


def inflating(answer: Response) -> Inflate | None:
    """How to undo the answer's encoding: we asked for none, and cannot record what we cannot read."""
    try:
        return inflater(answer.get("content-encoding"))
    except ValueError as error:
        raise UpstreamUnreachable(
            f"The upstream compressed its answer as {error} although asked not to. Turn that off there."
        ) from error


async def plain(pieces: AsyncIterator[bytes], encoding: Inflate | None) -> AsyncIterator[bytes]:
    async for piece in pieces:
        if encoding is None:
            yield piece
            continue
        for part in encoding.feed(piece):
            yield part


async def beginning(pieces: AsyncIterator[bytes], limit: int) -> list[bytes]:
    """The first pieces of a body, up to `limit` bytes or its end. A break is left for who reads on."""
    seen: list[bytes] = []
    while sum(map(len, seen)) < limit and (piece := await anext(pieces, None)) is not None:
        seen.append(piece)
    return seen


async def chained(seen: list[bytes], pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    for piece in seen:
        yield piece
    async for piece in pieces:
        yield piece
