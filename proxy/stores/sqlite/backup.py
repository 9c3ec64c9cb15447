"""Copies a database and its secret while it is written to, and restores such a copy.

A backup is a folder that only its owner can read: the database as one file, as it was at one moment, and its secret. No
clock: names of folders are arguments.
"""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

from proxy.errors import StoreUnavailable
from proxy.stores.secret import load_secret, secret_path
from proxy.stores.sqlite.files import hand_over, no_space, sync
from proxy.stores.sqlite.lock import Lock
from proxy.stores.sqlite.snapshot import snapshot

NAME = "sessions.db"  # in a backup, whatever store.path says
STAMP = "%Y-%m-%dT%H%M%SZ"  # how a backup in a folder of backups is named, in UTC
STEP = 256  # pages between two signs of progress
_STAMPED = re.compile(r"\.?(\d{4}-\d\d-\d\dT\d{6}Z)(?:\.part)?")

Progress = Callable[[int, int], None]  # pages done, pages in all


def back_up(database: Path, folder: Path, progress: Progress) -> None:
    """Make `folder` a backup, checked and durable on return; where it fails there is no such folder.

    Whoever writes to the database goes on; its log grows meanwhile. Raises StoreUnavailable, ValueError for a
    missing secret, OSError.
    """
    with snapshot(database):  # whether there is something to back up
        secret = load_secret(database, None)
    folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.exists():
        raise StoreUnavailable(f"{folder} exists already. Wait a second, or choose another folder.")
    draft = folder.with_name(f".{folder.name}.part")
    draft.mkdir(mode=0o700)
    try:
        _copy(database, draft / NAME, progress)
        load_secret(draft / NAME, secret)
        if load_secret(database, None) != secret:
            raise StoreUnavailable("A backup was restored at the same time. Run the backup again.")
        draft.rename(folder)
        sync(folder.parent)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def prune(folder: Path, keep: int) -> list[Path]:
    """Remove all but the newest `keep` backups that lie in a folder under their stamps, and what older ones left
    that were killed; what was removed."""
    made = {each: found[1] for each in folder.iterdir() if (found := _STAMPED.fullmatch(each.name))}
    whole = sorted([stamp for each, stamp in made.items() if each.name == stamp])
    oldest = min(whole[-keep:], default="")
    gone = sorted([each for each, stamp in made.items() if stamp < oldest])
    for each in gone:
        shutil.rmtree(each)
    return gone


def restore(folder: Path, database: Path, aside: Path, progress: Progress) -> bool:
    """Put a backup in the place of a database that nobody writes to; whether there was one, which is then in
    `aside`, itself a backup.

    Killed at any moment, what is there is the old one, the new one, or a database without its secret, which is
    refused at start; the same restore then ends it. Raises StoreLocked while the proxy runs, StoreUnavailable,
    ValueError for a missing secret, OSError.
    """
    if not (folder / NAME).is_file():
        raise StoreUnavailable(
            f"{folder} is not a backup: it has no {NAME}. Name a folder that the command backup wrote."
        )
    secret = load_secret(folder / NAME, None)
    database.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = Lock(database)
    try:
        place = database.resolve()
        draft = place.with_name(place.name + ".restored")
        draft.unlink(missing_ok=True)
        try:
            _copy(folder / NAME, draft, progress)
            hand_over(draft)
            there = _put_aside(place, secret_path(database), aside)
            # Without its secret a database is refused: from here to the end nobody can take a half for the whole.
            for path in (secret_path(database), *_logs(place)):
                path.unlink(missing_ok=True)
            sync(place.parent)
            draft.rename(place)
            load_secret(database, secret)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
    finally:
        lock.release()
    return there


def _copy(source: Path, target: Path, progress: Progress) -> None:
    """One moment of a database as one file, checked and durable."""
    os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    with snapshot(source) as reader:  # in a transaction: else each commit beside it would begin the copy anew
        try:
            with closing(sqlite3.connect(target, isolation_level=None)) as copy:
                copy.execute("PRAGMA synchronous=OFF")  # once at the end is enough
                reader.backup(copy, pages=STEP, progress=lambda _, left, pages: progress(pages - left, pages))
                copy.execute("PRAGMA journal_mode=DELETE")  # what needs no log can be read from a read-only disk
                ((said, *_),) = copy.execute("PRAGMA integrity_check(1)").fetchall()
        except sqlite3.Error as error:
            if error.sqlite_errorcode == sqlite3.SQLITE_CORRUPT:
                raise  # it is the source then
            say = no_space(target) or "Check that disk."
            raise StoreUnavailable(f"Cannot copy {source} to {target.parent}: {error}. {say}") from error
    if said != "ok":
        raise StoreUnavailable(f"The database {source} is damaged: {said}. Restore an older backup.")
    sync(target)


def _put_aside(database: Path, secret: Path, aside: Path) -> bool:
    """Give what is there a second name in `aside`; nothing changes where it is."""
    if not database.exists():
        return False
    with suppress(sqlite3.Error), closing(sqlite3.connect(database, isolation_level=None)) as old:
        old.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # one that is damaged keeps its log beside it
    aside.mkdir(mode=0o700)
    hand_over(aside)
    log, _ = _logs(database)
    for path, name in ((database, NAME), (log, NAME + "-wal"), (secret, NAME + ".secret")):
        with suppress(FileNotFoundError):
            os.link(path, aside / name)
    sync(aside)
    return True


def _logs(database: Path) -> tuple[Path, Path]:
    return database.with_name(database.name + "-wal"), database.with_name(database.name + "-shm")
