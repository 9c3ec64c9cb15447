"""Locks a database for one writing process, and names the process that holds the lock.

SQLite before 3.51.3 can corrupt a WAL when two connections write or checkpoint at once; with a single writer it cannot.
The kernel drops the lock with the process.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from proxy.errors import StoreLocked
from proxy.stores.sqlite.files import hand_over


class Lock:
    """Held from construction to `release`. Raises StoreLocked, naming the holder; OSError."""

    def __init__(self, database: Path) -> None:
        target = database.resolve()  # one lock, by whatever link the database is reached
        path = target.with_name(target.name + ".lock")
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            hand_over(path)
            self._take(database)
        except BaseException:
            os.close(self._fd)
            raise

    def release(self) -> None:
        os.close(self._fd)

    def _take(self, database: Path) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(self._fd, 256, 0).decode(errors="replace").strip() or "another process"
            raise StoreLocked(
                f"{database} is in use by {holder}. Stop it, or set another store.path for this proxy."
            ) from error
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"session-proxy, process {os.getpid()}\n".encode(), 0)
