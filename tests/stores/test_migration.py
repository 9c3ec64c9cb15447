"""A migration is whole or not at all: killed at any statement, the database is of one schema, with all in it."""

from __future__ import annotations

import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from proxy.core.model import SessionKey
from proxy.stores.sqlite.migration import steps
from proxy.stores.sqlite.store import SQLiteStore
from tests.stores.conftest import TTL

ROOT = Path(__file__).parents[2]
SESSIONS = 50
# The store opens the database itself; SQLite tells each statement before it runs. For each database and number that it
# reads it forks a process of its own, which is killed, or says how many statements there were.
KILLED = """
import asyncio, os, pathlib, signal, sys
from proxy.stores.sqlite import store as sqlite
def told(statement):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
class Traced(sqlite.GroupCommitConnection):
    def __init__(self, *arguments, **more):
        super().__init__(*arguments, **more)
        self.set_trace_callback(told)
sqlite.GroupCommitConnection = Traced
async def main(path):
    await (await sqlite.SQLiteStore.open(pathlib.Path(path), 1000)).close()
for line in sys.stdin:
    path, at = line.rstrip().rsplit(" ", 1)
    left = int(at)
    if child := os.fork():
        print("ended", os.waitpid(child, 0)[1], flush=True)
        continue
    asyncio.run(main(path))
    print(int(at) - left, flush=True)
    os._exit(0)
"""


class Forks:
    """The program above, started once for many databases."""

    def __init__(self) -> None:
        command = [sys.executable, "-c", KILLED]
        self._process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Forks:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def open(self, path: Path, at: int) -> int | None:
        """How many statements it takes to open a database; None where it was killed before statement `at`."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(f"{path} {at}\n")
        self._process.stdin.flush()
        said = [self._process.stdout.readline()]
        while said[-1] and not said[-1].startswith("ended "):
            said.append(self._process.stdout.readline())
        status = int(said[-1].removeprefix("ended "))
        assert status in (0, signal.SIGKILL), said
        return int(said[0]) if status == 0 else None


def schema(path: Path) -> tuple[int, list[Any]]:
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        made = connection.execute("SELECT name, sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY name").fetchall()
        return version, made


def make(path: Path, version: int) -> None:
    """A database as the version of that schema left it, in WAL mode, with sessions where it has a table for them."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        for number, step in enumerate(steps()[:version], 1):
            connection.executescript(f"BEGIN; {step} PRAGMA user_version={number}; COMMIT;")
        for n in range(1, SESSIONS + 1) if version else ():
            connection.execute(
                "INSERT INTO sessions (id, tenant, session, tip, touched) VALUES (?, x'74', ?, ?, 0)", (n, str(n), n)
            )
            connection.execute(
                "INSERT INTO turns (id, session, name, state, asked, roles, reply, echo, started, ended)"
                " VALUES (?, ?, ?, 'complete', ?, '[\"user\"]', ?, ?, 0, 0)",
                (n, n, f"turn_{n}", b'[{"role":"user","content":"%d"}]' % n, b"{}", b"{}"),
            )
        connection.commit()


@pytest.mark.parametrize("version", range(len(steps())))
async def test_killed_at_any_statement_it_is_old_or_new(tmp_path: Path, version: int) -> None:
    whole: dict[int, list[Any]] = {}
    for number in range(version, len(steps()) + 1):
        make(path := tmp_path / f"whole {number}.db", number)
        whole[number] = schema(path)[1]
    make(origin := tmp_path / "old.db", version)
    seen: set[int] = set()
    with Forks() as forks:
        for at in range(200):
            path = tmp_path / f"killed {at}.db"
            shutil.copy(origin, path)
            opened = forks.open(path, at)
            seen.add(is_whole(path, at, whole))
            await goes_on(path, version, whole)
            if opened is not None:
                break
    assert at == opened and at > 8  # each of them was the last one once
    assert seen == set(range(version, len(steps()) + 1))


def is_whole(path: Path, at: int, whole: dict[int, list[Any]]) -> int:
    """The schema that is there, all of it."""
    found, made = schema(path)
    assert made == whole[found], f"killed before statement {at}"
    return found


async def goes_on(path: Path, version: int, whole: dict[int, list[Any]]) -> None:
    """The database is opened, has the newest schema and all that was in it."""
    store = await SQLiteStore.open(path, TTL)
    for n in range(1, SESSIONS + 1) if version else ():
        (turn,) = (await store.load(SessionKey(b"t", str(n)), 0)).history.turns
        assert (turn.id, turn.asked[0].raw) == (f"turn_{n}", b'{"role":"user","content":"%d"}' % n)
    await store.close()
    assert schema(path) == (len(steps()), whole[len(steps())])
