"""The sockets of the process: its own, and those that systemd opened before it and keeps open after it."""

from __future__ import annotations

import signal
import socket
from pathlib import Path

import pytest

from tests.acceptance.test_commands import GOOD, session_proxy
from tests.support.daemon import Daemon
from tests.support.fakes import free_port

ASK = b"GET /readyz HTTP/1.0\r\n\r\n"


def tcp() -> socket.socket:
    opened = socket.socket()
    opened.bind(("127.0.0.1", 0))
    return opened


def unix(path: Path) -> socket.socket:
    opened = socket.socket(socket.AF_UNIX)
    opened.bind(str(path))
    return opened


def asked(client: socket.socket) -> bytes:
    """The status line of an answer."""
    client.settimeout(10)
    client.sendall(ASK)
    return client.makefile("rb").readline()


def connected(to: socket.socket) -> socket.socket:
    client = socket.socket(to.family)
    client.connect(to.getsockname())
    return client


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_a_client_between_two_processes_is_served_by_the_second(tmp_path: Path, kind: str) -> None:
    with tcp() if kind == "tcp" else unix(tmp_path / "socket") as opened:
        opened.listen()
        for ends in (signal.SIGTERM, signal.SIGKILL, signal.SIGTERM):
            (tmp_path / "notify").unlink(missing_ok=True)
            with connected(opened) as early, Daemon(tmp_path, handed=opened) as daemon:
                daemon.notified("READY")
                assert b" 200 " in asked(early)
                with connected(opened) as late:
                    assert b" 200 " in asked(late)
                assert "is ignored, because systemd holds the sockets" in daemon.logged("listen:")
                daemon.process.send_signal(ends)
                assert daemon.process.wait(10) == (0 if ends == signal.SIGTERM else -ends)


def test_a_stale_unix_socket_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "own"
    unix(path).close()
    with Daemon(tmp_path, listen=f"unix:{path}") as daemon:
        daemon.notified("READY")
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            assert b" 200 " in asked(client)


def test_a_unix_socket_in_use_is_not_taken(tmp_path: Path) -> None:
    with unix(tmp_path / "taken") as taken:
        taken.listen()
        listen = f"unix:{tmp_path}/taken"
        done = session_proxy("serve", "--config", GOOD, "--listen", listen, XDG_STATE_HOME=str(tmp_path))
    assert done.returncode == 1 and "another process listens there" in done.stderr and "Traceback" not in done.stderr


def test_the_key_is_not_lent_through_a_socket_of_systemd(tmp_path: Path) -> None:
    with socket.socket() as opened:
        opened.bind(("0.0.0.0", 0))
        opened.listen()
        with Daemon(tmp_path, handed=opened, upstreams=[{"api_key": "sk-canary"}], tenant="one") as daemon:
            assert daemon.process.wait(10) == 78
            assert "0.0.0.0" in (said := daemon.log.read()) and "use your api_key" in said and "canary" not in said


def test_a_systemd_socket_that_does_not_listen_is_refused(tmp_path: Path) -> None:
    with tcp() as deaf, Daemon(tmp_path, handed=deaf) as daemon:
        assert daemon.process.wait(10) == 1
        assert daemon.log.read() == (
            "session-proxy: systemd passed a socket that does not listen. Use ListenStream= and Accept=no.\n"
        )


@pytest.mark.parametrize(
    ("listen", "why"),
    [
        ("192.0.2.1:{port}", "cannot assign requested address"),
        ("no-such-host.invalid:{port}", "name"),
        ("unix:/no/such/folder/socket", "no such file or directory"),
    ],
)
def test_an_address_that_cannot_be_bound_prints_one_sentence(tmp_path: Path, listen: str, why: str) -> None:
    address = listen.format(port=free_port())
    done = session_proxy("serve", "--config", GOOD, "--listen", address, XDG_STATE_HOME=str(tmp_path))
    said = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and said.startswith(f"session-proxy: Cannot listen on {address}: ") and why in said
    assert "Traceback" not in done.stderr
