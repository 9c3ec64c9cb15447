"""Reads and decompresses the body of a client's request, within limits. Knows no session."""

from __future__ import annotations

import asyncio

from aiohttp import web

from proxy.core.inflate import STEP, Broken, Coding, Unknown, inflater
from proxy.errors import BadRequest, RequestTimeout, RequestTooLarge, UnsupportedEncoding

ClientRequest = web.BaseRequest
RequestKey = web.RequestKey  # of what is kept beside a request


async def read_body(request: ClientRequest, limit: int, timeout: float) -> bytes:
    """Read and decompress a body of at most `limit` bytes within `timeout` seconds. Raises RequestTooLarge,
    RequestTimeout, UnsupportedEncoding, and BadRequest if the body ends early."""
    named = request.headers.get("Content-Encoding")
    try:
        coding = None if named is None else inflater(",".join(request.headers.getall("Content-Encoding")))
    except Unknown as error:
        raise UnsupportedEncoding(
            f"The proxy cannot decode the Content-Encoding {str(error)!r}. Send gzip, or an uncompressed body without"
            " Content-Encoding."
        ) from None
    if (request.content_length or 0) > limit:
        raise _too_large(limit)
    if request.content.is_eof():  # it came with the head
        body = request.content.read_nowait()
        if len(body) > limit:
            raise _too_large(limit)
    else:
        body = await _received(request, limit, timeout)
    return await _decompressed(coding, body, limit) if coding else body


async def _received(request: ClientRequest, limit: int, timeout: float) -> bytes:
    pieces, size = [], 0
    try:
        async with asyncio.timeout(timeout):
            async for piece in request.content.iter_any():
                pieces.append(piece)
                if (size := size + len(piece)) > limit:
                    raise _too_large(limit)
    except TimeoutError:
        raise RequestTimeout(f"The request body did not arrive within {timeout:g} seconds. Send it again.") from None
    except (web.RequestPayloadError, ConnectionError) as error:
        raise BadRequest("The request body ended early. Send it again.") from error
    return b"".join(pieces)


async def _decompressed(coding: Coding, body: bytes, limit: int) -> bytes:
    """Decompress a body of at most `limit` bytes; let other tasks run in between."""
    pieces, size = [], 0
    try:
        for at in range(0, len(body), STEP):
            for piece in coding.feed(body[at : at + STEP]):
                pieces.append(piece)
                if (size := size + len(piece)) > limit:
                    raise _too_large(limit)
                await asyncio.sleep(0)
            await asyncio.sleep(0)
    except Broken as error:
        raise UnsupportedEncoding(
            "The request body does not match its Content-Encoding. Correct the header, or leave it out."
        ) from error
    if not coding.eof:
        raise BadRequest("The compressed request body ended early. Send all of it.")
    return b"".join(pieces)


def _too_large(limit: int) -> RequestTooLarge:
    return RequestTooLarge(f"The request body is larger than {limit} bytes. Send a smaller one.")
