"""The way to an upstream: one HTTP client, its settings, and its errors in our words.

The seam behind which the client may change. Knows nothing of sessions or of who called.
"""

from __future__ import annotations

import asyncio
import io
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Protocol

import aiohttp
from aiohttp import abc
from aiohttp.client_reqrep import ConnectionKey
from aiohttp.connector import Connection
from aiohttp.tracing import Trace
from yarl import URL

from proxy.core.headers import Pairs
from proxy.errors import UpstreamTimeout, UpstreamUnreachable

_AUTOMATIC = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")
_LOOK = 0.25  # seconds between two looks at a connection on which nothing comes
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")


class NoCookies(aiohttp.DummyCookieJar):
    """An upstream's Set-Cookie must never cross tenants."""


class Timeouts(Protocol):
    """In seconds: to connect, to the head of the answer, between two pieces of its body."""

    connect_timeout: float
    response_timeout: float
    idle_timeout: float


class _Connector(aiohttp.TCPConnector):
    async def _get(self, key: ConnectionKey, traces: list[Trace]) -> Connection | None:
        """Not one on which an answer lies that nobody asked for: aiohttp would give it to the next request."""
        connection = await super()._get(key, traces)
        while connection and connection.protocol and connection.protocol.should_close:
            connection.close()
            connection = await super()._get(key, traces)
        return connection


class Response:
    """The head of an answer and the pieces of its body, unaltered."""

    def __init__(self, response: aiohttp.ClientResponse, idle: float) -> None:
        self._response = response
        self._idle = idle
        self.status = response.status
        self.headers: Pairs = [(_text(name), _text(value)) for name, value in response.raw_headers]

    def get(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key.lower() == name), None)

    @property
    def length(self) -> int | None:
        return int(value) if (value := self.get("content-length")) and value.isdecimal() else None

    async def pieces(self) -> AsyncIterator[bytes]:
        """Raises UpstreamUnreachable or UpstreamTimeout where the transfer breaks."""
        try:
            while piece := await self._next():
                yield piece
        except TimeoutError as error:
            raise UpstreamTimeout("The upstream fell silent in the middle of its answer.") from error
        except (aiohttp.ClientError, OSError) as error:
            raise UpstreamUnreachable("The upstream broke off its answer.") from error

    async def _next(self) -> bytes:
        """aiohttp's parser, where it fails in the middle of a body, closes the connection and tells no reader."""
        content, left = self._response.content, self._idle
        while True:
            try:
                async with asyncio.timeout(min(_LOOK, left)):
                    return await content.readany()
            except TimeoutError:
                left -= _LOOK
                connection = self._response.connection
                lost = connection is not None and connection.closed
                if lost and (piece := content.read_nowait()):
                    return piece
                if lost or left <= 0:
                    raise


class Client:
    """Opens requests; closed by `close`. `connections` bounds them, 0 is no bound."""

    def __init__(self, connections: int = 0) -> None:
        # Keep-alive below what llama.cpp announces (5 s): a POST that meets a connection just
        # closed cannot be sent again by itself.
        connector = _Connector(limit=connections, keepalive_timeout=4)
        self._session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=NoCookies(),
            auto_decompress=False,
            skip_auto_headers=_AUTOMATIC,
            timeout=aiohttp.ClientTimeout(total=None),
            max_line_size=64 * 1024,
            max_field_size=64 * 1024,
        )

    @asynccontextmanager
    async def open(
        self,
        method: str,
        url: str,
        headers: Pairs,
        body: bytes | abc.AbstractStreamWriter | object,
        times: Timeouts,
    ) -> AsyncIterator[Response]:
        """Send a request; gives the answer once its head is here. On the way out the connection is
        closed unless the body was read to its end. Raises UpstreamUnreachable, UpstreamTimeout."""
        # No sock_read: aiohttp would let it bound the wait for the head, too.
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=times.connect_timeout)
        with _in_our_words():
            async with asyncio.timeout(times.response_timeout):
                response = await self._session.request(
                    method,
                    _exact(url),
                    headers=_one_case(headers),
                    data=io.BytesIO(body) if isinstance(body, bytes) else body,  # bytes of over 1 MiB it warns of
                    allow_redirects=False,
                    timeout=timeout,
                )
        try:
            answer = Response(response, times.idle_timeout)
            if answer.status < 200 or any(_CONTROL.search(value) for _, value in answer.headers):
                raise UpstreamUnreachable("The upstream's answer is no valid HTTP. Look at what runs there.")
            yield answer
        finally:
            response.close() if not response.content.at_eof() else response.release()

    async def websocket(
        self, url: str, headers: Pairs, protocols: list[str], times: Timeouts
    ) -> aiohttp.ClientWebSocketResponse:
        """Raises aiohttp.WSServerHandshakeError where the upstream refuses, else as `open`."""
        with _in_our_words():
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
        await self._session.close()


@contextmanager
def _in_our_words() -> Iterator[None]:
    try:
        yield
    except aiohttp.WSServerHandshakeError:
        raise
    except TimeoutError as error:
        raise UpstreamTimeout("The upstream did not answer in time. Try again later.") from error
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise UpstreamUnreachable("The upstream cannot be reached. Try again later.") from error


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


def _text(raw: bytes) -> str:
    """A header's text. Bytes that are no UTF-8 are read as Latin-1, as they can be written again."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("latin-1")
