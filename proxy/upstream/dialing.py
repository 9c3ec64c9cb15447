"""Where a URL leads, and the way there: names, addresses, TCP, TLS. Knows nothing of HTTP."""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple, TypeVar
from urllib.parse import urlsplit

from aiohappyeyeballs import AddrInfoType as Address
from aiohappyeyeballs import start_connection

from proxy.errors import UpstreamUnreachable
from proxy.upstream.reasons import AWAY, late, why

CLOSED = f"{AWAY}: it closed the connection before it answered. Try again later."
LATE = "The upstream did not answer in time. Try again later."
_NO_URL = f"{AWAY}: this is no http or https URL of a host. Correct base_url."
_HEAD_START = 0.25  # seconds that an address has before the next one is tried beside it (RFC 8305, section 5)
_ERRNO = re.compile(r"\[Errno (\d+)\]")
_URL = re.compile(r"([^:]*://[^/?#]*)(.*)", re.DOTALL)
_P = TypeVar("_P", bound=asyncio.Protocol)


class Origin(NamedTuple):
    """`authority` is host and port as the URL spells them."""

    secure: bool
    host: str
    port: int
    authority: str


@lru_cache(256)
def split(url: str) -> tuple[Origin, str]:
    """Where a URL leads, and what follows its authority: as it is, but for a slash where none begins it. Raises
    UpstreamUnreachable."""
    found = _URL.fullmatch(url)
    if not found:
        raise UpstreamUnreachable(_NO_URL)
    base, target = found.groups()
    return _origin(base), target if target.startswith("/") else "/" + target


@lru_cache(64)
def _origin(base: str) -> Origin:
    try:
        parts = urlsplit(base)
        port = parts.port or {"http": 80, "https": 443}[parts.scheme]
        authority = parts.netloc if parts.netloc.isascii() else parts.netloc.encode("idna").decode()
        return Origin(parts.scheme == "https", urlsplit("//" + authority).hostname or "", port, authority)
    except (KeyError, ValueError) as error:
        raise UpstreamUnreachable(_NO_URL) from error


def secure() -> ssl.SSLContext:
    """How to trust and what to speak: one for all connections, since to make it reads all roots."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context


async def connect(origin: Origin, tls: ssl.SSLContext | None, seconds: float, protocol: Callable[[], _P]) -> _P:
    """A new connection, its TLS handshake done. Raises UpstreamUnreachable, which says why there is none."""
    name, limit = (origin.host.rstrip("."), seconds) if tls else (None, None)
    try:
        async with asyncio.timeout(seconds):
            sock = await reach(await _addresses(origin.host, origin.port))
            _, made = await asyncio.get_running_loop().create_connection(
                protocol, sock=sock, ssl=tls, server_hostname=name, ssl_handshake_timeout=limit
            )
            return made
    except TimeoutError as error:
        said = why(error) if error.errno else late(seconds, tls is not None)  # the system's own limit, or ours
        raise UpstreamUnreachable(said) from error
    except (OSError, ValueError) as error:
        raise UpstreamUnreachable(why(error, tls is not None)) from error


async def _addresses(host: str, port: int) -> Sequence[Address]:
    """The addresses of a host, as its resolver gives them."""
    try:
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except socket.gaierror:  # a name: to look it up takes time
        return await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)


async def reach(addresses: Sequence[Address]) -> socket.socket:
    """The first socket that connects, the families of addresses in turn. Each has a head start on the next: the first
    one may lead nowhere, and uvloop would wait for it. Raises OSError: the last one's, where all fail."""
    try:
        return await start_connection(addresses, happy_eyeballs_delay=_HEAD_START)
    except OSError as error:
        # Of several reasons the library makes one text, without a number.
        if error.errno is None and (numbers := _ERRNO.findall(str(error))):
            raise OSError(int(numbers[-1]), str(error)) from error
        raise
