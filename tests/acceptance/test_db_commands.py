"""The commands on a database, beside a proxy that runs and after it stopped."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from proxy.commands.running_proxy import ask
from proxy.errors import StoreUnavailable
from proxy.stores.sqlite.lock import Lock
from tests.support.acknowledged import Client, at_work, script
from tests.support.fakes import RawClient, ScriptedUpstream, completion, eventually, sse
from tests.support.process import ROOT, Proxy, run

SECRET_WORDS = "words that must not stay"


async def say(port: int, session: str, text: str = "hello") -> str:
    """A turn; how the session stood before it."""
    async with RawClient(port) as client:
        body = {"messages": [{"role": "user", "content": text}]}
        await client.post("/v1/chat/completions", body, [("sessionId", session)])
        head = await client.head()
        await client.body()
        assert head.status == 200
        return head.header("x-session-state") or ""


def traces(folder: Path) -> list[str]:
    """The files beside the database in which the words stand."""
    files = [file for file in folder.iterdir() if file.is_file()]
    return [file.name for file in files if SECRET_WORDS.encode() in file.read_bytes()]


def make_old(database: Path) -> None:
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("UPDATE sessions SET touched = 0")
        connection.commit()


async def db(proxy: Proxy, verb: str, *options: str) -> tuple[int, str, str]:
    return await run("db", verb, "--config", str(proxy.config), *options, folder=proxy.folder)


async def test_db_check_and_db_stats_work_under_load(tmp_path: Path) -> None:
    async with ScriptedUpstream(script) as upstream, Proxy(upstream.base_url, tmp_path) as proxy:
        clients = [Client(f"client {n}") for n in range(4)]
        async with at_work(clients, proxy.port, 0.1):
            least = sum(len(client.acknowledged) for client in clients)
            code, output, errors = await db(proxy, "check")
            assert (code, errors) == (0, "") and output.startswith(f"{proxy.database}: ok, 4 sessions with ")
            code, output, errors = await db(proxy, "stats", "--json")
            assert (code, errors) == (0, "")
            assert least <= json.loads(output)["turns"] <= sum(len(client.sent) for client in clients)
            await proxy.kill()
        code, output, _ = await db(proxy, "stats")
        assert code == 0 and "sessions  4, and 0 expired" in output
        assert (await db(proxy, "check"))[0] == 0
        await proxy.start()
        assert "Traceback" not in proxy.log


async def test_a_purge_is_done_by_the_running_proxy(tmp_path: Path) -> None:
    async with ScriptedUpstream(script) as upstream, Proxy(upstream.base_url, tmp_path) as proxy:
        for n in range(150):
            await say(proxy.port, f"old {n}", SECRET_WORDS)
        await proxy.stop()
        make_old(proxy.database)
        await proxy.start()
        await say(proxy.port, "young")
        assert traces(proxy.database.parent)
        code, output, errors = await db(proxy, "purge", "--older-than", "1d")
        assert (code, output, errors) == (0, "150 sessions purged\n", "")
        assert traces(proxy.database.parent) == []
        assert await say(proxy.port, "young") == "continued"
        assert await say(proxy.port, "old 7") in ("new", "expired")
        control = proxy.database.with_name("sessions.db.control")
        assert control.stat().st_mode & 0o777 == 0o600
        assert await proxy.stop() == 0
        assert not control.exists()
        assert "Traceback" not in proxy.log


async def test_a_purge_skips_sessions_in_use(tmp_path: Path) -> None:
    answers = [completion("a"), sse("b", "c", delay=1.0), completion("d"), completion("e")]
    async with (
        ScriptedUpstream(answers) as upstream,
        Proxy(upstream.base_url, tmp_path) as proxy,
        RawClient(proxy.port) as client,
    ):
        await say(proxy.port, "busy")
        body = {"messages": [{"role": "user", "content": "hello"}], "stream": True}
        await client.post("/v1/chat/completions", body, [("sessionId", "busy")])
        await eventually(lambda: len(upstream.requests) == 2)
        await say(proxy.port, "idle")  # its commit takes the sign of life of the other one along
        assert await db(proxy, "purge", "--older-than", "1ms") == (0, "1 sessions purged\n", "")
        await client.head()
        await client.body()
        await say(proxy.port, "busy")
        assert len(upstream.requests[-1].messages) == 5


async def test_a_purge_of_a_stopped_proxy_shrinks_the_file(tmp_path: Path) -> None:
    async with ScriptedUpstream(script) as upstream, Proxy(upstream.base_url, tmp_path) as proxy:
        await say(proxy.port, "old", SECRET_WORDS * 100_000)
        await proxy.kill()  # with its control socket left behind
        make_old(proxy.database)
        assert proxy.database.stat().st_size > 2_000_000
        code, output, errors = await db(proxy, "purge", "--older-than", "1d")
        assert (code, output, errors) == (0, "1 sessions purged\n", "")
        assert proxy.database.stat().st_size < 100_000 and traces(proxy.database.parent) == []
        await proxy.start()
        assert await say(proxy.port, "old") in ("new", "expired")


async def test_a_write_to_a_locked_database_names_the_process_that_holds_it(tmp_path: Path) -> None:
    async with ScriptedUpstream() as upstream, Proxy(upstream.base_url, tmp_path) as proxy:
        await say(proxy.port, "s")
        code, _, errors = await run("restore", "--config", str(proxy.config), str(tmp_path / "x"), folder=tmp_path)
        assert code == 1 and "is not a backup" in errors
        assert (await run("backup", "--config", str(proxy.config), str(tmp_path / "b"), folder=tmp_path))[0] == 0
        (made,) = (tmp_path / "b").iterdir()
        code, _, errors = await run("restore", "--config", str(proxy.config), str(made), folder=tmp_path)
        assert code == 1 and f"is in use by session-proxy, process {proxy.pid}. Stop it" in errors
        assert await say(proxy.port, "s") == "continued"
        await proxy.stop()
        lock = Lock(proxy.database)
        code, _, errors = await db(proxy, "purge", "--older-than", "1d")
        assert code == 1 and f"is in use by session-proxy, process {os.getpid()}" in errors
        lock.release()


async def test_db_check_prints_one_line_for_each_damage_and_exits_1(tmp_path: Path) -> None:
    async with ScriptedUpstream() as upstream, Proxy(upstream.base_url, tmp_path) as proxy:
        await say(proxy.port, "s")
        await proxy.stop()
        with closing(sqlite3.connect(proxy.database)) as connection:
            connection.execute("UPDATE sessions SET tip = 99")
            connection.commit()
        code, output, errors = await db(proxy, "check")
        assert (code, output) == (1, f"{proxy.database}: 1 sessions that stand at no turn\n")
        assert "restore a backup" in errors
        proxy.database.write_bytes(b"not a database\n" * 100)
        for verb, *options in (["check"], ["stats"], ["purge", "--older-than", "1d"]):
            code, output, errors = await db(proxy, verb, *options)
            assert (code, output, len(errors.splitlines())) == (1, "", 1)
            assert "file is not a database" in errors and "Traceback" not in errors


async def test_an_invalid_duration_exits_2(tmp_path: Path) -> None:
    async with ScriptedUpstream() as upstream:
        proxy = Proxy(upstream.base_url, tmp_path)
        for words in (["--older-than", "soon"], []):
            code, _, errors = await db(proxy, "purge", *words)
            assert code == 2 and "usage:" in errors


async def test_a_purge_works_in_a_deep_folder(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    async with (
        ScriptedUpstream() as upstream,
        Proxy(upstream.base_url, tmp_path, {"store": {"path": str(deep / "x.db")}}) as proxy,
    ):
        await say(proxy.port, "s")
        code, output, errors = await db(proxy, "purge", "--older-than", "1d")
        assert (code, output, errors) == (0, "0 sessions purged\n", "")
        assert (deep / "x.db.control").is_socket()


async def test_a_newer_schema_is_refused_by_every_command(tmp_path: Path) -> None:
    async with ScriptedUpstream() as upstream, Proxy(upstream.base_url, tmp_path) as proxy:
        await say(proxy.port, "s")
        await proxy.stop()
        with closing(sqlite3.connect(proxy.database)) as connection:
            connection.execute("PRAGMA user_version=7000")
        config = ("--config", str(proxy.config))
        for words in (
            ["serve", *config, "--listen", "127.0.0.1:0"],
            ["backup", *config, str(tmp_path / "made")],
            ["db", "check", *config],
            ["db", "stats", *config],
            ["db", "purge", *config, "--older-than", "1d"],
        ):
            code, output, errors = await run(*words, folder=tmp_path)
            assert (code, output) == (1, "")
            assert "has schema 7000; this program knows up to" in errors and "Install a newer version." in errors
            assert len([line for line in errors.splitlines() if line.startswith("session-proxy: ")]) == 1


async def test_without_its_control_socket_the_proxy_serves_and_a_purge_names_it(tmp_path: Path) -> None:
    (tmp_path / "session-proxy" / "sessions.db.control" / "in the way").mkdir(parents=True)
    async with ScriptedUpstream() as upstream, Proxy(upstream.base_url, tmp_path) as proxy:
        assert await say(proxy.port, "s") == "new"
        assert "commands cannot reach this proxy: Is a directory" in proxy.log
        code, _, errors = await db(proxy, "purge", "--older-than", "1d")
        assert code == 1 and f"is in use by session-proxy, process {proxy.pid}" in errors
        assert (await db(proxy, "check"))[0] == 0


async def test_errors_of_the_control_socket_reach_the_command(tmp_path: Path) -> None:
    """By whoever holds its socket, in the shape of all its errors."""
    async with ScriptedUpstream() as upstream, Proxy(upstream.base_url, tmp_path) as proxy:
        await say(proxy.port, "s")
        for method, path, said in (
            ("GET", "/purge", "POST /purge?idle=MS"),
            ("POST", "/sessions", "POST /purge?idle=MS"),
            ("POST", "/purge?idle=-1", "number of milliseconds"),
            ("POST", "/purge", "number of milliseconds"),
        ):
            with pytest.raises(StoreUnavailable, match=re.escape(said)):
                await asyncio.to_thread(ask, proxy.database, method, path)
        assert "Traceback" not in proxy.log


async def test_a_purge_as_root_keeps_the_owner_of_the_files(tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("only root makes files for others")
    async with ScriptedUpstream() as upstream, Proxy(upstream.base_url, tmp_path) as proxy:
        await say(proxy.port, "s")
        await proxy.kill()
        state = proxy.database.parent
        proxy.database.with_name("sessions.db.lock").unlink()
        for each in (state, *state.iterdir()):
            os.chown(each, 4711, 4712)
        for verb, *options in (["check"], ["purge", "--older-than", "1d"], ["stats"]):
            assert (await db(proxy, verb, *options))[0] == 0
            owners = {each.name: (each.stat().st_uid, each.stat().st_gid) for each in state.iterdir()}
            assert set(owners.values()) == {(4711, 4712)}, owners
        assert proxy.database.with_name("sessions.db.lock").exists()


async def test_a_state_folder_without_rights_is_named(tmp_path: Path) -> None:
    if not (setpriv := shutil.which("setpriv")) or os.geteuid():
        pytest.skip("this wants root, and setpriv (Debian: util-linux)")
    async with ScriptedUpstream() as upstream, Proxy(upstream.base_url, tmp_path) as proxy:
        await proxy.stop()
        os.chmod(proxy.database.parent, 0)  # which even root respects without these two capabilities
        words = [setpriv, "--bounding-set", "-dac_override,-dac_read_search", sys.executable, "-m", "proxy"]
        done = await asyncio.to_thread(
            subprocess.run,
            [*words, "db", "check", "--config", str(proxy.config)],
            cwd=ROOT,
            env={**os.environ, "XDG_STATE_HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1
        assert done.stderr == (
            f"session-proxy: Permission denied: {proxy.database}."
            " Run this as the proxy's user, or correct the permissions.\n"
        )
