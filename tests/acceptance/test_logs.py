"""No content and no secret in any log: canaries through every path of a real process, at its most talkative."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.support.fakes import RawClient, Received, Reply, ScriptedUpstream, completion, error, eventually, sse
from tests.support.process import Proxy

KEY, TEXT, SESSION, OURS, TOKEN = "sk-canary-key", "canary-text", "canary-session", "sk-canary-ours", "canary-token"
HEADERS = [("Authorization", f"Bearer {KEY}"), ("Cookie", "canary-cookie")]


def script(request: Received) -> Reply:
    said = request.body.decode()
    if "refuse" in said:
        return error(400, {"error": {"message": f"{TEXT} {KEY}"}})
    if "cut" in said:
        return sse(TEXT, TEXT, end="rst")
    if "garbage" in said:
        return Reply(headers=[("Content-Type", "text/event-stream")], pieces=[f"data: {TEXT}\n\n".encode()])
    if "nohttp" in said:
        return Reply(headers=[("X-Odd", f"{TEXT}\x1b")], framing="length")
    if '"stream": true' in said:
        return sse(TEXT, "b")
    return completion(TEXT)


async def call(port: int, method: str, path: str, body: bytes = b"", *, session: bool = False, **more: str) -> None:
    headers = [
        *HEADERS,
        *[("sessionId", SESSION)] * session,
        *[(name.replace("_", "-"), v) for name, v in more.items()],
    ]
    async with RawClient(port) as client:
        await client.request(method, path, headers, body)
        try:
            await client.head()
            await client.body()
        except ConnectionError:
            pass


def chat(words: str, **more: Any) -> bytes:
    return json.dumps({"model": "m", "messages": [{"role": "user", "content": f"{TEXT} {words}"}], **more}).encode()


async def every_path(port: int) -> None:
    for words in ("plain", "refuse", "cut", "garbage", "nohttp"):
        for session in (True, False):
            await call(port, "POST", "/v1/chat/completions", chat(words, stream=True), session=session)
            await call(port, "POST", "/v1/chat/completions?key=canary-query", chat(words), session=session)
    chats = "/v1/chat/completions"
    await call(port, "POST", chats, f'{{"messages": "{TEXT}'.encode(), session=True)
    await call(port, "POST", chats, f'{{"messages": [], "{TEXT}": 1, "{TEXT}": 2}}'.encode(), session=True)
    await call(port, "POST", chats, chat("x", tools=TEXT), session=True, x_session_dry_run="yes")
    await call(port, "POST", chats, chat("x"), session=True, x_session_mode=TEXT)
    await call(port, "POST", chats, chat("x"), session=True, Idempotency_Key=TEXT)
    await call(port, "POST", chats, chat("y"), session=True, Idempotency_Key=TEXT)
    await call(port, "POST", chats, chat("x"), session=True, x_session_id="canary-other")
    await call(port, "POST", chats, chat("x"), session=True, x_request_id="canary id")
    await call(port, "POST", chats, chat("x"), x_session_id="canary\x01")
    for method, rest in (("GET", ""), ("GET", "/messages?after=canary"), ("GET", "/stream"), ("POST", "/stop")):
        await call(port, method, f"/sessions/{SESSION}{rest}")
    await call(port, "DELETE", f"/sessions/{SESSION}")
    await call(port, "GET", "/nowhere?key=canary")
    async with RawClient(port) as client:
        await client.send(f"GET /v1 HTTP/1.1\r\nHost: x\r\nAuthorization: {KEY}\r\nbad {TEXT}\x00\r\n\r\n".encode())
        await client.head()
    async with RawClient(port) as client:  # one that goes before its answer
        await client.request("POST", chats, [*HEADERS, ("sessionId", SESSION)], chat("slow"))


@pytest.mark.parametrize("form", ["console", "logfmt", "json"])
async def test_no_log_contains_message_text_or_credentials(tmp_path: Path, form: str) -> None:
    settings = {"log": {"level": "debug", "format": form}, "admin": {"listen": "127.0.0.1:0", "token": TOKEN}}
    async with ScriptedUpstream(script) as upstream, Proxy(upstream.base_url, tmp_path, settings) as proxy:
        await every_path(proxy.port)
        await proxy.stop()
        lines = len(proxy.log.splitlines())
        key = {"upstreams": [{"base_url": "http://127.0.0.1:1/v1", "api_key": OURS}], "tenant": "one"}
        proxy.config.write_text(json.dumps({**settings, **key}))
        await proxy.start()
        await every_path(proxy.port)
        await proxy.stop()
    log = proxy.log
    assert "canary" not in log and "Traceback" not in log
    assert lines > 30 and len(re.findall("chat/completions", log)) > 40
    assert len(re.findall(r"/sessions/\*", log)) == 10
    assert all([said in log for said in ("upstream_unreachable", "outcome", "decision")])


async def test_a_reload_changes_log_level_and_format(tmp_path: Path) -> None:
    async with ScriptedUpstream() as upstream, Proxy(upstream.base_url, tmp_path) as proxy:
        await call(proxy.port, "GET", "/first")
        await eventually(lambda: "path=/first status=404" in proxy.log)
        kept = json.loads(proxy.config.read_text())
        proxy.config.write_text(json.dumps({**kept, "log": {"format": "json"}}))
        os.kill(proxy.pid, signal.SIGHUP)
        await eventually(lambda: "configuration reloaded" in proxy.log)
        assert json.loads(proxy.log.splitlines()[-1])["logger"] == "daemon"
        proxy.config.write_text(json.dumps({**kept, "log": {"level": "warning"}, "sessions": {"ttl": "1h"}}))
        os.kill(proxy.pid, signal.SIGHUP)
        await eventually(lambda: "sessions.ttl: 3600s takes effect after a restart; 86400s stays in force" in proxy.log)
        await call(proxy.port, "GET", "/second")
        await proxy.stop()
    assert "second" not in proxy.log and proxy.log.splitlines()[-1].startswith("time=")


async def test_a_reload_names_the_settings_that_need_a_restart(tmp_path: Path) -> None:
    """What waits for a restart is told at each reload, and no more once it is taken back; a renamed client is told."""
    async with ScriptedUpstream() as upstream, Proxy(upstream.base_url, tmp_path) as proxy:
        kept = json.loads(proxy.config.read_text())

        async def reload(number: int, **sections: Any) -> str:
            before = len(proxy.log)
            proxy.config.write_text(json.dumps({**kept, **sections}))
            os.kill(proxy.pid, signal.SIGHUP)
            await eventually(lambda: proxy.log.count("configuration reloaded") == number)
            await call(proxy.port, "GET", f"/reload{number}")
            await eventually(lambda: f"/reload{number}" in proxy.log)
            return proxy.log[before:]

        wanted = "limits.cache: 1MiB takes effect after a restart; 64MiB stays in force"
        for number in (1, 2):
            assert wanted in await reload(number, limits={"cache": "1MiB"})
        assert "takes effect" not in await reload(3)
        hashes = ["ab" * 32]
        assert "was renamed" not in await reload(4, clients=[{"name": "kitchen", "key_hashes": hashes}])
        said = await reload(5, clients=[{"name": "hall", "key_hashes": hashes}])
        assert "clients: hall was renamed from kitchen and cannot reach the sessions of that name" in said
