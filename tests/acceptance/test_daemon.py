"""The process and its signals: readiness, reload, drain."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest
import requests

from tests.acceptance.conftest import ROOT
from tests.fakes import free_port

CONFIG = """
listen: 127.0.0.1:{port}
upstreams: [{{base_url: "http://127.0.0.1:{port}/nothing"}}]
log: {{level: {level}}}
"""


class Daemon:
    """The proxy with the demo behind it, its log and what it says to a service manager."""

    def __init__(self, folder: Path) -> None:
        self.port, self.config = free_port(), folder / "proxy.yaml"
        self.write("info")
        self.told = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.told.bind(str(folder / "notify"))
        self.told.settimeout(10)
        environ = {"NOTIFY_SOCKET": str(folder / "notify"), "STATE_DIRECTORY": str(folder / "state")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "proxy", "serve", "--config", str(self.config), "--demo"],
            cwd=ROOT,
            env={**os.environ, **environ},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stderr
        self.log: IO[str] = self.process.stderr

    def write(self, level: str) -> None:
        self.config.write_text(CONFIG.format(port=self.port, level=level))

    def notified(self) -> str:
        return self.told.recv(4096).decode()

    def logged(self, words: str) -> str:
        return next(line for line in self.log if words in line)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    daemon = Daemon(tmp_path)
    assert daemon.notified() == "READY=1"
    yield daemon
    if daemon.process.poll() is None:
        daemon.process.kill()
    daemon.process.communicate(timeout=10)
    daemon.told.close()


def test_it_is_ready_when_it_says_so_and_ends_with_0(daemon: Daemon, tmp_path: Path) -> None:
    assert requests.get(f"http://127.0.0.1:{daemon.port}/readyz", timeout=5).status_code == 200
    assert (tmp_path / "state" / "sessions.db").stat().st_mode & 0o777 == 0o600
    daemon.process.send_signal(signal.SIGTERM)
    assert daemon.notified() == "STOPPING=1"
    assert daemon.process.wait(10) == 0


def test_a_stream_that_runs_at_sigterm_finishes(daemon: Daemon) -> None:
    body: Any = {"messages": [{"role": "user", "content": "My name is Alice"}], "stream": True}
    with requests.post(daemon.url, json=body, headers={"sessionId": "s"}, stream=True, timeout=10) as answer:
        pieces = answer.iter_content(None)
        first = next(pieces)
        daemon.process.send_signal(signal.SIGTERM)
        whole = first + b"".join(pieces)
    assert whole.endswith(b"data: [DONE]\n\n")
    assert daemon.process.wait(10) == 0


def test_a_reload_takes_a_good_file_and_refuses_a_bad_one(daemon: Daemon) -> None:
    daemon.write("debug")
    daemon.process.send_signal(signal.SIGHUP)
    assert daemon.notified().startswith("RELOADING=1\nMONOTONIC_USEC=")
    assert daemon.notified() == "READY=1"
    assert daemon.logged("reloaded")
    daemon.write("loud")
    daemon.process.send_signal(signal.SIGHUP)
    assert "proxy.yaml:4:" in daemon.logged("unchanged")
    assert requests.get(daemon.url + "/models", timeout=5).status_code == 200


def test_a_database_without_its_secret_is_refused(daemon: Daemon, tmp_path: Path) -> None:
    body: Any = {"messages": [{"role": "user", "content": "My name is Alice"}]}
    assert requests.post(daemon.url, json=body, headers={"sessionId": "s"}, timeout=5).status_code == 200
    daemon.process.send_signal(signal.SIGTERM)
    assert daemon.process.wait(10) == 0
    (tmp_path / "state" / "sessions.db.secret").unlink()
    again = subprocess.run(
        [sys.executable, "-m", "proxy", "serve", "--config", str(daemon.config)],
        cwd=ROOT,
        env={**os.environ, "STATE_DIRECTORY": str(tmp_path / "state")},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert again.returncode == 1 and "sessions.db.secret is missing" in again.stderr
