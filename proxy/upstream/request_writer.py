"""A request as it goes on the wire: the head that is sent for given headers, and how the body is framed. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from aiohttp import StreamReader
from msgspec import Struct

from proxy.core.chunks import LAST, chunk
from proxy.core.headers import Pairs
from proxy.errors import BadRequest

_SIZED = ("POST", "PUT", "PATCH")  # no body at all is told by a length of 0 (RFC 9110, section 8.6)


Content = Sequence[bytes] | StreamReader | None  # a body: its pieces, or as it comes


_FRAMING = frozenset(map(len, ("host", "content-length", "transfer-encoding")))


class Request(Struct, frozen=True):
    """The head, and the pieces of the body that are here. The rest comes from `stream`, in chunks unless there is a
    `length`."""

    head: bytes
    body: Sequence[bytes] = ()
    stream: StreamReader | None = None
    length: int | None = None
    is_head: bool = False  # its answer has no body, whatever it says
    size: int = 0  # bytes of the pieces


def written(method: str, authority: str, target: str, headers: Pairs, body: Content) -> Request:
    """A request with the headers as they are, and Host and framing where not given. Raises BadRequest for what might
    be read otherwise than as this one request."""
    length, has_host = _given(headers)
    lines = [f"{method} {target} HTTP/1.1"] if has_host else [f"{method} {target} HTTP/1.1", f"Host: {authority}"]
    lines += [f"{name}: {value}" for name, value in headers]
    stream: StreamReader | None = None
    pieces: Sequence[bytes] = ()
    if not isinstance(body, StreamReader):
        pieces = body or ()
        size = sum(map(len, pieces))
        if length is None and (body is not None or method in _SIZED):
            lines.append(f"Content-Length: {size}")
    else:
        # Where all of it came with its head, as of most chat requests, it need not be waited for.
        stream, data = (None, body.read_nowait()) if body.is_eof() else (body, b"")
        pieces = (data,)
        if length is None:
            lines.append("Transfer-Encoding: chunked")
            pieces = () if stream else (chunk(data) if data else b"", LAST)
        size = sum(map(len, pieces))
    if length is not None and not stream and length != size:
        raise BadRequest("The body of the request is not as long as its Content-Length says. Correct it.")
    return Request(_head(lines), pieces, stream, length, method == "HEAD", size)


def _given(headers: Pairs) -> tuple[int | None, bool]:
    """The length that is given, and whether a host is."""
    length, has_host = None, False
    for name, value in headers:
        if len(name) not in _FRAMING:
            continue
        lower = name.lower()
        if lower == "host":
            has_host = True
        elif lower == "content-length" and length is None and value.isascii() and value.isdecimal():
            length = int(value)
        elif lower in ("content-length", "transfer-encoding"):
            raise BadRequest("The request does not say in one way how long its body is. Send one Content-Length.")
    return length, has_host


def _head(lines: list[str]) -> bytes:
    text = "\r\n".join(lines) + "\r\n\r\n"
    whole = text.count("\r") == text.count("\n") == len(lines) + 1 and lines[0].count(" ") == 2 and "\0" not in text
    try:
        head = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        whole = False
    if not whole:
        raise BadRequest("The target or a header of the request holds what none may, such as a line break. Remove it.")
    return head
