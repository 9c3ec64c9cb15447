"""Copies a database before a migration, so that the older version of the proxy can have it back.

The copy is a backup that `restore` takes. It holds what was said, so it is removed after a week.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from proxy.errors import StoreUnavailable
from proxy.stores.sqlite.backup import back_up
from proxy.stores.sqlite.migration import steps

KEPT = 7 * 24 * 3600  # seconds
SPARE = 64 << 20  # bytes of free space that a copy leaves
_HEADER, _MAGIC = 100, b"SQLite format 3\0"  # https://www.sqlite.org/fileformat2.html, section 1.3


class Copied(NamedTuple):
    """Of a database whose schema is `old` and will be `new`: the `folder` with its copy, or `why` there is none."""

    old: int
    new: int
    folder: Path | None
    why: str = ""


def copy_before(
    database: Path, free: Callable[[Path], int] = lambda path: shutil.disk_usage(path).free
) -> Copied | None:
    """Copy a database that is about to be migrated; None where it is not. Never raises: a start does not fail for
    want of a copy. `free` tells how much fits."""
    old, new = _schema(database), len(steps())
    if not 0 < old < new:
        return None
    folder = database.with_name(f"before-schema-{new}")
    if folder.exists():  # of a migration that was killed
        return Copied(old, new, folder)
    size = sum([path.stat().st_size for path in (database, _log(database)) if path.exists()])
    if free(database.parent) < size + SPARE:
        return Copied(old, new, None, f"it takes {size >> 20} MiB, and the disk is nearly full")
    try:
        back_up(database, folder, lambda done, pages: None)
    except (StoreUnavailable, ValueError, OSError, sqlite3.Error) as error:
        return Copied(old, new, None, str(error))
    return Copied(old, new, folder)


def remove_old_copies(database: Path, now: float) -> list[Path]:
    """Remove the copies that are older than a week; what was removed. `now` in seconds since the epoch."""
    folders = database.parent.glob("before-schema-*")
    gone = [folder for folder in folders if folder.is_dir() and now - folder.stat().st_mtime > KEPT]
    for folder in gone:
        shutil.rmtree(folder, ignore_errors=True)
    return gone


def _schema(database: Path) -> int:
    """The schema of a database, out of its header: to open one that was left in the midst of writing changes it. 0
    where there is none."""
    try:
        with database.open("rb") as file:
            head = file.read(_HEADER)
    except OSError:
        return 0
    return int.from_bytes(head[60:64], "big") if head.startswith(_MAGIC) and len(head) == _HEADER else 0


def _log(database: Path) -> Path:
    return database.with_name(database.name + "-wal")
