"""What systemd is told over time, against a real datagram socket."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from proxy.service.status import Status


class Told:
    """The other end of $NOTIFY_SOCKET."""

    def __init__(self, path: Path) -> None:
        self.environ = {"NOTIFY_SOCKET": str(path)}
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.setblocking(False)

    def all(self) -> list[str]:
        """What was said since the last look."""
        said = []
        try:
            while True:
                said.append(self._socket.recv(4096).decode())
        except BlockingIOError:
            return said

    async def next(self) -> str:
        return (await asyncio.wait_for(asyncio.get_running_loop().sock_recv(self._socket, 4096), 5)).decode()

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def told(tmp_path: Path) -> Iterator[Told]:
    told = Told(tmp_path / "notify")
    yield told
    told.close()


def test_each_state_comes_with_what_the_process_does(told: Told) -> None:
    in_flight = 0
    status = Status(lambda: in_flight, told.environ, 7)
    status.ready()
    in_flight, status.fault = 2, "no file"
    status.ready()
    status.stopping(45.5)
    assert told.all() == [
        "READY=1\nSTATUS=serving, nothing in flight",
        "READY=1\nSTATUS=serving, 2 in flight; no file",
        "STOPPING=1\nEXTEND_TIMEOUT_USEC=45500000\nSTATUS=stopping, 2 in flight; no file",
    ]


async def test_only_changed_status_lines_are_sent(told: Told) -> None:
    in_flight = 0
    status = Status(lambda: in_flight, told.environ, 7)
    status.ready()
    keeping = asyncio.create_task(status.keep(0.01))
    await asyncio.sleep(0.1)
    assert len(told.all()) == 1
    in_flight = 3
    assert await told.next() == "STATUS=serving, 3 in flight"
    await asyncio.sleep(0.1)
    assert told.all() == []
    keeping.cancel()


async def test_the_watchdog_is_fed_well_within_its_interval(told: Told) -> None:
    status = Status(lambda: 0, {**told.environ, "WATCHDOG_USEC": "300000"}, 7)
    loop, keeping = asyncio.get_running_loop(), asyncio.create_task(status.keep())
    begun, signs = loop.time(), 0
    while loop.time() < begun + 1:
        signs += (await told.next()).startswith("WATCHDOG=1")
    assert signs >= 5
    keeping.cancel()


async def test_a_hanging_loop_does_not_feed_the_watchdog(told: Told) -> None:
    status = Status(lambda: 0, {**told.environ, "WATCHDOG_USEC": "100000"}, 7)
    keeping = asyncio.create_task(status.keep())
    assert await told.next()
    told.all()
    time.sleep(0.3)  # in the loop's own thread
    assert told.all() == []
    keeping.cancel()
