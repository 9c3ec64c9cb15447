"""The parser of an upstream's answers, which is aiohttp's: how it is set up, and what it lets pass and we do not."""

from __future__ import annotations

import asyncio
import re

from aiohttp.base_protocol import BaseProtocol
from aiohttp.http import HttpResponseParser, HttpVersion10, HttpVersion11, RawResponseMessage

HEAD = 64 * 1024  # bytes that a head may have
_ENDLESS = 2**29  # the reader's own bound, beyond ours: it could not be held to it without its private parts
_SIZE = re.compile(rb"([0-9a-fA-F]{1,7})\r\n")
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")


class _NeverPaused(BaseProtocol):
    """What the parser's reader asks to pause: nothing, since reading is paused by what lies unread there."""

    def pause_reading(self) -> None:
        """Never asked for: the reader's bound is beyond ours."""

    def resume_reading(self, resume_parser: bool = True) -> None:
        """Asked for after each read."""


def parser(loop: asyncio.AbstractEventLoop, is_head: bool) -> HttpResponseParser:
    """For one answer; that to a HEAD has no body, whatever it says."""
    return HttpResponseParser(
        _NeverPaused(loop),
        loop,
        _ENDLESS,
        max_line_size=HEAD,
        max_field_size=HEAD,
        response_with_body=not is_head,
        read_until_eof=True,
        auto_decompress=False,
    )


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
    """What some bytes carry that are whole chunks and nothing else, plainly written and none of them the last; None of
    any other, which are the parser's. A piece of a stream is one such chunk, and the parser takes ten calls for it."""
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


def holds_more(parser: HttpResponseParser) -> bool:
    """Whether more than an answer has come: at its end the parser gives what has begun of a message."""
    try:
        return parser.feed_eof() is not None
    except Exception:
        return True
