"""The client that speaks to upstreams: connections that are kept, cancellation, TLS and names."""

from __future__ import annotations

import asyncio
import itertools
import socket
import ssl
import subprocess
import time
from collections.abc import Awaitable, Generator
from pathlib import Path
from typing import Any, cast

import pytest

from proxy.errors import UpstreamTimeout, UpstreamUnreachable
from proxy.upstream import dialing
from tests.support.fakes import eventually
from tests.support.raw_upstream import (
    CHUNKED,
    CHUNKS,
    CODED,
    HEAD_5,
    OK,
    Answer,
    Late,
    Step,
    late,
    on_both_loops,
    read,
    silent_port,
    stream,
    talk,
    v1,
)

# Connections that are kept -----------------------------------------------------------------


@on_both_loops
async def test_the_connection_used_last_is_used_first() -> None:
    async with talk() as it:
        answers = [await it.ask() for _ in range(3)]
        for answer in (answers[0], answers[2], answers[1]):
            await read(answer)
            answer.close()
            answer.close()
        for _ in range(2):
            await it.get()
        again = [await it.ask() for _ in range(4)]
        assert [got.connection for got in it.upstream.got] == [0, 1, 2, 1, 1, 1, 2, 0, 3]
        for answer in again:
            answer.close()


@on_both_loops
async def test_origins_do_not_share_connections() -> None:
    async with talk() as it, talk() as other:
        await it.get()
        assert await it.get("GET", other.upstream.url()) == (200, b"ok")
        assert await it.get("GET", it.upstream.url(host="localhost")) == (200, b"ok")
        await it.get()
        assert [got.connection for got in it.upstream.got] == [0, 1, 0] and other.upstream.accepted == 1
        await it.client.close()


@on_both_loops
async def test_a_connection_is_not_kept_for_longer_than_upstreams_keep_theirs() -> None:
    async with talk() as it:
        await it.get(response_timeout=900, idle_timeout=0.1)
        await asyncio.sleep(3.5)
        await it.get(response_timeout=900)
        await asyncio.sleep(3.5)
        assert it.upstream.open == 1
        await eventually(lambda: not it.upstream.open, 1)
        assert await it.get() == (200, b"ok") and it.upstream.accepted == 2


@pytest.mark.parametrize(
    "stray", [OK, b"H", b"\0", v1(b"", status=b"100 Continue"), b"HTTP/1.1 408 Timeout\r\n\r\n", v1(b"X: \0")[:-3]]
)
@pytest.mark.parametrize("delay", [0.0, 0.02])
@on_both_loops
async def test_what_nobody_asked_for_ends_the_connection(stray: bytes, delay: float) -> None:
    async with talk([OK[:-2], 0.02, b"ok" + stray] if not delay else [OK, delay, stray]) as it:
        assert await it.get() == (200, b"ok")
        await it.is_closed()
        assert await it.get() == (200, b"ok")
        assert [got.connection for got in it.upstream.got] == [0, 1]


@on_both_loops
async def test_any_beginning_of_another_answer_ends_the_connection() -> None:
    for at in range(1, len(OK)):
        async with talk([OK[:-2], 0.001, b"ok" + OK[:at]]) as it:
            assert await it.get() == (200, b"ok")
            assert await it.get() == (200, b"ok")
            assert [got.connection for got in it.upstream.got] == [0, 1]


@pytest.mark.parametrize("end", ["fin", "rst"])
@pytest.mark.parametrize("body", [None, b"hello", stream(b"hello")])
@on_both_loops
async def test_a_request_that_meets_a_dying_connection_is_sent_once_more(body: Any, end: Step) -> None:
    async with talk(OK, [end], OK) as it:
        await it.get()
        assert await it.get("POST", "/again", [], body() if callable(body) else body) == (200, b"ok")
        assert [got.connection for got in it.upstream.got] == [0, 0, 1]
        assert it.upstream.got[1][1:] == it.upstream.got[2][1:]


@pytest.mark.parametrize("end", ["fin", "rst"])
@on_both_loops
async def test_once_more_is_all(end: Step) -> None:
    async with talk(OK, OK, [0.02, end], [0.02, end], [0.02, end]) as it:
        first, second = await it.ask(), await it.ask()
        for answer in (first, second):
            await read(answer)
            answer.close()
        with pytest.raises(UpstreamUnreachable, match="cannot be reached"):
            await it.ask("POST", "/", [], b"hello")
        assert [got.connection for got in it.upstream.got] == [0, 1, 1, 2]


@pytest.mark.parametrize(
    ("answers", "body"),
    [
        ([[0.01, "fin"]], b"hello"),
        ([OK, [b"H", 0.02, "fin"]], b"hello"),
        ([OK, [b"H", 0.02, "rst"]], b"hello"),
        ([OK, [v1(b"", status=b"100 Continue"), 0.02, "fin"]], b"hello"),
        ([OK, ["fin"]], late(b"hello")),
    ],
)
@on_both_loops
async def test_a_request_that_may_have_been_heard_is_not_sent_again(answers: Any, body: Any) -> None:
    async with talk(*answers) as it:
        if len(answers) > 1:
            await it.get()
        with pytest.raises(UpstreamUnreachable):
            await it.ask("POST", "/", [], body() if callable(body) else body)
        await asyncio.sleep(0.05)
        assert len(it.upstream.got) == len(answers) and it.upstream.accepted == 1


