"""The end means it is kept: kill -9 at any moment loses no turn whose end a client saw."""

from __future__ import annotations

import json
import os
import random
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest

from tests.support.acknowledged import Client, at_work, said, script
from tests.support.fakes import RawClient, ScriptedUpstream
from tests.support.process import Proxy

ROUNDS = 100 if os.environ.get("SOAK") else 10
CLIENTS = 8
WALK = """
WITH RECURSIVE line (id, parent) AS (
    SELECT t.id, t.parent FROM turns t JOIN sessions s ON s.tip = t.id WHERE s.session = ?
    UNION ALL SELECT t.id, t.parent FROM turns t JOIN line ON t.id = line.parent
)
SELECT asked, reply FROM turns WHERE id IN (SELECT id FROM line) ORDER BY id
"""


async def remembered(port: int, session: str) -> list[str]:
    """What the next request of a session would carry."""
    async with RawClient(port) as client:
        headers = [("sessionId", session), ("x-session-dry-run", "yes")]
        await client.post("/v1/chat/completions", {"messages": []}, headers)
        assert (await client.head()).status == 200
        plan = json.loads(await client.body())
    return said(json.loads(plan["body"])["messages"])


def lost_on_disk(database: Path, clients: list[Client]) -> set[str]:
    """The same through the eyes of a stranger, for all sessions of all rounds."""
    with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        lost: set[str] = set()
        for client in clients:
            rows = connection.execute(WALK, (client.session,)).fetchall()
            lost |= client.lost(said([json.loads(m) for asked, reply in rows for m in (asked[1:-1], reply)]))
        return lost


async def one_round(proxy: Proxy, number: int, moment: float) -> list[Client]:
    """Clients at work, a kill, a restart."""
    clients = [Client(f"round {number} client {n}") for n in range(CLIENTS)]
    async with at_work(clients, proxy.port, moment):
        await proxy.kill()
    await proxy.start()
    return clients


@pytest.mark.timeout(ROUNDS * 10)
async def test_every_turn_whose_end_a_client_saw_survives(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    begun, chance = time.monotonic(), random.Random(20)
    clients: list[Client] = []
    lost: set[str] = set()
    async with ScriptedUpstream(script) as upstream, Proxy(upstream.base_url, tmp_path) as proxy:
        for number in range(ROUNDS):
            latest = await one_round(proxy, number, chance.uniform(0.02, 0.3))
            for client in latest:
                lost |= client.lost(await remembered(proxy.port, client.session))
            clients += latest
        lost |= lost_on_disk(proxy.database, clients)
        assert await proxy.stop() == 0
        assert "Traceback" not in proxy.log
    acknowledged = sum(len(client.acknowledged) for client in clients)
    figures = f"{ROUNDS} rounds, {acknowledged} turns acknowledged, {len(lost)} lost, {time.monotonic() - begun:.0f} s"
    with capsys.disabled():
        print(f"\nkill -9: {figures}")
    assert not lost
    assert acknowledged > 2 * ROUNDS  # else the kills came too early to say anything
