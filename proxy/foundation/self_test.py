"""Whether the installed aiohttp is as the proxy needs it. What it checks is what no documentation promises."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from inspect import isfunction, signature
from typing import Any

import aiohttp
from aiohttp import web
from aiohttp.abc import AbstractStreamWriter

from proxy.errors import UnfitLibrary
from proxy.foundation.http_internals import NO_BODY, Request, holds_more, received, response_parser

_WHOLE = b"HTTP/1.1 200 OK\r\nContent-Length: 2 \t\r\n\r\nok"
_CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
_ENDLESS = b"HTTP/1.1 200 OK\r\n\r\nok"
_SWITCH = "AIOHTTP_NO_EXTENSIONS"
_TESTED = "3.14.5"  # the newest release that all tests ran with
MakeParser = Callable[[asyncio.AbstractEventLoop, bool], Any]


def refuse_unfit(loop: asyncio.AbstractEventLoop) -> None:
    """Raises UnfitLibrary, which says what is wrong with the installed aiohttp and what to do. Takes a tenth of a
    millisecond."""
    if why := unfit(loop, os.environ):
        raise UnfitLibrary(why)


def unfit(
    loop: asyncio.AbstractEventLoop,
    environ: Mapping[str, str],
    make: MakeParser = response_parser,
    handler: type = web.RequestHandler,
) -> str | None:
    """What is wrong with aiohttp, and what to do; None where it fits."""
    installed = f"aiohttp {aiohttp.__version__}"
    if isfunction(type(make(loop, False)).feed_data):
        why = f"{installed} works without its compiled extension, and would take stray bytes for an answer."
        if environ.get(_SWITCH):
            return f"{why} Remove {_SWITCH} from the environment."
        return f"{why} Install a built package of it: pip install --force-reinstall --only-binary aiohttp aiohttp"
    wrong = next((what for what, is_right in _checks(loop, make, handler) if not _holds(is_right)), None)
    if wrong is None:
        return None
    return f"{installed} is not as the proxy needs it ({wrong}). Install another one: pip install aiohttp=={_TESTED}"


def _holds(is_right: Callable[[], Any]) -> bool:
    try:
        return bool(is_right())
    except Exception:
        return False


def _checks(
    loop: asyncio.AbstractEventLoop, make: MakeParser, handler: type
) -> Iterator[tuple[str, Callable[[], Any]]]:
    def read(data: bytes, is_head: bool = False) -> tuple[Any, Any, Any]:
        """The parser, and the message and the reader that it gives."""
        parser = make(loop, is_head)
        messages, _, _ = parser.feed_data(data)
        ((message, body),) = messages
        return parser, message, body

    def whole() -> bool:
        parser, message, body = read(_WHOLE)
        said = (message.code, message.raw_headers, message.should_close, message.chunked, message.version)
        return (
            said == (200, ((b"Content-Length", b"2"),), False, False, aiohttp.HttpVersion11)
            and message.headers.getall("content-length") == ["2"]
            and (received(body), body.read_nowait(), body.at_eof()) == (2, b"ok", True)
            and not holds_more(parser)
        )

    def notices(data: bytes) -> bool:
        """Whether bytes behind an answer are noticed, when they come or when the answer is over."""
        parser, _, _ = read(_WHOLE)
        return refuses(parser, data) or holds_more(parser)

    def refuses(parser: Any, data: bytes) -> bool:
        try:
            parser.feed_data(data)
        except Exception:
            return True
        return False

    def chunks() -> bool:
        parser, message, body = read(_CHUNKED + b"2\r\nok\r\n")
        begun = message.chunked and body.read_nowait() == b"ok" and not body.is_eof()
        parser.feed_data(b"0\r\n\r\n")
        return begun and body.is_eof() and not holds_more(parser)

    def until_the_end() -> bool:
        parser, message, body = read(_ENDLESS)
        open_ended = message.should_close and not body.is_eof()
        parser.feed_eof()
        return open_ended and body.is_eof() and body.read_nowait() == b"ok"

    yield "an answer with a length", whole
    for data in (b"H", b"HTTP/1.1 200 OK\r\n", b"\0"):
        yield "bytes that nobody asked for", partial(notices, data)
    yield "an answer in chunks", chunks
    yield "a malformed chunk", lambda: refuses(read(_CHUNKED)[0], b"no size\r\n")
    yield "an answer without a length", until_the_end
    yield "an answer to HEAD", lambda: read(_WHOLE[:-2], True)[2].is_eof()
    yield "the empty body", lambda: NO_BODY.is_eof() and NO_BODY.read_nowait() == b""
    yield "the hook before a response", lambda: isfunction(vars(web.BaseRequest)["_prepare_hook"])
    yield "the making of a request", lambda: signature(Request).bind(1, 2, 3, 4, 5, loop=loop)
    for name in ("transport", "writing_paused", "pause_writing", "resume_writing"):
        yield f"the connection of a client: {name}", partial(hasattr, handler, name)
    for name in ("write", "drain", "output_size"):
        yield f"the writer of an answer: {name}", partial(hasattr, AbstractStreamWriter, name)
