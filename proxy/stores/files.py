"""Files and folders beside a database: durable, and of the right owner. Knows nothing of what is in them."""

from __future__ import annotations

import os
from pathlib import Path


def sync(path: Path) -> None:
    """Durable on return: a file's content, or the names in a folder."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def hand_over(path: Path) -> None:
    """What root makes in a folder belongs to the folder's owner, as whom the proxy runs: it could not open it else."""
    if os.geteuid() == 0:
        folder = path.parent.stat()
        os.chown(path, folder.st_uid, folder.st_gid)
