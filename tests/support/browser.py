"""Chromium without a window, for tests of what a browser really reads.

Driven through its own debugging protocol, over aiohttp's WebSocket client: a driver of its own would weigh more than
all other test tools together. Nothing here knows the proxy.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import aiohttp
import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = (
    "--headless",
    "--no-sandbox",  # which root cannot have
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-port=0",
)


def chromium_or_skip() -> str:
    """Where Chromium is; skips the test where there is none."""
    found = next(filter(None, map(shutil.which, _NAMES)), None)
    return found or pytest.skip("no chromium here: apt-get install chromium")


class Browser:
    """`async with Browser() as browser`: a process of its own with an empty profile, gone with the block."""

    def __init__(self) -> None:
        self._program = chromium_or_skip()
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[Any]] = {}

    async def __aenter__(self) -> Browser:
        self._profile = tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True)
        self._process = await asyncio.create_subprocess_exec(
            *(self._program, *_FLAGS, f"--user-data-dir={self._profile.name}", "about:blank"),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        self._session = aiohttp.ClientSession()
        try:
            async with asyncio.timeout(60):
                self._socket = await self._session.ws_connect(await self._address(), max_msg_size=0)
        except BaseException:
            await self._leave()
            raise
        self._reading = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *_: object) -> None:
        try:
            async with asyncio.timeout(10):
                await self.call("Browser.close")
                await self._process.wait()  # it takes its own processes with it
        except (TimeoutError, ConnectionError):
            pass
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)
        await self._leave()

    async def page(self, url: str) -> Page:
        """A new page, once it has loaded."""
        made = await self.call("Target.createTarget", url="about:blank")
        attached = await self.call("Target.attachToTarget", targetId=made["targetId"], flatten=True)
        page = Page(self, attached["sessionId"])
        await page.go(url)
        return page

    async def call(self, method: str, session: str | None = None, **parameters: Any) -> Any:
        """One command of the debugging protocol; RuntimeError where the browser refuses it."""
        number = next(self._numbers)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        command: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        try:
            await self._socket.send_str(json.dumps(command | ({"sessionId": session} if session else {})))
            return await answer
        finally:
            del self._answers[number]

    async def _address(self) -> str:
        """Where it listens for commands: it writes that down once it does."""
        place = Path(self._profile.name) / "DevToolsActivePort"
        while True:
            assert self._process.returncode is None, f"Chromium ended with {self._process.returncode}"
            lines = place.read_text().splitlines() if place.exists() else []
            if len(lines) == 2:
                return f"ws://127.0.0.1:{lines[0]}{lines[1]}"
            await asyncio.sleep(0.02)

    async def _read(self) -> None:
        async for message in self._socket:
            said = json.loads(message.data)
            answer = self._answers.get(said.get("id"))
            if answer is None or answer.done():
                continue  # an event
            if "error" in said:
                answer.set_exception(RuntimeError(said["error"]["message"]))
            else:
                answer.set_result(said["result"])
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(ConnectionError("Chromium has gone"))

    async def _leave(self) -> None:
        await self._session.close()
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()
        self._profile.cleanup()


class Page:
    """One page of a browser."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser, self._session = browser, session

    async def go(self, url: str) -> None:
        """Load another address; AssertionError where it cannot be."""
        went = await self.call("Page.navigate", url=url)
        assert not went.get("errorText"), f"{url}: {went['errorText']}"
        await self.run(
            "new Promise(r => document.readyState == 'complete' ? r() : addEventListener('load', () => r()))"
        )

    async def run(self, script: str, timeout: float = 30.0) -> Any:
        """The value of an expression in the page, a promise's once it is kept; AssertionError where it throws."""
        async with asyncio.timeout(timeout):
            answer = await self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    async def call(self, method: str, **parameters: Any) -> Any:
        """One command of the debugging protocol to this page."""
        return await self._browser.call(method, self._session, **parameters)
