"""Tells an operator what to do about a database that cannot be used. Knows errors of files and of SQLite only."""

from __future__ import annotations

import errno
import sqlite3

from proxy.errors import StoreUnavailable

_FULL = "Free some space on its disk."
_DAMAGED = "Restore a backup, move the file away to start with an empty one, or choose another store.path."
_RIGHTS = "Check that its folder belongs to the user of the proxy and is writable."
_BY_CODE = {
    sqlite3.SQLITE_FULL: _FULL,
    sqlite3.SQLITE_NOTADB: _DAMAGED,
    sqlite3.SQLITE_CORRUPT: _DAMAGED,
    sqlite3.SQLITE_IOERR: "Check its disk, and whether there is space left on it.",
}


def remedy(error: OSError | sqlite3.Error) -> str:
    """One sentence."""
    if isinstance(error, OSError):
        return _FULL if error.errno in (errno.ENOSPC, errno.EDQUOT) else _RIGHTS
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the rest says where it was found
    return _BY_CODE.get(code, _RIGHTS)


def unavailable(error: BaseException) -> StoreUnavailable:
    """What a caller is told where a read or a commit failed."""
    return StoreUnavailable(f"The store cannot be used: {error}. Check the disk; nothing was recorded.")
