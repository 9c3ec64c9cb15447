"""What the proxy tells systemd, against real datagram sockets and the real unit checker."""

from __future__ import annotations

import shutil
import socket
import subprocess
import uuid
from pathlib import Path

import pytest

from proxy.systemd import notify

UNIT = Path(__file__).parent.parent / "systemd" / "session-proxy.service"


def heard(address: str, environ: dict[str, str]) -> tuple[bool, bytes]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(address)
        listener.settimeout(5)
        return notify("READY=1\nSTATUS=listening", environ), listener.recv(4096)


def test_a_socket_with_a_path_hears_the_state(tmp_path: Path) -> None:
    path = str(tmp_path / "notify")
    assert heard(path, {"NOTIFY_SOCKET": path}) == (True, b"READY=1\nSTATUS=listening")


def test_an_abstract_socket_hears_the_state() -> None:
    name = f"session-proxy-{uuid.uuid4().hex}"
    assert heard("\0" + name, {"NOTIFY_SOCKET": "@" + name}) == (True, b"READY=1\nSTATUS=listening")


@pytest.mark.parametrize("environ", [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "vsock:2:1234"}])
def test_without_a_unix_socket_nothing_is_said(environ: dict[str, str]) -> None:
    assert notify("READY=1", environ) is False


def test_a_socket_that_is_gone_harms_nobody(tmp_path: Path) -> None:
    assert notify("STOPPING=1", {"NOTIFY_SOCKET": str(tmp_path / "gone")}) is False


def test_a_path_that_is_too_long_harms_nobody() -> None:
    assert notify("READY=1", {"NOTIFY_SOCKET": "/" + "x" * 200}) is False


def test_a_full_socket_does_not_stall_the_proxy(tmp_path: Path) -> None:
    path = str(tmp_path / "full")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(path)
        assert not all(notify("WATCHDOG=1", {"NOTIFY_SOCKET": path}) for _ in range(10_000))


def test_systemd_finds_nothing_to_say_about_the_unit(tmp_path: Path) -> None:
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not installed here")
    here = tmp_path / UNIT.name
    # the program is not installed where the tests run, and that it is missing is all that would be said
    here.write_text(UNIT.read_text().replace("/opt/session-proxy/bin/session-proxy", "/bin/true"))
    checked = subprocess.run(
        ["systemd-analyze", "verify", str(here)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (checked.returncode, checked.stderr) == (0, "")


@pytest.mark.parametrize(
    "line",
    [
        "Type=notify",
        "DynamicUser=yes",
        "StateDirectory=session-proxy",
        "KillMode=mixed",
        "RestartPreventExitStatus=2 78",
        "UMask=0077",
        "LimitCORE=0",
    ],
)
def test_the_unit_keeps_what_the_promises_need(line: str) -> None:
    assert line in UNIT.read_text().splitlines()
