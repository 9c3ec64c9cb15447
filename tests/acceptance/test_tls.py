"""HTTPS on the listener: what it carries, how it is renewed, what is refused."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.acceptance.test_commands import session_proxy
from tests.acceptance.test_sockets import asked, unix
from tests.support.daemon import Daemon
from tests.support.fakes import ScriptedUpstream, eventually, free_port, sse

KINDS = {"rsa": ["rsa:2048"], "ec": ["ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]}
NAMES = ["-subj", "/CN=proxy", "-addext", "subjectAltName=IP:127.0.0.1"]
TLS = {"certificate": "proxy.pem", "key": "proxy.key"}


def certify(folder: Path, kind: str = "ec") -> Path:
    """A new certificate of 127.0.0.1 with its key, in the place of the old one."""
    if not shutil.which("openssl"):
        pytest.skip("openssl is not installed (Debian: openssl)")
    made = folder / "proxy.pem"
    files = ["-keyout", str(folder / "proxy.key"), "-out", str(made), "-days", "2", "-nodes"]
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", *KINDS[kind], *files, *NAMES], check=True, capture_output=True
    )
    return made


def shown(port: int) -> bytes:
    """The certificate that a new connection is shown."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with socket.create_connection(("127.0.0.1", port), 5) as plain, context.wrap_socket(plain) as connection:
        return connection.getpeercert(True) or b""


def der(certificate: Path) -> bytes:
    return ssl.PEM_cert_to_DER_cert(certificate.read_text())


def test_a_turn_goes_over_tls_and_a_renewed_certificate_is_shown_after_a_reload(tmp_path: Path) -> None:
    first = der(certify(tmp_path, "rsa"))
    admin = free_port()
    settings: Any = {"tls": TLS, "admin": {"listen": f"127.0.0.1:{admin}", "token": "t"}}
    with Daemon(tmp_path, **settings) as daemon, requests.Session() as client:
        daemon.notified("READY")
        verify = str(tmp_path / "proxy.pem")
        url = f"https://127.0.0.1:{daemon.port}/v1"
        body: Any = {"messages": [{"role": "user", "content": "My name is Alice"}], "stream": True}
        answer = client.post(url, json=body, headers={"sessionId": "s"}, verify=verify, timeout=10)
        assert answer.content.endswith(b"data: [DONE]\n\n") and "Alice" in answer.text
        for kind in ("ec", "rsa", "ec"):
            renewed = der(certify(tmp_path, kind))
            assert shown(daemon.port) == shown(admin) == first
            daemon.process.send_signal(signal.SIGHUP)
            assert daemon.notified("RELOADING") and daemon.notified("READY")
            assert shown(daemon.port) == shown(admin) == renewed != first
            first = renewed
        assert client.get(url + "/models", verify=verify, timeout=5).status_code == 200
        (tmp_path / "proxy.key").write_text("no key")
        daemon.process.send_signal(signal.SIGHUP)
        assert "are not a certificate and its key" in daemon.logged("not reloaded")
        assert shown(daemon.port) == first


async def test_a_broken_answer_does_not_end_cleanly(tmp_path: Path) -> None:
    certify(tmp_path)
    body: Any = {"messages": [{"role": "user", "content": "x"}], "stream": True}

    def ask(port: int) -> bytes:
        url = f"https://127.0.0.1:{port}/v1/chat/completions"
        headers, verify = {"sessionId": "s"}, str(tmp_path / "proxy.pem")
        return requests.post(url, json=body, headers=headers, verify=verify, timeout=10).content

    async with ScriptedUpstream([sse("a", "b"), sse("a", "b", done=False, finish=None, end="fin")]) as upstream:
        with Daemon(tmp_path, tls=TLS, upstreams=[{"base_url": upstream.base_url}]) as daemon:
            daemon.notified("READY")
            assert (await asyncio.to_thread(ask, daemon.port)).endswith(b"data: [DONE]\n\n")
            with pytest.raises(requests.RequestException):
                await asyncio.to_thread(ask, daemon.port)


