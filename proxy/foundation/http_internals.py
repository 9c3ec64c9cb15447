"""Everything of aiohttp that its documentation does not promise. No other module uses such a thing.

For upstreams: the parser of answers. It is the compiled one; the one in Python says less of what it has read (see
`holds_more`). For clients: the moment before a response's headers are written, the connection behind a request, and the
count of bytes by which aiohttp knows that an answer has begun. `self_test` checks at the start that all of it is as
needed. Reasons and figures: decision 65. Knows nothing of sessions, upstreams or clients.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from operator import attrgetter
from typing import Protocol, TypeVar

from aiohttp import EMPTY_PAYLOAD, StreamReader, http_exceptions, web
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http import HttpResponseParser, RawResponseMessage

__all__ = ["HttpResponseParser", "RawResponseMessage"]

HEAD = 64 * 1024  # bytes that the head of an upstream's answer may have
_ENDLESS = 2**29  # the reader's own bound, beyond ours: it could not be held to it without its private parts

# The upstream's answer

NO_BODY: StreamReader = EMPTY_PAYLOAD  # at its end, and never with anything in it
received: Callable[[StreamReader], int] = attrgetter("total_bytes")  # of a body so far, read or not


class _NeverPaused(BaseProtocol):
    """What the parser's reader asks to pause: nothing, since reading is paused by what lies unread there."""

    def pause_reading(self) -> None:
        """Never asked for: the reader's bound is beyond ours."""

    def resume_reading(self, resume_parser: bool = True) -> None:
        """Asked for after each read."""


def response_parser(
    loop: asyncio.AbstractEventLoop, is_head: bool, kind: Callable[..., HttpResponseParser] = HttpResponseParser
) -> HttpResponseParser:
    """For one answer; that to a HEAD has no body, whatever it says. `feed_data` gives pairs of a message and the reader
    of its body, and raises for what is no HTTP; `feed_eof` says that no more comes."""
    return kind(
        _NeverPaused(loop),
        loop,
        _ENDLESS,
        max_line_size=HEAD,
        max_field_size=HEAD,
        response_with_body=not is_head,
        read_until_eof=True,
        auto_decompress=False,
    )


def holds_more(parser: HttpResponseParser) -> bool:
    """Whether more than an answer has come: at its end the compiled parser gives what has begun of a message."""
    try:
        return parser.feed_eof() is not None
    except Exception:
        return True


# The answer to a client


class Request(web.BaseRequest):
    """A request that finishes the headers of the responses that aiohttp writes for it. What an Application has signals
    for; tests/server/test_untouched.py pins it."""

    async def _prepare_hook(self, response: web.StreamResponse) -> None:
        self.finish(response)

    def finish(self, response: web.StreamResponse) -> None:
        """Called before the headers of a response are written."""


class ClientConnection(Protocol):
    """The connection of a client, as its request holds it."""

    @property
    def transport(self) -> asyncio.Transport | None:
        """None once it is closed."""

    @property
    def writing_paused(self) -> bool:
        """Whether the client takes less than is written."""

    def pause_writing(self) -> None:
        """As the loop says where too much is unsent."""

    def resume_writing(self) -> None:
        """As the loop says where it is sent."""


_Request = TypeVar("_Request", bound=web.BaseRequest)
connection_of: Callable[[web.BaseRequest], ClientConnection] = attrgetter("protocol")
UNREADABLE = http_exceptions.HttpProcessingError  # raised, and logged, for what is no HTTP request


def request_factory(kind: Callable[..., _Request]) -> Callable[..., _Request]:
    """For `web.Server`: what it gives a request has no documented order, and lacks the loop."""
    return partial(kind, loop=asyncio.get_running_loop())


async def send_continue(request: web.BaseRequest) -> None:
    """Let the client send its body (RFC 9110, section 10.1.1)."""
    await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    request.writer.output_size = 0  # nothing of the answer itself


def note_begun(request: web.BaseRequest, size: int) -> None:
    """An answer was begun without aiohttp's help: it must write no page of an error behind it."""
    request.writer.output_size += size


def drained(request: web.BaseRequest) -> Awaitable[None]:
    """Done once the client has taken most of what was written. Raises ConnectionError where it goes."""
    return request.writer.drain()


def let_drained(connection: ClientConnection) -> None:
    """End the wait of `drained` while the client still takes too little. Not by a cancellation: aiohttp would give the
    cancelled future to who waits next."""
    if connection.writing_paused:
        connection.resume_writing()
        connection.pause_writing()
