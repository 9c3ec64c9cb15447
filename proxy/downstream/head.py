"""The head of an answer as it goes on the wire to a client, and how the body behind it is framed. Pure."""

from __future__ import annotations

from functools import lru_cache
from http import HTTPStatus

from aiohttp import HttpVersion, HttpVersion10, HttpVersion11
from msgspec import Struct

from proxy.core.headers import Pairs


class Head(Struct, frozen=True, gc=False):
    """Its bytes, and what follows: a body in chunks, or as it is, or none at all; and whether the connection can
    carry another request behind it."""

    raw: bytes
    chunked: bool
    bodiless: bool
    keeps: bool


def framed(version: HttpVersion, method: str, status: int, headers: Pairs, keeps: bool) -> Head:
    """The head of an answer with exactly these headers, and what HTTP asks for beside them. `keeps`: the client wants
    the connection to be kept."""
    bodiless = method == "HEAD" or status in (204, 304)
    lines = [_status_line(version, status)]
    sized = chunked = False
    for name, value in headers:
        if len(name) == 14 and name.lower() == "content-length":
            if status == 204:  # RFC 9110, section 8.6
                continue
            sized = True
        lines.append(f"{name}: {value}")
    if not sized and not bodiless:
        if version >= HttpVersion11:
            chunked = True
            lines.append("Transfer-Encoding: chunked")
        else:
            keeps = False  # the end of the connection is the end of the body
    if keeps and version == HttpVersion10:
        lines.append("Connection: keep-alive")
    elif not keeps and version >= HttpVersion11:
        lines.append("Connection: close")
    raw = ("\r\n".join(lines) + "\r\n\r\n").encode("utf-8", "surrogateescape")
    return Head(raw, chunked, bodiless, keeps)


@lru_cache(128)
def _status_line(version: HttpVersion, status: int) -> str:
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:  # one that is no standard's
        phrase = ""
    return f"HTTP/{version.major}.{version.minor} {status} {phrase}"