async def test_a_client_behind_tls_reads_all_that_was_sent_before_the_reset(tmp_path: Path) -> None:
    certify(tmp_path)
    words, broken = ["x" * 20_000] * 6, threading.Event()
    context = ssl.create_default_context(cafile=str(tmp_path / "proxy.pem"))

    def read(port: int) -> bytes:
        """All there is, from when the proxy has given the upstream up: little of it fits in between."""
        plain = socket.socket()
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        plain.connect(("127.0.0.1", port))
        with context.wrap_socket(plain, server_hostname="127.0.0.1") as client:
            body = json.dumps({"messages": [{"role": "user", "content": "x"}], "stream": True}).encode()
            head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
            client.sendall(head.encode() + body)
            assert broken.wait(10)
            data = b""
            with suppress(ConnectionResetError):  # which some OpenSSLs tell as an end
                while piece := client.recv(65536):
                    data += piece
            assert client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == 7  # TCP_CLOSE: it was a reset
        return data

    async with ScriptedUpstream([sse(*words, done=False, finish=None, end="hang")]) as upstream:
        upstreams = [{"base_url": upstream.base_url, "idle_timeout": "300ms"}]
        with Daemon(tmp_path, tls=TLS, upstreams=upstreams) as daemon:
            daemon.notified("READY")
            reading = asyncio.create_task(asyncio.to_thread(read, daemon.port))
            await eventually(lambda: upstream.connections)
            await eventually(lambda: not upstream.connections)
            broken.set()
            assert (await reading).count(b"x" * 20_000) == len(words)


def test_a_unix_socket_of_systemd_gets_no_tls(tmp_path: Path) -> None:
    certify(tmp_path)
    with unix(tmp_path / "socket") as opened, socket.socket(socket.AF_UNIX) as client:
        opened.listen()
        client.connect(opened.getsockname())
        with Daemon(tmp_path, handed=opened, tls=TLS) as daemon:
            daemon.notified("READY")
            assert b" 200 " in asked(client)


@pytest.mark.parametrize(
    ("certificate", "key", "say"),
    [
        ("proxy.pem", None, "a certificate needs its key; set both, or neither"),
        ("none.pem", "proxy.key", "none.pem cannot be read: no such file or directory; correct this"),
        ("proxy.pem", "none.key", "none.key cannot be read: no such file or directory; correct this"),
        ("proxy.pem", "other.key", "are not a certificate and its key; both must be PEM, the key without a password"),
        ("proxy.pem", "locked.key", "are not a certificate and its key; both must be PEM, the key without a password"),
    ],
)
def test_an_unusable_certificate_refuses_the_start(tmp_path: Path, certificate: str, key: str, say: str) -> None:
    certify(tmp_path)
    own = (tmp_path / "proxy.key").rename(tmp_path / "own.key")
    certify(tmp_path)
    own.rename(tmp_path / "other.key")
    locking = ["openssl", "pkcs8", "-topk8", "-in", str(tmp_path / "proxy.key")]
    subprocess.run(
        [*locking, "-out", str(tmp_path / "locked.key"), "-passout", "pass:secret"], check=True, capture_output=True
    )
    file = tmp_path / "proxy.yaml"
    file.write_text(f"tls:\n  certificate: {certificate}\n  key: {key or 'null'}\n")
    done = session_proxy("check", str(file))
    assert done.returncode == 78 and done.stderr.startswith(f"{file}:2:3: tls.certificate: ")
    assert say in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_tls_key_that_everybody_can_read_is_refused() -> None:
    with tempfile.TemporaryDirectory() as made:  # pytest's own folders are closed to others
        folder = Path(made)
        folder.chmod(0o755)
        certify(folder)
        for mode in (0o640, 0o644):
            (folder / "proxy.key").chmod(mode)
            file = folder / "proxy.yaml"
            file.write_text("tls:\n  certificate: proxy.pem\n  key: proxy.key\n")
            done = session_proxy("check", str(file))
            assert done.returncode == (0 if mode == 0o640 else 78)
        assert f"everybody can read the file {folder}/proxy.key; chmod 600 it" in done.stderr
