"""Opens the control socket beside a database, by which commands reach the running proxy.

Only the owner of the file can connect. `server/operator_api.py` answers the requests.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def bound(database: Path) -> socket.socket:
    """Bind the control socket, and replace one that a dead process left. Hold the lock first. Raises OSError."""
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
    """Connect to the running proxy, with a timeout in seconds. Raises OSError if none listens."""
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
    """Remove the socket's file. Call it while the lock is still held."""
    with suppress(OSError), _short(database) as name:
        os.unlink(name)


@contextmanager
def _short(database: Path) -> Iterator[str]:
    """Yield a path to the socket that fits in an address's 107 bytes, however deep its folder is."""
    target = database.resolve()  # one socket, as there is one lock
    folder = os.open(target.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{target.name[:80]}.control"
    finally:
        os.close(folder)
