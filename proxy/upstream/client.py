"""The way to an upstream: requests and answers over connections that are kept, and WebSockets.

The seam behind which the client may change. Knows nothing of sessions or of who called.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Protocol

import aiohttp
from yarl import URL

from proxy.core.headers import Pairs
from proxy.errors import UpstreamTimeout, UpstreamUnreachable
from proxy.foundation.http_internals import RawResponseMessage
from proxy.upstream.connection import BROKEN, Connection, Sink
from proxy.upstream.dialing import CLOSED, LATE, Origin, connect, secure, split
from proxy.upstream.reasons import why
from proxy.upstream.request_writer import Content, Request, written

# Below what llama.cpp announces (5 s): a request that meets a connection just closed may have to be given up.
_KEEP = 4.0  # seconds that a connection is kept without a request
_AUTOMATIC = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")


class NoCookies(aiohttp.DummyCookieJar):
    """An upstream's Set-Cookie must never cross tenants."""


class Timeouts(Protocol):
    """In seconds: to connect, to the head of the answer, between two pieces of its body."""

    connect_timeout: float
    response_timeout: float
    idle_timeout: float


class Response:
    """The head of an answer and the pieces of its body, unaltered. To be closed, come what may."""

    def __init__(
        self, connection: Connection, message: RawResponseMessage, idle: float, done: Callable[[Connection], None]
    ) -> None:
        self._connection: Connection | None = connection
        self._idle = idle
        self._done = done
        self.status = message.code
        self.headers: Pairs = _decoded(message.raw_headers)
        self._named = message.headers
        length = self.get("content-length")
        self.length = int(length) if length and length.isdecimal() else None  # of the body, where it is said

    def get(self, name: str) -> str | None:
        """The first header of that name."""
        return self._named.get(name)

    @property
    def is_here(self) -> bool:
        """Whether all of it has come, up to its clean end."""
        return self._connection is not None and self._connection.is_answered

    async def piece(self) -> bytes:
        """What has come of the body since the last piece, without a wait if something has; nothing at its clean
        end. Raises UpstreamUnreachable or UpstreamTimeout where the transfer breaks, once all that came is given."""
        if not self._connection:
            raise UpstreamUnreachable(BROKEN)  # never a clean end; and it may be on another's answer by now
        return await self._connection.piece(self._idle)

    def read_available(self) -> bytes:
        """What has come of the body since the last piece, perhaps nothing."""
        return self._connection.read_available() if self._connection else b""

    async def flow(self, sink: Sink) -> bool:
        """Give each piece to `sink` as it comes, until that returns False: then there may be more, and `flow` may be
        called again. Returns False at the clean end, and raises as `piece`."""
        if not self._connection:
            raise UpstreamUnreachable(BROKEN)
        return await self._connection.flow(self._idle, sink)

    def close(self) -> None:
        """No more is wanted. The connection is kept if it can carry another request."""
        if connection := self._connection:
            self._connection = None
            self._done(connection)


