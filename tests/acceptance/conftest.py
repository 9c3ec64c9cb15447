"""What `make run` starts, for the tests that come from outside."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.fakes import free_port

ROOT = Path(__file__).resolve().parents[2]


def started(arguments: list[str], environ: dict[str, str]) -> subprocess.Popen[str]:
    """A Python process of ours, once it says that it listens."""
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout
    said = []
    for line in process.stdout:
        said.append(line)
        if "listening" in line:
            return process
    raise AssertionError("".join(said[-20:]))


def serve(*arguments: str) -> list[str]:
    return ["-m", "proxy", "serve", "--config", "config/session-proxy.yaml", *arguments]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the proxy with the demo behind it, its state in a folder of the test's own."""
    listen = f"127.0.0.1:{free_port()}"
    process = started(serve("--demo", "--listen", listen), {"XDG_STATE_HOME": str(tmp_path_factory.mktemp("state"))})
    yield listen
    process.terminate()
    process.communicate(timeout=10)
    assert process.returncode == 0
