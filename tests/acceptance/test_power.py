"""The end means it is kept: a power cut at any moment loses no turn whose end a client saw."""

from __future__ import annotations

import os
import random
import sqlite3
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from tests.support import acknowledged
from tests.support.acknowledged import Client, at_work
from tests.support.disk import Disk, Unavailable
from tests.support.fakes import ScriptedUpstream
from tests.support.process import Proxy

SOAK = bool(os.environ.get("SOAK"))
CUTS = 30 if SOAK else 3  # of each file system
CONTROL_CUTS = 40 if SOAK else 3  # of each, at most
CLIENTS = 8
CARELESS = "tests.support.careless"  # the proxy, but it does not sync its commits


@pytest.fixture(params=["ext4", "xfs"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Disk]:
    with ExitStack() as mounted:
        try:
            disk = mounted.enter_context(Disk(request.param, tmp_path))
        except Unavailable as reason:
            pytest.skip(str(reason))
        yield disk


def database(disk: Disk) -> Path:
    return disk.folder / "state" / "sessions.db"


def proxy_on(disk: Disk, upstream: ScriptedUpstream, program: str = "proxy") -> Proxy:
    """A proxy that has all but its store off the disk; even the store's folder is its own to make."""
    return Proxy(upstream.base_url, disk.folder.parent, {"store": {"path": str(database(disk))}}, program=program)


async def one_cut(disk: Disk, proxy: Proxy, number: int) -> list[Client]:
    """Clients at work, a power cut at a moment of chance, a restart on what the disk holds."""
    clients = [Client(f"cut {number} client {n}") for n in range(CLIENTS)]
    moment = random.Random(f"{disk.kind} {number}").uniform(0.1, 0.5)
    async with at_work(clients, proxy.port, moment):
        saw = [len(client.acknowledged) for client in clients]
        disk.cut()
    for client, count in zip(clients, saw, strict=True):
        # An fdatasync that meets the shutdown half-way reports success for what is gone, on ext4 and on XFS.
        # A real cut leaves nobody to see the end that follows; one that begins after it never comes.
        assert len(client.acknowledged) <= count + 1
        del client.acknowledged[count:]
    await proxy.kill()
    disk.remount()
    with closing(sqlite3.connect(f"{database(disk).as_uri()}?mode=ro", uri=True)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    await proxy.start()
    return clients


def seen(clients: list[Client]) -> int:
    """How many turns ended before their eyes."""
    return sum(len(client.acknowledged) for client in clients)


@pytest.mark.timeout(60 + CUTS * 10)
async def test_every_turn_whose_end_a_client_saw_survives(disk: Disk, capsys: pytest.CaptureFixture[str]) -> None:
    begun, before_cuts = time.monotonic(), 0
    clients: list[Client] = []
    lost: set[str] = set()
    async with ScriptedUpstream(acknowledged.script) as upstream, proxy_on(disk, upstream) as proxy:
        for number in range(CUTS):
            latest = await one_cut(disk, proxy, number)
            before_cuts += seen(latest)
            lost |= await acknowledged.lost(latest, proxy.port, upstream)
            clients += latest
        lost |= await acknowledged.lost(clients, proxy.port, upstream)  # no cut took from an earlier round either
        assert await proxy.stop() == 0
        assert "Traceback" not in proxy.log
    figures = f"{CUTS} cuts, {before_cuts} turns acknowledged, {len(lost)} lost, {time.monotonic() - begun:.0f} s"
    with capsys.disabled():
        print(f"\npower cut, {disk.kind}: {figures}")
    assert not lost
    assert before_cuts > CLIENTS * CUTS  # else the cuts came too early to say anything


@pytest.mark.timeout(60 + CONTROL_CUTS * 10)
async def test_the_power_test_detects_a_store_that_does_not_sync(
    disk: Disk, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same with a store that does not sync, until a cut takes something."""
    lost: set[str] = set()
    async with ScriptedUpstream(acknowledged.script) as upstream, proxy_on(disk, upstream, CARELESS) as proxy:
        for number in range(CONTROL_CUTS):
            clients = await one_cut(disk, proxy, number)
            before_cut = seen(clients)
            if lost := await acknowledged.lost(clients, proxy.port, upstream):
                break
    with capsys.disabled():
        print(f"\npower cut, {disk.kind}, not synced: cut {number + 1}, {before_cut} acknowledged, {len(lost)} lost")
    if not lost and not SOAK:
        pytest.skip("chance: the few cuts of the gate took nothing")
    assert lost