class Client:
    """Sends requests; closed by `close`. `connections` bounds how many are answered at a time, 0 is no bound."""

    def __init__(self, connections: int = 0) -> None:
        self._connections = connections
        self._room = asyncio.Semaphore(connections) if connections else None
        self._kept: dict[Origin, dict[Connection, None]] = {}  # the last one kept is the first one used
        self._all: set[Connection] = set()
        self._tls: ssl.SSLContext | None = None
        self._session: aiohttp.ClientSession | None = None
        self._closed = False

    async def ask(self, method: str, url: str, headers: Pairs, body: Content, times: Timeouts) -> Response:
        """Send a request, with the headers as they are; gives the answer once its head is here, also while the body
        is still on its way. Raises UpstreamUnreachable, UpstreamTimeout, and BadRequest where the body breaks off."""
        origin, target = split(url)
        request = written(method, origin.authority, target, headers, body)
        if self._room:
            await self._wait_for_room(self._room, times.response_timeout)
        try:
            connection, message = await self._exchange(origin, request, times)
        except BaseException:
            self._leave()
            raise
        return Response(connection, message, times.idle_timeout, partial(self._done, origin))

    async def _wait_for_room(self, room: asyncio.Semaphore, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await room.acquire()
        except TimeoutError as error:
            raise UpstreamTimeout(LATE) from error

    async def _exchange(
        self, origin: Origin, request: Request, times: Timeouts
    ) -> tuple[Connection, RawResponseMessage]:
        """One that was kept may die while the request is on its way to it: unless a byte of an answer has come, or
        some of the body is gone for good, the request is sent once more, on a new one."""
        if connection := self._take_kept(origin):
            try:
                return connection, await connection.ask(request, times.response_timeout)
            except UpstreamUnreachable:
                if connection.answered or request.stream:
                    raise
        connection = await self._connect(origin, times.connect_timeout)
        return connection, await connection.ask(request, times.response_timeout)

    def _take_kept(self, origin: Origin) -> Connection | None:
        kept = self._kept.get(origin)
        while kept:
            connection, _ = kept.popitem()
            if connection.is_open:
                return connection
        return None

    async def _connect(self, origin: Origin, seconds: float) -> Connection:
        if origin.secure and self._tls is None:
            self._tls = secure()
        tls = self._tls if origin.secure else None
        connection = await connect(origin, tls, seconds, Connection)
        self._all.add(connection)
        connection.lost.add_done_callback(partial(self._forget, origin, connection))
        if self._closed:
            connection.abort()
        return connection

    def _done(self, origin: Origin, connection: Connection) -> None:
        self._leave()
        if connection.rest(_KEEP):
            self._kept.setdefault(origin, {})[connection] = None

    def _leave(self) -> None:
        if self._room:
            self._room.release()

    def _forget(self, origin: Origin, connection: Connection, _: object) -> None:
        self._all.discard(connection)
        self._kept.get(origin, {}).pop(connection, None)

    async def websocket(
        self, url: str, headers: Pairs, protocols: list[str], times: Timeouts
    ) -> aiohttp.ClientWebSocketResponse:
        """Raises aiohttp.WSServerHandshakeError where the upstream refuses, else as `ask`."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=self._connections),
                cookie_jar=NoCookies(),
                skip_auto_headers=_AUTOMATIC,
                timeout=aiohttp.ClientTimeout(total=None),
                max_line_size=64 * 1024,
                max_field_size=64 * 1024,
            )
        with _in_our_words(url.startswith("https:")):
            async with asyncio.timeout(times.response_timeout):
                return await self._session.ws_connect(
                    _exact(url),
                    headers=_one_case(headers),
                    protocols=protocols,
                    autoclose=False,
                    autoping=False,
                    max_msg_size=0,
                )

    async def close(self) -> None:
        """Close all connections, whatever is on its way."""
        self._closed = True
        for connection in self._all:
            connection.abort()
        if self._all:
            await asyncio.wait([connection.lost for connection in self._all])
        if self._session:
            await self._session.close()


# Words


@contextmanager
def _in_our_words(secure: bool) -> Iterator[None]:
    try:
        yield
    except aiohttp.WSServerHandshakeError:
        raise
    except TimeoutError as error:
        raise UpstreamTimeout(LATE) from error
    except aiohttp.ClientConnectorCertificateError as error:
        raise UpstreamUnreachable(why(error.certificate_error, True)) from error
    except aiohttp.ClientConnectorDNSError as error:
        raise UpstreamUnreachable(why(socket.gaierror())) from error
    except aiohttp.ClientConnectorError as error:
        raise UpstreamUnreachable(why(error.os_error, secure)) from error
    except aiohttp.ServerDisconnectedError as error:
        raise UpstreamUnreachable(CLOSED) from error
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise UpstreamUnreachable(why(error)) from error


def _exact(url: str) -> URL:
    """The URL with its target as one path: yarl would drop an empty query, and what follows a `#`."""
    scheme, _, rest = url.partition("://")
    authority, slash, target = rest.partition("/")
    if not slash:
        return URL(url, encoded=True)
    return URL.build(scheme=scheme, authority=authority, path=slash + target, encoded=True)


def _one_case(headers: Pairs) -> Pairs:
    """Equal names in one letter case: aiohttp keeps only the last of `X-A` and `x-a`, but both of `X-A` and `X-A`."""
    spelled: dict[str, str] = {}
    return [(spelled.setdefault(name.lower(), name), value) for name, value in headers]


def _decoded(raw: tuple[tuple[bytes, bytes], ...]) -> Pairs:
    """Names and values as they came: bytes that are no UTF-8 stand in the text so that they are written again."""
    return [(name.decode("utf-8", "surrogateescape"), value.decode("utf-8", "surrogateescape")) for name, value in raw]
