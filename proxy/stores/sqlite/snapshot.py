"""Opens a database read-only, as it is at one moment, while another process may be writing to it.

The connection never writes or checkpoints, whatever is asked of it (see `lock.py`).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from proxy.errors import StoreUnavailable
from proxy.stores.sqlite.migration import refuse_newer


def uri(database: Path) -> str:
    """What a connection is opened with that can only read."""
    quoted = str(database).replace("%", "%25").replace("?", "%3f").replace("#", "%23")
    return f"file:{quoted}?mode=ro"


@contextmanager
def snapshot(database: Path) -> Iterator[sqlite3.Connection]:
    """A connection that sees the database as it is now until the block ends, whatever is written meanwhile.

    The log cannot be emptied before the block ends. Raises StoreUnavailable with a sentence on what is
    wrong, also for what fails inside of the block.
    """
    if not database.is_file():
        raise StoreUnavailable(
            f"There is no database at {database}. Start the proxy once, or name its state folder with --state."
        )
    try:
        with closing(sqlite3.connect(uri(database), uri=True, isolation_level=None)) as connection:
            connection.execute("PRAGMA query_only=ON")
            connection.execute("BEGIN")
            ours = "SELECT count(*) FROM sqlite_schema WHERE type = 'table' AND name IN ('sessions', 'turns')"
            if connection.execute(ours).fetchone() != (2,):
                raise StoreUnavailable(f"{database} is not a database of the proxy. Check store.path.")
            refuse_newer(*connection.execute("PRAGMA user_version").fetchone())
            yield connection
    except sqlite3.Error as error:
        raise StoreUnavailable(
            f"Cannot read the database {database}: {error}. Check its permissions and the disk, or restore a backup."
        ) from error