@on_both_loops
async def test_a_request_that_is_answered_too_late_is_not_sent_again() -> None:
    async with talk(OK, ["hang"]) as it:
        await it.get()
        with pytest.raises(UpstreamTimeout):
            await it.ask("POST", "/", [], b"hello", response_timeout=0.1)
        assert it.upstream.accepted == 1


@on_both_loops
async def test_what_is_not_read_to_its_end_is_closed() -> None:
    async with talk([v1(CODED, CHUNKS)], OK, [CHUNKED, b"5\r\nhe", "hang"]) as it:
        answer = await it.ask()
        assert await answer.piece() == b"hello"  # the end is not here yet
        answer.close()
        await it.is_closed()
        answer = await it.ask()
        answer.close()
        await it.is_closed()
        answer = await it.ask()
        answer.close()
        with pytest.raises(UpstreamUnreachable):  # never a clean end
            await answer.piece()
        await it.is_closed()
        assert it.upstream.accepted == 3


@on_both_loops
async def test_a_client_that_is_closed_ends_all_and_begins_nothing() -> None:
    async with talk(OK, [CHUNKED, "hang"], ["hang"]) as it:
        await it.get()
        answer, asking = await it.ask(), asyncio.create_task(it.ask())
        await eventually(lambda: len(it.upstream.got) == 3)
        await it.client.close()
        for work in (answer.piece(), asking, it.ask()):
            with pytest.raises(UpstreamUnreachable):
                await work
        answer.close()
        await it.is_closed()


@on_both_loops
async def test_connections_can_be_bounded() -> None:
    async with talk(OK, [0.05, "rst"], ["hang"], connections=1) as it:
        answer = await it.ask()
        with pytest.raises(UpstreamTimeout, match="in time"):
            await it.ask(response_timeout=0.05)
        waiting = asyncio.create_task(it.ask())
        await asyncio.sleep(0.05)
        assert len(it.upstream.got) == 1
        await read(answer)
        answer.close()
        answer.close()
        with pytest.raises(UpstreamUnreachable):
            it.upstream.answers.insert(1, Answer(["rst"]))
            await waiting
        cancelled = asyncio.create_task(it.ask())
        await eventually(lambda: len(it.upstream.got) == 4)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        with pytest.raises(UpstreamUnreachable):
            await it.ask("GET", "http://127.0.0.1:1/")
        assert await it.get() == (200, b"ok")


# Cancellation ------------------------------------------------------------------------------


class Struck:
    """Awaits `work`, cancelled at its wait number `at`; `late`: once what it waits for is here."""

    def __init__(self, work: Awaitable[Any], at: int, late: bool) -> None:
        self.work, self.at, self.late, self.struck = work, at, late, False

    def __await__(self) -> Generator[Any, Any, Any]:
        task, steps = asyncio.current_task(), self.work.__await__()
        assert task
        for wait in itertools.count():
            try:
                awaited = next(steps)
            except StopIteration as end:
                return end.value
            if wait == self.at:
                self.struck = True
                if self.late and awaited is not None:
                    awaited.add_done_callback(lambda _: task.cancel())
                else:
                    task.cancel()
            try:
                yield awaited
            except BaseException as error:
                try:
                    steps.throw(error)
                except StopIteration as end:
                    return end.value
                raise
        return None


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("secure", [False, True])
@pytest.mark.parametrize("body", [b"hello", stream(b"hello", whole=False)])
@on_both_loops
async def test_a_request_cancelled_at_any_wait_leaves_nothing(
    late: bool, secure: bool, body: Any, trust: ssl.SSLContext
) -> None:
    slow: list[Step] = [b"HTTP/1.1 200 OK\r\n", 0.002, b"Content-Length: 4\r\n\r\n", 0.002, b"ab", 0.002, b"cd"]
    for at in itertools.count():
        async with talk(Answer(slow, unread=callable(body)), tls=trust if secure else None, connections=1) as it:
            url = it.upstream.url(scheme="https" if secure else "http", host="localhost" if secure else "127.0.0.1")
            struck = Struck(it.get("POST", url, [], body() if callable(body) else body), at, late)
            try:
                assert await struck == (200, b"abcd")
            except asyncio.CancelledError:
                asyncio.current_task().uncancel()  # type: ignore[union-attr]
                await it.is_closed()
            it.upstream.answers.clear()
            assert await it.get("GET", url) == (200, b"ok")  # there is room again
            assert it.upstream.accepted <= 2
        if not struck.struck:
            break
    assert at >= (5 if secure else 4)


