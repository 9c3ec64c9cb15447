"""What the proxy tells systemd, against real datagram sockets, and what it takes from it.

That sockets are taken over is proven where a process starts with them: tests/acceptance/test_sockets.py.
"""

from __future__ import annotations

import socket
import uuid
from pathlib import Path

import pytest

from proxy.service.systemd import inherited, notify, patience


def heard(address: str, environ: dict[str, str]) -> tuple[bool, bytes]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(address)
        listener.settimeout(5)
        return notify("READY=1\nSTATUS=listening", environ), listener.recv(4096)


def test_notify_reaches_a_socket_with_a_path(tmp_path: Path) -> None:
    path = str(tmp_path / "notify")
    assert heard(path, {"NOTIFY_SOCKET": path}) == (True, b"READY=1\nSTATUS=listening")


def test_notify_reaches_an_abstract_socket() -> None:
    name = f"session-proxy-{uuid.uuid4().hex}"
    assert heard("\0" + name, {"NOTIFY_SOCKET": "@" + name}) == (True, b"READY=1\nSTATUS=listening")


@pytest.mark.parametrize("environ", [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "vsock:2:1234"}])
def test_notify_without_a_unix_socket_sends_nothing(environ: dict[str, str]) -> None:
    assert notify("READY=1", environ) is False


def test_notify_to_a_missing_socket_is_ignored(tmp_path: Path) -> None:
    assert notify("STOPPING=1", {"NOTIFY_SOCKET": str(tmp_path / "gone")}) is False


def test_notify_to_too_long_a_path_is_ignored() -> None:
    assert notify("READY=1", {"NOTIFY_SOCKET": "/" + "x" * 200}) is False


def test_notify_to_a_full_socket_does_not_block(tmp_path: Path) -> None:
    path = str(tmp_path / "full")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(path)
        assert not all(notify("WATCHDOG=1", {"NOTIFY_SOCKET": path}) for _ in range(10_000))


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"LISTEN_FDS": "1"},
        {"LISTEN_FDS": "1", "LISTEN_PID": "8"},
        {"LISTEN_FDS": "0", "LISTEN_PID": "7"},
        {"LISTEN_FDS": "one", "LISTEN_PID": "7"},
        {"LISTEN_PID": "7"},
    ],
)
def test_sockets_for_another_process_are_not_inherited(environ: dict[str, str]) -> None:
    assert inherited(environ, 7) == []


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "7"}, 30.0),
        ({"WATCHDOG_USEC": "500000"}, 0.5),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "8"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({}, None),
    ],
)
def test_the_watchdog_interval_is_read_for_the_watched_process_alone(
    environ: dict[str, str], seconds: float | None
) -> None:
    assert patience(environ, 7) == seconds
