"""A backup taken under load is the sessions as they were at one moment, and brings them back."""

from __future__ import annotations

import os
import random
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.acknowledged import Client, at_work, script
from tests.support.fakes import RawClient, ScriptedUpstream
from tests.support.process import Proxy, run

ROUNDS = 50 if os.environ.get("SOAK") else 5
CLIENTS = 8
WEIGHT = 3_000_000  # bytes of a message in each of the sessions that make the copy take a moment


@dataclass
class Model:
    """What a client's session may be in a backup: what it saw end before the backup began is in it, what it sent
    after the backup ended is not."""

    client: Client
    least: int
    sent: list[str]
    kept: int | None = None  # once it is known

    def check(self, remembered: list[str]) -> None:
        """Held against what the upstream receives with the next turn; that one is the last."""
        *history, latest = remembered
        assert history == self.sent[: len(history)]
        assert self.least <= len(history) <= len(self.sent)
        assert self.kept in (None, len(history))
        self.sent, self.kept = [*history, latest], len(history) + 1


async def make_heavy(port: int) -> None:
    async with RawClient(port) as client:
        for n in range(5):
            body = {"messages": [{"role": "user", "content": f"{n}" * WEIGHT}]}
            await client.post("/v1/chat/completions", body, [("sessionId", f"heavy {n}")])
            assert (await client.head()).status == 200
            await client.body()


async def backed_up(proxy: Proxy, clients: list[Client], chance: random.Random) -> tuple[Path, list[Model], int]:
    """A backup while clients work; and how many turns ended beside it. The proxy is killed then."""
    async with at_work(clients, proxy.port, chance.uniform(0.02, 0.2)):
        least = [len(client.acknowledged) for client in clients]
        code, output, errors = await run(
            *("backup", "--config", str(proxy.config), str(proxy.folder / "backups"), "--keep", "1"),
            folder=proxy.folder,
        )
        assert (code, errors) == (0, "")
        models = [Model(client, n, list(client.sent)) for client, n in zip(clients, least, strict=True)]
        beside = sum(len(client.acknowledged) for client in clients) - sum(least)
        await proxy.kill()
    return Path(output.strip()), models, beside


@pytest.mark.timeout(60 + ROUNDS * 20)
async def test_a_backup_under_load_is_one_moment_of_all_sessions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begun, chance, beside = time.monotonic(), random.Random(7), 0
    models: list[Model] = []
    async with ScriptedUpstream(script) as upstream, Proxy(upstream.base_url, tmp_path) as proxy:
        await make_heavy(proxy.port)
        for number in range(ROUNDS):
            clients = [Client(f"round {number} client {n}") for n in range(CLIENTS)]
            folder, latest, ended = await backed_up(proxy, clients, chance)
            beside += ended
            code, output, errors = await run("restore", "--config", str(proxy.config), str(folder), folder=tmp_path)
            assert (code, errors) == (0, "") and f"Restored {proxy.database}." in output
            await proxy.start()
            models += latest
            for model in [*latest, *chance.sample(models, 4)]:
                model.check(await model.client.remembered(proxy.port, upstream))
        assert len(list((tmp_path / "backups").iterdir())) == 1
        assert len(list(proxy.database.parent.glob("replaced-*"))) == ROUNDS
        assert "Traceback" not in proxy.log
    with capsys.disabled():
        took = f"{time.monotonic() - begun:.0f} s"
        print(f"\nbackup under load: {ROUNDS} rounds, {beside} turns ended beside the copies, {took}")
    assert beside > ROUNDS  # else the copies were made in a moment without load
