"""The Unix socket beside a database: how a command reaches the process that writes there.

Its owner alone can connect. What is said through it stands in `server/operator_api.py`.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def bound(database: Path) -> socket.socket:
    """A socket to listen on, for whoever holds the lock: what another process left there is replaced. OSError."""
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        os.fchmod(made.fileno(), 0o600)  # Linux gives it to the file that bind makes
        with _short(database) as name:
            with suppress(FileNotFoundError):
                os.unlink(name)
            made.bind(name)
    except BaseException:
        made.close()
        raise
    return made


def connected(database: Path, timeout: float) -> socket.socket:
    """A connection to the process that listens there; seconds. OSError where nobody does."""
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        made.settimeout(timeout)
        with _short(database) as name:
            made.connect(name)
    except OSError as error:
        made.close()
        error.filename = f"{database}.control"
        raise
    return made


def left(database: Path) -> None:
    """Take the socket's name away, while the lock is still held."""
    with suppress(OSError), _short(database) as name:
        os.unlink(name)


@contextmanager
def _short(database: Path) -> Iterator[str]:
    """The socket's name in the 107 bytes that an address has, however deep its folder lies."""
    target = database.resolve()  # one socket, as there is one lock
    folder = os.open(target.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{target.name[:80]}.control"
    finally:
        os.close(folder)
