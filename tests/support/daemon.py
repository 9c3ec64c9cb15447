"""The proxy, and its service manager: what it is told, what it hands over."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from tests.acceptance.conftest import ROOT
from tests.support.fakes import free_port

# a shell knows its own process before it becomes the proxy, as systemd does
HAND_OVER = 'exec 3<&0; export LISTEN_PID=$$ LISTEN_FDS=1; exec "$@"'

PATIENCE = 20.0  # seconds for a line of the log


class Daemon:
    """Started in `folder`, on a free port or on the socket `handed` over; `settings` are keys of its configuration,
    with the demo behind it unless they name upstreams.

    `with` ends it, if it still runs.
    """

    def __init__(self, folder: Path, *, handed: socket.socket | None = None, environ: Any = None, **settings: Any):
        self.port, self.config, self.state = free_port(), folder / "proxy.yaml", folder / "state"
        self._settings = {"listen": f"127.0.0.1:{self.port}", "upstreams": [{}], **settings}
        self.write()
        self.told = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.told.bind(str(folder / "notify"))
        self.told.settimeout(10)
        said = {"NOTIFY_SOCKET": str(folder / "notify"), "STATE_DIRECTORY": str(self.state), **(environ or {})}
        command: Sequence[str] = [sys.executable, "-m", "proxy", "serve", "--config", str(self.config)]
        command = command if "upstreams" in settings else [*command, "--demo"]
        if handed:
            command = ["sh", "-c", HAND_OVER, "sh", *command]
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **said},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            stdin=handed.fileno() if handed else subprocess.DEVNULL,
        )
        assert self.process.stderr
        self.log: IO[str] = self.process.stderr

    def __enter__(self) -> Daemon:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate(timeout=10)
        self.told.close()

    def write(self, **settings: Any) -> None:
        """The configuration, a key to a line, with these keys changed."""
        keys = {**self._settings, **settings}
        self.config.write_text("\n".join([f"{key}: {json.dumps(value)}" for key, value in keys.items()]))

    def notified(self, state: str) -> dict[str, str]:
        """The next of its messages with this state, as pairs of name and value."""
        while True:
            said = dict([line.split("=", 1) for line in self.told.recv(4096).decode().splitlines()])
            if said.get(state):
                return said

    def logged(self, words: str) -> str:
        """The next line of its log with these words. Who does not say them is killed, so that the log ends."""
        ending = threading.Timer(PATIENCE, self.process.kill)
        ending.start()
        try:
            line = next((line for line in self.log if words in line), None)
        finally:
            ending.cancel()
        assert line is not None, f"the log has no line with {words!r}"
        return line

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"
