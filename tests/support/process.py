"""The proxy as a process of its own, as users run it: started, asked, stopped, killed."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.support.fakes import free_port

ROOT = Path(__file__).parents[2]


class Proxy:
    """`async with Proxy(upstream.base_url, tmp_path) as proxy`: serves until the block ends.

    All it keeps lies in `folder`, so that a second Proxy there goes on where the first ended.
    `settings` are further keys of the configuration, `arguments` of the command, `program` the module that runs.
    `start` after `kill` or `stop` is a restart, on another port.
    """

    def __init__(
        self,
        base_url: str,
        folder: Path,
        settings: Mapping[str, Any] | None = None,
        *,
        arguments: Sequence[str] = (),
        program: str = "proxy",
    ) -> None:
        self.port = 0
        self._program = program
        self._arguments = arguments
        self.folder = folder
        self.database = folder / "session-proxy" / "sessions.db"
        self.config = folder / "config.yaml"
        self.config.write_text(json.dumps({"upstreams": [{"base_url": base_url}], **(settings or {})}))
        self._log = folder / "proxy.log"
        self._process: asyncio.subprocess.Process | None = None

    @property
    def base_url(self) -> str:
        """The URL that a client is pointed at."""
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def pid(self) -> int:
        assert self._process
        return self._process.pid

    @property
    def log(self) -> str:
        """What all processes of this folder wrote so far."""
        return self._log.read_text()

    async def __aenter__(self) -> Proxy:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._process and self._process.returncode is None:
            await self.kill()

    async def start(self, timeout: float = 20.0) -> None:
        """Start, and return once it is ready; AssertionError with its log where it ends first."""
        self.port = free_port()
        with self._log.open("ab") as log:
            self._process = await command(
                *("serve", "--config", str(self.config), "--listen", f"127.0.0.1:{self.port}"),
                *self._arguments,
                folder=self.folder,
                program=self._program,
                stdout=log,
                stderr=log,
            )
        try:
            async with asyncio.timeout(timeout):
                while not await self._is_ready():
                    assert self._process.returncode is None, self.log
                    await asyncio.sleep(0.01)
        except BaseException:
            await self.__aexit__()
            raise

    async def kill(self) -> None:
        """End it as a crash would."""
        await self._end(signal.SIGKILL, 10.0)

    async def stop(self, timeout: float = 30.0) -> int:
        """End it in good order; its exit code."""
        return await self._end(signal.SIGTERM, timeout)

    async def _end(self, number: signal.Signals, timeout: float) -> int:
        assert self._process
        self._process.send_signal(number)
        async with asyncio.timeout(timeout):
            return await self._process.wait()

    async def _is_ready(self) -> bool:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        except ConnectionError:
            return False
        writer.write(b"GET /readyz HTTP/1.0\r\n\r\n")
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
        return b" 200 " in answer.partition(b"\r\n")[0]


async def command(*arguments: str, folder: Path, program: str = "proxy", **streams: Any) -> asyncio.subprocess.Process:
    """`session-proxy ARGUMENTS` as a process whose state is in `folder`."""
    environ = {**os.environ, "XDG_STATE_HOME": str(folder)}
    environ.pop("STATE_DIRECTORY", None)
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", program, *arguments, cwd=ROOT, env=environ, **streams
    )


async def run(*arguments: str, folder: Path, timeout: float = 20.0) -> tuple[int, str, str]:
    """The exit code, output and error output of a command that ends by itself."""
    process = await command(*arguments, folder=folder, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE)
    try:
        async with asyncio.timeout(timeout):
            output, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return process.returncode, output.decode(), errors.decode()
