"""A migration is whole or not at all: killed at any statement, the database is of one schema, with all in it."""

from __future__ import annotations

import shutil
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
# The store opens the database itself; SQLite tells each statement before it runs.
KILLED = """
import asyncio, os, pathlib, signal, sys
from proxy.stores.sqlite import store as sqlite
left = int(sys.argv[2])
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
async def main():
    await (await sqlite.SQLiteStore.open(pathlib.Path(sys.argv[1]), 1000)).close()
asyncio.run(main())
print(int(sys.argv[2]) - left)
"""


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
    for at in range(200):
        path = tmp_path / f"killed {at}.db"
        shutil.copy(origin, path)
        done = subprocess.run(
            [sys.executable, "-c", KILLED, str(path), str(at)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )
        found, made = schema(path)
        assert made == whole[found], f"killed before statement {at}"
        seen.add(found)
        store = await SQLiteStore.open(path, TTL)
        for n in range(1, SESSIONS + 1) if version else ():
            (turn,) = (await store.load(SessionKey(b"t", str(n)), 0)).history.turns
            assert (turn.id, turn.asked[0].raw) == (f"turn_{n}", b'{"role":"user","content":"%d"}' % n)
        await store.close()
        assert schema(path) == (len(steps()), whole[len(steps())])
        if done.returncode == 0:
            break
        assert done.returncode == -9, done.stderr
    assert at == int(done.stdout) > 8  # each of them was the last one once
    assert seen == set(range(version, len(steps()) + 1))
