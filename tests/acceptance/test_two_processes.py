"""The program as a process: who may write to a database, how it ends, what it refuses to begin with."""

from __future__ import annotations

from pathlib import Path

from tests.support.fakes import RawClient, ScriptedUpstream, free_port
from tests.support.process import Proxy, run

MISTAKES = """\
lisen: 127.0.0.1:8484
upstreams:
  - base_url: ftp://example.com
sessions:
  ttl: soon
  queue_limit: many
log:
  level: loud
"""


async def test_a_second_process_on_one_database_is_refused(tmp_path: Path) -> None:
    async with ScriptedUpstream() as upstream, Proxy(upstream.base_url, tmp_path) as first:
        config, address = str(tmp_path / "config.yaml"), f"127.0.0.1:{free_port()}"
        code, _, errors = await run("serve", "--config", config, "--listen", address, folder=tmp_path)
        assert code == 1
        assert errors.splitlines() == [
            f"session-proxy: {first.database} is in use by session-proxy, process {first.pid}."
            " Stop it, or set another store.path for this proxy."
        ]
        async with RawClient(first.port) as client:
            messages = [{"role": "user", "content": "hello"}]
            await client.post("/v1/chat/completions", {"messages": messages}, [("sessionId", "s")])
            assert (await client.head()).status == 200


async def test_a_restart_continues_the_session(tmp_path: Path) -> None:
    async with ScriptedUpstream() as upstream, Proxy(upstream.base_url, tmp_path) as proxy:
        for state in ("new", "continued"):
            async with RawClient(proxy.port) as client:
                messages = [{"role": "user", "content": state}]
                await client.post("/v1/chat/completions", {"messages": messages}, [("sessionId", "s")])
                assert (await client.head()).header("x-session-state") == state
                await client.body()
            assert await proxy.stop() == 0
            assert not proxy.database.with_name("sessions.db-wal").exists()
            await proxy.start()
        assert "Traceback" not in proxy.log
    assert len(upstream.requests[-1].messages) == 3


async def test_the_demo_stops_cleanly(tmp_path: Path) -> None:
    async with Proxy("http://127.0.0.1:9/v1", tmp_path, arguments=["--demo"]) as proxy:
        async with RawClient(proxy.port) as client:
            await client.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "hello"}]})
            assert (await client.head()).status == 200
        assert await proxy.stop() == 0


async def test_serve_reports_five_mistakes_in_five_lines(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(MISTAKES)
    code, output, errors = await run("serve", "--config", str(config), folder=tmp_path)
    assert (code, output) == (78, "")
    lines = errors.splitlines()
    assert [line.split(":")[:2] for line in lines] == [[str(config), str(n)] for n in (1, 3, 5, 6, 8)]
    assert "did you mean 'listen'?" in lines[0]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["config.yaml"]
