"""Syncs files and folders to disk, and gives them the right owner. Knows nothing of their content."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

FULL = 1 << 20  # bytes of free space below which nothing can be kept


def sync(path: Path) -> None:
    """Durable on return: a file's content, or the names in a folder."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def no_space(path: Path) -> str | None:
    """What to do about a full disk, of which SQLite says no more than "I/O error"; None where there is space."""
    return f"The disk is full: make space at {path.parent}." if shutil.disk_usage(path.parent).free < FULL else None


def hand_over(path: Path) -> None:
    """What root makes in a folder belongs to the folder's owner, as whom the proxy runs: it could not open it else."""
    if os.geteuid() == 0:
        folder = path.parent.stat()
        os.chown(path, folder.st_uid, folder.st_gid)
