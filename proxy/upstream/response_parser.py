"""What aiohttp's parser of answers lets pass and we do not, and the chunks for which no parser is needed. Pure."""

from __future__ import annotations

import re

from aiohttp import HttpVersion10, HttpVersion11

from proxy.foundation.http_internals import RawResponseMessage

_SIZE = re.compile(rb"([0-9a-fA-F]{1,7})\r\n")
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")


def is_valid(message: RawResponseMessage) -> bool:
    """What aiohttp's parser lets pass and must not be handed on. It gives bodies coded otherwise as they are, while
    the header that says so ends at this hop."""
    codings = message.headers.getall("Transfer-Encoding", ())
    chunked = len(codings) == 1 and codings[0].lower() == "chunked" and message.version == HttpVersion11
    return (
        message.version in (HttpVersion10, HttpVersion11)
        and (not codings or chunked)
        and (message.code == 100 or message.code > 101)
        and not _CONTROL.search(b"".join([value for _, value in message.raw_headers]))
    )


def unchunked(data: bytes) -> bytes | None:
    """Decode bytes that are whole HTTP chunks without extensions and without the last chunk. None for anything else,
    which the parser must read."""
    pieces, at = [], 0
    while at < len(data):
        if not (found := _SIZE.match(data, at)):
            return None
        start = found.end()
        end = start + int(found[1], 16)
        if end == start or data[end : end + 2] != b"\r\n":
            return None
        pieces.append(data[start:end])
        at = end + 2
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)