# TLS and names -----------------------------------------------------------------------------


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for localhost and 127.0.0.1, with its key, that nobody has signed."""
    folder = tmp_path_factory.mktemp("tls")
    names = "subjectAltName=DNS:localhost,IP:127.0.0.1"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=upstream"]
    files = ["-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem"), "-addext", names]
    try:
        subprocess.run([*command, *files], check=True, capture_output=True)
    except OSError:
        pytest.skip("no openssl to make a certificate with")
    return folder


@pytest.fixture
def trust(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """What the upstream speaks TLS with; the client trusts it."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate / "cert.pem"))
    return _server_side(certificate)


def _server_side(certificate: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
    context.set_alpn_protocols(["h2", "http/1.1"])
    return context


@on_both_loops
async def test_tls_names_the_host_and_the_protocol_and_is_kept(trust: ssl.SSLContext) -> None:
    seen: list[str | None] = []
    trust.sni_callback = lambda sock, name, context: seen.append(name)
    body = bytes(range(256)) * 4_000
    large = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    async with talk(large, v1(CODED, CHUNKS + b"\r\n"), OK, tls=trust) as it:
        url = it.upstream.url("/v1", "https", "localhost")
        assert await it.get("POST", url, [], body) == (200, body)
        assert await it.get("POST", url, [], Late(body)) == (200, b"hello")
        assert (
            it.upstream.got[0].body == body and it.upstream.got[0].lines[1] == b"Host: localhost:%d" % it.upstream.port
        )
        assert await it.get("GET", it.upstream.url("/v1", "https")) == (200, b"ok")
        assert [got.connection for got in it.upstream.got] == [0, 0, 1]
        assert seen == ["localhost", None] and it.upstream.spoken == ["http/1.1"] * 2


@on_both_loops
async def test_who_cannot_be_trusted_is_not_spoken_to(certificate: Path) -> None:
    async with talk(tls=_server_side(certificate)) as it:
        with pytest.raises(UpstreamUnreachable):
            await it.ask("GET", it.upstream.url("/", "https", "localhost"))
        assert not it.upstream.got


@on_both_loops
async def test_who_has_another_name_is_not_spoken_to(trust: ssl.SSLContext) -> None:
    async with talk(tls=trust) as it:
        with pytest.raises(UpstreamUnreachable):
            await it.ask("GET", it.upstream.url("/", "https", "127.0.0.2"))
        with pytest.raises(UpstreamUnreachable, match=r"no valid HTTP|cannot be reached"):
            await it.ask("GET", it.upstream.url())
        assert not it.upstream.got


@pytest.mark.parametrize("steps", [[CHUNKED, b"5\r\nhello\r\n", "rst"], [HEAD_5, b"he", "fin"], [CHUNKED, "hang"]])
@on_both_loops
async def test_a_break_under_tls_is_a_break(trust: ssl.SSLContext, steps: list[Step]) -> None:
    async with talk(steps, tls=trust) as it:
        answer = await it.ask("GET", it.upstream.url("/", "https"), idle_timeout=0.1)
        with pytest.raises((UpstreamUnreachable, UpstreamTimeout)):
            await read(answer)
        answer.close()
        await it.is_closed()


@on_both_loops
async def test_an_address_that_leads_nowhere_does_not_hold_up_the_next() -> None:
    async with silent_port(full=True) as nowhere, talk() as it:
        tasks, kind = len(asyncio.all_tasks()), (socket.AF_INET, socket.SOCK_STREAM, 0, "")
        refused, full, good = [(*kind, ("127.0.0.1", port)) for port in (1, nowhere, it.upstream.port)]
        for addresses, least in (
            ([refused, good], 0.0),
            ([full, good], 0.2),
            ([good, full], 0.0),
            ([full, refused, good], 0.2),
        ):
            start = time.monotonic()
            with await dialing.reach(addresses) as sock:
                assert sock.getpeername()[1] == it.upstream.port
            assert least <= time.monotonic() - start < least + 0.2
            await eventually(lambda: len(asyncio.all_tasks()) == tasks, 0.5)  # the others have been given up
        with pytest.raises(ConnectionRefusedError):
            await dialing.reach([refused, refused])
        unreachable = (*kind, ("255.255.255.255", 80))
        with pytest.raises(ConnectionRefusedError):  # of two reasons the last
            await dialing.reach([unreachable, refused])
        with await dialing.reach([unreachable, good]) as sock:
            assert sock.getpeername()[1] == it.upstream.port


@on_both_loops
async def test_a_connection_does_not_wait_to_fill_its_packets() -> None:
    async with talk() as it:
        place = dialing.Origin(False, "127.0.0.1", it.upstream.port, "")
        protocol = await dialing.connect(place, None, 5.0, Seen)
        assert protocol.without_delay
        protocol.transport.abort()
        await protocol.lost


class Seen(asyncio.Protocol):
    """A connection whose socket is looked at once it is made."""

    transport: asyncio.Transport
    without_delay = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.lost = asyncio.get_running_loop().create_future()
        sock = transport.get_extra_info("socket")
        self.without_delay = bool(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

    def connection_lost(self, error: Exception | None) -> None:
        self.lost.set_result(None)


@on_both_loops
async def test_nothing_in_the_environment_leads_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    async with talk() as it:
        assert await it.get() == (200, b"ok")
