"""A backup is one moment of the database and its secret; a restore is whole, or refused at the next start."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from proxy.core.model import SessionKey
from proxy.errors import StoreLocked, StoreUnavailable
from proxy.stores.secret import load_secret, secret_path
from proxy.stores.sqlite.backup import NAME, back_up, prune, restore
from proxy.stores.sqlite.lock import Lock
from proxy.stores.sqlite.migration import steps
from proxy.stores.sqlite.store import SQLiteStore
from tests.stores.conftest import TTL, A, B, answer, full_disk, turn, turns

ROOT = Path(__file__).parents[2]
OLD, NEW = bytes(range(32)), bytes(range(32, 64))
KILLED = """
import os, pathlib, signal, sys
from proxy.stores.sqlite import backup
left = int(sys.argv[4])
def hook(event, arguments):
    global left
    if event in ("open", "os.link", "os.mkdir", "os.remove", "os.rename", "sqlite3.connect"):
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(hook)
backup.restore(*map(pathlib.Path, sys.argv[1:4]), lambda done, whole: None)
"""


def quiet(done: int, whole: int) -> None:
    """For those who do not watch."""


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


async def make(path: Path, secret: bytes, *texts: str) -> None:
    """A database with a session of these turns, and its secret."""
    store = await SQLiteStore.open(path, TTL)
    await store.append(A, turns(*texts), 0, answer=answer())
    await store.close()
    load_secret(path, secret)


async def holds(path: Path) -> tuple[list[str], bytes]:
    """What whoever starts here finds; ValueError where a start would be refused."""
    store = await SQLiteStore.open(path, TTL)
    try:
        secret = load_secret(path, None if store.holds_turns else bytes(32))
        return [one.id.removeprefix("turn_") for one in (await store.load(A, 0)).history.turns], secret
    finally:
        await store.close()


def spoil(path: Path) -> None:
    """Every page of a table overwritten, as a failing disk does it."""
    data = path.read_bytes()
    path.write_bytes(data[:4096] + b"\xa5" * (len(data) - 4096))


# Backup --------------------------------------------------------------------------------------


async def test_what_is_written_meanwhile_neither_enters_the_copy_nor_begins_it_anew(
    path: Path, sqlite: SQLiteStore, tmp_path: Path
) -> None:
    load_secret(path, OLD)
    await sqlite.append(A, [turn("1", reply=b"x" * 4_000_000)], 0)
    loop, seen = asyncio.get_running_loop(), []

    def progress(done: int, whole: int) -> None:
        seen.append((done, whole))
        assert len(seen) < 100
        key = SessionKey(b"t", str(len(seen)))
        asyncio.run_coroutine_threadsafe(sqlite.append(key, [turn("2", reply=b"y" * 9000)], 0), loop).result(5)

    await asyncio.to_thread(back_up, path, tmp_path / "made", progress)
    assert len(seen) > 3 and seen == sorted(set(seen)) and seen[-1][0] == seen[-1][1]
    with closing(sqlite3.connect(tmp_path / "made" / NAME)) as copy:
        assert copy.execute("SELECT name FROM turns").fetchall() == [("turn_1",)]


@pytest.mark.usefixtures("careless_umask")
async def test_its_owner_alone_reads_it_and_from_a_disk_that_nobody_writes_to(path: Path, tmp_path: Path) -> None:
    await make(path, OLD, "1")
    made = tmp_path / "backups" / "made"
    back_up(path, made, quiet)
    assert {each.name: mode(each) for each in made.iterdir()} == {NAME: 0o600, NAME + ".secret": 0o600}
    assert (mode(made), mode(made.parent)) == (0o700, 0o700)
    with closing(sqlite3.connect(f"{(made / NAME).as_uri()}?mode=ro&immutable=1", uri=True)) as copy:
        assert copy.execute("PRAGMA journal_mode").fetchone() == ("delete",)
        assert copy.execute("SELECT name FROM turns").fetchall() == [("turn_1",)]
    assert [each.name for each in made.parent.iterdir()] == ["made"]


async def refused(path: Path, made: Path, sentence: str, error: type[Exception] = StoreUnavailable) -> None:
    with pytest.raises(error, match=sentence):
        back_up(path, made, quiet)
    assert not made.parent.exists() or [each for each in made.parent.iterdir() if each != path.parent] == []


async def test_what_cannot_be_backed_up_is_named_and_leaves_nothing(path: Path, tmp_path: Path) -> None:
    made = tmp_path / "backups" / "made"
    await refused(path, made, r"There is no database at .*sessions\.db\. Start the proxy once, or name")
    await make(path, OLD, "1")
    secret_path(path).unlink()
    await refused(path, made, r"sessions\.db\.secret is missing", ValueError)
    load_secret(path, OLD)
    with full_disk(path.stat().st_size - 1):
        await refused(path, made, r"Cannot copy .*sessions\.db to .*: .*\. Check that disk\.")
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version=7000")
    await refused(path, made, f"has schema 7000; this program knows up to {len(steps())}. Install a newer version")
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("DROP TABLE turns")
    await refused(path, made, r"sessions\.db is not a database of the proxy\. Check store\.path\.")
    path.write_bytes(b"not a database\n" * 100)
    await refused(path, made, r"Cannot read the database .*: file is not a database\. Check its permissions")


async def test_a_damaged_database_makes_no_backup(path: Path, tmp_path: Path) -> None:
    await make(path, OLD, *map(str, range(50)))
    spoil(path)
    await refused(path, tmp_path / "backups" / "made", "damaged|malformed")


async def test_one_that_is_interrupted_leaves_nothing(path: Path, tmp_path: Path) -> None:
    await make(path, OLD, "1")

    def interrupt(done: int, whole: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        back_up(path, tmp_path / "backups" / "made", interrupt)
    assert list((tmp_path / "backups").iterdir()) == []


async def test_a_backup_is_never_written_over(path: Path, tmp_path: Path) -> None:
    await make(path, OLD, "1")
    back_up(path, tmp_path / "made", quiet)
    with pytest.raises(StoreUnavailable, match="exists already"):
        back_up(path, tmp_path / "made", quiet)


def test_the_newest_stay_and_so_does_what_is_no_backup(tmp_path: Path) -> None:
    names = [f"2026-11-{day:02}T030000Z" for day in range(1, 6)]
    killed, running = ".2026-11-02T040000Z.part", ".2026-11-04T040000Z.part"
    assert prune(tmp_path, 2) == []
    for name in [*names, "2026-11-01", "notes", killed, running]:
        (tmp_path / name).mkdir()
    assert [each.name for each in prune(tmp_path, 2)] == [killed, *names[:3]]
    assert sorted(each.name for each in tmp_path.iterdir()) == [running, "2026-11-01", *names[3:], "notes"]
    assert prune(tmp_path, 2) == prune(tmp_path, 9) == []


# Restore -------------------------------------------------------------------------------------


async def test_it_comes_back_where_nothing_was(path: Path, tmp_path: Path) -> None:
    await make(tmp_path / "other" / "any.db", OLD, "1", "2")
    back_up(tmp_path / "other" / "any.db", tmp_path / "made", quiet)
    assert not restore(tmp_path / "made", path, tmp_path / "aside", quiet)
    assert await holds(path) == (["1", "2"], OLD)
    assert {mode(each) for each in path.parent.iterdir()} == {0o600}
    assert not (tmp_path / "aside").exists()


async def test_what_it_replaces_is_a_backup_itself(path: Path, tmp_path: Path) -> None:
    await make(path, OLD, "1", "2")
    back_up(path, tmp_path / "made", quiet)
    for file in (path, secret_path(path)):
        file.unlink()
    await make(path, NEW, "3")
    assert restore(tmp_path / "made", path, tmp_path / "aside", quiet)
    assert await holds(path) == (["1", "2"], OLD)
    assert mode(tmp_path / "aside") == 0o700
    assert restore(tmp_path / "aside", path, tmp_path / "again", quiet)
    assert await holds(path) == (["3"], NEW)


async def test_while_somebody_writes_nothing_is_restored(path: Path, tmp_path: Path) -> None:
    await make(path, OLD, "1")
    back_up(path, tmp_path / "made", quiet)
    lock = Lock(path)
    with pytest.raises(StoreLocked, match="in use by session-proxy, process"):
        restore(tmp_path / "made", path, tmp_path / "aside", quiet)
    lock.release()
    assert await holds(path) == (["1"], OLD)


async def test_a_damaged_database_and_its_log_are_replaced_and_kept(path: Path, tmp_path: Path) -> None:
    """A log that outlived its database would be played into the next one."""
    await make(path, OLD, "1")
    back_up(path, tmp_path / "made", quiet)
    store = await SQLiteStore.open(path, TTL)
    await store.append(B, [turn("later", reply=b"x" * 100_000)], 0)
    log = path.with_name(path.name + "-wal")
    written = log.read_bytes()
    await store.close()
    log.write_bytes(written)
    path.write_bytes(b"not a database\n" * 1000)
    assert restore(tmp_path / "made", path, tmp_path / "aside", quiet)
    assert await holds(path) == (["1"], OLD)
    assert b"x" * 1000 in b"".join([each.read_bytes() for each in (tmp_path / "aside").iterdir()])


async def test_a_reader_that_keeps_the_old_log_does_not_bring_it_into_the_new_database(
    path: Path, tmp_path: Path
) -> None:
    await make(path, OLD, "1")
    back_up(path, tmp_path / "made", quiet)
    store = await SQLiteStore.open(path, TTL)
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT name FROM turns").fetchall()
        await store.append(A, [turn("2", turn("1"))], 0)
        await store.close()
        assert path.with_name(path.name + "-wal").stat().st_size
        restore(tmp_path / "made", path, tmp_path / "aside", quiet)
        assert await holds(path) == (["1"], OLD)
        assert reader.execute("SELECT name FROM turns").fetchall() == [("turn_1",)]
    restore(tmp_path / "aside", path, tmp_path / "again", quiet)
    assert await holds(path) == (["1", "2"], OLD)


async def test_what_is_no_backup_changes_nothing(path: Path, tmp_path: Path) -> None:
    await make(path, OLD, "1")
    back_up(path, tmp_path / "made", quiet)
    kept = sorted(path.parent.iterdir())

    def refuses(sentence: str, error: type[Exception] = StoreUnavailable) -> None:
        with pytest.raises(error, match=sentence):
            restore(tmp_path / "made", path, tmp_path / "aside", quiet)

    with full_disk(10_000):
        refuses("Check that disk")
    secret_path(tmp_path / "made" / NAME).rename(tmp_path / "secret")
    refuses("secret is missing", ValueError)
    (tmp_path / "secret").rename(secret_path(tmp_path / "made" / NAME))
    with closing(sqlite3.connect(tmp_path / "made" / NAME)) as connection:
        connection.execute("PRAGMA user_version=7000")
    refuses("schema 7000; this program knows up to")
    with closing(sqlite3.connect(tmp_path / "made" / NAME)) as connection:
        connection.execute(f"PRAGMA user_version={len(steps())}")
    spoil(tmp_path / "made" / NAME)
    refuses("damaged|malformed|no database")
    (tmp_path / "made" / NAME).unlink()
    refuses(r"is not a backup: it has no sessions\.db\. Name a folder that the command backup wrote\.")
    assert sorted(path.parent.iterdir()) == kept
    assert await holds(path) == (["1"], OLD)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes files for others")
async def test_what_root_leaves_beside_a_database_belongs_to_its_owner(path: Path, tmp_path: Path) -> None:
    """SQLite makes a log and its index for those who read, too: the proxy could not open those of root."""
    await make(path, OLD, "1")
    for each in (path.parent, *path.parent.iterdir()):
        os.chown(each, 4711, 4712)
    back_up(path, tmp_path / "made", quiet)
    assert {(each.stat().st_uid, each.stat().st_gid) for each in path.parent.iterdir()} == {(4711, 4712)}
    assert path.with_name(path.name + "-wal").exists()
    assert {each.stat().st_uid for each in (tmp_path / "made").iterdir()} == {0}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes files for others")
async def test_what_root_restores_belongs_to_whom_the_folder_belongs(path: Path, tmp_path: Path) -> None:
    await make(tmp_path / "other.db", OLD, "1")
    back_up(tmp_path / "other.db", tmp_path / "made", quiet)
    path.parent.mkdir()
    os.chown(path.parent, 4711, 4712)
    for n in range(2):
        restore(tmp_path / "made", path, path.parent / f"aside {n}", quiet)
    owners = {each.name: (each.stat().st_uid, each.stat().st_gid) for each in path.parent.iterdir()}
    assert owners == dict.fromkeys([NAME, "aside 1", *(NAME + name for name in (".secret", ".lock"))], (4711, 4712))


async def test_killed_at_any_step_it_is_old_or_new_or_refused_and_can_be_done_again(tmp_path: Path) -> None:
    origin = tmp_path / "origin" / NAME
    await make(tmp_path / "new" / NAME, NEW, "new")
    back_up(tmp_path / "new" / NAME, tmp_path / "made", quiet)
    await make(origin, OLD, "old")
    seen = []
    for number in range(100):
        state = tmp_path / f"state {number}"
        shutil.copytree(origin.parent, state)
        arguments = [str(tmp_path / "made"), str(state / NAME), str(state / "aside"), str(number)]
        done = subprocess.run([sys.executable, "-c", KILLED, *arguments], cwd=ROOT, check=False, timeout=30)
        try:
            seen.append((await holds(state / NAME))[0])
            assert (await holds(state / NAME)) in ((["old"], OLD), (["new"], NEW))
        except ValueError:
            seen.append([])  # refused
        restore(tmp_path / "made", state / NAME, state / "aside 2", quiet)
        assert await holds(state / NAME) == (["new"], NEW)
        if done.returncode == 0:
            break
    assert [each for n, each in enumerate(seen) if each not in seen[:n]] == [["old"], [], ["new"]]
    assert len(seen) > 10
