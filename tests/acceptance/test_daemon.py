"""The process and its signals: readiness, reload, drain."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.acceptance.conftest import ROOT
from tests.support.daemon import Daemon
from tests.support.fakes import free_port


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    with Daemon(tmp_path) as daemon:
        assert daemon.notified("READY")["STATUS"] == "serving, nothing in flight"
        yield daemon


def test_readiness_is_notified_once_it_serves_and_sigterm_exits_0(daemon: Daemon) -> None:
    assert requests.get(f"http://127.0.0.1:{daemon.port}/readyz", timeout=5).status_code == 200
    assert (daemon.state / "sessions.db").stat().st_mode & 0o777 == 0o600
    daemon.process.send_signal(signal.SIGTERM)
    assert daemon.notified("STOPPING")["EXTEND_TIMEOUT_USEC"] == "45000000"
    assert daemon.process.wait(10) == 0


def test_a_stream_in_flight_at_sigterm_finishes(daemon: Daemon) -> None:
    body: Any = {"messages": [{"role": "user", "content": "My name is Alice"}], "stream": True}
    with requests.post(daemon.url, json=body, headers={"sessionId": "s"}, stream=True, timeout=10) as answer:
        pieces = answer.iter_content(None)
        first = next(pieces)
        daemon.process.send_signal(signal.SIGTERM)
        whole = first + b"".join(pieces)
    assert whole.endswith(b"data: [DONE]\n\n")
    assert daemon.process.wait(10) == 0


def test_a_reload_applies_a_valid_file_and_refuses_an_invalid_one(daemon: Daemon) -> None:
    before = time.monotonic_ns() // 1000
    daemon.write(cors={"allow_origins": "http://here"}, store={"path": "other.db"})
    daemon.process.send_signal(signal.SIGHUP)
    assert before < int(daemon.notified("RELOADING")["MONOTONIC_USEC"]) < time.monotonic_ns() // 1000
    assert daemon.notified("READY")["STATUS"] == "serving, nothing in flight"
    assert daemon.logged("reloaded") and "store.path: other.db" in daemon.logged("restart")
    daemon.write(log={"level": "loud"})
    daemon.process.send_signal(signal.SIGHUP)
    assert "proxy.yaml:3:" in daemon.logged("not reloaded")
    assert "not reloaded" in (status := daemon.notified("READY")["STATUS"]) and "proxy.yaml:3:" in status
    answer = requests.get(daemon.url + "/models", headers={"Origin": "http://here"}, timeout=5)
    assert (answer.status_code, answer.headers["Access-Control-Allow-Origin"]) == (200, "http://here")
    daemon.write()
    daemon.process.send_signal(signal.SIGHUP)
    daemon.notified("RELOADING")
    assert daemon.notified("READY")["STATUS"] == "serving, nothing in flight"


def test_the_status_counts_requests_in_flight_and_the_watchdog_is_fed(tmp_path: Path) -> None:
    with Daemon(tmp_path, environ={"WATCHDOG_USEC": "400000"}) as daemon:
        daemon.notified("READY")
        for _ in range(3):
            assert daemon.notified("WATCHDOG")
        body: Any = {"messages": [{"role": "user", "content": "count to 1000"}], "stream": True}
        with requests.post(daemon.url, json=body, headers={"sessionId": "s"}, stream=True, timeout=10) as answer:
            next(answer.iter_content(None))
            daemon.process.send_signal(signal.SIGTERM)
            assert daemon.notified("STOPPING")["STATUS"] == "stopping, 1 in flight"


def test_a_reload_cannot_lend_the_key_beyond_loopback(tmp_path: Path) -> None:
    with Daemon(tmp_path, listen=f"0.0.0.0:{free_port()}", upstreams=[{}]) as daemon:
        daemon.notified("READY")
        daemon.write(listen="127.0.0.1:1", upstreams=[{"api_key": "sk-canary"}], tenant="one")
        daemon.process.send_signal(signal.SIGHUP)
        said = daemon.notified("READY")["STATUS"] if daemon.notified("RELOADING") else ""
        assert "not reloaded: 0.0.0.0:" in said and "use your api_key" in said


def test_a_request_during_shutdown_is_served_with_connection_close(daemon: Daemon) -> None:
    body: Any = {"messages": [{"role": "user", "content": "My name is Alice"}]}
    with requests.Session() as client:
        answer = client.post(daemon.url, json=body, headers={"sessionId": "s"}, timeout=5)
        assert answer.status_code == 200 and "Connection" not in answer.headers
        daemon.process.send_signal(signal.SIGTERM)
        daemon.notified("STOPPING")
        answer = client.post(daemon.url, json=body, headers={"sessionId": "s"}, timeout=5)
        assert (answer.status_code, answer.headers["Connection"]) == (200, "close")
    assert daemon.process.wait(10) == 0


def test_a_database_without_its_secret_is_refused(daemon: Daemon) -> None:
    body: Any = {"messages": [{"role": "user", "content": "My name is Alice"}]}
    assert requests.post(daemon.url, json=body, headers={"sessionId": "s"}, timeout=5).status_code == 200
    daemon.process.send_signal(signal.SIGTERM)
    assert daemon.process.wait(10) == 0
    (daemon.state / "sessions.db.secret").unlink()
    again = subprocess.run(
        [sys.executable, "-m", "proxy", "serve", "--config", str(daemon.config)],
        cwd=ROOT,
        env={**os.environ, "STATE_DIRECTORY": str(daemon.state)},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert again.returncode == 1 and "sessions.db.secret is missing" in again.stderr
