"""The doctor sees what is wrong, says what to do, and prints no secret."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import socket
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.test_db_commands import say
from tests.acceptance.test_nginx import Nginx, nginx
from tests.support.fakes import Received, Reply, ScriptedUpstream, completion, eventually, free_port
from tests.support.process import Proxy, command, run

__all__ = ["nginx"]

KEY = "sk-canary-of-ours"


def upstream_of(status: int = 200, body: bytes = b'{"data": [{"id": "a"}, {"id": "b"}]}') -> ScriptedUpstream:
    """One that answers what it is asked for: a list of models, or a completion."""

    def answer(request: Received) -> Reply:
        return Reply(status=status, pieces=[body]) if request.target.endswith("/models") else completion("hi")

    return ScriptedUpstream(answer)


async def doctor(proxy: Proxy, *options: str) -> tuple[int, list[str]]:
    """The exit code, and what was found; never with a key in it."""
    code, output, errors = await run("doctor", "--config", str(proxy.config), *options, folder=proxy.folder)
    assert "canary" not in output + errors and "Traceback" not in errors
    assert errors == ""
    return code, output.splitlines()


async def test_doctor_finds_nothing_wrong_with_a_good_setup(tmp_path: Path) -> None:
    async with upstream_of() as upstream, Proxy(upstream.base_url, tmp_path) as proxy:
        os.chmod(proxy.config, 0o600)
        await say(proxy.port, "s")
        code, found = await doctor(proxy, "--through", proxy.base_url)
        assert code == 0
        assert [line for line in found if line.startswith("fail")] == []
        for words in (
            f"configuration: {proxy.config} is valid",
            "SQLite: version",
            "HTTP: aiohttp",
            f"of process {proxy.pid}",
            "rights: only the owner",
            "database: whole, 1 sessions with 1 turns",
            "secret: it is there",
            "/models answers with 2 models",
            *[f"front: {name} arrives" for name in ("sessionId", "session-id", "x-session-id", "session_id")],
        ):
            assert [line for line in found if words in line], words
        assert len([request for request in upstream.requests if request.target.endswith("completions")]) == 1
        assert await say(proxy.port, "s") == "continued"


async def test_doctor_fails_without_aiohttps_compiled_extension(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIOHTTP_NO_EXTENSIONS", "1")
    async with upstream_of() as upstream:
        code, found = await doctor(Proxy(upstream.base_url, tmp_path))
    (said,) = [line for line in found if "HTTP:" in line]
    assert code == 1 and said.startswith("fail  HTTP: aiohttp") and said.endswith(" from the environment.")


@pytest.mark.parametrize("underscores", ["off", "on"])
async def test_doctor_names_the_headers_that_nginx_drops(tmp_path: Path, nginx: Nginx, underscores: str) -> None:
    async with upstream_of() as upstream, Proxy(upstream.base_url, tmp_path) as proxy:
        await nginx.start(proxy.port, underscores)
        code, found = await doctor(proxy, "--through", f"http://127.0.0.1:{nginx.port}/v1")
        front = [line for line in found if "front:" in line]
        assert code == 0
        assert front[:3] == [f"ok    front: {name} arrives" for name in ("sessionId", "session-id", "x-session-id")]
        if underscores == "on":
            assert front[3:] == ["ok    front: session_id arrives"]
        else:
            assert front[3:] == [
                "warn  front: session_id does not arrive: front proxies drop names with an underscore"
                " (nginx: underscores_in_headers on); clients should send sessionId"
            ]


async def test_doctor_needs_a_client_key_where_clients_are_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = "sk-canary-of-a-client"
    monkeypatch.setenv("CLIENT_KEY", client)
    hashes = [hashlib.sha256(client.encode()).hexdigest()]
    async with upstream_of() as upstream:
        settings: dict[str, Any] = {
            "upstreams": [{"base_url": upstream.base_url, "api_key": "${OUR_KEY}"}],
            "clients": [{"name": "kitchen", "key_hashes": hashes}],
        }
        monkeypatch.setenv("OUR_KEY", KEY)
        async with Proxy(upstream.base_url, tmp_path, settings) as proxy:
            code, found = await doctor(proxy, "--through", proxy.base_url)
            assert code == 1 and "with --key" in found[-1]
            code, found = await doctor(proxy, "--through", proxy.base_url, "--key", "CLIENT_KEY")
            assert code == 0 and "session_id arrives" in found[-1]
            assert upstream.requests[0].header("authorization") == f"Bearer {KEY}"
            code, _, errors = await run("doctor", "--config", str(proxy.config), "--key", "NOT_THERE", folder=tmp_path)
            assert code == 1 and "NOT_THERE is not set" in errors


@pytest.mark.parametrize(
    ("status", "body", "key", "said"),
    [
        (401, b"{}", None, "ok    upstream: {url}/models answers; it requires a caller's key (401)"),
        (401, b"{}", KEY, "fail  upstream: {url}/models refuses the configured key (401); check api_key"),
        (404, b"not here", None, "warn  upstream: {url}/models answers with 404; check base_url"),
        (200, b"<html>", None, "warn  upstream: {url}/models answers with something other than a list of models"),
    ],
)
async def test_doctor_reports_what_the_upstream_answers(
    tmp_path: Path, status: int, body: bytes, key: str | None, said: str
) -> None:
    async with upstream_of(status, body) as upstream:
        proxy = Proxy(upstream.base_url, tmp_path, {"upstreams": [{"base_url": upstream.base_url, "api_key": key}]})
        os.chmod(proxy.config, 0o600)
        code, found = await doctor(proxy)
        assert found[-1] == said.format(url=upstream.base_url)
        assert code == (1 if said.startswith("fail") else 0)


async def test_doctor_warns_of_a_base_url_that_ends_in_an_endpoint(tmp_path: Path) -> None:
    async with upstream_of() as upstream:
        proxy = Proxy(f"{upstream.base_url}/chat/completions", tmp_path)
        _, found = await doctor(proxy)
    [line] = [line for line in found if "ends in" in line]
    assert line.startswith(f"warn  configuration: {proxy.config}:1:") and "upstreams.0.base_url: ends in /chat" in line


async def test_doctor_fails_for_an_unreachable_upstream_or_front_proxy(tmp_path: Path) -> None:
    nowhere = f"http://127.0.0.1:{free_port()}/v1"
    proxy = Proxy(nowhere, tmp_path)
    code, found = await doctor(proxy, "--through", nowhere)
    assert code == 1
    assert found[-2].startswith(f"fail  upstream: {nowhere}/models cannot be reached")
    assert found[-1].startswith(f"fail  front: no session header arrives through {nowhere} (it cannot be reached")
    async with upstream_of() as upstream:  # no proxy behind
        _, found = await doctor(proxy, "--through", upstream.base_url)
        assert "no session header arrives" in found[-1] and "the answer is 200: is this the base URL" in found[-1]


async def test_doctor_names_what_is_wrong_with_the_state_folder(tmp_path: Path) -> None:
    async with upstream_of() as upstream, Proxy(upstream.base_url, tmp_path) as proxy:
        await say(proxy.port, "s")
        await proxy.stop()
        secret = proxy.database.with_name("sessions.db.secret")
        os.chmod(secret, 0o644)
        os.chmod(proxy.config, 0o666)
        code, found = await doctor(proxy)
        assert code == 1
        assert f"fail  rights: other users can open {secret}; chmod 600 {secret}" in found
        assert f"fail  configuration: other users can change {proxy.config}; chmod go-w {proxy.config}" in found
        secret.unlink()
        assert [line for line in (await doctor(proxy))[1] if line.startswith("fail  database:") and "missing" in line]
        with closing(sqlite3.connect(proxy.database)) as connection:
            connection.execute("PRAGMA user_version=7000")
        assert [line for line in (await doctor(proxy))[1] if "fail  database: The database has schema 7000" in line]
        proxy.database.write_bytes(b"not a database\n" * 100)
        assert [line for line in (await doctor(proxy))[1] if "file is not a database" in line]


async def test_doctor_fails_for_a_key_that_others_can_read(tmp_path: Path) -> None:
    async with upstream_of() as upstream:
        settings = {"upstreams": [{"base_url": upstream.base_url, "api_key": KEY}]}
        proxy = Proxy(upstream.base_url, tmp_path, settings)
        os.chmod(proxy.config, 0o644)
        code, found = await doctor(proxy)
        assert code == 1 and f"fail  configuration: other users can read the key in {proxy.config}; chmod 600" in str(
            found
        )
        os.chmod(proxy.config, 0o600)
        assert (await doctor(proxy))[0] == 0


async def test_doctor_exits_78_for_a_wrong_configuration_and_2_for_a_wrong_url(tmp_path: Path) -> None:
    proxy = Proxy("ftp://nowhere", tmp_path)
    code, _, errors = await run("doctor", "--config", str(proxy.config), folder=tmp_path)
    assert code == 78 and "base_url" in errors
    code, _, errors = await run("doctor", "--config", str(proxy.config), "--through", "example.org", folder=tmp_path)
    assert code == 2 and "must be a URL" in errors


async def test_ctrl_c_prints_interrupted_and_exits_1(tmp_path: Path) -> None:
    async with ScriptedUpstream([Reply(end="hang")]) as upstream:
        proxy = Proxy(upstream.base_url, tmp_path)
        pipe = asyncio.subprocess.PIPE
        words = ("doctor", "--config", str(proxy.config))
        process = await command(*words, folder=tmp_path, stdout=pipe, stderr=pipe)
        await eventually(lambda: upstream.requests, timeout=20)
        process.send_signal(signal.SIGINT)
        _, errors = await process.communicate()
    assert (process.returncode, errors.decode()) == (1, "session-proxy: interrupted\n")


async def test_doctor_names_a_port_that_another_process_uses(tmp_path: Path) -> None:
    async with upstream_of() as upstream:
        with socket.create_server(("127.0.0.1", 0)) as other:
            port = other.getsockname()[1]
            proxy = Proxy(upstream.base_url, tmp_path, {"listen": f"127.0.0.1:{port}"})
            os.chmod(proxy.config, 0o600)
            code, found = await doctor(proxy)
            assert code == 1
            assert [
                line for line in found if line.startswith(f"fail  listen: another process listens on 127.0.0.1:{port};")
            ]
        async with Proxy(upstream.base_url, tmp_path) as proxy:
            proxy.config.write_text(
                json.dumps(json.loads(proxy.config.read_text()) | {"listen": f"127.0.0.1:{proxy.port}"})
            )
            code, found = await doctor(proxy)
            assert (code, [line for line in found if "listen:" in line]) == (0, [])


async def test_doctor_fails_for_a_damaged_or_foreign_secret(tmp_path: Path) -> None:
    async with upstream_of() as upstream, Proxy(upstream.base_url, tmp_path) as proxy:
        os.chmod(proxy.config, 0o600)
        await say(proxy.port, "s")
        await proxy.stop()
        secret = proxy.database.with_name("sessions.db.secret")
        secret.write_bytes(bytes(32))
        code, found = await doctor(proxy)
        assert code == 1 and any([f"fail  database: {secret} belongs to another database" in line for line in found])
        code, _, errors = await run("serve", "--config", str(proxy.config), "--listen", "127.0.0.1:0", folder=tmp_path)
        assert code == 1 and "belongs to another database" in errors and "restore a backup" in errors
        for file in proxy.database.parent.glob("sessions.db*"):
            file.unlink()
        secret.write_bytes(b"short")
        code, found = await doctor(proxy)
        assert code == 1 and any([line.startswith(f"fail  secret: {secret} is damaged") for line in found])
