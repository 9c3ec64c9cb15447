"""One process in the world writes to a database, and who it is can be read."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from proxy.errors import StoreLocked
from proxy.stores.sqlite.lock import Lock
from tests.stores.conftest import full_disk

HOLD = """
import sys, pathlib
from proxy.stores.sqlite.lock import Lock
lock = Lock(pathlib.Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""
ROOT = Path(__file__).parents[2]


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "sessions.db"


def test_a_second_one_is_refused_with_the_name_of_the_first(database: Path) -> None:
    lock = Lock(database)
    with pytest.raises(StoreLocked) as refused:
        Lock(database)
    assert str(refused.value) == (
        f"{database} is in use by session-proxy, process {os.getpid()}. "
        "Stop it, or set another store.path for this proxy."
    )
    lock.release()
    Lock(database).release()


def test_the_lock_goes_with_its_process_however_it_ends(database: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(database)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout and holder.stdout.readline() == b"held\n"
        with pytest.raises(StoreLocked, match=f"process {holder.pid}"):
            Lock(database)
        holder.kill()
        holder.wait(10)
    Lock(database).release()


def test_a_child_does_not_inherit_the_lock(database: Path) -> None:
    lock = Lock(database)
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, close_fds=False):
        lock.release()
        Lock(database).release()


def test_a_file_left_behind_is_no_obstacle_and_its_words_are_gone(database: Path) -> None:
    left = database.with_name("sessions.db.lock")
    left.write_text("session-proxy, process 4194304, and more words than ours\n")
    lock = Lock(database)
    assert left.read_text() == f"session-proxy, process {os.getpid()}\n"
    lock.release()


def test_a_holder_that_has_not_signed_yet_is_another_process(database: Path) -> None:
    lock = Lock(database)
    os.truncate(database.with_name("sessions.db.lock"), 0)
    with pytest.raises(StoreLocked, match="in use by another process"):
        Lock(database)
    lock.release()


def test_a_link_leads_to_the_same_lock(database: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.db"
    link.symlink_to(database)
    lock = Lock(database)
    with pytest.raises(StoreLocked):
        Lock(link)
    lock.release()


def test_a_lock_that_cannot_be_signed_is_not_held(database: Path) -> None:
    with full_disk(0), pytest.raises(OSError, match="File too large"):
        Lock(database)
    Lock(database).release()
