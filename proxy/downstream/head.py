"""Encodes the head of an answer, and decides how its body is framed. Pure."""

from __future__ import annotations

from functools import lru_cache
from http import HTTPStatus

from aiohttp import HttpVersion, HttpVersion10, HttpVersion11
from msgspec import Struct

from proxy.core.headers import Pairs


class Head(Struct, frozen=True, gc=False):
    """The bytes of a head; whether its body is chunked, or absent; whether the connection can carry another request."""

    raw: bytes
    chunked: bool
    bodiless: bool
    keeps: bool


def framed(version: HttpVersion, method: str, status: int, headers: Pairs, keeps: bool) -> Head:
    """Encode a head with exactly these headers and those that HTTP requires. `keeps`: the client wants to keep the
    connection."""
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
