"""Why an upstream cannot be reached: real connections that fail, and what the client is told of each."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from proxy.config.model import Upstream
from proxy.errors import UpstreamUnreachable
from proxy.upstream.client import Client
from proxy.upstream.reasons import AWAY, why
from tests.server.test_websocket import HANDSHAKE
from tests.support.fakes import RawClient, free_port
from tests.support.raw_upstream import on_both_loops, silent_port
from tests.support.serving import Serve

BODY = b'{"model":"m","messages":[{"role":"user","content":"x"}]}'
CANARY = "canary"  # in the path of the base URL, in the key and in the name of the host


async def told(port: int, *, session: bool = True, websocket: bool = False) -> str:
    """The message of a refusal, which is a 502 and holds no secret."""
    key = ("Authorization", f"Bearer {CANARY}")
    async with RawClient(port) as client:
        if websocket:
            await client.request("GET", "/v1/realtime", [*HANDSHAKE, key])
        else:
            sent = [("sessionId", "s1")] if session else []
            await client.request("POST", "/v1/chat/completions", [key, *sent], BODY)
        status = (await client.head()).status
        error = json.loads(await client.body())["error"]
    assert (status, error["code"], error["type"]) == (502, "upstream_unreachable", "upstream_error")
    message: str = error["message"]
    assert message.startswith(f"{AWAY}: ") and message.endswith(".") and len(message) < 300
    assert CANARY not in message and "127.0.0.1" not in message and "Errno" not in message
    return message


def url(port: int, scheme: str = "http", host: str = "127.0.0.1") -> str:
    return f"{scheme}://{host}:{port}/{CANARY}/v1"


WAYS: list[dict[str, Any]] = [{}, {"session": False}, {"websocket": True}]


@pytest.mark.parametrize("way", WAYS)
async def test_refused(serve: Serve, way: dict[str, Any]) -> None:
    proxy = await serve(url(free_port()))
    message = await told(proxy.port, **way)
    assert "it refused the connection" in message and "base_url" in message


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_name_that_is_not_known(serve: Serve, way: dict[str, Any], scheme: str) -> None:
    proxy = await serve(url(80, scheme, f"{CANARY}.invalid"))
    message = await told(proxy.port, **way)
    assert "host name" in message and "DNS" in message and "base_url" in message


# TLS


@asynccontextmanager
async def listener(
    answer: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any], tls: ssl.SSLContext | None = None
) -> AsyncIterator[int]:
    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            await answer(reader, writer)
        writer.close()

    server = await asyncio.start_server(take, "127.0.0.1", 0, ssl=tls)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """An HTTP server without TLS, at which a handshake comes."""
    await reader.read(100)
    writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
    await writer.drain()


async def leaves(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(100)


async def resets(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(100)
    writer.transport.abort()


@pytest.mark.parametrize("way", WAYS)
async def test_a_port_that_speaks_no_tls(serve: Serve, way: dict[str, Any]) -> None:
    async with listener(plain) as port:
        proxy = await serve(url(port, "https"))
        message = await told(proxy.port, **way)
    assert "it does not speak TLS there" in message and "http://" in message


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("end", [leaves, resets])
async def test_a_handshake_that_breaks_off(serve: Serve, end: Any, way: dict[str, Any]) -> None:
    async with listener(end) as port:
        proxy = await serve(url(port, "https"))
        assert "the TLS handshake failed" in await told(proxy.port, **way)


def certified(folder: Path, name: str = "IP:127.0.0.1", days: int = 2) -> ssl.SSLContext:
    """What a server shows that signed its certificate itself."""
    if not shutil.which("openssl"):
        pytest.skip("openssl is not installed (Debian: openssl)")
    key, asked, made, named = [str(folder / file) for file in ("key", "asked", "certificate", "named")]
    Path(named).write_text(f"subjectAltName={name}\n")
    kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", f"/CN={CANARY}"]
    sign = ["-signkey", key, "-days", str(days), "-extfile", named]
    for command in (["req", "-new", *kind, "-keyout", key, "-out", asked], ["x509", "-req", "-in", asked, *sign]):
        output = [] if command[0] == "req" else ["-out", made]
        subprocess.run(["openssl", *command, *output], check=True, capture_output=True, timeout=30)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made, key)
    return context


@contextlib.contextmanager
def trusted(folder: Path) -> Iterator[None]:
    """By who asks for its trusted certificates in the block."""
    before = os.environ.get("SSL_CERT_FILE")
    os.environ["SSL_CERT_FILE"] = str(folder / "certificate")
    try:
        yield
    finally:
        os.environ.pop("SSL_CERT_FILE")
        if before is not None:
            os.environ["SSL_CERT_FILE"] = before


@pytest.mark.parametrize("way", WAYS)
async def test_a_certificate_that_is_not_trusted(serve: Serve, tmp_path: Path, way: dict[str, Any]) -> None:
    async with listener(plain, certified(tmp_path)) as port:
        proxy = await serve(url(port, "https"))
        message = await told(proxy.port, **way)
    assert "its TLS certificate is signed by itself" in message and "trust its issuer" in message


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_a_certificate_of_another_name(serve: Serve, tmp_path: Path, host: str) -> None:
    context = certified(tmp_path, f"DNS:{CANARY}.example")
    async with listener(plain, context) as port:
        proxy = await serve(url(port, "https", host))
        with trusted(tmp_path):
            message = await told(proxy.port)
    assert "its TLS certificate is for another" in message and "base_url" in message


async def test_a_certificate_that_has_expired(serve: Serve, tmp_path: Path) -> None:
    async with listener(plain, certified(tmp_path, days=-1)) as port:
        proxy = await serve(url(port, "https"))
        with trusted(tmp_path):
            assert "its TLS certificate has expired" in await told(proxy.port)


# Time, and the rest


@pytest.mark.parametrize(("scheme", "full"), [("http", True), ("https", True), ("https", False)])
async def test_no_connection_in_time(serve: Serve, scheme: str, full: bool) -> None:
    async with silent_port(full) as port:
        proxy = await serve(url(port, scheme), upstream={"connect_timeout": "200ms"})
        begun = time.monotonic()
        message = await told(proxy.port)
        assert 0.15 < time.monotonic() - begun < 2
    assert "in time" in message and "connect_timeout, 0.2 seconds" in message
    assert ("http://" in message) == (scheme == "https")


async def test_a_connection_that_ends_before_an_answer(serve: Serve) -> None:
    for end in (leaves, resets):
        async with listener(end) as port:
            proxy = await serve(url(port))
            assert "it closed the connection before it answered" in await told(proxy.port)


async def test_tls_where_plain_http_was_meant(serve: Serve, tmp_path: Path) -> None:
    async with listener(plain, certified(tmp_path)) as port:
        proxy = await serve(url(port))
        async with RawClient(proxy.port) as client:
            await client.request("POST", "/v1/chat/completions", [("sessionId", "s")], BODY)
            assert (await client.head()).status == 502
            message = json.loads(await client.body())["error"]["message"]
    assert "https" in message or "closed the connection" in message


@on_both_loops
async def test_both_loops_tell_the_same(tmp_path: Path) -> None:
    """uvloop, which the proxy runs on where it is there, and asyncio have errors of their own."""

    async def why_not(url: str) -> str:
        client = Client()
        try:
            with pytest.raises(UpstreamUnreachable) as refused:
                await client.ask("GET", url, [], None, Upstream(connect_timeout="200ms"))  # type: ignore[arg-type]
            return refused.value.message
        finally:
            await client.close()

    assert "refused" in await why_not(url(free_port()))
    assert "refused" in await why_not(url(free_port(), "https"))
    assert "DNS" in await why_not(url(80, host=f"{CANARY}.invalid"))
    async with listener(plain) as port:
        assert "does not speak TLS" in await why_not(url(port, "https"))
    for end in (leaves, resets):
        async with listener(end) as port:
            assert "TLS handshake failed" in await why_not(url(port, "https"))
            assert "closed the connection" in await why_not(url(port))
    async with listener(plain, certified(tmp_path)) as port:
        assert "signed by itself" in await why_not(url(port, "https"))
    for full in (True, False):
        async with silent_port(full) as port:
            assert "in time, TLS included" in await why_not(url(port, "https"))


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENETUNREACH, CANARY), "no way to its address"),
        (OSError(errno.EHOSTUNREACH, CANARY), "no way to its address"),
        (TimeoutError(errno.ETIMEDOUT, CANARY), "in time"),
        (OSError(errno.EMFILE, CANARY), "ulimit -n"),
        (ssl.SSLCertVerificationError(1, CANARY), "is not trusted"),
        (ssl.SSLError(1, CANARY), "handshake failed"),
        (socket.gaierror(-2, CANARY), "DNS"),
        (ConnectionResetError(CANARY), "closed the connection"),
        (ValueError(CANARY), "no connection came about"),
        (OSError(CANARY), "no connection came about"),
        (None, "no connection came about"),
    ],
)
def test_what_cannot_be_had_on_one_machine_is_told_from_its_error(error: Exception | None, words: str) -> None:
    message = why(error)
    assert words in message and CANARY not in message
